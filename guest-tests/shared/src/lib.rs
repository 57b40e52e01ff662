// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the host (`wtblk`) and its guest (`wtblk-guest`) must agree on: the
//! text of a mark, the layout of the mark disk, the call tag that rides in the
//! I/O priority, the value of the flag and the pattern of a block's bytes.
//!
//! The crate has no dependency and does no I/O, so that a guest program
//! written by somebody else can use it as it is.

pub mod disk;
pub mod exit;
pub mod mark;
pub mod pattern;
pub mod poison;
pub mod sweep;
pub mod tag;

/// `RWF_WRITETHROUGH` as the RFC has it. The value is not merged, so it is a
/// default and every user of it takes a setting.
pub const RWF_WRITETHROUGH: u32 = 0x200;
/// `RWF_DSYNC` of `include/uapi/linux/fs.h`.
pub const RWF_DSYNC: u32 = 0x02;
/// `RWF_NOWAIT` of `include/uapi/linux/fs.h`.
pub const RWF_NOWAIT: u32 = 0x08;
