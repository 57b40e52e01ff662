// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random plans times random request streams, with releases and stops in
//! between: no request is lost, none completes twice, and what is kept is let
//! go when its ring stops.

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::driver::*;
use common::inside::{Inside, SIZE};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use wtblk::fault::SectorRange;
use wtblk::fault::request::{DataFault, DeviceFault, Hold, OrderBy, OrderSlot, Plan, Request};
use wtblk::trace::event::{Body, DeviceKind, Status};

fn data_fault() -> impl Strategy<Value = DataFault> {
    let end = SIZE / 512;
    prop_oneof![
        prop::collection::vec((0u32..10, 0u32..4), 0..3).prop_map(DataFault::Torn),
        prop::collection::vec((0u32..6000, any::<u8>()), 0..4).prop_map(DataFault::Corrupt),
        Just(DataFault::Dropped),
        (0..end + 100).prop_map(DataFault::Misdirected),
        Just(DataFault::Stale),
        (0u32..5).prop_map(DataFault::LateFlush),
    ]
}

fn plan() -> impl Strategy<Value = Plan> {
    let slot = (0u64..4, 1u32..5, 0u32..5, any::<bool>()).prop_map(|(group, size, turn, limit)| {
        OrderSlot {
            group,
            size,
            turn: OrderBy::Turn(turn),
            limit_ns: limit.then_some(2_000_000),
        }
    });
    let hold = prop::option::of(1_000u64..3_000_000).prop_map(|limit_ns| Hold { limit_ns });
    let parts = (
        prop::option::weighted(0.3, 0u64..3_000_000),
        prop::option::weighted(0.3, hold),
        prop::option::weighted(0.2, slot),
        prop::bool::weighted(0.1),
        prop::option::weighted(0.4, data_fault()),
        prop::option::weighted(0.3, (0u8..5).prop_map(Status)),
        any::<bool>(),
        prop::option::weighted(0.1, any::<u32>()),
    );
    parts.prop_map(
        |(delay_ns, hold, order, hang, data, status, store, used_len)| Plan {
            delay_ns,
            hold,
            order,
            hang,
            data,
            status,
            store,
            used_len,
            device: None,
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Request(usize, u32, u64, Option<Plan>),
    Release,
    Stop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop::sample::select(vec![IN, OUT, OUT, FLUSH, GET_ID, 11, 99]);
    prop_oneof![
        12 => (0..2usize, kind, 0u64..200, prop::option::weighted(0.7, plan()))
            .prop_map(|(q, kind, at, plan)| Step::Request(q, kind, at, plan)),
        1 => Just(Step::Release),
        1 => (0..2usize).prop_map(Step::Stop),
    ]
}

/// How the whole comes to its end.
fn last() -> impl Strategy<Value = Option<DeviceFault>> {
    let faults = vec![
        None,
        Some(DeviceFault::Gone),
        Some(DeviceFault::Cut),
        Some(DeviceFault::Disconnect { lose: true }),
        Some(DeviceFault::Disconnect { lose: false }),
    ];
    prop::sample::select(faults)
}

fn run(steps: &[Step], last: Option<DeviceFault>, volatile: bool) {
    let plans: Arc<Mutex<BTreeMap<(u16, u64), Plan>>> = Arc::default();
    let theirs = plans.clone();
    // A request is known by its queue and, as the device numbers them in order, its turn on it.
    let mut counts = [0u64; 2];
    let kept = vec![SectorRange { start: 0, len: 50 }];
    let mut inside = Inside::start(2, kept, volatile, move |request: &Request| {
        let count = &mut counts[usize::from(request.queue)];
        *count += 1;
        theirs.lock().unwrap().remove(&(request.queue, *count))
    });
    let mut d = inside.data(2);
    let mut mark = inside.mark();
    let mut sent = [0u64; 2];
    // By queue: slot, head, of what is out.
    let mut out: [BTreeMap<u64, u16>; 2] = Default::default();
    let stop =
        |d: &mut Driver, mark: &mut Driver, out: &mut [BTreeMap<u64, u16>; 2], queue: usize| {
            // The mark's barrier: everything was taken.
            assert_eq!(mark.mark("note text=stop"), 0);
            let base = d.stop(queue);
            for (_, head) in std::mem::take(&mut out[queue]) {
                assert!(d.is_done(queue, head), "released by the stop");
            }
            d.queues[queue].forget();
            d.start(queue, base);
        };
    for step in steps {
        match step {
            Step::Request(queue, kind, at, plan) => {
                if sent[*queue] % 32 == 31 {
                    // Slots and descriptors come round.
                    stop(&mut d, &mut mark, &mut out, *queue);
                }
                sent[*queue] += 1;
                if let Some(plan) = plan {
                    let key = (*queue as u16, sent[*queue]);
                    plans.lock().unwrap().insert(key, plan.clone());
                }
                let n = sent[*queue] % 32;
                let len = match *kind {
                    IN | OUT => 4096,
                    GET_ID => 20,
                    _ => 0,
                };
                let head = d.submit(*queue, n, *kind, *at, len);
                out[*queue].insert(n, head);
                d.kick(*queue);
            }
            Step::Release => assert_eq!(mark.mark("release"), 0),
            Step::Stop(queue) => stop(&mut d, &mut mark, &mut out, *queue),
        }
    }
    if let Some(device) = last {
        sent[0] += 1;
        let device = Some(device);
        let plan = Plan {
            device,
            ..Plan::default()
        };
        plans.lock().unwrap().insert((0, sent[0]), plan);
        d.submit(0, 40, OUT, 0, 512);
        d.kick(0);
        // The mark's barrier: it was taken.
        assert_eq!(mark.mark("note text=last"), 0);
    }
    drop((d, mark));
    let trace = inside.end();
    trace.assert_paired();
    let fault = last
        .is_some_and(|f| matches!(f, DeviceFault::Cut | DeviceFault::Disconnect { lose: true }));
    if !fault {
        let abandoned = trace.completes().iter().filter(|c| c.1.abandoned).count();
        assert_eq!(abandoned, 0);
    }
    assert_eq!(trace.device(DeviceKind::BadRing).len(), 0);
    assert_eq!(trace.device(DeviceKind::Limit).len(), 0);
    // Every request that a rule kept has come to an end after it was kept.
    for event in &trace.0 {
        if let Body::Decide(decide) = &event.body {
            let completes = trace.completes();
            let end = completes.iter().find(|c| c.1.request == decide.request);
            assert!(end.is_some_and(|end| end.0 > event.seq));
        }
    }
}

#[test]
fn nothing_is_lost_and_nothing_comes_twice() {
    let config = Config {
        cases: 60,
        failure_persistence: None,
        ..Config::default()
    };
    let streams = (prop::collection::vec(step(), 1..60), last(), any::<bool>());
    let mut runner = TestRunner::new(config);
    let result = runner.run(&streams, |(steps, last, volatile)| {
        run(&steps, last, volatile);
        Ok(())
    });
    result.unwrap();
}
