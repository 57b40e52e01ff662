// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The writes in flight that do not meet each other on the disk, and which of them a new one meets.
//!
//! Nearly always it meets none, and that is to cost little. The disk is thought of as cells of
//! 4 KiB, folded onto a table that counts the writes of each: where all cells of a write count none
//! nobody meets it. Otherwise all are looked at. Where very many are in flight a tree takes
//! the place of both: then no stream makes the work grow with their number.

use std::collections::BTreeMap;
use std::ops::Range;

use super::flight::overlap;
use super::slots::Slots;
use crate::trace::event::RequestId;

/// Log2 of the bytes of a cell.
const CELL: u32 = 12;
/// Counters: a power of two.
const CELLS: usize = 1024;
/// From so many writes on there is a tree; a counter holds one less.
const MANY: usize = 256;
/// Below so many there is none.
const FEW: usize = 64;

/// Something that covers a part of the disk, never an empty one.
pub trait Extended {
    /// Its number.
    fn id(&self) -> RequestId;
    /// Its bytes on the disk.
    fn disk(&self) -> &Range<u64>;
}

/// See the module.
#[derive(Debug)]
pub struct Flying<W> {
    writes: Slots<W>,
    /// How many writes are in each cell; right where there is no tree.
    cells: Vec<u8>,
    /// By first byte, the numbers, and where they end.
    tree: Option<BTreeMap<u64, (u64, RequestId)>>,
}

impl<W> Default for Flying<W> {
    fn default() -> Flying<W> {
        Flying {
            writes: Slots::default(),
            cells: vec![0; CELLS],
            tree: None,
        }
    }
}

impl<W: Extended> Flying<W> {
    /// Whether one of them shares a byte with `disk`.
    pub fn meets(&self, disk: &Range<u64>) -> bool {
        match &self.tree {
            // They do not meet each other: only the last that begins before the end can.
            Some(tree) => {
                let last = tree.range(..disk.end).next_back();
                last.is_some_and(|(_, (end, _))| *end > disk.start)
            }
            None => {
                let [a, b] = places(disk);
                let none = |r: Range<usize>| self.cells[r].iter().all(|n| *n == 0);
                !(none(a) && none(b)) && self.writes.values().any(|w| overlap(w.disk(), disk))
            }
        }
    }

    /// Those that share a byte with `disk`, by place on the disk.
    pub fn meeting(&self, disk: &Range<u64>) -> Vec<&W> {
        if let Some(tree) = &self.tree {
            let before = tree.range(..=disk.start).next_back();
            let within = tree.range(disk.start.saturating_add(1)..disk.end);
            let met = before.into_iter().chain(within);
            let met = met.filter(|(start, (end, _))| overlap(&(**start..*end), disk));
            return met
                .filter_map(|(_, (_, id))| self.writes.get(*id))
                .collect();
        }
        let met = self.writes.values().filter(|w| overlap(w.disk(), disk));
        let mut met: Vec<&W> = met.collect();
        met.sort_unstable_by_key(|w| w.disk().start);
        met
    }

    /// Takes one that meets none of them.
    pub fn insert(&mut self, write: W) {
        let disk = write.disk().clone();
        let id = write.id();
        self.writes.insert(id, write);
        match &mut self.tree {
            Some(tree) => drop(tree.insert(disk.start, (disk.end, id))),
            None if self.writes.len() < MANY => self.count(&disk, 1),
            None => {
                let all = self.writes.values();
                let all = all.map(|w| (w.disk().start, (w.disk().end, w.id())));
                self.tree = Some(all.collect());
            }
        }
    }

    /// Takes one out; false: it was not there.
    pub fn remove(&mut self, id: RequestId) -> bool {
        let Some(write) = self.writes.remove(id) else {
            return false;
        };
        match &mut self.tree {
            None => self.count(write.disk(), u8::MAX),
            Some(tree) if self.writes.len() >= FEW => {
                tree.remove(&write.disk().start);
            }
            Some(_) => {
                self.tree = None;
                self.cells.fill(0);
                let left: Vec<_> = self.writes.values().map(|w| w.disk().clone()).collect();
                left.iter().for_each(|disk| self.count(disk, 1));
            }
        }
        true
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        *self = Flying::default();
    }

    /// Adds to the counters of the cells that hold `disk`.
    fn count(&mut self, disk: &Range<u64>, more: u8) {
        for range in places(disk) {
            for n in &mut self.cells[range] {
                *n = n.wrapping_add(more);
            }
        }
    }
}

/// The counters of the cells that hold `disk`, which is not empty: the table is a ring.
#[inline]
fn places(disk: &Range<u64>) -> [Range<usize>; 2] {
    let first = disk.start >> CELL;
    let cells = (((disk.end - 1) >> CELL) - first + 1).min(CELLS as u64) as usize;
    let from = first as usize % CELLS;
    let to = from + cells;
    [from..to.min(CELLS), 0..to.saturating_sub(CELLS)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Write(RequestId, Range<u64>);

    impl Extended for Write {
        fn id(&self) -> RequestId {
            self.0
        }

        fn disk(&self) -> &Range<u64> {
            &self.1
        }
    }

    /// The obvious way: look at all of them.
    #[derive(Default)]
    struct Oracle(Vec<Write>);

    impl Oracle {
        fn meeting(&self, disk: &Range<u64>) -> Vec<&Write> {
            let mut met: Vec<&Write> = self.0.iter().filter(|w| overlap(&w.1, disk)).collect();
            met.sort_unstable_by_key(|w| w.1.start);
            met
        }
    }

    proptest! {
        #[test]
        fn it_finds_whom_a_write_meets(
            // Mostly writes and few completions at first: some hundreds are in flight, then few.
            steps in prop::collection::vec((0u64..4000, 1u64..40, 0u8..10), 0..1500),
        ) {
            let (mut flying, mut oracle) = (Flying::default(), Oracle::default());
            let half = steps.len() / 2;
            for (n, (sector, sectors, what)) in steps.into_iter().enumerate() {
                // Far apart, so that cells are folded onto each other.
                let start = sector * 8 * 512 + sector % 3 * 512;
                let disk = start..start + sectors * if sector % 50 == 0 { 1 << 17 } else { 512 };
                let write = what < if n < half { 9 } else { 2 };
                if write {
                    let met = oracle.meeting(&disk);
                    prop_assert_eq!(flying.meets(&disk), !met.is_empty());
                    prop_assert_eq!(flying.meeting(&disk), met.clone());
                    if met.is_empty() {
                        let write = Write(n as u64, disk);
                        flying.insert(write.clone());
                        oracle.0.push(write);
                    }
                } else if !oracle.0.is_empty() {
                    let gone = oracle.0.swap_remove(sector as usize % oracle.0.len());
                    prop_assert!(flying.remove(gone.0));
                    prop_assert!(!flying.remove(gone.0));
                }
            }
        }
    }

    #[test]
    fn very_many_and_then_few_again() {
        let mut flying = Flying::default();
        let disk = |n: u64| n * 8192..n * 8192 + 4096;
        for n in 0..5000 {
            assert!(!flying.meets(&disk(n)));
            flying.insert(Write(n, disk(n)));
        }
        assert!(flying.tree.is_some());
        assert_eq!(flying.meeting(&(0..20_000)).len(), 3);
        for n in 0..4990 {
            assert!(flying.remove(n));
        }
        assert!(flying.tree.is_none());
        assert!(flying.meets(&disk(4995)) && !flying.meets(&disk(4)));
        flying.clear();
        assert!(!flying.meets(&(0..u64::MAX)));
    }

    #[test]
    fn the_end_of_the_world_does_no_harm() {
        let mut flying = Flying::default();
        flying.insert(Write(1, u64::MAX - 4096..u64::MAX));
        assert!(flying.meets(&(0..u64::MAX)) && !flying.meets(&(0..u64::MAX - 4096)));
        assert!(flying.remove(1));
        assert!(!flying.meets(&(0..u64::MAX)));
    }
}
