// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reading a file that somebody named: it may be anything, and must cost neither
//! all memory nor all time.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::plain;

/// Opens a file to read; whether it is one that can be read is still to be asked. A FIFO without
/// a writer would otherwise stop the open itself.
pub fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
}

/// Whether the name is one for what this process was given open: `< FILE`, `<(COMMAND)`.
pub fn is_given(path: &Path) -> bool {
    ["/dev/fd", "/proc/self/fd"]
        .iter()
        .any(|dir| path.starts_with(dir))
        || path == Path::new("/dev/stdin")
}

/// The text of a regular file of at most `limit` bytes; `what` names it in errors.
pub fn text(path: &Path, what: &str, limit: u64) -> Result<String> {
    let shown = plain::path(path);
    let file = open(path).with_context(|| format!("cannot read the {what} {shown}"))?;
    let meta = file
        .metadata()
        .with_context(|| format!("cannot read the {what} {shown}"))?;
    if !meta.is_file() {
        bail!("the {what} {shown} is no regular file");
    }
    if meta.len() > limit {
        bail!(
            "the {what} {shown} has {} bytes, at most {limit} are read",
            meta.len()
        );
    }
    let mut bytes = Vec::new();
    file.take(limit)
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read the {what} {shown}"))?;
    String::from_utf8(bytes).map_err(|e| {
        anyhow::anyhow!(
            "the {what} {shown} is no UTF-8 text: byte {}",
            e.utf8_error().valid_up_to()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_of_a_bounded_size_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let good = dir.path().join("good");
        std::fs::write(&good, "text").unwrap();
        assert_eq!(text(&good, "scenario", 4).unwrap(), "text");
        let said = |path: &Path, limit| text(path, "scenario", limit).unwrap_err().to_string();
        assert!(said(&good, 3).contains("4 bytes, at most 3"));
        assert!(said(Path::new("/dev/zero"), 10).contains("no regular file"));
        assert!(said(dir.path(), 10).contains("no regular file"));
        assert!(said(Path::new("/nonexistent"), 10).contains("/nonexistent"));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(said(&fifo, 10).contains("no regular file"));
        std::fs::write(&good, [b'a', 0xff]).unwrap();
        assert!(said(&good, 10).contains("UTF-8 text: byte 1"));
    }
}
