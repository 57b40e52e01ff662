// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Gaps, stops, reboots, tags that are not what they should be.

use wtblk_shared::mark::{CallBegin, Mark};
use wtblk_shared::tag::TAGS;

use super::builder::*;
use crate::trace::event::{DeviceKind, Op};

const BY_CALL: [&str; 5] = ["align", "cover", "order", "sync-return", "error-report"];

/// A call that breaks whatever it can, with something in its middle.
fn disturbed(middle: impl FnOnce(&mut Stream)) -> Stream {
    let mut s = Stream::booted();
    let c = call(1, 0, 4 * B);
    s.begin(&c);
    s.write(1, DISK + 2 * B, 512);
    let a = s.write(1, DISK, B);
    s.fail(a);
    middle(&mut s);
    s.end(&c, 4 * B as i64);
    s
}

#[test]
fn undisturbed_it_is_broken() {
    let v = disturbed(|_| ()).verdicts();
    let broken: Vec<_> = v.findings().map(|f| f.promise.as_str()).collect();
    assert!(broken.contains(&"sync-return"), "{broken:?}");
    assert!(broken.contains(&"order"), "{broken:?}");
}

#[test]
fn nothing_is_concluded_across_a_gap() {
    let s = disturbed(|s| s.gap(10));
    s.silent();
    for promise in BY_CALL {
        s.not_checked(promise, "events are missing");
    }
    // The begin is lost: nobody knows the call.
    let mut s = disturbed(|_| ());
    s.events
        .retain(|e| e.seq < 12 || !format!("{:?}", e.body).contains("wtblk/1 begin call=1 "));
    s.silent();
    assert!(!s.verdicts().observations.is_empty());
}

#[test]
fn facts_do_not_cross_a_gap() {
    let mut s = Stream::booted();
    s.gap(3);
    s.run(&call(1, 0, 2 * B), &[(DISK + B, B)]);
    s.silent();
    s.not_checked("cover", "events are missing: facts");
    // Told again, calls are judged again; the order needs the device's word too.
    s.env(&[("tags", "on"), ("scheduler", "none"), ("queues", "1")]);
    s.run(&call(2, 0, 2 * B), &[(DISK, 2 * B)]);
    s.held("cover", 1);
    s.not_checked("order", "events are missing: facts");
}

#[test]
fn after_a_gap_nobody_knows_what_is_in_flight() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.report(1, 1);
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    s.gap(2);
    s.report(1, 1);
    s.report(1, 1);
    s.probe_state(7, 2500, 'D', 3);
    s.probe_state(7, 2600, 'D', 3);
    s.silent();
    s.not_checked("writeback-cleared", "events are missing");
    s.not_checked("progress", "events are missing");
}

#[test]
fn a_backend_that_stopped_ends_the_judgement() {
    for kind in [
        DeviceKind::QueueStop,
        DeviceKind::Disconnected,
        DeviceKind::Reset,
        DeviceKind::End,
        DeviceKind::BadRing,
    ] {
        let s = disturbed(|s| {
            s.device(kind, 0, 0, "");
            s.epoch += 1;
            s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
        });
        s.silent();
        for promise in BY_CALL {
            s.not_checked(promise, "the guest or the device was ended");
        }
    }
    // The mark disk is another disk.
    let s = disturbed(|s| {
        let seq = s.device(DeviceKind::QueueStop, 0, 0, "");
        for e in s.events.iter_mut().filter(|e| e.seq == seq) {
            if let crate::trace::event::Body::Device(d) = &mut e.body {
                d.disk = 255;
            }
        }
    });
    assert_eq!(s.verdicts().status(), 1);
}

#[test]
fn an_early_return_and_then_a_stop_leaves_the_error_open() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    s.end(&c, B as i64);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.abandon(a);
    s.broken("sync-return", &[]);
    s.not_checked("error-report", "the guest or the device was ended");
}

#[test]
fn a_reboot_starts_the_numbers_again() {
    let mut s = Stream::booted();
    // Call 1 of the first boot never ends; its pages wait, its probe hangs.
    s.run(&call(2, 0, B), &[(DISK, B)]);
    s.begin(&call(1, 8 * B, 4 * B));
    let lost = s.write(1, DISK + 8 * B, B);
    s.report(2, 1);
    s.probe(7, 2);
    s.probe_state(7, 2001, 'D', 3);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.abandon(lost);
    s.power_on();
    s.probe_order(&[0, 1, 2]);
    s.report(2, 1);
    s.probe_state(7, 2500, 'D', 3);
    s.silent();
    s.run(&call(1, 0, 2 * B), &[(DISK, 2 * B)]);
    s.run(&call(2, 0, 2 * B), &[(DISK, 2 * B)]);
    s.report(2, 0);
    s.held("cover", 3)
        .held("order", 3)
        .held("writeback-cleared", 1)
        .silent();
    let cover = s.verdicts().get(TEST, "cover").unwrap().not_checked.clone();
    assert_eq!(cover.values().sum::<u64>(), 1, "{cover:?}");
}

#[test]
fn facts_of_the_old_kernel_are_not_the_new_ones() {
    let mut s = Stream::booted();
    s.mark(Mark::Boot);
    s.run(&call(1, 0, 2 * B), &[(DISK + B, B)]);
    s.silent();
    s.not_checked("cover", "whether tags arrive is not known");
}

#[test]
fn tags_are_used_again_after_a_round() {
    let mut s = Stream::booted();
    let rounds = u64::from(TAGS) + 3;
    for n in 0..rounds {
        let c = CallBegin {
            tag: Some((n % u64::from(TAGS)) as u16),
            ..call(n, (n % 100) * B, B)
        };
        s.begin(&c);
        let id = s.write(c.tag.unwrap(), DISK + (n % 100) * B, B);
        s.ok(id);
        s.end(&c, B as i64);
    }
    s.held("cover", rounds).held("align", rounds).silent();
}

#[test]
fn two_calls_with_one_tag_cannot_be_told_apart() {
    let mut s = Stream::booted();
    let (a, b) = (
        call(1, 0, B),
        CallBegin {
            tag: Some(1),
            ..call(2, 0, B)
        },
    );
    s.begin(&a);
    s.begin(&b);
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&a, B as i64);
    s.end(&b, B as i64);
    s.silent();
    s.not_checked("cover", "two calls had the same tag");
}

#[test]
fn what_comes_after_the_end_is_not_the_calls() {
    // The thread keeps its tag and calls fsync.
    let mut s = Stream::booted();
    s.run(&call(1, 0, 2 * B), &[(DISK, 2 * B)]);
    s.write(1, DISK, 512);
    s.write(1, DISK, 2 * B);
    s.all_ok();
    s.held("cover", 1).held("align", 1).silent();
}

#[test]
fn tags_that_do_not_arrive() {
    let probe = CallBegin {
        flags: vec!["writethrough".into(), "probe-tag".into()],
        ..call(90, 0, B)
    };
    // The probe's write came untagged, in the middle of other traffic.
    let mut s = Stream::booted();
    s.begin(&probe);
    s.stray(DISK + (300 << 20), B);
    s.stray(DISK, B);
    s.all_ok();
    s.end(&probe, B as i64);
    s.run(&call(1, 0, 2 * B), &[]);
    s.silent();
    s.not_checked("cover", "tags are inexact: the probe");
    // It came as it should: that is enough, even if the guest says nothing.
    let mut s = Stream::bare();
    s.begin(&probe);
    s.stray(DISK + (300 << 20), B);
    s.write(90, DISK, B);
    s.all_ok();
    s.end(&probe, B as i64);
    s.run(&call(1, 0, 2 * B), &[(DISK, 2 * B)]);
    s.held("cover", 1);
    for (value, reason) in [("off", "tags are off"), ("inexact", "tags are inexact")] {
        let mut s = Stream::booted();
        s.env(&[("tags", value)]);
        s.run(&call(1, 0, 2 * B), &[]);
        s.silent();
        s.not_checked("cover", reason);
    }
    let mut s = Stream::booted();
    s.run(
        &CallBegin {
            tag: None,
            ..call(1, 0, B)
        },
        &[],
    );
    s.not_checked("cover", "the call has no tag");
}

#[test]
fn buffered_marks_prove_nothing() {
    let c = call(1, 0, 4 * B);
    let mut s = Stream::booted();
    s.unordered(Mark::Begin(c.clone()));
    s.end(&c, 4 * B as i64);
    s.silent();
    s.not_checked("cover", "its marks are not ordered");
    let mut s = Stream::booted();
    s.run(&call(2, 0, B), &[(DISK, B)]);
    for _ in 0..2 {
        s.unordered(Mark::Report(wtblk_shared::mark::PageReport {
            call: 2,
            at: "x".into(),
            writeback: 5,
            len: B,
            ..Default::default()
        }));
    }
    s.silent();
}

#[test]
fn nonsense_in_a_trace_is_only_counted() {
    let mut s = Stream::booted();
    s.complete(4711, crate::trace::event::Status::IOERR);
    s.push(crate::trace::event::Body::Mark(
        crate::trace::event::MarkEvent {
            line: "wtblk/1 dance".into(),
            ordered: true,
        },
    ));
    s.end(&call(99, 0, B), 5);
    let wild = CallBegin {
        off: u64::MAX - 5,
        len: u64::MAX,
        bsize: 3,
        isize: u64::MAX,
        ..call(1, 0, 0)
    };
    s.begin(&wild);
    s.submit(Op::Write, ioprio(1), u64::MAX, u64::from(u32::MAX));
    s.all_ok();
    s.end_with(&wild, i64::MAX, Some(vec![]));
    s.run(
        &CallBegin {
            bsize: 0,
            tag: Some(u16::MAX),
            ..call(2, 0, B)
        },
        &[],
    );
    s.report_range(1, u64::MAX, u64::MAX, u64::MAX);
    s.report_range(1, u64::MAX, u64::MAX, u64::MAX);
    s.probe_end(5);
    s.verdicts();
    let zero = call(3, 0, 0);
    s.run(&zero, &[]);
    s.verdicts();
}

#[test]
fn nothing_seen_is_nothing_decided() {
    let s = Stream::bare();
    assert_eq!(s.verdicts().status(), 3);
    let s = Stream::booted();
    assert_eq!(s.verdicts().status(), 3);
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    assert_eq!(s.verdicts().status(), 0);
}
