// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The order of a sweep's points, which host and guest must see alike: shape by
//! shape, fault by fault, request by request. A point's index in it is its name:
//! a sweep goes on behind an index, and a shard takes every n-th one.

/// The rule of the scenario that counts the requests of a clean pass.
pub const COUNTER: &str = "count";

/// The rule that fails the `nth` request (from 1) in this way.
pub fn rule(fault: &str, nth: u32) -> String {
    format!("{fault}-{nth}")
}

/// A point: which shape, which fault, which requests fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its place in the order of all points.
    pub index: u64,
    /// The shape: place in the list.
    pub shape: usize,
    /// The fault: place in the list.
    pub fault: usize,
    /// The request that fails, from 1.
    pub first: u32,
    /// Another one behind it that fails, too.
    pub second: Option<u32>,
}

impl Point {
    /// The requests that fail.
    pub fn requests(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.first).chain(self.second)
    }
}

/// A part of a sweep: of `of` parts the `part`-th, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Which, from 1.
    pub part: u32,
    /// Of how many.
    pub of: u32,
}

impl Shard {
    /// All of it.
    pub const WHOLE: Shard = Shard { part: 1, of: 1 };

    /// Reads `K/N`, 1 <= K <= N.
    pub fn parse(text: &str) -> Option<Shard> {
        let (part, of) = text.split_once('/')?;
        let (part, of) = (part.parse().ok()?, of.parse().ok()?);
        (1 <= part && part <= of).then_some(Shard { part, of })
    }

    /// Whether the point with this index is of this part.
    pub fn takes(self, index: u64) -> bool {
        index % u64::from(self.of.max(1)) == u64::from(self.part) - 1
    }
}

/// How many points a shape with so many requests has for each fault.
pub fn points_of(requests: u32, pairs: bool) -> u64 {
    let n = u64::from(requests);
    if pairs {
        n * n.saturating_sub(1) / 2
    } else {
        n
    }
}

/// All points, in order. `counts` has the requests of each shape's clean pass.
pub fn points(counts: &[u32], faults: usize, pairs: bool) -> impl Iterator<Item = Point> {
    let shapes = counts.iter().enumerate();
    let all = shapes.flat_map(move |(shape, &count)| {
        (0..faults).flat_map(move |fault| {
            (1..=count).flat_map(move |first| {
                let seconds = first + 1..=if pairs { count } else { first };
                let alone = (!pairs).then_some(None);
                let second = alone.into_iter().chain(seconds.map(Some));
                second.map(move |second| (shape, fault, first, second))
            })
        })
    });
    all.zip(0..)
        .map(|((shape, fault, first, second), index)| Point {
            index,
            shape,
            fault,
            first,
            second,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_or_each_two_of_every_shape_and_fault() {
        let single: Vec<_> = points(&[2, 0, 1], 2, false)
            .map(|p| (p.index, p.shape, p.fault, p.first, p.second))
            .collect();
        assert_eq!(
            single,
            [
                (0, 0, 0, 1, None),
                (1, 0, 0, 2, None),
                (2, 0, 1, 1, None),
                (3, 0, 1, 2, None),
                (4, 2, 0, 1, None),
                (5, 2, 1, 1, None),
            ]
        );
        let pairs: Vec<Vec<u32>> = points(&[1, 3], 1, true)
            .map(|p| p.requests().collect())
            .collect();
        assert_eq!(pairs, [[1, 2], [1, 3], [2, 3]]);
        for (count, two) in [(0, false), (1, true), (9, false), (9, true)] {
            let n = points(&[count], 3, two).count() as u64;
            assert_eq!(n, 3 * points_of(count, two));
        }
    }

    #[test]
    fn shards_share_all_points_out() {
        for of in 1..5 {
            for index in 0..20 {
                let takers = (1..=of).filter(|&part| Shard { part, of }.takes(index));
                assert_eq!(takers.count(), 1);
            }
        }
        assert_eq!(Shard::parse("2/3"), Some(Shard { part: 2, of: 3 }));
        for bad in ["", "1", "0/2", "3/2", "a/2", "1/0", "1/2/3"] {
            assert_eq!(Shard::parse(bad), None, "{bad}");
        }
    }
}
