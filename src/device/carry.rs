// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A request's way to the store and what a fault makes of it: parts of a write,
//! flipped bits, another place, old contents. The guest's buffer of a write is
//! only read.

use std::collections::BTreeMap;
use std::sync::Arc;

use smallvec::smallvec;
use virtio_bindings::virtio_blk::VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
use vm_memory::{Bytes, GuestAddress};
use wtblk_shared::disk::SECTOR;

use super::config::MAX_ZONE_SECTORS;
use super::memory::{GuestMap, Segment};
use super::request::Zone;
use crate::fault::request::DataFault;
use crate::store::{Buffers, Op, Ops};
use crate::trace::event::{self as trace, Status};

/// A read or write that a store is asked for.
pub(super) struct Transfer<'a> {
    pub write: bool,
    pub sector: u64,
    pub bytes: u32,
    pub data: &'a [Segment],
    pub map: &'a Arc<GuestMap>,
    pub fault: Option<&'a DataFault>,
}

impl Transfer<'_> {
    /// The operations it takes, none where nothing is to be done. `None`: it cannot be had (not
    /// on the disk, or part of a sector), and fails.
    pub fn ops(&self, capacity: u64) -> Option<Ops> {
        let own = self.place(self.sector, capacity)?;
        if self.write && self.fault == Some(&DataFault::Dropped) {
            return Some(Ops::new());
        }
        let offset = match self.fault {
            Some(DataFault::Misdirected(sector)) => self.place(*sector, capacity)?,
            _ => own,
        };
        let buffers = self.map.buffers(self.data)?;
        Some(match self.fault {
            Some(DataFault::Stale) if !self.write => smallvec![Op::ReadOld { offset, buffers }],
            _ if !self.write => smallvec![Op::Read { offset, buffers }],
            Some(DataFault::Torn(parts)) => self.torn(offset, &buffers, parts),
            Some(DataFault::Corrupt(bits)) => self.corrupt(offset, &buffers, bits)?,
            _ => smallvec![Op::Write { offset, buffers }],
        })
    }

    fn place(&self, sector: u64, capacity: u64) -> Option<u64> {
        let offset = sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(u64::from(self.bytes))?;
        let whole = u64::from(self.bytes) % SECTOR == 0;
        (whole && end <= capacity).then_some(offset)
    }

    fn torn(&self, offset: u64, buffers: &Buffers, parts: &[(u32, u32)]) -> Ops {
        let part = |&(first, count): &(u32, u32)| {
            let from = u64::from(first) * SECTOR;
            let buffers = buffers.part(from, u64::from(count) * SECTOR);
            let offset = offset + from;
            (!buffers.is_empty()).then_some(Op::Write { offset, buffers })
        };
        parts.iter().filter_map(part).collect()
    }

    /// Sectors with flipped bits go by way of our own memory, the others as they are.
    fn corrupt(&self, offset: u64, buffers: &Buffers, bits: &[(u32, u8)]) -> Option<Ops> {
        let mut sectors: BTreeMap<u64, Vec<(usize, u8)>> = BTreeMap::new();
        for &(at, mask) in bits.iter().filter(|b| b.0 < self.bytes) {
            let at = u64::from(at);
            let flip = ((at % SECTOR) as usize, mask);
            sectors.entry(at / SECTOR).or_default().push(flip);
        }
        let mut ops = Ops::new();
        let mut done = 0;
        let mut plain = |from: u64, to: u64| {
            if from < to {
                let buffers = buffers.part(from, to - from);
                let offset = offset + from;
                ops.push(Op::Write { offset, buffers });
            }
        };
        let mut flipped = Ops::new();
        for (sector, flips) in sectors {
            let from = sector * SECTOR;
            plain(done, from);
            done = from + SECTOR;
            let mut bytes = gather(self.map, self.data, from, SECTOR as usize)?;
            for (at, mask) in flips {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= mask;
                }
            }
            let buffers = Buffers::owned(bytes);
            let offset = offset + from;
            flipped.push(Op::Write { offset, buffers });
        }
        plain(done, u64::from(self.bytes));
        ops.append(&mut flipped);
        Some(ops)
    }
}

/// A discard or write-zeroes.
pub(super) struct Zeroing<'a> {
    pub op: trace::Op,
    /// Lowest sector of the zones.
    pub sector: u64,
    pub zones: &'a [Zone],
    pub fault: Option<&'a DataFault>,
}

impl Zeroing<'_> {
    /// The operations it takes, or what is wrong with it (virtio 1.3, 5.2.6.2).
    pub fn ops(&self, capacity: u64) -> Result<Ops, Status> {
        // A flag nobody knows, or `unmap` in a discard.
        let known = match self.op {
            trace::Op::WriteZeroes => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        if self.zones.iter().any(|z| z.flags & !known != 0) {
            return Err(Status::UNSUPP);
        }
        if self.zones.is_empty() {
            return Err(Status::IOERR);
        }
        let mut ops = Ops::new();
        for zone in self.zones {
            let end = zone.sector.checked_add(u64::from(zone.sectors));
            if zone.sectors > MAX_ZONE_SECTORS || end.is_none_or(|end| end > capacity / SECTOR) {
                return Err(Status::IOERR);
            }
            for (sector, sectors) in self.stored(zone) {
                let (offset, len) = (sector * SECTOR, sectors * SECTOR);
                let unmap = zone.flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
                ops.push(match self.op {
                    trace::Op::WriteZeroes => Op::WriteZeroes { offset, len, unmap },
                    _ => Op::Discard { offset, len },
                });
            }
        }
        Ok(ops)
    }

    /// What a fault leaves of a zone.
    fn stored(&self, zone: &Zone) -> Vec<(u64, u64)> {
        let whole = zone.sector..zone.sector + u64::from(zone.sectors);
        let parts = match self.fault {
            Some(DataFault::Dropped) => return Vec::new(),
            Some(DataFault::Torn(parts)) => parts.as_slice(),
            _ => return vec![(whole.start, whole.end - whole.start)],
        };
        let part = |&(first, count): &(u32, u32)| {
            let start = self.sector.saturating_add(u64::from(first));
            let end = start.saturating_add(u64::from(count)).min(whole.end);
            let start = start.max(whole.start);
            (start < end).then(|| (start, end - start))
        };
        parts.iter().filter_map(part).collect()
    }
}

/// Flips bits of data that was read, where the guest will find it.
pub(super) fn flip(map: &GuestMap, data: &[Segment], bits: &[(u32, u8)]) -> Option<()> {
    for &(at, mask) in bits {
        let mut at = u64::from(at);
        for segment in data {
            if at < u64::from(segment.len) {
                let place = GuestAddress(segment.addr + at);
                let byte: u8 = map.read_obj(place).ok()?;
                map.write_obj(byte ^ mask, place).ok()?;
                break;
            }
            at -= u64::from(segment.len);
        }
    }
    Some(())
}

/// A copy of `len` bytes of the data from byte `from` on.
pub(super) fn gather(map: &GuestMap, data: &[Segment], from: u64, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    let (mut skip, mut done) = (from, 0);
    for segment in data {
        let have = u64::from(segment.len);
        let cut = skip.min(have);
        skip -= cut;
        let take = ((have - cut) as usize).min(len - done);
        let part = &mut bytes[done..done + take];
        map.read_slice(part, GuestAddress(segment.addr + cut))
            .ok()?;
        done += take;
        if done == len {
            return Some(bytes);
        }
    }
    None
}

/// Writes `bytes` into the segments, as far as they reach; how many went in.
pub(super) fn scatter(map: &GuestMap, data: &[Segment], bytes: &[u8]) -> Option<u32> {
    let mut rest = bytes;
    for segment in data {
        let (now, later) = rest.split_at(rest.len().min(segment.len as usize));
        map.write_slice(now, GuestAddress(segment.addr)).ok()?;
        rest = later;
    }
    Some((bytes.len() - rest.len()) as u32)
}
