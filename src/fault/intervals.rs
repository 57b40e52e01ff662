// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which of many fixed ranges does this one touch: a balanced tree in two arrays.

use std::ops::Range;

/// Ranges with the rule that each is of.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Intervals {
    /// By their start.
    list: Vec<(Range<u64>, u32)>,
    /// Greatest end in the subtree whose middle this is.
    reach: Vec<u64>,
}

impl Intervals {
    pub(super) fn new(mut list: Vec<(Range<u64>, u32)>) -> Intervals {
        list.sort_by_key(|(range, rule)| (range.start, *rule));
        let mut reach = vec![0; list.len()];
        measure(&list, &mut reach);
        Intervals { list, reach }
    }

    /// Calls `found` with the rule of every range that shares a number with `with`.
    pub(super) fn touching(&self, with: &Range<u64>, found: &mut impl FnMut(u32)) {
        visit(&self.list, &self.reach, with, found);
    }
}

fn measure(list: &[(Range<u64>, u32)], reach: &mut [u64]) -> u64 {
    if list.is_empty() {
        return 0;
    }
    let mid = list.len() / 2;
    let (left, right) = reach.split_at_mut(mid);
    let Some((own, right)) = right.split_first_mut() else {
        return 0;
    };
    *own = measure(&list[..mid], left)
        .max(measure(&list[mid + 1..], right))
        .max(list[mid].0.end);
    *own
}

fn visit(
    list: &[(Range<u64>, u32)],
    reach: &[u64],
    with: &Range<u64>,
    found: &mut impl FnMut(u32),
) {
    let mid = list.len() / 2;
    if list.is_empty() || reach[mid] <= with.start {
        return;
    }
    visit(&list[..mid], &reach[..mid], with, found);
    let (range, rule) = &list[mid];
    if range.start < with.end {
        if range.end > with.start {
            found(*rule);
        }
        visit(&list[mid + 1..], &reach[mid + 1..], with, found);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_same_as_looking_at_all(
            list in prop::collection::vec((0u64..100, 1u64..30), 0..40),
            start in 0u64..120,
            len in 1u64..20,
        ) {
            let list: Vec<_> = list.iter().zip(0u32..).map(|((s, l), n)| (*s..s + l, n)).collect();
            let with = start..start + len;
            let mut expected: Vec<u32> = list
                .iter()
                .filter(|(r, _)| r.start < with.end && with.start < r.end)
                .map(|(_, n)| *n)
                .collect();
            let mut found = Vec::new();
            Intervals::new(list).touching(&with, &mut |n| found.push(n));
            found.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(found, expected);
        }
    }
}
