// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A folio that is dirty before, behind, and on both sides of the call's blocks: those stay dirty,
//! and the next fsync writes them.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    for (name, before, behind) in [
        ("before", true, false),
        ("behind", false, true),
        ("both", true, true),
    ] {
        play.scene(name, |t, name| {
            // One write: one folio, where they may be so large.
            let mut s = Subject::written(t, name, 16 * b)?;
            let older = s.expect.clone();
            if before {
                s.dirty(t, &[(3 * b, 2 * b)])?;
            }
            if behind {
                s.dirty(t, &[(9 * b + 10, 100)])?;
            }
            // Its first block is dirty, too.
            let mut stage = Stage::new(s, 4 * b + 100, 4 * b);
            stage.older = Some(older);
            stage.dirty_beside = true;
            Ok(stage)
        })?;
    }
    play.end()
}
