// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who asked for a request: calls, the requests in flight and the tie between
//! them, as they are at one moment of the stream.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use wtblk_shared::mark::{CallBegin, CallEnd, Mark};
use wtblk_shared::tag::Tag;

use super::call::{Call, Class, Done, EndedCall, PastCall, has_flag};
use super::facts::{Facts, Probe};
use super::flight::{Flight, Owes};
use crate::trace::event::{Complete, DeviceEvent, Op, RequestId, Submit};

/// Ended calls that reports and probes can still refer to.
pub const MAX_PAST: usize = 1024;
/// A write is remembered by the part of the disk it went to.
const BUCKET: u64 = 2 << 20;
/// Parts remembered: 128 GiB of writes before the memory gets coarse.
const MAX_BUCKETS: usize = 1 << 16;

/// Reason: see the name.
pub const GAP: &str = "events are missing while the call ran";
/// Reason: see the name.
pub const STOPPED: &str = "the guest or the device was ended while a call ran";

/// Everything known at this moment.
#[derive(Debug, Default)]
pub struct World {
    /// Facts about guest and device.
    pub facts: Facts,
    /// Requests in flight.
    pub flight: Flight,
    /// The test that runs.
    pub test: String,
    calls: HashMap<u64, Call>,
    by_tag: HashMap<Tag, u64>,
    late: HashMap<u64, EndedCall>,
    past: HashMap<u64, PastCall>,
    past_order: VecDeque<u64>,
    tag_probe: Option<u64>,
    failures: u64,
    failures_of_calls: u64,
    failures_unseen: bool,
    shutdown_noted: bool,
    forgot_failures: bool,
    buckets: HashMap<u64, u64>,
    wrote_somewhere: u64,
}

impl World {
    /// A request of the data disk was taken.
    pub fn submit(&mut self, id: RequestId, s: &Submit) {
        let tag = Tag::from_ioprio(s.ioprio);
        let mut owner = None;
        if let Some(number) = tag.and_then(|t| self.by_tag.get(&t)) {
            let place = self.calls.get_mut(number).and_then(|c| c.take(id, s));
            owner = place.map(|index| (*number, index));
        } else if tag.is_none()
            && s.op == Op::Write
            && let Some(probe) = self.tag_probe.and_then(|n| self.calls.get_mut(&n))
        {
            probe.take_stranger(id, s);
        }
        self.flight.submit(id, s, owner);
        if s.op == Op::Write {
            self.remember_write(id, &super::flight::bytes_of(s));
        }
    }

    /// A request was completed. The number of a call that ended earlier and
    /// whose last data request this was.
    pub fn complete(&mut self, seq: u64, c: &Complete) -> Option<EndedCall> {
        let failed = !c.status.is_ok() && !c.abandoned;
        let Some(request) = self.flight.complete(c.request) else {
            // After a gap it may be a request whose beginning is missing.
            self.failures_unseen |= failed && self.flight.is_blind();
            return None;
        };
        self.failures += u64::from(failed);
        let (number, index) = request.owner?;
        if c.abandoned {
            return None;
        }
        let done = Some(Done {
            seq,
            status: c.status,
        });
        if let Some(call) = self.calls.get_mut(&number)
            && let Some(r) = call.requests.get_mut(index)
            && r.id == c.request
        {
            r.done = done;
            return None;
        }
        let call = self.late.get_mut(&number)?;
        let r = call.requests.get_mut(index)?;
        if r.id != c.request {
            return None;
        }
        r.done = done;
        if failed && matches!(r.class, Class::Data(_)) {
            self.failures_of_calls += 1;
            if let Some(past) = self.past.get_mut(&number) {
                past.failed_late(r);
            }
        }
        let settled = call.data().all(|r| r.done.is_some());
        settled.then(|| self.late.remove(&number)).flatten()
    }

    /// A call begins. A call whose number or tag it takes cannot be judged any
    /// more; the former is returned.
    pub fn begin(&mut self, seq: u64, begin: &CallBegin) -> Option<Call> {
        let number = begin.call;
        let replaced = self.drop_call(number).map(|mut c| {
            c.obstacle.get_or_insert("its number was used again");
            c
        });
        let mut call = Call::new(begin.clone(), seq);
        for other in self.calls.values_mut() {
            if other.meets(begin) {
                other.concurrent = true;
                call.concurrent = true;
            }
        }
        match begin.tag.map(Tag::new) {
            Some(Some(tag)) => {
                if let Some(other) = self.by_tag.insert(tag, number) {
                    let why = "two calls had the same tag at once";
                    call.obstacle.get_or_insert(why);
                    if let Some(other) = self.calls.get_mut(&other) {
                        other.obstacle.get_or_insert(why);
                    }
                }
            }
            Some(None) => {
                call.obstacle.get_or_insert("the tag is no tag");
            }
            None => {
                call.obstacle.get_or_insert("the call has no tag");
            }
        }
        if has_flag(begin, "probe-tag") {
            self.tag_probe = Some(number);
        }
        self.calls.insert(number, call);
        replaced
    }

    /// A call ended; `None` where it never began.
    pub fn end(&mut self, seq: u64, end: &CallEnd) -> Option<EndedCall> {
        let call = self.drop_call(end.call)?;
        let number = end.call;
        let mut ended = call.end(end.clone(), seq);
        let own = ended.requests.iter().filter(|r| r.failed()).count() as u64;
        ended.other_failures = self.failures_of_nobody().saturating_sub(own) > 0
            || self.failures_unseen
            || self.shutdown_noted;
        let data = ended.data().filter(|r| r.failed()).count() as u64;
        self.failures_of_calls += data;
        self.learn(&ended);
        if self.tag_probe == Some(number) {
            self.tag_probe = None;
        }
        Some(ended)
    }

    /// Keeps what reports and probes may ask about an ended call; the call that
    /// is forgotten for it.
    pub fn keep_past(&mut self, ended: &EndedCall) -> Vec<PastCall> {
        let number = ended.begin.call;
        let mut forgotten: Vec<_> = self.past.insert(number, ended.past()).into_iter().collect();
        if forgotten.is_empty() {
            self.past_order.push_back(number);
            if self.past_order.len() > MAX_PAST
                && let Some(oldest) = self.past_order.pop_front()
            {
                let old = self.past.remove(&oldest);
                self.forgot_failures |= old.as_ref().is_some_and(|p| !p.failed.is_empty());
                forgotten.extend(old);
            }
        }
        forgotten
    }

    /// Waits for the data requests that were in flight at the end of the call.
    pub fn keep_late(&mut self, ended: EndedCall) {
        self.late.insert(ended.begin.call, ended);
    }

    /// Calls that ended and still wait for their data requests; they wait no more.
    pub fn take_late(&mut self) -> Vec<EndedCall> {
        self.late.drain().map(|(_, c)| c).collect()
    }

    /// Calls that ended and still wait for their data requests.
    pub fn late(&self) -> impl Iterator<Item = &EndedCall> {
        self.late.values()
    }

    /// Calls that have not ended.
    pub fn open_calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.values()
    }

    /// An ended call, if it is still remembered.
    pub fn past(&self, call: u64) -> Option<&PastCall> {
        self.past.get(&call)
    }

    /// All ended calls that are still remembered.
    pub fn all_past(&self) -> impl Iterator<Item = &PastCall> {
        self.past_order.iter().filter_map(|n| self.past.get(n))
    }

    /// What the device owes to the call's folios.
    pub fn owes(&self, past: &PastCall) -> Owes {
        self.flight.owes(&past.near, |disk| self.facts.is_log(disk))
    }

    /// Whether a write near the call's blocks may have been taken after `seq`.
    pub fn wrote_near(&self, past: &PastCall, seq: u64) -> bool {
        self.wrote_somewhere > seq
            || past.near.iter().any(|r| {
                let parts = r.start / BUCKET..=r.end.saturating_sub(1) / BUCKET;
                self.buckets
                    .iter()
                    .any(|(part, at)| *at > seq && parts.contains(part))
            })
    }

    /// Failed requests in this boot that are no marked call's data, as far as is known.
    pub fn unexplained_failures(&self) -> bool {
        self.failures_unseen || self.failures_of_nobody() > 0
    }

    /// Whether an earlier call on the same file may have left an error behind.
    pub fn earlier_failure(&self, begin: &CallBegin) -> bool {
        self.forgot_failures
            || self.past.values().any(|p| {
                p.call.call != begin.call
                    && (p.call.dev, p.call.ino) == (begin.dev, begin.ino)
                    && !p.failed.is_empty()
            })
    }

    /// A test by its calls, or the one that runs.
    pub fn test_of(&self, call: u64) -> String {
        let open = || self.calls.get(&call).map(|c| c.begin.test.clone());
        let past = || self.past.get(&call).map(|p| p.test.clone());
        open().or_else(past).unwrap_or_else(|| self.test.clone())
    }

    /// Other marks that tell something about the world.
    pub fn mark(&mut self, mark: &Mark) {
        match mark {
            Mark::Env(facts) => self.facts.env(facts),
            Mark::Fs {
                dev,
                log_start,
                log_len,
                ..
            } => self.facts.fs(*dev, *log_start, *log_len),
            Mark::TestBegin { name } => self.test.clone_from(name),
            Mark::TestEnd { .. } => self.test.clear(),
            Mark::Note { text } => {
                let text = text.to_ascii_lowercase();
                self.shutdown_noted |= text.contains("shutdown") || text.contains("shut down");
            }
            _ => {}
        }
    }

    /// Something happened to the data disk. True where it stopped serving.
    pub fn device(&mut self, event: &DeviceEvent) -> bool {
        self.facts.device(event);
        let stopped = self.flight.device(event);
        if stopped {
            self.obstruct(STOPPED);
        }
        stopped
    }

    /// Events are missing from here on.
    pub fn gap(&mut self, seq: u64, missing: u64) {
        self.wrote_somewhere = seq.saturating_add(missing);
        self.facts.gap();
        self.flight.gap();
        self.failures_unseen = true;
        self.obstruct(GAP);
    }

    /// The guest rebooted: numbers start again. The calls that had not ended.
    pub fn boot(&mut self) -> Vec<Call> {
        let mut open = std::mem::take(&mut self.calls);
        let mut old = std::mem::take(self);
        old.facts.boot();
        old.flight.boot();
        self.facts = old.facts;
        self.flight = old.flight;
        open.drain().map(|(_, c)| c).collect()
    }

    /// A mark of the call came unordered.
    pub fn obstruct_call(&mut self, number: u64) {
        if let Some(call) = self.calls.get_mut(&number) {
            call.obstacle.get_or_insert("its marks are not ordered");
        }
    }

    fn obstruct(&mut self, why: &'static str) {
        for call in self.calls.values_mut() {
            call.obstacle.get_or_insert(why);
        }
    }

    fn drop_call(&mut self, number: u64) -> Option<Call> {
        let call = self.calls.remove(&number)?;
        if let Some(tag) = call.begin.tag.and_then(Tag::new)
            && self.by_tag.get(&tag) == Some(&number)
        {
            self.by_tag.remove(&tag);
        }
        Some(call)
    }

    fn failures_of_nobody(&self) -> u64 {
        let open: u64 = self.calls.values().map(Call::failed_data_so_far).sum();
        self.failures.saturating_sub(self.failures_of_calls + open)
    }

    fn remember_write(&mut self, seq: u64, disk: &Range<u64>) {
        if disk.is_empty() {
            return;
        }
        // A request is at most 4 GiB long, hence at most 2049 parts.
        for part in disk.start / BUCKET..=(disk.end - 1) / BUCKET {
            if self.buckets.len() < MAX_BUCKETS || self.buckets.contains_key(&part) {
                self.buckets.insert(part, seq);
            } else {
                self.wrote_somewhere = seq;
            }
        }
    }

    /// What a probe call showed.
    fn learn(&mut self, call: &EndedCall) {
        if call.is("probe-tag") {
            let tagged = call.data().next().is_some();
            self.facts.tag_arrives = match (tagged, call.untagged_data) {
                _ if call.obstacle.is_some() => Probe::Inconclusive,
                (_, true) => Probe::Bad,
                (true, false) => Probe::Good,
                (false, false) => Probe::Inconclusive,
            };
        }
        if call.is("probe-plug-order") {
            let offsets: Vec<_> = call.data().filter_map(|r| r.file_offset()).collect();
            self.facts.plug_order = if call.obstacle.is_some() || offsets.len() < 2 {
                Probe::Inconclusive
            } else if offsets.is_sorted() {
                Probe::Good
            } else {
                Probe::Bad
            };
        }
    }
}
