// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! XFS's quota: whose a file is, how much that one has, and how much they may have
//! (`include/uapi/linux/dqblk_xfs.h`).

use std::ffi::CString;
use std::fs::File;
use std::io;

use super::check;
use super::fsxattr::FsXattr;

/// Q_XGETQUOTA and Q_XSETQLIM, `XQM_CMD(3)` and `XQM_CMD(4)`.
const Q_XGETQUOTA: libc::c_int = 0x5803;
const Q_XSETQLIM: libc::c_int = 0x5804;
/// FS_DQUOT_VERSION.
const VERSION: i8 = 1;
/// FS_DQ_BHARD: the hard limit of blocks is set.
const BHARD: u16 = 1 << 3;
/// XFS counts in 512 bytes here.
const UNIT: u64 = 512;

/// Who has a quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The user of this id.
    User(u32),
    /// The project of this id.
    Project(u32),
}

impl Who {
    /// USRQUOTA or PRJQUOTA, and the id.
    fn numbers(self) -> (libc::c_int, u32) {
        match self {
            Who::User(id) => (0, id),
            Who::Project(id) => (2, id),
        }
    }
}

/// `struct fs_disk_quota`.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    fieldmask: u16,
    id: u32,
    blk_hardlimit: u64,
    blk_softlimit: u64,
    ino_hardlimit: u64,
    ino_softlimit: u64,
    bcount: u64,
    icount: u64,
    /// Timers, warnings and the realtime device's: not looked at.
    rest: [u64; 7],
}

/// Bytes that count for `who` on this disk.
pub fn used(disk: &str, who: Who) -> io::Result<u64> {
    let mut quota = DiskQuota::default();
    ask(disk, who, Q_XGETQUOTA, &mut quota)?;
    Ok(quota.bcount.saturating_mul(UNIT))
}

/// Limits `who` to so many bytes; 0: to none.
pub fn limit(disk: &str, who: Who, bytes: u64) -> io::Result<()> {
    let mut quota = DiskQuota {
        version: VERSION,
        fieldmask: BHARD,
        id: who.numbers().1,
        blk_hardlimit: bytes / UNIT,
        ..DiskQuota::default()
    };
    ask(disk, who, Q_XSETQLIM, &mut quota)
}

/// `quotactl(2)`.
fn ask(disk: &str, who: Who, what: libc::c_int, quota: &mut DiskQuota) -> io::Result<()> {
    let disk = CString::new(disk)?;
    let (kind, id) = who.numbers();
    // QCMD of the two; the id's bits are what counts, whatever its sign.
    let (command, id) = (what << 8 | kind, id.cast_signed());
    // SAFETY: a NUL-terminated string and a struct fs_disk_quota, which live through the call.
    check(i64::from(unsafe {
        libc::quotactl(command, disk.as_ptr(), id, (&raw mut *quota).cast())
    }))
    .map(drop)
}

/// Gives the file to a user or a project.
pub fn give(file: &File, who: Who) -> io::Result<()> {
    match who {
        Who::User(id) => std::os::unix::fs::fchown(file, Some(id), None),
        Who::Project(id) => {
            let mut attr = FsXattr::of(file)?;
            attr.projid = id;
            attr.put(file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_of_the_kernels() {
        assert_eq!(size_of::<DiskQuota>(), 112);
    }
}
