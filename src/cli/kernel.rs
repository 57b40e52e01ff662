// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk kernel`.

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::harness::{guest, kernel};

/// The guest kernel and what it starts.
#[derive(Args, Debug)]
pub struct KernelArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Build the reference kernel (source, patches, fragment) unless it is in the cache; print where it is.
    Build,
    /// Build the guest's initramfs unless it is in the cache; print where it is.
    Guest,
}

impl KernelArgs {
    /// Runs; the exit status.
    pub fn run(self) -> Result<u8> {
        let path = match self.verb {
            Verb::Build => kernel::build()?.vmlinux(),
            Verb::Guest => guest::initramfs()?,
        };
        println!("{}", path.display());
        Ok(0)
    }
}
