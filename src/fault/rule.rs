// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A rule: when a request looks like this, do that with it.

use super::action::Action;
use super::scenario::Place;
use crate::trace::event::Op;

/// A rule of a scenario.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, unique in the scenario.
    pub name: String,
    /// It works between the marks of this test only.
    pub test: Option<String>,
    /// The disk whose requests it is about, by name; `None`: the disk under test.
    pub disk: Option<String>,
    /// Which requests.
    pub when: Trigger,
    /// What is done; nothing where the rule only moves to another state.
    pub action: Action,
    /// It fires at most so often.
    pub times: Option<u64>,
    /// The state that it moves to when it fires.
    pub goto: Option<String>,
    pub(super) place: Place,
}

/// Which requests a rule is about: a tree, as the tables of the file are nested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// All of them hold; none at all: every request.
    All(Vec<Trigger>),
    /// One of them holds, or several.
    Any(Vec<Trigger>),
    /// It does not hold.
    Not(Box<Trigger>),
    /// The request's kind.
    Op(Op),
    /// What the request's place on the disk is for.
    Class(Class),
    /// The request shares a sector with the range.
    Lba(SectorRange),
    /// It is a data request of a call and shares a byte of the file with the range.
    File(FileRange),
    /// Bytes of data, both ends included.
    Size {
        /// At least so many.
        min: u64,
        /// At most so many.
        max: u64,
    },
    /// It is the n-th data request of its call, counted from 1: among those of
    /// the kind `op`, or among all.
    NthInCall {
        /// The kind that is counted.
        op: Option<Op>,
        /// Which one.
        n: u64,
    },
    /// The n-th, or every n-th, for which everything else in the same table holds.
    Count(Count),
    /// Dice, for requests for which everything else in the same table holds:
    /// so many of 2^53 throws win.
    Chance(u64),
    /// Whether the request is of a call, and of which.
    Call(CallIs),
    /// A test is under way: this one, any (`Some(None)` has no use), or none.
    Test(TestIs),
    /// The request is of a call that has all of these flags.
    Flags(Vec<String>),
    /// The rules are in this state.
    State(String),
    /// Requests in flight, this one among them, both ends included.
    InFlight {
        /// At least so many.
        min: u64,
        /// At most so many.
        max: u64,
    },
    /// Something has happened since the rule was armed.
    After(After),
    /// So much time has passed since the last mark `note` with this text.
    Elapsed {
        /// The note's text.
        since: String,
        /// ns.
        ns: u64,
    },
}

/// What a place on the disk is for, as far as the guest's marks tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// The log of a file system that was told by the mark `fs`.
    Log,
    /// An extent of a file of a marked call.
    Data,
    /// Anything else; flushes too.
    Other,
}

/// Which call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallIs {
    /// Some call.
    Some,
    /// None.
    None,
    /// The call with this number.
    Number(u64),
    /// It is one of its call's data requests.
    Data,
    /// It is of a call, but not of its data.
    Side,
}

/// Which test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TestIs {
    /// Some test.
    Some,
    /// None.
    None,
    /// This one.
    Named(String),
}

/// `nth` and `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// Every n-th, otherwise only the n-th.
    pub every: bool,
    /// From 1.
    pub n: u64,
    /// What is counted through.
    pub per: Per,
}

/// Where a count begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Per {
    /// Only when the rule is armed again.
    Rule,
    /// With every call; requests of no call are not counted.
    Call,
    /// With every test; outside tests nothing is counted.
    Test,
}

/// Something that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum After {
    /// The mark `note` with this text, so often.
    Mark {
        /// The note's text.
        text: String,
        /// How often.
        count: u64,
    },
    /// So many flushes were completed with success.
    Flush(u64),
    /// The rule fired so often.
    Rule {
        /// The rule's name.
        name: String,
        /// How often.
        count: u64,
    },
    /// So many requests were completed, with whatever status.
    Completions(u64),
}

/// Sectors of 512 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorRange {
    /// The first.
    pub start: u64,
    /// How many, at least 1; `start + len` is at most 2^55.
    pub len: u64,
}

impl SectorRange {
    /// The sector behind the last.
    pub fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Bytes of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    /// `st_ino` of the file; `None`: the file of whatever call.
    pub ino: Option<u64>,
    /// First byte.
    pub start: u64,
    /// How many, at least 1.
    pub len: u64,
}

impl Trigger {
    /// Whether this or a part of it satisfies `is`.
    pub fn has(&self, is: &mut dyn FnMut(&Trigger) -> bool) -> bool {
        is(self)
            || match self {
                Trigger::All(list) | Trigger::Any(list) => list.iter().any(|t| t.has(is)),
                Trigger::Not(inner) => inner.has(is),
                _ => false,
            }
    }

    /// Whether it speaks of calls.
    pub fn needs_calls(&self) -> bool {
        self.has(&mut |t| {
            matches!(
                t,
                Trigger::NthInCall { .. }
                    | Trigger::File(_)
                    | Trigger::Call(_)
                    | Trigger::Flags(_)
                    | Trigger::Count(Count { per: Per::Call, .. })
            )
        })
    }

    /// Whether it counts or throws dice: then it must be asked in its turn only.
    pub fn counts(&self) -> bool {
        self.has(&mut |t| matches!(t, Trigger::Count(_) | Trigger::Chance(_)))
    }
}
