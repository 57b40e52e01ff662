// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A ring while it runs, with what is known of it beside the ring itself: which chains are in
//! flight, where the front end keeps them for a device that is killed, and whether the guest's
//! memory is still there.

use std::collections::VecDeque;
use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::command::Start;
use super::inflight::{Again, Tracked};
use super::memory::GuestMap;
use super::ring::{Ring, RingError};
use super::wake::Wake;
use super::worker::Done;
use crate::sigbus;

/// What is needed to complete a request.
pub(super) struct Slot {
    pub head: u16,
    pub epoch: u32,
    pub map: Arc<GuestMap>,
    pub status_at: Option<u64>,
    /// Pieces of guest memory that it is made of.
    pub pieces: usize,
}

/// See the module.
pub(super) struct Active {
    pub ring: Ring,
    pub epoch: u32,
    /// Not served any more, because it was found broken.
    pub broken: bool,
    /// Missing pages of guest memory that were heard of when the map was looked at last.
    gone: u64,
    /// By head: whether the chain is in flight.
    taken: Vec<bool>,
    /// Where the front end keeps what is in flight.
    pub tracked: Option<Tracked>,
    /// What a device that was killed had in flight: taken before the ring is looked at.
    pub again: VecDeque<Again>,
    /// The vring could keep it, but has no way to signal it.
    pub err: Option<Wake>,
}

impl Active {
    /// A ring as the front end describes it; or what is wrong with it, and whom to tell.
    pub fn new(start: Start) -> Result<Active, (RingError, Option<Wake>)> {
        let size = start.size;
        let err = start.err.map(Wake::from);
        let mut tracked = start.tracked;
        let ring = Ring::new(start.map, start.place, size, start.base, start.event_idx);
        let ring = ring.and_then(|mut ring| {
            let again = go_on(&mut ring, tracked.as_mut(), size)?;
            Ok((ring, again))
        });
        let (mut ring, again) = match ring {
            Ok(made) => made,
            Err(error) => return Err((error, err)),
        };
        ring.set_kick(start.kick);
        ring.set_call(start.call);
        ring.set_enabled(start.enabled);
        Ok(Active {
            ring,
            epoch: start.epoch,
            broken: false,
            gone: 0,
            taken: vec![false; usize::from(size)],
            tracked,
            again,
            err,
        })
    }

    /// Whether requests are taken.
    pub fn serving(&self) -> bool {
        !self.broken && self.ring.is_enabled()
    }

    /// A ring is served no more where a page of its guest's memory has gone: what is read there
    /// are zeros that nobody wrote.
    pub fn look_at_memory(&mut self) -> Result<(), RingError> {
        let gone = sigbus::changes();
        if std::mem::replace(&mut self.gone, gone) == gone {
            return Ok(());
        }
        match self.ring.map().gone() {
            None => Ok(()),
            Some(region) => Err(RingError(format!(
                "guest memory has gone, the file of {region:x?} was made shorter"
            ))),
        }
    }

    /// The chain is in flight from now on.
    pub fn take(&mut self, head: u16) -> Result<(), RingError> {
        if std::mem::replace(&mut self.taken[usize::from(head)], true) {
            return Err(RingError(format!(
                "chain {head} was made available while it is in flight"
            )));
        }
        if let Some(tracked) = &mut self.tracked {
            tracked.taken(head);
        }
        Ok(())
    }

    /// Writes the status and puts the chain into the used ring.
    pub fn put(&mut self, slot: &Slot, done: &Done) -> Result<(), RingError> {
        let mut len = 0;
        if let Some(at) = slot.status_at {
            let written = slot.map.write_obj(done.status.0, GuestAddress(at));
            written.map_err(|e| RingError(format!("cannot write a status at {at:#x}: {e}")))?;
            len = done.written.saturating_add(1);
        }
        let len = done.used_len.unwrap_or(len);
        self.taken[usize::from(slot.head)] = false;
        self.ring.put(slot.head, len);
        if let Some(tracked) = &mut self.tracked {
            tracked.put(slot.head);
        }
        Ok(())
    }

    /// The guest is never told of the chain, so it stays in flight for it.
    pub fn keep(&mut self, slot: &Slot) {
        self.taken[usize::from(slot.head)] = true;
    }

    /// Publishes what was put. The avail index as it was afterwards.
    pub fn publish(&mut self) -> u16 {
        let avail_after = self.ring.publish();
        if let Some(tracked) = &mut self.tracked {
            tracked.published(self.ring.published());
        }
        avail_after
    }
}

/// Where the front end keeps what is in flight, the ring goes on where that says: behind
/// what was taken. What was taken and not given back is to be taken again.
fn go_on(
    ring: &mut Ring,
    tracked: Option<&mut Tracked>,
    size: u16,
) -> Result<VecDeque<Again>, RingError> {
    let Some(tracked) = tracked else {
        return Ok(VecDeque::new());
    };
    let used = ring.published();
    let again = tracked.begin(used, size).map_err(RingError)?;
    // At most `size` of them.
    ring.go_on_at(used.wrapping_add(again.len() as u16));
    Ok(again.into())
}
