// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bytes that a test writes: every 8-byte word says which file, which
//! version and which offset it belongs to, so that a wrong byte can be named.

/// Fills `buf` with the pattern of `version` of file `file`, for the bytes
/// from `offset` of the file on. Neither end needs to be aligned.
pub fn fill(file: u32, version: u32, offset: u64, buf: &mut [u8]) {
    let mut at = offset;
    let mut rest = buf;
    while !rest.is_empty() {
        let word = word(file, version, at / 8).to_le_bytes();
        let skip = (at % 8) as usize;
        let n = (8 - skip).min(rest.len());
        rest[..n].copy_from_slice(&word[skip..skip + n]);
        rest = &mut rest[n..];
        at += n as u64;
    }
}

/// The first offset in the file at which `buf` (read from `offset` on) differs
/// from the pattern; `None` where all of it is right.
pub fn first_difference(file: u32, version: u32, offset: u64, buf: &[u8]) -> Option<u64> {
    let mut want = [0u8; 4096];
    let mut done = 0usize;
    while done < buf.len() {
        let n = want.len().min(buf.len() - done);
        fill(file, version, offset + done as u64, &mut want[..n]);
        if let Some(i) = (0..n).find(|&i| want[i] != buf[done + i]) {
            return Some(offset + (done + i) as u64);
        }
        done += n;
    }
    None
}

/// The word at `index` (in units of 8 bytes). Mixed by the finaliser of
/// splitmix64, so that neighbouring words share no pattern by accident.
fn word(file: u32, version: u32, index: u64) -> u64 {
    let mut x = index
        .wrapping_add((u64::from(file) << 40) ^ (u64::from(version) << 20))
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(version) + 1);
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_the_same_as_the_whole() {
        let mut whole = vec![0; 10_000];
        fill(3, 2, 0, &mut whole);
        for (from, to) in [(0, 1), (5, 4100), (4095, 4097), (9_993, 10_000)] {
            let mut part = vec![0; to - from];
            fill(3, 2, from as u64, &mut part);
            assert_eq!(part, whole[from..to]);
            assert_eq!(first_difference(3, 2, from as u64, &part), None);
        }
    }

    #[test]
    fn a_wrong_byte_is_named() {
        let mut buf = vec![0; 9000];
        fill(1, 1, 100, &mut buf);
        buf[5000] ^= 1;
        assert_eq!(first_difference(1, 1, 100, &buf), Some(5100));
        assert_eq!(first_difference(1, 2, 100, &buf), Some(100));
        assert_eq!(first_difference(2, 1, 100, &buf), Some(100));
    }
}
