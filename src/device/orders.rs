// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Orders to the device at run time, from wherever they come: the mark disk
//! and the control socket do the same.

use std::time::Instant;

use wtblk_shared::mark::{Control, Mark};

use super::command::{ANSWER_LIMIT, Command, Pending, WorkerHandle};
use super::hub::Hub;
use super::worker::Flight;
use crate::control::{CacheStanding, GroupStanding, Standing, WaitFor};
use crate::trace::event::{DATA_DISK, DeviceKind};

/// Lets go what the rule (`None`: any rule) holds; how many requests.
pub(super) fn release(hub: &Hub, rule: Option<&str>) -> u64 {
    let ask = |w: &WorkerHandle| w.post(|tell| Command::Release(rule.map(Into::into), tell));
    let count = hub.release_groups(rule) + sum(hub, ask);
    let rule = rule.unwrap_or("*");
    hub.event(DATA_DISK, 0, DeviceKind::Release, count, 0, rule);
    count
}

/// Lets go one request; whether it was held.
pub(super) fn release_one(hub: &Hub, request: u64) -> bool {
    let ask = |w: &WorkerHandle| w.post(|tell| Command::ReleaseOne(request, tell));
    let count = sum(hub, ask);
    if count > 0 {
        hub.event(DATA_DISK, 0, DeviceKind::Release, count, request, "");
    }
    count > 0
}

/// What is in flight on all queues.
pub(super) fn list(hub: &Hub) -> Vec<Flight> {
    let ask = |w: &WorkerHandle| w.post(Command::List);
    ask_all(hub, "list", ask).into_iter().flatten().collect()
}

fn sum(hub: &Hub, ask: impl Fn(&WorkerHandle) -> Pending<u64>) -> u64 {
    ask_all(hub, "release", ask).into_iter().sum()
}

/// Asks every worker, then waits: one limit for all.
fn ask_all<T>(hub: &Hub, what: &str, ask: impl Fn(&WorkerHandle) -> Pending<T>) -> Vec<T> {
    let until = Instant::now() + ANSWER_LIMIT;
    let asked: Vec<_> = hub.workers().iter().map(ask).collect();
    let mut answers = Vec::new();
    for pending in asked {
        match pending.wait(until) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                let text = format!("{what}: {error}");
                hub.event(DATA_DISK, 0, DeviceKind::Limit, 0, 0, &text);
            }
        }
    }
    answers
}

/// What an order names, where the scenario has no such thing.
pub(super) fn unknown(hub: &Hub, mark: &Mark) -> Option<String> {
    let Mark::Control(control) = mark else {
        return None;
    };
    match control {
        Control::Release(Some(rule))
        | Control::Arm(Some(rule))
        | Control::Disarm(Some(rule))
        | Control::WaitFired(rule, _) => {
            (!hub.knows(rule)).then(|| format!("no rule is named '{rule}'"))
        }
        Control::SetState(state) | Control::WaitState(state) => (!hub.knows_state(state))
            .then(|| format!("no rule speaks of a state '{}'", state.escape_debug())),
        _ => None,
    }
}

/// Whether what a wait is for is so.
pub(super) fn is_so(hub: &Hub, what: &WaitFor) -> bool {
    match what {
        WaitFor::Held(held) => hub.held() >= *held,
        WaitFor::State(state) => hub.state() == *state,
        WaitFor::Fired(rule, fired) => hub
            .rules()
            .iter()
            .any(|r| r.name == *rule && r.fired >= *fired),
    }
}

/// What a wait is for, in the event that it makes.
pub(super) fn wait_text(what: &WaitFor) -> String {
    match what {
        WaitFor::Held(held) => format!("held>={held}"),
        WaitFor::State(state) => format!("state={state}"),
        WaitFor::Fired(rule, fired) => format!("{rule} fired>={fired}"),
    }
}

/// How things stand.
pub(super) fn standing(hub: &Hub) -> Standing {
    let groups = hub.groups.waiting().into_iter().map(|g| GroupStanding {
        rule: g.rule,
        waiting: g.waiting as u64,
        size: g.size,
    });
    // What concerns a disk is told of the disk under test.
    let disk = hub.disks().first();
    let cache = disk.and_then(|d| d.cache.as_ref()).map(|cache| {
        let account = cache.account();
        CacheStanding {
            completed: account.completed,
            volatile: account.volatile,
            spilled: account.spilled,
            bytes: account.bytes,
            frozen: account.frozen,
        }
    });
    Standing {
        device: disk.map_or("ok", |d| d.outage.word()).to_owned(),
        state: hub.state(),
        held: hub.held(),
        hung: hub.hung(),
        inflight: hub.in_flight(),
        rules: hub.rules(),
        groups: groups.collect(),
        cache,
    }
}

/// The line of the state page, without its newline.
pub(super) fn state_page(hub: &Hub, seq: u64, wait: &str) -> String {
    let now = standing(hub);
    let word = |text: &str| text.replace(' ', "%20");
    let rules = now.rules.iter();
    let rules = rules.map(|r| format!("{}:{}:{}", word(&r.name), r.fired, r.held));
    let groups = now.groups.iter();
    let groups = groups.map(|g| format!("{}:{}/{}", word(&g.rule), g.waiting, g.size));
    format!(
        "wtblk/1 state seq={seq} device={} state={} groups={} hung={} held={} inflight={} wait={wait} rules={}",
        now.device,
        word(&now.state),
        groups.collect::<Vec<_>>().join(","),
        now.hung,
        now.held,
        now.inflight,
        rules.collect::<Vec<_>>().join(","),
    )
}
