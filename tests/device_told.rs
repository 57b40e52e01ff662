// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk serve`: who else has the image, and what people are told when
//! something does not go well.

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

use common::driver::*;
use common::serve::{Serve, wtblk_ending};
use wtblk::trace::event::{Body, Event};

/// Runs to the end; status, standard error.
fn output(dir: &std::path::Path, args: &[&str]) -> (i32, String) {
    let mut command = wtblk_ending();
    command.current_dir(dir).arg("serve").args(args);
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap_or(-1), error)
}

#[test]
fn an_image_has_one_device_that_writes() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("shared");
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let image = image.to_str().unwrap();
    let serve = |more: &[&str]| {
        let args = [&["--image", image], more].concat();
        Serve::start_in(tempfile::tempdir().unwrap(), "", &args)
    };
    let refused = |more: &[&str]| {
        let args = [&["--socket", "s", "--image", image], more].concat();
        let (status, error) = output(dir.path(), &args);
        assert_eq!(status, 2, "{error}");
        error
    };
    let writer = serve(&[]);
    for more in [&[] as &[&str], &["--read-only"]] {
        let error = refused(more);
        let who = format!("is in use by process {} (wtblk)", writer.pid());
        assert!(error.contains(&who), "{error}");
    }
    // Who takes it upon himself.
    serve(&["--no-lock"]).end();
    // Not for longer than the process, however that ends.
    writer.kill();
    let (one, two) = (serve(&["--read-only"]), serve(&["--read-only"]));
    let error = refused(&[]);
    let who = |serve: &Serve| error.contains(&format!("process {} (wtblk)", serve.pid()));
    assert!(who(&one) || who(&two), "{error}");
    one.end();
    two.end();
    serve(&["--aio", "threads"]).end();
}

#[test]
fn the_size_of_a_scenario_makes_a_disk_in_memory() {
    let scenario = "version = 1\n[device]\nsize = \"3MiB\"\n";
    let serve = Serve::start_in(tempfile::tempdir().unwrap(), scenario, &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let sectors = u64::from_le_bytes(d.config(0, 8).try_into().unwrap());
    assert_eq!(sectors, 6144);
    assert_eq!(d.write(6143, &[7; 512]), 0);
    drop(d);
    serve.end();
}

/// A disk whose image takes no writes after [`sealed`], with its messages in a file.
fn sealed(more: &[&str]) -> (Serve, std::fs::File) {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let file = memfd_create(c"image", MFdFlags::MFD_ALLOW_SEALING).unwrap();
    let file = std::fs::File::from(file);
    file.set_len(1 << 20).unwrap();
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let args = [&["--image", &path, "--aio", "threads"], more].concat();
    let serve = Serve::start_with(dir, "", &args, |command| {
        command.stderr(log);
    });
    (serve, file)
}

fn seal(file: &std::fs::File) {
    use nix::fcntl::{FcntlArg, SealFlag, fcntl};
    fcntl(file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_WRITE)).unwrap();
}

#[test]
fn an_error_of_the_store_is_told() {
    let (serve, image) = sealed(&[]);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(8, &[7; 512]), 0);
    seal(&image);
    assert_eq!(d.write(8, &[8; 512]), 1);
    drop(d);
    let said = std::fs::read_to_string(serve.path("log")).unwrap();
    assert!(
        said.contains("the store failed") && said.contains("sector=8"),
        "{said}"
    );
    serve.end();
}

#[test]
fn a_cache_that_cannot_be_written_out_is_no_success() {
    let (mut serve, image) = sealed(&["--volatile-cache"]);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(8, &[7; 512]), 0);
    seal(&image);
    drop(d);
    serve.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(serve.wait(), 2);
    let said = std::fs::read_to_string(serve.path("log")).unwrap();
    assert!(
        said.contains("the volatile cache could not be written out"),
        "{said}"
    );
    assert!(said.contains("wtblk-data"), "{said}");
}

#[test]
fn a_trace_without_room_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let serve = Serve::start_with(dir, "", &["--memory", "1MiB"], |command| {
        command.stderr(log);
        // The header, and one piece of each of the trace's two files.
        let most = 65536 + (4 << 20);
        let limit = libc::rlimit {
            rlim_cur: most,
            rlim_max: most,
        };
        // SAFETY: the call is async-signal-safe, and `limit` is a value of the closure's own.
        unsafe {
            command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_FSIZE, &limit) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
    });
    let mut marks = Driver::connect(serve.mark(), 1);
    // Texts of more than 4 MiB.
    let line = format!("note text={}", "x".repeat(4000));
    for _ in 0..1200 {
        assert_eq!(marks.mark(&line), 0);
    }
    drop(marks);
    let said = std::fs::read_to_string(serve.path("log")).unwrap();
    assert_eq!(
        said.matches("the trace trace has no room").count(),
        1,
        "{said}"
    );
    // The disk goes on.
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(8, &[7; 512]), 0);
    assert_eq!(d.read(8, 512), (0, vec![7; 512]));
    drop(d);
    // What is missing is told, once, where it is.
    let events = serve.end().0;
    let gap = |e: &Event| match &e.body {
        Body::Gap(gap) => Some((gap.missing, gap.why.clone())),
        _ => None,
    };
    let gaps: Vec<_> = events.iter().filter_map(gap).collect();
    let marks = events.iter().filter(|e| matches!(e.body, Body::Mark(_)));
    let kept = marks.count() as u64;
    assert!(kept > 100 && kept < 1200, "{kept}");
    let missing: u64 = gaps.iter().map(|gap| gap.0).sum();
    assert!(missing >= 1200 - kept, "{kept} {gaps:?}");
    assert!(gaps.iter().all(|gap| gap.1.contains("no room")), "{gaps:?}");
}

#[test]
fn more_descriptors_than_a_message_may_have_end_the_connection() {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    use std::io::{IoSlice, Read};
    let serve = Serve::start("", &[]);
    let null = std::fs::File::open("/dev/null").unwrap();
    // SET_OWNER, version 1, no body; and GET_FEATURES behind it, which would be answered.
    let message = [3u32, 1, 0].map(u32::to_le_bytes).concat();
    let more = [1u32, 1, 0].map(u32::to_le_bytes).concat();
    for count in [33, 253] {
        let mut stream = serve.data();
        stream
            .set_read_timeout(Some(std::time::Duration::from_secs(20)))
            .unwrap();
        let fds = vec![null.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&fds)];
        let bytes = [IoSlice::new(&message)];
        let sent = sendmsg::<()>(stream.as_raw_fd(), &bytes, &rights, MsgFlags::empty(), None);
        assert_eq!(sent, Ok(12));
        let bytes = [IoSlice::new(&more)];
        // It may be closed by now.
        let _ = sendmsg::<()>(
            stream.as_raw_fd(),
            &bytes,
            &[],
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        let mut answer = Vec::new();
        // An end, or a reset where something was left to read.
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty(), "it went on as if nothing had been");
    }
    // None of them is kept.
    let open = std::fs::read_dir(format!("/proc/{}/fd", serve.pid())).unwrap();
    assert!(open.count() < 33);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(8, &[7; 512]), 0);
    drop(d);
    let trace = serve.end();
    let why = trace.device(wtblk::trace::event::DeviceKind::Disconnected);
    assert!(why[0].2.contains("33 descriptors"), "{why:?}");
    assert!(why[1].2.contains("253 descriptors"), "{why:?}");
}
