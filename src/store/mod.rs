// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where the bytes live, behind one asynchronous submit/complete trait. A store
//! knows offsets and buffers, nothing of virtio.

mod aligned;
pub mod buf;
mod done;
pub mod file;
pub mod holes;
mod index;
pub mod kept;
mod lock;
mod mapped;
pub mod memory;
mod null;
mod poison;
#[cfg(test)]
mod tests;
mod threads;
mod transfer;
mod uring;
pub mod volatile;
mod zeroing;

use std::io;
use std::os::fd::BorrowedFd;

pub use buf::Buffers;
pub use file::{Aio, FileStore, ImageOptions};
pub use kept::KeptStore;
pub use memory::MemoryStore;
pub use null::NullStore;
pub use poison::PoisonStore;
pub use volatile::{Cache, VolatileStore};

/// An operation on a store; offsets and lengths in bytes.
#[derive(Debug)]
pub enum Op {
    /// Fill the buffers from `offset` on.
    Read {
        /// First byte.
        offset: u64,
        /// Where to; the length is theirs.
        buffers: Buffers,
    },
    /// Store the buffers from `offset` on.
    Write {
        /// First byte.
        offset: u64,
        /// Where from; the length is theirs.
        buffers: Buffers,
    },
    /// Fill the buffers with what the range held before its last write, where a layer
    /// ([`KeptStore`]) has kept that; elsewhere as a read.
    ReadOld {
        /// First byte.
        offset: u64,
        /// Where to; the length is theirs.
        buffers: Buffers,
    },
    /// The range is not needed any more: its room is given back where that is possible. What it
    /// reads as afterwards is zeros, in every store of ours. Not durable before a flush.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeros from now on. Not durable before a flush.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Its room may be given back.
        unmap: bool,
    },
    /// Make everything that was completed durable.
    Flush,
    /// Make only so many writes durable: the first, in the order in which they were completed.
    /// A store without a volatile cache ([`VolatileStore`]) cannot count and flushes everything.
    FlushFirst(u64),
}

/// What a request takes: mostly one operation, which needs no memory for a list.
pub type Ops = smallvec::SmallVec<[Op; 1]>;

/// What became of an operation.
#[derive(Debug)]
pub struct Completion {
    /// The token given at submission.
    pub token: u64,
    /// Done in full, or the error. A short transfer is the store's to finish.
    pub result: io::Result<()>,
}

/// One submitter's way into a store. Operations run concurrently and end in any order.
pub trait StoreQueue: Send {
    /// Takes an operation. It begins now or with the next [`StoreQueue::reap`], where it completes,
    /// never within this call.
    fn submit(&mut self, token: u64, op: Op);
    /// Begins what was submitted and collects what has completed since.
    fn reap(&mut self, into: &mut Vec<Completion>);
    /// The number under which a volatile cache knows the operation whose completion was just
    /// reaped, where there is one and it was a write: for [`Cache::complete`], which is to be told
    /// when whoever asked for it hears of it. Asked for once.
    fn receipt(&mut self, _token: u64) -> Option<u64> {
        None
    }
    /// Whoever asked does not wait any longer: of what was submitted nothing more is begun. What is
    /// left of it fails (ECANCELED) at one of the next reaps; only what the host kernel has
    /// already goes on to its end. A flush of a volatile cache is no exception to be feared: it
    /// writes what was completed, in order, and is waited for.
    fn give_up(&mut self);
    /// Becomes readable when there is something to reap; `reap` makes it unreadable. Only after a
    /// reap that gave nothing is it worth waiting for.
    fn event(&self) -> BorrowedFd<'_>;
}

/// What [`StoreQueue::give_up`] leaves of an operation.
fn given_up() -> io::Error {
    io::Error::from_raw_os_error(libc::ECANCELED)
}

/// A store: shared, gives each submitter a queue of its own.
pub trait Store: Send + Sync {
    /// Capacity in bytes, a multiple of 512.
    fn capacity(&self) -> u64;
    /// A new queue.
    fn queue(&self) -> io::Result<Box<dyn StoreQueue>>;
}
