// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Options that say what a disk is like to its driver: each is a key of a
//! scenario's `[device]`, too.

use clap::{ArgAction, Args};

use super::serve::size;
use crate::fault::Shape;

/// See the module.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "The disk, as its driver sees it")]
pub struct ShapeArgs {
    /// Number of queues
    #[arg(long, value_name = "N")]
    queues: Option<u16>,
    /// Descriptors of a queue, at most
    #[arg(long, value_name = "N")]
    queue_size: Option<u16>,
    /// Refuse writes
    #[arg(long)]
    read_only: bool,
    /// Whether there is a volatile write cache (the driver may change it)
    #[arg(long, value_name = "on|off", value_parser = switch, action = ArgAction::Set)]
    write_cache: Option<bool>,
    /// Whether discard and write-zeroes are offered
    #[arg(long, value_name = "on|off", value_parser = switch, action = ArgAction::Set)]
    discard: Option<bool>,
    /// Logical block: 512 or 4096 bytes
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    logical_block: Option<u32>,
    /// Physical block: a power of two
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    physical_block: Option<u32>,
    /// Where the first whole physical block begins
    #[arg(long, value_name = "BYTES", value_parser = bytes_or_none)]
    alignment_offset: Option<u32>,
    /// What I/O should have at least
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    min_io: Option<u32>,
    /// What I/O should best have
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    opt_io: Option<u32>,
    /// Most bytes of a data segment
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    size_max: Option<u32>,
    /// Most data segments of a request
    #[arg(long, value_name = "N")]
    seg_max: Option<u32>,
    /// Serial of the disk
    #[arg(long, value_name = "TEXT")]
    serial: Option<String>,
}

impl ShapeArgs {
    /// What they say.
    pub fn shape(&self) -> Shape {
        let args = self.clone();
        Shape {
            queues: args.queues,
            queue_size: args.queue_size,
            read_only: args.read_only.then_some(true),
            write_cache: args.write_cache,
            logical_block: args.logical_block,
            physical_block: args.physical_block,
            alignment_offset: args.alignment_offset,
            min_io: args.min_io,
            opt_io: args.opt_io,
            size_max: args.size_max,
            seg_max: args.seg_max,
            discard: args.discard,
            serial: args.serial,
        }
    }
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("'{text}', expected on or off")),
    }
}

fn bytes(text: &str) -> Result<u32, String> {
    let bytes = size(text)?;
    u32::try_from(bytes).map_err(|_| format!("'{text}' is too much, expected less than 4 GiB"))
}

fn bytes_or_none(text: &str) -> Result<u32, String> {
    if text == "0" { Ok(0) } else { bytes(text) }
}
