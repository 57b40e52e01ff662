// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls into blocks that are allocated and were never written: in their middle, so that the
//! extent is split in three, and over the edge from written ones.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
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
        let mut s = Subject::create(t, name)?;
        s.allocate(t, 0, 16 * b)?;
        s.prepare(t, 0, 8 * b)?;
        s.evict(t)?;
        Ok(Stage::new(s, 5 * b + 100, 6 * b))
    })?;
    play.end()
}
