// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be wrong with a trace file.

use std::io;
use std::path::PathBuf;

use crate::plain;

use super::format::{MAJOR, MINOR};

/// What is wrong with a trace file. Every message names the path.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file could not be made.
    #[error("cannot create trace {path}: {source}", path = plain::path(path))]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What another process has left cannot be gone on with.
    #[error("cannot go on with trace {path}: {source}", path = plain::path(path))]
    GoOn {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no room for its first chunk.
    #[error("cannot create trace {path}: no room for the {need} bytes it allocates in advance: {source}", path = plain::path(path))]
    NoRoom {
        /// The file.
        path: PathBuf,
        /// How many bytes it wanted.
        need: u64,
        /// Why.
        source: io::Error,
    },
    /// Something is there already.
    #[error("{path} exists and is not empty: --force replaces it", path = plain::path(path))]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Events were lost on the way into it.
    #[error("cannot write trace {path}: there was no room for all of its events", path = plain::path(path))]
    NotWhole {
        /// The file.
        path: PathBuf,
    },
    /// Somebody writes it.
    #[error("trace {path} is in use by {by}", path = plain::path(path))]
    InUse {
        /// The file.
        path: PathBuf,
        /// Who.
        by: String,
    },
    /// It is not the trace to go on with.
    #[error("cannot go on with trace {path}: {why}", path = plain::path(path))]
    Another {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The file could not be opened.
    #[error("cannot open trace {path}: {source}", path = plain::path(path))]
    Open {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file could not be read.
    #[error("cannot read trace {path} at byte {at}: {source}", path = plain::path(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is no wtblk trace: {what}", path = plain::path(path))]
    NotATrace {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        what: String,
    },
    /// It was written by a newer program.
    #[error("trace {path} has format {major}.{minor}, this wtblk reads up to {MAJOR}.x (it writes {MAJOR}.{MINOR}): use a newer wtblk", path = plain::path(path))]
    NewerMajor {
        /// The file.
        path: PathBuf,
        /// Its major version.
        major: u16,
        /// Its minor version.
        minor: u16,
    },
    /// A record is damaged.
    #[error("trace {path} is damaged at record {record}: {what}", path = plain::path(path))]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The record's number.
        record: u64,
        /// What is wrong with it.
        what: String,
    },
}
