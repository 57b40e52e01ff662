// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A split ring while it runs (virtio 1.3, 2.7): what the driver made available
//! is taken, what is over is put into the used ring and published, a batch at
//! once. The order of publishing and reading is what the trace relies on.
//! Descriptors are `chain`'s business.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use super::memory::GuestMap;
use super::shared::Shared;
use super::wake::Wake;

/// The largest queue (virtio 1.3, 2.7).
pub(super) const MAX_SIZE: u32 = 32768;

/// VIRTQ_AVAIL_F_NO_INTERRUPT and VIRTQ_USED_F_NO_NOTIFY (virtio 1.3, 2.7.6 and 2.7.8).
const NOT_WANTED: u16 = 1;

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

/// The ring's three parts, as they are mapped here.
struct Parts {
    desc: Shared,
    /// flags, idx, the entries, used_event.
    avail: Shared,
    /// flags, idx, the entries, avail_event.
    used: Shared,
    /// Guest physical address of the descriptor table.
    #[cfg(test)]
    table: u64,
}

/// See the module. Only the worker has it.
pub(super) struct Ring {
    parts: Parts,
    /// The map that chains are walked in: an `Arc` of this ring's own, so that counting
    /// references costs the other queues nothing.
    map: Arc<GuestMap>,
    place: RingPlace,
    size: u16,
    event_idx: bool,
    enabled: bool,
    kick: Option<Wake>,
    call: Option<Wake>,
    next_avail: u16,
    /// The avail index as last read.
    seen_avail: u16,
    next_used: u16,
    /// The used index as the guest has it.
    published: u16,
    /// The used index when the guest's wish was last looked at.
    judged: Option<u16>,
}

impl Parts {
    fn of(map: &Arc<GuestMap>, place: &RingPlace, size: u16) -> Result<Parts, RingError> {
        let size = usize::from(size);
        let part = |name: &str, user: u64, align: usize, len: usize| {
            let guest = map.user_to_guest(user).ok_or_else(|| {
                RingError(format!("the {name} at {user:#x} is not in guest memory"))
            })?;
            let shared = map.shared(guest, len).ok_or_else(|| {
                RingError(format!(
                    "the {name} at {guest:#x} ends outside guest memory"
                ))
            })?;
            if guest % align as u64 != 0 || !shared.is_aligned(align) {
                return Err(RingError(format!(
                    "the {name} at {guest:#x} is not aligned"
                )));
            }
            Ok((shared, guest))
        };
        let (desc, _table) = part("descriptor table", place.desc, 16, 16 * size)?;
        let (avail, _) = part("avail ring", place.avail, 2, 6 + 2 * size)?;
        let (used, _) = part("used ring", place.used, 4, 6 + 8 * size)?;
        Ok(Parts {
            desc,
            avail,
            used,
            #[cfg(test)]
            table: _table,
        })
    }
}

impl Ring {
    /// A ring that goes on at avail position `base`; not enabled yet.
    pub fn new(
        map: Arc<GuestMap>,
        place: RingPlace,
        size: u16,
        base: u16,
        event_idx: bool,
    ) -> Result<Ring, RingError> {
        if !size.is_power_of_two() || u32::from(size) > MAX_SIZE {
            return Err(RingError(format!("a queue of {size} entries")));
        }
        let map = Arc::new(GuestMap::clone(&map));
        let parts = Parts::of(&map, &place, size)?;
        let used = parts.used.u16(2, Ordering::Acquire);
        Ok(Ring {
            parts,
            map,
            place,
            size,
            event_idx,
            enabled: false,
            kick: None,
            call: None,
            next_avail: base,
            seen_avail: base,
            next_used: used,
            published: used,
            judged: None,
        })
    }

    /// Moves to another map of the same memory: the front end added or removed regions. Where
    /// the ring is not in the new one, it stays in the old.
    pub fn remap(&mut self, map: &GuestMap) -> Result<(), RingError> {
        let map = Arc::new(map.clone());
        self.parts = Parts::of(&map, &self.place, self.size)?;
        self.map = map;
        Ok(())
    }

    /// The map that chains are walked in.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// The descriptor table, for chains.
    pub fn table(&self) -> &Shared {
        &self.parts.desc
    }

    /// Guest physical address of the descriptor table.
    #[cfg(test)]
    pub fn table_at(&self) -> u64 {
        self.parts.table
    }

    /// The used index as the guest has it.
    pub fn published(&self) -> u16 {
        self.published
    }

    /// The next avail entry to take is this one.
    pub fn go_on_at(&mut self, position: u16) {
        (self.next_avail, self.seen_avail) = (position, position);
    }

    /// Position of the next avail entry to take: what GET_VRING_BASE tells.
    pub fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// Whether requests are to be taken.
    pub fn set_enabled(&mut self, on: bool) {
        self.enabled = on;
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// The fd that the front end kicks through.
    pub fn set_kick(&mut self, fd: Option<File>) {
        self.kick = fd.map(Wake::from);
    }

    /// Readable after a kick.
    pub fn kick(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(Wake::as_fd)
    }

    /// The fd that the front end is notified through.
    pub fn set_call(&mut self, fd: Option<File>) {
        self.call = fd.map(Wake::from);
    }

    /// Takes what kicks there are.
    pub fn drain_kick(&mut self) -> Result<(), RingError> {
        let drained = self.kick.as_ref().map(Wake::try_drain);
        match drained {
            None | Some(Ok(())) => Ok(()),
            // Somebody else drained it: it is non-blocking, and the front end has it too.
            Some(Err(e)) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Some(Err(e)) => {
                self.kick = None;
                Err(RingError(format!("the kick fd cannot be read: {e}")))
            }
        }
    }

    /// Notifies the front end.
    pub fn notify(&self) {
        self.call.iter().for_each(Wake::signal);
    }

    /// The avail index as the guest has it now.
    fn avail_idx(&self) -> u16 {
        self.parts.avail.u16(2, Ordering::Acquire)
    }

    /// How many entries there are to take, as the avail index shows it; looked at only when what
    /// it showed before is used up.
    pub fn shown(&mut self) -> Result<u16, RingError> {
        let position = self.next_avail;
        if self.seen_avail == position {
            // Acquire: what the guest wrote before the index is seen after it.
            self.seen_avail = self.avail_idx();
        }
        let count = self.seen_avail.wrapping_sub(position);
        if count > self.size {
            self.seen_avail = position;
            return Err(RingError(format!(
                "the avail index is ahead of {position} by more than the {} of the queue",
                self.size
            )));
        }
        Ok(count)
    }

    /// Takes the next entry of those shown: its position and the head of its chain.
    pub fn take(&mut self) -> Result<(u16, u16), RingError> {
        let position = self.next_avail;
        let entry = 4 + 2 * usize::from(position % self.size);
        let head = self.parts.avail.u16(entry, Ordering::Relaxed);
        if head >= self.size {
            return Err(RingError(format!(
                "avail entry {position} names descriptor {head}, the queue has {}",
                self.size
            )));
        }
        self.next_avail = position.wrapping_add(1);
        Ok((position, head))
    }

    /// Whether there is something to take.
    pub fn has_next(&self) -> bool {
        self.seen_avail != self.next_avail || self.avail_idx() != self.next_avail
    }

    /// Gives a chain back; the guest sees it after [`Ring::publish`].
    pub fn put(&mut self, head: u16, len: u32) {
        let entry = 4 + 8 * usize::from(self.next_used % self.size);
        let used = &self.parts.used;
        used.set_u32(entry, u32::from(head));
        used.set_u32(entry + 4, len);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Publishes what was put. The avail index as it was afterwards.
    pub fn publish(&mut self) -> u16 {
        // Release: the entries, the data and the status bytes come first.
        self.parts
            .used
            .set_u16(2, self.next_used, Ordering::Release);
        self.published = self.next_used;
        // The avail index that is read for the record, and the guest's wish for a notification,
        // are read after the publication, on every CPU's view.
        fence(Ordering::SeqCst);
        self.avail_idx()
    }

    /// Whether the guest wants to be told of what was published since the last time.
    pub fn wants_notification(&mut self) -> bool {
        if !self.event_idx {
            let flags = self.parts.avail.u16(0, Ordering::Relaxed);
            return flags & NOT_WANTED == 0;
        }
        let event = 4 + 2 * usize::from(self.size);
        let event = self.parts.avail.u16(event, Ordering::Relaxed);
        let new = self.published;
        // virtio 1.3, 2.7.10: whether the event lies in what is new. The first is always told.
        self.judged
            .replace(new)
            .is_none_or(|old| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// Asks for a kick at the next entry. True where there is one already: take it first.
    pub fn enable_kicks(&mut self) -> bool {
        let used = &self.parts.used;
        if self.event_idx {
            let event = 4 + 8 * usize::from(self.size);
            used.set_u16(event, self.next_avail, Ordering::Relaxed);
        } else {
            used.set_u16(0, 0, Ordering::Relaxed);
        }
        // The wish comes before the look: the guest does it the other way round.
        fence(Ordering::SeqCst);
        self.has_next()
    }

    /// Asks for none: the ring is looked at anyway. With the event index that is so by itself,
    /// as the index stays behind.
    pub fn disable_kicks(&mut self) {
        if !self.event_idx {
            let used = &self.parts.used;
            used.set_u16(0, NOT_WANTED, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::RegionInfo;
    use super::super::memory::tests::file;
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    const PLACE: RingPlace = RingPlace {
        desc: 0,
        avail: 0x1000,
        used: 0x2000,
    };

    fn with(map: &GuestMap, guest: u64, user: u64, size: u64) -> GuestMap {
        let info = RegionInfo {
            guest,
            size,
            user,
            offset: 0,
        };
        map.with(info, file(size)).unwrap()
    }

    fn ring(event_idx: bool) -> Ring {
        let map = with(&GuestMap::empty(), 0, 0, 0x10000);
        Ring::new(Arc::new(map), PLACE, 8, 0, event_idx).unwrap()
    }

    fn next(ring: &mut Ring) -> Result<Option<(u16, u16)>, RingError> {
        match ring.shown()? {
            0 => Ok(None),
            _ => ring.take().map(Some),
        }
    }

    fn put(ring: &Ring, addr: u64, value: u16) {
        let stored = ring
            .map()
            .store(value, GuestAddress(addr), Ordering::Release);
        stored.unwrap();
    }

    fn get(ring: &Ring, addr: u64) -> u16 {
        let loaded = ring.map().load(GuestAddress(addr), Ordering::Acquire);
        loaded.unwrap()
    }

    #[test]
    fn entries_come_in_order_and_jumps_are_errors() {
        let mut ring = ring(true);
        assert_eq!(next(&mut ring), Ok(None));
        put(&ring, 0x1004, 5);
        put(&ring, 0x1006, 3);
        put(&ring, 0x1002, 2);
        assert_eq!(next(&mut ring), Ok(Some((0, 5))));
        assert_eq!(next(&mut ring), Ok(Some((1, 3))));
        assert_eq!(next(&mut ring), Ok(None));
        put(&ring, 0x1002, 11);
        assert!(next(&mut ring).unwrap_err().0.contains("ahead of 2"));
        put(&ring, 0x1002, 1);
        assert!(next(&mut ring).is_err(), "backwards");
        put(&ring, 0x1002, 3);
        put(&ring, 0x1008, 8);
        assert!(next(&mut ring).unwrap_err().0.contains("descriptor 8"));
        assert_eq!(ring.next_avail(), 2);
    }

    #[test]
    fn a_full_ring_and_the_wrap_of_positions() {
        let map = ring(true).map().clone();
        let mut ring = Ring::new(map, PLACE, 8, 0xfffc, true).unwrap();
        for n in 0..8 {
            put(&ring, 0x1004 + 2 * n, n as u16);
        }
        put(&ring, 0x1002, 4);
        for n in 0..8u16 {
            let position = 0xfffcu16.wrapping_add(n);
            assert_eq!(next(&mut ring), Ok(Some((position, position % 8))));
        }
        assert_eq!(next(&mut ring), Ok(None));
    }

    #[test]
    fn a_ring_goes_on_where_the_used_index_stands() {
        let map = ring(true).map().clone();
        map.write_obj(0xffffu16, GuestAddress(0x2002)).unwrap();
        let mut ring = Ring::new(map, PLACE, 8, 0, true).unwrap();
        ring.put(3, 77);
        ring.publish();
        assert_eq!(get(&ring, 0x2002), 0);
        let entry: u64 = ring.map().read_obj(GuestAddress(0x2004 + 8 * 7)).unwrap();
        assert_eq!(entry, 77 << 32 | 3);
    }

    #[test]
    fn notifications_follow_the_event_index() {
        let mut ring = ring(true);
        ring.put(1, 10);
        ring.publish();
        assert!(ring.wants_notification(), "event 0 is this one");
        ring.put(1, 10);
        ring.publish();
        assert!(!ring.wants_notification(), "event 0 is behind");
        put(&ring, 0x1004 + 16, 3);
        ring.put(1, 10);
        ring.publish();
        assert!(!ring.wants_notification());
        ring.put(1, 10);
        ring.publish();
        ring.put(1, 10);
        ring.publish();
        assert!(ring.wants_notification(), "one for two");
        assert!(!ring.enable_kicks());
        assert_eq!(get(&ring, 0x2004 + 64), 0, "the avail event");
    }

    #[test]
    fn notifications_follow_the_flags() {
        let mut ring = ring(false);
        ring.put(1, 10);
        ring.publish();
        assert!(ring.wants_notification());
        put(&ring, 0x1000, 1);
        assert!(!ring.wants_notification());
        assert!(!ring.enable_kicks());
        assert_eq!(get(&ring, 0x2000), 0);
        put(&ring, 0x1002, 1);
        assert!(ring.enable_kicks(), "no lost kick");
        ring.disable_kicks();
        assert_eq!(get(&ring, 0x2000), 1);
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

    #[test]
    fn a_ring_moves_with_its_region_or_stays() {
        let mut ring = ring(true);
        let moved = with(&GuestMap::empty(), 0x100000, 0, 0x10000);
        ring.remap(&moved).unwrap();
        assert_eq!(ring.table_at(), 0x100000);
        put(&ring, 0x101002, 1);
        assert_eq!(next(&mut ring), Ok(Some((0, 0))));
        assert!(ring.remap(&GuestMap::empty()).is_err());
        // The table and the avail ring would be aligned there, the used ring not.
        let skewed = with(&GuestMap::empty(), 0x300000, 0, 0x1000);
        let skewed = with(&skewed, 0x400002, 0x1000, 0x2000);
        assert!(ring.remap(&skewed).unwrap_err().0.contains("used ring"));
        assert_eq!(ring.table_at(), 0x100000);
        assert_eq!(ring.avail_idx(), 1);
    }
}
