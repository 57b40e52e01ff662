// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk serve` as a program: options, bad input, sockets, inherited fds.

mod common;

use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::driver::*;
use common::serve::{Serve, wtblk, wtblk_ending};
use common::until;

/// Runs to the end; status, standard output, standard error.
fn output(dir: &std::path::Path, args: &[&str]) -> (i32, String, String) {
    let output = wtblk_ending()
        .current_dir(dir)
        .arg("serve")
        .args(args)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code().unwrap_or(-1),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn bad_input_is_one_sentence_and_status_2() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("odd"), [0; 700]).unwrap();
    std::fs::write(dir.join("typo.toml"), "version = 1\n[devise]\n").unwrap();
    std::fs::write(dir.join("file"), "").unwrap();
    let log = "version = 1\n[[fault]]\nname = \"a\"\ndisk = \"log\"\nwhen = { op = \"read\" }\n\
               action = { hang = true }\n";
    std::fs::write(dir.join("log.toml"), log).unwrap();
    let memory = ["--memory", "1MiB"];
    for (args, what) in [
        (vec!["--memory", "1MiB"], "--socket"),
        (vec!["--socket", "s"], "--image"),
        (vec!["--socket", "s", "--image", "none"], "does not exist"),
        (vec!["--socket", "s", "--image", "odd"], "multiple"),
        (
            vec!["--socket", "s", "--image", "x", "--memory", "1MiB"],
            "cannot be used with",
        ),
        (
            vec!["--socket", "s", "--fd", "7", "--memory", "1MiB"],
            "cannot be used with",
        ),
        (vec!["--socket", "s", "--memory", "1.5G"], "no size"),
        (vec!["--socket", "s", "--memory", "700"], "multiple"),
        (
            [&["--socket", "s", "--queues", "0"], &memory[..]].concat(),
            "queues",
        ),
        (
            [
                &["--socket", "s", "--disk", "name=a,memory=1M"],
                &memory[..],
            ]
            .concat(),
            "socket=PATH",
        ),
        (
            [
                &["--socket", "s", "--disk", "name=data,memory=1M,socket=t"],
                &memory[..],
            ]
            .concat(),
            "two disks are named data",
        ),
        (
            [&["--socket", "s", "--scenario", "log.toml"], &memory[..]].concat(),
            "there is none of this name",
        ),
        (
            [&["--socket", "s", "--min-io", "700"], &memory[..]].concat(),
            "min-io: 700 bytes",
        ),
        (
            [&["--socket", "s", "--write-cache", "no"], &memory[..]].concat(),
            "on or off",
        ),
        (
            vec!["--socket", "s", "--null", "1MiB", "--poison"],
            "poison on a disk that stores nothing",
        ),
        (
            [&["--socket", "s", "--mark-socket", "s"], &memory[..]].concat(),
            "socket each",
        ),
        (
            [&["--socket", "s", "--scenario", "gone"], &memory[..]].concat(),
            "gone",
        ),
        (
            [&["--socket", "s", "--scenario", "typo.toml"], &memory[..]].concat(),
            "typo.toml",
        ),
        ([&["--socket", "file"], &memory[..]].concat(), "no socket"),
        (
            [&["--socket", "s", "--mark-socket", "./s"], &memory[..]].concat(),
            "the disk and the mark disk need a socket each",
        ),
        (
            [&["--socket", "s", "--control", "s"], &memory[..]].concat(),
            "the disk and the control socket need a socket each",
        ),
        (
            [
                &["--socket", "s", "--disk", "name=a,memory=1M,socket=s"],
                &memory[..],
            ]
            .concat(),
            "the disk and disk a need a socket each, and both are given s",
        ),
        (
            [
                &["--fd", "7", "--disk", "name=a,memory=1M,fd=7"],
                &memory[..],
            ]
            .concat(),
            "both are given fd 7",
        ),
        (
            [
                &[
                    "--socket",
                    "s",
                    "--disk",
                    "name=a,memory=1M,socket=t,socket=u",
                ],
                &memory[..],
            ]
            .concat(),
            "socket is given twice",
        ),
        (
            [
                &[
                    "--socket",
                    "s",
                    "--disk",
                    "name=a,memory=1M,socket=t,serial=wtblk-data",
                ],
                &memory[..],
            ]
            .concat(),
            "two disks have the serial wtblk-data",
        ),
        (
            [&["--socket", "s", "--size", "1MiB"], &memory[..]].concat(),
            "cannot be used with",
        ),
        (
            [&["--socket", "s", "--queues", "65"], &memory[..]].concat(),
            "queues: 65 queues, expected 1 to 64",
        ),
        (
            [&["--socket", "s", "--aio", "threads"], &memory[..]].concat(),
            "--aio says how an image is read",
        ),
        (
            vec!["--socket", "s", "--null", "1MiB", "--volatile-cache"],
            "--volatile-cache on a disk that stores nothing",
        ),
        (vec!["--socket", "s", "--memory", "99999999T"], "too large"),
        (
            vec!["--socket", "s", "--null", "2097152T"],
            "at most 1152921504606846976 (1 EiB)",
        ),
        (
            vec!["--socket", "s", "--memory", "17T", "--poison"],
            "expected at most 17592186044416 (16 TiB)",
        ),
        (
            vec!["--socket", "s", "--image", "new", "--size", "700"],
            "multiple",
        ),
        (
            vec![
                "--socket",
                "s",
                "--image",
                "new",
                "--size",
                "4K",
                "--disk",
                "name=a,image=new,size=4K,socket=t",
            ],
            "image new is in use by this process (as another disk)",
        ),
        (
            vec!["--socket", "file", "--image", "new2", "--size", "1M"],
            "no socket",
        ),
        (
            [&["--socket", "no/where"], &memory[..]].concat(),
            "no/where",
        ),
        (
            [&["--fd", "999"], &memory[..]].concat(),
            "not an open socket",
        ),
    ] {
        let (status, _, error) = output(dir, &args);
        assert_eq!(status, 2, "{args:?}: {error}");
        assert!(error.contains(what), "{args:?}: {error}");
        assert!(!error.contains("panicked"), "{error}");
        assert!(!dir.join("s").exists(), "{args:?} left a socket");
        // (The first of two disks that was opened is a good one.)
        let left = dir.join("new").exists() || dir.join("new2").exists();
        assert!(!left || args.contains(&"4K"), "{args:?} left an image");
        let _ = std::fs::remove_file(dir.join("new"));
    }
}

#[test]
fn what_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (status, out, _) = output(dir.path(), &["--print-capabilities"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, json["type"].as_str()), (0, Some("block")));
    // Under its heading stands what the driver sees, and nothing else.
    let (_, help, _) = output(dir.path(), &["--help"]);
    let shape = help
        .split_once("The disk, as its driver sees it:")
        .unwrap()
        .1;
    assert!(shape.contains("--serial") && shape.contains("--queues"));
    for other in ["--control", "--seed", "--digest", "--poison"] {
        assert!(!shape.contains(other), "{other} in:\n{shape}");
        assert!(help.contains(other));
    }
    let args = [
        "--socket",
        "s",
        "--mark-socket",
        "m",
        "--memory",
        "1MiB",
        "--queues",
        "2",
    ];
    let (status, out, _) = output(dir.path(), &[&args[..], &["--print-qemu-args"]].concat());
    assert_eq!(status, 0);
    let socket = std::path::absolute(dir.path().join("s")).unwrap();
    assert!(out.contains(&format!("path={}", socket.display())), "{out}");
    assert!(
        out.contains("num-queues=2") && out.contains("share=on"),
        "{out}"
    );
    // As the QEMU at hand spells it: there is one wherever these tests run.
    let qemu = wtblk::harness::qemu::Qemu::find(None).unwrap();
    let mut sockets = out.lines().filter(|line| line.contains("socket,id="));
    let again = format!(",{}", qemu.reconnect());
    assert!(sockets.clone().count() >= 2, "{out}");
    assert!(sockets.all(|line| line.contains(&again)), "{out}");
    assert!(!dir.path().join("s").exists(), "printing makes nothing");
}

#[test]
fn a_killed_serve_is_in_nobodys_way() {
    let serve = Serve::start("", &[]);
    let mode = std::fs::metadata(serve.path("data")).unwrap().permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    let args = ["--socket", "data", "--memory", "1MiB"];
    let (status, _, error) = output(serve.dir(), &args);
    assert!(status == 2 && error.contains("answers"), "{error}");
    let dir = serve.kill();
    assert!(dir.path().join("data").exists(), "stale");
    let serve = Serve::start_in(dir, "", &["--memory", "16MiB"]);
    let mut driver = Driver::connect(serve.data(), 1);
    assert_eq!(driver.write(0, &[1; 512]), 0);
    drop(driver);
    serve.end();
}

/// Starts `serve` with `socket` as its fd 9 and the given mark socket as 10.
fn spawn_with_fds(args: &[&str], data: i32, mark: i32) -> std::process::Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wtblk"));
    command.args([
        "serve",
        "--fd",
        "100",
        "--mark-fd",
        "101",
        "--memory",
        "1MiB",
    ]);
    command.args(args).stdin(Stdio::null());
    // SAFETY: dup2 is async-signal-safe, and the fds live in the parent until after the spawn.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(data, 100) < 0 || libc::dup2(mark, 101) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

#[test]
fn inherited_sockets_listening_and_connected() {
    let dir = tempfile::tempdir().unwrap();
    let listen = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
    let (data, mark) = (listen("d"), listen("m"));
    let mut child = spawn_with_fds(&["--die-with-parent"], data.as_raw_fd(), mark.as_raw_fd());
    for _ in 0..2 {
        let stream = UnixStream::connect(dir.path().join("d")).unwrap();
        assert_eq!(Driver::connect(stream, 1).write(0, &[1; 512]), 0);
    }
    let mut marks = Driver::connect(UnixStream::connect(dir.path().join("m")).unwrap(), 1);
    assert_eq!(marks.mark("boot"), 0);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = until("the end", || child.try_wait().unwrap());
    assert!(status.success());
    assert!(dir.path().join("d").exists(), "not ours to remove");

    // A connected socket: its end is the end.
    let ((ours, theirs), (_m, mark)) = (UnixStream::pair().unwrap(), UnixStream::pair().unwrap());
    let theirs = theirs.into_raw_fd();
    let mut child = spawn_with_fds(&[], theirs, mark.as_raw_fd());
    nix::unistd::close(theirs).unwrap();
    let mut driver = Driver::connect(ours, 1);
    assert_eq!(driver.write(0, &[1; 512]), 0);
    drop(driver);
    let status = until("the end", || child.try_wait().unwrap());
    assert!(status.success());
}

#[test]
fn it_ends_with_its_parent() {
    let dir = tempfile::tempdir().unwrap();
    let script = "\"$0\" serve --socket s --memory 1MiB --die-with-parent & wait";
    let mut shell = Command::new("sh");
    shell.current_dir(dir.path());
    let mut shell = shell
        .args(["-c", script, env!("CARGO_BIN_EXE_wtblk")])
        .spawn()
        .unwrap();
    let socket = dir.path().join("s");
    let stream = until("its socket", || UnixStream::connect(&socket).ok());
    let mut driver = Driver::connect(stream, 1);
    assert_eq!(driver.write(0, &[1; 512]), 0);
    shell.kill().unwrap();
    shell.wait().unwrap();
    until("its socket to go", || (!socket.exists()).then_some(()));
}

#[test]
fn a_stalled_front_end_delays_no_end() {
    use std::io::Write;
    let mut serve = Serve::start("", &[]);
    let mut stream = serve.data();
    // A part of a header, and nothing more.
    stream.write_all(&[1, 0, 0]).unwrap();
    until("the connection to be served", || {
        // The socket answers before there is a trace.
        if !serve.path("trace").exists() {
            return None;
        }
        let connected = serve
            .trace()
            .device(wtblk::trace::event::DeviceKind::Connected);
        (!connected.is_empty()).then_some(())
    });
    let begin = std::time::Instant::now();
    serve.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
    assert!(begin.elapsed() < std::time::Duration::from_secs(3));
}

#[test]
fn an_image_that_shrinks_fails_its_requests_only() {
    let dir = tempfile::tempdir().unwrap();
    let serve = Serve::start_in(dir, "", &["--image", "img", "--size", "1MiB"]);
    let mut driver = Driver::connect(serve.data(), 1);
    assert_eq!(driver.write(2000, &[1; 512]), 0);
    let image = std::fs::OpenOptions::new()
        .write(true)
        .open(serve.path("img"))
        .unwrap();
    image.set_len(4096).unwrap();
    assert_eq!(driver.read(2000, 512).0, 1);
    assert_eq!(driver.write(0, &[2; 512]), 0);
    assert_eq!(driver.read(0, 512), (0, vec![2; 512]));
    drop(driver);
    let trace = serve.end();
    trace.assert_paired();
    let failed = trace.device(wtblk::trace::event::DeviceKind::StoreError);
    assert_eq!(failed.len(), 1);
}

#[test]
fn sockets_of_a_service_manager_and_what_it_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let listen = |name: &str| UnixListener::bind(dir.path().join(name)).unwrap();
    let (data, mark) = (listen("d"), listen("m"));
    let manager = std::os::unix::net::UnixDatagram::bind(dir.path().join("notify")).unwrap();
    let limit = Some(std::time::Duration::from_secs(20));
    manager.set_read_timeout(limit).unwrap();
    let told = || {
        let mut said = [0; 64];
        let n = manager.recv(&mut said).unwrap();
        String::from_utf8_lossy(&said[..n]).into_owned()
    };
    // The shell's process becomes the device, so its number is the right one.
    let script = "LISTEN_PID=$$ exec \"$0\" serve --memory 1MiB --trace t";
    let mut command = Command::new("sh");
    command
        .current_dir(dir.path())
        .args(["-c", script, env!("CARGO_BIN_EXE_wtblk")])
        .env("LISTEN_FDS", "2")
        .env("LISTEN_FDNAMES", "mark:data")
        .env("NOTIFY_SOCKET", dir.path().join("notify"))
        .stdin(Stdio::null());
    let (data_fd, mark_fd) = (data.as_raw_fd(), mark.as_raw_fd());
    // SAFETY: dup and dup2 are async-signal-safe, and the fds live in the parent until after the spawn.
    unsafe {
        command.pre_exec(move || {
            // Neither may be where the other is to be.
            let (data, mark) = (
                libc::fcntl(data_fd, libc::F_DUPFD, 100),
                libc::fcntl(mark_fd, libc::F_DUPFD, 100),
            );
            if libc::dup2(mark, 3) < 0 || libc::dup2(data, 4) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().unwrap();
    assert_eq!(told(), "READY=1");
    let connect = |name: &str| UnixStream::connect(dir.path().join(name)).unwrap();
    assert_eq!(Driver::connect(connect("d"), 1).write(0, &[1; 512]), 0);
    assert_eq!(Driver::connect(connect("m"), 1).mark("boot"), 0);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(told(), "STOPPING=1");
    let status = until("the end", || child.try_wait().unwrap());
    assert!(status.success());
    assert!(dir.path().join("d").exists(), "not ours to remove");
}

#[test]
fn management_tools_find_a_back_end_like_any_other() {
    let root = env!("CARGO_MANIFEST_DIR");
    let text = std::fs::read(format!("{root}/docs/50-wtblk.json")).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(json["type"], "block");
    assert!(json["description"].is_string());
    // Under the name that it gives the program takes the options of the convention, and no subcommand.
    let binary = std::path::Path::new(json["binary"].as_str().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let name = dir.path().join(binary.file_name().unwrap());
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_wtblk"), &name).unwrap();
    let said = Command::new(&name)
        .arg("--print-capabilities")
        .output()
        .unwrap();
    let json: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(json["type"], "block");
    let image = dir.path().join("img");
    std::fs::write(&image, vec![3; 1 << 20]).unwrap();
    let socket = dir.path().join("s");
    let mut child = Command::new(&name)
        .arg(format!("--socket-path={}", socket.display()))
        .arg(format!("--blk-file={}", image.display()))
        .arg("--read-only")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let stream = until("its socket", || UnixStream::connect(&socket).ok());
    let mut driver = Driver::connect(stream, 1);
    assert_eq!(driver.read(0, 512), (0, vec![3; 512]));
    drop(driver);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(until("the end", || child.try_wait().unwrap()).success());
    let help = Command::new(&name).arg("--help").output().unwrap();
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("Usage: vhost-user-wtblk [OPTIONS]"), "{help}");
    let version = Command::new(env!("CARGO_BIN_EXE_wtblk"))
        .arg("--version")
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&version.stdout).contains(env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_guest_that_makes_us_speak_fills_no_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(dir.path().join("log")).unwrap();
    let mut child = wtblk()
        .current_dir(dir.path())
        .args([
            "serve",
            "--socket",
            "d",
            "--mark-socket",
            "m",
            "--memory",
            "1MiB",
        ])
        .stderr(log)
        .spawn()
        .unwrap();
    let stream = until("its socket", || {
        UnixStream::connect(dir.path().join("m")).ok()
    });
    let mut marks = Driver::connect(stream, 1);
    for _ in 0..60 {
        assert_eq!(marks.mark("dance"), 1);
        marks.queues[0].forget();
    }
    drop(marks);
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert!(until("the end", || child.try_wait().unwrap()).success());
    let said = std::fs::read_to_string(dir.path().join("log")).unwrap();
    let refused = said.lines().filter(|l| l.contains("mark refused")).count();
    // Two windows, on a machine that is slow.
    assert!((1..=40).contains(&refused), "{refused} of 60:\n{said}");
    // What nothing came after is told at the end.
    let left = said.lines().filter_map(|l| l.split_once(" more messages"));
    let left: usize = left.map(|(n, _)| n.parse::<usize>().unwrap()).sum();
    assert_eq!(refused + left, 60, "{said}");
}

/// A terminal that is closed ends it in order, unless it was told not to care (nohup).
#[test]
fn a_hangup_ends_it_unless_it_is_ignored() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    let mut serve = Serve::start("", &[]);
    serve.signal(Signal::SIGHUP);
    assert_eq!(serve.wait(), 0);
    assert!(!serve.path("data").exists());
    let dir = tempfile::tempdir().unwrap();
    let serve = Serve::start_with(dir, "", &["--memory", "1MiB"], |command| {
        // SAFETY: signal(2) is async-signal-safe, and no handler of ours is set.
        let ignore = || unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) };
        let ignore = move || ignore().map(drop).map_err(Into::into);
        // SAFETY: between fork and exec only a system call is made.
        unsafe { command.pre_exec(ignore) };
    });
    serve.signal(Signal::SIGHUP);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(0, &[1; 512]), 0);
    drop(d);
    serve.end();
}
