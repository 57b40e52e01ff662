// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One bio of a call fails while the call still collects folios.
//!
//! No timer decides when: the file's first mapping is one block, so its bio is
//! out while the second mapping is being collected; the writer stops there at
//! a page of its buffer that is missing; a helper lets the device fail the
//! held bio, sees the block leave writeback (the kernel knows the error), and
//! only then supplies the page. What was collected until then must not be
//! forgotten: no page may stay in writeback, and nothing may hang on one.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use wtblk_shared::pattern;

use crate::aftermath::others_told;
use crate::call::{Call, OpenFile};
use crate::faulty::{FaultyCall, run_faulty};
use crate::page_flags;
use crate::pages;
use crate::probe::{Came, Probe};
use crate::subject::{Subject, check_after_remount};
use crate::sys::uffd::PAGE;
use crate::sys::{self, result_text};
use crate::test::{Fail, OrFail, Test};
use crate::world::{MOUNT, World};

/// The rule of `guest-tests/scenarios/error-mid-call.toml`.
const RULE: &str = "fail-first";
/// Length of the call.
const LEN: u64 = 8 << 20;
/// The missing page: within the third chunk of 2 MiB, which is what the kernel
/// takes at a time, so that the two before it are collected.
const MISSING: usize = (5 << 20) + PAGE;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut s = Subject::create(t, "file")?;
    s.allocate(t, 0, LEN)?;
    // Written, where the rest is unwritten: a mapping of its own.
    s.prepare(t, 0, first(t.world))?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let version = s.next_version();
    let done = run_faulty(
        t,
        &s,
        version,
        &FaultyCall {
            rule: RULE,
            len: LEN,
            missing: MISSING,
            first: first(t.world),
            by_aio: false,
        },
    )?;
    let what = format!("call {} (offset 0, length {LEN})", done.call);
    match done.result {
        r if r == -i64::from(libc::EIO) => t.note(format!("{what} returned -EIO")),
        r if r == LEN as i64 => t.fail(format!(
            "{what} returned success: the error was swallowed, or no fault came \
             (it needs the scenario error-mid-call.toml)"
        )),
        r if (0..LEN as i64).contains(&r) => {
            t.note(format!("{what} returned a short count, {r}"));
        }
        r => t.fail(format!("{what} returned {}, expected -EIO", result_text(r))),
    }
    let file = &s.open().file;
    pages::settle(file, 0, LEN, t.world.params.probe / 4)?;
    let state = pages::report_twice(t.world, done.call, "after-call", file, 0, LEN)?;
    t.check(state.writeback == 0, || {
        format!(
            "{what}: after it {} pages stay in writeback",
            state.writeback
        )
    });
    page_flags::check(t, &what, done.call, s.open(), 0, LEN)?;
    aftermath(t, s, another, done.call, version)
}

/// Length of the file's first mapping: one block, but no less than a page. Two
/// mappings in one page would make the writer wait for the first one's bio.
fn first(world: &World) -> u64 {
    world.bsize.max(PAGE as u64)
}

/// Everything that must not hang, then what the file holds.
fn aftermath(
    t: &Test,
    mut s: Subject,
    another: OpenFile,
    call: u64,
    failed: u32,
) -> Result<(), Fail> {
    let world = t.world;
    let fsync = start_fsync(world, &s, call);
    match outcome(t, &fsync)? {
        Some(r) if r == 0 || r == -i64::from(libc::EIO) => {
            others_told(t, &format!("after call {call}"), &s, &another, r)?;
        }
        Some(r) => t.fail(format!("fsync returned {}", result_text(r))),
        None => {
            // Together, so that the boot ends soon: one limit for both.
            let version = s.next_version();
            let rewrite = start_rewrite(t, &s, call, version);
            let sync = start_sync(world, call);
            outcome(t, &rewrite)?;
            outcome(t, &sync)?;
            return Err(hung(t, &s, call, "fsync"));
        }
    }
    drop(another);
    old_or_new(t, &s, failed, "in the page cache")?;
    s.open().tell_pages(world, "after-fsync")?;
    // And what is on the disk: blocks of which nothing was written read as zeros.
    s.check_evicts(t, "after the error");
    old_or_new(t, &s, failed, "on the disk")?;
    let version = s.next_version();
    let rewrite = start_rewrite(t, &s, call, version);
    match outcome(t, &rewrite)? {
        Some(r) if r == LEN as i64 => s.put_version(version, 0, LEN),
        Some(r) => {
            return Err(Fail::Error(format!(
                "the rewrite returned {}, expected {LEN}",
                result_text(r)
            )));
        }
        None => return Err(hung(t, &s, call, "rewrite")),
    }
    if outcome(t, &start_sync(world, call))?.is_none() {
        return Err(hung(t, &s, call, "sync"));
    }
    s.check_whole(t, "after the rewrite")?;
    s.close();
    let umount = Probe::start(world, call, "umount", || {
        Ok(sys::result_of(sys::umount(MOUNT)))
    });
    match outcome(t, &umount)? {
        Some(0) => {}
        Some(r) => {
            return Err(Fail::Error(format!("umount returned {}", result_text(r))));
        }
        None => return Err(Fail::Hung("umount did not return".into())),
    }
    world.mount()?;
    s.reopen(t)?;
    s.check_whole(t, "after umount and mount")?;
    check_after_remount(t, &mut [s])
}

fn start_fsync(world: &'static World, s: &Subject, call: u64) -> Probe {
    let file = Arc::clone(s.open());
    Probe::start(world, call, "fsync", move || file.fsync(world))
}

fn start_sync(world: &'static World, call: u64) -> Probe {
    Probe::start(world, call, "sync", || {
        sys::sync();
        Ok(0)
    })
}

/// The same range again, as a marked call of the probe's thread.
fn start_rewrite(t: &Test, s: &Subject, call: u64, version: u32) -> Probe {
    let (world, test, number) = (t.world, t.name, s.number);
    let file = Arc::clone(s.open());
    Probe::start(world, call, "rewrite", move || {
        let done = Call {
            world,
            test,
            file: &file,
            off: 0,
            len: LEN,
            flags: world.params.flag,
            words: &[],
            pattern: (number, version),
        }
        .run(1)?;
        Ok(done.result)
    })
}

/// What the probe returned; `None` where it did not, which is a failure.
fn outcome(t: &Test, probe: &Probe) -> Result<Option<i64>, Fail> {
    let came = probe.watch(t.world)?;
    match came {
        Came::Back(result) => {
            t.note(probe.describe(&came));
            Ok(Some(result))
        }
        Came::Not(..) => {
            t.fail(probe.describe(&came));
            Ok(None)
        }
    }
}

/// The last report of a boot that ends here.
fn hung(t: &Test, s: &Subject, call: u64, kind: &str) -> Fail {
    let world = t.world;
    world.note(format!(
        "umount not tried: {kind} hangs, and umount would wait for the same pages"
    ));
    if let Ok(state) = pages::report_twice(world, call, "after-probes", &s.open().file, 0, LEN) {
        t.fail(format!(
            "after the probes {} pages are in writeback{}",
            state.writeback,
            world.marks.state().map_or(String::new(), |d| {
                let get = |key: &str| d.get(key).map_or("?", String::as_str).to_owned();
                format!(
                    ", while the device holds {} and has {} in flight",
                    get("held"),
                    get("inflight")
                )
            })
        ));
    }
    Fail::Hung(format!("{kind} did not return"))
}

/// Each block is what it was or what the failed call wanted, nothing else.
fn old_or_new(t: &Test, s: &Subject, failed: u32, place: &str) -> Result<(), Fail> {
    let mut seen = vec![0; LEN as usize];
    s.open()
        .file
        .read_exact_at(&mut seen, 0)
        .or_fail(|| "reading back after the error".into())?;
    let b = t.world.bsize as usize;
    let (mut old, mut new) = (0, 0);
    for (i, block) in seen.chunks(b).enumerate() {
        if block == &s.expect[i * b..i * b + block.len()] {
            old += 1;
        } else if pattern::first_difference(s.number, failed, (i * b) as u64, block).is_none() {
            new += 1;
        } else {
            t.fail(format!(
                "block {i} {place} holds neither its old bytes nor the failed call's{}",
                s.open().tell_stale(t.world, (i * b) as u64, block)
            ));
        }
    }
    t.note(format!(
        "after the error {new} blocks are new and {old} old {place}"
    ));
    Ok(())
}
