// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who asked for a request: calls, the requests in flight and the tie between
//! them, as they are at one moment of the stream.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Range;

use wtblk_shared::mark::{CallBegin, CallEnd, Mark};
use wtblk_shared::tag::Tag;

use super::call::{Call, Class, Done, EndedCall, FactsThen, PastCall, has_flag};
use super::facts::{Facts, Probe};
use super::fast_hash::NumberMap;
use super::flight::{Flight, InFlight, Owes, Owner, writes_blocks};
use super::wrote::Wrote;
use crate::trace::event::{Complete, Decide, DeviceEvent, Op, RequestId, Submit};

/// Ended calls that reports and probes can still refer to.
pub const MAX_PAST: usize = 1024;
/// Calls that have begun and not ended, and as many that wait for requests. A
/// guest that says it has more is not believed: the oldest is dropped.
pub const MAX_OPEN: usize = 1024;
/// Requests kept of all calls that can still be judged.
const MAX_KEPT: usize = 1 << 20;

/// Reason: see the name.
pub const GAP: &str = "events are missing while the call ran";
/// Reason: see the name.
pub const STOPPED: &str = "the guest or the device was ended while a call ran";

/// Reason: see the name.
pub const SHARED_TAG: &str = "another open call has its tag";
/// Reason: see the name.
pub const NUMBER: &str = "its number was used again";

/// Reason: see the name.
pub const TOO_MANY: &str = "too many calls at a time";

/// Everything known at this moment.
#[derive(Debug, Default)]
pub struct World {
    /// Facts about guest and device.
    pub facts: Facts,
    /// Requests in flight.
    pub flight: Flight,
    /// The test that runs.
    pub test: String,
    /// When the event came that is looked at, by the trace.
    pub now_ns: u64,
    /// Number of the event that is looked at.
    pub now_seq: u64,
    /// A call of this boot is followed no more although it may still run.
    pub lost_calls: bool,
    /// When the device last had something to do, or was not there.
    busy_ns: u64,
    calls: NumberMap<Call>,
    /// The open calls, the oldest first, by a number that counts begins.
    by_age: BTreeMap<u64, u64>,
    begun: u64,
    /// Requests kept in `calls` and `late`.
    kept: usize,
    /// Failed data requests of `calls`.
    failures_of_open: u64,
    /// Open calls by tag; where two or more are open, none of them is judged.
    by_tag: NumberMap<Vec<u64>>,
    /// Tags of calls that are open as far as is known, but followed no more.
    lost_tags: HashSet<Tag>,
    late: NumberMap<EndedCall>,
    past: NumberMap<PastCall>,
    past_order: VecDeque<u64>,
    tag_probe: Option<u64>,
    failures: u64,
    failures_of_calls: u64,
    failures_unseen: bool,
    /// A rule had data stored elsewhere, otherwise or not at all, or it is not known what it did.
    touched_data: bool,
    shutdown_noted: bool,
    forgot_failures: bool,
    /// When the disk was last written.
    wrote: Wrote,
}

impl World {
    /// A request of the data disk was taken.
    pub fn submit(&mut self, id: RequestId, s: &Submit) {
        let tag = Tag::from_ioprio(s.ioprio);
        let mut owner = Owner::default();
        if let Some(numbers) = tag.and_then(|t| self.by_tag.get(&key(t))) {
            // Of two calls with the tag it is nobody's: both are not judged.
            if let [number] = numbers.as_slice() {
                let room = self.kept < MAX_KEPT;
                let call = self.calls.get_mut(number);
                if let Some(call) = call
                    && let Some(index) = call.take(id, s, room)
                {
                    self.kept += 1;
                    owner.call = Some((*number, index));
                    owner.direct = call.direct;
                }
            }
        } else if tag.is_none()
            && s.op == Op::Write
            && let Some(probe) = self.tag_probe.and_then(|n| self.calls.get_mut(&n))
        {
            probe.take_stranger(id, s);
        }
        self.busy_ns = self.now_ns;
        self.flight.submit(id, s, owner, self.now_ns);
        self.remember_write(id, s.op, &super::flight::bytes_of(s));
    }

    /// A request was completed. It, and the number of the call that ended earlier and whose
    /// last data request this was: nobody need wait for that any more.
    pub fn complete(&mut self, seq: u64, c: &Complete) -> (Option<InFlight>, Option<u64>) {
        let Some(request) = self.flight.complete(c.request) else {
            // After a gap it may be a request whose beginning is missing.
            let failed = !c.status.is_ok() && !c.abandoned;
            self.failures_unseen |= failed && self.flight.is_blind();
            return (None, None);
        };
        let ended = self.completed(seq, c, &request);
        (Some(request), ended)
    }

    fn completed(&mut self, seq: u64, c: &Complete, request: &InFlight) -> Option<u64> {
        let failed = !c.status.is_ok() && !c.abandoned;
        self.failures += u64::from(failed);
        self.busy_ns = self.now_ns;
        self.remember_write(seq, request.op, &request.disk);
        let (number, index) = request.owner?;
        if c.abandoned {
            // The stop itself is told a moment later.
            if let Some(call) = self.calls.get_mut(&number) {
                call.obstacle.get_or_insert(STOPPED);
            }
            return None;
        }
        let done = Some(Done {
            seq,
            status: c.status,
            stable: request.stable(c),
            avail_after: c.avail_after,
        });
        if let Some(call) = self.calls.get_mut(&number)
            && let Some(r) = call.requests.get_mut(index)
            && r.id == c.request
        {
            r.done = done;
            if failed {
                self.failures_of_open += call.count_failure(index);
            }
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
        settled.then_some(number)
    }

    /// Waits no more for the requests of a call that has ended.
    pub fn stop_waiting(&mut self, number: u64) -> Option<EndedCall> {
        let call = self.late.remove(&number)?;
        self.kept = self.kept.saturating_sub(call.requests.len());
        Some(call)
    }

    /// A rule fired.
    pub fn decided(&mut self, d: &Decide) {
        if d.hold {
            self.flight.hold(d.request);
        }
        self.touched_data |= touches_data(d);
    }

    /// Whether a fault may have left other data on the disk, or shown other data, than was written.
    pub fn touched_data(&self) -> bool {
        self.touched_data || self.flight.is_blind()
    }

    /// The last ended call whose blocks hold this byte of the file.
    pub fn last_call_at(&self, file: (u64, u64), off: u64) -> Option<&PastCall> {
        let of = |p: &&PastCall| (p.call.dev, p.call.ino) == file && p.range.contains(&off);
        self.past_order
            .iter()
            .rev()
            .filter_map(|n| self.past.get(n))
            .find(of)
    }

    /// A call begins. Calls that cannot be followed any more for it are returned.
    pub fn begin(&mut self, seq: u64, begin: &CallBegin) -> Option<Call> {
        let number = begin.call;
        let replaced = self.lose_call(number, NUMBER);
        let reused = replaced.is_some();
        let oldest = self.by_age.values().next().copied();
        let lost = match oldest {
            Some(oldest) if self.calls.len() >= MAX_OPEN => self.lose_call(oldest, TOO_MANY),
            _ => replaced,
        };
        let asynchronous = has_flag(begin, "async");
        let mut call = Call::new(begin.clone(), seq);
        call.facts = FactsThen {
            changes: self.facts.changes(),
            order_unknown: self.facts.order_unknown(),
            tags_inexact: self.facts.tags_inexact(asynchronous),
        };
        if reused {
            // The next end with this number may be the old call's.
            call.obstacle.get_or_insert(NUMBER);
        }
        for other in self.calls.values_mut() {
            if other.meets(begin) {
                other.concurrent = true;
                call.concurrent = true;
            }
        }
        match begin.tag.map(Tag::new) {
            Some(Some(tag)) => {
                let sharers = self.by_tag.entry(key(tag)).or_default();
                if !sharers.is_empty() || self.lost_tags.contains(&tag) {
                    call.obstacle.get_or_insert(SHARED_TAG);
                }
                for other in sharers.iter() {
                    if let Some(other) = self.calls.get_mut(other) {
                        other.obstacle.get_or_insert(SHARED_TAG);
                    }
                }
                sharers.push(number);
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
        self.begun += 1;
        call.age = self.begun;
        self.by_age.insert(self.begun, number);
        self.calls.insert(number, call);
        lost
    }

    /// Follows an open call no more. Its requests still come with its tag.
    fn lose_call(&mut self, number: u64, why: &'static str) -> Option<Call> {
        let mut call = self.drop_call(number)?;
        call.obstacle.get_or_insert(why);
        self.lost_calls = true;
        self.lost_tags.extend(call.begin.tag.and_then(Tag::new));
        if self.tag_probe == Some(number) {
            self.tag_probe = None;
        }
        Some(call)
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

    /// Waits for the data requests that were in flight at the end of the call; the
    /// call itself where there are too many of its kind.
    pub fn keep_late(&mut self, ended: EndedCall) -> Option<EndedCall> {
        if self.late.len() >= MAX_OPEN {
            return Some(ended);
        }
        self.kept += ended.requests.len();
        self.late.insert(ended.begin.call, ended)
    }

    /// Calls that ended and still wait for their data requests; they wait no more.
    pub fn take_late(&mut self) -> Vec<EndedCall> {
        let late: Vec<_> = self.late.drain().map(|(_, c)| c).collect();
        let requests: usize = late.iter().map(|c| c.requests.len()).sum();
        self.kept = self.kept.saturating_sub(requests);
        late
    }

    /// Calls that ended and still wait for their data requests.
    pub fn late(&self) -> impl Iterator<Item = &EndedCall> {
        self.late.values()
    }

    /// How much is kept: open calls, late calls, ended calls, requests.
    #[cfg(test)]
    pub fn sizes(&self) -> [usize; 4] {
        assert_eq!(self.by_age.len(), self.calls.len());
        assert!(self.by_tag.len() <= self.calls.len());
        let open = self.calls.values().map(|c| c.requests.len());
        let late = self.late.values().map(|c| c.requests.len());
        assert_eq!(open.chain(late).sum::<usize>(), self.kept);
        [
            self.calls.len(),
            self.late.len(),
            self.past.len(),
            self.kept,
        ]
    }

    /// Calls that have not ended.
    pub fn open_calls(&self) -> impl Iterator<Item = &Call> {
        self.calls.values()
    }

    /// A call that has not ended.
    pub fn open_call(&self, call: u64) -> Option<&Call> {
        self.calls.get(&call)
    }

    /// Whether the call has ended and still waits for data requests.
    pub fn is_late(&self, call: u64) -> bool {
        self.late.contains_key(&call)
    }

    /// Whether all of `disk` are blocks of a file whose pages are stable while they are written: a
    /// file of a marked call of this test that no marked call writes with O_DIRECT.
    pub fn stable_data(&self, disk: &Range<u64>) -> bool {
        let holds = |p: &&PastCall| {
            let first = p.near.partition_point(|n| n.end <= disk.start);
            let near = p.near.get(first);
            p.test == self.test && near.is_some_and(|n| n.start <= disk.start && disk.end <= n.end)
        };
        let Some(file) = self
            .past
            .values()
            .find(holds)
            .map(|p| (p.call.dev, p.call.ino))
        else {
            return false;
        };
        let direct =
            |dev, ino, flags: &[String]| (dev, ino) == file && flags.iter().any(|f| f == "direct");
        self.facts.stable_pages(file.0)
            && !self.flight.is_blind()
            // None was forgotten that could speak of O_DIRECT.
            && self.past_order.len() < MAX_PAST
            && !self
                .past
                .values()
                .any(|p| direct(p.call.dev, p.call.ino, &p.call.flags))
            && !self
                .calls
                .values()
                .any(|c| direct(c.begin.dev, c.begin.ino, &c.begin.flags))
    }

    /// Whether a shutdown of the file system was noted.
    pub fn shutdown_noted(&self) -> bool {
        self.shutdown_noted
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

    /// Whether a write near the call's blocks may have been taken or completed after `seq`.
    pub fn wrote_near(&self, past: &PastCall, seq: u64) -> bool {
        self.wrote.near(&past.near, seq)
    }

    /// Whether a write that may be of the call's pages was taken or completed after
    /// `seq`: blocks move (copy-on-write), so only log writes surely are not.
    pub fn may_have_written(&self, seq: u64) -> bool {
        self.wrote.any_blocks(seq)
    }

    /// For how long the device has owed nothing to anybody since `from_ns`, where
    /// nothing is in flight now. Its idleness is its own knowledge, so its host's
    /// clock is the right one.
    pub fn idle_ns(&self, from_ns: u64) -> u64 {
        self.now_ns.saturating_sub(self.busy_ns.max(from_ns))
    }

    /// Failed requests in this boot that are no marked call's data, as far as is known.
    pub fn unexplained_failures(&self) -> bool {
        self.failures_unseen || self.failures_of_nobody() > 0
    }

    /// Whether requests may have failed that nobody saw: events are missing, or the device stopped.
    pub fn failures_unseen(&self) -> bool {
        self.failures_unseen
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
        self.busy_ns = self.now_ns;
        let busy = self.flight.any();
        let stopped = self.flight.device(event);
        if stopped {
            // What was in flight may have failed in the guest; nobody tells.
            self.failures_unseen |= busy;
            self.obstruct(STOPPED);
        }
        stopped
    }

    /// Events are missing from here on.
    pub fn gap(&mut self, seq: u64, missing: u64) {
        self.wrote.anywhere(seq.saturating_add(missing));
        self.busy_ns = self.now_ns;
        self.facts.gap();
        self.flight.gap();
        self.failures_unseen = true;
        self.touched_data = true;
        self.obstruct(GAP);
    }

    /// The guest rebooted: numbers start again. The calls that had not ended.
    pub fn boot(&mut self) -> Vec<Call> {
        let mut open = std::mem::take(&mut self.calls);
        let mut old = std::mem::take(self);
        old.facts.boot();
        old.flight.boot();
        // The disk keeps what was done to it.
        self.touched_data = old.touched_data;
        (self.now_ns, self.busy_ns) = (old.now_ns, old.busy_ns);
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
        self.by_age.remove(&call.age);
        self.kept = self.kept.saturating_sub(call.requests.len());
        self.failures_of_open = self.failures_of_open.saturating_sub(call.failed_data);
        if let Some(tag) = call.begin.tag.and_then(Tag::new)
            && let Some(sharers) = self.by_tag.get_mut(&key(tag))
        {
            sharers.retain(|n| *n != number);
            if sharers.is_empty() {
                self.by_tag.remove(&key(tag));
            }
        }
        Some(call)
    }

    fn failures_of_nobody(&self) -> u64 {
        let data = self.failures_of_calls + self.failures_of_open;
        self.failures.saturating_sub(data)
    }

    fn remember_write(&mut self, seq: u64, op: Op, disk: &Range<u64>) {
        if !writes_blocks(op) {
            return;
        }
        if !self.facts.is_log(disk) {
            self.wrote.blocks(seq);
        }
        // It is asked for what came after a call's end only.
        if !self.past.is_empty() {
            self.wrote.at(seq, disk);
        }
    }

    /// What a probe call showed.
    fn learn(&mut self, call: &EndedCall) {
        if call.is("probe-tag") {
            let tagged = call.data().next().is_some();
            let shown = match (tagged, call.untagged_data) {
                _ if call.obstacle.is_some() => Probe::Inconclusive,
                (_, true) => Probe::Bad,
                (true, false) => Probe::Good,
                (false, false) => Probe::Inconclusive,
            };
            self.facts.tagged(call.is("async"), shown);
        }
        if call.is("probe-plug-order") {
            let offsets: Vec<_> = call.data().filter_map(|r| r.file_offset()).collect();
            self.facts
                .plugged(if call.obstacle.is_some() || offsets.len() < 2 {
                    Probe::Inconclusive
                } else if offsets.is_sorted() {
                    Probe::Good
                } else {
                    Probe::Bad
                });
        }
    }
}

fn key(tag: Tag) -> u64 {
    u64::from(tag.number())
}

/// Whether a fault may have left other data on the disk, or shown other data, than was written.
pub fn touches_data(d: &Decide) -> bool {
    // What only delays or fails a request; all other words are about its data or the disk.
    const HARMLESS: [&str; 10] = [
        "delay",
        "hold",
        "turn",
        "by offset",
        "hang",
        "used length",
        "nothing",
        "IOERR",
        "UNSUPP",
        "0x",
    ];
    let told = !d.plan.is_empty() || d.hold || d.status.is_some();
    let mut parts = d.plan.split(", ").filter(|p| !p.is_empty());
    let harmless = |part: &str| HARMLESS.iter().any(|word| part.starts_with(word));
    !told || !parts.all(harmless)
}
