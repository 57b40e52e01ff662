// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk kernel`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::{Args, Subcommand};

use crate::harness::own::{self, tree::Tree};
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
    Build {
        /// Your own Linux source tree in place of ours: what is new in it is built.
        #[arg(long, value_name = "TREE")]
        kdir: Option<PathBuf>,
        /// With --kdir: more options for the kernel, as lines of a .config; repeatable.
        #[arg(long, value_name = "FILE", requires = "kdir")]
        kconfig: Vec<PathBuf>,
    },
    /// Unpack and patch the reference kernel's source unless that is done; print where it is. Take a copy
    /// of it to change something.
    Source,
    /// Build the guest's initramfs unless it is in the cache; print where it is.
    Guest,
}

impl KernelArgs {
    /// Runs; the exit status.
    pub fn run(self) -> Result<u8> {
        let path = match self.verb {
            Verb::Build {
                kdir: Some(dir),
                kconfig,
            } => {
                let tree = Tree::open(&dir, None)?;
                eprintln!("wtblk: {}", tree.describe());
                own::build(&tree, &kconfig, &AtomicBool::new(false))?.image
            }
            Verb::Build { kdir: None, .. } => kernel::build()?.vmlinux(),
            Verb::Source => kernel::source()?,
            Verb::Guest => guest::initramfs()?,
        };
        println!("{}", path.display());
        Ok(0)
    }
}
