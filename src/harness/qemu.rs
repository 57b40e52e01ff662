// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! QEMU: which one, and its command line for our guest.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::accel::Accel;

/// A QEMU program that was asked for its version.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// The program.
    pub program: PathBuf,
    /// Its version, e.g. (10, 0).
    pub version: (u32, u32),
}

/// The oldest QEMU whose microvm and vhost-user-blk we know to work.
const OLDEST: (u32, u32) = (7, 2);

impl Qemu {
    /// The given program, or `qemu-system-x86_64` of the PATH.
    pub fn find(program: Option<&Path>) -> Result<Qemu> {
        let program = program
            .unwrap_or(Path::new("qemu-system-x86_64"))
            .to_path_buf();
        let output = Command::new(&program).arg("--version").stdin(Stdio::null()).output().with_context(|| {
            format!("cannot run {}: install qemu-system-x86 (ci/setup does) or name one with --qemu", program.display())
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = parse_version(&text).with_context(|| {
            format!(
                "{} --version says nothing of a QEMU version",
                program.display()
            )
        })?;
        if version < OLDEST {
            bail!(
                "{} is version {}.{}; {}.{} or newer is needed",
                program.display(),
                version.0,
                version.1,
                OLDEST.0,
                OLDEST.1
            );
        }
        Ok(Qemu { program, version })
    }

    /// The option of a socket chardev by which QEMU connects again when the device has gone, as
    /// this version spells it.
    pub fn reconnect(&self) -> &'static str {
        match self.version < (9, 2) {
            true => "reconnect=1",
            false => "reconnect-ms=100",
        }
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let rest = &text[text.find("version ")? + "version ".len()..];
    let mut numbers = rest.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The board that suits a kernel image; refused is what is none. A vmlinux is taken for a PVH
/// kernel; a bzImage on microvm restarts in a loop instead of ending.
pub fn machine_for(kernel: &Path) -> Result<Machine> {
    let whose = || format!("--kernel {}", kernel.display());
    let meta = std::fs::metadata(kernel).with_context(whose)?;
    if meta.is_dir() {
        bail!(
            "--kernel {}: that is a folder; name the image in it (vmlinux, or arch/x86/boot/bzImage), \
             or the tree by --kdir",
            kernel.display()
        );
    }
    if !meta.is_file() {
        bail!("--kernel {}: no regular file", kernel.display());
    }
    let mut head = Vec::new();
    let file = File::open(kernel).with_context(whose)?;
    file.take(HEAD).read_to_end(&mut head).with_context(whose)?;
    let at = |from: usize, what: &[u8]| head.get(from..from + what.len()) == Some(what);
    // The setup header of Documentation/arch/x86/boot.rst.
    if at(0x202, b"HdrS") {
        return Ok(Machine::Pc);
    }
    // 64 bits, the lower byte first; an executable (a program of today is a shared object) for x86-64.
    if at(0, b"\x7fELF\x02\x01") && at(16, &[2, 0, 62, 0]) {
        return Ok(Machine::Microvm);
    }
    bail!(
        "--kernel {}: no kernel image: neither a vmlinux (ELF, x86-64) nor a bzImage",
        kernel.display()
    )
}

/// So much of a kernel image tells what it is.
const HEAD: u64 = 0x206;

/// The board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// virtio-mmio, no PCI: the fastest boot.
    Microvm,
    /// i440FX with virtio-pci: for kernels without VIRTIO_MMIO_CMDLINE_DEVICES.
    Pc,
}

/// Memory of a guest where nobody says, MiB.
pub const GUEST_MEMORY: u32 = 512;

/// A guest to be.
pub struct Vm<'a> {
    /// The board.
    pub machine: Machine,
    /// How the CPU is made.
    pub accel: Accel,
    /// vmlinux (PVH) or bzImage.
    pub kernel: &'a Path,
    /// The initramfs.
    pub initramfs: &'a Path,
    /// Our words for the kernel command line, after the console's.
    pub words: &'a [String],
    /// Connected socket to the data disk, and one to the mark disk.
    pub disks: Option<(&'a OwnedFd, &'a OwnedFd)>,
    /// Connected socket to one more disk.
    pub third: Option<&'a OwnedFd>,
    /// Queues of the data disk.
    pub queues: u16,
    /// Most descriptors of each; `None`: QEMU's own.
    pub queue_size: Option<u16>,
    /// Guest memory, MiB.
    pub memory: u32,
    /// A name for the process list.
    pub name: String,
}

/// Linux on x86 cuts its command line there, silently (`COMMAND_LINE_SIZE` in
/// arch/x86/include/asm/setup.h, the final 0 included).
const MOST_LINE: usize = 2047;
/// The board microvm adds a word of some 40 bytes for each disk.
const ROOM_FOR_DISKS: usize = 160;

impl Vm<'_> {
    /// The kernel's command line, without what the board adds.
    fn line(&self) -> String {
        // Emulation on a loaded machine may give the guest no tick while it tries the timer, and
        // then it panics ("IO-APIC + timer doesn't work!"): a virtual timer needs no such trial.
        let mut line =
            "console=ttyS0 panic=-1 reboot=t printk.devkmsg=on no_timer_check".to_owned();
        for word in self.words {
            line.push(' ');
            line.push_str(word);
        }
        line
    }

    /// Refuses words that the kernel would not get to see: a list that is cut is another list.
    pub fn check_line(&self) -> Result<()> {
        let (len, most) = (self.line().len(), MOST_LINE - ROOM_FOR_DISKS);
        if len > most {
            bail!(
                "the kernel's command line would have {len} bytes, and the kernel takes {most} and cuts the \
                 rest: fewer tests (--test), or a shorter --append"
            );
        }
        Ok(())
    }

    /// The command, standard output being the console. No sockets by path: the
    /// connections are handed over, so that nothing stale can lie in the way.
    pub fn command(&self, qemu: &Qemu) -> Command {
        let mut command = Command::new(&qemu.program);
        command.args([
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
            "-serial",
            "stdio",
        ]);
        // A comma would end QEMU's option.
        command
            .arg("-name")
            .arg(format!("wtblk:{}", self.name.replace(',', ",,")));
        let machine = match self.machine {
            // acpi=on prints nothing with our kernels; see docs/guest-tests.md.
            Machine::Microvm => "microvm,acpi=off,memory-backend=mem",
            Machine::Pc => "pc,memory-backend=mem",
        };
        command.args(["-M", machine, "-accel", self.accel.name()]);
        // Linux uses no more queues than it has CPUs.
        command.arg("-smp").arg(self.queues.to_string());
        command.arg("-m").arg(format!("{}M", self.memory));
        command.arg("-object").arg(format!(
            "memory-backend-memfd,id=mem,size={}M,share=on",
            self.memory
        ));
        if self.accel == Accel::Kvm {
            command.args(["-cpu", "host"]);
        }
        if self.machine == Machine::Microvm {
            command.args(["-global", "virtio-mmio.force-legacy=false"]);
        }
        let device = match self.machine {
            Machine::Microvm => "vhost-user-blk",
            Machine::Pc => "vhost-user-blk-pci",
        };
        let size = self.queue_size.map(|n| format!(",queue-size={n}"));
        let size = size.unwrap_or_default();
        let data = self
            .disks
            .map(|(data, _)| ("data", data, self.queues, size.as_str()));
        let mark = self.disks.map(|(_, mark)| ("mark", mark, 1, ""));
        let third = self.third.map(|fd| ("third", fd, 1, ""));
        for (id, fd, queues, size) in [data, mark, third].into_iter().flatten() {
            command
                .arg("-chardev")
                .arg(format!("socket,id={id},fd={}", fd.as_raw_fd()));
            command
                .arg("-device")
                .arg(format!("{device},chardev={id},num-queues={queues}{size}"));
        }
        command.args(["-device", "isa-debug-exit,iobase=0x501,iosize=1"]);
        command
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs);
        command.arg("-append").arg(self.line());
        command.stdin(Stdio::null());
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel cuts the rest off, and a list of operations that is cut is another list.
    #[test]
    fn a_command_line_that_the_kernel_would_cut_is_refused() {
        let checked = |len: usize| {
            let words = ["a".repeat(len)];
            let vm = Vm {
                machine: Machine::Pc,
                accel: Accel::Tcg,
                kernel: Path::new("k"),
                initramfs: Path::new("i"),
                words: &words,
                disks: None,
                third: None,
                queues: 1,
                queue_size: None,
                memory: GUEST_MEMORY,
                name: String::new(),
            };
            (vm.line().len(), vm.check_line().map_err(|e| e.to_string()))
        };
        let (own, _) = checked(0);
        let (len, fits) = checked(MOST_LINE - ROOM_FOR_DISKS - own);
        assert_eq!((len, fits), (1887, Ok(())));
        let why = checked(MOST_LINE - ROOM_FOR_DISKS - own + 1).1.unwrap_err();
        assert!(
            why.contains("1888 bytes") && why.contains("--append"),
            "{why}"
        );
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_an_image_gets_its_board() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        let board = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            machine_for(&path).map_err(|e| format!("{e:#}"))
        };
        let mut elf = vec![0; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[16..20].copy_from_slice(&[2, 0, 62, 0]);
        assert_eq!(board(&elf), Ok(Machine::Microvm));
        let mut compressed = vec![0; 0x400];
        compressed[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(board(&compressed), Ok(Machine::Pc));
        // A program, a text, a part of an image, nothing.
        elf[16] = 3;
        for none in [&elf[..], b"#!/bin/sh\n", &compressed[..0x205], b""] {
            let said = board(none).unwrap_err();
            assert!(said.contains("no kernel image"), "{said}");
        }
        let said = format!("{:#}", machine_for(dir.path()).unwrap_err());
        assert!(
            said.contains("a folder") && said.contains("--kdir"),
            "{said}"
        );
        let said = format!("{:#}", machine_for(&dir.path().join("none")).unwrap_err());
        assert!(said.contains("No such file"), "{said}");
    }

    #[test]
    fn versions_are_read() {
        assert_eq!(
            parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)"),
            Some((10, 0))
        );
        assert_eq!(parse_version("QEMU emulator version 7.2.15"), Some((7, 2)));
        assert_eq!(parse_version("hello"), None);
    }

    #[test]
    fn reconnecting_is_spelt_as_the_version_wants_it() {
        for (version, option) in [
            ((7, 2), "reconnect=1"),
            ((9, 1), "reconnect=1"),
            ((9, 2), "reconnect-ms=100"),
            ((10, 0), "reconnect-ms=100"),
        ] {
            let program = PathBuf::from("qemu");
            assert_eq!(Qemu { program, version }.reconnect(), option);
        }
    }

    #[test]
    fn a_missing_qemu_is_one_clear_sentence() {
        let error = Qemu::find(Some(Path::new("/nonexistent/qemu"))).unwrap_err();
        let text = format!("{error}");
        assert!(
            text.contains("/nonexistent/qemu") && text.contains("--qemu"),
            "{text}"
        );
    }
}
