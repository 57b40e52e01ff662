// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `sync-return` and `error-report`.

use wtblk_shared::mark::CallBegin;

use super::super::contract::Contract;
use super::builder::*;
use crate::trace::event::{DeviceKind, Op, Status};

#[test]
fn the_last_completion_just_before_the_end_is_in_time() {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    let b = s.write(1, DISK + B, B);
    s.hold(a);
    s.ok(b);
    s.ok(a);
    s.end(&c, 2 * B as i64);
    s.held("sync-return", 1).silent();
}

#[test]
fn an_end_before_the_last_completion_is_found() {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    let b = s.write(1, DISK + B, B);
    s.ok(b);
    s.end(&c, 2 * B as i64);
    s.ok(a);
    let f = s.broken("sync-return", &[]);
    assert!(
        f.happened
            .contains("1 of its 2 data requests were in flight"),
        "{f:?}"
    );
    s.held("error-report", 1).held("cover", 1);
}

#[test]
fn only_data_requests_keep_a_call_waiting() {
    // A log write and a read-ahead of the call may be under way when it ends.
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let d = s.write(1, DISK, B);
    s.write(1, LOG, 1024);
    s.submit(Op::Read, ioprio(1), DISK, B);
    s.ok(d);
    s.end(&c, B as i64);
    s.held("sync-return", 1).silent();
}

#[test]
fn an_asynchronous_call_ends_with_its_completion_event() {
    let mut c = call(1, 0, B);
    c.flags.push("async".into());
    let mut s = Stream::booted();
    s.run(&c, &[(DISK, B)]);
    s.not_checked("sync-return", "tags of asynchronous calls");
    let mut s = Stream::booted();
    s.env(&[("tags_async", "on")]);
    s.run(&c, &[(DISK, B)]);
    s.held("sync-return", 1).held("cover", 1).silent();
    // The event came before the data was out.
    let mut s = Stream::booted();
    s.env(&[("tags_async", "on")]);
    s.begin(&c);
    let d = s.write(1, DISK, B);
    s.end(&c, B as i64);
    s.ok(d);
    s.broken("sync-return", &[]);
}

/// Probes of the tag by asynchronous calls: what a boot makes of them.
fn after_probes(arrived: &[bool]) -> Stream {
    let mut s = Stream::booted();
    for (n, arrived) in (10..).zip(arrived) {
        let mut probe = call(n, 0, B);
        probe.flags.push("async".into());
        probe.flags.push("probe-tag".into());
        s.begin(&probe);
        let tag = if *arrived { ioprio(n as u16) } else { 0 };
        let d = s.submit(Op::Write, tag, DISK, B);
        s.ok(d);
        s.end(&probe, B as i64);
    }
    let mut c = call(1, 0, B);
    c.flags.push("async".into());
    s.run(&c, &[(DISK, B)]);
    s
}

#[test]
fn probes_find_out_whether_asynchronous_calls_carry_their_tag() {
    after_probes(&[true]).held("cover", 1);
    after_probes(&[true, true]).held("cover", 1);
    for lost in [&[false][..], &[true, false], &[false, true]] {
        after_probes(lost).not_checked("cover", "tags of asynchronous calls are inexact");
    }
    // What they show says nothing of synchronous calls.
    let mut s = after_probes(&[false]);
    s.run(&call(2, 0, B), &[(DISK, B)]);
    s.held("cover", 1);
}

/// A call of two blocks, the second fails; it returns this.
fn half_failed(status: Status, result: i64) -> Stream {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    let b = s.write(1, DISK + B, B);
    s.ok(a);
    s.complete(b, status);
    s.end(&c, result);
    s
}

#[test]
fn a_failure_is_reported_or_found() {
    half_failed(Status::IOERR, -5)
        .held("error-report", 1)
        .silent();
    half_failed(Status::IOERR, B as i64)
        .held("error-report", 1)
        .silent();
    half_failed(Status::IOERR, 0)
        .held("error-report", 1)
        .silent();
    let f = half_failed(Status::IOERR, 2 * B as i64).broken("error-report", &[]);
    assert!(
        f.happened.contains("file offset 4096) with status IOERR"),
        "{f:?}"
    );
    assert!(f.happened.contains("returned 8192: success"), "{f:?}");
    assert_eq!(f.details["failed"][0]["status"], 1);
}

#[test]
fn errnos_are_the_contracts() {
    half_failed(Status::UNSUPP, -95).held("error-report", 1);
    half_failed(Status(77), -5).held("error-report", 1);
    // Not of the device: the user's buffer was bad as well.
    half_failed(Status::IOERR, -14).held("error-report", 1);
    // ENXIO is nobody's.
    half_failed(Status::IOERR, -6).broken("error-report", &[]);
    half_failed(Status::IOERR, i64::MIN).broken("error-report", &[]);
    let strict =
        half_failed(Status::IOERR, B as i64).verdicts_by(Contract::named("strict").unwrap());
    assert_eq!(strict.status(), 1);
    let v1 =
        half_failed(Status::IOERR, 2 * B as i64).verdicts_by(Contract::named("rfc-v1").unwrap());
    assert_eq!(v1.findings().count(), 0);
}

#[test]
fn a_short_count_over_a_failed_block_is_shown() {
    let v = half_failed(Status::IOERR, 2 * B as i64 - 1).verdicts();
    let odd = &v.get(TEST, "error-report").unwrap().observations;
    assert_eq!(odd.len(), 1, "{odd:?}");
}

#[test]
fn an_error_after_an_early_end_was_lost() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    s.end(&c, B as i64);
    s.fail(a);
    s.broken("error-report", &["sync-return"]);
    // Never completed: not decided.
    let mut s = Stream::booted();
    s.begin(&c);
    s.write(1, DISK, B);
    s.end(&c, B as i64);
    s.broken("sync-return", &[]);
    s.not_checked("error-report", "requests of the call were not completed");
}

#[test]
fn eio_needs_a_cause() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&c, -5);
    s.broken("error-report", &[]);
    // Another errno is not the device's.
    let mut s = Stream::booted();
    s.begin(&c);
    s.end(&c, -28);
    s.not_checked("error-report", "the call returned an errno");
}

#[test]
fn causes_of_eio() {
    let c = call(1, 700, 100);
    // The read of the head block failed.
    let mut s = Stream::booted();
    s.begin(&c);
    let r = s.submit(Op::Read, ioprio(1), DISK, B);
    s.fail(r);
    s.end(&c, -5);
    s.held("error-report", 1);
    // Requests of nobody failed: a log write, metadata.
    for op in [Op::Read, Op::Write, Op::Flush] {
        let mut s = Stream::booted();
        let stray = s.submit(op, 0, LOG, 512);
        s.fail(stray);
        s.begin(&c);
        s.end(&c, -5);
        s.not_checked("error-report", "EIO, but a request of no call failed");
        s.silent();
    }
    // The guest saw a shutdown.
    let mut s = Stream::booted();
    s.mark(wtblk_shared::mark::Mark::Note {
        text: "XFS (vda): Filesystem has been Shut down".into(),
    });
    s.begin(&c);
    s.end(&c, -5);
    s.not_checked("error-report", "EIO, but");
}

#[test]
fn anothers_failure_is_no_cause() {
    // Call 1 failed and said so. Call 2, another open file, says EIO though all of its own was well.
    let after_failure = |change: fn(&mut CallBegin)| {
        let mut s = half_failed(Status::IOERR, -5);
        let mut c = call(2, 8 * B, B);
        c.open = 2;
        change(&mut c);
        s.begin(&c);
        s.write(2, DISK + 8 * B, B);
        s.all_ok();
        s.end(&c, -5);
        s
    };
    after_failure(|_| {}).broken("error-report", &[]);
    // With DSYNC it may be the earlier error, reported once more.
    after_failure(|c| c.flags.push("dsync".into()))
        .held("error-report", 1)
        .silent();
    // The failure of another file's call is none that it may be told of.
    after_failure(|c| {
        c.ino = 2;
        c.flags.push("dsync".into());
    })
    .broken("error-report", &["errseq"]);
    // So it may where the call begins beyond the end of the file, as that waits for writeback first.
    after_failure(|c| c.isize = 8 * B - 1)
        .held("error-report", 1)
        .silent();
    // At its very end there is nothing to zero.
    after_failure(|c| c.isize = 8 * B).broken("error-report", &["size"]);
    // While both run, the failed data of one is no cause for the other.
    let mut s = Stream::booted();
    let (a, b) = (call(1, 0, B), call(2, 8 * B, B));
    s.begin(&a);
    s.begin(&b);
    let x = s.write(1, DISK, B);
    let y = s.write(2, DISK + 8 * B, B);
    s.fail(x);
    s.ok(y);
    s.end(&b, -5);
    s.end(&a, -5);
    let f = s.broken("error-report", &[]);
    assert_eq!(f.call.unwrap().call, 2);
}

/// A call that returns EIO after the backend was stopped, perhaps with a write under way.
fn after_a_stop(in_flight: bool, flag: &str) -> Stream {
    let mut s = Stream::booted();
    s.env(&[("files", "marked")]);
    let first = call(1, 0, B);
    s.begin(&first);
    let w = s.write(1, DISK, B);
    if !in_flight {
        s.ok(w);
        s.end(&first, B as i64);
    }
    s.device(DeviceKind::QueueStop, 0, 0, "");
    if in_flight {
        s.abandon(w);
        s.end(&first, -5);
    }
    s.epoch += 1;
    s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
    let mut second = call(2, 0, B);
    second.flags.push(flag.into());
    s.begin(&second);
    let w = s.write(2, DISK, B);
    s.ok(w);
    s.end(&second, -5);
    s
}

#[test]
fn what_a_stop_gave_up_may_be_the_error_of_a_later_call() {
    for flag in ["dsync", "none"] {
        after_a_stop(true, flag)
            .silent()
            .not_checked("error-report", "EIO, but a request of no call failed");
        after_a_stop(false, flag).broken("error-report", &["errseq"]);
    }
    // Nor can a hang be told from a file system that tries again for ever.
    let mut s = after_a_stop(true, "none");
    s.probe(7, 2);
    s.wait_ms(9000);
    s.probe_state(7, 9001, 'D', 3);
    s.probe_state(7, 9002, 'D', 3);
    s.silent()
        .not_checked("progress", "a request of no call failed");
}
