// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call that begins below 2 GiB and ends behind: an offset of 31 bits is one too few.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::test::{Fail, Test};

const EDGE: u64 = 1 << 31;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    play.scene("new-blocks", |t, name| {
        let s = Subject::create_at(t, name, EDGE - 8 * b)?;
        Ok(Stage::new(s, EDGE - 2 * b + 100, 4 * b))
    })?;
    play.scene("written-blocks", |t, name| {
        let mut s = Subject::create_at(t, name, EDGE - 8 * b)?;
        s.prepare(t, EDGE - 8 * b, 16 * b)?;
        s.evict(t)?;
        Ok(Stage::new(s, EDGE - 2 * b + 100, 4 * b))
    })?;
    play.end()
}
