// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The calls that are under way, as the guest's marks tell: which request is
//! which call's, and the how-many-th. Marks come from a hostile guest, so what
//! is kept is bounded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::CallBegin;
use wtblk_shared::tag::Tag;

use super::index::place as place_of;
use super::request::Request;
use crate::trace::event::Op;

/// Most calls under way; one more drops the oldest.
pub(super) const MAX_CALLS: usize = 4096;
/// Most counts of rules in all of them.
const MAX_COUNTS: usize = 256 * 1024;
/// Most pieces of disk that all of them together may lie on.
const MAX_PIECES: usize = 256 * 1024;

/// FIEMAP_EXTENT_ENCODED and FIEMAP_EXTENT_SHARED: a write goes elsewhere.
const NOT_IN_PLACE: u32 = 0x8 | 0x2000;

/// The calls under way.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Calls {
    /// By age, the oldest first.
    calls: BTreeMap<u64, Call>,
    by_tag: HashMap<Tag, u64>,
    by_number: HashMap<u64, u64>,
    /// Calls without a tag (`--tags off`): told by their place alone.
    untagged: BTreeSet<u64>,
    next_age: u64,
    pieces: usize,
    /// Counts that rules keep in all of them together.
    counts: usize,
    dropped: u64,
}

#[derive(Clone, Debug, PartialEq)]
struct Call {
    number: u64,
    tag: Option<Tag>,
    /// Sectors of its rounded-out range, sorted and merged; `None` where not all
    /// of the range has a place that the write will go to.
    place: Option<Vec<Range<u64>>>,
    seen: [u64; 7],
    ino: u64,
    /// Which of the flags that rules speak of it has.
    flags: u64,
    /// Where its pieces lie in the file; kept only where a rule asks.
    file: Vec<(Range<u64>, u64)>,
    /// First byte of the rounded-out range.
    start: u64,
    /// Bytes of its data requests so far, read and written.
    bytes: [u64; 2],
    /// What rules count in it: when armed last, and how many.
    counts: HashMap<usize, (u64, u64)>,
}

/// A request's call, as rules see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) age: u64,
    pub(super) number: u64,
    pub(super) ino: u64,
    pub(super) flags: u64,
    /// `None`: it is not one of the data requests.
    pub(super) position: Option<Position>,
    /// The bytes of the file that it is about; of an allocating call those it
    /// would be about if they came in ascending order.
    pub(super) file: Vec<Range<u64>>,
}

/// The how-many-th data request of its call a request is, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// Among those of its kind.
    pub(super) of_kind: u64,
    /// Among all.
    pub(super) of_all: u64,
}

impl Calls {
    /// Forgets all: the guest booted.
    pub(super) fn clear(&mut self) {
        *self = Calls {
            dropped: self.dropped,
            ..Calls::default()
        };
    }

    /// Calls under way that were given up for lack of room, or because a later one has their tag.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// A call with neither tag nor place cannot be told from anything else: it
    /// is not followed. Nor is a probe that the guest makes before its tests: a
    /// rule about calls would stop the guest before it has begun.
    pub(super) fn begin(&mut self, begin: &CallBegin, flags: u64, keep_file: bool) {
        self.end(begin.call);
        let tag = begin.tag.and_then(Tag::new);
        let mut file = Vec::new();
        let place = place(begin, &mut file);
        if !keep_file || place.is_none() {
            file = Vec::new();
        }
        let probe = begin.flags.iter().any(|flag| flag.starts_with("probe-"));
        if probe || (tag.is_none() && place.is_none()) {
            return;
        }
        if let Some(&age) = tag.and_then(|tag| self.by_tag.get(&tag)) {
            self.remove(age);
            self.dropped += 1;
        }
        let call = Call {
            number: begin.call,
            tag,
            place,
            seen: [0; 7],
            ino: begin.ino,
            flags,
            file,
            start: begin.off - begin.off.checked_rem(begin.bsize).unwrap_or(0),
            bytes: [0; 2],
            counts: HashMap::new(),
        };
        self.pieces += call.pieces();
        let age = self.next_age;
        self.next_age += 1;
        match tag {
            Some(tag) => drop(self.by_tag.insert(tag, age)),
            None => drop(self.untagged.insert(age)),
        }
        self.by_number.insert(begin.call, age);
        self.calls.insert(age, call);
        while self.calls.len() > MAX_CALLS || (self.pieces > MAX_PIECES && self.calls.len() > 1) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((&oldest, _)) = self.calls.first_key_value() {
            self.remove(oldest);
            self.dropped += 1;
        }
    }

    /// Counts one more of `slot` in the call. What was counted in another generation is void.
    pub(super) fn add(&mut self, age: u64, slot: usize, generation: u64) -> u64 {
        while self.counts >= MAX_COUNTS && self.calls.len() > 1 {
            self.drop_oldest();
        }
        let Some(call) = self.calls.get_mut(&age) else {
            return 0;
        };
        let before = call.counts.len();
        let count = call.counts.entry(slot).or_insert((generation, 0));
        if count.0 != generation {
            *count = (generation, 0);
        }
        count.1 += 1;
        let n = count.1;
        self.counts += call.counts.len() - before;
        n
    }

    pub(super) fn end(&mut self, number: u64) {
        if let Some(&age) = self.by_number.get(&number) {
            self.remove(age);
        }
    }

    fn remove(&mut self, age: u64) {
        if let Some(call) = self.calls.remove(&age) {
            self.pieces -= call.pieces();
            self.counts -= call.counts.len();
            match call.tag {
                Some(tag) => drop(self.by_tag.remove(&tag)),
                None => drop(self.untagged.remove(&age)),
            }
            self.by_number.remove(&call.number);
        }
    }

    /// The call that a request is of; where it is one of its data requests it is counted.
    /// `log`: it is about the log of a file system.
    pub(super) fn count(&mut self, request: &Request, wants_file: bool, log: bool) -> Option<View> {
        let calls = &self.calls;
        let is_data = |age: &&u64| {
            calls
                .get(age)
                .is_some_and(|call| call.is_data(request, log))
        };
        let age = *match request.tag {
            Some(tag) => self.by_tag.get(&tag),
            None => self.untagged.iter().find(is_data),
        }?;
        let data = is_data(&&age);
        let call = self.calls.get_mut(&age)?;
        let mut view = View {
            age,
            number: call.number,
            ino: call.ino,
            flags: call.flags,
            position: None,
            file: Vec::new(),
        };
        if data {
            let slot = call.seen.get_mut(place_of(request.op))?;
            *slot += 1;
            view.position = Some(Position {
                of_kind: *slot,
                of_all: call.seen.iter().sum(),
            });
            if wants_file {
                view.file = call.bytes_of(request);
            }
        }
        Some(view)
    }
}

impl Call {
    fn pieces(&self) -> usize {
        self.place.as_ref().map_or(0, Vec::len) + self.file.len()
    }

    /// The bytes of the file that a data request is about.
    fn bytes_of(&mut self, request: &Request) -> Vec<Range<u64>> {
        if self.place.is_none() {
            // Allocating: nobody knows yet. In ascending order it would be the next ones.
            let Some(bytes) = self.bytes.get_mut(place_of(request.op)) else {
                return Vec::new();
            };
            let start = self.start.saturating_add(*bytes);
            *bytes = bytes.saturating_add(u64::from(request.bytes));
            let end = start.saturating_add(u64::from(request.bytes));
            return std::iter::once(start..end).collect();
        }
        let sectors = sectors(request);
        let from = self
            .file
            .partition_point(|(piece, _)| piece.end <= sectors.start);
        self.file
            .iter()
            .skip(from)
            .take_while(|(piece, _)| piece.start < sectors.end)
            .map(|(piece, offset)| {
                let start = piece.start.max(sectors.start);
                let end = piece.end.min(sectors.end);
                let at = offset.saturating_add((start - piece.start).saturating_mul(SECTOR));
                at..at.saturating_add((end - start).saturating_mul(SECTOR))
            })
            .collect()
    }

    fn is_data(&self, request: &Request, log: bool) -> bool {
        let sectors = sectors(request);
        if sectors.is_empty() {
            return false;
        }
        let Some(place) = &self.place else {
            // Nothing better is known than the tag, and where the log is.
            return !log;
        };
        let after = place.partition_point(|piece| piece.start <= sectors.start);
        after
            .checked_sub(1)
            .and_then(|i| place.get(i))
            .is_some_and(|piece| sectors.end <= piece.end)
    }
}

/// The sectors of a request; empty where it has no data on the disk, whatever its header says.
pub(super) fn sectors(request: &Request) -> Range<u64> {
    if matches!(request.op, Op::Flush | Op::GetId) {
        return 0..0;
    }
    let len = u64::from(request.bytes).div_ceil(SECTOR);
    request.sector..request.sector.saturating_add(len)
}

/// Where the call's range, rounded out to blocks, lies on the disk; `None`
/// where a part of it has no place yet, or will get another one.
/// `file` gets where in the file each piece lies, by sectors.
fn place(begin: &CallBegin, file: &mut Vec<(Range<u64>, u64)>) -> Option<Vec<Range<u64>>> {
    let block = Some(begin.bsize).filter(|&b| b > 0)?;
    let start = begin.off - begin.off % block;
    let end = begin
        .off
        .checked_add(begin.len)?
        .checked_next_multiple_of(block)?;
    let mut extents: Vec<_> = begin.extents.as_ref()?.iter().collect();
    extents.sort_by_key(|e| e.logical);
    let mut covered = start;
    let mut pieces = Vec::new();
    for extent in extents {
        let from = extent.logical.max(start);
        let to = extent.logical.checked_add(extent.length)?.min(end);
        if from >= to {
            continue;
        }
        if from > covered || !extent.has_place() || extent.flags & NOT_IN_PLACE != 0 {
            return None;
        }
        covered = covered.max(to);
        let first = extent.physical.checked_add(from - extent.logical)?;
        let last = first.checked_add(to - from)?;
        pieces.push(first / SECTOR..last.div_ceil(SECTOR));
        file.push((first / SECTOR..last.div_ceil(SECTOR), from));
    }
    if covered < end {
        return None;
    }
    pieces.sort_by_key(|p| p.start);
    file.sort_by_key(|(piece, _)| piece.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match merged.last_mut() {
            Some(last) if piece.start <= last.end => last.end = last.end.max(piece.end),
            _ => merged.push(piece),
        }
    }
    Some(merged)
}
