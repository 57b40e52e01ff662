// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in flight, in memory that the front end keeps: so a device that was
//! killed finds its requests again (vhost-user specification, "Inflight I/O
//! tracking"; the layout is that of its split virtqueues).
//!
//! A request is noted when it is taken, before anything is done about it, and
//! struck off after its used entry is published. What is noted is therefore all
//! that the guest waits for, and perhaps the last batch that it has seen
//! already: the used index of the ring, compared with the one noted here, tells that.
//!
//! The front end can write there: what is read is hostile, and a head or a count that cannot be
//! is an error. The file may shrink (`sigbus`).

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::ring::MAX_SIZE;
use crate::sigbus::Watched;

/// Of a queue: features (8 bytes), version, number of entries, last batch's head, used index (2 each).
const HEAD: usize = 16;
const VERSION: usize = 8;
const ENTRIES: usize = 10;
const LAST_BATCH: usize = 12;
const USED: usize = 14;
/// Of a descriptor: in flight (1), padding (5), next (2), counter (8).
const ENTRY: usize = 16;
/// In the padding, which is nobody's: the lower 32 bits of the request's number.
const NUMBER: usize = 2;
const NEXT: usize = 6;
const COUNTER: usize = 8;
/// Queues begin at multiples of this, so that they share no line of a cache.
const ALIGN: usize = 64;

/// Entries that a queue of a new area has at least: QEMU asks for its default of 128 where the
/// driver then makes rings of 1024 (virtio-mmio offers that many whatever the device's own size).
const LEAST: u16 = 1024;

/// Bytes of a queue of so many entries.
fn queue_len(size: u16) -> usize {
    (HEAD + ENTRY * usize::from(size)).next_multiple_of(ALIGN)
}

/// See the module. All queues of a front end.
#[derive(Debug)]
pub(super) struct Area {
    /// Dropped before it is unmapped.
    _watched: Watched,
    map: MmapRaw,
    queues: u16,
    /// Bytes of each queue's part.
    each: usize,
    /// Entries that there are in it.
    size: u16,
}

impl Area {
    /// A new one, with its length; the front end keeps the file.
    pub fn create(queues: u16, size: u16) -> io::Result<(File, u64)> {
        if !size.is_power_of_two() || u32::from(size) > MAX_SIZE {
            return Err(io::Error::other(format!("queues of {size} entries")));
        }
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"wtblk-inflight", flags)?);
        let len = (queue_len(size.max(LEAST)) * usize::from(queues)) as u64;
        file.set_len(len)?;
        let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok((file, len))
    }

    /// One that the front end has kept, or one of its own making.
    pub fn open(
        file: &File,
        offset: u64,
        len: u64,
        queues: u16,
        size: u16,
    ) -> Result<Arc<Area>, String> {
        if !size.is_power_of_two() || u32::from(size) > MAX_SIZE || queues == 0 {
            return Err(format!(
                "in-flight area for {queues} queues of {size} entries"
            ));
        }
        let need = queue_len(size) * usize::from(queues);
        let meta = file.metadata().map_err(|e| e.to_string())?;
        let end = offset.checked_add(len);
        if len < need as u64 || end.is_none_or(|end| end > meta.size()) || !meta.is_file() {
            return Err(format!(
                "in-flight area of {len} bytes at {offset} in a file of {}, {need} are needed for {queues} queues of {size}",
                meta.size()
            ));
        }
        // Its maker may have made more of each than was asked for, as we do.
        let whole = usize::try_from(len).map_err(|e| e.to_string())?;
        let each = (whole / usize::from(queues)) & !(ALIGN - 1);
        let entries = (each - HEAD) / ENTRY;
        let need = each * usize::from(queues);
        if !offset.is_multiple_of(8) {
            return Err(format!("in-flight area at byte {offset}, not aligned"));
        }
        let map = MmapOptions::new().offset(offset).len(need).map_raw(file);
        let map = map.map_err(|e| format!("cannot map the in-flight area: {e}"))?;
        // SAFETY: the mapping lives as long as the value, which drops this first; it is touched by
        // atomics only.
        let watched = unsafe { Watched::new(map.as_mut_ptr(), need) }.map_err(|e| e.to_string())?;
        Ok(Arc::new(Area {
            _watched: watched,
            map,
            queues,
            each,
            size: u16::try_from(entries).unwrap_or(u16::MAX),
        }))
    }

    /// The part of a queue; `None` where there is none.
    pub fn queue(self: &Arc<Area>, index: u32) -> Option<Tracked> {
        (index < u32::from(self.queues)).then(|| Tracked {
            at: self.each * index as usize,
            area: self.clone(),
            counter: 0,
            batch: Vec::new(),
        })
    }

    /// Whether a ring was begun on this queue's part, by this life of the device or an earlier one.
    pub fn begun(&self, index: u32) -> bool {
        let version = || self.word::<AtomicU16>(self.each * index as usize + VERSION);
        index < u32::from(self.queues) && version().load(Ordering::Acquire) != 0
    }

    fn word<T: Word>(&self, at: usize) -> &T {
        assert!(at + size_of::<T>() <= self.map.len(), "outside");
        let address = self.map.as_mut_ptr().wrapping_add(at).cast::<T>();
        assert!(address.is_aligned(), "not aligned");
        // SAFETY: inside the mapping, which lives as long as `self`; aligned; an atomic, of which
        // every pattern of bits is a value.
        unsafe { &*address }
    }
}

/// Words that others may change meanwhile.
trait Word {}
impl Word for AtomicU8 {}
impl Word for AtomicU16 {}
impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

/// A request of an earlier life of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Again {
    /// Head of its chain.
    pub head: u16,
    /// The lower 32 bits of the number that it had; 0: it had got none.
    pub number: u32,
}

/// A queue's part of the area; used by its worker alone.
#[derive(Debug)]
pub(super) struct Tracked {
    area: Arc<Area>,
    /// Where it begins.
    at: usize,
    /// Of the next request to be taken.
    counter: u64,
    /// Heads whose used entries are written and not yet published.
    batch: Vec<u16>,
}

impl Tracked {
    /// Begins, or goes on where an earlier life ended: what was in flight then, in the order in
    /// which it was taken. `used` is the ring's used index now, `size` its number of entries.
    pub fn begin(&mut self, used: u16, size: u16) -> Result<Vec<Again>, String> {
        let u16_at = |at| self.area.word::<AtomicU16>(self.at + at);
        let version = u16_at(VERSION).load(Ordering::Acquire);
        if size > self.area.size {
            return Err(format!(
                "the in-flight area has {} entries a queue, the ring {size}",
                self.area.size
            ));
        }
        if version == 0 {
            u16_at(ENTRIES).store(size.to_le(), Ordering::Relaxed);
            u16_at(USED).store(used.to_le(), Ordering::Relaxed);
            u16_at(VERSION).store(1u16.to_le(), Ordering::Release);
            return Ok(Vec::new());
        }
        let entries = u16::from_le(u16_at(ENTRIES).load(Ordering::Relaxed));
        if u16::from_le(version) != 1 || entries != size {
            return Err(format!(
                "the in-flight area is of version {} and has {entries} entries, the ring {size}",
                u16::from_le(version)
            ));
        }
        // Published, and not yet struck off.
        let noted = u16::from_le(u16_at(USED).load(Ordering::Relaxed));
        let seen = used.wrapping_sub(noted);
        if seen > size {
            return Err(format!(
                "the used index is {used}, the in-flight area knows {noted}: not of this ring"
            ));
        }
        let mut head = u16::from_le(u16_at(LAST_BATCH).load(Ordering::Relaxed));
        for _ in 0..seen {
            if head >= size {
                return Err(format!("descriptor {head} in the in-flight area's batch"));
            }
            self.entry::<AtomicU8>(head, 0).store(0, Ordering::Relaxed);
            head = u16::from_le(self.entry::<AtomicU16>(head, NEXT).load(Ordering::Relaxed));
        }
        u16_at(USED).store(used.to_le(), Ordering::Release);
        let mut found = Vec::new();
        for head in 0..size {
            if self.entry::<AtomicU8>(head, 0).load(Ordering::Relaxed) == 0 {
                continue;
            }
            let counter = self.entry::<AtomicU64>(head, COUNTER);
            let number = self.entry::<AtomicU16>(head, NUMBER);
            let high = self.entry::<AtomicU16>(head, NUMBER + 2);
            let number = u32::from(number.load(Ordering::Relaxed))
                | u32::from(high.load(Ordering::Relaxed)) << 16;
            let counter = u64::from_le(counter.load(Ordering::Relaxed));
            found.push((counter, Again { head, number }));
        }
        found.sort_unstable_by_key(|(counter, again)| (*counter, again.head));
        let last = found.last().map_or(0, |(counter, _)| *counter);
        self.counter = last.wrapping_add(1);
        Ok(found.into_iter().map(|(_, again)| again).collect())
    }

    /// A request was taken, and nothing was done yet.
    pub fn taken(&mut self, head: u16) {
        self.number(head, 0);
        let counter = self.entry::<AtomicU64>(head, COUNTER);
        counter.store(self.counter.to_le(), Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        // Release: who is killed here leaves all of it or none.
        self.entry::<AtomicU8>(head, 0).store(1, Ordering::Release);
    }

    /// It got this number in the trace.
    pub fn number(&self, head: u16, number: u64) {
        let low = self.entry::<AtomicU16>(head, NUMBER);
        low.store(number as u16, Ordering::Relaxed);
        let high = self.entry::<AtomicU16>(head, NUMBER + 2);
        high.store((number >> 16) as u16, Ordering::Relaxed);
    }

    /// Its used entry is written.
    pub fn put(&mut self, head: u16) {
        let last = self.area.word::<AtomicU16>(self.at + LAST_BATCH);
        let next = self.entry::<AtomicU16>(head, NEXT);
        next.store(last.load(Ordering::Relaxed), Ordering::Relaxed);
        last.store(head.to_le(), Ordering::Release);
        self.batch.push(head);
    }

    /// The used index was published with this value.
    pub fn published(&mut self, used: u16) {
        for &head in &self.batch {
            self.entry::<AtomicU8>(head, 0).store(0, Ordering::Relaxed);
        }
        self.batch.clear();
        let noted = self.area.word::<AtomicU16>(self.at + USED);
        noted.store(used.to_le(), Ordering::Release);
    }

    fn entry<T: Word>(&self, head: u16, at: usize) -> &T {
        self.area
            .word(self.at + HEAD + ENTRY * usize::from(head) + at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn area(queues: u16, size: u16) -> Arc<Area> {
        let (file, len) = Area::create(queues, size).unwrap();
        Area::open(&file, 0, len, queues, size).unwrap()
    }

    fn heads(found: &[Again]) -> Vec<u16> {
        found.iter().map(|a| a.head).collect()
    }

    #[test]
    fn the_layout_is_that_of_the_specification() {
        let (file, len) = Area::create(2, 128).unwrap();
        // Made for 1024 entries; one of another maker has just what was asked for.
        assert_eq!(len, 2 * 16_448);
        let area = Area::open(&file, 0, 2 * 2112, 2, 128).unwrap();
        assert_eq!(queue_len(128), 2112);
        let mut queue = area.queue(1).unwrap();
        assert!(queue.begin(7, 128).unwrap().is_empty());
        queue.taken(3);
        queue.taken(5);
        queue.put(5);
        queue.put(3);
        let bytes = |from: usize, n: usize| -> Vec<u8> {
            let byte = |at| area.word::<AtomicU8>(at).load(Ordering::Relaxed);
            (2112 + from..2112 + from + n).map(byte).collect()
        };
        // Features, version 1, 128 entries, the last batch begins at 3, used index 7.
        let head = [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 3, 0, 7, 0];
        assert_eq!(bytes(0, 16), head);
        // In flight, next 5, counter 0.
        let three = [1, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(bytes(16 + 3 * 16, 16), three);
        assert_eq!(bytes(16 + 5 * 16, 16)[8], 1);
        queue.published(9);
        assert_eq!((bytes(16 + 3 * 16, 1), bytes(14, 2)), (vec![0], vec![9, 0]));
        assert!(area.queue(2).is_none());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (queues, size) in [(1, 0), (1, 3)] {
            assert!(Area::create(queues, size).is_err());
        }
        let (file, len) = Area::create(1, 16).unwrap();
        for (offset, len, queues, size) in [
            (0, len, 40, 1024),
            (0, len, 1, 2048),
            (8, len, 1, 16),
            (0, 256, 1, 16),
            (4, 1024, 1, 16),
            (0, len, 0, 16),
            (u64::MAX, len, 1, 16),
            (0, u64::MAX, 1, 16),
            (0, len, 1, 15),
        ] {
            assert!(Area::open(&file, offset, len, queues, size).is_err());
        }
        let area = Area::open(&file, 0, len, 1, 16).unwrap();
        let mut queue = area.queue(0).unwrap();
        assert!(queue.begin(0, 2048).is_err());
        queue.begin(0, 16).unwrap();
        assert!(area.queue(0).unwrap().begin(0, 8).is_err());
        // A used index far away, and a batch that leads out of the table.
        assert!(area.queue(0).unwrap().begin(17, 16).is_err());
        let word = area.word::<AtomicU16>(LAST_BATCH);
        word.store(16, Ordering::Relaxed);
        let error = area.queue(0).unwrap().begin(1, 16).unwrap_err();
        assert!(error.contains("descriptor 16"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// A worker takes and completes by batches and is killed between any two of its stores
        /// that others can see: what it finds again is what the guest waits for, no more and no
        /// less, oldest first.
        #[test]
        fn whoever_is_killed_finds_what_is_in_flight(
            steps in prop::collection::vec((any::<bool>(), 1..5usize), 1..40),
            killed in 0..5u8,
            start in any::<u16>(),
        ) {
            const SIZE: u16 = 16;
            let area = area(1, SIZE);
            let mut queue = area.queue(0).unwrap();
            let mut used = start;
            queue.begin(used, SIZE).unwrap();
            let mut free: Vec<u16> = (0..SIZE).rev().collect();
            let mut flying: Vec<u16> = Vec::new();
            for (n, (take, count)) in steps.iter().enumerate() {
                let last = n + 1 == steps.len();
                if *take {
                    for _ in 0..(*count).min(free.len()) {
                        let head = free.pop().unwrap();
                        queue.taken(head);
                        queue.number(head, u64::from(head) + 70_000);
                        flying.push(head);
                    }
                    continue;
                }
                let count = (*count).min(flying.len());
                // From the middle, so that completion is out of order.
                let batch: Vec<u16> = (0..count).map(|i| flying.remove((i * 7) % flying.len())).collect();
                for &head in &batch {
                    queue.put(head);
                }
                if last && killed == 0 {
                    // Not published: the guest has seen none of them. Their order is that of taking.
                    let found = area.queue(0).unwrap().begin(used, SIZE).unwrap();
                    let mut all = heads(&found);
                    all.sort_unstable();
                    let mut want = [flying.clone(), batch.clone()].concat();
                    want.sort_unstable();
                    prop_assert_eq!(all, want);
                    return Ok(());
                }
                used = used.wrapping_add(count as u16);
                if last && killed == 1 {
                    break; // Published, and not struck off.
                }
                queue.published(used);
                free.extend(batch);
            }
            let mut again = area.queue(0).unwrap();
            let found = again.begin(used, SIZE).unwrap();
            prop_assert_eq!(heads(&found), flying.clone());
            prop_assert!(found.iter().all(|a| a.number == u32::from(a.head) + 70_000));
            // And once more, as nothing happened in between.
            prop_assert_eq!(heads(&area.queue(0).unwrap().begin(used, SIZE).unwrap()), flying);
        }
    }
}
