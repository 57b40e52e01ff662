// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The outside world: kernel, initramfs, image, QEMU and the guest's run.

pub mod accel;
mod append;
mod asked;
pub mod boot;
pub mod catalog;
pub mod child;
pub mod console;
pub mod cpio;
pub mod ground;
pub mod guest;
pub mod image;
pub mod judge;
pub mod kbuild;
pub mod kernel;
pub mod kernel_log;
pub mod matrix;
pub mod own;
pub mod paths;
pub mod progress;
pub mod qemu;
pub mod run;
mod served;
pub mod sweep;
