// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Overwriting parts of blocks: the device must get whole blocks, with the
//! page cache's bytes around the call's.
//!
//! Some calls start and end on 512 bytes but not on a block: a kernel that
//! rounds to sectors instead of blocks (defect `misaligned`) shows only there.

use crate::subject::{Subject, check_after_remount};
use crate::sweep::Fresh;
use crate::test::{Fail, Test};

/// Calls at random places, besides the chosen ones.
const RANDOM: u64 = 4;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let len = 64 * b;
    let mut s = Subject::written(t, "file", len)?;
    for (off, n) in [
        (100, b),             // head and tail
        (2 * b, 10),          // tail only
        (4 * b - 7, 7),       // head only
        (5 * b - 1, 2),       // two blocks for two bytes
        (6 * b + 512, 512),   // one sector in a block
        (8 * b + 512, 3 * b), // sectors at both ends, whole blocks between
        (12 * b, 2 * b + 512),
        (16 * b + 3, 24 * b + 1),
        (len - 1, 1),
    ] {
        s.writethrough(t, off, n)?;
    }
    let mut random = t.world.params.seed;
    for _ in 0..RANDOM {
        let off = draw(&mut random) % (len - 1);
        let n = 1 + draw(&mut random) % (len - off).min(9 * b);
        s.writethrough(t, off, n)?;
    }
    s.check_whole(t, "after all calls")?;
    check_after_remount(t, &mut [s])
}

/// To be swept: whole sectors at both ends that are no blocks.
pub fn sectors(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "file", 16 * b)?;
    Ok(Fresh::of(s, 4 * b + 512, 3 * b))
}

/// To be swept: head and tail have to be read first, which may fail, too.
pub fn evicted(t: &Test) -> Result<Fresh, Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "file", 16 * b)?;
    s.evict(t)?;
    Ok(Fresh::of(s, 4 * b + 100, 3 * b))
}

/// splitmix64: the same seed gives the same calls.
fn draw(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
