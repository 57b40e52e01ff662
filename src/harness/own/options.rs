// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options of our fragment that a tree did not take: what each is for, and whether anything runs without it.

use std::fs;
use std::path::Path;

use crate::harness::kbuild::missing_options;

/// What an option is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// Without it the guest does not boot, or its program cannot run.
    Vital,
    /// Without it some tests are SKIP, or see less.
    Tests,
    /// It spares time, or switches a check of the kernel's own on.
    Rest,
}

use Weight::{Tests, Vital};

/// The options that matter, and what for. Of all others the fragment's heading speaks.
#[rustfmt::skip]
const KNOWN: &[(&str, Weight, &str)] = &[
    ("CONFIG_64BIT", Vital, "the guest program is a 64-bit one"),
    ("CONFIG_HYPERVISOR_GUEST", Vital, "PVH needs it"),
    ("CONFIG_PVH", Vital, "QEMU boots the vmlinux through its PVH note"),
    ("CONFIG_PRINTK", Vital, "the guest's results are records of the kernel's log"),
    ("CONFIG_TTY", Vital, "the console, on which the guest tells its results"),
    ("CONFIG_SERIAL_8250", Vital, "the console, on which the guest tells its results"),
    ("CONFIG_SERIAL_8250_CONSOLE", Vital, "the console, on which the guest tells its results"),
    ("CONFIG_DEVPORT", Vital, "the guest ends QEMU with a status through /dev/port"),
    ("CONFIG_FUTEX", Vital, "threads of the guest program"),
    ("CONFIG_EPOLL", Tests, "waiting in the guest program"),
    ("CONFIG_EVENTFD", Tests, "waiting in the guest program"),
    ("CONFIG_POSIX_TIMERS", Vital, "clocks of the guest program"),
    ("CONFIG_BINFMT_ELF", Vital, "the guest program is an ELF file"),
    ("CONFIG_BLK_DEV_INITRD", Vital, "the guest program comes in an initramfs"),
    ("CONFIG_DEVTMPFS", Vital, "the guest program finds its disks in /dev"),
    ("CONFIG_PROC_FS", Vital, "the guest program reads its parameters in /proc/cmdline"),
    ("CONFIG_SYSFS", Vital, "the guest program finds its disks by their serials in /sys"),
    ("CONFIG_TMPFS", Vital, "the guest program's /tmp"),
    ("CONFIG_BLOCK", Vital, "disks"),
    ("CONFIG_BLK_DEV", Vital, "virtio-blk needs it"),
    ("CONFIG_VIRTIO_MENU", Vital, "virtio-blk needs it"),
    ("CONFIG_VIRTIO_BLK", Vital, "the disks: the one under test, and the one for marks"),
    ("CONFIG_VIRTIO_MMIO", Vital, "the disks on the board microvm"),
    ("CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES", Vital, "QEMU's microvm names the disks on the kernel command line"),
    ("CONFIG_XFS_FS", Vital, "the file system under test"),
    ("CONFIG_AIO", Tests, "asynchronous calls, and the probe whether the kernel keeps the order of requests"),
    ("CONFIG_IO_URING", Tests, "asynchronous calls by io_uring"),
    ("CONFIG_USERFAULTFD", Tests, "stops a call in the middle of its buffer"),
    ("CONFIG_CACHESTAT_SYSCALL", Tests, "tells how many pages are dirty or in writeback"),
    ("CONFIG_EXT4_FS", Tests, "a file system without the flag, for `unsupported`"),
    ("CONFIG_XFS_QUOTA", Tests, "the test `quota`"),
    ("CONFIG_XFS_RT", Tests, "files on the realtime device, for `--fs xfs-rt`"),
    ("CONFIG_SWAP", Tests, "the row of swap files of `errnos`"),
    ("CONFIG_BLK_DEV_LOOP", Tests, "mounts the ext4 image of `unsupported`"),
    ("CONFIG_PROC_PAGE_MONITOR", Tests, "page states from /proc"),
    ("CONFIG_KALLSYMS", Tests, "names of the functions in which somebody waits"),
    ("CONFIG_FILE_LOCKING", Tests, "a system call of the guest program"),
    ("CONFIG_ADVISE_SYSCALLS", Tests, "takes single pages out of the page cache"),
    ("CONFIG_VIRTIO_PCI", Tests, "the disks on the board pc (--machine pc)"),
    ("CONFIG_PCI", Tests, "the board pc (--machine pc)"),
    ("CONFIG_TRANSPARENT_HUGEPAGE", Tests, "large folios"),
    ("CONFIG_DETECT_HUNG_TASK", Tests, "a task that hangs says so in the kernel's log"),
];

/// An option that did not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// As the fragment asks for it: `CONFIG_AIO=y`.
    pub asked: String,
    /// What it is for.
    pub purpose: String,
    /// What it is to us.
    pub weight: Weight,
    /// No Kconfig file of the tree knows it.
    pub unknown: bool,
}

impl Missing {
    /// In words.
    pub fn describe(&self) -> String {
        let unknown = if self.unknown {
            " (the tree has no such option)"
        } else {
            ""
        };
        let colon = if self.purpose.is_empty() { "" } else { ": " };
        format!("{}{unknown}{colon}{}", self.asked, self.purpose)
    }
}

/// Options of the fragment that the finished configuration of this tree does not have as asked.
pub fn missing(tree: &Path, config: &str, fragment: &str) -> Vec<Missing> {
    let asked = missing_options(config, fragment);
    let names: Vec<&str> = asked.iter().map(|a| name(a)).collect();
    let defined = defined(tree, &names);
    asked
        .iter()
        .map(|asked| {
            let of_ours = KNOWN.iter().find(|k| k.0 == name(asked) && !off(asked));
            Missing {
                purpose: match of_ours {
                    Some((_, _, purpose)) => (*purpose).to_owned(),
                    None => heading(fragment, asked),
                },
                weight: of_ours.map_or(Weight::Rest, |k| k.1),
                unknown: !defined.contains(&name(asked).to_owned()),
                asked: asked.clone(),
            }
        })
        .collect()
}

/// Whether the fragment asks for an option to be off.
fn off(asked: &str) -> bool {
    asked.starts_with('#')
}

/// `CONFIG_X` of a fragment's line.
fn name(asked: &str) -> &str {
    let asked = asked.trim_start_matches("# ");
    asked.split(['=', ' ']).next().unwrap_or(asked)
}

/// The heading (`# --- ...`) of the options among which this one stands.
fn heading(fragment: &str, asked: &str) -> String {
    let mut heading = String::new();
    let mut in_heading = false;
    for line in fragment.lines().map(str::trim) {
        if line == asked {
            return heading;
        }
        let words = line.strip_prefix('#').map_or("", str::trim);
        if let Some(title) = words.strip_prefix("---") {
            heading = title.trim().to_owned();
            in_heading = true;
        } else if in_heading && !words.is_empty() && !words.ends_with(" is not set") {
            heading = format!("{heading} {words}");
        } else {
            in_heading = false;
        }
    }
    String::new()
}

/// Which of these options the tree's Kconfig files define. Nothing is looked for where nothing is missing.
fn defined(tree: &Path, names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![tree.to_path_buf()];
    while let (Some(dir), true) = (open.pop(), found.len() < names.len()) {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(kind) = entry.file_type() else {
                continue;
            };
            let file = entry.file_name();
            let file = file.to_string_lossy();
            if kind.is_dir() && !file.starts_with('.') {
                open.push(entry.path());
            } else if kind.is_file() && file.starts_with("Kconfig") {
                let text = fs::read(entry.path()).unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let words = text.lines().filter_map(|line| {
                    let mut words = line.split_whitespace();
                    let defines = ["config", "menuconfig"].contains(&words.next()?);
                    defines.then(|| words.next())?
                });
                for word in words {
                    let word = format!("CONFIG_{word}");
                    if names.contains(&word.as_str()) && !found.contains(&word) {
                        found.push(word);
                    }
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::paths;

    const FRAGMENT: &str = "# a file\n#\n# of options\n\n# --- The disk: virtio\n#     over MMIO.\nCONFIG_BLOCK=y\n\
        # A loop device.\nCONFIG_LOOP=y\n# CONFIG_OFF is not set\n\n# --- Rest.\nCONFIG_AIO=y\n";

    #[test]
    fn a_missing_option_is_named_with_what_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("block")).unwrap();
        fs::write(
            dir.path().join("block/Kconfig.loop"),
            "menuconfig LOOP\n\tbool \"loop\"\nconfig OFF\n",
        )
        .unwrap();
        let config = "CONFIG_OFF=y\n";
        let told: Vec<String> = missing(dir.path(), config, FRAGMENT)
            .iter()
            .map(|m| format!("{:?} {}", m.weight, m.describe()))
            .collect();
        assert_eq!(
            told,
            [
                "Vital CONFIG_BLOCK=y (the tree has no such option): disks",
                "Rest CONFIG_LOOP=y: The disk: virtio over MMIO.",
                "Rest # CONFIG_OFF is not set: The disk: virtio over MMIO.",
                "Tests CONFIG_AIO=y (the tree has no such option): asynchronous calls, and the probe \
                 whether the kernel keeps the order of requests",
            ]
        );
        let all = "CONFIG_BLOCK=y\nCONFIG_LOOP=y\nCONFIG_AIO=y\n";
        assert_eq!(missing(dir.path(), all, FRAGMENT), []);
        // The guest has no modules.
        let module = all.replace("LOOP=y", "LOOP=m");
        assert_eq!(missing(dir.path(), &module, FRAGMENT).len(), 1);
    }

    #[test]
    fn what_matters_is_asked_for_and_each_option_has_a_purpose() {
        let path = paths::root().unwrap().join("kernel-config/wtblk.config");
        let fragment = fs::read_to_string(path).unwrap();
        for (known, ..) in KNOWN {
            let line = format!("{known}=y");
            assert!(fragment.lines().any(|l| l == line), "{known}");
        }
        let none = missing_options("", &fragment);
        assert!(none.len() > 80, "{}", none.len());
        for asked in none {
            assert!(!heading(&fragment, &asked).is_empty(), "{asked}");
        }
        let pages = heading(&fragment, "CONFIG_PROC_PAGE_MONITOR=y");
        assert!(pages.starts_with("Pseudo file systems: "), "{pages}");
        assert!(pages.ends_with("of the block layer."), "{pages}");
    }
}
