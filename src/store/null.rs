// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk that is not there: everything completes, nothing is touched. For
//! benchmarks of what stands before a store.

use std::io;
use std::os::fd::BorrowedFd;

use super::done::AtOnce;
use super::{Completion, Op, Store, StoreQueue};

/// See the module.
pub struct NullStore {
    capacity: u64,
}

impl NullStore {
    /// A disk of `capacity` bytes (a multiple of 512).
    pub fn new(capacity: u64) -> io::Result<NullStore> {
        // The largest offset there is.
        if i64::try_from(capacity).is_err() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(NullStore { capacity })
    }
}

impl Store for NullStore {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(NullQueue {
            capacity: self.capacity,
            done: AtOnce::new()?,
        }))
    }
}

struct NullQueue {
    capacity: u64,
    done: AtOnce,
}

impl StoreQueue for NullQueue {
    fn submit(&mut self, token: u64, op: Op) {
        let (offset, len) = match &op {
            Op::Read { offset, buffers }
            | Op::ReadOld { offset, buffers }
            | Op::Write { offset, buffers } => (*offset, buffers.len()),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => (*offset, *len),
            Op::Flush | Op::FlushFirst(_) => (0, 0),
        };
        let end = offset.checked_add(len);
        let result = match end.is_some_and(|end| end <= self.capacity) {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        };
        drop(op);
        self.done.push(Completion { token, result });
    }

    fn give_up(&mut self) {}

    fn reap(&mut self, into: &mut Vec<Completion>) {
        self.done.reap(into);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.done.event()
    }
}

#[cfg(test)]
mod tests {
    use super::super::buf::tests::Owned;
    use super::super::tests::wait;
    use super::*;

    #[test]
    fn everything_completes_and_nothing_is_touched() {
        let store = NullStore::new(1 << 40).unwrap();
        let mut queue = store.queue().unwrap();
        let memory = Owned::new(vec![7; 4096]);
        let read = |offset| Op::Read {
            offset,
            buffers: memory.buffers(&[]),
        };
        queue.submit(1, read((1 << 40) - 4096));
        queue.submit(2, read((1 << 40) - 512));
        queue.submit(3, Op::Flush);
        let done: Vec<bool> = wait(&mut *queue, 3)
            .iter()
            .map(|c| c.result.is_ok())
            .collect();
        assert_eq!(done, [true, false, true]);
        assert_eq!(memory.bytes(), [7; 4096]);
        assert!(NullStore::new(u64::MAX).is_err());
    }
}
