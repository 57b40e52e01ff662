// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who changed which bytes of a file meanwhile (`writers`), against a plain list of all that happened.

use std::ops::Range;

use proptest::prelude::*;
use wtblk_shared::mark::{CallEnd, Change, FileMark, Mark};

use super::super::writers::Writers;
use super::builder::*;
use super::world::Dice;

/// One that changes bytes: a call has a number, a change has none here.
#[derive(Clone, Debug)]
struct Writer {
    call: Option<u64>,
    change: Option<u64>,
    ino: u64,
    range: Range<u64>,
    begin: u64,
    end: Option<u64>,
    pattern: Option<(u32, u32)>,
}

fn begin_call(w: &mut Writers, seq: u64, number: u64, ino: u64, range: &Range<u64>, own: bool) {
    let mut c = call(number, range.start, range.end - range.start);
    c.ino = ino;
    c.pattern = own.then_some((ino as u32, number as u32));
    w.mark(seq, &Mark::Begin(c));
}

fn end_call(w: &mut Writers, seq: u64, number: u64) {
    w.mark(
        seq,
        &Mark::End(CallEnd {
            call: number,
            result: 0,
            isize: 0,
            extents: None,
        }),
    );
}

fn change(w: &mut Writers, seq: u64, change: u64, ino: u64, range: &Range<u64>, kind: &str) {
    w.mark(
        seq,
        &Mark::File(FileMark::ChangeBegin(Change {
            change,
            dev: 8,
            ino,
            off: range.start,
            len: range.end - range.start,
            kind: kind.into(),
        })),
    );
}

fn changed(w: &mut Writers, seq: u64, change: u64) {
    let result = None;
    w.mark(seq, &Mark::File(FileMark::ChangeEnd { change, result }));
}

proptest! {
    #[test]
    fn it_is_the_list_of_all_that_happened(seed: u64, steps in 1u64..80) {
        let mut dice = Dice(seed);
        let (mut writers, mut all) = (Writers::default(), Vec::<Writer>::new());
        for seq in 1..=steps {
            let (ino, from) = (dice.below(2), dice.below(12));
            let range = from..from + 1 + dice.below(6);
            match dice.below(5) {
                0 => {
                    let own = dice.one_in(2);
                    begin_call(&mut writers, seq, seq, ino, &range, own);
                    all.push(Writer {
                        call: Some(seq), change: None, ino, range, begin: seq, end: None,
                        pattern: own.then_some((ino as u32, seq as u32)),
                    });
                }
                1 => {
                    let kinds = ["write", "mmap", "truncate", "punch", "reflink", "unlink", "allocate"];
                    let n = dice.below(7) as usize;
                    change(&mut writers, seq, seq, ino, &range, kinds[n]);
                    let range = if (2..6).contains(&n) { 0..u64::MAX } else { range };
                    all.push(Writer {
                        call: None, change: Some(seq), ino, range, begin: seq, end: None, pattern: None,
                    });
                }
                2 | 3 => {
                    let n = dice.below(seq);
                    let call = dice.one_in(2);
                    if call { end_call(&mut writers, seq, n) } else { changed(&mut writers, seq, n) };
                    for w in all.iter_mut().filter(|w| n > 0 && w.end.is_none()) {
                        if (call && w.call == Some(n)) || (!call && w.change == Some(n)) {
                            w.end = Some(seq);
                        }
                    }
                }
                _ if dice.one_in(30) => {
                    writers.lost();
                    all.clear();
                }
                _ => {}
            }
            // Each call, and one that is none, asks for some bytes.
            let calls = all.iter().filter_map(|w| w.call).chain([9999]);
            for number in calls.collect::<Vec<_>>() {
                let since = all.iter().find(|w| w.call == Some(number)).map_or(dice.below(seq + 1), |w| w.begin);
                let from = dice.below(14);
                let asked = from..from + 1 + dice.below(4);
                let beside: Vec<&Writer> = all
                    .iter()
                    .filter(|w| w.ino == ino && w.call != Some(number))
                    .filter(|w| asked.clone().any(|at| w.range.contains(&at)))
                    .filter(|w| w.end.is_none_or(|end| end > since))
                    .collect();
                prop_assert_eq!(writers.others(number, (8, ino), &asked, since), !beside.is_empty());
                let whole = |w: &&Writer| asked.clone().all(|at| w.range.contains(&at));
                let patterns: Option<Vec<_>> =
                    beside.iter().map(|w| w.pattern.filter(|_| whole(w))).collect();
                prop_assert_eq!(writers.others_patterns(number, (8, ino), &asked, since), patterns);
                // Another file system has the same inode numbers.
                prop_assert!(!writers.others(number, (9, ino), &asked, since));
            }
        }
    }
}

/// A call's number used again is another call, whose bytes count.
#[test]
fn an_older_call_of_the_number_is_another_one() {
    let mut w = Writers::default();
    begin_call(&mut w, 1, 7, 1, &(0..10), true);
    begin_call(&mut w, 5, 7, 1, &(0..10), true);
    assert!(w.others(7, (8, 1), &(0..10), 5));
    // The end is the later one's.
    end_call(&mut w, 6, 7);
    assert!(!w.others(9, (8, 1), &(20..30), 2));
    assert!(w.others(9, (8, 1), &(0..10), 7));
    end_call(&mut w, 8, 7);
    assert!(w.others(9, (8, 1), &(0..10), 7));
    assert!(!w.others(9, (8, 1), &(0..10), 8));
}

/// What is forgotten may have been anything, up to when it was over.
#[test]
fn what_is_forgotten_is_not_taken_for_silence() {
    let of = |over: bool| {
        let mut w = Writers::default();
        for n in 0..1025 {
            change(&mut w, 10 + 2 * n, n, 1, &(0..10), "write");
            if over || n > 0 {
                changed(&mut w, 11 + 2 * n, n);
            }
        }
        w
    };
    // Only the first one was dropped, which was over at event 11.
    let w = of(true);
    for (since, silent) in [(9, false), (10, false), (11, true), (12, true)] {
        assert_eq!(w.others(9, (8, 5), &(0..10), since), !silent, "{since}");
        let patterns = w.others_patterns(9, (8, 5), &(0..10), since);
        assert_eq!(patterns, silent.then(Vec::new), "{since}");
    }
    // It was not over: it may still change anything.
    let w = of(false);
    assert!(w.others(9, (8, 5), &(0..10), 1 << 40));
    // One less, and nothing is forgotten.
    let mut w = Writers::default();
    for n in 0..1024 {
        change(&mut w, 10, n, 1, &(0..10), "write");
    }
    assert!(!w.others(9, (8, 5), &(0..10), 0));
}
