// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Three asynchronous calls on one file in flight: one ends well, one with an error, one stays.
//! Its pages have to stay as they are all that time, whoever has ended.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::beside::Beside;
use crate::call::Done;
use crate::flying::{Caller, uring_or_aio};
use crate::pages;
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// The rules of `guest-tests/scenarios/stable-among-three.toml`: each takes the first write after it was switched on.
const WELL: &str = "three-ends-well";
const FAILS: &str = "three-fails";
const STAYS: &str = "three-stays";
/// Where the call is that stays in flight.
const AT_STAYS: u64 = 0;
/// Where the byte goes.
const RACING: u64 = AT_STAYS + 300;
/// Length of the file, in units: the length of each call, whose folio is of that size, as the file was evicted.
const FILE: u64 = 10;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    // Who ends last before the page is looked at: the one that succeeds, or the one that fails.
    for (name, last_fails) in [("well-last", false), ("fails-last", true)] {
        files.push(one(t, name, last_fails)?);
    }
    check_after_remount(t, &mut files)
}

fn one(t: &Test, name: &str, last_fails: bool) -> Result<Subject, Fail> {
    let (engine, len) = (uring_or_aio(t), t.world.unit());
    let mut s = Subject::written(t, name, FILE * len)?;
    s.evict(t)?;
    let at_fails = 4 * len;
    let mut callers = Vec::new();
    for (rule, off) in [(WELL, 8 * len), (FAILS, at_fails), (STAYS, AT_STAYS)] {
        // What fails may be there or not: it is written again in the end.
        s.put(off, len);
        Rule::named(rule).switch_on(t)?;
        let caller = Caller::start(t, &s, engine, off, len, 0);
        if let Err(e) = Rule::named(rule).until_held(t) {
            for rule in [WELL, FAILS, STAYS] {
                Rule::named(rule).release(t)?;
            }
            return Err(e);
        }
        callers.push((rule, caller));
    }
    let order = if last_fails { [0, 1] } else { [1, 0] };
    let seen = order
        .into_iter()
        .map(|n| {
            let (rule, caller) = &callers[n];
            Rule::named(*rule).release(t)?;
            ended(t, rule, &caller.thread.finish()?);
            Ok(())
        })
        .collect::<Result<Vec<()>, Fail>>()
        .and_then(|_| {
            let writer = writer(t, &s, !s.expect[RACING as usize]);
            let waited = writer.waits(t)?;
            Ok((writer, waited))
        });
    // Whatever was seen: neither must wait for ever.
    Rule::named(STAYS).release(t)?;
    let (writer, waited) = seen?;
    let done = callers[2].1.thread.finish()?;
    ended(t, STAYS, &done);
    for rule in [WELL, FAILS, STAYS] {
        Rule::named(rule).switch_off(t)?;
    }
    let result = writer.finish()?;
    t.check(result == 0, || {
        format!("the write of a byte returned {}", result_text(result))
    });
    match waited {
        Some(place) => t.note(format!("{name}: the write of a byte waited in {place}")),
        None => t.fail(format!(
            "{name}: a byte of call {} was changed while its write was in flight",
            done.call
        )),
    }
    pages::report_twice(
        t.world,
        done.call,
        "after-call",
        &s.open().file,
        AT_STAYS,
        len,
    )?;
    s.expect[RACING as usize] = !s.expect[RACING as usize];
    // EIO is told once, of the call that failed.
    let synced = s.open().fsync(t.world)?;
    let eio = -i64::from(libc::EIO);
    t.check(synced == 0 || synced == eio, || {
        format!("fsync returned {}", result_text(synced))
    });
    s.writethrough(t, at_fails, len)?;
    s.check_whole(t, name)?;
    Ok(s)
}

/// How the call of this rule has to end.
fn ended(t: &Test, rule: &str, done: &Done) {
    let want = match rule {
        FAILS => -i64::from(libc::EIO),
        _ => t.world.unit() as i64,
    };
    t.check(done.result == want, || {
        format!(
            "{rule}: call {} ended with {}",
            done.call,
            result_text(done.result)
        )
    });
}

/// The thread that changes one byte.
fn writer(t: &Test, s: &Subject, byte: u8) -> Beside<i64> {
    let (world, file) = (t.world, Arc::clone(s.open()));
    Beside::start(world, "the write of a byte", move |gate| {
        let done = file.change_told(world, "write", RACING, 1, |f| {
            gate.inside(|| f.write_all_at(&[byte], RACING))
        });
        // Closed before the result is known: what follows may be an umount.
        drop(file);
        done
    })
}
