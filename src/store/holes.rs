// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What of a file was never written: what has no room in its file system.
//!
//! SEEK_HOLE would not do: it shows as a hole what was zeroed by
//! `FALLOC_FL_ZERO_RANGE`, and mkfs zeroes a log in that way. FIEMAP tells the
//! two apart, since a zeroed range has room (an unwritten extent). A file in
//! memory has neither FIEMAP nor ZERO_RANGE: there SEEK_HOLE is the truth.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};

/// `FS_IOC_FIEMAP` of linux/fs.h: `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// What the file has not yet given its file system is given now (linux/fiemap.h).
const FIEMAP_FLAG_SYNC: u32 = 1;
/// The file's last extent.
const FIEMAP_EXTENT_LAST: u32 = 1;
/// Extents asked for at once.
const BATCH: usize = 256;

/// `struct fiemap_extent` of linux/fiemap.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Extent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`, with room for extents.
#[repr(C)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extents: [Extent; BATCH],
}

/// Bytes that were never written, ascending, up to the file's length.
pub fn never_written(file: &File) -> io::Result<Vec<Range<u64>>> {
    let len = file.metadata()?.len();
    let used = match by_fiemap(file, len) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOTTY)) => {
            if fstatfs(file)?.filesystem_type() != TMPFS_MAGIC {
                let why = "its file system does not tell which parts of it were never written";
                return Err(io::Error::new(io::ErrorKind::Unsupported, why));
            }
            by_seeking(file, len)?
        }
        used => used?,
    };
    let mut holes = Vec::new();
    let mut at = 0;
    for extent in used {
        if at < extent.start {
            holes.push(at..extent.start.min(len));
        }
        at = at.max(extent.end);
    }
    if at < len {
        holes.push(at..len);
    }
    Ok(holes)
}

fn by_fiemap(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut used = Vec::new();
    let mut at = 0;
    while at < len {
        let mut map = Fiemap {
            start: at,
            length: len - at,
            flags: FIEMAP_FLAG_SYNC,
            mapped_extents: 0,
            extent_count: BATCH as u32,
            reserved: 0,
            extents: [Extent::default(); BATCH],
        };
        // SAFETY: the kernel writes at most `extent_count` extents into `map`, which has room
        // for that many and outlives the call.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut map) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let count = (map.mapped_extents as usize).min(BATCH);
        let Some(last) = map.extents[..count].last() else {
            break;
        };
        let next = last.logical.saturating_add(last.length);
        used.extend(
            map.extents[..count]
                .iter()
                .map(|e| e.logical..e.logical.saturating_add(e.length)),
        );
        if last.flags & FIEMAP_EXTENT_LAST != 0 || next <= at {
            break;
        }
        at = next;
    }
    Ok(used)
}

fn by_seeking(file: &File, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut used = Vec::new();
    let mut at = 0;
    while at < len {
        let start = match lseek(file, at as libc::off_t, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            start => start? as u64,
        };
        let end = lseek(file, start as libc::off_t, Whence::SeekHole)? as u64;
        used.push(start..end);
        at = end;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FallocateFlags, fallocate};
    use nix::sys::memfd::{MFdFlags, memfd_create};
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_was_written_or_zeroed_is_no_hole() {
        let memory = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        for file in [memory, tempfile::tempfile().unwrap()] {
            let len = 16 << 20;
            file.set_len(len).unwrap();
            let fresh = never_written(&file).unwrap();
            assert_eq!((fresh.len(), fresh[0].clone()), (1, 0..len));
            file.write_all_at(&[0; 4096], 1 << 20).unwrap();
            // More extents than are asked for at once.
            for n in 0..600 {
                file.write_all_at(&[7; 4096], (4 << 20) + n * 8192).unwrap();
            }
            let zero = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let zeroed = fallocate(&file, zero, 12 << 20, 1 << 20).is_ok();
            let holes = never_written(&file).unwrap();
            assert_eq!(holes[0], 0..1 << 20);
            assert_eq!(holes[1], (1 << 20) + 4096..4 << 20);
            assert_eq!(holes.len(), if zeroed { 603 } else { 602 });
            assert_eq!(holes.last().unwrap().end, len);
            if zeroed {
                assert_eq!(holes[601].end, 12 << 20);
                assert_eq!(holes[602], 13 << 20..len);
            }
        }
    }
}
