// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call onto a block whose ordinary writeback is in flight: it waits until that is over, and
//! sends the block once then. The device holds the writeback.
//!
//! Where the writeback fails in the end, fsync is told, and the call is not: its own write is well, and
//! brings the block to the disk. Where the writes of the call fail, it is told.

use std::sync::Arc;

use crate::aftermath::{self, Failed};
use crate::beside::Beside;
use crate::call::OpenFile;
use crate::rules::Rule;
use crate::scene::{Stage, check_done};
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// The block in writeback.
const BLOCK: u64 = 4;

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fails {
    Nothing,
    Writeback,
    Call,
}

const EIO: i64 = -(libc::EIO as i64);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let at = BLOCK * b;
    let mut files = Vec::new();
    for fails in [Fails::Nothing, Fails::Writeback, Fails::Call] {
        for (name, off, len) in [
            ("whole-block", at, b),
            ("part", at + 100, b / 2),
            ("around", at - 2 * b, 5 * b),
        ] {
            let name = match fails {
                Fails::Nothing => name.to_owned(),
                _ => format!("{name}-{fails:?}").to_lowercase(),
            };
            files.extend(behind(t, &name, fails, off, len)?);
        }
    }
    check_after_remount(t, &mut files)
}

/// The files, as they must be after a remount.
fn behind(t: &Test, name: &str, fails: Fails, off: u64, len: u64) -> Result<Vec<Subject>, Fail> {
    let (world, b) = (t.world, t.world.bsize);
    let mut s = Subject::written(t, name, 16 * b)?;
    let another = OpenFile::open(world, s.path(), false)?;
    // The device learns where the file lies, so that it knows its writeback.
    s.writethrough(t, 0, b)?;
    s.dirty(t, &[(BLOCK * b, b)])?;
    let before = s.expect.clone();
    let writeback = Rule::named(match fails {
        Fails::Writeback => "points-writeback-fails",
        _ => "points-writeback",
    });
    writeback.switch_on(t)?;
    let file = Arc::clone(s.open());
    let fsync = Beside::start(world, "fsync", move |gate| {
        file.ask(world, "fsync", |f| gate.inside(|| f.sync_all()))
    });
    let mut stage = Stage::new(s, off, len);
    let caller = stage.caller(t);
    let counter = Rule::named(match fails {
        Fails::Call => "points-fail-all",
        _ => "points-count",
    });
    let call = writeback.until_held(t).and_then(|()| {
        counter.switch_on(t)?;
        let call = Beside::start(world, format!("the call of {name}"), |gate| {
            caller.make(gate)
        });
        let waits = call.waits(t)?;
        Ok((call, waits, counter.fired(t)?))
    });
    // Whatever was seen: neither must wait for ever.
    writeback.release(t)?;
    let (call, waits, early) = call?;
    let done = call.finish()?;
    let synced = fsync.finish()?;
    let sent = counter.fired(t)?;
    counter.switch_off(t)?;
    writeback.switch_off(t)?;
    let what = format!("{name}: call {}", done.call);
    match waits {
        Some(place) => t.note(format!("{what} waited in {place}")),
        None => t.fail(format!(
            "{what} did not wait for the writeback of its block"
        )),
    }
    // Blocks before that one may go out first.
    let first = u32::from(off < BLOCK * b);
    let most = match fails {
        // An error that it knows ends it.
        Fails::Call => 1..=first + 1,
        _ => early + 1..=early + 1,
    };
    t.check(early <= first && most.contains(&sent), || {
        format!("{what} sent {early} requests before the writeback was over, {sent} in all")
    });
    let right = match fails {
        Fails::Nothing => synced == 0,
        Fails::Writeback => synced == EIO,
        Fails::Call => synced == 0 || synced == EIO,
    };
    t.check(right, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    if fails == Fails::Call {
        aftermath::check_told(t, name, &done, len);
        let failed = Failed {
            what,
            done,
            another: Some(another),
            told: synced == EIO,
            after: std::mem::replace(&mut stage.subject.expect, before),
        };
        return aftermath::look(t, stage, failed);
    }
    drop(another);
    check_done(t, &stage, &what, &done)?;
    let s = stage.subject;
    s.evict(t)?;
    s.check_whole(t, "read from the disk")?;
    s.synced(t, "once more")?;
    Ok(vec![s])
}
