// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does the operations of a list to a file, one after the other, and to the model; compares.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use wtblk_shared::{RWF_DSYNC, pattern};

use super::look;
use super::model::{Failed, Model};
use super::op::{By, Fault, Op, Range};
use super::{Counts, FAULTS};
use crate::beside::Gate;
use crate::call::{Call, Done, OpenFile};
use crate::flying::{ASYNC, Engine};
use crate::pages;
use crate::rules::Rule;
use crate::subject::{Subject, rounded};
use crate::sys::mapping::Mapping;
use crate::sys::{self, result_text};
use crate::test::{Fail, OrFail, Test};

const EIO: i64 = -(libc::EIO as i64);
/// FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE and FALLOC_FL_ZERO_RANGE of
/// `include/uapi/linux/falloc.h`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const ZERO_RANGE: i32 = 16;

/// Why a list stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Something is not as it must be.
    Broken(String),
    /// Something of ours went wrong.
    Trouble(Fail),
}

impl From<Fail> for Stop {
    fn from(fail: Fail) -> Stop {
        Stop::Trouble(fail)
    }
}

/// Something is not as it must be, unless `held`.
pub fn must(held: bool, what: impl FnOnce() -> String) -> Result<(), Stop> {
    if held {
        Ok(())
    } else {
        Err(Stop::Broken(what()))
    }
}

/// The file of a list, and what it must hold.
pub struct Actor<'a> {
    pub(super) t: &'a Test,
    name: String,
    path: PathBuf,
    file: Option<Arc<OpenFile>>,
    number: u32,
    version: u32,
    /// The longest that the file may be.
    most: u64,
    /// What it must hold.
    pub(super) model: Model,
    map: Option<Mapping>,
    other: Option<Subject>,
    /// The next fsync may tell of an error.
    pending: bool,
    counts: &'a Counts,
}

impl<'a> Actor<'a> {
    /// A new file.
    pub fn new(t: &'a Test, name: &str, most: u64, counts: &'a Counts) -> Result<Self, Stop> {
        let path = t.dir.join(name);
        Ok(Actor {
            t,
            name: name.to_owned(),
            file: Some(Arc::new(OpenFile::open(t.world, &path, false)?)),
            path,
            number: t.world.next_file(),
            version: 0,
            most,
            model: Model::new(t.world.bsize),
            map: None,
            other: None,
            pending: false,
            counts,
        })
    }

    pub(super) fn file(&self) -> Arc<OpenFile> {
        Arc::clone(self.file.as_ref().expect("the file is open"))
    }

    /// Does one operation. One that does not fit the file, because of those that were left out
    /// before it, does nothing.
    pub fn act(&mut self, op: &Op) -> Result<(), Stop> {
        self.version += 1;
        if let Op::Call { at, .. } | Op::Write(at) = *op
            && at.off > self.model.size()
        {
            // The old last block is zeroed, and perhaps written for that.
            self.told()?;
        }
        match *op {
            Op::Call { at, .. } if self.fits(at) => self.call(op, at),
            Op::Write(at) if self.fits(at) => self.write(at),
            Op::Store(at) if at.off + at.len <= self.model.size() => self.store(at),
            Op::Truncate(size) if size <= self.most => self.truncate(size),
            Op::Punch(at) if self.fits(at) => self.punch(at, PUNCH_HOLE),
            Op::Zero(at) if self.fits(at) => self.punch(at, ZERO_RANGE),
            Op::Allocate { at, keep } if self.fits(at) => self.allocate(at, keep),
            Op::Clone { from, to, other } => self.clone_range(from, to, other),
            Op::Sync(fault) => self.sync(fault),
            Op::Read(at) => self.read(at),
            Op::Evict { every } => self.evict(every),
            Op::Remount => self.remount(),
            _ => Ok(()),
        }
    }

    fn fits(&self, at: Range) -> bool {
        at.len > 0 && at.off + at.len <= self.most
    }

    fn bytes(&self, at: Range) -> Vec<u8> {
        let mut bytes = vec![0; at.len as usize];
        pattern::fill(self.number, self.version, at.off, &mut bytes);
        bytes
    }

    fn call(&mut self, op: &Op, at: Range) -> Result<(), Stop> {
        let Op::Call {
            parts,
            dsync,
            by,
            fault,
            ..
        } = *op
        else {
            return Ok(());
        };
        let world = self.t.world;
        let bytes = self.bytes(at);
        let engine = match by {
            By::Uring if world.fact("io_uring") == "yes" => Some(Engine::Uring),
            By::Aio | By::Uring if world.fact("aio") == "yes" => Some(Engine::Aio),
            _ => None,
        };
        let file = self.file();
        let call = Call {
            world,
            test: self.t.name,
            file: &file,
            off: at.off,
            len: at.len,
            flags: world.params.flag | if dsync { RWF_DSYNC } else { 0 },
            words: if engine.is_some() { &[ASYNC] } else { &[] },
            pattern: (self.number, self.version),
        };
        let rule = rule_of(fault, "write");
        if let Some(rule) = &rule {
            rule.switch_on(self.t)?;
        }
        let done = match engine {
            Some(engine) => call
                .submit(engine, &Gate::default())
                .and_then(|flying| flying.finish()),
            None => call.run(parts as usize),
        };
        let fired = fired(self.t, rule.as_ref())?;
        let done = done?;
        self.counts.calls.fetch_add(1, Ordering::Relaxed);
        // An error of its own data is its own to tell; DSYNC tells of an older one, too.
        let older = dsync && self.pending && done.result == EIO;
        self.pending |= fired && fault != Fault::Read;
        if done.result == at.len as i64 {
            self.pending &= !dsync || fired;
            return self.call_succeeded(&done, at, &bytes);
        }
        must(
            (fired && (done.result == EIO || (0..at.len as i64).contains(&done.result))) || older,
            || {
                format!(
                    "call {} returned {}, expected {}{}",
                    done.call,
                    result_text(done.result),
                    if fired { "-EIO or less than " } else { "" },
                    at.len,
                )
            },
        )?;
        if older && !fired {
            self.pending = false;
        }
        self.counts.failed.fetch_add(1, Ordering::Relaxed);
        let beyond = at.off > self.model.size();
        self.call_failed(&done, at, &bytes)?;
        if fired && (dsync || beyond) {
            // What failed may be other dirty blocks, which it sends, too: with DSYNC after its own
            // data, before it where blocks between the end of the file and the call are zeroed.
            self.sync_failed(&format!("call {}", done.call))?;
        }
        Ok(())
    }

    fn call_succeeded(&mut self, done: &Done, at: Range, bytes: &[u8]) -> Result<(), Stop> {
        let world = self.t.world;
        let what = format!("call {}", done.call);
        self.model.written_through(at.off, bytes);
        self.check_size(&what)?;
        let (from, to) = rounded(world.bsize, at.off, at.len);
        let seen = self.seen(from, to)?;
        self.model
            .check(from, &seen)
            .map_err(|e| self.differs(&format!("{what}: a read"), e, from, &seen))?;
        let (disk, missing) = look::on_disk(world, &self.file().file, from, to)?;
        must(missing == 0, || {
            format!("{what}: {missing} bytes of its blocks have no written place on the disk")
        })?;
        must(disk == seen, || {
            let i = (0..disk.len()).find(|&i| disk[i] != seen[i]).unwrap_or(0);
            let at = from + i as u64;
            format!("{what}: the disk differs from the page cache at file offset {at}")
        })?;
        self.model.pin(from, &seen);
        if world.fact("cachestat") == "yes" {
            let (from, to) = rounded(world.unit(), at.off, at.len);
            let file = self.file();
            let state = pages::report(world, done.call, "after-call", &file.file, from, to - from)?;
            let dirty = if self.model.is_dirty() {
                0
            } else {
                state.dirty
            };
            must(dirty == 0 && state.writeback == 0, || {
                format!(
                    "{what}: after it {dirty} pages of its blocks are dirty and {} in writeback",
                    state.writeback
                )
            })?;
        }
        Ok(())
    }

    /// Looks at both layers at once, so that from now on each block is one of two values at most.
    fn call_failed(&mut self, done: &Done, at: Range, bytes: &[u8]) -> Result<(), Stop> {
        let world = self.t.world;
        let what = format!(
            "call {}, which returned {}",
            done.call,
            result_text(done.result)
        );
        let (from, to) = rounded(world.unit(), at.off, at.len);
        self.settled(&what, done.call, from, to)?;
        let size = self.file().size().or_fail(|| "fstat".into())?;
        let (from, to) = rounded(world.bsize, at.off, at.len);
        let cache = self.seen(from, to)?;
        let (disk, _) = look::on_disk(world, &self.file().file, from, to)?;
        let failed = Failed {
            off: at.off,
            bytes,
            sure: done.result.max(0) as usize,
            size,
        };
        let judged = self.model.failed(&failed, &cache, &disk);
        judged.map_err(|why| {
            let stale = self.file().tell_stale(world, from, &cache);
            let below = crate::subject::stale(&disk);
            Stop::Broken(format!("{what}: {why}{stale}{below}"))
        })
    }

    fn settled(&self, what: &str, call: u64, from: u64, to: u64) -> Result<(), Stop> {
        let world = self.t.world;
        if world.fact("cachestat") != "yes" {
            return Ok(());
        }
        let file = self.file();
        pages::settle(&file.file, from, to - from, world.params.probe / 4)?;
        let state = pages::report_twice(world, call, "after-call", &file.file, from, to - from)?;
        must(state.writeback == 0, || {
            format!("{what}: {} pages stay in writeback", state.writeback)
        })
    }

    fn write(&mut self, at: Range) -> Result<(), Stop> {
        use std::os::unix::fs::FileExt;
        let bytes = self.bytes(at);
        let work = |f: &std::fs::File| f.write_all_at(&bytes, at.off);
        let result = self
            .file()
            .change_told(self.t.world, "write", at.off, at.len, work)?;
        must(result == 0, || {
            format!("the write returned {}", result_text(result))
        })?;
        self.model.write(at.off, &bytes);
        Ok(())
    }

    fn store(&mut self, at: Range) -> Result<(), Stop> {
        let file = self.file();
        // Behind the end of the file a store is a signal, which would be the end of us all.
        self.check_size("before a store")?;
        let map = match self.map.take() {
            Some(map) => map,
            None => Mapping::new(&file.file, self.most as usize).or_fail(|| "mmap".into())?,
        };
        let bytes = self.bytes(at);
        file.change(self.t.world, "mmap", at.off, at.len, |_| {
            for (i, byte) in bytes.iter().enumerate() {
                map.store(at.off as usize + i, *byte);
            }
        })?;
        self.map = Some(map);
        self.model.store(at.off, &bytes);
        Ok(())
    }

    /// Whoever flushes the file on its way would be told of an error that is fsync's to tell.
    fn told(&mut self) -> Result<(), Stop> {
        if self.pending {
            self.sync(Fault::None)?;
        }
        Ok(())
    }

    fn change(
        &self,
        kind: &str,
        at: Range,
        work: impl FnOnce(&std::fs::File) -> std::io::Result<()>,
    ) -> Result<(), Stop> {
        let file = self.file();
        let result = file.change_told(self.t.world, kind, at.off, at.len, work)?;
        must(result == 0, || {
            format!("{kind} returned {}", result_text(result))
        })?;
        Ok(())
    }

    fn truncate(&mut self, size: u64) -> Result<(), Stop> {
        self.told()?;
        let now = self.model.size();
        let (kind, off, len) = match size < now {
            true => ("truncate", size, now - size),
            false => ("extend", now, size - now),
        };
        self.change(kind, Range { off, len }, |f| f.set_len(size))?;
        self.model.truncate(size);
        self.check_size("after truncate")
    }

    fn punch(&mut self, at: Range, mode: i32) -> Result<(), Stop> {
        self.told()?;
        self.change("punch", at, |f| {
            sys::fallocate(f, mode | KEEP_SIZE, at.off, at.len)
        })?;
        self.model.punch(at.off, at.len);
        Ok(())
    }

    fn allocate(&mut self, at: Range, keep: bool) -> Result<(), Stop> {
        self.told()?;
        let (kind, mode) = match keep {
            true => ("allocate", KEEP_SIZE),
            false => ("extend", 0),
        };
        if self.t.world.always_cow() {
            // There is no fallocate then.
            return Ok(());
        }
        self.change(kind, at, |f| sys::fallocate(f, mode, at.off, at.len))?;
        if !keep && at.off + at.len > self.model.size() {
            self.model.extend(at.off + at.len);
            self.model.size_is_on_disk();
        }
        self.check_size("after fallocate")
    }

    fn clone_range(&mut self, from: Range, to: u64, other: bool) -> Result<(), Stop> {
        let b = self.t.world.bsize;
        let whole = [from.off, from.len, to].iter().all(|n| n.is_multiple_of(b));
        let have = if other {
            other_len(b)
        } else {
            self.model.size()
        };
        let apart = other || from.off + from.len <= to || to + from.len <= from.off;
        let shares = self.t.world.fact("reflink") == "yes";
        if !shares || !whole || from.off + from.len > have || !apart || to + from.len > self.most {
            return Ok(());
        }
        self.told()?;
        let at = Range {
            off: to,
            len: from.len,
        };
        if !other {
            let file = self.file();
            self.change("reflink", at, |f| {
                sys::clone_range(f, &file.file, from.off, from.len, to)
            })?;
            self.model.clone_range(from.off, from.len, to);
            return self.check_size("after FICLONERANGE");
        }
        let donor = match self.other.take() {
            Some(donor) => donor,
            None => Subject::written(self.t, &format!("{}-other", self.name), other_len(b))?,
        };
        let source = Arc::clone(donor.open());
        self.change("reflink", at, |f| {
            sys::clone_range(f, &source.file, from.off, from.len, to)
        })?;
        let (first, end) = (from.off as usize, (from.off + from.len) as usize);
        self.model.clone_bytes(&donor.expect[first..end], to);
        self.other = Some(donor);
        self.check_size("after FICLONERANGE")
    }

    fn sync(&mut self, fault: Fault) -> Result<(), Stop> {
        let world = self.t.world;
        let rule = rule_of(fault, "sync");
        if let Some(rule) = &rule {
            rule.switch_on(self.t)?;
        }
        let result = self.file().fsync(world);
        let fired = fired(self.t, rule.as_ref())?;
        let result = result?;
        let what = format!("fsync, which returned {}", result_text(result));
        let may_fail = fired || self.pending;
        self.pending = false;
        must(result == 0 || (result == EIO && may_fail), || {
            format!("{what}: expected 0")
        })?;
        if !fired || result == 0 {
            self.model.synced();
        }
        if fired {
            if result == 0 {
                // Whatever failed was none of its pages, or was written again.
                let (from, to) = rounded(world.bsize, 0, self.model.size());
                let (disk, _) = look::on_disk(world, &self.file().file, from, to)?;
                self.model.check_disk(0, &disk).map_err(|at| {
                    Stop::Broken(format!("{what}: the block at {at} is not on the disk"))
                })?;
            } else {
                self.counts.syncs.fetch_add(1, Ordering::Relaxed);
                self.sync_failed(&what)?;
            }
        }
        Ok(self.file().tell_pages(world, "after-fsync")?)
    }

    /// Writes of dirty pages failed: which of them are on the disk is looked at.
    fn sync_failed(&mut self, what: &str) -> Result<(), Stop> {
        let world = self.t.world;
        let (file, size) = (self.file(), self.model.size());
        let (from, to) = rounded(world.bsize, 0, size);
        if world.fact("cachestat") == "yes" {
            pages::settle(&file.file, 0, size.max(1), world.params.probe / 4)?;
        }
        let cache = self.seen(0, size)?;
        let (disk, _) = look::on_disk(world, &file.file, from, to)?;
        self.model
            .sync_failed(&cache, &disk)
            .map_err(|why| Stop::Broken(format!("{what}: {why}")))
    }

    fn read(&mut self, at: Range) -> Result<(), Stop> {
        let end = (at.off + at.len).min(self.model.size());
        if at.off >= end {
            return Ok(());
        }
        let seen = self.seen(at.off, end)?;
        self.model
            .check(at.off, &seen)
            .map_err(|e| self.differs("a read", e, at.off, &seen))
    }

    fn evict(&mut self, every: bool) -> Result<(), Stop> {
        // With its mapping a page cannot leave the page cache.
        self.map = None;
        self.sync(Fault::None)?;
        let file = self.file();
        if every {
            std::fs::write("/proc/sys/vm/drop_caches", "1")
                .or_fail(|| "writing drop_caches".into())?;
        }
        sys::evict(&file.file).or_fail(|| "fadvise".into())?;
        if self.t.world.fact("cachestat") == "yes" && self.model.size() > 0 {
            let left = pages::state(&file.file, 0, self.model.size())?.cached;
            must(left == 0, || {
                format!("{left} pages stay in the page cache although they are clean")
            })?;
        }
        self.anew("read from the disk")
    }

    fn remount(&mut self) -> Result<(), Stop> {
        self.map = None;
        self.file = None;
        if let Some(other) = &mut self.other {
            other.close();
        }
        match self.t.world.remount() {
            Err(Fail::Error(why)) => return Err(Stop::Broken(why)),
            other => other?,
        }
        let file = OpenFile::open(self.t.world, &self.path, false)?;
        file.tell_size(self.t.world, "opened-again")?;
        let size = file.size().or_fail(|| "fstat".into())?;
        self.file = Some(Arc::new(file));
        if let Some(other) = &mut self.other {
            other.reopen(self.t)?;
        }
        // Who unmounts writes everything.
        self.model.synced();
        self.pending = false;
        self.model
            .mounted(size)
            .map_err(|why| Stop::Broken(format!("after a remount: {why}")))?;
        self.anew("after a remount")
    }

    /// Reads all of both files from the disk and compares.
    fn anew(&mut self, when: &str) -> Result<(), Stop> {
        self.check_size(when)?;
        let size = self.model.size();
        let seen = self.seen(0, size)?;
        self.model
            .read_anew(&seen)
            .map_err(|e| self.differs(&format!("the file {when}"), e, 0, &seen))?;
        must(self.model.is_certain(), || {
            format!("{when}: what the file holds is still not known")
        })?;
        let Some(other) = &self.other else {
            return Ok(());
        };
        sys::evict(&other.open().file).or_fail(|| "fadvise".into())?;
        let seen = look::read(&other.open().file, 0, other.end())?;
        must(seen == other.expect, || {
            format!("the other file, {when}: it has changed")
        })
    }

    fn check_size(&self, when: &str) -> Result<(), Stop> {
        let size = self.file().size().or_fail(|| "fstat".into())?;
        let want = self.model.size();
        must(size == want, || {
            format!("{when}: i_size is {size}, expected {want}")
        })
    }

    /// What a reader sees; zeros behind the end of the file.
    fn seen(&self, from: u64, to: u64) -> Result<Vec<u8>, Stop> {
        look::read(&self.file().file, from, to)
    }

    fn differs(&self, what: &str, at: u64, from: u64, seen: &[u8]) -> Stop {
        let file = self.file();
        let stale = match from % 16 {
            0 => file.tell_stale(self.t.world, from, seen),
            _ => crate::subject::stale(seen),
        };
        Stop::Broken(format!(
            "{what} gives in the block at {at} what was not written there{stale}"
        ))
    }
}

/// Length of the other file.
pub fn other_len(bsize: u64) -> u64 {
    16 * bsize
}

/// The rule of `guest-tests/scenarios/exerciser.toml`.
fn rule_of(fault: Fault, of: &str) -> Option<Rule> {
    let name = match fault {
        Fault::None => return None,
        Fault::Write(n) => format!("exerciser-{of}-{}", n.clamp(1, FAULTS)),
        Fault::Every => format!("exerciser-{of}-every"),
        Fault::Read => "exerciser-read".to_owned(),
    };
    Some(Rule::named(name))
}

/// Whether it fired; it sleeps again.
fn fired(t: &Test, rule: Option<&Rule>) -> Result<bool, Fail> {
    let Some(rule) = rule else {
        return Ok(false);
    };
    let fired = rule.fired(t)?;
    rule.switch_off(t)?;
    Ok(fired > 0)
}
