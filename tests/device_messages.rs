// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Messages that no front end sends (`docs/hostile.md` is the whole table): a bad message ends its
//! connection, and all else goes on.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::driver::Driver;
use common::hostile::{ends, goes_on, memfd, message, region, send};
use common::serve::Serve;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

const FAR: u64 = 1 << 40;

#[test]
fn half_a_message_does_not_keep_the_next_front_end_out() {
    let serve = Serve::start("", &[]);
    let owner = message(3, 0, &[]);
    // A part of a header; a header without the body that it announces; bytes that drip.
    let mut half = serve.data();
    half.write_all(&owner[..3]).unwrap();
    let begin = Instant::now();
    goes_on(&serve);
    assert!(begin.elapsed() < Duration::from_secs(8));
    let mut bodyless = serve.data();
    bodyless.write_all(&message(2, 4000, &[0; 8])).unwrap();
    goes_on(&serve);
    let stream = serve.data();
    let over = AtomicBool::new(false);
    let begin = Instant::now();
    std::thread::scope(|s| {
        s.spawn(|| {
            for byte in message(2, 4000, &[0; 4000]) {
                if over.load(Ordering::SeqCst) {
                    return;
                }
                send(&stream, &[byte], &[]);
                std::thread::sleep(Duration::from_millis(100));
            }
        });
        goes_on(&serve);
        over.store(true, Ordering::SeqCst);
    });
    assert!(begin.elapsed() < Duration::from_secs(8));
    let ends = ends(serve);
    assert!(
        ends[0].contains("3 of its 12 bytes came in 5 s"),
        "{ends:?}"
    );
    assert!(
        ends[2].contains("20 of its 4012 bytes came in 5 s"),
        "{ends:?}"
    );
    assert!(
        ends[4].contains("of its 4012 bytes came in 5 s"),
        "{ends:?}"
    );
}

#[test]
fn who_does_not_read_the_answers_is_cut_off() {
    let serve = Serve::start("", &[]);
    let deaf = serve.data();
    let asks = message(1, 0, &[]).repeat(64);
    deaf.set_write_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    // Until nothing more goes into it: then the device waits for us.
    let mut writer = &deaf;
    while writer.write_all(&asks).is_ok() {}
    let begin = Instant::now();
    goes_on(&serve);
    assert!(begin.elapsed() < Duration::from_secs(8));
    let ends = ends(serve);
    assert!(ends[0].contains("has not read our answers"), "{ends:?}");
}

#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    let serve = Serve::start("", &[]);
    let mut silent = serve.data();
    let begin = Instant::now();
    goes_on(&serve);
    let took = begin.elapsed();
    assert!(
        took >= Duration::from_secs(9) && took < Duration::from_secs(14),
        "{took:?}"
    );
    silent
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap_or(0), 0);
    let ends = ends(serve);
    assert!(ends[0].contains("not a word in 10 s"), "{ends:?}");
}

#[test]
fn messages_cut_short_end_their_connection() {
    let serve = Serve::start("", &[]);
    let whole = message(2, 8, &0u64.to_le_bytes());
    for len in 1..whole.len() {
        let stream = serve.data();
        send(&stream, &whole[..len], &[]);
    }
    goes_on(&serve);
    let ends = ends(serve);
    assert_eq!(ends.len(), whole.len());
}

/// Every code there is and some that are none, with bodies of every length, with and without
/// descriptors, of versions that do not exist: whatever comes of it, the next one is served.
#[test]
fn nonsense_of_every_kind_ends_its_connection() {
    let serve = Serve::start("", &[]);
    let file = memfd(4096);
    let mut sent = 0;
    for code in (0..=45).chain([1000, u32::MAX]) {
        for (len, fill, fds) in [
            (0usize, 0u8, 0usize),
            (0, 0, 1),
            (8, 0xff, 0),
            (8, 0, 1),
            (24, 0xff, 2),
            (40, 0, 1),
            (300, 0x41, 0),
            (4096, 0xff, 8),
        ] {
            let stream = serve.data();
            let fds = vec![file.as_raw_fd(); fds];
            send(&stream, &message(code, len, &vec![fill; len]), &fds);
            let answered = match (len, fds.len()) {
                (0, 0) => [1, 3, 4, 15, 17, 34, 36, 43].contains(&code),
                // What was not offered, refused by an answer.
                (8, 1) => code == 42,
                (_, 0) => code == 43,
                _ => false,
            };
            if answered {
                // What is behind it is no message.
                send(&stream, &message(u32::MAX, 0, &[]), &[]);
            }
            assert!(over(&stream), "code {code}, {len} bytes, {} fds", fds.len());
            sent += 1;
        }
    }
    for header in [
        // A length beyond all, a version that is none, an answer instead of a question.
        [1u32, 1, u32::MAX],
        [1, 1, 4097],
        [1, 0, 0],
        [1, 3, 0],
        [1, 1 | 1 << 2, 0],
        [0, 0, 0],
        [u32::MAX; 3],
    ] {
        let stream = serve.data();
        send(&stream, &header.map(u32::to_le_bytes).concat(), &[]);
        assert!(over(&stream), "header {header:x?}");
        sent += 1;
    }
    // Descriptors in the middle of a header.
    let stream = serve.data();
    let owner = message(3, 0, &[]);
    send(&stream, &owner[..4], &[file.as_raw_fd()]);
    send(&stream, &owner[4..], &[]);
    assert!(over(&stream));
    sent += 1;
    goes_on(&serve);
    // None of the descriptors is kept.
    let open = std::fs::read_dir(format!("/proc/{}/fd", serve.pid())).unwrap();
    assert!(open.count() < 40);
    let ends = ends(serve);
    let bad = ends.iter().filter(|e| e.starts_with("bad message")).count();
    assert_eq!(bad, sent, "{ends:?}");
    assert!(
        ends.iter()
            .any(|e| e.contains("in the middle of its header"))
    );
}

#[test]
fn messages_that_cannot_be_obeyed_end_their_connection() {
    let serve = Serve::start("", &[]);
    let file = memfd(1 << 20);
    let null = File::open("/dev/zero").unwrap();
    let called = memfd_create(c"[eventfd]", MFdFlags::empty()).unwrap();
    let pair = UnixStream::pair().unwrap();
    let event = EventFd::new(0).unwrap();
    type Attempt<'a> = Box<dyn Fn(&mut Driver) -> bool + 'a>;
    let raw = |fd: RawFd| {
        // SAFETY: the descriptor is open; the value is forgotten before it would be closed.
        std::mem::ManuallyDrop::new(unsafe { <EventFd as std::os::fd::FromRawFd>::from_raw_fd(fd) })
    };
    let (file_fd, socket_fd) = (file.as_raw_fd(), pair.0.as_raw_fd());
    let wrap = |guest, size, user| region(guest, size, user, &file);
    let attempts: Vec<(&str, Attempt<'_>)> = vec![
        (
            "a kick that is a file",
            Box::new(|d| d.frontend.set_vring_kick(0, &raw(file_fd)).is_ok()),
        ),
        (
            "a kick that is only called an eventfd",
            Box::new(|d| {
                d.frontend
                    .set_vring_kick(0, &raw(called.as_raw_fd()))
                    .is_ok()
            }),
        ),
        (
            "a kick that is a socket",
            Box::new(|d| d.frontend.set_vring_kick(0, &raw(socket_fd)).is_ok()),
        ),
        (
            "a call that is a file",
            Box::new(|d| d.frontend.set_vring_call(0, &raw(file_fd)).is_ok()),
        ),
        (
            "an error fd that is a file",
            Box::new(|d| d.frontend.set_vring_err(0, &raw(file_fd)).is_ok()),
        ),
        (
            "a kick of a queue that is not there",
            Box::new(|d| d.frontend.set_vring_kick(9, &event).is_ok()),
        ),
        (
            "a queue that is not there, enabled",
            Box::new(|d| d.frontend.set_vring_enable(9, true).is_ok()),
        ),
        (
            "a queue that is not there, stopped",
            Box::new(|d| d.frontend.get_vring_base(9).is_ok()),
        ),
        (
            "a region that is a device",
            Box::new(|d| {
                d.frontend
                    .add_mem_region(&region(FAR, 0x1000, 0x1000, &null))
                    .is_ok()
            }),
        ),
        (
            "a region beyond the address space",
            Box::new(|d| {
                d.frontend
                    .add_mem_region(&wrap(u64::MAX - 0xfff, 0x2000, 0x1000))
                    .is_ok()
            }),
        ),
        (
            "a region over another's addresses in the front end",
            Box::new(|d| {
                let host = d.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
                d.frontend.add_mem_region(&wrap(FAR, 0x1000, host)).is_ok()
            }),
        ),
        (
            "configuration that is not the driver's",
            Box::new(|d| d.set_config(0, &[0; 8])),
        ),
        (
            "a writeback byte of two",
            Box::new(|d| d.set_config(32, &[0, 0])),
        ),
        (
            "an area of what is in flight under a ring",
            Box::new(|d| {
                let area = VhostUserInflight::new(4096, 0, 1, 128);
                d.frontend.set_inflight_fd(&area, file_fd).is_ok()
            }),
        ),
    ];
    for (what, attempt) in &attempts {
        let mut d = Driver::connect(serve.data(), 1);
        assert!(!attempt(&mut d), "{what} was accepted");
        drop(d);
        goes_on(&serve);
    }
    // A log of dirty pages is not offered: it is refused by its number.
    for (code, body, fds) in [(6, 16, 1), (7, 0, 1), (21, 0, 1)] {
        send(
            &serve.data(),
            &message(code, body, &vec![0; body]),
            &vec![file_fd; fds],
        );
    }
    goes_on(&serve);
    let ends = ends(serve);
    let bad = ends.iter().filter(|e| e.starts_with("bad message")).count();
    assert_eq!(bad, attempts.len() + 3, "{ends:?}");
    // Each says which message that was.
    for name in [
        "SET_INFLIGHT_FD",
        "SET_LOG_BASE",
        "SET_LOG_FD",
        "SET_VRING_KICK",
    ] {
        let named = |e: &&String| e.starts_with(&format!("bad message: {name}: "));
        assert!(ends.iter().find(named).is_some(), "{name}: {ends:?}");
    }
}

/// Its space has 256 bytes, of which the last are zeros. Beyond these the protocol has an answer: one
/// of no bytes. What is beyond all that a message may ask for ends the connection.
#[test]
fn configuration_beyond_its_end_is_answered_with_nothing() {
    let serve = Serve::start("", &[]);
    let ask = |stream: &UnixStream, offset: u32, size: u32| {
        let numbers = [offset, size, 0].map(u32::to_le_bytes).concat();
        let body = [numbers, vec![0; size as usize]].concat();
        send(stream, &message(24, body.len(), &body), &[]);
    };
    let stream = serve.data();
    let mut d = Driver::connect(stream.try_clone().unwrap(), 1);
    assert_eq!(d.config(60, 196), vec![0; 196]);
    for (offset, size) in [(250, 100), (256, 1), (4000, 90)] {
        ask(&stream, offset, size);
        let mut answer = [0; 24];
        (&stream).read_exact(&mut answer).unwrap();
        assert_eq!(
            answer[8..12],
            12u32.to_le_bytes(),
            "a body without a payload"
        );
        assert_eq!(answer[16..20], [0; 4], "of no bytes");
    }
    assert_eq!(d.write(8, &[7; 512]), 0);
    drop((d, stream));
    for (offset, size) in [(0u32, 0u32), (4000, 100), (u32::MAX, 8)] {
        let stream = serve.data();
        let d = Driver::connect(stream.try_clone().unwrap(), 1);
        ask(&stream, offset, size);
        assert!(over(&stream), "{offset} {size}");
        drop(d);
        goes_on(&serve);
    }
    serve.end();
}

/// Whether the connection ends, whatever is answered before.
fn over(stream: &UnixStream) -> bool {
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut answers = Vec::new();
    let read = (&mut &*stream).take(4096).read_to_end(&mut answers);
    // A reset is an end, too: something of ours was not read.
    read.map_or_else(
        |e| e.kind() == std::io::ErrorKind::ConnectionReset,
        |_| answers.len() < 4096,
    )
}

/// What the library of the tests does not send.
#[test]
fn a_region_of_no_length_ends_its_connection() {
    let serve = Serve::start("", &[]);
    let file = memfd(4096);
    for size in [0u64, u64::MAX] {
        let stream = serve.data();
        let d = Driver::connect(stream.try_clone().unwrap(), 1);
        let body = [0, FAR, size, 0x1000, 0].map(u64::to_le_bytes).concat();
        send(
            &stream,
            &message(37, body.len(), &body),
            &[file.as_raw_fd()],
        );
        assert!(over(&stream), "{size}");
        drop(d);
        goes_on(&serve);
    }
    serve.end();
}
