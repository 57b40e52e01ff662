// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk selftest TRACE...`: recorded traces, spoilt in one place each; does the judge see it?

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use super::minimize::{judge, load};
use crate::plain::{self, counted};
use crate::report::model::status;
use crate::verify::promise;
use crate::verify::selftest::{Rate, Report};

/// What to spoil.
#[derive(Args, Debug)]
pub struct SelftestArgs {
    /// Traces of real runs, best without findings: damage is seen by a finding more than they have.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Spoilt streams of each kind and trace.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    mutants: u64,
    /// Seed of the choices.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

impl SelftestArgs {
    /// Runs it; the exit status: 0 where all aimed damage was found, 1 where some was not,
    /// 3 where there was no place for any.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        let mut report = Report::new();
        for file in &self.files {
            let loaded = load(file)?;
            let contract = loaded.contract(file, None)?;
            let own = judge(&loaded.events, &contract).findings().count() as u64;
            if own > 0 {
                eprintln!(
                    "wtblk: {}: it has {} of its own; damage counts as seen only where it adds one of the promise",
                    plain::path(file),
                    counted(own, "finding", "findings")
                );
            }
            report.try_trace(&loaded.events, &contract, self.mutants, self.seed);
        }
        writeln!(out, "aimed damage: the promise that is meant for it saw it")?;
        for (promise, name, rate) in &report.aimed {
            writeln!(out, "  {promise:<18} {:<26} {name}", shown(rate))?;
        }
        writeln!(out, "by promise")?;
        let by_promise = report.by_promise();
        for name in promise::NAMES {
            let rate = by_promise.get(name).cloned().unwrap_or_default();
            let blind = report.seen_by.get(*name).copied().unwrap_or(0);
            writeln!(
                out,
                "  {name:<18} {:<26} {blind} blind changes",
                shown(&rate)
            )?;
        }
        writeln!(out, "blind damage to any event: some promise saw it")?;
        for (kind, rate) in &report.blind {
            writeln!(out, "  {kind:<18} {}", shown(rate))?;
        }
        out.flush()?;
        let tried: u64 = report.aimed.iter().map(|a| a.2.mutants).sum();
        Ok(if tried == 0 {
            status::UNDECIDED
        } else if report.aimed.iter().all(|a| a.2.found == a.2.mutants) {
            status::HELD
        } else {
            status::FINDING
        })
    }
}

fn shown(rate: &Rate) -> String {
    match rate.mutants {
        0 => "no place for it".into(),
        n => format!(
            "{:.1} % ({} of {n})",
            rate.found as f64 * 100.0 / n as f64,
            rate.found
        ),
    }
}
