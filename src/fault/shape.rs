// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a disk is like to its driver, as far as somebody speaks of it: the
//! options of a command line, or the `[device]` of a scenario.

use wtblk_shared::disk::SECTOR;

/// Longest serial, bytes (virtio 1.3, 5.2.6.1).
pub const SERIAL_MAX: usize = 20;
/// Most data segments of a request that can be announced: an indirect table of ours less
/// header and status.
pub const SEG_MAX: u64 = 1022;
/// Numbers of queues.
pub const QUEUES: std::ops::RangeInclusive<u64> = 1..=64;
/// Sizes of a queue: the smallest that takes a request without a table, and QEMU's largest.
pub const QUEUE_SIZES: std::ops::RangeInclusive<u64> = 4..=1024;

/// See the module. `None`: nothing is said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Number of queues.
    pub queues: Option<u16>,
    /// Descriptors of a queue, as QEMU is told.
    pub queue_size: Option<u16>,
    /// The guest may not write.
    pub read_only: Option<bool>,
    /// A volatile write cache (write-back).
    pub write_cache: Option<bool>,
    /// Bytes of a logical block: 512 or 4096.
    pub logical_block: Option<u32>,
    /// Bytes of a physical block: a power of two.
    pub physical_block: Option<u32>,
    /// Bytes from the disk's start to the first whole physical block.
    pub alignment_offset: Option<u32>,
    /// Bytes that I/O should have at least.
    pub min_io: Option<u32>,
    /// Bytes that I/O should best have.
    pub opt_io: Option<u32>,
    /// Most bytes of a data segment.
    pub size_max: Option<u32>,
    /// Most data segments of a request.
    pub seg_max: Option<u32>,
    /// Discard and write-zeroes are offered.
    pub discard: Option<bool>,
    /// What GET_ID gives.
    pub serial: Option<String>,
}

impl Shape {
    /// This one, and what it says nothing of as the other has it.
    pub fn over(&self, other: &Shape) -> Shape {
        let (a, b) = (self, other);
        Shape {
            queues: a.queues.or(b.queues),
            queue_size: a.queue_size.or(b.queue_size),
            read_only: a.read_only.or(b.read_only),
            write_cache: a.write_cache.or(b.write_cache),
            logical_block: a.logical_block.or(b.logical_block),
            physical_block: a.physical_block.or(b.physical_block),
            alignment_offset: a.alignment_offset.or(b.alignment_offset),
            min_io: a.min_io.or(b.min_io),
            opt_io: a.opt_io.or(b.opt_io),
            size_max: a.size_max.or(b.size_max),
            seg_max: a.seg_max.or(b.seg_max),
            discard: a.discard.or(b.discard),
            serial: a.serial.clone().or_else(|| b.serial.clone()),
        }
    }

    /// Bytes of a logical block.
    pub fn block(&self) -> u32 {
        self.logical_block.unwrap_or(SECTOR as u32)
    }

    /// Everything that cannot be, or cannot be together: the key to blame, and the reason.
    pub fn contradictions(&self) -> Vec<(&'static str, String)> {
        let mut found = Vec::new();
        let mut wrong = |key, why: String| found.push((key, why));
        let block = self.block();
        if block != 512 && block != 4096 {
            wrong(
                "logical_block",
                format!("a logical block of {block} bytes, expected 512 or 4096"),
            );
            return found;
        }
        if let Some(n) = self.queues
            && !QUEUES.contains(&u64::from(n))
        {
            wrong(
                "queues",
                format!("{n} queues, expected 1 to {}", QUEUES.end()),
            );
        }
        if let Some(n) = self.queue_size
            && (!n.is_power_of_two() || !QUEUE_SIZES.contains(&u64::from(n)))
        {
            let why = "expected a power of two from 4 to 1024";
            wrong("queue_size", format!("a queue of {n} descriptors, {why}"));
        }
        let physical = self.physical_block.unwrap_or(block);
        if !physical.is_power_of_two() || physical < block || physical > 1 << 20 {
            let why = format!("expected a power of two from the logical block ({block}) to 1 MiB");
            wrong(
                "physical_block",
                format!("a physical block of {physical} bytes, {why}"),
            );
        }
        if let Some(offset) = self.alignment_offset
            && (offset % block != 0 || offset >= physical || offset / block > 255)
        {
            let why = format!(
                "expected whole logical blocks ({block}), at most 255, and less than a physical block ({physical})"
            );
            wrong(
                "alignment_offset",
                format!("an alignment offset of {offset} bytes, {why}"),
            );
        }
        let io = |n: u32| n == 0 || !n.is_multiple_of(block);
        if let Some(n) = self.min_io
            && (io(n) || n / block > u32::from(u16::MAX))
        {
            let why = format!("expected whole logical blocks ({block}), at most 65535");
            wrong("min_io", format!("{n} bytes, {why}"));
        }
        if let Some(n) = self.opt_io
            && (io(n) || self.min_io.is_some_and(|min| min > 0 && n % min != 0))
        {
            let why = format!("expected a multiple of `min_io` and of the logical block ({block})");
            wrong("opt_io", format!("{n} bytes, {why}"));
        }
        if let Some(n) = self.size_max
            && (n < 4096 || n % block != 0)
        {
            let why = format!("expected a multiple of the logical block ({block}), from 4096 on");
            wrong("size_max", format!("{n} bytes, {why}"));
        }
        if let Some(n) = self.seg_max
            && (n == 0 || u64::from(n) > SEG_MAX)
        {
            wrong("seg_max", format!("{n} segments, expected 1 to {SEG_MAX}"));
        }
        if self.discard == Some(true) && self.read_only == Some(true) {
            let why = "`discard` on a disk that is `read_only`, expected one of them";
            wrong("discard", why.into());
        }
        if let Some(serial) = &self.serial
            && (serial.is_empty()
                || serial.len() > SERIAL_MAX
                || !serial.bytes().all(|b| b.is_ascii_graphic()))
        {
            let why = format!("expected 1 to {SERIAL_MAX} ASCII characters without a space");
            wrong("serial", format!("`{}`, {why}", serial.escape_debug()));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contradictions_are_found_and_sound_shapes_are_not_blamed() {
        let good = Shape {
            queues: Some(4),
            queue_size: Some(256),
            logical_block: Some(4096),
            physical_block: Some(16384),
            alignment_offset: Some(4096),
            min_io: Some(8192),
            opt_io: Some(65536),
            size_max: Some(65536),
            seg_max: Some(254),
            serial: Some("abc-1".into()),
            ..Shape::default()
        };
        assert_eq!(good.contradictions(), []);
        assert_eq!(Shape::default().contradictions(), []);
        type Change = (&'static str, fn(&mut Shape));
        let bad: [Change; 15] = [
            ("queues", |s| s.queues = Some(0)),
            ("queues", |s| s.queues = Some(65)),
            ("queue_size", |s| s.queue_size = Some(100)),
            ("queue_size", |s| s.queue_size = Some(2048)),
            ("logical_block", |s| s.logical_block = Some(1024)),
            ("physical_block", |s| s.physical_block = Some(12288)),
            ("alignment_offset", |s| s.alignment_offset = Some(512)),
            ("alignment_offset", |s| s.alignment_offset = Some(16384)),
            ("min_io", |s| s.min_io = Some(0)),
            ("opt_io", |s| s.opt_io = Some(12288)),
            ("size_max", |s| s.size_max = Some(512)),
            ("seg_max", |s| s.seg_max = Some(1023)),
            ("serial", |s| s.serial = Some("x".repeat(21))),
            ("serial", |s| s.serial = Some("a b".into())),
            ("discard", |s| {
                (s.discard, s.read_only) = (Some(true), Some(true));
            }),
        ];
        for (key, change) in bad {
            let mut shape = good.clone();
            change(&mut shape);
            let keys: Vec<_> = shape.contradictions().iter().map(|c| c.0).collect();
            assert_eq!(keys, [key]);
        }
    }

    #[test]
    fn what_is_said_first_wins() {
        let (a, b) = (Some(1), Some(2));
        let first = Shape {
            seg_max: a,
            ..Shape::default()
        };
        let second = Shape {
            seg_max: b,
            size_max: b,
            ..Shape::default()
        };
        let both = first.over(&second);
        assert_eq!((both.seg_max, both.size_max), (a, b));
    }
}
