// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Damage for the selftest: what a kernel would do that breaks one promise.
//!
//! A new promise gets a row in [`AIMED`].

#![expect(clippy::ptr_arg, reason = "one type for all rows of the table")]

use std::collections::HashSet;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{CallBegin, CallEnd, FileMark, Mark};

use super::call::{Call, Class};
use super::selftest::FAILED;
use super::spoil_errors::{goes_on, other_bytes, passed_by, told_from_nowhere, told_twice};
use super::spoil_probes::hangs;
use super::verdict::{Verdict, Verdicts};
use crate::trace::event::{Body, DATA_DISK, DeviceEvent, DeviceKind, Event, Op, Submit};

/// Random numbers (splitmix64): the same seed, the same damage.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// From this seed on.
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
}

/// A call that was judged: where its events are in the list.
#[derive(Debug)]
pub struct Site {
    pub(super) begin: usize,
    end: usize,
    pub(super) begin_mark: CallBegin,
    end_mark: CallEnd,
    /// The Submit events of its data requests, in order of arrival.
    data: Vec<usize>,
    /// Promises that held in its test and nowhere went undecided there.
    sure: Vec<String>,
    /// Promises that held in its test.
    held: Vec<String>,
}

/// A way to spoil a stream.
pub struct Aimed {
    /// The promise that must see it.
    pub promise: &'static str,
    /// In short words.
    pub name: &'static str,
    /// Does it at a call; false where it does not fit.
    pub spoil: fn(&mut Vec<Event>, &Site, &mut Dice) -> bool,
}

/// All of them.
pub static AIMED: &[Aimed] = &[
    Aimed {
        promise: "align",
        name: "a data request begins a sector later",
        spoil: later_begin,
    },
    Aimed {
        promise: "cover",
        name: "a data request is not sent",
        spoil: not_sent,
    },
    Aimed {
        promise: "cover",
        name: "a data request is sent twice",
        spoil: sent_twice,
    },
    Aimed {
        promise: "order",
        name: "two data requests change their places",
        spoil: swapped,
    },
    Aimed {
        promise: "no-overlap",
        name: "somebody else writes a sector in flight",
        spoil: overlapped,
    },
    Aimed {
        promise: "stable",
        name: "data changes in flight",
        spoil: changed,
    },
    Aimed {
        promise: "data",
        name: "a sector is sent with other bytes",
        spoil: other_bytes,
    },
    Aimed {
        promise: "errseq",
        name: "an fsync reports an error again",
        spoil: told_from_nowhere,
    },
    Aimed {
        promise: "ledger",
        name: "an open file is told twice",
        spoil: told_twice,
    },
    Aimed {
        promise: "stop-after-error",
        name: "two more bios after error-seen",
        spoil: goes_on,
    },
    Aimed {
        promise: "sync-return",
        name: "the call returns before a completion",
        spoil: early_end,
    },
    Aimed {
        promise: "error-report",
        name: "a data request fails and nobody is told",
        spoil: swallowed,
    },
    Aimed {
        promise: "error-report",
        name: "EIO for nothing",
        spoil: invented,
    },
    Aimed {
        promise: "durable",
        name: "a DSYNC call is not flushed",
        spoil: not_flushed,
    },
    Aimed {
        promise: "size",
        name: "i_size grows beyond the write",
        spoil: too_long,
    },
    Aimed {
        promise: "written-once",
        name: "a clean block is written again",
        spoil: written_again,
    },
    Aimed {
        promise: "writeback-cleared",
        name: "pages stay in writeback",
        spoil: left_in_writeback,
    },
    Aimed {
        promise: "progress",
        name: "a probe hangs",
        spoil: hangs,
    },
    Aimed {
        promise: "serialised",
        name: "a truncate passes data in flight",
        spoil: passed_by,
    },
];

/// The calls that can be spoilt: judged, successful, with data requests.
pub fn sites(events: &[Event], verdicts: &Verdicts) -> Vec<Site> {
    let mut sites = Vec::new();
    for (begin, event) in events.iter().enumerate() {
        let Some(Mark::Begin(b)) = mark(event) else {
            continue;
        };
        let flag = |f: &str| b.flags.iter().any(|x| x == f);
        let odd = b.flags.iter().any(|f| f.starts_with("probe-"));
        if !flag("writethrough") || flag("direct") || odd {
            continue;
        }
        let is_end = |e: &Event| matches!(mark(e), Some(Mark::End(x)) if x.call == b.call);
        let rest = events.get(begin..).unwrap_or_default();
        let Some(end) = rest.iter().position(is_end).map(|n| begin + n) else {
            continue;
        };
        let Some(Mark::End(e)) = events.get(end).and_then(mark) else {
            continue;
        };
        if e.result <= 0 {
            continue;
        }
        let mut call = Call::new(b.clone(), event.seq);
        let tag = b.tag.and_then(wtblk_shared::tag::Tag::new);
        let mut places = Vec::new();
        for (i, x) in events.iter().enumerate().take(end).skip(begin) {
            if let Body::Submit(s) = &x.body
                && s.disk == DATA_DISK
                && tag.is_some()
                && wtblk_shared::tag::Tag::from_ioprio(s.ioprio) == tag
                && call.take(x.seq, s, true).is_some()
            {
                places.push(i);
            }
        }
        let ended = call.end(e.clone(), 0);
        let data: Vec<usize> = places
            .iter()
            .zip(&ended.requests)
            .filter(|(_, r)| matches!(r.class, Class::Data(_)))
            .map(|(i, _)| *i)
            .collect();
        if data.is_empty() || ended.data_unclear().is_some() {
            continue;
        }
        let of_test = verdicts.tests.iter().find(|t| t.test == b.test);
        let held = of_test.map(|t| &t.promises).into_iter().flatten();
        let held = held.filter(|p| matches!(p.verdict, Verdict::Held { .. }));
        let (mut all, mut sure) = (Vec::new(), Vec::new());
        for p in held {
            all.push(p.promise.clone());
            if p.not_checked.is_empty() {
                sure.push(p.promise.clone());
            }
        }
        sites.push(Site {
            begin,
            end,
            begin_mark: b,
            end_mark: e,
            data,
            sure,
            held: all,
        });
    }
    sites
}

impl Site {
    /// Whether the promise was decided of every call of this test, hence of this one.
    pub(super) fn sure(&self, promise: &str) -> bool {
        self.sure.iter().any(|p| p == promise)
    }

    /// Whether the promise was decided somewhere in this test.
    pub(super) fn held(&self, promise: &str) -> bool {
        self.held.iter().any(|p| p == promise)
    }

    /// Whether no other call on its file ran at any time between its marks.
    fn alone(&self, events: &[Event]) -> bool {
        let file = (self.begin_mark.dev, self.begin_mark.ino);
        let mut open = HashSet::new();
        for (at, event) in events.iter().enumerate().take(self.end) {
            match mark(event) {
                Some(Mark::Boot) => open.clear(),
                Some(Mark::Begin(b)) if at != self.begin && (b.dev, b.ino) == file => {
                    open.insert(b.call);
                    if at > self.begin {
                        return false;
                    }
                }
                Some(Mark::End(e)) => drop(open.remove(&e.call)),
                _ if at == self.begin && !open.is_empty() => return false,
                _ => {}
            }
        }
        true
    }

    pub(super) fn one(&self, dice: &mut Dice) -> usize {
        let i = dice.below(self.data.len() as u64) as usize;
        self.data.get(i).copied().unwrap_or(self.begin)
    }
}

pub(super) fn mark(event: &Event) -> Option<Mark> {
    match &event.body {
        Body::Mark(m) if m.ordered => m.parse().ok(),
        _ => None,
    }
}

pub(super) fn set_mark(event: &mut Event, mark: &Mark) {
    if let Body::Mark(m) = &mut event.body {
        m.line = mark.to_line();
    }
}

fn submit(events: &[Event], at: usize) -> Option<&Submit> {
    match &events.get(at)?.body {
        Body::Submit(s) => Some(s),
        _ => None,
    }
}

fn submit_mut(events: &mut [Event], at: usize) -> Option<&mut Submit> {
    match &mut events.get_mut(at)?.body {
        Body::Submit(s) => Some(s),
        _ => None,
    }
}

/// Where the completion of the request taken at `at` is.
pub(super) fn completion(events: &[Event], at: usize) -> Option<usize> {
    let id = events.get(at)?.seq;
    let is = |e: &Event| matches!(&e.body, Body::Complete(c) if c.request == id);
    events.get(at..)?.iter().position(is).map(|n| at + n)
}

/// An event of the spoiler, with a number that no other has.
pub(super) fn new_event(events: &[Event], like: usize, body: Body) -> Event {
    let most = events.iter().map(|e| e.seq).max().unwrap_or(0);
    Event {
        seq: most.max(1 << 40) + 1,
        time_ns: events.get(like).map_or(0, |e| e.time_ns),
        body,
    }
}

fn later_begin(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    // The lowest by place: its run begins there.
    let lowest = site
        .data
        .iter()
        .min_by_key(|i| submit(events, **i).map(|s| s.sector));
    let Some(s) = lowest.and_then(|i| submit_mut(events, *i)) else {
        return false;
    };
    if s.bytes <= SECTOR as u32 || site.begin_mark.bsize <= SECTOR {
        return false;
    }
    s.sector += 1;
    s.bytes -= SECTOR as u32;
    site.sure("align")
}

fn not_sent(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let at = site.one(dice);
    let Some(id) = events.get(at).map(|e| e.seq) else {
        return false;
    };
    events.retain(|e| match &e.body {
        Body::Submit(_) => e.seq != id,
        Body::Complete(c) => c.request != id,
        Body::Data(d) => d.request != id,
        Body::Decide(d) => d.request != id,
        _ => true,
    });
    site.sure("cover")
}

fn sent_twice(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let at = site.one(dice);
    let Some(done) = completion(events, at).filter(|done| *done < site.end) else {
        return false;
    };
    let (Some(first), Some(last)) = (events.get(at).cloned(), events.get(done).cloned()) else {
        return false;
    };
    let mut first = new_event(events, site.end, first.body);
    let mut last = new_event(events, site.end, last.body);
    last.seq += 1;
    if let Body::Complete(c) = &mut last.body {
        c.request = first.seq;
    }
    if let Body::Submit(s) = &mut first.body {
        s.digest = 0;
    }
    events.splice(site.end..site.end, [first, last]);
    // At the old end of the file a block may be sent twice, and beside another call on the file.
    let fits = site.begin_mark.isize >= site.begin_mark.off && site.alone(events);
    fits && site.sure("cover")
}

fn swapped(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    if site.data.len() < 2 {
        return false;
    }
    let n = dice.below(site.data.len() as u64 - 1) as usize;
    let (Some(&a), Some(&b)) = (site.data.get(n), site.data.get(n + 1)) else {
        return false;
    };
    let place = |s: &Submit| (s.sector, s.bytes);
    let (Some(x), Some(y)) = (submit(events, a).map(place), submit(events, b).map(place)) else {
        return false;
    };
    for (at, (sector, bytes)) in [(a, y), (b, x)] {
        if let Some(s) = submit_mut(events, at) {
            (s.sector, s.bytes) = (sector, bytes);
        }
    }
    site.sure("order")
}

fn overlapped(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let at = site.one(dice);
    let Some(s) = submit(events, at).cloned() else {
        return false;
    };
    let other = Submit {
        ioprio: 0,
        bytes: SECTOR as u32,
        digest: 0,
        ..s
    };
    let first = new_event(events, at, Body::Submit(other));
    let Some(done) = completion(events, at) else {
        return false;
    };
    let Some(Body::Complete(c)) = events.get(done).map(|e| e.body.clone()) else {
        return false;
    };
    let mut last = new_event(
        events,
        done,
        Body::Complete(crate::trace::event::Complete {
            request: first.seq,
            ..c
        }),
    );
    last.seq += 1;
    events.insert(done + 1, last);
    events.insert(at + 1, first);
    site.sure("no-overlap")
}

fn changed(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let at = site.one(dice);
    let Some(done) = completion(events, at) else {
        return false;
    };
    let id = events.get(at).map_or(0, |e| e.seq);
    let Some(Body::Complete(c)) = events.get_mut(done).map(|e| &mut e.body) else {
        return false;
    };
    if c.digest == 0 {
        return false;
    }
    c.digest ^= 1 << 17;
    let change = crate::trace::change::Change::of_bytes(&[1], &[2]);
    let event = DeviceEvent {
        disk: DATA_DISK,
        queue: 0,
        kind: DeviceKind::Changed,
        a: id,
        b: 1,
        text: change.to_text(),
    };
    let event = new_event(events, done, Body::Device(event));
    events.insert(done, event);
    site.sure("stable")
}

fn early_end(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    let done = site.data.iter().filter_map(|i| completion(events, *i));
    let Some(last) = done.filter(|i| *i < site.end).max() else {
        return false;
    };
    if site.data.iter().any(|i| *i > last) || site.begin_mark.flags.iter().any(|f| f == "async") {
        return false;
    }
    let end = events.remove(site.end);
    events.insert(last, end);
    site.sure("sync-return")
}

fn swallowed(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let at = site.one(dice);
    if site.end_mark.result.unsigned_abs() < site.begin_mark.len {
        return false;
    }
    match completion(events, at).and_then(|done| events.get_mut(done)) {
        Some(Event {
            body: Body::Complete(c),
            ..
        }) if c.status.is_ok() => {
            c.status = FAILED;
            true
        }
        _ => false,
    }
}

fn invented(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    let end = CallEnd {
        result: -5,
        ..site.end_mark.clone()
    };
    let Some(event) = events.get_mut(site.end) else {
        return false;
    };
    set_mark(event, &Mark::End(end));
    // Where any other request failed, EIO may be the echo of that.
    let failed = |e: &Event| matches!(&e.body, Body::Complete(c) if !c.status.is_ok());
    let noted = |e: &Event| matches!(&e.body, Body::Mark(m) if m.line.contains("shut"));
    site.sure("error-report") && !events.iter().any(|e| failed(e) || noted(e))
}

fn not_flushed(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    let flush = |e: &&Event| matches!(&e.body, Body::Submit(s) if s.op == Op::Flush);
    let within = events.get(site.begin..site.end).unwrap_or_default();
    let flushes: Vec<u64> = within.iter().filter(flush).map(|e| e.seq).collect();
    events.retain(|e| match &e.body {
        Body::Submit(_) => !flushes.contains(&e.seq),
        Body::Complete(c) => !flushes.contains(&c.request),
        _ => true,
    });
    let dsync = site.begin_mark.flags.iter().any(|f| f == "dsync");
    dsync && !flushes.is_empty() && site.sure("durable")
}

fn too_long(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    // Beyond whatever somebody else may have made of the file.
    let told = events.iter().filter_map(|e| match mark(e)? {
        Mark::Begin(b) => Some(b.isize.max(b.off.saturating_add(b.len))),
        Mark::End(e) => Some(e.isize),
        Mark::File(FileMark::ChangeBegin(c)) => Some(c.off.saturating_add(c.len)),
        Mark::File(FileMark::Stat { isize, .. }) => Some(isize),
        _ => None,
    });
    let most = told.max().unwrap_or(0);
    let Some(isize) = most.checked_add(site.begin_mark.bsize) else {
        return false;
    };
    let end = CallEnd {
        isize,
        ..site.end_mark.clone()
    };
    let Some(event) = events.get_mut(site.end) else {
        return false;
    };
    set_mark(event, &Mark::End(end));
    site.sure("size")
}

fn written_again(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    // Behind a report that says that the pages are clean.
    let clean = |e: &Event| match mark(e) {
        Some(Mark::Report(r)) => {
            let all = r.off <= site.begin_mark.off
                && r.off + r.len >= site.begin_mark.off + site.begin_mark.len;
            r.call == site.begin_mark.call && r.dirty == 0 && r.writeback == 0 && all
        }
        _ => false,
    };
    let rest = events.get(site.end..).unwrap_or_default();
    let Some(at) = rest.iter().position(clean).map(|n| site.end + n) else {
        return false;
    };
    let Some(s) = submit(events, site.one(dice)).cloned() else {
        return false;
    };
    let again = Submit {
        ioprio: 0,
        digest: 0,
        ..s
    };
    let first = new_event(events, at, Body::Submit(again));
    let done = crate::trace::event::Complete {
        request: first.seq,
        status: crate::trace::event::Status::OK,
        avail_after: 0,
        abandoned: false,
        digest: 0,
    };
    let mut last = new_event(events, at, Body::Complete(done));
    last.seq += 1;
    events.splice(at + 1..at + 1, [first, last]);
    site.sure("written-once")
}

fn left_in_writeback(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    let mut n = 0;
    for event in events.iter_mut().skip(site.end) {
        if let Some(Mark::Report(mut r)) = mark(event)
            && r.call == site.begin_mark.call
            && r.cached > 0
        {
            r.writeback = 1;
            set_mark(event, &Mark::Report(r));
            n += 1;
        }
    }
    n >= 2 && site.sure("writeback-cleared")
}

/// Changes one fact of an event.
pub fn alter(event: &mut Event, dice: &mut Dice) -> bool {
    let bit = dice.below(3);
    match &mut event.body {
        Body::Submit(s) => match bit {
            0 => s.sector ^= 1 << dice.below(12),
            1 => s.bytes ^= 512 << dice.below(6),
            _ => s.ioprio ^= 8 << dice.below(10),
        },
        Body::Complete(c) => match bit {
            0 | 1 => c.status.0 ^= 1,
            _ => c.digest ^= 1 << dice.below(64),
        },
        Body::Decide(d) => d.hold = !d.hold,
        Body::Mark(m) => match m.parse() {
            Ok(Mark::End(mut e)) => {
                e.result = if bit == 0 {
                    -5
                } else {
                    e.result ^ (512 << dice.below(6))
                };
                m.line = Mark::End(e).to_line();
            }
            Ok(Mark::Begin(mut b)) => {
                b.off ^= 512 << dice.below(6);
                m.line = Mark::Begin(b).to_line();
            }
            Ok(Mark::Report(mut r)) => {
                r.writeback ^= 1;
                m.line = Mark::Report(r).to_line();
            }
            _ => m.ordered = !m.ordered,
        },
        Body::Data(d) => match d.bytes.first_mut() {
            Some(byte) => *byte ^= 1,
            None => return false,
        },
        Body::Device(d) => d.a ^= 1,
        Body::Gap(_) => return false,
    }
    // Not of flushes alone: an op that changes is another request.
    if let Body::Submit(s) = &mut event.body
        && s.op == Op::Flush
    {
        s.op = Op::GetId;
    }
    true
}
