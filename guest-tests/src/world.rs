// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every test of a boot shares: parameters, disks, facts and the counters
//! that number calls, probes and open files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use wtblk_shared::mark::Mark;
use wtblk_shared::tag::Tag;

use crate::cmdline::Params;
use crate::disks::Disk;
use crate::marks::Marks;
use crate::probe::ROUNDS;
use crate::sys;
use crate::task::limited;
use crate::test::{Fail, OrFail};

/// Where the data disk is mounted.
pub const MOUNT: &str = "/mnt";

/// The world of one boot. Lives until its end, so threads may keep it.
pub struct World {
    /// What the harness asked for.
    pub params: Params,
    /// The mark disk.
    pub marks: Arc<Marks>,
    /// The disk under test.
    pub data: Disk,
    /// The disk that is mounted, where the one under test is its file system's realtime device.
    pub meta: Option<Disk>,
    /// The disk under test past every cache, to read only.
    pub raw: File,
    /// Block size of the file system on it.
    pub bsize: u64,
    /// Logical block size of the disk.
    pub lbs: u64,
    /// Whether calls are tagged: asked for and possible.
    pub tags: bool,
    /// What was found out.
    pub facts: BTreeMap<String, String>,
    /// Numbers for calls, probes, open files, tags and patterns.
    pub counters: Counters,
}

/// Each gives a number once.
#[derive(Default)]
pub struct Counters {
    call: AtomicU64,
    probe: AtomicU64,
    open: AtomicU64,
    sync: AtomicU64,
    change: AtomicU64,
    over: AtomicU64,
    tag: AtomicU64,
    file: AtomicU64,
}

fn next(counter: &AtomicU64) -> u64 {
    counter.fetch_add(1, Ordering::Relaxed) + 1
}

impl World {
    /// Whether every write goes to new blocks (`/sys/fs/xfs/debug/always_cow`).
    pub fn always_cow(&self) -> bool {
        self.fact("always_cow") == "on"
    }

    /// What it means that fallocate(2) failed: with always_cow XFS gives no blocks before they are written
    /// (`xfs_file_fallocate`), which is no fault.
    pub fn no_blocks(&self, e: &std::io::Error) -> Fail {
        if e.raw_os_error() == Some(libc::EOPNOTSUPP) && self.always_cow() {
            return Fail::Skip("with always_cow there is no fallocate".into());
        }
        Fail::Error(format!("fallocate: {e}"))
    }

    /// Bytes that are in one folio and one block at the least: a page, or a block where that is larger.
    pub fn unit(&self) -> u64 {
        self.bsize.max(4096)
    }

    /// Sends a mark.
    pub fn post(&self, mark: &Mark) -> Result<(), Fail> {
        self.marks.post(mark).map_err(Fail::Error)
    }

    /// Sends a note. Its loss would hide nothing that a rule needs.
    pub fn note(&self, text: impl Into<String>) {
        let _ = self.marks.post(&Mark::Note { text: text.into() });
    }

    /// A fact, "unknown" where it was not looked for.
    pub fn fact(&self, key: &str) -> &str {
        self.facts.get(key).map_or("unknown", String::as_str)
    }

    /// The next call's number.
    pub fn next_call(&self) -> u64 {
        next(&self.counters.call)
    }

    /// The next probe's number.
    pub fn next_probe(&self) -> u64 {
        next(&self.counters.probe)
    }

    /// The next open file's number.
    pub fn next_open(&self) -> u64 {
        next(&self.counters.open)
    }

    /// The next number of an fsync.
    pub fn next_sync(&self) -> u64 {
        next(&self.counters.sync)
    }

    /// How many calls and changes have begun or ended so far: two looks alike, and none was under way beside.
    pub fn steps(&self) -> u64 {
        let of = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        of(&self.counters.call) + of(&self.counters.change) + of(&self.counters.over)
    }

    /// A call or a change is over.
    pub fn step(&self) {
        next(&self.counters.over);
    }

    /// The next change's number.
    pub fn next_change(&self) -> u64 {
        next(&self.counters.change)
    }

    /// The next file's number in the pattern. Small enough for the pattern's 24
    /// bits, and another one with every seed.
    pub fn next_file(&self) -> u32 {
        let n = next(&self.counters.file) + self.params.seed % 1000 * 1000;
        n as u32
    }

    /// Gives the calling thread a fresh tag; `None` where tags are off.
    pub fn tag_thread(&self) -> Result<Option<Tag>, Fail> {
        if !self.tags {
            return Ok(None);
        }
        let tag = Tag::nth(next(&self.counters.tag));
        sys::ioprio_set(tag.ioprio()).map_err(|e| Fail::Error(format!("ioprio_set: {e}")))?;
        Ok(Some(tag))
    }

    /// Takes the calling thread's tag away: what it does now belongs to no call.
    pub fn untag_thread(&self) {
        if self.tags {
            // Class "none", which the kernel turns into the nice level's.
            let _ = sys::ioprio_set(0);
        }
    }

    /// Starts a thread without a tag. A bare one would inherit its creator's
    /// and its requests would count as that call's.
    pub fn spawn<T: Send + 'static>(
        &'static self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                self.untag_thread();
                work()
            })
            .expect("a thread")
    }

    /// Does something that may hang, in a thread of its own.
    pub fn limited<T: Send + 'static>(
        &'static self,
        what: &str,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Fail> {
        limited(what, limit, move || {
            self.untag_thread();
            work()
        })
        .map_err(Fail::Hung)
    }

    /// Whether the device has nothing but what it holds: who waits for I/O then, waits for that.
    pub fn device_is_idle(&self) -> bool {
        let state = self.marks.state().unwrap_or_default();
        let number = |key: &str| state.get(key).and_then(|n| n.parse::<u64>().ok());
        matches!((number("inflight"), number("held")), (Some(all), Some(held)) if all == held)
    }

    /// Mounts the file system under test.
    pub fn mount(&self) -> Result<(), Fail> {
        self.mount_with("")
            .or_fail(|| format!("mount of {} as xfs", self.mounted()))
    }

    /// The same with options of XFS.
    pub fn mount_with(&self, options: &str) -> io::Result<()> {
        let disk = self.mounted();
        if self.meta.is_none() {
            return sys::mount_with(disk, MOUNT, "xfs", options);
        }
        let mut all = format!("rtdev={}", self.data.path);
        if !options.is_empty() {
            all = format!("{all},{options}");
        }
        sys::mount_with(disk, MOUNT, "xfs", &all)
    }

    /// The disk that the file system under test is mounted from.
    pub fn mounted(&self) -> &str {
        &self.meta.as_ref().unwrap_or(&self.data).path
    }

    /// Unmounts it, within a limit: a longer one than a probe's, as nobody looks whether it stands still.
    pub fn umount(&'static self) -> Result<(), Fail> {
        self.limited("umount", self.params.probe * ROUNDS, || sys::umount(MOUNT))?
            .map_err(|e| Fail::Error(format!("umount: {e}")))
    }

    /// Unmounts and mounts: what is read then comes from the device.
    pub fn remount(&'static self) -> Result<(), Fail> {
        self.umount()?;
        self.limited("mount", self.params.test, || self.mount())?
    }
}
