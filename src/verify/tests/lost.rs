// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! More of something than is followed, and numbers used again: then nothing is concluded, and only then.

use wtblk_shared::mark::{CallBegin, CallEnd, Change, FileMark, Mark};

use super::super::contract::{Contract, FsyncRepeats};
use super::builder::*;

fn change(s: &mut Stream, change: u64, ino: u64, off: u64, len: u64, kind: &str) {
    let kind = kind.into();
    let dev = 8;
    s.file(FileMark::ChangeBegin(Change {
        change,
        dev,
        ino,
        off,
        len,
        kind,
    }));
}

fn changed(s: &mut Stream, change: u64) {
    let result = None;
    s.file(FileMark::ChangeEnd { change, result });
}

/// A call of a hundred bytes at the begin of an empty file, after which the file is so long.
fn sized(s: &mut Stream, number: u64, ino: u64, isize: u64) {
    let c = CallBegin {
        ino,
        isize: 0,
        ..call(number, 0, 100)
    };
    s.begin(&c);
    let w = s.write(c.tag.unwrap(), DISK, B);
    s.ok(w);
    s.mark(Mark::End(CallEnd {
        call: number,
        result: 100,
        isize,
        extents: c.extents.clone(),
    }));
}

#[test]
fn a_change_whose_number_is_used_again_has_done_what_it_may() {
    // Of this file, or of another one.
    for (ino, isize, broken) in [(1, 5000, false), (1, 5001, true), (2, 5000, true)] {
        let mut s = Stream::files_marked();
        change(&mut s, 1, ino, 4000, 1000, "extend");
        change(&mut s, 1, 3, 0, 1, "write");
        sized(&mut s, 1, 1, isize);
        if broken {
            s.broken("size", &[]);
        } else {
            s.held("size", 1).silent();
        }
    }
}

#[test]
fn a_change_that_is_not_followed_may_make_the_file_as_long_as_it_likes() {
    for before in [1023, 1024] {
        let mut s = Stream::files_marked();
        for n in 0..before {
            change(&mut s, n, 2, 0, 1, "write");
        }
        change(&mut s, 5000, 1, 4000, 1000, "extend");
        changed(&mut s, 5000);
        sized(&mut s, 1, 1, 1 << 40);
        if before == 1024 {
            s.held("size", 1).silent();
        } else {
            s.broken("size", &[]);
        }
    }
}

#[test]
fn a_file_beyond_those_that_are_followed_is_not_judged_for_its_size() {
    let full = |files: u64| {
        let mut s = Stream::files_marked();
        for ino in 0..files {
            change(&mut s, 1, 100 + ino, 0, 1, "write");
        }
        changed(&mut s, 1);
        sized(&mut s, 1, 1, 5000);
        s
    };
    full(4095).broken("size", &[]);
    full(4096)
        .not_checked("size", "the call's file was not followed all the time")
        .silent();
}

#[test]
fn a_size_told_by_stat_is_the_size() {
    let stat = |s: &mut Stream, isize| {
        let (dev, ino, at) = (8, 1, "t".to_owned());
        s.file(FileMark::Stat {
            dev,
            ino,
            isize,
            at,
        });
    };
    // Before the first judged call: it may be what it is. The file must be known.
    let mut s = Stream::files_marked();
    change(&mut s, 1, 1, 0, 0, "punch");
    changed(&mut s, 1);
    stat(&mut s, 5000);
    sized(&mut s, 1, 1, 5000);
    s.held("size", 1).silent();
    // What is wrong is told once.
    let mut s = Stream::files_marked();
    sized(&mut s, 1, 1, 100);
    stat(&mut s, 5000);
    stat(&mut s, 5000);
    s.broken("size", &[]);
    assert_eq!(s.of("size").held, 2);
    stat(&mut s, 5001);
    let found = s
        .verdicts()
        .findings()
        .filter(|f| f.promise == "size")
        .count();
    assert_eq!(found, 2);
    // The guest says no more that it marks all; a call is followed no more.
    let mut s = Stream::files_marked();
    sized(&mut s, 1, 1, 100);
    s.env(&[("files", "some")]);
    stat(&mut s, 5000);
    s.silent();
    assert!(
        s.of("size")
            .not_checked
            .keys()
            .any(|r| r.starts_with("the guest does not say"))
    );
    let mut s = Stream::files_marked();
    sized(&mut s, 1, 1, 100);
    let c = call(2, 0, 100);
    s.begin(&c);
    s.begin(&c);
    stat(&mut s, 5000);
    s.silent();
    assert!(
        s.of("size")
            .not_checked
            .contains_key("a call was followed no more")
    );
}

/// The probes of the boot have open files, too.
pub(super) const FIRST: u64 = 100;

pub(super) fn open(s: &mut Stream, open: u64, ino: u64) {
    let (open, dev) = (FIRST + open, 8);
    s.file(FileMark::Opening { open });
    s.file(FileMark::Open { open, dev, ino });
}

pub(super) fn fsync(s: &mut Stream, open: u64, result: i64) {
    let (sync, open) = (1_000_000 + s.next, FIRST + open);
    let kind = "fsync".to_owned();
    s.file(FileMark::SyncBegin { sync, open, kind });
    s.file(FileMark::SyncEnd { sync, result });
}

pub(super) fn by(number: u64, open: u64, ino: u64) -> CallBegin {
    CallBegin {
        open: FIRST + open,
        ino,
        tag: Some(1 + (number % 1000) as u16),
        ..call(number, 0, B)
    }
}

pub(super) fn fails(s: &mut Stream, c: &CallBegin) {
    s.begin(c);
    let w = s.write(c.tag.unwrap(), DISK, B);
    s.fail(w);
    s.end(c, -5);
}

/// Findings of `errseq` where an error is recorded once, and why it was not checked.
pub(super) fn errseq(s: &Stream) -> (usize, Vec<String>) {
    let verdicts = s.verdicts_by(Contract {
        fsync_repeats: FsyncRepeats::Once,
        ..Contract::default()
    });
    let found = verdicts
        .findings()
        .filter(|f| f.promise == "errseq")
        .count();
    let v = verdicts.get(TEST, "errseq").unwrap();
    let reasons = v.not_checked.keys().cloned();
    // Calls that still wait are told apart from checks.
    let of_calls = [
        "requests of the call were not completed",
        "its number was used again",
    ];
    let of_checks = reasons.filter(|r| !of_calls.contains(&r.as_str()));
    (found, of_checks.collect())
}

#[track_caller]
pub(super) fn unclear(s: &Stream, why: &str) {
    let (found, reasons) = errseq(s);
    assert_eq!((found, reasons), (0, vec![why.to_owned()]));
}

#[test]
fn more_failed_calls_than_are_followed_make_a_file_unclear() {
    for calls in [64, 65] {
        let mut s = Stream::files_marked();
        open(&mut s, 1, 1);
        open(&mut s, 2, 1);
        open(&mut s, 3, 2);
        for n in 1..=calls {
            fails(&mut s, &by(n, 1, 1));
        }
        // Of another file all is known.
        fsync(&mut s, 3, 0);
        assert_eq!(errseq(&s), (0, vec![]));
        fsync(&mut s, 2, 0);
        if calls == 64 {
            assert_eq!(errseq(&s), (1, vec![]));
        } else {
            unclear(&s, "too many failed calls on the file");
        }
    }
}

#[test]
fn a_failed_call_that_is_forgotten_makes_its_file_unclear() {
    for later in [1023, 1024] {
        let mut s = Stream::files_marked();
        for (n, ino) in [(1, 1), (2, 1), (3, 2), (4, 3)] {
            open(&mut s, n, ino);
        }
        fails(&mut s, &by(1, 1, 1));
        for n in 0..later {
            s.run(&by(2 + n, 3, 2), &[(DISK, B)]);
        }
        // Who did not fail long ago is not asked for.
        fsync(&mut s, 4, 0);
        assert_eq!(errseq(&s), (0, vec![]));
        fsync(&mut s, 2, 0);
        if later == 1023 {
            assert_eq!(errseq(&s), (1, vec![]));
        } else {
            unclear(&s, "too many calls ago");
        }
    }
}

#[test]
fn while_requests_of_an_ended_call_are_under_way_nobody_need_know() {
    let begun = || {
        let mut s = Stream::files_marked();
        for (n, ino) in [(1, 1), (2, 1), (3, 2)] {
            open(&mut s, n, ino);
        }
        fails(&mut s, &by(1, 1, 1));
        let mut late = Vec::new();
        for n in [2, 3] {
            let c = by(n, 1, 1);
            s.begin(&c);
            late.push(s.write(c.tag.unwrap(), DISK, B));
            s.end(&c, B as i64);
        }
        (s, late)
    };
    let why = "requests of a call that has ended are under way";
    let (mut s, _) = begun();
    fsync(&mut s, 2, 0);
    unclear(&s, why);
    // One of two is over; both; of another file.
    let (mut s, late) = begun();
    s.ok(late[0]);
    fsync(&mut s, 2, 0);
    unclear(&s, why);
    let (mut s, late) = begun();
    s.ok(late[0]);
    s.ok(late[1]);
    fsync(&mut s, 2, 0);
    assert_eq!(errseq(&s), (1, vec![]));
    let (mut s, _) = begun();
    fsync(&mut s, 3, 0);
    assert_eq!(errseq(&s), (0, vec![]));
}

#[test]
fn checks_beside_each_other_are_unclear_until_all_are_over() {
    let begin = |s: &mut Stream, sync: u64| {
        let (open, kind) = (FIRST + 2, "fsync".to_owned());
        s.file(FileMark::SyncBegin { sync, open, kind });
    };
    let end = |s: &mut Stream, sync: u64, result: i64| {
        s.file(FileMark::SyncEnd { sync, result });
    };
    let why = "two checks of the open file ran beside each other";
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    for n in 1..=3 {
        begin(&mut s, n);
    }
    for n in 1..=3 {
        end(&mut s, n, 0);
    }
    unclear(&s, why);
    assert_eq!(s.of("errseq").not_checked[why], 3);
    // They are over: what fails now is told to the next one, or should be.
    fails(&mut s, &by(1, 1, 1));
    begin(&mut s, 4);
    end(&mut s, 4, 0);
    assert_eq!(errseq(&s), (1, vec![why.to_owned()]));
    // One of three is still under way.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    for n in 1..=3 {
        begin(&mut s, n);
    }
    end(&mut s, 1, 0);
    end(&mut s, 2, 0);
    fails(&mut s, &by(1, 1, 1));
    begin(&mut s, 4);
    end(&mut s, 4, 0);
    unclear(&s, why);
}

#[test]
fn an_open_file_that_only_its_calls_tell_of() {
    // It was open at its first call at the latest: what failed later it is told.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    s.run(&by(1, 50, 1), &[(DISK, B)]);
    fails(&mut s, &by(2, 1, 1));
    fsync(&mut s, 50, 0);
    assert_eq!(errseq(&s), (1, vec![]));
    // What failed before it may be told of, or not: when it was opened is not known.
    for result in [0, -5] {
        let mut s = Stream::files_marked();
        open(&mut s, 1, 1);
        fails(&mut s, &by(1, 1, 1));
        s.run(&by(2, 50, 1), &[(DISK, B)]);
        fsync(&mut s, 50, result);
        assert_eq!(errseq(&s), (0, vec![]));
        // Once it has asked, it has asked.
        fsync(&mut s, 50, -5);
        assert_eq!(errseq(&s), (1, vec![]));
    }
    // An fsync of something that was opened nowhere says nothing; nor before it is known to be open.
    let mut s = Stream::files_marked();
    fsync(&mut s, 50, -5);
    s.file(FileMark::Opening { open: FIRST + 51 });
    fsync(&mut s, 51, -5);
    assert_eq!(errseq(&s), (0, vec![]));
}

#[test]
fn an_open_file_whose_number_comes_again_ends_all_judging_of_errors() {
    let why = "more calls, files or checks than are followed";
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    open(&mut s, 2, 1);
    fails(&mut s, &by(1, 1, 1));
    fsync(&mut s, 2, 0);
    unclear(&s, why);
    // A question, too.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    for _ in 0..2 {
        let (sync, open, kind) = (7, FIRST + 2, "fsync".to_owned());
        s.file(FileMark::SyncBegin { sync, open, kind });
    }
    fails(&mut s, &by(1, 1, 1));
    fsync(&mut s, 1, 0);
    unclear(&s, why);
}
