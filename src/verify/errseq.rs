// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `errseq`: fsync tells each open file of an error once.

use serde_json::json;
use wtblk_shared::mark::Mark;

use super::attribution::World;
use super::call::{EndedCall, PastCall};
use super::contract::Contract;
use super::errors::{Check, Errors, Outcome, Unit};
use super::promise::{About, Promise, list_few};
use super::verdict::{Evidence, Finding, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "errseq",
    promised: "An open file is told of the errors since its last fsync by its next one, and once.",
    judged_on: "the results of fsync, fdatasync, msync, waiting sync_file_range, syncfs (and of DSYNC \
                calls whose own writes succeeded) by open file, the \
                failed data requests of calls, and when files were opened",
    broken_when: "fsync returns EIO and no error was left for this open file; or 0 where the contract \
                  (fsync_repeats) wants the error of a failed call repeated, or where another open file \
                  was told of it; or EIO where the contract leaves it to the call",
    not_checked_when: "fsyncs are not marked (files=marked), ran beside each other on one open file, or \
                       are a sync_file_range that need not wait; a request of no call failed in this boot, or a \
                       shutdown was noted; which call an error belongs to is not known. Errors that the \
                       call did not return are the ledger's",
    comes_from: "lib/errseq.c and filemap_check_wb_err: an error is recorded in the mapping, and each \
                 open file remembers how far it has been told; fsync(2)",
    broken_by: "an error that is recorded again, or not at all: the defects error-again and (by a \
                contract that says once) error-not-recorded",
};

/// The judge.
#[derive(Debug)]
pub(super) struct Errseq {
    errors: Errors,
}

/// The judge by this contract.
pub(super) fn judge(contract: &Contract) -> Box<dyn Promise> {
    Box::new(Errseq {
        errors: Errors::new(contract),
    })
}

impl Promise for Errseq {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        if let Some(check) = self.errors.mark(seq, mark, world) {
            rule(&check, world, ledger);
        }
    }

    fn any_call_ended(&mut self, c: &EndedCall, judged: bool, w: &World, l: &mut Ledger) {
        if let Some(check) = self.errors.call_ended(c, judged, w) {
            rule(&check, w, l);
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

    fn call_forgotten(&mut self, c: &PastCall, _ledger: &mut Ledger) {
        self.errors.take((c.call.dev, c.call.ino), c.call.call);
    }

    fn interrupted(&mut self, lost: bool) {
        if lost {
            self.errors.clear();
        }
    }

    fn reboot(&mut self) {
        self.errors.clear();
    }
}

fn rule(check: &Check, world: &World, ledger: &mut Ledger) {
    let (what, units) = match &check.outcome {
        Outcome::Right => return ledger.held(&world.test, &ABOUT),
        Outcome::Unclear(why) => return ledger.not_checked(&world.test, &ABOUT, why),
        Outcome::FromNowhere(spent) if spent.is_empty() => {
            ("no request of the disk had failed that it could be".to_owned(), spent)
        }
        Outcome::FromNowhere(spent) => (
            "this open file had been told of all errors before, and nothing failed since".to_owned(),
            spent,
        ),
        Outcome::NotItsBusiness(units) => (
            "what failed was told by the call, and by the contract (or by what other open files were \
             told) not by fsync"
                .to_owned(),
            units,
        ),
        Outcome::Missed(units) => (
            "an error since its last fsync is not told: by the contract, or because another open file \
             was told of it, the mapping has it"
                .to_owned(),
            units,
        ),
    };
    let finding = finding(&ABOUT, &world.test, check, &what, units);
    ledger.broken(&ABOUT, finding);
}

/// A finding about a check.
pub(super) fn finding(
    about: &About,
    test: &str,
    check: &Check,
    what: &str,
    units: &[Unit],
) -> Finding {
    let [begin, end] = check.at;
    let errors = match units.len() {
        0 => String::new(),
        _ => format!(
            ". Errors on the file: {}",
            list_few(units.iter().map(describe))
        ),
    };
    let happened = format!(
        "{} of open file {} (events {begin} to {end}) returned {}: {what}{errors}",
        check.kind, check.open, check.result,
    );
    let mut events = vec![begin, end];
    events.extend(units.iter().flat_map(|u| [u.from, u.to, u.over]));
    let call = units.last().map(|u| u.call.clone());
    about.finding(
        test,
        call,
        happened,
        &[Evidence::Marks, Evidence::Tag, Evidence::Extents],
        events,
        [
            ("open", json!(check.open)),
            ("dev", json!(check.key.0)),
            ("ino", json!(check.key.1)),
            ("kind", json!(check.kind)),
            ("result", json!(check.result)),
            (
                "errors",
                units
                    .iter()
                    .map(|u| json!({"call": u.call.call, "from": u.from, "to": u.to, "delivered": u.delivered}))
                    .collect(),
            ),
        ],
    )
}

/// A unit in words.
pub(super) fn describe(u: &Unit) -> String {
    let result = u.call.result.unwrap_or(0);
    format!(
        "call {} (open file {}) failed at {} and returned {result}",
        u.call.call,
        u.call.open,
        list_few(u.failed.iter().map(|r| r.describe())),
    )
}
