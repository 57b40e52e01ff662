// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Where a file's blocks lie, from FIEMAP. Never with FIEMAP_FLAG_SYNC: that
//! would write back the very pages that a test is about.

use std::fs::File;

use wtblk_shared::mark::Extent;

use crate::sys;

/// FIEMAP_EXTENT_DELALLOC: written in the page cache, and no block was given yet.
pub const DELALLOC: u32 = 0x4;
/// FIEMAP_EXTENT_UNWRITTEN: allocated, reads as zeros.
pub const UNWRITTEN: u32 = 0x800;
/// FIEMAP_EXTENT_SHARED: a write will copy it elsewhere.
pub const SHARED: u32 = 0x2000;

/// So many extents fit into a mark with room to spare (`MARK_MAX`).
const MOST: usize = 480;
/// Sizes of `struct fiemap` and `struct fiemap_extent` (`include/uapi/linux/fiemap.h`).
const HEAD: usize = 32;
const ONE: usize = 56;

/// The extents of the whole file, or, where these are too many for a mark,
/// those of `[off, off + len)`. `None` where FIEMAP does not answer or even
/// these are too many.
pub fn extents(file: &File, off: u64, len: u64) -> Option<Vec<Extent>> {
    ask(file, 0, u64::MAX).or_else(|| ask(file, off, len))
}

fn ask(file: &File, start: u64, len: u64) -> Option<Vec<Extent>> {
    let mut buf = vec![0u64; (HEAD + (MOST + 1) * ONE) / 8];
    buf[0] = start;
    buf[1] = len;
    // fm_extent_count is the third u32 after the two u64 (flags, mapped, count).
    buf[3] = (MOST as u64) + 1;
    sys::fiemap(file, &mut buf).ok()?;
    let bytes: Vec<u8> = buf.iter().flat_map(|w| w.to_ne_bytes()).collect();
    let list = decode(&bytes)?;
    (list.len() <= MOST).then_some(list)
}

/// Decodes what the ioctl left in the buffer.
pub fn decode(bytes: &[u8]) -> Option<Vec<Extent>> {
    let u64_at = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let u32_at = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let mapped = u32_at(20)? as usize;
    (0..mapped)
        .map(|i| {
            let at = HEAD + i * ONE;
            Some(Extent {
                logical: u64_at(at)?,
                physical: u64_at(at + 8)?,
                length: u64_at(at + 16)?,
                flags: u32_at(at + 40)?,
            })
        })
        .collect()
}

/// The pieces of `[off, off + len)` by extent: (offset in the file, place on
/// the disk, length, flags). Holes and extents without a place are left out.
pub fn places(extents: &[Extent], off: u64, len: u64) -> Vec<(u64, u64, u64, u32)> {
    let end = off + len;
    extents
        .iter()
        .filter(|e| e.has_place())
        .filter_map(|e| {
            let from = e.logical.max(off);
            let to = (e.logical + e.length).min(end);
            (from < to).then(|| (from, e.physical + (from - e.logical), to - from, e.flags))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(list: &[(u64, u64, u64, u32)]) -> Vec<u8> {
        let mut b = vec![0u8; HEAD];
        b[20..24].copy_from_slice(&(list.len() as u32).to_ne_bytes());
        for (l, p, n, f) in list {
            for v in [l, p, n, &0, &0] {
                b.extend(v.to_ne_bytes());
            }
            b.extend(f.to_ne_bytes());
            b.extend([0; 12]);
        }
        b
    }

    #[test]
    fn extents_are_decoded() {
        let list = decode(&raw(&[(0, 8192, 4096, 0), (4096, 1 << 20, 65536, 0x801)])).unwrap();
        assert_eq!(list.len(), 2);
        assert_eq!(list[1].physical, 1 << 20);
        assert_eq!(list[1].flags, 0x801);
        assert_eq!(decode(&raw(&[])), Some(vec![]));
    }

    #[test]
    fn a_count_beyond_the_buffer_is_no_answer() {
        let mut b = raw(&[(0, 0, 1, 0)]);
        b[20] = 9;
        assert_eq!(decode(&b), None);
        assert_eq!(decode(&[0; 8]), None);
    }

    #[test]
    fn places_are_cut_to_the_range() {
        let list = decode(&raw(&[
            (0, 100_000, 4096, 0),
            (8192, 4096, 8192, UNWRITTEN),
            (16384, 0, 4096, 4),
        ]))
        .unwrap();
        assert_eq!(
            places(&list, 1000, 12_000),
            vec![(1000, 101_000, 3096, 0), (8192, 4096, 4808, UNWRITTEN)]
        );
        assert_eq!(places(&list, 4096, 4096), vec![]);
        assert_eq!(places(&list, 16384, 4096), vec![]);
    }
}
