// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A split ring while it runs: `virtio-queue`'s queue in `vhost-user-backend`'s
//! vring. Ours is what those do not have: where the ring lies in the front end's
//! addresses, and the order of publishing and reading that the trace relies on.
//! Descriptors are `chain`'s business.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vhost_user_backend::{VringMutex, VringState, VringT};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Error, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryAtomic};

use super::memory::GuestMap;

/// The largest queue (virtio 1.3, 2.7).
pub(super) const MAX_SIZE: u32 = 32768;

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

/// The memory that a ring is in: one map, until the front end adds or removes regions.
type RingMemory = GuestMemoryAtomic<GuestMap>;

/// See the module. Only the worker has it, so its lock is always free.
pub(super) struct Ring {
    /// Positions, addresses, the kick and call fds, and whether the ring is enabled.
    vring: VringMutex<RingMemory>,
    /// The same memory as the vring's.
    memory: RingMemory,
    place: RingPlace,
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
        let memory = RingMemory::from(map);
        let vring = VringMutex::new(memory.clone(), size)
            .map_err(|e| RingError(format!("a queue of {size} entries: {e}")))?;
        let ring = Ring {
            vring,
            memory,
            place,
        };
        ring.vring.set_queue_ready(true);
        ring.settle(&ring.map())?;
        ring.vring.set_queue_event_idx(event_idx);
        ring.vring.set_queue_next_avail(base);
        let used = ring.vring.queue_used_idx().map_err(failed("used index"))?;
        ring.vring.set_queue_next_used(used);
        Ok(ring)
    }

    /// Moves to another map of the same memory: the front end added or removed regions.
    pub fn remap(&mut self, map: &GuestMap) -> Result<(), RingError> {
        self.settle(map)?;
        // No panic leaves it poisoned: the lock is held for this one line.
        let exclusive = self.memory.lock().unwrap_or_else(|e| e.into_inner());
        exclusive.replace(map.clone());
        Ok(())
    }

    /// The parts' places in a map; where they are none, the old ones stay.
    fn settle(&self, map: &GuestMap) -> Result<(), RingError> {
        let guest = |name: &str, user: u64| {
            map.user_to_guest(user)
                .ok_or_else(|| RingError(format!("the {name} at {user:#x} is not in guest memory")))
        };
        let desc = guest("descriptor table", self.place.desc)?;
        let avail = guest("avail ring", self.place.avail)?;
        let used = guest("used ring", self.place.used)?;
        let mut vring = self.vring.get_mut();
        let queue = vring.get_queue();
        let old = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
        let settled = match vring.set_queue_info(desc, avail, used) {
            Err(error) => Err(RingError(error.to_string())),
            Ok(()) if vring.get_queue().is_valid(map) => Ok(()),
            Ok(()) => Err(RingError("the ring ends outside guest memory".into())),
        };
        if settled.is_err() {
            // They were good enough for the queue once.
            let _ = vring.set_queue_info(old.0, old.1, old.2);
        }
        settled
    }

    /// The map that chains are walked in.
    pub fn map(&self) -> Arc<GuestMap> {
        self.memory.memory().into_inner()
    }

    /// The vring itself, locked: for the kick fd, and whether it is enabled.
    pub fn vring(&self) -> impl Deref<Target = VringState<RingMemory>> {
        self.vring.get_ref()
    }

    /// Guest physical address of the descriptor table.
    pub fn table(&self) -> u64 {
        self.vring().get_queue().desc_table()
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.vring().get_queue().size()
    }

    /// Position of the next avail entry to take: what GET_VRING_BASE tells.
    pub fn next_avail(&self) -> u16 {
        self.vring.queue_next_avail()
    }

    /// Whether requests are to be taken.
    pub fn set_enabled(&mut self, on: bool) {
        self.vring.set_enabled(on);
    }

    /// The fd that the front end kicks through.
    pub fn set_kick(&mut self, fd: Option<File>) {
        self.vring.set_kick(fd);
    }

    /// The fd that the front end is notified through.
    pub fn set_call(&mut self, fd: Option<File>) {
        self.vring.set_call(fd);
    }

    /// Takes what kicks there are.
    pub fn drain_kick(&mut self) -> Result<(), RingError> {
        match self.vring.read_kick() {
            Ok(_) => Ok(()),
            // Somebody else drained it: it is non-blocking, and the front end has it too.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(e) => {
                self.vring.set_kick(None);
                Err(RingError(format!("the kick fd cannot be read: {e}")))
            }
        }
    }

    /// Notifies the front end.
    pub fn notify(&self) {
        match self.vring.signal_used_queue() {
            Ok(()) => {}
            // Full, and so readable.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => tracing::warn!(%error, "cannot notify the front end"),
        }
    }

    /// The avail index as the guest has it now.
    pub fn avail_idx(&self) -> Result<u16, RingError> {
        let idx = self
            .vring()
            .get_queue()
            .avail_idx(&*self.memory.memory(), Ordering::Acquire);
        Ok(idx.map_err(failed("avail index"))?.0)
    }

    /// Takes the next entry: its position and the head of its chain.
    pub fn take(&mut self) -> Result<Option<(u16, u16)>, RingError> {
        let mut vring = self.vring.get_mut();
        let queue = vring.get_queue_mut();
        let (position, size) = (queue.next_avail(), queue.size());
        let memory = self.memory.memory();
        // Reads the index (acquire) and compares it with the position. Of the iterator only the
        // head is used: the chain is walked by our own code. An entry that cannot be read would
        // look like none, but the whole ring was found to be memory.
        let head = match queue.iter(&*memory) {
            Ok(mut entries) => entries.next().map(|chain| chain.head_index()),
            Err(Error::InvalidAvailRingIndex) => {
                return Err(RingError(format!(
                    "the avail index is ahead of {position} by more than the {size} of the queue"
                )));
            }
            Err(error) => return Err(failed("avail index")(error)),
        };
        match head {
            Some(head) if head >= size => {
                queue.go_to_previous_position();
                Err(RingError(format!(
                    "avail entry {position} names descriptor {head}, the queue has {size}"
                )))
            }
            head => Ok(head.map(|head| (position, head))),
        }
    }

    /// Gives a chain back: the used entry, then (release) the index.
    pub fn publish(&mut self, head: u16, len: u32) -> Result<(), RingError> {
        let added = self.vring.add_used(head, len);
        added.map_err(failed("used ring"))?;
        // The avail index that is read for the record, and the guest's wish for a notification,
        // are read after the publication, on every CPU's view.
        fence(Ordering::SeqCst);
        Ok(())
    }

    /// Whether the guest wants to be told of what was published since the last time.
    pub fn wants_notification(&mut self) -> Result<bool, RingError> {
        let (event_idx, avail) = {
            let vring = self.vring();
            let queue = vring.get_queue();
            (queue.event_idx_enabled(), queue.avail_ring())
        };
        if !event_idx {
            // The crate notifies always here; the flag is not in it.
            let memory = self.memory.memory();
            let flags = memory.load(GuestAddress(avail), Ordering::Relaxed);
            let flags = u16::from_le(flags.map_err(failed("avail flags"))?);
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let wanted = self.vring.needs_notification();
        wanted.map_err(failed("used event"))
    }

    /// Asks for a kick at the next entry. True where there is one already: take it first.
    pub fn enable_kicks(&mut self) -> Result<bool, RingError> {
        let more = self.vring.enable_notification();
        more.map_err(failed("avail event"))
    }
}

/// Words for a part of the ring that could not be accessed.
fn failed<E: Display>(part: &str) -> impl Fn(E) -> RingError {
    move |error| RingError(format!("the {part} is out of reach: {error}"))
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
        assert_eq!(ring.take(), Ok(None));
        put(&ring, 0x1004, 5);
        put(&ring, 0x1006, 3);
        put(&ring, 0x1002, 2);
        assert_eq!(ring.take(), Ok(Some((0, 5))));
        assert_eq!(ring.take(), Ok(Some((1, 3))));
        assert_eq!(ring.take(), Ok(None));
        put(&ring, 0x1002, 11);
        assert!(ring.take().unwrap_err().0.contains("ahead of 2"));
        put(&ring, 0x1002, 1);
        assert!(ring.take().is_err(), "backwards");
        put(&ring, 0x1002, 3);
        put(&ring, 0x1008, 8);
        assert!(ring.take().unwrap_err().0.contains("descriptor 8"));
        assert_eq!(ring.next_avail(), 2);
    }

    #[test]
    fn a_full_ring_and_the_wrap_of_positions() {
        let map = ring(true).map();
        let mut ring = Ring::new(map, PLACE, 8, 0xfffc, true).unwrap();
        for n in 0..8 {
            put(&ring, 0x1004 + 2 * n, n as u16);
        }
        put(&ring, 0x1002, 4);
        for n in 0..8u16 {
            let position = 0xfffcu16.wrapping_add(n);
            assert_eq!(ring.take(), Ok(Some((position, position % 8))));
        }
        assert_eq!(ring.take(), Ok(None));
    }

    #[test]
    fn a_ring_goes_on_where_the_used_index_stands() {
        let map = ring(true).map();
        map.write_obj(0xffffu16, GuestAddress(0x2002)).unwrap();
        let mut ring = Ring::new(map, PLACE, 8, 0, true).unwrap();
        ring.publish(3, 77).unwrap();
        assert_eq!(get(&ring, 0x2002), 0);
        let entry: u64 = ring.map().read_obj(GuestAddress(0x2004 + 8 * 7)).unwrap();
        assert_eq!(entry, 77 << 32 | 3);
    }

    #[test]
    fn notifications_follow_the_event_index() {
        let mut ring = ring(true);
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(true), "event 0 is this one");
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(false), "event 0 is behind");
        put(&ring, 0x1004 + 16, 3);
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(false));
        ring.publish(1, 10).unwrap();
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(true), "one for two");
        assert_eq!(ring.enable_kicks(), Ok(false));
        assert_eq!(get(&ring, 0x2004 + 64), 0, "the avail event");
    }

    #[test]
    fn notifications_follow_the_flags() {
        let mut ring = ring(false);
        ring.publish(1, 10).unwrap();
        assert_eq!(ring.wants_notification(), Ok(true));
        put(&ring, 0x1000, 1);
        assert_eq!(ring.wants_notification(), Ok(false));
        assert_eq!(ring.enable_kicks(), Ok(false));
        assert_eq!(get(&ring, 0x2000), 0);
        put(&ring, 0x1002, 1);
        assert_eq!(ring.enable_kicks(), Ok(true), "no lost kick");
    }

    #[test]
    fn rings_outside_memory_are_refused() {
        let map = ring(true).map();
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
        assert_eq!(ring.table(), 0x100000);
        put(&ring, 0x101002, 1);
        assert_eq!(ring.take(), Ok(Some((0, 0))));
        assert!(ring.remap(&GuestMap::empty()).is_err());
        // The table and the avail ring would be aligned there, the used ring not.
        let skewed = with(&GuestMap::empty(), 0x300000, 0, 0x1000);
        let skewed = with(&skewed, 0x400002, 0x1000, 0x2000);
        assert!(ring.remap(&skewed).unwrap_err().0.contains("used ring"));
        assert_eq!(ring.table(), 0x100000);
        assert_eq!(ring.avail_idx(), Ok(1));
    }
}
