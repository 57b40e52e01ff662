// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a device that serves cannot do any more, and that it does its work all the same.

mod common;

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::driver::{DISCARD, Driver, FLUSH, WRITE_ZEROES};
use common::serve::{Serve, wtblk, wtblk_ending};
use common::until;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use wtblk::sandbox::Sandbox;
use wtblk::trace::event::DeviceKind;

/// What `child_of_the_other_tests` is to do.
const TASK: &str = "WTBLK_TEST_SANDBOX";
const SIGSYS: i32 = libc::SIGSYS;

/// `NoNewPrivs` and `Seccomp` of each thread of a process.
fn confined(pid: u32) -> Vec<(String, String, String)> {
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread may end meanwhile.
    let status = tasks.filter_map(|t| fs::read_to_string(t.ok()?.path().join("status")).ok());
    let fields = status.map(|s| {
        let field = |name| field(&s, name);
        (field("Name:"), field("NoNewPrivs:"), field("Seccomp:"))
    });
    fields.collect()
}

/// Writes, reads, flushes, throws away, comes again, asks: everything that has code of its own.
fn work(serve: &Serve) {
    for round in 0..2u8 {
        let mut d = Driver::connect_tracked(serve.data(), 1);
        let mut mark = Driver::connect(serve.mark(), 1);
        let block = vec![round + 1; 8192];
        assert_eq!(d.write(16, &block), 0);
        assert_eq!(d.read(16, 8192), (0, block));
        for (kind, at) in [(DISCARD, 64), (WRITE_ZEROES, 128)] {
            assert_eq!(d.write(at, &[9; 4096]), 0);
            assert_eq!(d.zero(kind, &[(at, 8, 0)]), 0);
            assert_eq!(d.read(at, 4096), (0, vec![0; 4096]));
        }
        let head = d.submit(0, 0, FLUSH, 0, 0);
        d.kick(0);
        assert_eq!(d.finish(0, 0, head), 0);
        assert_eq!(mark.mark("note text=hello"), 0);
        assert!(mark.state().contains("inflight=0"));
        let mut ctl = wtblk();
        let output = ctl
            .arg("ctl")
            .arg(serve.path("control"))
            .arg("status")
            .output();
        assert!(output.unwrap().status.success());
    }
}

#[test]
fn every_thread_is_confined_and_every_store_works() {
    let target = || tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = ["--image", "image", "--size", "16MiB"];
    let memory = ["--memory", "16MiB"];
    let cases: Vec<(tempfile::TempDir, Vec<&str>)> = vec![
        (target(), image.to_vec()),
        (target(), [&image[..], &["--aio", "threads"]].concat()),
        (target(), [&image[..], &["--poison"]].concat()),
        (
            target(),
            [&image[..], &["--volatile-cache", "--aio", "threads"]].concat(),
        ),
        (tempfile::tempdir_in("/dev/shm").unwrap(), image.to_vec()),
        (target(), memory.to_vec()),
        (target(), [&memory[..], &["--volatile-cache"]].concat()),
    ];
    for (dir, options) in cases {
        let always = ["--sandbox", "require", "--control", "control"];
        let more = ["--trace-data", "writes", "--digest", "all"];
        let options = [&options[..], &always, &more].concat();
        let serve = Serve::start_in(dir, "", &options);
        work(&serve);
        // A connection that lasts has a thread that was started late.
        let _asks = UnixStream::connect(serve.path("control")).unwrap();
        let threads = until("a late thread", || {
            let threads = confined(serve.pid());
            let late = threads.iter().any(|t| t.0 == "control-conn");
            late.then_some(threads)
        });
        for (name, no_new_privileges, seccomp) in &threads {
            let found = (no_new_privileges.as_str(), seccomp.as_str());
            assert_eq!(found, ("1", "2"), "{options:?}: {name}");
        }
        for expected in ["data-0", "mark-0", "trace-ahead", "data-conn"] {
            assert!(threads.iter().any(|t| t.0 == expected), "{threads:?}");
        }
        let control = serve.path("control");
        let trace = serve.end();
        assert!(!control.exists(), "sockets are removed at the end");
        trace.assert_paired();
        let begin = trace.device(DeviceKind::Begin).remove(0).2;
        assert!(begin.contains("\"sandbox\":\"on\""), "{begin}");
    }
}

#[test]
fn off_is_off() {
    let serve = Serve::start("", &["--sandbox", "off"]);
    let threads = confined(serve.pid());
    assert!(threads.iter().all(|t| t.2 == "0"), "{threads:?}");
    until("the begin", || {
        serve.trace().device(DeviceKind::Begin).pop()
    });
    let trace = serve.path("trace");
    let shown = wtblk().args(["trace", "show"]).arg(trace).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("begin, sandbox off: {"), "{shown}");
    let begin = serve.end().device(DeviceKind::Begin).remove(0).2;
    assert!(begin.contains("\"sandbox\":\"off\""), "{begin}");
}

/// What is no lack of the kernel is no reason to serve unconfined.
#[test]
fn an_error_while_it_is_entered_ends_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = wtblk_ending();
    lacking(&mut command, libc::SYS_landlock_restrict_self, libc::ENOMEM);
    command.args(["serve", "--memory", "1MiB"]);
    let output = command.arg("--socket").arg(dir.path().join("s")).output();
    let output = output.unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    let expected = "the sandbox: files cannot be forbidden here: Landlock: ";
    assert!(said.contains(expected), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

/// A kernel in which a system call is not there, as far as the process and its children see.
fn without(call: i64, errno: i32) -> BpfProgram {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let fails = SeccompAction::Errno(errno as u32);
    let rules = [(call, Vec::new())].into();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, fails, arch).unwrap();
    filter.try_into().unwrap()
}

fn lacking(command: &mut Command, call: i64, errno: i32) {
    let program = without(call, errno);
    let forbid = move || seccompiler::apply_filter(&program).map_err(std::io::Error::other);
    // SAFETY: between fork and exec only system calls are made.
    unsafe { command.pre_exec(forbid) };
}

#[test]
fn what_the_kernel_lacks_is_said_or_refused() {
    let cases = [
        (
            libc::SYS_landlock_create_ruleset,
            libc::ENOSYS,
            "files",
            "no Landlock",
            "calls",
        ),
        (
            libc::SYS_seccomp,
            libc::EINVAL,
            "system calls",
            "seccomp",
            "files",
        ),
    ];
    for (call, errno, part, why, left) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut command = wtblk();
        lacking(&mut command, call, errno);
        command.args(["serve", "--memory", "1MiB", "--sandbox", "require"]);
        let output = command.arg("--socket").arg(dir.path().join("s")).output();
        let output = output.unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        let expected = format!("--sandbox require: {part} cannot be forbidden here");
        assert!(said.contains(&expected) && said.contains(why), "{said}");
        assert!(!dir.path().join("s").exists());

        let log = File::create(dir.path().join("log")).unwrap();
        let serve = Serve::start_with(dir, "", &["--memory", "16MiB"], |command| {
            command.stderr(log);
            lacking(command, call, errno);
        });
        let begin = until("the begin", || {
            serve.trace().device(DeviceKind::Begin).pop()
        });
        let begin = begin.2;
        let said = fs::read_to_string(serve.path("log")).unwrap();
        let expected = format!("the sandbox goes without its part for {part}");
        assert!(said.contains(&expected), "{said}");
        let expected = format!("\"sandbox\":\"{left}\"");
        assert!(begin.contains(&expected), "{begin}");
        serve.end();
    }
}

/// Runs a task in a process of its own.
fn child(task: &str, dir: &Path) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let exactly = ["--exact", "child_of_the_other_tests"];
    command.args(exactly).args(["--ignored", "--nocapture"]);
    command.env(TASK, task).env("RUST_BACKTRACE", "full");
    command.current_dir(dir).output().unwrap()
}

/// Confines itself and tries what `TASK` says.
#[test]
#[ignore = "started by the other tests as their child process"]
fn child_of_the_other_tests() {
    let task = std::env::var(TASK).expect("started by another test");
    let removes = [PathBuf::from("ours")];
    let confined = Sandbox::Require.enter(&removes).unwrap().unwrap();
    assert_eq!(confined.word(), "on");
    match task.as_str() {
        "open" => {
            for path in ["theirs/file", "ours/file", "/etc/passwd", "/proc/self/mem"] {
                let error = File::open(path).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EACCES), "{path}");
            }
            let error = File::create("ours/new").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        }
        "remove" => {
            // The system call is allowed: this is Landlock.
            let error = fs::remove_file("theirs/file").unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EACCES));
            fs::remove_file("ours/file").unwrap();
        }
        "threads" => {
            let thread = std::thread::spawn(|| {
                let much = vec![7u8; 300 << 20];
                assert!(File::open("theirs/file").is_err());
                much.iter()
                    .step_by(4096)
                    .map(|&b| u64::from(b))
                    .sum::<u64>()
            });
            assert_eq!(thread.join().unwrap(), 7 * (300 << 20) / 4096);
        }
        "panic" => {
            let thread = std::thread::Builder::new().name("worker".into());
            let thread = thread.spawn(|| panic!("as expected")).unwrap();
            assert!(thread.join().is_err());
            println!("and goes on");
        }
        "abort" => std::process::abort(),
        "exec" => drop(Command::new("/bin/true").status()),
        "socket" => drop(UnixStream::pair()),
        "code" => drop(memmap2::MmapMut::map_anon(4096).unwrap().make_exec()),
        "kill" => drop(nix::sys::signal::kill(nix::unistd::Pid::from_raw(1), None)),
        "rename" => drop(fs::rename("ours/file", "ours/other")),
        "ring" => drop(io_uring::IoUring::new(4)),
        other => panic!("no such task: {other}"),
    }
}

fn folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ours", "theirs"] {
        fs::create_dir(dir.path().join(name)).unwrap();
        fs::write(dir.path().join(name).join("file"), "x").unwrap();
    }
    dir
}

#[test]
fn files_are_out_of_reach() {
    for task in ["open", "remove"] {
        let dir = folder();
        let output = child(task, dir.path());
        assert!(output.status.success(), "{task}: {output:?}");
        assert!(dir.path().join("theirs/file").exists());
        assert_eq!(dir.path().join("ours/file").exists(), task == "open");
    }
}

#[test]
fn threads_memory_and_panics_are_as_ever() {
    let dir = folder();
    for task in ["threads", "panic"] {
        let output = child(task, dir.path());
        assert!(output.status.success(), "{task}: {output:?}");
    }
    let said = child("panic", dir.path());
    let said = String::from_utf8([said.stdout, said.stderr].concat()).unwrap();
    assert!(
        said.contains("as expected") && said.contains("and goes on"),
        "{said}"
    );
    assert_eq!(
        child("abort", dir.path()).status.signal(),
        Some(libc::SIGABRT)
    );
}

#[test]
fn a_forbidden_call_is_the_end_and_says_which_it_was() {
    let cases = [
        // C libraries start a program with all signals blocked: nobody is left to say a word.
        ("exec", None),
        ("socket", Some(libc::SYS_socketpair)),
        ("code", Some(libc::SYS_mprotect)),
        ("kill", Some(libc::SYS_kill)),
        ("ring", Some(libc::SYS_io_uring_setup)),
        #[cfg(target_arch = "x86_64")]
        ("rename", Some(libc::SYS_rename)),
    ];
    for (task, call) in cases {
        let dir = folder();
        let output = child(task, dir.path());
        assert_eq!(output.status.signal(), Some(SIGSYS), "{task}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let words = |call| format!("system call {call} is forbidden by the sandbox");
        assert!(
            call.is_none_or(|call| said.contains(&words(call))),
            "{task}: {said}"
        );
        assert!(!said.contains("panicked"), "{task}: {said}");
        assert!(dir.path().join("ours/file").exists());
    }
}
