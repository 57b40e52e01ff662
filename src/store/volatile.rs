// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A volatile write cache over any store. Writes stay in the cache; a flush
//! moves those that were completed before it to the inner store, which so holds
//! exactly what is durable. A power cut freezes it: what is in the cache is lost.
//!
//! Each write is an entry of a log of its own (a file in memory): a flush that
//! covers an older write of a sector and not the newer one moves the older one.
//! One thread does the moving, one entry after the other in the order in which
//! the data arrived.

mod mover;

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, SendError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::done::Done;
use super::index::{Index, Part, Place};
use super::transfer::{Way, fill_zeros, transfer};
use super::{Buffers, Completion, Op, Store, StoreQueue};
use mover::Mover;

/// From so many bytes on, completed writes leave the cache without a flush, as they do in a disk.
const SPILL: u64 = 256 << 20;
/// A write that would make the cache larger fails.
const FULL: u64 = 2 * SPILL;
/// The same for writes that take no room, being zeros: half of it spills, all of it fails.
const ENTRIES: usize = 1 << 20;
/// Entries begin on pages of the log: each gives all its memory back.
const PAGE: u64 = 4096;

/// See the module.
pub struct VolatileStore {
    inner: Arc<dyn Store>,
    cache: Arc<Cache>,
}

/// The cache's account, and its end.
pub struct Cache {
    log: File,
    state: Mutex<State>,
    /// Held over each write to the inner store: a freeze waits for the one under way.
    moving: Mutex<()>,
    jobs: Mutex<Jobs>,
}

/// What is in the cache and what is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Writes completed so far.
    pub completed: u64,
    /// Of these, not durable.
    pub volatile: u64,
    /// Made durable because the cache was full, not by a flush.
    pub spilled: u64,
    /// Memory in use, bytes.
    pub bytes: u64,
    /// The power was cut.
    pub frozen: bool,
}

#[derive(Default)]
struct State {
    /// By arrival.
    entries: BTreeMap<u64, Entry>,
    index: Index,
    arrived: u64,
    /// End of the log.
    end: u64,
    account: Account,
    spilling: bool,
}

/// A write that is not durable.
struct Entry {
    range: Range<u64>,
    what: What,
    /// Its place in the order of completions; `None` while it is in flight.
    completed: Option<u64>,
    /// What of it no later write, already durable, has replaced.
    live: Vec<Range<u64>>,
}

/// What an entry does to its range.
#[derive(Clone, Copy)]
enum What {
    /// Bytes of the log, from this place on.
    Data(u64),
    /// Zeros; whether the room may be given back.
    Zeroes { unmap: bool },
    /// Zeros, and nobody needs them.
    Discard,
}

impl What {
    /// Where in the log it begins.
    fn log(self) -> Option<u64> {
        match self {
            What::Data(at) => Some(at),
            What::Zeroes { .. } | What::Discard => None,
        }
    }
}

/// A flush: the first so many writes, and whom to tell.
struct Job {
    first: u64,
    tell: Tell,
}

/// The way to the thread that moves entries. It is made with its first job, by whoever has it: so
/// it has the sandbox of the worker that it serves, which is entered after a store is opened.
struct Jobs {
    to: Sender<Job>,
    idle: Option<(Mover, Receiver<Job>)>,
}

impl Job {
    /// There is no thread for it.
    fn fail(self) {
        let error = || io::Error::from_raw_os_error(libc::EAGAIN);
        match self.tell {
            Tell::Queue(token, done) => done.push(Completion {
                token,
                result: Err(error()),
            }),
            Tell::Caller(tell) => drop(tell.send(Err(error()))),
            Tell::Nobody => {}
        }
    }
}

enum Tell {
    Queue(u64, Arc<Done>),
    Caller(Sender<io::Result<()>>),
    Nobody,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn post(&self, job: Job) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((mover, todo)) = jobs.idle.take() {
            let thread = thread::Builder::new().name("store-cache".into());
            if let Err(error) = thread.spawn(move || mover.run(&todo)) {
                tracing::error!(%error, "nothing leaves the volatile cache: it has no thread");
            }
        }
        // The thread ends with the cache, not before.
        if let Err(SendError(job)) = jobs.to.send(job) {
            job.fail();
        }
    }

    /// Writes completed so far: what a flush submitted now covers.
    pub fn completed(&self) -> u64 {
        self.lock().account.completed
    }

    /// The account.
    pub fn account(&self) -> Account {
        self.lock().account
    }

    /// The power cut: nothing is written to the inner store any more, what is in the cache is
    /// lost. Waits for no more than the one write that is under way.
    pub fn freeze(&self) {
        self.lock().account.frozen = true;
        let moving = self.moving.lock();
        drop(moving.unwrap_or_else(PoisonError::into_inner));
        let mut state = self.lock();
        state.entries.clear();
        state.index = Index::default();
    }

    /// An orderly end: everything completed becomes durable. Waits until `limit`.
    pub fn write_out(&self, limit: Duration) -> io::Result<()> {
        if self.account().frozen {
            return Ok(());
        }
        let (tell, answer) = channel();
        let first = self.completed();
        let tell = Tell::Caller(tell);
        self.post(Job { first, tell });
        let late = |_| Err(io::ErrorKind::TimedOut.into());
        answer.recv_timeout(limit).unwrap_or_else(late)
    }

    /// Takes a write in; its number.
    fn put(&self, offset: u64, buffers: &Buffers) -> io::Result<u64> {
        let len = buffers.len();
        let room = len.next_multiple_of(PAGE);
        let at = {
            let mut state = self.lock();
            frozen(&state)?;
            if state.account.bytes.saturating_add(room) > FULL {
                let why = format!("the volatile cache is full ({FULL} bytes)");
                return Err(io::Error::new(io::ErrorKind::StorageFull, why));
            }
            let at = state.end;
            state.end += room;
            state.account.bytes += room;
            at
        };
        let copied = transfer(self.log.as_fd(), Way::Out, at, buffers);
        let mut state = self.lock();
        if let Err(error) = copied.and_then(|()| frozen(&state)) {
            self.free(&mut state, at, room);
            return Err(error);
        }
        // Numbered only now: whoever is numbered later has also copied later.
        Ok(state.enter(offset..offset + len, What::Data(at)))
    }

    /// Takes in that a range becomes zeros; its number.
    fn put_zeros(&self, range: Range<u64>, what: What) -> io::Result<u64> {
        let mut state = self.lock();
        frozen(&state)?;
        if state.entries.len() >= ENTRIES {
            let why = format!("the volatile cache is full ({ENTRIES} writes)");
            return Err(io::Error::new(io::ErrorKind::StorageFull, why));
        }
        Ok(state.enter(range, what))
    }

    /// The guest is about to hear of these writes ([`StoreQueue::receipt`]): from now on a flush
    /// covers them. `number` numbers the event, and its value is given back: no flush that is
    /// numbered by [`Cache::at`] comes between it and the account.
    pub fn complete(&self, receipts: &[u64], number: impl FnOnce() -> u64) -> u64 {
        let mut state = self.lock();
        let number = number();
        for receipt in receipts {
            state.account.completed += 1;
            state.account.volatile += 1;
            let completed = state.account.completed;
            if let Some(entry) = state.entries.get_mut(receipt) {
                entry.completed = Some(completed);
            }
        }
        let completed = state.account.completed;
        let full = state.account.bytes > SPILL || state.entries.len() > ENTRIES / 2;
        if full && !state.spilling {
            state.spilling = true;
            drop(state);
            let tell = Tell::Nobody;
            self.post(Job {
                first: completed,
                tell,
            });
        }
        number
    }

    /// Numbers an event by `number`; its value, and the writes completed at just this moment:
    /// what a flush submitted by it covers.
    pub fn at(&self, number: impl FnOnce() -> u64) -> (u64, u64) {
        let state = self.lock();
        (number(), state.account.completed)
    }

    fn free(&self, state: &mut State, at: u64, room: u64) {
        state.account.bytes -= room;
        let mode = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        // Only memory is at stake.
        let _ = fallocate(&self.log, mode, at as libc::off_t, room as libc::off_t);
    }

    /// Reads what the cache has; the rest of the range comes back.
    fn read(&self, offset: u64, buffers: &Buffers) -> io::Result<Vec<Part>> {
        let state = self.lock();
        frozen(&state)?;
        let mut rest = Vec::new();
        for part in state.index.parts(offset..offset + buffers.len()) {
            let len = part.range.end - part.range.start;
            let to = buffers.part(part.range.start - offset, len);
            match part.place {
                Place::Elsewhere => rest.push(part),
                // Under the lock: the entry must not leave meanwhile.
                Place::Log(at) => transfer(self.log.as_fd(), Way::In, at, &to)?,
                Place::Zeros => fill_zeros(&to)?,
            }
        }
        Ok(rest)
    }
}

impl State {
    /// The next entry; its number.
    fn enter(&mut self, range: Range<u64>, what: What) -> u64 {
        self.arrived += 1;
        let number = self.arrived;
        self.index.put(range.clone(), number, what.log());
        let entry = Entry {
            live: vec![range.clone()],
            range,
            what,
            completed: None,
        };
        self.entries.insert(number, entry);
        number
    }
}

fn frozen(state: &State) -> io::Result<()> {
    if state.account.frozen {
        return Err(io::Error::other("the power is cut"));
    }
    Ok(())
}

impl VolatileStore {
    /// A cache, empty, over a store that holds what is durable.
    pub fn new(inner: Arc<dyn Store>) -> io::Result<VolatileStore> {
        let (to, todo) = channel();
        let log = File::from(memfd_create(c"wtblk-cache", MFdFlags::MFD_CLOEXEC)?);
        let queue = inner.queue()?;
        let cache = Arc::new_cyclic(|cache| {
            let mover = Mover {
                cache: cache.clone(),
                inner: queue,
            };
            let idle = Some((mover, todo));
            Cache {
                log,
                state: Mutex::default(),
                moving: Mutex::default(),
                jobs: Mutex::new(Jobs { to, idle }),
            }
        });
        Ok(VolatileStore { inner, cache })
    }

    /// The account of this cache, and the way to freeze it.
    pub fn cache(&self) -> Arc<Cache> {
        self.cache.clone()
    }
}

impl Store for VolatileStore {
    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        let inner = self.inner.queue()?;
        let done = Arc::new(Done::new()?);
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        for event in [inner.event(), done.event()] {
            epoll.add(event, EpollEvent::new(EpollFlags::EPOLLIN, 0))?;
        }
        Ok(Box::new(VolatileQueue {
            cache: self.cache.clone(),
            inner,
            capacity: self.capacity(),
            done,
            epoll,
            writes: HashMap::new(),
            reads: HashMap::new(),
            parts: HashMap::new(),
            next: 0,
            reaped: Vec::new(),
        }))
    }
}

struct VolatileQueue {
    cache: Arc<Cache>,
    inner: Box<dyn StoreQueue>,
    capacity: u64,
    /// What needs nothing of the inner queue.
    done: Arc<Done>,
    /// Readable when one of the two is.
    epoll: Epoll,
    /// Writes in the cache whose receipt was not asked for yet: token, number.
    writes: HashMap<u64, u64>,
    /// Reads of the inner store: parts still to come, and the result so far.
    reads: HashMap<u64, (usize, io::Result<()>)>,
    /// Part of a read: the read's token.
    parts: HashMap<u64, u64>,
    next: u64,
    reaped: Vec<Completion>,
}

impl VolatileQueue {
    fn read(&mut self, token: u64, offset: u64, buffers: &Buffers) {
        let rest = match self.cache.read(offset, buffers) {
            Ok(rest) if !rest.is_empty() => rest,
            over => {
                let result = over.map(drop);
                return self.done.push(Completion { token, result });
            }
        };
        self.reads.insert(token, (rest.len(), Ok(())));
        for Part { range, .. } in rest {
            self.next += 1;
            self.parts.insert(self.next, token);
            let buffers = buffers.part(range.start - offset, range.end - range.start);
            let offset = range.start;
            self.inner.submit(self.next, Op::Read { offset, buffers });
        }
    }

    fn write(
        &mut self,
        token: u64,
        offset: u64,
        len: u64,
        put: impl FnOnce(&Cache) -> io::Result<u64>,
    ) {
        // The log has no end, the disk has.
        let end = offset.checked_add(len);
        let result = match end.is_some_and(|end| end <= self.capacity) {
            true => put(&self.cache),
            false => Err(io::ErrorKind::WriteZero.into()),
        };
        let result = result.map(|number| {
            self.writes.insert(token, number);
        });
        self.done.push(Completion { token, result });
    }
}

impl VolatileQueue {
    fn zero(&mut self, token: u64, offset: u64, len: u64, what: What) {
        let put = |cache: &Cache| cache.put_zeros(offset..offset + len, what);
        self.write(token, offset, len, put);
    }
}

impl StoreQueue for VolatileQueue {
    fn submit(&mut self, token: u64, op: Op) {
        match op {
            Op::Read { offset, buffers } | Op::ReadOld { offset, buffers } => {
                self.read(token, offset, &buffers);
            }
            Op::Write { offset, buffers } => {
                let put = |cache: &Cache| cache.put(offset, &buffers);
                self.write(token, offset, buffers.len(), put);
            }
            Op::Discard { offset, len } => self.zero(token, offset, len, What::Discard),
            Op::WriteZeroes { offset, len, unmap } => {
                self.zero(token, offset, len, What::Zeroes { unmap });
            }
            Op::Flush | Op::FlushFirst(_) => {
                // Never more than what is completed now.
                let now = self.cache.completed();
                let first = match op {
                    Op::FlushFirst(first) => first.min(now),
                    _ => now,
                };
                let tell = Tell::Queue(token, self.done.clone());
                self.cache.post(Job { first, tell });
            }
        }
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.done.reap(&mut reaped);
        into.append(&mut reaped);
        self.inner.reap(&mut reaped);
        for Completion { token, result } in reaped.drain(..) {
            let Some(token) = self.parts.remove(&token) else {
                continue;
            };
            let Some((left, so_far)) = self.reads.get_mut(&token) else {
                continue;
            };
            *left -= 1;
            if result.is_err() {
                *so_far = result;
            }
            if *left == 0
                && let Some((_, result)) = self.reads.remove(&token)
            {
                into.push(Completion { token, result });
            }
        }
        self.reaped = reaped;
    }

    fn give_up(&mut self) {
        self.inner.give_up();
    }

    fn receipt(&mut self, token: u64) -> Option<u64> {
        self.writes.remove(&token)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.epoll.0.as_fd()
    }
}

#[cfg(test)]
#[path = "volatile_tests.rs"]
mod tests;
