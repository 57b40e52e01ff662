// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A buffer that cannot be read from a page on: a write from it ends there.

use std::fs::File;
use std::io;

use super::{Pages, check};

/// Of its pages those from `readable` on are forbidden.
pub struct CutBuffer {
    pages: Pages,
}

impl CutBuffer {
    /// `len` bytes, a whole number of pages; those from `readable` on, a whole number too, cannot
    /// be read. `fill` gets the bytes that can.
    pub fn new(len: usize, readable: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<CutBuffer> {
        assert!(readable.is_multiple_of(4096) && readable < len);
        let mut pages = Pages::new(len)?;
        fill(&mut pages.bytes_mut()[..readable]);
        // SAFETY: a whole number of pages of our own mapping; nobody has a reference to them, and
        // `pages` is not read any more but by the kernel.
        check(i64::from(unsafe {
            libc::mprotect(
                pages.address(readable) as *mut libc::c_void,
                pages.len() - readable,
                libc::PROT_NONE,
            )
        }))?;
        Ok(CutBuffer { pages })
    }

    /// `pwritev2(2)` of `len` bytes from `from` on.
    pub fn pwritev2(&self, file: &File, from: usize, len: usize, off: u64, flags: u32) -> i64 {
        assert!(from + len <= self.pages.len());
        let iov = [libc::iovec {
            iov_base: self.pages.address(from) as *mut libc::c_void,
            iov_len: len,
        }];
        // SAFETY: the range is mapped as long as `self` lives; where it is forbidden the kernel
        // stops with EFAULT.
        unsafe { super::pwritev2_raw(file, &iov, off, flags) }
    }
}
