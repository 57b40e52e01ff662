// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest beside a `wtblk serve` that outlives it: QEMU, its console, its monitor.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use wtblk::harness::accel::Accel;
use wtblk::harness::qemu::{GUEST_MEMORY, Machine, Qemu, Vm};

use super::{built, inherited, lines};

/// Between two lines of the guest that matter: a boot on a loaded machine.
pub const LIMIT: Duration = Duration::from_secs(90);

/// How the guest comes to its disks.
pub enum Way {
    /// By these connections, which end with it: the disk under test, the mark disk, one more.
    Once(OwnedFd, OwnedFd, Option<OwnedFd>),
    /// By the sockets `data` and `mark` of this folder, again and again: the device may be killed.
    Again(PathBuf),
}

/// Ended when it is dropped.
pub struct Guest {
    qemu: Child,
    pub console: Receiver<String>,
    qmp: PathBuf,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

impl Guest {
    /// Boots; `words` go to the kernel's command line. The monitor's socket is made in `dir`.
    pub fn boot(dir: &Path, way: Way, words: &[String], queues: u16) -> Guest {
        let (disks, third) = match &way {
            Way::Once(data, mark, third) => (Some((data, mark)), third.as_ref()),
            Way::Again(_) => (None, None),
        };
        let vm = Vm {
            machine: Machine::Microvm,
            accel: Accel::Tcg,
            kernel: &built("build"),
            initramfs: &built("guest"),
            words,
            disks,
            third,
            queues,
            queue_size: None,
            memory: GUEST_MEMORY,
            name: dir.display().to_string(),
        };
        let qemu = Qemu::find(None).unwrap();
        let mut command = vm.command(&qemu);
        // The last one counts: a reset must reset here, not end QEMU.
        command.args(["-action", "reboot=reset"]);
        let qmp = dir.join("qmp");
        let _ = std::fs::remove_file(&qmp);
        command
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", qmp.display()));
        match &way {
            Way::Once(data, mark, third) => {
                for fd in [Some(data), Some(mark), third.as_ref()]
                    .into_iter()
                    .flatten()
                {
                    inherited(fd);
                }
            }
            Way::Again(sockets) => {
                for (name, queues) in [("data", queues), ("mark", 1)] {
                    let chardev = format!(
                        "socket,id={name},path={},{}",
                        sockets.join(name).display(),
                        qemu.reconnect()
                    );
                    command.args(["-chardev", &chardev, "-device"]);
                    command.arg(format!("vhost-user-blk,chardev={name},num-queues={queues}"));
                }
            }
        }
        let mut qemu = command.stdout(Stdio::piped()).spawn().unwrap();
        let console = lines(qemu.stdout.take().unwrap());
        Guest { qemu, console, qmp }
    }

    /// `system_reset` by the monitor.
    pub fn reset(&self) {
        let mut stream = UnixStream::connect(&self.qmp).unwrap();
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
}
