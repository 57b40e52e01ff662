// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A file under test and what it must hold: every step writes into both, every
//! check compares them: in the page cache, on the disk, after a remount.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use wtblk_shared::mark::Extent;
use wtblk_shared::pattern;

use crate::call::{Call, Done, OpenFile};
use crate::probe::ROUNDS;
use crate::sys::mapping::Mapping;
use crate::sys::{self, Pages, result_text};
use crate::test::{Fail, OrFail, Test};
use crate::{fiemap, pages};

/// A file under test.
pub struct Subject {
    /// The open file; `None` while the file system is not mounted.
    file: Option<Arc<OpenFile>>,
    path: PathBuf,
    /// The file's number in the pattern.
    pub number: u32,
    version: u32,
    /// Offset in the file from which on its contents are followed: 0 but for very long files.
    base: u64,
    /// What the file must hold from `base` on; its end is i_size.
    pub expect: Vec<u8>,
}

impl Subject {
    /// A new, empty file.
    pub fn create(t: &Test, name: &str) -> Result<Subject, Fail> {
        let path = t.dir.join(name);
        Ok(Subject {
            file: Some(Arc::new(OpenFile::open(t.world, &path, false)?)),
            path,
            number: t.world.next_file(),
            version: 0,
            base: 0,
            expect: Vec::new(),
        })
    }

    /// A new file with a hole up to `base`, from which on it is followed.
    pub fn create_at(t: &Test, name: &str, base: u64) -> Result<Subject, Fail> {
        let mut s = Subject::create(t, name)?;
        s.base = base;
        Ok(s)
    }

    /// A new file of `len` bytes, written and synced by unmarked calls: clean
    /// pages and written extents.
    pub fn written(t: &Test, name: &str, len: u64) -> Result<Subject, Fail> {
        let mut s = Subject::create(t, name)?;
        s.prepare(t, 0, len)?;
        Ok(s)
    }

    /// Writes and syncs a range by unmarked calls.
    pub fn prepare(&mut self, t: &Test, off: u64, len: u64) -> Result<(), Fail> {
        self.prepare_in_steps(t, off, len, len)
    }

    /// The same by writes of so many bytes each: the folios are no larger than that.
    pub fn prepare_in_steps(
        &mut self,
        t: &Test,
        off: u64,
        len: u64,
        step: u64,
    ) -> Result<(), Fail> {
        let ends = off + len;
        let steps = (off..ends).step_by(step as usize);
        let parts: Vec<_> = steps.map(|at| (at, step.min(ends - at))).collect();
        self.put(off, len);
        self.write(t, &parts)?;
        self.sync(t)
    }

    /// Writes ranges, ascending, by unmarked calls and syncs nothing: dirty pages, and no blocks yet
    /// where there were none.
    pub fn dirty(&mut self, t: &Test, parts: &[(u64, u64)]) -> Result<(), Fail> {
        let version = self.next_version();
        for &(off, len) in parts {
            self.put_version(version, off, len);
        }
        self.write(t, parts)
    }

    /// Writes these bytes by an unmarked call and syncs them.
    pub fn prepare_bytes(&mut self, t: &Test, off: u64, bytes: &[u8]) -> Result<(), Fail> {
        let len = bytes.len() as u64;
        self.grow(off + len);
        let at = self.index(off);
        self.expect[at..at + bytes.len()].copy_from_slice(bytes);
        self.write(t, &[(off, len)])?;
        self.sync(t)
    }

    /// Stores a byte through a mapping of the file.
    pub fn store(&mut self, t: &Test, map: &Mapping, off: u64, byte: u8) -> Result<(), Fail> {
        let at = self.index(off);
        self.expect[at] = byte;
        self.open()
            .change(t.world, "mmap", off, 1, |_| map.store(off as usize, byte))
    }

    /// Writes what is expected in these ranges: told as one change of all that lies between.
    fn write(&self, t: &Test, parts: &[(u64, u64)]) -> Result<(), Fail> {
        let (Some(&(from, _)), Some(&(last, len))) = (parts.first(), parts.last()) else {
            return Ok(());
        };
        self.open()
            .change(t.world, "write", from, last + len - from, |f| {
                parts.iter().try_for_each(|&(off, len)| {
                    let bytes = &self.expect[self.index(off)..self.index(off + len)];
                    f.write_all_at(bytes, off)
                })
            })?
            .or_fail(|| "preparing write".into())
    }

    /// Syncs what was prepared.
    pub fn sync(&self, t: &Test) -> Result<(), Fail> {
        let file = self.open();
        let synced = file.fsync(t.world)?;
        if synced != 0 {
            return Err(Fail::Error(format!(
                "the preparing fsync returned {}",
                result_text(synced)
            )));
        }
        file.tell_pages(t.world, "prepared")
    }

    /// Allocates blocks that are unwritten; the file grows.
    pub fn allocate(&mut self, t: &Test, off: u64, len: u64) -> Result<(), Fail> {
        self.open().allocate(t.world, 0, off, len)?;
        self.grow(off + len);
        Ok(())
    }

    /// Cuts the file, by an unmarked call, and syncs it.
    pub fn truncate(&mut self, t: &Test, len: u64) -> Result<(), Fail> {
        self.open()
            .change(t.world, "truncate", len, self.end() - len, |f| {
                f.set_len(len)
            })?
            .or_fail(|| "truncate".into())?;
        self.expect.truncate(self.index(len));
        self.sync(t)
    }

    /// Where a byte of the file is in `expect`.
    pub fn index(&self, off: u64) -> usize {
        (off - self.base) as usize
    }

    /// The expected i_size.
    pub fn end(&self) -> u64 {
        match self.expect.len() as u64 {
            0 => 0,
            len => self.base + len,
        }
    }

    /// Offset in the file from which on its contents are followed.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn grow(&mut self, end: u64) {
        let end = self.index(end);
        if self.expect.len() < end {
            self.expect.resize(end, 0);
        }
    }

    /// The same by several steps of the caller's, up to `end`, told as one change.
    pub fn allocate_by(
        &mut self,
        t: &Test,
        end: u64,
        how: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), Fail> {
        self.open()
            .change(t.world, "extend", 0, end, how)?
            .map_err(|e| t.world.no_blocks(&e))?;
        if self.expect.len() < end as usize {
            self.expect.resize(end as usize, 0);
        }
        Ok(())
    }

    /// The open file.
    pub fn open(&self) -> &Arc<OpenFile> {
        self.file.as_ref().expect("the file is open")
    }

    /// The version written last.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Takes the next version of the pattern.
    pub fn next_version(&mut self) -> u32 {
        self.version += 1;
        self.version
    }

    /// Expects the next version in a range.
    pub fn put(&mut self, off: u64, len: u64) {
        let version = self.next_version();
        self.put_version(version, off, len);
    }

    /// Expects this version in a range.
    pub fn put_version(&mut self, version: u32, off: u64, len: u64) {
        self.grow(off + len);
        let (from, to) = (self.index(off), self.index(off + len));
        let part = &mut self.expect[from..to];
        pattern::fill(self.number, version, off, part);
    }

    /// One marked writethrough call of one buffer, checked in every way that
    /// needs no remount.
    pub fn writethrough(&mut self, t: &Test, off: u64, len: u64) -> Result<Done, Fail> {
        self.writethrough_parts(t, off, len, 1)
    }

    /// The same with the buffer cut into parts of an iovec.
    pub fn writethrough_parts(
        &mut self,
        t: &Test,
        off: u64,
        len: u64,
        parts: usize,
    ) -> Result<Done, Fail> {
        self.writethrough_with(t, off, len, parts, 0)
    }

    /// The same with more `RWF_*` flags.
    pub fn writethrough_with(
        &mut self,
        t: &Test,
        off: u64,
        len: u64,
        parts: usize,
        more: u32,
    ) -> Result<Done, Fail> {
        self.put(off, len);
        let done = self.call(t, off, len, more).run(parts)?;
        self.check_call(t, &done, off, len)?;
        Ok(done)
    }

    /// A call of what is expected there, with more `RWF_*` flags.
    pub fn call<'a>(&'a self, t: &Test, off: u64, len: u64, more: u32) -> Call<'a> {
        Call {
            world: t.world,
            test: t.name,
            file: self.open(),
            off,
            len,
            flags: t.world.params.flag | more,
            words: &[],
            pattern: (self.number, self.version),
        }
    }

    /// A plain write that makes pages dirty and leaves them so.
    pub fn write_plain(&mut self, t: &Test, off: u64, len: u64) -> Result<(), Fail> {
        self.put(off, len);
        let bytes = &self.expect[off as usize..(off + len) as usize];
        self.open()
            .change(t.world, "write", off, len, |f| f.write_all_at(bytes, off))?
            .or_fail(|| "plain write".into())
    }

    /// A plain write of these bytes.
    pub fn overwrite_plain(&mut self, t: &Test, off: u64, bytes: &[u8]) -> Result<(), Fail> {
        let len = bytes.len() as u64;
        self.open()
            .change(t.world, "write", off, len, |f| f.write_all_at(bytes, off))?
            .or_fail(|| "plain write".into())?;
        let (from, end) = (off as usize, off as usize + bytes.len());
        self.expect.resize(self.expect.len().max(end), 0);
        self.expect[from..end].copy_from_slice(bytes);
        Ok(())
    }

    /// fsync, which must succeed.
    pub fn synced(&self, t: &Test, when: &str) -> Result<(), Fail> {
        let result = self.open().fsync(t.world)?;
        t.check(result == 0, || {
            format!("fsync {when} returned {}", result_text(result))
        });
        Ok(())
    }

    /// The call must have written all of it: else what the file holds is not known, and it is no
    /// use to go on.
    pub fn check_result(&self, what: &str, done: &Done, len: u64) -> Result<(), Fail> {
        if done.result == len as i64 {
            return Ok(());
        }
        Err(Fail::Error(format!(
            "{what} returned {}, expected {len}",
            result_text(done.result)
        )))
    }

    /// What must be after a call that wrote this, in every way that needs no remount.
    pub fn check_call(&self, t: &Test, done: &Done, off: u64, len: u64) -> Result<(), Fail> {
        let what = format!("call {} (offset {off}, length {len})", done.call);
        self.check_result(&what, done, len)?;
        self.check_size(t, &what)?;
        self.check_clean(t, &what, done.call, off, len)?;
        self.check_on_disk(t, &what, off, len)?;
        self.check_range(t, &what, off, len)
    }

    /// What must be after a call of this version that could write `there` bytes and no more, in every way
    /// that needs no remount.
    pub fn check_short(
        &mut self,
        t: &Test,
        what: &str,
        call: u64,
        version: u32,
        (off, there): (u64, u64),
    ) -> Result<(), Fail> {
        self.put_version(version, off, there);
        self.check_clean(t, what, call, off, there)?;
        self.check_on_disk(t, what, off, there)?;
        self.check_whole(t, what)
    }

    /// Takes the pages out of the page cache, so that later calls meet no older, larger folios.
    pub fn evict(&self, t: &Test) -> Result<(), Fail> {
        let file = &self.open().file;
        sys::evict(file).or_fail(|| "fadvise".into())?;
        if t.world.fact("cachestat") == "yes" {
            let left = pages::state(file, 0, self.end())?.cached;
            if left > 0 {
                return Err(Fail::Error(format!("{left} pages stay in the page cache")));
            }
        }
        Ok(())
    }

    /// The file's pages can be taken out of the page cache: nobody holds on to them.
    pub fn check_evicts(&self, t: &Test, when: &str) {
        match self.evict(t) {
            Ok(()) => {}
            Err(Fail::Error(why)) => t.fail(format!("evicting {when}: {why}")),
            Err(other) => t.fail(format!("evicting {when}: {other:?}")),
        }
    }

    fn check_size(&self, t: &Test, what: &str) -> Result<(), Fail> {
        let size = self.open().size().or_fail(|| "fstat".into())?;
        let want = self.end();
        t.check(size == want, || {
            format!("{what}: i_size is {size}, expected {want}")
        });
        Ok(())
    }

    /// After the call its blocks are neither dirty nor in writeback.
    /// The device judges the same from the reports.
    pub fn check_clean(
        &self,
        t: &Test,
        what: &str,
        call: u64,
        off: u64,
        len: u64,
    ) -> Result<(), Fail> {
        if t.world.fact("cachestat") != "yes" {
            return Ok(());
        }
        let (from, to) = rounded(t.world.unit(), off, len);
        let s = pages::report(
            t.world,
            call,
            "after-call",
            &self.open().file,
            from,
            to - from,
        )?;
        t.check(s.dirty == 0 && s.writeback == 0, || {
            format!(
                "{what}: after it {} pages of its blocks are dirty and {} in writeback",
                s.dirty, s.writeback
            )
        });
        Ok(())
    }

    /// The disk holds the call's blocks. Read past the file system: reading the
    /// file with O_DIRECT would write dirty pages back first and hide the bug.
    pub fn check_on_disk(&self, t: &Test, what: &str, off: u64, len: u64) -> Result<(), Fail> {
        let (from, to) = rounded(t.world.bsize, off, len);
        let file = self.open();
        let Some(extents) = fiemap::extents(&file.file, from, to - from) else {
            t.note(format!("{what}: not compared on the disk, FIEMAP failed"));
            return Ok(());
        };
        let mut covered = 0;
        let places = fiemap::places(&extents, from, to - from);
        let whole = read_at_once(t, &places)?;
        for (logical, physical, length, flags) in places {
            covered += length;
            if flags & fiemap::UNWRITTEN != 0 {
                t.fail(format!(
                    "{what}: file offset {logical} is still an unwritten extent"
                ));
                continue;
            }
            let (begin, read) = match &whole {
                Some((begin, read)) => (*begin, read),
                None => (physical, &read_disk(t, physical, length)?),
            };
            let bytes = &read.bytes()[(physical - begin) as usize..][..length as usize];
            if let Some(i) = self.difference(logical, bytes) {
                t.fail(format!(
                    "{what}: the disk at byte {} (file offset {}) differs from what was written{}",
                    physical + i as u64,
                    logical + i as u64,
                    stale(bytes)
                ));
            }
        }
        t.check(covered == to - from, || {
            format!(
                "{what}: only {covered} of the {} bytes of its blocks have a place on the disk",
                to - from
            )
        });
        Ok(())
    }

    /// A reader sees what was written.
    pub fn check_range(&self, t: &Test, what: &str, off: u64, len: u64) -> Result<(), Fail> {
        let (from, to) = rounded(t.world.bsize, off, len);
        let to = to.min(self.end());
        let mut seen = vec![0; (to - from) as usize];
        self.open()
            .file
            .read_exact_at(&mut seen, from)
            .or_fail(|| format!("{what}: reading back"))?;
        if let Some(i) = self.difference(from, &seen) {
            t.fail(format!(
                "{what}: a read at file offset {} gives other bytes than were written{}",
                from + i as u64,
                self.open().tell_stale(t.world, from, &seen)
            ));
        }
        Ok(())
    }

    /// The whole file, its size included, as a reader sees it.
    pub fn check_whole(&self, t: &Test, when: &str) -> Result<(), Fail> {
        let what = format!("{} {when}", self.path.display());
        self.check_size(t, &what)?;
        let end = self.end();
        if end > 0 && self.open().size().or_fail(|| "fstat".into())? >= end {
            self.check_range(t, &what, self.base, end - self.base)?;
        }
        Ok(())
    }

    /// Closes the file, so that the file system can be unmounted.
    pub fn close(&mut self) {
        self.file = None;
    }

    /// Opens it again.
    pub fn reopen(&mut self, t: &Test) -> Result<(), Fail> {
        let file = OpenFile::open(t.world, &self.path, false)?;
        file.tell_size(t.world, "opened-again")?;
        self.file = Some(Arc::new(file));
        Ok(())
    }

    /// Where the file lies.
    pub fn extents(&self) -> Result<Vec<Extent>, Fail> {
        fiemap::extents(&self.open().file, 0, u64::MAX / 2)
            .ok_or_else(|| Fail::Error(format!("FIEMAP of {} failed", self.path.display())))
    }

    /// Where `seen`, read from `from` on, differs from what is expected: the
    /// index in it. Beyond i_size a block's bytes are zeros.
    fn difference(&self, from: u64, seen: &[u8]) -> Option<usize> {
        let known = self.expect.get(self.index(from)..).unwrap_or_default();
        let n = known.len().min(seen.len());
        // Whole slices first: byte by byte is slow under emulation.
        if seen[..n] == known[..n] && seen[n..].iter().all(|&b| b == 0) {
            return None;
        }
        (0..seen.len()).find(|&i| seen[i] != known.get(i).copied().unwrap_or(0))
    }
}

/// What is to be said of bytes, read from whole blocks, that are not what they should be: whether
/// something that was never written since mkfs shows through.
pub fn stale(seen: &[u8]) -> String {
    wtblk_shared::poison::find(seen).map_or_else(String::new, |(at, sector)| {
        format!("; stale data shows: byte {at} of what was read is of sector {sector}, never written since mkfs")
    })
}

/// Bytes of the disk, past the file system.
fn read_disk(t: &Test, physical: u64, length: u64) -> Result<Pages, Fail> {
    let mut pages =
        Pages::present((length as usize).next_multiple_of(4096)).or_fail(|| "buffer".into())?;
    t.world
        .raw
        .read_exact_at(&mut pages.bytes_mut()[..length as usize], physical)
        .or_fail(|| format!("reading the disk at {physical}"))?;
    Ok(pages)
}

/// All places in one read from where it begins, if they lie close together: under emulation a
/// request more costs as much as a quarter of a megabyte.
fn read_at_once(t: &Test, places: &[(u64, u64, u64, u32)]) -> Result<Option<(u64, Pages)>, Fail> {
    const MOST: u64 = 512 << 10;
    let begin = places.iter().map(|p| p.1).min().unwrap_or(0);
    let end = places.iter().map(|p| p.1 + p.2).max().unwrap_or(0);
    if places.len() < 2 || end - begin > MOST {
        return Ok(None);
    }
    Ok(Some((begin, read_disk(t, begin, end - begin)?)))
}

/// The blocks of a range: start of the first, end of the last.
pub fn rounded(bsize: u64, off: u64, len: u64) -> (u64, u64) {
    (off / bsize * bsize, (off + len).div_ceil(bsize) * bsize)
}

/// Syncs everything and drops all caches, which must take every page of the files away; then remounts the file
/// system and compares them with what the device gives.
pub fn check_after_remount(t: &Test, subjects: &mut [Subject]) -> Result<(), Fail> {
    let limit = t.world.params.probe * ROUNDS;
    t.world.limited("sync", limit, sys::sync)?;
    t.world
        .limited("drop_caches", limit, sys::drop_caches)?
        .or_fail(|| "drop_caches".into())?;
    if t.world.fact("cachestat") == "yes" {
        for s in subjects.iter().filter(|s| s.end() > 0) {
            let left = pages::state(&s.open().file, 0, s.end())?.cached;
            t.check(left == 0, || {
                let path = s.path.display();
                format!("{path}: {left} pages stay in the page cache after sync and drop_caches")
            });
        }
    }
    for s in subjects.iter_mut() {
        s.close();
    }
    t.world.remount()?;
    for s in subjects.iter_mut() {
        s.reopen(t)?;
        s.check_whole(t, "after a remount")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stale_bytes_are_named() {
        let mut block = vec![0; 4096];
        assert_eq!(stale(&block), "");
        wtblk_shared::poison::fill(77, &mut block[512..1024]);
        assert!(stale(&block).contains("byte 512 of what was read is of sector 77"));
    }

    #[test]
    fn ranges_are_rounded_out() {
        assert_eq!(rounded(4096, 0, 4096), (0, 4096));
        assert_eq!(rounded(4096, 4095, 2), (0, 8192));
        assert_eq!(rounded(4096, 4096, 1), (4096, 8192));
    }
}
