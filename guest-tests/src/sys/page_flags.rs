// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The flags of the pages that the page cache has of a file, from /proc/kpageflags: that knows pages by
//! their place in memory, which a page table tells of what is mapped.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::check;

const PAGE: usize = 4096;
/// MADV_POPULATE_READ of `include/uapi/asm-generic/mman-common.h`.
const MADV_POPULATE_READ: libc::c_int = 22;
/// Of an entry of /proc/PID/pagemap: the page is there, and where.
const PRESENT: u64 = 1 << 63;
const PLACE: u64 = (1 << 55) - 1;

/// A page of a file and its flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFlags {
    /// Offset in the file.
    pub off: u64,
    /// Its bits of `include/uapi/linux/kernel-page-flags.h`; those of all its folio.
    pub flags: u64,
}

/// Flags of the pages of a range that are in the page cache and hold the file's bytes; a page that cannot be
/// mapped, as it lies beyond the end of the file, is left out. Waits for a page that somebody has locked.
pub fn of(file: &File, off: u64, len: u64) -> io::Result<Vec<PageFlags>> {
    let count = (len as usize).div_ceil(PAGE);
    if count == 0 {
        return Ok(Vec::new());
    }
    let view = View::new(file, off, count * PAGE)?;
    for run in runs(&view.cached()?) {
        view.fault_in(run);
    }
    let places = view.places()?;
    let all = File::open("/proc/kpageflags")?;
    let mut pages = Vec::new();
    let mut at = 0;
    while at < count {
        // Pages of a folio lie side by side: one read for all of them.
        let Some(place) = places[at] else {
            at += 1;
            continue;
        };
        let follow = places[at..].iter().zip(place..);
        let n = follow
            .take_while(|&(have, want)| *have == Some(want))
            .count();
        for (i, flags) in words(&all, place, n)?.into_iter().enumerate() {
            let off = off + ((at + i) * PAGE) as u64;
            pages.push(PageFlags { off, flags });
        }
        at += n;
    }
    Ok(pages)
}

/// Whether this kernel has the files, and lets us see where pages are.
pub fn works() -> io::Result<()> {
    File::open("/proc/kpageflags")?;
    let here = [1u8; 1];
    let entry = words(
        &File::open("/proc/self/pagemap")?,
        here.as_ptr() as u64 / PAGE as u64,
        1,
    )?;
    match entry.first().copied().and_then(place) {
        Some(_) => Ok(()),
        None => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Words of one of the files, the first one's number given.
fn words(file: &File, from: u64, count: usize) -> io::Result<Vec<u64>> {
    let mut bytes = vec![0; count * 8];
    file.read_exact_at(&mut bytes, from * 8)?;
    let words = bytes.chunks_exact(8);
    Ok(words
        .map(|w| {
            w.iter()
                .rev()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        })
        .collect())
}

/// Where a page is; `None` where it is not there, or nobody shall know.
fn place(entry: u64) -> Option<u64> {
    Some(entry & PLACE).filter(|place| entry & PRESENT != 0 && *place != 0)
}

/// Runs of pages that are there: the first, and how many.
fn runs(there: &[bool]) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, _) in there.iter().enumerate().filter(|(_, there)| **there) {
        match runs.last_mut() {
            Some((first, n)) if *first + *n == i => *n += 1,
            _ => runs.push((i, 1)),
        }
    }
    runs
}

/// A range of a file, mapped to be read. Nobody looks at its bytes.
struct View {
    at: *mut libc::c_void,
    len: usize,
}

impl View {
    fn new(file: &File, off: u64, len: usize) -> io::Result<View> {
        let off = libc::off_t::try_from(off).map_err(io::Error::other)?;
        // SAFETY: a fresh mapping, no address asked for; its memory is never touched by us.
        let at = unsafe {
            let read = libc::PROT_READ;
            libc::mmap(
                std::ptr::null_mut(),
                len,
                read,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                off,
            )
        };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(View { at, len })
    }

    /// Which of its pages the page cache has: the others are not to be read for this.
    fn cached(&self) -> io::Result<Vec<bool>> {
        let mut bytes = vec![0u8; self.len / PAGE];
        // SAFETY: the range that is mapped, and a byte for each of its pages.
        check(i64::from(unsafe {
            libc::mincore(self.at, self.len, bytes.as_mut_ptr())
        }))?;
        Ok(bytes.iter().map(|byte| byte & 1 != 0).collect())
    }

    /// Brings a run of pages into the page table. What cannot be is not there afterwards.
    fn fault_in(&self, (first, count): (usize, usize)) {
        assert!((first + count) * PAGE <= self.len);
        // SAFETY: inside of the mapping; the kernel faults the pages in itself, so that one beyond the
        // end of the file is an error and no signal.
        unsafe {
            let at = self.at.wrapping_byte_add(first * PAGE);
            libc::madvise(at, count * PAGE, MADV_POPULATE_READ);
        }
    }

    fn places(&self) -> io::Result<Vec<Option<u64>>> {
        let map = File::open("/proc/self/pagemap")?;
        let entries = words(&map, self.at as u64 / PAGE as u64, self.len / PAGE)?;
        Ok(entries.into_iter().map(place).collect())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `new` mapped; nobody has a reference to it.
        unsafe { libc::munmap(self.at, self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_are_there_come_in_runs() {
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[false, true, true, false, true]), [(1, 2), (4, 1)]);
    }

    #[test]
    fn a_place_is_told_of_a_page_that_is_there() {
        assert_eq!(place(PRESENT | 77), Some(77));
        assert_eq!(place(77), None);
        // The soft-dirty bit and others are no part of it; 0 is said to who must not know.
        assert_eq!(place(PRESENT | 1 << 55 | 5), Some(5));
        assert_eq!(place(PRESENT), None);
    }

    #[test]
    fn the_cached_pages_of_a_file_are_known_and_one_beyond_its_end_is_no_signal() {
        let path = std::env::temp_dir().join(format!("page-flags-{}", std::process::id()));
        std::fs::write(&path, vec![1; PAGE + 1]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let view = View::new(&file, 0, 4 * PAGE).unwrap();
        assert_eq!(view.cached().unwrap(), [true, true, false, false]);
        view.fault_in((0, 4));
        drop(view);
        // Who is no root is told of no place: then nothing is looked at.
        match works() {
            Ok(()) => assert_eq!(of(&file, 0, 4 * PAGE as u64).unwrap().len(), 2),
            Err(_) => assert!(of(&file, 0, PAGE as u64).is_ok_and(|p| p.is_empty()) || !root()),
        }
    }

    fn root() -> bool {
        // SAFETY: takes nothing.
        unsafe { libc::geteuid() == 0 }
    }
}
