// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One boot: the device as a child, QEMU beside it, console and trace followed
//! until the guest has ended, and both processes gone afterwards.

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use wtblk_shared::exit;

use super::child::{self, Guarded};
use super::console::Console;
use super::ground::Ground;
use super::image::{self, Kind, Repair};
use super::kernel_log::KernelLog;
use super::qemu::Vm;
use super::served::{Sockets, open_trace, start_device};
use crate::device::Recording;
use crate::fault::Shape;
use crate::trace::TraceReader;
use crate::trace::event::{Body, DATA_DISK, DeviceKind, Event};
use crate::verify::story::Stories;
use crate::verify::verdict::Verdicts;
use crate::verify::{Verifier, touches_data};

/// What to boot.
pub struct Plan<'a> {
    /// QEMU, kernel and initramfs.
    pub ground: &'a Ground,
    /// Names of the tests to run in this boot.
    pub tests: &'a [String],
    /// Scenario files for the device.
    pub scenarios: &'a [PathBuf],
    /// What the scenarios and options say of the data disk.
    pub shape: &'a Shape,
    /// The file system on it.
    pub fs: &'a Kind,
    /// What the device records of the requests' data.
    pub recording: Recording,
    /// Our words for the kernel command line.
    pub words: Vec<String>,
    /// Seed of the fault engine.
    pub seed: u64,
    /// Where trace, console log and image go; made anew.
    pub dir: &'a Path,
    /// Memory of the guest, MiB.
    pub memory: u32,
    /// Longest time from QEMU's start to its end.
    pub limit: Duration,
    /// The command that repeats one test of this boot, but for its name.
    pub repeat_with: &'a str,
    /// Set when the user interrupts.
    pub interrupted: &'a AtomicBool,
}

/// How a boot ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The guest ended by itself with this code of [`wtblk_shared::exit`].
    Guest(u8),
    /// The kernel panicked: its line.
    Panic(String),
    /// The guest shut the machine down or reset it without a word.
    Left,
    /// QEMU failed, or was killed: its status and last words.
    Qemu(String),
    /// The limit was reached; the guest was killed.
    Limit,
    /// The device ended before the guest: its status.
    Device(String),
    /// The user interrupted.
    Interrupted,
}

/// What a boot gave, and what the promises say of it.
pub struct Outcome {
    /// The boot.
    pub ran: Ran,
    /// What the verifier found.
    pub verdicts: Verdicts,
}

/// Somebody who is told every event while the guest runs.
pub trait Watch {
    /// The next event.
    fn event(&mut self, event: &Event);

    /// The console said something.
    fn heard(&mut self) {}

    /// Nothing comes of waiting any longer: the guest is ended as if its limit were reached.
    fn gives_up(&self) -> bool {
        false
    }
}

impl Watch for Verifier {
    fn event(&mut self, event: &Event) {
        Verifier::event(self, event);
    }
}

/// What a boot gave.
pub struct Ran {
    /// How it ended.
    pub ended: Ended,
    /// What the console said.
    pub console: Console,
    /// What the kernel said there, and when.
    pub log: KernelLog,
    /// The console's last lines, for messages.
    pub last_lines: Vec<String>,
    /// Seconds from QEMU's start to its end.
    pub seconds: f64,
    /// The device could not store what the guest wrote: why. No verdict of such a
    /// boot is about the guest.
    pub store_error: Option<String>,
    /// Names of the rules that fired.
    pub fired: BTreeSet<String>,
    /// Whether the file system is consistent.
    pub repair: Repair,
}

/// How long the device may take to end after SIGTERM: its own limit for store
/// I/O is 5 s.
const DEVICE_END: Duration = Duration::from_secs(6);
/// How long QEMU may take to end after its console or its disk went.
const QEMU_END: Duration = Duration::from_secs(5);
/// Console lines between reader thread and us; the reader waits when it is full.
const LINES: usize = 1024;
/// Console lines kept for messages.
const LAST: usize = 30;

/// Boots, follows to the end, judges.
pub fn boot(plan: &Plan<'_>) -> Result<Outcome> {
    let mut verifier = Verifier::of_trace();
    let ran = follow(plan, &mut verifier)?;
    let mut verdicts = verifier.finish();
    let trace = plan.dir.join(TRACE);
    tell(&mut verdicts, &trace, &ran.log, plan.repeat_with)?;
    Ok(Outcome { ran, verdicts })
}

/// The trace's name in the folder of its boot.
pub const TRACE: &str = "trace.wtblk";

/// Boots and follows to the end; `watch` is told what happens.
pub fn follow(plan: &Plan<'_>, watch: &mut dyn Watch) -> Result<Ran> {
    std::fs::create_dir_all(plan.dir)
        .with_context(|| format!("cannot make {}", plan.dir.display()))?;
    let image = plan.dir.join("data.img");
    let trace = plan.dir.join(TRACE);
    let _image = Removed(image.clone());
    let _meta = Removed(image::meta_of(&image));
    image::xfs(&image, plan.fs, plan.shape.block())?;
    let (device_fds, qemu_fds) = Sockets::pairs(plan.fs)?;

    let mut device = start_device(plan, &image, &trace, &device_fds)?;
    drop(device_fds);
    let mut reader = open_trace(&trace, &mut device, &plan.dir.join("device.log"))?;

    let vm = Vm {
        machine: plan.ground.machine,
        accel: plan.ground.accel,
        kernel: &plan.ground.kernel,
        initramfs: &plan.ground.initramfs,
        words: &plan.words,
        disks: Some((&qemu_fds.data, &qemu_fds.mark)),
        third: qemu_fds.meta.as_ref(),
        queues: plan.shape.queues.unwrap_or(1),
        queue_size: plan.shape.queue_size,
        memory: plan.memory,
        name: plan.dir.display().to_string(),
    };
    vm.check_line()?;
    let mut command = vm.command(&plan.ground.qemu);
    let qemu_log = plan.dir.join("qemu.log");
    command
        .stdout(Stdio::piped())
        .stderr(File::create(&qemu_log)?);
    std::fs::write(plan.dir.join("qemu.args"), format!("{command:?}\n"))?;
    let begun = Instant::now();
    let mut qemu = child::spawn("QEMU", command, &qemu_fds.all())?;
    drop(qemu_fds);
    let stdout = qemu.inner().stdout.take().context("no pipe from QEMU")?;
    let lines = follow_console(stdout, File::create(plan.dir.join("console.log"))?);

    let mut follower = Follower::new(watch);
    follower.console.large_blocks = plan.fs.block > image::PAGE;
    let ended = follower.run(
        plan,
        &mut reader,
        &mut device,
        &mut qemu,
        &lines,
        begun,
        &qemu_log,
    )?;
    let seconds = begun.elapsed().as_secs_f64();
    qemu.kill()?;
    let by_itself = device.end(DEVICE_END)?;
    reader.set_final();
    follower.drain(&mut reader)?;
    let mut ended = ended;
    if !by_itself && ended != Ended::Interrupted {
        ended = Ended::Device(format!(
            "did not end within {} s of SIGTERM",
            DEVICE_END.as_secs()
        ));
    }
    follower.console.finish();
    let repair = repaired(&ended, &follower, &image, plan.fs)?;
    Ok(Ran {
        ended,
        console: follower.console,
        log: follower.log,
        store_error: follower.store_error,
        fired: follower.fired,
        last_lines: follower.last,
        seconds,
        repair,
    })
}

/// Whether the image is consistent; only where the guest unmounted it, and the device kept what it was given.
fn repaired(ended: &Ended, follower: &Follower, image: &Path, fs: &Kind) -> Result<Repair> {
    let why = match ended {
        Ended::Guest(exit::OK | exit::NOT_OK) if follower.store_error.is_some() => {
            "the device could not store everything"
        }
        Ended::Guest(exit::OK | exit::NOT_OK) if follower.touched_data => {
            "a rule stored something else than was sent, or nothing"
        }
        Ended::Guest(exit::OK | exit::NOT_OK) => return image::repair(image, fs),
        _ => "the guest did not unmount it",
    };
    Ok(Repair::NotChecked(why.into()))
}

/// Reads the trace again for what the findings look like from near.
fn tell(verdicts: &mut Verdicts, trace: &Path, log: &KernelLog, command: &str) -> Result<()> {
    let mut stories = Stories::of(verdicts);
    if stories.is_empty() {
        return Ok(());
    }
    let mut reader = TraceReader::open(trace)?;
    while let Some(event) = reader.next()? {
        stories.event(&event);
    }
    stories.tell(verdicts);
    for finding in verdicts.findings_mut() {
        let first = finding.events.first().copied().unwrap_or(0);
        let last = finding.events.last().copied().unwrap_or(first);
        if let Some(story) = &mut finding.story {
            story.kernel_log = log.between(story.begin.unwrap_or(first), last);
            story.repeat_with = Some(match finding.test.as_str() {
                "" => command.to_owned(),
                test => format!("{command} --test {test}"),
            });
        }
    }
    Ok(())
}

/// A file that goes with its boot: the image is half a gigabyte, if sparse.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Reads the console in a thread of its own, keeping all of it in the log.
fn follow_console(from: impl Read + Send + 'static, mut log: File) -> Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(LINES);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(from);
        let mut line = Vec::new();
        loop {
            line.clear();
            // Bounded: a guest that never ends a line must not fill our memory.
            match reader.by_ref().take(64 * 1024).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            let _ = log.write_all(&line);
            let text = String::from_utf8_lossy(&line)
                .trim_end_matches(['\n', '\r'])
                .to_owned();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Follows trace and console of one boot.
struct Follower<'a> {
    console: Console,
    watch: &'a mut dyn Watch,
    in_flight: HashSet<u64>,
    store_error: Option<String>,
    fired: BTreeSet<String>,
    /// A fault has stored something else than was sent, or nothing.
    touched_data: bool,
    last: Vec<String>,
    log: KernelLog,
    /// Number of the last event that was read.
    seq: u64,
}

impl<'a> Follower<'a> {
    fn new(watch: &'a mut dyn Watch) -> Follower<'a> {
        Follower {
            console: Console::default(),
            watch,
            in_flight: HashSet::new(),
            store_error: None,
            fired: BTreeSet::new(),
            touched_data: false,
            last: Vec::new(),
            log: KernelLog::default(),
            seq: 0,
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one boot, all borrowed, used once"
    )]
    fn run(
        &mut self,
        plan: &Plan<'_>,
        reader: &mut TraceReader,
        device: &mut Guarded,
        qemu: &mut Guarded,
        lines: &Receiver<String>,
        begun: Instant,
        qemu_log: &Path,
    ) -> Result<Ended> {
        let mut open = true;
        let mut device_gone = None;
        loop {
            match lines.recv_timeout(Duration::from_millis(10)) {
                Ok(line) => {
                    // Events first: a line is judged by what was in flight when it came.
                    self.drain(reader)?;
                    self.line(line);
                    continue;
                }
                Err(RecvTimeoutError::Timeout) => self.drain(reader)?,
                Err(RecvTimeoutError::Disconnected) => open = false,
            }
            if plan.interrupted.load(Ordering::Relaxed) {
                return Ok(Ended::Interrupted);
            }
            if !open {
                // The console's end is QEMU's end, give or take its exit.
                let status = qemu.wait(QEMU_END)?;
                return Ok(self.how(status, qemu_log));
            }
            // The device ends by itself when QEMU is gone; QEMU's end may only be
            // noticed a moment later.
            if let Some(status) = device.ended()? {
                let since = *device_gone.get_or_insert_with(Instant::now);
                if !status.success() || since.elapsed() > QEMU_END {
                    let said =
                        std::fs::read_to_string(plan.dir.join("device.log")).unwrap_or_default();
                    return Ok(Ended::Device(format!("{status}: {}", said.trim())));
                }
            }
            if begun.elapsed() > plan.limit || self.watch.gives_up() {
                return Ok(Ended::Limit);
            }
        }
    }

    fn how(&self, status: Option<std::process::ExitStatus>, qemu_log: &Path) -> Ended {
        if let Some(panic) = &self.console.panic {
            return Ended::Panic(panic.clone());
        }
        match status
            .and_then(|s| s.code())
            .and_then(exit::from_qemu_status)
        {
            Some(code) => Ended::Guest(code),
            None if status.is_some_and(|s| s.success()) => Ended::Left,
            None => {
                let said = std::fs::read_to_string(qemu_log).unwrap_or_default();
                let status = status.map_or("closed its console".to_owned(), |s| s.to_string());
                Ended::Qemu(format!("{status} {}", said.trim()).trim().to_owned())
            }
        }
    }

    fn line(&mut self, line: String) {
        self.watch.heard();
        if self.console.line(&line, self.in_flight.len()) {
            self.log.line(self.seq, &line);
        }
        if self.last.len() == LAST {
            self.last.remove(0);
        }
        self.last.push(line);
    }

    fn drain(&mut self, reader: &mut TraceReader) -> Result<()> {
        while let Some(event) = reader.next()? {
            self.event(&event);
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) {
        self.seq = event.seq;
        match &event.body {
            Body::Submit(submit) if submit.disk == DATA_DISK => {
                self.in_flight.insert(event.seq);
            }
            Body::Decide(decide) => {
                self.touched_data |= touches_data(decide);
                if !self.fired.contains(&decide.name) {
                    self.fired.insert(decide.name.clone());
                }
            }
            Body::Complete(complete) => {
                self.in_flight.remove(&complete.request);
            }
            Body::Device(device) if device.kind == DeviceKind::StoreError => {
                self.store_error.get_or_insert_with(|| device.text.clone());
            }
            _ => {}
        }
        self.watch.event(event);
    }
}
