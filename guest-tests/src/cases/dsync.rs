// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! RWF_DSYNC beside the flag: over written blocks, over allocated ones, and
//! beyond the end. What the guest can see is as without it; that the device is
//! told to flush is the device's to see.

use wtblk_shared::RWF_DSYNC;

use crate::subject::{Subject, check_after_remount};
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "written", 16 * b)?;
    s.writethrough_with(t, 3 * b, 2 * b, 1, RWF_DSYNC)?;
    s.writethrough_with(t, b / 2, b, 1, RWF_DSYNC)?;
    // Size and blocks change: the log has to follow.
    s.writethrough_with(t, 16 * b, b + 100, 1, RWF_DSYNC)?;
    let mut allocated = Subject::create(t, "allocated")?;
    allocated.allocate(t, 0, 8 * b)?;
    allocated.writethrough_with(t, 0, 4 * b, 1, RWF_DSYNC)?;
    check_after_remount(t, &mut [s, allocated])
}

/// To be swept: over written blocks.
pub fn overwrite(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "written", 16 * b)?;
    Ok(Fresh::of(s, 3 * b, 2 * b).with(RWF_DSYNC))
}

/// To be swept: size and blocks change, so the log has to follow.
pub fn extend(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "extended", 16 * b)?;
    Ok(Fresh::of(s, 16 * b, b + 100).with(RWF_DSYNC))
}

/// To be swept: unwritten blocks become written ones.
pub fn allocated(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::create(t, "allocated")?;
    s.allocate(t, 0, 8 * b)?;
    s.open().tell_pages(t.world, "prepared")?;
    Ok(Fresh::of(s, 0, 4 * b).with(RWF_DSYNC))
}
