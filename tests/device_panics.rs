// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of our own: a worker that panics is no end in silence. Its ring stops with an event and a
//! word at its err fd, and everything else goes on.

mod common;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::driver::*;
use common::inside::Inside;
use common::until;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use wtblk::device::Wrap;
use wtblk::fault::request::{Hold, Plan, Request};
use wtblk::store::{Completion, Op, Store, StoreQueue};
use wtblk::trace::event::{Body, DeviceKind};

/// Sectors of requests that are held, and at which the rules panic.
const HELD: u64 = 100;
const FATAL: u64 = 666;

fn broken(inside: &Inside) -> Vec<String> {
    let trace = common::serve::Trace::read(&inside.path("trace"));
    let events = trace.device(DeviceKind::BadRing);
    events.into_iter().map(|e| e.2).collect()
}

fn reads(d: &mut Driver, queue: usize, n: u64) {
    let head = d.submit(queue, n, IN, 0, 512);
    d.kick(queue);
    assert_eq!(d.finish(queue, n, head), 0, "queue {queue}");
}

#[test]
fn a_panic_stops_its_ring_alone_and_says_so() {
    let mut inside = Inside::start(2, vec![], false, |request: &Request| {
        assert_ne!(request.sector, FATAL, "on purpose");
        let held = request.sector == HELD;
        held.then(|| Plan {
            hold: Some(Hold { limit_ns: None }),
            ..Plan::default()
        })
    });
    let mut mark = inside.mark();
    let mut d = Driver::negotiate(inside.connect("data"), 2, u64::MAX);
    let err = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    d.frontend.set_vring_err(0, &err).unwrap();
    d.start(0, 0);
    d.start(1, 0);
    // In flight on both queues.
    let mine = d.submit(0, 1, OUT, HELD, 512);
    d.kick(0);
    let others = d.submit(1, 1, OUT, HELD, 512);
    d.kick(1);
    assert_eq!(mark.mark("wait held=2"), 0);
    d.submit(0, 2, OUT, FATAL, 512);
    d.force_kick(0);
    let why = until("the event", || broken(&inside).pop());
    assert!(why.starts_with("a worker panicked: "), "{why}");
    assert!(why.contains("on purpose"), "{why}");
    until("a word at the err fd", || err.read().ok());
    // What was in flight is not, its guest is not told, and nobody counts it any more.
    until("the count", || {
        let state = mark.state();
        state.contains(" held=1 ").then_some(())
    });
    assert!(!d.is_done(0, mine));
    // The other queue, the mark disk, and its own held request go on.
    reads(&mut d, 1, 2);
    assert_eq!(mark.mark("release"), 0);
    assert_eq!(d.finish(1, 1, others), 0);
    // Its own ring stops as soon as any, and is served again.
    let begun = Instant::now();
    let base = d.stop(0);
    assert!(begun.elapsed() < Duration::from_secs(2), "{begun:?}");
    assert_eq!(base, 2);
    d.start(0, base);
    reads(&mut d, 0, 3);
    drop(d);
    // And so is the next front end: the same again.
    let mut d = inside.data(2);
    d.submit(0, 2, OUT, FATAL, 512);
    d.force_kick(0);
    until("the second event", || {
        (broken(&inside).len() == 2).then_some(())
    });
    reads(&mut d, 1, 3);
    drop(d);
    let mut d = inside.data(2);
    reads(&mut d, 0, 1);
    drop((d, mark));
    let trace = inside.end();
    trace.assert_paired();
    let abandoned = trace.completes().iter().filter(|c| c.1.abandoned).count();
    assert_eq!(abandoned, 3);
}

/// A store that cannot be asked any more for what it has done.
struct Wrecked(Arc<dyn Store>);

struct WreckedQueue {
    inner: Box<dyn StoreQueue>,
    wrecked: bool,
}

impl Store for Wrecked {
    fn capacity(&self) -> u64 {
        self.0.capacity()
    }

    fn queue(&self) -> std::io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(WreckedQueue {
            inner: self.0.queue()?,
            wrecked: false,
        }))
    }
}

impl StoreQueue for WreckedQueue {
    fn submit(&mut self, token: u64, op: Op) {
        self.wrecked |= matches!(op, Op::Write { .. });
        self.inner.submit(token, op);
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        assert!(!self.wrecked, "wrecked");
        self.inner.reap(into);
    }

    fn give_up(&mut self) {
        self.inner.give_up();
    }

    fn event(&self) -> BorrowedFd<'_> {
        self.inner.event()
    }
}

/// Where it panics again and again the worker ends, which is told, too: whoever starts a ring there
/// loses its connection, with the reason. The other queues are there for all.
#[test]
fn a_worker_that_cannot_go_on_says_that_it_ends() {
    let wrap: Wrap = Arc::new(|store| Arc::new(Wrecked(store)));
    let mut inside = Inside::start_with(2, vec![], false, |_| None, Some(wrap));
    let mut d = inside.data(2);
    d.submit(0, 1, OUT, 8, 512);
    d.force_kick(0);
    until("the end of the worker", || {
        let last = broken(&inside).pop()?;
        last.contains("it cannot go on").then_some(())
    });
    assert!(broken(&inside)[0].contains("wrecked"));
    reads(&mut d, 1, 1);
    drop(d);
    let mut d = Driver::negotiate(inside.connect("data"), 2, u64::MAX);
    d.start(1, 0);
    reads(&mut d, 1, 1);
    let kick = EventFd::new(0).unwrap();
    assert!(d.frontend.set_vring_kick(0, &kick).is_err());
    drop(d);
    let trace = inside.end();
    let text = |e: &wtblk::trace::event::Event| match &e.body {
        Body::Device(d) if d.kind == DeviceKind::Disconnected => Some(d.text.clone()),
        _ => None,
    };
    let last = trace.0.iter().filter_map(text).next_back().unwrap();
    assert!(last.contains("queue 0 does not answer"), "{last}");
}
