// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An eventfd that `poll` can wait for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// See the module.
pub(super) struct Wake(EventFd);

impl Wake {
    pub fn new() -> io::Result<Wake> {
        Ok(Wake(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))
    }

    /// Makes it readable.
    pub fn signal(&self) {
        // A full counter is readable already.
        if let Err(error) = self.0.write(1)
            && error.kind() != io::ErrorKind::WouldBlock
        {
            tracing::warn!(%error, "cannot write an eventfd");
        }
    }

    /// Makes it unreadable.
    pub fn drain(&self) {
        // Fails where it was unreadable before.
        let _ = self.try_drain();
    }

    /// Makes it unreadable, or says why not.
    pub fn try_drain(&self) -> io::Result<()> {
        self.0.read().map(drop)
    }
}

/// An eventfd of the front end.
impl From<File> for Wake {
    fn from(file: File) -> Wake {
        // SAFETY: the file gives up the fd that it owned alone.
        Wake(unsafe { EventFd::from_raw_fd(file.into_raw_fd()) })
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the fd is open as long as `self`, from which the lifetime is.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

    fn readable(wake: &Wake) -> bool {
        let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) == Ok(1)
    }

    #[test]
    fn it_is_readable_from_a_signal_to_a_drain() {
        let wake = Wake::new().unwrap();
        assert!(!readable(&wake) && wake.try_drain().is_err());
        wake.signal();
        wake.signal();
        assert!(readable(&wake));
        wake.drain();
        assert!(!readable(&wake));
    }

    /// The file's descriptor is the value's own from then on, and closed with it.
    #[test]
    fn a_front_ends_eventfd_is_owned_alone() {
        let flags = nix::sys::eventfd::EfdFlags::EFD_NONBLOCK;
        let theirs = nix::sys::eventfd::EventFd::from_flags(flags).unwrap();
        let file = File::from(theirs.as_fd().try_clone_to_owned().unwrap());
        let number = file.as_raw_fd();
        let wake = Wake::from(file);
        assert_eq!(wake.as_fd().as_raw_fd(), number);
        wake.signal();
        assert_eq!(theirs.read(), Ok(1));
        theirs.write(7).unwrap();
        assert!(readable(&wake));
        drop(wake);
        // Theirs is another descriptor of the same.
        assert_eq!(theirs.read(), Ok(7));
    }
}
