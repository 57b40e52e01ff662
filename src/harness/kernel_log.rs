// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The kernel's console lines, each with the event after which it came: what it
//! said at the moment of a finding.

use std::collections::VecDeque;

/// Bytes of lines that are kept, the latest.
const MAX_BYTES: usize = 1 << 20;
/// Letters of a line that are kept.
const MAX_LINE: usize = 400;
/// Lines of one moment.
const MAX_LINES: usize = 16;
/// Lines after the last event of a finding: a console is slower than the device.
const AFTER: usize = 3;

/// The lines.
#[derive(Debug, Default)]
pub struct KernelLog {
    lines: VecDeque<(u64, String)>,
    bytes: usize,
}

impl KernelLog {
    /// A line came after the event `seq`.
    pub fn line(&mut self, seq: u64, line: &str) {
        let line: String = line.chars().take(MAX_LINE).collect();
        self.bytes += line.len();
        self.lines.push_back((seq, line));
        while self.bytes > MAX_BYTES
            && let Some((_, old)) = self.lines.pop_front()
        {
            self.bytes -= old.len();
        }
    }

    /// What was said from the event `first` to the event `last`, the latest where it is much.
    pub fn between(&self, first: u64, last: u64) -> Vec<String> {
        let from = self.lines.partition_point(|(seq, _)| *seq < first);
        let to = self.lines.partition_point(|(seq, _)| *seq <= last);
        // A line that came later may be another test's; one just behind seldom is.
        let near = |at: &usize| {
            self.lines
                .get(*at)
                .is_some_and(|(seq, _)| *seq <= last.saturating_add(16))
        };
        let end = (to..self.lines.len()).take(AFTER).take_while(near).count() + to;
        let count = end.saturating_sub(from);
        let lines = self.lines.iter().skip(from).take(count);
        lines
            .skip(count.saturating_sub(MAX_LINES))
            .map(|(_, line)| line.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_of_a_finding_is_cut_out() {
        let mut log = KernelLog::default();
        for seq in [1, 5, 5, 9, 12, 500] {
            log.line(seq, &format!("line {seq}"));
        }
        assert_eq!(log.between(5, 9), ["line 5", "line 5", "line 9", "line 12"]);
        assert!(log.between(600, 700).is_empty());
        assert!(log.between(20, 30).is_empty());
        assert_eq!(log.between(0, u64::MAX).len(), 6);
        for seq in 500..100_000 {
            log.line(seq, &"x".repeat(1000));
        }
        assert!(log.lines.len() <= MAX_BYTES / MAX_LINE);
        assert_eq!(log.between(0, 99_999).len(), MAX_LINES);
        assert!(log.between(0, 10).is_empty(), "the oldest are forgotten");
    }
}
