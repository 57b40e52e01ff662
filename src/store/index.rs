// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which write of a log holds each byte of a disk: the last one that was put
//! in wins, its pieces are cut as later writes cover them.

use std::collections::BTreeMap;
use std::ops::Range;

/// A piece of a write: where it ends on the disk, whose it is, where its first byte is in the
/// log; `None`: it is all zeros and has no place there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    end: u64,
    owner: u64,
    log: Option<u64>,
}

/// See the module. Keyed by the pieces' first bytes; pieces do not overlap.
#[derive(Debug, Default)]
pub(super) struct Index(BTreeMap<u64, Piece>);

/// Where a part of a range is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In no write of the log.
    Elsewhere,
    /// In the log, from this byte on.
    Log(u64),
    /// A write that is all zeros.
    Zeros,
}

/// A part of a range.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub range: Range<u64>,
    pub place: Place,
}

impl Piece {
    /// The piece without its first bytes.
    fn from(self, skip: u64) -> Piece {
        Piece {
            log: self.log.map(|log| log + skip),
            ..self
        }
    }
}

impl Index {
    /// A write covers the range; its bytes are in the log from `log` on, `None`: are zeros.
    pub fn put(&mut self, range: Range<u64>, owner: u64, log: Option<u64>) {
        self.cut(&range);
        if !range.is_empty() {
            let end = range.end;
            self.0.insert(range.start, Piece { end, owner, log });
        }
    }

    /// Forgets what the owner still has of the range.
    pub fn forget(&mut self, range: &Range<u64>, owner: u64) {
        let of_range = self.0.range(range.clone());
        let gone: Vec<u64> = of_range
            .filter(|(_, piece)| piece.owner == owner)
            .map(|(&start, _)| start)
            .collect();
        for start in gone {
            self.0.remove(&start);
        }
    }

    /// The range in ascending parts, without a gap.
    pub fn parts(&self, range: Range<u64>) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let first = self.0.range(..range.start).next_back();
        for (&start, piece) in first.into_iter().chain(self.0.range(range.clone())) {
            let (from, to) = (start.max(at), piece.end.min(range.end));
            if from >= to {
                continue;
            }
            if at < from {
                parts.push(Part {
                    range: at..from,
                    place: Place::Elsewhere,
                });
            }
            let log = piece.from(from - start).log;
            parts.push(Part {
                range: from..to,
                place: log.map_or(Place::Zeros, Place::Log),
            });
            at = to;
        }
        if at < range.end {
            parts.push(Part {
                range: at..range.end,
                place: Place::Elsewhere,
            });
        }
        parts
    }

    /// Makes room: pieces end at the range's start and begin again at its end.
    fn cut(&mut self, range: &Range<u64>) {
        let before = self.0.range_mut(..range.start).next_back();
        if let Some((&start, piece)) = before
            && piece.end > range.start
        {
            let whole = *piece;
            piece.end = range.start;
            if whole.end > range.end {
                self.0.insert(range.end, whole.from(range.end - start));
            }
        }
        let inside: Vec<u64> = self
            .0
            .range(range.clone())
            .map(|(&start, _)| start)
            .collect();
        for start in inside {
            if let Some(piece) = self.0.remove(&start)
                && piece.end > range.end
            {
                self.0.insert(range.end, piece.from(range.end - start));
            }
        }
    }
}

/// What is left of the ranges without `cut`.
pub(super) fn subtract(ranges: &mut Vec<Range<u64>>, cut: &Range<u64>) {
    let pieces = ranges.iter().flat_map(|range| {
        let before = range.start..range.end.min(cut.start);
        let after = range.start.max(cut.end)..range.end;
        [before, after]
    });
    *ranges = pieces.filter(|piece| piece.start < piece.end).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn subtraction() {
        let mut ranges = vec![0..10, 20..30];
        subtract(&mut ranges, &(5..22));
        assert_eq!(ranges, [0..5, 22..30]);
        subtract(&mut ranges, &(23..24));
        assert_eq!(ranges, [0..5, 22..23, 24..30]);
        subtract(&mut ranges, &(0..100));
        assert!(ranges.is_empty());
    }

    proptest! {
        /// Against an array that names the owner and the log place of every byte.
        #[test]
        fn the_last_write_owns_a_byte(
            steps in prop::collection::vec((0u64..60, 1u64..20, any::<bool>()), 1..40),
            from in 0u64..60,
            len in 1u64..20,
        ) {
            let mut index = Index::default();
            let mut bytes: Vec<Option<(u64, Place)>> = vec![None; 100];
            let mut ranges: Vec<Range<u64>> = Vec::new();
            for (n, (start, len, put)) in steps.into_iter().enumerate() {
                let n = n as u64;
                if put || ranges.is_empty() {
                    let range = start..start + len;
                    let zeros = n.is_multiple_of(3);
                    index.put(range.clone(), n, (!zeros).then_some(n * 1000));
                    for at in range.clone() {
                        let place = match zeros {
                            true => Place::Zeros,
                            false => Place::Log(n * 1000 + at - start),
                        };
                        bytes[at as usize] = Some((n, place));
                    }
                    ranges.push(range);
                } else {
                    ranges.push(0..0);
                    let owner = start % ranges.len() as u64;
                    index.forget(&ranges[owner as usize], owner);
                    for byte in &mut bytes {
                        *byte = byte.filter(|b| b.0 != owner);
                    }
                }
                if ranges.len() as u64 == n {
                    ranges.push(0..0);
                }
            }
            let mut at = from;
            for part in index.parts(from..from + len) {
                prop_assert_eq!(part.range.start, at);
                for byte in part.range.clone() {
                    let place = match part.place {
                        Place::Log(log) => Place::Log(log + byte - part.range.start),
                        other => other,
                    };
                    let want = bytes[byte as usize].map_or(Place::Elsewhere, |b| b.1);
                    prop_assert_eq!(place, want);
                }
                at = part.range.end;
            }
            prop_assert_eq!(at, from + len);
        }
    }
}
