// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The image by io_uring and by threads, and a host that forbids io_uring.

mod common;

use std::os::unix::process::CommandExt;
use std::process::Command;

use common::driver::Driver;
use common::serve::{Serve, wtblk_ending};

const EPERM: u32 = libc::EPERM as u32;

/// From now on `io_uring_setup(2)` fails with EPERM in this process and what it starts.
fn forbid_io_uring() -> std::io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let mut filter = [
        // The number of the system call is the first word of what a filter sees.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        libc::sock_filter {
            jf: 1,
            ..statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                libc::SYS_io_uring_setup as u32,
            )
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | EPERM),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    // SAFETY: both calls take numbers and a pointer to a program that lives over the call.
    let result = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            | libc::prctl(
                libc::PR_SET_SECCOMP,
                libc::SECCOMP_MODE_FILTER,
                &raw const program,
            )
    };
    match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn forbidden(command: &mut Command) {
    // SAFETY: between fork and exec only two system calls are made, nothing is allocated.
    unsafe { command.pre_exec(forbid_io_uring) };
}

/// Names of the threads that are there for the image alone.
fn pool(serve: &Serve) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", serve.pid())).unwrap();
    let names = tasks.map(|t| std::fs::read_to_string(t.unwrap().path().join("comm")));
    names
        .filter(|n| n.as_ref().is_ok_and(|n| n.starts_with("store-")))
        .count()
}

/// Writes, reads back, throws away; the image afterwards.
fn exercise(serve: &Serve) -> Vec<u8> {
    let mut driver = Driver::connect(serve.data(), 1);
    let block: Vec<u8> = (0..4096u32).map(|i| (i / 5) as u8).collect();
    for sector in [0, 8, 17, 32] {
        assert_eq!(driver.write(sector, &block), 0);
    }
    let (status, read) = driver.read(17, 4096);
    assert!(status == 0 && read == block);
    let head = driver.submit(0, 0, common::driver::FLUSH, 0, 0);
    driver.kick(0);
    assert_eq!(driver.finish(0, 0, head), 0);
    drop(driver);
    std::fs::read(serve.path("image")).unwrap()
}

fn serve(aio: &str, forbid: bool) -> Serve {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let options = ["--image", "image", "--size", "1MiB", "--aio", aio];
    Serve::start_with(dir, "", &options, |command| {
        if forbid {
            forbidden(command);
        }
    })
}

#[test]
fn all_ways_store_the_same() {
    let mut images = Vec::new();
    for (aio, forbid) in [("auto", false), ("threads", false), ("auto", true)] {
        let serve = serve(aio, forbid);
        images.push(exercise(&serve));
        if forbid || aio == "threads" {
            assert_eq!(pool(&serve), 4, "{aio}");
        }
        serve.end().assert_paired();
    }
    assert!(images.iter().all(|image| *image == images[0]));
    assert!(images[0][17 * 512..].starts_with(&[0, 0, 0, 0, 0, 1]));
}

/// Where the host allows it there are no threads, and the answer to `io_uring` is no other way.
#[test]
fn io_uring_is_used_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = wtblk_ending();
    command.current_dir(dir.path());
    command.args(["serve", "--socket", "data", "--image", "image"]);
    command.args(["--size", "1MiB", "--aio", "io_uring"]);
    forbidden(&mut command);
    let refused = command.output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(2), "{said}");
    assert!(said.contains("the host forbids io_uring"), "{said}");

    let serve = serve("auto", false);
    exercise(&serve);
    let rings = std::fs::read_dir(format!("/proc/{}/fd", serve.pid())).unwrap();
    let rings = rings.filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok());
    if rings
        .into_iter()
        .any(|l| l.to_string_lossy().contains("io_uring"))
    {
        assert_eq!(pool(&serve), 0);
    } else {
        eprintln!("not checked: this host forbids io_uring");
        assert_eq!(pool(&serve), 4);
    }
}
