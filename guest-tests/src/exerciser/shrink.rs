// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A shorter list that still fails: parts of it are left out, halves first, then ever smaller ones,
//! as long as what is left fails and the budget lasts.

/// Shortens `list`. `fails` says whether a list still fails, or `None` where nobody may try any more.
/// The shortest list that failed, and how many were tried.
pub fn shrink<T: Clone>(list: &[T], mut fails: impl FnMut(&[T]) -> Option<bool>) -> (Vec<T>, u32) {
    let mut best = list.to_vec();
    let mut tried = 0;
    let mut step = best.len().div_ceil(2).max(1);
    loop {
        let mut shorter = false;
        // From the end: what is behind the place that failed matters least.
        let mut end = best.len();
        while end > 0 && best.len() > 1 {
            let begin = end.saturating_sub(step);
            let mut without = best[..begin].to_vec();
            without.extend_from_slice(&best[end..]);
            if without.is_empty() {
                break;
            }
            tried += 1;
            match fails(&without) {
                None => return (best, tried - 1),
                Some(true) => {
                    best = without;
                    shorter = true;
                }
                Some(false) => {}
            }
            end = begin;
        }
        if step == 1 && !shorter {
            return (best, tried);
        }
        if !shorter || step > best.len() {
            step = (step / 2).max(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_goes() {
        let list: Vec<u32> = (0..100).collect();
        let needs = |l: &[u32]| Some([17, 18, 93].iter().all(|n| l.contains(n)));
        assert_eq!(shrink(&list, needs).0, [17, 18, 93]);
        let first = |l: &[u32]| Some(l.contains(&0));
        assert_eq!(shrink(&list, first).0, [0]);
    }

    #[test]
    fn all_may_be_needed() {
        let list = [1, 2, 3];
        assert_eq!(shrink(&list, |l| Some(l.len() == 3)).0, list);
        assert_eq!(shrink(&[1], |_| Some(true)).0, [1]);
    }

    #[test]
    fn a_budget_ends_it_with_the_best_so_far() {
        let list: Vec<u32> = (0..64).collect();
        let mut left = 3;
        let (best, tried) = shrink(&list, |l| {
            left -= 1;
            (left >= 0).then(|| l.contains(&1))
        });
        assert!(best.contains(&1) && best.len() < 64);
        assert_eq!(tried, 3);
    }
}
