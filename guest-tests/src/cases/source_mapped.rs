// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source buffer that is a mapping of the file itself: of another part of it, and of just the
//! part that is written, which then changes nothing and goes to the disk all the same.

use std::sync::Arc;

use crate::scene::{Play, Source, Stage};
use crate::subject::Subject;
use crate::sys::mapping::Mapping;
use crate::test::{Fail, OrFail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    for (name, cached) in [("other-part", true), ("other-part-read", false)] {
        play.scene(name, |t, name| {
            let mut s = Subject::written(t, name, 32 * b)?;
            let (off, len, from) = (2 * b + 40, 6 * b, 16 * b + 24);
            // The source holds what the call is to write.
            let version = s.next_version();
            let mut bytes = vec![0; len as usize];
            wtblk_shared::pattern::fill(s.number, version, off, &mut bytes);
            s.prepare_bytes(t, from, &bytes)?;
            if !cached {
                s.evict(t)?;
            }
            mapped(s, off, len, from, version)
        })?;
    }
    play.scene("same-part", |t, name| {
        let s = Subject::written(t, name, 16 * b)?;
        let version = s.version();
        mapped(s, 2 * b + 40, 6 * b, 2 * b + 40, version)
    })?;
    play.end()
}

fn mapped(s: Subject, off: u64, len: u64, from: u64, version: u32) -> Result<Stage, Fail> {
    let map = Mapping::new(&s.open().file, s.expect.len()).or_fail(|| "mmap".into())?;
    let mut stage = Stage::new(s, off, len);
    stage.version = Some(version);
    stage.source = Source::Mapped(Arc::new(map), from);
    Ok(stage)
}
