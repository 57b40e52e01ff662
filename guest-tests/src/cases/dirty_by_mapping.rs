// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Folios that are dirty by a store through a mapping, and nothing else. A call over a part of
//! one must leave the rest dirty; and after a call over all of it the mapping must be
//! write-protected: else a later store is seen by nobody, and lost.

use super::dirty_neighbours::{BLOCKS, in_one_folio, to_the_disk};
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::test::{Fail, OrFail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let beside = beside(t)?;
    let later = later(t)?;
    check_after_remount(t, &mut [beside, later])
}

/// A store through the mapping, told before and after.
fn store(t: &Test, s: &mut Subject, map: &Mapping, at: u64) -> Result<(), Fail> {
    let byte = !s.expect[at as usize];
    s.open()
        .change(t.world, "mmap", at, 1, |_| map.store(at as usize, byte))?;
    s.expect[at as usize] = byte;
    Ok(())
}

/// Stores before and behind the call's blocks: the folio is dirty by them alone.
fn beside(t: &Test) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = in_one_folio(t, "beside")?;
    let map = Mapping::new(&s.open().file, (BLOCKS * b) as usize).or_fail(|| "mmap".into())?;
    for at in [b + 10, 12 * b + 20] {
        store(t, &mut s, &map, at)?;
    }
    let done = s.writethrough_among_dirty(t, 6 * b, 2 * b)?;
    let what = format!("call {} beside stores", done.call);
    let after = pages::state(&s.open().file, 0, BLOCKS * b)?;
    t.check(after.dirty > 0, || {
        format!("{what}: no page is dirty any more, although blocks beside the call's were")
    });
    // Unmapped first: a page that is mapped is not evicted.
    drop(map);
    to_the_disk(t, &s, &what)?;
    Ok(s)
}

/// A store that comes when the call is over.
fn later(t: &Test) -> Result<Subject, Fail> {
    let page = t.world.bsize.max(4096);
    let mut s = Subject::written(t, "later", page)?;
    let map = Mapping::new(&s.open().file, page as usize).or_fail(|| "mmap".into())?;
    // The entry in the page table allows stores from here on.
    store(t, &mut s, &map, 200)?;
    let done = s.writethrough(t, 0, page)?;
    store(t, &mut s, &map, 100)?;
    let what = format!("call {} and a store behind it", done.call);
    let after = pages::state(&s.open().file, 0, page)?;
    t.check(after.dirty > 0, || {
        format!("{what}: the page is clean, nobody knows of the store")
    });
    s.synced(t, &format!("after {what}"))?;
    s.check_on_disk(t, &format!("after {what} and fsync"), 0, page)?;
    drop(map);
    // What was stored behind the kernel's back is seen when the page is unmapped.
    s.synced(t, "after unmapping")?;
    Ok(s)
}
