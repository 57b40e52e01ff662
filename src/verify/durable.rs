// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `durable`: what a DSYNC call wrote is flushed before it returns.

use std::collections::BTreeMap;

use serde_json::json;

use super::attribution::World;
use super::call::{CallRequest, Done, EndedCall};
use super::contract::Contract;
use super::flight::InFlight;
use super::promise::{About, Moment, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};
use crate::trace::event::{Complete, Op, RequestId, Submit};

/// The promise in words.
pub static ABOUT: About = About {
    name: "durable",
    promised: "When a DSYNC call returns its data would survive a power cut: it was flushed out of the \
               device's cache.",
    judged_on: "the completions of the call's data requests, and the flush requests of the disk",
    broken_when: "the device has a write-back cache, and when the call ended no flush had been \
                  completed that was submitted after the completions of its data were delivered",
    not_checked_when: "the call or a request of it failed; extents unknown, or a request lies partly \
                       outside the call's range; the cache mode is not known, changed meanwhile, or the \
                       guest was told another one. A write-through device holds it trivially: such calls \
                       count as held, with an observation that says so",
    comes_from: "RWF_DSYNC and O_DSYNC in pwritev2(2) and open(2); virtio 1.3, 5.2.6.2: what is \
                 completed before a flush is submitted is stable when the flush is completed",
    broken_by: "a path that returns without a flush, or sends it before the data is there: the defect \
                dsync-no-flush",
};

/// Flushes followed at a time: more than a ring can hold.
const MAX_FLUSHES: usize = 1 << 16;
/// Events after which a ring position may have gone round: no comparison then.
const ROUND: u64 = 1 << 14;

/// A flush request.
#[derive(Clone, Copy, Debug)]
struct Flush {
    id: RequestId,
    queue: u16,
    position: u16,
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct Durable {
    under_way: BTreeMap<RequestId, Flush>,
    /// By queue, the completed one that was submitted last: positions of a ring
    /// ascend, so no other can do where this one does not.
    last: BTreeMap<u16, Flush>,
    /// By open call: changes of the facts at its begin, and the cache mode then.
    then: BTreeMap<u64, Result<bool, &'static str>>,
}

/// The judge by this contract.
pub(super) fn judge(_: &Contract) -> Box<dyn Promise> {
    Box::new(Durable::default())
}

impl Promise for Durable {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn follows(&self) -> &'static [Moment] {
        &[Moment::FlushTaken, Moment::FlushDone]
    }

    fn submitted(&mut self, id: RequestId, s: &Submit, _world: &World, _ledger: &mut Ledger) {
        if s.op == Op::Flush && self.under_way.len() < MAX_FLUSHES {
            let flush = Flush {
                id,
                queue: s.queue,
                position: s.avail_pos,
            };
            self.under_way.insert(id, flush);
        }
    }

    fn completed(
        &mut self,
        _seq: u64,
        c: &Complete,
        request: &InFlight,
        _: &World,
        _: &mut Ledger,
    ) {
        if request.op == Op::Flush
            && let Some(flush) = self.under_way.remove(&c.request)
            && c.status.is_ok()
            && !c.abandoned
        {
            let last = self.last.entry(flush.queue).or_insert(flush);
            if last.id < flush.id {
                *last = flush;
            }
        }
    }

    fn mark(
        &mut self,
        _seq: u64,
        mark: &wtblk_shared::mark::Mark,
        world: &World,
        _ledger: &mut Ledger,
    ) {
        use wtblk_shared::mark::Mark;
        match mark {
            Mark::Begin(b) if super::call::has_flag(b, "dsync") => {
                self.then.insert(b.call, world.facts.write_back());
            }
            Mark::End(e) => drop(self.then.remove(&e.call)),
            _ => {}
        }
    }

    fn call_lost(&mut self, call: u64) {
        self.then.remove(&call);
    }

    fn call_ended(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        if !call.is("dsync") {
            return;
        }
        let then = self.then.get(&call.begin.call).copied();
        let now = world.facts.write_back();
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        let write_back = match (then.unwrap_or(now), now) {
            (Ok(a), Ok(b)) if a == b => a,
            (Err(why), _) | (_, Err(why)) => return skip(why),
            _ => return skip("the device's cache mode changed while the call ran"),
        };
        if call.end.result <= 0 {
            return skip("the call failed");
        }
        if call.requests.iter().any(CallRequest::failed) {
            return skip("a request of the call failed");
        }
        if !write_back {
            ledger.observe(
                call.test(),
                &ABOUT,
                "held trivially: the device is write-through, nothing needs a flush",
            );
            return ledger.held(call.test(), &ABOUT);
        }
        if let Some(why) = call.data_unclear() {
            return skip(why);
        }
        if call.data().next().is_none() {
            return skip(call.why_no_data());
        }
        let covered = |f: &Flush| call.data().all(|r| r.done.is_some_and(|d| after(f, r, &d)));
        if self.last.values().any(covered) {
            return ledger.held(call.test(), &ABOUT);
        }
        self.broken(call, ledger);
    }

    fn reboot(&mut self) {
        self.then.clear();
    }
}

/// Whether the flush was submitted after the guest could see this completion.
fn after(flush: &Flush, r: &CallRequest, done: &Done) -> bool {
    let taken_after = flush.id > done.seq;
    // Taken after it, but in the ring before: the guest did not know of it yet.
    let comparable = flush.queue == r.queue && flush.id.saturating_sub(done.seq) < ROUND;
    let ahead = flush.position.wrapping_sub(done.avail_after) as i16;
    taken_after && !(comparable && ahead < 0)
}

impl Durable {
    fn broken(&self, call: &EndedCall, ledger: &mut Ledger) {
        let last = call.data().filter_map(|r| r.done.map(|d| d.seq)).max();
        let open = call.data_in_flight.len();
        let flush = self.last.values().map(|f| f.id).max();
        let state = match (open, last) {
            (0, Some(last)) => format!("the last was completed at event {last}"),
            (n, _) => format!("{n} of them were in flight at its end"),
        };
        let flushed = match flush {
            Some(id) => format!("the last completed flush is request {id}"),
            None => "no flush was completed before".to_owned(),
        };
        let happened = format!(
            "the call returned {} at event {}; of its {} data requests {state}; {flushed}: none was sent \
             after the data was known to be there. Requests: {}",
            call.end.result,
            call.end_seq,
            call.data().count(),
            list_few(
                call.data()
                    .map(|r| r.describe())
                    .collect::<Vec<_>>()
                    .into_iter()
            ),
        );
        let mut events = call.proof(call.data());
        events.extend(flush);
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::Marks],
            events,
            [
                ("data_completed", json!(last)),
                ("last_flush", json!(flush)),
                ("requests", call.data().map(request_json).collect()),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }
}
