// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The subcommands: parsing and printing only.

mod qemu_args;
pub mod serve;
pub mod trace;
