// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A marked call: its requests while it runs, and what they were once it ended.

use std::ops::Range;

use wtblk_shared::mark::{CallBegin, CallEnd};
use wtblk_shared::tag::Tag;

use super::extents::{FileMap, Fragment, Fragments};
use super::flight::bytes_of;
use super::verdict::CallRef;
use crate::trace::event::{Op, RequestId, Status, Submit};

/// Requests kept of one call. A call of 1 GiB in pieces of 32 KiB has half as many.
const MAX_REQUESTS: usize = 1 << 16;
/// Parts in the file that they may have together.
const MAX_FRAGMENTS: usize = 1 << 18;
/// Requests that a call with any has room for at once.
const USUAL_REQUESTS: usize = 16;
const TOO_MANY_REQUESTS: &str = "too many requests of one call";
/// Failed requests that are remembered of a call that ended.
const MAX_FAILED: usize = 8;
/// How far beyond its range a call's folios may reach: the largest folio of x86.
const FOLIO_REACH: u64 = 2 << 20;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// The completion's sequence number.
    pub seq: u64,
    /// The status byte.
    pub status: Status,
    /// Its data was then what it was when taken; `None`: nobody looked.
    pub stable: Option<bool>,
    /// Ring positions before it were used before the guest could see the completion.
    pub avail_after: u16,
}

/// What a request is to its call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Not known before the end: blocks of holes and copies have no place yet.
    #[default]
    Unknown,
    /// A write with every sector inside the call's range.
    Data(Fragments),
    /// A write with some sectors inside and some not: merged with a neighbour.
    Straddling,
    /// Any other request with the tag.
    Side,
}

/// A request that carries the call's tag.
#[derive(Clone, Debug)]
pub struct CallRequest {
    /// Its number.
    pub id: RequestId,
    /// Kind.
    pub op: Op,
    /// Queue.
    pub queue: u16,
    /// First sector.
    pub sector: u64,
    /// Length, bytes.
    pub bytes: u32,
    /// Its bytes on the disk.
    pub disk: Range<u64>,
    /// How it ended; `None`: in flight, or abandoned by a stop.
    pub done: Option<Done>,
    /// What it is.
    pub class: Class,
}

impl CallRequest {
    fn new(id: RequestId, s: &Submit) -> CallRequest {
        CallRequest {
            id,
            op: s.op,
            queue: s.queue,
            sector: s.sector,
            bytes: s.bytes,
            disk: bytes_of(s),
            done: None,
            class: Class::Unknown,
        }
    }

    /// Its parts in the file, where it is a data request.
    pub fn fragments(&self) -> &[Fragment] {
        match &self.class {
            Class::Data(fragments) => fragments,
            _ => &[],
        }
    }

    /// The lowest file offset it touches. A merge can put several blocks into
    /// one request in any order, so only the lowest says when it was begun.
    pub fn file_offset(&self) -> Option<u64> {
        self.fragments().iter().map(|f| f.file).min()
    }

    /// Whether it was completed with an error.
    pub fn failed(&self) -> bool {
        self.done.is_some_and(|d| !d.status.is_ok())
    }

    /// "request 17 (sector 2048, 4096 bytes, file offset 0)".
    pub fn describe(&self) -> String {
        let place = match self.file_offset() {
            Some(offset) => format!(", file offset {offset}"),
            None => String::new(),
        };
        format!(
            "request {} (sector {}, {} bytes{place})",
            self.id, self.sector, self.bytes
        )
    }
}

/// What was known at a call's begin: its first requests were sent under it.
#[derive(Clone, Debug, Default)]
pub struct FactsThen {
    /// Changes until then of what the order depends on.
    pub changes: u64,
    /// Why arrival order said nothing about submission order.
    pub order_unknown: Option<String>,
    /// Why tags could not be trusted.
    pub tags_inexact: Option<&'static str>,
}

/// A call that has begun.
#[derive(Debug)]
pub struct Call {
    /// Its begin mark.
    pub begin: CallBegin,
    /// That mark's number.
    pub begin_seq: u64,
    /// The requests with its tag, in order of arrival.
    pub requests: Vec<CallRequest>,
    /// Untagged writes, kept only for a probe of the tag.
    strangers: Vec<CallRequest>,
    /// What makes its requests impossible to judge.
    pub obstacle: Option<&'static str>,
    /// Another marked call wrote to the same folios meanwhile.
    pub concurrent: bool,
    /// It has the flag `direct`.
    pub direct: bool,
    /// What was known at its begin.
    pub facts: FactsThen,
    /// Its place among all that began.
    pub age: u64,
    /// Failed writes that are its data already by the extents of its begin.
    pub failed_data: u64,
    /// Those extents, once they were asked for.
    begin_map: Option<FileMap>,
}

impl Call {
    /// A call that begins at the event `seq`.
    pub fn new(begin: CallBegin, seq: u64) -> Call {
        Call {
            obstacle: (begin.bsize == 0).then_some("the file system's block size is not known"),
            direct: has_flag(&begin, "direct"),
            begin,
            begin_seq: seq,
            requests: Vec::new(),
            strangers: Vec::new(),
            concurrent: false,
            facts: FactsThen::default(),
            age: 0,
            failed_data: 0,
            begin_map: None,
        }
    }

    /// Takes a request with the call's tag; its place in the list.
    pub fn take(&mut self, id: RequestId, s: &Submit, room: bool) -> Option<usize> {
        if !room || self.requests.len() == MAX_REQUESTS {
            self.obstacle.get_or_insert(TOO_MANY_REQUESTS);
            return None;
        }
        if self.requests.is_empty() {
            self.requests.reserve(USUAL_REQUESTS);
        }
        self.requests.push(CallRequest::new(id, s));
        Some(self.requests.len() - 1)
    }

    /// Takes an untagged write that arrived while a probe of the tag ran.
    pub fn take_stranger(&mut self, id: RequestId, s: &Submit) {
        if self.strangers.len() < 1024 {
            self.strangers.push(CallRequest::new(id, s));
        }
    }

    /// The call's range, rounded out to blocks.
    pub fn range(&self) -> Range<u64> {
        round_out(&self.begin, self.begin.len)
    }

    /// Whether a call overlaps this one's folios in the same file.
    pub fn meets(&self, other: &CallBegin) -> bool {
        let ours = self.range();
        let theirs = round_out(other, other.len);
        (self.begin.dev, self.begin.ino) == (other.dev, other.ino)
            && ours.start < theirs.end.saturating_add(FOLIO_REACH)
            && theirs.start < ours.end.saturating_add(FOLIO_REACH)
    }

    /// A request of it failed: 1 where it is data already by the extents of the begin.
    pub fn count_failure(&mut self, index: usize) -> u64 {
        let range = self.range();
        let extents = self.begin.extents.as_deref();
        let map = self
            .begin_map
            .get_or_insert_with(|| FileMap::new(&range, [extents, None]));
        let request = self.requests.get(index);
        let data = request.is_some_and(|r| matches!(classify(r, map), Class::Data(_)));
        self.failed_data += u64::from(data);
        u64::from(data)
    }

    /// The call ended.
    pub fn end(self, end: CallEnd, end_seq: u64) -> EndedCall {
        let range = self.range();
        let map = FileMap::new(
            &range,
            [end.extents.as_deref(), self.begin.extents.as_deref()],
        );
        let mut requests = self.requests;
        let mut obstacle = self.obstacle;
        let mut fragments = 0;
        for r in &mut requests {
            r.class = classify(r, &map);
            fragments += r.fragments().len();
            if fragments > MAX_FRAGMENTS {
                r.class = Class::Unknown;
                obstacle.get_or_insert(TOO_MANY_REQUESTS);
                break;
            }
        }
        let stray = |r: &CallRequest| matches!(classify(r, &map), Class::Data(_));
        EndedCall {
            data_in_flight: requests
                .iter()
                .filter(|r| r.done.is_none() && matches!(r.class, Class::Data(_)))
                .map(|r| r.id)
                .collect(),
            untagged_data: self.strangers.iter().any(stray),
            begin: self.begin,
            begin_seq: self.begin_seq,
            end,
            end_seq,
            requests,
            range,
            map,
            obstacle,
            concurrent: self.concurrent,
            facts: self.facts,
            other_failures: false,
        }
    }
}

/// A call that has ended.
#[derive(Debug)]
pub struct EndedCall {
    /// Its begin mark.
    pub begin: CallBegin,
    /// That mark's number.
    pub begin_seq: u64,
    /// Its end mark.
    pub end: CallEnd,
    /// That mark's number.
    pub end_seq: u64,
    /// The requests with its tag, in order of arrival, classed.
    pub requests: Vec<CallRequest>,
    /// Its range, rounded out to blocks.
    pub range: Range<u64>,
    /// The places of that range.
    pub map: FileMap,
    /// Data requests that were in flight at the end mark.
    pub data_in_flight: Vec<RequestId>,
    /// A probe of the tag saw its data come without it.
    pub untagged_data: bool,
    /// What makes its requests impossible to judge.
    pub obstacle: Option<&'static str>,
    /// Another marked call wrote to the same folios meanwhile.
    pub concurrent: bool,
    /// What was known at its begin.
    pub facts: FactsThen,
    /// Before the end, requests of nobody failed in this boot.
    pub other_failures: bool,
}

impl EndedCall {
    /// Its data requests, in order of arrival.
    pub fn data(&self) -> impl Iterator<Item = &CallRequest> {
        self.requests
            .iter()
            .filter(|r| matches!(r.class, Class::Data(_)))
    }

    /// The blocks from the old end of the file's to the call's first, where the call begins beyond that end: they are
    /// zeroed first, and flushed if they are dirty or unwritten (`iomap_zero_range`), by the caller and so with its tag.
    pub fn zeroed_first(&self) -> Range<u64> {
        let begin = &self.begin;
        if begin.isize >= begin.off {
            return 0..0;
        }
        let block = begin.bsize.max(1);
        let end = begin.off.checked_next_multiple_of(block);
        begin.isize - begin.isize % block..end.unwrap_or(u64::MAX)
    }

    /// Whether the begin mark names this flag.
    pub fn is(&self, flag: &str) -> bool {
        has_flag(&self.begin, flag)
    }

    /// Whether FIEMAP told anything, before or after.
    pub fn extents_known(&self) -> bool {
        self.begin.extents.is_some() || self.end.extents.is_some()
    }

    /// Why nothing can be said about its data requests as a whole.
    pub fn data_unclear(&self) -> Option<&'static str> {
        if !self.extents_known() {
            Some("extents unknown")
        } else if self.requests.iter().any(|r| r.class == Class::Straddling) {
            Some("a request of the call lies only partly in its range: merged with a neighbour")
        } else {
            None
        }
    }

    /// Why there is no data request to judge.
    pub fn why_no_data(&self) -> &'static str {
        let wrote = self.requests.iter().any(|r| r.op == Op::Write);
        if !self.extents_known() || (wrote && !self.map.covers(&self.range)) {
            "extents unknown"
        } else {
            "no data request of the call was seen"
        }
    }

    /// The range that was written by what the call returned, rounded out to blocks.
    pub fn written(&self) -> Range<u64> {
        round_out(&self.begin, u64::try_from(self.end.result).unwrap_or(0))
    }

    /// The name of the test.
    pub fn test(&self) -> &str {
        &self.begin.test
    }

    /// For a finding.
    pub fn reference(&self) -> CallRef {
        reference(&self.begin, Some(self.end.result))
    }

    /// Begin and end and the given requests, for a finding.
    pub fn proof<'a>(&self, requests: impl Iterator<Item = &'a CallRequest>) -> Vec<u64> {
        let ids = requests.flat_map(|r| [Some(r.id), r.done.map(|d| d.seq)]);
        ids.flatten()
            .chain([self.begin_seq, self.end_seq])
            .collect()
    }

    /// What is kept of the call for reports and probes that come later.
    pub fn past(&self) -> PastCall {
        // The neighbourhood counts too: extents are told whole, folios are large.
        let reach = self.range.start.saturating_sub(FOLIO_REACH)
            ..self.range.end.saturating_add(FOLIO_REACH);
        let mut near = Vec::new();
        for e in [&self.begin.extents, &self.end.extents]
            .into_iter()
            .flatten()
            .flatten()
        {
            let start = e.logical.max(reach.start);
            let end = e.logical.saturating_add(e.length).min(reach.end);
            if e.has_place() && start < end {
                let disk = e.physical.saturating_add(start - e.logical);
                near.push(disk..disk.saturating_add(end - start));
            }
        }
        let near = join(near);
        let failed = self.requests.iter().filter(|r| r.failed());
        PastCall {
            call: self.reference(),
            test: self.begin.test.clone(),
            writethrough: self.is("writethrough"),
            end_seq: self.end_seq,
            range: self.range.clone(),
            near,
            failed: failed.take(MAX_FAILED).cloned().collect(),
        }
    }
}

/// What is left of a call after it was judged.
#[derive(Clone, Debug)]
pub struct PastCall {
    /// The call.
    pub call: CallRef,
    /// Its test.
    pub test: String,
    /// It had the flag.
    pub writethrough: bool,
    /// Number of its end mark.
    pub end_seq: u64,
    /// Its range in the file, rounded out to blocks.
    pub range: Range<u64>,
    /// Its blocks on the disk and those that may share a folio with them, ascending
    /// and apart from each other.
    pub near: Vec<Range<u64>>,
    /// Its failed requests, the first few.
    pub failed: Vec<CallRequest>,
}

impl PastCall {
    /// A data request in flight at the end was completed with an error.
    pub fn failed_late(&mut self, request: &CallRequest) {
        if self.failed.len() < MAX_FAILED {
            self.failed.push(request.clone());
        }
    }
}

/// The same bytes in ascending ranges with gaps between them.
fn join(mut list: Vec<Range<u64>>) -> Vec<Range<u64>> {
    list.sort_unstable_by_key(|r| (r.start, r.end));
    let mut joined: Vec<Range<u64>> = Vec::new();
    for r in list {
        match joined.last_mut() {
            Some(last) if last.end >= r.start => last.end = last.end.max(r.end),
            _ => joined.push(r),
        }
    }
    joined
}

/// For a finding.
pub fn reference(begin: &CallBegin, result: Option<i64>) -> CallRef {
    CallRef {
        call: begin.call,
        dev: begin.dev,
        ino: begin.ino,
        open: begin.open,
        off: begin.off,
        len: begin.len,
        flags: begin.flags.clone(),
        tag: begin.tag.filter(|t| Tag::new(*t).is_some()),
        result,
    }
}

/// Whether the begin mark names this flag.
pub fn has_flag(begin: &CallBegin, flag: &str) -> bool {
    begin.flags.iter().any(|f| f == flag)
}

fn classify(r: &CallRequest, map: &FileMap) -> Class {
    if r.op != Op::Write || r.disk.is_empty() {
        return Class::Side;
    }
    let fragments = map.locate(&r.disk);
    let inside: u64 = fragments.iter().map(|f| f.len).sum();
    if inside == 0 {
        Class::Side
    } else if inside == r.disk.end - r.disk.start {
        Class::Data(fragments)
    } else {
        Class::Straddling
    }
}

/// `[off, off + len)` rounded out to blocks; nothing where the length is 0.
fn round_out(begin: &CallBegin, len: u64) -> Range<u64> {
    let block = begin.bsize.max(1);
    let start = begin.off - begin.off % block;
    if len == 0 {
        return start..start;
    }
    let end = begin.off.saturating_add(len);
    start..end.checked_next_multiple_of(block).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What touches becomes one, what lies inside another adds nothing, a gap stays.
    #[test]
    fn joined_ranges_are_ascending_and_apart() {
        let list = [6..8, 0..4, 4..6, 2..3, 10..12].to_vec();
        assert_eq!(join(list), [0..8, 10..12]);
    }
}
