// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls that begin and end inside blocks: what is missing of them is read before, or is in the
//! page cache; and a few bytes inside of one block. And where that read fails nothing is written.

use crate::aftermath::Point;
use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    let (sector, half) = (t.world.lbs, b / 2);
    for (name, off, len, cached) in [
        ("head", 2 * b + 100, b - 100, false),
        ("tail", 2 * b, 100, false),
        ("both", 2 * b + half, 2 * b, false),
        ("cached", 2 * b + 100, 2 * b, true),
        // One block with neither its begin nor its end.
        ("inside", 3 * b + sector.min(half), 64, false),
    ] {
        let make = |t: &Test, name: &str| {
            let s = Subject::written(t, name, 8 * b)?;
            if !cached {
                s.evict(t)?;
            }
            Ok(Stage::new(s, off, len))
        };
        play.scene(name, make)?;
        if !cached {
            play.point(name, Point::Read, make)?;
        }
    }
    play.end()
}

/// To be swept: neither the first nor the last block is whole, and neither is in the page cache.
pub fn both(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "both", 8 * b)?;
    s.evict(t)?;
    Ok(Fresh::of(s, 2 * b + b / 2, 2 * b))
}
