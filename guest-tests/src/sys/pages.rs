// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Memory for O_DIRECT and for userfaultfd.

use std::io;

/// Anonymous memory in whole pages, hence aligned for O_DIRECT.
#[derive(Debug)]
pub struct Pages {
    at: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, like a Box's memory.
unsafe impl Send for Pages {}
// SAFETY: shared access reads only; writes need `&mut` (or uffd's own copy).
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes of zeros, without huge pages: a test that leaves one
    /// page out must not find it filled by a huge page around it.
    pub fn new(len: usize) -> io::Result<Pages> {
        // SAFETY: a fresh private mapping, no address asked for.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the range just mapped; EINVAL without huge pages is fine.
        unsafe { libc::madvise(at, len, libc::MADV_NOHUGEPAGE) };
        Ok(Pages { at: at.cast(), len })
    }

    /// The same with all pages there already: to meet each by a fault costs an emulated guest more
    /// than to fill it.
    pub fn present(len: usize) -> io::Result<Pages> {
        let pages = Pages::new(len)?;
        // SAFETY: the range just mapped; a kernel that does not know this brings the pages in later.
        unsafe { libc::madvise(pages.at.cast(), len, libc::MADV_POPULATE_WRITE) };
        Ok(pages)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and readable as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    /// The bytes, to fill.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: mapped and writable as long as `self` lives, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }

    /// Address of a byte.
    pub fn address(&self, offset: usize) -> u64 {
        assert!(offset < self.len);
        self.at as u64 + offset as u64
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; nobody borrows it any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}
