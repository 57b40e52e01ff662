// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A sweep: one call of a case on a fresh file, again and again, each time with another
//! request failing, all in one boot. `docs/sweep.md` says what the harness makes of it.

mod kernel_log;
pub mod params;
mod point;
mod watch;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use wtblk_shared::exit;
use wtblk_shared::mark::{Control, Mark, PointBegin, PointEnd, SweepMark};
use wtblk_shared::sweep::{COUNTER, points, rule};

use crate::cases::{self, Need};
use crate::console::{diagnostic, line};
use crate::runner::text;
use crate::subject::Subject;
use crate::test::{Fail, OrFail, Test};
use crate::world::World;

use kernel_log::KernelLog;
use watch::{At, Came, watch};

/// A call that can be swept: a fresh file and what is called on it.
pub struct Shape {
    /// The test that it is of.
    pub test: &'static str,
    /// Its name among those of the test.
    pub name: &'static str,
    /// Makes the file.
    pub fresh: fn(&Test) -> Result<Fresh, Fail>,
}

/// A file that was just made, and the call that shall be made on it.
pub struct Fresh {
    /// The file.
    pub subject: Subject,
    /// Offset of the call.
    pub off: u64,
    /// Length of the call.
    pub len: u64,
    /// `RWF_*` flags beside that of the test.
    pub more: u32,
    /// Ranges that are to be dirty when the call comes: after all else was synced.
    pub dirty: Vec<(u64, u64)>,
}

impl Fresh {
    /// A call without further flags.
    pub fn of(subject: Subject, off: u64, len: u64) -> Fresh {
        Fresh {
            subject,
            off,
            len,
            more: 0,
            dirty: Vec::new(),
        }
    }

    /// The same with these ranges dirty.
    pub fn over_dirty(self, ranges: &[(u64, u64)]) -> Fresh {
        let dirty = ranges.to_vec();
        Fresh { dirty, ..self }
    }

    /// The same with these flags.
    pub fn with(self, more: u32) -> Fresh {
        Fresh { more, ..self }
    }
}

/// Does the points that the harness asked for, and gives the exit byte.
pub fn run(world: &'static World) -> u8 {
    line("KTAP version 1");
    line("1..1");
    let missing = cases::defect_missing(world).or_else(|| Need::Flag.missing(world));
    if let Some(why) = missing {
        line(&format!("ok 1 sweep # SKIP {why}"));
        return exit::OK;
    }
    let at = Arc::new(At::new());
    let (send, over) = mpsc::channel();
    let worker = Arc::clone(&at);
    world.spawn("sweep", move || {
        worker.is_me();
        let _ = send.send(sweep(world, &worker));
    });
    let came = watch(world, &at, &over);
    match came {
        Ok(Came::Over(Ok(()))) => {
            line("ok 1 sweep");
            exit::OK
        }
        Ok(Came::Over(Err(fail))) | Err(fail) => {
            diagnostic(&format!("sweep: {}", text(&fail)));
            line("not ok 1 sweep");
            exit::NOT_OK
        }
        Ok(Came::Hangs(place)) => {
            let end = PointEnd {
                hung: Some(place.clone()),
                ..PointEnd::default()
            };
            // The mark disk may be what hangs: nothing after a hang waits without a limit.
            let _ = world.limited("point-end", Duration::from_secs(6), move || {
                world.post(&Mark::Sweep(SweepMark::End(end)))
            });
            line(&format!("not ok 1 sweep # TIMEOUT {place}"));
            exit::HUNG
        }
    }
}

fn sweep(world: &'static World, at: &At) -> Result<(), Fail> {
    let params = &world.params.sweep;
    let shapes: Vec<&'static Shape> = params
        .tests
        .iter()
        .flat_map(|test| cases::SWEPT.iter().filter(move |s| s.test == test))
        .collect();
    limit_retries(world)?;
    world.post(&Mark::Control(Control::Disarm(None)))?;
    let mut log = KernelLog::open();
    let mut test = Tests { world, now: None };
    let mut counts = Vec::new();
    for shape in &shapes {
        test.is(shape.test)?;
        let begin = PointBegin {
            test: shape.test.to_owned(),
            shape: shape.name.to_owned(),
            ..PointBegin::default()
        };
        // Twice: the first finds a disk on which no file of this shape was before, and may come out
        // otherwise than all that follow.
        let (mut counted, mut spoilt) = (None, None);
        for _ in 0..2 {
            world.post(&Mark::Sweep(SweepMark::Begin(begin.clone())))?;
            let end = point::run(world, shape, &[COUNTER.to_owned()], at, &mut log);
            (counted, spoilt) = (end.counted, end.failures.first().cloned());
            world.post(&Mark::Sweep(SweepMark::End(end)))?;
        }
        counts.push(counted.ok_or_else(|| {
            let why = spoilt.unwrap_or_else(|| "the device does not say".into());
            Fail::Error(format!(
                "the requests of {}/{} were not counted: {why}",
                shape.test, shape.name
            ))
        })?);
    }
    if !params.counts.is_empty() {
        counts.clone_from(&params.counts);
    }
    // There are too few rules: the harness boots again with as many as are needed.
    if counts.iter().any(|n| *n > params.rules) {
        return test.end();
    }
    let due = points(&counts, params.faults.len(), params.pairs)
        .filter(|p| p.index >= params.from && params.shard.takes(p.index));
    for p in due.take(usize::try_from(params.most).unwrap_or(usize::MAX)) {
        // `counts` may be the harness's: longer or shorter than our list.
        let (Some(shape), Some(fault)) = (shapes.get(p.shape), params.faults.get(p.fault)) else {
            return Err(Fail::Error("the sweep's counts fit no shape".into()));
        };
        test.is(shape.test)?;
        let requests: Vec<u32> = p.requests().collect();
        let rules: Vec<String> = requests.iter().map(|n| rule(fault, *n)).collect();
        let begin = PointBegin {
            index: Some(p.index),
            test: shape.test.to_owned(),
            shape: shape.name.to_owned(),
            fault: fault.clone(),
            requests,
        };
        world.post(&Mark::Sweep(SweepMark::Begin(begin)))?;
        let end = point::run(world, shape, &rules, at, &mut log);
        // No file could be made, or the file system did not come back: only a new boot helps.
        let stuck = end.result.is_none() || (end.shut_down && !end.failures.is_empty());
        let why = end.failures.first().cloned();
        world.post(&Mark::Sweep(SweepMark::End(end)))?;
        if stuck {
            return Err(Fail::Error(why.unwrap_or_else(|| "no way to go on".into())));
        }
    }
    test.end()
}

/// The test that the points belong to, told by the marks around it.
struct Tests {
    world: &'static World,
    now: Option<&'static str>,
}

impl Tests {
    fn is(&mut self, name: &'static str) -> Result<(), Fail> {
        if self.now == Some(name) {
            return Ok(());
        }
        self.end()?;
        self.now = Some(name);
        self.world.post(&Mark::TestBegin { name: name.into() })
    }

    fn end(&mut self) -> Result<(), Fail> {
        match self.now.take() {
            Some(name) => self.world.post(&Mark::TestEnd { name: name.into() }),
            None => Ok(()),
        }
    }
}

/// By default XFS tries metadata writes that fail again and again, for ever: a write of
/// metadata that fails shall shut the file system down instead, and umount shall end.
fn limit_retries(world: &World) -> Result<(), Fail> {
    let disk = Path::new(world.mounted()).file_name().unwrap_or_default();
    let errors = Path::new("/sys/fs/xfs").join(disk).join("error");
    let set = |file: &str, value: &str| {
        let path = errors.join(file);
        fs::write(&path, value).or_fail(|| format!("writing {value} to {}", path.display()))
    };
    set("fail_at_unmount", "1")?;
    for errno in ["EIO", "ENOSPC", "ENODEV", "default"] {
        set(&format!("metadata/{errno}/max_retries"), "0")?;
    }
    Ok(())
}
