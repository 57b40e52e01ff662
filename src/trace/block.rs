// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A run of records, read at once, and which of them are whole.
//!
//! The checksum of one record is a chain of multiplications, each waiting for the one before;
//! so those of several records are computed side by side.

use std::fs::File;
use std::io;

use super::format::{RECORD_BYTES, RECORD_WORDS, commit_word, mix, record_offset};
use super::reader::read_at_most;

/// A record's words.
pub(super) type Record = [u64; RECORD_WORDS];

const LEN: usize = RECORD_BYTES as usize;
/// Most records read at a time.
pub(super) const MOST: usize = 1024;
/// Records read where a writer may be just behind.
const FEW: usize = 64;
/// Checksums computed side by side.
const ABREAST: usize = 4;

/// See the module. What is in it is as it was when it was read.
#[derive(Debug)]
pub(super) struct Block {
    /// Number of the first record.
    first: u64,
    bytes: Vec<u8>,
    /// How many were there.
    records: usize,
    /// How many of them, from the first on, are committed and have the right checksum.
    whole: usize,
    /// How many to read the next time.
    want: usize,
}

impl Default for Block {
    fn default() -> Block {
        Block {
            first: 0,
            bytes: Vec::new(),
            records: 0,
            whole: 0,
            want: FEW,
        }
    }
}

impl Block {
    /// The record of this number, where it is here and whole.
    #[inline]
    pub(super) fn whole(&self, seq: u64) -> Option<Record> {
        let i = seq.wrapping_sub(self.first);
        if i >= self.whole as u64 {
            return None;
        }
        self.bytes.as_chunks::<LEN>().0.get(i as usize).map(words)
    }

    /// The record of this number, whole or not.
    pub(super) fn record(&self, seq: u64) -> Option<Record> {
        let i = usize::try_from(seq.checked_sub(self.first)?).ok()?;
        let here = self.bytes.as_chunks::<LEN>().0.get(..self.records)?;
        here.get(i).map(words)
    }

    /// How many records are here.
    pub(super) fn len(&self) -> u64 {
        self.records as u64
    }

    /// Forgets what was read.
    pub(super) fn clear(&mut self) {
        (self.records, self.whole) = (0, 0);
    }

    /// Reads the records from `seq` on: few where the last ones were not all there yet.
    pub(super) fn load(&mut self, file: &File, seq: u64) -> io::Result<()> {
        self.load_some(file, seq, self.want)?;
        self.want = match self.whole == self.records {
            true => (self.want * 2).min(MOST),
            false => FEW,
        };
        Ok(())
    }

    /// Reads so many records from `seq` on, or as many as there are.
    pub(super) fn load_some(&mut self, file: &File, seq: u64, records: usize) -> io::Result<()> {
        self.clear();
        self.first = seq;
        let Some(at) = record_offset(seq) else {
            return Ok(());
        };
        let read = read_at_most(file, at, records * LEN, &mut self.bytes)?;
        self.records = read / LEN;
        self.whole = self.count_whole();
        Ok(())
    }

    fn count_whole(&self) -> usize {
        let here = self.bytes.as_chunks::<LEN>().0.get(..self.records);
        let here = here.unwrap_or_default();
        let (fours, _) = here.as_chunks::<ABREAST>();
        let mut seq = self.first;
        let mut count = 0;
        for four in fours {
            let records = four.each_ref().map(words);
            if !all_whole(seq, &records) {
                break;
            }
            count += ABREAST;
            seq += ABREAST as u64;
        }
        let rest = here.get(count..).unwrap_or_default().iter();
        count
            + rest
                .zip(seq..)
                .take_while(|(bytes, seq)| {
                    let r = words(bytes);
                    r[0] != 0 && r[0] == commit_word(*seq, r[0] as u8, &r[1..])
                })
                .count()
    }
}

/// Whether all of these, numbered from `seq` on, are committed and have the right checksum.
fn all_whole(seq: u64, records: &[Record; ABREAST]) -> bool {
    let mut sums = [0; ABREAST];
    for (i, (sum, r)) in sums.iter_mut().zip(records).enumerate() {
        *sum = mix(seq + i as u64, r[0] & 0xff);
    }
    for word in 1..RECORD_WORDS {
        for (sum, r) in sums.iter_mut().zip(records) {
            *sum = mix(*sum, r[word]);
        }
    }
    let right = |(sum, r): (&u64, &Record)| r[0] != 0 && r[0] == (r[0] & 0xff | (sum >> 32) << 32);
    sums.iter().zip(records).all(right)
}

#[inline]
fn words(bytes: &[u8; LEN]) -> Record {
    let mut record = [0; RECORD_WORDS];
    for (word, part) in record.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*part);
    }
    record
}

#[cfg(test)]
mod tests {
    use super::super::format::HEADER_BYTES;
    use super::*;
    use std::os::unix::fs::FileExt;

    fn file_of(records: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        for seq in 0..records {
            let mut record = [0, seq * 7, 0, 1, 2, 3, 4, 5];
            record[0] = commit_word(seq, 1 + (seq % 7) as u8, &record[1..]);
            let bytes: Vec<u8> = record.iter().flat_map(|w| w.to_le_bytes()).collect();
            let at = record_offset(seq).unwrap();
            file.write_all_at(&bytes, at).unwrap();
        }
        file
    }

    #[test]
    fn the_first_record_that_is_not_whole_ends_the_run() {
        for bad in 0..11u64 {
            for damage in [0u64, 0x0101] {
                let file = file_of(11);
                let at = record_offset(bad).unwrap();
                // Not committed, or committed with a wrong checksum.
                file.write_all_at(&damage.to_le_bytes(), at).unwrap();
                let mut block = Block::default();
                block.load(&file, 0).unwrap();
                for seq in 0..11 {
                    assert_eq!(block.whole(seq).is_some(), seq < bad, "{seq} of {bad}");
                    assert!(block.record(seq).is_some());
                }
                assert_eq!(block.record(11), None);
            }
        }
    }

    #[test]
    fn a_record_of_another_number_is_not_whole() {
        let file = file_of(8);
        let mut bytes = [0; LEN];
        file.read_exact_at(&mut bytes, record_offset(3).unwrap())
            .unwrap();
        file.write_all_at(&bytes, record_offset(5).unwrap())
            .unwrap();
        let mut block = Block::default();
        block.load(&file, 0).unwrap();
        assert!(block.whole(4).is_some() && block.whole(5).is_none());
    }

    #[test]
    fn much_is_read_where_much_is_there_and_little_behind_a_writer() {
        let file = file_of(4096);
        let mut block = Block::default();
        let mut seq = 0;
        let mut reads = 0;
        while seq < 4096 {
            block.load(&file, seq).unwrap();
            seq += block.whole as u64;
            reads += 1;
        }
        assert!(reads < 10, "{reads} reads");
        file.set_len(HEADER_BYTES + 8192 * RECORD_BYTES).unwrap();
        block.load(&file, seq).unwrap();
        block.load(&file, seq).unwrap();
        assert_eq!((block.len(), block.whole(seq)), (FEW as u64, None));
    }

    #[test]
    fn beyond_the_last_chunk_there_is_nothing() {
        let mut block = Block::default();
        block.load(&file_of(1), u64::MAX).unwrap();
        assert_eq!((block.len(), block.record(u64::MAX)), (0, None));
    }
}
