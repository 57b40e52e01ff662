// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Flushes that lie, a device that is gone, a connection that is closed, and
//! the power cut: what is in the image afterwards.

mod common;

use std::sync::{Arc, Mutex};

use common::driver::*;
use common::inside::Inside;
use common::until;
use wtblk::fault::request::{DataFault, DeviceFault, Hold, Plan, Request};
use wtblk::trace::event::{DeviceKind, Op, Status};

struct Faulty {
    inside: Inside,
    plans: Arc<Mutex<Vec<(Op, Plan)>>>,
}

impl Faulty {
    fn start(volatile: bool) -> Faulty {
        let plans: Arc<Mutex<Vec<(Op, Plan)>>> = Arc::default();
        let theirs = plans.clone();
        let inside = Inside::start(2, vec![], volatile, move |request: &Request| {
            let mut plans = theirs.lock().unwrap();
            let found = plans.iter().position(|p| p.0 == request.op)?;
            Some(plans.remove(found).1)
        });
        Faulty { inside, plans }
    }

    fn next(&self, op: Op, plan: Plan) {
        self.plans.lock().unwrap().push((op, plan));
    }

    fn fault(&self, op: Op, fault: DeviceFault) {
        let device = Some(fault);
        let plan = Plan {
            device,
            ..Plan::default()
        };
        self.next(op, plan);
    }
}

fn flush(d: &mut Driver) -> u8 {
    let head = d.submit(0, 7, FLUSH, 0, 0);
    d.kick(0);
    d.finish(0, 7, head)
}

#[test]
fn flushes_that_lie_and_the_power_cut() {
    let mut f = Faulty::start(true);
    let mut d = f.inside.data(2);
    let late = |data| Plan {
        data: Some(data),
        ..Plan::default()
    };
    let image = |f: &Faulty| f.inside.image(0, 512)[0];
    assert_eq!(d.write(0, &[1; 512]), 0);
    assert_eq!(image(&f), 0, "not flushed");
    assert_eq!(flush(&mut d), 0);
    assert_eq!(image(&f), 1);
    assert_eq!(d.write(0, &[2; 512]), 0);
    f.next(Op::Flush, late(DataFault::Dropped));
    assert_eq!(flush(&mut d), 0, "it says so");
    assert_eq!(image(&f), 1);
    assert_eq!(d.write(0, &[3; 512]), 0);
    assert_eq!(d.write(8, &[3; 512]), 0);
    f.next(Op::Flush, late(DataFault::LateFlush(2)));
    assert_eq!(flush(&mut d), 0);
    assert_eq!(image(&f), 2, "all but the last two writes");
    // Held: what is completed meanwhile is not covered.
    let hold = Plan {
        hold: Some(Hold::default()),
        ..Plan::default()
    };
    f.next(Op::Flush, hold);
    let mut mark = f.inside.mark();
    let head = d.submit(0, 7, FLUSH, 0, 0);
    d.kick(0);
    assert_eq!(mark.mark("wait held=1"), 0);
    assert_eq!(d.write(0, &[4; 512]), 0);
    assert_eq!(mark.mark("release"), 0);
    assert_eq!(d.finish(0, 7, head), 0);
    assert_eq!(image(&f), 3);
    assert_eq!(d.read(0, 512), (0, vec![4; 512]));
    // The cut: on queue 1, with another request held on queue 0.
    let hold = Plan {
        hold: Some(Hold::default()),
        ..Plan::default()
    };
    f.next(Op::Read, hold);
    let held = d.submit(0, 3, IN, 0, 512);
    d.kick(0);
    assert_eq!(mark.mark("wait held=1"), 0);
    f.fault(Op::Write, DeviceFault::Cut);
    let cut = d.submit(1, 0, OUT, 100, 512);
    d.kick(1);
    until("the cut", || {
        mark.state().contains(" device=cut ").then_some(())
    });
    let after = d.submit(1, 1, FLUSH, 0, 0);
    d.kick(1);
    assert_eq!(mark.mark("release"), 0);
    until("nothing to complete", || {
        mark.state().contains(" hung=3 held=0 ").then_some(())
    });
    assert!(!d.is_done(1, cut) && !d.is_done(1, after) && !d.is_done(0, held));
    drop(d);
    // A new front end finds a dead disk; its ring stops like any other.
    let mut again = f.inside.data(1);
    again.submit(0, 0, OUT, 0, 512);
    again.kick(0);
    until("one that hangs", || {
        mark.state().contains(" hung=1 ").then_some(())
    });
    drop((again, mark));
    let trace = f.inside.end();
    trace.assert_paired();
    assert_eq!(
        trace.completes().iter().filter(|c| c.1.abandoned).count(),
        4
    );
    assert_eq!(image(&f), 3, "what was durable");
    assert_eq!(f.inside.image(100, 512), [0; 512]);
    assert_eq!(trace.device(DeviceKind::Cut).len(), 1);
}

#[test]
fn an_orderly_end_keeps_what_was_not_flushed() {
    let mut f = Faulty::start(true);
    let mut d = f.inside.data(1);
    assert_eq!(d.write(0, &[1; 512]), 0);
    assert!(d.set_config(32, &[0]));
    assert_eq!(d.write(8, &[2; 512]), 0);
    assert_eq!(f.inside.image(8, 512), [2; 512], "write-through");
    assert!(d.set_config(32, &[1]));
    assert_eq!(d.write(16, &[3; 512]), 0);
    drop(d);
    f.inside.end();
    for (at, byte) in [(0, 1), (8, 2), (16, 3)] {
        assert_eq!(f.inside.image(at, 512), [byte; 512]);
    }
}

#[test]
fn a_device_that_is_gone() {
    let mut f = Faulty::start(false);
    let mut d = f.inside.data(2);
    assert_eq!(d.write(0, &[1; 512]), 0);
    let delay = Plan {
        delay_ns: Some(50_000_000),
        ..Plan::default()
    };
    f.next(Op::Write, delay);
    d.poke(d.slot(1, 1) + 0x1000, &[9; 512]);
    let waits = d.submit(1, 1, OUT, 8, 512);
    d.kick(1);
    let mut mark = f.inside.mark();
    assert_eq!(mark.mark("note text=taken"), 0);
    f.fault(Op::Read, DeviceFault::Gone);
    assert_eq!(d.read(0, 512).0, 1);
    assert_eq!(d.read(0, 512).0, 1);
    assert_eq!(d.write(0, &[2; 512]), 1);
    assert_eq!(flush(&mut d), 1);
    assert_eq!(d.finish(1, 1, waits), 1, "it came before, and ends after");
    assert!(mark.state().contains(" device=gone "));
    drop((d, mark));
    let trace = f.inside.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::Gone).len(), 1);
    assert_eq!(f.inside.image(0, 512), [1; 512]);
    assert_eq!(f.inside.image(8, 512), [0; 512]);
}

#[test]
fn a_connection_closed_by_a_rule() {
    for lose in [false, true] {
        let mut f = Faulty::start(false);
        let mut d = f.inside.data(2);
        let mut mark = f.inside.mark();
        let hold = Plan {
            hold: Some(Hold::default()),
            status: Some(Status::IOERR),
            store: true,
            ..Plan::default()
        };
        f.next(Op::Write, hold);
        d.poke(d.slot(1, 1) + 0x1000, &[9; 512]);
        let held = d.submit(1, 1, OUT, 8, 512);
        d.kick(1);
        assert_eq!(mark.mark("wait held=1"), 0);
        f.fault(Op::Read, DeviceFault::Disconnect { lose });
        let last = d.submit(0, 0, IN, 0, 512);
        d.kick(0);
        until("a closed connection", || {
            use vhost::VhostBackend;
            d.frontend.get_features().is_err().then_some(())
        });
        // The next one is served when the rings of this one have stopped.
        let mut next = f.inside.data(1);
        assert_eq!(d.is_done(0, last), !lose);
        assert_eq!(d.is_done(1, held), !lose);
        if !lose {
            assert_eq!(d.status(d.slot(1, 1) + 0x20), 1);
        }
        assert_eq!(f.inside.image(8, 512)[0], if lose { 0 } else { 9 });
        assert_eq!(next.write(0, &[5; 512]), 0);
        drop((d, next, mark));
        let trace = f.inside.end();
        trace.assert_paired();
        let lost = trace.completes().iter().filter(|c| c.1.abandoned).count();
        assert_eq!(lost, if lose { 2 } else { 0 });
        let rule = trace.device(DeviceKind::HangUp);
        assert!(
            matches!(rule.as_slice(), [(_, b, _)] if *b == u64::from(lose)),
            "{rule:?}"
        );
        let why = trace.device(DeviceKind::Disconnected);
        assert!(why.iter().any(|w| w.2 == "a rule"), "{why:?}");
    }
}
