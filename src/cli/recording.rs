// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options about the requests' data, for every command that serves a disk.

use clap::Args;

use super::serve::size;
use crate::device::{DataOf, DigestOf, Recording};

/// See the module.
#[derive(Args, Clone, Copy, Debug)]
pub struct RecordingArgs {
    /// Look at the data of requests when they are taken and when they are completed, so that a
    /// change in between is seen: of marked calls (the default), of all, or of none
    #[arg(long, value_enum, value_name = "WHOSE")]
    digest: Option<DigestOf>,
    /// Memory for copies of marked calls' data in flight; beyond it digests alone
    #[arg(long, value_parser = size, value_name = "SIZE", default_value = "16M")]
    digest_memory: u64,
    /// Keep contents in the trace
    #[arg(long, value_enum, value_name = "WHOSE", default_value = "none")]
    trace_data: DataOf,
    /// Most bytes of contents in the trace
    #[arg(long, value_parser = size, value_name = "SIZE", default_value = "256M")]
    trace_data_limit: u64,
}

impl RecordingArgs {
    /// The option that says what goes into a trace, where one is given.
    pub(super) fn for_a_trace(&self) -> Option<&'static str> {
        match (self.digest, self.trace_data) {
            (_, DataOf::All | DataOf::Writes | DataOf::Failing) => Some("--trace-data"),
            (Some(DigestOf::All | DigestOf::Marked), _) => Some("--digest"),
            _ => None,
        }
    }

    /// As the device takes them.
    pub(super) fn recording(&self) -> Recording {
        Recording {
            digest: self.digest.unwrap_or(DigestOf::Marked),
            digest_memory: self.digest_memory,
            data: self.trace_data,
            data_limit: self.trace_data_limit,
        }
    }
}
