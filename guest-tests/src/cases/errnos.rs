// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the call answers where it is combined with other flags, made on odd files, or meets a limit.
//!
//! Where the flag has no business the answer is the contract's; what a plain write is refused
//! with, so is the call; and what it returns short is what is there.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use wtblk_shared::{RWF_DSYNC, RWF_NOWAIT};

use crate::beside::Gate;
use crate::call::{Call, OpenFile};
use crate::flying::{ASYNC, Engine};
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, odd, result_text};
use crate::test::{Fail, OrFail, Test};

/// Flags of `include/uapi/linux/fs.h`.
const RWF_HIPRI: u32 = 0x01;
const RWF_SYNC: u32 = 0x04;
const RWF_APPEND: u32 = 0x10;
const RWF_NOAPPEND: u32 = 0x20;
const RWF_ATOMIC: u32 = 0x40;
const RWF_DONTCACHE: u32 = 0x80;
const RWF_NOBODY_KNOWS: u32 = 0x4000_0000;
const FS_IMMUTABLE_FL: i32 = 0x10;
const FS_APPEND_FL: i32 = 0x20;

const EOPNOTSUPP: i64 = -(libc::EOPNOTSUPP as i64);
const EINVAL: i64 = -(libc::EINVAL as i64);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    refused_flags(t)?;
    odd_files(t)?;
    same_as_plain(t)?;
    let files = [combined(t)?, appended(t)?, opened_sync(t)?, limited(t)?];
    let mut files: Vec<Subject> = files.into_iter().flatten().collect();
    check_after_remount(t, &mut files)
}

/// An answer that has to be one of these.
fn check(t: &Test, what: &str, result: i64, wanted: &[i64]) {
    t.check(wanted.contains(&result), || {
        let wanted: Vec<String> = wanted.iter().map(|w| result_text(*w)).collect();
        format!(
            "{what}: answered {}, expected {}",
            result_text(result),
            wanted.join(" or ")
        )
    });
}

/// The bare call of a page, not marked: it is refused, or its file is on no disk of ours.
fn bare(t: &Test, file: &File, off: u64, more: u32) -> i64 {
    sys::pwritev2(file, &[&[0x33; 4096]], off, t.world.params.flag | more)
}

/// Combinations that make no sense, and reads.
fn refused_flags(t: &Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "refused", 4 * b)?;
    let file = &s.open().file;
    let flag = t.world.params.flag;
    let mut bytes = [0; 512];
    check(
        t,
        "a read with the flag",
        odd::preadv2(file, &mut bytes, 0, flag),
        &[EOPNOTSUPP],
    );
    // Where a plain write does not know the bit either, it is an unknown one.
    let scratch = t.dir.join("scratch");
    std::fs::write(&scratch, [0; 4096]).or_fail(|| "a scratch file".into())?;
    let scratch = open_to_write(&scratch)?;
    let unknown = |bit| sys::pwritev2(&scratch, &[&[0; 4096]], 0, bit) == EOPNOTSUPP;
    let with = |bit, known| if unknown(bit) { EOPNOTSUPP } else { known };
    for (name, more, wanted) in [
        ("RWF_NOWAIT", RWF_NOWAIT, EINVAL),
        ("RWF_NOWAIT and RWF_DSYNC", RWF_NOWAIT | RWF_DSYNC, EINVAL),
        ("RWF_DONTCACHE", RWF_DONTCACHE, with(RWF_DONTCACHE, EINVAL)),
        (
            "RWF_APPEND and RWF_NOAPPEND",
            RWF_APPEND | RWF_NOAPPEND,
            EINVAL,
        ),
        ("a bit that nobody knows", RWF_NOBODY_KNOWS, EOPNOTSUPP),
    ] {
        check(
            t,
            &format!("with {name}"),
            bare(t, file, 0, more),
            &[wanted],
        );
    }
    nowait_async(t, &s)?;
    // Atomic writes are for O_DIRECT; which of the two says no first is not the flag's matter.
    let atomic = bare(t, file, 0, RWF_ATOMIC);
    check(t, "with RWF_ATOMIC", atomic, &[EOPNOTSUPP, EINVAL]);
    let direct = OpenFile::open(t.world, &t.dir.join("refused"), true)?;
    check(
        t,
        "on an O_DIRECT file",
        bare(t, &direct.file, 0, 0),
        &[EINVAL],
    );
    let read_only = File::open(t.dir.join("refused")).or_fail(|| "open to read".into())?;
    check(
        t,
        "on a file opened to read",
        bare(t, &read_only, 0, 0),
        &[-i64::from(libc::EBADF)],
    );
    s.check_whole(t, "after refused calls")
}

/// RWF_NOWAIT of the user's own is refused when the flags are looked at; io_uring's first attempt, which may
/// not wait either, is another matter and never seen.
fn nowait_async(t: &Test, s: &Subject) -> Result<(), Fail> {
    for (engine, fact) in [(Engine::Aio, "aio"), (Engine::Uring, "io_uring")] {
        if t.world.fact(fact) != "yes" {
            let is = t.world.fact(fact);
            t.note(format!(
                "RWF_NOWAIT by {engine:?} was not tried: {fact} is {is}"
            ));
            continue;
        }
        let call = Call {
            words: &[ASYNC],
            ..s.call(t, 0, t.world.bsize, RWF_NOWAIT)
        };
        let done = call.submit(engine, &Gate::default())?.finish()?;
        let what = format!("with RWF_NOWAIT by {engine:?} (call {})", done.call);
        check(t, &what, done.result, &[EINVAL]);
    }
    Ok(())
}

/// Files that know nothing of the flag.
fn odd_files(t: &Test) -> Result<(), Fail> {
    let (_reader, writer) = std::io::pipe().or_fail(|| "pipe".into())?;
    let pipe = File::from(OwnedFd::from(writer));
    let at_position = u64::MAX;
    // A pipe has no offsets: that comes before the flags are looked at.
    check(
        t,
        "a pipe with an offset",
        bare(t, &pipe, 0, 0),
        &[-i64::from(libc::ESPIPE)],
    );
    check(t, "a pipe", bare(t, &pipe, at_position, 0), &[EOPNOTSUPP]);
    let memfd = odd::memfd(false).or_fail(|| "memfd".into())?;
    check(t, "a memfd", bare(t, &memfd, 0, 0), &[EOPNOTSUPP]);
    let sealed = odd::memfd(true).or_fail(|| "a sealed memfd".into())?;
    check(
        t,
        "a sealed memfd",
        bare(t, &sealed, 0, 0),
        &[EOPNOTSUPP, -i64::from(libc::EPERM)],
    );
    let null = open_to_write(Path::new("/dev/null"))?;
    check(t, "/dev/null", bare(t, &null, 0, 0), &[EOPNOTSUPP]);
    let folder = File::open(&t.dir).or_fail(|| "open the folder".into())?;
    check(
        t,
        "a folder",
        bare(t, &folder, 0, 0),
        &[-i64::from(libc::EBADF)],
    );
    // A block device that nobody uses.
    let image = t.dir.join("image");
    std::fs::write(&image, [0; 1 << 16]).or_fail(|| "an image".into())?;
    match sys::loop_bind(&open_to_write(&image)?) {
        Ok(path) => {
            let device = open_to_write(Path::new(&path))?;
            check(t, "a block device", bare(t, &device, 0, 0), &[EOPNOTSUPP]);
            drop(device);
            sys::loop_free(&path).or_fail(|| format!("freeing {path}"))?;
        }
        Err(e) => t.note(format!("a block device was not tried: {e}")),
    }
    Ok(())
}

fn open_to_write(path: &Path) -> Result<File, Fail> {
    File::options()
        .read(true)
        .write(true)
        .open(path)
        .or_fail(|| format!("open {}", path.display()))
}

/// Files that a plain write may be refused on: the call gets the same answer.
fn same_as_plain(t: &Test) -> Result<(), Fail> {
    for (name, bits) in [
        ("immutable", FS_IMMUTABLE_FL),
        ("append-only", FS_APPEND_FL),
    ] {
        let s = Subject::written(t, name, 4 * t.world.bsize)?;
        if let Err(e) = odd::file_flags(&s.open().file, bits, true) {
            t.note(format!("a file that is {name} was not tried: {e}"));
            continue;
        }
        let same = as_plain(t, s, name);
        // The folder is of use to nobody with such a file in it.
        let file = open_to_read(&t.dir.join(name))?;
        odd::file_flags(&file, bits, false).or_fail(|| format!("making it not {name}"))?;
        same?;
    }
    let mut swap = Subject::written(t, "swap", 10 * 4096)?;
    let mut header = vec![0; 4096];
    header[1024] = 1; // version
    header[1028] = 9; // last page
    header[4086..].copy_from_slice(b"SWAPSPACE2");
    swap.overwrite_plain(t, 0, &header)?;
    let path = t.dir.join("swap").display().to_string();
    match odd::swapon(&path) {
        Ok(()) => {
            let plain = sys::pwritev2(&swap.open().file, &[&[0; 512]], 0, 0);
            let call = bare(t, &swap.open().file, 0, 0);
            check(t, "a swap file", call, &[plain]);
            check(t, "a swap file", plain, &[-i64::from(libc::ETXTBSY)]);
            t.note(format!("a write to a swap file: {}", result_text(plain)));
            odd::swapoff(&path).or_fail(|| "swapoff".into())?;
        }
        Err(e) => t.note(format!("a swap file was not tried: swapon said {e}")),
    }
    Ok(())
}

fn open_to_read(path: &Path) -> Result<File, Fail> {
    File::open(path).or_fail(|| format!("open {}", path.display()))
}

fn as_plain(t: &Test, mut s: Subject, name: &str) -> Result<(), Fail> {
    let b = t.world.bsize;
    s.next_version();
    let version = s.version();
    let mut bytes = vec![0; b as usize];
    wtblk_shared::pattern::fill(s.number, version, 0, &mut bytes);
    let file = Arc::clone(s.open());
    let plain = file.change(t.world, "write", 0, b, |f| {
        sys::pwritev2(f, &[&bytes], 0, 0)
    })?;
    let done = s.call(t, 0, b, 0).run(1)?;
    check(
        t,
        &format!("a file that is {name} (call {})", done.call),
        done.result,
        &[plain],
    );
    t.note(format!(
        "a write to a file that is {name}: {}",
        result_text(plain)
    ));
    if plain > 0 {
        s.put_version(version, 0, plain as u64);
    }
    s.check_whole(t, name)
}

/// Flags that go together with it.
fn combined(t: &Test) -> Result<Vec<Subject>, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "combined", 16 * b)?;
    for (n, more) in [RWF_HIPRI, RWF_SYNC, RWF_SYNC | RWF_DSYNC, RWF_NOAPPEND]
        .into_iter()
        .enumerate()
    {
        let (off, len) = (3 * n as u64 * b + 10, b);
        s.put(off, len);
        // RWF_DSYNC has a word of its own.
        let words: &[&str] = if more == RWF_SYNC { &["dsync"] } else { &[] };
        let done = Call {
            words,
            ..s.call(t, off, len, more)
        }
        .run(1)?;
        s.check_call(t, &done, off, len)?;
    }
    // Nothing to write: nothing happens, not even beyond the end.
    for off in [0, 5, 64 * b] {
        let result = sys::pwritev2(&s.open().file, &[], off, t.world.params.flag);
        let empty = sys::pwritev2(&s.open().file, &[&[]], off, t.world.params.flag);
        check(t, "nothing to write", result, &[0]);
        check(t, "an empty buffer", empty, &[0]);
    }
    s.check_whole(t, "after all combinations")?;
    Ok(vec![s])
}

/// RWF_APPEND: the offset is the end of the file, whatever was said.
fn appended(t: &Test) -> Result<Vec<Subject>, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "appended", b + 100)?;
    for len in [b, 77] {
        let end = s.expect.len() as u64;
        s.put(end, len);
        let call = s.call(t, end, len, RWF_APPEND);
        let bytes = &s.expect[end as usize..];
        // At 0, it says; the mark knows better.
        let done = call.marked(|_| sys::pwritev2(&call.file.file, &[bytes], 0, call.flags))?;
        s.check_call(t, &done, end, len)?;
    }
    Ok(vec![s])
}

/// O_SYNC and O_DSYNC: durable without a flag of the call's own.
fn opened_sync(t: &Test) -> Result<Vec<Subject>, Fail> {
    let b = t.world.bsize;
    let mut list = Vec::new();
    for (name, bits) in [("o-dsync", libc::O_DSYNC), ("o-sync", libc::O_SYNC)] {
        let mut s = Subject::written(t, name, 4 * b)?;
        let file = OpenFile::open_with(t.world, &t.dir.join(name), bits)?;
        for (off, len) in [(b, b), (2 * b + 9, 100), (4 * b, b + 1)] {
            s.put(off, len);
            let call = s.call(t, off, len, 0);
            let done = Call {
                file: &file,
                words: &["dsync"],
                ..call
            }
            .run(1)?;
            s.check_call(t, &done, off, len)?;
        }
        list.push(s);
    }
    Ok(list)
}

/// RLIMIT_FSIZE: a call that would go beyond is cut there, one that begins there is refused.
fn limited(t: &Test) -> Result<Vec<Subject>, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "limited", 4 * b)?;
    let limit = 6 * b + 100;
    odd::limit_file_size(Some(limit)).or_fail(|| "RLIMIT_FSIZE".into())?;
    let tried = up_to(t, &mut s, limit);
    odd::limit_file_size(None).or_fail(|| "RLIMIT_FSIZE".into())?;
    tried?;
    s.writethrough(t, limit, b)?;
    Ok(vec![s])
}

fn up_to(t: &Test, s: &mut Subject, limit: u64) -> Result<(), Fail> {
    let (off, len) = (3 * t.world.bsize, 8 * t.world.bsize);
    let version = s.next_version();
    let done = s.call(t, off, len, 0).run(1)?;
    let what = format!("call {} across RLIMIT_FSIZE", done.call);
    check(t, &what, done.result, &[(limit - off) as i64]);
    s.put_version(version, off, limit - off);
    s.check_clean(t, &what, done.call, off, limit - off)?;
    s.check_on_disk(t, &what, off, limit - off)?;
    for beyond in [limit, limit + 5000] {
        check(
            t,
            "at RLIMIT_FSIZE",
            bare(t, &s.open().file, beyond, 0),
            &[-i64::from(libc::EFBIG)],
        );
    }
    s.check_whole(t, &what)
}
