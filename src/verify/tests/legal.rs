// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams by chance in which nothing is wrong: not one finding.

use proptest::prelude::*;

use super::super::contract::Contract;
use super::builder::*;
use super::world::{Wanted, legal};
use crate::trace::event::{Body, Complete, DeviceEvent, DeviceKind, Event, Gap, MarkEvent, Status};

fn assert_silent(events: &[Event]) {
    let verdicts = judge(events, Contract::default());
    if let Some(f) = verdicts.findings().next() {
        let from = f.events.first().copied().unwrap_or(0);
        let shown: Vec<_> = events.iter().filter(|e| e.seq >= from).take(60).collect();
        panic!("{f:#?}\n{shown:#?}");
    }
}

proptest! {
    #[test]
    fn what_is_legal_is_silent(seed: u64, calls in 1u64..40, wild: bool) {
        let s = legal(seed, calls, Wanted { wild });
        assert_silent(&s.events);
        if !wild {
            // And it was looked at: every call of a tame stream is decided.
            s.held("align", calls).held("cover", calls).held("order", calls);
            s.held("sync-return", calls).held("error-report", calls);
            s.held("no-overlap", calls);
            prop_assert!(s.of("stable").held >= calls);
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
