// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What has completed and not yet been reaped: a list and an eventfd.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::Completion;

/// Completions on their way from whoever does the work to the submitter.
pub(super) struct Done {
    list: Mutex<Vec<Completion>>,
    event: EventFd,
}

impl Done {
    pub(super) fn new() -> io::Result<Done> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Done {
            list: Mutex::new(Vec::new()),
            event: EventFd::from_flags(flags)?,
        })
    }

    /// Adds a completion and wakes the submitter.
    pub(super) fn push(&self, completion: Completion) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.push(completion);
        // Under the lock, and only for the first: `reap` drains the event before it takes the list.
        if list.len() == 1 {
            // Fails only when the counter is full, and then it is readable anyway.
            let _ = self.event.write(1);
        }
    }

    /// Moves everything into `into`.
    pub(super) fn reap(&self, into: &mut Vec<Completion>) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        if !list.is_empty() {
            let _ = self.event.read();
            into.append(&mut list);
        }
    }

    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

/// Completions of a store that does its work itself: they only wait for the next reap. There is
/// something to wait for only where work is left for it ([`AtOnce::set_readable`]).
pub(super) struct AtOnce {
    list: Vec<Completion>,
    event: EventFd,
    readable: bool,
}

impl AtOnce {
    pub(super) fn new() -> io::Result<AtOnce> {
        Ok(AtOnce {
            list: Vec::new(),
            event: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
            readable: false,
        })
    }

    pub(super) fn push(&mut self, completion: Completion) {
        self.list.push(completion);
    }

    pub(super) fn reap(&mut self, into: &mut Vec<Completion>) {
        into.append(&mut self.list);
    }

    /// Whether the next reap has something to do, or to give.
    pub(super) fn set_readable(&mut self, on: bool) {
        if std::mem::replace(&mut self.readable, on) != on {
            // Neither fails: a counter of 0 is written, one of 1 read.
            let _ = match on {
                true => self.event.write(1).map(drop),
                false => self.event.read().map(drop),
            };
        }
    }

    /// Readable where it was said so.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
