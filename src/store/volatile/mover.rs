// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From the cache to the inner store: one thread, one flush after the other,
//! one entry after the other in the order in which the data arrived.

use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::mpsc::Receiver;
use std::sync::{PoisonError, Weak};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::super::index::subtract;
use super::super::transfer::{Way, transfer};
use super::super::{Buffers, Completion, Op, StoreQueue};
use super::{Cache, Entry, Job, PAGE, Tell, What, frozen};

/// Bytes moved at once.
const CHUNK: u64 = 1 << 20;
/// Bytes zeroed at once: where they must be written, some 30 ms.
const ZEROED: u64 = 64 << 20;

/// The thread that moves entries to the inner store.
pub(super) struct Mover {
    /// The cache's end is the thread's: it must not keep it.
    pub cache: Weak<Cache>,
    pub inner: Box<dyn StoreQueue>,
}

impl Mover {
    pub fn run(mut self, todo: &Receiver<Job>) {
        while let Ok(Job { first, tell }) = todo.recv() {
            let Some(cache) = self.cache.upgrade() else {
                return;
            };
            let spill = matches!(tell, Tell::Nobody);
            let moved = self.flush(&cache, first, spill);
            if spill {
                cache.lock().spilling = false;
            }
            match tell {
                Tell::Queue(token, done) => done.push(Completion {
                    token,
                    result: moved,
                }),
                Tell::Caller(tell) => drop(tell.send(moved)),
                Tell::Nobody => {}
            }
        }
    }

    fn flush(&mut self, cache: &Cache, first: u64, spill: bool) -> io::Result<()> {
        let covered: Vec<u64> = {
            let state = cache.lock();
            let old = |e: &Entry| e.completed.is_some_and(|n| n <= first);
            let entries = state.entries.iter().filter(|(_, e)| old(e));
            entries.map(|(&number, _)| number).collect()
        };
        for number in covered {
            self.leave(cache, number)?;
            cache.lock().account.spilled += u64::from(spill);
        }
        let moving = cache.moving.lock();
        let _moving = moving.unwrap_or_else(PoisonError::into_inner);
        frozen(&cache.lock())?;
        self.run_one(Op::Flush)
    }

    /// One entry becomes durable.
    fn leave(&mut self, cache: &Cache, number: u64) -> io::Result<()> {
        let (live, start, what) = {
            let state = cache.lock();
            frozen(&state)?;
            let Some(entry) = state.entries.get(&number) else {
                return Ok(());
            };
            (entry.live.clone(), entry.range.start, entry.what)
        };
        for range in live {
            match what {
                What::Data(log) => {
                    let log = log + (range.start - start);
                    self.copy(cache, range, log)?;
                }
                What::Zeroes { unmap } => {
                    let op = |offset, len| Op::WriteZeroes { offset, len, unmap };
                    self.zero(cache, range, op)?;
                }
                What::Discard => {
                    self.zero(cache, range, |offset, len| Op::Discard { offset, len })?;
                }
            }
        }
        let mut state = cache.lock();
        let Some(entry) = state.entries.remove(&number) else {
            return Ok(());
        };
        state.index.forget(&entry.range, number);
        // What arrived earlier and is still here must not replace it later.
        for (_, older) in state.entries.range_mut(..number) {
            subtract(&mut older.live, &entry.range);
        }
        state.account.volatile = state.account.volatile.saturating_sub(1);
        if let What::Data(log) = entry.what {
            let room = (entry.range.end - entry.range.start).next_multiple_of(PAGE);
            cache.free(&mut state, log, room);
        }
        Ok(())
    }

    /// A range becomes zeros, in pieces: a cut does not wait for all of it.
    fn zero(
        &mut self,
        cache: &Cache,
        range: Range<u64>,
        op: impl Fn(u64, u64) -> Op,
    ) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(ZEROED);
            let moving = cache.moving.lock();
            let _moving = moving.unwrap_or_else(PoisonError::into_inner);
            frozen(&cache.lock())?;
            self.run_one(op(at, len))?;
            at += len;
        }
        Ok(())
    }

    fn copy(&mut self, cache: &Cache, range: Range<u64>, log: u64) -> io::Result<()> {
        let mut at = range.start;
        while at < range.end {
            let len = (range.end - at).min(CHUNK);
            let buffers = Buffers::owned(vec![0; len as usize]);
            let from = log + (at - range.start);
            let moving = cache.moving.lock();
            let _moving = moving.unwrap_or_else(PoisonError::into_inner);
            frozen(&cache.lock())?;
            transfer(cache.log.as_fd(), Way::In, from, &buffers)?;
            self.run_one(Op::Write {
                offset: at,
                buffers,
            })?;
            at += len;
        }
        Ok(())
    }

    /// One operation of the inner store, from begin to end.
    fn run_one(&mut self, op: Op) -> io::Result<()> {
        self.inner.submit(0, op);
        let mut done = Vec::new();
        loop {
            self.inner.reap(&mut done);
            if let Some(completion) = done.pop() {
                return completion.result;
            }
            let mut fds = [PollFd::new(self.inner.event(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, PollTimeout::NONE);
        }
    }
}
