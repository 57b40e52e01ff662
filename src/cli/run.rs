// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk run`.

use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::kernel_args::KernelSourceArgs;
use super::recording::RecordingArgs;
use crate::harness::accel::Choice;
use crate::harness::matrix;
use crate::harness::qemu::{GUEST_MEMORY, Machine};
use crate::harness::run::{self, Options};
use crate::plain;

/// Boots a kernel, runs guest tests against the device, prints the verdict as KTAP.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Scenario file for the device; repeatable. A test's own scenario is always loaded.
    #[arg(long, value_name = "FILE")]
    scenario: Vec<PathBuf>,
    /// Test to run; repeatable. What a scenario says, else all of them.
    #[arg(long, value_name = "NAME")]
    test: Vec<String>,
    #[command(flatten)]
    source: KernelSourceArgs,
    /// Initramfs with our PID 1. Ours if not given, built when need be.
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Seeded defect of the reference kernel to switch on (kernel-config/defects.toml).
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
    /// With --defect: succeed exactly if the findings are those of the defect table.
    #[arg(long)]
    expect: bool,
    /// Every defect (or the one of --defect) with every test, the sound kernel first: who finds
    /// what. Written to defects.md of the run's folder; the whole matrix on our own kernel and
    /// ground, with nothing but --seed, --out, --accel, --limit, --repeat and --qemu given, to
    /// docs/defects.md, too.
    #[arg(long, conflicts_with = "expect")]
    matrix: bool,
    /// KVM or emulation; auto proves KVM by a boot and remembers.
    #[arg(long, value_enum, default_value = "auto")]
    accel: Choice,
    /// QEMU's board; if not given, microvm for a vmlinux and pc for a bzImage.
    #[arg(long, value_enum)]
    machine: Option<Machine>,
    /// QEMU program; qemu-system-x86_64 of the PATH if not given.
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// Run every test so often.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    repeat: u32,
    /// Operations of the test `exerciser`, drawn by --seed; without it a short run that is always
    /// the same.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    ops: Option<u32>,
    /// Seed of everything random; drawn and printed if not given.
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Folder for results.json, trace, console log, scenarios; a new one in the cache if not given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Whether the guest tags its calls in the I/O priority; what a scenario says, else on.
    #[arg(long, value_name = "on|off", value_parser = ["on", "off"])]
    tags: Option<String>,
    /// Queues of the data disk, and CPUs; what a scenario says, else 1.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=16))]
    queues: Option<u16>,
    /// The file system on the data disk: xfs-1k, xfs-2k, xfs-4k, xfs-8k, xfs-64k (by block size),
    /// xfs-always-cow or xfs-rt (it is the realtime device); what a scenario says, else xfs-4k.
    #[arg(long, value_name = "NAME")]
    fs: Option<String>,
    /// Memory of the guest, MiB.
    #[arg(long, value_name = "MIB", default_value_t = GUEST_MEMORY, value_parser = clap::value_parser!(u32).range(64..=65_536))]
    memory: u32,
    /// More words for the kernel command line, as one argument; the last word on a key counts.
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
    #[command(flatten)]
    recording: RecordingArgs,
    /// Longest time of one boot in seconds; 30 and 20 for each test if not given.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: Option<u64>,
}

/// Standard output of a run. Whoever reads it may go (`| head`): the run goes on,
/// its results and its status are the same.
pub(super) struct Patient<W>(pub(super) W);

impl<W: Write> Write for Patient<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.write(bytes) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(bytes.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self.0.flush() {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

impl RunArgs {
    /// Runs; the exit status.
    pub fn run(self) -> Result<u8> {
        // A row of the matrix is repeated by a run with its defect.
        let rows: &[&str] = if self.matrix { &["--defect"] } else { &[] };
        let matrix = format!("{} --matrix", command_line(&["--seed", "--out"]));
        let command = command_line(&[&["--seed", "--out"], rows].concat());
        let one_test = command_line(&[&["--seed", "--out", "--test", "--repeat"], rows].concat());
        let (kernel, flag) = self.source.read()?;
        let options = Options {
            scenarios: self.scenario,
            tests: self.test,
            kernel,
            initramfs: self.initramfs,
            defect: self.defect,
            expect: self.expect,
            accel: self.accel,
            machine: self.machine,
            qemu: self.qemu,
            repeat: self.repeat,
            ops: self.ops,
            seed: self.seed,
            out: self.out,
            flag,
            tags: self.tags.map(|tags| tags == "on"),
            queues: self.queues,
            fs: self.fs,
            recording: self.recording.recording(),
            append: self.append,
            memory: self.memory,
            limit: self.limit.map(Duration::from_secs),
            command,
            one_test,
        };
        let mut print = Patient(std::io::stdout().lock());
        if self.matrix {
            matrix::run(options, &matrix, &mut print)
        } else {
            run::run(options, &mut print)
        }
    }
}

/// What was typed, without these options and their values.
pub(super) fn command_line(without: &[&str]) -> String {
    let mut typed = std::env::args();
    // As typed: who has it not on the PATH must be able to paste the line.
    let program = typed.next().unwrap_or_else(|| "wtblk".to_owned());
    let words = left_of(typed, without);
    let words: Vec<String> = [program].into_iter().chain(words).collect();
    words
        .iter()
        .map(|w| plain::shell_word(w))
        .collect::<Vec<_>>()
        .join(" ")
}

fn left_of(typed: impl Iterator<Item = String>, without: &[&str]) -> Vec<String> {
    let mut words = Vec::new();
    let mut skip = false;
    for word in typed {
        let option = word.split('=').next().unwrap_or_default();
        if skip {
            skip = false;
        } else if word == "--matrix" {
            // A flag: it has no value that follows.
        } else if !without.contains(&option) {
            words.push(word);
        } else {
            skip = option == word;
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_left_out_with_their_values() {
        let typed = "run --test a --seed=5 --repeat 3 --test=b --tags off";
        let typed = || typed.split(' ').map(str::to_owned);
        let left = left_of(typed(), &["--seed", "--test", "--repeat"]);
        assert_eq!(left, ["run", "--tags", "off"]);
        assert_eq!(left_of(typed(), &["--seed"]).len(), 8);
        let typed = "run --matrix --repeat 3".split(' ').map(str::to_owned);
        assert_eq!(left_of(typed, &["--seed"]), ["run", "--repeat", "3"]);
    }
}
