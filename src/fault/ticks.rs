// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that do nothing but count (or throw dice on) the requests of some kinds: they share one
//! counter, and each is looked at when its turn comes, not for every request.

use std::collections::{BTreeMap, BTreeSet};

use super::dice::Dice;
use super::index::OpMask;
use super::parse_when::CHANCES;

/// When a rule's turn is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Turn {
    /// At the n-th request.
    Nth(u64),
    /// At every n-th.
    Every(u64),
    /// So many of 2^53 throws win.
    Dice(u64),
}

impl Turn {
    /// The first turn behind so many requests.
    fn next(self, dice: Dice, counted: u64) -> Option<u64> {
        match self {
            Turn::Nth(n) => (counted < n).then_some(n),
            Turn::Every(n) => counted.checked_add(n - counted % n),
            Turn::Dice(wins) => next_win(dice, wins, counted),
        }
    }
}

/// The rules of one set of kinds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) ops: OpMask,
    /// Requests of these kinds so far.
    pub(super) total: u64,
    /// Rules about every request that can fire.
    pub(super) ready: BTreeSet<u32>,
    /// Rules by the total at which their turn comes.
    turns: BTreeMap<u64, Vec<Waiting>>,
}

/// A rule that waits for its turn.
#[derive(Clone, Debug, PartialEq)]
struct Waiting {
    rule: u32,
    turn: Turn,
    dice: Dice,
    /// What it will have counted by then.
    counted: u64,
}

impl Group {
    pub(super) fn new(ops: OpMask) -> Group {
        Group {
            ops,
            total: 0,
            ready: BTreeSet::new(),
            turns: BTreeMap::new(),
        }
    }

    /// Forgets the rules, not the total.
    pub(super) fn clear(&mut self) {
        self.ready.clear();
        self.turns.clear();
    }

    /// A rule that has counted so many waits for its next turn.
    pub(super) fn wait(&mut self, rule: u32, turn: Turn, dice: Dice, counted: u64) {
        if let Some(next) = turn.next(dice, counted)
            && let Some(at) = self.total.checked_add(next - counted)
        {
            self.turns.entry(at).or_default().push(Waiting {
                rule,
                turn,
                dice,
                counted: next,
            });
        }
    }

    /// One more request; the rules whose turn has come.
    pub(super) fn tick(&mut self, into: &mut Vec<u32>) {
        self.total = self.total.saturating_add(1);
        let due = self
            .turns
            .first_key_value()
            .is_some_and(|(at, _)| *at <= self.total);
        if !due {
            return;
        }
        let Some((_, rules)) = self.turns.pop_first() else {
            return;
        };
        for w in rules {
            into.push(w.rule);
            self.wait(w.rule, w.turn, w.dice, w.counted);
        }
    }
}

/// The first throw behind `counted` (from 1) that wins. Not each throw is
/// thrown: the dice say how many lose before the next wins. They begin anew with
/// every block of throws, so that the answer depends on `counted` alone.
fn next_win(dice: Dice, wins: u64, counted: u64) -> Option<u64> {
    // About 64 wins in each block.
    let block = (CHANCES / wins.max(1)).saturating_mul(64).max(1);
    let mut start = counted - counted % block;
    // A block without a win has a chance of e^-64.
    for _ in 0..4 {
        let blocks = dice.of(start);
        let mut at = start;
        for n in 0.. {
            at = at.checked_add(losses(blocks.throw(n) >> 11, wins, block))?;
            if at - start >= block {
                break;
            }
            if at >= counted {
                return at.checked_add(1);
            }
            at += 1;
        }
        start = start.checked_add(block)?;
    }
    None
}

/// How many throws lose before one wins: the greatest n with (1-p)^n > u, in whole
/// numbers, because logarithms differ between machines.
fn losses(u: u64, wins: u64, most: u64) -> u64 {
    let q = u128::from(CHANCES.saturating_sub(wins));
    // (1-p)^(2^k), scaled by 2^53.
    let mut powers = vec![q];
    while powers.len() < 63 && (1u64 << powers.len()) <= most {
        let last = powers.last().copied().unwrap_or(0);
        powers.push((last * last) >> 53);
    }
    let (mut all, mut n) = (u128::from(CHANCES), 0u64);
    for (k, power) in powers.iter().enumerate().rev() {
        let next = (all * power) >> 53;
        if next > u128::from(u) {
            all = next;
            n += 1 << k;
        }
    }
    n.min(most)
}
