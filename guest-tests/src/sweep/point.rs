// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One point: a fresh file, one call whose request fails, and what becomes of the file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use wtblk_shared::mark::{Control, Mark, PointEnd};
use wtblk_shared::sweep::COUNTER;

use super::kernel_log::KernelLog;
use super::watch::{At, Step};
use super::{Fresh, Shape};
use crate::call::{Call, OpenFile};
use crate::pages;
use crate::subject::{Subject, rounded};
use crate::sys::{self, result_text};
use crate::test::{Fail, Findings, OrFail, Test};
use crate::versions::Versions;
use crate::world::World;

/// Does a point with these rules armed; what came of it.
pub fn run(
    world: &'static World,
    shape: &Shape,
    rules: &[String],
    at: &At,
    log: &mut KernelLog,
) -> PointEnd {
    let mut end = PointEnd::default();
    let findings = Arc::new(Findings::default());
    log.look(&mut Vec::new());
    let done = Test::new(world, shape.test, Arc::clone(&findings))
        .and_then(|t| steps(&t, shape, rules, at, log, &mut end));
    let failures = findings.failures.lock();
    end.failures
        .extend(failures.iter().flat_map(|list| list.iter().cloned()));
    if let Err(fail) = done {
        // Whatever it came to: the next point has its own rules.
        let _ = world.post(&Mark::Control(Control::Disarm(None)));
        end.failures.push(crate::runner::text(&fail).to_owned());
    }
    log.look(&mut end.kernel);
    end
}

fn steps(
    t: &Test,
    shape: &Shape,
    rules: &[String],
    at: &At,
    log: &mut KernelLog,
    end: &mut PointEnd,
) -> Result<(), Fail> {
    let world = t.world;
    let all = world.params.sweep.all;
    at.step(Step::Prepare, 0);
    remove_all(&t.dir)?;
    let Fresh {
        mut subject,
        off,
        len,
        more,
        dirty,
    } = (shape.fresh)(t)?;
    let s = &mut subject;
    if all {
        // Nothing of the preparation shall come between the requests that are counted.
        sys::sync();
    }
    let mut versions = Versions::from(s);
    if !dirty.is_empty() {
        s.dirty(t, &dirty)?;
        versions.add(s);
    }
    for rule in rules {
        world.post(&Mark::Control(Control::Arm(Some(rule.clone()))))?;
    }
    at.step(Step::Call, 0);
    let version = s.next_version();
    versions.add_call(s, version, off, len);
    let done = Call {
        world,
        test: t.name,
        file: s.open(),
        off,
        len,
        flags: world.params.flag | more,
        words: &[],
        pattern: (s.number, version),
    }
    .run(1)?;
    end.result = Some(done.result);
    t.check(done.result <= len as i64, || {
        format!("the call of {len} bytes returned {}", done.result)
    });
    at.step(Step::Fsync, done.call);
    look_at_pages(t, s.open(), done.call, off, len)?;
    end.fsync = Some(s.open().fsync(world)?);
    if rules.first().is_some_and(|rule| rule == COUNTER) {
        end.counted = counted(world);
    }
    world.post(&Mark::Control(Control::Disarm(None)))?;
    log.look(&mut end.kernel);
    end.shut_down = is_shut_down(end);
    if !end.shut_down {
        at.step(Step::Rewrite, done.call);
        end.rewrite = Some(rewrite(t, s, off, len, more)?);
    }
    at.step(Step::Remove, done.call);
    // The rewrite may have been the first to see it.
    log.look(&mut end.kernel);
    end.shut_down = is_shut_down(end);
    if end.shut_down {
        versions.add(s);
        s.close();
        at.step(Step::Remount, done.call);
        world.remount()?;
        super::limit_retries(world)?;
        if !s.path().exists() {
            t.fail("the file, which was synced, is not there after the shutdown and a mount");
            return Ok(());
        }
        s.reopen(t)?;
        return versions.check(t, s, "after the shutdown and a mount");
    }
    t.check(end.rewrite == Some(len as i64), || {
        let rewrite = end.rewrite.map_or("nothing".into(), result_text);
        format!("the rewrite returned {rewrite}, expected {len}")
    });
    let size = s.expect.len() as u64;
    let path = s.path().to_owned();
    s.open()
        .change(world, "unlink", 0, size, |_| fs::remove_file(path))?
        .or_fail(|| "unlink".into())?;
    Ok(())
}

/// The same range again, with everything that is checked after a call that succeeded.
fn rewrite(t: &Test, s: &mut Subject, off: u64, len: u64, more: u32) -> Result<i64, Fail> {
    s.put(off, len);
    let done = Call {
        world: t.world,
        test: t.name,
        file: s.open(),
        off,
        len,
        flags: t.world.params.flag | more,
        words: &[],
        pattern: (s.number, s.version()),
    }
    .run(1)?;
    if done.result == len as i64 {
        s.check_call(t, &done, off, len)?;
        s.check_whole(t, "after the rewrite")?;
    }
    Ok(done.result)
}

/// No page of the call stays in writeback; told once, and twice where one does for long.
fn look_at_pages(t: &Test, file: &OpenFile, call: u64, off: u64, len: u64) -> Result<(), Fail> {
    let world = t.world;
    if world.fact("cachestat") != "yes" {
        return Ok(());
    }
    let (from, to) = rounded(world.unit(), off, len);
    pages::settle(&file.file, from, to - from, world.params.probe / 4)?;
    let mut now = pages::report(world, call, "after-call", &file.file, from, to - from)?;
    if now.writeback > 0 {
        now = pages::report(world, call, "after-call", &file.file, from, to - from)?;
    }
    t.check(now.writeback == 0, || {
        format!("after the call {} pages stay in writeback", now.writeback)
    });
    Ok(())
}

/// How often the counting rule fired, by the state page: `rules=NAME:fired:held,...`.
fn counted(world: &World) -> Option<u32> {
    let state = world.marks.state()?;
    let mut rules = state.get("rules")?.split(',').map(|rule| rule.split(':'));
    let mut rule = rules.find_map(|mut r| (r.next() == Some(COUNTER)).then_some(r))?;
    rule.next()?.parse().ok()
}

/// Whether XFS said so (`xfs_do_force_shutdown`, `fs/xfs/xfs_fsops.c`).
fn is_shut_down(end: &PointEnd) -> bool {
    let says = |line: &String| {
        line.contains("Shutting down filesystem") || line.contains("has been shut down")
    };
    end.kernel.iter().any(says)
}

/// What earlier points left in the folder.
fn remove_all(dir: &Path) -> Result<(), Fail> {
    let left = fs::read_dir(dir).or_fail(|| format!("reading {}", dir.display()))?;
    for entry in left {
        let path = entry
            .or_fail(|| format!("reading {}", dir.display()))?
            .path();
        fs::remove_file(&path).or_fail(|| format!("unlink {}", path.display()))?;
    }
    Ok(())
}
