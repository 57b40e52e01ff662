// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Disk to file: where in a call's range a sector lies.

use std::collections::BTreeMap;
use std::ops::{Deref, Range};

use wtblk_shared::mark::Extent;

/// A part of a request, in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Offset in the file, bytes.
    pub file: u64,
    /// Length, bytes.
    pub len: u64,
    /// The extent: fragments of different extents are no neighbours.
    pub extent: usize,
}

/// The parts of a request, by place on the disk: mostly one, which needs no memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fragments {
    /// The only one.
    One(Fragment),
    /// None, or several.
    Several(Vec<Fragment>),
}

impl Deref for Fragments {
    type Target = [Fragment];

    fn deref(&self) -> &[Fragment] {
        match self {
            Fragments::One(fragment) => std::slice::from_ref(fragment),
            Fragments::Several(list) => list,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    disk: u64,
    file: u64,
    len: u64,
}

/// The places of a call's rounded-out range on the disk.
///
/// Built from the extents of the end first, then from those of the begin where
/// they say something new: copy-on-write moves a block, and a failed one never
/// shows where it went.
#[derive(Clone, Debug, Default)]
pub struct FileMap {
    /// By place on the disk, without overlap.
    pieces: Vec<Piece>,
}

impl FileMap {
    /// The map of `range` by `layers`, the most trusted first.
    pub fn new(range: &Range<u64>, layers: [Option<&[Extent]>; 2]) -> FileMap {
        let mut drawn = Drawn::default();
        for e in layers.into_iter().flatten().flatten() {
            let file = e.logical.max(range.start);
            let end = e.logical.saturating_add(e.length).min(range.end);
            if e.has_place() && file < end {
                let disk = e.physical.saturating_add(file - e.logical);
                let len = (end - file).min(u64::MAX - disk);
                drawn.insert(Piece { disk, file, len });
            }
        }
        drawn.pieces.sort_unstable_by_key(|p| p.disk);
        let mut pieces: Vec<Piece> = Vec::with_capacity(drawn.pieces.len());
        for piece in drawn.pieces {
            // FIEMAP tells written and unwritten neighbours apart; the disk does not.
            match pieces.last_mut() {
                Some(last)
                    if last.disk + last.len == piece.disk && last.file + last.len == piece.file =>
                {
                    last.len += piece.len;
                }
                _ => pieces.push(piece),
            }
        }
        FileMap { pieces }
    }

    /// The parts of `disk` (bytes) that lie in the range, by place on the disk.
    pub fn locate(&self, disk: &Range<u64>) -> Fragments {
        let first = self
            .pieces
            .partition_point(|p| p.disk + p.len <= disk.start);
        let mut parts = self
            .pieces
            .iter()
            .enumerate()
            .skip(first)
            .take_while(|(_, p)| p.disk < disk.end)
            .filter_map(|(extent, p)| {
                let start = p.disk.max(disk.start);
                let end = (p.disk + p.len).min(disk.end);
                (start < end).then(|| Fragment {
                    file: p.file + (start - p.disk),
                    len: end - start,
                    extent,
                })
            });
        match (parts.next(), parts.next()) {
            (Some(only), None) => Fragments::One(only),
            (one, two) => Fragments::Several(one.into_iter().chain(two).chain(parts).collect()),
        }
    }

    /// Whether every byte of `range` has a place.
    pub fn covers(&self, range: &Range<u64>) -> bool {
        let mut spans: Vec<_> = self
            .pieces
            .iter()
            .map(|p| (p.file, p.file + p.len))
            .collect();
        spans.sort_unstable();
        let mut at = range.start;
        for (start, end) in spans {
            if start > at {
                break;
            }
            at = at.max(end);
        }
        at >= range.end
    }

    /// Whether every extent begins and ends on a block of the file.
    pub fn on_blocks(&self, block: u64) -> bool {
        self.pieces
            .iter()
            .all(|p| p.file.is_multiple_of(block) && p.len.is_multiple_of(block))
    }
}

/// A map under construction.
#[derive(Debug, Default)]
struct Drawn {
    pieces: Vec<Piece>,
    /// What they cover: begin and end of ranges that do not touch. Extents that
    /// cover each other a thousand times are still looked at once each.
    covered: BTreeMap<u64, u64>,
}

impl Drawn {
    /// Inserts what no earlier piece covers.
    fn insert(&mut self, new: Piece) {
        let end = new.disk + new.len;
        if new.disk == end {
            return;
        }
        let (mut first, mut last, mut at) = (new.disk, end, new.disk);
        // One that begins before may reach into the new one; the others begin in it.
        let before = self.covered.range(..=new.disk).next_back();
        if let Some((s, e)) = before.map(|(s, e)| (*s, *e))
            && e >= at
        {
            work();
            self.covered.remove(&s);
            (first, at) = (s, e);
            last = last.max(e);
        }
        let next = |c: &BTreeMap<u64, u64>| c.range(new.disk..=end).next().map(|(s, e)| (*s, *e));
        while let Some((s, e)) = next(&self.covered) {
            work();
            self.covered.remove(&s);
            self.draw(&new, at, s);
            at = at.max(e);
            last = last.max(e);
        }
        self.draw(&new, at, end);
        self.covered.insert(first, last);
    }

    /// The part of `new` from one place on the disk to another.
    fn draw(&mut self, new: &Piece, from: u64, to: u64) {
        if from < to {
            work();
            self.pieces.push(Piece {
                disk: from,
                file: new.file + (from - new.disk),
                len: to - from,
            });
        }
    }
}

#[cfg(test)]
thread_local! {
    /// Steps taken to draw maps on this thread.
    pub static WORK: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// A step, where a test counts them.
fn work() {
    #[cfg(test)]
    WORK.set(WORK.get() + 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, physical: u64, length: u64) -> Extent {
        Extent {
            logical,
            physical,
            length,
            flags: 0,
        }
    }

    #[test]
    fn the_end_wins_over_the_begin_and_neighbours_join() {
        // Copy-on-write moved the block at 4096; the old place still counts as the call's.
        let begin = [extent(0, 100_000, 12288)];
        let end = [
            extent(0, 100_000, 4096),
            extent(4096, 500_000, 4096),
            extent(8192, 108_192, 4096),
        ];
        let map = FileMap::new(&(0..12288), [Some(&end), Some(&begin)]);
        assert!(map.covers(&(0..12288)));
        let at = |r: Range<u64>| {
            let list = map.locate(&r);
            list.iter().map(|f| (f.file, f.len)).collect::<Vec<_>>()
        };
        assert_eq!(at(500_000..504_096), [(4096, 4096)]);
        assert_eq!(at(100_000..112_288), [(0, 12288)]);
        assert_eq!(at(499_488..500_512), [(4096, 512)]);
        assert_eq!(at(600_000..600_512), []);
    }

    #[test]
    fn only_the_range_counts_and_holes_show() {
        let end = [extent(0, 1 << 20, 8192), extent(12288, 2 << 20, 8192)];
        let map = FileMap::new(&(4096..16384), [Some(&end), None]);
        assert!(map.covers(&(4096..8192)));
        assert!(!map.covers(&(4096..16384)));
        assert!(map.on_blocks(4096) && !map.on_blocks(8192));
        assert!(map.locate(&(1 << 20..(1 << 20) + 4096)).is_empty());
        let nowhere = [Extent {
            flags: 0x4,
            ..extent(0, 0, 1 << 20)
        }];
        assert!(map_is_empty(&FileMap::new(
            &(0..4096),
            [Some(&nowhere), None]
        )));
    }

    /// Both ends of each extent count; the first byte of the disk is a place, too.
    #[test]
    fn an_extent_that_ends_or_begins_inside_a_block_is_not_on_blocks() {
        for (logical, length) in [(0, 6144), (512, 4096)] {
            let end = [extent(logical, 0, length)];
            let map = FileMap::new(&(0..8192), [Some(&end), None]);
            assert!(!map.on_blocks(4096));
            assert_eq!(map.locate(&(0..512)).len(), 1);
        }
    }

    /// What an older layer says of no byte must not come between neighbours.
    #[test]
    fn an_older_layer_parts_no_neighbours() {
        let at = |n: u64| (1 << 20) + n * 8192;
        let end = [extent(0, at(0), 16384)];
        let begin = [extent(65536, at(1), 8192), extent(16384, at(2), 8192)];
        let map = FileMap::new(&(0..1 << 20), [Some(&end), Some(&begin)]);
        assert_eq!(map.locate(&(at(0)..at(3))).len(), 1);
    }

    fn map_is_empty(map: &FileMap) -> bool {
        map.pieces.is_empty()
    }

    #[test]
    fn numbers_at_the_end_of_the_world_do_no_harm() {
        let wild = [extent(u64::MAX - 1, u64::MAX - 1, u64::MAX)];
        let map = FileMap::new(&(0..u64::MAX), [Some(&wild), Some(&wild)]);
        map.locate(&(0..u64::MAX));
        map.covers(&(0..u64::MAX));
    }
}
