// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Aid of the host's own tests (`tests/stops.rs`): lets the device hold some
//! O_DIRECT writes, says so, and then does what it was told while they are held.

use std::time::{Duration, Instant};

use wtblk_shared::exit;
use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use crate::call::OpenFile;
use crate::cmdline::Then;
use crate::console::line;
use crate::finish::finish;
use crate::sys::{self, Pages, aio};
use crate::test::{Fail, OrFail, Test};

/// Bytes of each write; every second block is written, so that nothing merges.
const EACH: usize = 4096;
/// How long the writes may stay held.
const LIMIT: Duration = Duration::from_secs(60);
/// How long it may take until they are held.
const HELD_LIMIT: Duration = Duration::from_secs(10);

/// Runs the aid. Its rule must hold every write of this test.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let world = t.world;
    let count = world.params.hold as usize;
    let rule = || Some("hold-all".to_owned());
    // The preparation must pass.
    world.post(&Mark::Control(Control::Disarm(rule())))?;
    let path = t.dir.join("file");
    let file = OpenFile::open(world, &path, true)?;
    let offsets: Vec<u64> = (0..count as u64).map(|i| i * 2 * EACH as u64).collect();
    let number = world.next_file();
    let mut pages = Pages::new(EACH * count).or_fail(|| "buffer".into())?;
    for (i, off) in offsets.iter().enumerate() {
        pattern::fill(
            number,
            1,
            *off,
            &mut pages.bytes_mut()[i * EACH..(i + 1) * EACH],
        );
    }
    // Blocks that are there: neither allocation nor conversion waits for the log.
    let zeros = Pages::new(2 * EACH * count).or_fail(|| "buffer".into())?;
    std::os::unix::fs::FileExt::write_all_at(&file.file, zeros.bytes(), 0)
        .and_then(|()| file.file.sync_all())
        .or_fail(|| "preparing the file".into())?;
    world.post(&Mark::Control(Control::Arm(rule())))?;
    let writer = world.spawn("writer", move || {
        aio::write_batch(&file.file, pages, EACH, &offsets, None, LIMIT)
    });
    wait_held(t, count as u64)?;
    line(&format!("# held-writes: holding {count}"));
    match world.params.then {
        Then::Wait => {}
        Then::Exit => finish(exit::OK),
        Then::PowerOff => sys::power_off(),
        Then::Reset => sys::restart(),
    }
    let results = writer
        .join()
        .map_err(|_| Fail::Error("the writer broke".into()))?;
    let results = results.or_fail(|| "the held writes".into())?;
    let good = results.iter().filter(|r| **r == EACH as i64).count();
    t.check(good == count, || {
        format!("{good} of {count} writes came back whole: {results:?}")
    });
    Ok(())
}

fn wait_held(t: &Test, count: u64) -> Result<(), Fail> {
    let begun = Instant::now();
    while begun.elapsed() < HELD_LIMIT {
        t.world.post(&Mark::Control(Control::WaitHeld(count)))?;
        let state = t.world.marks.state().unwrap_or_default();
        if state.get("held").and_then(|n| n.parse().ok()) >= Some(count) {
            return Ok(());
        }
    }
    Err(Fail::Error(format!(
        "{count} writes are not held after {} s",
        HELD_LIMIT.as_secs()
    )))
}
