// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `writeback-cleared` and `progress`.

use super::super::render;
use super::builder::*;
use crate::trace::event::{DeviceKind, Op};

/// `error-mid-call`: a long call of two extents, the first request failed.
fn failed_call() -> Stream {
    let mut s = Stream::booted();
    let c = call(1, 0, 64 * B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    s.hold(a);
    s.fail(a);
    s.end(&c, -5);
    s
}

#[test]
fn pages_that_wait_for_nothing_are_found() {
    let mut s = failed_call();
    s.report(1, 63);
    s.report(1, 63);
    let f = s.broken("writeback-cleared", &[]);
    assert!(f.happened.contains("63 of 64 pages"), "{f:?}");
    assert!(
        f.happened.contains("The device owes nothing: 0 writes"),
        "{f:?}"
    );
    assert!(
        f.happened.contains("file offset 0) with status IOERR"),
        "{f:?}"
    );
    assert_eq!(f.details["pages_in_writeback"], 63);
    assert_eq!(f.details["failed"][0]["file_offset"], 0);
    let again: super::super::verdict::Finding =
        serde_json::from_str(&serde_json::to_string(&f).unwrap()).unwrap();
    assert_eq!(again, f);
    for line in render::finding(&f, None) {
        assert!(line.chars().count() < 110, "{line}");
    }
}

/// A call that is forgotten, because there were so many after it, is judged then.
#[test]
fn a_finding_outlives_the_memory_of_its_call() {
    let mut s = failed_call();
    s.report(1, 63);
    s.report(1, 63);
    for n in 2..1200 {
        let at = (n % 64 + 64) * B;
        s.run(&call(n, at, B), &[(DISK + at, B)]);
    }
    s.broken("writeback-cleared", &[]);
}

#[test]
fn while_another_disk_owes_something_it_is_open() {
    let mut s = failed_call();
    let log = s.elsewhere();
    s.report(1, 63);
    s.report(1, 63);
    s.silent();
    s.not_checked(
        "writeback-cleared",
        "a request of another disk was in flight",
    );
    s.ok(log);
    s.report(1, 63);
    s.report(1, 63);
    s.broken("writeback-cleared", &[]);
}

#[test]
fn one_report_is_not_enough_and_none_is_nothing() {
    let mut s = failed_call();
    s.not_checked("writeback-cleared", "no page report followed");
    s.report(1, 63);
    s.silent();
    s.not_checked("writeback-cleared", "only one usable report");
    // Another range is another question.
    s.report_range(1, 0, B, 1);
    s.silent();
    s.report_range(1, 0, B, 0);
    s.not_checked("writeback-cleared", "only one usable report");
    s.report(1, 0);
    s.held("writeback-cleared", 1);
}

#[test]
fn pages_that_came_clear_held() {
    let mut s = failed_call();
    s.report(1, 63);
    s.report(1, 0);
    s.held("writeback-cleared", 1);
    // Not before the end of the call: its writes were under way.
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    s.report(1, 1);
    s.report(1, 1);
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.silent();
    s.not_checked("writeback-cleared", "no page report");
}

#[test]
fn the_device_may_owe_a_write() {
    // Somebody else's writeback of the same file, held at the first report.
    let mut s = failed_call();
    let w = s.stray(DISK + 8 * B, B);
    s.hold(w);
    s.report(1, 1);
    s.report(1, 1);
    s.silent();
    s.not_checked("writeback-cleared", "writes of the blocks were in flight");
    s.ok(w);
    s.report(1, 1);
    s.silent();
    // A folio may reach beyond the range of the call.
    let mut s = failed_call();
    s.stray(DISK + (1 << 20), B);
    s.report(1, 1);
    s.report(1, 1);
    s.silent();
}

#[test]
fn what_makes_reports_useless() {
    let unknown = |s: &mut Stream| s.stray(DISK + (256 << 20), B);
    let mut s = failed_call();
    unknown(&mut s);
    s.report(1, 1);
    s.report(1, 1);
    s.silent();
    s.not_checked("writeback-cleared", "a write of unknown place");
    // A log write in flight does not matter, a held one does.
    let mut s = failed_call();
    let log = s.stray(LOG + 512, 512);
    s.report(1, 1);
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
    let mut s2 = failed_call();
    let held = s2.stray(LOG + 512, 512);
    assert_eq!(held, log);
    s2.hold(held);
    s2.report(1, 1);
    s2.report(1, 1);
    s2.silent();
    s2.not_checked("writeback-cleared", "another request was held back");
    // Nobody serves.
    for kind in [
        DeviceKind::QueueStop,
        DeviceKind::Disconnected,
        DeviceKind::Reset,
    ] {
        let mut s = failed_call();
        s.report(1, 1);
        s.device(kind, 0, 0, "");
        s.report(1, 1);
        s.report(1, 1);
        s.silent();
        s.not_checked("writeback-cleared", "the data disk was not running");
        // Started again: two new reports are needed.
        s.epoch += 1;
        s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
        s.report(1, 1);
        s.silent();
        s.report(1, 1);
        s.broken("writeback-cleared", &[]);
    }
}

/// Between the two a device that was there for both may have done anything.
#[test]
fn two_reports_do_not_pair_across_an_interruption() {
    let mut s = failed_call();
    s.report(1, 1);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.epoch += 1;
    s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
    s.report(1, 1);
    s.silent();
    s.not_checked("writeback-cleared", "only one usable report");
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
    // Nor is known what became of it where events behind the pair are missing.
    let mut s = failed_call();
    s.report(1, 1);
    s.report(1, 1);
    s.gap(1);
    s.silent();
    s.not_checked("writeback-cleared", "events are missing after the reports");
}

#[test]
fn a_transient_of_other_writeback_is_no_finding() {
    // A kernel thread set writeback, was preempted twice, and submitted then.
    let mut s = failed_call();
    s.report(1, 1);
    s.report(1, 1);
    s.stray(DISK, B);
    s.all_ok();
    s.report(1, 0);
    s.held("writeback-cleared", 1).silent();
    let odd = s
        .verdicts()
        .get(TEST, "writeback-cleared")
        .unwrap()
        .observations
        .clone();
    assert_eq!(odd.len(), 1);
    // Without any write there is no such excuse.
    let mut s = failed_call();
    s.report(1, 1);
    s.report(1, 1);
    s.report(1, 0);
    s.broken("writeback-cleared", &[]);
    // Nor where the pages never came clear.
    let mut s = failed_call();
    s.report(1, 1);
    s.report(1, 1);
    s.stray(DISK, B);
    s.all_ok();
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
}

#[test]
fn pages_of_a_later_call_are_not_the_earlier_ones() {
    // They were clear after the call; what the next one puts into writeback is its own.
    let mut s = failed_call();
    s.report(1, 0);
    s.begin(&call(2, 0, 64 * B));
    s.report(1, 1);
    s.report(1, 1);
    s.held("writeback-cleared", 1).silent();
    // Nobody looked before: it may be of either.
    let mut s = failed_call();
    let other = call(2, 0, 64 * B);
    s.begin(&other);
    s.report(1, 1);
    s.report(1, 1);
    s.silent();
    s.not_checked(
        "writeback-cleared",
        "another call of the file was under way",
    );
    // Not when it has ended, nor for a call of another file.
    s.end(&other, -28);
    s.report(1, 1);
    s.silent();
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
    let mut s = failed_call();
    let mut elsewhere = call(2, 0, 64 * B);
    elsewhere.ino += 1;
    s.begin(&elsewhere);
    s.report(1, 1);
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
    // What was seen before the next call began is the proof.
    let mut s = failed_call();
    let first = [s.report(1, 1), s.report(1, 1)];
    s.begin(&other);
    s.report(1, 2);
    s.report(1, 2);
    let f = s.broken("writeback-cleared", &[]);
    assert!(first.iter().all(|seq| f.events.contains(seq)), "{f:?}");
    assert_eq!(f.details["pages_in_writeback"], 1);
}

#[test]
fn a_probe_that_hangs_for_nothing_is_found() {
    let mut s = failed_call();
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    s.silent();
    s.not_checked("progress", "the probe's state was not reported twice");
    s.probe_state(7, 2500, 'D', 3);
    let f = s.broken("progress", &[]);
    assert!(
        f.happened
            .contains("probe 7 (fsync) of call 1 waited 2500 ms"),
        "{f:?}"
    );
    assert!(
        f.happened
            .contains("its limit is 2000 ms: state D in folio_wait_bit_common"),
        "{f:?}"
    );
    assert_eq!(f.call.as_ref().unwrap().call, 1);
    // It went on by itself: still beyond its limit for nothing.
    s.probe_end(7);
    s.broken("progress", &[]);
}

#[test]
fn nearly_hanging_is_not_hanging() {
    let states = |list: &[(u64, char, u64)]| {
        let mut s = failed_call();
        s.probe(7, 1);
        for (ms, state, switches) in list {
            s.probe_state(7, *ms, *state, *switches);
        }
        s
    };
    // It moved; it slept; it was not late yet.
    states(&[(2001, 'D', 3), (2500, 'D', 4)]).silent();
    states(&[(2001, 'D', 3), (2500, 'S', 3)]).silent();
    states(&[(2001, 'D', 3), (2300, 'R', 3), (2500, 'D', 3)]).silent();
    states(&[(500, 'D', 3), (1999, 'D', 3)])
        .silent()
        .not_checked("progress", "the probe was reported only before its limit");
    let mut s = states(&[]);
    s.not_checked("progress", "the probe did not end and its state");
    s.probe_end(7);
    s.held("progress", 1);
}

#[test]
fn a_probe_may_wait_for_the_device() {
    let mut s = failed_call();
    s.probe(7, 1);
    let w = s.stray(LOG, 512);
    s.hold(w);
    s.probe_state(7, 2001, 'D', 3);
    s.probe_state(7, 2500, 'D', 3);
    s.silent();
    s.not_checked("progress", "the backend had requests held");
    // Requests that came and went between the two states.
    let mut s = failed_call();
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    let w = s.stray(LOG, 512);
    s.ok(w);
    s.probe_state(7, 2500, 'D', 3);
    s.silent();
    // It went on after the device did something: a slow guest.
    let mut s = failed_call();
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    s.probe_state(7, 2500, 'D', 3);
    let w = s.stray(LOG, 512);
    s.ok(w);
    s.probe_end(7);
    s.silent();
    s.not_checked("progress", "the probe went on beyond its limit");
}

#[test]
fn retries_for_ever_are_the_file_systems_right() {
    let mut s = failed_call();
    let w = s.submit(Op::Write, 0, DISK + (300 << 20), B);
    s.fail(w);
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    s.probe_state(7, 2500, 'D', 3);
    s.silent();
    s.not_checked("progress", "a request of no call failed");
}

#[test]
fn a_call_that_hangs_itself_explains_its_own_failure() {
    let mut s = Stream::booted();
    s.begin(&call(1, 0, 64 * B));
    let a = s.write(1, DISK, B);
    s.fail(a);
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    s.probe_state(7, 2500, 'D', 3);
    s.broken("progress", &[]);
    s.not_checked("cover", "the call did not end");
}

#[test]
fn a_guest_killed_by_its_limit_is_still_judged() {
    let mut s = failed_call();
    s.report(1, 63);
    s.probe(7, 1);
    s.probe_state(7, 2001, 'D', 3);
    s.probe_state(7, 2500, 'D', 3);
    s.report(1, 63);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.device(DeviceKind::Disconnected, 0, 0, "");
    s.device(DeviceKind::End, 0, 0, "");
    s.broken("progress", &["writeback-cleared"]);
    s.broken("writeback-cleared", &["progress"]);
}
