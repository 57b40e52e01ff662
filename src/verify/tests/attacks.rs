// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Streams by somebody who wanted false findings, false "held", or our memory.

use std::collections::BTreeMap;

use wtblk_shared::mark::{CallBegin, Mark, PageReport};

use super::super::Verifier;
use super::super::contract::Contract;
use super::super::extents::WORK;
use super::super::verdict::{FURTHER_TESTS, MAX_TESTS, Verdict, Verdicts};
use super::builder::*;
use crate::trace::event::{DeviceKind, Event};

fn tagged(number: u64, tag: u16, off: u64, len: u64) -> CallBegin {
    CallBegin {
        tag: Some(tag),
        ..call(number, off, len)
    }
}

/// How often the promise was held, broken or not checked: no call may be lost.
fn cases(s: &Stream, promise: &str) -> u64 {
    let v = s.verdicts();
    let p = v.get(TEST, promise).unwrap();
    let findings = v.findings().filter(|f| f.promise == promise).count() as u64;
    p.held + p.not_checked.values().sum::<u64>() + findings
}

#[test]
fn a_third_call_of_a_tag_in_use_is_not_judged_on_foreign_requests() {
    // Call 1 is open all the time; call 2 took its tag and ended.
    let mut s = Stream::booted();
    let (c1, c2) = (tagged(1, 5, 0, 4 * B), tagged(2, 5, 32 << 20, B));
    s.begin(&c1);
    s.begin(&c2);
    let x = s.write(5, DISK + (32 << 20), B);
    s.ok(x);
    s.end(&c2, B as i64);
    let c3 = tagged(3, 5, 0, 4 * B);
    s.begin(&c3);
    let mine = s.write(5, DISK, 4 * B);
    s.ok(mine);
    let first = s.write(5, DISK, 4 * B);
    s.end(&c3, 4 * B as i64);
    s.fail(first);
    s.end(&c1, -5);
    s.silent();
    s.not_checked("cover", "another open call has its tag");
    assert_eq!(cases(&s, "cover"), 3);
    // Now nobody has it any more.
    s.run(&tagged(4, 5, 0, B), &[(DISK, B)]);
    s.held("cover", 1);
}

#[test]
fn one_legal_writeback_seen_at_its_beginning_and_its_end_is_no_hang() {
    // Set and not yet submitted; in flight; completed and not yet cleared.
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.report(1, 1);
    let w = s.stray(DISK, B);
    s.report(1, 1);
    s.ok(w);
    s.report(1, 1);
    s.silent();
    s.not_checked("writeback-cleared", "writes of the blocks were in flight");
    // Two in a row prove it.
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
    // Nobody looked in the middle; or the block was copied to another place.
    for place in [DISK, DISK + (1 << 20), DISK + (300 << 20)] {
        let mut s = Stream::booted();
        s.run(&call(1, 0, B), &[(DISK, B)]);
        s.report(1, 1);
        let w = s.stray(place, B);
        s.ok(w);
        s.report(1, 1);
        s.silent();
        s.not_checked("writeback-cleared", "a write was taken or completed");
    }
    // Only its completion came in between.
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    let w = s.stray(DISK, B);
    s.report(1, 1);
    s.ok(w);
    s.report(1, 1);
    s.silent();
    // The log is known, and no page's.
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.report(1, 1);
    let w = s.stray(LOG, 512);
    s.ok(w);
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
}

#[test]
fn reports_that_say_nothing_about_the_call_are_not_used() {
    let run = || {
        let mut s = Stream::booted();
        s.run(&call(1, 0, B), &[(DISK, B)]);
        s
    };
    // Far away; of no length; of more pages than there are.
    for (off, len, pages) in [
        (1 << 40, 0, 0),
        (0, 0, 0),
        (1 << 40, 5000 * B, 5000),
        (B, B, 1),
        (0, B, 2),
        (0, 64 * B, u64::MAX),
    ] {
        let mut s = run();
        for _ in 0..3 {
            s.mark(Mark::Report(PageReport {
                call: 1,
                off,
                len,
                writeback: pages,
                ..PageReport::default()
            }));
        }
        s.silent();
        s.not_checked("writeback-cleared", "no usable page report");
        let v = s.verdicts();
        let odd = &v.get(TEST, "writeback-cleared").unwrap().observations;
        assert_eq!(odd.values().sum::<u64>(), 3, "{odd:?}");
    }
}

#[test]
fn held_means_that_every_range_came_clear_in_the_end() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, 2 * B), &[(DISK, 2 * B)]);
    s.report_range(1, 0, B, 0);
    s.held("writeback-cleared", 1);
    s.report_range(1, B, B, 1);
    s.not_checked("writeback-cleared", "only one usable report");
    // One that shows all of it clear settles both.
    s.report_range(1, 0, 2 * B, 0);
    s.held("writeback-cleared", 1);
    // What comes after that was put there by somebody else.
    s.report_range(1, 0, 2 * B, 1);
    s.report_range(1, 0, 2 * B, 1);
    s.held("writeback-cleared", 1).silent();
    // A write under way explains pages, and takes nothing back.
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.report(1, 0);
    s.stray(DISK, B);
    s.report(1, 1);
    s.held("writeback-cleared", 1);
}

#[test]
fn a_task_needs_time_to_wake_after_the_device_let_go() {
    let held_for_long = || {
        let mut s = Stream::booted();
        s.run(&call(1, 0, B), &[(DISK, B)]);
        s.probe(1, 1);
        let w = s.stray(DISK, B);
        s.hold(w);
        s.probe_state(1, 3000, 'D', 7);
        s.ok(w);
        s.probe_state(1, 3001, 'D', 7);
        s.probe_state(1, 3002, 'D', 7);
        s
    };
    let idle = "the device had been idle for less than half";
    let mut s = held_for_long();
    s.silent().not_checked("progress", idle);
    s.probe_end(1);
    s.silent().not_checked("progress", idle);
    // Half of its limit of 2000 ms is enough, whatever the guest says of its own time.
    let mut s = held_for_long();
    s.probe_state(1, 3999, 'D', 7);
    s.silent();
    s.probe_state(1, 4000, 'D', 7);
    s.broken("progress", &[]);
    s.probe_end(1);
    s.broken("progress", &[]);
    // A device that was idle before the probe began: only the probe's time counts.
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.wait_ms(60_000);
    s.probe(1, 1);
    let began = s.now_ns;
    s.probe_state(1, 2001, 'D', 7);
    s.probe_state(1, 2002, 'D', 7);
    for e in &mut s.events {
        e.time_ns = e.time_ns.min(began + 999_999_999);
    }
    s.silent().not_checked("progress", idle);
}

#[test]
fn a_probe_that_ends_after_a_gap_did_not_hold() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.probe(1, 1);
    s.probe_state(1, 3000, 'D', 7);
    s.probe_state(1, 4000, 'D', 7);
    s.gap(10);
    s.probe_end(1);
    s.silent().not_checked("progress", "events are missing");
}

#[test]
fn facts_at_the_end_do_not_judge_requests_from_before() {
    let descending = |before: (&str, &str), after: &[(&str, &str)]| {
        let mut s = Stream::booted();
        s.env(&[before]);
        let c = call(1, 0, 2 * B);
        s.begin(&c);
        s.write(1, DISK + B, B);
        s.write(1, DISK, B);
        s.all_ok();
        for fact in after {
            s.env(&[*fact]);
        }
        s.end(&c, 2 * B as i64);
        s
    };
    let (none, other) = (("scheduler", "none"), ("scheduler", "mq-deadline"));
    descending(none, &[none]).broken("order", &[]);
    descending(other, &[none])
        .silent()
        .not_checked("order", "the I/O scheduler is 'mq-deadline'");
    // What it was in between counts too.
    for after in [
        &[other, none][..],
        &[("queues", "2")],
        &[("pressure", "on")],
    ] {
        descending(none, after)
            .silent()
            .not_checked("order", "what the order depends on changed");
    }
    descending(("tags", "off"), &[("tags", "on")])
        .silent()
        .not_checked("cover", "tags are off");
}

#[test]
fn a_number_used_again_while_its_call_is_late_loses_no_call() {
    let mut s = Stream::booted();
    let first = call(1, 0, B);
    s.begin(&first);
    let a = s.write(1, DISK, B);
    s.end(&first, B as i64);
    let second = call(1, B, B);
    s.begin(&second);
    let b = s.write(1, DISK + B, B);
    s.end(&second, B as i64);
    s.fail(a);
    s.ok(b);
    assert_eq!(cases(&s, "error-report"), 2);
    assert_eq!(cases(&s, "sync-return"), 2);
}

/// A stream of marks that were never checked for sense.
fn feed(verifier: &mut Verifier, events: &[Event]) {
    for event in events {
        verifier.event(event);
    }
}

fn reasons(v: &Verdicts, test: &str, promise: &str) -> BTreeMap<String, u64> {
    v.get(test, promise).unwrap().not_checked.clone()
}

#[test]
fn calls_that_never_end_are_dropped_and_counted() {
    let mut s = Stream::booted();
    let n = 3000;
    for i in 1..=n {
        let c = tagged(i, i as u16, 0, B);
        s.begin(&c);
        s.write(i as u16, DISK, B);
    }
    let mut v = Verifier::new(Contract::default());
    feed(&mut v, &s.events);
    let [open, late, past, requests] = v.world.sizes();
    assert!(open <= 1024 && late <= 1024 && past <= 1024);
    assert_eq!(requests, open);
    // The tag of one that was dropped is no proof any more.
    s.run(&tagged(n + 1, 1, 0, B), &[]);
    s.silent();
    let why = reasons(&s.verdicts(), TEST, "cover");
    assert_eq!(why["too many calls at a time"], n + 1 - 1024);
    assert_eq!(why.values().sum::<u64>(), n + 1);
    // Those that are still followed end as ever.
    let last = tagged(n, n as u16, 0, B);
    s.all_ok();
    s.end(&last, B as i64);
    s.held("cover", 1);
}

#[test]
fn calls_that_end_too_early_are_bounded_too() {
    let mut s = Stream::booted();
    for i in 1..=2000 {
        let c = tagged(i, i as u16, 0, B);
        s.begin(&c);
        s.write(i as u16, DISK, B);
        s.end(&c, B as i64);
    }
    let mut v = Verifier::new(Contract::default());
    feed(&mut v, &s.events);
    assert_eq!(v.world.sizes(), [0, 1024, 1024, 1024]);
    s.all_ok();
    assert_eq!(cases(&s, "error-report"), 2000);
}

#[test]
fn probes_that_never_end_are_dropped_and_counted() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    for i in 0..3000 {
        s.probe(i, 1);
    }
    let why = reasons(&s.verdicts(), TEST, "progress");
    assert_eq!(why["too many probes at a time"], 3000 - 1024);
    assert_eq!(why.values().sum::<u64>(), 3000);
}

#[test]
fn tests_without_number_share_one_name() {
    let mut s = Stream::booted();
    for i in 0..MAX_TESTS + 500 {
        s.mark(Mark::TestBegin {
            name: format!("{i}"),
        });
    }
    let c = CallBegin {
        test: "one more".into(),
        ..call(1, 0, B)
    };
    s.run(&c, &[]);
    let v = s.verdicts();
    assert_eq!(v.tests.len(), MAX_TESTS + 1);
    let further = v.get(FURTHER_TESTS, "cover").unwrap();
    assert!(matches!(further.verdict, Verdict::Broken { .. }));
}

#[test]
fn extents_that_lie_upon_each_other_are_little_work() {
    let n = 2500;
    let apart: Vec<_> = (0..n).map(|i| ext(i * 8192, i * 8192, 4096)).collect();
    let whole: Vec<_> = (0..n).map(|_| ext(0, 0, n * 8192)).collect();
    let mut s = Stream::booted();
    let c = CallBegin {
        extents: Some(whole),
        ..call(1, 0, n * 8192)
    };
    s.begin(&c);
    s.end_with(&c, 0, Some(apart));
    let before = WORK.get();
    s.verdicts();
    let work = WORK.get() - before;
    assert!(work < 10 * n, "{work} steps");
}

#[test]
fn failures_of_open_calls_are_counted_once_each() {
    let mut s = Stream::booted();
    let n = 1000;
    for i in 1..=n {
        let c = CallBegin {
            ino: i,
            ..call(i, 0, B)
        };
        s.begin(&c);
        let w = s.write(i as u16, DISK, B);
        s.fail(w);
    }
    for i in 2000..2000 + n {
        let c = CallBegin {
            ino: i,
            ..call(i, 0, B)
        };
        s.begin(&c);
        s.end(&c, 0);
    }
    let before = WORK.get();
    s.verdicts();
    let work = WORK.get() - before;
    assert!(work < 10 * n, "{work} steps");
}

#[test]
fn a_number_in_use_spoils_both_calls_and_the_old_ones_tag() {
    let mut s = Stream::booted();
    s.begin(&tagged(1, 5, 0, B));
    let again = tagged(1, 6, 0, B);
    s.run(&again, &[]);
    s.run(&tagged(3, 5, 0, B), &[]);
    s.silent();
    assert_eq!(cases(&s, "cover"), 3);
}

#[test]
fn an_end_between_what_was_abandoned_and_the_stop_proves_nothing() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.abandon(w);
    s.end(&c, B as i64);
    s.device(DeviceKind::QueueStop, 0, 1, "");
    s.silent();
    s.not_checked("sync-return", "the guest or the device was ended");
}

#[test]
fn short_copies_empty_calls_and_late_tags_are_legal() {
    let mut s = Stream::booted();
    let c = CallBegin {
        flags: vec!["writethrough".into(), "short-copy".into()],
        ..call(1, 0, 4 * B)
    };
    let block = |b: u64| (DISK + b * B, B);
    s.run(&c, &[0, 1, 1, 2, 3].map(block));
    s.silent();
    let mut s = Stream::booted();
    s.run(&call(1, 0, 0), &[]);
    let w = s.write(1, DISK, 512);
    s.fail(w);
    s.run(&call(2, 100, B), &[(DISK, 2 * B)]);
    s.silent();
}

#[test]
fn absurd_numbers_do_no_harm() {
    let some = [0u64, 1, 511, 4096, 1 << 32, u64::MAX / 2, u64::MAX];
    for bsize in some {
        for off in some {
            for len in some {
                let mut s = Stream::booted();
                let c = CallBegin {
                    bsize,
                    isize: off,
                    extents: Some(vec![
                        ext(0, DISK, u64::MAX),
                        ext(off, len, bsize),
                        ext(u64::MAX, u64::MAX, u64::MAX),
                        ext(off, u64::MAX, len),
                    ]),
                    ..call(1, off, len)
                };
                s.begin(&c);
                s.write(1, u64::MAX / 512 * 512, u64::from(u32::MAX));
                s.write(1, DISK, B);
                s.all_ok();
                s.end(&c, len as i64);
                for pages in [u64::MAX, 1, 1, 0] {
                    s.report_range(1, off, len, pages);
                }
                s.verdicts();
            }
        }
    }
}
