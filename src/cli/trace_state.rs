// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What whoever uses a trace should know about it as a whole, once it was read to its end.

use std::path::Path;

use crate::plain::{self, counted};
use crate::trace::TraceReader;

/// Of a trace that has no end.
pub(super) const NOT_CLOSED: &str = "the trace was not closed: its writer runs, or was killed here";

/// What it should be known for, a line each; `done`: what was done with the other events.
pub(super) fn notes(reader: &TraceReader, done: &str) -> Vec<String> {
    let mut notes = Vec::new();
    if reader.skipped() > 0 {
        let records = counted(reader.skipped(), "record", "records");
        let were = if reader.skipped() == 1 { "was" } else { "were" };
        notes.push(format!(
            "{records} of kinds that a newer wtblk wrote {were} not {done}"
        ));
    }
    notes.extend(damage(reader));
    if !reader.closed() {
        notes.push(NOT_CLOSED.to_owned());
    }
    notes
}

/// What shows that the file is not what its writer left.
pub(super) fn damage(reader: &TraceReader) -> Option<String> {
    let what = reader.damage()?;
    Some(format!("the trace is damaged: {what}"))
}

/// Says it on standard error, for a command whose output is not for such lines.
pub(super) fn warn(reader: &TraceReader, file: &Path, done: &str) {
    for note in notes(reader, done) {
        eprintln!("wtblk: {}: {note}", plain::path(file));
    }
}
