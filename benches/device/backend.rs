// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The back ends: processes on a CPU of their own, their CPU time and memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::signal::{Signal, kill};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Where the client runs and where everything else.
pub const CLIENT_CPU: usize = 1;
pub const BACKEND_CPU: usize = 0;

/// How a back end is made.
#[derive(Clone, Debug)]
pub struct Spec {
    /// As the table shows it.
    pub name: String,
    pub kind: Kind,
    /// Its queues that are used.
    pub queues: usize,
}

/// The program, and its arguments where they differ.
#[derive(Clone, Debug)]
pub enum Kind {
    /// qemu-storage-daemon with this `--blockdev`; whether its iothread polls, as it does by default.
    Peer(String, bool),
    /// `wtblk serve` with these arguments, of this program.
    Ours {
        program: PathBuf,
        args: Vec<String>,
        level: Level,
    },
}

/// How much of it records and judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    Off,
    Trace,
    Verify,
    All,
}

/// A back end that runs.
pub struct Backend {
    pub spec: Spec,
    dir: PathBuf,
    children: Vec<Child>,
}

/// Pins this thread, and so what it starts.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot pin to a CPU")
}

impl Backend {
    /// Starts it; `dir` is its own.
    pub fn start(spec: &Spec, dir: &Path) -> Result<Backend> {
        fs::create_dir_all(dir)?;
        let mut backend = Backend {
            spec: spec.clone(),
            dir: dir.to_owned(),
            children: Vec::new(),
        };
        pin(BACKEND_CPU)?;
        let started = backend.spawn_all();
        pin(CLIENT_CPU)?;
        started.with_context(|| format!("cannot start {}", spec.name))?;
        Ok(backend)
    }

    fn spawn_all(&mut self) -> Result<()> {
        match self.spec.kind.clone() {
            Kind::Peer(blockdev, polls) => {
                let socket = self.socket();
                let thread = match polls {
                    true => "iothread,id=io",
                    false => "iothread,id=io,poll-max-ns=0",
                };
                let mut command = Command::new("qemu-storage-daemon");
                command
                    .args(["--object", thread, "--blockdev", &blockdev])
                    .arg("--export")
                    .arg(format!(
                        "type=vhost-user-blk,id=e,node-name=n,writable=on,iothread=io,num-queues={},addr.type=unix,addr.path={}",
                        self.spec.queues,
                        socket.display()
                    ));
                self.spawn(command)
            }
            Kind::Ours {
                program,
                args,
                level,
            } => {
                let mut command = Command::new(program);
                command.arg("serve").args(&args);
                command.arg("--socket").arg(self.socket());
                command.args(["--queues", &self.spec.queues.to_string()]);
                if level == Level::Off {
                    command.arg("--no-judge");
                } else {
                    command.arg("--mark-socket").arg(self.mark_socket());
                    command.arg("--trace").arg(self.trace());
                }
                self.spawn(command)?;
                if matches!(level, Level::Verify | Level::All) {
                    self.wait_for(&self.trace())?;
                    let mut follow = Command::new(std::env::current_exe()?);
                    follow.arg("--follow").arg(self.trace());
                    self.spawn(follow)?;
                }
                Ok(())
            }
        }
    }

    fn spawn(&mut self, mut command: Command) -> Result<()> {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.dir.join("log"))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.children
            .push(command.spawn().with_context(|| format!("{command:?}"))?);
        Ok(())
    }

    fn wait_for(&self, path: &Path) -> Result<()> {
        for _ in 0..2000 {
            if path.exists() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("{}: {}", path.display(), self.said())
    }

    /// What it has printed.
    pub fn said(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    pub fn mark_socket(&self) -> PathBuf {
        self.dir.join("mark")
    }

    fn trace(&self) -> PathBuf {
        self.dir.join("trace")
    }

    /// Whether it takes marks.
    pub fn has_marks(&self) -> bool {
        matches!(self.spec.kind, Kind::Ours { level, .. } if level != Level::Off)
    }

    /// CPU time of all its processes and their threads, those that have ended included.
    pub fn cpu(&self) -> Result<Duration> {
        let mut sum = Duration::ZERO;
        for child in &self.children {
            let clock = clock_getcpuclockid(Pid::from_raw(child.id() as i32))?;
            sum += Duration::from(clock_gettime(clock)?);
        }
        Ok(sum)
    }

    /// Memory of the device's process: all that is resident, and what is its own alone.
    pub fn memory(&self) -> Result<Memory> {
        let pid = self.children.first().context("not started")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            let kib = line.and_then(|l| l.trim_start_matches(':').split_whitespace().next());
            kib.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0)
        };
        Ok(Memory {
            peak_kib: field("VmHWM"),
            anon_kib: field("RssAnon"),
            file_kib: field("RssFile"),
        })
    }
}

/// In KiB.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Memory {
    /// VmHWM: the guest's and a memory store's pages included.
    pub peak_kib: u64,
    /// RssAnon.
    pub anon_kib: u64,
    /// RssFile: the program, and what of the trace on a disk is mapped.
    pub file_kib: u64,
}

impl Drop for Backend {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM);
        }
        for child in &mut self.children {
            for _ in 0..400 {
                if child.try_wait().is_ok_and(|s| s.is_some()) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
