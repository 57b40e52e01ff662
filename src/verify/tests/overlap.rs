// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `no-overlap`: streams that break it, that nearly do, and a slow judge.

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, Mark};

use super::super::verdict::Verdict;
use super::builder::*;
use super::world::Dice;
use crate::trace::event::{DeviceKind, Op, RequestId};

const P: &str = "no-overlap";

fn direct(number: u64, off: u64, len: u64) -> CallBegin {
    CallBegin {
        flags: vec!["direct".into()],
        ..call(number, off, len)
    }
}

#[test]
fn writeback_of_a_block_that_the_call_is_writing() {
    // Only its last sector, by somebody without a tag, in either order.
    for stray_first in [true, false] {
        let mut s = Stream::booted();
        let c = call(1, 0, 2 * B);
        s.begin(&c);
        let early = stray_first.then(|| s.stray(DISK + 2 * B - 512, 4096));
        let data = s.write(1, DISK, 2 * B);
        let stray = early.unwrap_or_else(|| s.stray(DISK + 2 * B - 512, 4096));
        s.all_ok();
        s.end(&c, 2 * B as i64);
        let f = s.broken(P, &[]);
        assert!(f.events.contains(&data) && f.events.contains(&stray));
        assert!(
            f.happened
                .contains(&format!("request {stray}, which is not the call's"))
        );
        let shared = [DISK + 2 * B - 512, DISK + 2 * B];
        assert_eq!(f.details["pairs"][0]["disk"], serde_json::json!(shared));
    }
}

#[test]
fn one_after_the_other_or_side_by_side_is_no_overlap() {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    // Neighbours, and the same block once its write is completed.
    let before = s.stray(DISK - 512, 512);
    let after = s.stray(DISK + 2 * B, 512);
    let w = s.stray(DISK, 2 * B);
    s.ok(w);
    let data = s.write(1, DISK, 2 * B);
    // A read of the very block, and a flush, are no writes.
    s.submit(Op::Read, 0, DISK, B);
    s.submit(Op::Flush, 0, 0, 0);
    s.ok(data);
    let again = s.stray(DISK, B);
    for id in [before, after, again] {
        s.ok(id);
    }
    s.end(&c, 2 * B as i64);
    s.held(P, 1).silent();
}

#[test]
fn a_call_that_sends_a_block_twice_at_a_time() {
    let mut s = Stream::booted();
    let c = call(1, 0, 4 * B);
    s.begin(&c);
    s.write(1, DISK, 4 * B);
    s.write(1, DISK + 3 * B, B);
    s.all_ok();
    s.end(&c, 4 * B as i64);
    s.broken(P, &["cover", "order"]);
}

#[test]
fn the_owner_of_an_o_direct_buffer_may_do_as_he_likes() {
    // Known: the other is a marked direct call.
    let mut s = Stream::booted();
    let (c, d) = (call(1, 0, B), direct(2, 0, B));
    s.begin(&d);
    s.write(2, DISK, B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.end(&d, B as i64);
    s.silent().held(P, 1);
    assert_eq!(s.of(P).observations.len(), 1);
    // Suspected: somebody writes the file so, and this one has no tag.
    let mut s = Stream::booted();
    s.run(&direct(2, 32 << 20, B), &[(DISK + (32 << 20), B)]);
    s.begin(&c);
    s.write(1, DISK, B);
    s.stray(DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.silent().held(P, 1);
    // Another file's direct call is no excuse.
    let mut s = Stream::booted();
    let other = CallBegin {
        ino: 9,
        ..direct(2, 32 << 20, B)
    };
    s.run(&other, &[(DISK + (32 << 20), B)]);
    s.begin(&c);
    s.write(1, DISK, B);
    s.stray(DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.broken(P, &[]);
    // That call itself is one, wherever it was thought to write.
    let mut s = Stream::booted();
    let other = CallBegin {
        ino: 9,
        ..direct(2, 0, B)
    };
    s.begin(&other);
    s.begin(&c);
    s.write(1, DISK, B);
    s.write(2, DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.silent().held(P, 1);
    // A tag that is nobody's may be a direct call that is not followed.
    let mut s = Stream::booted();
    s.begin(&c);
    s.write(1, DISK, B);
    s.write(77, DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.silent();
    // A request of the direct call itself is not judged, and two strangers are an observation.
    let mut s = Stream::booted();
    s.stray(DISK, B);
    s.stray(DISK, B);
    s.all_ok();
    s.silent();
    assert_eq!(s.of(P).observations.len(), 1);
}

#[test]
fn two_calls_that_overlap_are_told_to_both() {
    let mut s = Stream::booted();
    let (a, b) = (call(1, 0, B), call(2, 0, B));
    s.begin(&a);
    s.begin(&b);
    s.write(1, DISK, B);
    s.write(2, DISK, B);
    s.all_ok();
    s.end(&a, B as i64);
    s.end(&b, B as i64);
    let found: Vec<_> = s
        .verdicts()
        .findings()
        .filter(|f| f.promise == P)
        .cloned()
        .collect();
    assert_eq!(found.len(), 2);
}

#[test]
fn a_request_that_is_late_is_still_the_calls() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let late = s.write(1, DISK, B);
    s.end(&c, B as i64);
    let w = s.stray(DISK, B);
    s.ok(w);
    s.not_checked(P, "requests of the call were not completed");
    s.ok(late);
    s.broken(P, &["sync-return"]);
}

#[test]
fn what_is_not_known_is_not_judged() {
    let overlapping = |spoil: &dyn Fn(&mut Stream, &mut CallBegin)| {
        let mut s = Stream::booted();
        let mut c = call(1, 0, B);
        spoil(&mut s, &mut c);
        s.begin(&c);
        s.write(1, DISK, B);
        s.stray(DISK, B);
        s.all_ok();
        s.end(&c, B as i64);
        s.silent();
        s
    };
    overlapping(&|_, c| c.extents = None).not_checked(P, "extents unknown");
    overlapping(&|_, c| c.tag = None).not_checked(P, "the call has no tag");
    overlapping(&|s, _| s.env(&[("tags", "off")])).not_checked(P, "tags are off");
    // After a gap what is in flight is not known, so silence proves nothing.
    let mut s = Stream::booted();
    s.gap(3);
    s.mark(Mark::TestBegin { name: TEST.into() });
    s.env(&[("tags", "on")]);
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.not_checked(P, "events are missing");
    // A stop ends what was in flight before it.
    let mut s = Stream::booted();
    let lost = s.stray(DISK, B);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.abandon(lost);
    s.epoch += 1;
    s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.held(P, 1);
    // The same number again; a new boot.
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.stray(DISK, B);
    s.all_ok();
    s.power_on();
    s.mark(Mark::TestBegin { name: TEST.into() });
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.held(P, 1).silent();
}

#[test]
fn a_crowd_of_overlaps_is_bounded_and_said() {
    let mut s = Stream::booted();
    for _ in 0..2000 {
        s.stray(DISK, B);
    }
    let c = call(1, 8 * B, B);
    s.begin(&c);
    s.write(1, DISK + 8 * B, B);
    for _ in 0..300 {
        s.stray(DISK, B);
    }
    s.all_ok();
    s.end(&c, B as i64);
    s.silent()
        .not_checked(P, "more writes overlap than are followed");
    // A million pairs are one finding.
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    for _ in 0..500 {
        s.write(1, DISK, B);
    }
    s.all_ok();
    s.end(&c, B as i64);
    let f = s.broken(P, &["cover"]);
    assert!(f.details["pairs"].as_array().unwrap().len() <= 16);
}

#[test]
fn a_crowd_that_is_over_says_nothing_of_calls_after_it() {
    // More than are followed, and all over; or the last of them is there when the call begins.
    for over in [true, false] {
        let mut s = Stream::booted();
        for _ in 0..300 {
            s.stray(DISK, B);
        }
        s.all_ok();
        let c = call(1, 0, 2 * B);
        if !over {
            s.begin(&c);
            for _ in 0..300 {
                s.stray(DISK + 64 * B, B);
            }
            s.all_ok();
            s.write(1, DISK, 2 * B);
            s.all_ok();
            s.end(&c, 2 * B as i64);
            s.silent().not_checked(P, "more writes overlap");
        } else {
            s.run(&c, &[(DISK, 2 * B)]);
            s.held(P, 1).silent();
        }
    }
}

#[test]
fn a_stop_ends_those_that_met_others_too() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    let lost = [s.stray(DISK, B), s.stray(DISK, B), s.stray(DISK, B)];
    s.device(DeviceKind::QueueStop, 0, 0, "");
    for id in lost {
        s.abandon(id);
    }
    s.epoch += 1;
    s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
    s.run(&c, &[(DISK, B)]);
    s.held(P, 1).silent();
    // And one that met another and is completed, is over.
    let mut s = Stream::booted();
    let (a, b) = (s.stray(DISK, B), s.stray(DISK, B));
    s.ok(b);
    s.ok(a);
    s.run(&c, &[(DISK, B)]);
    s.held(P, 1).silent();
    // The other is not.
    for first in [true, false] {
        let mut s = Stream::booted();
        let (a, b) = (s.stray(DISK, B), s.stray(DISK, B));
        s.ok(if first { a } else { b });
        s.begin(&c);
        s.write(1, DISK, B);
        s.all_ok();
        s.end(&c, B as i64);
        s.broken(P, &[]);
    }
}

#[test]
fn sixteen_pairs_of_a_call_are_kept_and_they_are_the_first() {
    let mut s = Stream::booted();
    let c = call(1, 0, 40 * B);
    s.begin(&c);
    s.write(1, DISK, 40 * B);
    let second: Vec<u64> = (0..20).map(|n| s.stray(DISK + n * B, B)).collect();
    s.all_ok();
    s.end(&c, 40 * B as i64);
    let f = s.broken(P, &[]);
    let pairs = f.details["pairs"].as_array().unwrap();
    let told: Vec<u64> = pairs
        .iter()
        .map(|p| p["second"].as_u64().unwrap())
        .collect();
    assert_eq!(told, second[..16]);
    // What an older call of the number met is not the new one's.
    let mut s = Stream::booted();
    s.begin(&c);
    s.write(1, DISK, 40 * B);
    s.stray(DISK, B);
    s.all_ok();
    s.power_on();
    s.mark(Mark::TestBegin { name: TEST.into() });
    let d = CallBegin {
        flags: vec![],
        ..call(1, 0, B)
    };
    s.begin(&d);
    s.write(1, DISK, B);
    s.stray(DISK, B);
    s.all_ok();
    s.end(&d, B as i64);
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.held(P, 1).silent();
}

#[test]
fn a_write_that_meets_more_than_are_kept_is_said() {
    for (writes, lost) in [(17, false), (18, true)] {
        let mut s = Stream::booted();
        let c = call(1, 8 * B, B);
        s.begin(&c);
        s.write(1, DISK + 8 * B, B);
        for _ in 0..writes {
            s.stray(DISK, B);
        }
        s.all_ok();
        s.end(&c, B as i64);
        if lost {
            s.not_checked(P, "more writes overlap than are followed");
        } else {
            s.held(P, 1);
        }
        s.silent();
    }
}

#[test]
fn pairs_of_a_call_that_ends_early_are_kept_and_told_once() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.stray(DISK, B);
    s.end(&c, B as i64);
    s.all_ok();
    s.broken(P, &["sync-return"]);
    // Both of the same call.
    let mut s = Stream::booted();
    s.begin(&c);
    s.write(1, DISK, B);
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    let f = s.broken(P, &["cover", "order"]);
    assert_eq!(f.details["pairs"].as_array().unwrap().len(), 1);
}

#[test]
fn a_stop_and_a_boot_begin_anew() {
    // Of what was in flight at the stop nothing more is heard.
    let mut s = Stream::booted();
    s.stray(DISK, B);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.epoch += 1;
    s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.held(P, 1).silent();
    // The new kernel's files are others than the old one's.
    let mut s = Stream::booted();
    s.run(&direct(2, 32 << 20, B), &[(DISK + (32 << 20), B)]);
    s.power_on();
    s.mark(Mark::TestBegin { name: TEST.into() });
    let c = call(1, 0, B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.stray(DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.broken(P, &[]);
}

/// A write of the property test.
struct Write {
    id: RequestId,
    taken: usize,
    done: usize,
    disk: (u64, u64),
    /// 0: nobody; 1 and 2: judged calls; 3: a direct call; 4: a tag of nobody.
    who: u64,
}

/// Random writes of two calls, a direct call on another file, strangers, stray tags.
fn chance(seed: u64) -> (Stream, Vec<Write>) {
    let mut dice = Dice(seed);
    let mut s = Stream::booted();
    let calls = [call(1, 0, 16 * B), call(2, 32 * B, 16 * B)];
    let other = CallBegin {
        ino: 9,
        ..direct(3, 0, 64 * B)
    };
    s.begin(&other);
    for c in &calls {
        s.begin(c);
    }
    let mut writes: Vec<Write> = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    for step in 0..4 + dice.below(40) as usize {
        if !open.is_empty() && dice.one_in(2) {
            let n = open.swap_remove(dice.below(open.len() as u64) as usize);
            s.ok(writes[n].id);
            writes[n].done = step;
            continue;
        }
        let who = dice.below(5);
        let len = 512 * (1 + dice.below(12));
        // Judged calls keep to their range.
        let room = 16 * B - len;
        let at = match who {
            1 => dice.below(room / 512) * 512,
            2 => 32 * B + dice.below(room / 512) * 512,
            _ => dice.below(48 * B / 512) * 512,
        };
        let id = match who {
            0 => s.stray(DISK + at, len),
            4 => s.write(99, DISK + at, len),
            n => s.write(n as u16, DISK + at, len),
        };
        open.push(writes.len());
        writes.push(Write {
            id,
            taken: step,
            done: usize::MAX,
            disk: (at, at + len),
            who,
        });
    }
    s.all_ok();
    for c in &calls {
        s.end(c, c.len as i64);
    }
    s.end(&other, 0);
    (s, writes)
}

proptest! {
    #[test]
    fn every_pair_is_found_and_no_other(seed: u64) {
        let (s, writes) = chance(seed);
        let mut bad = [false; 3];
        for (i, a) in writes.iter().enumerate() {
            for b in &writes[i + 1..] {
                let together = b.taken < a.done;
                let shares = a.disk.0 < b.disk.1 && b.disk.0 < a.disk.1;
                let excused = [a.who, b.who].iter().any(|w| *w >= 3);
                if together && shares && !excused {
                    bad[a.who as usize] = true;
                    bad[b.who as usize] = true;
                }
            }
        }
        let verdicts = s.verdicts();
        for n in [1u64, 2] {
            let found = verdicts.findings().any(|f| f.promise == P && f.call.as_ref().is_some_and(|c| c.call == n));
            prop_assert_eq!(found, bad[n as usize], "call {}", n);
        }
        let clean = writes.iter().map(|w| w.who).filter(|w| [1, 2].contains(w)).collect::<std::collections::BTreeSet<_>>();
        let held = clean.iter().filter(|w| !bad[**w as usize]).count() as u64;
        let p = s.of(P);
        prop_assert_eq!(p.held, held);
        prop_assert_eq!(matches!(p.verdict, Verdict::Broken { .. }), bad[1] || bad[2]);
    }
}
