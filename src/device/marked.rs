// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which requests a marked call that is open may have sent: those with its tag,
//! and those that touch its blocks. What the guest says is bounded.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{CallBegin, Mark};
use wtblk_shared::tag::Tag;

/// Most calls that are followed; the oldest makes room.
const MAX_CALLS: usize = 1024;
/// Most pieces of disk that all of them may lie on. A call that finds no room is known by its tag.
const MAX_PIECES: usize = 1 << 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Marked {
    /// By age.
    calls: BTreeMap<u64, Open>,
    by_number: HashMap<u64, u64>,
    /// How many calls have the tag, by its number: asked for each request.
    tags: Vec<u32>,
    pieces: usize,
    next: u64,
}

#[derive(Debug)]
struct Open {
    number: u64,
    tag: Option<Tag>,
    /// Sectors of its range, rounded out to blocks, ascending.
    sectors: Vec<Range<u64>>,
}

impl Marked {
    /// Takes note of a mark; whether that can have changed something.
    pub fn mark(&mut self, mark: &Mark) -> bool {
        match mark {
            Mark::Boot => *self = Marked::default(),
            Mark::Begin(begin) => self.begin(begin),
            Mark::End(end) => self.end(end.call),
            _ => return false,
        }
        true
    }

    /// Calls that are open.
    pub fn open(&self) -> usize {
        self.calls.len()
    }

    fn tagged(&self, tag: Tag) -> u32 {
        let count = self.tags.get(usize::from(tag.number()));
        count.copied().unwrap_or(0)
    }

    /// Whether an open call may have sent a request with this tag and place.
    pub fn holds(&self, tag: Option<Tag>, sectors: &Range<u64>) -> bool {
        if tag.is_some_and(|tag| self.tagged(tag) > 0) {
            return true;
        }
        !sectors.is_empty()
            && self.calls.values().any(|call| {
                let first = call.sectors.partition_point(|p| p.end <= sectors.start);
                let piece = call.sectors.get(first);
                piece.is_some_and(|p| p.start < sectors.end)
            })
    }

    fn begin(&mut self, begin: &CallBegin) {
        self.end(begin.call);
        if self.calls.len() >= MAX_CALLS
            && let Some(oldest) = self.calls.first_key_value().map(|(_, c)| c.number)
        {
            self.end(oldest);
        }
        let mut sectors = places(begin);
        if self.pieces + sectors.len() > MAX_PIECES {
            sectors = Vec::new();
        }
        self.pieces += sectors.len();
        let tag = begin.tag.and_then(Tag::new);
        if let Some(tag) = tag {
            let at = usize::from(tag.number());
            if at >= self.tags.len() {
                self.tags.resize(at + 1, 0);
            }
            self.tags[at] += 1;
        }
        self.next += 1;
        self.by_number.insert(begin.call, self.next);
        let number = begin.call;
        self.calls.insert(
            self.next,
            Open {
                number,
                tag,
                sectors,
            },
        );
    }

    fn end(&mut self, number: u64) {
        let age = self.by_number.remove(&number);
        let Some(call) = age.and_then(|age| self.calls.remove(&age)) else {
            return;
        };
        self.pieces -= call.sectors.len();
        if let Some(tag) = call.tag
            && let Some(count) = self.tags.get_mut(usize::from(tag.number()))
        {
            *count -= 1;
        }
    }
}

/// The sectors that the call's blocks had at its begin, joined.
fn places(begin: &CallBegin) -> Vec<Range<u64>> {
    let block = begin.bsize.max(1);
    let start = begin.off - begin.off % block;
    let end = begin.off.saturating_add(begin.len);
    let end = end.checked_next_multiple_of(block).unwrap_or(u64::MAX);
    let mut list = Vec::new();
    for extent in begin.extents.iter().flatten().filter(|e| e.has_place()) {
        let from = extent.logical.max(start);
        let to = extent.logical.saturating_add(extent.length).min(end);
        if from < to {
            let disk = extent.physical.saturating_add(from - extent.logical);
            list.push(disk / SECTOR..disk.saturating_add(to - from).div_ceil(SECTOR));
        }
    }
    list.sort_unstable_by_key(|r| r.start);
    let mut joined: Vec<Range<u64>> = Vec::with_capacity(list.len());
    for r in list {
        match joined.last_mut() {
            Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
            _ => joined.push(r),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use wtblk_shared::mark::{CallEnd, Extent};

    fn begin(call: u64, tag: Option<u16>, off: u64, len: u64) -> Mark {
        let extent = |logical, physical| Extent {
            logical,
            physical,
            length: 4096,
            flags: 0,
        };
        Mark::Begin(CallBegin {
            call,
            tag,
            off,
            len,
            bsize: 4096,
            extents: Some(vec![extent(0, 1 << 20), extent(4096, 1 << 16)]),
            ..CallBegin::default()
        })
    }

    fn end(call: u64) -> Mark {
        Mark::End(CallEnd {
            call,
            ..CallEnd::default()
        })
    }

    #[test]
    fn by_tag_or_by_place_while_it_is_open() {
        let mut m = Marked::default();
        assert!(m.mark(&begin(1, Some(7), 100, 10)));
        assert!(m.holds(Tag::new(7), &(0..0)));
        assert!(!m.holds(Tag::new(8), &(0..0)));
        // The block at 0 is its, the one at 4096 is not.
        assert!(m.holds(None, &(2048 + 7..2048 + 9)));
        assert!(!m.holds(None, &(2048 + 8..2048 + 9)));
        assert!(!m.holds(None, &(128..136)));
        m.mark(&begin(2, Some(7), 4000, 200));
        assert!(m.holds(None, &(128..129)));
        m.mark(&end(1));
        assert!(m.holds(Tag::new(7), &(0..0)));
        m.mark(&end(2));
        assert!(!m.holds(Tag::new(7), &(0..0)) && !m.holds(None, &(128..129)));
        assert_eq!((m.open(), m.pieces), (0, 0));
        m.mark(&begin(3, None, 0, u64::MAX));
        m.mark(&Mark::Boot);
        assert_eq!(m.open(), 0);
        assert!(!m.mark(&Mark::Note { text: "x".into() }));
    }

    #[test]
    fn a_guest_that_never_ends_its_calls_costs_a_bounded_room() {
        let mut m = Marked::default();
        for n in 0..5000 {
            m.mark(&begin(n, Some((n % 3000) as u16), 0, 8192));
        }
        assert_eq!(m.open(), MAX_CALLS);
        assert_eq!(m.tags.iter().sum::<u32>() as usize, MAX_CALLS);
        assert!(m.pieces <= MAX_PIECES && m.by_number.len() == MAX_CALLS);
    }
}
