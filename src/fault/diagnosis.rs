// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is wrong with a scenario, and where: `file:line:column: message`, the
//! line, and carets below the place.

use std::fmt;
use std::ops::Range;

/// Problems that are shown; what follows from one slip need not fill a screen.
const MAX_SHOWN: usize = 20;
/// Characters of a line that are shown.
const MAX_LINE: usize = 100;

/// One problem of a scenario file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was named to the parser.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
    /// The line (or the part of it around the place) and the carets below it.
    excerpt: (String, String),
    /// What may have been meant.
    pub hint: Option<String>,
}

/// Why a scenario was refused: every problem that was found, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioError {
    problems: Vec<Problem>,
}

impl ScenarioError {
    pub(super) fn new(problems: Vec<Problem>) -> ScenarioError {
        ScenarioError { problems }
    }

    /// The problems.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }
}

impl std::error::Error for ScenarioError {}

impl fmt::Display for ScenarioError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().take(MAX_SHOWN).enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        if let Some(more @ 1..) = self.problems.len().checked_sub(MAX_SHOWN) {
            write!(f, "\n... and {more} more")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Problem {
            file,
            line,
            column,
            message,
            excerpt: (text, carets),
            hint,
        } = self;
        let number = line.to_string();
        let blank = " ".repeat(number.len());
        writeln!(f, "{file}:{line}:{column}: {message}")?;
        writeln!(f, "{blank} |")?;
        writeln!(f, "{number} | {text}")?;
        write!(f, "{blank} | {carets}")?;
        match hint {
            Some(hint) => write!(f, "\n{blank} = {hint}"),
            None => Ok(()),
        }
    }
}

impl Problem {
    /// A problem with the bytes `span` of `text`.
    pub(super) fn new(file: &str, text: &str, span: Range<usize>, message: String) -> Problem {
        let mut start = span.start.min(text.len());
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        let line_start = text[..start].rfind('\n').map_or(0, |i| i + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |i| start + i);
        let before = text[line_start..start].chars().count();
        // The span may go on beyond its line: the carets do not.
        let mut end = span.end.clamp(start, line_end);
        while !text.is_char_boundary(end) {
            end += 1;
        }
        let width = text[start..end].trim_end().chars().count().max(1);
        Problem {
            file: file.to_owned(),
            line: text[..start].matches('\n').count() + 1,
            column: before + 1,
            message,
            excerpt: excerpt(&text[line_start..line_end], before, width),
            hint: None,
        }
    }
}

/// At most MAX_LINE characters of the line, the place among them, and the carets.
/// Character for character: the carets stay below their place.
fn excerpt(line: &str, before: usize, width: usize) -> (String, String) {
    let skip = if before + width.min(20) > MAX_LINE {
        before.saturating_sub(MAX_LINE / 2)
    } else {
        0
    };
    let shown: String = line
        .chars()
        .skip(skip)
        .take(MAX_LINE)
        .map(|c| match c {
            '\t' => ' ',
            // A terminal must not obey a file.
            c if c.is_control() => '\u{fffd}',
            c => c,
        })
        .collect();
    let at = before - skip;
    let room = MAX_LINE.saturating_sub(at).max(1);
    let carets = format!("{}{}", " ".repeat(at), "^".repeat(width.min(room)));
    (shown.trim_end().to_owned(), carets)
}

/// The word of `known` that was probably meant: few letters away, and no other as near.
pub(super) fn meant<'k>(said: &str, known: &[&'k str]) -> Option<&'k str> {
    // Longer words than any of ours are not slips of one.
    if said.len() > 40 {
        return None;
    }
    let near = known
        .iter()
        .map(|word| (distance(said, word), *word))
        .min()?;
    let few = said.chars().count().max(near.1.len()) / 3;
    (near.0 <= few || said.eq_ignore_ascii_case(near.1)).then_some(near.1)
}

/// Letters to put in, leave out, exchange or swap with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let change = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}
