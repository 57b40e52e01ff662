// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Making ranges of a file read as zeros, a piece at a time: where zeros must be
//! written that takes seconds, and whoever asked may want it to end before.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::done::AtOnce;
use super::transfer::{Way, transfer};
use super::{Buffers, Completion, given_up};

/// Zeros written at once where the file system cannot zero a range.
const WRITTEN: u64 = 1 << 20;
/// Bytes of a range that the file system zeroes at once: what lies in memory has pages to free.
const ALLOCATED: u64 = 256 << 20;

/// One range on its way to zeros.
pub(super) struct Zeroing {
    at: u64,
    end: u64,
    how: FallocateFlags,
    /// Zeros to write: the file system does not know how.
    zeros: Option<Buffers>,
}

impl Zeroing {
    /// Of a file that is `capacity` bytes long. With `unmap` the room of the range is given back;
    /// without it the room stays, where the file system can do that.
    pub fn new(capacity: u64, offset: u64, len: u64, unmap: bool) -> io::Result<Zeroing> {
        // fallocate(2) would say yes to a range beyond the end, and no to an empty one.
        let end = offset.checked_add(len).filter(|&end| end <= capacity);
        let how = match unmap {
            true => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            false => FallocateFlags::FALLOC_FL_ZERO_RANGE,
        };
        Ok(Zeroing {
            at: offset,
            end: end.ok_or(io::ErrorKind::UnexpectedEof)?,
            how: how | FallocateFlags::FALLOC_FL_KEEP_SIZE,
            zeros: None,
        })
    }

    /// What the next step takes away; empty where it takes nothing.
    pub fn unmaps(&self) -> Range<u64> {
        match self.how.contains(FallocateFlags::FALLOC_FL_PUNCH_HOLE) {
            true => self.at..self.at + (self.end - self.at).min(ALLOCATED),
            false => 0..0,
        }
    }

    /// Does a piece; whether that was the last.
    pub fn step(&mut self, file: BorrowedFd<'_>) -> io::Result<bool> {
        let left = self.end - self.at;
        if left > 0 && self.zeros.is_none() {
            let len = left.min(ALLOCATED);
            match fallocate(file, self.how, self.at as libc::off_t, len as libc::off_t) {
                Ok(()) => self.at += len,
                Err(Errno::EINTR) => {}
                // tmpfs has no ZERO_RANGE, others have neither.
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => {
                    self.zeros = Some(Buffers::owned(vec![0; left.min(WRITTEN) as usize]));
                }
                Err(error) => return Err(error.into()),
            }
        } else if let Some(zeros) = &self.zeros {
            let part = zeros.part(0, left);
            transfer(file, Way::Out, self.at, &part)?;
            self.at += part.len();
        }
        Ok(self.at == self.end)
    }
}

/// Ranges that a queue zeroes itself, one piece at each reap.
#[derive(Default)]
pub(super) struct Zeroes(VecDeque<(u64, Zeroing)>);

impl Zeroes {
    /// Takes a range, or tells what is wrong with it.
    pub fn submit(&mut self, token: u64, zeroing: io::Result<Zeroing>, done: &mut AtOnce) {
        match zeroing {
            Ok(zeroing) => self.0.push_back((token, zeroing)),
            Err(error) => {
                let result = Err(error);
                done.push(Completion { token, result });
            }
        }
    }

    /// Does a piece. While there is more to do there is something to reap.
    pub fn step(&mut self, step: impl FnOnce(&mut Zeroing) -> io::Result<bool>, done: &mut AtOnce) {
        let Some((token, zeroing)) = self.0.front_mut() else {
            return;
        };
        let token = *token;
        let result = match step(zeroing) {
            Ok(false) => return done.set_readable(true),
            over => over.map(drop),
        };
        self.0.pop_front();
        done.push(Completion { token, result });
        done.set_readable(!self.0.is_empty());
    }

    /// Nothing more of them is done.
    pub fn give_up(&mut self, done: &mut AtOnce) {
        for (token, _) in self.0.drain(..) {
            let result = Err(given_up());
            done.push(Completion { token, result });
        }
        done.set_readable(false);
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use nix::sys::memfd::{MFdFlags, memfd_create};

    use super::super::buf::tests::Owned;
    use super::*;

    fn zero(file: &File, capacity: u64, offset: u64, len: u64, unmap: bool) -> io::Result<usize> {
        let mut zeroing = Zeroing::new(capacity, offset, len, unmap)?;
        let mut steps = 1;
        while !zeroing.step(file.as_fd())? {
            steps += 1;
        }
        Ok(steps)
    }

    #[test]
    fn zeroed_ranges_read_as_zeros_and_the_length_stays() {
        let memory = File::from(memfd_create(c"test", MFdFlags::MFD_CLOEXEC).unwrap());
        // The one without ZERO_RANGE, and whatever the temporary folder is on.
        for file in [&memory, &tempfile::tempfile().unwrap()] {
            let len = 3 * WRITTEN;
            let full = Owned::new(vec![7; len as usize]);
            for unmap in [false, true] {
                transfer(file.as_fd(), Way::Out, 0, &full.buffers(&[])).unwrap();
                zero(file, len, 512, len - 1024, unmap).unwrap();
                let to = Owned::new(vec![9; len as usize]);
                transfer(file.as_fd(), Way::In, 0, &to.buffers(&[])).unwrap();
                let mut want = vec![7; len as usize];
                want[512..len as usize - 512].fill(0);
                assert!(to.bytes() == want);
                assert_eq!(zero(file, len, len, 0, unmap).unwrap(), 1);
                assert!(zero(file, len, len - 512, 1024, unmap).is_err());
                assert!(zero(file, len, u64::MAX, 512, unmap).is_err());
                assert_eq!(file.metadata().unwrap().len(), len);
            }
        }
        // In pieces, written ones and such that the file system zeroes.
        assert_eq!(
            zero(&memory, 8 * WRITTEN, 0, 3 * WRITTEN, false).unwrap(),
            4
        );
        memory.set_len(3 * ALLOCATED).unwrap();
        assert_eq!(
            zero(&memory, 3 * ALLOCATED, 0, 3 * ALLOCATED, true).unwrap(),
            3
        );
    }
}
