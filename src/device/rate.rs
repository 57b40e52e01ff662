// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How many things may happen in a second. A second's worth may come at once.

use std::time::{Duration, Instant};

/// See the module.
pub(super) struct Rate {
    pub per_second: u32,
    /// People were told that it is reached.
    pub said: bool,
    /// When the next one would be due, were they spread evenly.
    due: Instant,
}

/// How far the next one may be ahead of its time.
const AHEAD: Duration = Duration::from_secs(1);

impl Rate {
    /// `per_second`: at least one.
    pub fn new(per_second: u32, now: Instant) -> Rate {
        Rate {
            per_second: per_second.max(1),
            said: false,
            due: now,
        }
    }

    fn each(&self) -> Duration {
        Duration::from_secs(1) / self.per_second
    }

    /// Whether one may happen now; it counts where it may.
    pub fn takes(&mut self, now: Instant) -> bool {
        if now < self.next(now) {
            return false;
        }
        self.due = self.due.max(now) + self.each();
        true
    }

    /// When the next one may; it may be over.
    pub fn next(&self, now: Instant) -> Instant {
        let after = self.due + self.each();
        after.checked_sub(AHEAD).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_at_once_and_then_its_rate() {
        let begin = Instant::now() + Duration::from_secs(1000);
        let at = |ms| begin + Duration::from_millis(ms);
        let mut rate = Rate::new(10, begin);
        let count = |rate: &mut Rate, ms| (0..100).filter(|_| rate.takes(at(ms))).count();
        assert_eq!(count(&mut rate, 0), 10);
        assert_eq!(count(&mut rate, 99), 0);
        assert_eq!(rate.next(at(99)), at(100));
        assert_eq!(count(&mut rate, 100), 1);
        assert_eq!(count(&mut rate, 450), 3);
        // What was not used is not kept for longer than a second.
        assert_eq!(count(&mut rate, 60_000), 10);
    }
}
