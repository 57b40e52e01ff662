// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Overwriting whole blocks that are on the disk already: one, several, all,
//! from one buffer and from an iovec, and the same ones again.

use crate::subject::{Subject, check_after_remount};
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let len = (1 << 20_u64).max(64 * b);
    let mut s = Subject::written(t, "file", len)?;
    s.writethrough(t, 0, b)?;
    s.writethrough(t, 3 * b, 5 * b)?;
    s.writethrough(t, len - b, b)?;
    // More than one page, cut where no block ends.
    s.writethrough_parts(t, 16 * b, 12 * b, 5)?;
    s.writethrough(t, 0, len)?;
    s.writethrough(t, 0, len)?;
    s.check_whole(t, "after all calls")?;
    check_after_remount(t, &mut [s])
}

/// To be swept: one block.
pub fn one(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    Ok(Fresh::of(Subject::written(t, "file", 8 * b)?, 3 * b, b))
}

/// To be swept: all of a file that is more than one request can carry.
pub fn whole(t: &Test) -> Result<Fresh, Fail> {
    let len = (1 << 20_u64).max(64 * t.world.bsize);
    Ok(Fresh::of(Subject::written(t, "file", len)?, 0, len))
}
