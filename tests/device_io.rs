// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests over a real vhost-user connection: what is served, every framing,
//! every malformed chain, a broken ring.

mod common;

use common::driver::*;
use common::serve::Serve;
use common::until;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;
use wtblk::trace::event::{DeviceKind, Op, Status};

#[test]
fn read_write_flush_id_and_what_is_not_supported() {
    let serve = Serve::start("", &["--queues", "2"]);
    let mut d = Driver::connect(serve.data(), 2);
    let data: Vec<u8> = (0..8192u32).map(|i| (i / 5) as u8).collect();
    assert_eq!(d.write(100, &data), 0);
    assert_eq!(d.read(100, 8192), (0, data.clone()));
    assert_eq!(d.read(99, 512), (0, vec![0; 512]));
    for (n, kind, sector, len, status) in [
        (1, FLUSH, 0, 0, 0),
        // Not offered, so refused: both have data for, or of, the driver.
        (2, GET_LIFETIME, 0, 24, 2),
        (3, SECURE_ERASE, 0, 16, 2),
        (4, 77, 0, 0, 2),
        // The last sector, one beyond it, an overflow, half a sector.
        (5, IN, 32767, 512, 0),
        (6, IN, 32767, 1024, 1),
        (7, OUT, u64::MAX, 512, 1),
        (8, IN, u64::MAX / 512, 512, 1),
        (9, OUT, 0, 700, 1),
    ] {
        let head = d.submit(1, n, kind, sector, len);
        d.kick(1);
        assert_eq!(d.finish(1, n, head), status, "type {kind} sector {sector}");
    }
    let head = d.submit(0, 0, GET_ID, 0, 20);
    d.kick(0);
    assert_eq!(d.wait(0, head), 21);
    assert_eq!(
        &d.peek(d.slot(0, 0) + 0x1000, 20),
        b"wtblk-data\0\0\0\0\0\0\0\0\0\0"
    );
    drop(d);
    let trace = serve.end();
    trace.assert_paired();
    let submits = trace.submits();
    assert_eq!(
        (submits[0].1.op, submits[0].1.sector, submits[0].1.bytes),
        (Op::Write, 100, 8192)
    );
    assert!(
        submits
            .iter()
            .any(|(_, s)| s.queue == 1 && s.op == Op::Flush)
    );
    let first = &trace.completes()[0];
    assert_eq!((first.1.status, first.1.avail_after), (Status::OK, 1));
    assert_eq!(trace.device(DeviceKind::QueueStart).len(), 2);
    assert_eq!(trace.device(DeviceKind::End).len(), 1);
}

#[test]
fn every_framing_is_the_same_request() {
    for mask in [u64::MAX, !F_EVENT_IDX] {
        let serve = Serve::start("", &[]);
        let mut d = Driver::connect_with(serve.data(), 1, mask);
        let slot = d.slot(0, 0);
        let (header, status, data) = (slot, slot + 0x20, slot + 0x1000);
        let together = slot + 0x4000;
        let table = slot + 0x8000;
        let pattern: Vec<u8> = (0..1024u32).map(|i| (i * 3) as u8).collect();
        let framings: Vec<Parts> = vec![
            vec![(header, 16, 0), (data, 1024, 0), (status, 1, WRITE)],
            vec![
                (header, 1, 0),
                (header + 1, 15, 0),
                (data, 1000, 0),
                (data + 1000, 24, 0),
                (status, 1, WRITE),
            ],
            vec![(together, 16 + 1024, 0), (status, 1, WRITE)],
            vec![
                (together, 7, 0),
                (together + 7, 9 + 500, 0),
                (together + 516, 524, 0),
                (status, 1, WRITE),
            ],
            // An indirect table: after a direct header, and alone.
            vec![(header, 16, 0), (table, 32, INDIRECT)],
            vec![(table + 0x100, 48, INDIRECT)],
        ];
        d.put_desc(table, 0, data, 1024, NEXT, 1);
        d.put_desc(table, 1, status, 1, WRITE, 0);
        d.put_desc(table + 0x100, 0, header, 16, NEXT, 2);
        d.put_desc(table + 0x100, 2, data, 1024, NEXT, 1);
        d.put_desc(table + 0x100, 1, status, 1, WRITE, 0);
        for (i, framing) in framings.iter().enumerate() {
            let sector = 10 * (i as u64 + 1);
            d.header(header, OUT, 0x4011, sector);
            d.header(together, OUT, 0x4011, sector);
            d.poke(data, &pattern);
            d.poke(together + 16, &pattern);
            d.poke(status, &[0xee]);
            let head = d.chain(0, framing);
            d.kick(0);
            assert_eq!(d.wait(0, head), 1, "framing {i}");
            assert_eq!(d.status(status), 0, "framing {i}");
            assert_eq!(d.read(sector, 1024), (0, pattern.clone()), "framing {i}");
        }
        // Data and status of a read in one descriptor, and split inside.
        for framing in [
            vec![(header, 16, 0), (data, 1025, WRITE)],
            vec![(header, 16, 0), (data, 3, WRITE), (data + 3, 1022, WRITE)],
        ] {
            d.header(header, IN, 0, 10);
            d.poke(data, &[0xee; 1025]);
            let head = d.chain(0, &framing);
            d.kick(0);
            assert_eq!(d.wait(0, head), 1025);
            assert_eq!(d.peek(data, 1024), pattern);
            assert_eq!(d.status(data + 1024), 0);
        }
        drop(d);
        let trace = serve.end();
        trace.assert_paired();
        assert!(trace.submits()[0].1.ioprio == 0x4011);
    }
}

#[test]
fn a_malformed_chain_fails_alone() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let slot = d.slot(0, 0);
    let (header, status, data) = (slot, slot + 0x20, slot + 0x1000);
    d.header(header, OUT, 0, 5);
    let outside = 1 << 40;
    // With a status byte that can be reached: IOERR and a used length of 1; otherwise 0.
    let cases: Vec<(Parts, bool)> = vec![
        (
            vec![(header, 16, 0), (outside, 512, 0), (status, 1, WRITE)],
            true,
        ),
        (
            vec![(header, 16, 0), (data, 0, 0), (status, 1, WRITE)],
            true,
        ),
        (vec![(header, 15, 0), (status, 1, WRITE)], true),
        (
            vec![
                (header, 16, 0),
                (data, 512, WRITE),
                (data, 512, 0),
                (status, 1, WRITE),
            ],
            true,
        ),
        (
            vec![(header, 16, 0), (data, u32::MAX, 0), (status, 1, WRITE)],
            true,
        ),
        (vec![(header, 16, 0), (data, 512, 0)], false),
        (vec![(header, 16, 0), (data, 512, 0), (status, 1, 0)], false),
        (vec![(header, 16, 0), (outside, 1, WRITE)], false),
        (vec![(header, 16, 0), (data, 20, INDIRECT)], false),
        (vec![(header, 16, 0), (outside, 32, INDIRECT)], false),
        (
            vec![(header, 16, 0), (data, 16, INDIRECT), (status, 1, WRITE)],
            false,
        ),
    ];
    for (i, (case, reachable)) in cases.iter().enumerate() {
        d.poke(status, &[0xee]);
        let head = d.chain(0, case);
        d.kick(0);
        assert_eq!(d.wait(0, head), u32::from(*reachable), "case {i}");
        assert_eq!(
            d.status(status),
            if *reachable { 1 } else { 0xee },
            "case {i}"
        );
    }
    // Loops and a next out of range: made by hand.
    let table = d.queues[0].desc(0);
    for (what, next) in [("loop", 100), ("range", 128), ("range", u16::MAX)] {
        d.put_desc(table, 100, header, 16, NEXT, next);
        d.make_available(0, 100);
        d.kick(0);
        assert_eq!(d.wait(0, 100), 0, "{what}");
    }
    assert_eq!(d.write(0, &[7; 512]), 0, "the queue goes on");
    drop(d);
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::BadChain).len(), cases.len() + 3);
}

#[test]
fn a_broken_ring_stops_its_queue_alone() {
    let serve = Serve::start("", &["--queues", "3"]);
    let mut d = Driver::negotiate(serve.data(), 3, u64::MAX);
    let errs = [0; 3].map(|_| EventFd::new(libc::EFD_NONBLOCK).unwrap());
    for (queue, err) in errs.iter().enumerate() {
        // Of the last one while it runs.
        if queue == 2 {
            d.start(queue, 0);
        }
        d.frontend.set_vring_err(queue, err).unwrap();
        if queue < 2 {
            d.start(queue, 0);
        }
    }
    // The avail index jumps by more than the queue has entries.
    let at = d.queues[1].avail_at(2);
    d.poke(at, &1000u16.to_le_bytes());
    d.force_kick(1);
    // A chain that is available twice.
    let slot = d.slot(2, 0);
    d.header(slot, IN, 0, 0);
    let table = d.queues[2].desc(0);
    d.put_desc(table, 100, slot, 16, NEXT, 101);
    d.put_desc(table, 101, slot + 0x20, 1, WRITE, 0);
    d.make_available(2, 100);
    d.make_available(2, 100);
    d.force_kick(2);
    let broken = || {
        let events = serve.trace().device(DeviceKind::BadRing);
        (events.len() == 2).then_some(events)
    };
    let events = until("both rings to be found broken", broken);
    assert!(events.iter().any(|e| e.2.contains("ahead")), "{events:?}");
    assert!(
        events.iter().any(|e| e.2.contains("in flight")),
        "{events:?}"
    );
    for broken in [1, 2] {
        until("a word at its err fd", || errs[broken].read().ok());
    }
    assert_eq!(d.write(0, &[7; 512]), 0);
    assert!(errs[0].read().is_err(), "nothing is wrong with this one");
    assert_eq!(d.stop(0), 1);
    d.stop(1);
    // Started anew, it is served again.
    d.poke(at, &0u16.to_le_bytes());
    d.start(1, 0);
    let head = d.submit(1, 0, IN, 0, 512);
    d.force_kick(1);
    assert_eq!(d.finish(1, 0, head), 0);
    drop(d);
    serve.end();
}

#[test]
fn many_requests_with_and_without_the_event_index() {
    for mask in [u64::MAX, !F_EVENT_IDX] {
        let dir = tempfile::tempdir().unwrap();
        let serve = Serve::start_in(dir, "", &["--image", "img", "--size", "16MiB"]);
        let mut d = Driver::connect_with(serve.data(), 1, mask);
        for round in 0..60u64 {
            let mut heads = Vec::new();
            for n in 0..32 {
                let sector = (round * 32 + n) * 8;
                d.poke(d.slot(0, n) + 0x1000, &[(sector % 251) as u8; 4096]);
                heads.push((n, d.submit(0, n, OUT, sector, 4096)));
                d.kick(0);
            }
            for (n, head) in heads {
                assert_eq!(d.finish(0, n, head), 0);
            }
            // Heads are never given back by `chain`: every request is of three.
            d.queues[0].forget();
        }
        let (status, bytes) = d.read(8 * 1000, 4096);
        assert_eq!((status, bytes[0]), (0, (8000 % 251) as u8));
        drop(d);
        let trace = serve.end();
        trace.assert_paired();
        assert_eq!(trace.submits().len(), 60 * 32 + 1);
        for pair in trace.submits().windows(2) {
            assert_eq!(pair[0].1.avail_pos.wrapping_add(1), pair[1].1.avail_pos);
        }
    }
}

#[test]
fn features_and_configuration() {
    let serve = Serve::start("", &["--queues", "4"]);
    let mut d = Driver::connect(serve.data(), 1);
    for bit in [2, 6, 9, 11, 12, 28, 29, 30, 32] {
        assert_ne!(d.features & (1 << bit), 0, "feature {bit}");
    }
    assert_eq!(d.features & F_RO, 0);
    let space = d.config(0, 60);
    assert_eq!(space[..8], (32768u64).to_le_bytes());
    assert_eq!((space[12], space[32], space[34]), (126, 1, 4));
    assert!(d.set_config(32, &[0]));
    assert_eq!(d.config(32, 1), [0]);
    drop(d);
    // A new connection finds the start value; a driver that cannot flush finds no cache.
    let mut d = Driver::connect_with(serve.data(), 1, !F_FLUSH);
    assert_eq!(d.config(32, 1), [0]);
    drop(d);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.config(32, 1), [1]);
    assert!(!d.set_config(0, &[9]), "only the writeback byte");
    drop(d);
    let trace = serve.end();
    let modes: Vec<u64> = trace
        .device(DeviceKind::CacheMode)
        .iter()
        .map(|e| e.0)
        .collect();
    assert_eq!(modes, [0, 1, 0, 1]);
}

#[test]
fn read_only_refuses_writes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("img"), vec![3u8; 1 << 20]).unwrap();
    let serve = Serve::start_in(dir, "", &["--blk-file", "img", "--read-only"]);
    let mut d = Driver::connect(serve.data(), 1);
    assert_ne!(d.features & F_RO, 0);
    assert_eq!(d.write(0, &[7; 512]), 1);
    assert_eq!(d.read(0, 512), (0, vec![3; 512]));
    drop(d);
    serve.end();
}
