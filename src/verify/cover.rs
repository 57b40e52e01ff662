// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `cover`: everything that the call says it wrote was sent, and once.

use std::ops::Range;

use serde_json::json;

use super::attribution::World;
use super::call::EndedCall;
use super::contract::Contract;
use super::flight::overlap;
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "cover",
    promised: "The data requests of a call cover what it reports as written, rounded out to blocks, \
               exactly once.",
    judged_on: "the data requests of a call without a failed request, and its result",
    broken_when: "a byte of [offset, offset + result), rounded out to blocks, is in no data request \
                  of the call, or in more than one",
    not_checked_when: "the call failed, or a request of it; the extents after the call are unknown; a \
                       request lies partly outside its range; and for blocks sent twice: a short copy \
                       was planned (flag short-copy), another marked call wrote to the same folios \
                       meanwhile, or the block holds the old end of the file, which is zeroed first",
    comes_from: "the result of write(2): so many bytes were written, and the flag says that they went to \
        the device",
    broken_by: "a folio that is skipped or whose last block is lost at a folio or extent boundary; a \
        range that is sent by the call and again by a writeback that raced with it; the defect misaligned, \
        which cuts blocks off",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Cover)
}

/// The judge.
#[derive(Debug)]
pub(super) struct Cover;

impl Promise for Cover {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn call_ended(&mut self, call: &EndedCall, _world: &World, ledger: &mut Ledger) {
        let written = call.written();
        let (missing, twice) = sweep(call, &written);
        if let Some(why) = obstacle(call, &written, &missing, &twice) {
            return ledger.not_checked(call.test(), &ABOUT, why);
        }
        if missing.is_empty() && twice.is_empty() {
            return ledger.held(call.test(), &ABOUT);
        }
        let concerned = |r: &&super::call::CallRequest| {
            r.fragments().iter().any(|f| {
                let part = f.file..f.file + f.len;
                // Of what is missing the neighbours are the proof, of a double both.
                let first = twice.partition_point(|t| t.end <= part.start);
                twice.get(first).is_some_and(|t| overlap(t, &part))
                    || missing.binary_search_by_key(&part.end, |m| m.start).is_ok()
                    || missing.binary_search_by_key(&part.start, |m| m.end).is_ok()
            })
        };
        let requests: Vec<_> = call.data().filter(concerned).collect();
        let span = |r: &Range<u64>| format!("{} to {}", r.start, r.end);
        let mut what = Vec::new();
        if !missing.is_empty() {
            what.push(format!(
                "no data request wrote file offsets {} ({} bytes)",
                list_few(missing.iter().map(span)),
                total(&missing)
            ));
        }
        if !twice.is_empty() {
            what.push(format!(
                "file offsets {} were sent more than once, by {}",
                list_few(twice.iter().map(span)),
                list_few(requests.iter().map(|r| r.describe()))
            ));
        }
        let happened = format!(
            "the call returned {} and had {} data requests, which should cover {}: {}",
            call.end.result,
            call.data().count(),
            span(&written),
            what.join("; ")
        );
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents],
            call.proof(requests.iter().copied()),
            [
                ("expected", json!([written.start, written.end])),
                (
                    "missing",
                    missing.iter().map(|r| json!([r.start, r.end])).collect(),
                ),
                (
                    "twice",
                    twice.iter().map(|r| json!([r.start, r.end])).collect(),
                ),
                (
                    "requests",
                    requests.iter().map(|r| request_json(r)).collect(),
                ),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }
}

fn obstacle(
    call: &EndedCall,
    written: &Range<u64>,
    missing: &[Range<u64>],
    twice: &[Range<u64>],
) -> Option<&'static str> {
    if call.end.result < 0 {
        return Some("the call failed");
    }
    if call.requests.iter().any(|r| r.failed()) {
        return Some("a request of the call failed");
    }
    if written.is_empty() {
        return Some("nothing was written");
    }
    // Copy-on-write moves blocks: only the extents of the end can prove an absence.
    if call.end.extents.is_none() || !call.map.covers(written) {
        return Some("extents unknown");
    }
    if let Some(why) = call.data_unclear() {
        return Some(why);
    }
    if missing.is_empty() && twice.is_empty() {
        return None;
    }
    if !call.data_in_flight.is_empty() {
        return Some("the call ended before its requests did");
    }
    if !missing.is_empty() {
        return None;
    }
    let head = call.zeroed_first();
    if call.is("short-copy") {
        Some("a block may be sent twice after a short copy")
    } else if call.concurrent {
        Some("a block may be sent twice: another marked call wrote to the same folios")
    } else if twice
        .iter()
        .all(|t| head.start <= t.start && t.end <= head.end)
    {
        Some("the block of the old end of the file may be zeroed and sent before")
    } else {
        None
    }
}

/// What of `written` no request wrote, and what more than one did.
fn sweep(call: &EndedCall, written: &Range<u64>) -> (Vec<Range<u64>>, Vec<Range<u64>>) {
    let fragments = call.data().flat_map(|r| r.fragments());
    let mut parts: Vec<(u64, u64)> = Vec::with_capacity(call.requests.len());
    parts.extend(
        fragments
            .map(|f| (f.file.max(written.start), (f.file + f.len).min(written.end)))
            .filter(|(start, end)| start < end),
    );
    parts.sort_unstable();
    let (mut missing, mut twice) = (Vec::new(), Vec::new());
    let mut at = written.start;
    for (start, end) in parts {
        if start > at {
            push(&mut missing, at..start);
        }
        if start < at {
            push(&mut twice, start..end.min(at));
        }
        at = at.max(end);
    }
    if at < written.end {
        push(&mut missing, at..written.end);
    }
    (missing, twice)
}

fn push(list: &mut Vec<Range<u64>>, new: Range<u64>) {
    match list.last_mut() {
        Some(last) if last.end >= new.start => last.end = last.end.max(new.end),
        _ => list.push(new),
    }
}

fn total(list: &[Range<u64>]) -> u64 {
    list.iter().map(|r| r.end - r.start).sum()
}
