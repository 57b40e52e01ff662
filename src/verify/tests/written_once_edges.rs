// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `written-once`: edges that mutation testing found unguarded.

use wtblk_shared::mark::{CallBegin, FileMark, FilePages, Mark, PageReport};

use super::builder::*;
use super::written_once::*;

const P: &str = "written-once";

/// What was told clean before and is told again in part only is as clean as before.
#[test]
fn a_report_of_a_part_leaves_the_rest_followed() {
    for file in [8 * B, FOLIO - B, 2 * FOLIO, SIZE - B] {
        let mut s = called();
        s.report_range(1, FOLIO, FOLIO, 0);
        stray(&mut s, file, B);
        s.broken(P, &[]);
    }
}

/// Each part is told where it lies in the file, however much of its surroundings was sent before.
#[test]
fn what_is_left_of_a_piece_is_followed_with_its_place_in_the_file() {
    let mut s = called();
    let sent = [
        (10 * B, 2 * B),
        (9 * B, B),
        (20 * B, 512),
        (20 * B + 512, 512),
        (5 << 20, B),
        // Around what is followed no more.
        (19 * B, 2 * B),
        (FOLIO - 512, 1024),
    ];
    for (file, bytes) in sent {
        stray(&mut s, file, bytes);
    }
    let f = s.broken(P, &[]);
    let told: Vec<_> = f.details["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| {
            (
                r["file_offset"].as_u64().unwrap(),
                r["bytes"].as_u64().unwrap(),
            )
        })
        .collect();
    let mut want = sent.to_vec();
    want.splice(5..6, [(19 * B, B), (20 * B + 1024, B - 1024)]);
    assert_eq!(told, want);
    assert_eq!(
        (&f.details["writes"], &f.details["bytes"]),
        (&7.into(), &(6 * B + 1024).into())
    );
    // Places in a file that lies in two parts on the disk.
    let mut s = Stream::files_marked();
    clean(&mut s);
    let mut c = small(1, 8 * B, 4 * B);
    c.extents = Some(vec![ext(0, DISK + FOLIO, FOLIO), ext(FOLIO, DISK, FOLIO)]);
    s.begin(&c);
    let w = s.write(1, DISK + FOLIO + 8 * B, 4 * B);
    s.ok(w);
    s.end(&c, 4 * B as i64);
    let w = s.stray(DISK + B, B);
    s.ok(w);
    let w = s.stray(DISK + FOLIO - B, 2 * B);
    s.ok(w);
    let f = s.broken(P, &[]);
    let at = |n: usize| f.details["requests"][n]["file_offset"].as_u64().unwrap();
    assert_eq!([at(0), at(1), at(2)], [FOLIO + B, 2 * FOLIO - B, 0]);
}

/// A change that was under way when the call began, over before its end or not.
#[test]
fn a_change_that_began_before_the_call_is_beside_it() {
    for over in [true, false] {
        let mut s = Stream::files_marked();
        clean(&mut s);
        // Of another folio: the call's own are clean.
        change(&mut s, 1, 5 << 20, B, "write");
        let c = small(1, 8 * B, 4 * B);
        s.begin(&c);
        let w = s.write(1, DISK + 8 * B, 4 * B);
        s.ok(w);
        if over {
            let (change, result) = (1, None);
            s.file(FileMark::ChangeEnd { change, result });
        }
        s.end(&c, 4 * B as i64);
        stray(&mut s, 8 * B, B);
        let why = if over {
            "its pages were told clean neither"
        } else {
            "another call or change"
        };
        s.not_checked(P, why).silent();
    }
    // One that is over before it is nothing to it.
    let mut s = called();
    changed(&mut s, 1, 5 << 20, B, "write");
    run(&mut s, &small(2, 8 * B, 4 * B));
    s.held(P, 2);
}

#[test]
fn a_change_that_moves_blocks_leaves_nothing_known_of_the_file() {
    let after = |kind: &str, off: u64, len: u64| {
        let mut s = called();
        changed(&mut s, 1, off, len, kind);
        run(&mut s, &small(2, 5 << 20, B));
        stray(&mut s, FOLIO, B);
        s.verdicts().findings().filter(|f| f.promise == P).count()
    };
    for kind in [
        "truncate", "punch", "reflink", "unlink", "allocate", "extend", "what?",
    ] {
        assert_eq!(after(kind, 0, B), 0, "{kind}");
    }
    // A write inside the file dirties its folio; to its end; one that makes it longer, all.
    for kind in ["write", "mmap"] {
        assert_eq!(after(kind, 0, B), 1);
        assert_eq!(after(kind, SIZE - B, B), 1);
        assert_eq!(after(kind, SIZE - B, B + 1), 0);
    }
}

#[test]
fn more_changes_than_are_followed_end_all_judging() {
    let why = "too many changes at a time";
    // A number that is used again; a number too many.
    for (open, again, lost) in [(1, 0, true), (4095, 5000, false), (4096, 5000, true)] {
        let mut s = Stream::files_marked();
        for n in 0..open {
            s.file(FileMark::ChangeBegin(wtblk_shared::mark::Change {
                change: n,
                dev: 8,
                ino: 77,
                off: 0,
                len: B,
                kind: "mmap".into(),
            }));
        }
        change(&mut s, again, 0, B, "mmap");
        s.file(FileMark::ChangeEnd {
            change: again,
            result: None,
        });
        clean(&mut s);
        run(&mut s, &small(1, 8 * B, 4 * B));
        s.report_range(1, 0, SIZE, 0);
        stray(&mut s, 8 * B, B);
        if lost {
            s.not_checked(P, why).silent();
        } else {
            s.broken(P, &[]);
        }
    }
}

#[test]
fn a_file_beyond_those_that_are_followed_is_not_judged() {
    for files in [1023, 1024] {
        let mut s = Stream::files_marked();
        let first = small(1, 8 * B, 4 * B);
        clean(&mut s);
        for ino in 0..files - 1 {
            s.file(FileMark::Pages(FilePages {
                dev: 8,
                ino: 100 + ino,
                at: "t".into(),
                off: 0,
                len: B,
                dirty: 0,
                writeback: 0,
            }));
        }
        // One that is followed stays so.
        run(&mut s, &first);
        s.held(P, 1);
        let c = CallBegin {
            ino: 2,
            extents: Some(vec![ext(0, DISK + (16 << 20), SIZE)]),
            ..small(2, 0, B)
        };
        s.run(&c, &[(DISK + (16 << 20), B)]);
        let not = s.of(P).not_checked;
        let why = if files == 1024 {
            "the call's file was not followed all the time"
        } else {
            "its pages were told clean neither before the call nor after it"
        };
        assert!(not.contains_key(why), "{not:?}");
    }
}

/// A call that is followed no more may have written anything: nothing is clean any more.
#[test]
fn a_lost_call_of_another_file_ends_all_judging() {
    let mut s = Stream::files_marked();
    run(&mut s, &small(1, 8 * B, 4 * B));
    let other = CallBegin {
        ino: 2,
        ..small(2, 0, B)
    };
    s.begin(&other);
    s.begin(&other);
    let mut told = s.clone();
    clean(&mut s);
    stray(&mut s, 8 * B, B);
    s.silent();
    told.report_range(1, 0, SIZE, 0);
    stray(&mut told, 8 * B, B);
    told.silent();
    // And of a call after it.
    clean(&mut told);
    run(&mut told, &small(3, 8 * B, 4 * B));
    stray(&mut told, 8 * B, B);
    told.silent();
    assert!(
        told.of(P)
            .not_checked
            .contains_key("a call was followed no more")
    );
}

/// Two reports of different ranges, or beside a change, prove nothing.
#[test]
fn reports_that_do_not_pair() {
    type Spoil = fn(&mut Stream);
    let spoilt: [(&str, Spoil); 5] = [
        ("two ranges", |s| {
            pages_of(s, 0, FOLIO, 0, 0);
            pages_of(s, 0, 2 * FOLIO, 0, 0);
        }),
        ("beside a change", |s| {
            change(s, 1, 0, B, "mmap");
            clean(s);
            let (change, result) = (1, None);
            s.file(FileMark::ChangeEnd { change, result });
        }),
        ("beside a call", |s| {
            let c = small(9, 0, B);
            s.begin(&c);
            clean(s);
            s.end(&c, -14);
        }),
        ("a report of a call after which something changed", |s| {
            run(s, &small(9, 5 << 20, B));
            changed(s, 1, 0, B, "write");
            s.report_range(9, 0, SIZE, 0);
        }),
        ("a report beside a change that began before the call", |s| {
            change(s, 1, 0, B, "write");
            run(s, &small(9, 5 << 20, B));
            s.report_range(9, 0, SIZE, 0);
            let (change, result) = (1, None);
            s.file(FileMark::ChangeEnd { change, result });
        }),
    ];
    for (how, spoil) in spoilt {
        let mut s = Stream::files_marked();
        spoil(&mut s);
        run(&mut s, &small(1, 8 * B, 4 * B));
        stray(&mut s, 8 * B, B);
        let found = s.verdicts().findings().filter(|f| f.promise == P).count();
        assert_eq!(found, 0, "{how}");
    }
    // The same, unspoilt.
    let mut s = Stream::files_marked();
    run(&mut s, &small(9, 5 << 20, B));
    s.report_range(9, 0, SIZE, 0);
    run(&mut s, &small(1, 8 * B, 4 * B));
    stray(&mut s, 8 * B, B);
    s.broken(P, &[]);
}

/// Only a report that shows no page dirty and none in writeback counts.
#[test]
fn a_report_of_dirty_pages_proves_nothing() {
    for (dirty, writeback) in [(0, 0), (1, 0), (0, 1)] {
        let mut s = Stream::files_marked();
        run(&mut s, &small(1, 8 * B, 4 * B));
        s.mark(Mark::Report(PageReport {
            call: 1,
            at: "t".into(),
            off: 0,
            len: SIZE,
            cached: 0,
            dirty,
            writeback,
        }));
        stray(&mut s, 8 * B, B);
        if dirty + writeback == 0 {
            s.broken(P, &[]);
        } else {
            s.silent();
        }
    }
    // What the guest did not mark when the call ended it does not make good later.
    let mut s = Stream::booted();
    run(&mut s, &small(1, 8 * B, 4 * B));
    s.env(&[("files", "marked")]);
    clean(&mut s);
    s.not_checked(P, "the guest does not say").silent();
}

/// A file whose first blocks lie elsewhere: places are counted from the begin of each extent.
#[test]
fn places_in_an_extent_that_begins_inside_a_folio() {
    let place = |file: u64| match file {
        0..0x5000 => (32 << 20) + file,
        _ => file - 5 * B,
    };
    let make = |n: u64, off: u64| CallBegin {
        extents: Some(vec![
            ext(0, DISK + (32 << 20), 5 * B),
            ext(5 * B, DISK, SIZE - 5 * B),
        ]),
        ..small(n, off, 4 * B)
    };
    let called = |s: &mut Stream, n: u64, off: u64| {
        let c = make(n, off);
        s.run(&c, &[(DISK + place(off), 4 * B)]);
    };
    let found = |s: &Stream| -> Vec<u64> {
        let verdicts = s.verdicts();
        let all = verdicts.findings().filter(|f| f.promise == P);
        all.flat_map(|f| f.details["requests"].as_array().unwrap().clone())
            .map(|r| r["file_offset"].as_u64().unwrap())
            .collect()
    };
    let mut s = Stream::files_marked();
    clean(&mut s);
    called(&mut s, 1, FOLIO + 8 * B);
    s.held(P, 1);
    let files = [
        B,
        5 * B,
        FOLIO - B,
        FOLIO,
        FOLIO + 100 * B,
        2 * FOLIO,
        SIZE - B,
    ];
    let mut all = s.clone();
    for file in files {
        stray(&mut all, place(file), B);
    }
    assert_eq!(found(&all), files);
    // To the very end of the extent.
    let mut last = s.clone();
    called(&mut last, 2, SIZE - 4 * B);
    last.held(P, 2);
    // What lies behind is no part of the call.
    let mut part = Stream::files_marked();
    called(&mut part, 1, FOLIO - B);
    part.report_range(1, 0, FOLIO, 0);
    part.report_range(1, 2 * FOLIO, SIZE - 2 * FOLIO, 0);
    part.not_checked(P, "its pages were told clean neither");
    // A change in the middle folio, not at its begin; the call after it says nothing of that.
    changed(&mut s, 1, FOLIO + 100 * B, B, "write");
    called(&mut s, 2, 2 * FOLIO + 8 * B);
    for file in files {
        stray(&mut s, place(file), B);
    }
    assert_eq!(found(&s), [B, 5 * B, FOLIO - B, 2 * FOLIO, SIZE - B]);
}

/// The part of a folio that a report holds says nothing of it.
#[test]
fn folios_that_are_told_in_part_are_not_followed() {
    for (file, followed) in [
        (B, true),
        (FOLIO - B, true),
        (FOLIO, false),
        (FOLIO + 4 * B, false),
    ] {
        let mut s = Stream::files_marked();
        run(&mut s, &small(1, 8 * B, 4 * B));
        s.report_range(1, 0, FOLIO + 5 * B, 0);
        stray(&mut s, file, B);
        let found = s.verdicts().findings().filter(|f| f.promise == P).count();
        assert_eq!(found, usize::from(followed), "{file}");
    }
    // The end of the file ends its last folio.
    for (len, followed) in [(SIZE - 6 * MIB, true), (SIZE - 6 * MIB - B, false)] {
        let mut s = Stream::files_marked();
        run(&mut s, &small(1, 6 * MIB, B));
        s.report_range(1, 6 * MIB, len, 0);
        stray(&mut s, 6 * MIB + 2 * B, B);
        let found = s.verdicts().findings().filter(|f| f.promise == P).count();
        assert_eq!(found, usize::from(followed), "{len}");
    }
}

const MIB: u64 = 1 << 20;

/// Ranges that are told one after the other: those that meet or touch are one, what lies between them is not told.
#[test]
fn ranges_told_clean_are_joined_where_they_touch() {
    let told = |ranges: &[(u64, u64)], call: (u64, u64)| {
        let mut s = Stream::files_marked();
        for (from, to) in ranges {
            for _ in 0..2 {
                pages_of(&mut s, *from, to - from, 0, 0);
            }
        }
        run(&mut s, &small(1, call.0, call.1));
        s.of(P).held
    };
    let across = (FOLIO - B, 2 * B);
    assert_eq!(told(&[(0, FOLIO), (FOLIO, 2 * FOLIO)], across), 1);
    assert_eq!(told(&[(FOLIO, 2 * FOLIO), (0, FOLIO)], across), 1);
    assert_eq!(told(&[(0, FOLIO + B), (FOLIO - B, 2 * FOLIO)], across), 1);
    assert_eq!(told(&[(FOLIO - B, 2 * FOLIO), (0, FOLIO + B)], across), 1);
    assert_eq!(told(&[(0, 2 * FOLIO), (B, FOLIO)], across), 1);
    assert_eq!(told(&[(0, FOLIO - B), (FOLIO, 2 * FOLIO)], across), 0);
    assert_eq!(told(&[(FOLIO, 2 * FOLIO), (0, FOLIO - B)], across), 0);
    let middle = (FOLIO + 8 * B, B);
    assert_eq!(told(&[(0, FOLIO), (2 * FOLIO, SIZE)], middle), 0);
    assert_eq!(told(&[(2 * FOLIO, SIZE), (0, FOLIO)], middle), 0);
    assert_eq!(told(&[(FOLIO, 2 * FOLIO)], middle), 1);
    assert_eq!(told(&[(FOLIO + B, 2 * FOLIO)], middle), 0);
    assert_eq!(told(&[(FOLIO, 2 * FOLIO - B)], middle), 0);
}

/// A dirtier of one block dirties its folio from the begin on, and no other one.
#[test]
fn a_change_inside_a_folio_dirties_it_from_its_begin_on() {
    for (changed_at, file, followed) in [
        (100 * B, 10 * B, false),
        (FOLIO + 100 * B, FOLIO + 10 * B, false),
        (FOLIO + 100 * B, 2 * FOLIO - B, false),
        (FOLIO + 100 * B, FOLIO - B, true),
        (FOLIO, FOLIO - B, true),
        (2 * FOLIO - B, 2 * FOLIO, true),
    ] {
        let mut s = called();
        changed(&mut s, 1, changed_at, B, "mmap");
        run(&mut s, &small(2, 6 * MIB, B));
        stray(&mut s, file, B);
        let found = s.verdicts().findings().filter(|f| f.promise == P).count();
        assert_eq!(found, usize::from(followed), "{changed_at} {file}");
    }
}
