// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two asynchronous calls on one file: apart, side by side, of the same block. The device holds the
//! writes of both and lets them go in both orders. Of the same block, the second has to wait for
//! the first. Then one of the two fails: it is told, and the other one is whole.

use crate::aftermath::{self, Failed};
use crate::call::{Done, OpenFile};
use crate::fate::Fate;
use crate::flying::{Caller, Engine, uring_or_aio};
use crate::rules::Rule;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::test::{Fail, Test};

/// One of two calls. The rules of `guest-tests/scenarios/concurrent-calls.toml` for the first are of the
/// page at 0, those for the second of any other write, or the second of that page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    One,
    Two,
}

use Which::{One, Two};

impl Which {
    fn other(self) -> Which {
        match self {
            One => Two,
            Two => One,
        }
    }

    /// Its rule, where this one fails.
    fn rule(self, fails: Option<Which>) -> Rule {
        let word = format!("{self:?}").to_lowercase();
        let does = if fails == Some(self) {
            "fails"
        } else {
            "holds"
        };
        Rule::named(format!("concurrent-{word}-{does}"))
    }

    /// How its write ends.
    fn fate(self, fails: Option<Which>) -> Fate {
        match fails == Some(self) {
            true => Fate::Fails,
            false => Fate::Succeeds,
        }
    }
}

/// Length of each file, in units: the length of each call, whose folio is of that size, as the file was evicted.
const FILE: u64 = 10;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let len = t.world.unit();
    let mut files = Vec::new();
    for fails in [None, Some(One), Some(Two)] {
        for (place, off) in [("apart", 8 * len), ("beside", len)] {
            for (order, first) in [("in-order", One), ("turned", Two)] {
                let name = named_after(&format!("{place}-{order}"), fails);
                files.push(both(t, &name, off, first, fails)?);
            }
        }
        files.push(same(t, fails)?);
    }
    files.push(many(t)?);
    check_after_remount(t, &mut files)
}

/// A file whose pages are not in the page cache.
fn prepared(t: &Test, name: &str, units: u64) -> Result<Subject, Fail> {
    let s = Subject::written(t, name, units * t.world.unit())?;
    s.evict(t)?;
    Ok(s)
}

fn named_after(name: &str, fails: Option<Which>) -> String {
    match fails {
        None => name.to_owned(),
        Some(which) => format!("{name}-{which:?}-fails").to_lowercase(),
    }
}

/// Both writes are in flight together; `first` is completed first.
fn both(
    t: &Test,
    name: &str,
    off: u64,
    first: Which,
    fails: Option<Which>,
) -> Result<Subject, Fail> {
    let len = t.world.unit();
    let mut s = prepared(t, name, FILE)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let older = s.expect.clone();
    let rule = |which: Which| which.rule(fails);
    rule(One).switch_on(t)?;
    s.put(0, len);
    let one = Caller::start(t, &s, Engine::Aio, 0, len, 0);
    let begun = rule(One).until_held(t);
    rule(Two).switch_on(t)?;
    s.put(off, len);
    let two = Caller::start(t, &s, uring_or_aio(t), off, len, 0);
    let together = begun.and_then(|()| rule(Two).until_held(t));
    rule(first).release(t)?;
    let (early, late) = if first == One {
        (&one, &two)
    } else {
        (&two, &one)
    };
    let done_early = together.and_then(|()| early.thread.finish());
    let too_soon = late.thread.come();
    rule(first.other()).release(t)?;
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
    rule(One).switch_off(t)?;
    rule(Two).switch_off(t)?;
    let mut failed = None;
    for (which, done) in [(first, done_early), (first.other(), done_late)] {
        let at = if which == One { 0 } else { off };
        if which.fate(fails) == Fate::Fails {
            aftermath::check_told(t, name, &done, len);
            failed = Some((done, at));
        } else {
            s.check_call(t, &done, at, len)?;
        }
    }
    if let Some((done, at)) = failed {
        let range = at as usize..(at + len) as usize;
        let mut without = s.expect.clone();
        without[range.clone()].copy_from_slice(&older[range]);
        return after(t, name, (s, another), (done, at), without);
    }
    drop(another);
    s.check_whole(t, "after both")?;
    Ok(s)
}

/// Everything that follows the call that failed, at this place. `without`: what the file holds without it.
fn after(
    t: &Test,
    name: &str,
    (mut s, another): (Subject, OpenFile),
    (done, at): (Done, u64),
    without: Vec<u8>,
) -> Result<Subject, Fail> {
    let len = t.world.unit();
    let failed = Failed {
        what: format!("{name}: call {}", done.call),
        done,
        another: Some(another),
        told: false,
        after: std::mem::replace(&mut s.expect, without),
    };
    let mut files = aftermath::look(t, Stage::new(s, at, len), failed)?;
    files
        .pop()
        .ok_or_else(|| Fail::Error(format!("{name}: the file is gone")))
}

/// Of the same block: the submission of the second waits for the writeback of the first.
fn same(t: &Test, fails: Option<Which>) -> Result<Subject, Fail> {
    let len = t.world.unit();
    let name = named_after("same", fails);
    let mut s = prepared(t, &name, FILE)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let (one_rule, two_rule) = (One.rule(fails), Two.rule(fails));
    one_rule.switch_on(t)?;
    s.put(0, len);
    let one = Caller::start(t, &s, Engine::Aio, 0, len, 0);
    let begun = one_rule.until_held(t);
    two_rule.switch_on(t)?;
    let with_one = s.expect.clone();
    s.put(0, len);
    let two = Caller::start(t, &s, Engine::Aio, 0, len, 0);
    let waited = begun.and_then(|()| two.submitted(t));
    one_rule.release(t)?;
    match waited? {
        Err(place) => t.note(format!("the second call of the block waited in {place}")),
        Ok(call) => t.fail(format!(
            "call {call} was submitted while another one of the same block was in flight"
        )),
    }
    let first = one.thread.finish()?;
    let held = two_rule.until_held(t);
    two_rule.release(t)?;
    held?;
    let second = two.thread.finish()?;
    one_rule.switch_off(t)?;
    two_rule.switch_off(t)?;
    One.fate(fails).check_call(t, &name, &first, len);
    Two.fate(fails).check_call(t, &name, &second, len);
    if fails != Some(Two) {
        s.check_call(t, &second, 0, len)?;
    }
    match fails {
        None => {
            drop(another);
            s.check_whole(t, "after both of the same block")?;
            Ok(s)
        }
        Some(One) => {
            // The second has written all of it.
            let without = s.expect.clone();
            after(t, &name, (s, another), (first, 0), without)
        }
        Some(Two) => after(t, &name, (s, another), (second, 0), with_one),
    }
}

/// Eight calls at a time, in turns by AIO and by io_uring, that nothing holds.
fn many(t: &Test) -> Result<Subject, Fail> {
    let len = t.world.unit();
    let mut s = prepared(t, "many", 16)?;
    for round in 0..4 {
        let callers: Vec<(u64, Caller)> = (0..8)
            .map(|i| {
                // Apart in the even rounds, side by side in the odd ones.
                let off = if round % 2 == 0 { 2 * i * len } else { i * len };
                s.put(off, len);
                let engine = if i % 2 == 0 {
                    Engine::Aio
                } else {
                    uring_or_aio(t)
                };
                (off, Caller::start(t, &s, engine, off, len, 0))
            })
            .collect();
        for (off, caller) in callers {
            let done = caller.thread.finish()?;
            t.check(done.result == len as i64, || {
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
