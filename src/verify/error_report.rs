// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `error-report`: the caller hears of its own failed writes, and of no others.

use serde_json::json;

use super::attribution::World;
use super::call::{CallRequest, EndedCall};
use super::contract::{Contract, EIO, Errnos, OnFailedWrite};
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};
use crate::trace::event::Status;

/// The promise in words.
pub static ABOUT: About = About {
    name: "error-report",
    promised: "A call reports the failure of its own data requests, and EIO for nothing else.",
    judged_on: "the statuses of the call's requests, once the last was completed, and its result",
    broken_when: "a data request failed and the call returned its full length (or what else the \
                  contract rules out); or the call returned EIO and no request of it failed",
    not_checked_when: "EIO may have another cause: a request of nobody failed in this boot, the file \
                       system was shut down, or (DSYNC, a call beyond the end of the file) an earlier \
                       write of the file failed; an errno that no device causes; extents unknown and a request failed",
    comes_from: "the flag exists to report the I/O error to the writer: the status of the bio goes into \
        the result of the call (bi_status, blk_status_to_errno)",
    broken_by: "an error that only reaches the mapping (mapping_set_error), one of several bios whose \
        status is overwritten by the last, a short count that hides it; the defect \
        swallowed-error",
};

/// Why a call may be told of the failure of an earlier write of its file, if it may; the words of "not checked".
fn asks_for_older_errors(call: &EndedCall) -> Option<&'static str> {
    if call.is("dsync") {
        Some("EIO of a DSYNC call, but an earlier write of the file had failed")
    } else if call.begin.off > call.begin.isize {
        // It zeroes what lies between, and waits for dirty blocks there: xfs_file_write_checks -> iomap_zero_range ->
        // filemap_write_and_wait_range -> filemap_check_errors.
        Some(
            "EIO of a call beyond the end of the file, but an earlier write of the file had failed",
        )
    } else {
        None
    }
}

/// The judge by this contract.
pub(super) fn judge(contract: &Contract) -> Box<dyn Promise> {
    Box::new(ErrorReport::new(contract))
}

/// The judge.
#[derive(Debug)]
pub(super) struct ErrorReport {
    on_failed_write: OnFailedWrite,
    errnos: Errnos,
}

impl ErrorReport {
    pub(super) fn new(contract: &Contract) -> ErrorReport {
        ErrorReport {
            on_failed_write: contract.failed_write,
            errnos: contract.errnos.clone(),
        }
    }

    /// What is wrong with the result of a call of which `failed` failed.
    fn wrong(&self, call: &EndedCall, failed: &[&CallRequest]) -> Option<&'static str> {
        let result = call.end.result;
        if i128::from(result) >= i128::from(call.begin.len) {
            return Some("success");
        }
        if result >= 0 {
            return (self.on_failed_write == OnFailedWrite::Error)
                .then_some("a short count where the contract wants an error");
        }
        let errno = i32::try_from(result.unsigned_abs()).unwrap_or(0);
        let status = |r: &&CallRequest| r.done.map_or(0, |d| d.status.0);
        let known = failed.iter().any(|r| self.errnos.reports(status(r), errno))
            || self.errnos.not_of_the_device.contains(&errno);
        (!known).then_some("an errno that the contract does not allow for this status")
    }
}

impl Promise for ErrorReport {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn waits_for_requests(&self) -> bool {
        true
    }

    fn call_settled(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        let failed: Vec<_> = call.data().filter(|r| r.failed()).collect();
        let any_failed = call.requests.iter().any(CallRequest::failed);
        let result = call.end.result;
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        if failed.is_empty() {
            if let Some(why) = call.data_unclear()
                && any_failed
            {
                return skip(why);
            }
            if result >= 0 || (result == -i64::from(EIO) && any_failed) {
                return ledger.held(call.test(), &ABOUT);
            }
            if result != -i64::from(EIO) {
                return skip("the call returned an errno whose cause is not a request");
            }
            if call.other_failures {
                return skip(
                    "EIO, but a request of no call failed in this boot, or a shutdown was noted",
                );
            }
            if let Some(asks) = asks_for_older_errors(call)
                && world.earlier_failure(&call.begin)
            {
                return skip(asks);
            }
            return self.eio_without_cause(call, ledger);
        }
        let Some(wrong) = self.wrong(call, &failed) else {
            self.observe(call, &failed, ledger);
            return ledger.held(call.test(), &ABOUT);
        };
        let describe = |r: &&CallRequest| {
            let status = r.done.map_or(Status::OK, |d| d.status);
            format!("{} with status {status}", r.describe())
        };
        let happened = format!(
            "{} of {} data requests failed: {}; the call of {} bytes returned {result}: {wrong}",
            failed.len(),
            call.data().count(),
            list_few(failed.iter().map(describe)),
            call.begin.len,
        );
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::Marks],
            call.proof(failed.iter().copied()),
            [
                ("result", json!(result)),
                ("failed", failed.iter().map(|r| request_json(r)).collect()),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }
}

impl ErrorReport {
    fn eio_without_cause(&self, call: &EndedCall, ledger: &mut Ledger) {
        let happened = format!(
            "the call returned EIO, but none of its {} requests failed ({} of them data requests) \
             and no other request of the disk did in this boot",
            call.requests.len(),
            call.data().count()
        );
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Marks],
            call.proof(call.requests.iter()),
            [("result", json!(call.end.result)), ("failed", json!([]))],
        );
        ledger.broken(&ABOUT, finding);
    }

    /// Legal under this contract, but worth a look.
    fn observe(&self, call: &EndedCall, failed: &[&CallRequest], ledger: &mut Ledger) {
        let result = call.end.result;
        if result <= 0 {
            return;
        }
        let end = call.begin.off.saturating_add(result.unsigned_abs());
        if failed
            .iter()
            .filter_map(|r| r.file_offset())
            .any(|f| f < end)
        {
            ledger.observe(
                call.test(),
                &ABOUT,
                "a short count that includes a block whose request failed",
            );
        }
    }
}
