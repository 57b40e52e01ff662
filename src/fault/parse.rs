// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Scenario text -> [`Scenario`]. `docs/scenario.md` is the reference of the
//! format; a change here is a change there.

use std::collections::BTreeSet;

use toml::de::{DeTable, DeValue};

use super::action::DataAction;
use super::diagnosis::{Problem, ScenarioError};
use super::keys::{DEVICE, TOP};
use super::launch::launch;
use super::parse_contract::contract;
use super::parse_rules::{rules, word};
use super::read::{Reader, Value, get};
use super::rule::{Rule, Trigger};
use super::scenario::{Device, OnStop, Place, Scenario, Set, Source};
use super::shape::{QUEUE_SIZES, QUEUES, SEG_MAX};

/// The version of the format.
const VERSION: u64 = 1;
/// Longest text of a scenario, bytes.
pub const MAX_TEXT: u64 = 1024 * 1024;
/// Most rules of a scenario, merged or not.
const MAX_RULES: usize = 4096;
/// Most flags of calls that rules may speak of.
const MAX_FLAGS: usize = 64;
/// Most sectors of which old content is kept: 16 MiB.
const MAX_KEPT: u64 = 32 * 1024;

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
    if text.len() as u64 > MAX_TEXT {
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
    for (key, why) in device.shape().contradictions() {
        let place = device.place(key).cloned().unwrap_or_default();
        problems.push(scenario.problem(&place, format!("`{key}`: {why}")));
    }
    kept(scenario, problems);
    if let Some(rule) = too_many_flags(scenario) {
        let message =
            format!("too many flags of calls, expected at most {MAX_FLAGS} in all rules together");
        problems.push(scenario.problem(&rule.place, message));
    }
    if let Some(rule) = scenario.rules.get(MAX_RULES) {
        let message = format!("too many rules, expected at most {MAX_RULES}");
        problems.push(scenario.problem(&rule.place, message));
    }
}

/// What is kept for stale reads is bounded; the rule with which it is too much.
fn kept(scenario: &Scenario, problems: &mut Vec<Problem>) {
    let mut total = 0u64;
    for rule in &scenario.rules {
        let Some(DataAction::Stale(ranges)) = &rule.action.data else {
            continue;
        };
        total = ranges.iter().fold(total, |t, r| t.saturating_add(r.len));
        if total > MAX_KEPT {
            let message = format!(
                "with the ranges of this rule {total} sectors are to be kept for `stale`, expected at most {MAX_KEPT} (16 MiB) in all rules together"
            );
            problems.push(scenario.problem(&rule.place, message));
            return;
        }
    }
}

/// The rule with which they are too many: a call's flags are one word.
fn too_many_flags(scenario: &Scenario) -> Option<&Rule> {
    let mut known = BTreeSet::new();
    scenario.rules.iter().find(|rule| {
        rule.when.has(&mut |t| {
            if let Trigger::Flags(names) = t {
                known.extend(names.iter().cloned());
            }
            known.len() > MAX_FLAGS
        })
    })
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
    if let Some(value) = get(table, "state") {
        scenario.state = set(value, word(reader, "state", value));
    }
    if let Some(value) = get(table, "device")
        && let Some(settings) = reader.table("device", value, "a table")
    {
        scenario.device = device(reader, settings);
    }
    if let Some(value) = get(table, "run")
        && let Some(table) = reader.table("run", value, "a table")
    {
        scenario.launch = launch(reader, table);
    }
    if let Some(value) = get(table, "contract")
        && let Some(changes) = reader.table("contract", value, "a table")
    {
        scenario.contract = contract(reader, changes);
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
            .integer("queues", value, QUEUES, "an integer from 1 to 64")
            .and_then(|n| set(value, u16::try_from(n).ok()));
    }
    for (key, into) in [
        ("read_only", &mut device.read_only),
        ("write_cache", &mut device.write_cache),
        ("discard", &mut device.discard),
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
    for (key, into) in [
        ("physical_block", &mut device.physical_block),
        ("alignment_offset", &mut device.alignment_offset),
        ("min_io", &mut device.min_io),
        ("opt_io", &mut device.opt_io),
        ("size_max", &mut device.size_max),
    ] {
        if let Some(value) = get(table, key) {
            let bytes = reader.bytes(key, value);
            // Which of them can be is said by `Shape`.
            let bytes = bytes.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
            *into = set(value, bytes);
        }
    }
    if let Some(value) = get(table, "queue_size") {
        device.queue_size = reader
            .integer(
                "queue_size",
                value,
                QUEUE_SIZES,
                "a power of two from 4 to 1024",
            )
            .and_then(|n| set(value, u16::try_from(n).ok()));
    }
    if let Some(value) = get(table, "seg_max") {
        device.seg_max = reader
            .integer("seg_max", value, 1..=SEG_MAX, "an integer from 1 to 1022")
            .and_then(|n| set(value, u32::try_from(n).ok()));
    }
    if let Some(value) = get(table, "serial") {
        let text = reader.string("serial", value, "a string");
        device.serial = set(value, text.map(str::to_owned));
    }
    if let Some(value) = get(table, "on_stop") {
        let known = [("complete", OnStop::Complete), ("abandon", OnStop::Abandon)];
        device.on_stop = set(value, reader.word("on_stop", value, &known));
    }
    if let Some(value) = get(table, "size") {
        device.size = set(value, reader.size("size", value));
    }
    device
}

pub(super) fn set<T>(value: &Value<'_>, read: Option<T>) -> Option<Set<T>> {
    read.map(|read| Set {
        value: read,
        place: Place::here(value.span()),
    })
}
