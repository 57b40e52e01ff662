// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event, and the file that keeps it (`docs/trace.md`).

pub mod blktrace;
mod block;
pub mod change;
mod chunks;
mod error;
pub mod event;
pub mod export;
mod format;
mod header;
pub mod jsonl;
pub mod log_writes;
pub mod log_writes_import;
pub mod perfetto;
mod reader;
mod record;
mod resume;
mod texts;
pub mod whole;
mod words;
mod writer;

pub use error::TraceError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use format::{commit_word as fuzz_commit_word, text_sum as fuzz_text_sum};
pub use reader::TraceReader;
pub use resume::Left;
pub use writer::TraceWriter;
