// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A layer under which sectors that were never written read as poison
//! (`wtblk_shared::poison`) and not as zeros, so that a stale read can be told.
//! Nothing of it is stored: a bit for each sector says whether it is known, and
//! a sparse image stays sparse.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, PoisonError, RwLock};

use nix::sys::memfd::{MFdFlags, memfd_create};
use wtblk_shared::disk::SECTOR;
use wtblk_shared::poison;

use super::transfer::{Way, transfer};
use super::{Buffers, Completion, Op, Store, StoreQueue};

/// See the module.
pub struct PoisonStore {
    inner: Arc<dyn Store>,
    known: Arc<Known>,
}

/// A bit for each sector: whether it was written or zeroed. Room for what is all unknown is
/// taken by nobody (the memory is the kernel's zero page).
struct Known(RwLock<Vec<u64>>);

impl Known {
    /// The parts of these sectors that are unknown.
    fn unknown(&self, sectors: Range<u64>) -> Vec<Range<u64>> {
        let bits = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<Range<u64>> = Vec::new();
        let mut at = sectors.start;
        while at < sectors.end {
            let word = bits.get((at / 64) as usize).copied().unwrap_or(u64::MAX);
            let end = (at / 64 + 1) * 64;
            if word == u64::MAX {
                at = end;
                continue;
            }
            // A whole word of unknown sectors, or one of them.
            let next = match word {
                0 => end.min(sectors.end),
                _ => at + 1,
            };
            if word >> (at % 64) & 1 == 0 {
                match found.last_mut() {
                    Some(last) if last.end == at => last.end = next,
                    _ => found.push(at..next),
                }
            }
            at = next;
        }
        found
    }

    fn set(&self, sectors: Range<u64>) {
        if self.unknown(sectors.clone()).is_empty() {
            return;
        }
        let mut bits = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let (first, last) = (sectors.start / 64, sectors.end.div_ceil(64));
        for index in first..last {
            let from = sectors.start.saturating_sub(index * 64).min(64);
            let to = (sectors.end - index * 64).min(64);
            let below = |n: u64| 1u64.checked_shl(n as u32).map_or(u64::MAX, |bit| bit - 1);
            if let Some(word) = bits.get_mut(index as usize) {
                *word |= below(to) & !below(from);
            }
        }
    }
}

/// Whole sectors of a range of bytes: those that it touches.
fn touched(range: &Range<u64>) -> Range<u64> {
    range.start / SECTOR..range.end.div_ceil(SECTOR)
}

impl PoisonStore {
    /// Over a store of which these bytes were never written.
    pub fn new(inner: Arc<dyn Store>, never_written: &[Range<u64>]) -> PoisonStore {
        let sectors = inner.capacity() / SECTOR;
        // Zeroed memory of the allocator: only what is set below takes room.
        let bits = vec![0u64; sectors.div_ceil(64) as usize];
        let known = Known(RwLock::new(bits));
        let mut at = 0;
        for hole in never_written {
            let end = hole.start.div_ceil(SECTOR).min(sectors);
            known.set(at.min(end)..end);
            at = at.max(hole.end / SECTOR);
        }
        known.set(at.min(sectors)..sectors);
        PoisonStore {
            inner,
            known: Arc::new(known),
        }
    }
}

impl Store for PoisonStore {
    fn capacity(&self) -> u64 {
        self.inner.capacity()
    }

    fn queue(&self) -> io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(PoisonQueue {
            inner: self.inner.queue()?,
            known: self.known.clone(),
            scratch: File::from(memfd_create(c"wtblk-poison", MFdFlags::MFD_CLOEXEC)?),
            after: HashMap::new(),
            reaped: Vec::new(),
        }))
    }
}

/// What is to be done when the inner store has done its part.
enum After {
    /// Sectors that were unknown when the read came, the disk's byte at which it begins, its
    /// buffers.
    Show(Vec<Range<u64>>, u64, Buffers),
    /// These are known from now on.
    Know(Range<u64>),
}

struct PoisonQueue {
    inner: Box<dyn StoreQueue>,
    known: Arc<Known>,
    /// Poison on its way into buffers, which are never touched by us.
    scratch: File,
    /// By token. A request in flight has one that no other has.
    after: HashMap<u64, After>,
    reaped: Vec<Completion>,
}

impl PoisonQueue {
    fn show(&self, unknown: &[Range<u64>], offset: u64, buffers: &Buffers) -> io::Result<()> {
        const MOST: u64 = 2048;
        let end = offset + buffers.len();
        for range in unknown {
            let mut sector = range.start;
            while sector < range.end {
                let count = (range.end - sector).min(MOST);
                let mut bytes = vec![0; (count * SECTOR) as usize];
                poison::fill(sector, &mut bytes);
                let bytes = Buffers::owned(bytes);
                transfer(self.scratch.as_fd(), Way::Out, 0, &bytes)?;
                // A read may begin and end within a sector.
                let start = sector * SECTOR;
                let from = start.max(offset);
                let to = (start + bytes.len()).min(end);
                let into = buffers.part(from - offset, to.saturating_sub(from));
                transfer(self.scratch.as_fd(), Way::In, from - start, &into)?;
                sector += count;
            }
        }
        Ok(())
    }
}

impl StoreQueue for PoisonQueue {
    fn submit(&mut self, token: u64, op: Op) {
        // Zeros that must stay zeros keep their room: whoever looks at the image later takes a
        // hole for what was never written.
        let op = match op {
            Op::WriteZeroes { offset, len, .. } => Op::WriteZeroes {
                offset,
                len,
                unmap: false,
            },
            op => op,
        };
        let range = |offset: u64, len: u64| offset..offset.saturating_add(len);
        let after = match &op {
            Op::Read { offset, buffers } | Op::ReadOld { offset, buffers } => {
                // As it is now: what is written while this is read may show or not.
                let sectors = touched(&range(*offset, buffers.len()));
                let unknown = self.known.unknown(sectors);
                let show = || After::Show(unknown.clone(), *offset, buffers.clone());
                (!unknown.is_empty()).then(show)
            }
            Op::Write { offset, buffers } => Some(After::Know(range(*offset, buffers.len()))),
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                Some(After::Know(range(*offset, *len)))
            }
            Op::Flush | Op::FlushFirst(_) => None,
        };
        if let Some(after) = after {
            self.after.insert(token, after);
        }
        self.inner.submit(token, op);
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.inner.reap(&mut reaped);
        for mut completion in reaped.drain(..) {
            let after = self.after.remove(&completion.token);
            match (&completion.result, after) {
                (Ok(()), Some(After::Show(unknown, offset, buffers))) => {
                    completion.result = self.show(&unknown, offset, &buffers);
                }
                (Ok(()), Some(After::Know(range))) => self.known.set(touched(&range)),
                _ => {}
            }
            into.push(completion);
        }
        self.reaped = reaped;
    }

    fn give_up(&mut self) {
        self.inner.give_up();
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
    use proptest::prelude::*;

    const DISK: u64 = 256;

    fn layer(never_written: &[Range<u64>]) -> PoisonStore {
        let inner = Arc::new(MemoryStore::new(DISK * SECTOR).unwrap());
        PoisonStore::new(inner, never_written)
    }

    fn read(queue: &mut dyn StoreQueue, sector: u64, sectors: u64) -> Vec<u8> {
        let memory = Owned::new(vec![9; (sectors * SECTOR) as usize]);
        let op = Op::Read {
            offset: sector * SECTOR,
            buffers: memory.buffers(&[100, 1000]),
        };
        queue.submit(1, op);
        assert!(wait(queue, 1)[0].result.is_ok());
        memory.bytes()
    }

    #[test]
    fn it_is_a_store_like_any_other() {
        let whole = 0..(1 << 20);
        let inner = Arc::new(MemoryStore::new(1 << 20).unwrap());
        contract(&PoisonStore::new(inner, &[whole]));
    }

    #[test]
    fn holes_are_poison_and_the_rest_is_not() {
        let store = layer(&[4096..8192, 100 * 512 + 1..110 * 512 + 511]);
        let mut queue = store.queue().unwrap();
        let bytes = read(&mut *queue, 0, DISK);
        for sector in 0..DISK {
            let here = &bytes[(sector * SECTOR) as usize..][..512];
            let mut want = [0; 512];
            if (8..16).contains(&sector) || (101..110).contains(&sector) {
                poison::fill(sector, &mut want);
            }
            assert_eq!(here, want, "sector {sector}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        /// Against an array of what each sector holds.
        #[test]
        fn a_sector_is_poison_until_it_is_written(
            steps in prop::collection::vec((0..4u8, 0..DISK, 1..150u64), 1..40),
        ) {
            let store = layer(std::slice::from_ref(&(0..DISK * SECTOR)));
            let mut queues = [store.queue().unwrap(), store.queue().unwrap()];
            let mut holds: Vec<Option<u8>> = vec![None; DISK as usize];
            for (n, (what, sector, sectors)) in steps.into_iter().enumerate() {
                let sectors = sectors.min(DISK - sector);
                let (offset, len) = (sector * SECTOR, sectors * SECTOR);
                let queue = &mut *queues[n % 2];
                let byte = n as u8 + 1;
                let (op, byte) = match what {
                    0 => (Op::Write { offset, buffers: Buffers::owned(vec![byte; len as usize]) }, byte),
                    1 => (Op::Discard { offset, len }, 0),
                    2 => (Op::WriteZeroes { offset, len, unmap: true }, 0),
                    _ => {
                        let bytes = read(queue, sector, sectors);
                        for (here, at) in bytes.chunks(512).zip(sector..) {
                            let mut want = [0; 512];
                            match holds[at as usize] {
                                Some(byte) => want.fill(byte),
                                None => poison::fill(at, &mut want),
                            }
                            prop_assert_eq!(here, want);
                        }
                        continue;
                    }
                };
                queue.submit(7, op);
                prop_assert!(wait(queue, 1)[0].result.is_ok());
                holds[sector as usize..(sector + sectors) as usize].fill(Some(byte));
            }
        }
    }
}
