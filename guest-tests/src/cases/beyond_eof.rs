// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Appending, and writing far beyond the end: i_size comes from the call's own
//! range and not from the rounded one, and the gap reads as zeros.

use crate::subject::{Subject, check_after_remount};
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    // The end lies within a block: the append meets a half-filled one.
    let mut append = Subject::written(t, "append", b + b / 2)?;
    append.writethrough(t, b + b / 2, 100)?;
    append.writethrough(t, b + b / 2 + 100, 3 * b)?;
    append.check_whole(t, "after appending")?;
    let mut far = Subject::written(t, "far", b + 1)?;
    far.writethrough(t, (1 << 20) + 777, 2 * b + 333)?;
    far.writethrough(t, (2 << 20) + 16 * b, b)?;
    far.check_whole(t, "after writing far beyond the end")?;
    // Nothing there before: the first block of an empty file.
    let mut empty = Subject::create(t, "empty")?;
    empty.writethrough(t, 0, 5)?;
    check_after_remount(t, &mut [append, far, empty])
}

/// To be swept: into a half-filled block, and beyond it.
pub fn append(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let end = b + b / 2;
    Ok(Fresh::of(Subject::written(t, "append", end)?, end, 3 * b))
}

/// To be swept: far beyond the end.
pub fn far(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "far", b + 1)?;
    Ok(Fresh::of(s, (1 << 20) + 777, 2 * b + 333))
}

/// To be swept: the first bytes of an empty file.
pub fn empty(t: &Test) -> Result<Fresh, Fail> {
    Ok(Fresh::of(Subject::create(t, "empty")?, 0, 5))
}
