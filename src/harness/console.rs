// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's console: our PID 1's KTAP and the kernel's own words, told apart.

use std::time::{Duration, Instant};

/// What the guest said of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// `ok`.
    Pass,
    /// `not ok`.
    Fail,
    /// `ok ... # SKIP`: the reason.
    Skip(String),
    /// It hung (the guest says so and ends), or the guest ended in it.
    Timeout(String),
}

/// A test, as far as the console tells.
#[derive(Clone, Debug)]
pub struct ConsoleTest {
    /// Its name.
    pub name: String,
    /// What came of it.
    pub outcome: Outcome,
    /// The diagnostics before its result, without `# `.
    pub diagnostics: Vec<String>,
    /// Kernel log lines of its time that are findings.
    pub kernel: Vec<KernelFinding>,
    /// From the end of the test before it, or the plan, to its own.
    pub time: Duration,
}

/// A kernel log line that a correct kernel does not print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelFinding {
    /// The line, its time included.
    pub line: String,
    /// `panic`, `warning`, `bug`, `lockdep`, `assertion`, `shutdown`, `hung-task`, ...
    pub kind: &'static str,
    /// Requests that the device had in flight when the line came. A hung-task
    /// line counts only at 0: a task that waits for us is our doing.
    pub in_flight: usize,
    /// Why it does not count although it looks like a finding.
    pub excused: Option<&'static str>,
}

impl KernelFinding {
    /// Whether the line counts.
    pub fn counts(&self) -> bool {
        self.excused.is_none() && (self.kind != "hung-task" || self.in_flight == 0)
    }

    /// Why it does not count, where it does not.
    pub fn passed_over(&self) -> String {
        match self.excused {
            Some(why) => format!("{why}: {}", self.line),
            None => format!(
                "the device had {} requests in flight: {}",
                self.in_flight, self.line
            ),
        }
    }
}

/// Linux 6.12 warns so once in its life when a file with blocks above the page size is truncated
/// inside a folio, flag or not: truncation splits folios to single pages, and is refused with a
/// warning of DEBUG_VM ("Cannot split mapped folio below min-order", mm/huge_memory.c).
const SPLIT: [&str; 2] = ["WARNING: CPU: ", " split_huge_page_to_list_to_order+"];
const SPLIT_WHY: &str = "Linux 6.12 itself says that once with blocks above the page size";

/// Line patterns and their kinds; the first that matches is taken.
const PATTERNS: &[(&str, &str)] = &[
    ("Kernel panic", "panic"),
    ("BUG:", "bug"),
    ("kernel BUG at", "bug"),
    ("Oops:", "bug"),
    ("general protection fault", "bug"),
    ("KASAN:", "bug"),
    ("WARNING: possible", "lockdep"),
    ("WARNING: inconsistent lock state", "lockdep"),
    ("WARNING: bad unlock balance", "lockdep"),
    ("WARNING: suspicious RCU", "lockdep"),
    ("WARNING:", "warning"),
    ("list_add corruption", "bug"),
    ("list_del corruption", "bug"),
    ("XFS: Assertion failed", "assertion"),
    ("Internal error", "assertion"),
    ("Metadata corruption detected", "assertion"),
    ("Shutting down filesystem", "shutdown"),
    ("has been shut down", "shutdown"),
    ("blocked for more than", "hung-task"),
    ("self-detected stall", "stall"),
    ("soft lockup", "stall"),
];

/// What kind of finding a line of the kernel's log is, if it is one.
pub fn kind_of(line: &str) -> Option<&'static str> {
    let found = PATTERNS.iter().find(|(pattern, _)| line.contains(pattern));
    found.map(|(_, kind)| *kind)
}

/// Longest console line that is kept; a longer one is cut (a hostile guest may
/// never send a newline).
const LINE_MAX: usize = 4096;
/// Most diagnostics and kernel findings kept of one test.
const KEEP: usize = 200;

/// Follows the console line by line.
#[derive(Default, Debug)]
pub struct Console {
    /// Tests that ended, in order.
    pub tests: Vec<ConsoleTest>,
    /// The guest printed its plan: PID 1 of ours runs.
    pub plan: Option<usize>,
    /// A panic line, if there was one.
    pub panic: Option<String>,
    /// The guest said that it could not go on: its reason.
    pub bail_out: Option<String>,
    /// What the guest found out about itself (`docs/guest-tests.md`, "Keys of `env`").
    pub env: Option<String>,
    /// The file system's blocks are larger than a page: the warning of such a split is no finding, once.
    pub large_blocks: bool,
    split: bool,
    /// When the last test ended, or the plan came.
    since: Option<Instant>,
    diagnostics: Vec<String>,
    kernel: Vec<KernelFinding>,
}

impl Console {
    /// Takes one line (without its end); `in_flight` as of now. Whether it was the kernel's.
    pub fn line(&mut self, line: &str, in_flight: usize) -> bool {
        let line = line.trim_end_matches('\r');
        let line = &line[..line.floor_char_boundary(LINE_MAX)];
        let said = said_by_guest(line);
        if self.guest_line(said) {
            return false;
        }
        if let Some(kind) = kind_of(line) {
            if kind == "panic" && self.panic.is_none() {
                self.panic = Some(said.to_owned());
            }
            let excused = self.excused(line);
            if self.kernel.len() < KEEP {
                self.kernel.push(KernelFinding {
                    line: line.to_owned(),
                    kind,
                    in_flight,
                    excused,
                });
            }
        }
        true
    }

    /// Why this line is no finding, where it is none.
    fn excused(&mut self, line: &str) -> Option<&'static str> {
        let release = self.env.as_deref().unwrap_or_default();
        let known = self.large_blocks
            && !self.split
            && release.split(' ').any(|w| w.starts_with("release=6.12."))
            && SPLIT.iter().all(|part| line.contains(part));
        self.split |= known;
        known.then_some(SPLIT_WHY)
    }

    /// Whether the line was the guest program's.
    fn guest_line(&mut self, line: &str) -> bool {
        if line.starts_with("KTAP version ") {
            return true;
        }
        if let Some(count) = line.strip_prefix("1..") {
            if let Ok(count) = count.trim().parse() {
                self.plan = Some(count);
                self.since = Some(Instant::now());
            }
            return true;
        }
        if let Some(reason) = line.strip_prefix("Bail out! ") {
            self.bail_out = Some(reason.to_owned());
            return true;
        }
        if let Some(env) = line.strip_prefix("# wtblk-guest env ") {
            self.env = Some(env.to_owned());
            return true;
        }
        if let Some(text) = line.strip_prefix("# ") {
            if self.diagnostics.len() < KEEP {
                self.diagnostics.push(text.to_owned());
            }
            return true;
        }
        if let Some((name, outcome)) = result_line(line) {
            self.end_test(name, outcome);
            return true;
        }
        false
    }

    /// Notes a test's end, with everything said since the one before.
    pub fn end_test(&mut self, name: String, outcome: Outcome) {
        let diagnostics = std::mem::take(&mut self.diagnostics);
        let kernel = std::mem::take(&mut self.kernel);
        let now = Instant::now();
        let time = self.since.map_or(Duration::ZERO, |since| now - since);
        self.since = Some(now);
        self.tests.push(ConsoleTest {
            name,
            outcome,
            diagnostics,
            kernel,
            time,
        });
    }

    /// Kernel findings after the last test (at umount, say): they belong to it.
    pub fn finish(&mut self) {
        if let Some(last) = self.tests.last_mut() {
            last.kernel.append(&mut self.kernel);
            last.diagnostics.append(&mut self.diagnostics);
        }
    }
}

/// The line without the time that printk puts before lines written to /dev/kmsg.
fn said_by_guest(line: &str) -> &str {
    let Some(rest) = line.strip_prefix('[') else {
        return line;
    };
    match rest.split_once("] ") {
        Some((time, said)) if time.trim().parse::<f64>().is_ok() => said,
        _ => line,
    }
}

/// `ok N name` or `not ok N name`, with an optional directive.
fn result_line(line: &str) -> Option<(String, Outcome)> {
    let (ok, rest) = match line.strip_prefix("not ok ") {
        Some(rest) => (false, rest),
        None => (true, line.strip_prefix("ok ")?),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let (name, directive) = match rest.split_once(" # ") {
        Some((name, directive)) => (name, directive),
        None => (rest, ""),
    };
    let outcome = if let Some(reason) = directive.strip_prefix("SKIP") {
        Outcome::Skip(reason.trim().to_owned())
    } else if let Some(reason) = directive.strip_prefix("TIMEOUT") {
        Outcome::Timeout(reason.trim().to_owned())
    } else if ok {
        Outcome::Pass
    } else {
        Outcome::Fail
    };
    Some((name.trim().to_owned(), outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(text: &str) -> Console {
        let mut console = Console::default();
        for line in text.lines() {
            console.line(line, 0);
        }
        console
    }

    #[test]
    fn results_come_with_what_was_said_before_them() {
        let console = follow(
            "[    0.1] Linux version\nKTAP version 1\n1..3\n# a\n[    0.5] ok 1 first\n\
             # b\n[    0.6] WARNING: CPU: 0 PID: 1 at fs/x.c:1\nnot ok 2 second\nok 3 third # SKIP no flag\n",
        );
        assert_eq!(console.plan, Some(3));
        let names: Vec<&str> = console.tests.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["first", "second", "third"]);
        assert_eq!(console.tests[0].diagnostics, ["a"]);
        assert_eq!(console.tests[1].outcome, Outcome::Fail);
        assert_eq!(console.tests[1].kernel[0].kind, "warning");
        assert_eq!(console.tests[2].outcome, Outcome::Skip("no flag".into()));
    }

    #[test]
    fn a_panic_is_seen_and_a_hung_task_needs_an_idle_device() {
        let mut console = Console::default();
        console.line(
            "[   21.0] INFO: task wtblk-guest:77 blocked for more than 20 seconds.",
            1,
        );
        console.line("[   22.0] Kernel panic - not syncing: x", 0);
        console.end_test("t".into(), Outcome::Timeout(String::new()));
        let kernel = &console.tests[0].kernel;
        assert!(!kernel[0].counts());
        assert!(kernel[1].counts());
        assert_eq!(
            console.panic.as_deref(),
            Some("Kernel panic - not syncing: x")
        );
    }

    #[test]
    fn one_warning_of_6_12_is_known_where_blocks_are_larger_than_a_page() {
        let warning = "[ 2.7] WARNING: CPU: 0 PID: 86 at mm/huge_memory.c:3575 \
                       split_huge_page_to_list_to_order+0x6f/0x700";
        let counting = |release: &str, large_blocks: bool, lines: &[&str]| -> usize {
            let mut console = Console {
                large_blocks,
                ..Console::default()
            };
            console.line(
                &format!("# wtblk-guest env fs=xfs release={release} x=y"),
                0,
            );
            for line in lines {
                console.line(line, 0);
            }
            console.kernel.iter().filter(|f| f.counts()).count()
        };
        assert_eq!(counting("6.12.117", true, &[warning]), 0);
        assert_eq!(counting("6.12.117", true, &[warning, warning]), 1, "once");
        assert_eq!(counting("6.12.117", false, &[warning]), 1);
        assert_eq!(counting("6.13.1", true, &[warning]), 1);
        let other = warning.replace("split_huge_page_to_list_to_order", "try_to_unmap");
        assert_eq!(counting("6.12.117", true, &[other.as_str()]), 1);
        let bug = warning.replace("WARNING: CPU: 0", "BUG: CPU: 0");
        assert_eq!(counting("6.12.117", true, &[bug.as_str()]), 1);
    }

    #[test]
    fn odd_lines_are_no_results() {
        for line in ["ok", "ok x y", "okay 1 x", "not ok", "[ x] ok 1 y", "ok 1"] {
            assert!(follow(line).tests.is_empty(), "{line}");
        }
        let long = "x".repeat(100_000);
        assert!(follow(&long).tests.is_empty());
    }
}
