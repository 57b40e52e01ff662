// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One extent with many folios: small ones, more of them than a request has segments, and than
//! the kernel collects at a time; and large ones.

use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::test::{Fail, Test};

const PAGE: u64 = 4096;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    let step = b.max(PAGE);
    // virtio-blk takes 126 segments at most: two requests of one bio.
    let more_than_a_request = 130 * step.min(8192);
    play.scene("small-folios", |t, name| {
        let s = small_folios(t, name, more_than_a_request)?;
        Ok(Stage::new(s, 100, more_than_a_request - 200))
    })?;
    // The kernel collects 256 folios at most: two bios of one mapping.
    let more_than_a_bio = 260 * step.min(8192);
    play.scene("many-folios", |t, name| {
        let s = small_folios(t, name, more_than_a_bio)?;
        Ok(Stage::new(s, 100, more_than_a_bio - 200))
    })?;
    let large = (512 << 10).max(4 * b);
    play.scene("large-folios", |t, name| {
        let s = Subject::written(t, name, large)?;
        Ok(Stage::new(s, b + 100, large - 3 * b))
    })?;
    play.end()
}

/// A file of one extent in folios that are no larger than a page or a block.
fn small_folios(t: &Test, name: &str, len: u64) -> Result<Subject, Fail> {
    let mut s = Subject::create(t, name)?;
    s.allocate(t, 0, len)?;
    s.prepare_in_steps(t, 0, len, t.world.bsize.max(PAGE))?;
    Ok(s)
}
