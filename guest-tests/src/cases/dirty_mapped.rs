// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A folio that is dirty through a mapping only: a byte was stored in a block of the call outside
//! of its range, in another block, and in both. And a store after the call, through a page table
//! entry that was writable before it: the kernel has to notice, and fsync to write it.

use std::sync::Arc;

use crate::scene::{Play, Stage};
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::test::{Fail, OrFail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    let head = 4 * b + 7;
    for (name, stores) in [
        ("head", vec![head]),
        ("elsewhere", vec![11 * b + 7]),
        ("both", vec![head, 11 * b + 7]),
    ] {
        play.scene(name, |t, name| {
            let mut s = Subject::written(t, name, 16 * b)?;
            let older = s.expect.clone();
            let map = Mapping::new(&s.open().file, s.expect.len()).or_fail(|| "mmap".into())?;
            for &at in &stores {
                let byte = !s.expect[at as usize];
                s.store(t, &map, at, byte)?;
            }
            let mut stage = Stage::new(s, 4 * b + 100, 4 * b);
            stage.older = Some(older);
            stage.dirty_beside = true;
            stage.keep.push(Arc::new(map));
            Ok(stage)
        })?;
    }
    play.end()?;
    stored_after(t)
}

/// A call over all of a mapped file whose pages were stored into; then one more store.
fn stored_after(t: &Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "stored-after", 16 * b)?;
    let map = Mapping::new(&s.open().file, s.expect.len()).or_fail(|| "mmap".into())?;
    let at = 5 * b + 9;
    let byte = !s.expect[at as usize];
    s.store(t, &map, at, byte)?;
    s.writethrough(t, 0, 16 * b)?;
    let byte = !s.expect[at as usize];
    s.store(t, &map, at, byte)?;
    s.sync(t)?;
    s.check_on_disk(t, "a store after the call, and fsync", 5 * b, b)?;
    drop(map);
    check_after_remount(t, &mut [s])
}
