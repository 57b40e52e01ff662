// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups that complete in a planned order: every order of five held writes,
//! on one queue and over several, and what ends a group that never fills.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::driver::*;
use common::inside::Inside;
use common::serve::Trace;
use common::until;
use wtblk::fault::request::{OrderBy, OrderSlot, Plan, Request};
use wtblk::trace::event::{DeviceKind, Op};

fn slot(group: u64, size: u32, turn: u32) -> Plan {
    Plan {
        order: Some(OrderSlot {
            group,
            size,
            turn: OrderBy::Turn(turn),
            limit_ns: None,
        }),
        ..Plan::default()
    }
}

/// The `index`-th order of `n` things.
fn permutation(n: u32, mut index: u32) -> Vec<u32> {
    let mut left: Vec<u32> = (0..n).collect();
    let mut order = Vec::new();
    for k in (1..=n).rev() {
        let below: u32 = (1..k).product();
        order.push(left.remove((index / below) as usize));
        index %= below;
    }
    order
}

/// Sectors of the writes in the order of their completions.
fn completed(trace: &Trace) -> Vec<u64> {
    let submits = trace.submits();
    let sector = |request: u64| submits.iter().find(|s| s.0 == request).map(|s| s.1.sector);
    let completes = trace.completes();
    completes
        .iter()
        .filter_map(|(_, c)| sector(c.request))
        .collect()
}

fn all_orders(queues: u16) {
    // Request `i` of round `r` writes sector `10 r + i`; its turn is where the order of the round has it.
    let mut inside = Inside::start(queues, vec![], false, |request: &Request| {
        let (round, i) = (request.sector / 10, request.sector % 10);
        let order = permutation(5, round as u32);
        let turn = order.iter().position(|&o| u64::from(o) == i)?;
        Some(slot(round, 5, turn as u32))
    });
    let mut d = inside.data(usize::from(queues));
    for round in 0..120u64 {
        let mut heads = Vec::new();
        for i in 0..5u64 {
            let queue = (i % u64::from(queues)) as usize;
            d.poke(d.slot(queue, i) + 0x1000, &[round as u8 + i as u8; 512]);
            heads.push((queue, i, d.submit(queue, i, OUT, round * 10 + i, 512)));
        }
        (0..usize::from(queues)).for_each(|q| d.kick(q));
        for (queue, i, head) in heads {
            assert_eq!(d.finish(queue, i, head), 0);
        }
        (0..usize::from(queues)).for_each(|q| d.queues[q].forget());
    }
    drop(d);
    let trace = inside.end();
    trace.assert_paired();
    let order = completed(&trace);
    for (round, seen) in order.chunks(5).enumerate() {
        let want = permutation(5, round as u32);
        let want: Vec<u64> = want
            .iter()
            .map(|&i| round as u64 * 10 + u64::from(i))
            .collect();
        assert_eq!(seen, want, "round {round}");
    }
    assert_eq!(order.len(), 600);
    for at in 0..1200u64 {
        if at % 10 < 5 {
            let byte = (at / 10) as u8 + (at % 10) as u8;
            assert_eq!(inside.image(at, 512), vec![byte; 512]);
        }
    }
}

#[test]
fn every_order_of_five_writes() {
    all_orders(1);
}

#[test]
fn every_order_of_five_writes_over_three_queues() {
    all_orders(3);
}

#[test]
fn by_offset_and_by_a_limit() {
    let mut inside = Inside::start(1, vec![], false, |request: &Request| {
        let mut plan = slot(request.sector / 1000, 3, 0);
        if let Some(order) = &mut plan.order {
            order.turn = OrderBy::Offset(request.sector * 512);
            order.limit_ns = (request.sector >= 1000).then_some(30_000_000);
        }
        Some(plan)
    });
    let mut d = inside.data(1);
    for sectors in [&[30u64, 10, 20][..], &[1030, 1010]] {
        let submit = |(n, &at): (usize, &u64)| (n as u64, d.submit(0, n as u64, OUT, at, 512));
        let heads: Vec<_> = sectors.iter().enumerate().map(submit).collect();
        d.kick(0);
        for (n, head) in heads {
            assert_eq!(d.finish(0, n, head), 0);
        }
        d.queues[0].forget();
    }
    drop(d);
    assert_eq!(completed(&inside.end()), [10, 20, 30, 1010, 1030]);
}

#[test]
fn a_group_that_never_fills_is_seen_released_or_ended_by_its_ring() {
    let arrived = Arc::new(AtomicU64::new(0));
    let theirs = arrived.clone();
    let mut inside = Inside::start(2, vec![], false, move |request: &Request| {
        let n = theirs.fetch_add(1, Ordering::SeqCst);
        (request.op == Op::Write).then(|| slot(request.sector / 100, 4, 3 - (n % 4) as u32))
    });
    let mut d = inside.data(2);
    let mut mark = inside.mark();
    let mut heads = Vec::new();
    for n in 0..3u64 {
        let queue = (n % 2) as usize;
        heads.push((queue, n, d.submit(queue, n, OUT, n, 512)));
        d.kick(queue);
        assert_eq!(mark.mark(&format!("wait held={}", n + 1)), 0);
    }
    let state = mark.state();
    assert!(
        state.contains(" groups=plan:3/4 hung=0 held=3 inflight=3 "),
        "{state}"
    );
    assert_eq!(mark.mark("release"), 0);
    for (queue, n, head) in heads.drain(..) {
        assert_eq!(d.finish(queue, n, head), 0);
    }
    // The fourth of it, late: nobody to wait for.
    assert_eq!(d.write(50, &[1; 512]), 0);
    (0..2).for_each(|q| d.queues[q].forget());
    for n in 0..3u64 {
        let queue = (n % 2) as usize;
        heads.push((queue, n, d.submit(queue, n, OUT, 100 + n, 512)));
        d.kick(queue);
        assert_eq!(mark.mark(&format!("wait held={}", n + 1)), 0);
    }
    // Queue 0 stops: its two go, the one of queue 1 stays until the fourth has come.
    d.stop(0);
    until("the completions of a stop", || {
        (d.is_done(0, heads[0].2) && d.is_done(0, heads[2].2)).then_some(())
    });
    assert!(!d.is_done(1, heads[1].2));
    assert!(mark.state().contains(" groups=plan:1/4 "));
    let last = d.submit(1, 9, OUT, 103, 512);
    d.kick(1);
    assert_eq!(d.finish(1, 9, last), 0);
    assert_eq!(d.finish(1, 1, heads[1].2), 0);
    assert!(mark.state().contains(" groups= hung=0 held=0 inflight=0 "));
    drop((d, mark));
    let trace = inside.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::Release), [(3, 0, "*".into())]);
}

/// An order and an error, a hang and a stop: whatever is kept ends with its ring.
#[test]
fn errors_in_a_group_and_hanging_requests() {
    let plans: Arc<Mutex<Vec<Plan>>> = Arc::default();
    let theirs = plans.clone();
    let mut inside = Inside::start(1, vec![], false, move |_: &Request| {
        theirs.lock().unwrap().pop()
    });
    let mut d = inside.data(1);
    let mut mark = inside.mark();
    let fails = Plan {
        status: Some(wtblk::trace::event::Status::IOERR),
        ..slot(0, 2, 0)
    };
    *plans.lock().unwrap() = vec![fails, slot(0, 2, 1)];
    let heads = [d.submit(0, 1, OUT, 1, 512), d.submit(0, 2, OUT, 2, 512)];
    d.kick(0);
    assert_eq!(d.finish(0, 1, heads[0]), 0);
    assert_eq!(d.finish(0, 2, heads[1]), 1);
    let hang = Plan {
        hang: true,
        ..Plan::default()
    };
    *plans.lock().unwrap() = vec![hang.clone(), hang];
    d.poke(d.slot(0, 3) + 0x1000, &[7; 512]);
    let heads = [d.submit(0, 3, OUT, 3, 512), d.submit(0, 4, IN, 1, 512)];
    d.kick(0);
    until("two that hang", || {
        mark.state().contains(" hung=2 ").then_some(())
    });
    assert_eq!(mark.mark("release"), 0);
    assert!(
        mark.state().contains(" hung=2 "),
        "a release is not for them"
    );
    d.stop(0);
    assert_eq!(d.finish(0, 3, heads[0]), 0);
    assert_eq!(d.finish(0, 4, heads[1]), 0);
    assert_eq!(inside.image(3, 512), [7; 512]);
    drop((d, mark));
    inside.end().assert_paired();
}
