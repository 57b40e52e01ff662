// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two asynchronous calls on one file: apart, side by side, of the same block. The device holds the
//! writes of both and lets them go in both orders. Of the same block, the second has to wait for
//! the first.

use wtblk_shared::mark::{Control, Mark};

use super::returns_after_io::until_so_many_held;
use crate::flying::{Caller, Engine};
use crate::subject::{Subject, check_after_remount};
use crate::test::{Fail, Test};

/// The rules of `guest-tests/scenarios/concurrent-calls.toml`: of the page at 0, and of any other
/// write or the second of that page.
const ONE: &str = "hold-one";
const TWO: &str = "hold-two";
/// Length of each call. Its folios are of this size, as the file was evicted.
const LEN: u64 = 4096;
/// Length of each file.
const FILE: u64 = 16 * LEN;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for (place, off) in [("apart", 8 * LEN), ("beside", LEN)] {
        for (order, first, last) in [("in-order", ONE, TWO), ("turned", TWO, ONE)] {
            files.push(both(t, &format!("{place}-{order}"), off, first, last)?);
        }
    }
    files.push(same(t)?);
    files.push(many(t)?);
    check_after_remount(t, &mut files)
}

/// A file whose pages are not in the page cache.
fn prepared(t: &Test, name: &str) -> Result<Subject, Fail> {
    let s = Subject::written(t, name, FILE)?;
    s.evict(t)?;
    Ok(s)
}

/// The second call is by io_uring where there is one.
fn other_engine(t: &Test) -> Engine {
    if t.world.fact("io_uring") == "yes" {
        Engine::Uring
    } else {
        Engine::Aio
    }
}

fn release(t: &Test, rule: &str) -> Result<(), Fail> {
    t.world
        .post(&Mark::Control(Control::Release(Some(rule.into()))))
}

/// Both writes are in flight together; the rules say whose completion comes first.
fn both(t: &Test, name: &str, off: u64, first: &str, last: &str) -> Result<Subject, Fail> {
    let mut s = prepared(t, name)?;
    t.world.post(&Mark::Control(Control::Arm(None)))?;
    s.put(0, LEN);
    let one = Caller::start(t, &s, Engine::Aio, 0, LEN, 0);
    let begun = until_so_many_held(t, 1);
    s.put(off, LEN);
    let two = Caller::start(t, &s, other_engine(t), off, LEN, 0);
    let together = begun.and_then(|()| until_so_many_held(t, 2));
    release(t, first)?;
    let (early, late) = if first == ONE {
        (&one, &two)
    } else {
        (&two, &one)
    };
    let done_early = together.and_then(|()| early.thread.finish());
    let too_soon = late.thread.come();
    release(t, last)?;
    let done_early = done_early.map_err(|e| named(name, e))?;
    let done_late = match too_soon {
        Some(done) => {
            t.fail(format!(
                "{name}: {} was over while its write was held",
                late.thread.what
            ));
            done?
        }
        None => late.thread.finish()?,
    };
    for (caller, done) in [(early, done_early), (late, done_late)] {
        let at = if std::ptr::eq(caller, &one) { 0 } else { off };
        s.check_call(t, &done, at, LEN)?;
    }
    s.check_whole(t, "after both")?;
    Ok(s)
}

/// Of the same block: the submission of the second waits for the writeback of the first.
fn same(t: &Test) -> Result<Subject, Fail> {
    let mut s = prepared(t, "same")?;
    t.world.post(&Mark::Control(Control::Arm(None)))?;
    s.put(0, LEN);
    let one = Caller::start(t, &s, Engine::Aio, 0, LEN, 0);
    let begun = until_so_many_held(t, 1);
    s.put(0, LEN);
    let two = Caller::start(t, &s, Engine::Aio, 0, LEN, 0);
    let waited = begun.and_then(|()| two.submitted(t));
    release(t, ONE)?;
    match waited? {
        Err(place) => t.note(format!("the second call of the block waited in {place}")),
        Ok(call) => t.fail(format!(
            "call {call} was submitted while another one of the same block was in flight"
        )),
    }
    let first = one.thread.finish()?;
    let held = until_so_many_held(t, 1);
    release(t, TWO)?;
    held?;
    let second = two.thread.finish()?;
    t.check(first.result == LEN as i64, || {
        format!("call {} returned {}", first.call, first.result)
    });
    s.check_call(t, &second, 0, LEN)?;
    s.check_whole(t, "after both of the same block")?;
    Ok(s)
}

/// Eight calls at a time, in turns by AIO and by io_uring, that nothing holds.
fn many(t: &Test) -> Result<Subject, Fail> {
    let mut s = prepared(t, "many")?;
    t.world.post(&Mark::Control(Control::Disarm(None)))?;
    for round in 0..4 {
        let callers: Vec<(u64, Caller)> = (0..8)
            .map(|i| {
                // Apart in the even rounds, side by side in the odd ones.
                let off = if round % 2 == 0 { 2 * i * LEN } else { i * LEN };
                s.put(off, LEN);
                let engine = if i % 2 == 0 {
                    Engine::Aio
                } else {
                    other_engine(t)
                };
                (off, Caller::start(t, &s, engine, off, LEN, 0))
            })
            .collect();
        for (off, caller) in callers {
            let done = caller.thread.finish()?;
            t.check(done.result == LEN as i64, || {
                format!("call {} at {off} returned {}", done.call, done.result)
            });
        }
        s.check_whole(t, "after eight calls at a time")?;
    }
    Ok(s)
}

fn named(name: &str, e: Fail) -> Fail {
    match e {
        Fail::Error(text) => Fail::Error(format!("{name}: {text}")),
        Fail::Hung(text) => Fail::Hung(format!("{name}: {text}")),
        Fail::Skip(text) => Fail::Skip(text),
    }
}
