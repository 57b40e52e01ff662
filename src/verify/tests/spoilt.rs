// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `selftest` and `minimize` on streams made by hand: each way to spoil has a place in them.

use std::time::Duration;

use twox_hash::XxHash3_64;
use wtblk_shared::mark::{CallBegin, FileMark, Mark, PageReport};
use wtblk_shared::pattern;

use super::super::contract::Contract;
use super::super::minimize::{minimize, renumber};
use super::super::promise;
use super::super::selftest::Report;
use super::builder::*;
use super::world::{Wanted, legal};
use crate::trace::event::{Body, DataEvent, DataKind, Event, Op, RequestId};

/// The boot's probes have an open file, too.
const OPEN: u64 = 100;

/// A write with the digests of its sectors.
fn sends(s: &mut Stream, c: &CallBegin, from: u64, to: u64) -> RequestId {
    let id = s.write(c.tag.unwrap(), DISK + from, to - from);
    let (file, version) = c.pattern.unwrap();
    let mut bytes = vec![0; (to - from) as usize];
    pattern::fill(file, version, from, &mut bytes);
    let digests = bytes.chunks(512).map(XxHash3_64::oneshot);
    s.push(Body::Data(DataEvent {
        request: id,
        kind: DataKind::Digests,
        sector: (DISK + from) / 512,
        bytes: digests.flat_map(u64::to_le_bytes).collect(),
    }));
    id
}

fn clean(s: &mut Stream, call: u64) {
    for at in ["after-call", "later", "after-probes"] {
        s.mark(Mark::Report(PageReport {
            call,
            at: at.into(),
            off: 0,
            len: 2 << 20,
            cached: 512,
            dirty: 0,
            writeback: 0,
        }));
    }
}

fn sync(s: &mut Stream, sync: u64, result: i64) {
    let kind = "fsync".to_owned();
    s.file(FileMark::SyncBegin {
        sync,
        open: OPEN,
        kind,
    });
    s.file(FileMark::SyncEnd { sync, result });
}

/// Tests of a kernel that is right: one where all goes well, and perhaps one with a failing write.
fn recorded(failing: bool) -> Vec<Event> {
    let mut s = Stream::files_marked();
    s.file(FileMark::Opening { open: OPEN });
    let (open, dev, ino) = (OPEN, 8, 1);
    s.file(FileMark::Open { open, dev, ino });
    for number in 1..4 {
        let mut c = CallBegin {
            open: OPEN,
            pattern: Some((7, number as u32)),
            ..call(number, 8 * number * B, 4 * B)
        };
        c.flags.push("dsync".into());
        s.begin(&c);
        let a = sends(&mut s, &c, c.off, c.off + B);
        let b = sends(&mut s, &c, c.off + B, c.off + 4 * B);
        s.ok(b);
        s.ok(a);
        s.submit(Op::Flush, 0, 0, 0);
        s.all_ok();
        s.end(&c, 4 * B as i64);
        clean(&mut s, number);
        s.probe(number, number);
        s.wait_ms(10);
        s.probe_end(number);
    }
    s.mark(Mark::TestEnd { name: TEST.into() });
    if !failing {
        return s.events;
    }
    let name = "failing";
    s.mark(Mark::TestBegin { name: name.into() });
    let extents = vec![
        ext(0, DISK, 4 * B),
        ext(4 * B, DISK + 64 * B, 4 * B),
        ext(8 * B, DISK + 128 * B, 4 * B),
    ];
    let of_failing = |number| CallBegin {
        test: name.into(),
        open: OPEN,
        extents: Some(extents.clone()),
        ..call(number, 0, 12 * B)
    };
    let c = of_failing(10);
    s.begin(&c);
    let first = s.write(10, DISK, 4 * B);
    s.fail(first);
    s.mark(Mark::ErrorSeen { call: 10 });
    s.end(&c, -5);
    sync(&mut s, 1, -5);
    sync(&mut s, 2, 0);
    let c = of_failing(11);
    s.run(
        &c,
        &[
            (DISK, 4 * B),
            (DISK + 64 * B, 4 * B),
            (DISK + 128 * B, 4 * B),
        ],
    );
    sync(&mut s, 3, 0);
    s.mark(Mark::TestEnd { name: name.into() });
    s.silent();
    s.events
}

#[test]
fn every_damage_that_is_aimed_is_found() {
    let contract = Contract::default();
    let mut report = Report::new();
    report.try_trace(&recorded(true), &contract, 20, 7);
    let seen: u64 = report.seen_by.values().sum();
    report.try_trace(&recorded(false), &contract, 20, 8);
    assert!(report.seen_by.values().sum::<u64>() > seen);
    for (promise, name, rate) in &report.aimed {
        // Where nothing failed nobody tells of it; where something did, EIO has a cause.
        let one = ["errseq", "ledger", "stop-after-error"].contains(promise)
            || *name == "EIO for nothing";
        let n = if one { 20 } else { 40 };
        assert_eq!(
            (rate.mutants, rate.found, rate.any),
            (n, n, n),
            "{promise}: {name}"
        );
    }
    let by_promise = report.by_promise();
    for name in promise::NAMES {
        let ways = report.aimed.iter().filter(|a| a.0 == *name);
        let n: u64 = ways.map(|a| a.2.mutants).sum();
        let rate = by_promise.get(name).cloned().unwrap_or_default();
        assert_eq!((rate.mutants, rate.found, rate.any), (n, n, n), "{name}");
    }
    // Of blind damage some is seen and some is none.
    for (kind, rate) in &report.blind {
        assert!(rate.mutants >= 20 && rate.mutants <= 40, "{kind}: {rate:?}");
        assert!(
            rate.found < rate.mutants && rate.any == rate.found,
            "{kind}: {rate:?}"
        );
    }
    assert!(report.seen_by.len() >= 4, "{:?}", report.seen_by);
    // What the contract does not promise is not aimed at.
    let mut report = Report::new();
    report.try_trace(&recorded(false), &Contract::named("rfc-v1").unwrap(), 5, 7);
    for (promise, name, rate) in &report.aimed {
        let off = [
            "sync-return",
            "error-report",
            "errseq",
            "ledger",
            "stop-after-error",
        ];
        let n = if off.contains(promise) { 0 } else { 5 };
        assert_eq!(rate.mutants, n, "{promise}: {name}");
    }
}

#[test]
fn aimed_damage_to_random_streams_is_found() {
    let contract = Contract::default();
    let mut report = Report::new();
    for seed in 0..12 {
        let s = legal(
            seed,
            8,
            Wanted {
                wild: seed % 3 == 0,
            },
        );
        report.try_trace(&s.events, &contract, 6, seed);
    }
    let tried = |p: &str| report.by_promise()[p].mutants;
    for promise in [
        "align",
        "cover",
        "order",
        "no-overlap",
        "stable",
        "sync-return",
    ] {
        assert!(tried(promise) >= 40, "{promise}: {}", tried(promise));
        let rate = &report.by_promise()[promise];
        assert_eq!(rate.found, rate.mutants, "{promise}");
    }
}

/// A stream is cut to what shows its finding: all of what is left is needed for it.
#[test]
fn what_is_left_shows_the_finding_and_nothing_less_does() {
    let contract = Contract::default();
    for seed in 0..4 {
        let mut s = legal(seed, 5, Wanted { wild: false });
        s.all_ok();
        let c = call(6, 2 * B, 4 * B);
        let c = CallBegin { ino: 77, ..c };
        s.begin(&c);
        let far = DISK + (200 << 20);
        let c = CallBegin {
            extents: Some(vec![ext(0, far, 64 * B)]),
            ..c
        };
        let a = s.write(6, far + 2 * B, B);
        let b = s.write(6, far + 3 * B, B);
        s.ok(a);
        s.ok(b);
        s.end(&c, 4 * B as i64);
        let verdicts = s.verdicts();
        let found: Vec<_> = verdicts.findings().cloned().collect();
        assert_eq!(found.len(), 1, "{found:#?}");
        let limit = Duration::from_secs(600);
        let small = minimize(&s.events, &found[0], &contract, limit).unwrap();
        assert!(small.minimal);
        assert!(small.tries > 5 && small.tries < 2000, "{}", small.tries);
        let happened = |events: &[Event]| -> Vec<String> {
            let verdicts = judge(events, contract.clone());
            verdicts.findings().map(|f| f.happened.clone()).collect()
        };
        assert_eq!(happened(&small.events), [found[0].happened.clone()]);
        // Facts (tags are on), the call, and its requests: they are counted in the words.
        let is = |want: &str| {
            small
                .events
                .iter()
                .filter(|e| format!("{:?}", e.body).contains(want))
                .count()
        };
        assert_eq!((is("begin call=6 "), is("end call=6 ")), (1, 1));
        assert_eq!(
            (is("Submit"), is("Complete")),
            (2, 2),
            "{:#?}",
            small.events
        );
        assert!(small.events.len() <= 8, "{:#?}", small.events);
        assert!(small.events.is_sorted_by_key(|e| e.seq));
        // Nothing is found that is not there, and no time is no result but the whole.
        let mut other = found[0].clone();
        other.happened.push('!');
        assert!(minimize(&s.events, &other, &contract, limit).is_none());
        let at_once = minimize(&s.events, &found[0], &contract, Duration::ZERO).unwrap();
        assert!(!at_once.minimal && at_once.events.len() > small.events.len());
        // As a file holds it: numbers from 0 on, and requests follow theirs.
        let file = renumber(&small.events);
        assert!(file.iter().map(|e| e.seq).eq(0..small.events.len() as u64));
        let mut taken = Vec::new();
        for e in &file {
            match &e.body {
                Body::Submit(_) => taken.push(e.seq),
                Body::Complete(c) => assert!(taken.contains(&c.request), "{file:#?}"),
                _ => {}
            }
        }
        assert_eq!(judge(&file, contract.clone()).findings().count(), 1);
    }
}

#[test]
fn renumbering_leaves_out_what_speaks_of_nobody() {
    let mut s = Stream::booted();
    s.gap(100);
    let id = s.write(1, DISK, B);
    s.hold(id);
    s.hold(4711);
    s.ok(4711);
    s.push(Body::Data(DataEvent {
        request: 4711,
        kind: DataKind::Digests,
        sector: 0,
        bytes: vec![],
    }));
    s.ok(id);
    let n = s.events.len();
    let file = renumber(&s.events);
    assert_eq!(file.len(), n - 3);
    assert!(file.iter().map(|e| e.seq).eq(0..file.len() as u64));
    let of = |e: &Event| match &e.body {
        Body::Gap(g) => Some(g.missing),
        Body::Decide(d) => Some(d.request),
        Body::Complete(c) => Some(c.request),
        _ => None,
    };
    let last: Vec<_> = file[file.len() - 4..].iter().map(of).collect();
    let id = file.len() as u64 - 3;
    assert_eq!(last, [Some(1), None, Some(id), Some(id)]);
}
