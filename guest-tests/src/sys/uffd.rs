// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! userfaultfd(2): one page of a buffer that is not there until we say so. The
//! writer that reads it stops in the kernel, at a place that we choose.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use super::{Pages, aio, check, poll_readable};

/// Of `include/uapi/linux/userfaultfd.h`.
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
const REGISTER_MODE_MISSING: u64 = 1;
const EVENT_PAGEFAULT: u8 = 0x12;

/// The size of the page that is missing.
pub const PAGE: usize = 4096;

/// Opens a userfaultfd and agrees on its API.
fn open() -> io::Result<File> {
    // SAFETY: plain flags; the descriptor that comes back is ours.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_userfaultfd,
            libc::c_long::from(libc::O_CLOEXEC | libc::O_NONBLOCK),
        )
    })?;
    // SAFETY: new and nobody else's.
    let fd = unsafe { File::from_raw_fd(fd as RawFd) };
    let mut api = [UFFD_API, 0, 0];
    // SAFETY: struct uffdio_api is three u64.
    check(i64::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), UFFDIO_API, api.as_mut_ptr())
    }))?;
    Ok(fd)
}

/// Whether this kernel lets us.
pub fn works() -> io::Result<()> {
    open().map(drop)
}

/// A buffer with one page that is not there until it is supplied.
pub struct FaultingBuffer {
    // Closed before the memory goes: closing wakes whoever still waits.
    fd: File,
    pages: Pages,
    missing: usize,
}

impl FaultingBuffer {
    /// `len` bytes, of which the page at `missing` is left out; `fill` gets the
    /// offset and the bytes of each part that is there.
    pub fn new(
        len: usize,
        missing: usize,
        mut fill: impl FnMut(u64, &mut [u8]),
    ) -> io::Result<FaultingBuffer> {
        assert!(missing.is_multiple_of(PAGE) && missing + PAGE <= len);
        let mut pages = Pages::new(len)?;
        let fd = open()?;
        let mut register = [
            pages.address(missing),
            PAGE as u64,
            REGISTER_MODE_MISSING,
            0,
        ];
        // Before anything touches the buffer: only a page never touched is missing.
        // SAFETY: struct uffdio_register is four u64; the range is one page of
        // the buffer's own mapping.
        check(i64::from(unsafe {
            libc::ioctl(fd.as_raw_fd(), UFFDIO_REGISTER, register.as_mut_ptr())
        }))?;
        fill(0, &mut pages.bytes_mut()[..missing]);
        fill(
            (missing + PAGE) as u64,
            &mut pages.bytes_mut()[missing + PAGE..],
        );
        Ok(FaultingBuffer { fd, pages, missing })
    }

    /// `pwritev2(2)` of the first `len` bytes. Stops at the missing page until
    /// another thread supplies it.
    pub fn pwritev2(&self, file: &File, len: usize, off: u64, flags: u32) -> i64 {
        assert!(len <= self.pages.len());
        let iov = [libc::iovec {
            iov_base: self.pages.address(0) as *mut libc::c_void,
            iov_len: len,
        }];
        // SAFETY: the pages are mapped as long as `self` lives; the fault at
        // the missing one is what this is for.
        unsafe { super::pwritev2_raw(file, &iov, off, flags) }
    }

    /// The same by `io_submit(2)`: it is the submission that stops.
    pub fn submit(
        self: &Arc<Self>,
        file: &File,
        len: usize,
        off: u64,
        ioprio: Option<u16>,
        flags: u32,
    ) -> io::Result<aio::Writes> {
        assert!(len <= self.pages.len());
        let keep = Box::new(Arc::clone(self));
        // SAFETY: as for `pwritev2`; the write keeps the buffer.
        unsafe {
            aio::Writes::submit_raw(
                file,
                self.pages.address(0),
                keep,
                len,
                &[off],
                &[ioprio],
                flags,
            )
        }
    }

    /// Waits until somebody stops at the page; `false` when the time is over.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        use std::io::Read;
        if !poll_readable(self.fd.as_raw_fd(), limit)? {
            return Ok(false);
        }
        let mut msg = [0u8; 32];
        match (&self.fd).read(&mut msg) {
            Ok(_) => Ok(msg[0] == EVENT_PAGEFAULT),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Supplies the page and wakes whoever waits for it.
    pub fn supply(&self, page: &[u8; PAGE]) -> io::Result<()> {
        let mut copy = [
            self.pages.address(self.missing),
            page.as_ptr() as u64,
            PAGE as u64,
            0,
            0,
        ];
        // SAFETY: struct uffdio_copy is five u64; the source is a page that
        // lives through the call, the target the page that we registered.
        check(i64::from(unsafe {
            libc::ioctl(self.fd.as_raw_fd(), UFFDIO_COPY, copy.as_mut_ptr())
        }))
        .map(drop)
    }
}
