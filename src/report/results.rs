// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `results.json`: the same as the KTAP, for machines. `docs/results.md`
//! documents the fields; a change of meaning raises the number in `schema`.

use std::collections::BTreeMap;

use serde::Serialize;

use super::model::TestResult;

/// Name and version of the format.
pub const SCHEMA: &str = "wtblk-results/1";

/// The whole run.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// Version of wtblk.
    pub wtblk: &'static str,
    /// The command's exit status.
    pub status: u8,
    /// Why the run could not go on (status 2); null where it could.
    pub error: Option<String>,
    /// The command line that repeats this run.
    pub repeat_with: String,
    /// Seed of the run.
    pub seed: u64,
    /// What it ran on: kernel, QEMU, accelerator, board, host kernel.
    pub environment: BTreeMap<&'static str, String>,
    /// The defect that was switched on.
    pub defect: Option<String>,
    /// Scenario files, as copied into the run's folder.
    pub scenarios: Vec<String>,
    /// Rules of these files (not of the tests' own) that fired in no boot.
    pub idle_rules: Vec<String>,
    /// Each boot: folder, how it ended, seconds.
    pub boots: Vec<BootSummary>,
    /// How many tests of all repetitions did not come to their end since the run ended early.
    pub not_run: u64,
    /// Each test of each repetition that was begun.
    pub tests: Vec<TestResult>,
}

/// One boot of the run.
#[derive(Clone, Debug, Serialize)]
pub struct BootSummary {
    /// Its folder within the run's folder: trace, console, logs, QEMU's arguments.
    pub dir: String,
    /// Name of the contract that it was judged by.
    pub contract: String,
    /// How it ended, in words.
    pub ended: String,
    /// What the guest found out about itself; null where it did not come so far.
    pub guest: Option<String>,
    /// Calls with the flag that began in it, and that the promises are about.
    pub calls: u64,
    /// Seconds from QEMU's start to its end.
    pub seconds: f64,
}
