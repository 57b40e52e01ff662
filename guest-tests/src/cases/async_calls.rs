// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous calls, by AIO and by io_uring: all kinds of ranges; a call whose write the device
//! holds, which has to return and to end later; one whose write fails then, which has to say so in
//! its completion event.

use wtblk_shared::RWF_DSYNC;
use wtblk_shared::mark::{Control, Mark};

use super::returns_after_io::until_held;
use crate::aftermath::others_told;
use crate::call::{Done, OpenFile};
use crate::flying::{Caller, Engine};
use crate::page_flags;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// By AIO.
pub fn aio(t: &mut Test) -> Result<(), Fail> {
    run(t, Engine::Aio, "aio-held", "aio-fails")
}

/// By io_uring.
pub fn uring(t: &mut Test) -> Result<(), Fail> {
    run(t, Engine::Uring, "uring-held", "uring-fails")
}

/// The rules are those of `guest-tests/scenarios/async-aio.toml` and `async-uring.toml`.
fn run(t: &Test, engine: Engine, held: &str, fails: &str) -> Result<(), Fail> {
    let rule = |name: &str| Some(name.to_owned());
    for name in [held, fails] {
        t.world.post(&Mark::Control(Control::Disarm(rule(name))))?;
    }
    let mut s = ranges(t, engine)?;
    let (off, len) = (3 * t.world.bsize, 5 * t.world.bsize + 7);

    t.world.post(&Mark::Control(Control::Arm(rule(held))))?;
    let done = while_held(t, &mut s, engine, held, off, len)?;
    s.check_call(t, &done, off, len)?;

    let another = OpenFile::open(t.world, s.path(), false)?;
    t.world.post(&Mark::Control(Control::Arm(rule(fails))))?;
    let done = while_held(t, &mut s, engine, fails, off, len)?;
    let eio = -i64::from(libc::EIO);
    t.check(
        done.result == eio || (0..len as i64).contains(&done.result),
        || {
            format!(
                "call {} ended with {} although its data write failed",
                done.call,
                result_text(done.result)
            )
        },
    );
    page_flags::check(t, "after the error", done.call, s.open(), off, len)?;
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0 || synced == eio, || {
        format!("fsync returned {}", result_text(synced))
    });
    others_told(t, "after the error", &s, &another, synced)?;
    drop(another);
    // The same range again, so that it is known what the file holds.
    call(t, &mut s, engine, off, len, 0)?;
    s.check_whole(t, "after all calls")?;
    check_after_remount(t, &mut [s])
}

/// Calls that nothing holds up.
fn ranges(t: &Test, engine: Engine) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "file", 64 * b)?;
    for (off, len, more) in [
        (0, b, 0),
        (2 * b, 8 * b, 0),
        (11 * b + 100, b / 2, 0),
        (13 * b + 1, 3 * b, 0),
        (20 * b, 2 * b, RWF_DSYNC),
        // To the end of the file, over it, and far beyond.
        (63 * b, b + 10, 0),
        (64 * b + 10, 300, 0),
        (80 * b + 5, b, 0),
    ] {
        call(t, &mut s, engine, off, len, more)?;
    }
    s.allocate(t, 90 * b, 16 * b)?;
    call(t, &mut s, engine, 91 * b, 4 * b, 0)?;
    call(t, &mut s, engine, 96 * b + 9, 2 * b, RWF_DSYNC)?;
    s.check_whole(t, "after calls that nothing held up")?;
    Ok(s)
}

/// A whole call, checked.
fn call(
    t: &Test,
    s: &mut Subject,
    engine: Engine,
    off: u64,
    len: u64,
    more: u32,
) -> Result<(), Fail> {
    s.put(off, len);
    let done = Caller::start(t, s, engine, off, len, more)
        .thread
        .finish()?;
    s.check_call(t, &done, off, len)
}

/// A call whose first data write the rule holds: it is submitted, is not over, and ends after the release.
fn while_held(
    t: &Test,
    s: &mut Subject,
    engine: Engine,
    rule: &str,
    off: u64,
    len: u64,
) -> Result<Done, Fail> {
    s.put(off, len);
    let caller = Caller::start(t, s, engine, off, len, 0);
    let submitted = until_held(t).and_then(|()| caller.submitted(t));
    let early = caller.thread.come();
    // Whatever was seen: the caller must not wait for ever.
    t.world
        .post(&Mark::Control(Control::Release(Some(rule.into()))))?;
    if let Err(place) = submitted? {
        t.fail(format!(
            "the submission of {} waited for its I/O in {place}",
            caller.thread.what
        ));
    }
    match early {
        Some(done) => {
            let done = done?;
            t.fail(format!(
                "call {} was over while its first data write was held",
                done.call
            ));
            Ok(done)
        }
        None => caller.thread.finish(),
    }
}
