// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk minimize TRACE`: the events that still show a finding, as a trace.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use crate::report::model::status;
use crate::trace::event::{Body, DeviceKind, Event};
use crate::trace::{TraceReader, TraceWriter};
use crate::verify::Verifier;
use crate::verify::contract::Contract;
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
    /// Replace the file at PATH if there is one
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
}

/// A trace in memory, with the contract that it names.
pub(super) fn load(file: &Path) -> anyhow::Result<(Vec<Event>, Contract)> {
    let mut reader = TraceReader::open(file)?;
    let mut events = Vec::new();
    while let Some(mut event) = reader.next()? {
        if events.len() == MAX_EVENTS {
            bail!(
                "{}: more than {MAX_EVENTS} events, too many to be judged again and again",
                file.display()
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
    let contract = match events.first().map(|e| &e.body) {
        Some(Body::Device(d)) if d.kind == DeviceKind::Begin => Contract::of_begin(&d.text),
        _ => None,
    };
    Ok((events, contract.unwrap_or_default()))
}

pub(super) fn judge(events: &[Event], contract: &Contract) -> Verdicts {
    let mut verifier = Verifier::new(contract.clone());
    events.iter().for_each(|e| verifier.event(e));
    verifier.finish()
}

impl MinimizeArgs {
    /// Runs it; the exit status: 1, for the small trace shows the finding.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        super::export::not_the_trace(&self.file, &self.out)?;
        super::export::not_in_the_way(&self.out, self.force)?;
        let (events, contract) = load(&self.file)?;
        let verdicts = judge(&events, &contract);
        let asked = |f: &&Finding| {
            let promise = self.promise.as_ref().is_none_or(|p| *p == f.promise);
            promise && self.test.as_ref().is_none_or(|t| *t == f.test)
        };
        let mut found = verdicts.findings().filter(asked);
        let Some(finding) = found.nth(self.nth as usize - 1) else {
            bail!(
                "{}: there is no such finding (it has {} in all)",
                self.file.display(),
                verdicts.findings().count()
            );
        };
        let limit = Duration::from_secs(self.limit);
        let small = minimize(&events, finding, &contract, limit)
            .context("the finding did not come out a second time")?;
        let left = renumber(&small.events);
        // As `wtblk verify` will judge it.
        let mut verifier = Verifier::of_trace();
        left.iter().for_each(|e| verifier.event(e));
        let shown = verifier.finish();
        if !shown.findings().any(|f| f.promise == finding.promise) {
            bail!("with new numbers the finding did not come out again");
        }
        let writer = TraceWriter::create(&self.out)?;
        for event in &left {
            writer.record_at(event.time_ns, &event.body);
        }
        writer.close();
        writeln!(
            out,
            "{}: {} of {} events show that {} is broken in test {:?}; {} tries, {}",
            self.out.display(),
            left.len(),
            events.len(),
            finding.promise,
            finding.test,
            small.tries,
            if small.minimal {
                "nothing more can be left out"
            } else {
                "the time was up"
            }
        )?;
        Ok(status::FINDING)
    }
}
