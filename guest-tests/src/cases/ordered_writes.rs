// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Aid of the host's own tests (`tests/orders.rs`): rounds of O_DIRECT writes,
//! those of a round in one io_submit, and says with a mark in which order they
//! came back. The device's rules say in which order they should.

use std::time::Duration;

use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use crate::call::OpenFile;
use crate::sys::{Pages, aio};
use crate::test::{Fail, OrFail, Test};

/// Writes of a round.
const GROUP: usize = 5;
/// Every order of them.
const ROUNDS: u32 = 120;
/// Bytes of each write: a size that neither log nor metadata writes have. Every
/// second place is written, so that nothing merges.
const EACH: usize = 12_288;
/// How long a completion may take.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the aid. Whoever reads the marks judges; here only whether all came back whole.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let world = t.world;
    // The preparation must pass.
    world.post(&Mark::Control(Control::Disarm(None)))?;
    let file = OpenFile::open(world, &t.dir.join("file"), true)?;
    // Blocks that are there: neither allocation nor conversion waits for the log.
    let zeros = Pages::new(2 * EACH * GROUP).or_fail(|| "buffer".into())?;
    std::os::unix::fs::FileExt::write_all_at(&file.file, zeros.bytes(), 0)
        .and_then(|()| file.file.sync_all())
        .or_fail(|| "preparing the file".into())?;
    world.post(&Mark::Control(Control::Arm(None)))?;
    let offsets: Vec<u64> = (0..GROUP as u64).map(|i| i * 2 * EACH as u64).collect();
    let number = world.next_file();
    for round in 0..ROUNDS {
        let mut pages = Pages::new(EACH * GROUP).or_fail(|| "buffer".into())?;
        for (part, off) in pages.bytes_mut().chunks_mut(EACH).zip(&offsets) {
            pattern::fill(number, round + 1, *off, part);
        }
        let mut writes = aio::Writes::submit(&file.file, pages, EACH, &offsets, None, 0)
            .or_fail(|| format!("io_submit of round {round}"))?;
        t.check(writes.left() == GROUP, || {
            format!("round {round}: {} of {GROUP} were taken", writes.left())
        });
        let mut seen = Vec::new();
        while writes.left() > 0 {
            let come = writes
                .collect(LIMIT)
                .or_fail(|| format!("round {round} after {seen:?}"))?;
            for (index, result) in come {
                t.check(result == EACH as i64, || {
                    format!("round {round}, write {index}: {result}")
                });
                seen.push(index.to_string());
            }
        }
        world.post(&Mark::Note {
            text: format!("round {round}: {}", seen.join(" ")),
        })?;
    }
    Ok(())
}
