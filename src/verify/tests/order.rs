// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `order`.

use super::builder::*;
use crate::trace::event::{Body, DeviceKind};

const UP: &[(u64, u64)] = &[(DISK, B), (DISK + B, B), (DISK + 2 * B, 2 * B)];
const DOWN: &[(u64, u64)] = &[(DISK, B), (DISK + 2 * B, 2 * B), (DISK + B, B)];

#[test]
fn ascending_holds_and_descending_is_found() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, 4 * B), UP);
    s.held("order", 1).silent();

    let mut s = Stream::booted();
    s.run(&call(1, 0, 4 * B), DOWN);
    let f = s.broken("order", &[]);
    assert!(f.happened.contains("1 of 3 data requests"), "{f:?}");
    assert!(
        f.happened.contains("file offset 4096) after request"),
        "{f:?}"
    );
}

#[test]
fn the_file_counts_not_the_disk() {
    let mut c = call(1, 0, 4 * B);
    let down = |b: u64| ext(b * B, DISK + (100 - 2 * b) * B, B);
    c.extents = Some((0..4).map(down).collect());
    let place = |b: u64| (DISK + (100 - 2 * b) * B, B);
    let mut s = Stream::booted();
    s.run(&c, &[place(0), place(1), place(2), place(3)]);
    s.held("order", 1).silent();
    let mut s = Stream::booted();
    s.run(&c, &[place(3), place(2), place(1), place(0)]);
    s.broken("order", &[]);
}

#[test]
fn a_front_merge_is_in_order() {
    // Block 1 lies before block 0 on the disk: one request holds both.
    let mut c = call(1, 0, 3 * B);
    c.extents = Some(vec![
        ext(0, DISK + B, B),
        ext(B, DISK, B),
        ext(2 * B, DISK + 9 * B, B),
    ]);
    let mut s = Stream::booted();
    s.run(&c, &[(DISK, 2 * B), (DISK + 9 * B, B)]);
    s.held("order", 1).held("align", 1).held("cover", 1);
}

/// What a stream says to a call in descending order after this preparation.
fn undecided(prepare: impl FnOnce(&mut Stream), reason: &str) {
    let mut s = Stream::booted();
    prepare(&mut s);
    s.run(&call(1, 0, 4 * B), DOWN);
    s.silent();
    s.not_checked("order", reason);
    s.held("cover", 1);
}

#[test]
fn what_makes_arrival_meaningless() {
    undecided(
        |s| s.env(&[("scheduler", "mq-deadline")]),
        "the I/O scheduler is",
    );
    undecided(|s| s.env(&[("queues", "2")]), "more than one queue");
    undecided(
        |s| s.env(&[("pressure", "on")]),
        "the guest is short of memory",
    );
    undecided(
        |s| {
            s.device(DeviceKind::Features, 0, 0, "");
        },
        "no indirect descriptors",
    );
    undecided(|s| s.probe_order(&[2, 1, 0]), "this kernel reorders");
    undecided(
        |s| s.probe_order(&[0]),
        "the plug-order probe showed nothing",
    );
    undecided(
        |s| {
            s.queue = 1;
            s.device(DeviceKind::QueueStart, 128, 1, "");
            s.queue = 0;
        },
        "more than one queue",
    );
}

#[test]
fn what_was_not_told_is_not_assumed() {
    type Skip = fn(&Body) -> bool;
    let env: Skip = |b| matches!(b, Body::Mark(m) if m.line.starts_with("wtblk/1 env"));
    let features: Skip = |b| matches!(b, Body::Device(d) if d.kind == DeviceKind::Features);
    let probe: Skip = |b| matches!(b, Body::Mark(m) if m.line.contains("probe-plug-order"));
    for (skip, reason) in [
        (features, "the features are not known"),
        (probe, "the plug-order probe was not seen"),
    ] {
        let mut s = Stream::booted();
        s.run(&call(1, 0, 4 * B), DOWN);
        s.events.retain(|e| !skip(&e.body));
        s.silent();
        s.not_checked("order", reason);
    }
    let mut s = Stream::booted();
    s.run(&call(1, 0, 4 * B), DOWN);
    s.events.retain(|e| !env(&e.body));
    s.silent();
    s.not_checked("order", "whether tags arrive is not known");
}

#[test]
fn requests_on_two_queues_have_no_order() {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    s.write(1, DISK + B, B);
    s.queue = 1;
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&c, 2 * B as i64);
    s.silent();
    s.not_checked("order", "more than one queue");
}

#[test]
fn other_requests_in_between_do_not_matter() {
    let mut s = Stream::booted();
    let (a, mut b) = (call(1, 0, 2 * B), call(2, 0, 2 * B));
    b.ino = 2;
    b.extents = Some(vec![ext(0, DISK + (128 << 20), 64 << 20)]);
    s.begin(&b);
    s.begin(&a);
    s.write(2, DISK + (128 << 20), B);
    s.write(1, DISK, B);
    s.stray(DISK + (200 << 20), B);
    s.write(1, LOG, 512);
    s.write(2, DISK + (128 << 20) + B, B);
    s.write(1, DISK + B, B);
    s.all_ok();
    s.end(&a, 2 * B as i64);
    s.end(&b, 2 * B as i64);
    s.held("order", 2).held("cover", 2).silent();
}
