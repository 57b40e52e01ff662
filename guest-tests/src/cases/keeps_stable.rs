// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that asks for stable pages (`queue/stable_writes`, which the guest sets itself and the file
//! system looks at when it is mounted). Then every writeback wants them, not only a call's: the wish
//! of the mapping has to survive the last call on the file. After a call, with none in flight, a
//! page is dirty and its ordinary writeback is held: a write, and a store, into it wait.
//!
//! Without the wish of the disk both go on, which is looked at first: else the case would prove nothing.

use std::sync::Arc;

use wtblk_shared::mark::Mark;

use super::stable_in_flight::{Racer, changer};
use crate::beside::Beside;
use crate::flying::{Caller, Engine};
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};
use crate::world::World;

/// The rule of `guest-tests/scenarios/keeps-stable.toml`.
const RULE: &str = "keeps-holds";
/// Where the byte goes.
const RACING: u64 = 100;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let world = t.world;
    if world.fact("stable_writes") != "0" {
        return Err(Fail::Skip(format!(
            "the disk's queue/stable_writes is {} already",
            world.fact("stable_writes")
        )));
    }
    // The disk does not ask: nobody waits, whatever calls there were.
    let mut files = vec![race(t, "not-asked", Racer::Write, Before::Call, false)?];
    files.iter_mut().for_each(Subject::close);
    wish(world, true)?;
    // Whatever is seen: the tests after this one want the disk as it was.
    let asked = all(t);
    let wished = match asked {
        Ok(mut more) => {
            more.iter_mut().for_each(Subject::close);
            files.append(&mut more);
            wish(world, false)
        }
        Err(e) => wish(world, false).and(Err(e)),
    };
    wished?;
    for file in &mut files {
        file.reopen(t)?;
    }
    check_after_remount(t, &mut files)
}

fn all(t: &Test) -> Result<Vec<Subject>, Fail> {
    let mut files = Vec::new();
    for racer in [Racer::Write, Racer::Store] {
        for before in [Before::Call, Before::Two] {
            let name = format!("{racer:?}-{before:?}").to_lowercase();
            files.push(race(t, &name, racer, before, true)?);
        }
    }
    Ok(files)
}

/// The disk asks for stable pages, or does so no more. The file system takes it over when it is mounted.
fn wish(world: &'static World, on: bool) -> Result<(), Fail> {
    world.umount()?;
    let disk = world.data.path.trim_start_matches("/dev/");
    let path = format!("/sys/block/{disk}/queue/stable_writes");
    let word = if on { "1" } else { "0" };
    let written = std::fs::write(&path, word);
    let now = std::fs::read_to_string(&path).unwrap_or_default();
    // Told before the mount: from there on it counts.
    let told = world.post(&Mark::Env(
        [("stable_writes".to_owned(), now.trim().to_owned())].into(),
    ));
    world.limited("mount", world.params.test, || world.mount())??;
    told?;
    if written.is_err() || now.trim() != word {
        return Err(Fail::Skip(format!(
            "{path} cannot be set to {word}: it is '{}'",
            now.trim()
        )));
    }
    Ok(())
}

/// What was on the file before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// A synchronous call.
    Call,
    /// Two asynchronous ones at a time.
    Two,
}

fn race(
    t: &Test,
    name: &str,
    racer: Racer,
    before: Before,
    must_wait: bool,
) -> Result<Subject, Fail> {
    let rule = Rule::named(RULE);
    let len = t.world.unit();
    let whole = 16 * len;
    let mut s = Subject::written(t, name, whole)?;
    s.evict(t)?;
    match before {
        Before::Call => {
            s.writethrough(t, 4 * len, len)?;
        }
        Before::Two => {
            let at = [4 * len, 8 * len];
            let calls = at.map(|off| {
                s.put(off, len);
                Caller::start(t, &s, Engine::Aio, off, len, 0)
            });
            for (call, off) in calls.iter().zip(at) {
                let done = call.thread.finish()?;
                s.check_call(t, &done, off, len)?;
            }
        }
    }
    let map = Arc::new(Mapping::new(&s.open().file, whole as usize).or_fail(|| "mmap".into())?);
    s.write_plain(t, 0, len)?;
    rule.switch_on(t)?;
    let (world, file) = (t.world, Arc::clone(s.open()));
    let sync = Beside::start(world, "fsync", move |gate| {
        let synced = file.ask(world, "fsync", |f| gate.inside(|| f.sync_all()));
        drop(file);
        synced
    });
    let byte = !s.expect[RACING as usize];
    let raced = rule.until_held(t).and_then(|()| {
        let racing = changer(t, &s, &map, racer, RACING, byte);
        let waited = match must_wait {
            false if racing.goes_on() => None,
            _ => racing.waits(t)?,
        };
        Ok((racing, waited))
    });
    // Whatever was seen: neither must wait for ever.
    rule.release(t)?;
    let synced = sync.finish()?;
    rule.switch_off(t)?;
    let (racing, waited) = raced?;
    racing.finish()?;
    drop((racing, map));
    t.check(synced == 0, || {
        format!("{name}: fsync returned {}", result_text(synced))
    });
    match (waited, must_wait) {
        (Some(place), true) => t.note(format!("{name}: waited in {place}")),
        (None, true) => t.fail(format!(
            "{name}: a page was changed while its writeback was in flight, although the disk asks for stable pages"
        )),
        (Some(place), false) => t.fail(format!(
            "{name}: waited in {place} although neither the disk nor a call asks for stable pages"
        )),
        (None, false) => {}
    }
    s.expect[RACING as usize] = byte;
    s.synced(t, name)?;
    s.check_whole(t, name)?;
    s.evict(t)?;
    s.check_whole(t, &format!("{name}, read from the disk"))?;
    Ok(s)
}
