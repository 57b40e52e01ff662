// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sharing blocks while an asynchronous call is held: FICLONERANGE and FIDEDUPERANGE with its file
//! as the source and as the destination. Each has to wait until the call is over, as for direct
//! I/O: a source would share blocks that are still being written, a destination would lose the
//! blocks under the write. Afterwards both files hold what they must, and a call to shared blocks
//! leaves the other file alone. All of it again with a write that fails in the end: then the blocks
//! are shared as the disk has them, or it is told that the data is not there.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::aftermath::{self, Failed};
use crate::beside::Beside;
use crate::call::OpenFile;
use crate::fate::{self, Fate, Holds};
use crate::flying::Caller;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, odd, result_text};
use crate::test::{Fail, OrFail, Test};

/// Blocks of each file, and of the call at their begin.
const FILE: u64 = 16;
const CALL: u64 = 2;

/// What is done, and what the call's file is of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    CloneFrom,
    CloneTo,
    DedupeFrom,
    DedupeTo,
}

use Deed::{CloneFrom, CloneTo, DedupeFrom, DedupeTo};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for fate in fate::BOTH {
        for deed in [CloneFrom, CloneTo, DedupeFrom, DedupeTo] {
            files.extend(in_flight(t, fate, deed)?);
        }
    }
    check_after_remount(t, &mut files)
}

/// The files, as they must be after a remount.
fn in_flight(t: &Test, fate: Fate, deed: Deed) -> Result<Vec<Subject>, Fail> {
    let b = t.world.bsize;
    let (len, size) = (CALL * b, FILE * b);
    let name = fate.name(&format!("{deed:?}").to_lowercase());
    let rule = fate.rule(t);
    let mut s = Subject::written(t, &name, size)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let without = s.expect.clone();
    s.put(0, len);
    let mut other = Subject::create(t, &format!("{name}-other"))?;
    match deed {
        // Equal to what the file is after the call.
        DedupeFrom | DedupeTo => other.prepare_bytes(t, 0, &s.expect)?,
        CloneFrom | CloneTo => other.prepare(t, 0, size)?,
    }
    s.evict(t)?;
    rule.switch_on(t)?;
    let caller = Caller::start(t, &s, fate.engine(t), 0, len, 0);
    let seen = rule.until_held(t).and_then(|()| {
        let submitted = caller.submitted(t)?;
        let thread = start(t, deed, &s, &other, size);
        let waited = thread.waits(t)?;
        Ok((submitted, thread, waited))
    });
    // Whatever was seen: neither must wait for ever.
    rule.release(t)?;
    let done = caller.thread.finish();
    rule.switch_off(t)?;
    let (submitted, thread, waited) = seen?;
    let done = done?;
    let result = thread.finish()?;
    let what = format!("{name} beside call {}", done.call);
    t.check(submitted.is_ok(), || {
        format!("{what}: the submission waited")
    });
    match waited {
        Some(place) => t.note(format!("{name} waited in {place}")),
        None => t.fail(format!("{what} went on while its write was in flight")),
    }
    if result == -i64::from(libc::EOPNOTSUPP) {
        return Err(Fail::Skip("the file system does not share blocks".into()));
    }
    fate.check_call(t, &what, &done, len);
    if fate.fails() {
        let with = std::mem::take(&mut s.expect);
        let failed = Failed {
            what,
            done,
            another: Some(another),
            told: false,
            after: Vec::new(),
        };
        return after_error(t, deed, result, (s, other), Holds { with, without }, failed);
    }
    drop(another);
    t.check(result == 0, || {
        format!("{what} returned {}", result_text(result))
    });
    match deed {
        CloneFrom => other.expect.clone_from(&s.expect),
        CloneTo => s.expect.clone_from(&other.expect),
        DedupeFrom | DedupeTo => {}
    }
    for file in [&s, &other] {
        file.check_whole(t, &format!("after {what}"))?;
        file.evict(t)?;
        file.check_whole(t, &format!("after {what}, read from the disk"))?;
    }
    // Their blocks are shared now.
    s.writethrough(t, 100, b)?;
    other.check_whole(t, "after a call to blocks that it shared")?;
    Ok(vec![s, other])
}

/// The call's write has failed. Who shares blocks writes them back first, and so may be told of it;
/// then nothing is shared. A clone is tried once more. A dedupe is not: the page cache still shows
/// what the disk does not hold, and by that it would find both files equal.
fn after_error(
    t: &Test,
    deed: Deed,
    mut result: i64,
    (mut s, mut other): (Subject, Subject),
    mut holds: Holds,
    failed: Failed,
) -> Result<Vec<Subject>, Fail> {
    let (len, size) = (CALL * t.world.bsize, FILE * t.world.bsize);
    let told = result == -i64::from(libc::EIO);
    if told && matches!(deed, CloneFrom | CloneTo) {
        result = start(t, deed, &s, &other, size).finish()?;
    }
    t.check(
        result == 0 || told && matches!(deed, DedupeFrom | DedupeTo),
        || {
            let again = if told { ", after an EIO" } else { "" };
            format!("{} returned {}{again}", failed.what, result_text(result))
        },
    );
    match deed {
        CloneFrom => {
            // Block by block what the disk has of the call's file.
            other.expect.clone_from(&holds.without);
            other.evict(t)?;
            let stage = Stage::new(other, 0, len);
            let what = format!("{}, the clone", failed.what);
            aftermath::old_or_new(t, &what, &stage, &holds.with)?;
            other = stage.subject;
            let file = Arc::clone(other.open());
            file.file
                .read_exact_at(&mut other.expect[..len as usize], 0)
                .or_fail(|| "reading the clone".into())?;
        }
        CloneTo => holds.change(|bytes| bytes.clone_from(&other.expect)),
        DedupeTo if result == 0 => holds.without.clone_from(&holds.with),
        // Whatever became of it: the other file keeps its contents.
        DedupeFrom | DedupeTo => {}
    }
    other.evict(t)?;
    other.check_whole(t, "beside a call that failed")?;
    s.expect = holds.without;
    let mut stage = Stage::new(s, 0, len);
    stage.others.push(other);
    let failed = Failed {
        after: holds.with,
        ..failed
    };
    aftermath::look(t, stage, failed)
}

/// The thread that does it. Either way the call's file is changed: its blocks are shared.
fn start(t: &Test, deed: Deed, s: &Subject, other: &Subject, size: u64) -> Beside<i64> {
    let world = t.world;
    let (file, other) = (Arc::clone(s.open()), Arc::clone(other.open()));
    Beside::start(world, format!("{deed:?}"), move |gate| {
        let result = file.change_told(world, "reflink", 0, size, |f| {
            gate.inside(|| {
                let o = &other.file;
                match deed {
                    CloneFrom => sys::clone_range(o, f, 0, size, 0),
                    CloneTo => sys::clone_range(f, o, 0, size, 0),
                    DedupeFrom => whole(odd::dedupe_range(f, o, 0, size)?, size),
                    DedupeTo => whole(odd::dedupe_range(o, f, 0, size)?, size),
                }
            })
        });
        // Closed before the result is known: what follows may be an umount.
        drop((file, other));
        result
    })
}

fn whole(bytes: u64, size: u64) -> std::io::Result<()> {
    if bytes == size {
        return Ok(());
    }
    Err(std::io::Error::other(format!(
        "{bytes} of {size} bytes were shared"
    )))
}
