// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call onto a block whose ordinary writeback is in flight: it waits until that is over, and
//! sends the block once then. The device holds the writeback.

use std::sync::Arc;

use crate::beside::Beside;
use crate::rules::Rule;
use crate::scene::{Stage, check_done};
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// The block in writeback.
const BLOCK: u64 = 4;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let at = BLOCK * b;
    let mut files = Vec::new();
    for (name, off, len) in [
        ("whole-block", at, b),
        ("part", at + 100, b / 2),
        ("around", at - 2 * b, 5 * b),
    ] {
        files.push(behind(t, name, off, len)?);
    }
    check_after_remount(t, &mut files)
}

fn behind(t: &Test, name: &str, off: u64, len: u64) -> Result<Subject, Fail> {
    let (world, b) = (t.world, t.world.bsize);
    let mut s = Subject::written(t, name, 16 * b)?;
    // The device learns where the file lies, so that it knows its writeback.
    s.writethrough(t, 0, b)?;
    s.dirty(t, &[(BLOCK * b, b)])?;
    let writeback = Rule::named("points-writeback");
    writeback.switch_on(t)?;
    let file = Arc::clone(s.open());
    let fsync = Beside::start(world, "fsync", move |gate| {
        file.ask(world, "fsync", |f| gate.inside(|| f.sync_all()))
    });
    let mut stage = Stage::new(s, off, len);
    let caller = stage.caller(t);
    let counter = Rule::named("points-count");
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
    t.check(early <= first && sent == early + 1, || {
        format!("{what} sent {early} requests before the writeback was over, {sent} in all")
    });
    t.check(synced == 0, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    check_done(t, &stage, &what, &done)?;
    let s = stage.subject;
    s.evict(t)?;
    s.check_whole(t, "read from the disk")?;
    Ok(s)
}
