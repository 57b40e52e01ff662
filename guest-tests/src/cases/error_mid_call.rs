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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use crate::call::{Call, Done, OpenFile};
use crate::pages;
use crate::probe::{Came, Probe};
use crate::subject::{Subject, check_after_remount, stale};
use crate::sys::uffd::{FaultingBuffer, PAGE};
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
/// Limit of each wait of the helper.
const LIMIT: Duration = Duration::from_secs(4);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut s = Subject::create(t, "file")?;
    s.allocate(t, 0, LEN)?;
    // Written, where the rest is unwritten: a mapping of its own.
    s.prepare(t, 0, first(t.world))?;
    let version = s.next_version();
    let done = call_with_error(t, &s, version)?;
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
    aftermath(t, s, done.call, version)
}

/// Length of the file's first mapping: one block, but no less than a page. Two
/// mappings in one page would make the writer wait for the first one's bio.
fn first(world: &World) -> u64 {
    world.bsize.max(PAGE as u64)
}

/// The call, and the helper that lets it fail.
fn call_with_error(t: &Test, s: &Subject, version: u32) -> Result<Done, Fail> {
    let world = t.world;
    let number = s.number;
    let buffer = FaultingBuffer::new(LEN as usize, MISSING, |off, bytes| {
        pattern::fill(number, version, off, bytes);
    })
    .or_fail(|| "a buffer under userfaultfd".into())?;
    let buffer = Arc::new(buffer);
    let over = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let helper = Helper {
        world,
        buffer: Arc::clone(&buffer),
        file: Arc::clone(s.open()),
        over: Arc::clone(&over),
        number,
        version,
    };
    let thread = world.spawn("helper", move || helper.run(&told));
    let done = Call {
        world,
        test: t.name,
        file: s.open(),
        off: 0,
        len: LEN,
        flags: world.params.flag,
        words: &[],
        pattern: (number, version),
    }
    .run_faulting(&buffer, |call| {
        let _ = tell.send(call);
    });
    over.store(true, Ordering::Release);
    let told = thread
        .join()
        .map_err(|_| Fail::Error("the helper's thread broke".into()))?;
    let done = done?;
    t.note(told?);
    Ok(done)
}

/// The thread beside the call.
struct Helper {
    world: &'static World,
    buffer: Arc<FaultingBuffer>,
    file: Arc<OpenFile>,
    over: Arc<AtomicBool>,
    number: u32,
    version: u32,
}

impl Helper {
    /// Gives what it saw, in words.
    fn run(&self, told: &mpsc::Receiver<u64>) -> Result<String, Fail> {
        let call = told
            .recv_timeout(LIMIT)
            .map_err(|_| Fail::Error("the call did not begin".into()));
        let stopped = self.writer_stopped();
        let saw = call.and_then(|call| self.fail_the_bio(call));
        // Whatever happened: the writer must not wait for ever.
        let mut page = [0; PAGE];
        pattern::fill(self.number, self.version, MISSING as u64, &mut page);
        let supplied = self.buffer.supply(&page);
        if !stopped? {
            return Err(Fail::Error(
                "the writer never stopped at the missing page: the call ended before it".into(),
            ));
        }
        supplied.or_fail(|| "supplying the page".into())?;
        saw
    }

    fn writer_stopped(&self) -> Result<bool, Fail> {
        let start = Instant::now();
        while start.elapsed() < LIMIT && !self.over.load(Ordering::Acquire) {
            // A short wait each, to notice that the call is over.
            if self
                .buffer
                .wait(Duration::from_millis(20))
                .or_fail(|| "userfaultfd".into())?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fail_the_bio(&self, call: u64) -> Result<String, Fail> {
        let world = self.world;
        let before = pages::state(&self.file.file, 0, first(world))?;
        let device = world.marks.state().map_or(String::new(), |s| {
            let get = |key: &str| s.get(key).map_or("?", String::as_str).to_owned();
            format!(
                ", device: held {} in flight {}",
                get("held"),
                get("inflight")
            )
        });
        world.post(&Mark::Control(Control::Release(Some(RULE.into()))))?;
        let after = pages::settle(&self.file.file, 0, first(world), LIMIT)?;
        if after.writeback != 0 {
            return Err(Fail::Error(format!(
                "the first block stays in writeback {} ms after its release{device}",
                LIMIT.as_millis()
            )));
        }
        world.post(&Mark::ErrorSeen { call })?;
        Ok(format!(
            "writer stopped in the middle; first block {} before the release{device}",
            if before.writeback > 0 {
                "in writeback"
            } else {
                "already out of writeback"
            }
        ))
    }
}

/// Everything that must not hang, then what the file holds.
fn aftermath(t: &Test, mut s: Subject, call: u64, failed: u32) -> Result<(), Fail> {
    let world = t.world;
    let fsync = start_fsync(world, &s, call);
    match outcome(t, &fsync)? {
        Some(r) if r == 0 || r == -i64::from(libc::EIO) => {}
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
    old_or_new(t, &s, failed)?;
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
fn old_or_new(t: &Test, s: &Subject, failed: u32) -> Result<(), Fail> {
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
                "block {i} holds neither its old bytes nor the failed call's{}",
                stale(block)
            ));
        }
    }
    t.note(format!(
        "after the error {new} blocks are new and {old} old"
    ));
    Ok(())
}
