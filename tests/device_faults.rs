// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a plan does to data, status and time, seen by a driver: status byte,
//! used length, the guest's buffer, bytes on the disk.

mod common;

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::driver::*;
use common::inside::Inside;
use wtblk::fault::SectorRange;
use wtblk::fault::request::{DataFault, Hold, Plan, Request};
use wtblk::trace::event::{Body, DeviceKind, Op, Status};

const PAGE: usize = 4096;

/// A device whose next requests of a kind get the plans that are put in.
struct Faulty {
    inside: Inside,
    plans: Arc<Mutex<Vec<(Op, Plan)>>>,
}

impl Faulty {
    fn start(volatile: bool) -> Faulty {
        let plans: Arc<Mutex<Vec<(Op, Plan)>>> = Arc::default();
        let theirs = plans.clone();
        let kept = vec![SectorRange { start: 64, len: 64 }];
        let inside = Inside::start(1, kept, volatile, move |request: &Request| {
            let mut plans = theirs.lock().unwrap();
            let found = plans.iter().position(|p| p.0 == request.op)?;
            Some(plans.remove(found).1)
        });
        Faulty { inside, plans }
    }

    fn next(&self, op: Op, plan: Plan) {
        self.plans.lock().unwrap().push((op, plan));
    }
}

fn data(fault: DataFault) -> Plan {
    Plan {
        data: Some(fault),
        ..Plan::default()
    }
}

fn pattern(salt: u8) -> Vec<u8> {
    (0..PAGE)
        .map(|i| (i / 512 * 16) as u8 ^ (i % 7) as u8 ^ salt)
        .collect()
}

#[test]
fn torn_and_dropped_writes() {
    let f = Faulty::start(false);
    let mut d = f.inside.data(1);
    let (old, new) = (pattern(0), pattern(0xff));
    for (status, store) in [
        (None, false),
        (Some(Status::IOERR), true),
        (Some(Status(77)), true),
    ] {
        assert_eq!(d.write(8, &old), 0);
        let plan = Plan {
            status,
            store,
            ..data(DataFault::Torn(vec![(1, 2), (7, 1), (9, 4)]))
        };
        f.next(Op::Write, plan);
        assert_eq!(d.write(8, &new), status.map_or(0, |s| s.0));
        let mut want = old.clone();
        want[512..1536].copy_from_slice(&new[512..1536]);
        want[3584..].copy_from_slice(&new[3584..]);
        assert_eq!(d.read(8, PAGE), (0, want.clone()));
        assert_eq!(
            f.inside.image(8, PAGE),
            want,
            "and nothing behind the request"
        );
        assert_eq!(f.inside.image(16, 512), [0; 512]);
    }
    assert_eq!(d.write(8, &old), 0);
    f.next(Op::Write, data(DataFault::Dropped));
    assert_eq!(d.write(8, &new), 0);
    f.next(Op::Write, data(DataFault::Torn(vec![])));
    assert_eq!(d.write(8, &new), 0);
    // An error without `store` touches nothing, whatever else is planned.
    let plan = Plan {
        status: Some(Status::UNSUPP),
        ..data(DataFault::Torn(vec![(0, 8)]))
    };
    f.next(Op::Write, plan);
    assert_eq!(d.write(8, &new), 2);
    assert_eq!(d.read(8, PAGE), (0, old));
}

#[test]
fn corruption_on_the_way_out_and_in() {
    let f = Faulty::start(false);
    let mut d = f.inside.data(1);
    let bytes = pattern(3);
    let bits = vec![(0, 1), (513, 0x80), (514, 2), (4095, 0xff), (5000, 1)];
    let mut flipped = bytes.clone();
    for &(at, mask) in &bits[..4] {
        flipped[at as usize] ^= mask;
    }
    f.next(Op::Write, data(DataFault::Corrupt(bits.clone())));
    assert_eq!(d.write(100, &bytes), 0);
    assert_eq!(
        d.peek(d.slot(0, 0) + 0x1000, PAGE),
        bytes,
        "the guest's buffer"
    );
    assert_eq!(f.inside.image(100, PAGE), flipped);
    assert_eq!(d.read(100, PAGE), (0, flipped.clone()));
    f.next(Op::Read, data(DataFault::Corrupt(bits)));
    assert_eq!(d.read(100, PAGE), (0, bytes), "flipped back");
    assert_eq!(f.inside.image(100, PAGE), flipped, "the disk is as it was");
}

#[test]
fn corruption_across_segments_of_any_length() {
    let f = Faulty::start(false);
    let mut d = f.inside.data(1);
    let slot = d.slot(0, 5);
    d.header(slot, OUT, 0, 200);
    d.poke(slot + 0x1000, &[1; 1024]);
    let status = slot + 0x20;
    let parts = vec![
        (slot, 16, 0),
        (slot + 0x1000, 511, 0),
        (slot + 0x1000 + 511, 2, 0),
        (slot + 0x1000 + 513, 511, 0),
        (status, 1, WRITE),
    ];
    f.next(
        Op::Write,
        data(DataFault::Corrupt(vec![(511, 2), (512, 4)])),
    );
    let head = d.chain(0, &parts);
    d.kick(0);
    d.wait(0, head);
    let mut want = [1u8; 1024];
    (want[511], want[512]) = (3, 5);
    assert_eq!(f.inside.image(200, 1024), want);
}

#[test]
fn misdirected_and_stale() {
    let f = Faulty::start(true);
    let mut d = f.inside.data(1);
    let (old, new) = (pattern(1), pattern(2));
    assert_eq!(d.write(64, &old), 0);
    f.next(Op::Write, data(DataFault::Misdirected(1000)));
    assert_eq!(d.write(64, &new), 0);
    assert_eq!(d.read(64, PAGE), (0, old.clone()));
    assert_eq!(d.read(1000, PAGE), (0, new.clone()));
    f.next(Op::Read, data(DataFault::Misdirected(1000)));
    assert_eq!(d.read(64, PAGE), (0, new.clone()));
    let end = common::inside::SIZE / 512;
    for op in [Op::Write, Op::Read] {
        for beyond in [end - 7, end, u64::MAX] {
            f.next(op, data(DataFault::Misdirected(beyond)));
            let status = match op {
                Op::Write => d.write(64, &new),
                _ => d.read(64, PAGE).0,
            };
            assert_eq!(status, 1, "{op:?} to {beyond}");
        }
    }
    f.next(Op::Read, data(DataFault::Stale));
    assert_eq!(
        d.read(64, PAGE),
        (0, vec![0; PAGE]),
        "before the only write"
    );
    assert_eq!(d.write(64, &new), 0);
    f.next(Op::Read, data(DataFault::Stale));
    assert_eq!(d.read(64, PAGE), (0, old), "before the last write");
    assert_eq!(d.read(64, PAGE), (0, new));
}

#[test]
fn raw_statuses_and_used_lengths() {
    let f = Faulty::start(false);
    let mut d = f.inside.data(1);
    for used_len in [0, 1, 77, u32::MAX] {
        for op in [Op::Read, Op::Write, Op::Flush] {
            let plan = Plan {
                used_len: Some(used_len),
                status: (used_len == 77).then_some(Status(200)),
                ..Plan::default()
            };
            f.next(op, plan);
            let (kind, len) = match op {
                Op::Read => (IN, 512),
                Op::Write => (OUT, 512),
                _ => (FLUSH, 0),
            };
            let head = d.submit(0, 3, kind, 0, len);
            d.kick(0);
            assert_eq!(d.wait(0, head), used_len);
            let want = if used_len == 77 { 200 } else { 0 };
            assert_eq!(d.status(d.slot(0, 3) + 0x20), want);
            d.queues[0].forget();
        }
    }
}

#[test]
fn delays_end_by_themselves_and_hold_up_nobody() {
    let mut f = Faulty::start(false);
    let mut d = f.inside.data(1);
    let begin = Instant::now();
    let ms = |ms: u64| Plan {
        delay_ns: Some(ms * 1_000_000),
        ..Plan::default()
    };
    // Late ones first: forty at once.
    let mut heads = Vec::new();
    for n in 0..40u64 {
        f.next(Op::Write, ms(400 - n * 5));
        heads.push(d.submit(0, n, OUT, n, 512));
    }
    d.kick(0);
    let past = d.submit(0, 50, IN, 5000, 512);
    d.kick(0);
    assert_eq!(d.finish(0, 50, past), 0);
    assert!(begin.elapsed() < Duration::from_millis(190));
    for (n, &head) in heads.iter().enumerate() {
        assert_eq!(d.finish(0, n as u64, head), 0);
    }
    assert!(begin.elapsed() >= Duration::from_millis(400));
    // A delay, then the error.
    let plan = Plan {
        status: Some(Status::IOERR),
        ..ms(30)
    };
    let begin = Instant::now();
    f.next(Op::Write, plan);
    assert_eq!(d.write(0, &[7; 512]), 1);
    assert!(begin.elapsed() >= Duration::from_millis(30));
    drop(d);
    let trace = f.inside.end();
    trace.assert_paired();
    let time = |seq: u64| trace.0.iter().find(|e| e.seq == seq).unwrap().time_ns;
    let completes = trace.completes();
    let delayed: Vec<_> = trace.submits();
    let delayed = delayed.iter().filter(|(_, s)| s.op == Op::Write).take(40);
    for (seq, submit) in delayed {
        let end = completes.iter().find(|c| c.1.request == *seq).unwrap().0;
        let waited = time(end) - time(*seq);
        assert!(
            waited >= (400 - submit.sector * 5) * 1_000_000,
            "{waited} {submit:?}"
        );
    }
}

#[test]
fn a_hold_has_its_limit_and_a_read_is_done_before_it_waits() {
    let mut f = Faulty::start(false);
    let mut d = f.inside.data(1);
    let mut mark = f.inside.mark();
    let hold = |limit: Option<u64>| Plan {
        hold: Some(Hold {
            limit_ns: limit.map(|ms| ms * 1_000_000),
        }),
        ..Plan::default()
    };
    assert_eq!(d.write(10, &[1; 512]), 0);
    f.next(Op::Read, hold(None));
    let read = d.submit(0, 1, IN, 10, 512);
    d.kick(0);
    assert_eq!(mark.mark("wait held=1"), 0);
    assert_eq!(d.write(10, &[2; 512]), 0);
    assert_eq!(mark.mark("release"), 0);
    assert_eq!(d.finish(0, 1, read), 0);
    assert_eq!(
        d.peek(d.slot(0, 1) + 0x1000, 512),
        [1; 512],
        "it was done before"
    );
    let begin = Instant::now();
    f.next(Op::Write, hold(Some(50)));
    assert_eq!(d.write(10, &[3; 512]), 0);
    assert!(begin.elapsed() >= Duration::from_millis(50));
    // One that is let go before its limit leaves no clock behind.
    f.next(Op::Write, hold(Some(100_000)));
    let head = d.submit(0, 1, OUT, 11, 512);
    d.kick(0);
    assert_eq!(mark.mark("wait held=1"), 0);
    assert_eq!(mark.mark("release"), 0);
    assert_eq!(d.finish(0, 1, head), 0);
    drop((d, mark));
    let trace = f.inside.end();
    trace.assert_paired();
    let decides: Vec<bool> = trace
        .0
        .iter()
        .filter_map(|e| match &e.body {
            Body::Decide(d) => Some(d.hold),
            _ => None,
        })
        .collect();
    assert_eq!(decides, [true; 3]);
    let releases = trace.device(DeviceKind::Release);
    assert_eq!(releases.len(), 3);
    assert_eq!((releases[1].0, releases[1].2.as_str()), (1, "plan"));
}
