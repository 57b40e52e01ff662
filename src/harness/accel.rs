// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KVM or emulation. `/dev/kvm` may exist and still not boot a kernel (hosts
//! that emulate virtualisation), so `auto` proves it with a boot and remembers.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use wtblk_shared::exit;

use super::child;
use super::paths;
use super::qemu::{Machine, Qemu, Vm};

/// How the guest's CPU is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// Emulated by QEMU.
    Tcg,
    /// The host's.
    Kvm,
}

impl Accel {
    /// QEMU's word for it.
    pub fn name(self) -> &'static str {
        match self {
            Accel::Tcg => "tcg",
            Accel::Kvm => "kvm",
        }
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// KVM where it is proved to boot this kernel's kind, else emulation.
    Auto,
    /// Emulation.
    Tcg,
    /// KVM, or an error.
    Kvm,
}

/// Longest time a proof may take; a KVM boot takes a second.
const PROOF: Duration = Duration::from_secs(10);

/// Resolves the choice. The proof boots `kernel` with no disk and asks the guest
/// for its list of tests, which ends it at once with status 0.
pub fn resolve(
    choice: Choice,
    qemu: &Qemu,
    machine: Machine,
    kernel: &Path,
    initramfs: &Path,
) -> Result<Accel> {
    match choice {
        Choice::Tcg => return Ok(Accel::Tcg),
        Choice::Kvm if !usable() => bail!("--accel kvm: /dev/kvm cannot be opened"),
        Choice::Auto if !usable() => return Ok(Accel::Tcg),
        Choice::Auto | Choice::Kvm => {}
    }
    let accel = proved(qemu, machine, kernel, initramfs)?;
    if choice == Choice::Kvm && accel != Accel::Kvm {
        bail!(
            "--accel kvm: /dev/kvm is there, but does not boot the guest (proved by a boot without disks)"
        );
    }
    Ok(accel)
}

/// What a proof boot showed, now or on this host before.
fn proved(qemu: &Qemu, machine: Machine, kernel: &Path, initramfs: &Path) -> Result<Accel> {
    let memory = paths::cache()?.join("kvm-proofs");
    fs::create_dir_all(&memory).with_context(|| format!("cannot make {}", memory.display()))?;
    let host = fs::read_to_string("/proc/version").unwrap_or_default();
    let question = format!("{host}{:?} {machine:?}", qemu.version);
    let key = paths::key([("host", question.as_bytes())]);
    let memory = memory.join(key);
    if let Ok(answer) = fs::read_to_string(&memory) {
        let kvm = answer.trim() == "kvm";
        return Ok(if kvm { Accel::Kvm } else { Accel::Tcg });
    }
    let boots = |accel| prove(accel, qemu, machine, kernel, initramfs);
    if boots(Accel::Kvm)? {
        eprintln!("wtblk: /dev/kvm boots the guest (remembered)");
        paths::write_whole(&memory, Accel::Kvm.name().as_bytes())?;
        return Ok(Accel::Kvm);
    }
    // A kernel that boots nowhere says nothing about KVM: that is not remembered.
    if boots(Accel::Tcg)? {
        eprintln!("wtblk: /dev/kvm does not boot the guest; using emulation (remembered)");
        paths::write_whole(&memory, Accel::Tcg.name().as_bytes())?;
    }
    Ok(Accel::Tcg)
}

fn usable() -> bool {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok()
}

fn prove(
    accel: Accel,
    qemu: &Qemu,
    machine: Machine,
    kernel: &Path,
    initramfs: &Path,
) -> Result<bool> {
    let words = ["wtblk_list".to_owned()];
    let vm = Vm {
        machine,
        accel,
        kernel,
        initramfs,
        words: &words,
        disks: None,
        third: None,
        queues: 1,
        queue_size: None,
        memory: 256,
        name: "kvm-proof".into(),
    };
    let mut command = vm.command(qemu);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child::spawn("QEMU", command, &[])?;
    let ended = child.wait(PROOF)?.and_then(|status| status.code());
    let proved = ended.and_then(exit::from_qemu_status) == Some(exit::OK);
    child.kill()?;
    Ok(proved)
}
