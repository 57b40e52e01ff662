// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest writes under load, reboots, is reset, and is killed and comes again
//! by another connection, round after round, beside one `wtblk serve`: every
//! block is right. `WTBLK_CHURN=N` says how many rounds (`ci/soak`: 50).

mod common;
mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use common::serve::{Serve, Trace};
use nix::sys::signal::Signal;
use support::{built, inherited, lines};
use wtblk::harness::accel::Accel;
use wtblk::harness::image;
use wtblk::harness::qemu::{Machine, Qemu, Vm};
use wtblk::trace::event::{DeviceKind, Op};

/// Between two lines of the guest that matter: a boot on a loaded machine.
const LIMIT: Duration = Duration::from_secs(90);

struct Guest {
    qemu: Child,
    console: Receiver<String>,
    qmp: std::path::PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn boot(serve: &Serve, rounds: u32, queues: u16) -> Guest {
    let fds = (OwnedFd::from(serve.data()), OwnedFd::from(serve.mark()));
    let words = [
        "wtblk_tests=churn".to_owned(),
        format!("wtblk_rounds={rounds}"),
        "wtblk_test_ms=120000".to_owned(),
    ];
    let vm = Vm {
        machine: Machine::Microvm,
        accel: Accel::Tcg,
        kernel: &built("build"),
        initramfs: &built("guest"),
        words: &words,
        disks: Some((&fds.0, &fds.1)),
        queues,
        queue_size: None,
        memory: 512,
        name: serve.dir().display().to_string(),
    };
    let mut command = vm.command(&Qemu::find(None).unwrap());
    // The last one counts: a reset must reset here, not end QEMU.
    command.args(["-action", "reboot=reset"]);
    let qmp = serve.path("qmp");
    command
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", qmp.display()));
    inherited(&fds.0);
    inherited(&fds.1);
    let mut qemu = command.stdout(Stdio::piped()).spawn().unwrap();
    let console = lines(qemu.stdout.take().unwrap());
    Guest { qemu, console, qmp }
}

/// `system_reset` by the monitor.
fn reset(guest: &Guest) {
    let mut stream = UnixStream::connect(&guest.qmp).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    for command in ["qmp_capabilities", "system_reset"] {
        writeln!(stream, "{{\"execute\": \"{command}\"}}").unwrap();
    }
    let mut answers = 0;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        assert!(!line.contains("\"error\""), "{line}");
        answers += usize::from(line.contains("\"return\""));
        if answers == 2 {
            return;
        }
    }
    panic!("QEMU closed its monitor");
}

/// What came of so many rounds: the lines of the aid, what was wrong, the events.
struct Outcome {
    said: Vec<String>,
    wrong: Vec<String>,
    trace: Trace,
}

fn churn(rounds: u32, scenario: &str, args: &[&str], queues: u16) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    image::xfs(&dir.path().join("data.img"), 512).unwrap();
    let number = queues.to_string();
    let args = [&["--image", "data.img", "--queues", &number], args].concat();
    let mut serve = Serve::start_in(dir, scenario, &args);
    let mut guest = boot(&serve, rounds, queues);
    let (mut said, mut wrong, mut all) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let line = match guest.console.recv_timeout(LIMIT) {
            Ok(line) => line,
            Err(e) => panic!("nothing came ({e}):\n{}", all.join("\n")),
        };
        all.push(line.clone());
        let plain = ["checked:", "resets itself", "wants to be", "churn: done"];
        if plain.iter().any(|w| line.contains(w)) {
            said.push(line.clone());
        } else if line.contains("# churn:") || line.contains("Bail out") {
            wrong.push(line.clone());
        }
        if line.contains("wants to be reset") {
            reset(&guest);
        } else if line.contains("wants to be killed") {
            drop(guest);
            let _ = std::fs::remove_file(serve.path("qmp"));
            guest = boot(&serve, rounds, queues);
        } else if line.contains("ok 1 churn") {
            break;
        } else if line.contains("Kernel panic") {
            panic!("{}", all.join("\n"));
        }
    }
    drop(guest);
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
    Outcome {
        said,
        wrong,
        trace: serve.trace(),
    }
}

fn rounds() -> u32 {
    let said = std::env::var("WTBLK_CHURN").unwrap_or_else(|_| "3".into());
    said.parse().expect("WTBLK_CHURN is a number of rounds")
}

#[test]
fn every_block_is_right_after_reboot_reset_and_reconnect() {
    let rounds = rounds();
    let outcome = churn(rounds, "", &["--poison", "--volatile-cache"], 2);
    let said = outcome.said.join("\n");
    assert!(outcome.wrong.is_empty(), "{:?}\n{said}", outcome.wrong);
    for round in 1..=rounds {
        let line = format!("# churn: round {round} checked:");
        assert!(said.contains(&line), "{line}\n{said}");
    }
    assert!(said.contains("# churn: done"), "{said}");
    outcome.trace.assert_paired();
    let resets = outcome.trace.device(DeviceKind::QueueStart).len();
    assert!(resets > rounds as usize, "{resets}");
}

#[test]
fn a_lost_write_is_noticed() {
    // One write in twelve is acknowledged and not stored.
    let scenario = r#"
version = 1
[[fault]]
name = "lost"
when = { op = "write", size = 12288, probability = 0.08 }
action = { drop = true }
"#;
    let outcome = churn(2, scenario, &[], 1);
    // One that is lost at once leaves an older version, one that is lost later a hole in the order.
    let lost = |l: &String| l.contains("neither new nor old") || l.contains("before, is old");
    assert!(
        outcome.wrong.iter().any(lost),
        "{:?}\n{:?}",
        outcome.wrong,
        outcome.said
    );
    let writes = outcome.trace.submits();
    assert!(
        writes
            .iter()
            .any(|s| s.1.op == Op::Write && s.1.bytes == 12288)
    );
}
