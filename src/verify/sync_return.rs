// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `sync-return`: a call is over when its data is out: a synchronous one returns then, an
//! asynchronous one has its completion event then.

use serde_json::json;

use super::attribution::World;
use super::call::EndedCall;
use super::contract::Contract;
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "sync-return",
    promised: "A call is over after the last of its data requests was completed: it returns then, or \
               its completion event comes.",
    judged_on: "the end mark against the completions of the call's data requests: a completion is \
                numbered before the guest can see it, so the comparison is exact",
    broken_when: "a data request of the call is in flight when its end mark arrives",
    not_checked_when: "the backend stopped while it ran; extents unknown",
    comes_from: "RWF_WRITETHROUGH of a synchronous kiocb waits for its I/O, as O_DIRECT does \
        (fs/iomap/direct-io.c), and an asynchronous one is completed when it is over; a first version \
        of the series returned early",
    broken_by: "a submission without the wait, a wait for the first bio only, a reference count that \
        drops too soon; the defect early-return",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(SyncReturn)
}

/// The judge.
#[derive(Debug)]
pub(super) struct SyncReturn;

impl Promise for SyncReturn {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn call_ended(&mut self, call: &EndedCall, _world: &World, ledger: &mut Ledger) {
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        if call.data().next().is_none() {
            return skip(call.why_no_data());
        }
        if call.data_in_flight.is_empty() {
            return ledger.held(call.test(), &ABOUT);
        }
        let early: Vec<_> = call.data().filter(|r| r.done.is_none()).collect();
        let happened = format!(
            "the call ended with {} (event {}) while {} of its {} data requests were in flight: {}",
            call.end.result,
            call.end_seq,
            early.len(),
            call.data().count(),
            list_few(early.iter().map(|r| r.describe()))
        );
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::Marks],
            call.proof(early.iter().copied()),
            [
                ("in_flight", json!(early.len())),
                ("requests", early.iter().map(|r| request_json(r)).collect()),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }
}
