// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify FILE`: the promises, judged on a stored trace.

use std::io::{self, Write};
use std::path::Path;

use crate::trace::TraceReader;
use crate::verify::Verifier;
use crate::verify::contract::Contract;
use crate::verify::render;
use crate::verify::verdict::Verdicts;

/// Judges the trace by the default contract and prints the verdicts. The exit
/// status: 0 held, 1 a finding, 3 nothing was decided; an error is status 2.
pub fn verify(trace: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<u8> {
    verify_with(trace, Contract::default(), json, out)
}

/// The same by another contract.
pub fn verify_with(
    trace: &Path,
    contract: Contract,
    json: bool,
    out: &mut impl Write,
) -> anyhow::Result<u8> {
    let mut reader = TraceReader::open(trace)?;
    let mut verifier = Verifier::new(contract);
    while let Some(event) = reader.next()? {
        verifier.event(&event);
    }
    let verdicts = verifier.finish();
    let notes = notes(&reader);
    match print(&verdicts, &notes, json, out) {
        // The verdict does not change because nobody reads all of it.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
        other => other?,
    }
    Ok(verdicts.status())
}

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
    notes: &[String],
    json: bool,
    out: &mut impl Write,
) -> io::Result<()> {
    if json {
        serde_json::to_writer_pretty(&mut *out, verdicts)?;
        writeln!(out)?;
    } else {
        for line in render::verdicts(verdicts).iter().chain(notes) {
            writeln!(out, "{line}")?;
        }
    }
    out.flush()
}
