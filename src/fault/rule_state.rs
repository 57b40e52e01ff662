// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A rule in the engine: made ready to be asked, and what has become of it.

use super::action::{Action, DataAction};
use super::dice::Dice;
use super::eval::{Asked, Event, Names, Node, World, number};
use super::index::{Shelf, first, op_mask, shelf};
use super::rule::Rule;
use super::ticks::Group;
use crate::trace::event::Op;

/// A rule and what has become of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RuleState {
    pub(super) rule: Rule,
    pub(super) node: Node,
    pub(super) shelf: Shelf,
    pub(super) dice: Dice,
    /// Its slots for `after`, with their events.
    pub(super) bases: Vec<(usize, Event)>,
    /// All its slots.
    pub(super) slots: std::ops::Range<usize>,
    pub(super) until: Option<(Event, u64)>,
    pub(super) goto: Option<u32>,
    pub(super) seen: u64,
    pub(super) fired: u64,
    pub(super) armed: bool,
    pub(super) generation: u64,
    pub(super) groups_before: u64,
    pub(super) released: bool,
    pub(super) in_test: bool,
    /// It does something even when it keeps nothing back.
    pub(super) more: bool,
    /// Its group in `groups`, where it only counts.
    pub(super) group: Option<usize>,
    /// What it counted before the group's total was `base`; it counts on while `counting`.
    pub(super) counted: u64,
    pub(super) base: u64,
    pub(super) counting: bool,
}

/// A rule and its counters, as they are now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RuleView<'e> {
    /// The rule.
    pub rule: &'e Rule,
    /// Requests that its `when` is about, whether it fired or not.
    pub seen: u64,
    /// Requests it fired on.
    pub fired: u64,
    /// It may fire (until `times` is used up).
    pub armed: bool,
    /// It was released: it keeps nothing back.
    pub released: bool,
    /// Its test is under way, or it is of no test.
    pub in_test: bool,
}

impl RuleView<'_> {
    /// It keeps requests back, now.
    pub fn holds(&self) -> bool {
        keeps_back(&self.rule.action) && !self.released
    }
}

pub(super) fn keeps_back(action: &Action) -> bool {
    action.hold.is_some() || action.order.is_some()
}

/// A rule made ready, armed, with its place among the others.
pub(super) fn ready(
    rule: &Rule,
    names: &mut Names,
    groups: &mut Vec<Group>,
    seed: u64,
) -> RuleState {
    let (slots, bases) = (names.slots, names.bases.len());
    let node = names.node(&rule.when);
    let shelf = match shelf(&rule.when) {
        Shelf::General => first(&node).map_or(Shelf::General, Shelf::First),
        narrower => narrower,
    };
    let group = matches!(shelf, Shelf::Pure | Shelf::Tick(_)).then(|| {
        let ops = op_mask(&rule.when);
        groups.iter().position(|g| g.ops == ops).unwrap_or_else(|| {
            groups.push(Group::new(ops));
            groups.len() - 1
        })
    });
    let until = rule.action.hold.as_ref().and_then(|h| h.until.as_ref());
    let goto = rule.goto.as_ref();
    let rest = Action {
        hold: None,
        order: None,
        ..rule.action.clone()
    };
    RuleState {
        dice: Dice::new(seed, &rule.name),
        until: until.map(|u| names.event(u)),
        goto: goto.map(|state| number(&mut names.states, state) as u32),
        bases: names.bases.get(bases..).unwrap_or_default().to_vec(),
        slots: slots..names.slots,
        node,
        shelf,
        group,
        seen: 0,
        fired: 0,
        armed: true,
        generation: 0,
        groups_before: 0,
        released: false,
        in_test: rule.test.is_none(),
        more: goto.is_some() || !rest.is_nothing(),
        counted: 0,
        base: 0,
        counting: false,
        rule: rule.clone(),
    }
}

/// As at the start: what it counts is 0, and what happened before does not count.
pub(super) fn arm(state: &mut RuleState, world: &mut World) {
    if let Some(order) = &state.rule.action.order {
        let begun = state.fired.div_ceil(u64::from(order.group.max(1)));
        state.groups_before += begun;
    }
    state.armed = true;
    state.released = false;
    state.seen = 0;
    state.fired = 0;
    state.generation += 1;
    state.counted = 0;
    // What was counted meanwhile goes with it.
    state.counting = false;
    for slot in state.slots.clone() {
        if let Some(count) = world.slots.get_mut(slot) {
            *count = 0;
        }
    }
    for (slot, event) in &state.bases {
        let now = world.count(*event);
        if let Some(base) = world.slots.get_mut(*slot) {
            *base = now;
        }
    }
}

impl RuleState {
    /// A rule that would do nothing does not stand in the way of those after it.
    pub(super) fn is_ready(&self) -> bool {
        self.armed
            && self.rule.times.is_none_or(|times| self.fired < times)
            && (!self.released || self.more)
    }

    /// It can fire on this request.
    pub(super) fn can_fire(&self, asked: &Asked<'_>) -> bool {
        let suits = match &self.rule.action.data {
            None => true,
            // Old content is kept of these ranges alone.
            Some(DataAction::Stale(ranges)) => {
                asked.request.op == Op::Read
                    && ranges.iter().any(|r| {
                        r.start <= asked.sectors.start
                            && asked.sectors.end <= r.end()
                            && !asked.sectors.is_empty()
                    })
            }
            Some(data) => data.suits(asked.request.op),
        };
        suits && self.is_ready()
    }
}
