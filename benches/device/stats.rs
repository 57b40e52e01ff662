// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Medians and their intervals, without any assumption on how the figures are spread.

/// A median and its 95 % interval.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Median {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Median {
    /// In another unit.
    pub fn times(self, factor: f64) -> Median {
        Median {
            median: self.median * factor,
            low: self.low * factor,
            high: self.high * factor,
        }
    }
}

/// By order statistics: the narrowest pair of ranks, as far from either end, that holds the
/// median with at least 95 % (binomial, p = 1/2). With fewer than 6 figures all of them.
pub fn median(figures: &[f64]) -> Option<Median> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    let (&first, &last) = (sorted.first()?, sorted.last()?);
    let middle = if n % 2 == 1 {
        sorted[n / 2]
    } else {
        (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0
    };
    // Chance that at most `rank` figures lie below the true median.
    let mut below = 0.0;
    let mut ways = 1.0;
    let mut cut = None;
    for rank in 0..n / 2 {
        below += ways * 0.5f64.powi(n as i32);
        ways *= (n - rank) as f64 / (rank + 1) as f64;
        if 2.0 * below <= 0.05 {
            cut = Some(rank);
        }
    }
    let (low, high) = match cut {
        Some(rank) => (sorted[rank], sorted[n - 1 - rank]),
        None => (first, last),
    };
    Some(Median {
        median: middle,
        low,
        high,
    })
}

/// Checked at each start: a benchmark has no test run of its own.
pub fn check() {
    let nine: Vec<f64> = (1..=9).map(f64::from).collect();
    // Ranks 2 and 8 of 9 hold the median with 96.1 %, ranks 3 and 7 with 82 %.
    let m = median(&nine).map(|m| (m.median, m.low, m.high));
    assert_eq!(m, Some((5.0, 2.0, 8.0)));
    let m = median(&[3.0, 1.0]).map(|m| (m.median, m.low, m.high));
    assert_eq!(m, Some((2.0, 1.0, 3.0)));
}
