// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Folios that are dirty by stores through a mapping, and nothing else: in a block of the call
//! outside of its range, in other blocks, in both. A call over a part of one must leave the rest
//! dirty, also when it fails; and after a call over all of it the mapping must be write-protected:
//! else a later store, through a page table entry that was writable before, is seen by nobody, and
//! lost.

use std::sync::Arc;

use super::dirty_neighbours::{BLOCKS, in_one_folio};
use crate::pages;
use crate::scene::{Play, Stage};
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::test::{Fail, OrFail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    let (head, elsewhere) = (4 * b + 7, 11 * b + 7);
    let parts = (4 * b + 100, 4 * b);
    let places: [(&str, &[u64], (u64, u64)); 4] = [
        ("head", &[head], parts),
        ("elsewhere", &[elsewhere], parts),
        ("both", &[head, elsewhere], parts),
        ("beside", &[b + 10, 12 * b + 20], (6 * b, 2 * b)),
    ];
    for (name, stores, call) in places {
        play.scene(name, |t, name| stage(t, name, stores, call))?;
    }
    play.end()?;
    let page = b.max(4096);
    let mut files = [
        later(t, "later", page, 200, 100)?,
        later(t, "stored-after", BLOCKS * b, 5 * b + 9, 5 * b + 9)?,
    ];
    check_after_remount(t, &mut files)
}

fn stage(t: &Test, name: &str, stores: &[u64], call: (u64, u64)) -> Result<Stage, Fail> {
    let (mut s, one_folio) = in_one_folio(t, name)?;
    let older = s.expect.clone();
    let map = Mapping::new(&s.open().file, s.expect.len()).or_fail(|| "mmap".into())?;
    for &at in stores {
        let byte = !s.expect[at as usize];
        s.store(t, &map, at, byte)?;
    }
    let mut stage = Stage::new(s, call.0, call.1);
    stage.older = Some(older);
    stage.dirty_beside = true;
    // A store makes all of its folio dirty.
    stage.stays_dirty = one_folio;
    stage.keep.push(Arc::new(map));
    Ok(stage)
}

/// A store before the call over all of the file, so that the entry in the page table allows stores,
/// and one when it is over.
fn later(t: &Test, name: &str, len: u64, before: u64, after: u64) -> Result<Subject, Fail> {
    let mut s = Subject::written(t, name, len)?;
    let map = Mapping::new(&s.open().file, len as usize).or_fail(|| "mmap".into())?;
    let byte = !s.expect[before as usize];
    s.store(t, &map, before, byte)?;
    let done = s.writethrough(t, 0, len)?;
    let byte = !s.expect[after as usize];
    s.store(t, &map, after, byte)?;
    let what = format!("{name}: call {} and a store behind it", done.call);
    let state = pages::state(&s.open().file, 0, len)?;
    t.check(state.dirty > 0, || {
        format!("{what}: the page is clean, nobody knows of the store")
    });
    s.synced(t, &format!("after {what}"))?;
    s.check_on_disk(t, &format!("after {what} and fsync"), 0, len)?;
    drop(map);
    // What was stored behind the kernel's back is seen when the page is unmapped.
    s.synced(t, "after unmapping")?;
    Ok(s)
}
