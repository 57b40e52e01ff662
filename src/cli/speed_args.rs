// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options of `serve` for the way in which it does its work: none changes what the disk is.

use clap::{Args, ValueEnum};

use crate::device::Poll;

/// See the module.
#[derive(Args, Debug)]
pub struct SpeedArgs {
    /// Look at the rings for 50 us before sleeping, or sleep at once
    #[arg(long, value_name = "HOW", value_enum, default_value_t = PollArg::Auto)]
    poll: PollArg,
    /// Record and judge nothing: a disk and no more
    #[arg(long, conflicts_with = "trace")]
    no_judge: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PollArg {
    Auto,
    Off,
}

impl SpeedArgs {
    /// Whether workers look at their rings before they sleep.
    pub fn poll(&self) -> Poll {
        match self.poll {
            PollArg::Auto => Poll::Auto,
            PollArg::Off => Poll::Off,
        }
    }
}
