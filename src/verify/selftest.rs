// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Does the judge see what is wrong? Recorded traces, spoilt in one place each.
//!
//! Two kinds of damage. *Aimed*: what a kernel would do that breaks one promise,
//! wherever the trace has a place for it; that promise must say so. *Blind*: one event
//! is dropped, swapped with the next, doubled or altered, wherever it stands; some
//! of that breaks nothing that was promised, so its rate is a measure, no verdict.

use std::collections::BTreeMap;

use super::Verifier;
use super::contract::Contract;
use super::spoil::{AIMED, Dice, alter, sites};
use super::verdict::{Verdict, Verdicts};
use crate::trace::event::{Event, Status};

/// Damage of one kind, and how often it was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    /// Spoilt streams.
    pub mutants: u64,
    /// Those in which the promise that is aimed at was broken (blind: any promise).
    pub found: u64,
    /// Those in which any promise was.
    pub any: u64,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// By damage, in the order of the table: its promise, its name.
    pub aimed: Vec<(&'static str, &'static str, Rate)>,
    /// By promise: how often it was the one that saw a blind change.
    pub seen_by: BTreeMap<String, u64>,
    /// By kind of blind change.
    pub blind: Vec<(&'static str, Rate)>,
}

const BLIND: [&str; 4] = ["drop", "swap", "duplicate", "alter"];

impl Report {
    /// Rows for all damage, no trace tried yet.
    pub fn new() -> Report {
        Report {
            aimed: AIMED
                .iter()
                .map(|a| (a.promise, a.name, Rate::default()))
                .collect(),
            seen_by: BTreeMap::new(),
            blind: BLIND.iter().map(|b| (*b, Rate::default())).collect(),
        }
    }

    /// Spoils a trace `mutants` times in each way. Its own findings are no detection.
    pub fn try_trace(&mut self, events: &[Event], contract: &Contract, mutants: u64, seed: u64) {
        let mut dice = Dice::new(seed);
        let clean = count(&judge(events, contract));
        let sites = sites(events, &judge(events, contract));
        for (aimed, (promise, _, rate)) in AIMED.iter().zip(&mut self.aimed) {
            if !contract.makes(promise) {
                continue;
            }
            for _ in 0..mutants {
                // From any site on, the first that fits: some damage fits few.
                let first = dice.below(sites.len() as u64) as usize;
                let (before, after) = sites.split_at(first.min(sites.len()));
                let spoilt = after.iter().chain(before).find_map(|site| {
                    let mut spoilt = events.to_vec();
                    (aimed.spoil)(&mut spoilt, site, &mut dice).then_some(spoilt)
                });
                let Some(spoilt) = spoilt else {
                    break;
                };
                let new = new_findings(&clean, &judge(&spoilt, contract));
                rate.mutants += 1;
                rate.found += u64::from(new.contains_key(*promise));
                rate.any += u64::from(!new.is_empty());
            }
        }
        for (kind, rate) in &mut self.blind {
            for _ in 0..mutants {
                let mut spoilt = events.to_vec();
                if !blind(kind, &mut spoilt, &mut dice) {
                    continue;
                }
                let new = new_findings(&clean, &judge(&spoilt, contract));
                rate.mutants += 1;
                rate.any += u64::from(!new.is_empty());
                rate.found += u64::from(!new.is_empty());
                for promise in new.into_keys() {
                    *self.seen_by.entry(promise).or_default() += 1;
                }
            }
        }
    }

    /// Aimed damage by promise, those of all ways together.
    pub fn by_promise(&self) -> BTreeMap<&'static str, Rate> {
        let mut all: BTreeMap<&'static str, Rate> = BTreeMap::new();
        for (promise, _, rate) in &self.aimed {
            let sum = all.entry(promise).or_default();
            sum.mutants += rate.mutants;
            sum.found += rate.found;
            sum.any += rate.any;
        }
        all
    }
}

fn judge(events: &[Event], contract: &Contract) -> Verdicts {
    let mut verifier = Verifier::new(contract.clone());
    events.iter().for_each(|e| verifier.event(e));
    verifier.finish()
}

/// Findings by promise.
fn count(verdicts: &Verdicts) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for test in &verdicts.tests {
        for p in &test.promises {
            if let Verdict::Broken { findings, more } = &p.verdict {
                *counts.entry(p.promise.clone()).or_default() += findings.len() as u64 + more;
            }
        }
    }
    counts
}

fn new_findings(clean: &BTreeMap<String, u64>, spoilt: &Verdicts) -> BTreeMap<String, u64> {
    let mut new = count(spoilt);
    new.retain(|promise, n| *n > clean.get(promise).copied().unwrap_or(0));
    new
}

/// One event, wherever it stands.
fn blind(kind: &str, events: &mut Vec<Event>, dice: &mut Dice) -> bool {
    let n = events.len() as u64;
    if n < 2 {
        return false;
    }
    let at = dice.below(n - 1) as usize;
    match kind {
        "drop" => {
            events.remove(at);
            true
        }
        "swap" => {
            events.swap(at, at + 1);
            true
        }
        "duplicate" => {
            let Some(mut again) = events.get(at).cloned() else {
                return false;
            };
            // A number of its own, as a request that is sent twice has.
            again.seq = 1 << 40;
            events.insert(at + 1, again);
            true
        }
        _ => events.get_mut(at).is_some_and(|e| alter(e, dice)),
    }
}

/// The status that a failed request gets.
pub(super) const FAILED: Status = Status::IOERR;
