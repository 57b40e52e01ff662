// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls that allocate: into a hole, over its edges, behind the end of the file (one that was
//! always there, and one that a truncate made), far behind it.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    play.scene("inside", |t, name| {
        Ok(Stage::new(between(t, name)?, 5 * b + 100, 4 * b))
    })?;
    play.scene("across", |t, name| {
        Ok(Stage::new(between(t, name)?, 3 * b + 100, 10 * b))
    })?;
    // The last block is half full, and is filled and left behind.
    play.scene("append", |t, name| {
        let end = 4 * b - b / 2;
        Ok(Stage::new(Subject::written(t, name, end)?, end, 3 * b))
    })?;
    play.scene("behind-a-truncate", |t, name| {
        let end = 4 * b - b / 2;
        let mut s = Subject::written(t, name, 8 * b)?;
        s.truncate(t, end)?;
        Ok(Stage::new(s, end, 3 * b))
    })?;
    play.scene("far-behind", |t, name| {
        let s = Subject::written(t, name, 2 * b + 100)?;
        Ok(Stage::new(s, 40 * b + 300, 3 * b))
    })?;
    play.end()
}

/// To be swept: from a written block over the hole into another one.
pub fn across(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    Ok(Fresh::of(between(t, "across")?, 3 * b + 100, 10 * b))
}

/// Four written blocks, a hole of eight, and four written ones.
fn between(t: &Test, name: &str) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::create(t, name)?;
    s.prepare(t, 0, 4 * b)?;
    s.prepare(t, 12 * b, 4 * b)?;
    s.evict(t)?;
    Ok(s)
}
