// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! io_uring: one write on its way.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};

use super::{Pages, poll_readable};

/// One write, submitted. The kernel may read the data until it has come back: dropped before
/// that, it is leaked. To be collected by the thread that submitted it, as the kernel
/// finishes its part there.
pub struct Write {
    ring: IoUring,
    data: ManuallyDrop<Pages>,
    under_way: bool,
}

impl Write {
    /// Submits a write of the first `len` bytes of `data`.
    pub fn submit(
        file: &File,
        data: Pages,
        len: usize,
        off: u64,
        ioprio: Option<u16>,
        rw_flags: u32,
    ) -> io::Result<Write> {
        assert!(len <= data.len());
        let fd = types::Fd(file.as_raw_fd());
        let at = std::ptr::with_exposed_provenance(data.address(0) as usize);
        let entry = opcode::Write::new(fd, at, len as u32)
            .offset(off)
            .ioprio(ioprio.unwrap_or(0))
            // A word of bits; the field's sign means nothing.
            .rw_flags(rw_flags as i32)
            .build();
        let mut write = Write {
            ring: IoUring::new(1)?,
            data: ManuallyDrop::new(data),
            under_way: false,
        };
        // SAFETY: the data lives until the result is there, or for ever.
        unsafe { write.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        write.under_way = true;
        write.ring.submit()?;
        Ok(write)
    }

    /// Waits for the result: bytes written, or minus errno.
    pub fn collect(&mut self, limit: Duration) -> io::Result<i64> {
        let end = Instant::now() + limit;
        loop {
            if let Some(entry) = self.ring.completion().next() {
                self.under_way = false;
                return Ok(i64::from(entry.result()));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // What the kernel has still to do in this thread ends the wait early.
            match poll_readable(self.ring.as_raw_fd(), left) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => return Err(e),
                _ => {}
            }
        }
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.under_way {
            // SAFETY: dropped once, and the kernel is done with it.
            unsafe { ManuallyDrop::drop(&mut self.data) };
        }
    }
}
