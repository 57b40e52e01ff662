// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What make says: progress, and what is worth showing of a build that failed.

/// Lines of a failed build that are shown.
const SHOWN: usize = 40;

/// What is worth showing of a failed build's log: from its first error on, without the lines that tell of progress; or
/// its last lines.
pub(super) fn complaints(log: &str) -> String {
    let told: Vec<&str> = log.lines().filter(|line| !is_progress(line)).collect();
    let error = |line: &&str| {
        let line = line.to_ascii_lowercase();
        ["error", "undefined reference", "***", "no rule to make"]
            .iter()
            .any(|word| line.contains(word))
    };
    let from = match told.iter().position(error) {
        // The line before says in which function it is, or from where the file is included.
        Some(first) => first.saturating_sub(1),
        None => told.len().saturating_sub(SHOWN),
    };
    let until = told.len().min(from + SHOWN);
    let mut shown = told[from..until].join("\n");
    if until < told.len() {
        shown.push_str(&format!("\n... and {} more lines", told.len() - until));
    }
    shown
}

/// `  CC      fs/iomap/buffered-io.o` and the like, and where make is at work.
pub(super) fn is_progress(line: &str) -> bool {
    if line.starts_with("make") && line.contains("ing directory '") {
        return true;
    }
    let Some((word, rest)) = line.strip_prefix("  ").and_then(|l| l.split_once(' ')) else {
        return line.is_empty();
    };
    word.len() > 1
        && word
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit())
        && rest.starts_with([' ', '['])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_error_or_the_last_lines_are_shown() {
        let long: String = (0..90).map(|i| format!("line {i}\n")).collect();
        let shown = complaints(&long);
        assert_eq!(shown.lines().count(), SHOWN);
        assert!(shown.ends_with("line 89"), "{shown}");
        let long = format!("x: error: 1\n{long}");
        assert!(complaints(&long).ends_with("... and 51 more lines"));
    }

    #[test]
    fn progress_is_told_from_what_the_compiler_says() {
        for line in [
            "  CC      fs/a.o",
            "  CALL    scripts/x",
            "  LD [M]  a.ko",
            "",
        ] {
            assert!(is_progress(line), "{line}");
        }
        for line in [
            "fs/a.c:1: error: x",
            "  12 | int x;",
            "      |     ^",
            "make: *** x",
        ] {
            assert!(!is_progress(line), "{line}");
        }
    }
}
