// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event, and the file that keeps it (`docs/trace.md`).

pub mod change;
mod chunks;
mod error;
pub mod event;
mod format;
mod header;
mod reader;
mod record;
mod words;
mod writer;

pub use error::TraceError;
pub use reader::TraceReader;
pub use writer::TraceWriter;
