// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls that only the tests of odd files, limits and mounts need.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use super::{check, ret};

/// FS_IOC_GETFLAGS and FS_IOC_SETFLAGS, `_IOR('f', 1, long)` and `_IOW('f', 2, long)`.
const FS_IOC_GETFLAGS: libc::c_ulong = 0x8008_6601;
const FS_IOC_SETFLAGS: libc::c_ulong = 0x4008_6602;

/// `preadv2(2)` of one buffer.
pub fn preadv2(file: &File, bytes: &mut [u8], off: u64, flags: u32) -> i64 {
    let iov = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: one part, which lives through the call and is borrowed to be written to.
    ret(unsafe {
        libc::syscall(
            libc::SYS_preadv2,
            file.as_raw_fd(),
            &raw const iov,
            1 as libc::c_long,
            off,
            0 as libc::c_long,
            libc::c_ulong::from(flags),
        )
    })
}

/// Files may grow up to here (RLIMIT_FSIZE of this process); `None`: without a limit. Who goes
/// beyond gets an error and no signal.
pub fn limit_file_size(bytes: Option<u64>) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a struct rlimit that lives through the call.
    check(i64::from(unsafe {
        libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit)
    }))?;
    limit.rlim_cur = bytes.unwrap_or(limit.rlim_max);
    // SAFETY: SIG_IGN is no function of ours; the struct lives through the call.
    check(i64::from(unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit)
    }))
    .map(drop)
}

/// Sets these `FS_*_FL` of the file, or takes them away.
pub fn file_flags(file: &File, flags: libc::c_int, on: bool) -> io::Result<()> {
    // The kernel takes and gives an int, whatever the ioctl's number says.
    let mut now: libc::c_int = 0;
    // SAFETY: an int that lives through the call.
    check(i64::from(unsafe {
        libc::ioctl(file.as_raw_fd(), FS_IOC_GETFLAGS, &raw mut now)
    }))?;
    let then = if on { now | flags } else { now & !flags };
    // SAFETY: an int that lives through the call.
    check(i64::from(unsafe {
        libc::ioctl(file.as_raw_fd(), FS_IOC_SETFLAGS, &raw const then)
    }))
    .map(drop)
}

/// A memfd; `sealed` against writes.
pub fn memfd(sealed: bool) -> io::Result<File> {
    // SAFETY: a NUL-terminated name; the descriptor that comes back is ours.
    let fd = check(i64::from(unsafe {
        libc::memfd_create(c"wtblk".as_ptr(), libc::MFD_ALLOW_SEALING)
    }))?;
    // SAFETY: new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd as RawFd) };
    if sealed {
        // SAFETY: plain numbers.
        check(i64::from(unsafe {
            libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE)
        }))?;
    }
    Ok(file)
}

/// `swapon(2)`.
pub fn swapon(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(i64::from(unsafe { libc::swapon(path.as_ptr(), 0) })).map(drop)
}

/// `swapoff(2)`.
pub fn swapoff(path: &str) -> io::Result<()> {
    let path = CString::new(path)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(i64::from(unsafe { libc::swapoff(path.as_ptr()) })).map(drop)
}

/// `umount2(2)` with `MNT_DETACH`: the mount is out of sight at once, and gone when nobody uses it.
pub fn detach(target: &str) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(i64::from(unsafe {
        libc::umount2(target.as_ptr(), libc::MNT_DETACH)
    }))
    .map(drop)
}

/// Remounts read-only.
pub fn remount_read_only(target: &str) -> io::Result<()> {
    remount(target, libc::MS_RDONLY)
}

/// Remounts for reading and writing.
pub fn remount_read_write(target: &str) -> io::Result<()> {
    remount(target, 0)
}

fn remount(target: &str, flags: libc::c_ulong) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: a NUL-terminated string that outlives the call; a remount takes no source, kind or data.
    check(i64::from(unsafe {
        libc::mount(
            std::ptr::null(),
            target.as_ptr(),
            std::ptr::null(),
            libc::MS_REMOUNT | flags,
            std::ptr::null(),
        )
    }))
    .map(drop)
}

/// FIDEDUPERANGE, `_IOWR(0x94, 54, struct file_dedupe_range)`.
const FIDEDUPERANGE: libc::c_ulong = 0xc018_9436;

/// `struct file_dedupe_range` with one `struct file_dedupe_range_info`.
#[repr(C)]
struct Dedupe {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved1: u16,
    reserved2: u32,
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved: u32,
}

/// FIDEDUPERANGE: equal blocks at the same place of both files become one; how many bytes.
pub fn dedupe_range(from: &File, to: &File, off: u64, len: u64) -> io::Result<u64> {
    let mut arg = Dedupe {
        src_offset: off,
        src_length: len,
        dest_count: 1,
        reserved1: 0,
        reserved2: 0,
        dest_fd: i64::from(to.as_raw_fd()),
        dest_offset: off,
        bytes_deduped: 0,
        status: 0,
        reserved: 0,
    };
    // SAFETY: the structure with room for the one destination that it counts lives through the call.
    check(i64::from(unsafe {
        libc::ioctl(from.as_raw_fd(), FIDEDUPERANGE, &raw mut arg)
    }))?;
    match arg.status {
        0 => Ok(arg.bytes_deduped),
        // FILE_DEDUPE_RANGE_DIFFERS.
        1 => Err(io::Error::other("the blocks differ")),
        errno => Err(io::Error::from_raw_os_error(-errno)),
    }
}

/// Sends a signal to a thread of this process; a handler that does nothing is set before.
pub fn interrupt(tid: i32) -> io::Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler does nothing, so it may run at any time; without SA_RESTART a call
    // that can be interrupted says so. The struct is zeroed plain data.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        check(i64::from(libc::sigaction(
            libc::SIGUSR1,
            &raw const action,
            std::ptr::null_mut(),
        )))?;
    }
    // SAFETY: plain numbers.
    check(unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, libc::SIGUSR1) }).map(drop)
}
