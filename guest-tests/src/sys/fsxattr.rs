// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a file is told to be: `struct fsxattr` of `include/uapi/linux/fs.h`.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use super::check;

/// FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR, `_IOR('X', 31, struct fsxattr)` and
/// `_IOW('X', 32, struct fsxattr)`.
const FS_IOC_FSGETXATTR: libc::c_ulong = 0x801c_581f;
const FS_IOC_FSSETXATTR: libc::c_ulong = 0x401c_5820;
/// FS_XFLAG_REALTIME.
const REALTIME: u32 = 1;

/// `struct fsxattr`.
#[repr(C)]
#[derive(Default)]
pub struct FsXattr {
    xflags: u32,
    extsize: u32,
    nextents: u32,
    /// The project that it counts for.
    pub projid: u32,
    cowextsize: u32,
    pad: [u8; 8],
}

impl FsXattr {
    /// That of the file.
    pub fn of(file: &File) -> io::Result<FsXattr> {
        let mut attr = FsXattr::default();
        // SAFETY: a struct fsxattr that lives through the call.
        check(i64::from(unsafe {
            libc::ioctl(file.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut attr)
        }))?;
        Ok(attr)
    }

    /// Makes it the file's.
    pub fn put(&self, file: &File) -> io::Result<()> {
        // SAFETY: a struct fsxattr that lives through the call, only read.
        check(i64::from(unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                FS_IOC_FSSETXATTR,
                std::ptr::from_ref(self),
            )
        }))
        .map(drop)
    }

    /// Whether its data lies on the realtime device.
    pub fn is_realtime(&self) -> bool {
        self.xflags & REALTIME != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_of_the_kernels() {
        assert_eq!(size_of::<FsXattr>(), 28);
    }
}
