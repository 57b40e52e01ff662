// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a sweep in one boot is worth: some of its points once more, each in a boot of its own.

use std::io::{self, Write};

use serde::Serialize;

use super::report::Rates;

/// A sweep against a boot for each point, in one run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Compared {
    /// Points that were done in boots of their own.
    pub points: u32,
    /// Seconds of each such boot, the mean, image and device included.
    pub seconds: f64,
    /// Points per minute that way.
    pub per_minute: f64,
    /// Points per minute of the sweep, its boots included, in multiples of that.
    pub times: f64,
}

impl Compared {
    /// Of the seconds of each boot.
    pub fn of(seconds: &[f64], rates: &Rates) -> Compared {
        let points = seconds.len() as u32;
        let mean = seconds.iter().sum::<f64>() / f64::from(points.max(1));
        let per_minute = if mean > 0.0 { 60.0 / mean } else { 0.0 };
        let times = if per_minute > 0.0 {
            rates.per_minute / per_minute
        } else {
            0.0
        };
        Compared {
            points,
            seconds: mean,
            per_minute,
            times,
        }
    }

    /// For people.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "# a boot for each point: {:.2} s each (mean of {}), {:.1} points/min; the sweep is {:.1} times as fast, its boots included",
            self.seconds, self.points, self.per_minute, self.times
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_per_minute_are_compared_with_points_per_minute() {
        let rates = Rates {
            boots: 1,
            points: 100,
            per_second: 50.0,
            per_minute: 1200.0,
        };
        let compared = Compared::of(&[2.0, 4.0], &rates);
        assert_eq!(
            (compared.points, compared.per_minute, compared.times),
            (2, 20.0, 60.0)
        );
        assert_eq!(Compared::of(&[], &rates).times, 0.0);
    }
}
