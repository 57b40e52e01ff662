// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What became different between two looks at the data of one request: the
//! text of the event `Changed`, JSON.

use serde::{Deserialize, Serialize};

/// Most ranges that are told.
pub const MAX_RANGES: usize = 16;
/// Most bytes of the contents that are told.
pub const MAX_BYTES: usize = 64;

/// See the module. Offsets are bytes from the begin of the request's data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Ranges (offset, length) that differ, ascending, at most [`MAX_RANGES`].
    pub ranges: Vec<(u32, u32)>,
    /// Ranges beyond those.
    #[serde(default)]
    pub more: u32,
    /// The ranges are exact to the byte; otherwise they are whole sectors.
    pub exact: bool,
    /// Where they are exact: the first bytes of the ranges, one after the other, as they were
    /// taken, at most [`MAX_BYTES`], in hex.
    #[serde(default)]
    pub taken: String,
    /// The same bytes as they were found at the completion.
    #[serde(default)]
    pub found: String,
}

impl Change {
    /// Two contents of the same length, compared byte by byte.
    pub fn of_bytes(taken: &[u8], found: &[u8]) -> Change {
        let mut change = Change {
            exact: true,
            ..Change::default()
        };
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for (at, (a, b)) in taken.iter().zip(found).enumerate() {
            if a == b {
                continue;
            }
            change.push(at, 1);
            if old.len() < MAX_BYTES && change.more == 0 {
                old.push(*a);
                new.push(*b);
            }
        }
        (change.taken, change.found) = (hex(&old), hex(&new));
        change
    }

    /// Two lists of digests of sectors, compared.
    pub fn of_sectors(taken: &[u64], found: &[u64], sector: usize) -> Change {
        let mut change = Change::default();
        for (at, (a, b)) in taken.iter().zip(found).enumerate() {
            if a != b {
                change.push(at * sector, sector);
            }
        }
        change
    }

    /// Bytes of the ranges that are told.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| u64::from(r.1)).sum()
    }

    /// The text of the event.
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Out of the text of an event; `None` where it is none of ours.
    pub fn parse(text: &str) -> Option<Change> {
        let mut change: Change = serde_json::from_str(text).ok()?;
        change.ranges.truncate(MAX_RANGES);
        // Hex only, and no more of it than we write ourselves: it is shown to people.
        for hex in [&mut change.taken, &mut change.found] {
            hex.retain(|c| c.is_ascii_hexdigit());
            hex.truncate(2 * MAX_BYTES);
        }
        Some(change)
    }

    fn push(&mut self, at: usize, len: usize) {
        let (at, len) = (at as u32, len as u32);
        let room = self.ranges.len() < MAX_RANGES;
        match self.ranges.last_mut() {
            Some(last) if self.more == 0 && last.0 + last.1 == at => last.1 += len,
            _ if room => self.ranges.push((at, len)),
            _ => self.more += 1,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_sectors_that_differ_are_named() {
        let old = vec![0u8; 4096];
        let mut new = old.clone();
        (new[7], new[8], new[4095]) = (1, 2, 3);
        let change = Change::of_bytes(&old, &new);
        assert_eq!(change.ranges, [(7, 2), (4095, 1)]);
        assert_eq!(
            (change.taken.as_str(), change.found.as_str()),
            ("000000", "010203")
        );
        assert_eq!((change.bytes(), change.more, change.exact), (3, 0, true));
        assert_eq!(Change::parse(&change.to_text()), Some(change));
        let change = Change::of_sectors(&[1, 2, 3, 4], &[1, 9, 9, 4], 512);
        assert_eq!(change.ranges, [(512, 1024)]);
        assert!(!change.exact && change.taken.is_empty());
        assert_eq!(
            Change::of_bytes(&old, &old),
            Change {
                exact: true,
                ..Change::default()
            }
        );
    }

    #[test]
    fn everything_changed_is_said_in_few_words() {
        let odd: Vec<u8> = (0..=255).flat_map(|n| [n, 0]).collect();
        let change = Change::of_bytes(&odd, &odd.iter().map(|b| b ^ (b & 1)).collect::<Vec<_>>());
        assert_eq!(change.ranges.len(), MAX_RANGES);
        assert_eq!(change.more, 128 - MAX_RANGES as u32);
        let all = Change::of_bytes(&[0; 1 << 20], &[1; 1 << 20]);
        assert_eq!(all.ranges, [(0, 1 << 20)]);
        assert_eq!(all.taken.len(), 2 * MAX_BYTES);
        assert!(all.to_text().len() < 1000);
    }

    #[test]
    fn what_a_file_says_is_bounded() {
        assert_eq!(Change::parse("{}"), None);
        let wild = format!(
            r#"{{"ranges":[],"exact":true,"taken":"{}","found":"\u001b[2J"}}"#,
            "f".repeat(9999)
        );
        let change = Change::parse(&wild).unwrap();
        assert_eq!((change.taken.len(), change.found.as_str()), (128, "2"));
    }
}
