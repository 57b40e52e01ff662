// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests in flight on the data disk, and what the device owes.

use std::collections::HashSet;
use std::ops::Range;

use wtblk_shared::disk::SECTOR;

use super::fast_hash::NumberSet;
use super::slots::Slots;
use crate::trace::event::{Complete, DeviceEvent, DeviceKind, Op, RequestId, Submit};

/// A request in flight.
#[derive(Clone, Debug)]
pub struct InFlight {
    /// Kind.
    pub op: Op,
    /// Its bytes on the disk.
    pub disk: Range<u64>,
    /// A rule holds it back.
    pub held: bool,
    /// The call it may belong to, and its place among the call's requests.
    pub owner: Option<(u64, usize)>,
    /// That call has the flag `direct`.
    pub direct: bool,
    /// Digest of its data when it was taken; 0: there is none.
    pub digest: u64,
    /// When it was taken, by the trace's clock.
    pub taken_ns: u64,
    queue: u16,
    epoch: u32,
}

/// Whose a request may be.
#[derive(Clone, Copy, Debug, Default)]
pub struct Owner {
    /// See [`InFlight`].
    pub call: Option<(u64, usize)>,
    /// See [`InFlight`].
    pub direct: bool,
}

/// What the device owes, seen from a range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owes {
    /// Nothing: whoever waits there waits for something else.
    Nothing,
    /// So many writes of the range are in flight.
    Writes(usize),
    /// It cannot be told, for this reason.
    Unclear(&'static str),
}

/// The table.
#[derive(Debug, Default)]
pub struct Flight {
    requests: Slots<InFlight>,
    /// Requests of other disks: what a call waits for there is not known.
    elsewhere: NumberSet,
    running: HashSet<u16>,
    stopped: HashSet<u16>,
    down: bool,
    blind: bool,
    submits: u64,
}

impl Flight {
    /// A request was taken.
    pub fn submit(&mut self, id: RequestId, s: &Submit, owner: Owner, now_ns: u64) {
        self.submits += 1;
        self.requests.insert(
            id,
            InFlight {
                op: s.op,
                disk: bytes_of(s),
                held: false,
                owner: owner.call,
                direct: owner.direct,
                digest: s.digest,
                taken_ns: now_ns,
                queue: s.queue,
                epoch: s.epoch,
            },
        );
    }

    /// A request of another disk than the data disk was taken.
    pub fn submit_elsewhere(&mut self, id: RequestId) {
        self.elsewhere.insert(id);
    }

    /// A rule holds a request back.
    pub fn hold(&mut self, id: RequestId) {
        if let Some(r) = self.requests.get_mut(id) {
            r.held = true;
        }
    }

    /// A request in flight.
    pub fn get(&self, id: RequestId) -> Option<&InFlight> {
        self.requests.get(id)
    }

    /// A request was completed.
    pub fn complete(&mut self, id: RequestId) -> Option<InFlight> {
        if !self.elsewhere.is_empty() {
            self.elsewhere.remove(&id);
        }
        self.requests.remove(id)
    }

    /// Something happened to the data disk. True where it stopped serving, so
    /// that nothing may be concluded across this event.
    pub fn device(&mut self, event: &DeviceEvent) -> bool {
        match event.kind {
            DeviceKind::QueueStart => {
                // What an older ring still had is owed to nobody. The first queue
                // that starts begins a new round: others may not come again.
                let fresh = self.running.is_empty();
                self.requests.retain(|r| {
                    (!fresh && r.queue != event.queue) || u64::from(r.epoch) >= event.b
                });
                if fresh {
                    self.stopped.clear();
                }
                self.running.insert(event.queue);
                self.stopped.remove(&event.queue);
                self.down = false;
                false
            }
            DeviceKind::QueueStop | DeviceKind::BadRing => {
                self.running.remove(&event.queue);
                self.stopped.insert(event.queue);
                true
            }
            // After a power cut nothing is completed: whoever waits, waits for the device.
            DeviceKind::Disconnected | DeviceKind::End | DeviceKind::Cut => {
                self.down = true;
                true
            }
            DeviceKind::Reset => {
                self.requests.clear();
                self.running.clear();
                self.stopped.clear();
                self.blind = false;
                self.down = true;
                true
            }
            _ => false,
        }
    }

    /// Events are missing: what is in flight is not known until the next reset or boot.
    pub fn gap(&mut self) {
        self.blind = true;
        self.elsewhere.clear();
        self.requests.clear();
    }

    /// A new kernel says hello: requests that a gap hid belonged to the old one.
    pub fn boot(&mut self) {
        self.blind = false;
    }

    /// Whether events are missing since the table was last known to be right.
    pub fn is_blind(&self) -> bool {
        self.blind
    }

    /// Requests taken so far: two equal answers mean that none was taken in between.
    pub fn submits(&self) -> u64 {
        self.submits
    }

    /// Whether any request is in flight, as far as is known.
    pub fn any(&self) -> bool {
        self.blind || !self.requests.is_empty()
    }

    /// What stands against "nothing is held, hung or in flight".
    pub fn not_idle(&self) -> Option<&'static str> {
        self.not_serving().or_else(|| {
            (!self.requests.is_empty()).then_some("the backend had requests held or in flight")
        })
    }

    /// What the device owes to `near` (ascending, apart from each other); `log` tells which writes are log writes.
    ///
    /// A folio may be larger than the range that asks, and extents move. So a
    /// write that is neither near nor a log write makes the answer unclear.
    pub fn owes(&self, near: &[Range<u64>], log: impl Fn(&Range<u64>) -> bool) -> Owes {
        if let Some(why) = self.not_serving() {
            return Owes::Unclear(why);
        }
        let writes = || self.requests.values().filter(|r| writes_blocks(r.op));
        let ours = |r: &InFlight| {
            let first = near.partition_point(|n| n.end <= r.disk.start);
            near.get(first).is_some_and(|n| overlap(n, &r.disk))
        };
        let count = writes().filter(|r| ours(r)).count();
        if count > 0 {
            Owes::Writes(count)
        } else if self.requests.values().any(|r| r.held) {
            // Writeback may wait for a transaction, and that for the held log write.
            Owes::Unclear("another request was held back at a report")
        } else if writes().any(|r| !log(&r.disk)) {
            Owes::Unclear("a write of unknown place was in flight at a report")
        } else {
            Owes::Nothing
        }
    }

    fn not_serving(&self) -> Option<&'static str> {
        if self.blind {
            Some("events are missing: requests in flight are not known")
        } else if self.down || !self.stopped.is_empty() {
            Some("the data disk was not running")
        } else if !self.elsewhere.is_empty() {
            Some("a request of another disk was in flight")
        } else {
            None
        }
    }
}

impl InFlight {
    /// Whether its data was the same at its completion as when it was taken; `None`
    /// where that was not looked at.
    pub fn stable(&self, c: &Complete) -> Option<bool> {
        (self.digest != 0 && c.digest != 0).then_some(self.digest == c.digest)
    }
}

/// The bytes of a request on the disk.
pub fn bytes_of(s: &Submit) -> Range<u64> {
    let start = s.sector.saturating_mul(SECTOR);
    start..start.saturating_add(u64::from(s.bytes))
}

/// Whether two ranges share a byte.
pub fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Whether requests of this kind change blocks, as far as is known.
pub fn writes_blocks(op: Op) -> bool {
    matches!(op, Op::Write | Op::Discard | Op::WriteZeroes | Op::Other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::event::DATA_DISK;

    fn take(flight: &mut Flight, id: RequestId, queue: u16, epoch: u32) {
        let submit = Submit {
            disk: DATA_DISK,
            queue,
            op: Op::Write,
            sector: 8 * id,
            bytes: 4096,
            ioprio: 0,
            epoch,
            avail_pos: 0,
            digest: 0,
        };
        flight.submit(id, &submit, Owner::default(), 0);
    }

    fn queue(flight: &mut Flight, kind: DeviceKind, queue: u16, epoch: u64) {
        flight.device(&DeviceEvent {
            disk: DATA_DISK,
            queue,
            kind,
            a: 0,
            b: epoch,
            text: String::new(),
        });
    }

    /// A queue that starts again owes nothing of its older ring; what other queues that go on owe, it leaves
    /// alone; where none goes on, nobody owes anything of before.
    #[test]
    fn a_queue_that_starts_again_forgets_its_own_requests() {
        let mut flight = Flight::default();
        let start = DeviceKind::QueueStart;
        queue(&mut flight, start, 0, 1);
        queue(&mut flight, start, 1, 1);
        take(&mut flight, 10, 0, 1);
        take(&mut flight, 11, 1, 1);
        queue(&mut flight, start, 0, 2);
        assert!(flight.get(10).is_none() && flight.get(11).is_some());
        take(&mut flight, 12, 0, 2);
        queue(&mut flight, start, 0, 2);
        assert!(flight.get(11).is_some() && flight.get(12).is_some());
        for n in [0, 1] {
            queue(&mut flight, DeviceKind::QueueStop, n, 0);
        }
        queue(&mut flight, start, 0, 3);
        assert!(!flight.any());
    }
}
