// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The subcommands: parsing and printing only.

pub mod trace;
pub mod verify;
