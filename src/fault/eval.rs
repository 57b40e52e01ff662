// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Triggers made ready to be asked: names are numbers, counts have their place.
//!
//! What counts (`nth`, `every`, `probability`) is asked only for requests for which everything
//! else in its table and in those around it holds: `gate` says that. It is asked
//! whatever its neighbours in an `any` say, so that no count depends on their order.

use std::ops::Range;

use super::calls::{Calls, View};
use super::dice::Dice;
use super::index::{OpMask, must_hold};
use super::request::Request;
use super::rule::{After, CallIs, Class, Count, FileRange, Per, SectorRange, TestIs, Trigger};

/// A trigger, ready.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    All {
        /// Neither these nor what is in them counts.
        plain: Vec<Node>,
        /// Something in them counts.
        nested: Vec<Node>,
        /// Counts, in their order; dice last.
        counts: Vec<Node>,
    },
    Any(Vec<Node>),
    Not(Box<Node>),
    Ops(OpMask),
    Class(Class),
    Lba(SectorRange),
    File(FileRange),
    Size(u64, u64),
    Nth(bool, u64),
    Call(CallIs),
    Test(TestIs),
    Flags(u64),
    State(u32),
    InFlight(u64, u64),
    /// What, how often, and where the number from which it counts is kept.
    After(Event, u64, usize),
    Elapsed(usize, u64),
    /// And where it is counted.
    Count(Count, usize),
    /// So many of 2^53, and where throws are counted.
    Chance(u64, usize),
}

/// A thing that can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    Note(usize),
    Flush,
    Rule(usize),
    Completions,
}

/// What rules can see of the world beside the request.
#[derive(Clone, Debug, PartialEq, Default)]
pub(super) struct World {
    pub(super) calls: Calls,
    pub(super) notes: Vec<Note>,
    pub(super) flushes: u64,
    pub(super) completions: u64,
    /// How often each rule fired, whatever became of it since.
    pub(super) fired: Vec<u64>,
    pub(super) state: u32,
    pub(super) test: Option<String>,
    /// What triggers count.
    pub(super) slots: Vec<u64>,
}

/// A text that a rule waits for as a mark `note`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Note {
    pub(super) text: String,
    pub(super) count: u64,
    pub(super) last_ns: u64,
}

impl Note {
    pub(super) fn new(text: String) -> Note {
        Note {
            text,
            count: 0,
            last_ns: 0,
        }
    }
}

impl World {
    /// How often it has happened.
    pub(super) fn count(&self, event: Event) -> u64 {
        match event {
            Event::Note(n) => self.notes.get(n).map_or(0, |n| n.count),
            Event::Flush => self.flushes,
            Event::Rule(n) => self.fired.get(n).copied().unwrap_or(0),
            Event::Completions => self.completions,
        }
    }

    pub(super) fn slot(&self, slot: usize) -> u64 {
        self.slots.get(slot).copied().unwrap_or(0)
    }

    fn add(&mut self, slot: usize) -> u64 {
        match self.slots.get_mut(slot) {
            Some(count) => {
                *count = count.saturating_add(1);
                *count
            }
            None => 0,
        }
    }
}

/// A request and what goes with it.
pub(super) struct Asked<'a> {
    pub(super) request: &'a Request,
    pub(super) sectors: Range<u64>,
    pub(super) call: Option<View>,
    pub(super) class: Class,
    pub(super) now_ns: u64,
}

/// The rule that asks.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    pub(super) dice: Dice,
    /// Counts the times that it was armed: counts of calls from before are void.
    pub(super) generation: u64,
}

impl Node {
    /// Whether it holds; `gate`: everything around it does.
    pub(super) fn holds(
        &self,
        world: &mut World,
        asked: &Asked<'_>,
        by: Asker,
        gate: bool,
    ) -> bool {
        match self {
            Node::All {
                plain,
                nested,
                counts,
            } => {
                let mut gate = gate && plain.iter().all(|n| n.is(world, asked));
                if !gate && nested.is_empty() {
                    return false;
                }
                let before = gate;
                for node in nested {
                    gate &= node.holds(world, asked, by, before);
                }
                for node in counts {
                    gate = gate && node.holds(world, asked, by, gate);
                }
                gate
            }
            Node::Any(list) => {
                let mut any = false;
                for node in list {
                    any |= node.holds(world, asked, by, gate);
                }
                gate && any
            }
            Node::Not(node) => {
                let inner = node.holds(world, asked, by, gate);
                gate && !inner
            }
            Node::Count(count, slot) => gate && counted(*count, *slot, world, asked, by),
            Node::Chance(wins, slot) => {
                gate && {
                    let throw = world.add(*slot);
                    by.dice.of(*slot as u64).throw(throw) >> 11 < *wins
                }
            }
            plain => gate && plain.is(world, asked),
        }
    }

    /// The same for what does not count.
    pub(super) fn is(&self, world: &World, asked: &Asked<'_>) -> bool {
        let request = asked.request;
        let call = asked.call.as_ref();
        match self {
            Node::All { plain, .. } => plain.iter().all(|n| n.is(world, asked)),
            Node::Any(list) => list.iter().any(|n| n.is(world, asked)),
            Node::Not(node) => !node.is(world, asked),
            Node::Ops(ops) => ops.has(request.op),
            Node::Class(class) => asked.class == *class,
            Node::Lba(range) => {
                !asked.sectors.is_empty()
                    && asked.sectors.start < range.end()
                    && range.start < asked.sectors.end
            }
            Node::File(range) => call.is_some_and(|c| {
                range.ino.is_none_or(|ino| ino == c.ino)
                    && c.file.iter().any(|bytes| {
                        bytes.start < range.start.saturating_add(range.len)
                            && range.start < bytes.end
                    })
            }),
            Node::Size(min, max) => (*min..=*max).contains(&u64::from(request.bytes)),
            Node::Nth(of_kind, n) => call
                .and_then(|c| c.position)
                .is_some_and(|p| *n == if *of_kind { p.of_kind } else { p.of_all }),
            Node::Call(is) => match is {
                CallIs::Some => call.is_some(),
                CallIs::None => call.is_none(),
                CallIs::Number(n) => call.is_some_and(|c| c.number == *n),
                CallIs::Data => call.is_some_and(|c| c.position.is_some()),
                CallIs::Side => call.is_some_and(|c| c.position.is_none()),
            },
            Node::Test(is) => match is {
                TestIs::Some => world.test.is_some(),
                TestIs::None => world.test.is_none(),
                TestIs::Named(name) => world.test.as_ref() == Some(name),
            },
            Node::Flags(mask) => call.is_some_and(|c| c.flags & mask == *mask),
            Node::State(state) => world.state == *state,
            Node::InFlight(min, max) => (*min..=*max).contains(&u64::from(request.inflight)),
            Node::After(event, n, slot) => {
                world.count(*event).saturating_sub(world.slot(*slot)) >= *n
            }
            Node::Elapsed(note, ns) => world.notes.get(*note).is_some_and(|note| {
                note.count > 0 && asked.now_ns.saturating_sub(note.last_ns) >= *ns
            }),
            Node::Count(..) | Node::Chance(..) => false,
        }
    }
}

fn counted(count: Count, slot: usize, world: &mut World, asked: &Asked<'_>, by: Asker) -> bool {
    let n = match count.per {
        Per::Rule => world.add(slot),
        Per::Test if world.test.is_none() => return false,
        Per::Test => world.add(slot),
        Per::Call => match &asked.call {
            Some(call) => world.calls.add(call.age, slot, by.generation),
            None => return false,
        },
    };
    if count.every {
        n > 0 && n.is_multiple_of(count.n)
    } else {
        n == count.n
    }
}

/// Names -> numbers while triggers are made ready.
#[derive(Default)]
pub(super) struct Names {
    pub(super) states: Vec<String>,
    pub(super) notes: Vec<String>,
    pub(super) flags: Vec<String>,
    pub(super) rules: Vec<String>,
    pub(super) slots: usize,
    /// Slots that a test begins anew.
    pub(super) per_test: Vec<usize>,
    /// Slots of `after`, each with its event.
    pub(super) bases: Vec<(usize, Event)>,
}

/// The number of a name, new or not.
pub(super) fn number(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|n| n == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

impl Names {
    pub(super) fn event(&mut self, after: &After) -> (Event, u64) {
        match after {
            After::Mark { text, count } => (Event::Note(number(&mut self.notes, text)), *count),
            After::Flush(n) => (Event::Flush, *n),
            After::Completions(n) => (Event::Completions, *n),
            After::Rule { name, count } => {
                let rule = self.rules.iter().position(|r| r == name);
                (Event::Rule(rule.unwrap_or(usize::MAX)), *count)
            }
        }
    }

    fn new_slot(&mut self) -> usize {
        self.slots += 1;
        self.slots - 1
    }

    /// Makes a trigger ready.
    pub(super) fn node(&mut self, trigger: &Trigger) -> Node {
        match trigger {
            Trigger::All(_) => {
                let (mut plain, mut nested) = (Vec::new(), Vec::new());
                let (mut counts, mut dice) = (Vec::new(), Vec::new());
                // A table of tables of which all must hold is one table: what stands in one of
                // them is around what counts in another.
                let mut parts = Vec::new();
                must_hold(trigger, &mut parts);
                for t in parts {
                    let into = match t {
                        Trigger::Count(_) => &mut counts,
                        Trigger::Chance(_) => &mut dice,
                        t if t.counts() => &mut nested,
                        _ => &mut plain,
                    };
                    into.push(self.node(t));
                }
                counts.append(&mut dice);
                Node::All {
                    plain,
                    nested,
                    counts,
                }
            }
            Trigger::Any(list) => Node::Any(list.iter().map(|t| self.node(t)).collect()),
            Trigger::Not(inner) => Node::Not(Box::new(self.node(inner))),
            Trigger::Op(op) => Node::Ops(OpMask::of(*op)),
            Trigger::Class(class) => Node::Class(*class),
            Trigger::Lba(range) => Node::Lba(*range),
            Trigger::File(range) => Node::File(*range),
            Trigger::Size { min, max } => Node::Size(*min, *max),
            Trigger::NthInCall { op: None, n } => Node::Nth(false, *n),
            Trigger::NthInCall { op: Some(op), n } => Node::All {
                plain: vec![Node::Ops(OpMask::of(*op)), Node::Nth(true, *n)],
                nested: Vec::new(),
                counts: Vec::new(),
            },
            Trigger::Count(count) => {
                let slot = self.new_slot();
                if count.per == Per::Test {
                    self.per_test.push(slot);
                }
                Node::Count(*count, slot)
            }
            Trigger::Chance(wins) => Node::Chance(*wins, self.new_slot()),
            Trigger::Call(is) => Node::Call(*is),
            Trigger::Test(is) => Node::Test(is.clone()),
            Trigger::Flags(flags) => Node::Flags(flags.iter().fold(0, |mask, flag| {
                // The parser refuses more than 64.
                mask | 1u64
                    .checked_shl(number(&mut self.flags, flag) as u32)
                    .unwrap_or(0)
            })),
            Trigger::State(state) => Node::State(number(&mut self.states, state) as u32),
            Trigger::InFlight { min, max } => Node::InFlight(*min, *max),
            Trigger::After(after) => {
                let (event, n) = self.event(after);
                let slot = self.new_slot();
                self.bases.push((slot, event));
                Node::After(event, n, slot)
            }
            Trigger::Elapsed { since, ns } => Node::Elapsed(number(&mut self.notes, since), *ns),
        }
    }
}
