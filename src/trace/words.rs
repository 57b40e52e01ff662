// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A piece of a file as shared 64-bit words: allocated on disk first, mapped
//! second, so that a store can never meet a full disk (which would be SIGBUS).
//!
//! Another process reads the file while we write it. Words are therefore
//! atomics; a plain slice over such memory would be a data race.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use crate::sigbus::Watched;

/// A mapped piece of a file.
#[derive(Debug)]
pub(super) struct Words {
    /// Somebody may cut the file short: what is written there then is lost, and no more than that.
    /// `None` where too much is watched already. Dropped before it is unmapped.
    _watched: Option<Watched>,
    map: MmapRaw,
}

impl Words {
    /// Allocates `len` bytes at `offset` of `file` and maps them. Both are
    /// multiples of 64 KiB, hence of every page size there is.
    pub(super) fn allocate(file: &File, offset: u64, len: usize) -> io::Result<Words> {
        within_file_limit(offset + len as u64)?;
        allocate(file, offset, len as u64)?;
        let map = MmapOptions::new().offset(offset).len(len).map_raw(file)?;
        // SAFETY: the mapping lives as long as the value, which drops this first; it is touched by
        // atomics only.
        let watched = unsafe { Watched::new(map.as_mut_ptr(), len) }.ok();
        Ok(Words {
            _watched: watched,
            map,
        })
    }

    /// Brings its pages in for writing, so that no first use of one is a fault. Where the kernel
    /// cannot do it (before Linux 5.14), the faults come.
    pub(super) fn warm(&self) {
        let _ = self.map.advise(Advice::PopulateWrite);
    }

    /// Lets its pages go from our memory; they are in the file, and come again when used.
    pub(super) fn cool(&self) {
        // SAFETY: of a shared mapping of a file nothing is lost: the next access finds the page
        // in the page cache again.
        let _ = unsafe { self.map.unchecked_advise(UncheckedAdvice::DontNeed) };
    }

    /// The words.
    pub(super) fn get(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `len` bytes long, page aligned (hence aligned for
        // u64), readable and writable, and lives as long as `self`, which the
        // returned slice borrows. Every bit pattern is a valid AtomicU64. Nobody in
        // this process makes a non-atomic reference to it: `map` is private and used
        // nowhere else. The blocks below it are allocated and `TraceWriter::close`
        // cuts off only what no thread can reach any more, so no access faults.
        unsafe {
            std::slice::from_raw_parts(
                self.map.as_mut_ptr().cast::<AtomicU64>().cast_const(),
                self.map.len() / size_of::<AtomicU64>(),
            )
        }
    }
}

/// Beyond RLIMIT_FSIZE the kernel sends SIGXFSZ, which would kill us; so ask first.
fn within_file_limit(end: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live, writable rlimit, which the call fills.
    let rc = unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &raw mut limit) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    if end > limit.rlim_cur {
        return Err(io::Error::from_raw_os_error(libc::EFBIG));
    }
    Ok(())
}

fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let signed = |n: u64| i64::try_from(n).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG));
    let (start, length) = (signed(offset)?, signed(len)?);
    loop {
        // SAFETY: a plain system call on a descriptor that `file` keeps open.
        let rc = unsafe { libc::fallocate(file.as_raw_fd(), 0, start, length) };
        if rc == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP) => return write_zeros(file, offset, len),
            _ => return Err(error),
        }
    }
}

/// For file systems without fallocate: what was written is allocated.
fn write_zeros(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let zeros = [0u8; 64 * 1024];
    let mut at = offset;
    while at < offset + len {
        let n = zeros.len().min((offset + len - at) as usize);
        file.write_all_at(&zeros[..n], at)?;
        at += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_stored_word_is_in_the_file_at_its_place() {
        let file = tempfile::tempfile().unwrap();
        let words = Words::allocate(&file, 65536, 65536).unwrap();
        assert_eq!(words.get().len(), 8192);
        words.get()[0].store(1, Ordering::Relaxed);
        words.get()[8191].store(u64::from_le_bytes(*b"last....").to_le(), Ordering::Release);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 131_072 - 8).unwrap();
        assert_eq!(&bytes, b"last....");
        words.warm();
        words.cool();
        assert_eq!(words.get()[0].load(Ordering::Relaxed), 1);
        words.get()[1].store(2, Ordering::Relaxed);
        file.read_exact_at(&mut bytes, 65536).unwrap();
        assert_eq!(bytes, 1u64.to_ne_bytes());
        assert_eq!(file.metadata().unwrap().len(), 131_072);
    }

    #[test]
    fn a_file_that_is_cut_short_loses_words_and_nothing_else() {
        let file = tempfile::tempfile().unwrap();
        let words = Words::allocate(&file, 0, 65536).unwrap();
        words.get()[0].store(1, Ordering::Relaxed);
        file.set_len(4096).unwrap();
        words.get()[8000].store(2, Ordering::Relaxed);
        assert_eq!(words.get()[8000].load(Ordering::Relaxed), 2);
        let mut bytes = [0; 8];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, 1u64.to_ne_bytes());
        assert_eq!(file.metadata().unwrap().len(), 4096);
    }

    #[test]
    fn zeros_are_written_where_fallocate_is_unknown() {
        let file = tempfile::tempfile().unwrap();
        write_zeros(&file, 65536, 100_000).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 165_536);
    }
}
