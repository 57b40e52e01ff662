// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options that say which kernel boots.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use crate::harness::own::Source;
use crate::harness::own::tree::Tree;

/// The flag's value in our own kernel.
const OURS: u32 = 0x200;

/// Which kernel boots.
#[derive(Args, Debug)]
pub struct KernelSourceArgs {
    /// Kernel image (vmlinux with PVH, or bzImage); ours if not given, built when need be
    #[arg(long, value_name = "FILE", conflicts_with = "kdir")]
    kernel: Option<PathBuf>,
    /// Linux source tree of your own: built (outside of it, only what is new) with the options that the guest needs
    #[arg(long, value_name = "TREE")]
    kdir: Option<PathBuf>,
    /// With --kdir: more options for the kernel, as lines of a .config; repeatable
    #[arg(long, value_name = "FILE", requires = "kdir")]
    kconfig: Vec<PathBuf>,
    /// Value of RWF_WRITETHROUGH in the kernel at hand; what a tree's header says, else 0x200
    #[arg(long, value_name = "VALUE", value_parser = flag_value)]
    flag: Option<u32>,
}

impl KernelSourceArgs {
    /// The kernel and the flag's value in it. A tree is looked at, and not built yet.
    pub fn read(self) -> Result<(Source, u32)> {
        let source = match (self.kernel, self.kdir) {
            (Some(image), _) => Source::Image(image),
            (None, Some(dir)) => {
                let tree = Tree::open(&dir, self.flag)?;
                eprintln!("wtblk: {}", tree.describe());
                Source::Tree(tree, self.kconfig)
            }
            (None, None) => Source::Ours,
        };
        let flag = self.flag.or(source.flag()).unwrap_or(OURS);
        Ok((source, flag))
    }
}

fn flag_value(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    match parsed {
        Ok(value) if value.is_power_of_two() => Ok(value),
        _ => Err("expected one bit, such as 0x200".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_one_bit() {
        assert_eq!(flag_value("0x200"), Ok(0x200));
        assert_eq!(flag_value("512"), Ok(0x200));
        assert!(flag_value("3").is_err());
        assert!(flag_value("x").is_err());
        assert!(flag_value("0").is_err());
    }
}
