// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A layer that keeps what named ranges held before their last write, so that
//! a read can be given stale contents.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::index::{Index, Place};
use super::transfer::{Way, transfer};
use super::{Buffers, Completion, Op, Store, StoreQueue, given_up};

/// Most bytes that the ranges may have together: as much memory is used at the most.
pub const KEPT_MAX: u64 = 16 << 20;

/// See the module.
pub struct KeptStore {
    inner: Arc<dyn Store>,
    kept: Arc<Kept>,
}

/// The old contents, in a file in memory with the disk's own offsets.
struct Kept {
    ranges: Vec<Range<u64>>,
    old: File,
    /// Which bytes have been kept. The "log" is the file, its places are the disk's.
    have: Mutex<Index>,
}

impl KeptStore {
    /// Keeps the ranges (bytes). Refused where they are more than [`KEPT_MAX`] bytes together.
    pub fn new(inner: Arc<dyn Store>, ranges: Vec<Range<u64>>) -> io::Result<KeptStore> {
        let bytes = ranges.iter().fold(0, |n: u64, r| {
            n.saturating_add(r.end.saturating_sub(r.start))
        });
        if bytes > KEPT_MAX {
            let why = format!(
                "stale reads: {bytes} bytes of old contents to keep, the limit is {KEPT_MAX}"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        }
        let old = File::from(memfd_create(c"wtblk-kept", MFdFlags::MFD_CLOEXEC)?);
        old.set_len(inner.capacity())?;
        let kept = Arc::new(Kept {
            ranges,
            old,
            have: Mutex::default(),
        });
        Ok(KeptStore { inner, kept })
    }
}

impl Store for KeptStore {
    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(KeptQueue {
            inner: self.inner.queue()?,
            kept: self.kept.clone(),
            jobs: HashMap::new(),
            parts: HashMap::new(),
            receipts: HashMap::new(),
            next: 0,
            reaped: Vec::new(),
        }))
    }
}

/// An operation of ours.
struct Job {
    token: u64,
    /// Operations of the inner store that it still waits for.
    left: usize,
    result: io::Result<()>,
    /// A write whose old contents are being read: what was asked for.
    then: Option<Op>,
}

/// An operation of the inner store: whose it is, and the old contents it fetches.
type PartOf = (u64, Option<(u64, Buffers)>);

struct KeptQueue {
    inner: Box<dyn StoreQueue>,
    kept: Arc<Kept>,
    jobs: HashMap<u64, Job>,
    parts: HashMap<u64, PartOf>,
    /// Receipts of writes that are over, by our tokens.
    receipts: HashMap<u64, u64>,
    next: u64,
    reaped: Vec<Completion>,
}

impl Kept {
    /// What the ranges share with this one.
    fn overlap(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let both = |r: &Range<u64>| r.start.max(range.start)..r.end.min(range.end);
        let shared = self.ranges.iter().map(both);
        shared.filter(|r| r.start < r.end).collect()
    }

    fn keep(&self, offset: u64, buffers: &Buffers) -> io::Result<()> {
        transfer(self.old.as_fd(), Way::Out, offset, buffers)?;
        let mut have = self.have.lock().unwrap_or_else(PoisonError::into_inner);
        have.put(offset..offset + buffers.len(), 0, Some(offset));
        Ok(())
    }
}

impl KeptQueue {
    fn begin(&mut self, token: u64, then: Option<Op>) -> u64 {
        let job = self.number();
        let new = Job {
            token,
            left: 0,
            result: Ok(()),
            then,
        };
        self.jobs.insert(job, new);
        job
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn part(&mut self, job: u64, op: Op, old: Option<(u64, Buffers)>) {
        let number = self.number();
        self.parts.insert(number, (job, old));
        if let Some(job) = self.jobs.get_mut(&job) {
            job.left += 1;
        }
        self.inner.submit(number, op);
    }

    /// An operation that changes a range: what the range holds is kept before.
    fn change(&mut self, token: u64, offset: u64, len: u64, op: Op) {
        let overlap = self.kept.overlap(&(offset..offset.saturating_add(len)));
        if overlap.is_empty() {
            let job = self.begin(token, None);
            return self.part(job, op, None);
        }
        let job = self.begin(token, Some(op));
        for range in overlap {
            // At most KEPT_MAX bytes.
            let room = Buffers::owned(vec![0; (range.end - range.start) as usize]);
            let read = Op::Read {
                offset: range.start,
                buffers: room.clone(),
            };
            self.part(job, read, Some((range.start, room)));
        }
    }

    fn read_old(&mut self, token: u64, offset: u64, buffers: &Buffers) {
        let job = self.begin(token, None);
        let parts = {
            let have = self.kept.have.lock();
            let have = have.unwrap_or_else(PoisonError::into_inner);
            have.parts(offset..offset + buffers.len())
        };
        let mut fresh = Vec::new();
        let mut result = Ok(());
        for part in parts {
            let len = part.range.end - part.range.start;
            let buffers = buffers.part(part.range.start - offset, len);
            match part.place {
                Place::Log(at) => {
                    result = result.and(transfer(self.kept.old.as_fd(), Way::In, at, &buffers));
                }
                // Old contents are never kept as zeros without bytes.
                Place::Elsewhere | Place::Zeros => fresh.push(Op::Read {
                    offset: part.range.start,
                    buffers,
                }),
            }
        }
        if let Some(job) = self.jobs.get_mut(&job) {
            job.result = result;
        }
        if fresh.is_empty() {
            // A completion comes at a reap, never within a submission: the inner queue gives it.
            fresh.push(Op::Read {
                offset,
                buffers: buffers.part(0, 0),
            });
        }
        for op in fresh {
            self.part(job, op, None);
        }
    }

    /// An operation of the inner store is over.
    fn over(&mut self, completion: Completion, into: &mut Vec<Completion>) {
        let Some((number, old)) = self.parts.remove(&completion.token) else {
            return;
        };
        let receipt = self.inner.receipt(completion.token);
        let kept = match (&completion.result, old) {
            (Ok(()), Some((offset, buffers))) => self.kept.keep(offset, &buffers),
            _ => Ok(()),
        };
        let Some(job) = self.jobs.get_mut(&number) else {
            return;
        };
        job.left -= 1;
        let result = std::mem::replace(&mut job.result, Ok(()));
        job.result = result.and(completion.result).and(kept);
        if job.left > 0 {
            return;
        }
        if job.result.is_ok()
            && let Some(op) = job.then.take()
        {
            return self.part(number, op, None);
        }
        if let Some(Job { token, result, .. }) = self.jobs.remove(&number) {
            // A job has one write at most, and it comes last.
            if let Some(receipt) = receipt {
                self.receipts.insert(token, receipt);
            }
            into.push(Completion { token, result });
        }
    }
}

impl StoreQueue for KeptQueue {
    fn submit(&mut self, token: u64, op: Op) {
        match op {
            Op::Write {
                offset,
                ref buffers,
            } => self.change(token, offset, buffers.len(), op),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                self.change(token, offset, len, op);
            }
            Op::ReadOld { offset, buffers } => self.read_old(token, offset, &buffers),
            op => {
                let job = self.begin(token, None);
                self.part(job, op, None);
            }
        }
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        // Until nothing comes: old contents that were read let their write begin.
        loop {
            self.inner.reap(&mut reaped);
            if reaped.is_empty() {
                break;
            }
            for completion in reaped.drain(..) {
                self.over(completion, into);
            }
        }
        self.reaped = reaped;
    }

    fn give_up(&mut self) {
        for job in self.jobs.values_mut() {
            // A write that waits for its old contents.
            if job.then.take().is_some() {
                job.result = Err(given_up());
            }
        }
        self.inner.give_up();
    }

    fn receipt(&mut self, token: u64) -> Option<u64> {
        self.receipts.remove(&token)
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.inner.event()
    }
}

#[cfg(test)]
mod tests {
    use super::super::MemoryStore;
    use super::super::buf::tests::Owned;
    use super::super::tests::{contract, wait};
    use super::*;

    fn fill(queue: &mut dyn StoreQueue, offset: u64, len: usize, byte: u8) {
        let buffers = Buffers::owned(vec![byte; len]);
        queue.submit(1, Op::Write { offset, buffers });
        assert!(wait(queue, 1)[0].result.is_ok());
    }

    fn old(queue: &mut dyn StoreQueue, offset: u64, len: usize) -> Vec<u8> {
        let memory = Owned::new(vec![9; len]);
        let buffers = memory.buffers(&[100]);
        queue.submit(2, Op::ReadOld { offset, buffers });
        assert!(wait(queue, 1)[0].result.is_ok());
        memory.bytes()
    }

    fn zeroes(offset: u64, len: u64) -> Op {
        Op::WriteZeroes {
            offset,
            len,
            unmap: false,
        }
    }

    #[test]
    fn the_contents_before_the_last_write() {
        let inner = Arc::new(MemoryStore::new(1 << 20).unwrap());
        let store = KeptStore::new(inner, vec![4096..6144, 6144..8192]).unwrap();
        contract(&store);
        let mut queue = store.queue().unwrap();
        fill(&mut *queue, 0, 16384, 1);
        fill(&mut *queue, 4096, 2048, 2);
        let seen = old(&mut *queue, 4096, 2048);
        assert_eq!(seen, vec![1; 2048]);
        fill(&mut *queue, 4096, 512, 3);
        let seen = old(&mut *queue, 3584, 1536);
        assert_eq!(seen[..512], [1; 512], "no range of ours");
        assert_eq!(seen[512..1024], [2; 512]);
        assert_eq!(seen[1024..], [1; 512]);
        // What is thrown away or zeroed has old contents, too.
        for (byte, op) in [
            (4, zeroes(4096, 1024)),
            (
                5,
                Op::Discard {
                    offset: 4096,
                    len: 1024,
                },
            ),
        ] {
            fill(&mut *queue, 4096, 1024, byte);
            queue.submit(3, op);
            assert!(wait(&mut *queue, 1)[0].result.is_ok());
            assert_eq!(old(&mut *queue, 4096, 1024), vec![byte; 1024]);
        }
    }

    #[test]
    fn too_much_to_keep_is_refused() {
        let inner = Arc::new(MemoryStore::new(1 << 20).unwrap());
        let error = KeptStore::new(inner, vec![0..KEPT_MAX, 0..512])
            .err()
            .unwrap();
        assert!(error.to_string().contains("the limit is"));
    }
}
