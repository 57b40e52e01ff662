// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory is short: there are two bios and no more. Enough for a call over eight extents that
//! sends each bio before it asks for the next one; a call that collects them first waits for ever.
//!
//! The shortage is a switch of our kernel, for the bios of writethrough calls alone: real memory
//! pressure is a matter of luck.

use std::fs;
use std::sync::Arc;

use super::multi_extent::{EXTENTS, descending_named};
use crate::aftermath::{Point, error_point};
use crate::flying::{Caller, Engine};
use crate::probe::{Came, Probe};
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

/// The switch, of the second kernel patch.
pub const SWITCH: &str = "/sys/module/iomap/parameters/wt_reserve_only";
/// Length of each extent: whole pages, so that none begins inside a folio of the one before.
const CHUNK: u64 = 64 << 10;
const LEN: u64 = EXTENTS * CHUNK;

/// Runs the case with a synchronous call.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let (mut s, call) = prepared(t, "file")?;
    s.put(0, LEN);
    switch("1")?;
    let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
    let pattern = (s.number, s.version());
    let probe = Probe::start(world, call, "rewrite", move || {
        let done = crate::call::Call {
            world,
            test,
            file: &file,
            off: 0,
            len: LEN,
            flags: world.params.flag,
            words: &[],
            pattern,
        }
        .run(1)?;
        // Closed before the result is known: what follows is an umount.
        drop(file);
        Ok(done.result)
    });
    let came = probe.watch(world)?;
    match came {
        Came::Back(result) => t.check(result == LEN as i64, || {
            format!("a call with two bios returned {}", result_text(result))
        }),
        Came::Not(..) => {
            t.fail(probe.describe(&came));
            return Err(Fail::Hung("a call with two bios does not return".into()));
        }
    }
    switch("0")?;
    let failing = failing(t, None)?;
    finish(t, s, failing)
}

/// Runs it with a call by AIO.
pub fn run_async(t: &mut Test) -> Result<(), Fail> {
    let (mut s, _) = prepared(t, "file")?;
    s.put(0, LEN);
    switch("1")?;
    let caller = Caller::start(t, &s, Engine::Aio, 0, LEN, 0);
    let submitted = caller.submitted(t);
    // Whatever was seen: with memory again the submission goes on, within 5 s.
    switch("0")?;
    if let Err(place) = submitted? {
        t.fail(format!(
            "the submission of a call with two bios waits in {place}"
        ));
    }
    let done = match caller.thread.finish() {
        Err(Fail::Hung(_)) => caller.thread.finish()?,
        other => other?,
    };
    s.check_call(t, &done, 0, LEN)?;
    let failing = failing(t, Some(Engine::Aio))?;
    finish(t, s, failing)
}

/// The same call, of which the first, a middle one, the last or every write fails: the files.
fn failing(t: &Test, engine: Option<Engine>) -> Result<Vec<Subject>, Fail> {
    let mut files = Vec::new();
    for nth in [Some(1), Some(4), Some(8), None] {
        let name = nth.map_or("every".to_owned(), |n| format!("write-{n}"));
        let (s, _) = prepared(t, &name)?;
        let mut stage = Stage::new(s, 0, LEN);
        stage.engine = engine;
        switch("1")?;
        let looked = error_point(t, &name, stage, Point::Write { nth, late: false });
        // Whatever was seen: the tests after this one need their bios.
        switch("0")?;
        files.extend(looked?);
    }
    Ok(files)
}

fn switch(value: &str) -> Result<(), Fail> {
    fs::write(SWITCH, value).or_fail(|| format!("writing to {SWITCH}"))
}

/// A file of eight extents on the disk, its pages gone, and the number of a call on it.
fn prepared(t: &Test, name: &str) -> Result<(Subject, u64), Fail> {
    let mut s = descending_named(t, name, CHUNK)?;
    s.prepare(t, 0, LEN)?;
    let call = s.writethrough(t, 0, CHUNK)?.call;
    s.evict(t)?;
    Ok((s, call))
}

fn finish(t: &Test, s: Subject, mut files: Vec<Subject>) -> Result<(), Fail> {
    s.check_on_disk(t, "after a call with two bios", 0, LEN)?;
    s.check_whole(t, "after a call with two bios")?;
    s.synced(t, "after a call with two bios")?;
    files.push(s);
    check_after_remount(t, &mut files)
}
