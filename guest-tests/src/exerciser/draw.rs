// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Draws a list of operations: the same seed gives the same list.

use super::op::{By, Fault, Op, Range};

/// splitmix64.
pub struct Draw(u64);

/// What the list is about.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Block size of the file system.
    pub bsize: u64,
    /// The file is never longer, in bytes.
    pub most: u64,
    /// Length of the other file.
    pub other: u64,
}

impl Draw {
    /// From a seed.
    pub fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// A list of so many operations. The sizes that it expects are those without a fault.
    pub fn list(&mut self, ops: usize, about: About) -> Vec<Op> {
        let mut list = Vec::new();
        let mut size = 0;
        // Half of the files begin with written blocks.
        if ops > 8 && self.one_in(2) {
            let len = about.bsize * (1 + self.below(about.most / about.bsize / 2));
            list.extend([Op::Write(Range { off: 0, len }), Op::Sync(Fault::None)]);
            size = len;
        }
        while list.len() < ops {
            let op = self.op(size, about);
            size = after(op, size);
            list.push(op);
        }
        list
    }

    fn op(&mut self, size: u64, about: About) -> Op {
        let a = about;
        match self.below(100) {
            0..32 => self.call(size, a),
            32..48 => Op::Write(self.range(size, a)),
            48..58 if size > 0 => Op::Store(self.inside(size, 64)),
            58..63 => Op::Truncate(self.offset(size, a)),
            63..68 => Op::Punch(self.range(size, a)),
            68..70 => Op::Zero(self.range(size, a)),
            70..74 => Op::Allocate {
                at: self.range(size, a),
                keep: self.one_in(3),
            },
            74..80 => self.clone(size, a),
            80..88 => Op::Sync(match self.below(7) {
                0 => Fault::Write(1 + self.below(2) as u32),
                1 if self.one_in(2) => Fault::Every,
                _ => Fault::None,
            }),
            88..94 if size > 0 => Op::Read(self.inside(size, 8 * a.bsize)),
            94..98 => Op::Evict {
                every: self.one_in(4),
            },
            98 => Op::Remount,
            _ => self.call(size, a),
        }
    }

    fn call(&mut self, size: u64, about: About) -> Op {
        let by = match self.below(6) {
            0 => By::Aio,
            1 => By::Uring,
            _ => By::Call,
        };
        Op::Call {
            at: self.range(size, about),
            parts: if by == By::Call && self.one_in(3) {
                2 + self.below(6) as u32
            } else {
                1
            },
            dsync: self.one_in(5),
            by,
            fault: match self.below(24) {
                0 | 1 => Fault::Write(1 + self.below(u64::from(super::FAULTS)) as u32),
                2 => Fault::Every,
                3 => Fault::Read,
                _ => Fault::None,
            },
        }
    }

    /// An offset, as a rule inside of the file, sometimes at its end or beyond.
    fn offset(&mut self, size: u64, about: About) -> u64 {
        let off = match self.below(8) {
            0 => size,
            1 => size + self.below(8 * about.bsize),
            _ => self.below(size + 1),
        };
        let off = match self.below(4) {
            0 | 1 => off / about.bsize * about.bsize,
            2 => off / 512 * 512,
            _ => off,
        };
        off.min(about.most - 1)
    }

    fn range(&mut self, size: u64, about: About) -> Range {
        let off = self.offset(size, about);
        let b = about.bsize;
        let len = match self.below(6) {
            0 => 1 + self.below(b),
            1 => b,
            2 => 512 * (1 + self.below(4 * b / 512)),
            3 => b * (1 + self.below(16)),
            _ => 1 + self.below(6 * b),
        };
        Range {
            off,
            len: len.min(about.most - off),
        }
    }

    fn inside(&mut self, size: u64, most: u64) -> Range {
        let off = self.below(size);
        let len = 1 + self.below(most);
        Range {
            off,
            len: len.min(size - off),
        }
    }

    fn clone(&mut self, size: u64, about: About) -> Op {
        let b = about.bsize;
        let other = self.one_in(2);
        let have = if other { about.other } else { size } / b;
        if have < 2 {
            return Op::Write(self.range(size, about));
        }
        let from = self.below(have);
        let len = 1 + self.below((have - from).min(12));
        let room = about.most / b - len;
        // Sometimes behind the end, never far.
        let to = self.below((size / b + 4).min(room) + 1);
        Op::Clone {
            from: Range {
                off: from * b,
                len: len * b,
            },
            to: to * b,
            other,
        }
    }
}

/// The size after an operation in which nothing fails.
fn after(op: Op, size: u64) -> u64 {
    let end = |at: Range| size.max(at.off + at.len);
    match op {
        Op::Call { at, .. } | Op::Write(at) | Op::Allocate { at, keep: false } => end(at),
        Op::Truncate(size) => size,
        Op::Clone { from, to, .. } => size.max(to + from.len),
        _ => size,
    }
}

#[cfg(test)]
mod tests {
    use super::super::op;
    use super::*;

    const ABOUT: About = About {
        bsize: 4096,
        most: 64 * 4096,
        other: 16 * 4096,
    };

    #[test]
    fn a_seed_is_a_list_that_fits_the_file() {
        for seed in 0..200 {
            let list = Draw::new(seed).list(100, ABOUT);
            assert_eq!(list.len(), 100);
            assert_eq!(list, Draw::new(seed).list(100, ABOUT));
            assert_eq!(op::parse(&op::text(&list)), Ok(list.clone()));
            for op in list {
                if let Op::Call { at, .. } | Op::Write(at) | Op::Store(at) = op {
                    assert!(at.len > 0 && at.off + at.len <= ABOUT.most, "{op}");
                }
                if let Op::Clone { from, to, .. } = op {
                    assert!(from.len > 0 && to + from.len <= ABOUT.most, "{op}");
                }
            }
        }
    }

    #[test]
    fn every_kind_is_drawn() {
        let list = Draw::new(1).list(3000, ABOUT);
        let texts: Vec<String> = list.iter().map(Op::to_string).collect();
        for what in [
            "t", "w", "m", "z", "p", "n", "f", "c", "d", "y", "r", "e", "E", "u",
        ] {
            assert!(texts.iter().any(|t| t.starts_with(what)), "{what}");
        }
        for what in [".i", ".s", ".a", ".u", ".f1", ".f2", ".fa", ".fr", ".k"] {
            assert!(texts.iter().any(|t| t.contains(what)), "{what}");
        }
    }
}
