// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file that shares its blocks with another one: the call writes new blocks, and the other file
//! stays as it is, whatever fails.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::sweep::Fresh;
use crate::sys;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    play.scene("whole-blocks", |t, name| {
        shared(t, name, 16 * b, (4 * b, 6 * b))
    })?;
    play.scene("parts", |t, name| {
        shared(t, name, 16 * b, (4 * b + 100, 6 * b))
    })?;
    // From blocks of its own into shared ones and on.
    play.scene("edges", |t, name| {
        let mut stage = shared(t, name, 16 * b, (3 * b + 100, 10 * b))?;
        stage.subject.prepare(t, 0, 5 * b)?;
        stage.subject.prepare(t, 12 * b, 4 * b)?;
        Ok(stage)
    })?;
    play.end()
}

/// To be swept: a part of shared blocks.
pub fn parts(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let stage = shared(t, "parts", 16 * b, (4 * b + 100, 6 * b))?;
    Ok(Fresh::of(stage.subject, stage.off, stage.len))
}

/// A file that has all its blocks from another one.
fn shared(t: &Test, name: &str, len: u64, call: (u64, u64)) -> Result<Stage, Fail> {
    let donor = Subject::written(t, &format!("{name}-donor"), len)?;
    let mut s = Subject::create(t, name)?;
    let from = donor.open();
    let cloned = s.open().change(t.world, "reflink", 0, len, |to| {
        sys::clone_range(to, &from.file, 0, len, 0)
    })?;
    if let Err(e) = cloned {
        return Err(Fail::Skip(format!(
            "the file system does not share blocks: {e}"
        )));
    }
    s.expect.clone_from(&donor.expect);
    s.open().tell_pages(t.world, "prepared")?;
    let mut stage = Stage::new(s, call.0, call.1);
    stage.others.push(donor);
    Ok(stage)
}
