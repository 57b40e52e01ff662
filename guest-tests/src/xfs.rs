// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the harness must know of an XFS image: its block size and where its
//! log lies, so that requests can be told apart by their place.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::sys::Pages;

/// The part of a superblock that we use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Block size in bytes.
    pub bsize: u64,
    /// Start of the internal log on the disk in bytes; 0 where the log is external.
    pub log_start: u64,
    /// Length of the internal log in bytes; 0 where the log is external.
    pub log_len: u64,
    /// Files can share blocks.
    pub reflink: bool,
}

/// Of the version's number; the feature words came with version 5.
const VERSION_MASK: u16 = 0xf;
/// XFS_SB_FEAT_RO_COMPAT_REFLINK.
const REFLINK: u32 = 1 << 2;

impl Superblock {
    /// Reads it past the page cache: what the device has, before anything is mounted.
    pub fn read(disk: &File) -> Result<Superblock, String> {
        let mut page = Pages::new(4096).map_err(|e| format!("superblock buffer: {e}"))?;
        disk.read_exact_at(page.bytes_mut(), 0)
            .map_err(|e| format!("reading the superblock: {e}"))?;
        Superblock::parse(page.bytes())
    }

    /// Decodes `struct xfs_dsb` (`fs/xfs/libxfs/xfs_format.h`), big-endian on disk.
    pub fn parse(bytes: &[u8]) -> Result<Superblock, String> {
        if bytes.len() < 128 || &bytes[..4] != b"XFSB" {
            return Err("the data disk holds no XFS (no XFSB magic); run mkfs.xfs on it".into());
        }
        let bsize = u64::from(be32(bytes, 4));
        let log_fsblock = be64(bytes, 48);
        let ag_blocks = u64::from(be32(bytes, 84));
        let log_blocks = u64::from(be32(bytes, 96));
        let ag_block_bits = u32::from(bytes[124]);
        if !bsize.is_power_of_two() || bsize < 512 || ag_block_bits >= 32 || ag_blocks == 0 {
            return Err(format!(
                "XFS superblock makes no sense: block size {bsize}, {ag_blocks} blocks and {ag_block_bits} bits per allocation group"
            ));
        }
        let version = u16::from_be_bytes([bytes[100], bytes[101]]) & VERSION_MASK;
        let reflink = version == 5 && bytes.len() >= 216 && be32(bytes, 212) & REFLINK != 0;
        if log_fsblock == 0 {
            return Ok(Superblock {
                bsize,
                log_start: 0,
                log_len: 0,
                reflink,
            });
        }
        // A file system block number is not linear: its high bits are the
        // allocation group, whose size need not be a power of two.
        let group = log_fsblock >> ag_block_bits;
        let in_group = log_fsblock & ((1 << ag_block_bits) - 1);
        let place = group
            .checked_mul(ag_blocks)
            .and_then(|b| b.checked_add(in_group))
            .and_then(|b| b.checked_mul(bsize))
            .ok_or("XFS superblock: the log's place is beyond 2^64")?;
        Ok(Superblock {
            bsize,
            log_start: place,
            log_len: log_blocks * bsize,
            reflink,
        })
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| bytes[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(log_fsblock: u64) -> Vec<u8> {
        let mut b = vec![0; 512];
        b[..4].copy_from_slice(b"XFSB");
        b[4..8].copy_from_slice(&4096u32.to_be_bytes());
        b[48..56].copy_from_slice(&log_fsblock.to_be_bytes());
        b[84..88].copy_from_slice(&30_000u32.to_be_bytes());
        b[96..100].copy_from_slice(&16_384u32.to_be_bytes());
        b[124] = 15;
        b
    }

    #[test]
    fn the_log_of_a_group_that_is_no_power_of_two() {
        let sb = Superblock::parse(&superblock((2 << 15) + 6)).unwrap();
        assert_eq!(
            sb,
            Superblock {
                bsize: 4096,
                log_start: (2 * 30_000 + 6) * 4096,
                log_len: 16_384 * 4096,
                reflink: false,
            }
        );
    }

    #[test]
    fn sharing_is_a_feature_of_version_5() {
        let mut b = superblock(1);
        b[212..216].copy_from_slice(&0xfu32.to_be_bytes());
        b[101] = 0xa4;
        assert!(!Superblock::parse(&b).unwrap().reflink);
        b[101] = 0xb5;
        assert!(Superblock::parse(&b).unwrap().reflink);
        b[215] = 0xb;
        assert!(!Superblock::parse(&b).unwrap().reflink);
    }

    #[test]
    fn an_external_log_has_no_place() {
        let sb = Superblock::parse(&superblock(0)).unwrap();
        assert_eq!((sb.log_start, sb.log_len), (0, 0));
    }

    #[test]
    fn what_is_no_xfs_is_refused() {
        assert!(Superblock::parse(&[0; 4096]).is_err());
        assert!(Superblock::parse(b"XFSB").is_err());
        let mut b = superblock(1);
        b[4..8].copy_from_slice(&3000u32.to_be_bytes());
        assert!(Superblock::parse(&b).is_err());
        let mut b = superblock(u64::MAX);
        b[84..88].copy_from_slice(&u32::MAX.to_be_bytes());
        assert!(Superblock::parse(&b).is_err());
    }
}
