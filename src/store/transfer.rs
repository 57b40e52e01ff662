// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One whole transfer between a file and buffers: long lists are cut to what
//! the kernel takes at once, short transfers are finished, signals retried.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::fstat;

use super::Buffers;

/// Most iovecs that one system call takes (`UIO_MAXIOV`, linux/uio.h).
pub(super) const IOV_MAX: usize = 1024;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// File to buffers.
    In,
    /// Buffers to file.
    Out,
}

/// Transfers all of `buffers` from or to `offset` of the file.
pub(super) fn transfer(
    file: BorrowedFd<'_>,
    way: Way,
    offset: u64,
    buffers: &Buffers,
) -> io::Result<()> {
    if let [whole] = buffers.iovecs() {
        // The common case, without a list of what is left.
        let mut rest = [*whole];
        return transfer_all(file, way, offset, &mut rest);
    }
    transfer_all(file, way, offset, &mut buffers.iovecs().to_vec())
}

/// The list is used up; its ranges are those of buffers that outlive the call.
fn transfer_all(
    file: BorrowedFd<'_>,
    way: Way,
    offset: u64,
    rest: &mut [libc::iovec],
) -> io::Result<()> {
    let mut first = 0;
    let mut offset = offset;
    while first < rest.len() {
        let count = (rest.len() - first).min(IOV_MAX);
        let at =
            libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        let list = &rest[first..first + count];
        let fd = file.as_raw_fd();
        let n = if let [one] = list {
            // The kernel need not fetch a list then.
            // SAFETY: the range stays mapped while `buffers` lives (its contract), and the kernel
            // checks it.
            unsafe {
                match way {
                    Way::In => libc::pread(fd, one.iov_base, one.iov_len, at),
                    Way::Out => libc::pwrite(fd, one.iov_base, one.iov_len, at),
                }
            }
        } else {
            // SAFETY: `list` is valid for `count` entries (at most IOV_MAX, so it fits c_int); the
            // ranges as above.
            unsafe {
                match way {
                    Way::In => libc::preadv(fd, list.as_ptr(), count as libc::c_int, at),
                    Way::Out => libc::pwritev(fd, list.as_ptr(), count as libc::c_int, at),
                }
            }
        };
        let Ok(done) = usize::try_from(n) else {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        };
        if done == 0 {
            // Reading: the file has shrunk below the capacity that was announced.
            return Err(match way {
                Way::In => io::ErrorKind::UnexpectedEof.into(),
                Way::Out => io::ErrorKind::WriteZero.into(),
            });
        }
        offset += done as u64;
        first = advance(rest, first, done);
    }
    Ok(())
}

/// An error where somebody has cut the file short: what was written to it is gone, and what a
/// mapping takes beyond its end (to the end of a page) never was in it. So a flush must not say
/// that all is durable, nor a discard that the range reads as zeros.
pub(super) fn whole(file: BorrowedFd<'_>, capacity: u64) -> io::Result<()> {
    let now = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    if now < capacity {
        return Err(io::Error::other(format!(
            "somebody has cut the file to {now} bytes, it had {capacity}"
        )));
    }
    Ok(())
}

/// The same before a write to the end of the disk: it alone would make a file that was cut as long
/// as before, and nobody would find out.
pub(super) fn last(file: BorrowedFd<'_>, capacity: u64, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end < capacity => Ok(()),
        _ => whole(file, capacity),
    }
}

/// Fills the buffers with zeros: by a system call, as their memory is never touched by us.
pub(super) fn fill_zeros(buffers: &Buffers) -> io::Result<()> {
    static ZEROS: OnceLock<File> = OnceLock::new();
    let zeros = match ZEROS.get() {
        Some(zeros) => zeros,
        None => {
            let file = File::from(memfd_create(c"wtblk-zeros", MFdFlags::MFD_CLOEXEC)?);
            // One hole, which a read does not fill; longer than any request.
            file.set_len(1 << 40)?;
            ZEROS.get_or_init(|| file)
        }
    };
    transfer(zeros.as_fd(), Way::In, 0, buffers)
}

/// Takes `done` bytes off the front of the list; the index of the first range left.
pub(super) fn advance(rest: &mut [libc::iovec], mut first: usize, mut done: usize) -> usize {
    while let Some(range) = rest.get_mut(first) {
        if done < range.iov_len {
            range.iov_base = range.iov_base.cast::<u8>().wrapping_add(done).cast();
            range.iov_len -= done;
            break;
        }
        done -= range.iov_len;
        first += 1;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::super::buf::tests::Owned;
    use super::*;

    #[test]
    fn long_lists_and_odd_cuts_arrive_whole() {
        let file = tempfile::tempfile().unwrap();
        let data: Vec<u8> = (0..100_000u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let from = Owned::new(data.clone());
        transfer(file.as_fd(), Way::Out, 512, &from.buffers(&[3; 5000])).unwrap();
        let to = Owned::new(vec![0; data.len()]);
        transfer(file.as_fd(), Way::In, 512, &to.buffers(&[7; 3000])).unwrap();
        assert!(to.bytes() == data);
    }

    #[test]
    fn the_end_of_the_file_is_an_error_not_a_loop() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1000).unwrap();
        let to = Owned::new(vec![0; 4096]);
        let e = transfer(file.as_fd(), Way::In, 0, &to.buffers(&[])).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn buffers_are_filled_with_zeros() {
        let to = Owned::new(vec![9; 5000]);
        fill_zeros(&to.buffers(&[1, 4095])).unwrap();
        assert_eq!(to.bytes(), [0; 5000]);
    }

    #[test]
    fn advancing_splits_and_skips() {
        let mut list = [10usize, 20, 30].map(|n| libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: n,
        });
        assert_eq!(advance(&mut list, 0, 10), 1);
        assert_eq!(advance(&mut list, 1, 25), 2);
        assert_eq!(list[2].iov_len, 25);
        assert_eq!(advance(&mut list, 2, 25), 3);
    }
}
