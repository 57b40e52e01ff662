// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `writeback-cleared` against a judge that looks at all that was reported after one call: ranges inside each
//! other, odd reports, writes near, far and of the log, held requests, stops of the ring.

use std::collections::BTreeMap;

use proptest::prelude::*;
use wtblk_shared::mark::{Mark, PageReport};

use super::super::verdict::Verdict;
use super::builder::*;
use super::world::Dice;
use crate::trace::event::{DeviceKind, RequestId};

const P: &str = "writeback-cleared";
/// The call writes blocks 4 to 8.
const FROM: u64 = 4 * B;
const TO: u64 = 8 * B;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Near,
    /// Of some other file, as far as is known.
    Far,
    Log,
}

#[derive(Clone, Debug)]
enum What {
    /// Why the device may owe something.
    Report(PageReport, Option<&'static str>),
    /// A write was taken or completed.
    Write(Place),
    Stop,
}

/// What is due.
#[derive(Debug, Default, PartialEq)]
struct Due {
    /// Pages, and the two reports.
    broken: Option<(u64, [u64; 2])>,
    held: bool,
    why: Option<String>,
    late: bool,
    odd: BTreeMap<String, u64>,
}

fn pages(r: &PageReport) -> u64 {
    (r.off / B..(r.off + r.len).div_ceil(B)).count() as u64
}

fn odd(r: &PageReport) -> Option<&'static str> {
    let most = r.cached.max(r.dirty).max(r.writeback);
    match () {
        () if r.len == 0 => Some("a page report of no length, not used"),
        () if r.off + r.len <= FROM || r.off >= TO => {
            Some("a page report of a range that is not the call's, not used")
        }
        () if most > pages(r) => Some("a page report of more pages than its range has, not used"),
        () => None,
    }
}

fn judge(happened: &[(u64, What)]) -> Due {
    let mut due = Due::default();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    let mut more = false;
    for (_, what) in happened {
        if let What::Report(r, _) = what {
            if let Some(why) = odd(r) {
                *due.odd.entry(why.to_owned()).or_default() += 1;
            } else if !ranges.contains(&(r.off, r.len)) {
                match ranges.len() {
                    16 => more = true,
                    _ => ranges.push((r.off, r.len)),
                }
            }
        }
    }
    let (mut all_clear, mut why) = (true, None);
    for (off, len) in &ranges {
        let of = |r: &PageReport| (r.off, r.len) == (*off, *len);
        // A range is followed from its first report on.
        let is_first = |w: &What| matches!(w, What::Report(r, _) if odd(r).is_none() && of(r));
        let first = happened.iter().position(|(_, w)| is_first(w));
        let first = first.expect("it was reported");
        let clear = |w: &What| {
            matches!(w, What::Report(r, _) if odd(r).is_none() && r.writeback == 0
                && r.off <= *off && off + len <= r.off + r.len)
        };
        let waits = |w: &What| matches!(w, What::Report(r, None) if odd(r).is_none() && of(r) && r.writeback > 0);
        let owed = |w: &What| match w {
            What::Report(r, Some(why)) if odd(r).is_none() && of(r) && r.writeback > 0 => {
                Some(*why)
            }
            _ => None,
        };
        let wrote = |w: &What, near: bool| match w {
            What::Write(Place::Near) => true,
            What::Write(Place::Far) => !near,
            _ => false,
        };
        // For each report that shows pages: the first one since which nothing happened.
        let mut pair = None;
        let mut unclear = None;
        for (i, (seq, what)) in happened.iter().enumerate().skip(first) {
            if let Some(why) = owed(what) {
                unclear = Some(why);
            }
            if clear(what) {
                if pair.is_some() && happened[..i].iter().any(|(_, w)| wrote(w, true)) {
                    pair = None;
                    due.late = true;
                }
                // The call's pages are out of it; whatever comes now is somebody else's.
                break;
            }
            if !waits(what) {
                continue;
            }
            let before = &happened[..i];
            let cut = |w: &What| clear(w) || owed(w).is_some() || matches!(w, What::Stop);
            let run = before
                .iter()
                .rposition(|(_, w)| cut(w))
                .map_or(0, |n| n + 1);
            let written = before[run..].iter().rposition(|(_, w)| wrote(w, false));
            let since = written.map_or(run, |n| run + n + 1);
            if let Some((first, _)) = before[since..].iter().find(|(_, w)| waits(w)) {
                let What::Report(r, _) = what else {
                    unreachable!()
                };
                pair = pair.or(Some((r.writeback, [*first, *seq])));
            } else if before[run..since].iter().any(|(_, w)| waits(w)) {
                unclear = Some("a write was taken or completed between the reports");
            }
        }
        if let Some(pair) = pair
            && due.broken.is_none_or(|b| b.0 <= pair.0)
        {
            due.broken = Some(pair);
        }
        if !happened[first..].iter().any(|(_, w)| clear(w)) {
            all_clear = false;
            why = why.or(unclear);
        }
    }
    if due.broken.is_some() {
        due.late = false;
        return due;
    }
    due.held = !ranges.is_empty() && !more && all_clear;
    if !due.held {
        let said = match () {
            () if ranges.is_empty() && !due.odd.is_empty() => {
                "no usable page report followed the call"
            }
            () if ranges.is_empty() => "no page report followed the call",
            () if all_clear => "reports of too many ranges",
            () => why.unwrap_or("only one usable report showed pages in writeback"),
        };
        due.why = Some(said.to_owned());
    }
    due
}

fn chance(seed: u64, steps: u64) -> (Stream, Vec<(u64, What)>) {
    let mut dice = Dice(seed);
    let mut s = Stream::booted();
    let extents = Some(vec![ext(0, DISK, 16 << 20)]);
    let c = wtblk_shared::mark::CallBegin {
        extents,
        ..call(1, FROM, TO - FROM)
    };
    s.run(&c, &[(DISK + FROM, TO - FROM)]);
    let mut happened = Vec::new();
    let mut flying: Vec<(RequestId, Place, bool)> = Vec::new();
    let wide = dice.one_in(8);
    for _ in 0..steps {
        match dice.below(8) {
            0 => {
                let place = [Place::Near, Place::Far, Place::Log][dice.below(3) as usize];
                let at = match place {
                    Place::Near => DISK + dice.below(4) * (64 << 10),
                    Place::Far => DISK + (128 << 20) + dice.below(100) * B,
                    Place::Log => LOG + dice.below(100) * B,
                };
                let id = s.stray(at, B);
                let held = dice.one_in(6);
                if held {
                    s.hold(id);
                }
                happened.push((id, What::Write(place)));
                flying.push((id, place, held));
            }
            1 | 2 if !flying.is_empty() => {
                let n = dice.below(flying.len() as u64) as usize;
                let (id, place, _) = flying.swap_remove(n);
                happened.push((s.ok(id), What::Write(place)));
            }
            3 if flying.is_empty() && dice.one_in(4) => {
                let seq = s.device(DeviceKind::QueueStop, 0, 0, "");
                s.epoch += 1;
                s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
                happened.push((seq, What::Stop));
            }
            _ => {
                let (off, len) = match dice.below(if wide { 5 } else { 4 }) {
                    0 | 1 => (FROM, TO - FROM),
                    2 => (0, 16 * B),
                    3 => (dice.below(10) * B / 2, dice.below(5) * B),
                    _ => (dice.below(8) * B, 2 * B),
                };
                let mut r = PageReport {
                    call: 1,
                    at: "t".into(),
                    off,
                    len,
                    cached: dice.below(2),
                    dirty: dice.below(2),
                    writeback: dice.below(2) * dice.below(4),
                };
                if dice.one_in(12) {
                    let one_more = pages(&r) + dice.below(2);
                    match dice.below(3) {
                        0 => r.cached = one_more,
                        1 => r.dirty = one_more,
                        _ => r.writeback = one_more,
                    }
                }
                let near = flying.iter().any(|f| f.1 == Place::Near);
                let why = match () {
                    () if near => Some("writes of the blocks were in flight at a report"),
                    () if flying.iter().any(|f| f.2) => {
                        Some("another request was held back at a report")
                    }
                    () if flying.iter().any(|f| f.1 == Place::Far) => {
                        Some("a write of unknown place was in flight at a report")
                    }
                    () => None,
                };
                happened.push((s.mark(Mark::Report(r.clone())), What::Report(r, why)));
            }
        }
    }
    (s, happened)
}

proptest! {
    #[test]
    fn each_report_is_judged_by_the_plain_definition(seed: u64, steps in 0u64..40) {
        let (s, happened) = chance(seed, steps);
        let due = judge(&happened);
        let verdicts = s.verdicts();
        let mut found = verdicts.findings().filter(|f| f.promise == P);
        let broken = found.next().map(|f| {
            let number = |v: &serde_json::Value| v.as_u64().unwrap();
            let reports = &f.details["reports"];
            let both = [number(&reports[0]["event"]), number(&reports[1]["event"])];
            assert!(both.iter().all(|seq| f.events.contains(seq)));
            assert_eq!(number(&reports[1]["writeback"]), number(&f.details["pages_in_writeback"]));
            (number(&f.details["pages_in_writeback"]), both)
        });
        prop_assert_eq!(found.next(), None);
        prop_assert_eq!(broken, due.broken, "{:#?}", happened);
        let v = verdicts.get(TEST, P).unwrap();
        let held = matches!(v.verdict, Verdict::Held { .. });
        prop_assert_eq!(held, due.held, "{:#?}\n{:#?}", happened, v);
        let why: Option<String> = v.not_checked.keys().next().cloned();
        prop_assert_eq!(why, due.why, "{:#?}", happened);
        let mut odd = due.odd;
        if due.late {
            odd.insert("pages in writeback without a request, gone after a later write".into(), 1);
        }
        prop_assert_eq!(&v.observations, &odd);
    }
}

/// Sixteen ranges are followed, and then no call is held by what was left out.
#[test]
fn more_ranges_than_are_followed_are_not_held() {
    for ranges in [16, 17] {
        let mut s = Stream::booted();
        s.run(&call(1, 0, 64 * B), &[(DISK, 64 * B)]);
        for n in 0..ranges {
            s.report_range(1, n * B, B, 0);
        }
        if ranges == 16 {
            s.held(P, 1);
        } else {
            s.not_checked(P, "reports of too many ranges");
        }
    }
}

/// A report of one range too many still says of those inside it that they came clear after all.
#[test]
fn a_report_of_one_range_too_many_excuses_those_inside() {
    for excused in [false, true] {
        let mut s = Stream::booted();
        s.run(&call(1, 0, 64 * B), &[(DISK, 64 * B)]);
        for n in 0..16 {
            s.report_range(1, n * B, B, u64::from(n == 0));
        }
        s.report_range(1, 0, B, 1);
        let w = s.stray(DISK, B);
        s.ok(w);
        if excused {
            s.report_range(1, 0, 64 * B, 0);
            s.not_checked(P, "reports of too many ranges").silent();
        } else {
            s.broken(P, &[]);
        }
    }
}
