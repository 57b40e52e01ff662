// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue of the disk under test: each request is recorded, put before the
//! rules, perhaps held, and done by the store.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vm_memory::{Bytes, GuestAddress};
use wtblk_shared::disk::{DATA_SERIAL, SECTOR};
use wtblk_shared::tag::Tag;

use super::hub::Hub;
use super::memory::{GuestMap, Segment};
use super::request::Parsed;
use super::worker::{Done, QueueDevice, Taken};
use crate::fault::request::{Decision, Request};
use crate::store::{self, Completion, StoreQueue};
use crate::trace::event::{
    Body, Complete, DATA_DISK, Decide, DeviceKind, Op, RequestId, Status, Submit,
};

/// Bytes of a serial (virtio 1.3, 5.2.6.1).
const ID_LEN: usize = 20;

/// What all queues of the disk share.
pub(super) struct DiskState {
    /// Capacity in bytes.
    pub capacity: u64,
    pub read_only: bool,
    /// CONFIG_WCE's byte: a write-back cache, or writes durable when they complete.
    pub writeback: AtomicBool,
    /// A stopping ring abandons what is held; otherwise it is completed as planned.
    pub abandon_on_stop: bool,
}

/// A request between its submission and its completion.
struct Pending {
    id: RequestId,
    op: Op,
    sector: u64,
    bytes: u32,
    data: Vec<Segment>,
    map: Arc<GuestMap>,
    /// The status that a rule gives it; the store then does nothing.
    planned: Option<Status>,
    /// A write in write-through mode whose data is written and being flushed.
    flushing: bool,
}

/// See the module.
pub(super) struct DataQueue {
    hub: Arc<Hub>,
    disk: Arc<DiskState>,
    queue: u16,
    store: Box<dyn StoreQueue>,
    pending: HashMap<u64, Pending>,
    /// Held requests in the order of their submission, each with its rule.
    held: BTreeMap<u64, String>,
    over: Vec<Done>,
    reaped: Vec<Completion>,
}

impl DataQueue {
    pub fn new(
        hub: Arc<Hub>,
        disk: Arc<DiskState>,
        queue: u16,
        store: Box<dyn StoreQueue>,
    ) -> DataQueue {
        DataQueue {
            hub,
            disk,
            queue,
            store,
            pending: HashMap::new(),
            held: BTreeMap::new(),
            over: Vec::new(),
            reaped: Vec::new(),
        }
    }

    fn event(&self, kind: DeviceKind, a: u64, b: u64, text: &str) {
        self.hub.event(DATA_DISK, self.queue, kind, a, b, text);
    }

    fn finish(&mut self, token: u64, status: Status, written: u32) {
        self.over.push(Done {
            token,
            status,
            written,
            abandon: false,
        });
    }

    /// The decision is recorded; whether the request is held.
    fn obey(&mut self, token: u64, request: RequestId, decision: Decision) -> bool {
        self.hub.trace.record(&Body::Decide(Decide {
            request,
            rule: decision.rule,
            hold: decision.plan.hold.is_some(),
            status: decision.plan.status,
            name: decision.name.clone(),
            plan: decision.plan.to_string(),
        }));
        if let Some(pending) = self.pending.get_mut(&token) {
            // A planned success stores the data like any other.
            pending.planned = decision.plan.status.filter(|s| !s.is_ok());
        }
        if decision.plan.hold.is_some() {
            self.hub.hold(&decision.name);
            self.held.insert(token, decision.name);
        }
        decision.plan.hold.is_some()
    }

    /// Does a request, or gives it the status that is planned for it.
    fn begin(&mut self, token: u64) {
        let Some(pending) = self.pending.get(&token) else {
            return;
        };
        if let Some(status) = pending.planned {
            return self.finish(token, status, 0);
        }
        match pending.op {
            Op::Read | Op::Write => match self.transfer(pending) {
                Some(op) => self.store.submit(token, op),
                None => self.finish(token, Status::IOERR, 0),
            },
            Op::Flush => self.store.submit(token, store::Op::Flush),
            Op::GetId => match write_id(&pending.map, &pending.data) {
                Some(written) => self.finish(token, Status::OK, written),
                None => self.finish(token, Status::IOERR, 0),
            },
            Op::Discard | Op::WriteZeroes | Op::Other => self.finish(token, Status::UNSUPP, 0),
        }
    }

    /// The store's operation; `None` where the request is not to be had.
    fn transfer(&self, pending: &Pending) -> Option<store::Op> {
        let offset = pending.sector.checked_mul(SECTOR)?;
        let end = offset.checked_add(u64::from(pending.bytes))?;
        let whole = u64::from(pending.bytes) % SECTOR == 0;
        let write = pending.op == Op::Write;
        if !whole || end > self.disk.capacity || (write && self.disk.read_only) {
            return None;
        }
        let buffers = pending.map.buffers(&pending.data)?;
        Some(if write {
            store::Op::Write { offset, buffers }
        } else {
            store::Op::Read { offset, buffers }
        })
    }

    fn stored(&mut self, completion: Completion) {
        let Completion { token, result } = completion;
        let Some(pending) = self.pending.get_mut(&token) else {
            return;
        };
        if let Err(error) = result {
            let errno = error.raw_os_error().unwrap_or(libc::EIO) as u64;
            let (id, text) = (pending.id, error.to_string());
            self.event(DeviceKind::StoreError, errno, id, &text);
            return self.finish(token, Status::IOERR, 0);
        }
        let through = !self.disk.writeback.load(Ordering::Relaxed);
        if pending.op == Op::Write && through && !pending.flushing {
            pending.flushing = true;
            return self.store.submit(token, store::Op::Flush);
        }
        let written = if pending.op == Op::Read {
            pending.bytes
        } else {
            0
        };
        self.finish(token, Status::OK, written);
    }

    fn let_go(&mut self, tokens: Vec<u64>, abandon: bool) -> u64 {
        for &token in &tokens {
            if let Some(rule) = self.held.remove(&token) {
                self.hub.let_go(&rule);
            }
            if abandon {
                let planned = self.pending.get(&token).and_then(|p| p.planned);
                self.over.push(Done {
                    token,
                    status: planned.unwrap_or(Status::OK),
                    written: 0,
                    abandon,
                });
            } else {
                self.begin(token);
            }
        }
        tokens.len() as u64
    }
}

impl QueueDevice for DataQueue {
    fn take(&mut self, token: u64, taken: Taken) {
        let (parsed, malformed) = match taken.parsed {
            Ok(parsed) => (parsed, None),
            Err(malformed) => (nothing(), Some(malformed.what)),
        };
        let id = self.hub.trace.record(&Body::Submit(Submit {
            disk: DATA_DISK,
            queue: self.queue,
            op: parsed.op,
            sector: parsed.sector,
            bytes: parsed.bytes,
            ioprio: parsed.ioprio,
            epoch: taken.epoch,
            avail_pos: taken.position,
            digest: 0,
        }));
        self.hub.add_in_flight(1);
        let request = Request {
            id,
            disk: DATA_DISK,
            queue: self.queue,
            op: parsed.op,
            sector: parsed.sector,
            bytes: parsed.bytes,
            tag: Tag::from_ioprio(parsed.ioprio),
            inflight: u32::try_from(self.hub.in_flight()).unwrap_or(u32::MAX),
        };
        let pending = Pending {
            id,
            op: parsed.op,
            sector: parsed.sector,
            bytes: parsed.bytes,
            data: parsed.data,
            map: taken.map,
            planned: None,
            flushing: false,
        };
        self.pending.insert(token, pending);
        if let Some(what) = malformed {
            self.event(DeviceKind::BadChain, u64::from(taken.head), id, &what);
            return self.finish(token, Status::IOERR, 0);
        }
        let decision = self.hub.decide(&request);
        if decision.is_some_and(|decision| self.obey(token, id, decision)) {
            return;
        }
        self.begin(token);
    }

    fn poll(&mut self, done: &mut Vec<Done>) {
        let mut reaped = std::mem::take(&mut self.reaped);
        self.store.reap(&mut reaped);
        for completion in reaped.drain(..) {
            self.stored(completion);
        }
        self.reaped = reaped;
        done.append(&mut self.over);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.store.event()
    }

    fn deadline(&self) -> Option<Instant> {
        // What is over without the store (a planned status, GET_ID) waits for nobody.
        (!self.over.is_empty()).then(Instant::now)
    }

    fn release(&mut self, rule: Option<&str>) -> u64 {
        let matches = |name: &String| rule.is_none_or(|rule| rule == name);
        let held = self.held.iter().filter(|(_, name)| matches(name));
        let tokens = held.map(|(&token, _)| token).collect();
        self.let_go(tokens, false)
    }

    fn stop(&mut self) -> u64 {
        let tokens = self.held.keys().copied().collect();
        self.let_go(tokens, self.disk.abandon_on_stop)
    }

    fn publishing(&mut self) -> Option<u64> {
        Some(self.hub.trace.reserve())
    }

    fn published(&mut self, number: Option<u64>, done: &Done, avail_after: u16, abandoned: bool) {
        self.hub.add_in_flight(-1);
        let pending = self.pending.remove(&done.token);
        let (Some(number), Some(pending)) = (number, pending) else {
            return;
        };
        let complete = Complete {
            request: pending.id,
            status: done.status,
            avail_after,
            abandoned,
            digest: 0,
        };
        self.hub.trace.commit(number, &Body::Complete(complete));
    }
}

/// Stands for a chain too broken to have a request in it.
fn nothing() -> Parsed {
    Parsed {
        op: Op::Other,
        sector: 0,
        bytes: 0,
        ioprio: 0,
        data: Vec::new(),
        status: 0,
    }
}

fn write_id(map: &GuestMap, data: &[Segment]) -> Option<u32> {
    scatter(map, data, &id(DATA_SERIAL))
}

/// A serial as GET_ID gives it: NUL padded.
pub(super) fn id(serial: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    id
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
