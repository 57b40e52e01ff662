// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Freezing the file system while the device holds the write of an asynchronous call: the freeze
//! has to wait for the end of the call, as what is in flight would change what was frozen. And
//! a call that is submitted while it is frozen waits for the thaw. Where the write fails in the end
//! it is frozen all the same: the error is the caller's.

use std::sync::Arc;

use wtblk_shared::mark::{FileMark, Mark};

use crate::aftermath::{self, Failed};
use crate::beside::Beside;
use crate::call::OpenFile;
use crate::fate::{self, Fate, Holds};
use crate::flying::{Caller, Engine};
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, result_text};
use crate::test::{Fail, OrFail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for fate in fate::BOTH {
        files.extend(in_flight(t, fate)?);
    }
    check_after_remount(t, &mut files)
}

fn in_flight(t: &Test, fate: Fate) -> Result<Vec<Subject>, Fail> {
    let b = t.world.bsize;
    let rule = fate.rule(t);
    let mut s = Subject::written(t, &fate.name("file"), 16 * b)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    s.evict(t)?;
    let without = s.expect.clone();
    rule.switch_on(t)?;
    s.put(0, b);
    let with = s.expect.clone();
    let mut holds = Holds { with, without };
    let caller = Caller::start(t, &s, fate.engine(t), 0, b, 0);
    let frozen = rule.until_held(t).and_then(|()| {
        let freeze = freeze(t, &s);
        let waited = freeze.waits(t)?;
        // Where it went on, the device has to hear of it before the release.
        let frozen = match waited {
            None => Some(freeze.finish()?),
            Some(_) => None,
        };
        Ok((freeze, waited, frozen))
    });
    // Whatever was seen: the caller must not wait for ever.
    rule.release(t)?;
    let (freeze, waited, frozen) = frozen?;
    rule.switch_off(t)?;
    let done = match frozen {
        None => {
            let done = caller.thread.finish()?;
            let frozen = freeze.finish()?;
            t.check(frozen == 0, || {
                format!("FIFREEZE returned {}", result_text(frozen))
            });
            if frozen == 0 {
                while_frozen(t, &mut s, &mut holds)?;
            }
            done
        }
        Some(_) => {
            thaw(t, &s)?;
            caller.thread.finish()?
        }
    };
    match waited {
        Some(place) => t.note(format!("the freeze waited in {place}")),
        None => t.fail(format!(
            "the file system was frozen while the write of call {} was in flight",
            done.call
        )),
    }
    let what = format!("call {} beside a freeze", done.call);
    fate.check_call(t, &what, &done, b);
    if fate.fails() {
        s.expect = holds.without;
        let failed = Failed {
            what,
            done,
            another: Some(another),
            told: false,
            after: holds.with,
        };
        return aftermath::look(t, Stage::new(s, 0, b), failed);
    }
    s.expect = holds.with;
    s.check_call(t, &done, 0, b)?;
    s.check_whole(t, "after the thaw")?;
    Ok(vec![s])
}

/// The thread that freezes.
fn freeze(t: &Test, s: &Subject) -> Beside<i64> {
    let (world, file) = (t.world, Arc::clone(s.open()));
    Beside::start(world, "the freeze", move |gate| {
        world.post(&Mark::File(FileMark::Freezing { dev: file.dev }))?;
        let result = sys::result_of(gate.inside(|| sys::freeze(&file.file)));
        if result == 0 {
            world.post(&Mark::File(FileMark::Frozen { dev: file.dev }))?;
        }
        drop(file);
        Ok(result)
    })
}

fn thaw(t: &Test, s: &Subject) -> Result<(), Fail> {
    let file = s.open();
    t.world
        .post(&Mark::File(FileMark::Thawing { dev: file.dev }))?;
    sys::thaw(&file.file).or_fail(|| "FITHAW".into())
}

/// A call that is submitted now waits for the thaw.
fn while_frozen(t: &Test, s: &mut Subject, holds: &mut Holds) -> Result<(), Fail> {
    let b = t.world.bsize;
    s.put(4 * b, b);
    let range = s.index(4 * b)..s.index(5 * b);
    holds.change(|bytes| bytes[range.clone()].copy_from_slice(&s.expect[range.clone()]));
    let late = Caller::start(t, s, Engine::Aio, 4 * b, b, 0);
    let submitted = late.submitted(t);
    thaw(t, s)?;
    match submitted? {
        Err(place) => t.note(format!("a call meanwhile waited in {place}")),
        Ok(call) => t.fail(format!(
            "call {call} was submitted while the file system was frozen"
        )),
    }
    let done = late.thread.finish()?;
    s.check_call(t, &done, 4 * b, b)
}
