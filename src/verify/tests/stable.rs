// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `stable`: streams that break it, that nearly do, and a slow judge.

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, Mark};

use super::super::verdict::Finding;
use super::builder::*;
use super::world::Dice;
use crate::trace::change::Change;
use crate::trace::event::{Body, DeviceKind, Op};

const P: &str = "stable";

fn change(at: u32) -> Change {
    let (old, mut new) = (vec![0; 8192], vec![0; 8192]);
    (new[at as usize], new[at as usize + 1]) = (0xab, 0xcd);
    Change::of_bytes(&old, &new)
}

fn with_flags(flags: &[&str]) -> CallBegin {
    CallBegin {
        flags: flags.iter().map(|f| (*f).to_owned()).collect(),
        ..call(1, 3 * B, 2 * B)
    }
}

/// One call over two blocks, whose data changes at that byte.
fn changed(c: &CallBegin, spoil: impl Fn(&mut Stream)) -> Stream {
    let mut s = Stream::booted();
    spoil(&mut s);
    s.begin(c);
    let w = s.write(1, DISK + 3 * B, 2 * B);
    s.wait_ms(70);
    s.change(w, &change(5000));
    s.ok(w);
    s.end(c, 2 * B as i64);
    s
}

#[test]
fn a_change_is_told_with_place_contents_and_time() {
    let f: Finding = changed(&with_flags(&["writethrough"]), |_| {}).broken(P, &[]);
    for words in [
        "in flight for 70 ms",
        "bytes 5000 to 5002 (file offset 17288)",
        "from 0000 to abcd",
    ] {
        assert!(f.happened.contains(words), "{}", f.happened);
    }
    assert_eq!(f.details["changes"][0]["change"]["ranges"][0][0], 5000);
    assert_eq!(f.details["changes"][0]["in_flight_ns"], 70_000_000);
}

#[test]
fn the_digests_alone_prove_it_too() {
    let mut s = changed(&with_flags(&["writethrough"]), |_| {});
    s.events
        .retain(|e| !matches!(&e.body, Body::Device(d) if d.kind == DeviceKind::Changed));
    let f = s.broken(P, &[]);
    assert!(f.happened.contains("its digests differ"), "{}", f.happened);
    // What a guest's disk says in text, it says to nobody who believes it.
    let mut s = changed(&with_flags(&["writethrough"]), |_| {});
    for e in &mut s.events {
        if let Body::Device(d) = &mut e.body
            && d.kind == DeviceKind::Changed
        {
            d.text = "{\"ranges\":[[4294967295,4294967295]],\"exact\":true}".into();
        }
    }
    s.broken(P, &[]);
}

#[test]
fn the_same_data_is_stable_whatever_is_said_in_between() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.ok(w);
    // About a request that is over, and one that never was.
    s.device(DeviceKind::Changed, w, 1, &change(0).to_text());
    s.device(DeviceKind::Changed, 1 << 40, 1, "no text of ours");
    s.end(&c, B as i64);
    s.held(P, 1).silent();
}

#[test]
fn what_may_change_is_no_finding() {
    // Their owner's: O_DIRECT, pinned pages.
    let s = changed(&with_flags(&["direct"]), |_| {});
    s.silent();
    assert_eq!(s.of(P).observations.len(), 1);
    let s = changed(&with_flags(&["writethrough", "pinned"]), |_| {});
    s.silent().not_checked(P, "the pages are pinned");
    // Reads are what the device brings.
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let r = s.submit(Op::Read, ioprio(1), DISK, B);
    s.change(r, &change(0));
    s.write(1, DISK, B);
    s.all_ok();
    s.end(&c, B as i64);
    s.held(P, 1).silent();
    // A write of nobody, and a side request of the call.
    let mut s = Stream::booted();
    s.begin(&c);
    let stray = s.stray(DISK + 8 * B, B);
    let side = s.write(1, DISK + 9 * B, B);
    s.write(1, DISK, B);
    s.change(stray, &change(0));
    s.change(side, &change(0));
    s.all_ok();
    s.end(&c, B as i64);
    s.held(P, 1).silent();
    assert_eq!(s.of(P).observations.len(), 2);
}

#[test]
fn a_log_write_is_the_kernels_own() {
    for tag in [None, Some(1)] {
        let mut s = Stream::booted();
        let c = call(1, 0, B);
        s.begin(&c);
        let log = match tag {
            None => s.stray(LOG + 4096, 1024),
            Some(tag) => s.write(tag, LOG + 4096, 1024),
        };
        s.write(1, DISK, B);
        s.change(log, &change(17));
        s.all_ok();
        s.end(&c, B as i64);
        let f = s.broken(P, &[]);
        assert!(f.happened.starts_with("a log write") && f.call.is_none());
        // Half of it outside the log: whose it is cannot be said.
        let mut s = Stream::booted();
        let w = s.stray(LOG - 512, 1024);
        s.change(w, &change(17));
        s.ok(w);
        s.silent();
    }
}

#[test]
fn plain_writes_are_stable_where_the_disk_asked_before_the_mount() {
    let plain = |facts: &[(&str, &str)], mount_again: bool, with_direct: bool| {
        let mut s = Stream::booted();
        s.env(facts);
        if mount_again {
            s.mark(Mark::Fs {
                dev: 8,
                kind: "xfs".into(),
                bsize: B,
                log_start: LOG,
                log_len: 64 << 20,
            });
        }
        s.run(&call(1, 0, B), &[(DISK, B)]);
        if with_direct {
            let c = CallBegin {
                flags: vec!["direct".into()],
                ..call(2, 0, B)
            };
            s.run(&c, &[(DISK, B)]);
        }
        let w = s.stray(DISK + B, B);
        s.change(w, &change(1));
        s.ok(w);
        s
    };
    let on = [("stable_writes", "1")];
    plain(&on, true, false).broken(P, &[]);
    plain(&on, false, false).silent();
    plain(&[("stable_writes", "0")], true, false).silent();
    plain(&on, true, true).silent();
}

#[test]
fn who_did_not_look_has_seen_nothing() {
    let mut s = Stream::booted();
    s.unseen = true;
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.not_checked(P, "nobody looked");
    // One of two was not looked at: silence proves nothing, a change does.
    for other in [false, true] {
        let mut s = Stream::booted();
        let c = call(1, 0, 2 * B);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        s.unseen = true;
        s.write(1, DISK + B, B);
        if other {
            s.change(w, &change(1));
        }
        s.all_ok();
        s.end(&c, 2 * B as i64);
        if other {
            s.broken(P, &[]);
        } else {
            s.not_checked(P, "nobody looked");
        }
    }
    changed(&call(1, 3 * B, 2 * B), |s| s.env(&[("tags", "off")]))
        .silent()
        .not_checked(P, "tags are off");
    let mut c = call(1, 3 * B, 2 * B);
    c.extents = None;
    changed(&c, |_| {})
        .silent()
        .not_checked(P, "extents unknown");
}

#[test]
fn a_request_that_comes_back_after_the_end_is_waited_for() {
    let mut s = Stream::booted();
    let c = call(1, 0, B);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.end(&c, B as i64);
    s.not_checked(P, "requests of the call were not completed");
    s.change(w, &change(1));
    s.fail(w);
    s.broken(P, &["sync-return", "error-report"]);
    // What was told before the end is told, too.
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    let (a, b) = (s.write(1, DISK, B), s.write(1, DISK + B, B));
    s.change(a, &change(1));
    s.ok(a);
    s.end(&c, 2 * B as i64);
    s.ok(b);
    let f = s.broken(P, &["sync-return"]);
    assert!(f.happened.contains("bytes 1 to 3"), "{}", f.happened);
    assert!(s.of(P).observations.is_empty());
}

#[test]
fn a_kernel_that_changes_everything_costs_bounded_memory() {
    let mut s = Stream::booted();
    let c = call(1, 0, 6000 * 512);
    s.begin(&c);
    for i in 0..6000 {
        let w = s.write(1, DISK + i * 512, 512);
        s.change(w, &change(1));
        s.ok(w);
    }
    s.end(&c, 6000 * 512);
    let f = s.broken(P, &[]);
    assert!(f.happened.contains("6000 of 6000") && f.happened.contains("and 5996 more"));
    assert_eq!(f.details["changes"].as_array().unwrap().len(), 4096);
}

/// A call of so many writes of a sector, each changed; the finding.
fn all_change(s: &mut Stream, number: u64, writes: u64) {
    let c = call(number, 0, writes * 512);
    s.begin(&c);
    for i in 0..writes {
        let w = s.write(number as u16, DISK + i * 512, 512);
        s.change(w, &change(1));
        s.ok(w);
    }
    s.end(&c, writes as i64 * 512);
}

#[test]
fn what_was_told_gives_its_room_back() {
    let mut s = Stream::booted();
    for n in 1..=3 {
        all_change(&mut s, n, 3000);
    }
    let verdicts = s.verdicts();
    let found: Vec<_> = verdicts.findings().filter(|f| f.promise == P).collect();
    let kept = |f: &&Finding| f.details["changes"].as_array().unwrap().len();
    assert_eq!(found.iter().map(kept).collect::<Vec<_>>(), [3000; 3]);
    // A call that is not judged, and one whose number is used again.
    let mut s = Stream::booted();
    let again = CallBegin {
        flags: vec![],
        ..call(2, 0, B)
    };
    for c in [&call(1, 0, B), &again] {
        s.begin(c);
        for _ in 0..3000 {
            let w = s.write(c.tag.unwrap(), DISK, 512);
            s.change(w, &change(1));
            s.ok(w);
        }
        if c.call == 1 {
            s.begin(c);
        }
        s.end(c, B as i64);
    }
    let what = "data of a call that is not judged changed in flight";
    assert_eq!(s.of(P).observations[what], 6000);
    all_change(&mut s, 3, 3000);
    let f = s.broken(P, &[]);
    assert_eq!(f.details["changes"].as_array().unwrap().len(), 3000);
}

/// The numbers of calls start again with a boot.
#[test]
fn a_change_of_the_boot_before_is_not_the_next_ones() {
    let mut s = Stream::booted();
    let c = with_flags(&["writethrough"]);
    s.begin(&c);
    let w = s.write(1, DISK + 3 * B, 2 * B);
    s.change(w, &change(5000));
    s.ok(w);
    s.power_on();
    s.probe_order(&[0, 1, 2]);
    s.mark(Mark::TestBegin { name: TEST.into() });
    s.run(&c, &[(DISK + 3 * B, 2 * B)]);
    s.silent().held(P, 1);
}

#[test]
fn what_is_told_of_requests_that_nobody_compares_takes_no_room() {
    let mut s = Stream::booted();
    for _ in 0..5000 {
        let r = s.submit(Op::Read, 0, DISK, B);
        s.change(r, &change(0));
    }
    s.unseen = true;
    for n in 0..5000 {
        let w = s.stray(DISK + (n + 1) * 8 * B, B);
        s.change(w, &change(0));
    }
    s.unseen = false;
    let c = call(1, 0, B);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.change(w, &change(77));
    s.ok(w);
    s.end(&c, B as i64);
    let f = s.broken(P, &[]);
    assert!(f.happened.contains("bytes 77 to 79"), "{}", f.happened);
}

/// A request of two extents that touch on the disk: the file offset is that of the part.
#[test]
fn a_place_in_the_second_part_of_a_request() {
    for (at, file) in [(0, 0), (4095, 4095), (4096, 40 * B), (4097, 40 * B + 1)] {
        let mut s = Stream::booted();
        let c = CallBegin {
            extents: Some(vec![
                ext(0, DISK, B),
                ext(B, DISK + 2 * B, 39 * B),
                ext(40 * B, DISK + B, B),
            ]),
            ..call(1, 0, 41 * B)
        };
        s.begin(&c);
        let w = s.write(1, DISK, 2 * B);
        s.change(w, &change(at));
        s.write(1, DISK + 2 * B, 39 * B);
        s.all_ok();
        s.end(&c, 41 * B as i64);
        let f = s.broken(P, &["order"]);
        let said = format!("bytes {at} to {} (file offset {file})", at + 2);
        assert!(f.happened.contains(&said), "{}", f.happened);
    }
}

#[test]
fn log_writes_that_are_stable_count_where_a_test_runs() {
    let mut s = Stream::booted();
    for n in 0..3 {
        let w = s.stray(LOG + n * 4096, 1024);
        s.ok(w);
    }
    // Half of it outside the log.
    let w = s.stray(LOG - 512, 1024);
    s.ok(w);
    s.held(P, 3);
    s.mark(Mark::TestEnd { name: TEST.into() });
    let w = s.stray(LOG, 1024);
    s.ok(w);
    s.held(P, 3);
}

proptest! {
    /// Some requests change, some nobody looked at, some calls are not judged.
    #[test]
    fn each_call_is_judged_by_its_own_requests(seed: u64) {
        let mut dice = Dice(seed);
        let mut s = Stream::booted();
        let mut want = Vec::new();
        let mut open = Vec::new();
        for n in 1..=1 + dice.below(6) {
            let mut c = call(n, n * 16 * B, 4 * B);
            let kind = dice.below(6);
            match kind {
                0 => c.flags = vec!["direct".into()],
                1 => c.extents = None,
                _ => {}
            }
            s.begin(&c);
            let (mut looked, mut bad) = (true, false);
            for i in 0..4 {
                s.unseen = dice.one_in(12);
                let w = s.write(n as u16, DISK + (n * 16 + i) * B, B);
                looked &= !s.unseen;
                if !s.unseen && dice.one_in(6) {
                    s.change(w, &change(0));
                    bad = true;
                }
                s.unseen = false;
            }
            want.push((n, bad && kind > 1, kind > 1 && looked && !bad));
            open.push(c);
            if dice.one_in(2) {
                s.all_ok();
                for c in open.drain(..) {
                    s.end(&c, c.len as i64);
                }
            }
        }
        s.all_ok();
        for c in open {
            s.end(&c, c.len as i64);
        }
        let verdicts = s.verdicts();
        for (n, bad, _) in &want {
            let found = verdicts.findings().any(|f| f.promise == P && f.call.as_ref().is_some_and(|c| c.call == *n));
            prop_assert_eq!(found, *bad, "call {}", n);
        }
        let held = want.iter().filter(|w| w.2).count() as u64;
        prop_assert_eq!(s.of(P).held, held);
    }
}
