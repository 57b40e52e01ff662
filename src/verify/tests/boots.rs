// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What one boot left behind, wherever it was cut, changes no verdict of the next one.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::contract::Contract;
use super::super::verdict::Verdicts;
use super::builder::*;
use super::world::{Dice, Wanted, legal};
use crate::trace::event::{Body, DATA_DISK, DeviceEvent, DeviceKind, Event, Status};

/// The same events later in a trace.
fn later(events: &[Event], by: u64, by_ns: u64) -> Vec<Event> {
    let mut events = events.to_vec();
    for e in &mut events {
        e.seq += by;
        e.time_ns += by_ns;
        match &mut e.body {
            Body::Complete(c) => c.request += by,
            Body::Decide(d) => d.request += by,
            Body::Data(d) => d.request += by,
            _ => {}
        }
    }
    events
}

/// The same boot, but its test has another name.
fn renamed(mut events: Vec<Event>) -> Vec<Event> {
    for e in &mut events {
        if let Body::Mark(m) = &mut e.body {
            m.line = m.line.replace(" test=t ", " test=old ");
            if m.line.contains("wtblk/1 test-") {
                m.line = m.line.replace("=t", "=old");
            }
        }
    }
    events
}

/// What is said of the test: per promise, how often it held and why it was not checked.
fn said(verdicts: &Verdicts) -> BTreeMap<String, (u64, BTreeMap<String, u64>)> {
    let test = verdicts.tests.iter().find(|t| t.test == TEST).unwrap();
    let of = test.promises.iter();
    of.map(|p| (p.promise.clone(), (p.held, p.not_checked.clone())))
        .collect()
}

proptest! {
    #[test]
    fn a_boot_is_judged_as_if_it_were_the_first(seed: u64, cut: prop::sample::Index, wrong: bool) {
        let mut old = renamed(legal(seed, 12, Wanted { wild: true }).events);
        old.truncate(cut.index(old.len()) + 1);
        if wrong {
            // A kernel that is not right may have been booted before.
            let mut dice = Dice(seed);
            for e in &mut old {
                if let Body::Complete(c) = &mut e.body && dice.one_in(6) {
                    c.status = Status::IOERR;
                }
            }
        }
        let last = old.last().unwrap().clone();
        let reset = Body::Device(DeviceEvent {
            disk: DATA_DISK, queue: 0, kind: DeviceKind::Reset, a: 0, b: 0, text: String::new(),
        });
        let new = legal(!seed, 12, Wanted { wild: seed % 2 == 0 }).events;
        let alone = said(&judge(&new, Contract::default()));
        let mut all = old;
        all.push(Event { seq: last.seq + 1, time_ns: last.time_ns, body: reset });
        all.extend(later(&new, last.seq + 2, last.time_ns));
        prop_assert_eq!(said(&judge(&all, Contract::default())), alone);
    }
}
