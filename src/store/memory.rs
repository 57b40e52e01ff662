// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk in memory: a memfd, so that it is sparse. What a page of it holds is
//! copied from and to the mapping; new pages come by system calls, so that a
//! machine without memory left is an error of one request and no SIGBUS.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};

use super::done::AtOnce;
use super::mapped::Mapped;
use super::transfer::Way;
use super::zeroing::Zeroes;
use super::{Completion, Op, Store, StoreQueue};

/// See the module.
pub struct MemoryStore {
    disk: Arc<Mapped>,
    capacity: u64,
}

impl MemoryStore {
    /// A disk of `capacity` bytes (a multiple of 512), all zeros.
    pub fn new(capacity: u64) -> io::Result<MemoryStore> {
        let file = File::from(memfd_create(c"wtblk-memory", MFdFlags::MFD_CLOEXEC)?);
        file.set_len(capacity)?;
        Ok(MemoryStore {
            disk: Arc::new(Mapped::new(file, capacity, false)),
            capacity,
        })
    }
}

impl Store for MemoryStore {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(MemoryQueue {
            disk: self.disk.clone(),
            keeps: false,
            done: AtOnce::new()?,
            zeroes: Zeroes::default(),
        }))
    }
}

/// Does the work at submission (a copy never waits), tells it at the next reap. Zeroing goes on
/// piece by piece from reap to reap.
pub(super) struct MemoryQueue {
    disk: Arc<Mapped>,
    /// It outlives us: room may be kept for later, and a flush means something.
    keeps: bool,
    done: AtOnce,
    zeroes: Zeroes,
}

impl MemoryQueue {
    fn zero(&mut self, token: u64, offset: u64, len: u64, unmap: bool) {
        let zeroing = self.disk.zeroing(offset, len, unmap);
        self.zeroes.submit(token, zeroing, &mut self.done);
    }

    /// For an image that lies in memory.
    pub(super) fn of_image(disk: Arc<Mapped>) -> io::Result<MemoryQueue> {
        Ok(MemoryQueue {
            disk,
            keeps: true,
            done: AtOnce::new()?,
            zeroes: Zeroes::default(),
        })
    }
}

impl StoreQueue for MemoryQueue {
    fn submit(&mut self, token: u64, op: Op) {
        let disk = &self.disk;
        let result = match &op {
            Op::Read { offset, buffers } | Op::ReadOld { offset, buffers } => {
                disk.transfer(Way::In, *offset, buffers)
            }
            Op::Write { offset, buffers } => disk.transfer(Way::Out, *offset, buffers),
            Op::Discard { offset, len } => return self.zero(token, *offset, *len, true),
            // A disk of our own has no room to keep for later.
            Op::WriteZeroes { offset, len, unmap } => {
                return self.zero(token, *offset, *len, *unmap || !self.keeps);
            }
            Op::Flush | Op::FlushFirst(_) if self.keeps => disk.sync_data(),
            Op::Flush | Op::FlushFirst(_) => Ok(()),
        };
        drop(op);
        self.done.push(Completion { token, result });
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        let disk = &self.disk;
        self.zeroes
            .step(|zeroing| disk.zero(zeroing), &mut self.done);
        self.done.reap(into);
    }

    fn give_up(&mut self) {
        self.zeroes.give_up(&mut self.done);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.done.event()
    }
}
