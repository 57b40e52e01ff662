// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! An open file that tells what is done with it: opening, closing, asking for
//! errors, changes that are no marked call, size and pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use twox_hash::XxHash3_64;
use wtblk_shared::mark::{Change, FileContents, FileMark, FilePages, Mark};

use crate::marks::Marks;
use crate::pages;
use crate::sys;
use crate::test::{Fail, OrFail};
use crate::world::World;

/// An open file with the numbers that a mark names it by.
pub struct OpenFile {
    /// The file.
    pub file: File,
    /// Number of this open file description.
    pub open: u64,
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Opened with O_DIRECT.
    pub direct: bool,
    marks: Arc<Marks>,
}

impl OpenFile {
    /// Opens for reading and writing, creates it where needed.
    pub fn open(world: &World, path: &Path, direct: bool) -> Result<OpenFile, Fail> {
        OpenFile::open_with(world, path, if direct { libc::O_DIRECT } else { 0 })
    }

    /// The same with more `O_*` flags.
    pub fn open_with(world: &World, path: &Path, flags: i32) -> Result<OpenFile, Fail> {
        let open = world.next_open();
        world.post(&Mark::File(FileMark::Opening { open }))?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(flags)
            .open(path)
            .or_fail(|| format!("open {}", path.display()))?;
        let meta = file.metadata().or_fail(|| "fstat".into())?;
        let (dev, ino) = (meta.dev(), meta.ino());
        world.post(&Mark::File(FileMark::Open { open, dev, ino }))?;
        Ok(OpenFile {
            file,
            open,
            dev,
            ino,
            direct: flags & libc::O_DIRECT != 0,
            marks: Arc::clone(&world.marks),
        })
    }

    /// i_size now.
    pub fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.size())
    }

    /// fsync, marked; what it returned: 0 or minus the errno.
    pub fn fsync(&self, world: &World) -> Result<i64, Fail> {
        self.ask(world, "fsync", File::sync_all)
    }

    /// syncfs of the file system that it is on, marked.
    pub fn syncfs(&self, world: &World) -> Result<i64, Fail> {
        self.ask(world, "syncfs", sys::syncfs)
    }

    /// sync_file_range of all of it that writes and waits, marked.
    pub fn sync_range(&self, world: &World) -> Result<i64, Fail> {
        self.ask(world, "sync_file_range_wait", sys::sync_file_range)
    }

    /// Asks for errors; the mark names how.
    pub fn ask(
        &self,
        world: &World,
        kind: &str,
        how: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<i64, Fail> {
        let sync = world.next_sync();
        let (open, kind) = (self.open, kind.to_owned());
        world.post(&Mark::File(FileMark::SyncBegin { sync, open, kind }))?;
        let result = sys::result_of(how(&self.file));
        world.post(&Mark::File(FileMark::SyncEnd { sync, result }))?;
        Ok(result)
    }

    /// Does something to the file that is no marked call: said before and after.
    pub fn change<T>(
        &self,
        world: &World,
        kind: &str,
        off: u64,
        len: u64,
        work: impl FnOnce(&File) -> T,
    ) -> Result<T, Fail> {
        self.marked(world, kind, off, len, work, |_| None)
    }

    /// The same, and tells how it came out: 0 or minus the errno.
    pub fn change_told(
        &self,
        world: &World,
        kind: &str,
        off: u64,
        len: u64,
        work: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<i64, Fail> {
        let work = |file: &File| sys::result_of(work(file));
        self.marked(world, kind, off, len, work, |result| Some(*result))
    }

    fn marked<T>(
        &self,
        world: &World,
        kind: &str,
        off: u64,
        len: u64,
        work: impl FnOnce(&File) -> T,
        result: impl FnOnce(&T) -> Option<i64>,
    ) -> Result<T, Fail> {
        let change = world.next_change();
        let begin = Change {
            change,
            dev: self.dev,
            ino: self.ino,
            off,
            len,
            kind: kind.to_owned(),
        };
        world.post(&Mark::File(FileMark::ChangeBegin(begin)))?;
        let done = work(&self.file);
        let result = result(&done);
        world.step();
        world.post(&Mark::File(FileMark::ChangeEnd { change, result }))?;
        Ok(done)
    }

    /// Allocates blocks (fallocate(2)); with `mode` 0 the file grows.
    pub fn allocate(&self, world: &World, mode: i32, off: u64, len: u64) -> Result<(), Fail> {
        let kind = if mode == 0 { "extend" } else { "allocate" };
        self.change(world, kind, off, len, |file| {
            sys::fallocate(file, mode, off, len)
        })?
        .map_err(|e| world.no_blocks(&e))
    }

    /// Tells what a reader sees in a range of whole sectors.
    pub fn tell_contents(&self, world: &World, off: u64, len: usize) -> Result<(), Fail> {
        // What is beyond the end of the file counts as zeros.
        let mut bytes = vec![0; len];
        let mut have = 0;
        while have < len {
            match self.file.read_at(&mut bytes[have..], off + have as u64) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) => return Err(Fail::Error(format!("reading head and tail: {e}"))),
            }
        }
        let digests = bytes.chunks(512).map(XxHash3_64::oneshot).collect();
        world.post(&Mark::File(FileMark::Contents(FileContents {
            dev: self.dev,
            ino: self.ino,
            off,
            digests,
        })))
    }

    /// Tells of poison in what was read from `off` on, a multiple of 16; what is to be said of it.
    pub fn tell_stale(&self, world: &World, off: u64, seen: &[u8]) -> String {
        let Some((at, sector)) = wtblk_shared::poison::find(seen) else {
            return String::new();
        };
        let mark = FileMark::Stale {
            dev: self.dev,
            ino: self.ino,
            off: off + at as u64,
            sector,
        };
        let lost = match world.post(&Mark::File(mark)) {
            Ok(()) => "",
            Err(_) => " (and the device was not told)",
        };
        format!(
            "; stale data shows: byte {at} of what was read is of sector {sector}, never written since mkfs{lost}"
        )
    }

    /// Tells i_size.
    pub fn tell_size(&self, world: &World, at: &str) -> Result<(), Fail> {
        let isize = self.size().or_fail(|| "fstat".into())?;
        world.post(&Mark::File(FileMark::Stat {
            dev: self.dev,
            ino: self.ino,
            isize,
            at: at.to_owned(),
        }))
    }

    /// Tells the state of all pages, twice: what is clean in both, the second
    /// looked at after the first went round, was clean when the first arrived.
    pub fn tell_pages(&self, world: &World, at: &str) -> Result<(), Fail> {
        if world.fact("cachestat") != "yes" {
            return Ok(());
        }
        let size = self.size().or_fail(|| "fstat".into())?;
        let len = size.next_multiple_of(4096).max(4096);
        for _ in 0..2 {
            let now = pages::state(&self.file, 0, len)?;
            world.post(&Mark::File(FileMark::Pages(FilePages {
                dev: self.dev,
                ino: self.ino,
                at: at.to_owned(),
                off: 0,
                len,
                dirty: now.dirty,
                writeback: now.writeback,
            })))?;
        }
        Ok(())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        // Lost, it only costs a verdict.
        let open = self.open;
        let _ = self.marks.post(&Mark::File(FileMark::Close { open }));
    }
}
