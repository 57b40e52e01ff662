// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A real guest whose writes are held, and everything that can end it: each
//! over within the limit, whether 1 or 100 requests are held, nothing hangs.

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{built, inherited, lines, wtblk};
use wtblk::harness::accel::Accel;
use wtblk::harness::image;
use wtblk::harness::qemu::{GUEST_MEMORY, Machine, Qemu, Vm};
use wtblk::trace::TraceReader;
use wtblk::trace::event::{Body, DATA_DISK, Event};

/// What the issue allows for each ending.
const LIMIT: Duration = Duration::from_secs(6);
/// Until the guest is up and its writes are held: a loaded machine may be slow.
const BOOT: Duration = Duration::from_secs(60);

const HOLD_ALL: &str = "version = 1\n[[fault]]\nname = \"hold-all\"\ntest = \"held-writes\"\n\
                        when = { op = \"write\" }\naction = { hold = true }\n";

/// A device and a QEMU beside it, the guest's writes held.
struct Held {
    device: Child,
    qemu: Child,
    qmp: Qmp,
    console: Receiver<String>,
    said: Vec<String>,
    dir: tempfile::TempDir,
}

impl Held {
    fn start(count: u32, then: &str, machine: Machine) -> Held {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("hold.toml"), HOLD_ALL).unwrap();
        image::xfs(
            &dir.path().join("data.img"),
            image::Kind::named(None, 512).unwrap(),
            512,
        )
        .unwrap();
        let [data, mark] = [(); 2].map(|()| UnixStream::pair().unwrap());
        let (ours, theirs) = (
            (data.0, mark.0),
            (OwnedFd::from(data.1), OwnedFd::from(mark.1)),
        );
        let mut serve = wtblk();
        serve
            .current_dir(dir.path())
            .args(["serve", "--image", "data.img", "--trace", "trace"]);
        serve.args([
            "--scenario",
            "hold.toml",
            "--fd",
            &inherited(&ours.0),
            "--mark-fd",
            &inherited(&ours.1),
        ]);
        let device = serve.spawn().unwrap();
        drop(ours);

        let kernel = built("build");
        let kernel = match machine {
            Machine::Microvm => kernel,
            Machine::Pc => kernel.with_file_name("bzImage"),
        };
        let words = [
            "wtblk_tests=held-writes".to_owned(),
            format!("wtblk_hold={count}"),
            format!("wtblk_then={then}"),
        ];
        let vm = Vm {
            machine,
            accel: Accel::Tcg,
            kernel: &kernel,
            initramfs: &built("guest"),
            words: &words,
            disks: Some((&theirs.0, &theirs.1)),
            third: None,
            queues: 1,
            queue_size: None,
            memory: GUEST_MEMORY,
            name: dir.path().display().to_string(),
        };
        let mut command = vm.command(&Qemu::find(None).unwrap());
        // The last one counts: a reset must reset here, not end QEMU.
        command.args(["-action", "reboot=reset"]);
        command.arg("-qmp").arg(format!(
            "unix:{},server=on,wait=off",
            dir.path().join("qmp").display()
        ));
        inherited(&theirs.0);
        inherited(&theirs.1);
        let mut qemu = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let console = lines(qemu.stdout.take().unwrap());
        let qmp = Qmp::connect(dir.path().join("qmp"));
        let mut held = Held {
            device,
            qemu,
            qmp,
            console,
            said: Vec::new(),
            dir,
        };
        held.until_said(&format!("holding {count}"), BOOT);
        held
    }

    /// Waits until the guest has said it since the last call.
    fn until_said(&mut self, what: &str, limit: Duration) {
        let end = Instant::now() + limit;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.console.recv_timeout(left) {
                Ok(line) => {
                    let found = line.contains(what);
                    self.said.push(line);
                    if found {
                        return;
                    }
                }
                Err(e) => panic!("'{what}' was not said ({e}):\n{}", self.said.join("\n")),
            }
        }
    }

    /// SIGTERM to the device: it ends within the limit, status 0, nothing owed.
    fn end(mut self, what: &str) -> Vec<Event> {
        kill(Pid::from_raw(self.device.id() as i32), Signal::SIGTERM).unwrap();
        assert_eq!(ends(&mut self.device, what), Some(0), "{what}");
        let mut reader = TraceReader::open(&self.dir.path().join("trace")).unwrap();
        let mut events = Vec::new();
        while let Some(event) = reader.next().unwrap() {
            events.push(event);
        }
        let mut owed = std::collections::BTreeSet::new();
        for event in &events {
            match &event.body {
                Body::Submit(s) if s.disk == DATA_DISK => assert!(owed.insert(event.seq)),
                Body::Complete(c) => assert!(owed.remove(&c.request), "completed twice: {c:?}"),
                _ => {}
            }
        }
        assert!(owed.is_empty(), "{what}: never completed: {owed:?}");
        events
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.device] {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for the end of a child within the limit; its status.
fn ends(child: &mut Child, what: &str) -> Option<i32> {
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(begun.elapsed() < LIMIT, "{what}: not over after {LIMIT:?}");
        std::thread::yield_now();
    }
}

/// QEMU's monitor.
struct Qmp(BufReader<UnixStream>);

impl Qmp {
    fn connect(path: PathBuf) -> Qmp {
        let begun = Instant::now();
        let stream = loop {
            match UnixStream::connect(&path) {
                Ok(stream) => break stream,
                Err(e) => assert!(begun.elapsed() < BOOT, "QMP: {e}"),
            }
            std::thread::yield_now();
        };
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut qmp = Qmp(BufReader::new(stream));
        qmp.execute("qmp_capabilities");
        qmp
    }

    /// Waits for the answer, at most as long as the socket allows.
    fn execute(&mut self, command: &str) {
        writeln!(self.0.get_mut(), "{{\"execute\": \"{command}\"}}").unwrap();
        let mut line = String::new();
        while !line.contains("\"return\"") {
            line.clear();
            let n = self
                .0
                .read_line(&mut line)
                .unwrap_or_else(|e| panic!("{command}: {e}"));
            assert!(n > 0, "{command}: QEMU closed its monitor");
            assert!(!line.contains("\"error\""), "{command}: {line}");
        }
    }
}

/// Each ending with one and with a hundred held requests.
fn both(machine: Machine, then: &str, ending: impl Fn(&mut Held)) {
    for count in [1, 100] {
        let mut held = Held::start(count, then, machine);
        ending(&mut held);
        held.end(&format!("{then} with {count} held"));
    }
}

#[test]
fn the_guest_ends_qemu() {
    both(Machine::Microvm, "exit", |held| {
        assert_eq!(
            ends(&mut held.qemu, "QEMU after the guest's exit"),
            Some(33)
        );
    });
}

#[test]
fn the_guest_powers_off() {
    both(Machine::Pc, "poweroff", |held| {
        assert_eq!(ends(&mut held.qemu, "QEMU after the power-off"), Some(0));
    });
}

#[test]
fn the_guest_resets() {
    both(Machine::Microvm, "reset", |held| {
        // QEMU resets its devices before the new kernel runs: its first line is the reset's end.
        held.until_said("Linux version", LIMIT);
        // And it comes up again, mounts, and gets to its writes once more.
        held.until_said("KTAP version 1", BOOT);
    });
}

#[test]
fn sigterm_while_requests_are_held() {
    // Held::end is the whole test: the guest still waits when the signal comes.
    both(Machine::Microvm, "wait", |_| {});
}

#[test]
fn qemu_stops_and_continues() {
    both(Machine::Microvm, "wait", |held| {
        let begun = Instant::now();
        held.qmp.execute("stop");
        held.qmp.execute("cont");
        assert!(
            begun.elapsed() < LIMIT,
            "stop and cont took {:?}",
            begun.elapsed()
        );
        // The stop released them, so the guest gets its answers and ends.
        held.until_said("ok 1 held-writes", BOOT);
        assert_eq!(ends(&mut held.qemu, "QEMU after stop and cont"), Some(33));
    });
}

#[test]
fn qemu_is_killed() {
    both(Machine::Microvm, "wait", |held| {
        held.qemu.kill().unwrap();
        held.qemu.wait().unwrap();
    });
}
