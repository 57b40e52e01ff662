// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file that lies in memory (tmpfs, memfd), mapped: what is there is copied
//! without a system call.
//!
//! A page that is not there is not touched through the mapping: reading a hole would fill
//! it, and writing to one where no memory is left would be a SIGBUS. So a bit for each page
//! says whether it is known to be there; where it is not, the system call is made, which leaves
//! holes alone and has an error to give. A page that goes all the same (somebody else cuts the
//! file short, or punches it and memory is used up) ends the copy early (`sigbus`), and the
//! system call finds the right words for it.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use memmap2::{Advice, MmapOptions, MmapRaw};
use nix::unistd::{AccessFlags, access};

use super::Buffers;
use super::transfer::{Way, last, transfer, whole};
use super::zeroing::Zeroing;
use crate::sigbus;

/// Bytes for which there is a bit. Larger pages of the kernel are several of these.
const PAGE: u64 = 4096;
/// Bytes about which the kernel is asked at once, when the first of them is touched: 64 pages
/// times 8 words.
const CHUNK: u64 = 8 * 64 * PAGE;

/// Largest file that is mapped: 1 TiB, of which the bits take 32 MiB.
const LARGEST: u64 = 1 << 40;

/// See the module.
pub(super) struct Mapped {
    file: File,
    capacity: u64,
    /// `None`: everything goes by system calls.
    view: Option<View>,
}

struct View {
    /// Never seen as a slice: its bytes go through `sigbus::copy` alone.
    map: MmapRaw,
    writable: bool,
    /// By page, from bit 0 of the first word on.
    there: Vec<AtomicU64>,
    /// By chunk: the kernel was asked.
    asked: Vec<AtomicU64>,
    asking: Mutex<()>,
}

impl Mapped {
    /// A file of `capacity` bytes. Where it cannot be mapped it is read and written all the same.
    pub fn new(file: File, capacity: u64, read_only: bool) -> Mapped {
        let view = View::of(&file, capacity, read_only);
        Mapped {
            file,
            capacity,
            view,
        }
    }

    /// Whether what is there is copied without system calls.
    pub fn is_mapped(&self) -> bool {
        self.view.is_some()
    }

    /// Reads all of `buffers` from `offset` on, or writes them there.
    pub fn transfer(&self, way: Way, offset: u64, buffers: &Buffers) -> io::Result<()> {
        let end = offset.checked_add(buffers.len());
        let inside = end.filter(|&end| end <= self.capacity);
        let (Some(view), Some(end)) = (&self.view, inside) else {
            return transfer(self.file.as_fd(), way, offset, buffers);
        };
        if way == Way::Out {
            last(self.file.as_fd(), self.capacity, offset, buffers.len())?;
        }
        let range = offset..end;
        let may = way == Way::In || view.writable;
        if may && view.is_there(&range) && view.copy(way, offset, buffers) {
            return Ok(());
        }
        transfer(self.file.as_fd(), way, offset, buffers)?;
        if way == Way::Out {
            view.mark(&range, true);
        }
        Ok(())
    }

    /// A range that is to become zeros; with `unmap` its pages go.
    pub fn zeroing(&self, offset: u64, len: u64, unmap: bool) -> io::Result<Zeroing> {
        whole(self.file.as_fd(), self.capacity)?;
        Zeroing::new(self.capacity, offset, len, unmap)
    }

    /// A piece of it; whether that was the last.
    pub fn zero(&self, zeroing: &mut Zeroing) -> io::Result<bool> {
        if let Some(view) = &self.view {
            // Before they go, so that nobody takes them for there. Who has looked already may
            // bring an empty page back: room, no wrong contents.
            view.mark(&zeroing.unmaps(), false);
        }
        zeroing.step(self.file.as_fd())
    }

    /// As `fdatasync(2)`; an error where the file was cut short.
    pub fn sync_data(&self) -> io::Result<()> {
        whole(self.file.as_fd(), self.capacity)?;
        self.file.sync_data()
    }
}

impl View {
    fn of(file: &File, capacity: u64, read_only: bool) -> Option<View> {
        // The bits are of 4 KiB: on a kernel with larger pages one could say more than it knows.
        if !sigbus::possible() || page_size() != PAGE || capacity > LARGEST {
            return None;
        }
        // mincore(2) tells the truth to those who may write the file; to others all is there.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if read_only && access(path.as_str(), AccessFlags::W_OK).is_err() {
            return None;
        }
        let mut options = MmapOptions::new();
        options.len(usize::try_from(capacity).ok()?);
        let map = match read_only {
            true => options.map_raw_read_only(file),
            false => options.map_raw(file),
        };
        let map = map
            .inspect_err(|error| tracing::debug!("the image is not mapped: {error}"))
            .ok()?;
        let words = |bits: u64| -> Vec<AtomicU64> {
            (0..bits.div_ceil(64)).map(|_| AtomicU64::new(0)).collect()
        };
        Some(View {
            map,
            writable: !read_only,
            there: words(capacity.div_ceil(PAGE)),
            asked: words(capacity.div_ceil(CHUNK)),
            asking: Mutex::new(()),
        })
    }

    /// Whether every page of the range is there, as far as is known.
    fn is_there(&self, range: &Range<u64>) -> bool {
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
        for chunk in chunks {
            let (word, bit) = ((chunk / 64) as usize, 1 << (chunk % 64));
            let asked = |w: &AtomicU64| w.load(Ordering::Acquire) & bit != 0;
            if !self.asked.get(word).is_some_and(asked) {
                self.ask(chunk);
            }
        }
        let all = |(word, mask): (&AtomicU64, u64)| word.load(Ordering::Acquire) & mask == mask;
        self.words(range).all(all)
    }

    /// Asks the kernel what it has of a chunk, and has that mapped.
    fn ask(&self, chunk: u64) {
        let _one = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        let (word, bit) = ((chunk / 64) as usize, 1 << (chunk % 64));
        let Some(asked) = self.asked.get(word) else {
            return;
        };
        if asked.load(Ordering::Acquire) & bit != 0 {
            return;
        }
        let start = chunk * CHUNK;
        let len = CHUNK.min(self.map.len() as u64 - start);
        // SEEK_HOLE would look all the way to the next hole, which may be at the end of the file.
        let mut pages = [0u8; (CHUNK / PAGE) as usize];
        let at = self.map.as_mut_ptr().wrapping_add(start as usize);
        // SAFETY: within our mapping, and `pages` has a byte for each page of a chunk.
        if unsafe { libc::mincore(at.cast(), len as usize, pages.as_mut_ptr()) } == 0 {
            let mut from = 0;
            for run in pages.chunk_by(|a, b| a & 1 == b & 1) {
                let (first, last) = (
                    start + from * PAGE,
                    start + (from + run.len() as u64) * PAGE,
                );
                let end = last.min(start + len);
                if run[0] & 1 == 1 && first < end {
                    self.populate(first, end - first);
                    self.mark(&(first..end), true);
                }
                from += run.len() as u64;
            }
        }
        asked.fetch_or(bit, Ordering::Release);
    }

    /// One call instead of a fault for each page. Kernels before 5.14 do not know it.
    fn populate(&self, from: u64, len: u64) {
        let how = match self.writable {
            true => Advice::PopulateWrite,
            false => Advice::PopulateRead,
        };
        if let Err(error) = self.map.advise_range(how, from as usize, len as usize) {
            tracing::trace!("populate: {error}");
        }
    }

    fn mark(&self, range: &Range<u64>, there: bool) {
        for (word, mask) in self.words(range) {
            // Mostly they are as they should be: no line of the cache is taken from others.
            let now = word.load(Ordering::Relaxed) & mask;
            match there {
                true if now != mask => word.fetch_or(mask, Ordering::Release),
                false if now != 0 => word.fetch_and(!mask, Ordering::Release),
                _ => 0,
            };
        }
    }

    /// The words of the pages that the range touches, each with their bits in it.
    fn words(&self, range: &Range<u64>) -> impl Iterator<Item = (&AtomicU64, u64)> {
        let pages = match range.is_empty() {
            true => 0..0,
            false => range.start / PAGE..range.end.div_ceil(PAGE),
        };
        (pages.start / 64..pages.end.div_ceil(64)).filter_map(move |index| {
            let from = pages.start.saturating_sub(index * 64).min(63);
            let to = (pages.end - index * 64).min(64);
            let mask = (u64::MAX >> (64 - (to - from))) << from;
            Some((self.there.get(index as usize)?, mask))
        })
    }

    /// Copies all of the buffers, which lie within the mapping; false where that came to an
    /// early end.
    fn copy(&self, way: Way, offset: u64, buffers: &Buffers) -> bool {
        let mut at = self.map.as_mut_ptr().wrapping_add(offset as usize);
        for range in buffers.iovecs() {
            let buffer = range.iov_base.cast::<u8>();
            let (to, from) = match way {
                Way::In => (buffer, at.cast_const()),
                Way::Out => (at, buffer.cast_const()),
            };
            // SAFETY: `possible` was asked by `of`. The buffers are mapped and writable while they
            // live (the contract of `Buffers::new`), our side is the mapping within its length
            // (the caller has looked), and writable where it is written to (the same).
            if unsafe { sigbus::copy(to, from, range.iov_len) } != 0 {
                return false;
            }
            at = at.wrapping_add(range.iov_len);
        }
        true
    }
}

fn page_size() -> u64 {
    // SAFETY: a plain question.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use proptest::prelude::*;

    use super::super::buf::tests::Owned;
    use super::*;

    fn file(len: u64) -> File {
        let file = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(len).unwrap();
        file
    }

    fn zero(disk: &Mapped, offset: u64, len: u64, unmap: bool) {
        let mut zeroing = disk.zeroing(offset, len, unmap).unwrap();
        while !disk.zero(&mut zeroing).unwrap() {}
    }

    /// A disk over the file, and the file itself.
    fn mapped(file: File) -> (Mapped, File) {
        let len = file.metadata().unwrap().len();
        let same = file.try_clone().unwrap();
        let disk = Mapped::new(file, len, false);
        assert!(disk.is_mapped() || cfg!(not(target_arch = "x86_64")));
        (disk, same)
    }

    fn read(disk: &Mapped, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let memory = Owned::new(vec![9; len]);
        disk.transfer(Way::In, offset, &memory.buffers(&[7, 1000]))?;
        Ok(memory.bytes())
    }

    fn write(disk: &Mapped, offset: u64, bytes: Vec<u8>) -> io::Result<()> {
        let memory = Owned::new(bytes);
        disk.transfer(Way::Out, offset, &memory.buffers(&[100, 5000]))
    }

    #[test]
    fn a_hole_stays_one_when_it_is_read() {
        let (disk, file) = mapped(file(64 << 20));
        write(&disk, 5 << 20, vec![1; 4096]).unwrap();
        let room = file.metadata().unwrap().blocks();
        for at in [0, (5 << 20) - 4096, (5 << 20) + 4096, 63 << 20] {
            assert!(read(&disk, at, 8192).unwrap().iter().all(|&b| b <= 1));
        }
        assert_eq!(file.metadata().unwrap().blocks(), room);
        // And what was given back is one.
        zero(&disk, 5 << 20, 4096, true);
        assert_eq!(read(&disk, 5 << 20, 4096).unwrap(), [0; 4096]);
        assert_eq!(file.metadata().unwrap().blocks(), 0);
    }

    #[test]
    fn what_was_there_before_is_found_and_copied_without_system_calls() {
        let (disk, file) = mapped(file(3 * CHUNK + 512));
        std::os::unix::fs::FileExt::write_all_at(&file, &[5; 8192], CHUNK - 4096).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &[6; 512], 3 * CHUNK).unwrap();
        let view = disk.view.as_ref().unwrap();
        for (range, there) in [
            (CHUNK - 4096..CHUNK + 4096, true),
            (CHUNK - 4097..CHUNK, false),
            (CHUNK + 4095..CHUNK + 4097, false),
            (0..4096, false),
            (3 * CHUNK..3 * CHUNK + 512, true),
        ] {
            assert_eq!(view.is_there(&range), there, "{range:?}");
        }
        assert_eq!(read(&disk, CHUNK - 512, 1024).unwrap(), [5; 1024]);
        assert_eq!(read(&disk, 3 * CHUNK, 512).unwrap(), [6; 512]);
        // Written for the first time by a system call, from then on by a copy.
        write(&disk, 100, vec![3; 5000]).unwrap();
        assert!(view.is_there(&(0..8192)));
        write(&disk, 0, vec![4; 512]).unwrap();
        let mut want = [3; 600];
        want[..512].fill(4);
        assert_eq!(read(&disk, 0, 600).unwrap(), want);
    }

    #[test]
    fn a_file_that_shrinks_is_the_error_of_a_request() {
        let (disk, file) = mapped(file(1 << 20));
        write(&disk, 0, vec![1; 1 << 20]).unwrap();
        file.set_len(8192).unwrap();
        assert_eq!(
            read(&disk, 4096, 8192).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
        assert_eq!(read(&disk, 4096, 4096).unwrap(), [1; 4096]);
        // A write makes it longer again, as it does without a mapping.
        write(&disk, 16384, vec![2; 4096]).unwrap();
        assert_eq!(read(&disk, 16384, 4096).unwrap(), [2; 4096]);
    }

    #[test]
    fn one_that_may_only_be_read_is_never_written_to() {
        let file = file(8192);
        std::os::unix::fs::FileExt::write_all_at(&file, &[5; 8192], 0).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let disk = Mapped::new(File::open(path).unwrap(), 8192, true);
        assert_eq!(read(&disk, 0, 8192).unwrap(), [5; 8192]);
        let error = write(&disk, 0, vec![1; 512]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]
        /// Against an array of bytes, in every mixture of holes and pages.
        #[test]
        fn it_holds_what_was_written(
            steps in prop::collection::vec((0..5u8, 0..600_000u64, 1..20_000u64), 1..40),
        ) {
            const LEN: u64 = 600_064;
            let (disk, _file) = mapped(file(LEN));
            let mut holds = vec![0u8; LEN as usize];
            for (n, (what, at, len)) in steps.into_iter().enumerate() {
                let len = len.min(LEN - at);
                let range = at as usize..(at + len) as usize;
                match what {
                    0 | 1 => {
                        let byte = n as u8 + 1;
                        write(&disk, at, vec![byte; len as usize]).unwrap();
                        holds[range].fill(byte);
                    }
                    2 => {
                        zero(&disk, at, len, n % 2 == 0);
                        holds[range].fill(0);
                    }
                    _ => prop_assert!(read(&disk, at, len as usize).unwrap() == holds[range]),
                }
            }
            prop_assert!(read(&disk, 0, LEN as usize).unwrap() == holds);
        }
    }
}
