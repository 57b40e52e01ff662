// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A plain write, or a store through a mapping, into a folio of an asynchronous call that is in
//! flight: it has to wait, so that what the device reads does not change. Also when another call
//! on the file has ended meanwhile: who wanted stable pages for two may not take that back for
//! both. The device holds what has to be in flight, so neither is a matter of luck. Where the write
//! fails in the end, who waited goes on, and what he wrote comes to the disk.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::aftermath::{self, Failed};
use crate::beside::Beside;
use crate::call::OpenFile;
use crate::fate::{self, Fate};
use crate::flying::Caller;
use crate::pages;
use crate::rules::Rule;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

/// The rule of `guest-tests/scenarios/stable-in-flight.toml` for the call that ends first. The others
/// are of the place of the one that stays.
const ENDS: &str = "stable-ends-first";
/// Where the call is that stays in flight.
const AT_STAYS: u64 = 0;
/// Where the byte goes.
const RACING: u64 = AT_STAYS + 100;
/// Length of the file, in units: the length of each call, whose folio is of that size, as the file was evicted.
const FILE: u64 = 10;

/// Who changes the folio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Racer {
    Write,
    Store,
}

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for fate in fate::BOTH {
        for racer in [Racer::Write, Racer::Store] {
            for two in [false, true] {
                files.extend(race(t, fate, racer, two)?);
            }
        }
    }
    check_after_remount(t, &mut files)
}

fn race(t: &Test, fate: Fate, racer: Racer, two: bool) -> Result<Vec<Subject>, Fail> {
    let len = t.world.unit();
    let (size, at_ends, engine) = (FILE * len, 8 * len, fate.engine(t));
    let beside = if two { "another has ended" } else { "alone" };
    let what = format!("{racer:?}, {beside}");
    let name = fate.name(&format!("{racer:?}-{two}").to_lowercase());
    let (stays_rule, ends_rule) = (fate.rule(t), Rule::named(ENDS));
    let mut s = Subject::written(t, &name, size)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let map = Arc::new(Mapping::new(&s.open().file, size as usize).or_fail(|| "mmap".into())?);
    s.evict(t)?;
    let older = s.expect.clone();
    stays_rule.switch_on(t)?;
    s.put(AT_STAYS, len);
    let stays = Caller::start(t, &s, engine, AT_STAYS, len, 0);
    let mut flying = stays_rule.until_held(t);
    if two {
        ends_rule.switch_on(t)?;
        s.put(at_ends, len);
        let ends = Caller::start(t, &s, engine, at_ends, len, 0);
        flying = flying.and_then(|()| ends_rule.until_held(t));
        ends_rule.release(t)?;
        flying = flying
            .and_then(|()| ends.thread.finish())
            .and_then(|done| s.check_call(t, &done, at_ends, len));
        ends_rule.switch_off(t)?;
    }
    let byte = !s.expect[RACING as usize];
    let changer = flying.and_then(|()| {
        let changer = changer(t, &s, &map, racer, RACING, byte);
        let waited = changer.waits(t)?;
        Ok((changer, waited))
    });
    // Whatever was seen: neither must wait for ever.
    stays_rule.release(t)?;
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
    stays_rule.switch_off(t)?;
    fate.check_call(t, &what, &done, len);
    s.expect[RACING as usize] = byte;
    drop(changer);
    if fate.fails() {
        let after = s.expect.clone();
        // What the racer made dirty was so when the call's bytes were in it: they come to the disk.
        let unit = match racer {
            Racer::Write => t.world.bsize.min(len),
            Racer::Store => len,
        };
        let page = AT_STAYS as usize..(AT_STAYS + len) as usize;
        s.expect[page.clone()].copy_from_slice(&older[page]);
        let dirty = (RACING / unit * unit) as usize..((RACING / unit + 1) * unit) as usize;
        s.expect[dirty.clone()].copy_from_slice(&after[dirty]);
        let failed = Failed {
            what,
            done,
            another: Some(another),
            told: false,
            after,
        };
        let mut stage = Stage::new(s, AT_STAYS, len);
        stage.keep.push(map);
        return aftermath::look(t, stage, failed);
    }
    drop(another);
    // The change has made the page dirty again; in writeback it is no more.
    let file = Arc::clone(s.open());
    let state = pages::report_twice(t.world, done.call, "after-call", &file.file, AT_STAYS, len)?;
    t.check(state.writeback == 0, || {
        format!("{what}: {} pages stay in writeback", state.writeback)
    });
    s.check_whole(t, &what)?;
    drop(map);
    let synced = file.fsync(t.world)?;
    t.check(synced == 0, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    Ok(vec![s])
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
