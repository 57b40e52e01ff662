// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the bytes of a sector are, told from their digest: those of a pattern,
//! zeros, poison, or the right bytes of another place.

use twox_hash::XxHash3_64;
use wtblk_shared::disk::SECTOR;
use wtblk_shared::{pattern, poison};

const LEN: usize = SECTOR as usize;
/// Sectors before and behind in which the bytes are looked for.
const NEAR: u64 = 256;
/// Older versions of the file that are tried.
const VERSIONS: u32 = 16;

/// The digest of a file's sector that holds the pattern; `offset` is any byte of the file.
pub(super) fn of_pattern((file, version): (u32, u32), offset: u64) -> u64 {
    let mut bytes = [0; LEN];
    // No file reaches so far, but a hostile mark may.
    if offset > u64::MAX / 2 {
        return 0;
    }
    pattern::fill(file, version, offset, &mut bytes);
    XxHash3_64::oneshot(&bytes)
}

/// In words, what has this digest where the pattern should be.
pub(super) fn guess(digest: u64, (file, version): (u32, u32), offset: u64, disk: u64) -> String {
    if digest == XxHash3_64::oneshot(&[0; LEN]) {
        return "zeros".into();
    }
    let mut bytes = [0; LEN];
    poison::fill(disk / SECTOR, &mut bytes);
    if digest == XxHash3_64::oneshot(&bytes) {
        return "what was there since mkfs (poison)".into();
    }
    for old in version.saturating_sub(VERSIONS)..version {
        if digest == of_pattern((file, old), offset) {
            return format!("the file's bytes of version {old}, the call's are version {version}");
        }
    }
    for n in 1..=NEAR {
        let places = [
            offset.checked_sub(n * SECTOR),
            offset.checked_add(n * SECTOR),
        ];
        for place in places.into_iter().flatten() {
            if digest == of_pattern((file, version), place) {
                return format!("the call's bytes of file offset {place}");
            }
        }
    }
    "bytes that are nobody's we know".into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_bytes_are_named() {
        let mut bytes = [0; LEN];
        let digest = |bytes: &[u8]| XxHash3_64::oneshot(bytes);
        let say = |d| guess(d, (3, 9), 10_240, 1 << 20);
        assert_eq!(say(digest(&bytes)), "zeros");
        poison::fill(2048, &mut bytes);
        assert!(say(digest(&bytes)).contains("poison"));
        assert!(say(of_pattern((3, 7), 10_240)).contains("version 7"));
        assert!(say(of_pattern((3, 9), 8192)).contains("file offset 8192"));
        assert!(say(of_pattern((3, 9), 12_288)).contains("file offset 12288"));
        assert!(say(of_pattern((3, 9), 8193)).contains("nobody"));
        // Places before the file and behind the end of the world do no harm.
        guess(1, (3, 0), 0, u64::MAX);
        guess(1, (3, 9), u64::MAX - 511, 0);
    }
}
