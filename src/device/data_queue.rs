// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A queue of the disk under test: each request is recorded, put before the
//! rules, and goes through its `steps`; it waits where its plan says so.

mod looks;
mod steps;

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use wtblk_shared::tag::Tag;

use super::digest::Sample;
use super::groups::Key;
use super::hub::Hub;
use super::memory::{GuestMap, Segments};
use super::outage::Outage;
use super::request::{Parsed, Zone};
use super::slab::{Keyed, Slab};
use super::worker::{Done, Flight, QueueDevice, Taken};
use crate::fault::request::{Decision, Plan, Request};
use crate::store::{Cache, Completion, StoreQueue};
use crate::trace::event::{Body, Complete, DATA_DISK, Decide, DeviceKind, Op, Status, Submit};

/// Bytes of a serial (virtio 1.3, 5.2.6.1).
const ID_LEN: usize = 20;

/// What all queues of the disk share.
pub(super) struct DiskState {
    /// Its number in events.
    pub number: u8,
    /// Of its first queue's worker among those of all disks.
    pub first_worker: u16,
    /// Number of queues.
    pub queues: u16,
    /// The volatile cache, where there is one.
    pub cache: Option<Arc<Cache>>,
    pub outage: Outage,
    /// Capacity in bytes.
    pub capacity: u64,
    pub read_only: bool,
    /// Discard and write-zeroes are offered.
    pub discard: bool,
    pub serial: String,
    /// CONFIG_WCE's byte: a write-back cache, or writes durable when they complete.
    pub writeback: AtomicBool,
    /// A stopping ring abandons what is held; otherwise it is completed as planned.
    pub abandon_on_stop: bool,
}

/// What a request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Nothing,
    Delay,
    Hold,
    Order,
    /// For the end of its ring.
    Hang,
    Store,
    /// It is over, and about to be given back.
    Over,
}

/// A request between its submission and its completion.
struct Pending {
    request: Request,
    data: Segments,
    zones: Vec<Zone>,
    map: Arc<GuestMap>,
    rule: Option<(u16, String)>,
    plan: Plan,
    /// The next step.
    step: usize,
    waits: Waits,
    until: Option<Instant>,
    /// Operations that the store has of it.
    ops: usize,
    status: Status,
    /// Bytes of data written to the guest.
    written: u32,
    /// A write in write-through mode whose data is written and being flushed.
    flushing: bool,
    /// Its ring stops and abandons it: nothing more is done.
    lost: bool,
    /// What its data was when taken, where somebody asks.
    sample: Option<Box<Sample>>,
    /// Digest of its data at its completion.
    digest: u64,
    epoch: u32,
    /// Of a flush: the writes that were completed when it was submitted.
    covers: u64,
    /// What the volatile cache has of it, and was not yet told that it is completed.
    receipts: Vec<u64>,
}

impl Pending {
    /// An error status that the plan gives it. A planned success is like any other.
    fn error(&self) -> Option<Status> {
        self.plan.status.filter(|s| !s.is_ok())
    }

    fn group(&self) -> Option<Key> {
        let slot = self.plan.order.as_ref()?;
        Some((self.rule.as_ref()?.0, slot.group))
    }

    fn rule(&self) -> &str {
        self.rule.as_ref().map_or("", |r| r.1.as_str())
    }
}

/// See the module.
pub(super) struct DataQueue {
    hub: Arc<Hub>,
    disk: Arc<DiskState>,
    queue: u16,
    store: Box<dyn StoreQueue>,
    /// Under the worker's tokens.
    pending: Keyed<Pending>,
    /// The request of an operation that the store has.
    ops: Slab<u64>,
    /// Delays and limits of holds, with the request.
    clocks: BTreeSet<(Instant, u64)>,
    /// The ring is stopping: nothing waits any more; whether it is abandoned.
    stopping: Option<bool>,
    /// Of the last request taken.
    epoch: u32,
    /// When the requests that are being taken or published were seen, or published.
    now_ns: u64,
    /// To look at data in.
    scratch: Vec<u8>,
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
            pending: Keyed::default(),
            ops: Slab::default(),
            clocks: BTreeSet::new(),
            stopping: None,
            epoch: 0,
            now_ns: 0,
            scratch: Vec::new(),
            over: Vec::new(),
            reaped: Vec::new(),
        }
    }

    /// Its worker among those of all disks.
    fn worker(&self) -> u16 {
        self.disk.first_worker + self.queue
    }

    fn event(&self, kind: DeviceKind, a: u64, b: u64, text: &str) {
        self.hub
            .event(self.disk.number, self.queue, kind, a, b, text);
    }

    /// The decision is recorded and becomes the request's.
    fn adopt(&mut self, token: u64, decision: Decision) {
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        let plan = decision.plan;
        self.hub.trace.record(&Body::Decide(Decide {
            request: pending.request.id,
            rule: decision.rule,
            // The device keeps it back, in whatever way.
            hold: plan.hold.is_some()
                || plan.order.is_some()
                || plan.hang
                || plan.delay_ns.is_some(),
            status: plan.status,
            name: decision.name.clone(),
            plan: plan.to_string(),
        }));
        pending.plan = plan;
        pending.rule = Some((decision.rule, decision.name));
    }

    fn finish(&mut self, token: u64, status: Status, written: u32, abandon: bool) {
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        pending.waits = Waits::Over;
        self.over.push(Done {
            token,
            status,
            written,
            used_len: pending.plan.used_len,
            abandon,
        });
    }

    /// The request waits no more for what it waited for.
    fn unwait(&mut self, token: u64) {
        let worker = self.worker();
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        if let Some(until) = pending.until.take() {
            self.clocks.remove(&(until, token));
        }
        match pending.waits {
            Waits::Hold => self.hub.let_go(pending.rule()),
            Waits::Order => {
                self.hub.let_go(pending.rule());
                if let Some(key) = pending.group() {
                    self.hub.groups.leave(key, (worker, token));
                }
            }
            Waits::Hang => self.hub.add_hung(-1),
            Waits::Nothing | Waits::Delay | Waits::Store | Waits::Over => {}
        }
        pending.waits = Waits::Nothing;
    }

    /// Delays that are over and holds that have reached their limit.
    fn tick(&mut self) {
        if self.clocks.is_empty() && self.hub.groups.is_empty() {
            return;
        }
        let now = Instant::now();
        while let Some(&(at, token)) = self.clocks.first() {
            if at > now {
                break;
            }
            self.clocks.pop_first();
            let Some(pending) = self.pending.get(token) else {
                continue;
            };
            if pending.waits == Waits::Hold {
                let (id, rule) = (pending.request.id, pending.rule().to_owned());
                self.event(DeviceKind::Release, 1, id, &rule);
            }
            self.unwait(token);
            self.advance(token);
        }
        for go in self.hub.groups.expire(self.worker(), now) {
            self.hub.go(go);
        }
    }

    /// Lets go the requests that `which` names, in the order of their submission.
    fn release_those(&mut self, which: impl Fn(&Pending) -> bool) -> u64 {
        let tokens = self.tokens(which);
        for &token in &tokens {
            self.unwait(token);
            self.advance(token);
        }
        tokens.len() as u64
    }

    /// In the order of submission.
    fn tokens(&self, which: impl Fn(&Pending) -> bool) -> Vec<u64> {
        let found = self.pending.iter().filter(|(_, p)| which(p));
        let mut found: Vec<(u64, u64)> = found.map(|(token, p)| (p.request.id, token)).collect();
        found.sort_unstable();
        found.into_iter().map(|(_, token)| token).collect()
    }
}

impl QueueDevice for DataQueue {
    fn begin(&mut self) {
        self.now_ns = self.hub.trace.stamp();
    }

    fn take(&mut self, token: u64, taken: Taken) -> Option<u64> {
        self.stopping = None;
        let (parsed, malformed) = match taken.parsed {
            Ok(parsed) => (parsed, None),
            Err(malformed) => (nothing(), Some(malformed.what)),
        };
        // Marked calls are calls on the disk under test.
        let sample = match self.disk.number {
            DATA_DISK => (self.hub.digests).sample(&parsed, &taken.map, &mut self.scratch),
            _ => None,
        };
        let long = self.disk.number == DATA_DISK && self.hub.digests.first_long(&parsed);
        self.epoch = taken.epoch;
        let submit = Body::Submit(Submit {
            disk: self.disk.number,
            queue: self.queue,
            op: parsed.op,
            sector: parsed.sector,
            bytes: parsed.bytes,
            ioprio: parsed.ioprio,
            epoch: taken.epoch,
            avail_pos: taken.position,
            digest: sample.as_ref().map_or(0, |s| s.look.digest),
        });
        let record = || self.hub.trace.record_at(self.now_ns, &submit);
        let (id, covers) = match (&self.disk.cache, parsed.op) {
            (Some(cache), Op::Flush) => cache.at(record),
            _ => (record(), 0),
        };
        if let Some(before) = taken.again {
            self.event(DeviceKind::Again, id, u64::from(before), "");
        }
        self.sampled(id, parsed.sector, sample.as_deref());
        if long {
            self.not_sampled(id);
        }
        self.hub.add_in_flight(self.worker(), 1);
        let request = Request {
            id,
            disk: self.disk.number,
            queue: self.queue,
            op: parsed.op,
            sector: parsed.sector,
            bytes: parsed.bytes,
            tag: Tag::from_ioprio(parsed.ioprio),
            inflight: self.hub.in_flight_for_rules(&self.disk),
        };
        let pending = Pending {
            request: request.clone(),
            data: parsed.data,
            zones: parsed.zones,
            map: taken.map,
            rule: None,
            plan: Plan::default(),
            step: 0,
            waits: Waits::Nothing,
            until: None,
            ops: 0,
            status: Status::OK,
            written: 0,
            flushing: false,
            lost: false,
            sample,
            digest: 0,
            epoch: taken.epoch,
            covers,
            receipts: Vec::new(),
        };
        if let [_, _, ..] = pending.zones.as_slice() {
            // The request's place is what lies between them: here is where they are.
            let zone = |z: &Zone| format!(" {}+{}", z.sector, z.sectors);
            let list: String = pending.zones.iter().map(zone).collect();
            self.event(DeviceKind::Message, id, 0, &format!("segments:{list}"));
        }
        self.pending.insert(token, pending);
        if let Some(what) = malformed {
            self.event(DeviceKind::BadChain, u64::from(taken.head), id, &what);
            if let Some(pending) = self.pending.get_mut(token) {
                pending.status = Status::IOERR;
                pending.step = usize::MAX;
            }
            self.advance(token);
            return Some(id);
        }
        let outage = &self.disk.outage;
        // A device that is gone has no rules.
        if !outage.is_gone()
            && !outage.is_silent()
            && let Some(decision) = self.hub.decide(&request)
        {
            self.adopt(token, decision);
        }
        self.advance(token);
        Some(id)
    }

    fn poll(&mut self, done: &mut Vec<Done>) {
        self.tick();
        // Until nothing comes: one completion may have been the reason for another operation. None
        // gets lost by a panic: its request would wait for it for ever.
        loop {
            self.store.reap(&mut self.reaped);
            if self.reaped.is_empty() {
                break;
            }
            self.reaped.reverse();
            while let Some(completion) = self.reaped.pop() {
                self.stored(completion);
            }
        }
        done.append(&mut self.over);
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.store.event()
    }

    fn waits_for_others(&self) -> bool {
        !self.ops.is_empty()
    }

    fn deadline(&self) -> Option<Instant> {
        // What is over without the store (a planned status, GET_ID) waits for nobody.
        if !self.over.is_empty() {
            return Some(Instant::now());
        }
        let clock = self.clocks.first().map(|clock| clock.0);
        let group = self.hub.groups.deadline(self.worker());
        clock.into_iter().chain(group).min()
    }

    fn release(&mut self, rule: Option<&str>) -> u64 {
        let named = |p: &Pending| rule.is_none_or(|rule| rule == p.rule());
        // Who is still delayed, or being read, would be kept when nobody releases any more.
        for token in self.tokens(|p| named(p) && p.is_to_be_kept()) {
            self.keep_no_more(token);
        }
        let held = |p: &Pending| p.waits == Waits::Hold;
        let count = self.release_those(|p| held(p) && named(p));
        // A group that a request of this queue began after the groups were released.
        count + self.hub.release_groups(rule)
    }

    fn release_one(&mut self, request: u64) -> u64 {
        let held = |p: &Pending| matches!(p.waits, Waits::Hold | Waits::Order);
        self.release_those(|p| held(p) && p.request.id == request)
    }

    fn go(&mut self, token: u64) {
        if self
            .pending
            .get(token)
            .is_some_and(|p| p.waits == Waits::Order)
        {
            self.unwait(token);
            self.advance(token);
        }
    }

    fn list(&self) -> Vec<Flight> {
        let flight = |p: &Pending| Flight {
            request: p.request.clone(),
            rule: p.rule.as_ref().map(|r| r.1.clone()),
            waits: p.waits.word(),
        };
        let tokens = self.tokens(|_| true);
        let pending = tokens.iter().filter_map(|&t| self.pending.get(t));
        pending.map(flight).collect()
    }

    fn stop(&mut self) -> u64 {
        let outage = &self.disk.outage;
        let silent = outage.is_silent();
        let abandon = silent || (self.disk.abandon_on_stop && !outage.keeps());
        self.stopping = Some(abandon);
        for done in &mut self.over {
            done.abandon |= silent;
        }
        let waits = |p: &Pending| !matches!(p.waits, Waits::Store | Waits::Over);
        let tokens = self.tokens(waits);
        for &token in &tokens {
            self.unwait(token);
            if let Some(pending) = self.pending.get_mut(token) {
                pending.lost = abandon;
            }
            self.advance(token);
        }
        tokens.len() as u64
    }

    fn give_up(&mut self) {
        self.store.give_up();
    }

    fn abandon_all(&mut self) -> Vec<u64> {
        self.stopping = Some(true);
        self.over.clear();
        let tokens = self.tokens(|_| true);
        for &token in &tokens {
            let Some(pending) = self.pending.get_mut(token) else {
                continue;
            };
            pending.lost = true;
            if pending.ops == 0 {
                self.unwait(token);
                self.advance(token);
            }
        }
        // One that it happened to before it was among them.
        self.hub.set_in_flight(self.worker(), tokens.len() as u64);
        tokens
    }

    fn publishing(&mut self, done: &Done) -> Option<u64> {
        if let Some(pending) = self.pending.get(done.token)
            && !done.abandon
        {
            self.hub.completed(&pending.request, done.status);
        }
        self.look_again(done);
        let reserve = || self.hub.trace.reserve();
        let receipts = self.pending.get_mut(done.token).map(|p| &mut p.receipts);
        Some(match (&self.disk.cache, receipts) {
            (Some(cache), Some(receipts)) if !receipts.is_empty() => {
                cache.complete(&std::mem::take(receipts), reserve)
            }
            _ => reserve(),
        })
    }

    fn published_all(&mut self) {
        self.now_ns = self.hub.trace.stamp();
    }

    fn published(&mut self, number: Option<u64>, done: &Done, avail_after: u16, abandoned: bool) {
        self.hub.add_in_flight(self.worker(), -1);
        let pending = self.pending.remove(done.token);
        let (Some(number), Some(pending)) = (number, pending) else {
            return;
        };
        let complete = Complete {
            request: pending.request.id,
            status: done.status,
            avail_after,
            abandoned,
            digest: if abandoned { 0 } else { pending.digest },
        };
        let complete = Body::Complete(complete);
        self.hub.trace.commit_at(number, self.now_ns, &complete);
        if let Some(key) = pending.group()
            && let Some(go) = self.hub.groups.over(key, (self.worker(), done.token))
        {
            self.hub.go(go);
        }
    }
}

impl Waits {
    /// For people who ask what is in flight.
    fn word(self) -> &'static str {
        match self {
            Waits::Nothing | Waits::Over => "ending",
            Waits::Delay => "delay",
            Waits::Hold => "hold",
            Waits::Order => "order",
            Waits::Hang => "hang",
            Waits::Store => "store",
        }
    }
}

/// Stands for a chain too broken to have a request in it.
fn nothing() -> Parsed {
    Parsed {
        op: Op::Other,
        sector: 0,
        bytes: 0,
        zones: Vec::new(),
        ioprio: 0,
        data: Segments::new(),
        status: 0,
    }
}

/// A serial as GET_ID gives it: NUL padded.
pub(super) fn id(serial: &str) -> [u8; ID_LEN] {
    let mut id = [0; ID_LEN];
    for (to, from) in id.iter_mut().zip(serial.bytes()) {
        *to = from;
    }
    id
}
