// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What boots stand on: QEMU, a kernel, an initramfs, a board, found or built once.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};

use super::accel::{self, Accel, Choice};
use super::guest;
use super::kernel;
use super::own::Source;
use super::qemu::{Machine, Qemu, machine_for};

/// What was asked for; what is `None` is ours, built if need be.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    /// The kernel.
    pub kernel: Source,
    /// An initramfs.
    pub initramfs: Option<&'a Path>,
    /// The board; `None`: the one that suits the kernel image.
    pub machine: Option<Machine>,
    /// KVM or emulation.
    pub accel: Choice,
    /// Set when the user interrupts.
    pub interrupted: &'a AtomicBool,
}

/// What boots stand on.
#[derive(Clone, Debug)]
pub struct Ground {
    /// QEMU.
    pub qemu: Qemu,
    /// Where the kernel is from.
    pub source: Source,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The board.
    pub machine: Machine,
    /// How the CPU is made.
    pub accel: Accel,
}

impl Ground {
    /// Finds or builds it.
    pub fn prepare(qemu: Qemu, wanted: Wanted<'_>) -> Result<Ground> {
        let source = wanted.kernel.built(wanted.interrupted)?;
        let kernel = match &source {
            Source::Image(kernel) => kernel.clone(),
            Source::Built(built) => built.image.clone(),
            Source::Ours | Source::Tree(..) => kernel::build()?.vmlinux(),
        };
        // Also where the board is given: what is no kernel must not be booted.
        let suits = machine_for(&kernel)?;
        let initramfs = match wanted.initramfs {
            Some(file) if !file.is_file() => {
                bail!("--initramfs {}: there is no such file", file.display())
            }
            Some(file) => file.to_path_buf(),
            None => guest::initramfs()?,
        };
        let machine = wanted.machine.unwrap_or(suits);
        let accel = accel::resolve(wanted.accel, &qemu, machine, &kernel, &initramfs)?;
        Ok(Ground {
            qemu,
            source,
            kernel,
            initramfs,
            machine,
            accel,
        })
    }

    /// The same in words, for results.
    pub fn environment(&self) -> BTreeMap<&'static str, String> {
        let (major, minor) = self.qemu.version;
        let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let mut environment = self.source.environment();
        environment.extend([
            ("kernel", self.kernel.display().to_string()),
            ("initramfs", self.initramfs.display().to_string()),
            ("qemu", format!("{major}.{minor}")),
            ("accel", self.accel.name().to_owned()),
            ("machine", format!("{:?}", self.machine).to_lowercase()),
            ("host", host.trim().to_owned()),
        ]);
        environment
    }
}
