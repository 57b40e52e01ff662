// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `stable`: what the device reads is what it was given.

use serde_json::{Value, json};
use wtblk_shared::mark::Mark;

use super::attribution::World;
use super::call::{CallRequest, Class, EndedCall};
use super::contract::Contract;
use super::fast_hash::NumberMap;
use super::flight::InFlight;
use super::promise::{About, Moment, Promise, list_few, request_json};
use super::verdict::{Evidence, Finding, Ledger};
use crate::trace::change::Change;
use crate::trace::event::{Complete, DeviceEvent, DeviceKind, Op, RequestId};

/// Changes that are remembered until their calls are judged, or their requests completed.
const MAX_KEPT: usize = 4096;

/// The promise in words.
pub static ABOUT: About = About {
    name: "stable",
    promised: "The data of a write does not change between its submission and its completion.",
    judged_on: "the device's digests of the data when the request was taken and before it was \
                completed, and what it says of the bytes in between",
    broken_when: "they differ for a data request of a call or for a log write; and for any write of a \
                  marked file's blocks where the guest said, before it mounted, that the disk asks for \
                  stable pages (fact stable_writes=1), and no marked call writes the file with O_DIRECT",
    not_checked_when: "nobody looked at the data (--digest off, an old trace, a request over 64 MiB); the \
                       call's data requests are not known; the caller says that somebody pins the pages \
                       (flag pinned): their owner may change them. Other changes are observations: an \
                       O_DIRECT buffer is its owner's, and a plain write's pages are only stable where \
                       the disk asks for it",
    comes_from: "the flag raises the mapping's need for stable writes while a call is in flight: other \
        writers of a folio under writeback wait (folio_wait_stable), and its mappings are write-protected \
        before it is sent (folio_clear_dirty_for_io); XFS never touches a log buffer that is being written",
    broken_by: "mappings that stay writable, a flag for stable writes that the first of two calls takes \
        away; the defect no-write-protect",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Stable::default())
}

/// A write whose data changed.
#[derive(Clone, Debug)]
struct Seen {
    id: RequestId,
    done: u64,
    /// Time between taking and completion.
    in_flight_ns: u64,
    /// What the device could tell of it.
    change: Option<Change>,
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct Stable {
    /// What was told of requests that are still in flight.
    told: NumberMap<Change>,
    /// By the number of a call.
    seen: NumberMap<Vec<Seen>>,
    /// Of all calls.
    kept: usize,
}

impl Stable {
    fn take(&mut self, call: u64) -> Vec<Seen> {
        let list = self.seen.remove(&call).unwrap_or_default();
        self.kept -= list.len();
        list
    }

    fn drop_call(&mut self, call: u64, test: &str, ledger: &mut Ledger) {
        for _ in self.take(call) {
            ledger.observe(
                test,
                &ABOUT,
                "data of a call that is not judged changed in flight",
            );
        }
    }
}

impl Promise for Stable {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn follows(&self) -> &'static [Moment] {
        &[Moment::DigestedWriteDone, Moment::Device]
    }

    fn waits_for_requests(&self) -> bool {
        true
    }

    fn device(&mut self, event: &DeviceEvent, world: &World) {
        // Of other requests nobody compares the data.
        let compared = |r: &InFlight| r.op == Op::Write && r.digest != 0;
        if event.kind == DeviceKind::Changed
            && world.flight.get(event.a).is_some_and(compared)
            && self.told.len() < MAX_KEPT
            && let Some(change) = Change::parse(&event.text)
        {
            self.told.insert(event.a, change);
        }
    }

    fn completed(
        &mut self,
        seq: u64,
        c: &Complete,
        request: &InFlight,
        world: &World,
        ledger: &mut Ledger,
    ) {
        let change = self.told.remove(&c.request);
        let Some(stable) = request.stable(c).filter(|_| request.op == Op::Write) else {
            return;
        };
        let log = world.facts.is_log(&request.disk);
        if stable {
            if log && !world.test.is_empty() {
                ledger.held(&world.test, &ABOUT);
            }
            return;
        }
        let seen = Seen {
            id: c.request,
            done: seq,
            in_flight_ns: world.now_ns.saturating_sub(request.taken_ns),
            change,
        };
        let of_nobody = |what: &str, evidence: &[Evidence]| {
            let happened = format!("{what}: {}", seen.describe(None));
            let events = vec![seen.id, seen.done];
            let details = [("changes", json!([seen.json()]))];
            ABOUT.finding(&world.test, None, happened, evidence, events, details)
        };
        if log {
            let finding = of_nobody("a log write", &[Evidence::Digests]);
            ledger.broken(&ABOUT, finding);
        } else if let Some((call, _)) = request.owner {
            // Beyond this a change is still found, only not told in full.
            if self.kept < MAX_KEPT {
                self.kept += 1;
                self.seen.entry(call).or_default().push(seen);
            }
        } else if world.stable_data(&request.disk) {
            let evidence = [Evidence::Extents, Evidence::Digests];
            let finding = of_nobody(
                "a write of a file's blocks, with stable pages asked for",
                &evidence,
            );
            ledger.broken(&ABOUT, finding);
        } else {
            ledger.observe(
                &world.test,
                &ABOUT,
                "data of a write of no marked call changed in flight",
            );
        }
    }

    fn mark(&mut self, _seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        match mark {
            // Of an older call with this number.
            Mark::Begin(begin) => self.drop_call(begin.call, &begin.test, ledger),
            Mark::End(end) if !world.is_late(end.call) => {
                let test = world.test_of(end.call);
                self.drop_call(end.call, &test, ledger);
            }
            _ => {}
        }
    }

    fn call_settled(&mut self, call: &EndedCall, _world: &World, ledger: &mut Ledger) {
        let seen = self.take(call.begin.call);
        let unstable = |r: &&CallRequest| r.done.is_some_and(|d| d.stable == Some(false));
        let (bad, odd): (Vec<_>, Vec<_>) = call
            .requests
            .iter()
            .filter(unstable)
            .partition(|r| matches!(r.class, Class::Data(_)));
        for _ in odd.iter().filter(|r| r.op == Op::Write) {
            ledger.observe(
                call.test(),
                &ABOUT,
                "data of a side request changed in flight",
            );
        }
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        if call.is("pinned") {
            return skip("the pages are pinned: their owner may change them");
        }
        if bad.is_empty() {
            if let Some(why) = call.data_unclear() {
                return skip(why);
            }
            if call.data().next().is_none() {
                return skip(call.why_no_data());
            }
            let looked = |r: &CallRequest| r.done.is_some_and(|d| d.stable.is_some());
            return match call.data().all(looked) {
                true => ledger.held(call.test(), &ABOUT),
                false => {
                    skip("nobody looked at the data of a request when it was taken and completed")
                }
            };
        }
        let of = |r: &CallRequest| seen.iter().find(|s| s.id == r.id);
        let said = |r: &&CallRequest| {
            let what =
                of(r).map_or_else(|| "it was not kept how".to_owned(), |s| s.describe(Some(r)));
            format!("{}: {what}", r.describe())
        };
        let happened = format!(
            "the data of {} of {} data requests was another one at the completion than when the device \
             took it: {}",
            bad.len(),
            call.data().count(),
            list_few(bad.iter().map(said))
        );
        let finding: Finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::Digests],
            call.proof(bad.iter().copied()),
            [
                ("requests", bad.iter().map(|r| request_json(r)).collect()),
                ("changes", seen.iter().map(Seen::json).collect()),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }

    fn never_settled(&mut self, call: &EndedCall) {
        self.take(call.begin.call);
    }

    fn interrupted(&mut self, _lost: bool) {
        self.told.clear();
    }

    fn reboot(&mut self) {
        *self = Stable::default();
    }
}

impl Seen {
    /// What changed, by place in the file where the request is known.
    fn describe(&self, request: Option<&CallRequest>) -> String {
        let ms = self.in_flight_ns / 1_000_000;
        let Some(change) = self.change.as_ref().filter(|c| !c.ranges.is_empty()) else {
            return format!("in flight for {ms} ms, its digests differ");
        };
        let range = |&(at, len): &(u32, u32)| {
            let end = u64::from(at) + u64::from(len);
            match request.and_then(|r| file_offset(r, u64::from(at))) {
                Some(file) => format!("bytes {at} to {end} (file offset {file})"),
                None => format!("bytes {at} to {end}"),
            }
        };
        let mut text = format!(
            "in flight for {ms} ms, {} of the request {}",
            list_few(change.ranges.iter().map(range)),
            if change.exact {
                "changed"
            } else {
                "hold a change"
            },
        );
        if change.more > 0 {
            text.push_str(&format!(", and {} further places", change.more));
        }
        if !change.taken.is_empty() {
            let short = |hex: &str| hex.chars().take(32).collect::<String>();
            text.push_str(&format!(
                ", from {} to {}",
                short(&change.taken),
                short(&change.found)
            ));
        }
        text
    }

    fn json(&self) -> Value {
        json!({
            "request": self.id,
            "in_flight_ns": self.in_flight_ns,
            "change": self.change,
        })
    }
}

/// Where in the file a byte of the request's data lies.
fn file_offset(r: &CallRequest, at: u64) -> Option<u64> {
    let mut left = at;
    for f in r.fragments() {
        if left < f.len {
            return Some(f.file + left);
        }
        left -= f.len;
    }
    None
}
