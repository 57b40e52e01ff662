// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file by way of an io_uring that belongs to one queue: no locks, no threads,
//! one system call for all that was submitted since the last.
//!
//! The kernel reads and writes the guest's memory itself. Where the file is used
//! past the page cache and the memory is too badly aligned for that, the data goes
//! by way of memory of our own, a piece at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};

use super::aligned::Aligned;
use super::transfer::{IOV_MAX, advance, last, whole};
use super::{Buffers, Completion, Op, StoreQueue, given_up};

/// Operations that can be submitted at once; more are handed over in between.
const ENTRIES: u32 = 256;
/// Completions that wait for us; the kernel keeps what is more.
const COMPLETIONS: u32 = 4096;
/// Bytes that go by way of our own memory at a time.
const PIECE: usize = 1 << 20;
/// Flights of a ring that go by way of our own memory at a time; more wait for their turn.
const BOUNCES: usize = 64;
/// After so many steps at a reap the next one waits for another reap.
const ROUNDS: u32 = 8;
/// Stands where a completion is of no flight.
const NOBODY: u64 = u64::MAX;
/// The file's index among those the ring knows.
const FILE: types::Fixed = types::Fixed(0);

/// What is served.
pub(super) struct Target {
    pub file: File,
    /// Past the page cache: what addresses and lengths must be multiples of.
    pub direct: Option<usize>,
    pub capacity: u64,
    /// The open file that has the image's lock.
    pub _locked: File,
}

impl Target {
    /// An error where somebody has cut it short.
    fn whole(&self) -> io::Result<()> {
        whole(self.file.as_fd(), self.capacity)
    }
}

/// What is asked for.
enum Work {
    Read(Buffers),
    Write(Buffers),
    /// Zeros, written because the file system knows no better.
    Zeros(u64),
    /// `fallocate` with this mode.
    Allocate {
        len: u64,
        mode: i32,
    },
    Sync,
}

/// An operation between its submission and its completion.
struct Flight {
    token: u64,
    work: Work,
    /// First byte of all of it.
    offset: u64,
    done: u64,
    /// What is still to be transferred, where the kernel does so itself.
    list: Vec<libc::iovec>,
    first: usize,
    /// Memory that it goes by way of instead.
    bounce: Option<Aligned>,
    /// No step follows the one that the kernel has.
    given_up: bool,
}

/// See the module.
pub(super) struct UringQueue {
    /// Dropped first: see `drop`.
    ring: IoUring,
    target: Arc<Target>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    /// Lists for flights to come.
    lists: Vec<Vec<libc::iovec>>,
    /// Entries that the kernel was not told of.
    pushed: usize,
    over: Vec<Completion>,
    landed: Vec<(u64, i32)>,
    /// Flights that go by way of our own memory, and those that are to.
    bouncing: usize,
    to_bounce: VecDeque<usize>,
    /// The flight that writes zeros, those that are to, and the zeros while nobody does.
    zeroing: Option<usize>,
    to_zero: VecDeque<usize>,
    zeros: Option<Aligned>,
}

// SAFETY: the pointers in the lists are those of the flights' buffers, which may go to another
// thread themselves; only the kernel follows them.
unsafe impl Send for UringQueue {}

/// What a ring is for.
const OPERATIONS: [u8; 7] = [
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::AsyncCancel::CODE,
];

/// A ring of which the kernel has not yet been told that it may run (`confined`), or one that may.
fn ring(confined: bool) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).setup_clamp();
    if confined {
        builder.setup_r_disabled();
    }
    // Completions wait for our next look instead of interrupting us (Linux 5.19).
    let ring = builder
        .clone()
        .setup_coop_taskrun()
        .setup_taskrun_flag()
        .build(ENTRIES);
    match ring {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => builder.build(ENTRIES),
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            let why = "before Linux 5.12 it counts as locked memory, see ulimit -l";
            Err(io::Error::other(format!(
                "no memory for an io_uring: {error}; {why}"
            )))
        }
        ring => ring,
    }
}

/// A ring that reads and writes this one file and can do nothing else, whoever gets hold of it. (What
/// a ring does no filter of system calls sees.) `false`: the kernel cannot promise that.
fn confined_ring(file: &File) -> io::Result<(IoUring, bool)> {
    let confine = || -> io::Result<IoUring> {
        let ring = ring(true)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        let mut allowed: Vec<_> = OPERATIONS.map(Restriction::sqe_op).into();
        // No descriptor but the registered one.
        allowed.push(Restriction::sqe_flags_required(Flags::FIXED_FILE.bits()));
        submitter.register_restrictions(&mut allowed)?;
        submitter.register_enable_rings()?;
        Ok(ring)
    };
    match confine() {
        Ok(ring) => Ok((ring, true)),
        // Before Linux 5.10.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let ring = ring(false)?;
            ring.submitter().register_files(&[file.as_raw_fd()])?;
            Ok((ring, false))
        }
        Err(error) => Err(error),
    }
}

impl UringQueue {
    /// Whether the host lets us have one, and one that does what we need.
    pub(super) fn possible() -> io::Result<()> {
        let ring = ring(false)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !OPERATIONS.iter().all(|&code| probe.is_supported(code)) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(())
    }

    pub(super) fn new(target: Arc<Target>) -> io::Result<UringQueue> {
        let (ring, confined) = confined_ring(&target.file)?;
        if !confined {
            tracing::warn!(
                "the io_uring of an image cannot be confined to it: that takes Linux 5.10"
            );
        }
        Ok(UringQueue {
            ring,
            target,
            flights: Vec::new(),
            free: Vec::new(),
            lists: Vec::new(),
            pushed: 0,
            over: Vec::new(),
            landed: Vec::new(),
            bouncing: 0,
            to_bounce: VecDeque::new(),
            zeroing: None,
            to_zero: VecDeque::new(),
            zeros: None,
        })
    }

    fn begin(&mut self, token: u64, offset: u64, work: Work) {
        let mut flight = Flight {
            token,
            work,
            offset,
            done: 0,
            list: self.lists.pop().unwrap_or_default(),
            first: 0,
            bounce: None,
            given_up: false,
        };
        let bounces = flight.prepare(self.target.direct);
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.flights.push(None);
                self.flights.len() - 1
            }
        };
        let ready = flight.len() > 0 || !flight.transfers();
        self.flights[at] = Some(flight);
        match (ready, bounces) {
            (false, _) => self.finish(at, Ok(())),
            (true, false) => self.push(at),
            (true, true) => {
                self.to_bounce.push_back(at);
                self.bounce();
            }
        }
    }

    /// Flights whose turn it is get memory to go by way of.
    fn bounce(&mut self) {
        while self.bouncing < BOUNCES
            && let Some(at) = self.to_bounce.pop_front()
        {
            if let Some(Some(flight)) = self.flights.get_mut(at) {
                let len = flight.len().min(PIECE as u64) as usize;
                flight.bounce = Some(Aligned::new(len));
                self.bouncing += 1;
                self.push(at);
            }
        }
    }

    /// Hands the next step of a flight over, with the next system call.
    fn push(&mut self, at: usize) {
        let Some(flight) = self.flights.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        let entry = flight.entry().user_data(at as u64);
        if !self.push_entry(&entry) {
            let busy = io::Error::from_raw_os_error(libc::EAGAIN);
            self.finish(at, Err(busy));
        }
    }

    /// An entry of a flight, or one that points to nothing.
    fn push_entry(&mut self, entry: &Entry) -> bool {
        for tries in 0..2 {
            // SAFETY: what the entry points to (the flight's list, its bounce buffer, the ranges
            // that its buffers keep mapped) stays where it is until the flight is taken out of
            // its place, and that happens only when its completion has been seen.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                self.pushed += 1;
                return true;
            }
            if tries == 0 {
                self.enter();
            }
        }
        false
    }

    /// Tells the kernel of everything pushed, and lets it tell what it has.
    fn enter(&mut self) {
        let mut tries = 0;
        loop {
            match self.ring.submit() {
                Ok(count) => {
                    self.pushed -= count.min(self.pushed);
                    if self.pushed == 0 || count == 0 {
                        return;
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EINTR) => {}
                    // No memory for the moment, or no room for completions: make some.
                    Some(libc::EAGAIN | libc::EBUSY) if tries < 1000 => {
                        tries += 1;
                        self.collect();
                        std::thread::yield_now();
                    }
                    _ => return tracing::error!(%error, "io_uring"),
                },
            }
        }
    }

    /// Takes completions out of the ring; they are looked at later.
    fn collect(&mut self) {
        let landed = self.ring.completion();
        let landed = landed.map(|c| (c.user_data(), c.result()));
        self.landed.extend(landed);
    }

    fn land(&mut self, at: usize, result: i32) {
        let Some(flight) = self.flights.get_mut(at).and_then(Option::as_mut) else {
            return;
        };
        match flight.land(result) {
            Landed::Over(result) => self.finish(at, result),
            Landed::More if flight.given_up => self.finish(at, Err(given_up())),
            Landed::More if matches!(flight.work, Work::Zeros(_)) => self.write_zeros(at),
            Landed::More => self.push(at),
        }
    }

    /// The next zeros of a flight, when it is its turn: one flight at a time writes some.
    fn write_zeros(&mut self, at: usize) {
        match self.zeroing {
            Some(other) if other != at => return self.to_zero.push_back(at),
            _ => self.zeroing = Some(at),
        }
        if let Some(Some(flight)) = self.flights.get_mut(at)
            && flight.bounce.is_none()
        {
            let zeros = self.zeros.take();
            flight.bounce = Some(zeros.unwrap_or_else(|| Aligned::new(PIECE)));
        }
        self.push(at);
    }

    fn finish(&mut self, at: usize, result: io::Result<()>) {
        let Some(mut flight) = self.flights.get_mut(at).and_then(Option::take) else {
            return;
        };
        if self.zeroing == Some(at) {
            self.zeroing = None;
            self.zeros = flight.bounce.take();
            if let Some(next) = self.to_zero.pop_front() {
                self.write_zeros(next);
            }
        }
        self.bouncing -= usize::from(flight.bounce.is_some());
        self.free.push(at);
        let Flight {
            token, mut list, ..
        } = flight;
        list.clear();
        self.lists.push(list);
        self.over.push(Completion { token, result });
    }
}

/// What becomes of a flight when a step of it has ended.
enum Landed {
    Over(io::Result<()>),
    More,
}

impl Flight {
    /// Whether it is about bytes of some memory.
    fn transfers(&self) -> bool {
        matches!(self.work, Work::Read(_) | Work::Write(_) | Work::Zeros(_))
    }

    fn len(&self) -> u64 {
        match &self.work {
            Work::Read(buffers) | Work::Write(buffers) => buffers.len(),
            Work::Zeros(len) => *len,
            Work::Allocate { .. } | Work::Sync => 0,
        }
    }

    /// Makes the list; whether the data goes by way of our own memory instead.
    fn prepare(&mut self, direct: Option<usize>) -> bool {
        let (Work::Read(buffers) | Work::Write(buffers)) = &self.work else {
            return false;
        };
        let ranges = buffers.iovecs();
        let fits = |align: usize| {
            let fits = |r: &libc::iovec| (r.iov_base as usize | r.iov_len).is_multiple_of(align);
            // A longer list is cut, and not always where the file wants it.
            ranges.len() <= IOV_MAX && ranges.iter().all(fits)
        };
        let fits = direct.is_none_or(fits);
        if fits {
            self.list.extend_from_slice(ranges);
        }
        !fits
    }

    /// The next step.
    fn entry(&mut self) -> Entry {
        let (offset, len) = (self.offset + self.done, self.len());
        if let Work::Sync = self.work {
            let flags = types::FsyncFlags::DATASYNC;
            return opcode::Fsync::new(FILE).flags(flags).build();
        }
        if let Work::Allocate { len, mode } = self.work {
            let entry = opcode::Fallocate::new(FILE, len).offset(offset);
            return entry.mode(mode).build();
        }
        let reads = matches!(self.work, Work::Read(_));
        let (base, count) = match (&mut self.bounce, &self.list[self.first..]) {
            (Some(bounce), _) => {
                let count = (len - self.done).min(PIECE as u64);
                let bytes = &mut bounce.bytes_mut()[..count as usize];
                if let Work::Write(buffers) = &self.work {
                    buffers.part(self.done, count).copy_out(bytes);
                }
                (bytes.as_mut_ptr(), count as u32)
            }
            // At most 4 GiB, which the kernel cuts where it likes.
            (None, [one]) => (
                one.iov_base.cast(),
                one.iov_len.min(u32::MAX as usize) as u32,
            ),
            (None, list) => {
                let count = list.len().min(IOV_MAX) as u32;
                let list = list.as_ptr();
                return match reads {
                    true => opcode::Readv::new(FILE, list, count).offset(offset).build(),
                    false => opcode::Writev::new(FILE, list, count)
                        .offset(offset)
                        .build(),
                };
            }
        };
        match reads {
            true => opcode::Read::new(FILE, base, count).offset(offset).build(),
            false => opcode::Write::new(FILE, base, count).offset(offset).build(),
        }
    }

    /// A step has ended with this result of its system call.
    fn land(&mut self, result: i32) -> Landed {
        let Ok(count) = u64::try_from(result) else {
            return self.failed(-result);
        };
        if !self.transfers() {
            return Landed::Over(Ok(()));
        }
        if count == 0 {
            // Reading: the file has shrunk below the capacity that was announced.
            return Landed::Over(Err(match self.work {
                Work::Read(_) => io::ErrorKind::UnexpectedEof.into(),
                _ => io::ErrorKind::WriteZero.into(),
            }));
        }
        match (&self.bounce, &self.work) {
            (Some(bounce), Work::Read(buffers)) => {
                let bytes = &bounce.bytes()[..count as usize];
                buffers.part(self.done, count).copy_in(bytes);
            }
            (Some(_), _) => {}
            (None, _) => self.first = advance(&mut self.list, self.first, count as usize),
        }
        self.done += count;
        if self.done < self.len() {
            Landed::More
        } else {
            Landed::Over(Ok(()))
        }
    }

    fn failed(&mut self, errno: i32) -> Landed {
        match (errno, &self.work) {
            (libc::EINTR | libc::EAGAIN, _) => Landed::More,
            (libc::EOPNOTSUPP | libc::ENOSYS, &Work::Allocate { len, .. }) => {
                self.work = Work::Zeros(len);
                Landed::More
            }
            _ => Landed::Over(Err(io::Error::from_raw_os_error(errno))),
        }
    }
}

impl StoreQueue for UringQueue {
    fn submit(&mut self, token: u64, op: Op) {
        let (offset, len, mode) = match op {
            Op::Read { offset, buffers } | Op::ReadOld { offset, buffers } => {
                return self.begin(token, offset, Work::Read(buffers));
            }
            Op::Write { offset, buffers } => {
                let target = &self.target;
                match last(target.file.as_fd(), target.capacity, offset, buffers.len()) {
                    Ok(()) => return self.begin(token, offset, Work::Write(buffers)),
                    result => return self.over.push(Completion { token, result }),
                }
            }
            Op::Flush | Op::FlushFirst(_) => match self.target.whole() {
                Ok(()) => return self.begin(token, 0, Work::Sync),
                result => return self.over.push(Completion { token, result }),
            },
            Op::Discard { offset, len }
            | Op::WriteZeroes {
                offset,
                len,
                unmap: true,
            } => (offset, len, libc::FALLOC_FL_PUNCH_HOLE),
            Op::WriteZeroes { offset, len, .. } => (offset, len, libc::FALLOC_FL_ZERO_RANGE),
        };
        // fallocate(2) would say yes to a range beyond the end, and no to an empty one.
        let end = offset.checked_add(len);
        let result = match end.is_some_and(|end| end <= self.target.capacity) {
            false => Err(io::ErrorKind::UnexpectedEof.into()),
            true if len == 0 => Ok(()),
            true => match self.target.whole() {
                Ok(()) => {
                    let mode = mode | libc::FALLOC_FL_KEEP_SIZE;
                    return self.begin(token, offset, Work::Allocate { len, mode });
                }
                cut => cut,
            },
        };
        self.over.push(Completion { token, result });
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        for round in 1.. {
            let waits = {
                let entries = self.ring.submission();
                entries.taskrun() || entries.cq_overflow()
            };
            if self.pushed > 0 || waits {
                self.enter();
            }
            self.collect();
            let mut landed = std::mem::take(&mut self.landed);
            for (at, result) in landed.drain(..) {
                self.land(at as usize, result);
            }
            // What came meanwhile, in `enter`, is looked at in the next round.
            landed.append(&mut self.landed);
            self.landed = landed;
            self.bounce();
            // A file in memory has done each step at once: what has many must not keep us here.
            if round >= ROUNDS && self.pushed > 0 {
                self.enter();
            }
            if self.pushed == 0 && self.landed.is_empty() {
                break;
            }
        }
        into.append(&mut self.over);
    }

    fn give_up(&mut self) {
        let waiting = std::mem::take(&mut self.to_zero);
        for at in waiting
            .into_iter()
            .chain(std::mem::take(&mut self.to_bounce))
        {
            self.finish(at, Err(given_up()));
        }
        for at in 0..self.flights.len() {
            if let Some(Some(flight)) = self.flights.get_mut(at) {
                flight.given_up = true;
                // What waits for a thread of the kernel never begins. Where it is too late for
                // that, or there is no room for the order, the step is waited for.
                let cancel = opcode::AsyncCancel::new(at as u64).build();
                // The flag means nothing here, but the ring takes no entry without it.
                let cancel = cancel.flags(Flags::FIXED_FILE);
                self.push_entry(&cancel.user_data(NOBODY));
            }
        }
    }

    fn event(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring's fd is open as long as the ring, from which the lifetime is.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for UringQueue {
    fn drop(&mut self) {
        // What the kernel still has goes on to use its memory, whatever becomes of the ring: it
        // must not be given to anybody else. The end of the process is near when that happens.
        if self.flights.iter().any(Option::is_some) {
            std::mem::forget(std::mem::take(&mut self.flights));
        }
    }
}

#[cfg(test)]
#[path = "uring_tests.rs"]
mod tests;
