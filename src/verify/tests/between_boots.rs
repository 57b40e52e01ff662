// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What was begun in one boot ends with it, and is told once.

use wtblk_shared::mark::{FileMark, Mark};

use super::super::verdict::Verdict;
use super::builder::*;
use super::written_once;
use crate::trace::event::{DeviceKind, WENT};

/// The next boot, and its test.
fn reboot(s: &mut Stream) {
    s.power_on();
    s.env(&[("files", "marked")]);
    s.mark(Mark::TestBegin { name: TEST.into() });
}

#[test]
fn a_file_system_that_was_frozen_is_not_after_a_boot() {
    let mut s = Stream::files_marked();
    s.file(FileMark::Freezing { dev: 8 });
    s.file(FileMark::Frozen { dev: 8 });
    reboot(&mut s);
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.silent();
    assert_eq!(s.of("serialised").held, 0, "nothing met it");
}

#[test]
fn a_probe_that_hung_is_told_once() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.probe(7, 1);
    s.probe_state(7, 3001, 'D', 3);
    s.probe_state(7, 4500, 'D', 3);
    s.broken("progress", &[]);
    reboot(&mut s);
    s.broken("progress", &[]);
    // Its number is another probe's now.
    s.began_ns.clear();
    s.probe(7, 1);
    s.probe_end(7);
    s.broken("progress", &[]);
    assert_eq!(s.of("progress").held, 1);
}

/// A call that hides its failure, and an fsync of another open file that hides it, too.
fn swallowed() -> Stream {
    let mut s = Stream::files_marked();
    for open in [101, 102] {
        s.file(FileMark::Opening { open });
        let (dev, ino) = (8, 1);
        s.file(FileMark::Open { open, dev, ino });
    }
    // The probes of the boot have open files, too.
    let mut c = call(1, 0, B);
    c.open = 101;
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.fail(w);
    s.end(&c, B as i64);
    s.file(FileMark::SyncBegin {
        sync: 1,
        open: 102,
        kind: "fsync".into(),
    });
    s.file(FileMark::SyncEnd { sync: 1, result: 0 });
    s
}

#[test]
fn an_error_that_nobody_was_told_is_told_once() {
    let others = ["error-report", "errseq"];
    swallowed().broken("ledger", &others);
    let mut s = swallowed();
    reboot(&mut s);
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.broken("ledger", &others);
    // Who was told may be among what is missing.
    let mut s = swallowed();
    s.gap(2);
    let ledger = s.of("ledger");
    assert!(
        !matches!(ledger.verdict, Verdict::Broken { .. }),
        "{ledger:?}"
    );
}

#[test]
fn what_fails_in_the_same_words_is_one_group_and_more_than_can_be_kept_is_counted() {
    let mut s = Stream::booted();
    let eio = |s: &mut Stream, number: u64| {
        let mut c = call(number, 0, B);
        // Of files of their own.
        c.ino += number;
        s.begin(&c);
        s.end(&c, -5);
    };
    eio(&mut s, 1);
    let mut other = call(2, 0, B);
    other.ino = 90;
    s.begin(&other);
    let w = s.write(2, DISK, B);
    s.fail(w);
    s.end(&other, -1);
    eio(&mut s, 3);
    let verdicts = s.verdicts();
    let test = verdicts.tests.iter().find(|t| t.test == TEST).unwrap();
    let groups = super::super::group::groups(test);
    let calls: Vec<_> = groups.iter().map(|g| g.calls.clone()).collect();
    assert_eq!(calls, [vec![1, 3], vec![2]], "{groups:#?}");
    assert_eq!(groups[0].promises, [("error-report".to_owned(), 2)]);
    for n in 4..100 {
        eio(&mut s, n);
    }
    let Verdict::Broken { findings, more } = s.of("error-report").verdict else {
        panic!("it is broken");
    };
    assert!(more > 1);
    assert_eq!(findings.len() as u64 + more, 99);
}

#[test]
fn what_was_well_before_error_seen_is_no_reason_for_it() {
    for late_failure in [false, true] {
        let mut s = Stream::booted();
        let c = call(1, 0, 8 * B);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        s.ok(w);
        s.mark(Mark::ErrorSeen { call: 1 });
        let late = s.write(1, DISK + 2 * B, B);
        s.write(1, DISK + 4 * B, B);
        s.write(1, DISK + 6 * B, B);
        if late_failure {
            s.fail(late);
        }
        s.all_ok();
        s.end(&c, -5);
        s.not_checked("stop-after-error", "no data request of the call had failed");
    }
}

#[test]
fn what_comes_after_the_front_end_is_no_guests_until_it_says_so() {
    let gone = |text: &str| {
        let mut s = written_once::called();
        s.device(DeviceKind::Disconnected, 1, 0, text);
        // Somebody lays a new file system onto the disk, and marks nothing.
        s.device(DeviceKind::Connected, 2, 0, "");
        s.epoch += 1;
        s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
        written_once::stray(&mut s, 8 * B, B);
        s
    };
    gone(WENT).silent();
    gone("disconnected: Connection reset by peer").silent();
    // A rule closed the connection: the same guest comes again.
    gone("a rule").broken("written-once", &[]);
}
