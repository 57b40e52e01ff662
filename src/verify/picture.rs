// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call as a small picture: its blocks, its requests in order of arrival with
//! the order of their completion, the failed ones, and what is left.

use super::story::{Story, Told};
use crate::trace::event::Status;

/// Characters that stand for the call's range.
const BAR: usize = 32;
/// Requests that are shown; beyond them the first, the failed and the last.
const SHOWN: usize = 12;
const FIRST: usize = 4;
const LAST: usize = 3;

/// The lines of the picture; none where no call is known.
pub fn picture(story: &Story) -> Vec<String> {
    let Some((start, end)) = story.range.filter(|(start, end)| start < end) else {
        return Vec::new();
    };
    let bar = Bar { start, end };
    let blocks = (end - start).div_ceil(story.block.max(1));
    let mut lines = vec![format!(
        "{:18}[{}] {blocks} blocks of {}: {start} to {end}",
        "",
        bar.blocks(story.block),
        story.block
    )];
    let shown = chosen(&story.requests);
    let mut passed = 0u64;
    for (i, request) in story.requests.iter().enumerate() {
        if !shown.contains(&i) {
            passed += 1;
            continue;
        }
        if passed > 0 {
            lines.push(format!("{:18}... {passed} more ...", ""));
            passed = 0;
        }
        lines.push(bar.request(request));
    }
    let more = passed + story.more_requests;
    if more > 0 {
        lines.push(format!("{:18}... {more} more", ""));
    }
    if story.requests.is_empty() {
        lines.push(format!("{:18}no request carried the call's tag", ""));
    }
    let bytes: u64 = story.left.iter().map(|(s, e)| e - s).sum();
    if bytes > 0 {
        let left = bar.draw(&story.left, '?');
        lines.push(format!("{:18}[{left}] left: {bytes} bytes", ""));
    }
    lines
}

/// All requests where they are few, else the first, the last and those that failed.
fn chosen(requests: &[Told]) -> Vec<usize> {
    let n = requests.len();
    if n <= SHOWN {
        return (0..n).collect();
    }
    let odd = |i: &usize| {
        requests
            .get(*i)
            .is_some_and(|r| r.status != Some(0) && r.class == "data")
    };
    let mut some: Vec<usize> = (FIRST..n - LAST)
        .filter(odd)
        .take(SHOWN - FIRST - LAST)
        .collect();
    some.extend(0..FIRST);
    some.extend(n - LAST..n);
    some.sort_unstable();
    some
}

/// The range of the call as a bar.
struct Bar {
    start: u64,
    end: u64,
}

impl Bar {
    /// The blocks: a `|` where one begins, as far as there is room for each.
    fn blocks(&self, block: u64) -> String {
        let blocks = (self.end - self.start).div_ceil(block.max(1));
        let mut bar: Vec<char> = vec!['-'; BAR];
        if blocks <= BAR as u64 / 2 {
            for n in 0..blocks {
                if let Some(c) = bar.get_mut(self.column(self.start + n * block)) {
                    *c = '|';
                }
            }
        }
        bar.into_iter().collect()
    }

    /// The column in which a byte of the file lies.
    fn column(&self, at: u64) -> usize {
        let within = u128::from(at.saturating_sub(self.start)) * BAR as u128;
        let column = within / u128::from(self.end - self.start);
        usize::try_from(column).map_or(BAR, |c| c.min(BAR))
    }

    /// The parts as `with`, each at least one column wide.
    fn draw(&self, parts: &[(u64, u64)], with: char) -> String {
        let mut bar: Vec<char> = vec![' '; BAR];
        for (start, end) in parts {
            let from = self.column(*start).min(BAR - 1);
            let to = self.column(*end).clamp(from + 1, BAR);
            bar.iter_mut().take(to).skip(from).for_each(|c| *c = with);
        }
        bar.into_iter().collect()
    }

    fn request(&self, r: &Told) -> String {
        let (sign, how) = match (r.completed, r.status) {
            (Some(n), Some(0)) => ('=', format!("{} OK", ordinal(n))),
            (Some(n), Some(status)) => ('x', format!("{} {}", ordinal(n), Status(status))),
            _ => ('~', "not completed".to_owned()),
        };
        let what = format!("{} {}", r.request, r.op);
        let rule = match &r.rule {
            Some(name) => format!(", rule {}", name.escape_debug()),
            None => String::new(),
        };
        let class = if r.class == "data" {
            String::new()
        } else {
            format!(" ({})", r.class)
        };
        format!(
            "{:>4} {what:<12} [{}] {how}{class}{rule}",
            ordinal(r.arrived),
            self.draw(&r.file, sign)
        )
    }
}

/// 1st, 2nd, 3rd, 4th.
fn ordinal(n: usize) -> String {
    let ending = match (n % 100, n % 10) {
        (11..=13, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{n}{ending}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(request: u64, arrived: usize, file: (u64, u64), status: Option<u8>) -> Told {
        Told {
            request,
            op: "write".into(),
            class: "data".into(),
            sector: 8 * request,
            bytes: 4096,
            file: vec![file],
            arrived,
            completed: status.map(|_| arrived),
            completed_at: status.map(|_| request + 100),
            status,
            rule: status.filter(|s| *s > 0).map(|_| "fail-first".into()),
        }
    }

    #[test]
    fn a_call_is_drawn() {
        let story = Story {
            range: Some((0, 16384)),
            block: 4096,
            requests: vec![
                told(7, 1, (0, 4096), Some(1)),
                told(8, 2, (4096, 12288), Some(0)),
                told(9, 3, (12288, 16384), None),
            ],
            left: vec![(0, 4096), (12288, 16384)],
            ..Story::default()
        };
        let want =
            "                  [|-------|-------|-------|-------] 4 blocks of 4096: 0 to 16384
 1st 7 write      [xxxxxxxx                        ] 1st IOERR, rule fail-first
 2nd 8 write      [        ================        ] 2nd OK
 3rd 9 write      [                        ~~~~~~~~] not completed
                  [????????                ????????] left: 8192 bytes";
        assert_eq!(picture(&story).join("\n"), want);
        assert!(picture(&Story::default()).is_empty());
    }

    #[test]
    fn of_many_requests_the_failed_ones_are_shown() {
        let mut requests: Vec<Told> = (0..1000)
            .map(|n| told(n, n as usize + 1, (n * 4096, n * 4096 + 4096), Some(0)))
            .collect();
        requests[500].status = Some(1);
        let story = Story {
            range: Some((0, 4096 * 1000)),
            block: 4096,
            requests,
            ..Story::default()
        };
        let lines = picture(&story);
        assert!(lines.len() < SHOWN + 6, "{lines:#?}");
        assert!(
            lines.iter().any(|l| l.contains("501st IOERR")),
            "{lines:#?}"
        );
        assert!(lines.iter().all(|l| l.chars().count() <= 100), "{lines:#?}");
    }

    #[test]
    fn numbers_at_the_end_of_the_world_do_no_harm() {
        let story = Story {
            range: Some((0, u64::MAX)),
            block: 1,
            requests: vec![told(1, 111, (u64::MAX - 1, u64::MAX), None)],
            left: vec![(0, u64::MAX)],
            ..Story::default()
        };
        assert_eq!(picture(&story).len(), 3);
        let none = Story { block: 0, ..story };
        picture(&none);
    }
}
