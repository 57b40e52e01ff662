// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls into blocks that are allocated and were never written: in their middle, so that the
//! extent is split in three, and over the edge from written ones.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    play.scene("middle", |t, name| {
        let mut s = Subject::create(t, name)?;
        s.allocate(t, 0, 16 * b)?;
        s.open().tell_pages(t.world, "prepared")?;
        Ok(Stage::new(s, 6 * b + 100, 3 * b))
    })?;
    play.scene("edge", |t, name| {
        Ok(Stage::new(half_written(t, name)?, 5 * b + 100, 6 * b))
    })?;
    play.end()
}

/// To be swept: from written blocks into unwritten ones.
pub fn edge(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    Ok(Fresh::of(half_written(t, "edge")?, 5 * b + 100, 6 * b))
}

/// Written blocks, and as many unwritten ones behind them.
fn half_written(t: &Test, name: &str) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::create(t, name)?;
    s.allocate(t, 0, 16 * b)?;
    s.prepare(t, 0, 8 * b)?;
    s.evict(t)?;
    Ok(s)
}
