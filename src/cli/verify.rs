// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify FILE`: the promises, judged on a stored trace.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::scenario;
use crate::input;
use crate::report::model::status;
use crate::trace::TraceReader;
use crate::trace::event::{Body, Event};
use crate::verify::Verifier;
use crate::verify::contract::Contract;
use crate::verify::story::Stories;
use crate::verify::verdict::Verdicts;
use crate::verify::{explain, promise, render};

/// What to judge, and by what.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// The trace file.
    #[arg(required_unless_present = "explain")]
    file: Option<PathBuf>,
    /// Judge by this set (rfc-v1, rfc-v2, strict) instead of the contract that the trace names.
    #[arg(long, value_name = "NAME", conflicts_with = "scenario")]
    contract: Option<String>,
    /// Judge by the contract of this scenario, if it has one; repeatable.
    #[arg(long, value_name = "FILE")]
    scenario: Vec<PathBuf>,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Tell what a promise means, where it comes from, how it is broken and when it is not checked.
    #[arg(long, value_name = "PROMISE", conflicts_with_all = ["file", "contract", "scenario", "json"])]
    explain: Option<String>,
}

impl VerifyArgs {
    /// Runs it; the exit status.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        if let Some(name) = &self.explain {
            return explain_one(name, out);
        }
        let contract = match &self.contract {
            Some(name) => Some(contract_named(name)?),
            None if self.scenario.is_empty() => None,
            None => {
                let scenario = scenario::load(&self.scenario)?;
                scenario.says_contract().then(|| scenario.contract())
            }
        };
        let file = self.file.as_deref().context("which trace? Name its file")?;
        verify_with(file, contract, self.json, out)
    }
}

fn explain_one(name: &str, out: &mut impl Write) -> anyhow::Result<u8> {
    let Some(about) = promise::about(name) else {
        bail!(
            "there is no promise '{name}'; the promises are: {}",
            promise::NAMES.join(", ")
        );
    };
    for line in explain::explain(about) {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(status::HELD)
}

fn contract_named(name: &str) -> anyhow::Result<Contract> {
    Contract::named(name).with_context(|| {
        format!(
            "there is no contract '{name}'; those that ship are: {}",
            Contract::NAMES.join(", ")
        )
    })
}

/// Judges the trace by the contract that it names and prints the verdicts. The exit
/// status: 0 held, 1 a finding, 3 nothing was decided; an error is status 2.
pub fn verify(trace: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<u8> {
    verify_with(trace, None, json, out)
}

/// The same by another contract.
pub fn verify_with(
    trace: &Path,
    contract: Option<Contract>,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let mut reader = TraceReader::open(trace)?;
    let mut verifier = contract.map_or_else(Verifier::of_trace, Verifier::new);
    let mut gaps = Vec::new();
    while let Some(event) = reader.next()? {
        gaps.extend(Missing::of(&event));
        verifier.event(&event);
    }
    let mut verdicts = verifier.finish();
    let mut notes = notes(&reader);
    if verdicts.status() == status::UNDECIDED {
        notes.push(NOTHING_TEXT.to_owned());
    }
    tell(trace, &mut verdicts)?;
    match print(&verdicts, &gaps, &notes, json, out) {
        // The verdict does not change because nobody reads all of it.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(verdicts.status())
}

/// Reads the trace again for what the findings look like from near.
fn tell(trace: &Path, verdicts: &mut Verdicts) -> anyhow::Result<()> {
    let mut stories = Stories::of(verdicts);
    if stories.is_empty() {
        return Ok(());
    }
    let mut reader = TraceReader::open(trace)?;
    while let Some(event) = reader.next()? {
        stories.event(&event);
    }
    stories.tell(verdicts);
    let repeat = repeat_with(trace);
    for finding in verdicts.findings_mut() {
        if let Some(story) = &mut finding.story {
            story.repeat_with = repeat.clone();
        }
    }
    Ok(())
}

/// The command that repeats the run which left this trace, where `wtblk run` did: it
/// stands beside the folders of its boots.
fn repeat_with(trace: &Path) -> Option<String> {
    const MOST: u64 = 64 * 1024;
    let file = trace.canonicalize().ok()?;
    let run = file.parent()?.parent()?;
    let text = input::text(&run.join("repeat"), "command", MOST).ok()?;
    text.lines().next().map(str::to_owned)
}

/// Events that the trace does not have.
#[derive(Debug, Serialize)]
struct Missing {
    /// Number of the first.
    first: u64,
    /// Number of the last.
    last: u64,
    /// Why.
    why: String,
}

impl Missing {
    fn of(event: &Event) -> Option<Missing> {
        let Body::Gap(gap) = &event.body else {
            return None;
        };
        Some(Missing {
            first: event.seq,
            last: event.seq.saturating_add(gap.missing.saturating_sub(1)),
            why: gap.why.clone(),
        })
    }
}

/// The verdicts and what was missing for them.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    verdicts: &'a Verdicts,
    gaps: &'a [Missing],
    /// What else a reader should know about the trace: that it was not closed, say.
    notes: &'a [String],
}

/// Said where there is no verdict at all, or none that decided anything.
const NOTHING_TEXT: &str = "nothing was decided: no promise had anything to judge in this trace (without marks of a guest there are no calls)";

/// What a reader of the verdicts should know about the trace.
fn notes(reader: &TraceReader) -> Vec<String> {
    let mut notes = Vec::new();
    if reader.skipped() > 0 {
        notes.push(format!(
            "({} records of kinds that a newer wtblk wrote were not judged)",
            reader.skipped()
        ));
    }
    if !reader.closed() {
        notes.push("(the trace was not closed: its writer runs, or was killed here)".to_owned());
    }
    notes
}

fn print(
    verdicts: &Verdicts,
    gaps: &[Missing],
    notes: &[String],
    json: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    if json {
        let report = Report {
            verdicts,
            gaps,
            notes,
        };
        serde_json::to_writer_pretty(&mut *out, &report)?;
        writeln!(out)?;
    } else {
        let mut lines = render::verdicts(verdicts).into_iter();
        // The contract's line, then what the verdicts rest on, then they.
        let first = lines.next().into_iter();
        let gaps = gaps.iter().map(|g| render::gap(g.first, g.last, &g.why));
        let head = first.chain(gaps).chain(notes.iter().cloned());
        for line in head.chain(lines) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::event::Gap;

    fn printed(events: &[Event], json: bool) -> String {
        let mut verifier = Verifier::new(Contract::default());
        events.iter().for_each(|e| verifier.event(e));
        let gaps: Vec<_> = events.iter().filter_map(Missing::of).collect();
        let mut out = Vec::new();
        print(&verifier.finish(), &gaps, &[], json, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_gap_is_named() {
        let gap = |seq, missing, why: &str| Event {
            seq,
            time_ns: 0,
            body: Body::Gap(Gap {
                missing,
                why: why.into(),
            }),
        };
        let events = [
            gap(7, 3, "no room"),
            gap(20, 1, "torn\nby a\tkill"),
            gap(u64::MAX, u64::MAX, "x"),
        ];
        let text = printed(&events, false);
        assert!(
            text.contains("\nevents 7..9 are missing: no room\n"),
            "{text}"
        );
        assert!(
            text.contains("\nevent 20 is missing: torn by a kill\n"),
            "{text}"
        );
        let json = printed(&events, true);
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["gaps"][0]["first"], 7);
        assert_eq!(value["gaps"][0]["last"], 9);
        assert_eq!(value["gaps"][1]["why"], "torn\nby a\tkill");
        // Who reads only the verdicts still can.
        serde_json::from_str::<Verdicts>(&json).unwrap();
        let none: serde_json::Value = serde_json::from_str(&printed(&[], true)).unwrap();
        assert_eq!(none["gaps"], serde_json::json!([]));
    }
}
