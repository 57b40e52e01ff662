// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options of `serve` for the way in which it does its work: none changes what the disk is.

use clap::{Args, ValueEnum};

use crate::device::Poll;
use crate::store::Aio;

/// See the module.
#[derive(Args, Debug)]
pub struct SpeedArgs {
    /// Look at the rings for 50 us before sleeping, only for 2 us after something was done, or not at all
    #[arg(long, value_name = "HOW", value_enum, default_value_t = PollArg::Auto)]
    poll: PollArg,
    /// How the image is read and written: auto (the default) is io_uring where the host allows it, else threads
    #[arg(long, value_name = "HOW", value_enum)]
    aio: Option<AioArg>,
    /// Record and judge nothing: a disk and no more
    #[arg(long, conflicts_with = "trace")]
    no_judge: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PollArg {
    Auto,
    Brief,
    Off,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AioArg {
    Auto,
    #[value(name = "io_uring")]
    IoUring,
    Threads,
}

impl SpeedArgs {
    /// How an image is read and written.
    pub fn aio(&self) -> Aio {
        match self.aio {
            None | Some(AioArg::Auto) => Aio::Auto,
            Some(AioArg::IoUring) => Aio::IoUring,
            Some(AioArg::Threads) => Aio::Threads,
        }
    }

    /// Whether they say anything of an image.
    pub fn asks_for_aio(&self) -> bool {
        self.aio.is_some()
    }

    /// Whether workers look at their rings before they sleep.
    pub fn poll(&self) -> Poll {
        match self.poll {
            PollArg::Auto => Poll::Auto,
            PollArg::Brief => Poll::Brief,
            PollArg::Off => Poll::Off,
        }
    }
}
