// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The keys of `action` that say what becomes of a request's data.

use toml::de::DeTable;

use super::action::{DataAction, Misdirect, Torn};
use super::keys::{CORRUPT, Key, LATE_FLUSH, MISDIRECT, TORN};
use super::read::{Reader, Value, get, one_of};
use super::rule::SectorRange;
use super::units::{MAX_SECTOR, range};

/// Most sectors of a request that a rule can speak of.
const MAX_PART: u64 = 1 << 24;

/// One of the keys that say what becomes of the data.
pub(super) fn data_action(
    reader: &mut Reader<'_>,
    key: &str,
    value: &Value<'_>,
) -> Option<DataAction> {
    Some(match key {
        "torn" => DataAction::Torn(torn(reader, value)?),
        "corrupt" => {
            let table = reader.table(key, value, "a table such as `{ bits = 1 }`")?;
            one_at_least(reader, key, value, table, CORRUPT)?;
            let Some(bits) = get(table, "bits") else {
                reader.complain(
                    value.span(),
                    "`bits` is missing, expected how many bits are flipped",
                );
                return None;
            };
            DataAction::Corrupt {
                bits: number(reader, "bits", bits, 1..=1024, "an integer from 1 to 1024")?,
                offset: match get(table, "offset") {
                    Some(v) => Some(number(
                        reader,
                        "offset",
                        v,
                        0..=u64::from(u32::MAX),
                        "a byte of the request, from 0",
                    )?),
                    None => None,
                },
            }
        }
        "drop" => return reader.switch(key, value).then_some(DataAction::Drop),
        "misdirect" => DataAction::Misdirect(misdirect(reader, value)?),
        "stale" => {
            let list = reader.one_or_more(value);
            let mut ranges: Vec<_> = list
                .into_iter()
                .filter_map(|v| reader.sectors(key, v))
                .collect();
            ranges.sort_by_key(|r| r.start);
            DataAction::Stale(joined(&ranges))
        }
        "drop_flush" => return reader.switch(key, value).then_some(DataAction::DropFlush),
        "late_flush" => {
            let table = reader.table(key, value, "a table such as `{ writes = 1 }`")?;
            one_at_least(reader, key, value, table, LATE_FLUSH)?;
            let v = get(table, "writes")?;
            DataAction::LateFlush(number(
                reader,
                "writes",
                v,
                1..=1_000_000,
                "an integer from 1 to 1000000",
            )?)
        }
        _ => return None,
    })
}

/// Sorted ranges without overlaps.
pub(super) fn joined(sorted: &[SectorRange]) -> Vec<SectorRange> {
    let mut list: Vec<SectorRange> = Vec::new();
    for range in sorted {
        match list.last_mut() {
            Some(last) if range.start <= last.end() => {
                last.len = last.end().max(range.end()) - last.start;
            }
            _ => list.push(*range),
        }
    }
    list
}

fn torn(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Torn> {
    let example = "a table such as `{ first = 1 }`";
    let table = reader.table("torn", value, example)?;
    reader.only(table, TORN);
    let keys: Vec<&str> = table.keys().map(|k| k.get_ref().as_ref()).collect();
    let &[key] = keys.as_slice() else {
        reader.complain(
            value.span(),
            "`torn` is not clear, expected one of `first`, `last` and `sectors`",
        );
        return None;
    };
    let v = get(table, key)?;
    let expected = "a number of sectors";
    match key {
        "first" => number(reader, key, v, 0..=MAX_PART, expected).map(Torn::First),
        "last" => number(reader, key, v, 0..=MAX_PART, expected).map(Torn::Last),
        "sectors" => {
            let mut list = Vec::new();
            for v in reader.one_or_more(v) {
                list.push(part(reader, v)?);
            }
            list.sort_by_key(|r| r.start);
            let merged = joined(&list)
                .into_iter()
                .map(|r| (r.start as u32, r.len as u32));
            Some(Torn::Sectors(merged.collect()))
        }
        _ => None,
    }
}

/// One sector of the request, or `START+LEN` of it.
fn part(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<SectorRange> {
    let expected = "sectors of the request, counted from 0: `2` or \"2+4\"";
    if let Some(text) = value.get_ref().as_str() {
        if let Some((start, len)) = range(text)
            && len > 0
            && start.saturating_add(len) <= MAX_PART
        {
            return Some(SectorRange { start, len });
        }
        let message = format!(
            "`sectors` cannot hold \"{}\", expected {expected}",
            text.escape_debug()
        );
        reader.complain(value.span(), message);
        return None;
    }
    let start = reader.integer("sectors", value, 0..=MAX_PART - 1, expected)?;
    Some(SectorRange { start, len: 1 })
}

fn misdirect(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Misdirect> {
    let example = "`{ by = 8 }` or `{ to = 2048 }`";
    let table = reader.table("misdirect", value, example)?;
    reader.only(table, MISDIRECT);
    match (get(table, "by"), get(table, "to")) {
        (Some(v), None) => {
            let by = v
                .get_ref()
                .as_integer()
                .and_then(|i| i64::from_str_radix(i.as_str(), i.radix()).ok());
            match by {
                Some(by) if by != 0 => Some(Misdirect::By(by)),
                _ => {
                    reader.complain(v.span(), "`by` is impossible, expected a number of sectors, negative or not, but not 0");
                    None
                }
            }
        }
        (None, Some(v)) => reader
            .integer("to", v, 0..=MAX_SECTOR, "a sector of the disk")
            .map(Misdirect::To),
        _ => {
            reader.complain(
                value.span(),
                format!("`misdirect` is not clear, expected {example}"),
            );
            None
        }
    }
}

fn number(
    reader: &mut Reader<'_>,
    key: &str,
    value: &Value<'_>,
    range: std::ops::RangeInclusive<u64>,
    expected: &str,
) -> Option<u32> {
    let n = reader.integer(key, value, range, expected)?;
    u32::try_from(n).ok()
}

/// Every key of the table is known, and there is one.
pub(super) fn one_at_least(
    reader: &mut Reader<'_>,
    key: &str,
    value: &Value<'_>,
    table: &DeTable<'_>,
    keys: &[Key],
) -> Option<()> {
    reader.only(table, keys);
    if table.is_empty() {
        let names: Vec<&str> = keys.iter().map(|k| k.name).collect();
        let message = format!("`{key}` says nothing, expected {}", one_of(&names));
        reader.complain(value.span(), message);
        return None;
    }
    Some(())
}
