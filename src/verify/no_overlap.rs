// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `no-overlap`: never two writes of one block at a time.

use std::collections::HashSet;
use std::ops::Range;

use serde_json::json;
use wtblk_shared::mark::Mark;
use wtblk_shared::tag::Tag;

use super::attribution::World;
use super::call::{Class, EndedCall, has_flag};
use super::contract::Contract;
use super::fast_hash::NumberMap;
use super::flight::{InFlight, bytes_of, overlap};
use super::flying::{Extended, Flying};
use super::promise::{About, Moment, Promise, list_few, request_json};
use super::verdict::{Evidence, Ledger};
use crate::trace::event::{Complete, Op, RequestId, Submit};

/// Writes that overlap others and are followed; a stream with more is not judged meanwhile.
const MAX_EXTRA: usize = 256;
/// Pairs kept of one call.
const MAX_PAIRS: usize = 16;
/// Calls of which pairs are kept.
const MAX_CALLS: usize = 4096;
/// Files that are known to be written with O_DIRECT.
const MAX_DIRECT: usize = 4096;

/// The promise in words.
pub static ABOUT: About = About {
    name: "no-overlap",
    promised: "While a data request of a call is in flight, no other write of its sectors is.",
    judged_on: "the sectors of all writes in flight at one moment, whoever sent them",
    broken_when: "two writes in flight share a sector, one of them a data request of a writethrough \
                  call, and neither is known or suspected to be O_DIRECT",
    not_checked_when: "the call's data requests are not known; what is in flight is not known, because \
                       events are missing; more writes overlap than are followed. Beside a call with the \
                       flag direct on the file, or a tag of no known call, it is an observation",
    comes_from: "PG_writeback: whoever writes a folio to the disk waits until the write before has \
        ended (folio_wait_writeback before folio_start_writeback), so the page cache has one I/O of \
        a block in flight at most; which of two the disk keeps would be chance",
    broken_by: "a writethrough that does not wait for writeback that is under way, or sends a bio \
        twice; the defect sent-twice",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(NoOverlap::default())
}

/// A write in flight.
#[derive(Clone, Debug)]
struct Writer {
    id: RequestId,
    disk: Range<u64>,
    /// The call that it may be of.
    owner: Option<u64>,
    kind: Kind,
}

impl Extended for Writer {
    fn id(&self) -> RequestId {
        self.id
    }

    fn disk(&self) -> &Range<u64> {
        &self.disk
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Nothing speaks for O_DIRECT.
    Cached,
    /// Of a call with the flag `direct`.
    Direct,
    /// Nobody knows whose: it has a tag of no open call.
    Stray,
}

/// Two writes that were in flight together and share the bytes `shared` of the disk.
#[derive(Clone, Debug)]
struct Pair {
    first: RequestId,
    second: RequestId,
    shared: Range<u64>,
    kinds: [Kind; 2],
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct NoOverlap {
    /// Writes in flight that do not overlap each other.
    flying: Flying<Writer>,
    /// Those that overlap others.
    extra: Vec<Writer>,
    /// By the number of a call.
    pairs: NumberMap<Vec<Pair>>,
    /// When a write was last not followed, or its pairs not kept.
    lost: Option<u64>,
    /// Files that a marked call wrote with O_DIRECT.
    direct: HashSet<(u64, u64)>,
}

impl NoOverlap {
    /// The writes in flight that share a byte with `disk`.
    fn meeting(&self, disk: &Range<u64>) -> Vec<&Writer> {
        let extra = self.extra.iter().filter(|w| overlap(&w.disk, disk));
        self.flying
            .meeting(disk)
            .into_iter()
            .chain(extra)
            .take(MAX_PAIRS + 1)
            .collect()
    }

    fn keep(&mut self, call: u64, pair: Pair) {
        let room = self.pairs.len() < MAX_CALLS || self.pairs.contains_key(&call);
        if !room {
            self.lost = Some(pair.second);
            return;
        }
        let list = self.pairs.entry(call).or_default();
        if list.len() < MAX_PAIRS {
            list.push(pair);
        }
    }
}

impl Promise for NoOverlap {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn follows(&self) -> &'static [Moment] {
        &[Moment::WriteTaken, Moment::WriteDone]
    }

    fn waits_for_requests(&self) -> bool {
        true
    }

    fn submitted(&mut self, id: RequestId, s: &Submit, world: &World, ledger: &mut Ledger) {
        let disk = bytes_of(s);
        if s.op != Op::Write || disk.is_empty() {
            return;
        }
        let tag = Tag::from_ioprio(s.ioprio);
        // Without a tag it is nobody's.
        let request = tag.and_then(|_| world.flight.get(id));
        let owner = request.and_then(|r| r.owner).map(|o| o.0);
        let kind = match owner {
            Some(_) if request.is_some_and(|r| r.direct) => Kind::Direct,
            None if tag.is_some() => Kind::Stray,
            _ => Kind::Cached,
        };
        let new = Writer {
            id,
            disk,
            owner,
            kind,
        };
        if self.extra.is_empty() && !self.flying.meets(&new.disk) {
            self.flying.insert(new);
            return;
        }
        let met: Vec<(Pair, [Option<u64>; 2])> = self
            .meeting(&new.disk)
            .into_iter()
            .map(|old| {
                let shared = old.disk.start.max(new.disk.start)..old.disk.end.min(new.disk.end);
                let pair = Pair {
                    first: old.id,
                    second: id,
                    shared,
                    kinds: [old.kind, new.kind],
                };
                (pair, [old.owner, new.owner])
            })
            .collect();
        if met.is_empty() {
            self.flying.insert(new);
            return;
        }
        if met.len() > MAX_PAIRS || self.extra.len() >= MAX_EXTRA {
            self.lost = Some(id);
        }
        for (pair, owners) in met {
            match owners {
                [None, None] => {
                    let what = "two writes of no marked call share sectors in flight";
                    ledger.observe(&world.test, &ABOUT, what);
                }
                [Some(a), Some(b)] if a != b => {
                    self.keep(a, pair.clone());
                    self.keep(b, pair);
                }
                [Some(call), _] | [None, Some(call)] => self.keep(call, pair),
            }
        }
        if self.extra.len() < MAX_EXTRA {
            self.extra.push(new);
        }
    }

    fn completed(
        &mut self,
        _seq: u64,
        c: &Complete,
        request: &InFlight,
        _world: &World,
        _ledger: &mut Ledger,
    ) {
        if request.op == Op::Write && !self.flying.remove(c.request) && !self.extra.is_empty() {
            self.extra.retain(|w| w.id != c.request);
        }
    }

    fn mark(&mut self, _seq: u64, mark: &Mark, world: &World, _ledger: &mut Ledger) {
        match mark {
            Mark::Begin(begin) => {
                // Pairs of an older call with this number.
                self.pairs.remove(&begin.call);
                if has_flag(begin, "direct") && self.direct.len() < MAX_DIRECT {
                    self.direct.insert((begin.dev, begin.ino));
                }
            }
            // A call that is not judged; one that waits for requests is settled later.
            Mark::End(end) if !world.is_late(end.call) => drop(self.pairs.remove(&end.call)),
            _ => {}
        }
    }

    fn call_settled(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        let pairs = self.pairs.remove(&call.begin.call).unwrap_or_default();
        let file = (call.begin.dev, call.begin.ino);
        let direct_file = self.direct.contains(&file) || self.direct.len() >= MAX_DIRECT;
        let mut bad = Vec::new();
        for pair in &pairs {
            let of_call = |id| call.requests.iter().find(|r| r.id == id);
            let both = [of_call(pair.first), of_call(pair.second)];
            let data = both
                .iter()
                .flatten()
                .any(|r| matches!(r.class, Class::Data(_)));
            // An untagged write of a file that is written with O_DIRECT, too.
            let suspected = pair.kinds.contains(&Kind::Stray)
                || (direct_file && both.iter().any(Option::is_none));
            if data && !pair.kinds.contains(&Kind::Direct) && !suspected {
                bad.push((pair, both));
            } else {
                let what = "another write shared sectors with one of the call in flight: O_DIRECT, \
                            or no data request";
                ledger.observe(call.test(), &ABOUT, what);
            }
        }
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        if bad.is_empty() {
            if let Some(why) = call.data_unclear() {
                return skip(why);
            }
            if call.data().next().is_none() {
                return skip(call.why_no_data());
            }
            if world.flight.is_blind() {
                return skip("events are missing: requests in flight are not known");
            }
            if self.lost.is_some_and(|at| at > call.begin_seq) {
                return skip("more writes overlap than are followed");
            }
            return ledger.held(call.test(), &ABOUT);
        }
        let said = |(pair, both): &(&Pair, [Option<&super::call::CallRequest>; 2])| {
            let name = |r: Option<&super::call::CallRequest>, id| match r {
                Some(r) => r.describe(),
                None => format!("request {id}, which is not the call's"),
            };
            format!(
                "{} was sent while {} was in flight, and both write bytes {} to {} of the disk",
                name(both[1], pair.second),
                name(both[0], pair.first),
                pair.shared.start,
                pair.shared.end
            )
        };
        let happened = list_few(bad.iter().map(said));
        let own = bad
            .iter()
            .flat_map(|(_, both)| both.iter().flatten().copied());
        let mut events = call.proof(own);
        events.extend(bad.iter().flat_map(|(pair, _)| [pair.first, pair.second]));
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::InFlight],
            events,
            [(
                "pairs",
                bad.iter()
                    .map(|(pair, both)| {
                        json!({
                            "first": pair.first,
                            "second": pair.second,
                            "disk": [pair.shared.start, pair.shared.end],
                            "of_call": both.iter().flatten().map(|r| request_json(r)).collect::<Vec<_>>(),
                        })
                    })
                    .collect(),
            )],
        );
        ledger.broken(&ABOUT, finding);
    }

    fn never_settled(&mut self, call: &EndedCall) {
        self.pairs.remove(&call.begin.call);
    }

    fn interrupted(&mut self, lost: bool) {
        self.flying.clear();
        self.extra.clear();
        self.pairs.clear();
        if lost {
            // Among what is missing may be a call with the flag direct.
            self.direct.clear();
        }
    }

    fn reboot(&mut self) {
        *self = NoOverlap::default();
    }
}
