// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `size`.

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, CallEnd, Change, FileMark, Mark};

use super::super::contract::{Contract, IsizeAfterError};
use super::builder::*;
use super::world::Dice;

fn sized(number: u64, off: u64, len: u64, isize: u64) -> CallBegin {
    CallBegin {
        isize,
        ..call(number, off, len)
    }
}

fn end(s: &mut Stream, b: &CallBegin, result: i64, isize: u64) {
    s.mark(Mark::End(CallEnd {
        call: b.call,
        result,
        isize,
        extents: b.extents.clone(),
    }));
}

/// A call that sends its blocks; how it ends.
fn run(s: &mut Stream, b: &CallBegin, fails: bool, result: i64, isize: u64) {
    s.begin(b);
    let (from, to) = (b.off / B * B, (b.off + b.len).next_multiple_of(B));
    let w = s.write(b.tag.unwrap(), DISK + from, to - from);
    if fails {
        s.fail(w);
    } else {
        s.ok(w);
    }
    end(s, b, result, isize);
}

fn stat(s: &mut Stream, isize: u64) {
    let at = "opened-again".to_owned();
    s.file(FileMark::Stat {
        dev: 8,
        ino: 1,
        isize,
        at,
    });
}

fn change(s: &mut Stream, change: u64, off: u64, len: u64, kind: &str) {
    s.file(FileMark::ChangeBegin(Change {
        change,
        dev: 8,
        ino: 1,
        off,
        len,
        kind: kind.into(),
    }));
}

#[test]
fn the_size_is_that_of_the_bytes() {
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 1100);
    s.held("size", 1).silent();
    stat(&mut s, 1100);
    s.held("size", 2);
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 4096);
    let f = s.broken("size", &[]);
    assert!(f.happened.contains("2996 bytes beyond 1100"), "{f:?}");
    // One byte is enough.
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 1101);
    s.broken("size", &[]);
    // Inside the file the size stays.
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 4900, 50, 5000), false, 50, 5000);
    s.held("size", 1).silent();
}

#[test]
fn on_disk_too() {
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 1100);
    stat(&mut s, 4096);
    let f = s.broken("size", &[]);
    assert!(f.happened.contains("2996 bytes beyond the 1100"), "{f:?}");
    // A file without a call is nobody's business.
    let mut s = Stream::files_marked();
    stat(&mut s, 100);
    stat(&mut s, 4096);
    s.not_checked("size", "nothing to judge").silent();
}

#[test]
fn others_may_make_it_longer() {
    // A change before, beside, and one that is not over.
    for after in [false, true] {
        let mut s = Stream::files_marked();
        if !after {
            change(&mut s, 1, 4000, 1000, "extend");
        }
        let c = sized(1, 0, 100, 0);
        s.begin(&c);
        if after {
            change(&mut s, 1, 4000, 1000, "extend");
        }
        let w = s.write(1, DISK, B);
        s.ok(w);
        end(&mut s, &c, 100, 5000);
        s.held("size", 1).silent();
    }
    // Punching does not.
    let mut s = Stream::files_marked();
    change(&mut s, 1, 4000, 1000, "punch");
    run(&mut s, &sized(1, 0, 100, 0), false, 100, 5000);
    s.broken("size", &[]);
    // Another call on the file does, before it ends, even if it fails later.
    let mut s = Stream::files_marked();
    let (a, b) = (sized(1, 0, 100, 0), sized(2, 8192, 100, 0));
    s.begin(&a);
    s.begin(&b);
    let x = s.write(1, DISK, B);
    s.ok(x);
    end(&mut s, &a, 100, 8292);
    s.held("size", 1).silent();
    // On another file it does not.
    let mut s = Stream::files_marked();
    let b = CallBegin {
        ino: 2,
        ..sized(2, 8192, 100, 0)
    };
    s.begin(&b);
    run(&mut s, &a, false, 100, 8292);
    s.broken("size", &[]);
}

#[test]
fn after_an_error_as_the_contract_says() {
    // (result, size after, old, extended, either): whether each is broken.
    let cases = [
        (-5, 100, 0, 1, 0),
        (-5, 1100, 1, 0, 0),
        (-5, 600, 1, 1, 0),
        (-5, 4096, 1, 1, 1),
        (500, 600, 0, 1, 0),
        (500, 1100, 1, 0, 0),
    ];
    for (result, isize, old, extended, either) in cases {
        let mut s = Stream::files_marked();
        run(&mut s, &sized(1, 100, 1000, 100), true, result, isize);
        for (set, broken) in [
            (IsizeAfterError::Old, old),
            (IsizeAfterError::Extended, extended),
            (IsizeAfterError::Either, either),
        ] {
            let contract = Contract {
                isize_after_error: set,
                ..Contract::default()
            };
            let verdicts = s.verdicts_by(contract);
            let found = verdicts.findings().filter(|f| f.promise == "size").count();
            assert_eq!(found, broken, "{result} {isize} {set:?}");
        }
    }
    // A short count without a failed request is no error.
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, 500, 1100);
    s.broken("size", &["cover"]);
}

#[test]
fn who_does_not_mark_all_is_not_judged() {
    let mut s = Stream::booted();
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 4096);
    s.not_checked("size", "the guest does not say").silent();
    // Something was lost on the way.
    let mut s = Stream::files_marked();
    let c = sized(1, 100, 1000, 100);
    s.begin(&c);
    s.gap(2);
    s.env(&[("files", "marked")]);
    end(&mut s, &c, 1000, 4096);
    stat(&mut s, 8192);
    s.not_checked("size", "the call's file was not followed")
        .silent();
    // Without tags it is judged all the same.
    let mut s = Stream::files_marked();
    s.env(&[("tags", "off")]);
    let c = CallBegin {
        tag: None,
        ..sized(1, 100, 1000, 100)
    };
    s.begin(&c);
    end(&mut s, &c, 1000, 4096);
    s.broken("size", &[]);
}

fn found(s: &Stream, isize_after_error: IsizeAfterError) -> usize {
    let verdicts = s.verdicts_by(Contract {
        isize_after_error,
        ..Contract::default()
    });
    verdicts.findings().filter(|f| f.promise == "size").count()
}

#[test]
fn where_an_error_must_leave_the_new_size_others_may_have_taken_it_back() {
    let ended = |s: &mut Stream| {
        let (change, result) = (1, None);
        s.file(FileMark::ChangeEnd { change, result });
    };
    // A change before the call, one beside it, and none.
    for (before, beside, broken) in [(false, false, 1), (true, false, 1), (false, true, 0)] {
        let mut s = Stream::files_marked();
        if before {
            change(&mut s, 1, 0, 10, "write");
            ended(&mut s);
        }
        let c = sized(1, 100, 1000, 100);
        s.begin(&c);
        if beside {
            change(&mut s, 1, 0, 10, "write");
            ended(&mut s);
        }
        let w = s.write(1, DISK, B);
        s.fail(w);
        end(&mut s, &c, -5, 600);
        assert_eq!(found(&s, IsizeAfterError::Extended), broken);
    }
    // How far it had come is not known where a request lies partly outside.
    for first in [B, 2 * B] {
        let mut s = Stream::files_marked();
        let c = sized(1, 2 * B, 2 * B, 100);
        s.begin(&c);
        let a = s.write(1, DISK + first, 3 * B - first);
        let b = s.write(1, DISK + 3 * B, B);
        s.ok(a);
        s.fail(b);
        end(&mut s, &c, -5, 600);
        assert_eq!(
            found(&s, IsizeAfterError::Extended),
            usize::from(first == 2 * B)
        );
    }
}

#[test]
fn what_a_call_wrote_is_the_size_also_where_it_is_told_later() {
    // The size moved after the call's end mark was written.
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 100);
    stat(&mut s, 1100);
    s.held("size", 2).silent();
    // Nothing was written: its offset is no size.
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 5000, 1000, 100), true, -5, 100);
    stat(&mut s, 5000);
    s.broken("size", &[]);
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 5000, 1000, 100), true, -5, 5000);
    assert_eq!(found(&s, IsizeAfterError::Old), 1);
    // An error that is not the device's leaves the same open.
    let mut s = Stream::files_marked();
    run(&mut s, &sized(1, 100, 1000, 100), false, -14, 1100);
    assert_eq!(found(&s, IsizeAfterError::Either), 0);
    assert_eq!(found(&s, IsizeAfterError::Old), 1);
    // Beside a call that is followed no more it may be anything.
    let mut s = Stream::files_marked();
    let lost = CallBegin {
        ino: 2,
        ..sized(2, 0, 100, 0)
    };
    s.begin(&lost);
    s.begin(&lost);
    run(&mut s, &sized(1, 100, 1000, 100), false, 1000, 4096);
    s.silent();
    assert!(
        s.of("size")
            .not_checked
            .contains_key("a call was followed no more")
    );
}

/// The data of a DSYNC call is there, and the log fails: the file system is shut down, and says no size any more. Mounted
/// anew, the file is as long as its log says.
#[test]
fn what_a_failed_call_may_have_added_may_be_seen_later() {
    use IsizeAfterError::{Either, Extended, Old};
    for (later, old, either) in [(100, 0, 0), (600, 1, 0), (1100, 1, 0), (1101, 1, 1)] {
        let mut s = Stream::files_marked();
        run(&mut s, &sized(1, 100, 1000, 100), false, -5, 100);
        stat(&mut s, later);
        // Its size in memory must be the new one under this contract, and is not.
        let extended = either + 1;
        for (set, broken) in [(Old, old), (Either, either), (Extended, extended)] {
            assert_eq!(found(&s, set), broken, "{later} {set:?}");
        }
    }
}

proptest! {
    /// A model of a file: what it tells is silent; one byte more at one call is found.
    #[test]
    fn a_model_is_silent_and_its_lie_is_found(seed: u64, steps in 1u64..30, lie in 0u64..30, by in 1u64..5000) {
        let mut dice = Dice(seed);
        let mut s = Stream::files_marked();
        // What the file has, and the greatest it ever had: truncation is not followed.
        let (mut size, mut most) = (0u64, 0u64);
        let mut lied = false;
        for n in 0..steps {
            let (off, len) = (dice.below(20_000), 1 + dice.below(9_000));
            match dice.below(4) {
                0 => {
                    change(&mut s, n, off, len, "write");
                    size = size.max(off + len);
                    s.file(FileMark::ChangeEnd { change: n, result: None });
                }
                1 => {
                    change(&mut s, n, 0, dice.below(size + 1), "truncate");
                    size = size.min(dice.below(size + 1));
                    s.file(FileMark::ChangeEnd { change: n, result: None });
                }
                _ => {
                    let fails = dice.one_in(5);
                    let c = sized(n + 1, off, len, size);
                    let after = if fails { size.max(off + dice.below(len)) } else { size.max(off + len) };
                    let bound = most.max(size).max(off + len);
                    let told = if n == lie { lied = true; bound + by } else { after };
                    run(&mut s, &c, fails, if fails { -5 } else { len as i64 }, told);
                    size = told;
                }
            }
            most = most.max(size);
        }
        stat(&mut s, size);
        let found = s.verdicts().findings().filter(|f| f.promise == "size").count();
        prop_assert_eq!(found, usize::from(lied));
    }
}
