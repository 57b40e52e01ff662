// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Appending, and writing far beyond the end: i_size comes from the call's own
//! range and not from the rounded one, and the gap reads as zeros.

use crate::subject::{Subject, check_after_remount};
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
