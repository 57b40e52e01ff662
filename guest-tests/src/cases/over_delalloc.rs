// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls over pages that were written plainly and have no blocks yet: over all of them, over some
//! between others, over parts of blocks. What was written plainly and is no part of the call stays
//! dirty and reaches the disk by fsync.

use wtblk_shared::mark::Extent;

use crate::fiemap;
use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    for (name, off, len) in [
        ("alone", 4 * b, 8 * b),
        ("between", 7 * b, 2 * b),
        ("parts", 6 * b + 100, 3 * b),
        // Over the edge into written blocks.
        ("edge", 2 * b + 100, 4 * b),
    ] {
        play.scene(name, |t, name| {
            let mut s = Subject::written(t, name, 4 * b)?;
            let older = s.expect.clone();
            s.dirty(t, &[(4 * b, 8 * b)])?;
            // What the case is about; a realtime file may be given its blocks at once.
            let waits = |e: &Extent| e.flags & fiemap::DELALLOC != 0 && e.logical < 12 * b;
            let no_blocks = s.extents()?.iter().any(waits);
            t.check(no_blocks || t.world.params.realtime, || {
                format!("{name}: the plain write was given its blocks at once")
            });
            let mut stage = Stage::new(s, off, len);
            stage.older = Some(older);
            // Even all of them: what is dirty at the end of the loop may be of a folio around.
            stage.dirty_beside = name != "alone";
            Ok(stage)
        })?;
    }
    play.end()
}

/// To be swept: over the edge from written blocks into dirty ones that have no place yet.
pub fn edge(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "edge", 4 * b)?;
    Ok(Fresh::of(s, 2 * b + 100, 4 * b).over_dirty(&[(4 * b, 8 * b)]))
}
