// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `align`: what goes to the disk are whole file system blocks.

use serde_json::json;

use super::attribution::World;
use super::call::EndedCall;
use super::contract::Contract;
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "align",
    promised: "The data requests of a call, neighbours joined, begin and end on file system blocks.",
    judged_on: "maximal runs of neighbouring data requests of one call within one extent, whatever \
                their order of arrival: the block layer may split a request anywhere",
    broken_when: "a run begins or ends inside a block of the file",
    not_checked_when: "the extents are unknown; a request lies partly outside the call's range; the \
                       call ended before its requests did, or sent none",
    comes_from: "the flag writes through the page cache: what iomap sends is built of folios and their \
        blocks (fs/iomap/buffered-io.c), never of the bytes that the caller gave",
    broken_by: "a bio built from the byte range of the call instead of the blocks that hold it, or \
        clipped at i_size; the defect misaligned",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Align)
}

/// The judge.
#[derive(Debug)]
pub(super) struct Align;

/// A run: extent, first and last file offset.
type Run = (usize, u64, u64);

impl Promise for Align {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn call_ended(&mut self, call: &EndedCall, _world: &World, ledger: &mut Ledger) {
        let block = call.begin.bsize.max(1);
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        if let Some(why) = call.data_unclear() {
            return skip(why);
        }
        if call.data().next().is_none() {
            return skip(call.why_no_data());
        }
        if !call.map.on_blocks(block) {
            return skip("an extent does not begin and end on blocks");
        }
        let bad: Vec<Run> = runs(call)
            .into_iter()
            .filter(|(_, start, end)| !start.is_multiple_of(block) || !end.is_multiple_of(block))
            .collect();
        if bad.is_empty() {
            return ledger.held(call.test(), &ABOUT);
        }
        if !call.data_in_flight.is_empty() {
            // Half of a split request may not have been taken yet.
            return skip("the call ended before its requests did");
        }
        let at_fault: Vec<_> = call
            .data()
            .filter(|r| {
                let within = |f: &super::extents::Fragment| {
                    let after =
                        bad.partition_point(|(x, start, _)| (*x, *start) <= (f.extent, f.file));
                    let run = after.checked_sub(1).and_then(|i| bad.get(i));
                    run.is_some_and(|(x, _, end)| *x == f.extent && f.file < *end)
                };
                r.fragments().iter().any(within)
            })
            .collect();
        let happened = format!(
            "{} of the file, where blocks are {block} bytes: {}; sent by {}",
            if bad.len() == 1 {
                "one run of data requests does not keep to the blocks".to_owned()
            } else {
                format!(
                    "{} runs of data requests do not keep to the blocks",
                    bad.len()
                )
            },
            list_few(
                bad.iter()
                    .map(|(_, start, end)| describe(*start, *end, block))
            ),
            list_few(at_fault.iter().map(|r| r.describe())),
        );
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents],
            call.proof(at_fault.iter().copied()),
            [
                ("block_size", json!(block)),
                ("runs", bad.iter().map(|(_, s, e)| json!([s, e])).collect()),
                (
                    "requests",
                    at_fault.iter().map(|r| request_json(r)).collect(),
                ),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }
}

fn describe(start: u64, end: u64, block: u64) -> String {
    let mut text = format!("file offsets {start} to {end}");
    if !start.is_multiple_of(block) {
        text.push_str(&format!(", begins {} bytes into a block", start % block));
    }
    if !end.is_multiple_of(block) {
        text.push_str(&format!(", ends {} bytes into a block", end % block));
    }
    text
}

fn runs(call: &EndedCall) -> Vec<Run> {
    let fragments = call.data().flat_map(|r| r.fragments());
    let mut parts: Vec<Run> = Vec::with_capacity(call.requests.len());
    parts.extend(fragments.map(|f| (f.extent, f.file, f.file + f.len)));
    parts.sort_unstable();
    let mut runs: Vec<Run> = Vec::new();
    for (extent, start, end) in parts {
        match runs.last_mut() {
            Some((x, _, last)) if *x == extent && *last >= start => *last = end.max(*last),
            _ => runs.push((extent, start, end)),
        }
    }
    runs
}
