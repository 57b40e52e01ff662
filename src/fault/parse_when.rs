// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `when` of a rule -> [`Trigger`].

use toml::de::{DeTable, DeValue};

use super::keys::{AFTER, CLASSES, COUNTS, ELAPSED, FILE, Key, LIMITS, OPS, PERS, SIZES, WHEN};
use super::parse_rules::word;
use super::read::{Reader, Value, get, one_of};
use super::rule::{After, CallIs, Class, Count, FileRange, Per, TestIs, Trigger};
use super::units::A_COUNT;
use crate::trace::event::Op;

/// A share of one as so many of 2^53: what a float holds exactly.
pub(super) const CHANCES: u64 = 1 << 53;

/// The tables that a trigger is inside of.
#[derive(Clone, Copy, Default)]
struct Around {
    /// The kind that a table around says.
    op: Option<Op>,
}

pub(super) fn when(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    table(reader, value, "when", Around::default())
}

fn table(reader: &mut Reader<'_>, value: &Value<'_>, key: &str, around: Around) -> Option<Trigger> {
    let table = reader.table(key, value, "a table of triggers")?;
    let before = reader.problems.len();
    reader.only(table, WHEN);
    if table.is_empty() {
        let message =
            format!("`{key}` says nothing, expected a trigger (`op = \"any\"` for every request)");
        reader.complain(value.span(), message);
    }
    let mut all = Vec::new();
    // `Some(None)`: any.
    let op = get(table, "op").and_then(|v| op(reader, v));
    if let Some(Some(op)) = op {
        all.push(Trigger::Op(op));
    }
    let op = op.flatten();
    homeless(reader, table, op.or(around.op));
    let around = Around {
        op: op.or(around.op),
    };
    for (name, value) in table {
        let value: &Value<'_> = value;
        let found = match name.get_ref().as_ref() {
            "class" => class(reader, value),
            "lba" => {
                let list = reader.one_or_more(value);
                let list = list.into_iter().filter_map(|v| reader.sectors("lba", v));
                one_of_them(list.map(Trigger::Lba).collect())
            }
            "file" => file(reader, value).map(Trigger::File),
            "size" => size(reader, value),
            "nth_in_call" => reader
                .integer("nth_in_call", value, 1..=u64::MAX, A_COUNT)
                .map(|n| Trigger::NthInCall { op: around.op, n }),
            "nth" => count(reader, value, "nth", false),
            "every" => {
                if get(table, "nth").is_some() {
                    reader.complain(name.span(), "`nth` and `every` in one table: which is counted first? Expected one of them, or one in a table of `all`");
                }
                count(reader, value, "every", true)
            }
            "probability" => chance(reader, value),
            "in_call" => in_call(reader, value).map(Trigger::Call),
            "in_test" => in_test(reader, value).map(Trigger::Test),
            "flags" => flags(reader, value),
            "state" => word(reader, "state", value).map(Trigger::State),
            "inflight" => limits(reader, value),
            "after" => after(reader, "after", value).map(Trigger::After),
            "elapsed" => elapsed(reader, value),
            "all" => list(reader, value, "all", around).map(Trigger::All),
            "any" => list(reader, value, "any", around).map(Trigger::Any),
            "not" => self::table(reader, value, "not", Around::default())
                .map(|t| Trigger::Not(Box::new(t))),
            _ => None,
        };
        all.extend(found);
    }
    (reader.problems.len() == before).then_some(Trigger::All(all))
}

/// Neither has a place on the disk, data or a tag (Linux sends both untagged).
fn homeless(reader: &mut Reader<'_>, table: &DeTable<'_>, op: Option<Op>) {
    let what = match op {
        Some(Op::Flush) => "a flush",
        Some(Op::GetId) => "a get-id",
        _ => return,
    };
    for (key, has_no) in [
        ("lba", "has no sectors"),
        ("class", "has no sectors"),
        ("size", "has no size"),
        ("file", "carries no call tag"),
        ("nth_in_call", "carries no call tag"),
        ("in_call", "carries no call tag"),
        ("flags", "carries no call tag"),
    ] {
        if let Some(v) = get(table, key) {
            reader.complain(
                v.span(),
                format!("{what} {has_no}, expected no `{key}` beside this `op`"),
            );
        }
    }
    for key in ["nth", "every"] {
        if let Some(per) = get(table, key)
            .and_then(|v| v.get_ref().as_table())
            .and_then(|t| get(t, "per"))
            && per.get_ref().as_str() == Some("call")
        {
            let message = format!(
                "{what} carries no call tag, expected `per = \"rule\"` or `\"test\"` beside this `op`"
            );
            reader.complain(per.span(), message);
        }
    }
}

fn one_of_them(mut list: Vec<Trigger>) -> Option<Trigger> {
    match list.len() {
        0 | 1 => list.pop(),
        _ => Some(Trigger::Any(list)),
    }
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

fn class(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let classes = [Class::Log, Class::Data, Class::Other];
    let known: Vec<_> = CLASSES.iter().copied().zip(classes).collect();
    reader.word("class", value, &known).map(Trigger::Class)
}

fn file(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<FileRange> {
    let mut found = FileRange {
        ino: None,
        start: 0,
        len: u64::MAX,
    };
    let DeValue::Table(table) = value.get_ref() else {
        (found.start, found.len) = reader.file_range("file", value)?;
        return Some(found);
    };
    some_of(reader, "file", value, table, FILE)?;
    if let Some(v) = get(table, "range") {
        (found.start, found.len) = reader.file_range("range", v)?;
    }
    if let Some(v) = get(table, "ino") {
        found.ino = Some(reader.integer("ino", v, 0..=u64::MAX, "an inode number")?);
    }
    Some(found)
}

fn size(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let DeValue::Table(table) = value.get_ref() else {
        let exact = reader.bytes("size", value)?;
        return Some(Trigger::Size {
            min: exact,
            max: exact,
        });
    };
    some_of(reader, "size", value, table, SIZES)?;
    let min = get(table, "min").map_or(Some(0), |v| reader.bytes("min", v))?;
    let max = get(table, "max").map_or(Some(u64::MAX), |v| reader.bytes("max", v))?;
    in_order(reader, value, "size", min, max)?;
    Some(Trigger::Size { min, max })
}

fn limits(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let number = "an integer from 0 on, or `{ min = 2, max = 8 }`";
    let DeValue::Table(table) = value.get_ref() else {
        let n = reader.integer("inflight", value, 0..=u64::MAX, number)?;
        return Some(Trigger::InFlight { min: n, max: n });
    };
    some_of(reader, "inflight", value, table, LIMITS)?;
    let mut end = |key: &str, default| {
        get(table, key).map_or(Some(default), |v| {
            reader.integer(key, v, 0..=u64::MAX, "an integer from 0 on")
        })
    };
    let (min, max) = (end("min", 0)?, end("max", u64::MAX)?);
    in_order(reader, value, "inflight", min, max)?;
    Some(Trigger::InFlight { min, max })
}

fn in_order(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    key: &str,
    min: u64,
    max: u64,
) -> Option<()> {
    if min > max {
        let message = format!("`{key}` holds for nothing: `min` is more than `max`");
        reader.complain(value.span(), message);
        return None;
    }
    Some(())
}

/// Every key of the table is known, and there is one.
fn some_of(
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

fn count(reader: &mut Reader<'_>, value: &Value<'_>, key: &str, every: bool) -> Option<Trigger> {
    let expected = format!("`{key} = {{ n = 3, per = \"rule\" }}` (or per `call`, or `test`)");
    let table = reader.table(key, value, &expected)?;
    reader.only(table, COUNTS);
    let n = get(table, "n").and_then(|v| reader.integer("n", v, 1..=u64::MAX, A_COUNT));
    let pers = [Per::Rule, Per::Call, Per::Test];
    let known: Vec<_> = PERS.iter().copied().zip(pers).collect();
    let per = get(table, "per").and_then(|v| reader.word("per", v, &known));
    for name in ["n", "per"] {
        if get(table, name).is_none() {
            reader.complain(
                value.span(),
                format!("`{name}` is missing, expected {expected}"),
            );
        }
    }
    Some(Trigger::Count(Count {
        every,
        n: n?,
        per: per?,
    }))
}

fn chance(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let expected = "a share such as 0.01, more than 0 and at most 1";
    let share = match value.get_ref() {
        DeValue::Float(f) => f.as_str().parse::<f64>().ok(),
        DeValue::Integer(i) => i.as_str().parse::<f64>().ok(),
        _ => {
            reader.wrong_type("probability", value, expected);
            return None;
        }
    };
    match share {
        Some(share) if share > 0.0 && share <= 1.0 => {
            Some(Trigger::Chance((share * CHANCES as f64) as u64))
        }
        _ => {
            let message = format!("`probability` is impossible, expected {expected}");
            reader.complain(value.span(), message);
            None
        }
    }
}

fn in_call(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<CallIs> {
    match value.get_ref() {
        DeValue::Boolean(true) => Some(CallIs::Some),
        DeValue::Boolean(false) => Some(CallIs::None),
        DeValue::Integer(_) => reader
            .integer("in_call", value, 0..=u64::MAX, "the number of a call")
            .map(CallIs::Number),
        DeValue::String(_) => {
            let known = [("data", CallIs::Data), ("side", CallIs::Side)];
            reader.word("in_call", value, &known)
        }
        _ => {
            let expected = "true, false, `data`, `side` or the number of a call";
            reader.wrong_type("in_call", value, expected);
            None
        }
    }
}

fn in_test(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<TestIs> {
    match value.get_ref() {
        DeValue::Boolean(true) => Some(TestIs::Some),
        DeValue::Boolean(false) => Some(TestIs::None),
        _ => reader
            .string("in_test", value, "true, false or a test's name")
            .map(|name| TestIs::Named(name.to_owned())),
    }
}

fn flags(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let mut names = Vec::new();
    for v in reader.one_or_more(value) {
        let text = reader.string("flags", v, "names of flags such as `writethrough`")?;
        let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_".contains(c);
        if text.is_empty() || !text.chars().all(fine) {
            let message = format!(
                "`flags` cannot hold \"{}\", expected names such as `writethrough`, `dsync`, `direct` or `async`",
                text.escape_debug()
            );
            reader.complain(v.span(), message);
            return None;
        }
        names.push(text.to_owned());
    }
    (!names.is_empty()).then_some(Trigger::Flags(names))
}

pub(super) fn after(reader: &mut Reader<'_>, key: &str, value: &Value<'_>) -> Option<After> {
    let expected = "`mark`, `flush`, `rule` or `completions`";
    let table = reader.table(key, value, "a table such as `{ mark = \"go\" }`")?;
    reader.only(table, AFTER);
    let events = ["mark", "flush", "rule", "completions"];
    let said: Vec<&str> = events
        .into_iter()
        .filter(|e| get(table, e).is_some())
        .collect();
    let &[event] = said.as_slice() else {
        let message = match said.as_slice() {
            [] => format!("`{key}` names no event, expected {expected}"),
            _ => format!("`{key}` names several events, expected one of {expected}"),
        };
        reader.complain(value.span(), message);
        return None;
    };
    let what = get(table, event)?;
    let mut number = |v, name: &str| reader.integer(name, v, 1..=u64::MAX, A_COUNT);
    let count = match get(table, "count") {
        Some(v) => number(v, "count")?,
        None => 1,
    };
    if let Some(v) = get(table, "count")
        && matches!(event, "flush" | "completions")
    {
        let message = format!("`{event}` is a count itself, expected no `count` beside it");
        reader.complain(v.span(), message);
        return None;
    }
    Some(match event {
        "mark" => After::Mark {
            text: reader
                .string("mark", what, "the text of a mark `note`")?
                .to_owned(),
            count,
        },
        "flush" => After::Flush(number(what, "flush")?),
        "rule" => After::Rule {
            name: word(reader, "rule", what)?,
            count,
        },
        _ => After::Completions(number(what, "completions")?),
    })
}

fn elapsed(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Trigger> {
    let expected = "`elapsed = { since = \"go\", ms = 10 }`";
    let table = reader.table("elapsed", value, expected)?;
    reader.only(table, ELAPSED);
    for name in ["since", "ms"] {
        if get(table, name).is_none() {
            let message = format!("`{name}` is missing, expected {expected}");
            reader.complain(value.span(), message);
        }
    }
    let since =
        get(table, "since").and_then(|v| reader.string("since", v, "the text of a mark `note`"))?;
    let ms = get(table, "ms")
        .and_then(|v| reader.integer("ms", v, 0..=86_400_000, "milliseconds, a day at most"))?;
    Some(Trigger::Elapsed {
        since: since.to_owned(),
        ns: ms * 1_000_000,
    })
}

fn list(
    reader: &mut Reader<'_>,
    value: &Value<'_>,
    key: &str,
    around: Around,
) -> Option<Vec<Trigger>> {
    let DeValue::Array(list) = value.get_ref() else {
        reader.wrong_type(key, value, "a list of tables of triggers");
        return None;
    };
    if list.is_empty() {
        reader.complain(
            value.span(),
            format!("`{key}` is an empty list, expected at least one table"),
        );
    }
    let found: Vec<_> = list
        .iter()
        .filter_map(|v| table(reader, v, key, around))
        .collect();
    (!found.is_empty()).then_some(found)
}
