// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A buffer that ends at pages which nobody may read: a write from it can copy the good part
//! and not one byte more.

use std::fs::File;
use std::io;

use super::{Pages, check};

const PAGE: usize = 4096;
/// Size of what is out of bounds.
pub const BAD: usize = 4 * PAGE;

/// The buffer: `good` bytes, and behind them pages that fault.
pub struct Guarded {
    pages: Pages,
    good: usize,
}

impl Guarded {
    /// `good` bytes, filled by `fill`, that end where the bad pages begin.
    pub fn new(good: usize, fill: impl FnOnce(&mut [u8])) -> io::Result<Guarded> {
        let whole = good.next_multiple_of(PAGE);
        let mut pages = Pages::new(whole + BAD)?;
        fill(&mut pages.bytes_mut()[whole - good..whole]);
        // SAFETY: the last pages of our own mapping, to which nobody has a reference: `pages` is
        // private here, and its bytes are never borrowed again.
        check(i64::from(unsafe {
            libc::mprotect(
                pages.address(whole) as *mut libc::c_void,
                BAD,
                libc::PROT_NONE,
            )
        }))?;
        Ok(Guarded { pages, good })
    }

    /// `pwritev2(2)` of the good bytes and `more` (at most [`BAD`]) behind them, as an iovec of two
    /// where `apart` is set: then the second part is bad from its first byte on.
    pub fn pwritev2(&self, file: &File, more: usize, apart: bool, off: u64, flags: u32) -> i64 {
        assert!(more <= BAD);
        let whole = self.good.next_multiple_of(PAGE);
        let at = |i: usize, len: usize| libc::iovec {
            iov_base: self.pages.address(i) as *mut libc::c_void,
            iov_len: len,
        };
        let start = whole - self.good;
        let iov: &[libc::iovec] = if apart {
            &[at(start, self.good), at(whole, more)]
        } else {
            &[at(start, self.good + more)]
        };
        // SAFETY: the good part is mapped as long as `self` lives; the kernel answers the fault of
        // the rest with EFAULT or a short count, which is what this is for.
        unsafe { super::pwritev2_raw(file, iov, off, flags) }
    }
}
