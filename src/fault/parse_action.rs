// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `action` of a rule -> [`Action`], and which parts contradict each other.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::action::{Action, Delay, HoldFor, Order, Permutation};
use super::keys::{ACTION, DELAY, DISCONNECT, HOLD, ORDER, PERMUTATIONS};
use super::parse_data::{data_action, one_at_least};
use super::parse_when::after;
use super::plan::{factorial, turns_of};
use super::read::{Reader, Value, get};
use super::request::DeviceFault;
use crate::trace::event::Status;

const A_STATUS: &str = "`ioerr`, `unsupp` or an integer from 1 to 255";

pub(super) fn action(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Action> {
    let table = value.get_ref().as_table()?;
    let before = reader.problems.len();
    reader.only(table, ACTION);
    let mut action = Action::default();
    let (mut data, mut device) = (Vec::new(), Vec::new());
    for (key, value) in table {
        let (name, span) = (key.get_ref().as_ref(), key.span());
        match name {
            "status" => action.status = status(reader, value),
            "store" => action.store = reader.switch("store", value),
            "delay" => action.delay = delay(reader, value),
            "hold" => action.hold = hold(reader, value),
            "order" => action.order = order(reader, value),
            "hang" => action.hang = reader.switch("hang", value),
            "used_len" => {
                let expected = "an integer from 0 to 4294967295";
                let len = reader.integer(name, value, 0..=u64::from(u32::MAX), expected);
                action.used_len = len.and_then(|n| u32::try_from(n).ok());
            }
            "disconnect" => device.extend(disconnect(reader, value).map(|d| (span, d))),
            "gone" if reader.switch(name, value) => device.push((span, DeviceFault::Gone)),
            "cut" if reader.switch(name, value) => device.push((span, DeviceFault::Cut)),
            _ => data.extend(data_action(reader, name, value).map(|d| (span, d))),
        }
    }
    several(
        reader,
        &data
            .iter()
            .map(|(s, d)| (s.clone(), d.key()))
            .collect::<Vec<_>>(),
        "each says what becomes of the data",
    );
    several(
        reader,
        &device
            .iter()
            .map(|(s, d)| (s.clone(), device_key(*d)))
            .collect::<Vec<_>>(),
        "each says what becomes of the device",
    );
    action.data = data.pop().map(|(_, d)| d);
    action.device = device.pop().map(|(_, d)| d);
    if reader.problems.len() == before {
        contradictions(reader, table, &action);
    }
    if reader.problems.len() > before {
        return None;
    }
    if action.is_nothing() {
        let message =
            "`action` does nothing, expected `status`, `hold = true` or another key of it";
        reader.complain(value.span(), message);
        return None;
    }
    Some(action)
}

fn several(reader: &mut Reader<'_>, said: &[(Range<usize>, &str)], why: &str) {
    if let [(_, first), (span, second), ..] = said {
        let message =
            format!("`{first}` and `{second}` contradict each other: {why}, expected one of them");
        reader.complain(span.clone(), message);
    }
}

/// Pairs of which one makes the other pointless.
fn contradictions(reader: &mut Reader<'_>, table: &DeTable<'_>, action: &Action) {
    let mut never = |key: &str, other: &str, why: &str| {
        if let Some(v) = get(table, other)
            && get(table, key).is_some()
            && v.get_ref().as_bool() != Some(false)
        {
            let message = format!("`{other}` beside `{key}` makes no sense: {why}");
            reader.complain(v.span(), message);
        }
    };
    if action.hold.is_some() {
        never(
            "hold",
            "order",
            "a planned order keeps requests back itself (`order.limit` bounds it)",
        );
    }
    if action.hang {
        let why =
            "a request that hangs never completes; only a stopping ring ends it, with its `status`";
        for other in [
            "delay",
            "hold",
            "order",
            "store",
            "used_len",
            "disconnect",
            "gone",
            "cut",
        ] {
            never("hang", other, why);
        }
        for other in [
            "torn",
            "corrupt",
            "drop",
            "misdirect",
            "stale",
            "drop_flush",
            "late_flush",
        ] {
            never("hang", other, why);
        }
    }
    if action.status.is_some() {
        for other in ["drop", "drop_flush"] {
            never(
                "status",
                other,
                "an error stores nothing anyway, unless `store = true` says so",
            );
        }
        never(
            "status",
            "stale",
            "a guest does not look at the data of a failed read",
        );
        never(
            "status",
            "late_flush",
            "a guest does not rely on a failed flush",
        );
        if action.device == Some(DeviceFault::Gone) {
            never("gone", "status", "a device that is gone gives IOERR");
        }
    }
    match action.device {
        Some(DeviceFault::Cut) => {
            for other in ["status", "used_len"] {
                never("cut", other, "nothing completes after a power cut");
            }
        }
        Some(DeviceFault::Disconnect { lose: true }) => {
            for other in ["status", "used_len"] {
                never("disconnect", other, "what is lost is never completed");
            }
        }
        _ => {}
    }
    if action.store && action.status.is_none() {
        let why = "without an error the I/O is done anyway";
        if let Some(v) = get(table, "store") {
            reader.complain(
                v.span(),
                format!("`store` without `status` makes no sense: {why}"),
            );
        }
    }
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
    let hint = match text {
        "eio" | "EIO" | "error" | "io" | "IOERR" => Some("did you mean `ioerr`?".to_owned()),
        _ => super::diagnosis::meant(text, &["ioerr", "unsupp"])
            .map(|w| format!("did you mean `{w}`?")),
    };
    reader.complain_meant(value.span(), message, hint);
    None
}

fn success() -> String {
    format!("status 0 is success, which a request gets without a rule, expected {A_STATUS}")
}

fn delay(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Delay> {
    let DeValue::Table(table) = value.get_ref() else {
        let fixed = reader.time("delay", value)?;
        return Some(Delay {
            min: fixed,
            max: fixed,
            per_kib: 0,
        });
    };
    reader.only(table, DELAY);
    let has = |key| get(table, key).is_some();
    let complete = match (has("fixed"), has("min"), has("max")) {
        (true, false, false) | (false, true, true) => true,
        (false, false, false) => has("per_kib"),
        _ => false,
    };
    if !complete {
        reader.complain(
            value.span(),
            "`delay` is not clear, expected `fixed`, or `min` and `max`, or `per_kib`",
        );
        return None;
    }
    let fixed = reader.time_of(table, "fixed");
    let min = reader.time_of(table, "min").or(fixed);
    let max = reader.time_of(table, "max").or(fixed);
    let per_kib = reader.time_of(table, "per_kib");
    let found = Delay {
        min: min.unwrap_or(0),
        max: max.unwrap_or(0),
        per_kib: per_kib.unwrap_or(0),
    };
    if found.min > found.max {
        reader.complain(
            value.span(),
            "`delay` is impossible: `min` is more than `max`",
        );
    }
    Some(found)
}

fn hold(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<HoldFor> {
    let DeValue::Table(table) = value.get_ref() else {
        return reader.boolean("hold", value)?.then(HoldFor::default);
    };
    one_at_least(reader, "hold", value, table, HOLD)?;
    Some(HoldFor {
        limit: reader.time_of(table, "limit"),
        until: get(table, "until").and_then(|v| after(reader, "until", v)),
    })
}

fn order(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Order> {
    let table = reader.table(
        "order",
        value,
        "a table such as `{ group = 3, permutation = [2, 0, 1] }`",
    )?;
    reader.only(table, ORDER);
    let Some(v) = get(table, "group") else {
        reader.complain(
            value.span(),
            "`group` is missing, expected how many requests are put in order",
        );
        return None;
    };
    let group = reader.integer("group", v, 2..=256, "an integer from 2 to 256")?;
    let group = u32::try_from(group).ok()?;
    let by = match (get(table, "permutation"), get(table, "index")) {
        (Some(v), None) => permutation(reader, v, group)?,
        (None, Some(v)) => {
            let Some(all) = factorial(group) else {
                reader.complain(v.span(), too_many(group));
                return None;
            };
            let expected = format!("0 to {}: there are {all} orders of {group}", all - 1);
            Permutation::Index(reader.integer("index", v, 0..=all - 1, &expected)?)
        }
        (Some(_), Some(v)) => {
            reader.complain(v.span(), "`permutation` and `index` contradict each other: each is an order, expected one of them");
            return None;
        }
        (None, None) => {
            reader.complain(
                value.span(),
                "`order` says no order, expected `permutation` or `index`",
            );
            return None;
        }
    };
    let limit = reader.time_of(table, "limit");
    Some(Order { group, by, limit })
}

fn too_many(group: u32) -> String {
    format!(
        "the orders of {group} requests are too many to be numbered, expected a `group` of at most 20"
    )
}

fn permutation(reader: &mut Reader<'_>, value: &Value<'_>, group: u32) -> Option<Permutation> {
    let DeValue::Array(list) = value.get_ref() else {
        let orders = [
            Permutation::Reverse,
            Permutation::Offset,
            Permutation::Seeded,
            Permutation::All,
        ];
        let known: Vec<_> = PERMUTATIONS.iter().copied().zip(0..orders.len()).collect();
        let found = orders
            .get(reader.word("permutation", value, &known)?)?
            .clone();
        if found == Permutation::All && factorial(group).is_none() {
            reader.complain(value.span(), too_many(group));
            return None;
        }
        return Some(found);
    };
    let last = u64::from(group) - 1;
    let mut arrivals = Vec::new();
    for v in list.iter() {
        let n = reader.integer(
            "permutation",
            v,
            0..=last,
            &format!("arrivals from 0 to {last}"),
        )?;
        arrivals.push(u32::try_from(n).ok()?);
    }
    let mut sorted = arrivals.clone();
    sorted.sort_unstable();
    if !sorted.into_iter().eq(0..group) {
        let message =
            format!("`permutation` is none of {group} requests, expected each of 0 to {last} once");
        reader.complain(value.span(), message);
        return None;
    }
    Some(Permutation::Turns(turns_of(&arrivals)))
}

fn disconnect(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<DeviceFault> {
    let example = "`disconnect = { inflight = \"keep\" }`";
    let table = reader.table("disconnect", value, example)?;
    reader.only(table, DISCONNECT);
    let Some(v) = get(table, "inflight") else {
        let message = format!(
            "`inflight` is missing, expected {example}, or `\"lose\"`, which hangs a guest for ever"
        );
        reader.complain(value.span(), message);
        return None;
    };
    reader
        .word("inflight", v, &[("keep", false), ("lose", true)])
        .map(|lose| DeviceFault::Disconnect { lose })
}

fn device_key(fault: DeviceFault) -> &'static str {
    match fault {
        DeviceFault::Disconnect { .. } => "disconnect",
        DeviceFault::Gone => "gone",
        DeviceFault::Cut => "cut",
    }
}
