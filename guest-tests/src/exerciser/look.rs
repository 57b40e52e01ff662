// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is in the page cache, and what is on the disk.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::act::Stop;
use crate::fiemap;
use crate::sys::Pages;
use crate::test::{Fail, OrFail};
use crate::world::World;

/// What a reader sees of `[from, to)`; zeros behind the end of the file.
pub fn read(file: &File, from: u64, to: u64) -> Result<Vec<u8>, Stop> {
    let mut bytes = vec![0; (to - from) as usize];
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], from + have as u64) {
            Ok(0) => break,
            Ok(n) => have += n,
            Err(e) => return Err(Stop::Broken(format!("reading at {from}: {e}"))),
        }
    }
    Ok(bytes)
}

/// What a reader would see of whole blocks if no page were cached: the disk at the extents' places,
/// past the file system, zeros elsewhere. And how many bytes have no written place.
pub fn on_disk(world: &World, file: &File, from: u64, to: u64) -> Result<(Vec<u8>, u64), Stop> {
    let mut bytes = vec![0; (to - from) as usize];
    let mut missing = to - from;
    if from == to {
        return Ok((bytes, 0));
    }
    let extents = fiemap::extents(file, from, to - from)
        .ok_or_else(|| Fail::Error("FIEMAP does not answer".into()))?;
    for (logical, physical, length, flags) in fiemap::places(&extents, from, to - from) {
        if flags & fiemap::UNWRITTEN != 0 {
            continue;
        }
        let length = length as usize;
        let mut page = Pages::new(length.next_multiple_of(4096)).or_fail(|| "buffer".into())?;
        world
            .raw
            .read_exact_at(&mut page.bytes_mut()[..length], physical)
            .or_fail(|| format!("reading the disk at {physical}"))?;
        let at = (logical - from) as usize;
        bytes[at..at + length].copy_from_slice(&page.bytes()[..length]);
        missing -= length as u64;
    }
    Ok((bytes, missing))
}
