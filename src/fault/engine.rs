// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The engine: asked about every request in turn, told every mark. Same rules,
//! same seed, same requests and marks: same decisions, always.

use wtblk_shared::mark::{Control, Mark};

use super::calls::{Calls, Position, sectors};
use super::request::{Decision, Hold, Plan, Request};
use super::scenario::{Rule, Scenario, SectorRange, Trigger};
use crate::trace::event::{DATA_DISK, Status};

/// The rules of a scenario and what has become of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    rules: Vec<RuleState>,
    calls: Calls,
    needs_calls: bool,
    seed: u64,
}

/// A rule and its counters.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleState {
    /// The rule.
    pub rule: Rule,
    /// Requests it is about, whether it fired or not.
    pub seen: u64,
    /// Requests it fired on.
    pub fired: u64,
    /// It may fire (until `times` is used up).
    pub armed: bool,
    /// It was released: it holds nothing.
    pub released: bool,
    /// Its test is under way, or it is of no test.
    in_test: bool,
}

impl Engine {
    /// The engine of a scenario. All rules are armed.
    pub fn new(scenario: &Scenario, seed: u64) -> Engine {
        let rules: Vec<RuleState> = scenario
            .rules
            .iter()
            .map(|rule| RuleState {
                rule: rule.clone(),
                seen: 0,
                fired: 0,
                armed: true,
                released: false,
                in_test: rule.test.is_none(),
            })
            .collect();
        Engine {
            needs_calls: rules.iter().any(|r| r.rule.when.needs_calls()),
            rules,
            calls: Calls::default(),
            seed,
        }
    }

    /// There is no rule: `decide` need not be asked.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules and their counters, in file order.
    pub fn rules(&self) -> &[RuleState] {
        &self.rules
    }

    /// Whether a rule has this name: an order to another one is a mistake of the guest.
    pub fn knows(&self, name: &str) -> bool {
        self.rules.iter().any(|r| r.rule.name == name)
    }

    /// The seed; no trigger of today throws dice.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Calls under way that the engine lost sight of: there were too many, or
    /// another call took their tag.
    pub fn calls_dropped(&self) -> u64 {
        self.calls.dropped()
    }

    /// What is to be done with the request. The first rule that can fire wins;
    /// every rule counts the requests that it is about. `_now_ns` is for
    /// triggers that speak of time; there are none yet.
    pub fn decide(&mut self, request: &Request, _now_ns: u64) -> Option<Decision> {
        if self.rules.is_empty() || request.disk != DATA_DISK {
            return None;
        }
        let position = if self.needs_calls {
            self.calls.count(request)
        } else {
            None
        };
        let mut decision = None;
        for (index, state) in self.rules.iter_mut().enumerate() {
            if !state.in_test || !matches(&state.rule.when, request, position) {
                continue;
            }
            state.seen += 1;
            if decision.is_none() && state.can_fire() {
                state.fired += 1;
                decision = Some(Decision {
                    // The parser refuses scenarios with so many rules.
                    rule: u16::try_from(index).unwrap_or(u16::MAX),
                    name: state.rule.name.clone(),
                    plan: Plan {
                        hold: state.holds().then(Hold::default),
                        status: state.rule.action.status,
                        ..Plan::default()
                    },
                });
            }
        }
        decision
    }

    /// Takes note of a mark.
    pub fn mark(&mut self, mark: &Mark, _now_ns: u64) {
        match mark {
            Mark::Boot => {
                self.calls.clear();
                self.enter_test(None);
            }
            Mark::TestBegin { name } => self.enter_test(Some(name)),
            Mark::TestEnd { name } => {
                for state in &mut self.rules {
                    if state.rule.test.as_ref() == Some(name) {
                        state.in_test = false;
                    }
                }
            }
            Mark::Begin(begin) if self.needs_calls => self.calls.begin(begin),
            Mark::End(end) if self.needs_calls => self.calls.end(end.call),
            Mark::Control(control) => self.control(control),
            _ => {}
        }
    }

    /// A request was completed with this status (before the guest can see it).
    pub fn completed(&mut self, _request: &Request, _status: Status) {}

    /// Rules whose held requests are to be let go now, because the event that their
    /// `until` names has come. To be asked after every `decide`, `mark` and
    /// `completed`; each is told once. The rule goes on to hold what comes later.
    pub fn take_releases(&mut self) -> Vec<String> {
        Vec::new()
    }

    /// Ranges whose content before the last write is to be kept, for stale reads:
    /// sorted, not overlapping, 16 MiB at most in all.
    pub fn kept_ranges(&self) -> Vec<SectorRange> {
        Vec::new()
    }

    /// The named state that the rules are in.
    pub fn state(&self) -> &str {
        "start"
    }

    /// Moves to a state; false where no rule speaks of it: then it is not a state.
    pub fn set_state(&mut self, _state: &str) -> bool {
        false
    }

    /// Tests run one after the other: the begin of one is the end of any other.
    fn enter_test(&mut self, test: Option<&String>) {
        for state in &mut self.rules {
            state.in_test = state.rule.test.is_none() || state.rule.test.as_ref() == test;
        }
    }

    fn control(&mut self, control: &Control) {
        let named = |rule: &Option<String>, state: &RuleState| {
            rule.as_ref().is_none_or(|name| *name == state.rule.name)
        };
        for state in &mut self.rules {
            match control {
                Control::Release(rule) if named(rule, state) => {
                    state.released = state.rule.action.hold;
                }
                Control::Arm(rule) if named(rule, state) => {
                    state.armed = true;
                    state.released = false;
                    state.seen = 0;
                    state.fired = 0;
                }
                Control::Disarm(rule) if named(rule, state) => state.armed = false,
                _ => {}
            }
        }
    }
}

impl RuleState {
    /// It keeps requests back, now.
    pub fn holds(&self) -> bool {
        self.rule.action.hold && !self.released
    }

    /// A rule that would do nothing does not stand in the way of those after it.
    fn can_fire(&self) -> bool {
        self.armed
            && self.rule.times.is_none_or(|times| self.fired < times)
            && (self.holds() || self.rule.action.status.is_some())
    }
}

fn matches(trigger: &Trigger, request: &Request, position: Option<Position>) -> bool {
    match trigger {
        Trigger::All(list) => list.iter().all(|t| matches(t, request, position)),
        Trigger::Op(op) => request.op == *op,
        Trigger::Lba(range) => touches(*range, request),
        Trigger::NthInCall { op: Some(op), n } => {
            request.op == *op && position.is_some_and(|p| p.of_kind == *n)
        }
        Trigger::NthInCall { op: None, n } => position.is_some_and(|p| p.of_all == *n),
    }
}

fn touches(range: SectorRange, request: &Request) -> bool {
    let sectors = sectors(request);
    !sectors.is_empty()
        && sectors.start < range.start.saturating_add(range.len)
        && range.start < sectors.end
}
