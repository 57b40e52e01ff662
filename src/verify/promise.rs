// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What all promises have in common.

use std::fmt;

use serde_json::{Value, json};
use wtblk_shared::mark::Mark;

use super::attribution::World;
use super::call::{CallRequest, EndedCall, PastCall};
use super::contract::Contract;
use super::flight::InFlight;
use super::verdict::{CallRef, Evidence, Finding, Ledger};
use crate::trace::event::{Complete, DataEvent, DeviceEvent, RequestId, Submit};

/// A promise in words.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// What it says, one sentence.
    pub promised: &'static str,
    /// On what it is judged.
    pub judged_on: &'static str,
    /// When it is broken.
    pub broken_when: &'static str,
    /// When it is not checked.
    pub not_checked_when: &'static str,
    /// Where the rule comes from: what of the flag, of the kernel or of a standard wants it.
    pub comes_from: &'static str,
    /// What a kernel does wrong that breaks it, and the seeded defect that shows it.
    pub broken_by: &'static str,
}

impl About {
    /// A finding; the caller adds what is special.
    pub(super) fn finding(
        &self,
        test: &str,
        call: Option<CallRef>,
        happened: String,
        evidence: &[Evidence],
        mut events: Vec<u64>,
        details: impl IntoIterator<Item = (&'static str, Value)>,
    ) -> Finding {
        // In their order, each once.
        events.sort_unstable();
        events.dedup();
        Finding {
            promise: self.name.to_owned(),
            test: test.to_owned(),
            call,
            promised: self.promised.to_owned(),
            happened,
            details: details
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect(),
            evidence: evidence.to_vec(),
            events,
            story: None,
        }
    }
}

/// A request, for the details of a finding.
pub(super) fn request_json(r: &CallRequest) -> Value {
    json!({
        "request": r.id,
        "sector": r.sector,
        "bytes": r.bytes,
        "file_offset": r.file_offset(),
        "status": r.done.map(|d| d.status.0),
    })
}

/// The first few of a list, for the text of a finding.
pub(super) fn list_few(items: impl ExactSizeIterator<Item = String>) -> String {
    const FEW: usize = 4;
    let more = items.len().saturating_sub(FEW);
    let mut text = items.take(FEW).collect::<Vec<_>>().join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// The registry: one name per promise, which is the name of its file. Such a file
/// gives `ABOUT`, all of its words, and `judge`, which makes it by a contract.
macro_rules! registry {
    ($($module:ident),* $(,)?) => {
        /// Every promise that is judged now, in the order of all output.
        pub static ABOUT: &[&About] = &[$(&super::$module::ABOUT),*];

        /// Their names, in the same order.
        pub static NAMES: &[&str] = &[$(super::$module::ABOUT.name),*];

        /// The judges, in the order of [`ABOUT`].
        pub(super) fn judges(contract: &Contract) -> Vec<Box<dyn Promise>> {
            vec![$(super::$module::judge(contract)),*]
        }
    };
}

// A new promise is a line here, its file, `pub mod` in `mod.rs` and a chapter of
// `docs/promises.md`; the JSON schema of scenarios follows (`wtblk scenario schema`).
registry! {
    align,
    cover,
    order,
    no_overlap,
    stable,
    data,
    sync_return,
    error_report,
    errseq,
    ledger,
    stop_after_error,
    durable,
    size,
    writeback_cleared,
    written_once,
    progress,
    serialised,
}

/// The promise of this name, in words.
pub fn about(name: &str) -> Option<&'static About> {
    ABOUT.iter().find(|a| a.name == name).copied()
}

/// Moments at which a promise may want to be told of a single request. Whoever does
/// not ask is not: most requests concern nobody, and cost as little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// A write was taken.
    WriteTaken,
    /// A flush was taken.
    FlushTaken,
    /// A write was completed.
    WriteDone,
    /// A write was completed whose data was looked at when it was taken.
    DigestedWriteDone,
    /// A flush was completed.
    FlushDone,
    /// Contents or digests of a request came.
    Contents,
    /// Something happened to the data disk.
    Device,
}

/// Who wants to be told when, by place in the list of promises.
#[derive(Debug, Default)]
pub(super) struct Followers([Vec<usize>; Moment::Device as usize + 1]);

impl Followers {
    /// Asks them all.
    pub(super) fn of(judges: &[Box<dyn Promise>]) -> Followers {
        let mut followers = Followers::default();
        for (at, judge) in judges.iter().enumerate() {
            for moment in judge.follows() {
                if let Some(list) = followers.0.get_mut(*moment as usize) {
                    list.push(at);
                }
            }
        }
        followers
    }

    /// Who wants to be told now.
    #[inline]
    pub(super) fn at(&self, moment: Moment) -> &[usize] {
        self.0.get(moment as usize).map_or(&[], Vec::as_slice)
    }
}

/// One promise: told what happens, it writes what it decides into the ledger.
///
/// The driver asks the first two only for calls that the promises are about
/// (`writethrough`, and not a probe) and that nothing stands in the way of.
pub(super) trait Promise: fmt::Debug + Send {
    /// The promise in words.
    fn about(&self) -> &'static About;

    /// Whether it judges single calls, so that a call that cannot be judged is to be counted.
    fn judges_calls(&self) -> bool {
        false
    }

    /// A call ended; some of its requests may still be in flight.
    fn call_ended(&mut self, _call: &EndedCall, _world: &World, _ledger: &mut Ledger) {}

    /// Any call ended, also one that is no call of the promises (`judged` says so) or
    /// whose requests cannot be judged. Comes before the two others.
    fn any_call_ended(&mut self, _c: &EndedCall, _judged: bool, _w: &World, _l: &mut Ledger) {}

    /// A call that has begun will not be followed to its end.
    fn call_lost(&mut self, _call: u64) {}

    /// The last data request of an ended call was completed (mostly long before its end).
    fn call_settled(&mut self, _call: &EndedCall, _world: &World, _ledger: &mut Ledger) {}

    /// When it wants to be told of single requests.
    fn follows(&self) -> &'static [Moment] {
        &[]
    }

    /// A request of the data disk was taken; the world knows it already.
    fn submitted(&mut self, _id: RequestId, _s: &Submit, _world: &World, _ledger: &mut Ledger) {}

    /// A request was completed; it is in flight no more.
    fn completed(
        &mut self,
        _seq: u64,
        _c: &Complete,
        _request: &InFlight,
        _world: &World,
        _ledger: &mut Ledger,
    ) {
    }

    /// Contents or digests of a request.
    fn data(&mut self, _event: &DataEvent, _world: &World) {}

    /// Something happened to the data disk.
    fn device(&mut self, _event: &DeviceEvent, _world: &World) {}

    /// Whether it waits for the last data request of a call that has ended.
    fn waits_for_requests(&self) -> bool {
        false
    }

    /// An ended call will never be settled, for this reason; counted already.
    fn never_settled(&mut self, _call: &EndedCall) {}

    /// An ordered mark arrived; the world knows it already.
    fn mark(&mut self, _seq: u64, _mark: &Mark, _world: &World, _ledger: &mut Ledger) {}

    /// The data disk stopped, or (`lost`) events are missing: nothing may be
    /// concluded across this point, and in the latter case what would have
    /// excused something earlier may be among what is lost.
    fn interrupted(&mut self, _lost: bool) {}

    /// An ended call is forgotten: its number means nothing from now on.
    fn call_forgotten(&mut self, _call: &PastCall, _ledger: &mut Ledger) {}

    /// Writes down what is pending, as if the guest ended here.
    fn settle(&self, _world: &World, _ledger: &mut Ledger) {}

    /// The guest rebooted (`settle` came first): start again.
    fn reboot(&mut self) {}
}
