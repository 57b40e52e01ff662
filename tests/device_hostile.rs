// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rings and requests that no driver makes (`docs/hostile.md` is the whole table): a bad request
//! fails, a bad ring stops, and all else goes on.

mod common;

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::driver::{Driver, IN, INDIRECT, NEXT, OUT, Parts, QUEUE_SIZE, WRITE};
use common::hostile::{goes_on, memfd, region};
use common::serve::Serve;
use common::until;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{GuestAddress, GuestMemoryBackend};
use wtblk::trace::event::{Body, DATA_DISK, DeviceKind, Op};

fn broken(serve: &Serve, word: &str) -> String {
    until(word, || {
        let events = serve.trace().device(DeviceKind::BadRing);
        events
            .into_iter()
            .map(|e| e.2)
            .find(|text| text.contains(word))
    })
}

#[test]
fn rings_that_are_not_in_memory_do_not_start() {
    let end = 32 << 20;
    for (desc, avail, used, word) in [
        (end, 0x2000, 0x3000, "descriptor table"),
        (0x1000, end - 16, 0x3000, "avail ring"),
        (0x1000, 0x2000, !0xfff, "used ring"),
    ] {
        let serve = Serve::start("", &[]);
        let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
        d.set_up(QUEUE_SIZE, desc, avail, used);
        broken(&serve, word);
        drop(d);
        goes_on(&serve);
        serve.end();
    }
    // Not aligned: the message is refused.
    let serve = Serve::start("", &[]);
    for (desc, avail, used) in [
        (0x1008, 0x2000, 0x3000),
        (0x1000, 0x2001, 0x3000),
        (0x1000, 0x2000, 0x3002),
    ] {
        let d = Driver::negotiate(serve.data(), 1, u64::MAX);
        let host = d.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host + desc,
            avail_ring_addr: host + avail,
            used_ring_addr: host + used,
            log_addr: None,
        };
        assert!(d.frontend.set_vring_addr(0, &config).is_err());
        drop(d);
        goes_on(&serve);
    }
    serve.end();
    // Over the border of two regions, which lie side by side for the guest.
    let serve = Serve::start("", &[]);
    let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
    let file = memfd(1 << 20);
    let host = d.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
    d.frontend
        .add_mem_region(&region(end, 1 << 20, host + end, &file))
        .unwrap();
    d.set_up(QUEUE_SIZE, end - 64, 0x2000, 0x3000);
    broken(&serve, "ends outside guest memory");
    drop(d);
    goes_on(&serve);
    serve.end();
}

#[test]
fn a_ring_whose_memory_is_removed_stops() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let host = d.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
    let own = memfd(0);
    d.frontend
        .remove_mem_region(&region(0, 32 << 20, host, &own))
        .unwrap();
    broken(&serve, "not in guest memory");
    d.stop(0);
    drop(d);
    goes_on(&serve);
    serve.end();
}

/// Requests that were taken from the first queue, and times that it was found broken.
fn of_queue_0(serve: &Serve) -> usize {
    let events = serve.trace().0;
    let ours = events.iter().filter(|e| match &e.body {
        Body::Submit(s) => s.disk == DATA_DISK && s.queue == 0,
        Body::Device(d) => d.kind == DeviceKind::BadRing && d.disk == DATA_DISK && d.queue == 0,
        _ => false,
    });
    ours.count()
}

/// One part of a ring over another, data over the ring itself: the guest's own loss.
#[test]
fn a_ring_over_itself_is_the_guests_own_loss() {
    let serve = Serve::start("", &["--queues", "2"]);
    for (desc, avail, used) in [
        (0x1000, 0x1000, 0x1000),
        (0x1000, 0x2000, 0x2000),
        (0x1000, 0x3000, 0x1000),
    ] {
        // One of them is served as soon as it starts, of what the others make of it.
        let before = of_queue_0(&serve);
        let mut d = Driver::negotiate(serve.data(), 2, u64::MAX);
        let slot = d.slot(0, 0);
        d.header(slot, IN, 0, 0);
        d.put_desc(0x1000, 0, slot, 16, NEXT, 1);
        // What is read goes over the descriptors.
        d.put_desc(0x1000, 1, 0x1000, 4096, WRITE | NEXT, 2);
        d.put_desc(0x1000, 2, slot + 0x20, 1, WRITE, 0);
        let kick = d.set_up(16, desc, avail, used);
        d.poke(avail + 4, &[0, 0]);
        d.poke(avail + 2, &1u16.to_le_bytes());
        kick.write(1).unwrap();
        until("something of this ring", || {
            (of_queue_0(&serve) > before).then_some(())
        });
        // The other queue of the same guest goes on.
        d.start(1, 0);
        let head = d.submit(1, 1, IN, 0, 512);
        d.kick(1);
        assert_eq!(d.finish(1, 1, head), 0);
    }
    goes_on(&serve);
    serve.end();
}

#[test]
fn a_head_out_of_range_stops_the_queue() {
    let serve = Serve::start("", &["--queues", "2"]);
    for head in [QUEUE_SIZE, u16::MAX] {
        let mut d = Driver::connect(serve.data(), 2);
        d.make_available(0, head);
        d.force_kick(0);
        broken(&serve, &format!("names descriptor {head}"));
        let other = d.submit(1, 1, IN, 0, 512);
        d.kick(1);
        assert_eq!(d.finish(1, 1, other), 0);
        drop(d);
        goes_on(&serve);
    }
    serve.end();
}

#[test]
fn indirect_tables_that_cannot_be_fail_alone() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let slot = d.slot(0, 0);
    let (header, data, status, table) = (slot, slot + 0x1000, slot + 0x20, slot + 0x8000);
    d.header(header, OUT, 0, 5);
    let fill = |d: &Driver, second: (u64, u32, u16, u16)| {
        d.put_desc(table, 0, header, 16, NEXT, 1);
        d.put_desc(table, 1, second.0, second.1, second.2, second.3);
        d.put_desc(table, 2, status, 1, WRITE, 0);
    };
    // Indirect in indirect, a loop, a next beyond the table, one that is too long, empty, not whole.
    let cases = [
        ((table, 48, INDIRECT, 2), 48),
        ((data, 512, NEXT, 0), 48),
        ((data, 512, NEXT, 3), 48),
        ((data, 512, NEXT, u16::MAX), 48),
        ((data, 512, NEXT, 2), 16 * 1025),
        ((data, 512, NEXT, 2), 0),
        ((data, 512, NEXT, 2), 40),
        ((data, 512, NEXT, 2), u32::MAX),
    ];
    for (case, (second, len)) in cases.into_iter().enumerate() {
        fill(&d, second);
        let head = d.chain(0, &[(table, len, INDIRECT)]);
        d.kick(0);
        assert_eq!(d.wait(0, head), 0, "case {case}");
    }
    // With a next behind it, which virtio forbids.
    fill(&d, (data, 512, NEXT, 2));
    let head = d.chain(0, &[(table, 48, INDIRECT), (status, 1, WRITE)]);
    d.kick(0);
    d.wait(0, head);
    fill(&d, (data, 512, NEXT, 2));
    let head = d.chain(0, &[(table, 48, INDIRECT)]);
    d.kick(0);
    assert_eq!(d.wait(0, head), 1, "one that can be");
    drop(d);
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::BadChain).len(), cases.len() + 1);
}

#[test]
fn places_and_lengths_beyond_everything_fail_alone() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let last = (16 << 20) / 512 - 1;
    for sector in [
        last + 1,
        last,
        u64::MAX,
        u64::MAX / 512,
        (1 << 55) - 1,
        1 << 63,
    ] {
        let (read, wrote) = (d.read(sector, 1024).0, d.write(sector, &[1; 1024]));
        assert_eq!((read, wrote), (1, 1), "{sector}");
    }
    assert_eq!(d.write(last, &[1; 512]), 0);
    let slot = d.slot(0, 0);
    let (header, data, status) = (slot, slot + 0x1000, slot + 0x20);
    // Nearly 4 GiB in one, part of a sector, nothing at all.
    let cases: Vec<(Parts, u8)> = vec![
        (vec![(header, 16, 0), (data, u32::MAX - 511, 0)], 1),
        (vec![(header, 16, 0), (data, 100, 0)], 1),
        (vec![(header, 16, 0), ((32 << 20) - 256, 512, 0)], 1),
        (vec![(header, 16, 0), (u64::MAX - 100, 512, 0)], 1),
        (vec![(header, 16, 0)], 0),
    ];
    for (case, (mut parts, wanted)) in cases.into_iter().enumerate() {
        d.header(header, OUT, 0, 0);
        d.poke(status, &[0xee]);
        parts.push((status, 1, WRITE));
        let head = d.chain(0, &parts);
        d.kick(0);
        d.wait(0, head);
        // A request of no data may be one or not: it ends.
        assert!(
            d.status(status) == wanted || wanted == 0 && d.status(status) != 0xee,
            "case {case}"
        );
    }
    assert_eq!(d.write(0, &[7; 512]), 0);
    drop(d);
    serve.end().assert_paired();
}

/// All of memory, so often that there are more bytes than a length has bits for. One less is only
/// longer than the disk.
#[test]
fn more_than_4_gib_in_all_fail_alone() {
    const MEMORY: u32 = 32 << 20;
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let slot = d.slot(0, 0);
    let (header, status, table) = (slot, slot + 0x20, slot + 0x1000);
    for count in [129, 127] {
        d.header(header, OUT, 0, 0);
        d.poke(status, &[0xee]);
        d.put_desc(table, 0, header, 16, NEXT, 1);
        for n in 1..=count {
            d.put_desc(table, n, 0, MEMORY, NEXT, n as u16 + 1);
        }
        d.put_desc(table, count + 1, status, 1, WRITE, 0);
        let head = d.chain(0, &[(table, 16 * (count as u32 + 2), INDIRECT)]);
        d.kick(0);
        assert_eq!(d.wait(0, head), 1);
        assert_eq!(d.status(status), 1);
        let said = serve.trace().device(DeviceKind::BadChain);
        assert_eq!(said.len(), 1, "{count}: {said:?}");
        assert_eq!(said[0].2, "the chain is longer than 4 GiB");
    }
    assert_eq!(d.write(0, &[7; 512]), 0);
    drop(d);
    serve.end().assert_paired();
}

/// What the device reads once is what it goes by: another thread of the guest rewrites
/// descriptors, headers and the avail ring meanwhile.
#[test]
fn descriptors_rewritten_while_they_are_walked() {
    let serve = Serve::start("", &["--queues", "2"]);
    let mut d = Driver::connect(serve.data(), 2);
    let (slot, table, avail) = (d.slot(0, 0), d.queues[0].desc(0), d.queues[0].avail_at(0));
    let memory = d.memory.clone();
    let over = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut n = 0u64;
            while !over.load(Ordering::SeqCst) {
                n = n
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                use vm_memory::Bytes;
                // Mostly a header and then a status, or data with it.
                let n_of = (n >> 50) % 8;
                let data = slot + 0x1000;
                let addr = [slot, slot, data, data, u64::MAX, 1 << 41, table];
                let addr = addr[(n >> 33) as usize % 7];
                let flags = match n_of % 2 {
                    0 => [NEXT, NEXT, NEXT, NEXT, 0, WRITE, INDIRECT],
                    _ => [WRITE, WRITE, WRITE, NEXT | WRITE, WRITE, NEXT, INDIRECT],
                };
                let flags = flags[(n >> 41) as usize % 7];
                let at = GuestAddress(table + 16 * n_of);
                let len = [1u32, 16, 512, 513, 4096, u32::MAX][(n >> 28) as usize % 6];
                let _ = memory.write_obj(addr, at);
                let _ = memory.write_obj(len, GuestAddress(at.0 + 8));
                let _ = memory.write_obj(flags, GuestAddress(at.0 + 12));
                let _ = memory.write_obj((n >> 20) as u16 % 9, GuestAddress(at.0 + 14));
                let _ = memory.write_obj((n >> 9) as u32 % 16, GuestAddress(slot));
            }
        });
        // Heads are never the same twice in flight, so the ring lives; chains are what they are.
        let end = Instant::now() + Duration::from_secs(2);
        let mut given = 0u16;
        while Instant::now() < end {
            use vm_memory::Bytes;
            let used: u16 = memory
                .load(GuestAddress(d.queues[0].used_at(2)), Ordering::Acquire)
                .unwrap();
            // All of them are back: requests may end in another order than they came in.
            if given == used {
                for head in 0..8u16 {
                    let entry = avail + 4 + 2 * u64::from(given % QUEUE_SIZE);
                    let _ = memory.write_obj(head, GuestAddress(entry));
                    given = given.wrapping_add(1);
                }
                memory
                    .store(given, GuestAddress(avail + 2), Ordering::Release)
                    .unwrap();
                d.force_kick(0);
            }
        }
        over.store(true, Ordering::SeqCst);
    });
    let head = d.submit(1, 1, IN, 0, 512);
    d.kick(1);
    assert_eq!(d.finish(1, 1, head), 0, "the other queue");
    drop(d);
    goes_on(&serve);
    let trace = serve.end();
    trace.assert_paired();
    // The ring lived, and what was walked was sometimes whole and sometimes not.
    assert_eq!(trace.device(DeviceKind::BadRing), []);
    let mut taken = trace.submits();
    // Those of this guest, that is.
    taken.retain(|(_, s)| s.queue == 0 && s.epoch == 1);
    let bad = taken.iter().filter(|(_, s)| s.op == Op::Other).count();
    let good = taken.len() - bad;
    assert!(bad > 100 && good > 10, "{bad} {good}");
    assert!(trace.device(DeviceKind::BadChain).len() > 100);
}

#[test]
fn kicks_without_reason_and_kicks_taken_away() {
    let serve = Serve::start("", &["--poll", "off"]);
    let mut d = Driver::connect(serve.data(), 1);
    // A storm; and whoever else reads the fd finds it made so that nobody blocks on it.
    for round in 0..20_000u32 {
        d.force_kick(0);
        if round % 1000 == 0 {
            assert_eq!(d.write(8, &[round as u8; 512]), 0);
        }
    }
    for round in 0..200u8 {
        let head = d.submit(0, 0, IN, 0, 512);
        d.force_kick(0);
        d.steal_kick(0);
        // Perhaps before the device has seen it.
        if round % 2 == 0 {
            d.force_kick(0);
        }
        until("the read", || {
            let done = d.is_done(0, head);
            if !done {
                d.force_kick(0);
            }
            done.then_some(())
        });
        d.wait(0, head);
    }
    drop(d);
    serve.end().assert_paired();
}

/// The front end keeps what is in flight, and takes the file away.
#[test]
fn an_area_whose_file_shrinks_is_no_end_of_the_process() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
    let file = memfd(1 << 16);
    let area = VhostUserInflight::new(1 << 16, 0, 1, QUEUE_SIZE);
    d.frontend.set_inflight_fd(&area, file.as_raw_fd()).unwrap();
    file.set_len(0).unwrap();
    d.start(0, 0);
    // What becomes of this guest's requests is its own affair.
    d.submit(0, 0, IN, 0, 512);
    d.force_kick(0);
    drop(d);
    goes_on(&serve);
    serve.end();
}

#[test]
fn nonsense_on_the_mark_disk_fails_alone() {
    let serve = Serve::start("", &[]);
    let mut mark = Driver::connect(serve.mark(), 1);
    let slot = mark.slot(0, 0);
    for len in [0u32, 1, 511, 512, 65536, 1 << 21] {
        for (kind, sector) in [
            (OUT, 0),
            (OUT, 1),
            (OUT, u64::MAX),
            (IN, 4095),
            (IN, u64::MAX),
            (99, 0),
        ] {
            mark.header(slot, kind, 0, sector);
            let flags = if kind == IN { WRITE } else { 0 };
            let parts = [
                (slot, 16, 0),
                (0x10_0000, len, flags),
                (slot + 0x20, 1, WRITE),
            ];
            let head = mark.chain(0, &parts);
            mark.kick(0);
            mark.wait(0, head);
        }
    }
    assert_eq!(mark.mark("note text=still"), 0);
    drop(mark);
    goes_on(&serve);
    serve.end();
}
