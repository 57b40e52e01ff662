// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Verdicts as text, for a terminal and for KTAP's diagnostic lines.

use nix::errno::Errno;

use super::chain::Step;
use super::group::Group;
use super::picture::picture;
use super::story::Story;
use super::verdict::{CallRef, Evidence, Finding, PromiseVerdict, Verdict, Verdicts};
use crate::plain::{self, counted};

/// No line of a finding is longer than this.
pub const WIDTH: usize = 100;
/// Causes of one promise in one test that are shown; all are in the JSON.
const SHOWN_CAUSES: usize = 3;
/// Further findings of one cause that are shown.
const SHOWN_ALSO: usize = 2;

/// All verdicts, one line per promise, findings below theirs.
pub fn verdicts(verdicts: &Verdicts) -> Vec<String> {
    let mut lines = contract(verdicts);
    lines.extend(tests(verdicts));
    lines
}

/// By what it was judged.
pub fn contract(verdicts: &Verdicts) -> Vec<String> {
    let mut lines = vec![format!("contract {}", plain::line(&verdicts.contract))];
    for what in &verdicts.contract_adjusted {
        lines.extend(wrap(&format!("adjusted: {what}"), "  "));
    }
    if let Some(why) = &verdicts.contract_lost {
        let text = format!("{why}: nothing was judged; say it by --contract or --scenario");
        lines.extend(wrap(&text, "  "));
    }
    lines
}

/// What came of it.
pub fn tests(verdicts: &Verdicts) -> Vec<String> {
    let mut lines = Vec::new();
    for test in &verdicts.tests {
        let name = if test.test.is_empty() {
            "(no test)"
        } else {
            &test.test
        };
        lines.push(format!("test {}", plain::line(name)));
        for promise in &test.promises {
            let text = self::promise(promise, &test.groups);
            lines.extend(text.into_iter().map(|l| format!("  {l}")));
        }
    }
    for (what, n) in &verdicts.observations {
        lines.extend(wrap(&format!("observed {}: {what}", times(*n)), ""));
    }
    lines
}

fn times(n: u64) -> String {
    counted(n, "time", "times")
}

/// A line that says which events are missing, and why.
pub fn gap(first: u64, last: u64, why: &str) -> String {
    let why: String = plain::words(why).chars().take(WIDTH).collect();
    if first == last {
        format!("event {first} is missing: {why}")
    } else {
        format!("events {first}..{last} are missing: {why}")
    }
}

/// One promise: its verdict, then findings, reasons and observations.
pub fn promise(p: &PromiseVerdict, groups: &[Group]) -> Vec<String> {
    let summary = match &p.verdict {
        Verdict::Held { decisions } => format!("held ({decisions} decided)"),
        Verdict::Broken { findings, more } => {
            let n = findings.len() as u64 + more;
            format!("BROKEN ({})", counted(n, "finding", "findings"))
        }
        Verdict::NotChecked { .. } => "not checked".to_owned(),
    };
    let mut lines = vec![format!("{:<18} {summary}", p.promise)];
    let reasons = match &p.verdict {
        Verdict::NotChecked { reasons } => reasons,
        _ => &p.not_checked,
    };
    let mut say = |text: String| lines.extend(wrap(&text, "  "));
    for (why, n) in reasons {
        say(format!("not checked {}: {why}", times(*n)));
    }
    for (what, n) in &p.observations {
        say(format!("observed {}: {what}", times(*n)));
    }
    lines.extend(findings(p, groups).into_iter().map(|l| format!("  {l}")));
    lines
}

/// The findings of a promise, those of one cause together: the first of each in
/// full, unless an earlier promise has told that cause already.
pub fn findings(p: &PromiseVerdict, groups: &[Group]) -> Vec<String> {
    let Verdict::Broken { findings, more } = &p.verdict else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    let mut told = 0;
    let mut causes = 0;
    for group in groups {
        let mut mine = group
            .findings
            .iter()
            .filter(|(promise, _)| *promise == p.promise)
            .filter_map(|(_, i)| findings.get(*i));
        let Some(first) = mine.next() else { continue };
        causes += 1;
        if causes > SHOWN_CAUSES {
            continue;
        }
        let told_by = group.findings.first().map(|(promise, _)| promise);
        let cause = told_by.filter(|promise| **promise != p.promise);
        lines.extend(finding(first, cause.map(String::as_str)));
        told += 1;
        for f in mine.take(SHOWN_ALSO) {
            lines.extend(in_short(f));
            told += 1;
        }
    }
    let further = (findings.len() as u64 + more).saturating_sub(told);
    if further > 0 {
        lines.push(format!(
            "and {} of this promise; causes that were told apart: {causes}",
            counted(further, "more finding", "more findings")
        ));
    }
    lines
}

/// One finding. `cause` is the promise that told its cause already: the picture
/// and the command are not shown again.
pub fn finding(f: &Finding, cause: Option<&str>) -> Vec<String> {
    let mut lines = vec![format!("finding: {} is broken", f.promise)];
    let mut say = |label: &str, text: &str| {
        let mut wrapped = wrap(text, "            ").into_iter();
        if let Some(first) = wrapped.next() {
            lines.push(format!("  {label:<10}{}", first.trim_start()));
        }
        lines.extend(wrapped);
    };
    match &f.call {
        Some(c) => say("call", &call(c)),
        None => say("call", "not known any more"),
    }
    say("promised", &f.promised);
    say("happened", &f.happened);
    let evidence: Vec<_> = f.evidence.iter().map(|e| word(*e)).collect();
    say("evidence", &evidence.join(", "));
    say("events", &events(&f.events));
    if let Some(cause) = cause {
        say(
            "cause",
            &format!("taken to be that of the finding of {cause}"),
        );
    }
    if let Some(story) = &f.story {
        lines.extend(self::story(story, cause.is_none()));
    }
    lines
}

/// The finding from near.
fn story(story: &Story, whole: bool) -> Vec<String> {
    let mut lines = Vec::new();
    let mut block = |label: &str, text: Vec<String>| {
        for (i, line) in text.into_iter().enumerate() {
            let label = if i == 0 { label } else { "" };
            lines.push(format!("  {label:<8}{}", plain::line(&line)));
        }
    };
    if whole {
        block("picture", picture(story));
    }
    block("chain", chain(&story.chain));
    if whole {
        let log = story.kernel_log.iter().flat_map(|l| wrap(l, ""));
        block("kernel", log.map(|l| format!("  {l}")).collect());
        if let Some(command) = &story.repeat_with {
            // Whole, however long: it is there to be copied.
            block("repeat", vec![format!("  {}", plain::words(command))]);
        }
    }
    lines
}

/// The chain, a line per event; of a long one the first and the last.
fn chain(steps: &[Step]) -> Vec<String> {
    const FEW: usize = 12;
    let mut lines = Vec::new();
    for (i, step) in steps.iter().enumerate() {
        if steps.len() > FEW && i >= FEW - 4 && i + 4 < steps.len() {
            if i == FEW - 4 {
                lines.push(format!("  ... {} more events ...", steps.len() - FEW));
            }
            continue;
        }
        let mut text = format!("{:>8}  {}", step.event, step.what);
        for after in &step.after {
            text.push_str(&format!(" (after {}: {})", after.event, after.why));
        }
        let mut wrapped = wrap(&text, "            ").into_iter();
        if let Some(first) = wrapped.next() {
            lines.push(format!("  {}", first.trim_start()));
        }
        lines.extend(wrapped);
    }
    lines
}

/// One finding after another of the same promise: only what happened.
pub fn in_short(f: &Finding) -> Vec<String> {
    let mut wrapped = wrap(&f.happened, "            ").into_iter();
    let first = wrapped.next().unwrap_or_default();
    let mut lines = vec![format!("  {:<10}{}", "also", first.trim_start())];
    lines.extend(wrapped);
    lines
}

fn call(c: &CallRef) -> String {
    let result = match c.result {
        Some(r) if r < 0 => format!("returned {r} ({})", errno_name(r)),
        Some(r) => format!("returned {r}"),
        None => "had not ended".to_owned(),
    };
    let tag = match c.tag {
        Some(t) => format!("tag {t}"),
        None => "no tag".to_owned(),
    };
    format!(
        "{}: file offset {}, length {}, dev {} ino {}, open file {}, flags {}, {tag}, {result}",
        c.call,
        c.off,
        c.len,
        c.dev,
        c.ino,
        c.open,
        if c.flags.is_empty() {
            "none".to_owned()
        } else {
            c.flags.join("+")
        },
    )
}

/// The name of the errno in a result, as Linux has it.
fn errno_name(result: i64) -> String {
    let errno = i32::try_from(-result).map_or(Errno::UnknownErrno, Errno::from_raw);
    format!("{errno:?}")
}

/// The first and the last of a long list: the whole stands in the JSON.
fn events(list: &[u64]) -> String {
    let words = |part: &[u64]| {
        let words: Vec<_> = part.iter().map(u64::to_string).collect();
        words.join(" ")
    };
    match (list.get(..8), list.get(list.len().saturating_sub(4)..)) {
        (Some(head), Some(tail)) if list.len() > 16 => {
            format!(
                "{} ... {} ({} events)",
                words(head),
                words(tail),
                list.len()
            )
        }
        _ => words(list),
    }
}

fn word(e: Evidence) -> &'static str {
    match e {
        Evidence::Tag => "tag",
        Evidence::Extents => "extents",
        Evidence::Marks => "marks",
        Evidence::Reports => "page reports",
        Evidence::ProbeState => "probe state",
        Evidence::InFlight => "requests in flight",
        Evidence::Digests => "digests of the data",
        Evidence::Pattern => "pattern",
        Evidence::Contents => "contents as the guest reads them",
    }
}

/// Breaks `text` into lines that begin with `indent`. Text from a trace may hold
/// anything: what is no plain character is escaped, a word too long is cut.
pub fn wrap(text: &str, indent: &str) -> Vec<String> {
    let room = WIDTH - 8;
    let mut lines = Vec::new();
    let mut line = indent.to_owned();
    let mut used = 0;
    for word in plain::words(text).split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        while !rest.is_empty() {
            let gap = usize::from(used > 0);
            let fits = indent.len() + used + gap + rest.len() <= room;
            if !fits && used > 0 {
                lines.push(std::mem::replace(&mut line, indent.to_owned()));
                used = 0;
                continue;
            }
            let take = rest.len().min(room - indent.len());
            if used > 0 {
                line.push(' ');
            }
            line.extend(rest.drain(..take));
            used += gap + take;
        }
    }
    if used > 0 {
        lines.push(line);
    }
    lines
}
