// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Limits that are reached: an event, said once, and the device goes on
//! (`docs/limits.md`).

mod common;

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::driver::{Driver, IN, INDIRECT, NEXT, OUT, QUEUE_SIZE, WRITE};
use common::inside::Inside;
use common::serve::{Serve, wtblk, wtblk_ending};
use common::until;
use nix::sys::resource::{Resource, setrlimit};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vm_memory::{Bytes, GuestAddress};
use wtblk::control::Line;
use wtblk::control::client::Client;
use wtblk::fault::request::{OrderBy, OrderSlot, Plan, Request};
use wtblk::trace::event::DeviceKind;

fn limits(trace: &common::serve::Trace, word: &str) -> Vec<(u64, u64, String)> {
    let mut limits = trace.device(DeviceKind::Limit);
    limits.retain(|l| l.2.contains(word));
    limits
}

#[test]
fn marks_that_come_too_fast_wait_and_are_in_order() {
    let serve = Serve::start("", &["--marks-per-second", "50"]);
    let mut mark = Driver::connect(serve.mark(), 1);
    let begin = Instant::now();
    for round in 0..2u64 {
        let posted: Vec<_> = (0..40)
            .map(|n| mark.post_mark(n, &format!("note text=n{}", round * 40 + n)))
            .collect();
        for head in posted {
            mark.wait(0, head);
        }
    }
    // 50 at once, 30 more at 20 ms each.
    let took = begin.elapsed();
    assert!(took >= Duration::from_millis(500), "{took:?}");
    // A stop does not wait for them.
    for n in 0..40 {
        mark.post_mark(n, "note text=last");
    }
    let begin = Instant::now();
    let base = mark.stop(0);
    assert!(begin.elapsed() < Duration::from_millis(500));
    assert!((80..=120).contains(&base));
    drop(mark);
    let trace = serve.end();
    let marks = trace.marks();
    assert_eq!(marks.len(), usize::from(base), "all that were taken");
    for (n, (_, line, _)) in marks[..80].iter().enumerate() {
        assert_eq!(*line, format!("wtblk/1 note text=n{n}"));
    }
    assert_eq!(limits(&trace, "more than 50 marks in a second").len(), 1);
}

#[test]
fn control_connections_have_a_limit() {
    let serve = Serve::start("", &["--control", "control"]);
    let path = serve.path("control");
    let connect = || until("the control socket", || UnixStream::connect(&path).ok());
    let _many: Vec<_> = (0..20).map(|_| connect()).collect();
    until("the event", || {
        (!limits(&serve.trace(), "too many control connections").is_empty()).then_some(())
    });
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(0, &[1; 512]), 0);
    drop(d);
    assert_eq!(
        limits(&serve.end(), "too many control connections").len(),
        1
    );
}

const HOLD: &str = "version = 1
[[fault]]
name = \"all\"
when = { op = \"write\" }
action = { hold = true }
";

/// Chains of 1024 pieces each, all of them the same table: what they cost us is ours to bound.
#[test]
fn requests_of_many_pieces_wait_in_the_ring() {
    const ENTRIES: u16 = 8192;
    const TABLE: u64 = 0x100_0000;
    let (desc, avail, used) = (0x80_0000u64, 0x90_0000u64, 0xa0_0000u64);
    let serve = {
        let dir = tempfile::tempdir().unwrap();
        let more = ["--null", "1GiB", "--digest", "off", "--control", "control"];
        Serve::start_in(dir, HOLD, &more)
    };
    let mut mark = Driver::connect(serve.mark(), 1);
    let mut d = Driver::negotiate(serve.data(), 1, u64::MAX);
    let (header, status, data) = (0x20_0000, 0x20_0020, 0x20_1000);
    d.header(header, OUT, 0, 0);
    let pieces = 1022;
    d.put_desc(TABLE, 0, header, 16, NEXT, 1);
    for n in 1..=pieces {
        d.put_desc(TABLE, n, data, 512, NEXT, n as u16 + 1);
    }
    d.put_desc(TABLE, pieces + 1, status, 1, WRITE, 0);
    for n in 0..ENTRIES {
        d.put_desc(desc, u64::from(n), TABLE, 1024 * 16, INDIRECT, 0);
        d.poke(avail + 4 + 2 * u64::from(n), &n.to_le_bytes());
    }
    let total = 1200u16;
    d.poke(avail + 2, &total.to_le_bytes());
    let _kick = d.set_up(ENTRIES, desc, avail, used);
    until("the event", || {
        let trace = serve.trace();
        (!limits(&trace, "too many pieces").is_empty()).then_some(())
    });
    // 1048576 pieces are reached by the 1027th.
    assert_eq!(mark.mark("wait held=1027"), 0);
    let held = mark.state();
    assert!(held.contains(" held=1027 "), "{held}");
    // Who asks for the list of them gets the first of them, and is told of the rest.
    let mut ctl = Client::connect(&serve.path("control")).unwrap();
    let answer = ctl.ask(&Line::of("query")).unwrap().1;
    assert_eq!(answer.requests.unwrap().len(), 1024);
    assert_eq!(answer.more, Some(3));
    // What is over makes room for those behind it.
    until("all of them", || {
        assert_eq!(mark.mark("release"), 0);
        let at = GuestAddress(used + 2);
        let over: u16 = d.memory.load(at, Ordering::Acquire).unwrap();
        (over == total).then_some(())
    });
    drop((d, mark));
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(limits(&trace, "too many pieces").len(), 1);
}

/// No descriptors are left: connections wait or end, and it is said; what is served goes on.
#[test]
fn out_of_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let serve = Serve::start_with(dir, "", &["--memory", "16MiB"], |command| {
        command.stderr(log);
        let few = || setrlimit(Resource::RLIMIT_NOFILE, 64, 64).map_err(Into::into);
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(few) };
    });
    let mut mark = Driver::connect(serve.mark(), 1);
    let mut d = Driver::connect(serve.data(), 1);
    // Regions keep a descriptor each. Whatever is refused, nobody hangs.
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let added = (0..64u64).take_while(|n| {
        let region = vhost::VhostUserMemoryRegionInfo {
            guest_phys_addr: (1 << 40) + (n << 20),
            memory_size: 1 << 20,
            userspace_addr: (1 << 45) + (n << 20),
            mmap_offset: 0,
            mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&file),
        };
        d.frontend.add_mem_region(&region).is_ok()
    });
    let added = added.count();
    // Far from as many as there may be, of which one is the driver's own.
    assert!(added > 8 && added < 63, "{added}");
    assert_eq!(mark.mark("note text=here"), 0);
    drop(d);
    // They are given back with the connection.
    let mut d = until("room for another front end", || {
        let stream = serve.data();
        let tried = std::panic::catch_unwind(|| Driver::connect(stream, 1));
        tried.ok()
    });
    assert_eq!(d.write(0, &[1; 512]), 0);
    drop((d, mark));
    let said = std::fs::read_to_string(serve.path("log")).unwrap();
    assert!(said.contains("Too many open files"), "{said}");
    assert!(!said.contains("memory regions"), "{said}");
    serve.end().assert_paired();
}

/// Not one more connection: it waits, and the disk that is served goes on.
#[test]
fn no_descriptor_for_a_connection() {
    let dir = tempfile::tempdir().unwrap();
    let serve = Serve::start_in(dir, "", &["--memory", "16MiB"]);
    let mut mark = Driver::connect(serve.mark(), 1);
    let open = |n: &u64| std::fs::symlink_metadata(format!("/proc/{}/fd/{n}", serve.pid())).is_ok();
    // The lowest that is free, which would be the next one.
    let none_left = (0..).find(|n| !open(n)).unwrap();
    let limit = |most: u64| {
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: 4096,
        };
        let pid = serve.pid() as libc::pid_t;
        let none = std::ptr::null_mut();
        // SAFETY: a limit that lives over the call, for a process of ours; nothing is asked back.
        unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, none) }
    };
    assert_eq!(limit(none_left), 0);
    let stream = serve.data();
    until("the event", || {
        let trace = serve.trace();
        (!limits(&trace, "cannot accept a connection").is_empty()).then_some(())
    });
    assert_eq!(mark.mark("note text=here"), 0);
    assert_eq!(limit(1024), 0);
    let mut d = Driver::connect(stream, 1);
    assert_eq!(d.write(0, &[1; 512]), 0);
    drop((d, mark));
    let trace = serve.end();
    assert_eq!(limits(&trace, "cannot accept a connection").len(), 1);
}

/// At the start it is one sentence.
#[test]
fn out_of_descriptors_at_the_start() {
    for few in 5..=26 {
        let dir = tempfile::tempdir().unwrap();
        let mut command = wtblk();
        command.current_dir(dir.path());
        command.args([
            "serve",
            "--memory",
            "1MiB",
            "--socket",
            "s",
            "--mark-socket",
            "m",
        ]);
        command.args(["--queues", "16", "--trace", "t", "--control", "c"]);
        let limit = move || setrlimit(Resource::RLIMIT_NOFILE, few, few).map_err(Into::into);
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(limit) };
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{few}: {said}");
        assert!(said.contains("Too many open files"), "{few}: {said}");
        let lines = said.lines().filter(|l| !l.trim().is_empty()).count();
        assert_eq!(lines, 1, "{few}: {said}");
        assert!(!said.contains("wtblk: Too many"), "for what? {few}: {said}");
        assert!(!dir.path().join("s").exists(), "{few}");
    }
}

#[test]
fn too_many_regions_are_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let log = File::create(dir.path().join("log")).unwrap();
    let serve = Serve::start_with(dir, "", &["--memory", "16MiB"], |command| {
        command.stderr(log);
    });
    let mut d = Driver::connect(serve.data(), 1);
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 16).unwrap();
    let added = (0..70u64).take_while(|n| {
        let region = vhost::VhostUserMemoryRegionInfo {
            guest_phys_addr: (1 << 40) + (n << 20),
            memory_size: 1 << 16,
            userspace_addr: (1 << 45) + (n << 20),
            mmap_offset: 0,
            mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&file),
        };
        d.frontend.add_mem_region(&region).is_ok()
    });
    // One is the driver's own.
    assert_eq!(added.count(), 63);
    drop(d);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(u64::from(QUEUE_SIZE), &[1; 512]), 0);
    drop(d);
    let said = std::fs::read_to_string(serve.path("log")).unwrap();
    assert!(said.contains("more than 64 memory regions"), "{said}");
    serve.end();
}

/// Kernels of before count a ring as locked memory.
#[test]
fn no_memory_for_a_ring() {
    let none: seccompiler::BpfProgram = {
        let arch = seccompiler::TargetArch::try_from(std::env::consts::ARCH).unwrap();
        let fails = seccompiler::SeccompAction::Errno(libc::ENOMEM as u32);
        let rules = [(libc::SYS_io_uring_setup, Vec::new())].into();
        let allow = seccompiler::SeccompAction::Allow;
        let filter = seccompiler::SeccompFilter::new(rules, allow, fails, arch).unwrap();
        filter.try_into().unwrap()
    };
    let forbid = move |command: &mut std::process::Command| {
        let none = none.clone();
        let apply = move || seccompiler::apply_filter(&none).map_err(std::io::Error::other);
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(apply) };
    };
    let image = ["--image", "image", "--size", "1MiB"];
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut command = wtblk();
    forbid(&mut command);
    command
        .current_dir(dir.path())
        .args(["serve", "--socket", "s", "--aio", "io_uring"]);
    let output = command.args(image).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(
        said.contains("no memory for an io_uring") && said.contains("ulimit -l"),
        "{said}"
    );
    let log = File::create(dir.path().join("log")).unwrap();
    let serve = Serve::start_with(dir, "", &image, |command| {
        command.stderr(log);
        forbid(command);
    });
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(8, &[7; 512]), 0);
    drop(d);
    let said = std::fs::read_to_string(serve.path("log")).unwrap();
    assert!(
        said.contains("no memory for an io_uring") && said.contains("threads"),
        "{said}"
    );
    serve.end().assert_paired();
}

#[test]
fn too_many_disks_or_queues_are_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |queues: u16, disks: usize, of_each: u16| {
        let mut command = wtblk_ending();
        command.current_dir(dir.path());
        command.args(["serve", "--memory", "1MiB", "--socket", "s"]);
        command.arg(format!("--queues={queues}"));
        for n in 0..disks {
            let disk = format!("name=n{n},memory=64KiB,socket=s{n},queues={of_each}");
            command.args(["--disk", &disk]);
        }
        // What is good is told from what is not by what is printed, without being served.
        command.arg("--print-qemu-args");
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), said)
    };
    assert_eq!(refused(1, 16, 1).0, Some(0), "17 in all");
    let (status, said) = refused(1, 17, 1);
    assert!(said.contains("17 disks with --disk, expected at most 16"));
    assert_eq!(status, Some(2));
    assert_eq!(refused(64, 3, 64).0, Some(0), "256 in all");
    let (status, said) = refused(64, 4, 48);
    assert!(said.is_empty() && status == Some(0), "{said}");
    let (status, said) = refused(64, 4, 49);
    assert!(said.contains("260 queues, expected 1 to 256"), "{said}");
    assert_eq!(status, Some(2));
}

/// 64 marks wait, each of one descriptor; the next one is answered at once.
#[test]
fn more_waits_than_there_may_be_are_answered_at_once() {
    let serve = Serve::start(HOLD, &[]);
    let mut mark = Driver::connect(serve.mark(), 1);
    let slot = mark.slot(0, 0);
    let (header, status, text, table) = (slot, slot + 0x20, slot + 0x1000, slot + 0x2000);
    mark.header(header, OUT, 0, 0);
    let mut block = b"wtblk/1 wait held=1\n".to_vec();
    block.resize(512, 0);
    mark.poke(text, &block);
    mark.put_desc(table, 0, header, 16, NEXT, 1);
    mark.put_desc(table, 1, text, 512, NEXT, 2);
    mark.put_desc(table, 2, status, 1, WRITE, 0);
    let heads: Vec<u16> = (0..65)
        .map(|_| mark.chain(0, &[(table, 48, INDIRECT)]))
        .collect();
    let begun = Instant::now();
    mark.kick(0);
    mark.wait(0, heads[64]);
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert!((0..64).all(|n| !mark.is_done(0, heads[n])));
    // They have what they wait for.
    let mut d = Driver::connect(serve.data(), 1);
    d.submit(0, 1, OUT, 8, 512);
    d.kick(0);
    for head in &heads[..64] {
        mark.wait(0, *head);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "not their limit");
    drop((d, mark));
    let waits = serve.end().device(DeviceKind::Wait);
    let reached = waits.iter().filter(|w| w.0 == 1).count();
    assert_eq!((waits.len(), reached), (65, 64));
}

/// Each group lacks one, and is remembered for it.
#[test]
fn more_groups_than_are_remembered_are_told_once() {
    let mut inside = Inside::start(1, vec![], false, |request: &Request| {
        let order = OrderSlot {
            group: request.sector,
            size: 2,
            turn: OrderBy::Turn(0),
            limit_ns: Some(1),
        };
        Some(Plan {
            order: Some(order),
            ..Plan::default()
        })
    });
    let mut d = inside.data(1);
    let said = |inside: &Inside| {
        let trace = common::serve::Trace::read(&inside.path("trace"));
        limits(&trace, "groups of planned orders").len()
    };
    for sector in 0..1024 {
        assert_eq!(d.read(sector, 512).0, 0);
    }
    assert_eq!(said(&inside), 0);
    for sector in 1024..1100 {
        assert_eq!(d.read(sector, 512).0, 0);
    }
    drop(d);
    assert_eq!(said(&inside), 1);
    inside.end().assert_paired();
}

#[test]
fn a_request_that_is_too_long_to_be_looked_at_is_told_once() {
    const MEMORY: u32 = 32 << 20;
    let dir = tempfile::tempdir().unwrap();
    let serve = Serve::start_in(dir, "", &["--null", "1GiB", "--digest", "all"]);
    let mut d = Driver::connect(serve.data(), 1);
    let slot = d.slot(0, 0);
    let (header, status, table) = (slot, slot + 0x20, slot + 0x1000);
    for (count, kind, flags) in [(2, OUT, 0), (3, OUT, 0), (3, IN, WRITE), (3, OUT, 0)] {
        d.header(header, kind, 0, 0);
        d.poke(status, &[0xee]);
        d.put_desc(table, 0, header, 16, NEXT, 1);
        for n in 1..=count {
            // A read goes over no buffer that is still needed: the disk stores nothing.
            let (at, len) = if kind == IN {
                (0x100_0000, MEMORY / 2)
            } else {
                (0, MEMORY)
            };
            let many = if kind == IN { 2 } else { 1 };
            for half in 0..many {
                let at_desc = (n - 1) * many + half + 1;
                d.put_desc(table, at_desc, at, len, NEXT | flags, at_desc as u16 + 1);
            }
        }
        let last = if kind == IN { 2 * count + 1 } else { count + 1 };
        d.put_desc(table, last, status, 1, WRITE, 0);
        let head = d.chain(0, &[(table, 16 * (last as u32 + 1), INDIRECT)]);
        d.kick(0);
        d.wait(0, head);
        assert_eq!(d.status(status), 0);
    }
    drop(d);
    let trace = serve.end();
    trace.assert_paired();
    let said = limits(&trace, "more than 64 MiB");
    assert_eq!(said.len(), 1, "{said:?}");
    // At the second of them, the first that is longer.
    assert_eq!(said[0].1, trace.submits()[1].0);
    assert_ne!(trace.submits()[0].1.digest, 0);
    assert_eq!(trace.submits()[1].1.digest, 0);
}

/// `ulimit -f`: what does not fit fails, and the process is there for the rest.
#[test]
fn a_limit_of_file_sizes_is_the_error_of_a_request() {
    for aio in ["threads", "auto"] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let image = File::create(dir.path().join("img")).unwrap();
        image.set_len(64 << 20).unwrap();
        let words = ["--image", "img", "--aio", aio];
        let serve = Serve::start_with(dir, "", &words, |command| {
            let few = || setrlimit(Resource::RLIMIT_FSIZE, 20 << 20, 20 << 20).map_err(Into::into);
            // SAFETY: between fork and exec only a system call is made.
            unsafe { command.pre_exec(few) };
        });
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.write(0, &[1; 4096]), 0);
        assert_eq!(d.write((30 << 20) / 512, &[2; 4096]), 1, "{aio}");
        assert_eq!(d.read(0, 4096), (0, vec![1; 4096]));
        drop(d);
        let trace = serve.end();
        trace.assert_paired();
        assert_eq!(trace.device(DeviceKind::StoreError).len(), 1, "{aio}");
    }
    // No more so where it is in the way of the start.
    let mut command = wtblk_ending();
    let dir = tempfile::tempdir().unwrap();
    command.current_dir(dir.path());
    command.args(["serve", "--socket", "s", "--memory", "64MiB"]);
    let few = || setrlimit(Resource::RLIMIT_FSIZE, 20 << 20, 20 << 20).map_err(Into::into);
    // SAFETY: as above.
    unsafe { command.pre_exec(few) };
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("File too large"), "{said}");
}

/// A ring full of marks that came too fast: a stop takes all of them at once.
#[test]
fn a_stop_takes_thousands_of_waiting_marks_at_once() {
    const ENTRIES: u16 = 32768;
    let (desc, avail, used) = (0x80_0000u64, 0x90_0000u64, 0xa0_0000u64);
    let words = ["--queues", "64", "--marks-per-second", "10"];
    let serve = Serve::start("", &words);
    let mut mark = Driver::negotiate(serve.mark(), 1, u64::MAX);
    // All are the same chain.
    let (header, status, data, table) = (0x20_0000, 0x20_0020, 0x20_1000, 0x20_4000);
    mark.header(header, OUT, 0, 0);
    let mut block = b"wtblk/1 note text=x\n".to_vec();
    block.resize(512, 0);
    mark.poke(data, &block);
    mark.put_desc(table, 0, header, 16, NEXT, 1);
    mark.put_desc(table, 1, data, 512, NEXT, 2);
    mark.put_desc(table, 2, status, 1, WRITE, 0);
    for n in 0..ENTRIES {
        mark.put_desc(desc, u64::from(n), table, 48, INDIRECT, 0);
        mark.poke(avail + 4 + 2 * u64::from(n), &n.to_le_bytes());
    }
    mark.poke(avail + 2, &ENTRIES.to_le_bytes());
    let kick = mark.set_up(ENTRIES, desc, avail, used);
    kick.write(1).unwrap();
    until("the limit", || {
        (!limits(&serve.trace(), "marks in a second").is_empty()).then_some(())
    });
    // Whatever of them it has taken by then.
    let base = mark.frontend.get_vring_base(0).unwrap();
    assert!(base > 1000, "{base}");
    let told: u16 = mark.memory.read_obj(GuestAddress(used + 2)).unwrap();
    assert_eq!(u32::from(told), base);
    drop(mark);
    let mut mark = Driver::connect(serve.mark(), 1);
    assert_eq!(mark.mark("note text=next"), 0);
    drop(mark);
    let trace = serve.end();
    assert_eq!(trace.marks().len() as u32, base + 1);
    assert_eq!(trace.device(DeviceKind::Limit).len(), 1);
}
