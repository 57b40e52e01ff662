// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What no device can beat: the copy of the data.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;

use crate::backend::{BACKEND_CPU, CLIENT_CPU, pin};
use crate::plan::SIZE;

/// Nanoseconds of a copy between 32 buffers and a place of a disk in memory.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Limits {
    /// 4 KiB at random places.
    pub copy_4k_ns: f64,
    /// 128 KiB, one after the other.
    pub copy_128k_ns: f64,
}

/// Measures them on the back end's CPU.
pub fn measure() -> Result<Limits> {
    pin(BACKEND_CPU)?;
    let mut disk = vec![1u8; SIZE as usize];
    let limits = Limits {
        copy_4k_ns: copy(&mut disk, 4 << 10, 20_000, true),
        copy_128k_ns: copy(&mut disk, 128 << 10, 2_000, false),
    };
    pin(CLIENT_CPU)?;
    Ok(limits)
}

fn copy(disk: &mut [u8], bytes: usize, times: usize, random: bool) -> f64 {
    let guest = vec![7u8; 32 * bytes];
    let places = disk.len() / bytes;
    let mut rng = 1u64;
    let begun = Instant::now();
    for n in 0..times {
        rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let place = if random { (rng >> 33) as usize } else { n } % places * bytes;
        let from = n % 32 * bytes;
        disk[place..place + bytes].copy_from_slice(&guest[from..from + bytes]);
    }
    black_box(&disk);
    begun.elapsed().as_nanos() as f64 / times as f64
}
