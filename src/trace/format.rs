// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Numbers of the file format, version 1.2. `docs/trace.md` is its reference;
//! a change here is a change there.
//!
//! All words are 64 bits, little-endian.

/// A reader refuses any other major.
pub(super) const MAJOR: u16 = 1;
/// Counts additions that an older reader can skip.
pub(super) const MINOR: u16 = 2;

/// First word of PATH.
pub(super) const INDEX_MAGIC: u64 = u64::from_le_bytes(*b"WTBLKTRC");
/// First word of PATH.data.
pub(super) const DATA_MAGIC: u64 = u64::from_le_bytes(*b"WTBLKDAT");

/// Length of the header of either file: a multiple of every page size.
pub(super) const HEADER_BYTES: u64 = 64 * 1024;
/// Length of a record.
pub(super) const RECORD_BYTES: u64 = 64;
/// Words of a record.
pub(super) const RECORD_WORDS: usize = 8;
/// What is allocated and mapped at a time, in either file.
pub(super) const CHUNK_BYTES: u64 = 4 * 1024 * 1024;
/// Records of a chunk.
pub(super) const CHUNK_RECORDS: u64 = CHUNK_BYTES / RECORD_BYTES;
/// Most chunks of a file: 64 GiB. A limit on everything.
pub(super) const MAX_CHUNKS: usize = 16 * 1024;
/// Longest text; a longer one is cut.
pub(super) const MAX_TEXT: usize = 1024 * 1024;

/// Words of the header of PATH.
pub(super) mod head {
    /// Magic: in both files.
    pub const MAGIC: usize = 0;
    /// major | minor << 16 | record bytes << 32: in both files.
    pub const VERSION: usize = 1;
    /// The same random number in both files: a PATH.data of another run is noticed.
    pub const ID: usize = 2;
    /// Wall clock at the begin, ns since 1970.
    pub const WALL: usize = 3;
    /// Bit 0: closed in order.
    pub const FLAGS: usize = 4;
    /// Where closed: the number after the last one given out.
    pub const END: usize = 5;
    /// Entries of the gap table.
    pub const GAPS: usize = 6;
    /// Where the gap table begins: entries of (first, count, errno).
    pub const GAP_TABLE: usize = 512;
    /// Entries that it has room for.
    pub const MAX_GAPS: usize = (super::HEADER_BYTES as usize / 8 - GAP_TABLE) / GAP_WORDS;
    /// Words of an entry.
    pub const GAP_WORDS: usize = 3;
    /// In place of the errno of a gap: its writer was killed, another one went on.
    pub const KILLED: u64 = 0;
    /// The flag of [`FLAGS`].
    pub const CLOSED: u64 = 1;
}

/// The version word.
pub(super) fn version_word(major: u16, minor: u16) -> u64 {
    u64::from(major) | u64::from(minor) << 16 | RECORD_BYTES << 32
}

/// Where record `seq` begins in PATH; `None` beyond the last chunk there can be.
pub(super) fn record_offset(seq: u64) -> Option<u64> {
    (seq < MAX_CHUNKS as u64 * CHUNK_RECORDS).then(|| HEADER_BYTES + seq * RECORD_BYTES)
}

/// One step of the checksum (the mixing of splitmix64): enough to notice a
/// damaged or half-seen record, no defence against an author of one.
pub(super) fn mix(sum: u64, word: u64) -> u64 {
    let x = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

/// Checksum of a text: length, then its words, the last one zero padded.
pub(crate) fn text_sum(text: &[u8]) -> u64 {
    text_words(text).fold(mix(0, text.len() as u64), mix)
}

/// A text as words.
pub(super) fn text_words(text: &[u8]) -> impl Iterator<Item = u64> {
    text.chunks(8).map(|part| {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        u64::from_le_bytes(bytes)
    })
}

/// The commit word (word 0) of a record: kind in the low byte, never 0; the
/// checksum over number, kind and the other words in the upper half.
pub(crate) fn commit_word(seq: u64, kind: u8, rest: &[u64]) -> u64 {
    let sum = rest
        .iter()
        .fold(mix(seq, u64::from(kind)), |s, &w| mix(s, w));
    u64::from(kind) | (sum >> 32) << 32
}
