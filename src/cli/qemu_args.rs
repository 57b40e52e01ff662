// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The QEMU arguments that go with a device: what `--print-qemu-args` prints.

use std::path::{Path, PathBuf};

/// The disks to attach.
pub(super) struct Disks<'a> {
    /// Absolute path of the socket of the disk under test.
    pub socket: &'a Path,
    /// That of the mark disk.
    pub mark_socket: Option<&'a Path>,
    /// Queues of the disk under test.
    pub queues: u16,
    /// Descriptors of each, where that was said.
    pub queue_size: Option<u16>,
    /// Further disks: name, socket, queues.
    pub more: &'a [(String, PathBuf, u16)],
    /// QEMU's option for connecting again; `None` where there is no QEMU to be asked for its version.
    pub reconnect: Option<&'a str>,
}

/// Guest memory in the printed lines; the reader puts in what is wanted.
const MEMORY: &str = "512M";

/// Both machines, as text to be copied.
pub(super) fn text(disks: &Disks<'_>) -> String {
    // Linux uses no more queues than it has CPUs.
    let cpus = disks.queues;
    let memory = format!("-object memory-backend-memfd,id=mem,size={MEMORY},share=on");
    let pc = [
        format!("-M pc,memory-backend=mem -smp {cpus} -m {MEMORY}"),
        memory.clone(),
        devices(disks, "vhost-user-blk-pci"),
    ];
    let microvm = [
        format!("-M microvm,acpi=off,memory-backend=mem -smp {cpus} -m {MEMORY}"),
        memory,
        "-global virtio-mmio.force-legacy=false".to_owned(),
        devices(disks, "vhost-user-blk"),
    ];
    format!(
        "# pc\n{}\n# microvm\n{}\n",
        pc.join(" \\\n"),
        microvm.join(" \\\n")
    )
}

fn devices(disks: &Disks<'_>, driver: &str) -> String {
    let one = |id: &str, socket: &Path, queues: u16, queue_size: Option<u16>| {
        // QEMU's option syntax doubles a comma; the quotes are for the shell.
        let path = socket.display().to_string().replace(',', ",,");
        let again = disks.reconnect.map(|option| format!(",{option}"));
        let again = again.unwrap_or_default();
        let chardev = quote(&format!("socket,id={id},path={path}{again}"));
        // QEMU's own default is a queue per CPU: more than the device may have.
        let size = queue_size.map(|n| format!(",queue-size={n}"));
        let size = size.unwrap_or_default();
        format!("-chardev {chardev} \\\n-device {driver},chardev={id},num-queues={queues}{size}")
    };
    let mut parts = vec![one(
        "wtblk-data",
        disks.socket,
        disks.queues,
        disks.queue_size,
    )];
    parts.extend(disks.mark_socket.map(|s| one("wtblk-mark", s, 1, None)));
    for (name, socket, queues) in disks.more {
        parts.push(one(&format!("wtblk-{name}"), socket, *queues, None));
    }
    parts.join(" \\\n")
}

/// For a POSIX shell, quoted only where it must be.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/=,._-+:@".contains(c);
    if word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_a_front_end_needs_is_there() {
        let text = text(&Disks {
            socket: Path::new("/tmp/a,b c"),
            mark_socket: Some(Path::new("/tmp/m")),
            queues: 4,
            queue_size: Some(256),
            more: &[("log".into(), "/tmp/l".into(), 2)],
            reconnect: Some("reconnect-ms=100"),
        });
        assert_eq!(text.matches("share=on").count(), 2);
        assert!(text.contains("'socket,id=wtblk-data,path=/tmp/a,,b c,reconnect-ms=100'"));
        assert!(text.contains("vhost-user-blk-pci,chardev=wtblk-data,num-queues=4,queue-size=256"));
        assert!(text.contains("vhost-user-blk,chardev=wtblk-mark,num-queues=1"));
        assert!(text.contains("vhost-user-blk,chardev=wtblk-log,num-queues=2"));
        assert!(text.contains("force-legacy=false"));
        assert_eq!(text.matches("-smp 4").count(), 2);
    }
}
