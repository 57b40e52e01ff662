// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that wait for something to happen, or for time to pass since it did. They are
//! asked about no request before: a thousand that wait cost what none costs.

use std::collections::{BTreeSet, HashMap};

use super::eval::{Event, World};

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Waiting {
    /// What is waited for, with the count at which it is enough. The last comes first.
    events: HashMap<Event, Vec<(u64, u32)>>,
    /// It has happened.
    awake: Vec<u32>,
    /// The time that must pass since the last mark with a text, and whose rule it is.
    since: HashMap<usize, Vec<(u64, u32)>>,
    /// When it will have passed.
    clocks: BTreeSet<(u64, u32)>,
}

impl Waiting {
    /// The rule waits until the event has come `n` times since the count in `slot`.
    pub(super) fn event(&mut self, event: Event, n: u64, slot: usize, rule: u32, world: &World) {
        let enough = world.slot(slot).saturating_add(n);
        if world.count(event) >= enough {
            self.awake.push(rule);
            return;
        }
        let list = self.events.entry(event).or_default();
        let place = list.partition_point(|waits| *waits > (enough, rule));
        list.insert(place, (enough, rule));
    }

    /// The rule waits until so much time has passed since the last mark with the text.
    pub(super) fn clock(&mut self, note: usize, ns: u64, rule: u32, world: &World) {
        self.since.entry(note).or_default().push((ns, rule));
        if let Some(note) = world.notes.get(note).filter(|n| n.count > 0) {
            self.start(note.last_ns, ns, rule);
        }
    }

    fn start(&mut self, from: u64, ns: u64, rule: u32) {
        // What is never reached needs no clock.
        if let Some(at) = from.checked_add(ns) {
            self.clocks.insert((at, rule));
        }
    }

    /// It has happened so often by now.
    pub(super) fn happened(&mut self, event: Event, count: u64) {
        let Some(list) = self.events.get_mut(&event) else {
            return;
        };
        while let Some((enough, rule)) = list.last().copied()
            && count >= enough
        {
            self.awake.push(rule);
            list.pop();
        }
    }

    /// The mark with this text came; the one before, if any, at `last`.
    pub(super) fn noted(&mut self, note: usize, last: Option<u64>, now_ns: u64) {
        let Some(list) = self.since.remove(&note) else {
            return;
        };
        for (ns, rule) in &list {
            if let Some(at) = last.and_then(|last| last.checked_add(*ns)) {
                self.clocks.remove(&(at, *rule));
            }
            self.start(now_ns, *ns, *rule);
        }
        self.since.insert(note, list);
    }

    /// Rules for which it has happened, or the time has passed.
    pub(super) fn ask(&self, now_ns: u64, into: &mut Vec<u32>) {
        into.extend_from_slice(&self.awake);
        let passed = self.clocks.iter().take_while(|(at, _)| *at <= now_ns);
        into.extend(passed.map(|(_, rule)| *rule));
    }
}
