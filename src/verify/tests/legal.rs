// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams by chance in which nothing is wrong: not one finding.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, Mark};
use wtblk_shared::tag::Tag;

use super::super::contract::Contract;
use super::super::verdict::{Verdict, Verdicts};
use super::super::{Verifier, promise};
use super::builder::*;
use super::world::{Wanted, legal};
use crate::trace::event::{
    Body, Complete, DeviceEvent, DeviceKind, Event, Gap, MarkEvent, Op, Status,
};

fn assert_silent(events: &[Event]) -> Verdicts {
    let mut verifier = Verifier::new(Contract::default());
    for event in events {
        verifier.event(event);
    }
    let verdicts = verifier.finish();
    if let Some(f) = verdicts.findings().next() {
        let from = f.events.first().copied().unwrap_or(0);
        let shown: Vec<_> = events.iter().filter(|e| e.seq >= from).take(60).collect();
        panic!("{f:#?}\n{shown:#?}");
    }
    verdicts
}

/// What the random streams are made of, and that each promise has something to decide in them:
/// silence of a judge that decides nothing proves nothing.
#[test]
fn random_streams_have_all_that_is_legal_in_them() {
    let mut decided: BTreeMap<String, u64> = BTreeMap::new();
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let streams = 300;
    for seed in 0..streams {
        let s = legal(
            seed,
            1 + seed % 39,
            Wanted {
                wild: seed % 2 == 0,
            },
        );
        let verdicts = assert_silent(&s.events);
        for p in &verdicts
            .tests
            .iter()
            .find(|t| t.test == TEST)
            .unwrap()
            .promises
        {
            *decided.entry(p.promise.clone()).or_default() += u64::from(p.held > 0);
        }
        for class in classes(&s.events) {
            *seen.entry(class).or_default() += 1;
        }
    }
    eprintln!("{decided:?}\n{seen:?}");
    for promise in promise::NAMES {
        let n = decided.get(*promise).copied().unwrap_or(0);
        let least = if *promise == "stop-after-error" {
            20
        } else {
            100
        };
        assert!(n >= least, "{promise}: {n} of {streams} {decided:?}");
    }
    for class in CLASSES {
        let n = seen.get(class).copied().unwrap_or(0);
        assert!(n >= 30, "{class}: {n} of {streams} {seen:?}");
    }
}

const CLASSES: [&str; 10] = [
    "split",
    "merge",
    "side request",
    "calls side by side",
    "several queues",
    "reported error",
    "unmarked traffic",
    "held request",
    "flush",
    "partly outside",
];

/// Which of them are in a stream.
fn classes(events: &[Event]) -> BTreeSet<&'static str> {
    let mut seen = BTreeSet::new();
    let mut open: BTreeMap<u16, CallBegin> = BTreeMap::new();
    for e in events {
        match &e.body {
            Body::Submit(s) => {
                let tag = Tag::from_ioprio(s.ioprio).map(Tag::number);
                let call = tag.and_then(|t| open.get(&t));
                let (at, end) = (s.sector * 512, s.sector * 512 + u64::from(s.bytes));
                if s.op == Op::Flush {
                    seen.insert("flush");
                }
                let Some(call) = call else {
                    seen.insert("unmarked traffic");
                    continue;
                };
                if s.queue > 0 {
                    seen.insert("several queues");
                }
                if s.op != Op::Write || at >= LOG {
                    seen.insert("side request");
                    continue;
                }
                if end % B != 0 {
                    seen.insert("split");
                } else if at % B == 0 && u64::from(s.bytes) > B {
                    seen.insert("merge");
                }
                let known = call.extents.iter().flatten();
                let first = known.filter(|x| x.physical <= at && at < x.physical + x.length);
                for x in first {
                    let file = x.logical + at - x.physical;
                    if file < call.off / B * B && file + u64::from(s.bytes) > call.off / B * B {
                        seen.insert("partly outside");
                    }
                }
            }
            Body::Decide(_) => {
                seen.insert("held request");
            }
            Body::Mark(m) => match m.parse() {
                Ok(Mark::Begin(b)) => {
                    open.insert(b.tag.unwrap_or(0), b);
                    if open.len() > 1 {
                        seen.insert("calls side by side");
                    }
                }
                Ok(Mark::End(end)) => {
                    open.retain(|_, b| b.call != end.call);
                    if end.result == -5 {
                        seen.insert("reported error");
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
    seen
}

proptest! {
    #[test]
    fn what_is_legal_is_silent(seed: u64, calls in 1u64..40, wild: bool) {
        let s = legal(seed, calls, Wanted { wild });
        let verdicts = assert_silent(&s.events);
        if !wild {
            // And it was looked at: every call of a tame stream is decided.
            for promise in ["align", "cover", "order", "sync-return", "error-report", "no-overlap"] {
                let v = verdicts.get(TEST, promise).unwrap();
                prop_assert_eq!(&v.verdict, &Verdict::Held { decisions: calls }, "{}", promise);
            }
            prop_assert!(verdicts.get(TEST, "stable").unwrap().held >= calls);
        }
    }

    /// Wherever events are lost, what is left gives no finding.
    #[test]
    fn a_gap_anywhere_is_silent(seed: u64, at: prop::sample::Index, missing in 1usize..60) {
        let mut events = legal(seed, 15, Wanted { wild: true }).events;
        let from = at.index(events.len());
        let to = (from + missing).min(events.len());
        let gap = Event {
            seq: events[from].seq,
            time_ns: 0,
            body: Body::Gap(Gap { missing: (to - from) as u64, why: "lost".into() }),
        };
        events.splice(from..to, [gap]);
        assert_silent(&events);
    }

    /// The stream may end anywhere: a guest is killed, a trace is read live.
    #[test]
    fn an_end_anywhere_is_silent(seed: u64, at: prop::sample::Index) {
        let mut events = legal(seed, 15, Wanted { wild: true }).events;
        events.truncate(at.index(events.len()));
        // Only a report pair that waits for its excuse may stand there.
        let verdicts = judge(&events, Contract::default());
        for f in verdicts.findings() {
            prop_assert_eq!(f.promise.as_str(), "writeback-cleared");
        }
    }

    /// The ring stops anywhere; what was in flight is abandoned.
    #[test]
    fn a_stop_anywhere_is_silent(seed: u64, at: prop::sample::Index) {
        let events = legal(seed, 15, Wanted { wild: true }).events;
        let at = at.index(events.len());
        let mut s = Stream::bare();
        let mut lost = Vec::new();
        for (i, e) in events.into_iter().enumerate() {
            if i == at {
                let stop = |queue| Body::Device(DeviceEvent {
                    disk: 0, queue, kind: DeviceKind::QueueStop, a: 0, b: 0, text: String::new(),
                });
                lost = s.in_flight();
                for queue in 0..3 {
                    s.push(stop(queue));
                }
                for id in &lost {
                    s.push(Body::Complete(Complete {
                        request: *id, status: Status::OK, avail_after: 0, abandoned: true, digest: 0,
                    }));
                }
            }
            if matches!(&e.body, Body::Complete(c) if lost.contains(&c.request)) {
                continue;
            }
            // Numbers keep their order; requests keep theirs because `push` is not used.
            s.next = s.next.max(e.seq + 1);
            s.events.push(e);
        }
        assert_silent(&s.events);
    }

    /// Whatever a trace says, nothing panics.
    #[test]
    fn shuffled_streams_do_no_harm(seed: u64, swaps in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..40)) {
        let mut events = legal(seed, 6, Wanted { wild: true }).events;
        for (a, b) in swaps {
            let (a, b) = (a.index(events.len()), b.index(events.len()));
            events.swap(a, b);
        }
        let verdicts = judge(&events, Contract::default());
        super::super::render::verdicts(&verdicts);
    }

    #[test]
    fn text_of_any_kind_is_only_a_bad_mark(line in "(wtblk/1 (begin|end|report|probe-state|env|boot) )?.{0,200}") {
        let mut s = Stream::booted();
        s.push(Body::Mark(MarkEvent { line, ordered: true }));
        s.verdicts();
    }
}
