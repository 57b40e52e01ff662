// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk minimize TRACE`: the events that still show a finding, as a trace.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::contract_args::ContractArgs;
use super::trace_state;
use crate::plain;
use crate::report::model::status;
use crate::trace::TraceReader;
use crate::trace::event::{Body, Event};
use crate::trace::whole::WholeTrace;
use crate::verify::Verifier;
use crate::verify::contract::{Contract, Told};
use crate::verify::minimize::{minimize, renumber};
use crate::verify::promise;
use crate::verify::verdict::{Finding, Verdicts};

/// Events of a trace that is cut: it is judged again and again, in memory.
pub(super) const MAX_EVENTS: usize = 2_000_000;

/// What to cut.
#[derive(Args, Debug)]
pub struct MinimizeArgs {
    /// The trace file.
    file: PathBuf,
    /// Where the small trace goes.
    #[arg(long, value_name = "PATH")]
    out: PathBuf,
    /// Replace a trace that is there
    #[arg(long)]
    force: bool,
    /// The promise whose finding is to stay; the first finding of all if not given.
    #[arg(long, value_name = "PROMISE", value_parser = PossibleValuesParser::new(promise::NAMES.iter().copied()))]
    promise: Option<String>,
    /// The test of that finding.
    #[arg(long, value_name = "NAME")]
    test: Option<String>,
    /// Which of its findings, from 1.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    nth: u32,
    /// At most so long.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    limit: u64,
    #[command(flatten)]
    by: ContractArgs,
}

/// A trace in memory.
pub(super) struct Loaded {
    /// Its events.
    pub(super) events: Vec<Event>,
    /// What it says of its contract.
    told: Told,
}

impl Loaded {
    /// By what it is judged: what was asked for, or what it says itself.
    pub(super) fn contract(
        &self,
        file: &Path,
        chosen: Option<Contract>,
    ) -> anyhow::Result<Contract> {
        match (chosen, &self.told) {
            (Some(contract), _) => Ok(contract),
            (None, Told::This(contract)) => Ok((**contract).clone()),
            (None, Told::Nothing) => Ok(Contract::default()),
            (None, Told::Lost(why)) => bail!(
                "{}: {why}; verify and minimize take --contract",
                plain::path(file)
            ),
        }
    }
}

/// Reads a trace that is to be judged again and again.
pub(super) fn load(file: &Path) -> anyhow::Result<Loaded> {
    let mut reader = TraceReader::open(file)?;
    let mut events = Vec::new();
    while let Some(mut event) = reader.next()? {
        if events.len() == MAX_EVENTS {
            bail!(
                "{}: more than {MAX_EVENTS} events, too many to be judged again and again",
                plain::path(file)
            );
        }
        // No promise needs contents again and again, and they may be large.
        if let Body::Data(data) = &mut event.body
            && data.bytes.len() > 1 << 16
        {
            data.bytes.truncate(1 << 16);
        }
        events.push(event);
    }
    trace_state::warn(&reader, file, "looked at");
    let told = events.first().map_or(Told::Nothing, Told::by);
    Ok(Loaded { events, told })
}

/// The verdicts on these events.
pub(super) fn judge(events: &[Event], contract: &Contract) -> Verdicts {
    let mut verifier = Verifier::new(contract.clone());
    events.iter().for_each(|e| verifier.event(e));
    verifier.finish()
}

/// The verdicts on a trace that was written, as `wtblk verify` with the same options comes to them.
fn judge_file(file: &Path, chosen: Option<Contract>) -> anyhow::Result<Verdicts> {
    let mut verifier = chosen.map_or_else(Verifier::of_trace, Verifier::new);
    let mut reader = TraceReader::open(file)?;
    while let Some(event) = reader.next()? {
        verifier.event(&event);
    }
    Ok(verifier.finish())
}

impl MinimizeArgs {
    /// Runs it; the exit status: 0, the small trace is there and shows the finding.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        super::export::not_the_trace(&self.file, &self.out)?;
        let chosen = self.by.chosen()?;
        let trace = WholeTrace::create(&self.out, self.force)?;
        let loaded = load(&self.file)?;
        let contract = loaded.contract(&self.file, chosen.contract.clone())?;
        let events = loaded.events;
        let verdicts = judge(&events, &contract);
        let asked = |f: &&Finding| {
            let promise = self.promise.as_ref().is_none_or(|p| *p == f.promise);
            promise && self.test.as_ref().is_none_or(|t| *t == f.test)
        };
        let mut found = verdicts.findings().filter(asked);
        let Some(finding) = found.nth(self.nth as usize - 1) else {
            bail!(
                "{}: there is no such finding (it has {} in all)",
                plain::path(&self.file),
                verdicts.findings().count()
            );
        };
        let limit = Duration::from_secs(self.limit);
        let small = minimize(&events, finding, &contract, limit)
            .context("the finding did not come out a second time")?;
        let left = renumber(&small.events);
        for event in &left {
            trace.writer().record_at(event.time_ns, &event.body);
        }
        let shown = judge_file(trace.close()?, chosen.contract)?;
        let is_it = |f: &Finding| f.promise == finding.promise && f.test == finding.test;
        if !shown.findings().any(is_it) {
            bail!("in the small trace, as it was written, the finding did not come out again");
        }
        trace.publish()?;
        if let Some(note) = chosen.note {
            writeln!(out, "({note})")?;
        }
        writeln!(
            out,
            "{}: {} of {} events show that {} is broken in test {:?}, by contract {}; {} tries, {}",
            plain::path(&self.out),
            left.len(),
            events.len(),
            finding.promise,
            finding.test,
            shown.contract,
            small.tries,
            if small.minimal {
                "nothing more can be left out"
            } else {
                "the time was up"
            }
        )?;
        Ok(status::HELD)
    }
}
