// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A plain write, or a store through a mapping, into a folio of an asynchronous call that is in
//! flight: it has to wait, so that what the device reads does not change. Also when another call
//! on the file has ended meanwhile: who wanted stable pages for two may not take that back for
//! both. The device holds what has to be in flight, so neither is a matter of luck.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use wtblk_shared::mark::{Control, Mark};

use super::returns_after_io::until_so_many_held;
use crate::beside::Beside;
use crate::flying::{Caller, Engine};
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

/// The rules of `guest-tests/scenarios/stable-in-flight.toml`, by place in the file.
const ENDS: &str = "ends-first";
const STAYS: &str = "stays";
/// Length of each call. Its folios are of this size, as the file was evicted.
const LEN: u64 = 4096;
/// Where the call is that ends first, and the one that stays in flight.
const AT_ENDS: u64 = 0;
const AT_STAYS: u64 = 8 * LEN;
/// Where the byte goes.
const RACING: u64 = AT_STAYS + 100;
/// Length of the file.
const FILE: u64 = 16 * LEN;

/// Who changes the folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Racer {
    Write,
    Store,
}

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for racer in [Racer::Write, Racer::Store] {
        for two in [false, true] {
            files.push(race(t, racer, two)?);
        }
    }
    check_after_remount(t, &mut files)
}

fn release(t: &Test, rule: &str) -> Result<(), Fail> {
    t.world
        .post(&Mark::Control(Control::Release(Some(rule.into()))))
}

fn race(t: &Test, racer: Racer, two: bool) -> Result<Subject, Fail> {
    let beside = if two { "another has ended" } else { "alone" };
    let what = format!("{racer:?}, {beside}");
    let name = format!("{racer:?}-{two}").to_lowercase();
    let mut s = Subject::written(t, &name, FILE)?;
    let map = Arc::new(Mapping::new(&s.open().file, FILE as usize).or_fail(|| "mmap".into())?);
    s.evict(t)?;
    t.world.post(&Mark::Control(Control::Arm(None)))?;
    s.put(AT_STAYS, LEN);
    let stays = Caller::start(t, &s, Engine::Aio, AT_STAYS, LEN, 0);
    let mut flying = until_so_many_held(t, 1);
    if two {
        s.put(AT_ENDS, LEN);
        let ends = Caller::start(t, &s, Engine::Aio, AT_ENDS, LEN, 0);
        flying = flying.and_then(|()| until_so_many_held(t, 2));
        release(t, ENDS)?;
        flying = flying
            .and_then(|()| ends.thread.finish())
            .and_then(|done| s.check_call(t, &done, AT_ENDS, LEN));
    }
    let byte = !s.expect[RACING as usize];
    let changer = flying.and_then(|()| {
        let changer = changer(t, &s, &map, racer, RACING, byte);
        let waited = changer.waits(t)?;
        Ok((changer, waited))
    });
    // Whatever was seen: neither must wait for ever.
    release(t, STAYS)?;
    let (changer, waited) = changer?;
    let done = stays.thread.finish()?;
    changer.finish()?;
    match waited {
        Some(place) => t.note(format!("{what}: waited in {place}")),
        None => t.fail(format!(
            "{what}: a byte of call {} was changed while its write was in flight",
            done.call
        )),
    }
    t.check(done.result == LEN as i64, || {
        format!(
            "{what}: call {} returned {}",
            done.call,
            result_text(done.result)
        )
    });
    // The change has made the page dirty again; in writeback it is no more.
    let file = Arc::clone(s.open());
    let state = pages::report_twice(t.world, done.call, "after-call", &file.file, AT_STAYS, LEN)?;
    t.check(state.writeback == 0, || {
        format!("{what}: {} pages stay in writeback", state.writeback)
    });
    s.expect[RACING as usize] = byte;
    s.check_whole(t, &what)?;
    drop(changer);
    drop(map);
    let synced = file.fsync(t.world)?;
    t.check(synced == 0, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    Ok(s)
}

/// The thread that changes the byte at `at`.
pub(super) fn changer(
    t: &Test,
    s: &Subject,
    map: &Arc<Mapping>,
    racer: Racer,
    at: u64,
    byte: u8,
) -> Beside<()> {
    let (world, file, map) = (t.world, Arc::clone(s.open()), Arc::clone(map));
    let kind = match racer {
        Racer::Write => "write",
        Racer::Store => "mmap",
    };
    Beside::start(world, format!("{racer:?}"), move |gate| {
        let done = file.change(world, kind, at, 1, |f| {
            gate.inside(|| match racer {
                Racer::Write => f.write_all_at(&[byte], at),
                Racer::Store => {
                    map.store(at as usize, byte);
                    Ok(())
                }
            })
        })?;
        // File and mapping go with the test, not with this thread.
        drop((file, map));
        done.or_fail(|| "the write of a byte".into())
    })
}
