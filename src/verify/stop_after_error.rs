// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `stop-after-error`: a call that knows of an error sends nothing more.

use std::collections::BTreeMap;

use serde_json::json;
use wtblk_shared::mark::Mark;

use super::attribution::{MAX_OPEN, World};
use super::call::{CallRequest, EndedCall, has_flag};
use super::contract::Contract;
use super::promise::{About, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "stop-after-error",
    promised: "Once the kernel knows that a bio of the call has failed, the call sends no further \
               ones, but for the one it had collected.",
    judged_on: "the data requests of a call that arrived after its mark error-seen, which a helper \
                sends when cachestat shows the failed block out of writeback; neighbours in one \
                extent count as one bio",
    broken_when: "more than n of them arrived; n is the contract's stop_after_error, 1 as a rule",
    not_checked_when: "no such mark came while the call ran, or no data request had failed before it; \
                       extents unknown, or a request lies partly outside the call's range; requests may \
                       have waited on their way: a scheduler, no indirect descriptors, memory pressure",
    comes_from: "the write loop of RWF_WRITETHROUGH looks for an error before each folio, so that a \
                 dead disk is not sent what is left of a long call",
    broken_by: "a loop that looks at the error only when all has been sent: the defect submit-after-error",
};

/// The judge.
#[derive(Debug)]
pub(super) struct StopAfterError {
    most: u64,
    /// By open call, the first mark error-seen.
    seen: BTreeMap<u64, u64>,
}

/// The judge by this contract.
pub(super) fn judge(contract: &Contract) -> Box<dyn Promise> {
    Box::new(StopAfterError {
        most: u64::from(contract.stop_after_error),
        seen: BTreeMap::new(),
    })
}

impl Promise for StopAfterError {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, _ledger: &mut Ledger) {
        match mark {
            Mark::ErrorSeen { call } if world.open_call(*call).is_some() => {
                if self.seen.len() >= MAX_OPEN {
                    self.seen.retain(|call, _| world.open_call(*call).is_some());
                }
                self.seen.entry(*call).or_insert(seq);
            }
            // What was said of an older call with the number counts no more.
            Mark::Begin(begin) => drop(self.seen.remove(&begin.call)),
            Mark::End(end) => drop(self.seen.remove(&end.call)),
            _ => {}
        }
    }

    fn call_ended(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        let Some(seen) = self.seen.get(&call.begin.call).copied() else {
            return skip("no mark error-seen came while the call ran");
        };
        if let Some(why) = call.data_unclear() {
            return skip(why);
        }
        let failed_before = |r: &&CallRequest| r.done.is_some_and(|d| d.seq < seen && r.failed());
        let failed: Vec<_> = call.data().filter(failed_before).collect();
        if failed.is_empty() {
            return skip("no data request of the call had failed when error-seen came");
        }
        let late: Vec<_> = call.data().filter(|r| r.id > seen).collect();
        let bios = bios(&late);
        if bios <= self.most {
            return ledger.held(call.test(), &ABOUT);
        }
        if let Some(why) = world.facts.late_arrivals() {
            return skip(&why);
        }
        if has_flag(&call.begin, "pressure") {
            return skip(super::facts::PRESSURE);
        }
        let happened = format!(
            "{} had failed and was out of writeback (error-seen at event {seen}); {} data requests of \
             the call arrived after that, of {bios} bios at least where {} may be: {}",
            list_few(failed.iter().map(|r| r.describe())),
            late.len(),
            self.most,
            list_few(late.iter().map(|r| r.describe())),
        );
        let mut events = call.proof(failed.iter().chain(&late).copied());
        events.push(seen);
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::Marks],
            events,
            [
                ("error_seen", json!(seen)),
                ("bios", json!(bios)),
                ("allowed", json!(self.most)),
                ("failed", failed.iter().map(|r| request_json(r)).collect()),
                ("requests", late.iter().map(|r| request_json(r)).collect()),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }

    fn reboot(&mut self) {
        self.seen.clear();
    }
}

/// The fewest bios that these requests can have been: what is side by side in
/// one extent may be one, whatever its order.
fn bios(requests: &[&CallRequest]) -> u64 {
    let fragments = requests.iter().flat_map(|r| r.fragments());
    let mut parts: Vec<(usize, u64, u64)> = fragments
        .map(|f| (f.extent, f.file, f.file + f.len))
        .collect();
    parts.sort_unstable();
    let mut count = 0;
    let mut last: Option<(usize, u64)> = None;
    for (extent, start, end) in parts {
        match &mut last {
            Some((x, to)) if *x == extent && *to >= start => *to = (*to).max(end),
            _ => {
                count += 1;
                last = Some((extent, end));
            }
        }
    }
    count
}
