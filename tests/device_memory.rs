// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory regions that come and go, and messages that are refused: each ends
//! its connection, the next one is served.

mod common;

use std::fs::File;

use common::driver::*;
use common::hostile::{memfd, region};
use common::serve::Serve;
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
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
    type Attempt<'a> = Box<dyn Fn(&mut Driver) -> bool + 'a>;
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
            "features never offered",
            Box::new(|d| d.frontend.set_features(1 << 60).is_ok()),
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
            "a size that is no power of two",
            Box::new(|d| d.frontend.set_vring_num(0, 100).is_ok()),
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
    for (what, attempt) in &attempts {
        let mut d = Driver::connect(serve.data(), 1);
        assert!(!attempt(&mut d), "{what} was accepted");
        drop(d);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.write(0, &[1; 512]), 0, "after {what}");
    }
    let gone = serve.end().device(DeviceKind::Disconnected);
    let bad = gone.iter().filter(|e| e.2.starts_with("bad message"));
    assert_eq!(bad.count(), attempts.len(), "{gone:?}");
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
