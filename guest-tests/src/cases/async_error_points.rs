// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous calls over many mappings, by AIO and by io_uring, with every error point: the error
//! comes with the completion event, and everything that must be right after it is the same as after
//! a synchronous call.

use super::multi_extent::{EXTENTS, descending_named};
use crate::flying::Engine;
use crate::scene::{Play, Stage};
use crate::subject::Subject;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    let has_uring = t.world.fact("io_uring") == "yes";
    let other = if has_uring {
        Engine::Uring
    } else {
        t.note("io_uring is not available here: all calls are by AIO");
        Engine::Aio
    };
    // Whole pages, so that no mapping ends inside a folio.
    let chunk = 2 * b.max(4096);
    play.scene("written", |t, name| {
        let mut s = descending_named(t, name, chunk)?;
        s.prepare(t, 0, EXTENTS * chunk)?;
        s.evict(t)?;
        let off = b / 2;
        let len = EXTENTS * chunk - b;
        Ok(Stage::new(s, off, len).by(Engine::Aio))
    })?;
    play.scene("unwritten", |t, name| {
        let s = descending_named(t, name, chunk)?;
        Ok(Stage::new(s, 0, EXTENTS * chunk).by(other))
    })?;
    play.scene("middle", |t, name| {
        let mut s = Subject::create(t, name)?;
        s.allocate(t, 0, 16 * b)?;
        s.open().tell_pages(t.world, "prepared")?;
        Ok(Stage::new(s, 6 * b + 100, 3 * b).by(Engine::Aio))
    })?;
    play.end()
}
