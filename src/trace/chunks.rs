// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file that grows by chunks, each allocated and mapped before its first use.
//! Using a chunk costs one load; only growing takes a lock.

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use super::format::{CHUNK_BYTES, HEADER_BYTES, MAX_CHUNKS};
use super::words::Words;

/// Chunks that stay in memory: what is made ahead, what is written, and one behind it.
const WINDOW: u64 = 4;

/// The chunks of one file.
#[derive(Debug)]
pub(super) struct Chunks {
    file: File,
    /// Not set: not there yet. `None`: there was no room and never will be.
    chunks: Box<[OnceLock<Option<Words>>]>,
    grow: Mutex<Growth>,
}

/// What the growing lock guards.
#[derive(Debug, Default)]
pub(super) struct Growth {
    /// Nothing grows any more.
    pub(super) stopped: bool,
}

/// What is known of a chunk.
pub(super) enum Chunk<'a> {
    /// Its words.
    Ready(&'a [AtomicU64]),
    /// There was no room for it.
    Lost,
    /// Nobody has made it yet, or it lies beyond the limit.
    Missing,
}

impl Chunks {
    pub(super) fn new(file: File) -> Chunks {
        Chunks {
            file,
            chunks: std::iter::repeat_with(OnceLock::new)
                .take(MAX_CHUNKS)
                .collect(),
            grow: Mutex::default(),
        }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn get(&self, index: u64) -> Chunk<'_> {
        let slot = usize::try_from(index).ok().and_then(|i| self.chunks.get(i));
        match slot.map(OnceLock::get) {
            Some(Some(Some(words))) => Chunk::Ready(words.get()),
            Some(None) | None => Chunk::Missing,
            Some(Some(None)) => Chunk::Lost,
        }
    }

    /// The lock that [`Chunks::make`] wants to see.
    pub(super) fn lock(&self) -> MutexGuard<'_, Growth> {
        // Nothing is half done under the lock, so poison means nothing.
        self.grow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Allocates and maps a chunk that [`Chunks::get`] called missing under this same lock.
    pub(super) fn make(&self, lock: &MutexGuard<'_, Growth>, index: u64) -> io::Result<()> {
        if lock.stopped {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        let slot = usize::try_from(index)
            .ok()
            .and_then(|i| self.chunks.get(i))
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EFBIG))?;
        let words = Words::allocate(
            &self.file,
            HEADER_BYTES + index * CHUNK_BYTES,
            CHUNK_BYTES as usize,
        )?;
        // Under the lock nobody else can have set it.
        let _ = slot.set(Some(words));
        Ok(())
    }

    /// Gives a chunk up for good.
    pub(super) fn give_up(&self, _lock: &MutexGuard<'_, Growth>, index: u64) {
        if let Some(slot) = usize::try_from(index).ok().and_then(|i| self.chunks.get(i)) {
            let _ = slot.set(None);
        }
    }

    /// Makes a chunk ahead of need, and lets old ones go from memory. Failing is nobody's loss yet.
    pub(super) fn make_ahead(&self, index: u64) {
        let lock = self.lock();
        if matches!(self.get(index), Chunk::Missing) {
            let made = self.make(&lock, index);
            drop(lock);
            if let (Ok(()), Some(words)) = (made, self.words(index)) {
                words.warm();
            }
        }
        // Somebody may still have a record to write there: then its page comes again.
        if let Some(old) = index.checked_sub(WINDOW).and_then(|old| self.words(old)) {
            old.cool();
        }
    }

    fn words(&self, index: u64) -> Option<&Words> {
        let slot = usize::try_from(index).ok().and_then(|i| self.chunks.get(i));
        slot.and_then(OnceLock::get).and_then(Option::as_ref)
    }

    /// Gives back what was allocated beyond the first `used` bytes after the
    /// header, as far as whole pages go. No thread may touch those any more.
    pub(super) fn cut(&self, _lock: &MutexGuard<'_, Growth>, used: u64) {
        let len = (HEADER_BYTES + used).next_multiple_of(HEADER_BYTES);
        // Where it fails the file is only longer than it need be.
        if self.file.metadata().is_ok_and(|m| m.len() > len) {
            let _ = self.file.set_len(len);
        }
    }
}
