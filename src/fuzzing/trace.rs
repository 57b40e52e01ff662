// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any two files as a trace. Checksums are put right for most records: what
//! a wrong one does is soon known, and it would hide all the rest.

use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;

use arbitrary::{Arbitrary, Result, Unstructured};
use tempfile::TempDir;

use crate::trace::{TraceReader, TraceWriter, fuzz_commit_word, fuzz_text_sum};

/// Most records of one file.
const MAX: u64 = 64;
const HEADER: usize = 64 * 1024;

/// A folder, and both headers of a good, empty trace.
type Good = (TempDir, Vec<u8>, Vec<u8>);

thread_local! {
    /// Made once.
    static SEED: RefCell<Option<Good>> = const { RefCell::new(None) };
}

/// See the module.
pub fn trace(bytes: &[u8]) {
    SEED.with_borrow_mut(|seed| {
        let (dir, index, data) = seed.get_or_insert_with(good);
        let path = dir.path().join("trace");
        let (mut index, mut data) = (index.clone(), data.clone());
        let mut u = Unstructured::new(bytes);
        // Out of bytes: what is there is fed.
        let _ = spoil(&mut u, &mut index, &mut data);
        fs::write(&path, &index).expect("a file of the fuzzer's own");
        fs::write(data_of(&path), &data).expect("a file of the fuzzer's own");
        for live in [false, true] {
            let opened = match live {
                false => TraceReader::open(&path),
                true => TraceReader::open_live(&path),
            };
            let Ok(mut reader) = opened else { continue };
            if live {
                reader.set_final();
            }
            let mut last = None;
            // A closed trace may claim 2^30 events and have none of them: one gap, or few.
            for _ in 0..10_000 {
                match reader.next() {
                    Ok(Some(event)) => {
                        assert!(last.is_none_or(|l| l < event.seq), "numbers rise");
                        last = Some(event.seq);
                    }
                    Ok(None) => break,
                    Err(e) => {
                        assert!(e.to_string().contains("trace"), "no file in: {e}");
                        break;
                    }
                }
            }
        }
    });
}

fn data_of(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".data");
    name.into()
}

fn good() -> Good {
    let dir = tempfile::tempdir().expect("a folder of the fuzzer's own");
    let path = dir.path().join("good");
    TraceWriter::create(&path)
        .expect("a trace of the fuzzer's own")
        .close();
    let read = |path: PathBuf| {
        let mut bytes = fs::read(path).expect("it was just made");
        bytes.resize(HEADER, 0);
        bytes
    };
    let (index, data) = (read(path.clone()), read(data_of(&path)));
    (dir, index, data)
}

fn spoil(u: &mut Unstructured<'_>, index: &mut Vec<u8>, data: &mut Vec<u8>) -> Result<()> {
    // Words of the header: flags, end and gaps most of all.
    for _ in 0..u.int_in_range(0..=4u8)? {
        let word = match u.ratio(1, 8)? {
            true => u.int_in_range(0..=8191usize)?,
            false => u.int_in_range(3..=8usize)? + if u.ratio(1, 4)? { 508 } else { 0 },
        };
        let value = match bool::arbitrary(u)? {
            true => u64::arbitrary(u)?,
            false => u.int_in_range(0..=70u64)?,
        };
        index[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
    }
    let texts = u.int_in_range(0..=200usize)?.min(u.len());
    data.extend(u.bytes(texts)?);
    for seq in 0..MAX {
        let kind = match u.ratio(1, 16)? {
            true => u8::arbitrary(u)?,
            false => u.int_in_range(0..=7u8)?,
        };
        let mut words = [0u64; 8];
        for word in &mut words[1..] {
            *word = match u.ratio(1, 2)? {
                true => u.int_in_range(0..=9u64)?,
                false => u64::arbitrary(u)?,
            };
        }
        // A text that is there, with its right sum.
        if texts > 8 && u.ratio(3, 4)? {
            let from = u.int_in_range(0..=(texts - 1) / 8)? * 8;
            let len = u.int_in_range(1..=texts - from)?;
            let place = ((HEADER + from) as u64 / 8) << 24 | len as u64;
            let sum = fuzz_text_sum(&data[HEADER + from..HEADER + from + len]);
            let (at, sum_at) = if kind == 7 { (5, 6) } else { (2, 7) };
            (words[at], words[sum_at]) = (place, sum);
        }
        words[0] = match u.ratio(1, 32)? {
            true => u64::arbitrary(u)?,
            false if kind == 0 => 0,
            false => fuzz_commit_word(seq, kind, &words[1..]),
        };
        index.extend(words.iter().flat_map(|w| w.to_le_bytes()));
    }
    Ok(())
}
