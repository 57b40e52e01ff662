// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! System calls that std does not have. Every `unsafe` of the program is here
//! and in this module's children; what they give is safe to use.
//!
//! Results are "bytes or minus errno" where a mark carries them as such, an
//! `io::Result` elsewhere.

pub mod aio;
pub mod fsxattr;
pub mod guarded;
pub mod mapping;
pub mod odd;
pub mod page_flags;
mod pages;
pub mod quota;
pub mod uffd;
pub mod uring;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::time::Duration;

pub use pages::Pages;

/// `cachestat(2)`, not in libc for every target yet.
const SYS_CACHESTAT: libc::c_long = 451;
/// FS_IOC_FIEMAP, `_IOWR('f', 11, struct fiemap)`.
const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
/// FICLONERANGE, `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: libc::c_ulong = 0x4020_940d;
/// FIFREEZE and FITHAW, `_IOWR('X', 119, int)` and `_IOWR('X', 120, int)`.
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;
/// LOOP_CTL_GET_FREE, LOOP_SET_FD and LOOP_CLR_FD of `include/uapi/linux/loop.h`.
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_SET_FD: libc::c_ulong = 0x4c00;
const LOOP_CLR_FD: libc::c_ulong = 0x4c01;

/// The return value of a system call as "value or minus errno".
fn ret(r: libc::c_long) -> i64 {
    if r >= 0 {
        return r;
    }
    -i64::from(
        io::Error::last_os_error()
            .raw_os_error()
            .unwrap_or(libc::EIO),
    )
}

fn check(r: libc::c_long) -> io::Result<i64> {
    if r >= 0 {
        Ok(r)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The name of an errno that our tests meet, or its number.
pub fn errno_name(errno: i64) -> String {
    let name = match i32::try_from(errno).unwrap_or(0) {
        libc::EPERM => "EPERM",
        libc::ENOENT => "ENOENT",
        libc::EIO => "EIO",
        libc::EAGAIN => "EAGAIN",
        libc::ENOMEM => "ENOMEM",
        libc::EBADF => "EBADF",
        libc::EBUSY => "EBUSY",
        libc::EFBIG => "EFBIG",
        libc::EINTR => "EINTR",
        libc::EROFS => "EROFS",
        libc::ESPIPE => "ESPIPE",
        libc::ETXTBSY => "ETXTBSY",
        libc::EINVAL => "EINVAL",
        libc::EFAULT => "EFAULT",
        libc::ENOSPC => "ENOSPC",
        libc::ENOSYS => "ENOSYS",
        libc::EUCLEAN => "EUCLEAN",
        libc::EDQUOT => "EDQUOT",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ETIMEDOUT => "ETIMEDOUT",
        _ => return format!("errno {errno}"),
    };
    name.to_owned()
}

/// "n" or "-ERRNO", for people.
pub fn result_text(result: i64) -> String {
    if result < 0 {
        format!("-{}", errno_name(-result))
    } else {
        result.to_string()
    }
}

/// "0 or minus errno" of an operation without a count.
pub fn result_of(done: io::Result<()>) -> i64 {
    match done {
        Ok(()) => 0,
        Err(e) => -i64::from(e.raw_os_error().unwrap_or(libc::EIO)),
    }
}

/// `mount(2)` without options.
pub fn mount(source: &str, target: &str, kind: &str) -> io::Result<()> {
    mount_with(source, target, kind, "")
}

/// `mount(2)` with options of the file system, by commas.
pub fn mount_with(source: &str, target: &str, kind: &str, options: &str) -> io::Result<()> {
    let (source, target, kind, options) = (
        CString::new(source)?,
        CString::new(target)?,
        CString::new(kind)?,
        CString::new(options)?,
    );
    // SAFETY: four NUL-terminated strings that outlive the call.
    check(i64::from(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            kind.as_ptr(),
            0,
            options.as_ptr().cast(),
        )
    }))
    .map(drop)
}

/// `umount2(2)` without flags.
pub fn umount(target: &str) -> io::Result<()> {
    let target = CString::new(target)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    check(i64::from(unsafe { libc::umount2(target.as_ptr(), 0) })).map(drop)
}

/// `sync(2)`.
pub fn sync() {
    // SAFETY: takes nothing, returns nothing.
    unsafe { libc::sync() }
}

/// The calling thread's id.
pub fn gettid() -> i32 {
    // SAFETY: takes nothing, cannot fail.
    unsafe { libc::gettid() }
}

/// `ioprio_set(2)` for the calling thread.
pub fn ioprio_set(ioprio: u16) -> io::Result<()> {
    const WHO_PROCESS: libc::c_long = 1;
    // SAFETY: plain numbers; who = 0 is the calling thread.
    check(unsafe {
        libc::syscall(
            libc::SYS_ioprio_set,
            WHO_PROCESS,
            0 as libc::c_long,
            libc::c_long::from(ioprio),
        )
    })
    .map(drop)
}

/// `ioprio_get(2)` of the calling thread.
pub fn ioprio_get() -> io::Result<i64> {
    // SAFETY: plain numbers; who = 0 is the calling thread.
    check(unsafe { libc::syscall(libc::SYS_ioprio_get, 1 as libc::c_long, 0 as libc::c_long) })
}

/// `pwritev2(2)`, the bare system call: the C library's would emulate.
pub fn pwritev2(file: &File, parts: &[&[u8]], off: u64, flags: u32) -> i64 {
    let iov: Vec<libc::iovec> = parts
        .iter()
        .map(|p| libc::iovec {
            iov_base: p.as_ptr().cast_mut().cast(),
            iov_len: p.len(),
        })
        .collect();
    // SAFETY: the kernel only reads the slices, which live through the call.
    unsafe { pwritev2_raw(file, &iov, off, flags) }
}

/// `pwritev2(2)` of memory that is no Rust slice.
///
/// # Safety
/// Every part must be mapped, or cause a fault that somebody serves.
unsafe fn pwritev2_raw(file: &File, iov: &[libc::iovec], off: u64, flags: u32) -> i64 {
    // SAFETY: `iov` lives through the call; its parts are the caller's duty.
    // On 64-bit the high half of the position is not used.
    ret(unsafe {
        libc::syscall(
            libc::SYS_pwritev2,
            file.as_raw_fd(),
            iov.as_ptr(),
            iov.len(),
            off,
            0 as libc::c_long,
            libc::c_ulong::from(flags),
        )
    })
}

/// State of pages, from [`cachestat`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStat {
    /// Pages in the page cache.
    pub cached: u64,
    /// Pages that are dirty.
    pub dirty: u64,
    /// Pages in writeback.
    pub writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

#[cfg(test)]
impl CacheStat {
    /// So many dirty pages, and nothing else.
    pub fn of_dirty(dirty: u64) -> CacheStat {
        CacheStat {
            dirty,
            ..CacheStat::default()
        }
    }
}

/// `cachestat(2)`: never blocks, so it may be asked about a page that hangs.
pub fn cachestat(file: &File, off: u64, len: u64) -> io::Result<CacheStat> {
    let range = [off, len];
    let mut stat = CacheStat::default();
    // SAFETY: `range` is the two u64 of struct cachestat_range, `stat` the five
    // of struct cachestat; both live through the call.
    check(unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_raw_fd(),
            range.as_ptr(),
            &raw mut stat,
            0 as libc::c_long,
        )
    })?;
    Ok(stat)
}

/// FIEMAP into a buffer whose header is filled in (`crate::fiemap`).
pub fn fiemap(file: &File, buf: &mut [u64]) -> io::Result<()> {
    let room = (buf.len() * 8).saturating_sub(32) / 56;
    if buf.len() < 4 || buf[3] as u32 as usize > room {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the buffer holds the header and as many extents as it says,
    // checked above; the kernel writes no more.
    check(i64::from(unsafe {
        libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, buf.as_mut_ptr())
    }))
    .map(drop)
}

/// `fallocate(2)`.
pub fn fallocate(file: &File, mode: i32, off: u64, len: u64) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(i64::from(unsafe {
        libc::fallocate(file.as_raw_fd(), mode, off as i64, len as i64)
    }))
    .map(drop)
}

/// syncfs(2) of the file system that the file is on.
pub fn syncfs(file: &File) -> io::Result<()> {
    // SAFETY: plain numbers.
    check(i64::from(unsafe { libc::syncfs(file.as_raw_fd()) })).map(drop)
}

/// sync_file_range(2) of the whole file: writes and waits, and so asks for errors.
pub fn sync_file_range(file: &File) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: plain numbers; length 0 means up to the end.
    check(i64::from(unsafe {
        libc::sync_file_range(file.as_raw_fd(), 0, 0, flags)
    }))
    .map(drop)
}

/// FICLONERANGE: the blocks of `from` become blocks of `to` as well.
pub fn clone_range(to: &File, from: &File, src: u64, len: u64, dst: u64) -> io::Result<()> {
    let arg: [u64; 4] = [from.as_raw_fd() as u64, src, len, dst];
    // SAFETY: `arg` is struct file_clone_range (s64 and three u64), only read.
    check(i64::from(unsafe {
        libc::ioctl(to.as_raw_fd(), FICLONERANGE, arg.as_ptr())
    }))
    .map(drop)
}

/// FIFREEZE of the file system that the file is on.
pub fn freeze(file: &File) -> io::Result<()> {
    // SAFETY: the argument is not used (`ioctl_fsfreeze`).
    check(i64::from(unsafe {
        libc::ioctl(file.as_raw_fd(), FIFREEZE, 0)
    }))
    .map(drop)
}

/// FITHAW of the file system that the file is on.
pub fn thaw(file: &File) -> io::Result<()> {
    // SAFETY: the argument is not used (`ioctl_fsthaw`).
    check(i64::from(unsafe {
        libc::ioctl(file.as_raw_fd(), FITHAW, 0)
    }))
    .map(drop)
}

/// Takes the file's clean pages out of the page cache.
pub fn evict(file: &File) -> io::Result<()> {
    // SAFETY: plain numbers; length 0 is up to the end.
    match unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        errno => Err(io::Error::from_raw_os_error(errno)),
    }
}

/// Takes everything that is clean out of all caches.
pub fn drop_caches() -> io::Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "3")
}

/// Binds a free loop device to the file and gives the device's path.
pub fn loop_bind(file: &File) -> io::Result<String> {
    let control = File::open("/dev/loop-control")?;
    // SAFETY: no argument.
    let n = check(i64::from(unsafe {
        libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE)
    }))?;
    let path = format!("/dev/loop{n}");
    let device = File::options().read(true).write(true).open(&path)?;
    // SAFETY: the argument is a file descriptor; the kernel takes its own reference.
    check(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_SET_FD, file.as_raw_fd())
    }))?;
    Ok(path)
}

/// Takes the file away from a loop device that nobody has open.
pub fn loop_free(path: &str) -> io::Result<()> {
    let device = File::open(path)?;
    // SAFETY: no argument.
    check(i64::from(unsafe {
        libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD)
    }))
    .map(drop)
}

/// Whether `io_uring_setup(2)` works.
pub fn io_uring_works() -> io::Result<()> {
    // struct io_uring_params is 120 bytes, all zero is a fine request.
    let mut params = [0u64; 15];
    // SAFETY: `params` has the size of the kernel's structure.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_io_uring_setup,
            1 as libc::c_long,
            params.as_mut_ptr(),
        )
    })?;
    // SAFETY: the descriptor is new and nobody else's.
    drop(unsafe { File::from_raw_fd(fd as RawFd) });
    Ok(())
}

/// Waits until the descriptor is readable; `false` when the time is over.
pub fn poll_readable(fd: RawFd, limit: Duration) -> io::Result<bool> {
    let mut p = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    let ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd that lives through the call.
    check(i64::from(unsafe { libc::poll(&raw mut p, 1, ms) })).map(|n| n > 0)
}

/// Waits until a terminal has sent what was written to it.
pub fn drain(tty: &File) {
    // SAFETY: takes a descriptor; a failure (no terminal) does no harm.
    unsafe { libc::tcdrain(tty.as_raw_fd()) };
}

/// Restarts the machine, without a sync. Returns only when the kernel refuses.
pub fn restart() {
    // SAFETY: plain numbers; that it loses unwritten data is what we want.
    unsafe {
        libc::reboot(libc::RB_AUTOBOOT);
        libc::reboot(libc::RB_POWER_OFF);
    }
}

/// Powers the machine off, without a sync. Returns only when the kernel refuses.
pub fn power_off() {
    // SAFETY: plain numbers; that it loses unwritten data is what we want.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
}

/// Waits for ever, for a PID 1 that has nothing left to do.
pub fn wait_for_ever() -> ! {
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}
