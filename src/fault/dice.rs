// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Dice that fall the same way again: a throw is a function of the seed, the
//! rule's name (not its number: a rule more elsewhere changes nothing) and a count.

/// A stream of throws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dice(u64);

impl Dice {
    /// The dice of a rule.
    pub(super) fn new(seed: u64, rule: &str) -> Dice {
        // FNV-1a; the mixing below makes up for its weakness.
        let hash = rule.bytes().fold(0xcbf2_9ce4_8422_2325, |h: u64, b| {
            (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
        });
        Dice(mix(seed ^ mix(hash)))
    }

    /// Other dice of the same rule, for another purpose.
    pub(super) fn of(self, purpose: u64) -> Dice {
        Dice(mix(
            self.0 ^ mix(purpose.wrapping_add(0x9e37_79b9_7f4a_7c15))
        ))
    }

    /// The throw of this number.
    pub(super) fn throw(self, n: u64) -> u64 {
        mix(self.0.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }

    /// The throw of this number, below `end` (0 where that is 0).
    pub(super) fn below(self, n: u64, end: u64) -> u64 {
        ((u128::from(self.throw(n)) * u128::from(end)) >> 64) as u64
    }
}

/// splitmix64's output function.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throws_are_even_and_repeat() {
        let dice = Dice::new(7, "r");
        let hits = (0..100_000).filter(|&n| dice.below(n, 10) == 3).count();
        assert!((9_500..10_500).contains(&hits), "{hits}");
        assert_eq!(Dice::new(7, "r").throw(9), dice.throw(9));
        for other in [Dice::new(8, "r"), Dice::new(7, "s"), dice.of(1)] {
            assert_ne!(other.throw(9), dice.throw(9));
        }
        assert_eq!(dice.below(0, 0), 0);
    }
}
