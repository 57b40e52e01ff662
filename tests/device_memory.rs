// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions that come and go, and messages that are refused: each ends
//! its connection, the next one is served.

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use common::driver::*;
use common::hostile::{memfd, region, send};
use common::serve::Serve;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;
use wtblk::trace::event::DeviceKind;

const SCENARIO: &str = r#"
version = 1
[[fault]]
name = "late"
when = { op = "write", lba = "3000+2000" }
action = { hold = true }
"#;

const FAR: u64 = 1 << 32;

#[test]
fn regions_come_and_go_under_running_rings() {
    let serve = Serve::start(SCENARIO, &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    assert_eq!(d.frontend.get_max_mem_slots().unwrap(), 64);
    let file = memfd(1 << 20);
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let far =
        GuestMemoryMmap::<()>::from_ranges_with_files([(GuestAddress(FAR), 1 << 20, Some(offset))]);
    let far = far.unwrap();
    far.write_slice(&[5; 512], GuestAddress(FAR)).unwrap();
    let region = region(FAR, 1 << 20, 0x1234_0000, &file);
    let slot = d.slot(0, 0);
    let request = |d: &mut Driver, sector: u64| {
        d.header(slot, OUT, 0, sector);
        d.poke(slot + 0x20, &[0xee]);
        let head = d.chain(0, &[(slot, 16, 0), (FAR, 512, 0), (slot + 0x20, 1, WRITE)]);
        d.kick(0);
        head
    };
    let head = request(&mut d, 7);
    d.wait(0, head);
    assert_eq!(d.status(slot + 0x20), 1, "not there yet");
    d.frontend.add_mem_region(&region).unwrap();
    let head = request(&mut d, 7);
    d.wait(0, head);
    assert_eq!(d.status(slot + 0x20), 0);
    assert_eq!(d.read(7, 512), (0, vec![5; 512]));
    // Held across the removal: it owns the map that it was parsed with.
    let held = request(&mut d, 3000);
    assert_eq!(mark.mark("wait held=1"), 0);
    d.frontend.remove_mem_region(&region).unwrap();
    let slot_2 = d.slot(0, 2);
    d.header(slot_2, OUT, 0, 8);
    let gone = d.chain(
        0,
        &[(slot_2, 16, 0), (FAR, 512, 0), (slot_2 + 0x20, 1, WRITE)],
    );
    d.kick(0);
    d.wait(0, gone);
    assert_eq!(d.status(slot_2 + 0x20), 1, "gone for new requests");
    assert_eq!(mark.mark("release"), 0);
    d.wait(0, held);
    assert_eq!(d.status(slot + 0x20), 0);
    assert_eq!(d.read(3000, 512), (0, vec![5; 512]));
    drop((d, mark));
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::BadChain).len(), 2);
}

/// Data over the border of two regions that lie side by side for the guest, and nowhere else.
#[test]
fn data_over_the_border_of_two_regions_is_served() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let (low, high) = (memfd(1 << 20), memfd(1 << 20));
    let border = FAR + (1 << 20);
    let add = |d: &mut Driver, at: u64, user: u64, file: &File| {
        d.frontend
            .add_mem_region(&region(at, 1 << 20, user, file))
            .unwrap();
    };
    // Whatever lies between them in the front end.
    add(&mut d, FAR, 0x1234_0000, &low);
    add(&mut d, border, 0x9234_0000, &high);
    let data: Vec<u8> = (0..512u32).map(|i| (i / 3) as u8).collect();
    let slot = d.slot(0, 0);
    for (kind, at, flags) in [(OUT, border - 200, 0), (IN, border - 300, WRITE)] {
        if kind == OUT {
            low.write_all_at(&data[..200], (1 << 20) - 200).unwrap();
            high.write_all_at(&data[200..], 0).unwrap();
        }
        d.header(slot, kind, 0, 7);
        d.poke(slot + 0x20, &[0xee]);
        let parts = [(slot, 16, 0), (at, 512, flags), (slot + 0x20, 1, WRITE)];
        let head = d.chain(0, &parts);
        d.kick(0);
        d.wait(0, head);
        assert_eq!(d.status(slot + 0x20), 0);
    }
    let (mut below, mut above) = (vec![0; 300], vec![0; 212]);
    low.read_exact_at(&mut below, (1 << 20) - 300).unwrap();
    high.read_exact_at(&mut above, 0).unwrap();
    assert_eq!([below, above].concat(), data);
    assert_eq!(d.read(7, 512), (0, data));
    drop(d);
    serve.end().assert_paired();
}

/// The ring itself lies where nothing is any more.
#[test]
fn a_ring_whose_file_shrinks_stops() {
    let serve = Serve::start("", &[]);
    let mut mark = Driver::connect(serve.mark(), 1);
    let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
    let file = memfd(1 << 20);
    let user = 0x1234_0000;
    d.frontend
        .add_mem_region(&region(FAR, 1 << 20, user, &file))
        .unwrap();
    let (kick, call) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    let f = &mut d.frontend;
    f.set_vring_num(0, 128).unwrap();
    f.set_vring_base(0, 0).unwrap();
    // The second half of the file.
    let config = VringConfigData {
        queue_max_size: 128,
        queue_size: 128,
        flags: 0,
        desc_table_addr: user + 0x8_0000,
        avail_ring_addr: user + 0x8_2000,
        used_ring_addr: user + 0x8_4000,
        log_addr: None,
    };
    f.set_vring_addr(0, &config).unwrap();
    f.set_vring_call(0, &call).unwrap();
    f.set_vring_kick(0, &kick).unwrap();
    f.set_vring_enable(0, true).unwrap();
    // It runs.
    let slot = d.slot(0, 0);
    d.header(slot, IN, 0, 0);
    for (n, (addr, len, flags, next)) in [
        (slot, 16u32, NEXT, 1u16),
        (slot + 0x1000, 512, NEXT | WRITE, 2),
        (slot + 0x20, 1, WRITE, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let words = [
            &addr.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ];
        file.write_all_at(&words.concat(), 0x8_0000 + 16 * n as u64)
            .unwrap();
    }
    file.write_all_at(&1u16.to_le_bytes(), 0x8_2002).unwrap();
    kick.write(1).unwrap();
    common::until("the read", || {
        let mut used = [0; 2];
        file.read_exact_at(&mut used, 0x8_4002).unwrap();
        (used == [1, 0]).then_some(())
    });
    file.set_len(4096).unwrap();
    kick.write(1).unwrap();
    let broken = common::until("the event of the ring", || {
        serve.trace().device(DeviceKind::BadRing).pop()
    });
    // Perhaps before anybody has heard of the missing page: an index of 0 cannot be, either.
    let said = ["was made shorter", "ahead of 1"];
    assert!(said.iter().any(|s| broken.2.contains(s)), "{}", broken.2);
    assert_eq!(mark.read(0, 512), (0, vec![0; 512]));
    drop(d);
    let mut next = Driver::connect(serve.data(), 1);
    assert_eq!(next.write(5, &[4; 512]), 0);
    drop((next, mark));
    serve.end().assert_paired();
}

#[test]
fn a_new_call_fd_is_signalled_once() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    // Somebody before may have published without being able to say so.
    assert!(d.called(0), "the ring started");
    d.new_call(0);
    assert!(d.called(0), "it got another fd");
    assert!(!d.called(0), "once");
    assert_eq!(d.write(0, &[1; 512]), 0);
    drop(d);
    serve.end();
}

#[test]
fn a_refused_message_ends_its_connection_alone() {
    let serve = Serve::start("", &[]);
    let short = memfd(0x1000);
    let long = memfd(1 << 20);
    let pipe = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(pipe.0));
    let attempts: Vec<(&str, Attempt<'_>)> = vec![
        (
            "a region longer than its file",
            Box::new(|d| {
                d.frontend
                    .add_mem_region(&region(FAR, 0x2000, 0x1000, &short))
                    .is_ok()
            }),
        ),
        (
            "a region over another",
            Box::new(|d| {
                d.frontend
                    .add_mem_region(&region(0x1000, 0x1000, 0x1000, &long))
                    .is_ok()
            }),
        ),
        (
            "regions that overlap in the table",
            Box::new(|d| {
                let table = [
                    region(0, 0x2000, 0x1000, &long),
                    region(0x1000, 0x1000, 0x8000, &long),
                ];
                d.frontend.set_mem_table(&table).is_ok()
            }),
        ),
        (
            "a region that is a pipe",
            Box::new(|d| {
                d.frontend
                    .add_mem_region(&region(FAR, 0x1000, 0x1000, &pipe))
                    .is_ok()
            }),
        ),
        (
            "a region that is not there, removed",
            Box::new(|d| {
                d.frontend
                    .remove_mem_region(&region(FAR, 0x1000, 0x1000, &long))
                    .is_ok()
            }),
        ),
        (
            "protocol features changed under a ring",
            Box::new(|d| {
                let less = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
                d.frontend.set_protocol_features(less).is_ok()
            }),
        ),
        (
            "features changed under a ring",
            Box::new(|d| d.frontend.set_features(1 << 32).is_ok()),
        ),
        (
            "a queue that is not there",
            Box::new(|d| d.frontend.set_vring_num(5, 8).is_ok()),
        ),
        (
            "a running ring's base set",
            Box::new(|d| d.frontend.set_vring_base(0, 0).is_ok()),
        ),
        (
            "a running ring resized",
            Box::new(|d| d.frontend.set_vring_num(0, 64).is_ok()),
        ),
        (
            "a running ring moved",
            Box::new(|d| {
                let config = VringConfigData {
                    queue_max_size: 128,
                    queue_size: 128,
                    ..Default::default()
                };
                d.frontend.set_vring_addr(0, &config).is_ok()
            }),
        ),
        (
            "a second owner",
            Box::new(|d| d.frontend.set_owner().is_ok()),
        ),
    ];
    refused(serve, |stream| Driver::connect(stream, 1), &attempts);
}

type Attempt<'a> = Box<dyn Fn(&mut Driver) -> bool + 'a>;

/// Each attempt is refused and ends its connection, and the next one is served.
fn refused(serve: Serve, connect: impl Fn(UnixStream) -> Driver, attempts: &[(&str, Attempt<'_>)]) {
    let mut accepted = Vec::new();
    for (what, attempt) in attempts {
        let mut d = connect(serve.data());
        if attempt(&mut d) {
            accepted.push(what);
        }
        drop(d);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.write(0, &[1; 512]), 0, "after {what}");
    }
    assert!(accepted.is_empty(), "accepted: {accepted:?}");
    let gone = serve.end().device(DeviceKind::Disconnected);
    let bad = gone.iter().filter(|e| e.2.starts_with("bad message"));
    assert_eq!(bad.count(), attempts.len(), "{gone:?}");
}

/// Where no ring runs yet: what is refused is refused for itself, and not for the ring.
#[test]
fn what_cannot_be_is_refused_before_any_ring_runs() {
    let serve = Serve::start("", &[]);
    let event = EventFd::new(0).unwrap();
    let size = |size: u16| -> Attempt<'static> {
        Box::new(move |d| d.frontend.set_vring_num(0, size).is_ok())
    };
    let attempts: Vec<(&str, Attempt<'_>)> = vec![
        (
            "features never offered",
            Box::new(|d| d.frontend.set_features(d.features | 1 << 60).is_ok()),
        ),
        (
            "protocol features never offered",
            Box::new(|d| {
                let offered = d.frontend.get_protocol_features().unwrap();
                // With it a socket for requests of the device was taken.
                let more = offered | VhostUserProtocolFeatures::BACKEND_REQ;
                raw(d, 16, &more.bits().to_le_bytes())
            }),
        ),
        ("a size of 0", size(0)),
        ("a size that is no power of two", size(100)),
        ("a size that is too large and no power of two", size(65535)),
        (
            "a size of 65536",
            Box::new(|d| raw(d, 8, &[0u32.to_le_bytes(), 65536u32.to_le_bytes()].concat())),
        ),
        (
            "a base beyond all",
            Box::new(|d| {
                raw(
                    d,
                    10,
                    &[0u32.to_le_bytes(), 65536u32.to_le_bytes()].concat(),
                )
            }),
        ),
        (
            "addresses of a queue that is not there",
            Box::new(|d| {
                let config = VringConfigData {
                    queue_max_size: 128,
                    queue_size: 128,
                    flags: 0,
                    desc_table_addr: 0x1000,
                    avail_ring_addr: 0x2000,
                    used_ring_addr: 0x3000,
                    log_addr: None,
                };
                d.frontend.set_vring_addr(5, &config).is_ok()
            }),
        ),
        (
            "a base of a queue that is not there",
            Box::new(|d| d.frontend.set_vring_base(5, 0).is_ok()),
        ),
        (
            "a call fd of a queue that is not there",
            Box::new(|d| d.frontend.set_vring_call(5, &event).is_ok()),
        ),
        (
            "an err fd of a queue that is not there",
            Box::new(|d| d.frontend.set_vring_err(5, &event).is_ok()),
        ),
    ];
    // The same with what can be.
    let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
    assert!(d.frontend.set_features(d.features).is_ok());
    assert!(raw(
        &mut d,
        8,
        &[0u32.to_le_bytes(), 128u32.to_le_bytes()].concat()
    ));
    assert!(raw(
        &mut d,
        10,
        &[0u32.to_le_bytes(), 7u32.to_le_bytes()].concat()
    ));
    drop(d);
    refused(
        serve,
        |stream| Driver::negotiate(stream, 1, u64::MAX),
        &attempts,
    );
}

/// A message whose numbers the library of the tests does not let through; whether the device is
/// there afterwards.
fn raw(d: &mut Driver, code: u32, body: &[u8]) -> bool {
    // No acknowledgement is asked for: the library would take it for the next one's answer.
    let header = [code, 1, body.len() as u32].map(u32::to_le_bytes).concat();
    send(&d.stream, &[&header, body].concat(), &[]);
    d.frontend.get_features().is_ok()
}

/// What a process does that shares memory and then takes it away: no SIGBUS. The ring stops,
/// the process, the other disk and the next front end go on.
#[test]
fn memory_whose_file_shrinks_stops_the_ring_and_not_the_process() {
    // Both ways to touch it: the header is read by the device, the data of a marked or digested
    // write, too.
    for header_is_gone in [true, false] {
        let serve = Serve::start("", &["--digest", "all"]);
        let mut d = Driver::connect(serve.data(), 1);
        let mut mark = Driver::connect(serve.mark(), 1);
        let file = memfd(1 << 20);
        let region = region(FAR, 1 << 20, 0x1234_0000, &file);
        d.frontend.add_mem_region(&region).unwrap();
        let slot = d.slot(0, 0);
        let (header, data, status) = (slot, slot + 0x1000, slot + 0x20);
        d.header(header, OUT, 0, 5);
        d.poke(data, &[3; 512]);
        d.poke(status, &[0xee]);
        // With all of it there, it is memory like any other.
        let parts = |header, data| [(header, 16, 0), (data, 512, 0), (status, 1, WRITE)];
        let head = d.chain(0, &parts(header, FAR));
        d.kick(0);
        d.wait(0, head);
        assert_eq!(d.status(status), 0);
        file.set_len(4096).unwrap();
        let far = FAR + (1 << 19);
        d.chain(
            0,
            &match header_is_gone {
                true => parts(far, data),
                false => parts(header, far),
            },
        );
        d.kick(0);
        let broken = common::until("the event of the ring", || {
            serve.trace().device(DeviceKind::BadRing).pop()
        });
        assert!(broken.2.contains("was made shorter"), "{}", broken.2);
        // The mark disk, in the same process, has memory of its own.
        assert_eq!(mark.read(0, 512), (0, vec![0; 512]));
        drop(d);
        let mut next = Driver::connect(serve.data(), 1);
        assert_eq!(next.write(5, &[4; 512]), 0);
        assert_eq!(next.read(5, 512), (0, vec![4; 512]));
        drop((next, mark));
        serve.end().assert_paired();
    }
}
