// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `errseq` and `ledger`.

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, FileMark};

use super::super::contract::{Contract, FsyncRepeats};
use super::builder::*;
use super::world::Dice;
use crate::trace::event::Op;

/// The probes of the boot have open files, too.
const FIRST: u64 = 100;

fn open(s: &mut Stream, open: u64) {
    let open = FIRST + open;
    s.file(FileMark::Opening { open });
    let (dev, ino) = (8, 1);
    s.file(FileMark::Open { open, dev, ino });
}

fn close(s: &mut Stream, open: u64) {
    let open = FIRST + open;
    s.file(FileMark::Close { open });
}

fn begin_sync(s: &mut Stream, sync: u64, open: u64, kind: &str) {
    let (open, kind) = (FIRST + open, kind.to_owned());
    s.file(FileMark::SyncBegin { sync, open, kind });
}

fn end_sync(s: &mut Stream, sync: u64, result: i64) {
    s.file(FileMark::SyncEnd { sync, result });
}

fn ask(s: &mut Stream, open: u64, kind: &str, result: i64) {
    let sync = 1_000_000 + s.next;
    begin_sync(s, sync, open, kind);
    end_sync(s, sync, result);
}

fn fsync(s: &mut Stream, open: u64, result: i64) {
    ask(s, open, "fsync", result);
}

/// Another file of the same file system, by open file 90.
fn open_other(s: &mut Stream) {
    let open = FIRST + 90;
    s.file(FileMark::Opening { open });
    let (dev, ino) = (8, 2);
    s.file(FileMark::Open { open, dev, ino });
}

fn of_other(number: u64) -> CallBegin {
    CallBegin {
        ino: 2,
        ..by(number, 90)
    }
}

fn by(number: u64, open: u64) -> CallBegin {
    CallBegin {
        open: FIRST + open,
        ..call(number, 0, B)
    }
}

fn run(s: &mut Stream, c: &CallBegin, fails: bool, result: i64) {
    s.begin(c);
    let w = s.write(c.tag.unwrap(), DISK, B);
    if fails {
        s.fail(w);
    } else {
        s.ok(w);
    }
    s.end(c, result);
}

/// Open files 1 and 2; a call of the first has failed and said so.
fn failed() -> Stream {
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    open(&mut s, 2);
    run(&mut s, &by(1, 1), true, -5);
    s
}

/// Findings of (errseq, ledger) under this contract, and no others.
#[track_caller]
fn found(s: &Stream, repeats: FsyncRepeats, errseq: usize, ledger: usize) {
    let contract = Contract {
        fsync_repeats: repeats,
        ..Contract::default()
    };
    let verdicts = s.verdicts_by(contract);
    let of = |p: &str| verdicts.findings().filter(|f| f.promise == p).count();
    assert_eq!(
        (of("errseq"), of("ledger")),
        (errseq, ledger),
        "{verdicts:#?}"
    );
}

use FsyncRepeats::{Either, Never, Once};

#[test]
fn once_for_each_open_file() {
    let mut s = failed();
    for (open, result) in [(1, -5), (2, -5), (1, 0), (2, 0)] {
        fsync(&mut s, open, result);
    }
    found(&s, Once, 0, 0);
    found(&s, Either, 0, 0);
    found(&s, Never, 2, 0);
    s.held("errseq", 4).held("ledger", 1).silent();
    // Once more to one of them.
    fsync(&mut s, 2, -5);
    let f = s.broken("errseq", &["ledger"]);
    assert!(f.happened.contains("told of all errors before"), "{f:?}");
    found(&s, Once, 1, 1);
}

#[test]
fn nobody_is_a_policy_and_half_is_none() {
    let mut s = failed();
    fsync(&mut s, 1, 0);
    fsync(&mut s, 2, 0);
    found(&s, Never, 0, 0);
    found(&s, Either, 0, 0);
    found(&s, Once, 2, 0);
    // Another open file is told, the mapping has it; the caller's own may be let off.
    let mut s = failed();
    open(&mut s, 3);
    fsync(&mut s, 2, -5);
    fsync(&mut s, 1, 0);
    found(&s, Either, 0, 0);
    found(&s, Once, 1, 0);
    // Two that did not call: both or none.
    for (first, second) in [(-5, 0), (0, -5)] {
        let mut s = Stream::files_marked();
        for n in 1..=3 {
            open(&mut s, n);
        }
        run(&mut s, &by(1, 1), true, -5);
        fsync(&mut s, 2, first);
        fsync(&mut s, 3, second);
        found(&s, Either, 1, 0);
    }
}

#[test]
fn errors_between_two_fsyncs_count_as_one() {
    let mut s = failed();
    run(&mut s, &by(2, 1), true, -5);
    fsync(&mut s, 1, -5);
    fsync(&mut s, 1, 0);
    run(&mut s, &by(3, 2), true, -5);
    fsync(&mut s, 1, -5);
    fsync(&mut s, 2, -5);
    fsync(&mut s, 2, 0);
    found(&s, Once, 0, 0);
    found(&s, Either, 0, 0);
}

#[test]
fn an_error_from_nowhere_is_found() {
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    run(&mut s, &by(1, 1), false, B as i64);
    fsync(&mut s, 1, -5);
    s.broken("errseq", &[]);
    s.not_checked("ledger", "nothing to judge");
    // Whatever failed in this boot and is nobody's may be the cause.
    for op in [Op::Write, Op::Flush, Op::Read] {
        let mut s = Stream::files_marked();
        open(&mut s, 1);
        let w = s.stray(LOG, 512);
        s.ok(w);
        let w = s.submit(op, 0, DISK, B);
        s.fail(w);
        run(&mut s, &by(1, 1), false, B as i64);
        fsync(&mut s, 1, -5);
        s.silent().not_checked("errseq", "it reported an error");
    }
    // Not of the device.
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    fsync(&mut s, 1, -28);
    s.silent().not_checked("errseq", "an errno that no device");
    // A failed call on another file is no cause.
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    let other = CallBegin {
        ino: 2,
        extents: Some(vec![ext(0, DISK, B)]),
        ..by(1, 7)
    };
    run(&mut s, &other, true, -5);
    fsync(&mut s, 1, -5);
    s.broken("errseq", &[]);
}

#[test]
fn who_opens_later() {
    // Nobody has asked yet: it is told, too.
    let mut s = failed();
    open(&mut s, 3);
    let mut silent = s.clone();
    fsync(&mut s, 3, -5);
    fsync(&mut s, 3, 0);
    found(&s, Once, 0, 0);
    fsync(&mut silent, 3, 0);
    found(&silent, Once, 1, 0);
    // Somebody has: it is not told.
    let mut s = failed();
    fsync(&mut s, 2, -5);
    open(&mut s, 3);
    let mut told = s.clone();
    fsync(&mut s, 3, 0);
    fsync(&mut s, 1, -5);
    found(&s, Once, 0, 0);
    fsync(&mut told, 3, -5);
    found(&told, Once, 1, 1);
    // All were closed meanwhile: the inode may have been evicted, or not.
    for result in [0, -5] {
        let mut s = failed();
        close(&mut s, 1);
        close(&mut s, 2);
        open(&mut s, 3);
        fsync(&mut s, 3, result);
        found(&s, Once, 0, 0);
    }
}

#[test]
fn syncfs_asks_the_file_system() {
    let of_two = || {
        let mut s = failed();
        open_other(&mut s);
        s
    };
    // It tells each open file of the file system once, whichever file failed, and fsync apart from it.
    let mut s = of_two();
    for (open, result) in [(1, -5), (2, -5), (1, 0), (2, 0)] {
        ask(&mut s, open, "syncfs", result);
    }
    fsync(&mut s, 1, -5);
    fsync(&mut s, 90, 0);
    found(&s, Once, 0, 0);
    s.held("errseq", 6).silent();
    // Once more; an error of another file is one of this file system.
    ask(&mut s, 2, "syncfs", -5);
    found(&s, Once, 1, 1);
    let mut s = of_two();
    ask(&mut s, 1, "syncfs", -5);
    run(&mut s, &of_other(9), true, -5);
    fsync(&mut s, 2, -5);
    fsync(&mut s, 2, 0);
    ask(&mut s, 1, "syncfs", -5);
    found(&s, Once, 0, 0);
    ask(&mut s, 1, "syncfs", -5);
    found(&s, Once, 1, 1);
    // It says nothing, and should.
    let mut s = of_two();
    ask(&mut s, 2, "syncfs", 0);
    found(&s, Once, 1, 0);
    found(&s, Either, 0, 0);
    found(&s, Never, 0, 0);
    // By the policy, no business of it.
    let mut s = of_two();
    ask(&mut s, 2, "syncfs", -5);
    found(&s, Never, 1, 0);
    // A new mount knows nothing of the old one.
    let mut s = of_two();
    for open in [1, 2, 90] {
        close(&mut s, open);
    }
    s.mount();
    open(&mut s, 3);
    ask(&mut s, 3, "syncfs", 0);
    found(&s, Once, 0, 0);
    ask(&mut s, 3, "syncfs", -5);
    found(&s, Once, 1, 0);
    // An error that its call did not return: whoever asks the file system hears of it, or should.
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    open(&mut s, 2);
    run(&mut s, &by(1, 1), true, B as i64);
    let mut told = s.clone();
    ask(&mut s, 2, "syncfs", 0);
    let v = s.verdicts();
    assert!(v.findings().any(|f| f.promise == "ledger"), "{v:#?}");
    ask(&mut told, 2, "syncfs", -5);
    let v = told.verdicts();
    assert!(!v.findings().any(|f| f.promise == "ledger"), "{v:#?}");
}

#[test]
fn sync_file_range_asks_where_it_waits() {
    let mut s = failed();
    ask(&mut s, 2, "sync_file_range_wait", -5);
    fsync(&mut s, 2, 0);
    fsync(&mut s, 1, -5);
    found(&s, Once, 0, 0);
    ask(&mut s, 2, "sync_file_range_wait", -5);
    found(&s, Once, 1, 1);
    let mut s = failed();
    ask(&mut s, 2, "sync_file_range_wait", 0);
    found(&s, Once, 1, 0);
}

#[test]
fn an_error_that_surfaces_to_nobody() {
    let swallowed = || {
        let mut s = Stream::files_marked();
        open(&mut s, 1);
        open(&mut s, 2);
        run(&mut s, &by(1, 1), true, B as i64);
        s
    };
    let mut s = swallowed();
    s.not_checked("ledger", "the call did not return the error");
    fsync(&mut s, 2, 0);
    let f = s.broken("ledger", &["error-report"]);
    assert!(f.happened.contains("surfaced to nobody"), "{f:?}");
    // errseq leaves it to the ledger.
    found(&s, Once, 0, 1);
    // Another one was told in the end.
    fsync(&mut s, 1, -5);
    found(&s, Once, 0, 0);
    // Who opened the file after it knows nothing; who asked before neither.
    let mut s = swallowed();
    open(&mut s, 3);
    fsync(&mut s, 3, 0);
    found(&s, Once, 0, 0);
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    let c = by(1, 1);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    fsync(&mut s, 1, 0);
    s.fail(w);
    s.end(&c, B as i64);
    found(&s, Once, 0, 0);
    // A short count is a report, unless the contract says no.
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    let c = CallBegin {
        len: 2 * B,
        ..by(1, 1)
    };
    s.begin(&c);
    let w = s.write(1, DISK, 2 * B);
    s.fail(w);
    s.end(&c, B as i64);
    fsync(&mut s, 1, 0);
    found(&s, Either, 0, 0);
    let strict = s.verdicts_by(Contract::named("strict").unwrap());
    assert!(strict.findings().any(|f| f.promise == "ledger"));
}

#[test]
fn an_error_after_an_early_end() {
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    let c = by(1, 1);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.end(&c, B as i64);
    begin_sync(&mut s, 1, 1, "fsync");
    s.fail(w);
    end_sync(&mut s, 1, -5);
    let mut lost = s.clone();
    fsync(&mut s, 1, 0);
    found(&s, Once, 0, 0);
    s.held("ledger", 1);
    // It may have come just after the first fsync looked; but then the next one is told.
    lost.events.pop();
    end_sync(&mut lost, 1, 0);
    found(&lost, Once, 0, 0);
    fsync(&mut lost, 1, 0);
    found(&lost, Once, 0, 1);
}

/// The mapping has the error from the completion on, and whoever waits for its page is told of it before
/// the call has ended.
#[test]
fn an_error_may_be_told_before_its_call_is_over() {
    for kind in ["fsync", "syncfs"] {
        for (told, result, ledger) in [(true, -5, 0), (true, B as i64, 0), (false, B as i64, 1)] {
            let mut s = Stream::files_marked();
            open(&mut s, 1);
            open(&mut s, 2);
            let c = by(1, 1);
            s.begin(&c);
            let w = s.write(c.tag.unwrap(), DISK, B);
            begin_sync(&mut s, 7, 2, kind);
            if !told {
                end_sync(&mut s, 7, 0);
            }
            s.fail(w);
            if told {
                end_sync(&mut s, 7, -5);
            }
            s.end(&c, result);
            // Of a call that swallowed its error nobody but the early check has told.
            fsync(&mut s, 2, 0);
            found(&s, FsyncRepeats::Either, 0, ledger);
        }
    }
    // Where nothing of the call has failed it is none of its errors.
    let mut s = Stream::files_marked();
    open(&mut s, 1);
    s.begin(&by(1, 1));
    fsync(&mut s, 1, -5);
    s.end(&by(1, 1), 0);
    found(&s, FsyncRepeats::Either, 1, 0);
}

#[test]
fn a_dsync_call_asks_too() {
    let mut s = failed();
    let mut c = by(2, 2);
    c.flags.push("dsync".into());
    s.device(crate::trace::event::DeviceKind::CacheMode, 0, 0, "");
    run(&mut s, &c, false, -5);
    fsync(&mut s, 2, 0);
    fsync(&mut s, 1, -5);
    found(&s, Once, 0, 0);
    s.held("errseq", 3);
    // Its own failure is not what it asks for.
    let c = CallBegin {
        call: 3,
        tag: Some(3),
        ..c
    };
    run(&mut s, &c, true, -5);
    fsync(&mut s, 2, -5);
    found(&s, Once, 0, 0);
    // It asked, and was told nothing.
    let mut s = failed();
    let c = CallBegin {
        call: 2,
        tag: Some(2),
        ..c
    };
    run(&mut s, &c, false, B as i64);
    found(&s, Once, 1, 0);
}

#[test]
fn what_is_not_sure_is_not_judged() {
    // Two at a time on one open file: one of them got it.
    let mut s = failed();
    begin_sync(&mut s, 1, 2, "fsync");
    begin_sync(&mut s, 2, 2, "fsync");
    end_sync(&mut s, 1, 0);
    end_sync(&mut s, 2, -5);
    fsync(&mut s, 2, 0);
    found(&s, Once, 0, 0);
    // It failed while the fsync ran: then or next time.
    for (now, then) in [(-5, 0), (0, -5)] {
        let mut s = Stream::files_marked();
        open(&mut s, 1);
        open(&mut s, 2);
        let c = by(1, 1);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        begin_sync(&mut s, 1, 2, "fsync");
        s.fail(w);
        s.end(&c, -5);
        end_sync(&mut s, 1, now);
        fsync(&mut s, 2, then);
        fsync(&mut s, 2, 0);
        found(&s, Once, 0, 0);
    }
    // An fsync that is not marked may have used it up.
    let mut s = failed();
    s.env(&[("files", "some")]);
    fsync(&mut s, 2, 0);
    found(&s, Once, 0, 0);
    // Others that ask, or do not.
    for kind in ["sync_file_range", "something"] {
        let mut s = failed();
        begin_sync(&mut s, 1, 2, kind);
        end_sync(&mut s, 1, 0);
        found(&s, Once, 0, 0);
        fsync(&mut s, 2, -5);
        found(&s, Once, 0, 0);
    }
    // What was lost may have been the call that failed.
    let mut s = failed();
    s.gap(5);
    s.env(&[("files", "marked")]);
    fsync(&mut s, 1, -5);
    fsync(&mut s, 2, 0);
    found(&s, Once, 0, 0);
    // A question without a beginning, an end without a question, a close of nothing.
    let mut s = failed();
    end_sync(&mut s, 77, -5);
    begin_sync(&mut s, 1, 99, "fsync");
    end_sync(&mut s, 1, -5);
    close(&mut s, 99);
    found(&s, Once, 0, 0);
}

#[test]
fn many_of_everything_take_bounded_memory() {
    let mut s = Stream::files_marked();
    for n in 0..6000 {
        open(&mut s, n);
        begin_sync(&mut s, n, n, "fsync");
    }
    for n in 0..200 {
        run(&mut s, &by(n + 1, 1), true, -5);
    }
    fsync(&mut s, 1, 0);
    found(&s, Once, 0, 0);
}

/// lib/errseq.c, with its flag and its counter.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Errseq {
    counter: u32,
    error: bool,
    seen: bool,
}

impl Errseq {
    fn set(&mut self) {
        self.counter += u32::from(self.seen);
        (self.error, self.seen) = (true, false);
    }

    fn sample(&self) -> Errseq {
        if self.seen { *self } else { Errseq::default() }
    }

    fn check(&mut self, since: &mut Errseq) -> i64 {
        if *self == *since {
            return 0;
        }
        self.seen = true;
        *since = *self;
        if self.error { -5 } else { 0 }
    }
}

proptest! {
    /// Calls, opens, fsyncs and syncfs of a kernel with lib/errseq.c: silent. One answer of
    /// a file that was open all the time turned round: found.
    #[test]
    fn a_model_is_silent_and_its_lie_is_found(seed: u64, steps in 2u64..40, lie in 0u64..40, once: bool) {
        let mut dice = Dice(seed);
        let mut s = Stream::files_marked();
        let (mut mapping, mut sb) = (Errseq::default(), Errseq::default());
        open_other(&mut s);
        let mut opens = Vec::new();
        for n in 1..=2 {
            open(&mut s, n);
            opens.push((n, mapping.sample(), sb.sample()));
        }
        let mut lied = false;
        for n in 0..steps {
            let which = dice.below(opens.len() as u64) as usize;
            let number = opens[which].0;
            match dice.below(8) {
                0 => {
                    let new = opens.iter().map(|o| o.0).max().unwrap_or(0) + 1;
                    open(&mut s, new);
                    opens.push((new, mapping.sample(), sb.sample()));
                }
                1 if which >= 2 => {
                    close(&mut s, number);
                    opens.remove(which);
                }
                2 | 3 => {
                    let fails = dice.one_in(2);
                    run(&mut s, &by(n + 1, number), fails, if fails { -5 } else { B as i64 });
                    if fails && once {
                        mapping.set();
                        sb.set();
                    }
                }
                4 => {
                    // Another file of the same file system.
                    run(&mut s, &of_other(n + 1), true, -5);
                    if once {
                        sb.set();
                    }
                }
                _ => {
                    let kind = ["fsync", "sync_file_range_wait", "syncfs"][dice.below(3) as usize];
                    let mut answer = if kind == "syncfs" {
                        sb.check(&mut opens[which].2)
                    } else {
                        mapping.check(&mut opens[which].1)
                    };
                    if n == lie && which < 2 {
                        answer = if answer == 0 { -5 } else { 0 };
                        lied = true;
                    }
                    ask(&mut s, number, kind, answer);
                    if lied {
                        break;
                    }
                }
            }
        }
        let contract = |fsync_repeats| Contract { fsync_repeats, ..Contract::default() };
        let broken = |repeats| {
            let verdicts = s.verdicts_by(contract(repeats));
            verdicts.findings().filter(|f| f.promise == "errseq").count()
        };
        prop_assert_eq!(broken(if once { Once } else { Never }), usize::from(lied));
        if !lied {
            let verdicts = s.verdicts_by(contract(Either));
            prop_assert_eq!(verdicts.findings().next(), None);
        }
    }
}
