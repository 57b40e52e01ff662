// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `progress` against a judge that looks at all pairs of reports of one probe: requests in between, held, failed; stops of the
//! ring, missing events, reports of other states, and too soon.

use proptest::prelude::*;

use super::super::verdict::Verdict;
use super::builder::*;
use super::world::Dice;
use crate::trace::event::{DeviceKind, RequestId};

const P: &str = "progress";
const LIMIT_NS: u64 = 2_000_000_000;

#[derive(Clone, Debug, PartialEq)]
enum What {
    /// Of the probe's task: whether it is in D state beyond the limit, its context switches, and whether the device is known
    /// to owe nothing at that moment.
    Report {
        stuck: bool,
        switches: u64,
        owed: bool,
    },
    /// A request was taken.
    Taken,
    /// One was completed, or something happened to the ring.
    Other,
    /// The ring stopped.
    Stop,
    /// Events are missing.
    Gap,
}

#[derive(Clone, Debug)]
struct Happened {
    seq: u64,
    ns: u64,
    what: What,
}

#[derive(Debug, PartialEq)]
enum Due {
    Held,
    NotChecked,
    /// The events that prove it.
    Broken(Vec<u64>),
}

/// Whether these two reports, and what lies between, show a task that does not move while nothing is owed.
fn is_pair(between: &[Happened]) -> bool {
    let (Some(first), Some(last)) = (between.first(), between.last()) else {
        return false;
    };
    let What::Report { switches, .. } = last.what else {
        return false;
    };
    let usable = What::Report {
        stuck: true,
        switches,
        owed: false,
    };
    let quiet = |h: &Happened| match &h.what {
        What::Report { .. } => h.what == usable,
        What::Taken | What::Stop | What::Gap => false,
        What::Other => true,
    };
    first.seq < last.seq && first.what == usable && between.iter().all(quiet)
}

fn due(began: &Happened, happened: &[Happened], ended: Option<u64>) -> Due {
    let mut found = None;
    let mut too_soon = false;
    // What came before events are missing proves nothing.
    let gap = happened.iter().rposition(|h| h.what == What::Gap);
    for last in gap.map_or(0, |n| n + 1)..happened.len() {
        let Some(first) = (0..last).find(|first| is_pair(&happened[*first..=last])) else {
            continue;
        };
        let disturbed = happened[..last]
            .iter()
            .rfind(|h| !matches!(h.what, What::Report { .. }));
        let since = disturbed.map_or(began.ns, |h| h.ns.max(began.ns));
        if happened[last].ns - since >= LIMIT_NS / 2 {
            found = Some((first, last));
        } else if found.is_none() {
            too_soon = true;
        }
    }
    match (found, ended) {
        (Some((_, last)), Some(_)) if happened[last..].iter().any(|h| h.what == What::Taken) => {
            Due::NotChecked
        }
        (Some((first, last)), _) => {
            let pair = [began.seq, happened[first].seq, happened[last].seq];
            Due::Broken(pair.into_iter().chain(ended).collect())
        }
        (None, Some(_)) if gap.is_none() && !too_soon => Due::Held,
        (None, _) => Due::NotChecked,
    }
}

/// One probe among things that happen to the device.
fn chance(seed: u64, steps: u64) -> (Stream, Due) {
    let mut dice = Dice(seed);
    let mut s = Stream::booted();
    let mut flying: Vec<RequestId> = Vec::new();
    if dice.one_in(4) {
        flying.push(s.stray(LOG, 512));
    }
    let began = Happened {
        seq: s.probe(7, 1),
        ns: s.now_ns,
        what: What::Other,
    };
    // What is known to be wrong with the device from here on.
    let (mut failed, mut blind, mut stopped) = (false, false, false);
    let mut happened = Vec::new();
    let calm = dice.one_in(2);
    for _ in 0..steps {
        if !dice.one_in(3) {
            s.wait_ms(dice.below(900));
        }
        let kind = if calm && !dice.one_in(8) {
            20
        } else {
            dice.below(20)
        };
        let (seq, what) = match kind {
            0 if !stopped => {
                let id = s.stray(LOG + dice.below(64) * 512, 512);
                if dice.one_in(3) {
                    s.hold(id);
                }
                flying.push(id);
                (id, What::Taken)
            }
            1..6 if !flying.is_empty() => {
                let id = flying.swap_remove(dice.below(flying.len() as u64) as usize);
                let fails = dice.one_in(12);
                failed |= fails;
                let seq = if fails { s.fail(id) } else { s.ok(id) };
                (seq, What::Other)
            }
            6 if flying.is_empty() && !stopped && dice.one_in(2) => {
                stopped = true;
                (s.device(DeviceKind::QueueStop, 0, 0, ""), What::Stop)
            }
            7..9 if stopped => {
                stopped = false;
                s.epoch += 1;
                let epoch = u64::from(s.epoch);
                let seq = s.device(DeviceKind::QueueStart, 128, epoch, "");
                (seq, What::Other)
            }
            9 if dice.one_in(6) => {
                blind = true;
                let seq = s.next;
                s.gap(3);
                (seq, What::Gap)
            }
            _ => {
                let state = if dice.one_in(10) { 'S' } else { 'D' };
                let waited = (s.now_ns - began.ns) / 1_000_000;
                let switches = 3 + u64::from(dice.one_in(8));
                let report = What::Report {
                    stuck: state == 'D' && waited >= LIMIT_NS / 1_000_000,
                    switches,
                    owed: failed || blind || stopped || !flying.is_empty(),
                };
                (s.probe_state(7, waited, state, switches), report)
            }
        };
        let ns = s.now_ns;
        happened.push(Happened { seq, ns, what });
    }
    let ended = dice.one_in(2).then(|| s.probe_end(7));
    let due = due(&began, &happened, ended);
    (s, due)
}

proptest! {
    #[test]
    fn each_probe_is_judged_by_the_plain_definition(seed: u64, steps in 0u64..24) {
        let (s, due) = chance(seed, steps);
        let verdicts = s.verdicts();
        let v = verdicts.get(TEST, P).unwrap();
        let came = match &v.verdict {
            Verdict::Held { decisions: 1 } => Due::Held,
            Verdict::NotChecked { .. } => Due::NotChecked,
            Verdict::Broken { findings, more: 0 } if findings.len() == 1 => {
                Due::Broken(findings[0].events.clone())
            }
            other => panic!("{other:?}"),
        };
        prop_assert_eq!(came, due, "{:#?}\n{:#?}", s.events, v);
    }
}

/// The draws above come to each verdict often enough to mean something.
#[test]
fn the_draws_come_to_every_verdict() {
    let mut seen = [0; 4];
    for seed in 0..2000 {
        match chance(seed, seed % 24).1 {
            Due::Held => seen[0] += 1,
            Due::NotChecked => seen[1] += 1,
            Due::Broken(events) => seen[events.len() - 1] += 1,
        }
    }
    assert!(seen.iter().all(|n| *n > 100), "{seen:?}");
}
