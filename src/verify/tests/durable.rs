// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `durable`.

use proptest::prelude::*;
use wtblk_shared::mark::CallBegin;

use super::super::contract::Contract;
use super::super::verdict::Verdict;
use super::builder::*;
use super::world::Dice;
use crate::trace::event::{Body, DeviceKind, Op, RequestId, Status};

fn dsync(number: u64, off: u64, len: u64) -> CallBegin {
    let mut c = call(number, off, len);
    c.flags.push("dsync".into());
    c
}

fn flush(s: &mut Stream) -> RequestId {
    s.submit(Op::Flush, 0, 0, 0)
}

/// A call of one block; what `between` does lies between its data and its end.
fn one(between: impl FnOnce(&mut Stream)) -> Stream {
    let mut s = Stream::booted();
    let c = dsync(1, 0, B);
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.ok(w);
    between(&mut s);
    s.end(&c, B as i64);
    s
}

#[test]
fn a_flush_after_the_data_holds_and_none_is_found() {
    one(|s| {
        let f = flush(s);
        s.ok(f);
    })
    .held("durable", 1)
    .silent();
    let f = one(|_| {}).broken("durable", &[]);
    assert!(
        f.happened.contains("no flush was completed before"),
        "{f:?}"
    );
    // Without DSYNC nobody asks.
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.not_checked("durable", "nothing to judge");
}

#[test]
fn a_flush_that_failed_or_is_under_way_does_not_count() {
    one(|s| {
        let f = flush(s);
        s.fail(f);
    })
    .broken("durable", &[]);
    one(|s| {
        flush(s);
    })
    .broken("durable", &[]);
    // The second one does.
    one(|s| {
        let f = flush(s);
        s.fail(f);
        let f = flush(s);
        s.ok(f);
    })
    .held("durable", 1);
}

#[test]
fn a_flush_that_was_sent_too_early_does_not_count() {
    let mut s = Stream::booted();
    let c = dsync(1, 0, 2 * B);
    s.begin(&c);
    let a = s.write(1, DISK, B);
    s.ok(a);
    let b = s.write(1, DISK + B, B);
    let f = flush(&mut s);
    s.ok(b);
    s.ok(f);
    let mut late = s.clone();
    s.end(&c, 2 * B as i64);
    let found = s.broken("durable", &[]);
    assert!(
        found.happened.contains(&format!("request {f}")),
        "{found:?}"
    );
    // Anybody's flush counts, on any queue.
    late.queue = 3;
    let f = flush(&mut late);
    late.queue = 0;
    late.ok(f);
    late.end(&c, 2 * B as i64);
    late.held("durable", 1).silent();
}

#[test]
fn a_flush_that_was_in_the_ring_before_the_completion_was_seen_does_not_count() {
    for (position, avail_after, good) in [
        (7, 8, false),
        (8, 8, true),
        (2, 65_534, true),
        (65_533, 2, false),
    ] {
        let mut s = one(|s| {
            let f = flush(s);
            s.ok(f);
        });
        for e in &mut s.events {
            match &mut e.body {
                Body::Submit(x) if x.op == Op::Flush => x.avail_pos = position,
                Body::Complete(x) => x.avail_after = avail_after,
                _ => {}
            }
        }
        if good {
            s.held("durable", 1);
        } else {
            s.broken("durable", &[]);
        }
    }
}

/// Positions of two rings, or of one ring a round later, say nothing of each other.
#[test]
fn positions_are_compared_in_one_round_of_one_ring_only() {
    let in_ring = |queue: u16, later: u64| {
        let mut s = Stream::booted();
        let c = dsync(1, 0, B);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        s.ok(w);
        s.next += later;
        s.queue = queue;
        let f = flush(&mut s);
        s.queue = 0;
        s.ok(f);
        s.end(&c, B as i64);
        for e in &mut s.events {
            if let Body::Complete(x) = &mut e.body {
                x.avail_after = 9;
            }
        }
        s
    };
    in_ring(0, 0).broken("durable", &[]);
    in_ring(0, (1 << 14) - 2).broken("durable", &[]);
    in_ring(0, (1 << 14) - 1).held("durable", 1).silent();
    in_ring(1, 0).held("durable", 1).silent();
}

#[test]
fn where_nothing_can_be_said_nothing_is() {
    // Write-through: trivially.
    let mut s = Stream::booted();
    s.device(DeviceKind::CacheMode, 0, 0, "");
    let c = dsync(1, 0, B);
    s.run(&c, &[(DISK, B)]);
    s.held("durable", 1);
    let seen = s
        .verdicts()
        .get(TEST, "durable")
        .unwrap()
        .observations
        .clone();
    assert!(
        seen.keys().any(|k| k.starts_with("held trivially")),
        "{seen:?}"
    );
    // The guest was told so, and knows no better.
    let mut s = Stream::booted();
    s.env(&[("write_cache", "write-through")]);
    s.run(&c, &[(DISK, B)]);
    s.not_checked("durable", "the guest was told");
    // It changed meanwhile.
    let mut s = Stream::booted();
    s.begin(&c);
    s.device(DeviceKind::CacheMode, 0, 0, "");
    let w = s.write(1, DISK, B);
    s.ok(w);
    s.end(&c, B as i64);
    s.not_checked("durable", "the device's cache mode changed");
    // It failed.
    let mut s = Stream::booted();
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.fail(w);
    s.end(&c, -5);
    s.not_checked("durable", "the call failed").silent();
    // Nothing is known of the device.
    let mut s = Stream::booted();
    s.gap(3);
    s.device(DeviceKind::Reset, 0, 0, "");
    s.env(&[("tags", "on")]);
    s.run(&c, &[(DISK, B)]);
    s.not_checked("durable", "events are missing");
}

proptest! {
    /// Requests of a call and flushes in any order: as the plain definition says.
    #[test]
    fn as_the_definition_says(seed: u64, steps in 1usize..40) {
        let mut dice = Dice(seed);
        let mut s = Stream::booted();
        let c = dsync(1, 0, 16 * B);
        s.begin(&c);
        let mut open: Vec<(RequestId, bool)> = Vec::new();
        let mut next = 0;
        let (mut data_done, mut flushes) = (Vec::new(), Vec::new());
        for _ in 0..steps {
            s.queue = dice.below(2) as u16;
            match dice.below(4) {
                0 if next < 16 => {
                    open.push((s.write(1, DISK + next * B, B), true));
                    next += 1;
                }
                1 => open.push((flush(&mut s), false)),
                _ if !open.is_empty() => {
                    let n = dice.below(open.len() as u64) as usize;
                    let (id, data) = open.swap_remove(n);
                    let bad = !data && dice.one_in(4);
                    let at = s.complete(id, if bad { Status::IOERR } else { Status::OK });
                    if data {
                        data_done.push(at);
                    } else if !bad {
                        flushes.push(id);
                    }
                }
                _ => {}
            }
        }
        let in_flight = open.iter().any(|(_, data)| *data);
        s.end(&c, 16 * B as i64);
        let covered = flushes.iter().any(|f| data_done.iter().all(|d| d < f));
        let verdicts = judge(&s.events, Contract::default());
        let got = &verdicts.get(TEST, "durable").unwrap().verdict;
        let want = if next == 0 {
            "not checked"
        } else if covered && !in_flight {
            "held"
        } else {
            "broken"
        };
        let is = match got {
            Verdict::Held { .. } => "held",
            Verdict::Broken { .. } => "broken",
            Verdict::NotChecked { .. } => "not checked",
        };
        prop_assert_eq!(is, want);
    }
}
