// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One call with requests of any kind, against oracles that look at each sector:
//! `align`, `cover`, `order`, `sync-return`, `error-report`.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use wtblk_shared::mark::{CallBegin, Extent};

use super::super::contract::Contract;
use super::super::verdict::{Verdict, Verdicts};
use super::builder::*;
use super::world::Dice;
use crate::trace::event::{RequestId, Status};

const S: u64 = 512;

/// What an oracle says; the value is what the finding must tell.
#[derive(Clone, Debug, PartialEq)]
enum Says {
    Held,
    Broken(&'static str, Value),
    NotChecked,
}

/// A request of the call, in the order of arrival.
#[derive(Clone, Copy, Debug)]
struct Sent {
    disk: u64,
    bytes: u64,
    queue: u16,
    /// Completed before the call's end.
    before_end: bool,
    status: Status,
}

#[derive(Debug)]
struct Case {
    begin: CallBegin,
    extents: Vec<Extent>,
    sent: Vec<Sent>,
    result: i64,
}

impl Case {
    fn block(&self) -> u64 {
        self.begin.bsize
    }

    /// Extent and place in the file of a sector on the disk, by trying all extents.
    fn in_file(&self, disk: u64) -> Option<(usize, u64)> {
        let holds = |e: &Extent| e.physical <= disk && disk < e.physical + e.length;
        let at = self.extents.iter().position(holds)?;
        Some((
            at,
            self.extents[at].logical + disk - self.extents[at].physical,
        ))
    }

    /// The sectors of the file that a request wrote.
    fn sectors(&self, r: &Sent) -> Vec<(usize, u64)> {
        let all = (0..r.bytes / S).map(|i| self.in_file(r.disk + i * S));
        all.map(|at| at.expect("inside the file")).collect()
    }

    /// How often each sector was sent, by extent.
    fn counts(&self) -> BTreeMap<(usize, u64), u64> {
        let mut counts = BTreeMap::new();
        for at in self.sent.iter().flat_map(|r| self.sectors(r)) {
            *counts.entry(at).or_default() += 1;
        }
        counts
    }

    fn in_flight(&self) -> usize {
        self.sent.iter().filter(|r| !r.before_end).count()
    }

    fn failed(&self) -> usize {
        self.sent.iter().filter(|r| r.status != Status::OK).count()
    }

    fn align(&self) -> Says {
        let counts = self.counts();
        if counts.is_empty() {
            return Says::NotChecked;
        }
        let mut bad = Vec::new();
        for (x, at) in counts.keys() {
            if *at >= S && counts.contains_key(&(*x, at - S)) {
                continue;
            }
            let mut end = at + S;
            while counts.contains_key(&(*x, end)) {
                end += S;
            }
            if !at.is_multiple_of(self.block()) || !end.is_multiple_of(self.block()) {
                bad.push(json!([at, end]));
            }
        }
        match bad.is_empty() {
            true => Says::Held,
            false if self.in_flight() > 0 => Says::NotChecked,
            false => Says::Broken("runs", Value::Array(bad)),
        }
    }

    fn cover(&self) -> Says {
        if self.result <= 0
            || self
                .sent
                .iter()
                .any(|r| r.before_end && r.status != Status::OK)
        {
            return Says::NotChecked;
        }
        let block = self.block();
        let end = (self.begin.off + self.result.unsigned_abs()).next_multiple_of(block);
        let (mut missing, mut twice) = (Vec::new(), Vec::new());
        let counts = self.counts();
        let mut at = self.begin.off - self.begin.off % block;
        while at < end {
            let of = |(_, file): &(usize, u64)| *file == at;
            let n: u64 = counts.iter().filter(|(k, _)| of(k)).map(|(_, n)| n).sum();
            let list = match n {
                0 => Some(&mut missing),
                1 => None,
                _ => Some(&mut twice),
            };
            if let Some(list) = list {
                match list.last_mut() {
                    Some((_, to)) if *to == at => *to = at + S,
                    _ => list.push((at, at + S)),
                }
            }
            at += S;
        }
        if missing.is_empty() && twice.is_empty() {
            Says::Held
        } else if self.in_flight() > 0 {
            Says::NotChecked
        } else {
            Says::Broken("missing_twice", json!([missing, twice]))
        }
    }

    fn order(&self) -> Says {
        if self.sent.is_empty() || self.sent.iter().any(|r| r.queue != self.sent[0].queue) {
            return Says::NotChecked;
        }
        let first = |r: &Sent| self.sectors(r).iter().map(|s| s.1).min();
        let back = |i: &usize| first(&self.sent[i - 1]) > first(&self.sent[*i]);
        match (1..self.sent.len()).filter(back).count() {
            0 => Says::Held,
            n => Says::Broken("pairs", json!(n)),
        }
    }

    fn sync_return(&self) -> Says {
        match (self.sent.len(), self.in_flight()) {
            (0, _) => Says::NotChecked,
            (_, 0) => Says::Held,
            (_, n) => Says::Broken("in_flight", json!(n)),
        }
    }

    fn error_report(&self, strict: bool) -> Says {
        let failed = self.failed();
        let broken = Says::Broken("failed", json!(failed));
        match (failed, self.result) {
            (0, 0..) => Says::Held,
            (0, -5) => broken,
            (0, _) => Says::NotChecked,
            (_, r) if r >= self.begin.len as i64 => broken,
            (_, 0..) if strict => broken,
            (_, 0..) | (_, -5 | -28) => Says::Held,
            // EPERM is no word of a device.
            _ => broken,
        }
    }
}

fn make(dice: &mut Dice) -> Case {
    let bsize = [1024, 4096][dice.below(2) as usize];
    let blocks = 2 + dice.below(9);
    // Slots on the disk, shuffled in pieces: some neighbours stay neighbours.
    let mut extents: Vec<Extent> = Vec::new();
    let mut free: Vec<u64> = (0..4).map(|i| DISK + i * 64 * B).collect();
    let mut block = 0;
    while block < blocks {
        let n = (1 + dice.below(4)).min(blocks - block);
        let slot = dice.below(4) as usize;
        let at = free[slot];
        free[slot] = at + (n + dice.below(2)) * bsize;
        extents.push(ext(block * bsize, at, n * bsize));
        block += n;
    }
    let off = dice.below(blocks * bsize);
    let len = 1 + dice.below(blocks * bsize - off);
    let begin = CallBegin {
        bsize,
        isize: blocks * bsize,
        extents: Some(extents.clone()),
        ..call(1, off, len)
    };
    // FIEMAP may tell neighbours apart that are one piece of file and disk.
    extents.dedup_by(|b, a| {
        let one = a.logical + a.length == b.logical && a.physical + a.length == b.physical;
        a.length += if one { b.length } else { 0 };
        one
    });
    let mut case = Case {
        begin,
        extents,
        sent: Vec::new(),
        result: len as i64,
    };
    plan(dice, &mut case);
    for _ in 0..dice.below(3) {
        spoil(dice, &mut case.sent);
    }
    // What got outside of the range, or of the file, is another question.
    let range = off - off % bsize..(off + len).next_multiple_of(bsize);
    let inside = |r: &Sent| {
        let sectors = (0..r.bytes / S).map(|i| case.in_file(r.disk + i * S));
        r.bytes > 0
            && sectors
                .into_iter()
                .all(|s| s.is_some_and(|(_, f)| range.contains(&f)))
    };
    let sent: Vec<Sent> = case.sent.iter().copied().filter(inside).collect();
    case.sent = sent;
    if dice.one_in(3) {
        case.result = match dice.below(5) {
            0 => -5,
            1 => -28,
            2 => -1,
            _ => dice.below(len + 1) as i64,
        };
    }
    case
}

/// What a kernel that is right sends.
fn plan(dice: &mut Dice, case: &mut Case) {
    let (bsize, begin) = (case.begin.bsize, &case.begin);
    let (mut at, end) = (
        begin.off - begin.off % bsize,
        (begin.off + begin.len).next_multiple_of(bsize),
    );
    let early = dice.one_in(6);
    while at < end {
        let x = case
            .extents
            .iter()
            .find(|e| e.logical <= at && at < e.logical + e.length);
        let x = x.expect("no holes");
        let most = (x.logical + x.length).min(end) - at;
        let bytes = if dice.one_in(2) {
            most
        } else {
            S * (1 + dice.below(most / S))
        };
        case.sent.push(Sent {
            disk: x.physical + at - x.logical,
            bytes,
            queue: 0,
            before_end: !(early && dice.one_in(2)),
            status: Status::OK,
        });
        at += bytes;
    }
    if dice.one_in(8) {
        case.sent
            .iter_mut()
            .for_each(|r| r.queue = dice.below(2) as u16);
    }
    if dice.one_in(4) {
        let n = case.sent.len() as u64;
        case.sent[dice.below(n) as usize].status = Status::IOERR;
    }
}

fn spoil(dice: &mut Dice, sent: &mut Vec<Sent>) {
    if sent.is_empty() {
        return;
    }
    let n = sent.len() as u64;
    let (i, j) = (dice.below(n) as usize, dice.below(n) as usize);
    match dice.below(7) {
        0 => {
            sent.remove(i);
        }
        1 => sent.insert(j, sent[i]),
        2 => sent.swap(i, j),
        3 => sent[i].bytes += S,
        // One of no sector is not sent.
        4 => sent[i].bytes = sent[i].bytes.saturating_sub(S),
        5 => {
            sent[i].disk += S;
            sent[i].bytes = sent[i].bytes.saturating_sub(S);
        }
        _ => sent[i].disk -= S,
    }
}

fn stream(case: &Case) -> Stream {
    let mut s = Stream::booted();
    s.begin(&case.begin);
    let mut open: Vec<(RequestId, Sent)> = Vec::new();
    for r in &case.sent {
        // One block at a time is in flight: that is another promise.
        for (id, old) in std::mem::take(&mut open) {
            if old.disk < r.disk + r.bytes && r.disk < old.disk + old.bytes && old.before_end {
                s.complete(id, old.status);
            } else {
                open.push((id, old));
            }
        }
        s.queue = r.queue;
        open.push((s.write(1, r.disk, r.bytes), *r));
    }
    let (before, after): (Vec<_>, Vec<_>) = open.into_iter().partition(|(_, r)| r.before_end);
    for (id, r) in before {
        s.complete(id, r.status);
    }
    s.end(&case.begin, case.result);
    for (id, r) in after {
        s.complete(id, r.status);
    }
    s
}

/// What the judge says, in the oracle's words.
fn judged(verdicts: &Verdicts, promise: &str, says: &Says) -> Says {
    let verdict = &verdicts.get(TEST, promise).expect("it is judged").verdict;
    match verdict {
        Verdict::Held { .. } => Says::Held,
        Verdict::NotChecked { .. } => Says::NotChecked,
        Verdict::Broken { findings, .. } => {
            let details = &findings[0].details;
            let Says::Broken(key, _) = says else {
                return Says::Broken("it should not be broken", json!(details));
            };
            let value = match *key {
                "missing_twice" => json!([details["missing"], details["twice"]]),
                "runs" => {
                    // They come by their place on the disk.
                    let mut runs = details["runs"].as_array().cloned().unwrap_or_default();
                    runs.sort_by_key(|r| r[0].as_u64());
                    Value::Array(runs)
                }
                "pairs" | "failed" => json!(details[*key].as_array().map(Vec::len)),
                _ => json!(details[*key]),
            };
            Says::Broken(key, value)
        }
    }
}

/// How often each promise came out in each way.
fn tally(seeds: std::ops::Range<u64>) -> BTreeMap<(&'static str, u8), u64> {
    let mut tally = BTreeMap::new();
    for seed in seeds {
        for (promise, says) in check(seed) {
            let way = match says {
                Says::Held => 0,
                Says::Broken(..) => 1,
                Says::NotChecked => 2,
            };
            *tally.entry((promise, way)).or_default() += 1;
        }
    }
    tally
}

fn check(seed: u64) -> Vec<(&'static str, Says)> {
    let case = make(&mut Dice(seed));
    let s = stream(&case);
    let strict = seed % 2 == 1;
    let contract = Contract::named(if strict { "strict" } else { "rfc-v2" }).unwrap();
    let verdicts = s.verdicts_by(contract);
    let all = vec![
        ("align", case.align()),
        ("cover", case.cover()),
        ("order", case.order()),
        ("sync-return", case.sync_return()),
        ("error-report", case.error_report(strict)),
    ];
    for (promise, says) in &all {
        let judged = judged(&verdicts, promise, says);
        assert_eq!(
            judged, *says,
            "seed {seed}: {promise}\n{case:#?}\n{verdicts:#?}"
        );
    }
    all
}

#[test]
fn each_promise_comes_out_in_each_way() {
    let tally = tally(0..300);
    for promise in ["align", "cover", "order", "sync-return", "error-report"] {
        for way in 0..3 {
            let n = tally.get(&(promise, way)).copied().unwrap_or(0);
            assert!(n >= 3, "{promise} {way}: {n} of 300; {tally:?}");
        }
    }
}

proptest! {
    /// The judge and the oracles say the same of any requests of a call.
    #[test]
    fn any_requests_of_a_call_are_judged_as_sector_by_sector(seed: u64) {
        check(seed);
    }
}
