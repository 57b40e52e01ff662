// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `[[fault]]` tables of a scenario: trigger and action of each rule.

use std::collections::HashMap;
use std::ops::Range;

use toml::de::DeTable;

use super::read::{Reader, Value, get};
use super::scenario::{Action, Place, Rule, SectorRange, Trigger};
use crate::trace::event::{Op, Status};

/// Longest name of a rule.
const MAX_NAME: usize = 64;
/// Where the disk ends at the latest, in sectors: 2^64 bytes.
const MAX_SECTOR: u64 = 1 << 55;
const FAULT: &[&str] = &["name", "test", "when", "action", "times"];
const WHEN: &[&str] = &["op", "lba", "nth_in_call"];
const ACTION: &[&str] = &["status", "hold"];
const OPS: &[&str] = &[
    "read",
    "write",
    "flush",
    "get-id",
    "discard",
    "write-zeroes",
    "any",
];
const A_STATUS: &str = "`ioerr`, `unsupp` or an integer from 1 to 255";
const A_RANGE: &str = "\"START+LEN\" in sectors of 512 bytes, such as \"2048+8\"";
const A_COUNT: &str = "an integer from 1 on";
const A_NAME: &str = "1 to 64 letters, digits, `-`, `_` or `.`";

/// The rules, in file order.
pub(super) fn rules<'v, 'i: 'v>(
    reader: &mut Reader<'_>,
    list: impl Iterator<Item = &'v Value<'i>>,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut names: HashMap<String, Range<usize>> = HashMap::new();
    for value in list {
        let Some(table) = reader.table("fault", value, "`[[fault]]`, one for each rule") else {
            continue;
        };
        reader.only(table, FAULT);
        let name = rule_name(reader, value, table);
        if let Some((name, span)) = &name {
            match names.get(name) {
                Some(first) => {
                    let line = reader.line(first);
                    let message = format!(
                        "a rule named `{name}` is also in line {line}, expected names that no two rules share"
                    );
                    reader.complain(span.clone(), message);
                }
                None => {
                    names.insert(name.clone(), span.clone());
                }
            }
        }
        let test =
            get(table, "test").and_then(|v| match reader.string("test", v, "a test's name") {
                Some("") => {
                    reader.complain(v.span(), "`test` is empty, expected a test's name");
                    None
                }
                name => name.map(str::to_owned),
            });
        let times =
            get(table, "times").and_then(|v| reader.integer("times", v, 1..=u64::MAX, A_COUNT));
        let when = needed(reader, value, table, "when", "`when = { op = \"write\" }`")
            .and_then(|t| when(reader, t));
        let action = needed(
            reader,
            value,
            table,
            "action",
            "`action = { status = \"ioerr\" }`",
        )
        .and_then(|t| action(reader, t));
        if let (Some((name, span)), Some(when), Some(action)) = (name, when, action) {
            rules.push(Rule {
                name,
                test,
                when,
                action,
                times,
                place: Place::here(span),
            });
        }
    }
    rules
}

fn rule_name(
    reader: &mut Reader<'_>,
    rule: &Value<'_>,
    table: &DeTable<'_>,
) -> Option<(String, Range<usize>)> {
    let Some(value) = get(table, "name") else {
        reader.complain(rule.span(), "`name` is missing, expected `name = \"...\"`");
        return None;
    };
    let name = reader.string("name", value, A_NAME)?;
    // A name is written in marks, in shells and on lines of a report.
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(fine) {
        let message = format!(
            "`{}` is no name for a rule, expected {A_NAME}",
            name.escape_debug()
        );
        reader.complain(value.span(), message);
        return None;
    }
    Some((name.to_owned(), value.span()))
}

/// A table that a rule must have.
fn needed<'v, 'i>(
    reader: &mut Reader<'_>,
    rule: &Value<'_>,
    table: &'v DeTable<'i>,
    key: &str,
    example: &str,
) -> Option<&'v Value<'i>> {
    let Some(value) = get(table, key) else {
        reader.complain(
            rule.span(),
            format!("`{key}` is missing, expected {example}"),
        );
        return None;
    };
    reader
        .table(key, value, &format!("a table such as {example}"))
        .map(|_| value)
}

fn when(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let table = value.get_ref().as_table()?;
    let before = reader.problems.len();
    reader.only(table, WHEN);
    if table.is_empty() {
        let message = "`when` says nothing, expected `op`, `lba` or `nth_in_call` (`op = \"any\"` for every request)";
        reader.complain(value.span(), message);
    }
    let mut all = Vec::new();
    // `Some(None)`: any.
    let op = get(table, "op").and_then(|v| op(reader, v));
    if let Some(Some(op)) = op {
        all.push(Trigger::Op(op));
    }
    // Neither has a place on the disk or a tag (Linux sends both untagged).
    let homeless = match op.flatten() {
        Some(Op::Flush) => Some("a flush"),
        Some(Op::GetId) => Some("a get-id"),
        _ => None,
    };
    if let Some(v) = get(table, "lba") {
        if let Some(what) = homeless {
            reader.complain(
                v.span(),
                format!("{what} has no sectors, expected no `lba` beside this `op`"),
            );
        } else if let Some(range) = lba(reader, v) {
            all.push(Trigger::Lba(range));
        }
    }
    if let Some(v) = get(table, "nth_in_call") {
        if let Some(what) = homeless {
            let message =
                format!("{what} carries no call tag, expected no `nth_in_call` beside this `op`");
            reader.complain(v.span(), message);
        } else if let Some(n) = reader.integer("nth_in_call", v, 1..=u64::MAX, A_COUNT) {
            all.push(Trigger::NthInCall {
                op: op.flatten(),
                n,
            });
        }
    }
    (reader.problems.len() == before).then_some(Trigger::All(all))
}

fn op(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Option<Op>> {
    let ops = [
        Some(Op::Read),
        Some(Op::Write),
        Some(Op::Flush),
        Some(Op::GetId),
        Some(Op::Discard),
        Some(Op::WriteZeroes),
        None,
    ];
    let known: Vec<_> = OPS.iter().copied().zip(ops).collect();
    reader.word("op", value, &known)
}

fn lba(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<SectorRange> {
    let text = reader.string("lba", value, A_RANGE)?;
    let number = |s: &str| {
        let digits = !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| s.parse::<u64>().unwrap_or(u64::MAX))
    };
    let range = text
        .split_once('+')
        .and_then(|(start, len)| Some((number(start)?, number(len)?)));
    let message = match range {
        Some((start, len))
            if len > 0 && start.checked_add(len).is_some_and(|end| end <= MAX_SECTOR) =>
        {
            return Some(SectorRange { start, len });
        }
        Some((_, 0)) => "`lba` is an empty range, expected at least 1 sector".to_owned(),
        Some(_) => {
            "`lba` ends beyond the last sector there can be, expected an end of at most 2^55"
                .to_owned()
        }
        None => format!(
            "`lba` cannot be \"{}\", expected {A_RANGE}",
            text.escape_debug()
        ),
    };
    reader.complain(value.span(), message);
    None
}

fn action(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Action> {
    let table = value.get_ref().as_table()?;
    let before = reader.problems.len();
    reader.only(table, ACTION);
    let status = get(table, "status").and_then(|v| status(reader, v));
    let hold = get(table, "hold").and_then(|v| reader.boolean("hold", v));
    if reader.problems.len() > before {
        return None;
    }
    let action = Action {
        status,
        hold: hold.unwrap_or(false),
    };
    if action.status.is_none() && !action.hold {
        reader.complain(
            value.span(),
            "`action` does nothing, expected `status`, `hold = true` or both",
        );
        return None;
    }
    Some(action)
}

fn status(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Status> {
    if value.get_ref().is_integer() {
        let raw = reader.integer("status", value, 0..=255, A_STATUS)?;
        if raw == 0 {
            reader.complain(value.span(), success());
            return None;
        }
        return u8::try_from(raw).ok().map(Status);
    }
    let text = reader.string("status", value, A_STATUS)?;
    let message = match text {
        "ioerr" => return Some(Status::IOERR),
        "unsupp" => return Some(Status::UNSUPP),
        "ok" => success(),
        "enospc" => format!(
            "virtio-blk has no status for a full disk: a guest sees ENOSPC from its file system only, expected {A_STATUS}"
        ),
        "timeout" => format!(
            "virtio-blk has no status for a time-out: a late device is one that does not answer, expected `hold = true` instead, or {A_STATUS}"
        ),
        other => format!(
            "`status` knows no `{}`, expected {A_STATUS}",
            other.escape_debug()
        ),
    };
    reader.complain(value.span(), message);
    None
}

fn success() -> String {
    format!("status 0 is success, which a request gets without a rule, expected {A_STATUS}")
}
