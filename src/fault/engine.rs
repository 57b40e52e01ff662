// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The engine: asked about every request in turn, told every mark and every
//! completion. Same rules, same seed, same story: same decisions, always.

use wtblk_shared::mark::{CallBegin, Control, Mark};

use super::action::{DataAction, Permutation};
use super::calls::sectors;
use super::eval::{Asked, Asker, Event, Names, Note, World};
use super::index::{OpMask, Shelf, Shelves, in_test, op_mask, place};
use super::places::Places;
use super::plan::{Circumstances, plan};
use super::request::{Decision, Request};
use super::rule::{Class, SectorRange, Trigger};
use super::rule_state::{RuleState, RuleView, arm, keeps_back, ready};
use super::scenario::Scenario;
use super::ticks::{Group, Turn};
use crate::trace::event::{DATA_DISK, Op, Status};

/// The rules of a scenario and what has become of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    rules: Vec<RuleState>,
    /// By kind of request.
    shelves: Vec<Shelves>,
    groups: Vec<Group>,
    world: World,
    places: Places,
    states: Vec<String>,
    flags: Vec<String>,
    per_test: Vec<usize>,
    /// Rules with `until` that hold something, and the count from which they wait.
    waiting: Vec<(usize, u64)>,
    /// The disk that it is about.
    disk: u8,
    /// The rules' numbers in the scenario.
    numbers: Vec<u16>,
    releases: Vec<String>,
    /// What is asked about a request; kept for its room.
    asked: Vec<u32>,
    needs: Needs,
    seed: u64,
}

/// What the rules ask for that costs something.
#[derive(Clone, Debug, PartialEq)]
struct Needs {
    calls: bool,
    file: bool,
    class: bool,
}

impl Engine {
    /// The engine of a scenario for the disk under test. All rules are armed.
    pub fn new(scenario: &Scenario, seed: u64) -> Engine {
        Engine::of_disk(scenario, seed, DATA_DISK, None)
    }

    /// That of the rules of one disk, by its number in events and its name (`None`: the disk
    /// under test). Each disk's rules have counters and a state of their own.
    pub fn of_disk(scenario: &Scenario, seed: u64, disk: u8, name: Option<&str>) -> Engine {
        let ours = || {
            let rules = (0u16..).zip(&scenario.rules);
            rules.filter(|(_, rule)| rule.disk.as_deref() == name)
        };
        let mut names = Names {
            states: vec![scenario.state().unwrap_or("start").to_owned()],
            rules: ours().map(|(_, r)| r.name.clone()).collect(),
            ..Names::default()
        };
        let mut groups: Vec<Group> = Vec::new();
        let mut rules: Vec<RuleState> = Vec::with_capacity(scenario.rules.len());
        for (_, rule) in ours() {
            rules.push(ready(rule, &mut names, &mut groups, seed));
        }
        let any =
            |is: &dyn Fn(&Trigger) -> bool| rules.iter().any(|r| r.rule.when.has(&mut |t| is(t)));
        let by_offset = |r: &RuleState| {
            r.rule
                .action
                .order
                .as_ref()
                .is_some_and(|o| o.by == Permutation::Offset)
        };
        let file = any(&|t| matches!(t, Trigger::File(_))) || rules.iter().any(by_offset);
        let mut engine = Engine {
            needs: Needs {
                calls: file || rules.iter().any(|r| r.rule.when.needs_calls()),
                file,
                class: any(&|t| matches!(t, Trigger::Class(_))),
            },
            world: World {
                notes: names.notes.into_iter().map(Note::new).collect(),
                fired: vec![0; rules.len()],
                slots: vec![0; names.slots],
                ..World::default()
            },
            rules,
            disk,
            numbers: ours().map(|(number, _)| number).collect(),
            shelves: Vec::new(),
            groups,
            places: Places::default(),
            states: names.states,
            flags: names.flags,
            per_test: names.per_test,
            waiting: Vec::new(),
            releases: Vec::new(),
            asked: Vec::new(),
            seed,
        };
        engine.sort();
        engine
    }

    /// The same engine, but every rule is asked about every request (but one that is nothing but
    /// dice: it throws its dice another way): slow, and obviously right. Tests compare with it.
    #[doc(hidden)]
    pub fn asking_all(scenario: &Scenario, seed: u64) -> Engine {
        let mut engine = Engine::new(scenario, seed);
        for state in &mut engine.rules {
            if !matches!(state.shelf, Shelf::Tick(Turn::Dice(_))) {
                state.shelf = Shelf::General;
                state.group = None;
            }
        }
        engine.sort();
        engine
    }

    /// There is no rule: `decide` need not be asked.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The rules and their counters, in file order.
    pub fn rules(&self) -> Vec<RuleView<'_>> {
        let view = |state| self.view(state);
        self.rules.iter().map(view).collect()
    }

    fn view<'e>(&self, state: &'e RuleState) -> RuleView<'e> {
        let seen = match state.shelf {
            Shelf::Pure => state.counted + self.counting(state),
            _ => state.seen,
        };
        RuleView {
            rule: &state.rule,
            seen,
            fired: state.fired,
            armed: state.armed,
            released: state.released,
            in_test: state.in_test,
        }
    }

    /// What a rule that only counts has counted since `base`.
    fn counting(&self, state: &RuleState) -> u64 {
        let group = state.group.filter(|_| state.counting);
        group
            .and_then(|g| self.groups.get(g))
            .map_or(0, |g| g.total.saturating_sub(state.base))
    }

    /// Whether a rule has this name: an order to another one is a mistake of the guest.
    pub fn knows(&self, name: &str) -> bool {
        self.rules.iter().any(|r| r.rule.name == name)
    }

    /// The seed of all dice.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Calls under way that the engine lost sight of: there were too many, or
    /// another call took their tag.
    pub fn calls_dropped(&self) -> u64 {
        self.world.calls.dropped()
    }

    /// What is to be done with the request. The first rule that can fire wins;
    /// every rule counts the requests that it is about.
    pub fn decide(&mut self, request: &Request, now_ns: u64) -> Option<Decision> {
        if self.rules.is_empty() || request.disk != self.disk {
            return None;
        }
        let sectors = sectors(request);
        let call = if self.needs.calls {
            let log = self.places.is_log(&sectors);
            self.world.calls.count(request, self.needs.file, log)
        } else {
            None
        };
        let class = if self.needs.class {
            self.places.class(&sectors)
        } else {
            Class::Other
        };
        let asked = Asked {
            request,
            sectors,
            call,
            class,
            now_ns,
        };
        let winner = self.winner(&asked);
        winner.and_then(|rule| self.fire(rule, &asked))
    }

    /// Asks the rules that may be about the request.
    fn winner(&mut self, asked: &Asked<'_>) -> Option<u32> {
        let mut list = std::mem::take(&mut self.asked);
        list.clear();
        let op = asked.request.op;
        let mut winner: Option<u32> = None;
        for group in self.groups.iter_mut().filter(|g| g.ops.has(op)) {
            group.tick(&mut list);
            let fits = |rule: &&u32| {
                let state = self.rules.get(**rule as usize);
                state.is_some_and(|s| s.can_fire(asked))
            };
            let first = group.ready.iter().find(fits).copied();
            winner = earlier(winner, first);
        }
        for &rule in &list {
            if let Some(state) = self.rules.get_mut(rule as usize) {
                state.seen += 1;
                if state.can_fire(asked) {
                    winner = earlier(winner, Some(rule));
                }
            }
        }
        list.clear();
        if let Some(shelves) = self.shelves.get(place(op)) {
            shelves.ask(asked, &self.world, &mut list);
        }
        for &rule in &list {
            let Some(state) = self.rules.get_mut(rule as usize) else {
                continue;
            };
            let by = Asker {
                dice: state.dice,
                generation: state.generation,
            };
            if state.node.holds(&mut self.world, asked, by, true) {
                state.seen += 1;
                if state.can_fire(asked) {
                    winner = earlier(winner, Some(rule));
                }
            }
        }
        self.asked = list;
        winner
    }

    fn fire(&mut self, rule: u32, asked: &Asked<'_>) -> Option<Decision> {
        let index = rule as usize;
        let state = self.rules.get_mut(index)?;
        let plan = plan(
            &state.rule.action,
            asked.request,
            &Circumstances {
                dice: state.dice,
                fired: state.fired,
                groups_before: state.groups_before,
                released: state.released,
                file_offset: asked
                    .call
                    .as_ref()
                    .and_then(|c| c.file.iter().map(|r| r.start).min()),
            },
        );
        state.fired += 1;
        if let Some(fired) = self.world.fired.get_mut(index) {
            *fired += 1;
        }
        if let Some(goto) = state.goto {
            self.world.state = goto;
        }
        let decision = Decision {
            // The parser refuses scenarios with so many rules.
            rule: self.numbers.get(index).copied().unwrap_or(u16::MAX),
            name: state.rule.name.clone(),
            plan,
        };
        let until = state.until.filter(|_| decision.plan.hold.is_some());
        self.refresh(index);
        self.happened(Event::Rule(index));
        if let Some((event, _)) = until
            && self.waiting.iter().all(|(waiting, _)| *waiting != index)
        {
            self.waiting.push((index, self.world.count(event)));
        }
        Some(decision)
    }

    /// Takes note of a mark.
    pub fn mark(&mut self, mark: &Mark, now_ns: u64) {
        match mark {
            Mark::Boot => {
                self.world.calls.clear();
                self.places = Places::default();
                self.enter_test(None);
            }
            Mark::TestBegin { name } => self.enter_test(Some(name)),
            Mark::TestEnd { name } => {
                if self.world.test.as_ref() == Some(name) {
                    self.world.test = None;
                }
                for state in &mut self.rules {
                    if state.rule.test.as_ref() == Some(name) {
                        state.in_test = false;
                    }
                }
                self.sort();
            }
            Mark::Fs {
                log_start, log_len, ..
            } if self.needs.class || self.needs.calls => self.places.log(*log_start, *log_len),
            Mark::Begin(begin) => self.begin(begin),
            Mark::End(end) => {
                if self.needs.calls {
                    self.world.calls.end(end.call);
                }
                if let (true, Some(extents)) = (self.needs.class, &end.extents) {
                    self.places.file(extents);
                }
            }
            Mark::Note { text } => {
                let notes = &mut self.world.notes;
                let Some(place) = notes.iter().position(|n| n.text == *text) else {
                    return;
                };
                if let Some(note) = notes.get_mut(place) {
                    let last = (note.count > 0).then_some(note.last_ns);
                    note.count += 1;
                    note.last_ns = now_ns;
                    for shelves in &mut self.shelves {
                        shelves.waiting.noted(place, last, now_ns);
                    }
                }
                self.happened(Event::Note(place));
            }
            Mark::Control(control) => self.control(control),
            _ => {}
        }
    }

    fn begin(&mut self, begin: &CallBegin) {
        if self.needs.calls {
            let has = |flag: &String| begin.flags.contains(flag);
            let bits = self.flags.iter().take(64).enumerate();
            let flags = bits
                .filter(|(_, flag)| has(flag))
                .fold(0, |mask, (bit, _)| mask | 1u64 << bit);
            self.world.calls.begin(begin, flags, self.needs.file);
        }
        if let (true, Some(extents)) = (self.needs.class, &begin.extents) {
            self.places.file(extents);
        }
    }

    /// A request was completed with this status: told before the guest can see it.
    pub fn completed(&mut self, request: &Request, status: Status) {
        if request.disk != self.disk {
            return;
        }
        self.world.completions += 1;
        self.happened(Event::Completions);
        if request.op == Op::Flush && status.is_ok() {
            self.world.flushes += 1;
            self.happened(Event::Flush);
        }
    }

    /// Rules whose held requests are to be let go now, because the event that their
    /// `until` names has come. To be asked after every `decide`, `mark` and
    /// `completed`; each is told once. The rule goes on to hold what comes later.
    pub fn take_releases(&mut self) -> Vec<String> {
        std::mem::take(&mut self.releases)
    }

    /// Something was counted: perhaps a rule waited for it.
    fn happened(&mut self, event: Event) {
        let count = self.world.count(event);
        for shelves in &mut self.shelves {
            shelves.waiting.happened(event, count);
        }
        let (rules, world, releases) = (&self.rules, &self.world, &mut self.releases);
        self.waiting.retain(|(index, base)| {
            let Some((rule, (event, n))) = rules.get(*index).and_then(|r| Some((r, r.until?)))
            else {
                return false;
            };
            let over = world.count(event).saturating_sub(*base) >= n;
            if over && !releases.contains(&rule.rule.name) {
                releases.push(rule.rule.name.clone());
            }
            !over
        });
    }

    /// Ranges whose content before the last write is to be kept, for stale reads:
    /// sorted, not overlapping, 16 MiB at most in all.
    pub fn kept_ranges(&self) -> Vec<SectorRange> {
        let mut all: Vec<SectorRange> = Vec::new();
        for state in &self.rules {
            if let Some(DataAction::Stale(ranges)) = &state.rule.action.data {
                all.extend(ranges);
            }
        }
        all.sort_by_key(|r| r.start);
        super::parse_data::joined(&all)
    }

    /// The named state that the rules are in.
    pub fn state(&self) -> &str {
        let state = self.states.get(self.world.state as usize);
        state.map_or("start", String::as_str)
    }

    /// All states that the scenario speaks of.
    pub fn states(&self) -> &[String] {
        &self.states
    }

    /// Moves to a state; false where no rule speaks of it: then it is not a state.
    pub fn set_state(&mut self, state: &str) -> bool {
        match self.states.iter().position(|s| s == state) {
            Some(n) => {
                self.world.state = n as u32;
                true
            }
            None => false,
        }
    }

    /// Tests run one after the other: the begin of one is the end of any other.
    fn enter_test(&mut self, test: Option<&String>) {
        self.world.test = test.cloned();
        for slot in &self.per_test {
            if let Some(count) = self.world.slots.get_mut(*slot) {
                *count = 0;
            }
        }
        for state in &mut self.rules {
            state.in_test = state.rule.test.is_none() || state.rule.test.as_ref() == test;
        }
        self.sort();
    }

    fn control(&mut self, control: &Control) {
        if let Control::SetState(state) = control {
            // A state that no rule speaks of is the asker's to refuse.
            self.set_state(state);
        }
        let (Control::Release(which) | Control::Arm(which) | Control::Disarm(which)) = control
        else {
            return;
        };
        for index in 0..self.rules.len() {
            let Some(state) = self.rules.get_mut(index) else {
                continue;
            };
            if which.as_ref().is_some_and(|name| *name != state.rule.name) {
                continue;
            }
            match control {
                Control::Release(_) => {
                    state.released = keeps_back(&state.rule.action);
                    self.waiting.retain(|(waiting, _)| *waiting != index);
                }
                Control::Arm(_) => arm(state, &mut self.world),
                _ => state.armed = false,
            }
        }
        self.sort();
    }

    /// Puts the rules whose test is under way on their shelves. Only marks make it necessary.
    fn sort(&mut self) {
        for index in 0..self.rules.len() {
            let Some(state) = self.rules.get(index) else {
                continue;
            };
            let more = self.counting(state);
            let total = state
                .group
                .and_then(|g| self.groups.get(g))
                .map_or(0, |g| g.total);
            if let Some(state) = self.rules.get_mut(index) {
                state.counted = state.counted.saturating_add(more);
                state.base = total;
                state.counting = state.in_test;
            }
        }
        for group in &mut self.groups {
            group.clear();
        }
        for (index, state) in (0u32..).zip(&self.rules) {
            let group = state.group.and_then(|g| self.groups.get_mut(g));
            if let (Some(group), Shelf::Tick(turn), true) = (group, &state.shelf, state.in_test) {
                group.wait(index, *turn, state.dice, state.counted);
            }
        }
        for index in 0..self.rules.len() {
            self.refresh(index);
        }
        let number = |name: &str| {
            let n = self.states.iter().position(|s| s == name);
            n.map_or(u32::MAX, |n| n as u32)
        };
        self.shelves = OpMask::ALL
            .ops()
            .map(|op| {
                let test = self.world.test.as_ref();
                let about = |s: &RuleState| {
                    s.in_test && op_mask(&s.rule.when).has(op) && in_test(&s.rule.when, test)
                };
                let rules = (0u32..).zip(&self.rules).filter(|(_, s)| about(s));
                Shelves::new(rules.map(|(n, s)| (n, &s.shelf)), number, &self.world)
            })
            .collect();
    }

    /// A rule about every request of its kinds may be able to fire now, or no more.
    fn refresh(&mut self, index: usize) {
        let Some(state) = self.rules.get(index) else {
            return;
        };
        if let (Shelf::Pure, Some(group)) = (
            &state.shelf,
            state.group.and_then(|g| self.groups.get_mut(g)),
        ) {
            let rule = index as u32;
            if state.in_test && state.is_ready() {
                group.ready.insert(rule);
            } else {
                group.ready.remove(&rule);
            }
        }
    }
}

fn earlier(one: Option<u32>, other: Option<u32>) -> Option<u32> {
    one.into_iter().chain(other).min()
}
