// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Held requests: others go past them, a mark releases them, and whatever ends
//! a ring (a stop, a disconnect, a signal) is over at once with any number held.

mod common;

use std::time::{Duration, Instant};

use common::driver::*;
use common::serve::Serve;
use nix::sys::signal::Signal;
use wtblk::trace::event::{Body, DeviceKind, Status};

/// Writes to sectors 1000..3000 are held, and fail; those to 3000..5000 are held.
const SCENARIO: &str = r#"
version = 1
[[fault]]
name = "fail"
when = { op = "write", lba = "1000+2000" }
action = { status = "ioerr", hold = true }
[[fault]]
name = "late"
when = { op = "write", lba = "3000+2000" }
action = { hold = true }
"#;

/// Nothing that ends a ring may take longer than this.
const AT_ONCE: Duration = Duration::from_secs(6);

fn start(more: &[&str]) -> (Serve, Driver, Driver) {
    let serve = Serve::start(SCENARIO, more);
    let data = Driver::connect(serve.data(), 1);
    let mark = Driver::connect(serve.mark(), 1);
    (serve, data, mark)
}

/// Where held write `i` has its header, data, status and indirect table.
fn place(data: &Driver, i: u64) -> u64 {
    data.slot(0, 32) + i * 0x800
}

const STATUS: u64 = 0x300;
const TABLE: u64 = 0x400;

/// Submits `n` held writes of one sector each and waits until the device holds them.
fn hold(data: &mut Driver, mark: &mut Driver, n: u64) -> Vec<u16> {
    let mut heads = Vec::new();
    for i in 0..n {
        let at = place(data, i);
        data.header(at, OUT, 0, 3000 + i);
        data.poke(at + 16, &[i as u8 + 1; 512]);
        data.poke(at + STATUS, &[0xee]);
        data.put_desc(at + TABLE, 0, at, 528, NEXT, 1);
        data.put_desc(at + TABLE, 1, at + STATUS, 1, WRITE, 0);
        heads.push(data.chain(0, &[(at + TABLE, 32, INDIRECT)]));
    }
    data.kick(0);
    assert_eq!(mark.mark(&format!("wait held={n}")), 0);
    let state = mark.state();
    assert!(
        state.contains(&format!("held={n} inflight={n} wait=ok")),
        "{state}"
    );
    heads
}

#[test]
fn others_go_past_and_a_mark_releases() {
    let (serve, mut data, mut mark) = start(&[]);
    let fail = data.submit(0, 1, OUT, 1000, 512);
    data.kick(0);
    assert_eq!(mark.mark("wait held=1"), 0);
    let late = data.submit(0, 2, OUT, 3000, 512);
    data.poke(data.slot(0, 2) + 0x1000, &[1; 512]);
    data.kick(0);
    assert_eq!(mark.mark("wait held=2"), 0);
    // Later requests complete while both are held.
    assert_eq!(data.write(0, &[9; 512]), 0);
    assert_eq!(
        data.read(3000, 512),
        (0, vec![0; 512]),
        "nothing is stored yet"
    );
    assert!(!data.is_done(0, fail) && !data.is_done(0, late));
    // The point of a hold is before the copy: the page may still change.
    data.poke(data.slot(0, 2) + 0x1000, &[2; 512]);
    assert_eq!(mark.mark("release rule=late"), 0);
    assert_eq!(data.finish(0, 2, late), 0);
    assert_eq!(data.read(3000, 512), (0, vec![2; 512]));
    assert!(!data.is_done(0, fail));
    let state = mark.state();
    assert!(state.contains("held=1 inflight=1"), "{state}");
    assert!(state.contains("rules=fail:1:1,late:1:0\n"), "{state}");
    assert_eq!(mark.mark("release rule=nobody"), 1, "no such rule");
    assert_eq!(mark.mark("release"), 0);
    assert_eq!(data.finish(0, 1, fail), 1);
    assert_eq!(
        data.read(1000, 512),
        (0, vec![0; 512]),
        "an error stores nothing"
    );
    drop((data, mark));
    let trace = serve.end();
    trace.assert_paired();
    let releases = trace.device(DeviceKind::Release);
    assert_eq!(releases, [(1, 0, "late".into()), (1, 0, "*".into())]);
    let decides = trace.0.iter().filter(|e| matches!(e.body, Body::Decide(_)));
    assert_eq!(decides.count(), 2);
}

#[test]
fn a_stopped_ring_gives_held_requests_back_and_goes_on() {
    for n in [1, 100] {
        let (serve, mut data, mut mark) = start(&[]);
        let heads = hold(&mut data, &mut mark, n);
        let begin = Instant::now();
        assert_eq!(u64::from(data.stop(0)), n);
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        for head in &heads {
            assert!(data.is_done(0, *head), "given back before the reply");
        }
        data.start(0, n as u16);
        data.queues[0].forget();
        for i in 0..n {
            assert_eq!(data.status(place(&data, i) + STATUS), 0);
            assert_eq!(data.read(3000 + i, 512), (0, vec![i as u8 + 1; 512]));
            data.queues[0].forget();
        }
        drop((data, mark));
        let trace = serve.end();
        trace.assert_paired();
        assert!(trace.completes().iter().all(|(_, c)| !c.abandoned));
        assert_eq!(trace.device(DeviceKind::QueueStop)[0].1, n);
    }
}

#[test]
fn an_abandoned_request_touches_no_guest_memory() {
    let scenario = format!("{SCENARIO}\n[device]\non_stop = \"abandon\"\n");
    let serve = Serve::start(&scenario, &[]);
    let mut data = Driver::connect(serve.data(), 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    hold(&mut data, &mut mark, 3);
    let place = place(&data, 0);
    let before = data.peek(place, 0x1_0000);
    let used = data.peek(data.queues[0].used_at(0), 1024);
    data.stop(0);
    assert!(data.peek(place, 0x1_0000) == before);
    assert!(data.peek(data.queues[0].used_at(0), 1024) == used);
    drop((data, mark));
    let trace = serve.end();
    trace.assert_paired();
    let abandoned = trace
        .completes()
        .iter()
        .filter(|(_, c)| c.abandoned)
        .count();
    assert_eq!(abandoned, 3);
}

#[test]
fn sigterm_and_sigint_with_held_requests() {
    for (signal, n) in [
        (Signal::SIGTERM, 1),
        (Signal::SIGTERM, 100),
        (Signal::SIGINT, 100),
    ] {
        let (mut serve, mut data, mut mark) = start(&[]);
        let heads = hold(&mut data, &mut mark, n);
        let begin = Instant::now();
        serve.signal(signal);
        assert_eq!(serve.wait(), 0);
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
        for head in heads {
            data.wait(0, head);
        }
        assert!(!serve.path("data").exists() && !serve.path("mark").exists());
        let trace = serve.trace();
        trace.assert_paired();
        assert!(
            trace
                .completes()
                .iter()
                .all(|(_, c)| c.status == Status::OK)
        );
    }
}

#[test]
fn a_front_end_may_vanish_and_the_next_one_come() {
    let (serve, mut data, mut mark) = start(&[]);
    hold(&mut data, &mut mark, 5);
    drop(data);
    for round in 0..20u64 {
        let mut data = Driver::connect(serve.data(), 1);
        assert_eq!(data.write(round, &[round as u8; 512]), 0);
        assert_eq!(
            data.read(3000, 512),
            (0, vec![1; 512]),
            "completed at the disconnect"
        );
    }
    let state = mark.state();
    assert!(state.contains("held=0 inflight=0"), "{state}");
    drop(mark);
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::Disconnected).len(), 22);
    let epochs: Vec<u64> = trace
        .device(DeviceKind::QueueStart)
        .iter()
        .map(|e| e.1)
        .collect();
    assert_eq!(epochs.len(), 22);
}

#[test]
fn write_through_writes_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let more = ["--image", "img", "--size", "16MiB"];
    let serve = Serve::start_in(dir, "version = 1\n[device]\nwrite_cache = false\n", &more);
    let mut data = Driver::connect(serve.data(), 1);
    assert_eq!(data.config(32, 1), [0]);
    assert_eq!(data.write(5, &[5; 4096]), 0);
    assert_eq!(data.read(5, 4096), (0, vec![5; 4096]));
    drop(data);
    serve.end().assert_paired();
}
