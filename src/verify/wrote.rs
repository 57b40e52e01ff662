// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! When the disk was last written, and about where. So that a page's state is not blamed on a
//! device that was just done with it.

use std::ops::Range;

use super::fast_hash::NumberMap;

/// A write is remembered by the part of the disk it went to, bytes.
const PART: u64 = 2 << 20;
/// Parts remembered: 128 GiB of writes before the memory gets coarse.
const MAX_PARTS: usize = 1 << 16;

/// See the module. Numbers are those of the events.
#[derive(Debug, Default)]
pub struct Wrote {
    /// By part of the disk, when a write of it was last taken or completed.
    parts: NumberMap<u64>,
    /// The latest such part, which is not in `parts` yet: requests come in runs.
    latest: Option<(u64, u64)>,
    /// When a write may last have gone to a place that is not known.
    somewhere: u64,
    /// When a write that is no log write was last taken or completed.
    blocks: Option<u64>,
}

impl Wrote {
    /// A write that is no log write was taken or completed.
    pub fn blocks(&mut self, seq: u64) {
        self.blocks = Some(seq);
    }

    /// Until this event anything may have been written.
    pub fn anywhere(&mut self, until: u64) {
        self.somewhere = until;
    }

    /// A write of these bytes was taken or completed.
    pub fn at(&mut self, seq: u64, disk: &Range<u64>) {
        if disk.is_empty() {
            return;
        }
        // A request is at most 4 GiB long, hence at most 2049 parts.
        for part in disk.start / PART..=(disk.end - 1) / PART {
            match &mut self.latest {
                Some((same, at)) if *same == part => *at = seq,
                latest => {
                    if let Some((old, at)) = latest.replace((part, seq)) {
                        self.put(old, at);
                    }
                }
            }
        }
    }

    fn put(&mut self, part: u64, seq: u64) {
        if let Some(at) = self.parts.get_mut(&part) {
            *at = seq;
        } else if self.parts.len() < MAX_PARTS {
            self.parts.insert(part, seq);
        } else {
            self.somewhere = self.somewhere.max(seq);
        }
    }

    /// Whether a write near these places may have been taken or completed after `seq`.
    pub fn near(&self, places: &[Range<u64>], seq: u64) -> bool {
        self.somewhere > seq || places.iter().any(|r| self.in_parts_of(r, seq))
    }

    fn in_parts_of(&self, disk: &Range<u64>, seq: u64) -> bool {
        let parts = disk.start / PART..=disk.end.saturating_sub(1) / PART;
        let late = |(part, at): (&u64, &u64)| parts.contains(part) && *at > seq;
        if self
            .latest
            .as_ref()
            .is_some_and(|(part, at)| late((part, at)))
        {
            return true;
        }
        // A range may be as long as the guest says; there are only so many parts.
        let asked = parts.end().saturating_sub(*parts.start());
        if asked < self.parts.len() as u64 {
            let mut asked = parts.clone();
            asked.any(|part| self.parts.get(&part).is_some_and(|at| *at > seq))
        } else {
            self.parts.iter().any(late)
        }
    }

    /// Whether a write that may be of any file was taken or completed after `seq`.
    pub fn any_blocks(&self, seq: u64) -> bool {
        self.somewhere > seq || self.blocks.is_some_and(|at| at > seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_where_and_when() {
        let mut wrote = Wrote::default();
        let place = |part: u64| part * PART..part * PART + 4096;
        for n in 0..100u64 {
            wrote.at(n + 1, &place(n * 3));
        }
        for n in 0..100u64 {
            let all = |seq| wrote.near(&[place(n * 3)], seq);
            assert!(all(n) && !all(n + 1), "{n}");
            assert!(!wrote.near(&[place(n * 3 + 1)], 0));
        }
        // Ranges of few parts, and of more than there can be.
        let near = |range: Range<u64>, seq| wrote.near(std::slice::from_ref(&range), seq);
        assert!(near(PART..4 * PART, 1) && !near(PART..4 * PART, 2));
        assert!(near(0..u64::MAX, 99) && !near(0..u64::MAX, 100));
        wrote.at(200, &(PART - 1..PART + 1));
        assert!(wrote.near(&[place(0)], 199) && wrote.near(&[place(1)], 199));
        assert!(!wrote.any_blocks(0));
        wrote.blocks(201);
        assert!(wrote.any_blocks(200) && !wrote.any_blocks(201));
        wrote.anywhere(300);
        assert!(wrote.near(&[place(1)], 299) && wrote.any_blocks(299));
    }

    #[test]
    fn more_parts_than_are_remembered_may_have_been_anywhere() {
        let mut wrote = Wrote::default();
        for n in 0..MAX_PARTS as u64 + 10 {
            wrote.at(n + 1, &(n * PART..n * PART + 512));
        }
        assert!(wrote.parts.len() <= MAX_PARTS);
        let elsewhere = 1 << 50..(1 << 50) + 512;
        assert!(wrote.near(&[elsewhere], MAX_PARTS as u64));
    }
}
