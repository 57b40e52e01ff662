// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the places of the disk are for, as far as marks tell: the log of a file
//! system, the extents of marked files. Marks come from a hostile guest, so what is kept is bounded.

use std::collections::BTreeMap;
use std::ops::Range;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::Extent;

use super::rule::Class;

/// Most pieces that are kept; later ones stay `other`.
const MAX_PIECES: usize = 256 * 1024;
/// Most file systems.
const MAX_LOGS: usize = 64;

/// The places that are known.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Places {
    logs: Vec<Range<u64>>,
    /// Start and end of sectors; they neither overlap nor touch.
    data: BTreeMap<u64, u64>,
}

impl Places {
    /// The log of a file system, bytes.
    pub(super) fn log(&mut self, start: u64, len: u64) {
        let range = start / SECTOR..start.saturating_add(len).div_ceil(SECTOR);
        if len > 0 && self.logs.len() < MAX_LOGS && !self.logs.contains(&range) {
            self.logs.push(range);
        }
    }

    /// Extents of a marked file.
    pub(super) fn file(&mut self, extents: &[Extent]) {
        for e in extents {
            let end = e.physical.saturating_add(e.length).div_ceil(SECTOR);
            if e.has_place() && e.length > 0 && self.data.len() < MAX_PIECES {
                self.add(e.physical / SECTOR..end);
            }
        }
    }

    fn add(&mut self, mut new: Range<u64>) {
        // From the last that begins at or before the end, backwards while they touch.
        while let Some((&start, &end)) = self.data.range(..=new.end).next_back() {
            if end < new.start {
                break;
            }
            self.data.remove(&start);
            new = new.start.min(start)..new.end.max(end);
        }
        self.data.insert(new.start, new.end);
    }

    /// Whether one of these sectors is of a log.
    pub(super) fn is_log(&self, sectors: &Range<u64>) -> bool {
        let touches = |r: &Range<u64>| r.start < sectors.end && sectors.start < r.end;
        !sectors.is_empty() && self.logs.iter().any(touches)
    }

    /// What these sectors are for; a log beats a file.
    pub(super) fn class(&self, sectors: &Range<u64>) -> Class {
        if sectors.is_empty() {
            return Class::Other;
        }
        if self.is_log(sectors) {
            return Class::Log;
        }
        let before = self.data.range(..sectors.end).next_back();
        if before.is_some_and(|(_, &end)| end > sectors.start) {
            return Class::Data;
        }
        Class::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_beats_a_file_and_both_beat_nothing() {
        let mut places = Places::default();
        let extent = |physical, length, flags| Extent {
            logical: 0,
            physical,
            length,
            flags,
        };
        places.log(8192, 4096);
        places.file(&[
            extent(0, 4096, 0),
            extent(4096, 4096, 0),
            extent(1 << 20, 512, 0),
        ]);
        places.file(&[extent(2 << 20, 4096, 0x2), extent(512, 512, 0)]);
        assert_eq!(places.data.len(), 2, "merged");
        for (range, class) in [
            (0..8, Class::Data),
            (15..17, Class::Log),
            (24..32, Class::Other),
            (2047..2049, Class::Data),
            (2049..2050, Class::Other),
            (4096..4104, Class::Other),
            (5..5, Class::Other),
        ] {
            assert_eq!(places.class(&range), class, "{range:?}");
        }
    }
}
