// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `written-once`.

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, CallEnd, Change, Extent, FileMark, FilePages, Mark};

use super::super::contract::Contract;
use super::builder::*;
use super::world::Dice;

/// Length of the file: three folios of the largest kind and a bit.
pub(super) const SIZE: u64 = (6 << 20) + 5 * B;
pub(super) const FOLIO: u64 = 2 << 20;

pub(super) fn small(number: u64, off: u64, len: u64) -> CallBegin {
    CallBegin {
        isize: SIZE,
        extents: Some(vec![ext(0, DISK, SIZE)]),
        ..call(number, off, len)
    }
}

pub(super) fn pages_of(s: &mut Stream, off: u64, len: u64, dirty: u64, writeback: u64) {
    s.file(FileMark::Pages(FilePages {
        dev: 8,
        ino: 1,
        at: "t".into(),
        off,
        len,
        dirty,
        writeback,
    }));
}

/// Told clean, twice.
pub(super) fn clean(s: &mut Stream) {
    pages_of(s, 0, SIZE, 0, 0);
    pages_of(s, 0, SIZE, 0, 0);
}

pub(super) fn change(s: &mut Stream, n: u64, off: u64, len: u64, kind: &str) {
    s.file(FileMark::ChangeBegin(Change {
        change: n,
        dev: 8,
        ino: 1,
        off,
        len,
        kind: kind.into(),
    }));
}

pub(super) fn changed(s: &mut Stream, n: u64, off: u64, len: u64, kind: &str) {
    change(s, n, off, len, kind);
    s.file(FileMark::ChangeEnd {
        change: n,
        result: None,
    });
}

pub(super) fn run(s: &mut Stream, c: &CallBegin) {
    s.run(c, &[(DISK + c.off, c.len)]);
}

/// Clean, a call of four blocks, and nothing else.
pub(super) fn called() -> Stream {
    let mut s = Stream::files_marked();
    clean(&mut s);
    run(&mut s, &small(1, 8 * B, 4 * B));
    s
}

pub(super) fn stray(s: &mut Stream, file: u64, bytes: u64) {
    let w = s.stray(DISK + file, bytes);
    s.ok(w);
}

#[test]
fn what_is_clean_is_not_sent_again() {
    called().held("written-once", 1).silent();
    let mut s = called();
    stray(&mut s, 10 * B, B);
    let f = s.broken("written-once", &[]);
    assert!(
        f.happened
            .contains("4096 bytes of clean blocks were written again, by 1 requests"),
        "{f:?}"
    );
    // Another block of the file, which the call did not write, is as clean.
    let mut s = called();
    stray(&mut s, 5 << 20, B);
    s.broken("written-once", &[]);
    // Part of a request merged with something else; told once, with all of it.
    let mut s = called();
    stray(&mut s, SIZE - 512, 4096);
    stray(&mut s, 0, 2 * B);
    stray(&mut s, 0, B);
    let f = s.broken("written-once", &[]);
    assert_eq!(f.details["bytes"], 512 + 2 * B, "{f:?}");
    // Not of this file; and reads and flushes are nothing.
    let mut s = called();
    let w = s.stray(DISK + SIZE, B);
    s.ok(w);
    let r = s.submit(crate::trace::event::Op::Read, 0, DISK, B);
    s.ok(r);
    s.held("written-once", 1).silent();
}

#[test]
fn a_dirtier_of_the_folio_excuses_it_all() {
    for kind in ["write", "mmap"] {
        let mut s = called();
        changed(&mut s, 1, 100 * B, B, kind);
        // Its folio, not only its block.
        stray(&mut s, 10 * B, B);
        s.held("written-once", 1).silent();
        // But not the next folio.
        let mut s = called();
        changed(&mut s, 1, 100 * B, B, kind);
        run(&mut s, &small(2, 5 << 20, B));
        stray(&mut s, 4 << 20, B);
        s.broken("written-once", &[]);
    }
    // What moves blocks excuses the whole file.
    for kind in [
        "truncate", "punch", "reflink", "unlink", "allocate", "extend", "what?",
    ] {
        let mut s = called();
        changed(&mut s, 1, 0, B, kind);
        stray(&mut s, 5 << 20, B);
        s.silent();
    }
    // A marked call is a dirtier, too; after it the same holds again.
    let mut s = called();
    let c = small(2, 8 * B, B);
    s.begin(&c);
    let w = s.write(2, DISK + 8 * B, B);
    stray(&mut s, 9 * B, B);
    s.ok(w);
    s.end(&c, B as i64);
    s.silent();
    stray(&mut s, 9 * B, B);
    s.broken("written-once", &[]);
}

#[test]
fn without_being_told_clean_nothing_is_judged() {
    // Neither before nor after.
    let mut s = Stream::files_marked();
    run(&mut s, &small(1, 8 * B, 4 * B));
    stray(&mut s, 8 * B, B);
    s.not_checked("written-once", "its pages were told clean neither")
        .silent();
    // Told once only; told dirty; something began in between; another range.
    let spoilt: [fn(&mut Stream); 5] = [
        |s| pages_of(s, 0, SIZE, 0, 0),
        |s| {
            pages_of(s, 0, SIZE, 0, 0);
            pages_of(s, 0, SIZE, 1, 0);
        },
        |s| {
            pages_of(s, 0, SIZE, 0, 0);
            pages_of(s, 0, SIZE, 0, 1);
        },
        |s| {
            pages_of(s, 0, SIZE, 0, 0);
            changed(s, 1, 0, B, "write");
            pages_of(s, 0, SIZE, 0, 0);
        },
        |s| {
            pages_of(s, 0, SIZE, 0, 0);
            pages_of(s, 0, B, 0, 0);
        },
    ];
    for spoil in spoilt {
        let mut s = Stream::files_marked();
        spoil(&mut s);
        run(&mut s, &small(1, 8 * B, 4 * B));
        stray(&mut s, 8 * B, B);
        s.silent();
    }
    // Half a folio was told clean.
    let mut s = Stream::files_marked();
    for _ in 0..2 {
        pages_of(&mut s, 0, FOLIO / 2, 0, 0);
    }
    run(&mut s, &small(1, 8 * B, 4 * B));
    stray(&mut s, 8 * B, B);
    s.silent();
    // Nobody says that all changes are marked.
    let mut s = Stream::booted();
    clean(&mut s);
    run(&mut s, &small(1, 8 * B, 4 * B));
    stray(&mut s, 8 * B, B);
    s.not_checked("written-once", "the guest does not say")
        .silent();
}

#[test]
fn a_report_after_the_call_counts() {
    for whole in [true, false] {
        let mut s = Stream::files_marked();
        run(&mut s, &small(1, 8 * B, 4 * B));
        let end = if whole { SIZE } else { FOLIO };
        s.report_range(1, 0, end, 0);
        s.held("written-once", 1);
        stray(&mut s, 8 * B, B);
        s.broken("written-once", &[]);
    }
    // Only of the blocks: other blocks of their folio may be dirty.
    let mut s = Stream::files_marked();
    run(&mut s, &small(1, 8 * B, 4 * B));
    s.report_range(1, 8 * B, 4 * B, 0);
    stray(&mut s, 8 * B, B);
    // Nothing is followed then, and that is no promise kept.
    s.not_checked("written-once", "its pages were told clean neither")
        .silent();
    // Nor where only the first of two folios was told clean.
    let mut s = Stream::files_marked();
    run(&mut s, &small(1, FOLIO - B, 2 * B));
    s.report_range(1, 0, FOLIO, 0);
    s.not_checked("written-once", "its pages were told clean neither");
    stray(&mut s, FOLIO - B, B);
    s.broken("written-once", &[]);
    // Somebody began between the end and the report.
    let mut s = Stream::files_marked();
    run(&mut s, &small(1, 8 * B, 4 * B));
    changed(&mut s, 1, 0, B, "write");
    s.report_range(1, 0, SIZE, 0);
    stray(&mut s, 8 * B, B);
    s.silent();
    // And the report after that.
    s.report_range(1, 0, SIZE, 0);
    stray(&mut s, 9 * B, B);
    s.silent();
}

#[test]
fn calls_that_fail_or_meet_others() {
    // A failed call: by the contract.
    let mut s = Stream::files_marked();
    clean(&mut s);
    let c = small(1, 8 * B, 4 * B);
    s.begin(&c);
    let w = s.write(1, DISK + 8 * B, 4 * B);
    s.fail(w);
    s.end(&c, -5);
    clean(&mut s);
    stray(&mut s, 8 * B, B);
    s.not_checked("written-once", "the call failed").silent();
    let contract = Contract {
        failed_page_clean: true,
        ..Contract::default()
    };
    assert_eq!(s.verdicts_by(contract).status(), 1);
    // A change beside it, over or not.
    for over in [true, false] {
        let mut s = Stream::files_marked();
        clean(&mut s);
        s.begin(&c);
        change(&mut s, 1, 9 * B, B, "mmap");
        let w = s.write(1, DISK + 8 * B, 4 * B);
        s.ok(w);
        if over {
            s.file(FileMark::ChangeEnd {
                change: 1,
                result: None,
            });
        }
        s.end(&c, 4 * B as i64);
        stray(&mut s, 8 * B, B);
        s.not_checked("written-once", "another call or change")
            .silent();
    }
    // Two calls at a time.
    let mut s = Stream::files_marked();
    clean(&mut s);
    let d = small(2, 4 << 20, B);
    s.begin(&c);
    s.begin(&d);
    let w = s.write(1, DISK + 8 * B, 4 * B);
    let x = s.write(2, DISK + (4 << 20), B);
    s.ok(w);
    s.end(&c, 4 * B as i64);
    stray(&mut s, (4 << 20) + B, B);
    s.ok(x);
    s.end(&d, B as i64);
    s.silent();
}

#[test]
fn an_extension_past_an_unaligned_end_zeroes_the_old_block() {
    let mut s = Stream::files_marked();
    let isize = 3 * B + 100;
    pages_of(&mut s, 0, 4 * B, 0, 0);
    pages_of(&mut s, 0, 4 * B, 0, 0);
    let c = CallBegin {
        isize,
        ..small(1, 8 * B, B)
    };
    s.begin(&c);
    let w = s.write(1, DISK + 8 * B, B);
    s.ok(w);
    s.mark(Mark::End(CallEnd {
        call: 1,
        result: B as i64,
        isize: 9 * B,
        extents: c.extents.clone(),
    }));
    // The zeroed block is sent later.
    stray(&mut s, 3 * B, B);
    s.silent();
    // From the very end on nothing is zeroed: an append leaves all clean.
    let mut s = Stream::files_marked();
    pages_of(&mut s, 0, 4 * B, 0, 0);
    pages_of(&mut s, 0, 4 * B, 0, 0);
    let c = CallBegin {
        isize,
        off: isize,
        len: 100,
        ..c
    };
    s.begin(&c);
    let w = s.write(1, DISK + 3 * B, B);
    s.ok(w);
    s.mark(Mark::End(CallEnd {
        call: 1,
        result: 100,
        isize: isize + 100,
        extents: c.extents.clone(),
    }));
    s.held("written-once", 1);
    stray(&mut s, 3 * B, B);
    s.broken("written-once", &[]);
}

#[test]
fn places_that_are_not_the_files_alone() {
    // Shared blocks; unknown places; a file that takes the blocks over.
    for flags in [0x2000, 0x2, 0x4] {
        let mut s = Stream::files_marked();
        clean(&mut s);
        let mut c = small(1, 8 * B, 4 * B);
        c.extents = Some(vec![Extent {
            flags,
            ..ext(0, DISK, SIZE)
        }]);
        s.begin(&c);
        s.end(&c, 4 * B as i64);
        stray(&mut s, 8 * B, B);
        assert!(s.verdicts().findings().all(|f| f.promise != "written-once"));
    }
    let mut s = called();
    let c = CallBegin {
        ino: 2,
        ..small(2, 0, B)
    };
    s.begin(&c);
    let w = s.write(2, DISK, B);
    s.ok(w);
    s.end(&c, B as i64);
    // The tagged write of another file to this file's block is a write all the same.
    s.broken("written-once", &[]);
    // Events are missing: what was clean may not be.
    let mut s = called();
    s.gap(4);
    stray(&mut s, 8 * B, B);
    s.not_checked("written-once", "events are missing").silent();
    // Numbers at the end of the world do no harm.
    let mut s = Stream::files_marked();
    let max = u64::MAX;
    for _ in 0..2 {
        pages_of(&mut s, max - 1, max, 0, 0);
        pages_of(&mut s, 0, max, 0, 0);
        changed(&mut s, 1, max, max, "mmap");
    }
    let c = CallBegin {
        isize: max,
        extents: Some(vec![ext(max - B, 0, B)]),
        ..call(1, max - 1, 1)
    };
    s.begin(&c);
    s.end(&c, 1);
    s.verdicts();
}

#[test]
fn a_dirty_block_of_a_file_that_shares_blocks_may_go_elsewhere() {
    // It was dirty when the call's end told where it is; then it was written, and is clean. Its old
    // place is somebody else's by now. The call's own blocks have gone where it was told.
    let told = |shares: bool| {
        let mut s = Stream::files_marked();
        clean(&mut s);
        if shares {
            changed(&mut s, 1, 0, B, "reflink");
        }
        changed(&mut s, 2, 2 * B, B, "write");
        run(&mut s, &small(1, 8 * B, 4 * B));
        clean(&mut s);
        s
    };
    let with = |shares, at| {
        let mut s = told(shares);
        stray(&mut s, at, B);
        s
    };
    told(true).held("written-once", 1).silent();
    with(true, 2 * B).silent();
    with(false, 2 * B).broken("written-once", &[]);
    with(true, 9 * B).broken("written-once", &[]);
    // What is written after the call moves as well, its own blocks included.
    let mut s = told(true);
    changed(&mut s, 3, 9 * B, B, "write");
    clean(&mut s);
    stray(&mut s, 9 * B, B);
    s.silent();
}

proptest! {
    /// A page cache of 12 blocks in three folios of the largest kind, whose kernel keeps
    /// the promise: silent. One write of a block that the plain definition knows to
    /// be clean: found.
    #[test]
    fn a_model_is_silent_and_its_lie_is_found(seed: u64, steps in 1u64..50, lie in 0u64..50) {
        // A block each half MiB.
        const STEP: u64 = FOLIO / 4;
        const N: usize = 12;
        let mut dice = Dice(seed);
        let mut s = Stream::files_marked();
        let size = STEP * N as u64;
        let make = |n: u64, block: u64| CallBegin {
            isize: size,
            extents: Some(vec![ext(0, DISK, size)]),
            ..call(n, block * STEP, B)
        };
        let mut dirty = [false; N];
        // What the definition knows: clean, and whether a call has told the places.
        let mut known = [false; N];
        let mut followed = [false; N];
        let (mut watched, mut placed) = (false, false);
        let mut lied = false;
        for n in 1..=steps {
            let block = dice.below(N as u64) as usize;
            let folio = block / 4 * 4..block / 4 * 4 + 4;
            if n == lie + 1 && watched && followed[block] {
                stray(&mut s, block as u64 * STEP, B);
                lied = true;
                break;
            }
            match dice.below(5) {
                0 => {
                    changed(&mut s, n, block as u64 * STEP, B, "write");
                    dirty[block] = true;
                    watched = false;
                    // How long the file is, and what of it one folio, is known with the first call.
                    for b in if placed { folio } else { 0..N } {
                        (known[b], followed[b]) = (false, false);
                    }
                }
                1 => {
                    let whole = dirty.iter().filter(|d| **d).count() as u64;
                    pages_of(&mut s, 0, size, whole, 0);
                    pages_of(&mut s, 0, size, whole, 0);
                    if whole == 0 {
                        known = [true; N];
                        followed = [placed; N];
                    }
                }
                2 => {
                    let c = make(n, block as u64);
                    let all = folio.clone().all(|b| known[b]);
                    s.run(&c, &[(DISK + block as u64 * STEP, B)]);
                    dirty[block] = false;
                    for b in folio {
                        known[b] = all;
                    }
                    followed = known;
                    (watched, placed) = (true, true);
                }
                _ => {
                    // Writeback sends what is dirty.
                    if let Some(b) = dirty.iter().position(|d| *d) {
                        stray(&mut s, b as u64 * STEP, B);
                        dirty[b] = false;
                    }
                }
            }
        }
        let verdicts = s.verdicts();
        let found = verdicts.findings().filter(|f| f.promise == "written-once").count();
        prop_assert_eq!(found, usize::from(lied));
    }
}
