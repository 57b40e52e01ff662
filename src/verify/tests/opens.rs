// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Open files and what they must be told of (`errseq`): who was opened when, what closing forgets, what is
//! not known of a call.

use wtblk_shared::mark::{CallBegin, FileMark};

use super::builder::*;
use super::lost::{FIRST, by, errseq, fails, fsync, open, unclear};

fn close(s: &mut Stream, open: u64) {
    let open = FIRST + open;
    s.file(FileMark::Close { open });
}

fn ask(s: &mut Stream, open: u64, kind: &str, result: i64) {
    let (sync, open) = (1_000_000 + s.next, FIRST + open);
    let kind = kind.to_owned();
    s.file(FileMark::SyncBegin { sync, open, kind });
    s.file(FileMark::SyncEnd { sync, result });
}

/// How many findings there are when this open file is told nothing.
fn told_nothing(mut s: Stream, open: u64, kind: &str) -> usize {
    ask(&mut s, open, kind, 0);
    errseq(&s).0
}

#[test]
fn a_mounted_file_system_keeps_its_error_whoever_closes() {
    // By an open file that no mark tells of: only the mount says since when errors are kept.
    let mut s = Stream::files_marked();
    fails(&mut s, &by(1, 50, 1));
    open(&mut s, 3, 1);
    assert_eq!(told_nothing(s.clone(), 3, "syncfs"), 1);
    // The file itself may have been forgotten meanwhile.
    assert_eq!(told_nothing(s, 3, "fsync"), 0);
    // All were closed: the inode may be gone, the file system is not.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    fails(&mut s, &by(1, 1, 1));
    close(&mut s, 1);
    open(&mut s, 3, 1);
    assert_eq!(told_nothing(s.clone(), 3, "syncfs"), 1);
    assert_eq!(told_nothing(s, 3, "fsync"), 0);
}

#[test]
fn while_one_is_open_the_file_keeps_its_error() {
    for closed in [2, 1] {
        let mut s = Stream::files_marked();
        open(&mut s, 1, 1);
        open(&mut s, 2, 1);
        close(&mut s, closed);
        fails(&mut s, &by(1, 3 - closed, 1));
        open(&mut s, 3, 1);
        assert_eq!(told_nothing(s, 3, "fsync"), 1);
    }
    // Closed and opened again before it failed.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    close(&mut s, 1);
    open(&mut s, 2, 1);
    fails(&mut s, &by(1, 2, 1));
    open(&mut s, 3, 1);
    assert_eq!(told_nothing(s, 3, "fsync"), 1);
}

#[test]
fn who_may_not_be_open_yet_need_not_be_told() {
    // It is being opened, and makes a call: since when it is open is not told.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    s.file(FileMark::Opening { open: FIRST + 50 });
    s.run(&by(1, 50, 1), &[(DISK, B)]);
    fails(&mut s, &by(2, 1, 1));
    assert_eq!(told_nothing(s, 50, "fsync"), 0);
    // It is open, and nobody said that it would be opened.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    s.file(FileMark::Open {
        open: FIRST + 2,
        dev: 8,
        ino: 1,
    });
    fails(&mut s, &by(1, 1, 1));
    assert_eq!(told_nothing(s, 2, "fsync"), 1);
}

#[test]
fn of_a_call_that_is_not_judged_nothing_is_concluded() {
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    open(&mut s, 3, 2);
    let plain = CallBegin {
        flags: vec![],
        ..by(1, 1, 1)
    };
    fails(&mut s, &plain);
    fsync(&mut s, 3, 0);
    assert_eq!(errseq(&s), (0, vec![]));
    let mut syncfs = s.clone();
    fsync(&mut s, 2, 0);
    unclear(&s, "a call of which not all is known failed on the file");
    ask(&mut syncfs, 2, "syncfs", 0);
    unclear(
        &syncfs,
        "a call of which not all is known failed on the file",
    );
    // One whose last requests nobody will hear of.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    let late = by(1, 1, 1);
    s.begin(&late);
    s.write(late.tag.unwrap(), DISK, B);
    s.end(&late, B as i64);
    s.begin(&late);
    s.end(&late, -14);
    fsync(&mut s, 2, 0);
    unclear(&s, "how a call on the file came out is not known");
}

/// Findings of `errseq` and `ledger` where one open file may stand for all, or for itself alone.
fn either(s: &Stream) -> (usize, usize) {
    let verdicts = s.verdicts();
    let of = |p: &str| verdicts.findings().filter(|f| f.promise == p).count();
    (of("errseq"), of("ledger"))
}

fn failed() -> Stream {
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    fails(&mut s, &by(1, 1, 1));
    s
}

#[test]
fn who_is_told_nothing_and_need_not_be_is_no_evidence() {
    // The caller's own fsync, and that of somebody who opened the file later.
    for late in [false, true] {
        let mut s = failed();
        open(&mut s, 3, 1);
        fsync(&mut s, if late { 3 } else { 1 }, 0);
        fsync(&mut s, 2, -5);
        assert_eq!(either(&s), (0, 0));
    }
    // A third one's is: half a policy is none.
    let mut s = Stream::files_marked();
    for n in 1..=3 {
        open(&mut s, n, 1);
    }
    fails(&mut s, &by(1, 1, 1));
    fsync(&mut s, 3, 0);
    fsync(&mut s, 2, -5);
    assert_eq!(either(&s), (1, 0));
}

#[test]
fn an_error_after_one_that_was_told_is_told_again() {
    let mut s = failed();
    fsync(&mut s, 1, -5);
    fails(&mut s, &by(2, 2, 1));
    assert_eq!(told_nothing(s.clone(), 1, "fsync"), 1);
    fsync(&mut s, 1, -5);
    assert_eq!(errseq(&s), (0, vec![]));
    // Nothing failed, and what is reported is what another status of a device gives.
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    fsync(&mut s, 1, -95);
    assert_eq!(errseq(&s), (1, vec![]));
}

#[test]
fn until_the_call_is_over_its_error_need_not_be_recorded() {
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    let c = by(1, 1, 1);
    s.begin(&c);
    let w = s.write(c.tag.unwrap(), DISK, B);
    s.fail(w);
    let (sync, open, kind) = (7, FIRST + 2, "fsync".to_owned());
    s.file(FileMark::SyncBegin { sync, open, kind });
    s.end(&c, -5);
    s.file(FileMark::SyncEnd { sync, result: 0 });
    assert_eq!(errseq(&s), (0, vec![]));
    assert_eq!(told_nothing(s, 2, "fsync"), 1);
}

/// A DSYNC call whose own writes failed: whether it asked for what others left is not known.
#[test]
fn a_dsync_call_that_failed_itself_denies_nothing() {
    let mut s = Stream::files_marked();
    open(&mut s, 1, 1);
    open(&mut s, 2, 1);
    // The error of this one surfaced to nobody yet.
    let c = by(1, 1, 1);
    s.begin(&c);
    let w = s.write(c.tag.unwrap(), DISK, B);
    s.fail(w);
    s.end(&c, B as i64);
    let d = CallBegin {
        len: 2 * B,
        flags: vec!["writethrough".into(), "dsync".into()],
        ..by(2, 2, 1)
    };
    s.begin(&d);
    let w = s.write(d.tag.unwrap(), DISK, 2 * B);
    s.fail(w);
    s.end(&d, B as i64);
    assert_eq!(either(&s), (0, 0));
    fsync(&mut s, 2, 0);
    assert_eq!(either(&s).1, 1);
}
