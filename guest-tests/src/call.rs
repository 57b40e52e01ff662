// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A marked call: fresh tag, extents, begin mark, system call, extents, end
//! mark, all by the calling thread.

use std::collections::BTreeSet;
use std::sync::Arc;

use wtblk_shared::mark::{CallBegin, CallEnd, Extent, Mark};
use wtblk_shared::tag::Tag;
use wtblk_shared::{RWF_DSYNC, RWF_NOWAIT, pattern};

use crate::beside::LIMIT;
use crate::fiemap;
pub use crate::open_file::OpenFile;
use crate::sys::uffd::FaultingBuffer;
use crate::sys::{self, Pages};
use crate::test::{Fail, OrFail};
use crate::world::World;

/// A call to make.
pub struct Call<'a> {
    /// The world.
    pub world: &'a World,
    /// Name of the test.
    pub test: &'a str,
    /// The file.
    pub file: &'a OpenFile,
    /// Offset in the file.
    pub off: u64,
    /// Length.
    pub len: u64,
    /// `RWF_*` flags.
    pub flags: u32,
    /// More words for the mark.
    pub words: &'a [&'a str],
    /// The bytes: file number and version of the pattern.
    pub pattern: (u32, u32),
}

/// A call that was made.
#[derive(Clone, Copy, Debug)]
pub struct Done {
    /// Its number.
    pub call: u64,
    /// Bytes written or minus errno.
    pub result: i64,
}

/// A call whose begin mark is out: for calls that are not one pwritev2.
pub struct Begun {
    /// Its number.
    pub call: u64,
    /// Its tag.
    pub tag: Option<Tag>,
    /// i_size before it.
    isize: u64,
    /// [`World::steps`] when it had begun.
    before: u64,
}

impl Call<'_> {
    /// Makes the call, its buffer cut into so many parts of an iovec. The
    /// result is the kernel's; an `Err` is trouble of ours.
    pub fn run(&self, parts: usize) -> Result<Done, Fail> {
        // The bytes first: nothing but the call between the marks.
        let len = self.len as usize;
        let mut pages = Pages::present(len.next_multiple_of(4096).max(4096))
            .or_fail(|| "buffer of a call".into())?;
        let (number, version) = self.pattern;
        pattern::fill(number, version, self.off, &mut pages.bytes_mut()[..len]);
        let whole = &pages.bytes()[..len];
        let parts: Vec<&[u8]> = whole.chunks(len.div_ceil(parts).max(1)).collect();
        self.marked(|_| sys::pwritev2(&self.file.file, &parts, self.off, self.flags))
    }

    /// Makes the call with the caller's buffer, one page of which somebody
    /// supplies while the call runs; `tell` gets the call's number before it.
    pub fn run_faulting(
        &self,
        buffer: &FaultingBuffer,
        tell: impl FnOnce(u64),
    ) -> Result<Done, Fail> {
        self.marked(|begun| {
            tell(begun.call);
            buffer.pwritev2(&self.file.file, self.len as usize, self.off, self.flags)
        })
    }

    /// The same by AIO, where it is the submission that stops; over with the completion event.
    pub fn run_faulting_async(
        &self,
        buffer: &Arc<FaultingBuffer>,
        tell: impl FnOnce(u64),
    ) -> Result<Done, Fail> {
        let begun = self.begin()?;
        tell(begun.call);
        // The request has the tag; the thread's own would hide that it is lost.
        self.world.untag_thread();
        let ioprio = begun.tag.map(Tag::ioprio);
        let (len, off, flags) = (self.len as usize, self.off, self.flags);
        let submitted = buffer.submit(&self.file.file, len, off, ioprio, flags);
        let result = match submitted {
            Ok(mut writes) => {
                let events = writes.collect(LIMIT).map_err(|e| {
                    Fail::Hung(format!("call {}: no completion event ({e})", begun.call))
                })?;
                events.first().map_or(-i64::from(libc::EIO), |e| e.1)
            }
            Err(e) => sys::result_of(Err(e)),
        };
        self.over(&begun, result)
    }

    /// Does `work` as a marked call; it is told the call's number and tag.
    pub fn marked(&self, work: impl FnOnce(&Begun) -> i64) -> Result<Done, Fail> {
        let begun = self.begin()?;
        let result = work(&begun);
        self.over(&begun, result)
    }

    /// Ends a call that has begun.
    pub fn over(&self, begun: &Begun, result: i64) -> Result<Done, Fail> {
        self.end(begun, result)?;
        self.world.step();
        self.world.untag_thread();
        if result == self.len as i64 && self.flags & self.world.params.flag != 0 {
            self.tell_edges()?;
        }
        Ok(Done {
            call: begun.call,
            result,
        })
    }

    /// Sends the begin mark, with a fresh tag that the calling thread has from now on.
    pub fn begin(&self) -> Result<Begun, Fail> {
        let world = self.world;
        let tag = world.tag_thread()?;
        let (call, before) = (world.next_call(), world.steps());
        let isize = self.file.size().or_fail(|| "fstat".into())?;
        world.post(&Mark::Begin(CallBegin {
            call,
            test: self.test.to_owned(),
            dev: self.file.dev,
            ino: self.file.ino,
            open: self.file.open,
            off: self.off,
            len: self.len,
            flags: self.flag_words(),
            isize,
            bsize: world.bsize,
            tag: tag.map(Tag::number),
            pattern: Some(self.pattern),
            extents: self.extents(),
        }))?;
        Ok(Begun {
            call,
            tag,
            isize,
            before,
        })
    }

    /// Where the file lies. With always_cow any write goes elsewhere, as it does where blocks are shared.
    fn extents(&self) -> Option<Vec<Extent>> {
        let mut list = fiemap::extents(&self.file.file, self.off, self.len)?;
        if self.world.always_cow() {
            list.iter_mut().for_each(|e| e.flags |= fiemap::SHARED);
        }
        Some(list)
    }

    fn end(&self, begun: &Begun, result: i64) -> Result<(), Fail> {
        let isize = match self.file.size() {
            // A file system that was shut down meanwhile answers nothing any more: what is known is told.
            Err(e) if e.raw_os_error() == Some(libc::EIO) && result < 0 => begun.isize,
            size => size.or_fail(|| "fstat".into())?,
        };
        self.world.post(&Mark::End(CallEnd {
            call: begun.call,
            result,
            isize,
            // With always_cow the call's blocks have moved on where somebody else has written them meanwhile.
            extents: match self.world.always_cow() && self.world.steps() != begun.before {
                true => None,
                false => self.extents(),
            },
        }))
    }

    /// Tells what a reader sees in the call's first and last block, where it wrote only a part of them.
    fn tell_edges(&self) -> Result<(), Fail> {
        let block = self.world.bsize;
        let end = self.off + self.len;
        let head = (!self.off.is_multiple_of(block)).then_some(self.off / block);
        let tail = (!end.is_multiple_of(block)).then_some(end / block);
        let blocks: BTreeSet<u64> = head.into_iter().chain(tail).collect();
        for number in blocks {
            self.file
                .tell_contents(self.world, number * block, block as usize)?;
        }
        Ok(())
    }

    fn flag_words(&self) -> Vec<String> {
        let flag = self.world.params.flag;
        let known = [
            (flag, "writethrough"),
            (RWF_DSYNC, "dsync"),
            (RWF_NOWAIT, "nowait"),
        ];
        known
            .iter()
            .filter(|(bit, _)| self.flags & bit != 0)
            .map(|(_, word)| *word)
            .chain(self.file.direct.then_some("direct"))
            .chain(self.words.iter().copied())
            .map(str::to_owned)
            .collect()
    }
}
