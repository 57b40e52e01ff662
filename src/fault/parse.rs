// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenario text -> [`Scenario`]. `docs/scenario.md` is the reference of the
//! format; a change here is a change there.

use std::collections::HashMap;
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::diagnosis::{Problem, ScenarioError};
use super::read::{Reader, Value, get, one_of};
use super::scenario::{
    Action, Device, OnStop, Place, Rule, Scenario, SectorRange, Set, Source, Trigger,
};
use crate::trace::event::{Op, Status};

/// The version of the format.
const VERSION: u64 = 1;
/// Longest file.
const MAX_TEXT: usize = 1024 * 1024;
/// Most rules of a scenario, merged or not.
const MAX_RULES: usize = 4096;
/// Longest name of a rule.
const MAX_NAME: usize = 64;
/// Where the disk ends at the latest, in sectors: 2^64 bytes.
const MAX_SECTOR: u64 = 1 << 55;

const TOP: &[&str] = &["version", "name", "about", "device", "fault"];
const DEVICE: &[&str] = &[
    "queues",
    "read_only",
    "write_cache",
    "logical_block",
    "on_stop",
    "size",
];
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
const A_SIZE: &str =
    "a number and a unit (B, KiB, MiB, GiB or TiB) such as \"512MiB\", at most 1048576TiB";
const A_COUNT: &str = "an integer from 1 on";
const A_NAME: &str = "1 to 64 letters, digits, `-`, `_` or `.`";

pub(super) fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
    let mut reader = Reader {
        file,
        text,
        problems: Vec::new(),
    };
    let mut scenario = Scenario {
        sources: vec![Source {
            file: file.to_owned(),
            text: text.to_owned(),
        }],
        ..Scenario::default()
    };
    if text.len() > MAX_TEXT {
        reader.complain(
            0..0,
            format!(
                "the file has {} bytes, expected at most {MAX_TEXT}",
                text.len()
            ),
        );
    } else {
        document(&mut reader, text, &mut scenario);
    }
    let mut problems = reader.problems;
    check_whole(&scenario, &mut problems);
    if problems.is_empty() {
        return Ok(scenario);
    }
    problems.sort_by_key(|p| (p.line, p.column));
    Err(ScenarioError::new(problems))
}

/// What no key is to blame for alone.
pub(super) fn check_whole(scenario: &Scenario, problems: &mut Vec<Problem>) {
    let device = &scenario.device;
    let block = u64::from(device.logical_block().unwrap_or(512));
    if let Some(size) = &device.size
        && size.value % block != 0
    {
        let message = format!(
            "a size of {} bytes is no whole number of logical blocks, expected a multiple of {block}",
            size.value
        );
        problems.push(scenario.problem(&size.place, message));
    }
    if let Some(rule) = scenario.rules.get(MAX_RULES) {
        let message = format!("too many rules, expected at most {MAX_RULES}");
        problems.push(scenario.problem(&rule.place, message));
    }
}

fn document(reader: &mut Reader<'_>, text: &str, scenario: &mut Scenario) {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        // What stands behind a syntax error may be misread: only that is shown.
        for error in errors {
            let message = format!("not TOML: {}", error.message().replace('\n', ", "));
            reader.complain(error.span().unwrap_or(0..0), message);
        }
        return;
    }
    let table = table.get_ref();
    reader.only(table, TOP);
    match get(table, "version") {
        Some(value) => {
            reader.integer("version", value, VERSION..=VERSION, "`version = 1`");
        }
        None => reader.complain(0..0, "`version` is missing, expected `version = 1`"),
    }
    for (key, into) in [("name", &mut scenario.name), ("about", &mut scenario.about)] {
        if let Some(value) = get(table, key) {
            *into = reader.string(key, value, "a string").map(str::to_owned);
        }
    }
    if let Some(value) = get(table, "device")
        && let Some(settings) = reader.table("device", value, "a table")
    {
        scenario.device = device(reader, settings);
    }
    if let Some(value) = get(table, "fault") {
        match value.get_ref() {
            DeValue::Array(list) => scenario.rules = rules(reader, list.iter()),
            _ => {
                let span = value.span();
                reader.complain(
                    span,
                    "`fault` is no list, expected `[[fault]]`, one for each rule",
                );
            }
        }
    }
}

fn device(reader: &mut Reader<'_>, table: &DeTable<'_>) -> Device {
    reader.only(table, DEVICE);
    let mut device = Device::default();
    if let Some(value) = get(table, "queues") {
        device.queues = reader
            .integer("queues", value, 1..=64, "an integer from 1 to 64")
            .and_then(|n| set(value, u16::try_from(n).ok()));
    }
    for (key, into) in [
        ("read_only", &mut device.read_only),
        ("write_cache", &mut device.write_cache),
    ] {
        if let Some(value) = get(table, key) {
            *into = set(value, reader.boolean(key, value));
        }
    }
    if let Some(value) = get(table, "logical_block") {
        let number = reader.integer("logical_block", value, 0..=u64::MAX, "512 or 4096");
        device.logical_block = match number {
            Some(512) => set(value, Some(512)),
            Some(4096) => set(value, Some(4096)),
            Some(other) => {
                let message =
                    format!("`logical_block = {other}` is impossible, expected 512 or 4096");
                reader.complain(value.span(), message);
                None
            }
            None => None,
        };
    }
    if let Some(value) = get(table, "on_stop") {
        let known = [("complete", OnStop::Complete), ("abandon", OnStop::Abandon)];
        device.on_stop = set(value, word(reader, "on_stop", value, &known));
    }
    if let Some(value) = get(table, "size") {
        device.size = set(value, size(reader, value));
    }
    device
}

fn set<T>(value: &Value<'_>, read: Option<T>) -> Option<Set<T>> {
    read.map(|read| Set {
        value: read,
        place: place(value.span()),
    })
}

fn place(span: Range<usize>) -> Place {
    Place { source: 0, span }
}

/// One of a few words.
fn word<T: Copy>(
    reader: &mut Reader<'_>,
    key: &str,
    value: &Value<'_>,
    known: &[(&str, T)],
) -> Option<T> {
    let words: Vec<&str> = known.iter().map(|k| k.0).collect();
    let expected = one_of(&words);
    let text = reader.string(key, value, &expected)?;
    let found = known.iter().find(|k| k.0 == text).map(|k| k.1);
    if found.is_none() {
        let message = format!(
            "`{key}` knows no `{}`, expected {expected}",
            text.escape_debug()
        );
        reader.complain(value.span(), message);
    }
    found
}

fn size(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<u64> {
    let text = reader.string("size", value, A_SIZE)?;
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let (number, unit) = text.split_at(text.len() - digits.len());
    let shift = match unit.trim_start() {
        "B" => Some(0),
        "KiB" => Some(10),
        "MiB" => Some(20),
        "GiB" => Some(30),
        "TiB" => Some(40),
        _ => None,
    };
    let bytes = shift
        .zip(number.parse::<u64>().ok())
        .and_then(|(shift, n)| n.checked_mul(1 << shift))
        .filter(|bytes| (1..=1 << 60).contains(bytes));
    if bytes.is_none() {
        let message = format!(
            "`size` cannot be \"{}\", expected {A_SIZE}",
            text.escape_debug()
        );
        reader.complain(value.span(), message);
    }
    bytes
}

fn rules<'v, 'i: 'v>(
    reader: &mut Reader<'_>,
    list: impl Iterator<Item = &'v Value<'i>>,
) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    for value in list {
        let Some(table) = reader.table("fault", value, "`[[fault]]`, one for each rule") else {
            continue;
        };
        reader.only(table, FAULT);
        let name = rule_name(reader, value, table);
        if let Some((name, span)) = &name {
            let line = reader.text[..span.start.min(reader.text.len())]
                .matches('\n')
                .count()
                + 1;
            match lines.get(name) {
                Some(first) => {
                    let message = format!(
                        "a rule named `{name}` is also in line {first}, expected names that no two rules share"
                    );
                    reader.complain(span.clone(), message);
                }
                None => {
                    lines.insert(name.clone(), line);
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
                place: place(span),
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
    word(reader, "op", value, &known)
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
