// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk`: a vhost-user-blk device that judges `RWF_WRITETHROUGH`.
//!
//! The way of one write through the house, left to right, no way back:
//! descriptor chain -> request -> fault decision -> store -> completion ->
//! event -> verifier -> report. The rooms are described in
//! `docs/architecture.md`.

pub mod cli;
pub mod control;
pub mod device;
pub mod fault;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod harness;
mod holder;
pub mod input;
pub mod plain;
pub mod report;
pub mod sandbox;
mod sigbus;
pub mod store;
pub mod trace;
pub mod verify;
