// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the export formats have in common (`docs/trace.md`, "Other formats").

use std::io;
use std::path::PathBuf;

use crate::plain;

use super::error::TraceError;
use super::event::Event;
use super::reader::TraceReader;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The trace cannot be read.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The output cannot be written.
    #[error("cannot write {path}: {source}", path = plain::path(path))]
    Output {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An event says what cannot be.
    #[error("damaged at record {record}: {what}")]
    Damaged {
        /// The record's number.
        record: u64,
        /// What is wrong with it.
        what: String,
    },
    /// The trace does not hold what the format needs, or a limit was reached.
    #[error("{0}")]
    Cannot(String),
}

/// A format: told every event, then the end.
pub trait Sink {
    /// Takes the next event.
    fn event(&mut self, event: &Event) -> Result<(), ExportError>;

    /// There are no more.
    fn end(&mut self) -> Result<(), ExportError>;
}

/// Puts the whole trace into the sink.
pub fn export(reader: &mut TraceReader, sink: &mut dyn Sink) -> Result<(), ExportError> {
    while let Some(event) = reader.next()? {
        sink.event(&event)?;
    }
    sink.end()
}

/// For `map_err`: what could not be written.
pub(super) fn output(path: &std::path::Path) -> impl Fn(io::Error) -> ExportError + '_ {
    move |source| ExportError::Output {
        path: path.to_owned(),
        source,
    }
}
