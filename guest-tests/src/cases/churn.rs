// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Aid of the host's own tests (`tests/churn.rs`): writes under load until the
//! machine is reset or killed, and finds out after the next boot whether every
//! block is right. What it must know about the boot before lies on the disk.
//!
//! Each lane rewrites its blocks in order, one at a time, so after an ending at
//! any moment a lane holds new blocks first and old ones behind them. An old
//! block before a new one is a write that was acknowledged and lost.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use wtblk_shared::{pattern, poison};

use crate::call::OpenFile;
use crate::console::line;
use crate::sys::{self, Pages};
use crate::test::{Fail, OrFail, Test};

/// Bytes of a block of ours: a size that neither log nor metadata writes have.
const EACH: usize = 12_288;
/// Lanes, each with a write in flight at any time.
const LANES: u64 = 8;
/// Blocks of a lane.
const BLOCKS: u64 = 48;
/// The file's number in the pattern.
const NUMBER: u32 = 1;
/// So many writes of a round are done before its ending.
const ENOUGH: u64 = LANES * BLOCKS / 3;
/// How long that may take, and the host to act.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs the aid: checks what the boot before left, then the next round, until all are done.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let file = OpenFile::open(t.world, &t.dir.join("file"), true)?;
    let header = t.dir.join("round");
    let begun = read_round(&header)?;
    match begun {
        None => {
            for lane in 0..LANES {
                write_lane(&file, lane, 0, &AtomicU64::new(0))?;
            }
            file.file.sync_all().or_fail(|| "fsync".into())?;
        }
        Some(round) => {
            check(t, &file, round)?;
            // Whatever was still old becomes new: the next round begins on one version.
            for lane in 0..LANES {
                write_lane(&file, lane, round, &AtomicU64::new(0))?;
            }
            file.file.sync_all().or_fail(|| "fsync".into())?;
        }
    }
    let round = begun.unwrap_or(0) + 1;
    if round > t.world.params.rounds {
        line("# churn: done");
        return Ok(());
    }
    write_round(&header, round)?;
    load(t, file, round)
}

/// Rounds that were begun, by what the file says.
fn read_round(path: &Path) -> Result<Option<u32>, Fail> {
    match std::fs::read_to_string(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => {
            let text = text.or_fail(|| "reading the round".into())?;
            let round = text.trim().parse();
            round
                .map(Some)
                .map_err(|_| Fail::Error(format!("the round is '{}'", text.escape_debug())))
        }
    }
}

/// A new file in place of the old: one or the other is there after a crash.
fn write_round(path: &Path, round: u32) -> Result<(), Fail> {
    let new = path.with_extension("new");
    let write = || {
        let file = std::fs::File::create(&new)?;
        file.write_all_at(round.to_string().as_bytes(), 0)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    };
    write().or_fail(|| format!("writing round {round}"))
}

fn place(lane: u64, block: u64) -> u64 {
    (block * LANES + lane) * EACH as u64
}

fn write_lane(file: &OpenFile, lane: u64, version: u32, done: &AtomicU64) -> Result<(), Fail> {
    let mut pages = Pages::new(EACH).or_fail(|| "buffer".into())?;
    for block in 0..BLOCKS {
        let at = place(lane, block);
        pattern::fill(NUMBER, version, at, pages.bytes_mut());
        file.file
            .write_all_at(pages.bytes(), at)
            .or_fail(|| format!("writing block {block} of lane {lane}"))?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Every block is of this round or the one before, and none that is old stands before a new one.
fn check(t: &Test, file: &OpenFile, round: u32) -> Result<(), Fail> {
    let mut pages = Pages::new(EACH).or_fail(|| "buffer".into())?;
    let (mut new, mut old) = (0, 0);
    for lane in 0..LANES {
        let mut first_old = None;
        for block in 0..BLOCKS {
            let at = place(lane, block);
            file.file
                .read_exact_at(pages.bytes_mut(), at)
                .or_fail(|| format!("reading block {block} of lane {lane}"))?;
            let seen = pages.bytes();
            let is = |version| pattern::first_difference(NUMBER, version, at, seen).is_none();
            if is(round) {
                new += 1;
                if let Some(first) = first_old {
                    t.fail(format!(
                        "round {round}, lane {lane}: block {block} is new, but block {first}, written before, is old"
                    ));
                }
            } else if is(round - 1) {
                old += 1;
                first_old.get_or_insert(block);
            } else {
                t.fail(format!(
                    "round {round}, lane {lane}: block {block} is neither new nor old; poison: {:?}",
                    poison::find(seen)
                ));
            }
        }
    }
    line(&format!(
        "# churn: round {round} checked: {new} new, {old} old"
    ));
    Ok(())
}

/// Writes and writes. Never returns: the machine is reset, by itself in every third round, by
/// the host in the others.
fn load(t: &Test, file: OpenFile, round: u32) -> Result<(), Fail> {
    let file = Arc::new(file);
    let done = Arc::new(AtomicU64::new(0));
    for lane in 0..LANES {
        let (file, done) = (file.clone(), done.clone());
        t.world.spawn("lane", move || {
            // The same again and again, so that there is a load however late the ending is.
            while write_lane(&file, lane, round, &done).is_ok() {}
        });
    }
    let until = Instant::now() + LIMIT;
    while done.load(Ordering::Relaxed) < ENOUGH {
        if Instant::now() > until {
            return Err(Fail::Hung(format!("round {round} does not get on")));
        }
        std::thread::yield_now();
    }
    match round % 3 {
        1 => {
            line(&format!("# churn: round {round}: resets itself"));
            sys::restart();
        }
        2 => line(&format!("# churn: round {round}: wants to be reset")),
        _ => line(&format!("# churn: round {round}: wants to be killed")),
    }
    // Not for ordering: there is nothing to do but to wait for the host.
    std::thread::sleep(LIMIT);
    Err(Fail::Hung(format!("nothing ended round {round}")))
}
