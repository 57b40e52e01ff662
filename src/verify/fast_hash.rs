// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables by number: a hash that is a multiplication.
//!
//! The numbers come out of a trace, which may be hostile. So the multiplication is
//! mixed with a secret of this process; without it nobody can choose numbers that collide.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::LazyLock;

/// A table whose keys are numbers.
pub type NumberMap<V> = HashMap<u64, V, Secret>;
/// A table whose keys are pairs of numbers.
pub type PairMap<V> = HashMap<(u64, u64), V, Secret>;
/// A set of numbers.
pub type NumberSet = HashSet<u64, Secret>;

static SECRET: LazyLock<[u64; 2]> =
    LazyLock::new(|| [0, 1].map(|n| RandomState::new().hash_one(n)));

/// Makes [`Multiply`] with the secret of this process.
#[derive(Clone, Copy, Debug)]
pub struct Secret([u64; 2]);

impl Default for Secret {
    fn default() -> Secret {
        Secret(*SECRET)
    }
}

impl BuildHasher for Secret {
    type Hasher = Multiply;

    fn build_hasher(&self) -> Multiply {
        Multiply {
            state: self.0[0],
            factor: self.0[1] | 1,
        }
    }
}

/// The state of one hash.
#[derive(Debug)]
pub struct Multiply {
    state: u64,
    factor: u64,
}

impl Hasher for Multiply {
    fn finish(&self) -> u64 {
        self.state
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // Both halves of the product: the low bits of a number reach all bits of it.
        let wide = u128::from(self.state ^ number) * u128::from(self.factor);
        self.state = (wide as u64) ^ ((wide >> 64) as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_a_row_and_far_apart_do_not_crowd() {
        for step in [1u64, 1 << 20, 1 << 40, 3] {
            // Now and then an unlucky secret is drawn: not four times.
            let crowded = |_| {
                let draw = || std::hash::RandomState::new().hash_one(0);
                let secret = Secret([draw(), draw()]);
                let mut low = std::collections::BTreeMap::new();
                for n in 0..4096u64 {
                    let hash = secret.hash_one(n.wrapping_mul(step));
                    *low.entry(hash % 1024).or_insert(0) += 1;
                }
                low.values().max().copied().unwrap_or(0) >= 64
            };
            assert!(!(0..4).all(crowded), "4096 numbers with step {step} crowd");
        }
    }
}
