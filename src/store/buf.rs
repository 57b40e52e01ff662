// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Buffers of an operation: somebody else's memory, kept alive while in flight.
//!
//! The memory is the guest's: it may change at any moment, so it is never seen
//! as a Rust slice. A store hands the iovecs to the host kernel and touches
//! nothing itself.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

/// A list of memory ranges and what keeps them mapped. A clone is of the list, not of the bytes.
#[derive(Clone)]
pub struct Buffers {
    /// Mostly one: without memory of its own for the list.
    iovecs: SmallVec<[libc::iovec; 1]>,
    len: u64,
    /// Dropped last of all: the map that the ranges belong to.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the pointers are never dereferenced by Rust code, only given to system
// calls that accept memory changing under them, and `_keep` (Send + Sync) keeps
// the ranges mapped for as long as the value lives, on whichever thread.
unsafe impl Send for Buffers {}
// SAFETY: as above; a shared reference only hands out copies of the pointers.
unsafe impl Sync for Buffers {}

impl Buffers {
    /// Buffers over `ranges`.
    ///
    /// # Safety
    /// Each range must stay mapped, readable and writable, for as long as `keep` lives, and
    /// no Rust reference to it may exist meanwhile.
    pub unsafe fn new(
        ranges: impl IntoIterator<Item = (*mut u8, usize)>,
        keep: Arc<dyn Any + Send + Sync>,
    ) -> Buffers {
        let iovecs: SmallVec<[libc::iovec; 1]> = ranges
            .into_iter()
            .map(|(base, n)| libc::iovec {
                iov_base: base.cast(),
                iov_len: n,
            })
            .collect();
        let len = iovecs.iter().map(|r| r.iov_len as u64).sum();
        Buffers {
            iovecs,
            len,
            _keep: keep,
        }
    }

    /// Buffers over memory of our own that holds these bytes: what is to be stored instead of
    /// the guest's data, or room for what is read.
    pub fn owned(bytes: Vec<u8>) -> Buffers {
        let mut bytes = bytes;
        let range = (bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the heap memory of the vector stays where it is until the Arc drops it, and
        // inside the Arc, as an `Any` that nobody asks for, nobody can make a reference to it.
        unsafe { Buffers::new([range], Arc::new(bytes)) }
    }

    /// The part of `len` bytes from byte `from` on (as much of it as there is).
    pub fn part(&self, from: u64, len: u64) -> Buffers {
        let (mut skip, mut left) = (from, len);
        let mut iovecs = SmallVec::new();
        for range in &self.iovecs {
            let have = range.iov_len as u64;
            let cut = skip.min(have);
            let take = left.min(have - cut);
            skip -= cut;
            left -= take;
            if take > 0 {
                iovecs.push(libc::iovec {
                    iov_base: range
                        .iov_base
                        .cast::<u8>()
                        .wrapping_add(cut as usize)
                        .cast(),
                    iov_len: take as usize,
                });
            }
        }
        Buffers {
            iovecs,
            len: len - left,
            _keep: self._keep.clone(),
        }
    }

    /// A copy of the bytes as they are now, word by word: they may change meanwhile.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.len).unwrap_or(0));
        for range in &self.iovecs {
            let (mut at, mut left) = (range.iov_base.cast::<u8>().cast_const(), range.iov_len);
            while left > 0 {
                let n = if left >= 8 && at.cast::<u64>().is_aligned() {
                    // SAFETY: `left` bytes from `at` on are mapped and readable (the contract of
                    // `new`), and `at` is aligned; volatile, because the memory is the guest's.
                    let word = unsafe { at.cast::<u64>().read_volatile() };
                    bytes.extend_from_slice(&word.to_ne_bytes());
                    8
                } else {
                    // SAFETY: as above, one byte.
                    bytes.push(unsafe { at.read_volatile() });
                    1
                };
                (at, left) = (at.wrapping_add(n), left - n);
            }
        }
        bytes
    }

    /// Copies the first bytes out, as many as there is room for. For memory that is too badly
    /// aligned for the store: what the guest writes meanwhile arrives or does not.
    pub fn copy_out(&self, to: &mut [u8]) {
        self.each_byte(to.len(), |n, from| {
            // SAFETY: `from` is a byte of a range of ours, mapped and readable (the contract of
            // `new`); volatile, as the guest may change it at any time.
            to[n] = unsafe { from.read_volatile() };
        });
    }

    /// Copies bytes into the first ones of ours.
    pub fn copy_in(&self, from: &[u8]) {
        self.each_byte(from.len(), |n, to| {
            // SAFETY: as above, and writable.
            unsafe { to.write_volatile(from[n]) };
        });
    }

    fn each_byte(&self, len: usize, mut visit: impl FnMut(usize, *mut u8)) {
        let mut at = 0;
        for range in &self.iovecs {
            let n = range.iov_len.min(len - at);
            for i in 0..n {
                visit(at + i, range.iov_base.cast::<u8>().wrapping_add(i));
            }
            at += n;
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there is nothing to transfer.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ranges, for `preadv(2)`, `pwritev(2)` and their like.
    pub fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }
}

impl fmt::Debug for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes in {} ranges", self.len, self.iovecs.len())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Memory of its own for a test; read back with [`Owned::bytes`].
    pub(crate) struct Owned(Mutex<Vec<u8>>);

    impl Owned {
        pub(crate) fn new(bytes: Vec<u8>) -> Arc<Owned> {
            Arc::new(Owned(Mutex::new(bytes)))
        }

        /// Buffers over the memory, cut into pieces of the given lengths (the last piece takes the rest).
        pub(crate) fn buffers(self: &Arc<Owned>, cuts: &[usize]) -> Buffers {
            let mut inner = self.0.lock().unwrap();
            let (base, total) = (inner.as_mut_ptr(), inner.len());
            let mut at = 0;
            let mut ranges = Vec::new();
            for &n in cuts.iter().chain([&total]) {
                let n = n.min(total - at);
                if n > 0 {
                    ranges.push((base.wrapping_add(at), n));
                    at += n;
                }
            }
            // SAFETY: the vector is never resized and lives in the Arc.
            unsafe { Buffers::new(ranges, self.clone()) }
        }

        pub(crate) fn bytes(&self) -> Vec<u8> {
            self.0.lock().unwrap().clone()
        }
    }

    #[test]
    fn parts_are_cut_across_ranges() {
        let memory = Owned::new((0..100).collect());
        let buffers = memory.buffers(&[10, 30]);
        let part = buffers.part(5, 50);
        assert_eq!(part.len(), 50);
        let lens: Vec<usize> = part.iovecs().iter().map(|r| r.iov_len).collect();
        assert_eq!(lens, [5, 30, 15]);
        assert_eq!(buffers.part(95, 50).len(), 5);
        assert!(buffers.part(200, 1).is_empty());
        assert_eq!(Buffers::owned(vec![1, 2, 3]).len(), 3);
    }

    #[test]
    fn a_copy_is_of_all_ranges_whatever_their_cut() {
        let all: Vec<u8> = (0..=250).collect();
        let memory = Owned::new(all.clone());
        for cuts in [&[][..], &[1, 7, 9, 64], &[8, 8, 3]] {
            assert_eq!(memory.buffers(cuts).to_vec(), all);
        }
        assert_eq!(memory.buffers(&[]).part(3, 20).to_vec(), &all[3..23]);
    }

    #[test]
    fn lengths_add_up_and_the_keeper_lives() {
        let memory = Owned::new(vec![1; 1000]);
        let buffers = memory.buffers(&[1, 512]);
        assert_eq!(buffers.len(), 1000);
        assert_eq!(buffers.iovecs().len(), 3);
        assert_eq!(Arc::strong_count(&memory), 2);
        drop(buffers);
        assert_eq!(Arc::strong_count(&memory), 1);
    }
}
