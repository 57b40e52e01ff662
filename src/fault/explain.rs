// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scenario in plain words: what each rule will do, and when.

use std::fmt::Write as _;

use super::action::{Action, DataAction, Delay, Misdirect, Order, Permutation, Torn};
use super::parse_when::CHANCES;
use super::request::DeviceFault;
use super::rule::{After, CallIs, Class, Count, Per, Rule, SectorRange, TestIs, Trigger};
use super::scenario::Scenario;
use crate::trace::event::Op;
use crate::verify::contract::Contract;

/// Each rule in plain words, and what it falls back to for an allocating call.
pub fn explain(scenario: &Scenario) -> String {
    let mut text = String::new();
    if scenario.rules.is_empty() {
        text.push_str("There is no rule: every request is done as asked.\n");
    }
    let contract = scenario.contract();
    if contract != Contract::default() {
        let _ = writeln!(
            text,
            "The kernel is judged by the contract {}.\n",
            contract.name
        );
    }
    for (n, rule) in scenario.rules.iter().enumerate() {
        if n > 0 {
            text.push('\n');
        }
        text.push_str(&explain_rule(rule));
    }
    for state in unreached(scenario) {
        let _ = writeln!(
            text,
            "\nNo rule moves to the state `{state}`: only an order from outside does."
        );
    }
    text
}

fn explain_rule(rule: &Rule) -> String {
    let mut text = format!("{}: when {}", rule.name, trigger(&rule.when));
    if let Some(test) = &rule.test {
        let _ = write!(text, ", while the test {test} runs");
    }
    if let Some(disk) = &rule.disk {
        let _ = write!(text, ", on the disk {disk}");
    }
    text.push_str(":\n");
    let mut steps = actions(&rule.action);
    if steps.is_empty() {
        steps.push("the request is done as asked".into());
    }
    if let Some(state) = &rule.goto {
        steps.push(format!("the rules move to the state `{state}`"));
    }
    for step in steps {
        let _ = writeln!(text, "  - {step};");
    }
    let times = match rule.times {
        Some(1) => "once".to_owned(),
        Some(n) => format!("at most {n} times"),
        None => "every time".to_owned(),
    };
    let _ = writeln!(text, "  {times}, unless a rule before it fires.");
    if let Some(data) = &rule.action.data {
        let _ = writeln!(text, "  It passes over what is not {}.", data.suits_what());
    }
    for note in allocating(&rule.when) {
        let _ = writeln!(text, "  {note}");
    }
    for note in warnings(&rule.action) {
        let _ = writeln!(text, "  Mind: {note}");
    }
    text
}

/// What becomes of triggers that speak of places which an allocating call has not got yet.
fn allocating(when: &Trigger) -> Vec<String> {
    let mut notes = Vec::new();
    when.has(&mut |t| {
        let note = match t {
            Trigger::NthInCall { op, n } => format!(
                "In an allocating call (blocks without a place at its begin) it falls back to the {} {} that carries the call's tag, log writes and zeroing included.",
                nth(*n),
                op.map_or("request", op_name)
            ),
            Trigger::File(_) => "In an allocating call (blocks without a place at its begin) it falls back to counting: its tagged requests are taken to come in ascending file order, each behind the one before.".to_owned(),
            Trigger::Call(CallIs::Data) => "In an allocating call (blocks without a place at its begin) every request with the call's tag is taken for its data.".to_owned(),
            Trigger::Class(Class::Data) => "Blocks that an allocating call gets are `other` until its end mark tells them.".to_owned(),
            _ => return false,
        };
        if !notes.contains(&note) {
            notes.push(note);
        }
        false
    });
    notes
}

fn warnings(action: &Action) -> Vec<&'static str> {
    let mut list = Vec::new();
    if action.hang {
        list.push("virtio-blk of Linux has no time-out: the guest waits until the ring stops.");
    }
    if action.device == Some(DeviceFault::Disconnect { lose: true }) {
        list.push("requests that are lost hang a guest for ever: nothing ever completes them.");
    }
    if let Some(hold) = &action.hold
        && hold.limit.is_none()
    {
        list.push("nothing but a release (or the stop of the ring) ends the hold for sure; `limit` would.");
    }
    if let Some(order) = &action.order
        && order.limit.is_none()
    {
        list.push("a group that never gets complete waits for a release; `limit` would end that.");
    }
    list
}

fn unreached(scenario: &Scenario) -> Vec<String> {
    let start = scenario.state().unwrap_or("start");
    let mut found: Vec<String> = Vec::new();
    for rule in &scenario.rules {
        rule.when.has(&mut |t| {
            if let Trigger::State(s) = t
                && s != start
                && !found.contains(s)
                && scenario.rules.iter().all(|r| r.goto.as_ref() != Some(s))
            {
                found.push(s.clone());
            }
            false
        });
    }
    found
}

fn trigger(t: &Trigger) -> String {
    match t {
        Trigger::All(list) => joined(list, " and ", "any request comes"),
        Trigger::Any(list) => format!("({})", joined(list, " or ", "never")),
        Trigger::Not(inner) => format!("not ({})", trigger(inner)),
        Trigger::Op(op) => format!("it is a {}", op_name(*op)),
        Trigger::Class(Class::Log) => "it touches a file system's log".into(),
        Trigger::Class(Class::Data) => "it touches data of a marked file".into(),
        Trigger::Class(Class::Other) => "it touches neither a log nor data of a marked file".into(),
        Trigger::Lba(range) => format!("it touches {}", sectors(range)),
        Trigger::File(f) => {
            let file = match f.ino {
                Some(ino) => format!("the file with inode {ino}"),
                None => "the file of its call".into(),
            };
            if f.len == u64::MAX {
                format!("it is data of {file}")
            } else {
                let last = f.start.saturating_add(f.len - 1);
                format!("it touches bytes {} to {last} of {file}", f.start)
            }
        }
        Trigger::Size { min, max } => format!("it has {} bytes", between(*min, *max)),
        Trigger::NthInCall { op, n } => format!(
            "it is the {} {} of its call's data",
            nth(*n),
            op.map_or("request", op_name)
        ),
        Trigger::Count(count) => counted(*count),
        Trigger::Chance(wins) => format!(
            "dice of the seed say so ({} % of such requests)",
            *wins as f64 / CHANCES as f64 * 100.0
        ),
        Trigger::Call(is) => match is {
            CallIs::Some => "it is of a marked call".into(),
            CallIs::None => "it is of no marked call".into(),
            CallIs::Number(n) => format!("it is of call {n}"),
            CallIs::Data => "it is data of a marked call".into(),
            CallIs::Side => "it is of a marked call, but not its data".into(),
        },
        Trigger::Test(is) => match is {
            TestIs::Some => "a test runs".into(),
            TestIs::None => "no test runs".into(),
            TestIs::Named(name) => format!("the test {name} runs"),
        },
        Trigger::Flags(flags) => format!("its call is {}", flags.join(" and ")),
        Trigger::State(state) => format!("the rules are in the state `{state}`"),
        Trigger::InFlight { min, max } => {
            format!("{} requests are in flight", between(*min, *max))
        }
        Trigger::After(event) => format!("{} since the rule was armed", after(event)),
        Trigger::Elapsed { since, ns } => {
            format!("{} have passed since the last note \"{since}\"", time(*ns))
        }
    }
}

fn joined(list: &[Trigger], with: &str, empty: &str) -> String {
    if list.is_empty() {
        return empty.into();
    }
    list.iter().map(trigger).collect::<Vec<_>>().join(with)
}

fn counted(count: Count) -> String {
    let of = match count.per {
        Per::Rule => "since the rule was armed",
        Per::Call => "in its call",
        Per::Test => "in the test",
    };
    if count.every {
        format!("it is every {} such request {of}", nth(count.n))
    } else {
        format!("it is the {} such request {of}", nth(count.n))
    }
}

fn after(event: &After) -> String {
    let times = |n: &u64| match n {
        1 => String::new(),
        n => format!(" {n} times"),
    };
    match event {
        After::Mark { text, count } => format!("the note \"{text}\" has come{}", times(count)),
        After::Flush(n) => format!("{n} flushes have succeeded"),
        After::Rule { name, count } => format!("the rule {name} has fired{}", times(count)),
        After::Completions(n) => format!("{n} requests were completed"),
    }
}

fn actions(action: &Action) -> Vec<String> {
    let mut steps = Vec::new();
    if let Some(Delay { min, max, per_kib }) = action.delay {
        let mut text = if min == max {
            format!("it waits {}", time(min))
        } else {
            format!("it waits {} to {}, by the seed", time(min), time(max))
        };
        if per_kib > 0 {
            let _ = write!(text, ", and {} for each KiB", time(per_kib));
        }
        steps.push(text);
    }
    if let Some(hold) = &action.hold {
        let mut text = "it is kept back until the rule is released".to_owned();
        if let Some(until) = &hold.until {
            let _ = write!(text, ", or {} since it was kept back", after(until));
        }
        if let Some(limit) = hold.limit {
            let _ = write!(text, ", at most {}", time(limit));
        }
        steps.push(text);
    }
    steps.extend(action.order.as_ref().map(order));
    if action.hang {
        steps.push("it never completes".into());
    }
    steps.extend(action.data.as_ref().map(data));
    if let Some(status) = action.status {
        let stored = action.store || action.data.is_some();
        let io = if stored {
            "after the I/O is done all the same"
        } else {
            "and nothing is stored or read"
        };
        steps.push(format!("it completes with {status}, {io}"));
    }
    if let Some(len) = action.used_len {
        steps.push(format!(
            "it reports a used length of {len} bytes, whatever it was"
        ));
    }
    steps.extend(action.device.map(|device| match device {
        DeviceFault::Disconnect { lose: false } => {
            "the device completes what is in flight and closes the connection".to_owned()
        }
        DeviceFault::Disconnect { lose: true } => {
            "the device closes the connection and forgets what is in flight".to_owned()
        }
        DeviceFault::Gone => "it and every later request fails with IOERR".to_owned(),
        DeviceFault::Cut => {
            "the power is cut: nothing completes, the image is frozen as it is".to_owned()
        }
    }));
    steps
}

fn order(order: &Order) -> String {
    let by = match &order.by {
        Permutation::Turns(turns) => {
            let list: Vec<String> = turns.iter().map(u32::to_string).collect();
            format!(
                "by turns: the first to come has turn {}",
                list.join(", the next ")
            )
        }
        Permutation::Reverse => "the last to come first".into(),
        Permutation::Offset => {
            "by ascending offset in the file (on the disk, where no call is known)".into()
        }
        Permutation::Seeded => "in an order of the seed".into(),
        Permutation::Index(n) => format!("in order number {n} of all {}! orders", order.group),
        Permutation::All => format!("each group in the next of all {}! orders", order.group),
    };
    let limit = order.limit.map_or(String::new(), |ns| {
        format!("; a group goes incomplete after {}", time(ns))
    });
    format!(
        "groups of {} are kept back and complete {by}{limit}",
        order.group
    )
}

fn data(action: &DataAction) -> String {
    match action {
        DataAction::Torn(Torn::First(k)) => format!("only its first {k} sectors are stored"),
        DataAction::Torn(Torn::Last(k)) => format!("only its last {k} sectors are stored"),
        DataAction::Torn(Torn::Sectors(list)) => {
            let list: Vec<_> = list.iter().map(|(at, n)| format!("{at}+{n}")).collect();
            format!(
                "only its sectors {} (counted from its first) are stored",
                list.join(", ")
            )
        }
        DataAction::Corrupt {
            bits,
            offset: Some(at),
        } => {
            format!("{bits} bits from its byte {at} on are flipped")
        }
        DataAction::Corrupt { bits, offset: None } => {
            format!("{bits} bits of it, chosen by the seed, are flipped")
        }
        DataAction::Drop => "it is acknowledged and not stored".into(),
        DataAction::Misdirect(Misdirect::By(by)) => {
            format!(
                "it goes {} sectors {}",
                by.unsigned_abs(),
                if *by < 0 { "back" } else { "further on" }
            )
        }
        DataAction::Misdirect(Misdirect::To(to)) => format!("it goes to sector {to}"),
        DataAction::Stale(ranges) => {
            let list: Vec<_> = ranges.iter().map(sectors).collect();
            format!(
                "a read within {} gives what was there before the last write",
                list.join(", ")
            )
        }
        DataAction::DropFlush => "the flush is acknowledged and not done".into(),
        DataAction::LateFlush(n) => {
            format!("the flush leaves out the last {n} writes that it should cover")
        }
    }
}

fn sectors(range: &SectorRange) -> String {
    format!("sectors {}+{}", range.start, range.len)
}

fn between(min: u64, max: u64) -> String {
    match (min, max) {
        (min, max) if min == max => min.to_string(),
        (min, u64::MAX) => format!("at least {min}"),
        (0, max) => format!("at most {max}"),
        (min, max) => format!("{min} to {max}"),
    }
}

fn time(ns: u64) -> String {
    for (unit, length) in [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)] {
        if ns >= length && ns.is_multiple_of(length) {
            return format!("{} {unit}", ns / length);
        }
    }
    format!("{ns} ns")
}

fn nth(n: u64) -> String {
    let end = match (n % 10, n % 100) {
        (_, 11..=13) => "th",
        (1, _) => "st",
        (2, _) => "nd",
        (3, _) => "rd",
        _ => "th",
    };
    format!("{n}{end}")
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Read => "read",
        Op::Write => "write",
        Op::Flush => "flush",
        Op::GetId => "get-id",
        Op::Discard => "discard",
        Op::WriteZeroes => "write-zeroes",
        Op::Other => "request of another kind",
    }
}
