// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `writeback-cleared`: no page waits for a device that owes nothing.

use serde_json::json;
use wtblk_shared::mark::{Mark, PageReport};

use super::attribution::World;
use super::call::PastCall;
use super::contract::Contract;
use super::fast_hash::NumberMap;
use super::flight::Owes;
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Finding, Ledger};
use crate::trace::event::Status;

/// Ranges that are followed of one call.
const MAX_RANGES: usize = 16;
const PAGE: u64 = 4096;
/// Letters kept of a report's name.
const MAX_AT: usize = 64;

/// The promise in words.
pub static ABOUT: About = About {
    name: "writeback-cleared",
    promised: "Once a call has ended, its pages are not kept in writeback without a write that is \
               still to come back.",
    judged_on: "page reports (cachestat) after the call's end, and the requests in flight at each",
    broken_when: "pages of one range are in writeback in two reports separated by a mark round trip \
                  while the backend had no write of those folios' blocks in flight at both, and none \
                  was taken or completed in between",
    not_checked_when: "no report of the call's range followed, or the last of a range shows pages and only one with pages in writeback; at the reports writes \
                       of the blocks, or of unknown place, were in flight, a request was held back, or \
                       the data disk was not running; one was taken or completed between the reports; \
                       another marked call of the file was under way at one; \
                       events are missing in between; pages that left \
                       writeback later, after another write of the blocks, were somebody else's",
    comes_from: "folio_start_writeback and folio_end_writeback come in pairs (mm/page-writeback.c), on \
        the error path, too",
    broken_by: "an error path that returns with folios still in writeback: those after the failed bio \
        that were never submitted; the defect leak-writeback",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(WritebackCleared::default())
}

#[derive(Clone, Debug)]
struct Seen {
    seq: u64,
    report: PageReport,
}

/// The last usable report of a range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Last {
    #[default]
    None,
    Clear,
    Waits,
}

/// The ranges of one call.
#[derive(Clone, Debug, Default)]
struct Watch {
    ranges: Vec<Watched>,
    /// There were more ranges than are followed.
    more: bool,
    /// There was a report that says nothing about the call's pages.
    odd: bool,
}

/// What the reports of one range said.
#[derive(Clone, Debug, Default)]
struct Watched {
    off: u64,
    len: u64,
    first: Option<Seen>,
    pair: Option<(Seen, Seen)>,
    /// What the last usable report of all of it said. Once clear it is settled: what is in writeback later was put there later.
    last: Last,
    late: bool,
    unclear: Option<&'static str>,
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct WritebackCleared {
    /// By call; only ended calls that were reported on and are still remembered.
    calls: NumberMap<Watch>,
}

impl Promise for WritebackCleared {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        let Mark::Report(report) = mark else { return };
        let Some(past) = world.past(report.call) else {
            return;
        };
        let watch = self.calls.entry(report.call).or_default();
        if let Some(odd) = odd(report, past) {
            watch.odd = true;
            if past.writethrough {
                ledger.observe(&past.test, &ABOUT, odd);
            }
            return;
        }
        let ranges = &mut watch.ranges;
        let same = |w: &Watched| (w.off, w.len) == (report.off, report.len);
        if !ranges.iter().any(same) {
            if ranges.len() == MAX_RANGES {
                // What it says of the others inside counts all the same.
                watch.more = true;
            } else {
                // Mostly it stays the only one.
                ranges.reserve_exact(1);
                ranges.push(Watched {
                    off: report.off,
                    len: report.len,
                    ..Watched::default()
                });
            }
        }
        if report.writeback == 0 {
            for w in ranges.iter_mut().filter(|w| inside(w, report)) {
                w.came_clear(past, world);
            }
        } else if let Some(range) = ranges.iter_mut().find(|w| same(w)) {
            range.still_waits(seq, report, past, world);
        }
    }

    fn interrupted(&mut self, lost: bool) {
        for range in self.calls.values_mut().flat_map(|w| &mut w.ranges) {
            range.first = None;
            if lost && range.pair.take().is_some() {
                range.unclear = Some("events are missing after the reports");
            }
        }
    }

    fn call_forgotten(&mut self, call: &PastCall, ledger: &mut Ledger) {
        let watch = self.calls.remove(&call.call.call).unwrap_or_default();
        rule(call, &watch, ledger);
    }

    fn settle(&self, world: &World, ledger: &mut Ledger) {
        for past in world.all_past() {
            let watch = self.calls.get(&past.call.call);
            rule(past, watch.unwrap_or(&Watch::default()), ledger);
        }
    }

    fn reboot(&mut self) {
        self.calls.clear();
    }
}

impl Watched {
    fn still_waits(&mut self, seq: u64, report: &PageReport, past: &PastCall, world: &World) {
        if self.last == Last::Clear {
            return;
        }
        let why = match world.owes(past) {
            // It may have begun writeback of these pages, and not have come to its requests yet.
            Owes::Nothing if another_is_open(past, world) => {
                Some("another call of the file was under way at a report")
            }
            Owes::Nothing => None,
            Owes::Writes(_) => Some("writes of the blocks were in flight at a report"),
            Owes::Unclear(why) => Some(why),
        };
        if why.is_some() {
            // What was seen before may have been the beginning of this writeback,
            // and what is seen next its end.
            self.first = None;
            self.unclear = why;
            return;
        }
        self.last = Last::Waits;
        let mut report = report.clone();
        report.at = report.at.chars().take(MAX_AT).collect();
        let now = Seen { seq, report };
        match self.first.take() {
            Some(first) if !world.may_have_written(first.seq) => {
                // The earliest, as least has happened since the call.
                self.pair.get_or_insert_with(|| (first.clone(), now));
                self.first = Some(first);
            }
            first => {
                if first.is_some() {
                    self.unclear = Some("a write was taken or completed between the reports");
                }
                self.first = Some(now);
            }
        }
    }

    /// The pages left writeback after all. Where a write of the blocks was taken
    /// since the call, they had been in somebody else's writeback: a kernel thread
    /// sets the state before it submits and clears it a while after the completion.
    fn came_clear(&mut self, past: &PastCall, world: &World) {
        if self.last == Last::Clear {
            return;
        }
        self.first = None;
        self.last = Last::Clear;
        if self.pair.is_some() && world.wrote_near(past, past.end_seq) {
            self.pair = None;
            self.late = true;
        }
    }
}

/// Whether a marked call of the same file runs.
fn another_is_open(past: &PastCall, world: &World) -> bool {
    let same = |c: &super::call::Call| (c.begin.dev, c.begin.ino) == (past.call.dev, past.call.ino);
    world.open_calls().any(same)
}

/// Whether the report's range holds all of the watched one.
fn inside(w: &Watched, report: &PageReport) -> bool {
    report.off <= w.off && w.off.saturating_add(w.len) <= report.off.saturating_add(report.len)
}

/// Pages that the range touches.
fn pages(report: &PageReport) -> u64 {
    let end = report.off.saturating_add(report.len);
    end.div_ceil(PAGE) - report.off / PAGE
}

/// What is wrong with a report that says nothing about the call's pages.
fn odd(report: &PageReport, past: &PastCall) -> Option<&'static str> {
    let range = report.off..report.off.saturating_add(report.len);
    let most = [report.cached, report.dirty, report.writeback];
    if report.len == 0 {
        Some("a page report of no length, not used")
    } else if !super::flight::overlap(&range, &past.range) {
        Some("a page report of a range that is not the call's, not used")
    } else if most.iter().any(|n| *n > pages(report)) {
        Some("a page report of more pages than its range has, not used")
    } else {
        None
    }
}

fn rule(past: &PastCall, watch: &Watch, ledger: &mut Ledger) {
    if !past.writethrough {
        return;
    }
    let ranges = &watch.ranges;
    let pages = |w: &&Watched| w.pair.as_ref().map_or(0, |(_, b)| b.report.writeback);
    let worst = ranges.iter().max_by_key(pages);
    if let Some((a, b)) = worst.and_then(|w| w.pair.as_ref()) {
        return ledger.broken(&ABOUT, finding(past, a, b));
    }
    if ranges.iter().any(|w| w.late) {
        ledger.observe(
            &past.test,
            &ABOUT,
            "pages in writeback without a request, gone after a later write",
        );
    }
    let open = || ranges.iter().filter(|w| w.last != Last::Clear);
    if !ranges.is_empty() && !watch.more && open().next().is_none() {
        return ledger.held(&past.test, &ABOUT);
    }
    let unclear = open().find_map(|w| w.unclear);
    let reason = if ranges.is_empty() && watch.odd {
        "no usable page report followed the call"
    } else if ranges.is_empty() {
        "no page report followed the call"
    } else if open().next().is_none() {
        "reports of too many ranges"
    } else {
        unclear.unwrap_or("only one usable report showed pages in writeback")
    };
    ledger.not_checked(&past.test, &ABOUT, reason);
}

fn finding(past: &PastCall, a: &Seen, b: &Seen) -> Finding {
    let status = |r: &super::call::CallRequest| {
        let status = r.done.map_or(Status::OK, |d| d.status);
        format!("{} with status {status}", r.describe())
    };
    let failed = match past.failed.len() {
        0 => "no request of the call failed".to_owned(),
        1 => format!(
            "one request of the call failed: {}",
            list_few(past.failed.iter().map(status))
        ),
        n => format!(
            "{n} requests of the call failed: {}",
            list_few(past.failed.iter().map(status))
        ),
    };
    let happened = format!(
        "after the call's end (event {}) {} of {} pages of file offsets {} to {} ({} of them cached) stay in \
         writeback: {} at event {} ({}), {} at event {} ({}). The device owes nothing: 0 writes of those \
         blocks were taken or in flight at both reports. {failed}",
        past.end_seq,
        b.report.writeback,
        pages(&b.report),
        b.report.off,
        b.report.off.saturating_add(b.report.len),
        b.report.cached,
        a.report.writeback,
        a.seq,
        a.report.at,
        b.report.writeback,
        b.seq,
        b.report.at,
    );
    let failures = past
        .failed
        .iter()
        .flat_map(|r| [Some(r.id), r.done.map(|d| d.seq)]);
    let mut events: Vec<u64> = failures.flatten().collect();
    events.extend([past.end_seq, a.seq, b.seq]);
    events.sort_unstable();
    ABOUT.finding(
        &past.test,
        Some(past.call.clone()),
        happened,
        &[Evidence::Reports, Evidence::Extents, Evidence::InFlight],
        events,
        [
            ("pages_in_writeback", json!(b.report.writeback)),
            ("range", json!([b.report.off, b.report.len])),
            (
                "reports",
                [a, b]
                    .iter()
                    .map(|s| {
                        json!({
                            "event": s.seq, "at": s.report.at, "writeback": s.report.writeback,
                            "dirty": s.report.dirty, "cached": s.report.cached,
                        })
                    })
                    .collect(),
            ),
            ("owed_requests", json!(0)),
            ("failed", past.failed.iter().map(request_json).collect()),
        ],
    )
}
