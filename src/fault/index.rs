// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which rules need to be asked about a request: a thousand rules must not cost
//! a thousand questions. Each rule lies in one place, by the narrowest thing
//! that must hold for it; rules that only count requests of a kind are not asked
//! at all before their turn comes.

use std::collections::HashMap;

use super::eval::{Asked, Node, World};
use super::intervals::Intervals;
use super::rule::{CallIs, Class, Count, Per, TestIs, Trigger};
use super::ticks::Turn;
use super::waiting::Waiting;
use crate::trace::event::Op;

const OPS: [Op; 7] = [
    Op::Read,
    Op::Write,
    Op::Flush,
    Op::GetId,
    Op::Discard,
    Op::WriteZeroes,
    Op::Other,
];

/// A set of kinds of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct OpMask(u8);

impl OpMask {
    pub(super) const ALL: OpMask = OpMask(0x7f);

    pub(super) fn of(op: Op) -> OpMask {
        OpMask(1 << place(op))
    }

    pub(super) fn has(self, op: Op) -> bool {
        self.0 >> place(op) & 1 == 1
    }

    pub(super) fn ops(self) -> impl Iterator<Item = Op> {
        OPS.into_iter().filter(move |op| self.has(*op))
    }
}

/// Number of a kind, 0 to 6.
pub(super) fn place(op: Op) -> usize {
    match op {
        Op::Read => 0,
        Op::Write => 1,
        Op::Flush => 2,
        Op::GetId => 3,
        Op::Discard => 4,
        Op::WriteZeroes => 5,
        Op::Other => 6,
    }
}

/// Kinds of requests that the trigger may let through.
pub(super) fn op_mask(trigger: &Trigger) -> OpMask {
    match trigger {
        Trigger::Op(op) => OpMask::of(*op),
        Trigger::All(list) => OpMask(list.iter().fold(OpMask::ALL.0, |m, t| m & op_mask(t).0)),
        Trigger::Any(list) => OpMask(list.iter().fold(0, |m, t| m | op_mask(t).0)),
        Trigger::Not(inner) if only_ops(inner) => OpMask(OpMask::ALL.0 & !op_mask(inner).0),
        Trigger::NthInCall { op: Some(op), .. } => OpMask::of(*op),
        _ => OpMask::ALL,
    }
}

/// Nothing but kinds: the mask says all.
fn only_ops(trigger: &Trigger) -> bool {
    match trigger {
        Trigger::Op(_) => true,
        Trigger::All(list) | Trigger::Any(list) => list.iter().all(only_ops),
        Trigger::Not(inner) => only_ops(inner),
        _ => false,
    }
}

/// The parts of a trigger of which each must hold.
pub(super) fn must_hold<'t>(trigger: &'t Trigger, into: &mut Vec<&'t Trigger>) {
    match trigger {
        Trigger::All(list) => list.iter().for_each(|t| must_hold(t, into)),
        other => into.push(other),
    }
}

/// Where a rule lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Shelf {
    /// It is about all requests of its kinds.
    Pure,
    /// It counts the requests of its kinds, and nothing else.
    Tick(Turn),
    /// It needs one of these places.
    Lba(Vec<std::ops::Range<u64>>),
    /// The n-th data request of a call, by kind or not.
    Nth(bool, u64),
    /// A request of this call.
    Number(u64),
    /// A state, by name.
    State(String),
    /// A request of some call.
    Call,
    /// Something cheap to look at first.
    First(Node),
    /// Must be asked always.
    General,
}

/// The shelf of a trigger.
pub(super) fn shelf(trigger: &Trigger) -> Shelf {
    if only_ops(trigger) {
        return Shelf::Pure;
    }
    let mut parts = Vec::new();
    must_hold(trigger, &mut parts);
    let others: Vec<_> = parts.iter().filter(|t| !only_ops(t)).collect();
    match others.as_slice() {
        [Trigger::Count(count)] if count.per == Per::Rule => {
            return Shelf::Tick(match count.every {
                true => Turn::Every(count.n.max(1)),
                false => Turn::Nth(count.n),
            });
        }
        [Trigger::Chance(wins)] => return Shelf::Tick(Turn::Dice(*wins)),
        _ => {}
    }
    let mut best = Shelf::General;
    // Beside another part that counts, one that counts must be asked about every request: what the other
    // counts does not depend on it.
    let alone = parts.iter().filter(|t| t.counts()).count() < 2;
    for part in parts.iter().filter(|t| alone || !t.counts()) {
        let found = match part {
            Trigger::Lba(r) => Shelf::Lba(std::iter::once(r.start..r.end()).collect()),
            Trigger::Any(list) => match hulls(list) {
                Some(hulls) => Shelf::Lba(hulls),
                None => continue,
            },
            Trigger::NthInCall { op, n } => Shelf::Nth(op.is_some(), *n),
            Trigger::Call(CallIs::Number(n)) => Shelf::Number(*n),
            Trigger::State(name) => Shelf::State(name.clone()),
            Trigger::Call(CallIs::Some | CallIs::Data | CallIs::Side)
            | Trigger::File(_)
            | Trigger::Flags(_)
            | Trigger::Count(Count { per: Per::Call, .. }) => Shelf::Call,
            _ => continue,
        };
        if found.narrow() < best.narrow() {
            best = found;
        }
    }
    best
}

/// A part that must hold and is cheap to look at: most rules of a crowd differ in it.
pub(super) fn first(node: &Node) -> Option<Node> {
    match node {
        Node::All { plain, .. } => plain.iter().find_map(first),
        Node::Size(..)
        | Node::InFlight(..)
        | Node::After(..)
        | Node::Class(_)
        | Node::Elapsed(..) => Some(node.clone()),
        _ => None,
    }
}

/// Whether the test under way is one that the trigger can hold in. Tests change only with
/// marks, and these sort the rules anew: a rule of another test lies on no shelf.
pub(super) fn in_test(trigger: &Trigger, test: Option<&String>) -> bool {
    match trigger {
        Trigger::All(list) => list.iter().all(|t| in_test(t, test)),
        Trigger::Test(TestIs::Some) => test.is_some(),
        Trigger::Test(TestIs::None) => test.is_none(),
        Trigger::Test(TestIs::Named(name)) => test == Some(name),
        _ => true,
    }
}

/// The places of an `any` each of whose parts needs a place.
fn hulls(list: &[Trigger]) -> Option<Vec<std::ops::Range<u64>>> {
    list.iter()
        .map(|t| {
            let mut parts = Vec::new();
            must_hold(t, &mut parts);
            parts.into_iter().find_map(|t| match t {
                Trigger::Lba(r) => Some(r.start..r.end()),
                _ => None,
            })
        })
        .collect()
}

impl Shelf {
    /// The narrower, the less.
    fn narrow(&self) -> u8 {
        match self {
            Shelf::Pure | Shelf::Tick(_) => 0,
            Shelf::Lba(_) => 1,
            Shelf::Nth(..) | Shelf::Number(_) => 2,
            Shelf::State(_) => 3,
            Shelf::Call => 4,
            Shelf::First(_) => 5,
            Shelf::General => 6,
        }
    }
}

fn class_place(class: Class) -> usize {
    match class {
        Class::Log => 0,
        Class::Data => 1,
        Class::Other => 2,
    }
}

/// The shelves of one kind of request. Counts begin anew without a new index only
/// where they are not kept here.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Shelves {
    places: Intervals,
    nth: HashMap<(bool, u64), Vec<u32>>,
    number: HashMap<u64, Vec<u32>>,
    state: HashMap<u32, Vec<u32>>,
    call: Vec<u32>,
    sizes: Intervals,
    depths: Intervals,
    class: [Vec<u32>; 3],
    pub(super) waiting: Waiting,
    general: Vec<u32>,
    /// Some rule needs one of several places: it may be found twice.
    several: bool,
}

impl Shelves {
    /// The shelves of these rules.
    pub(super) fn new<'r>(
        rules: impl Iterator<Item = (u32, &'r Shelf)>,
        state: impl Fn(&str) -> u32,
        world: &World,
    ) -> Shelves {
        let mut s = Shelves::default();
        let (mut places, mut sizes, mut depths) = (Vec::new(), Vec::new(), Vec::new());
        // Neither is ever so large that the end does not matter.
        let between = |min: u64, max: u64| min..max.saturating_add(1);
        for (rule, shelf) in rules {
            match shelf {
                Shelf::Pure | Shelf::Tick(_) => {}
                Shelf::Lba(list) => {
                    s.several |= list.len() > 1;
                    places.extend(list.iter().map(|r| (r.clone(), rule)));
                }
                Shelf::Nth(kind, n) => s.nth.entry((*kind, *n)).or_default().push(rule),
                Shelf::Number(n) => s.number.entry(*n).or_default().push(rule),
                Shelf::State(name) => s.state.entry(state(name)).or_default().push(rule),
                Shelf::Call => s.call.push(rule),
                Shelf::First(Node::Size(min, max)) => sizes.push((between(*min, *max), rule)),
                Shelf::First(Node::InFlight(min, max)) => depths.push((between(*min, *max), rule)),
                Shelf::First(Node::Class(class)) => s.class[class_place(*class)].push(rule),
                Shelf::First(Node::After(event, n, slot)) => {
                    s.waiting.event(*event, *n, *slot, rule, world);
                }
                Shelf::First(Node::Elapsed(note, ns)) => s.waiting.clock(*note, *ns, rule, world),
                Shelf::First(_) => s.general.push(rule),
                Shelf::General => s.general.push(rule),
            }
        }
        s.places = Intervals::new(places);
        s.sizes = Intervals::new(sizes);
        s.depths = Intervals::new(depths);
        s
    }

    /// Rules that may be about the request, each once.
    pub(super) fn ask(&self, asked: &Asked<'_>, world: &World, into: &mut Vec<u32>) {
        into.extend_from_slice(&self.general);
        if !asked.sectors.is_empty() {
            let first = into.len();
            self.places
                .touching(&asked.sectors, &mut |rule| into.push(rule));
            if self.several {
                // One that counts must not count twice.
                if let Some(found) = into.get_mut(first..) {
                    found.sort_unstable();
                }
                into.dedup();
            }
        }
        if let Some(list) = self.state.get(&world.state) {
            into.extend_from_slice(list);
        }
        let numbers = [
            (&self.sizes, u64::from(asked.request.bytes)),
            (&self.depths, u64::from(asked.request.inflight)),
        ];
        for (list, number) in numbers {
            list.touching(&(number..number + 1), &mut |rule| into.push(rule));
        }
        into.extend_from_slice(&self.class[class_place(asked.class)]);
        self.waiting.ask(asked.now_ns, into);
        let Some(call) = &asked.call else { return };
        into.extend_from_slice(&self.call);
        let numbered = self.number.get(&call.number);
        let position = call.position.map(|p| {
            let kind = self.nth.get(&(true, p.of_kind));
            let all = self.nth.get(&(false, p.of_all));
            [kind, all]
        });
        for list in position.into_iter().flatten().chain([numbered]).flatten() {
            into.extend_from_slice(list);
        }
    }
}
