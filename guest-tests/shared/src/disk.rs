// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names and layout of the disks.

/// Name of the disk under test among several.
pub const DATA_NAME: &str = "data";
/// Serial (virtio-blk GET_ID, `/sys/block/*/serial`) of the disk under test.
pub const DATA_SERIAL: &str = "wtblk-data";
/// Name of the disk that has everything but the files' data, where the disk under test is a realtime device.
pub const META_NAME: &str = "meta";
/// Serial of that disk.
pub const META_SERIAL: &str = "wtblk-meta";
/// Serial of the mark disk.
pub const MARK_SERIAL: &str = "wtblk-mark";

/// Bytes at the start of the mark disk that take marks; reads there give zeros.
pub const MARK_AREA: u64 = 64 * 1024;
/// Byte offset of the state page: reads from here give the device's state.
pub const STATE_OFFSET: u64 = 1024 * 1024;
/// Length in bytes of the state page (text, NUL padded).
pub const STATE_LEN: usize = 4096;
/// Size of the mark disk in bytes.
pub const MARK_DISK_LEN: u64 = 2 * 1024 * 1024;
/// Longest mark in bytes, its newline included. Longer ones are refused.
pub const MARK_MAX: usize = 32 * 1024;
/// virtio's sector (virtio 1.3, 5.2.4): every LBA and every capacity counts in it.
pub const SECTOR: u64 = 512;
