// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An image has one writer, or readers alone. Two locks say so, both as long as
//! the open file that has them:
//!
//! - flock(2), for other devices of ours: `/proc/locks` tells who has it;
//! - bytes of the file as QEMU and its tools lock them, by open file description
//!   locks (fcntl(2)), which name nobody.

use std::fs::{File, TryLockError};
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, fcntl};

use crate::holder::{at, holder};

/// Of `enum` in QEMU's block/file-posix.c: a read lock at this byte and n says "I do n", where 0
/// is to read, 1 to write, 3 to change the length ...
const DOES: i64 = 100;
/// ... and one at this byte and n "nobody else may".
const FORBIDS: i64 = 200;
const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Takes the image, or tells who has it.
pub(super) fn lock(file: &File, path: &Path, read_only: bool) -> Result<()> {
    let shown = path.display();
    let took = match read_only {
        true => file.try_lock_shared(),
        false => file.try_lock(),
    };
    match took {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!(
            "image {shown} is in use by {}",
            holder(file, "this process (as another disk)")
        ),
        Err(TryLockError::Error(error)) => {
            // A file system without locks.
            tracing::warn!("image {shown} cannot be locked ({error}): nobody else is kept from it");
            return Ok(());
        }
    }
    let does: &[i64] = if read_only { &[READ] } else { &[READ, WRITE] };
    // First said, then looked: of two that come at once at least one sees the other.
    let said = does.iter().map(|n| DOES + n);
    for byte in said.chain([FORBIDS + WRITE, FORBIDS + RESIZE]) {
        if let Err(error) = fcntl(file, FcntlArg::F_OFD_SETLK(&at(byte, libc::F_RDLCK))) {
            tracing::warn!("image {shown} cannot be locked ({error}): QEMU is not kept from it");
            return Ok(());
        }
    }
    let other = does.iter().map(|n| FORBIDS + n);
    for byte in other.chain([DOES + WRITE, DOES + RESIZE]) {
        let mut found = at(byte, libc::F_WRLCK);
        let looked = fcntl(file, FcntlArg::F_OFD_GETLK(&mut found));
        looked.with_context(|| format!("cannot see the locks of image {shown}"))?;
        if i32::from(found.l_type) != libc::F_UNLCK {
            bail!("image {shown} is in use by QEMU or one of its tools (lsof tells which)");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &Path) -> File {
        let options = &mut fs::OpenOptions::new();
        options.read(true).write(true).open(path).unwrap()
    }

    fn refused(path: &Path, read_only: bool) -> String {
        let result = lock(&open(path), path, read_only);
        result.err().map(|e| format!("{e:#}")).unwrap_or_default()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let writer = open(path);
        lock(&writer, path, false).unwrap();
        for read_only in [false, true] {
            let why = refused(path, read_only);
            assert!(why.contains("this process (as another disk)"), "{why}");
        }
        // As long as the open file, not as the first of its fds.
        let more = writer.try_clone().unwrap();
        drop(writer);
        assert!(refused(path, false).contains("in use"));
        drop(more);
        let readers = [open(path), open(path)];
        for reader in &readers {
            lock(reader, path, true).unwrap();
        }
        assert!(refused(path, false).contains("in use"));
        drop(readers);
        assert_eq!(refused(path, false), "");
    }

    #[test]
    fn the_bytes_are_those_that_qemu_looks_at() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path();
        let qemu = open(path);
        let set = |byte, kind| fcntl(&qemu, FcntlArg::F_OFD_SETLK(&at(byte, kind))).unwrap();
        // Who reads and lets others write is in nobody's way.
        set(DOES + READ, libc::F_RDLCK);
        assert_eq!(refused(path, false), "");
        // Who forbids writing is in a writer's.
        set(FORBIDS + WRITE, libc::F_RDLCK);
        assert!(refused(path, false).contains("QEMU"));
        assert_eq!(refused(path, true), "");
        set(FORBIDS + WRITE, libc::F_UNLCK);
        // Who writes is in everybody's.
        set(DOES + WRITE, libc::F_RDLCK);
        assert!(refused(path, false).contains("QEMU"));
        assert!(refused(path, true).contains("QEMU"));
        set(DOES + WRITE, libc::F_UNLCK);
        let ours = open(path);
        lock(&ours, path, false).unwrap();
        // And it sees us: that we write, and forbid it.
        for byte in [DOES + WRITE, FORBIDS + WRITE, FORBIDS + RESIZE] {
            let mut found = at(byte, libc::F_WRLCK);
            fcntl(&qemu, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
            assert_eq!(i32::from(found.l_type), libc::F_RDLCK);
        }
        // A tool that reads while everybody may write is not kept from it.
        let mut found = at(FORBIDS + READ, libc::F_WRLCK);
        fcntl(&qemu, FcntlArg::F_OFD_GETLK(&mut found)).unwrap();
        assert_eq!(i32::from(found.l_type), libc::F_UNLCK);
    }
}
