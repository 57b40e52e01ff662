// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Values with units and ranges: sizes, times, sectors, bytes of a file.

use super::read::{Reader, Value, get};
use super::rule::SectorRange;
use toml::de::DeTable;

/// Where the disk ends at the latest, in sectors: 2^64 bytes.
pub(super) const MAX_SECTOR: u64 = 1 << 55;
pub(super) const A_RANGE: &str = "\"START+LEN\" in sectors of 512 bytes, such as \"2048+8\"";
pub(super) const A_FILE_RANGE: &str = "\"OFFSET+LENGTH\" in bytes, such as \"4096+4096\"";
pub(super) const A_COUNT: &str = "an integer from 1 on";
const A_SIZE: &str =
    "a number and a unit (B, KiB, MiB, GiB or TiB) such as \"512MiB\", at most 1048576TiB";
const A_TIME: &str = "a number and a unit (ns, us, ms or s) such as \"5ms\", at most 3600s";

impl Reader<'_> {
    /// A number of bytes with its unit.
    pub(super) fn size(&mut self, key: &str, value: &Value<'_>) -> Option<u64> {
        let text = self.string(key, value, A_SIZE)?;
        let bytes = with_unit(text, |unit| {
            Some(match unit {
                "B" => 1,
                "KiB" => 1 << 10,
                "MiB" => 1 << 20,
                "GiB" => 1 << 30,
                "TiB" => 1 << 40,
                _ => return None,
            })
        })
        .filter(|bytes| (1..=1 << 60).contains(bytes));
        if bytes.is_none() {
            return self.cannot_be(key, value, text, A_SIZE);
        }
        bytes
    }

    /// Bytes: an integer, or with a unit.
    pub(super) fn bytes(&mut self, key: &str, value: &Value<'_>) -> Option<u64> {
        if value.get_ref().is_integer() {
            return self.integer(key, value, 0..=1 << 60, "a number of bytes");
        }
        self.size(key, value)
    }

    /// A time in ns.
    pub(super) fn time(&mut self, key: &str, value: &Value<'_>) -> Option<u64> {
        let text = self.string(key, value, A_TIME)?;
        let ns = with_unit(text, |unit| {
            Some(match unit {
                "ns" => 1,
                "us" => 1_000,
                "ms" => 1_000_000,
                "s" => 1_000_000_000,
                _ => return None,
            })
        })
        // An hour: longer than that is a hold.
        .filter(|ns| *ns <= 3_600_000_000_000);
        if ns.is_none() {
            return self.cannot_be(key, value, text, A_TIME);
        }
        ns
    }

    /// The time of a key that need not be there.
    pub(super) fn time_of(&mut self, table: &DeTable<'_>, key: &str) -> Option<u64> {
        get(table, key).and_then(|v| self.time(key, v))
    }

    /// Sectors.
    pub(super) fn sectors(&mut self, key: &str, value: &Value<'_>) -> Option<SectorRange> {
        let text = self.string(key, value, A_RANGE)?;
        let message = match range(text) {
            Some((start, len))
                if len > 0 && start.checked_add(len).is_some_and(|end| end <= MAX_SECTOR) =>
            {
                return Some(SectorRange { start, len });
            }
            Some((_, 0)) => format!("`{key}` is an empty range, expected at least 1 sector"),
            Some(_) => format!(
                "`{key}` ends beyond the last sector there can be, expected an end of at most 2^55"
            ),
            None => return self.cannot_be(key, value, text, A_RANGE),
        };
        self.complain(value.span(), message);
        None
    }

    /// Bytes of a file: offset and length.
    pub(super) fn file_range(&mut self, key: &str, value: &Value<'_>) -> Option<(u64, u64)> {
        let text = self.string(key, value, A_FILE_RANGE)?;
        let found = range(text);
        match found {
            Some((start, len)) if len > 0 && start.checked_add(len).is_some() => found,
            Some((_, 0)) => {
                self.complain(
                    value.span(),
                    format!("`{key}` is an empty range, expected at least 1 byte"),
                );
                None
            }
            _ => self.cannot_be(key, value, text, A_FILE_RANGE),
        }
    }

    fn cannot_be<T>(
        &mut self,
        key: &str,
        value: &Value<'_>,
        text: &str,
        expected: &str,
    ) -> Option<T> {
        let message = format!(
            "`{key}` cannot be \"{}\", expected {expected}",
            text.escape_debug()
        );
        self.complain(value.span(), message);
        None
    }
}

/// `A+B`; numbers too big are the biggest.
pub(super) fn range(text: &str) -> Option<(u64, u64)> {
    let number = |s: &str| {
        let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| s.parse::<u64>().unwrap_or(u64::MAX))
    };
    let (start, len) = text.split_once('+')?;
    Some((number(start)?, number(len)?))
}

fn with_unit(text: &str, factor: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    number
        .parse::<u64>()
        .ok()?
        .checked_mul(factor(unit.trim_start())?)
}
