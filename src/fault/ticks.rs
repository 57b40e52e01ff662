// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that do nothing but count the requests of some kinds: they share one
//! counter, and each is looked at when its turn comes, not for every request.

use std::collections::{BTreeMap, BTreeSet};

use super::index::OpMask;
use super::rule::Count;

/// The rules of one set of kinds.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Group {
    pub(super) ops: OpMask,
    /// Requests of these kinds so far.
    pub(super) total: u64,
    /// Rules about every request that can fire.
    pub(super) ready: BTreeSet<u32>,
    /// Rules by the total at which their turn comes.
    turns: BTreeMap<u64, Vec<(u32, Count)>>,
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

    /// A rule that has counted so many: when is its turn?
    pub(super) fn wait(&mut self, rule: u32, count: Count, counted: u64) {
        let n = count.n.max(1);
        let left = if count.every {
            n - counted % n
        } else if counted < n {
            n - counted
        } else {
            return;
        };
        if let Some(at) = self.total.checked_add(left) {
            self.turns.entry(at).or_default().push((rule, count));
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
        let Some((at, rules)) = self.turns.pop_first() else {
            return;
        };
        for (rule, count) in rules {
            into.push(rule);
            if count.every
                && let Some(next) = at.checked_add(count.n.max(1))
            {
                self.turns.entry(next).or_default().push((rule, count));
            }
        }
    }
}
