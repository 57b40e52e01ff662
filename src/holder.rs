// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who has a lock of a file: flock(2) names nobody, but `/proc/locks` does.

use std::fs::{self, File};
use std::os::fd::AsRawFd;

use nix::fcntl::{FcntlArg, fcntl};

/// Far from every byte that anybody locks: a lock that says nothing.
const NOTHING: i64 = 1 << 62;

/// A lock of one byte, for fcntl(2).
pub(crate) fn at(byte: i64, kind: i32) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Who has the flock(2) that we could not have; `ours` where it is this process.
pub(crate) fn holder(file: &File, ours: &str) -> String {
    match holder_of(file) {
        Some(pid) if pid == std::process::id() => ours.to_owned(),
        Some(pid) => {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim_end())
        }
        None => "another process".to_owned(),
    }
}

fn holder_of(file: &File) -> Option<u32> {
    // What the kernel calls the file there is not on every file system what stat(2) does (btrfs,
    // overlayfs): a lock of our own tells.
    fcntl(file, FcntlArg::F_OFD_SETLK(&at(NOTHING, libc::F_RDLCK))).ok()?;
    let ours = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let ours = ours.lines().filter_map(|line| line.strip_prefix("lock:"));
    let name = ours.filter_map(words).find(|w| w.kind == "OFDLCK")?.file;
    let all = fs::read_to_string("/proc/locks").ok()?;
    let mut held = all.lines().filter_map(words);
    let flock = held.find(|w| w.kind == "FLOCK" && w.file == name)?;
    flock.pid.parse().ok()
}

/// A line of `/proc/locks`; one that waits for a lock is none.
struct Words<'a> {
    kind: &'a str,
    pid: &'a str,
    file: &'a str,
}

fn words(line: &str) -> Option<Words<'_>> {
    // 1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF
    let mut words = line.split_ascii_whitespace().skip(1);
    let kind = words.next().filter(|&kind| kind != "->")?;
    let pid = words.nth(2)?;
    Some(Words {
        kind,
        pid,
        file: words.next()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_proc_locks() {
        let line = "1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF";
        let found = words(line).unwrap();
        assert_eq!(
            (found.kind, found.pid, found.file),
            ("FLOCK", "359", "00:13:11691")
        );
        assert!(words("1: -> FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF").is_none());
        assert!(words("1: FLOCK").is_none());
        assert!(words("").is_none());
    }
}
