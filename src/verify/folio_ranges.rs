// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ranges of a file, for `written-once`: the folios that they touch or hold, what is known clean,
//! and the extents that lie in them.

use std::collections::BTreeMap;
use std::ops::Range;

use wtblk_shared::mark::Extent;

/// The largest folio of x86: a dirtier of one block of it may dirty all.
const FOLIO: u64 = 2 << 20;
/// Ranges told clean of one file.
const MAX_RANGES: usize = 256;

/// The folios that lie wholly in a range, of a file whose last page ends at `end`.
pub(super) fn inner(range: &Range<u64>, end: u64) -> Range<u64> {
    let start = range.start.checked_next_multiple_of(FOLIO);
    let stop = if range.end >= end {
        end
    } else {
        range.end - range.end % FOLIO
    };
    start.unwrap_or(u64::MAX)..stop
}

/// The parts of the extents that lie in one of the ranges; each once.
pub(super) fn parts(extents: &[Extent], ranges: &[Range<u64>]) -> Vec<Extent> {
    let mut joined = BTreeMap::new();
    for range in ranges {
        insert(&mut joined, range);
    }
    let mut parts = Vec::new();
    for e in extents {
        for (&start, &end) in &joined {
            let from = e.logical.max(start);
            let to = e.logical.saturating_add(e.length).min(end);
            if from < to {
                let physical = e.physical.saturating_add(from - e.logical);
                let (logical, length) = (from, to - from);
                parts.push(Extent {
                    logical,
                    physical,
                    length,
                    ..*e
                });
            }
        }
    }
    parts
}

/// A range in whole blocks.
pub(super) fn rounded(off: u64, len: u64, bsize: u64) -> Range<u64> {
    let bsize = bsize.max(1);
    let end = off.saturating_add(len).checked_next_multiple_of(bsize);
    off - off % bsize..end.unwrap_or(u64::MAX)
}

/// The folios that a range may touch.
pub(super) fn folios(range: &Range<u64>) -> Range<u64> {
    let end = range.end.checked_next_multiple_of(FOLIO);
    range.start - range.start % FOLIO..end.unwrap_or(u64::MAX)
}

/// The folios of a range as far as the file has pages: up to its end, or the range's.
pub(super) fn window(range: &Range<u64>, isize: u64) -> Range<u64> {
    let folios = folios(range);
    let end = isize.max(range.end).checked_next_multiple_of(4096);
    folios.start..folios.end.min(end.unwrap_or(u64::MAX))
}

/// Whether the ranges hold all of `window` that has pages. What lies beyond the
/// end of the file has none.
pub(super) fn covers(ranges: &BTreeMap<u64, u64>, window: &Range<u64>, isize: u64) -> bool {
    let end = isize.checked_next_multiple_of(4096).unwrap_or(u64::MAX);
    let end = window.end.min(end);
    let before = ranges.range(..=window.start).next_back();
    window.start >= end || before.is_some_and(|(_, to)| *to >= end)
}

/// Adds a range; those that touch are joined.
pub(super) fn insert(ranges: &mut BTreeMap<u64, u64>, new: &Range<u64>) {
    let (mut start, mut end) = (new.start, new.end);
    if start >= end {
        return;
    }
    while let Some((s, e)) = ranges.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
        if e < start {
            break;
        }
        ranges.remove(&s);
        (start, end) = (start.min(s), end.max(e));
    }
    if ranges.len() < MAX_RANGES {
        ranges.insert(start, end);
    }
}

/// Takes a range out.
pub(super) fn remove(ranges: &mut BTreeMap<u64, u64>, gone: &Range<u64>) {
    while let Some((s, e)) = ranges.range(..gone.end).next_back().map(|(s, e)| (*s, *e)) {
        if e <= gone.start {
            break;
        }
        ranges.remove(&s);
        if e > gone.end {
            ranges.insert(gone.end, e);
        }
        if s < gone.start {
            ranges.insert(s, gone.start);
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_rounded_to_blocks_and_to_folios() {
        assert_eq!(rounded(5000, 100, 4096), 4096..8192);
        assert_eq!(
            rounded(3 * FOLIO + 1024, 1024, 1024),
            3 * FOLIO + 1024..3 * FOLIO + 2048
        );
        assert_eq!(rounded(3 * FOLIO + 1, 1, 512), 3 * FOLIO..3 * FOLIO + 512);
        // A hostile guest's.
        assert_eq!(rounded(7, 1, 0), 7..8);
        assert_eq!(rounded(u64::MAX - 1, 9, 4096), u64::MAX - 4095..u64::MAX);
        assert_eq!(folios(&(FOLIO + 1..2 * FOLIO)), FOLIO..2 * FOLIO);
        assert_eq!(folios(&(FOLIO - 1..FOLIO + 1)), 0..2 * FOLIO);
        // There are no pages beyond the end of the file, or of what is written.
        assert_eq!(
            window(&(FOLIO..FOLIO + 1), FOLIO + 5000),
            FOLIO..FOLIO + 8192
        );
        assert_eq!(window(&(FOLIO..FOLIO + 9000), 0), FOLIO..FOLIO + 12_288);
        assert_eq!(inner(&(1..3 * FOLIO + 1), 9 * FOLIO), FOLIO..3 * FOLIO);
        assert_eq!(
            inner(&(FOLIO..3 * FOLIO + 4096), 3 * FOLIO + 4096),
            FOLIO..3 * FOLIO + 4096
        );
    }

    #[test]
    fn what_touches_is_joined_and_what_is_taken_out_leaves_its_ends() {
        let mut ranges = BTreeMap::new();
        for new in [0..4, 8..12, 4..8, 20..20, 30..40, 35..38] {
            insert(&mut ranges, &new);
        }
        assert_eq!(ranges, BTreeMap::from([(0, 12), (30, 40)]));
        remove(&mut ranges, &(10..33));
        assert_eq!(ranges, BTreeMap::from([(0, 10), (33, 40)]));
        remove(&mut ranges, &(2..3));
        assert_eq!(ranges, BTreeMap::from([(0, 2), (3, 10), (33, 40)]));
        remove(&mut ranges, &(3..10));
        remove(&mut ranges, &(50..60));
        assert_eq!(ranges, BTreeMap::from([(0, 2), (33, 40)]));
    }

    #[test]
    fn of_an_extent_that_lies_in_two_ranges_both_parts_are_given_once() {
        let extent = |logical, physical, length| Extent {
            logical,
            physical,
            length,
            flags: 3,
        };
        let found = parts(
            &[extent(100, 5000, 100), extent(300, 9000, 50)],
            &[110..120, 115..130, 190..310],
        );
        let due = [
            extent(110, 5010, 20),
            extent(190, 5090, 10),
            extent(300, 9000, 10),
        ];
        assert_eq!(found, due);
    }
}
