// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `order`: a call's data requests go out in the order of the file.

use serde_json::json;

use super::attribution::World;
use super::call::EndedCall;
use super::contract::Contract;
use super::facts::PRESSURE;
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "order",
    promised: "The data requests of a call are sent in ascending order of the file.",
    judged_on: "the order of arrival of the data requests of a call by file offset, not by place on \
                the disk; a merged request counts with its lowest offset",
    broken_when: "a data request arrives after one that begins later in the file",
    not_checked_when: "more than one queue, an I/O scheduler, no indirect descriptors, a guest short of \
                       memory, or a kernel that the boot-time probe (one plugged batch of O_DIRECT \
                       writes) shows to reorder, or that was not probed, all this at the call's begin; \
                       any of it changed until its end; extents unknown",
    comes_from: "the flag writes the range from its beginning to its end; what a failure or a power cut \
        leaves is then a beginning of it",
    broken_by: "folios that are collected in another order than that of the file (a batch walked \
        backwards, an extent sent late); the defect out-of-order",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Order)
}

/// The judge.
#[derive(Debug)]
pub(super) struct Order;

impl Promise for Order {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn call_ended(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        if let Some(why) = &call.facts.order_unknown {
            return skip(why);
        }
        if world.facts.changes() != call.facts.changes {
            return skip("what the order depends on changed while the call ran");
        }
        if call.is("pressure") {
            return skip(PRESSURE);
        }
        if let Some(why) = call.data_unclear() {
            return skip(why);
        }
        let mut data = Vec::with_capacity(call.requests.len());
        data.extend(call.data().filter_map(|r| Some((r.file_offset()?, r))));
        let Some((_, first)) = data.first() else {
            return skip(call.why_no_data());
        };
        if data.iter().any(|(_, r)| r.queue != first.queue) {
            return skip("more than one queue");
        }
        let steps = data.iter().zip(data.iter().skip(1));
        let back: Vec<_> = steps.filter(|((a, _), (b, _))| a > b).collect();
        if back.is_empty() {
            return ledger.held(call.test(), &ABOUT);
        }
        let happened = format!(
            "{} of {} data requests arrived after one that begins later in the file: {}",
            back.len(),
            data.len(),
            list_few(back.iter().map(|((_, a), (_, b))| format!(
                "{} after {}",
                b.describe(),
                a.describe()
            )))
        );
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents],
            call.proof(back.iter().flat_map(|((_, a), (_, b))| [*a, *b])),
            [
                ("data_requests", json!(data.len())),
                (
                    "pairs",
                    back.iter()
                        .map(|((_, a), (_, b))| json!([request_json(a), request_json(b)]))
                        .collect(),
                ),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }
}
