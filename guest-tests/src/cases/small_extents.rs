// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One call over many mappings of one block each: written and unwritten ones in turn, and
//! extents that are no neighbours on the disk.

use super::multi_extent::descending_named;
use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Blocks in turn.
const BLOCKS: u64 = 24;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    play.scene("in-turn", |t, name| {
        Ok(Stage::new(every_second(t, name)?, b / 2, (BLOCKS - 1) * b))
    })?;
    // Extents of a page at least: with several mappings in a page the call waits for each.
    let chunk = b.max(4096);
    play.scene("scattered", |t, name| {
        let s = descending_named(t, name, chunk)?;
        let len = s.end();
        Ok(Stage::new(s, 0, len))
    })?;
    play.end()
}

/// To be swept: the blocks in turn.
pub fn in_turn(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    Ok(Fresh::of(
        every_second(t, "in-turn")?,
        b / 2,
        (BLOCKS - 1) * b,
    ))
}

/// A file of which every second block is written, and the others are not.
fn every_second(t: &Test, name: &str) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::create(t, name)?;
    s.allocate(t, 0, BLOCKS * b)?;
    let parts: Vec<_> = (0..BLOCKS).step_by(2).map(|i| (i * b, b)).collect();
    s.dirty(t, &parts)?;
    s.sync(t)?;
    s.evict(t)?;
    Ok(s)
}
