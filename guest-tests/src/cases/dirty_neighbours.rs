// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call over some blocks of a large folio whose other blocks are dirty: before, behind, around
//! it, its own among them. These stay dirty, and reach the disk with the next fsync; also when the
//! call fails.

use crate::pages;
use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::test::{Fail, Test};

/// Blocks of the file, which is one folio where they may be so large: written at once, at its begin.
pub const BLOCKS: u64 = 16;

/// Plainly written ranges and the call's, in blocks.
struct Layout {
    name: &'static str,
    dirty: &'static [(u64, u64)],
    /// A few bytes of a block behind the call are dirty, too.
    piece: bool,
    call: (u64, u64),
    /// Bytes that the call begins and ends inside of a block.
    inside: u64,
}

#[rustfmt::skip]
const LAYOUTS: &[Layout] = &[
    Layout { name: "all", dirty: &[(0, BLOCKS)], piece: false, call: (5, 1), inside: 0 },
    Layout { name: "before", dirty: &[(1, 2)], piece: false, call: (5, 2), inside: 0 },
    Layout { name: "behind", dirty: &[(9, 3)], piece: false, call: (2, 3), inside: 0 },
    Layout { name: "piece", dirty: &[], piece: true, call: (4, 4), inside: 100 },
    Layout { name: "both", dirty: &[(0, 1), (BLOCKS - 1, 1)], piece: false, call: (4, 4), inside: 0 },
    // Its first block is dirty as well, or its first and last one: they go out whole, the others stay.
    Layout { name: "first", dirty: &[(3, 2)], piece: true, call: (4, 4), inside: 100 },
    Layout { name: "across", dirty: &[(2, 4), (8, 4)], piece: false, call: (5, 4), inside: 100 },
];

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    for layout in LAYOUTS {
        play.scene(layout.name, |t, name| stage(t, name, layout))?;
    }
    play.end()
}

fn stage(t: &Test, name: &str, layout: &Layout) -> Result<Stage, Fail> {
    let b = t.world.bsize;
    let (mut s, _) = in_one_folio(t, name)?;
    let older = s.expect.clone();
    let parts = layout.dirty.iter().map(|(off, len)| (off * b, len * b));
    let mut parts: Vec<_> = parts.collect();
    if layout.piece {
        parts.push((9 * b + 10, 100));
    }
    s.dirty(t, &parts)?;
    let (off, len) = layout.call;
    let inside = layout.inside;
    let mut stage = Stage::new(s, off * b + inside, len * b - 2 * inside);
    stage.older = Some(older);
    stage.dirty_beside = true;
    stage.stays_dirty = true;
    Ok(stage)
}

/// A file that is clean, and whether it is one folio.
pub fn in_one_folio(t: &Test, name: &str) -> Result<(Subject, bool), Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, name, BLOCKS * b)?;
    // A byte at its begin makes the page at its end dirty: they are one folio.
    s.write_plain(t, 0, 1)?;
    let last = pages::state(&s.open().file, (BLOCKS - 1) * b, b)?;
    s.sync(t)?;
    if last.dirty == 0 {
        t.note(format!("{name}: the file is several folios"));
    }
    Ok((s, last.dirty > 0))
}
