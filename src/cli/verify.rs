// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify FILE`: the promises, judged on a stored trace.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use serde::Serialize;

use super::contract_args::{Chosen, ContractArgs};
use super::trace_state;
use crate::input;
use crate::report::model::status;
use crate::trace::TraceReader;
use crate::trace::event::{Body, Event};
use crate::verify::Verifier;
use crate::verify::contract::{Contract, Told};
use crate::verify::story::Stories;
use crate::verify::verdict::Verdicts;
use crate::verify::{explain, promise, render};

/// What to judge, and by what.
#[derive(Args, Debug)]
#[command(
    override_usage = "wtblk verify [OPTIONS] <FILE>\n       wtblk verify --explain <PROMISE>"
)]
pub struct VerifyArgs {
    /// The trace file.
    #[arg(required_unless_present = "explain")]
    file: Option<PathBuf>,
    #[command(flatten)]
    by: ContractArgs,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
    /// Tell what a promise (or another subtest of `wtblk run`) means, where it comes from, how it is
    /// broken and when it is not checked.
    #[arg(long, value_name = "PROMISE", conflicts_with_all = ["file", "contract", "scenario", "json"])]
    explain: Option<String>,
}

impl VerifyArgs {
    /// Runs it; the exit status.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        if let Some(name) = &self.explain {
            return explain_one(name, out);
        }
        let chosen = self.by.chosen()?;
        let file = self.file.as_deref().context("which trace? Name its file")?;
        judge(file, chosen, self.json, out)
    }
}

/// Subtests of `wtblk run` that are no promises.
const BESIDE: [(&str, &str); 3] = [
    (
        "guest",
        "No promise: the test's own checks in the guest (what a call returned, what the file holds \
         afterwards), as it printed them on its console. wtblk run has them as a subtest of every \
         test; verify leaves them out, for the trace does not have them.",
    ),
    (
        "kernel-log",
        "No promise: whether the guest's kernel logged something that is wrong by itself (a BUG, a \
         WARNING, a hung task, a lockdep report) while the test ran. wtblk run has it as a subtest of \
         every test, from the console; verify leaves it out, for the trace does not have it.",
    ),
    (
        "repair",
        "No promise: what xfs_repair -n says of the image after the boot, on the host. wtblk run has it \
         as a subtest of the last test of each boot; verify leaves it out, for it has no image.",
    ),
];

fn explain_one(name: &str, out: &mut impl Write) -> anyhow::Result<u8> {
    if let Some((_, text)) = BESIDE.iter().find(|(subtest, _)| subtest == &name) {
        writeln!(out, "{name}")?;
        for line in render::wrap(text, "  ") {
            writeln!(out, "{line}")?;
        }
        out.flush()?;
        return Ok(status::HELD);
    }
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
    let note = None;
    judge(trace, Chosen { contract, note }, json, out)
}

fn judge(trace: &Path, chosen: Chosen, json: bool, out: &mut impl Write) -> anyhow::Result<u8> {
    let mut reader = TraceReader::open(trace)?;
    let mut about = About::default();
    let own = chosen.contract.is_none();
    let mut verifier = chosen
        .contract
        .map_or_else(Verifier::of_trace, Verifier::new);
    about.notes.extend(chosen.note.map(str::to_owned));
    let mut first = own;
    while let Some(event) = reader.next()? {
        if std::mem::take(&mut first) && Told::by(&event) == Told::Nothing {
            about.notes.push(NONE_NAMED.to_owned());
        }
        about.gaps.extend(Missing::of(&event));
        verifier.event(&event);
    }
    let mut verdicts = verifier.finish();
    about.closed = reader.closed();
    about.damaged = trace_state::damage(&reader);
    about.notes.extend(trace_state::notes(&reader, "judged"));
    if verdicts.status() == status::UNDECIDED && verdicts.contract_lost.is_none() {
        about.notes.push(NOTHING_TEXT.to_owned());
    }
    tell(trace, &mut verdicts)?;
    match print(&verdicts, &about, json, out) {
        // The verdict does not change because nobody reads all of it.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    if json {
        // Who reads it may look at the verdicts only.
        trace_state::warn(&reader, trace, "judged");
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

/// The trace as a whole.
#[derive(Debug, Default, Serialize)]
struct About {
    /// What is missing.
    gaps: Vec<Missing>,
    /// Whether its writer came to its end.
    closed: bool,
    /// What shows that it is not what its writer left.
    damaged: Option<String>,
    /// This, and what else a reader of the verdicts should know.
    notes: Vec<String>,
}

/// The verdicts and what was missing for them.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    verdicts: &'a Verdicts,
    #[serde(flatten)]
    about: &'a About,
}

/// Said where there is no verdict at all, or none that decided anything.
const NOTHING_TEXT: &str = "nothing was decided: no promise had anything to judge in this trace (without marks of a guest there are no calls)";
/// Said where the trace was judged by what nobody chose.
const NONE_NAMED: &str = "the trace names no contract: it was judged by the default one";

fn print(verdicts: &Verdicts, about: &About, json: bool, out: &mut impl Write) -> io::Result<()> {
    if json {
        let text = serde_json::to_string_pretty(&Report { verdicts, about })?;
        writeln!(out, "{text}")?;
    } else {
        // Before the verdicts: they may be long, and hold only for what is there.
        let mut lines = render::contract(verdicts);
        lines.extend(about.damaged.clone());
        let gaps = about.gaps.iter();
        lines.extend(gaps.map(|g| render::gap(g.first, g.last, &g.why)));
        let notes = about.notes.iter();
        let further = notes.filter(|note| Some(*note) != about.damaged.as_ref());
        lines.extend(further.map(|note| format!("({note})")));
        lines.extend(render::tests(verdicts));
        for line in lines {
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
        let about = About {
            gaps: events.iter().filter_map(Missing::of).collect(),
            ..About::default()
        };
        let mut out = Vec::new();
        print(&verifier.finish(), &about, json, &mut out).unwrap();
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
