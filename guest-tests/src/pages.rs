// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! State of a file's pages, from cachestat(2): the one oracle that is exact and
//! never blocks.

use std::fs::File;
use std::time::{Duration, Instant};

use wtblk_shared::mark::{Mark, PageReport};

use crate::sys::{self, CacheStat};
use crate::test::{Fail, OrFail};
use crate::world::World;

/// Between two looks at a state that nobody announces.
const POLL: Duration = Duration::from_micros(200);

/// The state of the pages of a range.
pub fn state(file: &File, off: u64, len: u64) -> Result<CacheStat, Fail> {
    sys::cachestat(file, off, len).or_fail(|| "cachestat".into())
}

/// Waits until no page of the range is in writeback, at most `limit`. Gives
/// the last state.
pub fn settle(file: &File, off: u64, len: u64, limit: Duration) -> Result<CacheStat, Fail> {
    let start = Instant::now();
    loop {
        let now = state(file, off, len)?;
        if now.writeback == 0 || start.elapsed() >= limit {
            return Ok(now);
        }
        // State polling inside a limit; nothing is ordered by this sleep.
        std::thread::sleep(POLL);
    }
}

/// Reports the state of a call's pages twice. The second look is taken after
/// the first report has gone round by the device: a page that waits in both
/// while the device owed nothing at both waits for nothing.
pub fn report_twice(
    world: &World,
    call: u64,
    at: &str,
    file: &File,
    off: u64,
    len: u64,
) -> Result<CacheStat, Fail> {
    report(world, call, at, file, off, len)?;
    report(world, call, at, file, off, len)
}

/// Reports the state of a call's pages once. `off` and `len` in whole pages.
pub fn report(
    world: &World,
    call: u64,
    at: &str,
    file: &File,
    off: u64,
    len: u64,
) -> Result<CacheStat, Fail> {
    let now = state(file, off, len)?;
    world.post(&Mark::Report(PageReport {
        call,
        at: at.to_owned(),
        off,
        len,
        cached: now.cached,
        dirty: now.dirty,
        writeback: now.writeback,
    }))?;
    Ok(now)
}
