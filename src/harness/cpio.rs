// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An initramfs archive: the "newc" format of the kernel's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`, uncompressed
//! (unpacking costs more than loading under emulation).

/// A file of the archive.
pub struct Entry<'a> {
    /// Path without a leading slash.
    pub name: &'a str,
    /// Mode, type bits included.
    pub mode: u32,
    /// Contents.
    pub data: &'a [u8],
}

/// The archive of these files, in this order.
pub fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    for (inode, entry) in (1u32..).zip(entries) {
        member(&mut out, inode, entry);
    }
    member(
        &mut out,
        0,
        &Entry {
            name: "TRAILER!!!",
            mode: 0,
            data: &[],
        },
    );
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// The contents of `name` in an archive of [`archive`]'s kind.
pub fn find<'a>(archive: &'a [u8], name: &str) -> Option<&'a [u8]> {
    let mut at = 0usize;
    loop {
        let header = archive.get(at..at.checked_add(110)?)?;
        if &header[..6] != b"070701" {
            return None;
        }
        let field = |i: usize| {
            let digits = std::str::from_utf8(header.get(6 + i * 8..14 + i * 8)?).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (size, name_len) = (field(6)?, field(11)?);
        let name_at = at + 110;
        let found = archive
            .get(name_at..name_at.checked_add(name_len)?)?
            .strip_suffix(&[0])?;
        let data_at = name_at.checked_add(name_len)?.next_multiple_of(4);
        let data = archive.get(data_at..data_at.checked_add(size)?)?;
        if found == name.as_bytes() {
            return Some(data);
        }
        if found == b"TRAILER!!!" {
            return None;
        }
        at = data_at.checked_add(size)?.next_multiple_of(4);
    }
}

fn member(out: &mut Vec<u8>, inode: u32, entry: &Entry<'_>) {
    let fields = [
        inode,
        entry.mode,
        0, // uid
        0, // gid
        1, // links
        0, // mtime: the same archive for the same contents
        entry.data.len() as u32,
        0,
        0,
        0,
        0, // device numbers
        entry.name.len() as u32 + 1,
        0, // checksum: none in this format
    ];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    out.extend_from_slice(entry.name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(entry.data);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    #[test]
    fn cpio_unpacks_what_we_pack() {
        let files = [
            Entry {
                name: "init",
                mode: 0o100755,
                data: b"hello",
            },
            Entry {
                name: "a-longer-name",
                mode: 0o100644,
                data: &[7; 1000],
            },
        ];
        let packed = archive(&files);
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new("cpio")
            .args(["-id", "--quiet"])
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("cpio (ci/setup installs it)");
        child.stdin.take().unwrap().write_all(&packed).unwrap();
        assert!(child.wait().unwrap().success());
        for file in &files {
            assert_eq!(
                std::fs::read(dir.path().join(file.name)).unwrap(),
                file.data
            );
            assert_eq!(find(&packed, file.name), Some(file.data));
        }
        assert_eq!(find(&packed, "nothing"), None);
        assert_eq!(find(&packed[..200], "a-longer-name"), None);
    }
}
