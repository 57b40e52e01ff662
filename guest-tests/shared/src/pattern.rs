// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The bytes that a test writes: every 8-byte word says which file, which
//! version and which offset it belongs to, so that a wrong byte can be named.

/// Fills `buf` with the pattern of `version` of file `file`, for the bytes
/// from `offset` of the file on. Neither end needs to be aligned.
pub fn fill(file: u32, version: u32, offset: u64, buf: &mut [u8]) {
    let skip = (offset % 8) as usize;
    let head = ((8 - skip) % 8).min(buf.len());
    let (first, rest) = buf.split_at_mut(head);
    let word_at = |index| word(file, version, index).to_le_bytes();
    first.copy_from_slice(&word_at(offset / 8)[skip % 8..][..head]);
    // Whole words by themselves: under emulation a copy of a length that varies costs ten times as much.
    let mut index = (offset + head as u64) / 8;
    let mut words = rest.chunks_exact_mut(8);
    for to in &mut words {
        to.copy_from_slice(&word_at(index));
        index += 1;
    }
    let last = words.into_remainder();
    last.copy_from_slice(&word_at(index)[..last.len()]);
}

/// The first offset in the file at which `buf` (read from `offset` on) differs
/// from the pattern; `None` where all of it is right.
pub fn first_difference(file: u32, version: u32, offset: u64, buf: &[u8]) -> Option<u64> {
    let mut want = [0u8; 4096];
    let mut done = 0usize;
    while done < buf.len() {
        let n = want.len().min(buf.len() - done);
        fill(file, version, offset + done as u64, &mut want[..n]);
        let seen = &buf[done..done + n];
        if want[..n] != *seen {
            let i = want.iter().zip(seen).position(|(want, seen)| want != seen);
            return i.map(|i| offset + (done + i) as u64);
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
        let lengths = (0..20).flat_map(|from| (0..20).map(move |len| (from, from + len)));
        for (from, to) in lengths.chain([(5, 4100), (4095, 4097), (9_993, 10_000)]) {
            let mut part = vec![0; to - from];
            fill(3, 2, from as u64, &mut part);
            assert_eq!(part, whole[from..to]);
            assert_eq!(first_difference(3, 2, from as u64, &part), None);
        }
    }

    /// What traces of before hold must be named the same way.
    #[test]
    fn the_words_are_those_of_always() {
        let mut words = [0; 8];
        fill(7, 3, 4096, &mut words);
        assert_eq!(words, 0xff28_f858_c832_cb58u64.to_le_bytes());
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
