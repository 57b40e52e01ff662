// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file's pages in our memory, shared with everybody who has the file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// A shared, writable mapping of the begin of a file.
pub struct Mapping {
    at: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value; its bytes are only touched by `store`.
unsafe impl Send for Mapping {}
// SAFETY: stores are volatile and of single bytes; nobody makes a reference to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes. The file must be that long for as long as this lives.
    pub fn new(file: &File, len: usize) -> io::Result<Mapping> {
        // SAFETY: a fresh mapping, no address asked for; nobody has a reference to it.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapping { at: at.cast(), len })
    }

    /// Stores one byte. That may wait in the kernel, for the page's writeback.
    pub fn store(&self, offset: usize, byte: u8) {
        assert!(offset < self.len);
        // SAFETY: inside the mapping, which lives as long as `self`; volatile, because the file's
        // other users see it.
        unsafe { self.at.wrapping_add(offset).write_volatile(byte) };
    }

    /// `pwritev2(2)` to `file` with `len` bytes of the mapping as its source.
    pub fn pwritev2(&self, file: &File, from: usize, len: usize, off: u64, flags: u32) -> i64 {
        assert!(from + len <= self.len);
        let iov = [libc::iovec {
            iov_base: self.at.wrapping_add(from).cast(),
            iov_len: len,
        }];
        // SAFETY: the range is mapped as long as `self` lives; the kernel only reads it, and it may
        // change meanwhile, as nobody has a reference to it.
        unsafe { super::pwritev2_raw(file, &iov, off, flags) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; nobody borrows it any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}
