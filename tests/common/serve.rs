// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A `wtblk serve` process in a directory of its own.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use wtblk::trace::TraceReader;
use wtblk::trace::event::{Body, Complete, DeviceKind, Event, Submit};

use super::until;

pub struct Serve {
    dir: Option<tempfile::TempDir>,
    child: Child,
}

/// The same for a command that has to end by itself: one that serves instead, because what should
/// refuse it is broken, ends after a minute with status 124, and its test fails.
pub fn wtblk_ending() -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", "60", env!("CARGO_BIN_EXE_wtblk")]);
    command.stdin(Stdio::null());
    command
}

/// The program, with nothing set.
pub fn wtblk() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wtblk"));
    command.stdin(Stdio::null());
    command
}

impl Serve {
    /// A disk in memory of 16 MiB, a mark disk, a trace; `scenario` may be empty.
    pub fn start(scenario: &str, more: &[&str]) -> Serve {
        let dir = tempfile::tempdir().unwrap();
        Serve::start_in(dir, scenario, &[&["--memory", "16MiB"], more].concat())
    }

    /// The same with the caller's choice of where the bytes live.
    pub fn start_in(dir: tempfile::TempDir, scenario: &str, more: &[&str]) -> Serve {
        Serve::start_with(dir, scenario, more, |_| {})
    }

    /// The same with something done to the command before it is run.
    pub fn start_with(
        dir: tempfile::TempDir,
        scenario: &str,
        more: &[&str],
        prepare: impl FnOnce(&mut Command),
    ) -> Serve {
        let mut command = wtblk();
        prepare(&mut command);
        command.current_dir(dir.path());
        command.args(["serve", "--socket", "data", "--mark-socket", "mark"]);
        command.args(["--trace", "trace"]).args(more);
        if !scenario.is_empty() {
            std::fs::write(dir.path().join("scenario.toml"), scenario).unwrap();
            command.args(["--scenario", "scenario.toml"]);
        }
        let mut child = command.spawn().unwrap();
        for made in ["data", "mark", "trace"] {
            let path = dir.path().join(made);
            until("the sockets and the trace", || {
                let over = child.try_wait().unwrap();
                assert!(over.is_none(), "serve ended early: {over:?}");
                path.exists().then_some(())
            });
        }
        Serve {
            dir: Some(dir),
            child,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn dir(&self) -> &std::path::Path {
        self.dir.as_ref().unwrap().path()
    }

    /// What one that has ended leaves behind.
    pub fn leave(mut self) -> tempfile::TempDir {
        self.dir.take().unwrap()
    }

    /// SIGKILL; what it leaves behind.
    pub fn kill(mut self) -> tempfile::TempDir {
        self.signal(Signal::SIGKILL);
        self.wait();
        self.dir.take().unwrap()
    }

    pub fn data(&self) -> UnixStream {
        self.connect("data")
    }

    pub fn mark(&self) -> UnixStream {
        self.connect("mark")
    }

    /// The file may be a stale one of before, about to be replaced.
    fn connect(&self, name: &str) -> UnixStream {
        until("a socket that answers", || {
            UnixStream::connect(self.path(name)).ok()
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the end; the exit status.
    pub fn wait(&mut self) -> i32 {
        let status = until("the end of serve", || self.child.try_wait().unwrap());
        status.code().unwrap_or(-1)
    }

    /// SIGTERM, status 0, no sockets left; the events.
    pub fn end(mut self) -> Trace {
        self.signal(Signal::SIGTERM);
        assert_eq!(self.wait(), 0);
        assert!(!self.path("data").exists() && !self.path("mark").exists());
        self.trace()
    }

    pub fn trace(&self) -> Trace {
        Trace::read(&self.path("trace"))
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The events of a run.
pub struct Trace(pub Vec<Event>);

impl Trace {
    pub fn read(path: &std::path::Path) -> Trace {
        let mut reader = TraceReader::open(path).unwrap();
        let mut events = Vec::new();
        while let Some(event) = reader.next().unwrap() {
            events.push(event);
        }
        Trace(events)
    }

    pub fn submits(&self) -> Vec<(u64, Submit)> {
        let pick = |e: &Event| match &e.body {
            Body::Submit(s) => Some((e.seq, s.clone())),
            _ => None,
        };
        self.0.iter().filter_map(pick).collect()
    }

    pub fn completes(&self) -> Vec<(u64, Complete)> {
        let pick = |e: &Event| match &e.body {
            Body::Complete(c) => Some((e.seq, c.clone())),
            _ => None,
        };
        self.0.iter().filter_map(pick).collect()
    }

    /// Numbers and lines of the marks.
    pub fn marks(&self) -> Vec<(u64, String, bool)> {
        let pick = |e: &Event| match &e.body {
            Body::Mark(m) => Some((e.seq, m.line.clone(), m.ordered)),
            _ => None,
        };
        self.0.iter().filter_map(pick).collect()
    }

    /// The device events of a kind: a, b, text.
    pub fn device(&self, kind: DeviceKind) -> Vec<(u64, u64, String)> {
        let pick = |e: &Event| match &e.body {
            Body::Device(d) if d.kind == kind => Some((d.a, d.b, d.text.clone())),
            _ => None,
        };
        self.0.iter().filter_map(pick).collect()
    }

    /// Every submit has exactly one complete, numbered after it.
    pub fn assert_paired(&self) {
        let completes = self.completes();
        for (seq, submit) in self.submits() {
            let of: Vec<_> = completes.iter().filter(|(_, c)| c.request == seq).collect();
            assert_eq!(of.len(), 1, "{submit:?} has {of:?}");
            assert!(of[0].0 > seq);
        }
        assert_eq!(completes.len(), self.submits().len());
    }
}
