// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One call over several extents. In one file they descend on the disk, so that
//! file order and disk order are opposites; in the other they ascend with holes
//! between, which the call has to allocate.

use std::fs::File;

use crate::call::OpenFile;
use crate::flying::{Caller, Engine};
use crate::subject::{Subject, check_after_remount};
use crate::sweep::Fresh;
use crate::sys;
use crate::test::{Fail, OrFail, Test};

/// Extents of each file.
pub const EXTENTS: u64 = 8;

/// Runs the case with synchronous calls.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    extents(t, |s, t, off, len| s.writethrough(t, off, len).map(drop))
}

/// Runs it with calls by AIO, and by io_uring where there is one.
pub fn run_async(t: &mut Test) -> Result<(), Fail> {
    let mut by_uring = false;
    let is = t.world.fact("io_uring");
    if is != "yes" {
        t.note(format!("by AIO alone: io_uring is {is}"));
    }
    extents(t, |s, t, off, len| {
        let engine = match by_uring && t.world.fact("io_uring") == "yes" {
            true => Engine::Uring,
            false => Engine::Aio,
        };
        by_uring = !by_uring;
        s.put(off, len);
        let done = Caller::start(t, s, engine, off, len, 0).thread.finish()?;
        s.check_call(t, &done, off, len)
    })
}

fn extents(
    t: &mut Test,
    mut call: impl FnMut(&mut Subject, &Test, u64, u64) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let chunk = 4 * t.world.bsize;
    let mut down = descending(t, chunk)?;
    let mut up = holes(t, chunk)?;
    for s in [&mut down, &mut up] {
        let len = s.expect.len() as u64;
        // The first call converts unwritten extents and fills holes, the second
        // meets written ones.
        call(s, t, 0, len)?;
        call(s, t, chunk / 2 + 100, len - chunk)?;
        s.check_whole(t, "after all calls")?;
    }
    check_after_remount(t, &mut [down, up])
}

/// To be swept: all of the descending extents, unwritten.
pub fn unwritten(t: &Test) -> Result<Fresh, Fail> {
    let chunk = 4 * t.world.bsize;
    Ok(Fresh::of(descending(t, chunk)?, 0, EXTENTS * chunk))
}

/// To be swept: the same, written, from the middle of the first to the middle of the last.
pub fn written(t: &Test) -> Result<Fresh, Fail> {
    let chunk = 4 * t.world.bsize;
    let mut s = descending(t, chunk)?;
    let len = EXTENTS * chunk;
    s.prepare(t, 0, len)?;
    Ok(Fresh::of(s, chunk / 2 + 100, len - chunk))
}

/// To be swept: extents with holes between, which the call has to allocate.
pub fn filled(t: &Test) -> Result<Fresh, Fail> {
    let chunk = 4 * t.world.bsize;
    let len = (2 * EXTENTS - 1) * chunk;
    Ok(Fresh::of(holes(t, chunk)?, 0, len))
}

/// A file whose extents descend on the disk, with blocks of another file between
/// them: neighbours would be merged into one request, which has no order. The
/// plain way first: allocating from the end. Where the allocator finds room
/// below, blocks are borrowed from another file, which gives any order there
/// is, but sets the reflink flag.
pub fn descending(t: &Test, chunk: u64) -> Result<Subject, Fail> {
    descending_named(t, "descending", chunk)
}

/// The same with a name of its own.
pub fn descending_named(t: &Test, name: &str, chunk: u64) -> Result<Subject, Fail> {
    let mut plain = Subject::create(t, name)?;
    // No call is ever made on this one: what is done to it need not be told.
    let spacer = t.dir.join(format!("{name}-spacer"));
    let spacer = File::create(spacer).or_fail(|| "a file between".into())?;
    plain.allocate_by(t, EXTENTS * chunk, |file| {
        (0..EXTENTS).rev().try_for_each(|i| {
            sys::fallocate(file, 0, i * chunk, chunk)?;
            sys::fallocate(&spacer, 0, (EXTENTS - 1 - i) * chunk, chunk)
        })
    })?;
    if descends(&plain)? {
        plain.open().tell_pages(t.world, "prepared")?;
        return Ok(plain);
    }
    let donor = Subject::written(t, &format!("{name}-donor"), 2 * EXTENTS * chunk)?;
    let mut cloned = Subject::create(t, &format!("{name}-cloned"))?;
    cloned.expect.resize((EXTENTS * chunk) as usize, 0);
    let from = donor.open();
    for i in (0..EXTENTS).rev() {
        let src = 2 * (EXTENTS - 1 - i) * chunk;
        let to = cloned.open();
        let cloning = to.change(t.world, "reflink", i * chunk, chunk, |to| {
            sys::clone_range(to, &from.file, src, chunk, i * chunk)
        })?;
        if let Err(e) = cloning {
            return Err(Fail::Skip(format!(
                "no descending layout: the allocator ascends and cloning says {e}"
            )));
        }
        let part = &donor.expect[src as usize..(src + chunk) as usize];
        let at = (i * chunk) as usize;
        cloned.expect[at..at + part.len()].copy_from_slice(part);
    }
    unshare(t, from)?;
    t.note("the descending layout was made by cloning");
    if !descends(&cloned)? {
        return Err(Fail::Skip(
            "no descending layout: neither allocating nor cloning made one".into(),
        ));
    }
    Ok(cloned)
}

/// Truncation gives the blocks back at once; an unlinked file's go later.
fn unshare(t: &Test, donor: &OpenFile) -> Result<(), Fail> {
    donor
        .change(t.world, "truncate", 0, 0, |f| {
            f.set_len(0).and_then(|()| f.sync_all())
        })?
        .or_fail(|| "truncating the donor".into())
}

fn descends(s: &Subject) -> Result<bool, Fail> {
    let extents = s.extents()?;
    Ok(extents.len() as u64 == EXTENTS
        && extents
            .iter()
            .all(|e| e.has_place() && e.flags & crate::fiemap::SHARED == 0)
        && extents
            .windows(2)
            .all(|w| w[0].physical > w[1].physical + w[1].length))
}

/// A file of extents with holes between. Behind each extent on the disk lies one of another file,
/// so that no hole can be filled with the blocks next to it: where these are free would depend on
/// what was done before.
fn holes(t: &Test, chunk: u64) -> Result<Subject, Fail> {
    let mut s = Subject::create(t, "holes")?;
    let spacer = File::create(t.dir.join("spacer-holes")).or_fail(|| "a file between".into())?;
    s.allocate_by(t, (2 * EXTENTS - 1) * chunk, |file| {
        (0..EXTENTS).try_for_each(|i| {
            sys::fallocate(file, 0, 2 * i * chunk, chunk)?;
            sys::fallocate(&spacer, 0, i * chunk, chunk)
        })
    })?;
    s.open().tell_pages(t.world, "prepared")?;
    let ascends = s
        .extents()?
        .windows(2)
        .all(|w| w[0].physical < w[1].physical);
    if !ascends {
        t.note("the extents between the holes do not all ascend on the disk");
    }
    Ok(s)
}
