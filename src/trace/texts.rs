// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The texts of a trace, read many at a time: they lie in PATH.data in about the order in
//! which their events come.

use std::fs::File;
use std::io;

use super::format::text_sum;
use super::reader::read_at_most;

/// Bytes read at a time.
const WINDOW: usize = 64 * 1024;
/// The same where a writer may be just behind: it has not written more.
const SMALL: usize = 4 * 1024;

/// Why there is no text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    /// The file ends before, or nobody has written there.
    Absent,
    /// Something else is there.
    Damaged,
}

/// A part of the data file as it was when it was read.
#[derive(Debug, Default)]
pub(super) struct Texts {
    at: u64,
    bytes: Vec<u8>,
    len: usize,
    /// The whole file is there: nobody writes it any more.
    complete: bool,
}

impl Texts {
    /// From now on nobody writes the file.
    pub(super) fn set_complete(&mut self) {
        self.complete = true;
    }

    /// The `len` bytes at this place, where they are there and have this checksum.
    pub(super) fn get(
        &mut self,
        file: &File,
        at: u64,
        len: usize,
        sum: u64,
    ) -> io::Result<Result<&[u8], Bad>> {
        // What was read before it was written is read again.
        if !self.is(at, len, sum) {
            let window = if self.complete { WINDOW } else { SMALL };
            self.len = 0;
            self.len = read_at_most(file, at, len.max(window), &mut self.bytes)?;
            self.at = at;
            if !self.is(at, len, sum) {
                let never = |text: &[u8]| text.iter().all(|b| *b == 0);
                return Ok(Err(match self.read(at, len).is_none_or(never) {
                    true => Bad::Absent,
                    false => Bad::Damaged,
                }));
            }
        }
        Ok(self.read(at, len).ok_or(Bad::Absent))
    }

    fn is(&self, at: u64, len: usize, sum: u64) -> bool {
        self.read(at, len).is_some_and(|t| text_sum(t) == sum)
    }

    /// These bytes, where they were read.
    fn read(&self, at: u64, len: usize) -> Option<&[u8]> {
        let from = usize::try_from(at.checked_sub(self.at)?).ok()?;
        let read = self.bytes.get(..self.len)?;
        read.get(from..from.checked_add(len)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn what_came_after_the_window_was_read_is_seen() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16 * 1024).unwrap();
        file.write_all_at(b"first", 64).unwrap();
        let mut texts = Texts::default();
        let sum = text_sum;
        let got = texts.get(&file, 64, 5, sum(b"first")).unwrap();
        assert_eq!(got, Ok(b"first".as_slice()));
        // In the window, but written only now.
        file.write_all_at(b"second", 72).unwrap();
        let got = texts.get(&file, 72, 6, sum(b"second")).unwrap();
        assert_eq!(got, Ok(b"second".as_slice()));
        // An earlier one, one longer than a window, one that is not there, one beyond the end.
        assert!(texts.get(&file, 64, 5, sum(b"first")).unwrap().is_ok());
        let long = vec![7; 3 * SMALL];
        file.write_all_at(&long, 1024).unwrap();
        let got = texts.get(&file, 1024, long.len(), sum(&long)).unwrap();
        assert_eq!(got, Ok(long.as_slice()));
        assert_eq!(
            texts.get(&file, 64, 5, sum(b"other")).unwrap(),
            Err(Bad::Damaged)
        );
        assert_eq!(texts.get(&file, 1 << 20, 5, 0).unwrap(), Err(Bad::Absent));
        assert_eq!(
            texts.get(&file, u64::MAX - 2, 5, 0).unwrap(),
            Err(Bad::Absent)
        );
    }
}
