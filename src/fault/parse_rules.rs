// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The `[[fault]]` tables of a scenario.

use std::collections::HashMap;
use std::ops::Range;

use toml::de::DeTable;

use super::action::Action;
use super::diagnosis::meant;
use super::index::op_mask;
use super::keys::FAULT;
use super::nonsense::{never, short_group};
use super::parse_action::action;
use super::parse_when::when;
use super::read::{Reader, Value, get};
use super::rule::{After, Rule, Trigger};
use super::scenario::Place;
use super::units::A_COUNT;
use wtblk_shared::disk::DATA_NAME;

/// Longest name of a rule.
const MAX_NAME: usize = 64;
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
        let disk = get(table, "disk").and_then(|v| word(reader, "disk", v));
        // The disk under test has a name, too.
        let disk = disk.filter(|name| name != DATA_NAME);
        let goto = get(table, "goto").and_then(|v| word(reader, "goto", v));
        let when_value = needed(reader, value, table, "when", "`when = { op = \"write\" }`");
        let when = when_value.and_then(|v| when(reader, v));
        let action = match get(table, "action") {
            // A rule may only move to another state.
            None if get(table, "goto").is_some() => Some(Action::default()),
            _ => needed(
                reader,
                value,
                table,
                "action",
                "`action = { status = \"ioerr\" }`",
            )
            .and_then(|t| action(reader, t)),
        };
        if let (Some((name, span)), Some(when), Some(action)) = (name, when, action) {
            if let Some(v) = get(table, "action") {
                fits(reader, v, &when, &action);
            }
            let rule = Rule {
                name,
                test,
                disk,
                when,
                action,
                times,
                goto,
                place: Place::here(span),
            };
            if let (Some(why), Some(v)) = (never(&rule), when_value) {
                reader.complain(v.span(), format!("`when` {why}"));
            }
            if let (Some(why), Some(v)) = (short_group(&rule), get(table, "times")) {
                reader.complain(v.span(), why);
            }
            rules.push(rule);
        }
    }
    for rule in &rules {
        events(reader, rule, &names);
    }
    rules
}

/// The action must be possible for some request that the trigger lets through.
fn fits(reader: &mut Reader<'_>, value: &Value<'_>, when: &Trigger, action: &Action) {
    let Some(data) = &action.data else { return };
    // Where nothing is let through at all, that is said elsewhere.
    let mask = op_mask(when);
    if mask.ops().next().is_some() && !mask.ops().any(|op| data.suits(op)) {
        let message = format!(
            "`{}` needs {}, but `when` lets none through",
            data.key(),
            data.suits_what()
        );
        reader.complain(value.span(), message);
    }
}

/// Rules that are spoken of must be there: in the same file, so that it means the same alone.
fn events(reader: &mut Reader<'_>, rule: &Rule, names: &HashMap<String, Range<usize>>) {
    let known: Vec<&str> = names.keys().map(String::as_str).collect();
    let mut check = |after: &After| {
        if let After::Rule { name, .. } = after
            && !names.contains_key(name)
        {
            let message =
                format!("this rule waits for a rule named `{name}`, which is not in this file");
            let hint = meant(name, &known).map(|w| format!("did you mean `{w}`?"));
            reader.complain_meant(rule.place.span.clone(), message, hint);
        }
    };
    rule.when.has(&mut |t| {
        if let Trigger::After(after) = t {
            check(after);
        }
        false
    });
    if let Some(after) = rule.action.hold.as_ref().and_then(|h| h.until.as_ref()) {
        check(after);
    }
}

/// A name of a rule or of a state.
pub(super) fn word(reader: &mut Reader<'_>, key: &str, value: &Value<'_>) -> Option<String> {
    let name = reader.string(key, value, A_NAME)?;
    if is_name(name) {
        return Some(name.to_owned());
    }
    let message = format!(
        "`{key}` cannot be \"{}\", expected {A_NAME}",
        name.escape_debug()
    );
    reader.complain(value.span(), message);
    None
}

/// A name is written in marks, in shells and on lines of a report.
fn is_name(name: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(fine)
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
    if !is_name(name) {
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
