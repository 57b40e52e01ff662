// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The calls that are under way, as the guest's marks tell: which request is
//! which call's, and the how-many-th. Marks come from a hostile guest, so what
//! is kept is bounded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::CallBegin;
use wtblk_shared::tag::Tag;

use super::request::Request;
use crate::trace::event::Op;

/// Most calls under way; one more drops the oldest.
pub(super) const MAX_CALLS: usize = 4096;
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
    pub(super) fn begin(&mut self, begin: &CallBegin) {
        self.end(begin.call);
        let tag = begin.tag.and_then(Tag::new);
        let place = place(begin);
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
            let Some((&oldest, _)) = self.calls.first_key_value() else {
                break;
            };
            self.remove(oldest);
            self.dropped += 1;
        }
    }

    pub(super) fn end(&mut self, number: u64) {
        if let Some(&age) = self.by_number.get(&number) {
            self.remove(age);
        }
    }

    fn remove(&mut self, age: u64) {
        if let Some(call) = self.calls.remove(&age) {
            self.pieces -= call.pieces();
            match call.tag {
                Some(tag) => drop(self.by_tag.remove(&tag)),
                None => drop(self.untagged.remove(&age)),
            }
            self.by_number.remove(&call.number);
        }
    }

    /// Counts a request that belongs to a call's data.
    pub(super) fn count(&mut self, request: &Request) -> Option<Position> {
        let calls = &self.calls;
        let is_data = |age: &&u64| calls.get(age).is_some_and(|call| call.is_data(request));
        let age = match request.tag {
            Some(tag) => self.by_tag.get(&tag).filter(is_data),
            None => self.untagged.iter().find(is_data),
        };
        let call = self.calls.get_mut(age?)?;
        let slot = call.seen.get_mut(slot(request.op))?;
        *slot += 1;
        Some(Position {
            of_kind: *slot,
            of_all: call.seen.iter().sum(),
        })
    }
}

impl Call {
    fn pieces(&self) -> usize {
        self.place.as_ref().map_or(0, Vec::len)
    }

    fn is_data(&self, request: &Request) -> bool {
        let sectors = sectors(request);
        if sectors.is_empty() {
            return false;
        }
        let Some(place) = &self.place else {
            // Nothing better is known than the tag.
            return true;
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

fn slot(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Flush => 2,
        Op::GetId => 3,
        Op::Discard => 4,
        Op::WriteZeroes => 5,
        Op::Other => 6,
    }
}

/// Where the call's range, rounded out to blocks, lies on the disk; `None`
/// where a part of it has no place yet, or will get another one.
fn place(begin: &CallBegin) -> Option<Vec<Range<u64>>> {
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
    }
    if covered < end {
        return None;
    }
    pieces.sort_by_key(|p| p.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(pieces.len());
    for piece in pieces {
        match merged.last_mut() {
            Some(last) if piece.start <= last.end => last.end = last.end.max(piece.end),
            _ => merged.push(piece),
        }
    }
    Some(merged)
}
