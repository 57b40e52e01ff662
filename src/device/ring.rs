// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A split ring in guest memory (virtio 1.3, 2.7): which entries are new, what
//! is given back, when to notify. Descriptors are `chain`'s business.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress};

use super::memory::{GuestMap, Segment};

/// The largest queue (virtio 1.3, 2.7).
pub(super) const MAX_SIZE: u32 = 32768;

const AVAIL_F_NO_INTERRUPT: u16 = 1;

/// Where a ring lies, in the front end's addresses, as SET_VRING_ADDR gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RingPlace {
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
}

/// What is wrong with a ring: it cannot be served any further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct RingError(pub String);

/// See the module.
pub(super) struct Ring {
    map: Arc<GuestMap>,
    place: RingPlace,
    size: u16,
    /// Guest physical addresses of the three parts.
    desc: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    /// Used index at the last notification; `None` before the first.
    notified: Option<u16>,
}

impl Ring {
    /// A ring that goes on at avail position `base`.
    pub fn new(
        map: Arc<GuestMap>,
        place: RingPlace,
        size: u16,
        base: u16,
        event_idx: bool,
    ) -> Result<Ring, RingError> {
        let (desc, avail, used) = locate(&map, place, size)?;
        let mut ring = Ring {
            map,
            place,
            size,
            desc,
            avail,
            used,
            next_avail: base,
            next_used: 0,
            event_idx,
            notified: None,
        };
        ring.next_used = ring.load(used + 2, Ordering::Relaxed)?;
        Ok(ring)
    }

    /// Moves to another map of the same memory: the front end added or removed regions.
    pub fn remap(&mut self, map: Arc<GuestMap>) -> Result<(), RingError> {
        let (desc, avail, used) = locate(&map, self.place, self.size)?;
        (self.desc, self.avail, self.used) = (desc, avail, used);
        self.map = map;
        Ok(())
    }

    /// The map that chains are walked in.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Guest physical address of the descriptor table.
    pub fn table(&self) -> u64 {
        self.desc
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Position of the next avail entry to take: what GET_VRING_BASE tells.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The avail index as the guest has it now.
    pub fn avail_idx(&self) -> Result<u16, RingError> {
        self.load(self.avail + 2, Ordering::Acquire)
    }

    /// Takes the next entry: its position and the head of its chain.
    pub fn take(&mut self) -> Result<Option<(u16, u16)>, RingError> {
        let idx = self.avail_idx()?;
        let new = idx.wrapping_sub(self.next_avail);
        if new == 0 {
            return Ok(None);
        }
        if new > self.size {
            return Err(RingError(format!(
                "avail index {idx} is {new} entries ahead of {}, the queue has {}",
                self.next_avail, self.size
            )));
        }
        let position = self.next_avail;
        let entry = self.avail + 4 + 2 * u64::from(position % self.size);
        let head: u16 = self.load(entry, Ordering::Relaxed)?;
        if head >= self.size {
            return Err(RingError(format!(
                "avail entry {position} names descriptor {head}, the queue has {}",
                self.size
            )));
        }
        self.next_avail = position.wrapping_add(1);
        Ok(Some((position, head)))
    }

    /// Gives a chain back: the used entry, then the index.
    pub fn publish(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let entry = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.store(entry, u32::from(head), Ordering::Relaxed)?;
        self.store(entry + 4, len, Ordering::Relaxed)?;
        self.next_used = self.next_used.wrapping_add(1);
        // Release: status byte, data and entry are visible before the index.
        self.store(self.used + 2, self.next_used, Ordering::Release)?;
        // The avail index that is read for the record, and the guest's wish for a notification,
        // are read after the publication, on every CPU's view.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whether the guest wants to be told of what was published since the last time.
    pub fn wants_notification(&mut self) -> Result<bool, RingError> {
        if !self.event_idx {
            let flags: u16 = self.load(self.avail, Ordering::Relaxed)?;
            return Ok(flags & AVAIL_F_NO_INTERRUPT == 0);
        }
        let at = self.avail + 4 + 2 * u64::from(self.size);
        let event: u16 = self.load(at, Ordering::Relaxed)?;
        let old = self.notified.replace(self.next_used);
        Ok(old.is_none_or(|old| needs_event(event, self.next_used, old)))
    }

    /// Asks for a kick at the next entry. True where there is one already: take it first.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        if self.event_idx {
            let at = self.used + 4 + 8 * u64::from(self.size);
            self.store(at, self.next_avail, Ordering::Relaxed)?;
        } else {
            self.store(self.used, 0u16, Ordering::Relaxed)?;
        }
        // The request for a kick must be visible before the index is read again, or an entry
        // made available in between would lie there without a kick.
        fence(Ordering::SeqCst);
        Ok(self.avail_idx()? != self.next_avail)
    }

    fn load<T: vm_memory::AtomicAccess>(&self, addr: u64, order: Ordering) -> Result<T, RingError> {
        let loaded = self.map.memory().load(GuestAddress(addr), order);
        loaded.map_err(|e| RingError(format!("cannot read the ring at {addr:#x}: {e}")))
    }

    fn store<T: vm_memory::AtomicAccess>(
        &self,
        addr: u64,
        value: T,
        order: Ordering,
    ) -> Result<(), RingError> {
        let stored = self.map.memory().store(value, GuestAddress(addr), order);
        stored.map_err(|e| RingError(format!("cannot write the ring at {addr:#x}: {e}")))
    }
}

/// virtio 1.3, 2.7.10: whether `event` lies in what was published from `old` to `new`.
fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Guest physical addresses of the parts, each checked to be memory as a whole and aligned.
fn locate(map: &GuestMap, place: RingPlace, size: u16) -> Result<(u64, u64, u64), RingError> {
    if size == 0 || !size.is_power_of_two() {
        return Err(RingError(format!("a queue of {size} entries")));
    }
    let n = u64::from(size);
    let part = |name: &str, user: u64, len: u64, align: u64| {
        let guest = map.user_to_guest(user, len);
        let guest = guest
            .ok_or_else(|| RingError(format!("the {name} at {user:#x} is not in guest memory")))?;
        let whole = map.holds(Segment {
            addr: guest,
            len: len as u32,
        });
        if !whole || guest % align != 0 {
            return Err(RingError(format!(
                "the {name} at {guest:#x} is not aligned to {align}"
            )));
        }
        Ok(guest)
    };
    Ok((
        part("descriptor table", place.desc, 16 * n, 16)?,
        part("avail ring", place.avail, 6 + 2 * n, 2)?,
        part("used ring", place.used, 6 + 8 * n, 4)?,
    ))
}

#[cfg(test)]
mod tests {
    use super::super::memory::RegionInfo;
    use super::super::memory::tests::file;
    use super::*;

    const PLACE: RingPlace = RingPlace {
        desc: 0,
        avail: 0x1000,
        used: 0x2000,
    };

    fn ring(event_idx: bool) -> Ring {
        let info = RegionInfo {
            guest: 0,
            size: 0x10000,
            user: 0,
            offset: 0,
        };
        let map = GuestMap::empty().with(info, file(0x10000)).unwrap();
        Ring::new(Arc::new(map), PLACE, 8, 0, event_idx).unwrap()
    }

    fn put(ring: &Ring, addr: u64, value: u16) {
        ring.store(addr, value, Ordering::Release).unwrap();
    }

    #[test]
    fn entries_come_in_order_and_jumps_are_errors() {
        let mut ring = ring(true);
        assert_eq!(ring.take(), Ok(None));
        put(&ring, 0x1004, 5);
        put(&ring, 0x1006, 3);
        put(&ring, 0x1002, 2);
        assert_eq!(ring.take(), Ok(Some((0, 5))));
        assert_eq!(ring.take(), Ok(Some((1, 3))));
        assert_eq!(ring.take(), Ok(None));
        put(&ring, 0x1002, 11);
        assert!(ring.take().unwrap_err().0.contains("9 entries ahead"));
        put(&ring, 0x1002, 3);
        put(&ring, 0x1008, 8);
        assert!(ring.take().unwrap_err().0.contains("descriptor 8"));
        assert_eq!(ring.next_avail(), 2);
    }

    #[test]
    fn notifications_follow_the_event_index() {
        let mut ring = ring(true);
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(true), "the first always");
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(false), "event 0 is behind");
        put(&ring, 0x1004 + 16, 3);
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(false));
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(true));
        assert!(needs_event(0xffff, 0, 0xffff) && !needs_event(0, 0, 0xffff));
    }

    #[test]
    fn notifications_follow_the_flags() {
        let mut ring = ring(false);
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(true));
        put(&ring, 0x1000, 1);
        assert_eq!(ring.wants_notification(), Ok(false));
        assert_eq!(ring.enable_kicks(), Ok(false));
        assert_eq!(ring.load::<u16>(0x2000, Ordering::Relaxed), Ok(0));
        put(&ring, 0x1002, 1);
        assert_eq!(ring.enable_kicks(), Ok(true), "no lost kick");
    }

    #[test]
    fn rings_outside_memory_are_refused() {
        let map = ring(true).map().clone();
        for place in [
            RingPlace {
                desc: 0xfff0,
                ..PLACE
            },
            RingPlace {
                avail: 0xffff_0000,
                ..PLACE
            },
            RingPlace {
                used: 0x2002,
                ..PLACE
            },
            RingPlace {
                desc: u64::MAX,
                ..PLACE
            },
        ] {
            assert!(
                Ring::new(map.clone(), place, 8, 0, true).is_err(),
                "{place:x?}"
            );
        }
        assert!(Ring::new(map.clone(), PLACE, 0, 0, true).is_err());
        assert!(Ring::new(map, PLACE, 7, 0, true).is_err());
    }
}
