// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file served by a few threads with `preadv` and `pwritev` straight on the
//! submitter's buffers: for hosts that forbid io_uring.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::done::Done;
use super::transfer::{Way, last, transfer, whole};
use super::zeroing::Zeroing;
use super::{Completion, Op, StoreQueue, given_up};

/// Enough to keep a disk busy, few enough not to crowd a small machine.
const THREADS: usize = 4;

struct Job {
    token: u64,
    op: Op,
    done: Arc<Done>,
    given_up: Arc<AtomicBool>,
}

impl Job {
    /// Ends before the last piece where it is given up.
    fn zero(&self, pool: &Pool, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        whole(pool.file.as_fd(), pool.capacity)?;
        let mut zeroing = Zeroing::new(pool.capacity, offset, len, unmap)?;
        while !zeroing.step(pool.file.as_fd())? {
            if self.given_up.load(Ordering::Acquire) {
                return Err(given_up());
            }
        }
        Ok(())
    }
}

struct Jobs {
    waiting: VecDeque<Job>,
    ended: bool,
    /// How many threads there are: they are made with the first job, by whoever has it. So they have
    /// the sandbox of the worker that they serve, which is entered after a store is opened.
    threads: usize,
}

struct Pool {
    file: File,
    capacity: u64,
    jobs: Mutex<Jobs>,
    more: Condvar,
}

/// The threads; they end with it.
pub(super) struct Threads(Arc<Pool>);

impl Threads {
    pub(super) fn new(file: File, capacity: u64) -> Threads {
        Threads(Arc::new(Pool {
            file,
            capacity,
            jobs: Mutex::new(Jobs {
                waiting: VecDeque::new(),
                ended: false,
                threads: 0,
            }),
            more: Condvar::new(),
        }))
    }

    pub(super) fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(FileQueue {
            pool: self.0.clone(),
            done: Arc::new(Done::new()?),
            given_up: Arc::default(),
        }))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.more.notify_all();
        // The threads end by themselves; one that is stuck in the host kernel is nothing to wait for.
    }
}

impl Pool {
    fn lock(&self) -> std::sync::MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the threads that are missing; fails only where there is none.
fn start(pool: &Arc<Pool>, jobs: &mut Jobs) -> io::Result<()> {
    while jobs.threads < THREADS {
        let (name, pool) = (format!("store-{}", jobs.threads), pool.clone());
        match thread::Builder::new().name(name).spawn(move || work(&pool)) {
            Ok(_) => jobs.threads += 1,
            Err(error) if jobs.threads == 0 => return Err(error),
            // The others do the work meanwhile.
            Err(_) => break,
        }
    }
    Ok(())
}

fn work(pool: &Pool) {
    loop {
        let mut jobs = pool.lock();
        let job = loop {
            if let Some(job) = jobs.waiting.pop_front() {
                break job;
            }
            if jobs.ended {
                return;
            }
            jobs = pool.more.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        };
        drop(jobs);
        let file = pool.file.as_fd();
        let result = match &job.op {
            Op::Read { offset, buffers } | Op::ReadOld { offset, buffers } => {
                transfer(file, Way::In, *offset, buffers)
            }
            Op::Write { offset, buffers } => last(file, pool.capacity, *offset, buffers.len())
                .and_then(|()| transfer(file, Way::Out, *offset, buffers)),
            Op::Discard { offset, len } => job.zero(pool, *offset, *len, true),
            Op::WriteZeroes { offset, len, unmap } => job.zero(pool, *offset, *len, *unmap),
            Op::Flush | Op::FlushFirst(_) => {
                whole(file, pool.capacity).and_then(|()| pool.file.sync_data())
            }
        };
        // The buffers go before the completion is told: after it nobody holds the guest's memory.
        let Job {
            token, op, done, ..
        } = job;
        drop(op);
        done.push(Completion { token, result });
    }
}

struct FileQueue {
    pool: Arc<Pool>,
    done: Arc<Done>,
    /// Set for what was submitted until then, and replaced.
    given_up: Arc<AtomicBool>,
}

impl StoreQueue for FileQueue {
    fn submit(&mut self, token: u64, op: Op) {
        let job = Job {
            token,
            op,
            done: self.done.clone(),
            given_up: self.given_up.clone(),
        };
        let mut jobs = self.pool.lock();
        if let Err(error) = start(&self.pool, &mut jobs) {
            drop(jobs);
            let result = Err(error);
            return self.done.push(Completion { token, result });
        }
        jobs.waiting.push_back(job);
        drop(jobs);
        self.pool.more.notify_one();
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        self.done.reap(into);
    }

    fn give_up(&mut self) {
        std::mem::take(&mut self.given_up).store(true, Ordering::Release);
        let mut jobs = self.pool.lock();
        let (ours, others): (VecDeque<_>, _) = std::mem::take(&mut jobs.waiting)
            .into_iter()
            .partition(|job| Arc::ptr_eq(&job.done, &self.done));
        jobs.waiting = others;
        drop(jobs);
        for Job { token, op, .. } in ours {
            drop(op);
            let result = Err(given_up());
            self.done.push(Completion { token, result });
        }
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.done.event()
    }
}
