// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk sweep`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use wtblk_shared::sweep::Shard;

use super::kernel_args::KernelSourceArgs;
use super::run::{Patient, command_line};
use crate::harness::accel::Choice;
use crate::harness::qemu::Machine;
use crate::harness::sweep::{self, Options, Requests};

/// Lets every request of a test's call fail in turn, all in one boot as long as the guest lives.
#[derive(Args, Debug)]
pub struct SweepArgs {
    /// Test whose calls are swept; repeatable
    #[arg(long, value_name = "NAME", required_unless_present_any = ["resume", "merge"], conflicts_with_all = ["resume", "merge"])]
    test: Vec<String>,
    /// What becomes of the request: ioerr, late, stored, unsupp, torn, drop, corrupt, delay, hang; repeatable
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "ioerr"
    )]
    fault: Vec<String>,
    /// Whose requests: the call's data writes, or everything from the call to the end of its fsync
    #[arg(long, value_enum, default_value = "data")]
    requests: Requests,
    /// Every two requests, not every one
    #[arg(long)]
    pairs: bool,
    /// Only the K-th of N parts of the points
    #[arg(long, value_name = "K/N", default_value = "1/1", value_parser = shard)]
    shard: Shard,
    /// Go on with the sweep in this folder; everything else is as it was
    #[arg(long, value_name = "DIR", conflicts_with_all = [
        "fault", "requests", "pairs", "shard", "merge", "kernel", "kdir", "kconfig", "initramfs", "defect", "accel",
        "machine", "qemu", "seed", "out", "flag", "append",
    ])]
    resume: Option<PathBuf>,
    /// Tell what these parts of a sweep found together; repeatable
    #[arg(long, value_name = "DIR", conflicts_with_all = ["resume", "compare_reboot"])]
    merge: Vec<PathBuf>,
    /// Afterwards N points once more, each in a boot of its own: what the sweep saves
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    compare_reboot: u32,
    #[command(flatten)]
    source: KernelSourceArgs,
    /// Initramfs with our PID 1; ours if not given, built when need be
    #[arg(long, value_name = "FILE")]
    initramfs: Option<PathBuf>,
    /// Seeded defect of the reference kernel to switch on (kernel-config/defects.toml)
    #[arg(long, value_name = "NAME")]
    defect: Option<String>,
    /// KVM or emulation; auto proves KVM by a boot and remembers
    #[arg(long, value_enum, default_value = "auto")]
    accel: Choice,
    /// QEMU's board; if not given, microvm for a vmlinux and pc for a bzImage
    #[arg(long, value_enum)]
    machine: Option<Machine>,
    /// QEMU program; qemu-system-x86_64 of the PATH if not given
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// Seed of everything random; drawn and printed if not given
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Folder for points.jsonl, results.json and the boots; a new one in the cache if not given
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// More words for the kernel command line, as one argument; the last word on a key counts
    #[arg(long, value_name = "WORDS")]
    append: Option<String>,
}

fn shard(text: &str) -> Result<Shard, String> {
    Shard::parse(text).ok_or_else(|| "expected K/N with 1 <= K <= N, such as 1/2".to_owned())
}

impl SweepArgs {
    /// Sweeps; the exit status.
    pub fn run(self) -> Result<u8> {
        let mut out = Patient(std::io::stdout().lock());
        if !self.merge.is_empty() {
            return sweep::merge(&self.merge, self.out.as_deref(), &mut out);
        }
        if let Some(dir) = &self.resume {
            return sweep::resume(dir, self.compare_reboot, &mut out);
        }
        let (kernel, flag) = self.source.read()?;
        let options = Options {
            tests: self.test,
            faults: self.fault,
            requests: self.requests,
            pairs: self.pairs,
            shard: self.shard,
            kernel,
            initramfs: self.initramfs,
            defect: self.defect,
            accel: self.accel,
            machine: self.machine,
            qemu: self.qemu,
            seed: self.seed,
            out: self.out,
            flag,
            append: self.append,
            command: command_line(&["--seed", "--out"]),
        };
        sweep::begin(options, self.compare_reboot, &mut out)
    }
}
