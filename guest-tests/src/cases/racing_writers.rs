// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A plain writer and a storer through a mapping beside writethrough calls on the same folios. No
//! timers: each does its rounds, as they come. The file then holds of each block what one of them
//! wrote last, and the disk the same; that nothing changes in flight is the device's to see. The first
//! write of some of the calls fails.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use wtblk_shared::pattern;

use crate::aftermath::check_told;
use crate::beside::Beside;
use crate::call::Call;
use crate::pages;
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount, rounded};
use crate::sys::mapping::Mapping;
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

/// Rounds of each.
const ROUNDS: u32 = 20;
/// One call in so many fails.
const FAILS: u32 = 4;
/// The block that is written plainly, and the one that is stored into.
const PLAIN: u64 = 3;
const MAPPED: u64 = 6;
/// Blocks of a call, from block 1 on.
const BLOCKS: u64 = 8;
/// Where in its block a byte is stored.
const BYTE: u64 = 77;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let (world, b) = (t.world, t.world.bsize);
    let mut s = Subject::written(t, "file", 16 * b)?;
    let map = Arc::new(Mapping::new(&s.open().file, (16 * b) as usize).or_fail(|| "mmap".into())?);
    let number = s.number;
    // Of versions that no call has.
    let plain = move |round: u32| {
        let mut bytes = vec![0; b as usize];
        pattern::fill(number, 1000 + round, PLAIN * b, &mut bytes);
        bytes
    };
    let file = Arc::clone(s.open());
    let writer = Beside::start(world, "the plain writer", move |gate| {
        gate.inside(|| {
            for round in 0..ROUNDS {
                let bytes = plain(round);
                file.change(world, "write", PLAIN * b, b, |f| {
                    f.write_all_at(&bytes, PLAIN * b)
                })?
                .or_fail(|| "a plain write".into())?;
            }
            Ok(())
        })
    });
    let (file, stores) = (Arc::clone(s.open()), Arc::clone(&map));
    let storer = Beside::start(world, "the storer", move |gate| {
        gate.inside(|| {
            for round in 0..ROUNDS {
                let at = MAPPED * b + BYTE;
                file.change(world, "mmap", at, 1, |_| {
                    stores.store(at as usize, round as u8);
                })?;
            }
            drop((file, stores));
            Ok(())
        })
    });
    let (off, len) = (b, BLOCKS * b);
    let (mut last, mut failed) = (0, 0);
    let rule = Rule::named("points-fail-1");
    for round in 0..ROUNDS {
        s.put(off, len);
        // The last ones do not fail: what the file holds then is known.
        let fails = round % FAILS == FAILS - 1 && round + FAILS < ROUNDS;
        if fails {
            rule.switch_on(t)?;
        }
        let done = Call {
            world,
            test: t.name,
            file: s.open(),
            off,
            len,
            flags: world.params.flag,
            words: &[],
            pattern: (number, s.version()),
        }
        .run(1)?;
        last = done.call;
        if fails {
            let fired = rule.fired(t)?;
            rule.switch_off(t)?;
            failed += fired;
            t.check(fired > 0, || {
                format!("call {} had no write that could fail", done.call)
            });
            check_told(t, "beside others", &done, len);
        } else {
            t.check(done.result == len as i64, || {
                format!("call {} returned {}", done.call, result_text(done.result))
            });
        }
    }
    writer.finish()?;
    storer.finish()?;
    drop(map);
    // The first is told of the failures, and nobody is told again.
    let told = s.open().fsync(world)?;
    t.check(told == 0 || told == -i64::from(libc::EIO), || {
        format!("fsync returned {}", result_text(told))
    });
    let synced = s.open().fsync(world)?;
    t.check(synced == 0, || {
        format!("a second fsync returned {}", result_text(synced))
    });
    t.note(format!("{failed} writes failed"));
    let (from, to) = rounded(b.max(4096), off, len);
    let file = Arc::clone(s.open());
    let state = pages::report_twice(world, last, "after-call", &file.file, from, to - from)?;
    t.check(state.writeback == 0 && state.dirty == 0, || {
        format!(
            "after fsync {} pages are dirty and {} in writeback",
            state.dirty, state.writeback
        )
    });
    drop(file);
    // Who was last is theirs to settle; that it was one of them is not.
    let at = (PLAIN * b) as usize;
    let mut seen = vec![0; b as usize];
    s.open()
        .file
        .read_exact_at(&mut seen, PLAIN * b)
        .or_fail(|| "reading the block of two writers".into())?;
    if seen == plain(ROUNDS - 1) {
        s.expect[at..at + b as usize].copy_from_slice(&seen);
    }
    let at = (MAPPED * b + BYTE) as usize;
    let mut byte = [0];
    s.open()
        .file
        .read_exact_at(&mut byte, at as u64)
        .or_fail(|| "reading the byte of two writers".into())?;
    if byte[0] == (ROUNDS - 1) as u8 {
        s.expect[at] = byte[0];
    }
    s.check_whole(t, "after the race")?;
    s.evict(t)?;
    s.check_whole(t, "read from the disk")?;
    check_after_remount(t, &mut [s])
}
