// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ledger`: every error surfaces somewhere, and to nobody twice.

use serde_json::json;
use wtblk_shared::mark::Mark;

use super::attribution::World;
use super::call::{EndedCall, PastCall};
use super::contract::Contract;
use super::errors::{Check, Errors, Outcome, Unit};
use super::errseq::describe;
use super::promise::{About, Promise, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "ledger",
    promised: "The failure of a data request surfaces: by the result of its call, or by an fsync after \
               it; and one open file is not told of it twice.",
    judged_on: "the failed data requests of calls, the calls' results, and those of fsync by open file",
    broken_when: "the call returned success and an fsync of a file that was open all the time, begun \
                  after the failure, returned 0, and no other fsync returned it; or an fsync reported an \
                  error again that this open file had been told of, and nothing failed since",
    not_checked_when: "the call did not return the error and nobody asked by an fsync that is marked; \
                       an error may have another cause (see errseq); the failed request is no marked \
                       call's data",
    comes_from: "the flag: an I/O error is reported to the caller; fsync(2) for what it does not report",
    broken_by: "an error that is dropped, or remembered for ever: the defects swallowed-error and \
                error-again",
};

/// The judge.
#[derive(Debug)]
pub(super) struct Books {
    errors: Errors,
}

/// The judge by this contract.
pub(super) fn judge(contract: &Contract) -> Box<dyn Promise> {
    Box::new(Books {
        errors: Errors::new(contract),
    })
}

impl Promise for Books {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        if let Some(check) = self.errors.mark(seq, mark, world) {
            twice(&check, world, ledger);
        }
    }

    fn any_call_ended(&mut self, c: &EndedCall, judged: bool, w: &World, l: &mut Ledger) {
        if let Some(check) = self.errors.call_ended(c, judged, w) {
            twice(&check, w, l);
        }
    }

    fn call_settled(&mut self, c: &EndedCall, world: &World, _ledger: &mut Ledger) {
        self.errors.call_settled(c, world.now_seq);
    }

    fn waits_for_requests(&self) -> bool {
        true
    }

    fn never_settled(&mut self, c: &EndedCall) {
        self.errors.never_settled(c);
    }

    fn call_forgotten(&mut self, c: &PastCall, ledger: &mut Ledger) {
        if let Some(unit) = self.errors.take((c.call.dev, c.call.ino), c.call.call) {
            rule(&unit, ledger);
        }
    }

    fn interrupted(&mut self, lost: bool) {
        if lost {
            self.errors.clear();
        }
    }

    fn settle(&self, _world: &World, ledger: &mut Ledger) {
        for unit in self.errors.units() {
            rule(unit, ledger);
        }
    }

    fn reboot(&mut self) {
        self.errors.clear();
    }
}

/// An error that an open file had been told of, once more.
fn twice(check: &Check, world: &World, ledger: &mut Ledger) {
    if let Outcome::FromNowhere(spent) = &check.outcome
        && !spent.is_empty()
    {
        let what = "an error that this open file had been told of, once more";
        let finding = super::errseq::finding(&ABOUT, &world.test, check, what, spent);
        ledger.broken(&ABOUT, finding);
    }
}

/// What became of the failure of a call.
fn rule(unit: &Unit, ledger: &mut Ledger) {
    if unit.delivered || unit.surfaced {
        return ledger.held(&unit.test, &ABOUT);
    }
    let Some((open, at)) = unit.denied else {
        return ledger.not_checked(
            &unit.test,
            &ABOUT,
            "the call did not return the error, and no fsync that surely knew of it followed",
        );
    };
    let happened = format!(
        "an error surfaced to nobody: {}, the whole length; open file {open} asked (events {} to {}) and \
         was told 0",
        describe(unit),
        at[0],
        at[1],
    );
    let mut events = vec![unit.from, unit.to, unit.over, at[0], at[1]];
    events.extend(unit.failed.iter().map(|r| r.id));
    let finding = ABOUT.finding(
        &unit.test,
        Some(unit.call.clone()),
        happened,
        &[Evidence::Tag, Evidence::Extents, Evidence::Marks],
        events,
        [
            ("failed", unit.failed.iter().map(request_json).collect()),
            ("asked_by", json!(open)),
            ("asked_at", json!(at)),
        ],
    );
    ledger.broken(&ABOUT, finding);
}
