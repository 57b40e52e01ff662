// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A small language for streams of events.

use std::collections::BTreeMap;

use wtblk_shared::mark::{
    CallBegin, CallEnd, Extent, FileMark, Mark, PageReport, ProbeBegin, ProbeState,
};
use wtblk_shared::tag::Tag;

use super::super::Verifier;
use super::super::contract::Contract;
use super::super::verdict::{Finding, PromiseVerdict, Verdict, Verdicts};
use crate::trace::change::Change;
use crate::trace::event::*;

/// Block size of the file system in these streams.
pub const B: u64 = 4096;
/// Where on the disk the usual file lies.
pub const DISK: u64 = 64 << 20;
/// Where the log lies.
pub const LOG: u64 = 512 << 20;
/// Name of the test in these streams.
pub const TEST: &str = "t";
pub const INDIRECT: u64 = 1 << 28;

/// A stream of events that grows.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    pub events: Vec<Event>,
    pub next: u64,
    /// Queue of the next requests.
    pub queue: u16,
    pub epoch: u32,
    /// The clock of the trace.
    pub now_ns: u64,
    /// Digests of the writes in flight, and their places.
    pub flying: BTreeMap<RequestId, (u64, std::ops::Range<u64>)>,
    /// Nobody looks at the data of the next requests.
    pub unseen: bool,
    /// When probes began.
    pub began_ns: BTreeMap<u64, u64>,
}

pub fn ext(logical: u64, physical: u64, length: u64) -> Extent {
    Extent {
        logical,
        physical,
        length,
        flags: 0,
    }
}

/// A writethrough call of file 1 that lies on the disk as it is, from [`DISK`] on.
pub fn call(number: u64, off: u64, len: u64) -> CallBegin {
    CallBegin {
        call: number,
        test: TEST.into(),
        dev: 8,
        ino: 1,
        open: 1,
        off,
        len,
        flags: vec!["writethrough".into()],
        isize: 64 << 20,
        bsize: B,
        tag: Some(number as u16),
        pattern: None,
        extents: Some(vec![ext(0, DISK, 64 << 20)]),
    }
}

impl Stream {
    /// Nothing is known yet.
    pub fn bare() -> Stream {
        Stream::default()
    }

    /// A guest that has booted and probed: everything can be judged.
    pub fn booted() -> Stream {
        let mut s = Stream::bare();
        s.power_on();
        s.probe_order(&[0, 1, 2]);
        s.mark(Mark::TestBegin { name: TEST.into() });
        s
    }

    /// Device and guest start; the guest tells its facts.
    pub fn power_on(&mut self) {
        self.device(
            DeviceKind::Begin,
            0,
            0,
            r#"{"queues":4,"write_cache":true}"#,
        );
        self.device(DeviceKind::Features, INDIRECT, 0, "");
        self.epoch += 1;
        self.device(DeviceKind::QueueStart, 128, u64::from(self.epoch), "");
        self.mark(Mark::Boot);
        self.env(&[("scheduler", "none"), ("queues", "1"), ("tags", "on")]);
        self.mount();
    }

    /// The file system is mounted.
    pub fn mount(&mut self) {
        self.mark(Mark::Fs {
            dev: 8,
            kind: "xfs".into(),
            bsize: B,
            log_start: LOG,
            log_len: 64 << 20,
        });
    }

    /// The probe of the plug order: blocks in order of arrival.
    pub fn probe_order(&mut self, blocks: &[u64]) {
        let probe = CallBegin {
            // A file of its own: it is written with O_DIRECT.
            ino: 900,
            test: "boot".into(),
            flags: vec!["direct".into(), "probe-plug-order".into()],
            ..call(8000, 0, 64 * B)
        };
        self.begin(&probe);
        for b in blocks {
            self.write(8000, DISK + b * B, B);
        }
        self.all_ok();
        self.end(&probe, 64 * B as i64);
    }

    pub fn push(&mut self, body: Body) -> u64 {
        let seq = self.next;
        self.next += 1;
        self.events.push(Event {
            seq,
            time_ns: self.now_ns,
            body,
        });
        seq
    }

    pub fn mark(&mut self, mark: Mark) -> u64 {
        self.push(Body::Mark(MarkEvent {
            line: mark.to_line(),
            ordered: true,
        }))
    }

    pub fn unordered(&mut self, mark: Mark) -> u64 {
        self.push(Body::Mark(MarkEvent {
            line: mark.to_line(),
            ordered: false,
        }))
    }

    pub fn env(&mut self, facts: &[(&str, &str)]) {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        let facts: BTreeMap<_, _> = facts.iter().map(own).collect();
        self.mark(Mark::Env(facts));
    }

    pub fn device(&mut self, kind: DeviceKind, a: u64, b: u64, text: &str) -> u64 {
        self.push(Body::Device(DeviceEvent {
            disk: DATA_DISK,
            queue: self.queue,
            kind,
            a,
            b,
            text: text.into(),
        }))
    }

    pub fn gap(&mut self, missing: u64) {
        self.push(Body::Gap(Gap {
            missing,
            why: "test".into(),
        }));
        self.next += missing - 1;
    }

    /// A request of any kind; places are bytes on the disk.
    pub fn submit(&mut self, op: Op, ioprio: u16, disk: u64, bytes: u64) -> RequestId {
        let looked = op == Op::Write && !self.unseen;
        let digest = if looked { self.next + 1000 } else { 0 };
        let id = self.push(Body::Submit(Submit {
            disk: DATA_DISK,
            queue: self.queue,
            op,
            sector: disk / 512,
            bytes: bytes as u32,
            ioprio,
            epoch: self.epoch,
            avail_pos: 0,
            digest,
        }));
        if op == Op::Write {
            self.flying
                .insert(id, (digest, disk..disk.saturating_add(bytes)));
        }
        id
    }

    /// A write to another disk.
    pub fn elsewhere(&mut self) -> RequestId {
        self.push(Body::Submit(Submit {
            disk: 1,
            queue: 0,
            op: Op::Write,
            sector: 0,
            bytes: 512,
            ioprio: 0,
            epoch: 1,
            avail_pos: 0,
            digest: 0,
        }))
    }

    /// Whether a write of one of these bytes is in flight.
    pub fn is_flying(&self, disk: u64, bytes: u64) -> bool {
        let meets = |r: &std::ops::Range<u64>| r.start < disk.saturating_add(bytes) && disk < r.end;
        self.flying.values().any(|(_, r)| meets(r))
    }

    /// The data of the next completion of this write is another one: what the device says of it.
    pub fn change(&mut self, request: RequestId, change: &Change) {
        self.device(
            DeviceKind::Changed,
            request,
            change.bytes(),
            &change.to_text(),
        );
        if let Some((digest, _)) = self.flying.get_mut(&request) {
            *digest ^= 1 << 40;
        }
    }

    /// A write with the tag of a call.
    pub fn write(&mut self, tag: u16, disk: u64, bytes: u64) -> RequestId {
        self.submit(Op::Write, ioprio(tag), disk, bytes)
    }

    /// A write of nobody: best effort, level 4.
    pub fn stray(&mut self, disk: u64, bytes: u64) -> RequestId {
        self.submit(Op::Write, (2 << 13) | 4, disk, bytes)
    }

    pub fn complete(&mut self, request: RequestId, status: Status) -> u64 {
        let digest = self.flying.remove(&request).map_or(0, |f| f.0);
        self.push(Body::Complete(Complete {
            request,
            status,
            avail_after: 0,
            abandoned: false,
            digest,
        }))
    }

    pub fn ok(&mut self, request: RequestId) -> u64 {
        self.complete(request, Status::OK)
    }

    pub fn fail(&mut self, request: RequestId) -> u64 {
        self.complete(request, Status::IOERR)
    }

    pub fn abandon(&mut self, request: RequestId) {
        self.flying.remove(&request);
        self.push(Body::Complete(Complete {
            request,
            status: Status::OK,
            avail_after: 0,
            abandoned: true,
            digest: 0,
        }));
    }

    pub fn hold(&mut self, request: RequestId) {
        self.push(Body::Decide(Decide {
            request,
            rule: 0,
            hold: true,
            status: None,
            name: "r".into(),
            plan: String::new(),
        }));
    }

    /// Numbers of the requests in flight.
    pub fn in_flight(&self) -> Vec<RequestId> {
        let mut open = Vec::new();
        for e in &self.events {
            match &e.body {
                Body::Submit(_) => open.push(e.seq),
                Body::Complete(c) => open.retain(|id| *id != c.request),
                _ => {}
            }
        }
        open
    }

    pub fn all_ok(&mut self) {
        for id in self.in_flight() {
            self.ok(id);
        }
    }

    pub fn begin(&mut self, begin: &CallBegin) -> u64 {
        self.mark(Mark::Begin(begin.clone()))
    }

    /// The end of a call that left its file's extents as they were.
    pub fn end(&mut self, begin: &CallBegin, result: i64) -> u64 {
        self.end_with(begin, result, begin.extents.clone())
    }

    pub fn end_with(&mut self, b: &CallBegin, result: i64, extents: Option<Vec<Extent>>) -> u64 {
        self.mark(Mark::End(CallEnd {
            call: b.call,
            result,
            isize: b.isize,
            extents,
        }))
    }

    /// A whole call: its writes as (place, bytes), all well.
    pub fn run(&mut self, begin: &CallBegin, writes: &[(u64, u64)]) -> &mut Stream {
        self.begin(begin);
        for (disk, bytes) in writes {
            // A block that is sent again waits for its first write.
            if self.is_flying(*disk, *bytes) {
                self.all_ok();
            }
            self.write(begin.tag.unwrap_or(0), *disk, *bytes);
        }
        self.all_ok();
        self.end(begin, begin.len as i64);
        self
    }

    pub fn report(&mut self, call: u64, writeback: u64) -> u64 {
        self.report_range(call, 0, 64 * B, writeback)
    }

    pub fn report_range(&mut self, call: u64, off: u64, len: u64, writeback: u64) -> u64 {
        self.mark(Mark::Report(PageReport {
            call,
            at: "after-call".into(),
            off,
            len,
            cached: 0,
            dirty: 0,
            writeback,
        }))
    }

    /// A guest that marks all that is done to its files.
    pub fn files_marked() -> Stream {
        let mut s = Stream::booted();
        s.env(&[("files", "marked")]);
        s
    }

    pub fn file(&mut self, mark: FileMark) -> u64 {
        self.mark(Mark::File(mark))
    }

    /// Time passes.
    pub fn wait_ms(&mut self, ms: u64) {
        self.now_ns += ms * 1_000_000;
    }

    pub fn probe(&mut self, probe: u64, call: u64) -> u64 {
        self.began_ns.insert(probe, self.now_ns);
        self.mark(Mark::ProbeBegin(ProbeBegin {
            probe,
            call,
            kind: "fsync".into(),
            limit_ms: 2000,
        }))
    }

    /// The clock goes on to the time at which it has waited so long.
    pub fn probe_state(&mut self, probe: u64, waited_ms: u64, state: char, switches: u64) -> u64 {
        let began = self.began_ns.get(&probe).copied().unwrap_or(0);
        self.now_ns = self.now_ns.max(began + waited_ms * 1_000_000);
        self.mark(Mark::ProbeState(ProbeState {
            probe,
            waited_ms,
            state,
            switches,
            wchan: "folio_wait_bit_common".into(),
        }))
    }

    pub fn probe_end(&mut self, probe: u64) -> u64 {
        self.mark(Mark::ProbeEnd { probe, result: 0 })
    }

    pub fn verdicts(&self) -> Verdicts {
        self.verdicts_by(Contract::default())
    }

    pub fn verdicts_by(&self, contract: Contract) -> Verdicts {
        judge(&self.events, contract)
    }

    pub fn of(&self, promise: &str) -> PromiseVerdict {
        let verdicts = self.verdicts();
        let found = verdicts.get(TEST, promise);
        found.unwrap_or_else(|| panic!("{verdicts:#?}")).clone()
    }

    /// The promise held, so often.
    #[track_caller]
    pub fn held(&self, promise: &str, times: u64) -> &Stream {
        let v = self.of(promise);
        assert_eq!(v.verdict, Verdict::Held { decisions: times }, "{v:#?}");
        self
    }

    /// The promise is broken, once, and no other is but those named.
    #[track_caller]
    pub fn broken(&self, promise: &str, others: &[&str]) -> Finding {
        let verdicts = self.verdicts();
        let mut mine = Vec::new();
        for f in verdicts.findings() {
            if f.promise == promise {
                mine.push(f.clone());
            } else {
                assert!(others.contains(&f.promise.as_str()), "{f:#?}");
            }
        }
        assert_eq!(mine.len(), 1, "{verdicts:#?}");
        mine.remove(0)
    }

    /// The promise was decided nowhere, and one of the reasons begins so.
    #[track_caller]
    pub fn not_checked(&self, promise: &str, reason: &str) -> &Stream {
        let v = self.of(promise);
        let Verdict::NotChecked { reasons } = &v.verdict else {
            panic!("{v:#?}");
        };
        assert!(reasons.keys().any(|r| r.starts_with(reason)), "{v:#?}");
        self
    }

    /// No promise is broken.
    #[track_caller]
    pub fn silent(&self) -> &Stream {
        let verdicts = self.verdicts();
        assert_eq!(verdicts.findings().next(), None);
        self
    }
}

pub fn ioprio(tag: u16) -> u16 {
    Tag::new(tag).unwrap().ioprio()
}

pub fn judge(events: &[Event], contract: Contract) -> Verdicts {
    let mut verifier = Verifier::new(contract);
    for event in events {
        verifier.event(event);
    }
    // Looking in between must not change what comes out.
    let so_far = verifier.verdicts_so_far();
    let verdicts = verifier.finish();
    assert_eq!(so_far.status(), verdicts.status());
    verdicts
}
