// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device is killed by SIGKILL with requests in flight and started again:
//! the front end has kept what was in flight, each is taken anew in its order, and the
//! trace goes on.

mod common;

use std::os::unix::net::UnixStream;

use common::driver::*;
use common::serve::{Serve, Trace};
use wtblk::trace::event::{Body, DeviceKind, Op};

const HELD: &str = r#"
version = 1
[[fault]]
name = "late"
when = { op = "write", lba = "10000+1000" }
action = { hold = true }
"#;

const ARGS: [&str; 7] = [
    "--image",
    "img",
    "--size",
    "16MiB",
    "--continue-trace",
    "--queues",
    "2",
];

#[test]
fn what_was_in_flight_is_taken_anew_in_its_order() {
    let serve = Serve::start_in(tempfile::tempdir().unwrap(), HELD, &ARGS);
    let mut d = Driver::connect_tracked(serve.data(), 2);
    assert_eq!(d.write(0, &[1; 4096]), 0);
    let mut heads = Vec::new();
    for n in 0..5u64 {
        // Two queues; each has an order of its own. Others are completed in between.
        let queue = usize::from(n >= 3);
        let slot = d.slot(queue, 20 + n);
        d.poke(slot + 0x1000, &[10 + n as u8; 512]);
        let head = d.submit(queue, 20 + n, OUT, 10_000 + 10 * (5 - n), 512);
        d.kick(queue);
        heads.push((queue, 20 + n, head));
        assert_eq!(d.write(100 + n, &[7; 512]), 0);
    }
    common::until("five held writes", || {
        let submits = serve.trace().submits();
        let held = submits.iter().filter(|s| s.1.sector >= 10_000).count();
        (held == 5).then_some(())
    });
    let before = serve.trace();
    let dir = serve.kill();
    // Without the rule, so that nothing is held any more.
    let serve = Serve::start_in(dir, "", &ARGS);
    d.reconnect(serve.data());
    for &(queue, n, head) in &heads {
        assert_eq!(d.finish(queue, n, head), 0);
    }
    for n in 0..5u64 {
        let (status, bytes) = d.read(10_000 + 10 * (5 - n), 512);
        assert_eq!((status, bytes), (0, vec![10 + n as u8; 512]), "write {n}");
        assert_eq!(d.read(100 + n, 512), (0, vec![7; 512]));
    }
    assert_eq!(d.read(0, 4096), (0, vec![1; 4096]));
    assert_eq!(d.write(50, &[3; 512]), 0);
    drop(d);
    let trace = serve.end();
    // The same trace: what was there stays, numbers go on, nobody is left open.
    assert_eq!(trace.0[..before.0.len()], before.0[..]);
    assert!(trace.0.windows(2).all(|w| w[0].seq < w[1].seq));
    assert!(trace.0.iter().all(|e| !matches!(e.body, Body::Gap(_))));
    trace.assert_paired();
    let again = trace.device(DeviceKind::Again);
    let submits = trace.submits();
    let sector = |id| submits.iter().find(|s| s.0 == id).map(|s| s.1.sector);
    let placed = |queue| -> Vec<_> {
        let of = |id: &u64| submits.iter().any(|s| s.0 == *id && s.1.queue == queue);
        let again = again.iter().filter(|a| of(&a.0));
        again.map(|a| (sector(a.0), sector(a.1))).collect()
    };
    // Each names the request that it was, in the order in which they were taken at first.
    let want = |n: u64| (Some(10_000 + 10 * (5 - n)), Some(10_000 + 10 * (5 - n)));
    assert_eq!(placed(0), [want(0), want(1), want(2)]);
    assert_eq!(placed(1), [want(3), want(4)]);
    let lost = trace.completes().iter().filter(|c| c.1.abandoned).count();
    assert_eq!(lost, 5);
    // No epoch stands for two rings.
    let mut epochs: Vec<u64> = trace
        .0
        .iter()
        .filter_map(|e| match &e.body {
            Body::Device(s) if s.kind == DeviceKind::QueueStart && s.disk == 0 => Some(s.b),
            _ => None,
        })
        .collect();
    let all = epochs.len();
    epochs.sort_unstable();
    epochs.dedup();
    assert_eq!((all, epochs.len()), (4, 4));
}

#[test]
fn a_device_that_is_killed_again_and_again_loses_nothing() {
    let mut serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &ARGS);
    let mut d = Driver::connect_tracked(serve.data(), 1);
    const SLOTS: u64 = 32;
    // By slot: the version that is being written, and what is known to be stored.
    let mut stored = [0u8; SLOTS as usize];
    for round in 1..=12u8 {
        let mut heads = Vec::new();
        for n in 0..SLOTS {
            let slot = d.slot(0, n);
            d.poke(slot + 0x1000, &[round; 4096]);
            heads.push(d.submit(0, n, OUT, n * 64, 4096));
            d.kick(0);
            if n == u64::from(round) * 2 {
                // In the middle of it, wherever the device is.
                let dir = serve.kill();
                serve = Serve::start_in(dir, "", &ARGS);
                d.reconnect(serve.data());
            }
        }
        for (n, head) in (0..SLOTS).zip(heads) {
            assert_eq!(d.finish(0, n, head), 0, "round {round} slot {n}");
            stored[n as usize] = round;
        }
        for n in 0..SLOTS {
            let (status, bytes) = d.read(n * 64, 4096);
            assert!(
                status == 0 && bytes == [stored[n as usize]; 4096],
                "round {round} slot {n}"
            );
        }
    }
    drop(d);
    let trace = serve.end();
    trace.assert_paired();
    let writes = trace
        .submits()
        .iter()
        .filter(|s| s.1.op == Op::Write)
        .count();
    let again = trace.device(DeviceKind::Again).len();
    assert!(writes >= 12 * SLOTS as usize && writes <= 12 * SLOTS as usize + again);
}

#[test]
fn a_mark_waits_for_the_disk_that_was_killed() {
    for round in 0..4 {
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &ARGS);
        let mut data = Driver::connect_tracked(serve.data(), 2);
        let mut mark = Driver::connect_tracked(serve.mark(), 1);
        assert_eq!(mark.mark("note text=before"), 0);
        let dir = serve.kill();
        // What the guest does while nobody serves it: requests on both queues, then the mark.
        let heads = [0, 1].map(|queue| {
            let head = data.submit(queue, 5, OUT, 10_000 + 10 * queue as u64, 512);
            data.kick(queue);
            head
        });
        let serve = Serve::start_in(dir, "", &ARGS);
        // The mark disk is back first.
        mark.reconnect(serve.mark());
        let late = mark.post_mark(2, "note text=after");
        // Served after it: the device has looked at the mark, and keeps it.
        assert!(mark.state().contains("inflight=0"));
        assert!(!mark.is_done(0, late), "round {round}");
        data.reconnect(serve.data());
        assert_eq!(mark.finish(0, 2, late), 0);
        for (queue, head) in heads.into_iter().enumerate() {
            assert_eq!(data.finish(queue, 5, head), 0);
        }
        // From now on none waits.
        let begun = std::time::Instant::now();
        assert_eq!(mark.mark("note text=later"), 0);
        assert!(begun.elapsed() < std::time::Duration::from_secs(4));
        drop((data, mark));
        let trace = serve.end();
        trace.assert_paired();
        let marks: Vec<u64> = trace.marks().iter().map(|m| m.0).collect();
        assert_eq!(marks.len(), 3);
        let submits = trace.submits();
        let submits: Vec<u64> = submits.iter().map(|s| s.0).collect();
        assert_eq!(submits.len(), 2, "round {round}");
        assert!(submits.iter().all(|&s| marks[0] < s && s < marks[1]));
    }
}

/// A device that was killed after a mark, and started again: only its mark disk is connected.
fn killed_and_marks_back() -> (Serve, Driver, Driver) {
    let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &ARGS);
    let data = Driver::connect_tracked(serve.data(), 2);
    let mut mark = Driver::connect_tracked(serve.mark(), 1);
    assert_eq!(mark.mark("note text=before"), 0);
    let serve = Serve::start_in(serve.kill(), "", &ARGS);
    mark.reconnect(serve.mark());
    (serve, data, mark)
}

#[test]
fn a_mark_does_not_wait_for_ever_for_the_disk_that_was_killed() {
    let (serve, _data, mut mark) = killed_and_marks_back();
    assert_eq!(mark.mark("note text=after"), 0);
    assert_eq!(mark.mark("note text=later"), 0);
    drop(mark);
    let trace = serve.end();
    assert_eq!(gone_ahead(&trace), 1);
    assert_eq!(trace.marks().len(), 3);
}

/// How often marks went ahead of a killed disk.
fn gone_ahead(trace: &Trace) -> usize {
    let limits = trace.device(DeviceKind::Limit);
    let said = limits.iter().filter(|l| l.2.contains("does not run again"));
    assert_eq!(said.clone().count(), limits.len(), "{limits:?}");
    said.count()
}

/// Whose front end had gone by itself comes not again: nobody waits.
#[test]
fn a_mark_does_not_wait_for_a_disk_without_a_guest() {
    let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &ARGS);
    let data = Driver::connect_tracked(serve.data(), 2);
    let mut mark = Driver::connect_tracked(serve.mark(), 1);
    drop(data);
    common::until("its end", || {
        (!serve.trace().device(DeviceKind::Disconnected).is_empty()).then_some(())
    });
    // Killed twice: what the second life says of the first is no front end that has gone.
    let serve = Serve::start_in(serve.kill(), "", &ARGS);
    let serve = Serve::start_in(serve.kill(), "", &ARGS);
    mark.reconnect(serve.mark());
    assert_eq!(mark.mark("note text=after"), 0);
    drop(mark);
    assert_eq!(gone_ahead(&serve.end()), 0);
}

/// Killed twice, several disks, and marks posted while they come back: those are in order, after what
/// was requested from any disk before, and no limit is said to be reached.
#[test]
fn marks_wait_for_all_disks_that_were_killed() {
    let words = ["--disk", "name=log,image=log.img,size=1MiB,socket=log"];
    let args = [&ARGS[..], &words].concat();
    for round in 0..6 {
        let log = |serve: &Serve| {
            let path = serve.path("log");
            common::until("its socket", || UnixStream::connect(&path).ok())
        };
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &args);
        let mut data = Driver::connect_tracked(serve.data(), 2);
        let mut more = Driver::connect_tracked(log(&serve), 1);
        let mut mark = Driver::connect_tracked(serve.mark(), 1);
        assert_eq!(mark.mark("note text=before"), 0);
        let dir = serve.kill();
        let head = more.submit(0, 5, OUT, 100, 512);
        more.kick(0);
        let serve = Serve::start_in(Serve::start_in(dir, "", &args).kill(), "", &args);
        mark.reconnect(serve.mark());
        data.reconnect(serve.data());
        let mut posted = vec![mark.post_mark(2, "note text=m0")];
        assert!(mark.state().contains("inflight=0"));
        assert!(!mark.is_done(0, posted[0]), "round {round}");
        let stream = log(&serve);
        let back = std::thread::spawn(move || {
            more.reconnect(stream);
            more
        });
        for n in 1..39 {
            posted.push(mark.post_mark(2 + n, &format!("note text=m{n}")));
            mark.force_kick(0);
        }
        for head in posted {
            mark.wait(0, head);
        }
        let mut more = back.join().unwrap();
        assert_eq!(more.finish(0, 5, head), 0);
        drop((data, more, mark));
        let trace = serve.end();
        trace.assert_paired();
        assert_eq!(gone_ahead(&trace), 0);
        let marks = trace.marks();
        let lines: Vec<&str> = marks.iter().map(|m| m.1.as_str()).collect();
        let wanted = (0..39).map(|n| format!("wtblk/1 note text=m{n}"));
        let wanted: Vec<String> = ["wtblk/1 note text=before".into()]
            .into_iter()
            .chain(wanted)
            .collect();
        assert_eq!(lines, wanted);
        let submits = trace.submits();
        assert!(
            marks[0].0 < submits[0].0 && submits[0].0 < marks[1].0,
            "round {round}"
        );
    }
}

/// A stop does not keep marks back, and says that it did not wait.
#[test]
fn a_stop_lets_waiting_marks_go_ahead_and_says_so() {
    let (serve, _data, mut mark) = killed_and_marks_back();
    let late = mark.post_mark(2, "note text=after");
    assert!(mark.state().contains("inflight=0"));
    assert!(!mark.is_done(0, late));
    mark.stop(0);
    assert_eq!(mark.finish(0, 2, late), 0);
    drop(mark);
    let trace = serve.end();
    assert_eq!((gone_ahead(&trace), trace.marks().len()), (1, 2));
}

#[test]
fn an_area_that_cannot_be_is_refused_or_stops_its_ring() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    use vhost::vhost_user::VhostUserFrontend;
    use vhost::vhost_user::message::VhostUserInflight;

    let serve = Serve::start("", &[]);
    // Too many queues, no power of two, a file that is too short, an offset beyond all.
    for (len, offset, queues, size) in [
        (4096, 0, 9, 128),
        (4096, 0, 1, 100),
        (4096, 0, 1, 32768),
        (4096, u64::MAX - 10, 1, 128),
        (u64::MAX, 8, 1, 128),
    ] {
        let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let area = VhostUserInflight::new(len, offset, queues, size);
        let set = d.frontend.set_inflight_fd(&area, file.as_raw_fd());
        assert!(set.is_err(), "{len} {offset} {queues} {size}");
    }
    let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
    assert!(
        d.frontend
            .get_inflight_fd(&VhostUserInflight::new(0, 0, 1, 100))
            .is_err()
    );
    // One that was never ours: a used index that this ring has not, a head out of range.
    for bytes in [
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 0, 0, 77, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 128, 0, 200, 0, 255, 255],
        [0, 0, 0, 0, 0, 0, 0, 0, 9, 0, 128, 0, 0, 0, 0, 0],
    ] {
        let broken = serve.trace().device(DeviceKind::BadRing).len();
        let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
        let area = VhostUserInflight::new(0, 0, 1, QUEUE_SIZE);
        let (area, file) = d.frontend.get_inflight_fd(&area).unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        d.frontend.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
        d.start(0, 0);
        common::until("the event of the ring", || {
            (serve.trace().device(DeviceKind::BadRing).len() > broken).then_some(())
        });
    }
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(0, &[1; 512]), 0);
    drop(d);
    serve.end().assert_paired();
}
