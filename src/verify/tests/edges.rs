// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Edges that mutation testing found unguarded: streams one step on either side of them.

use wtblk_shared::mark::{CallEnd, Change, FileMark, Mark};

use super::super::contract::{Contract, FsyncRepeats, IsizeAfterError, OnFailedWrite};
use super::builder::*;
use crate::trace::event::DeviceKind;

#[test]
fn the_strict_set_leaves_nothing_open() {
    let strict = Contract::named("strict").unwrap();
    assert_eq!(strict.failed_write, OnFailedWrite::Error);
    assert_eq!(strict.fsync_repeats, FsyncRepeats::Once);
    assert_eq!(strict.isize_after_error, IsizeAfterError::Old);
    let v1 = Contract::named("rfc-v1").unwrap();
    assert!(!v1.makes("sync-return") && !v1.makes("error-report") && v1.makes("cover"));
}

#[test]
fn facts_may_come_by_a_buffered_write_but_no_end_may() {
    let mut s = Stream::bare();
    s.device(DeviceKind::QueueStart, 128, 1, "");
    s.unordered(Mark::Env([("tags".to_owned(), "on".to_owned())].into()));
    s.run(&call(1, 0, 2 * B), &[(DISK, 2 * B)]);
    s.held("cover", 1);
    // An end that came at any time obstructs its call.
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.all_ok();
    s.unordered(Mark::End(CallEnd {
        call: 1,
        result: 2 * B as i64,
        isize: c.isize,
        extents: c.extents.clone(),
    }));
    s.end(&c, 2 * B as i64);
    s.silent().not_checked("cover", "its marks are not ordered");
}

/// Only the requests of the runs that are wrong are named, those at both of their ends.
#[test]
fn align_names_who_sent_what_is_wrong() {
    let mut s = Stream::booted();
    let c = call(1, 0, 12 * B);
    s.begin(&c);
    s.write(1, DISK, 2 * B);
    let a = s.write(1, DISK + 4 * B, B);
    let b = s.write(1, DISK + 5 * B, B + 512);
    s.write(1, DISK + 8 * B, B);
    s.all_ok();
    s.end(&c, -14);
    let f = s.broken("align", &[]);
    assert_eq!(f.details["runs"], serde_json::json!([[4 * B, 6 * B + 512]]));
    let named: Vec<u64> = f.details["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["event"].as_u64().or(r["request"].as_u64()).unwrap())
        .collect();
    assert_eq!(named, [a, b], "{f:#?}");
    let ends = "file offsets 16384 to 25088, ends 512 bytes into a block; sent by";
    assert!(f.happened.contains(ends), "{f:#?}");
    assert!(!f.happened.contains("begins"), "{f:#?}");
}

/// Of what is missing the neighbours are named, of what came twice both.
#[test]
fn cover_names_the_requests_that_prove_it() {
    let of = |writes: &[(u64, u64)]| -> (Vec<u64>, Vec<u64>) {
        let mut s = Stream::booted();
        let c = call(1, 2 * B, 8 * B);
        s.begin(&c);
        let sent: Vec<u64> = writes
            .iter()
            .map(|(block, n)| {
                let id = s.write(1, DISK + block * B, n * B);
                s.ok(id);
                id
            })
            .collect();
        s.end(&c, 8 * B as i64);
        let verdicts = s.verdicts();
        let f = verdicts.findings().find(|f| f.promise == "cover").unwrap();
        let named = f.details["requests"].as_array().unwrap().iter();
        let named = named.map(|r| r["event"].as_u64().or(r["request"].as_u64()).unwrap());
        (sent, named.collect())
    };
    let (sent, named) = of(&[(2, 1), (3, 2), (6, 1), (7, 3)]);
    assert_eq!(named, sent[1..3]);
    let (sent, named) = of(&[(2, 1), (3, 2), (4, 1), (5, 5)]);
    assert_eq!(named, sent[1..3]);
    let (sent, named) = of(&[(3, 7)]);
    assert_eq!(named, sent);
}

#[test]
fn a_short_count_beyond_a_failed_block_is_shown() {
    let shown = |result: i64| {
        let mut s = Stream::booted();
        let c = call(1, 2 * B, 4 * B);
        s.begin(&c);
        let a = s.write(1, DISK + 2 * B, B);
        let b = s.write(1, DISK + 3 * B, 3 * B);
        s.ok(a);
        s.fail(b);
        s.end(&c, result);
        s.held("error-report", 1);
        s.of("error-report").observations.len()
    };
    assert_eq!([shown(0), shown(B as i64)], [0, 0]);
    assert_eq!([shown(B as i64 + 1), shown(4 * B as i64 - 1)], [1, 1]);
}

/// Of a call that does not end, or whose requests do not come back, each promise about it says that it was not checked.
#[test]
fn nobody_is_silent_about_a_call_that_is_not_over() {
    let all = [
        "align",
        "cover",
        "data",
        "durable",
        "error-report",
        "no-overlap",
        "order",
        "serialised",
        "stable",
        "stop-after-error",
        "sync-return",
    ];
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    s.write(1, DISK, B);
    let mut late = s.clone();
    for promise in all {
        s.not_checked(promise, "the call did not end");
    }
    late.end(&c, B as i64);
    for promise in [
        "data",
        "error-report",
        "no-overlap",
        "serialised",
        "stable",
        "errseq",
        "ledger",
    ] {
        late.not_checked(promise, "requests of the call were not completed");
    }
}

/// What a task waited for before a stop of the device it need not wait for after it.
#[test]
fn two_reports_of_a_probe_do_not_pair_across_a_stop() {
    for stop in [false, true] {
        let mut s = Stream::booted();
        s.run(&call(1, 0, B), &[(DISK, B)]);
        s.probe(1, 1);
        s.probe_state(1, 3000, 'D', 1);
        if stop {
            s.device(DeviceKind::QueueStop, 0, 0, "");
            s.epoch += 1;
            s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
        }
        s.probe_state(1, 6000, 'D', 1);
        if stop {
            s.silent();
            s.not_checked("progress", "the probe's state was not reported twice");
            s.probe_state(1, 6100, 'D', 1);
        }
        s.broken("progress", &[]);
    }
}

/// More than one may take blocks away at a time.
#[test]
fn two_takings_at_a_time_are_both_remembered() {
    let mut s = Stream::files_marked();
    let c = call(1, 0, B);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    for (change, ino) in [(1, 1), (2, 2)] {
        s.file(FileMark::ChangeBegin(Change {
            change,
            dev: 8,
            ino,
            off: 0,
            len: B,
            kind: "punch".into(),
        }));
    }
    let (change, result) = (1, Some(0));
    s.file(FileMark::ChangeEnd { change, result });
    s.ok(w);
    s.end(&c, B as i64);
    s.broken("serialised", &[]);
}
