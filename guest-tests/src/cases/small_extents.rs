// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One call over many mappings of one block each: written and unwritten ones in turn, and
//! extents that are no neighbours on the disk.

use super::multi_extent::descending_named;
use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::test::{Fail, Test};

/// Blocks in turn.
const BLOCKS: u64 = 24;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    play.scene("in-turn", |t, name| {
        let mut s = Subject::create(t, name)?;
        s.allocate(t, 0, BLOCKS * b)?;
        let every_second = (0..BLOCKS).step_by(2);
        let parts: Vec<_> = every_second.map(|i| (i * b, b)).collect();
        s.dirty(t, &parts)?;
        s.sync(t)?;
        s.evict(t)?;
        Ok(Stage::new(s, b / 2, (BLOCKS - 1) * b))
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
