// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk scenario check|explain|schema`: what a scenario file says, before anything runs.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};

use crate::fault::{Scenario, ScenarioError, explain, schema};
use crate::input;
use crate::plain::{self, counted};
use crate::report::model::status;

/// Longest file that is read: a scenario has 1 MiB at most, the parser says so.
const MAX_FILE: u64 = 2 << 20;

/// What to do with scenario files.
#[derive(Args, Debug)]
pub struct ScenarioArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Say everything that is wrong with the files, each alone and all merged. Status 2 if anything is.
    Check {
        /// Scenario files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Say in plain words what each rule of the files, merged in this order, will do.
    Explain {
        /// Scenario files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print the JSON schema of scenario files, for editors.
    Schema,
}

impl ScenarioArgs {
    /// Runs it; the exit status.
    pub fn run(&self, out: &mut impl Write) -> anyhow::Result<u8> {
        match &self.verb {
            Verb::Check { files } => check(files, out),
            Verb::Explain { files } => {
                let scenario = load(files)?;
                out.write_all(explain(&scenario).as_bytes())?;
                Ok(status::HELD)
            }
            Verb::Schema => {
                // As a text first: a reader that goes away is an error of the output, not of JSON.
                let text = serde_json::to_string_pretty(&schema())?;
                writeln!(out, "{text}")?;
                Ok(status::HELD)
            }
        }
    }
}

/// Every mistake of every file; the files are merged only where each is good alone.
pub fn check(files: &[PathBuf], out: &mut impl Write) -> anyhow::Result<u8> {
    let mut good = Vec::new();
    let mut wrong = 0usize;
    for file in files {
        match read(file) {
            Err(error) => {
                wrong += 1;
                writeln!(out, "{}", plain::lines(&format!("{error:#}")))?;
            }
            Ok(text) => match Scenario::parse(&plain::path(file), &text) {
                Ok(scenario) => good.push(scenario),
                Err(error) => wrong += print_all(&error, out)?,
            },
        }
    }
    if wrong == 0 {
        let rules: usize = good.iter().map(|s| s.rules.len()).sum();
        match Scenario::merge(good) {
            Ok(_) => writeln!(
                out,
                "{}, {}: good",
                counted(files.len() as u64, "file", "files"),
                counted(rules as u64, "rule", "rules")
            )?,
            Err(error) => {
                writeln!(out, "each file is good alone, but not together:")?;
                wrong += print_all(&error, out)?;
            }
        }
    }
    if wrong == 0 {
        return Ok(status::HELD);
    }
    writeln!(out, "{}", counted(wrong as u64, "mistake", "mistakes"))?;
    Ok(status::CANNOT)
}

/// A check shows all of them, however many.
fn print_all(error: &ScenarioError, out: &mut impl Write) -> io::Result<usize> {
    for problem in error.problems() {
        writeln!(out, "{problem}")?;
    }
    Ok(error.problems().len())
}

/// The files as one scenario.
pub fn load(files: &[PathBuf]) -> anyhow::Result<Scenario> {
    let mut parsed = Vec::new();
    for file in files {
        parsed.push(Scenario::parse(&plain::path(file), &read(file)?)?);
    }
    Ok(Scenario::merge(parsed)?)
}

fn read(file: &Path) -> anyhow::Result<String> {
    use std::io::Read as _;
    use std::os::unix::fs::FileTypeExt as _;
    let shown = || format!("scenario {}", plain::path(file));
    // Nobody may ever write into it. One that was opened for us is another matter.
    let waits = std::fs::metadata(file).is_ok_and(|m| m.file_type().is_fifo());
    if waits && !input::is_given(file) {
        bail!("{}: it is a FIFO, no regular file", shown());
    }
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|f| f.take(MAX_FILE).read_to_string(&mut text))
        .with_context(shown)?;
    Ok(text)
}
