// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scenario: settings of the device and rules, from one file or several.

use std::collections::HashMap;
use std::ops::Range;

use super::contract::Changes;
use super::diagnosis::{Problem, ScenarioError};
use super::launch::Launch;
use super::rule::Rule;
use super::shape::Shape;
use crate::verify::contract::Contract;

/// Problems of a merge that are kept: finding the line of each costs a walk through a file.
const MAX_PROBLEMS: usize = 200;

/// A scenario. [`Scenario::default`] changes nothing and has no rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    /// Its name; of a merged one the names, joined by `+`.
    pub name: Option<String>,
    /// What it is about.
    pub about: Option<String>,
    /// Settings of the device.
    pub device: Device,
    /// The rules, in the order in which they are tried.
    pub rules: Vec<Rule>,
    /// What `wtblk run` runs with it.
    pub launch: Launch,
    pub(super) contract: Changes,
    pub(super) state: Option<Set<String>>,
    pub(super) sources: Vec<Source>,
}

/// A file that a scenario was read from, as it was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file's name, as it was given.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// Settings of the device, as far as the scenario speaks of them. Whoever uses
/// them knows what beats what: options, then the scenario, then the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Device {
    pub(super) queues: Option<Set<u16>>,
    pub(super) read_only: Option<Set<bool>>,
    pub(super) write_cache: Option<Set<bool>>,
    pub(super) logical_block: Option<Set<u32>>,
    pub(super) queue_size: Option<Set<u16>>,
    pub(super) physical_block: Option<Set<u32>>,
    pub(super) alignment_offset: Option<Set<u32>>,
    pub(super) min_io: Option<Set<u32>>,
    pub(super) opt_io: Option<Set<u32>>,
    pub(super) size_max: Option<Set<u32>>,
    pub(super) seg_max: Option<Set<u32>>,
    pub(super) discard: Option<Set<bool>>,
    pub(super) serial: Option<Set<String>>,
    pub(super) on_stop: Option<Set<OnStop>>,
    pub(super) size: Option<Set<u64>>,
}

/// A setting and where it was set.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Set<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

/// A place in one of the sources.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Place {
    pub(super) source: usize,
    pub(super) span: Range<usize>,
}

impl Place {
    /// A place in the only source.
    pub(super) fn here(span: Range<usize>) -> Place {
        Place { source: 0, span }
    }
}

/// What becomes of held requests when their ring stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnStop {
    /// They complete with the status that was planned for them.
    Complete,
    /// They are dropped: the guest never hears of them.
    Abandon,
}

impl Device {
    /// Number of queues, 1 to 64.
    pub fn queues(&self) -> Option<u16> {
        self.queues.as_ref().map(|s| s.value)
    }

    /// The guest may not write.
    pub fn read_only(&self) -> Option<bool> {
        self.read_only.as_ref().map(|s| s.value)
    }

    /// The device has a volatile write cache (write-back). Default: true.
    pub fn write_cache(&self) -> Option<bool> {
        self.write_cache.as_ref().map(|s| s.value)
    }

    /// Logical block size in bytes: 512 or 4096.
    pub fn logical_block(&self) -> Option<u32> {
        self.logical_block.as_ref().map(|s| s.value)
    }

    /// All that it says of what the disk is like to its driver.
    pub fn shape(&self) -> Shape {
        fn value<T: Clone>(set: &Option<Set<T>>) -> Option<T> {
            set.as_ref().map(|s| s.value.clone())
        }
        Shape {
            queues: self.queues(),
            queue_size: value(&self.queue_size),
            read_only: self.read_only(),
            write_cache: self.write_cache(),
            logical_block: self.logical_block(),
            physical_block: value(&self.physical_block),
            alignment_offset: value(&self.alignment_offset),
            min_io: value(&self.min_io),
            opt_io: value(&self.opt_io),
            size_max: value(&self.size_max),
            seg_max: value(&self.seg_max),
            discard: value(&self.discard),
            serial: value(&self.serial),
        }
    }

    /// Where a key was set.
    pub(super) fn place(&self, key: &str) -> Option<&Place> {
        fn place<T>(set: &Option<Set<T>>) -> Option<&Place> {
            set.as_ref().map(|s| &s.place)
        }
        match key {
            "queues" => place(&self.queues),
            "queue_size" => place(&self.queue_size),
            "logical_block" => place(&self.logical_block),
            "physical_block" => place(&self.physical_block),
            "alignment_offset" => place(&self.alignment_offset),
            "min_io" => place(&self.min_io),
            "opt_io" => place(&self.opt_io),
            "size_max" => place(&self.size_max),
            "seg_max" => place(&self.seg_max),
            "discard" => place(&self.discard),
            "serial" => place(&self.serial),
            _ => None,
        }
    }

    /// What becomes of held requests when their ring stops. Default: complete.
    pub fn on_stop(&self) -> Option<OnStop> {
        self.on_stop.as_ref().map(|s| s.value)
    }

    /// Size of the disk in bytes, a multiple of the logical block.
    pub fn size(&self) -> Option<u64> {
        self.size.as_ref().map(|s| s.value)
    }
}

impl Scenario {
    /// Reads a scenario file; `file` is the name that messages give it.
    pub fn parse(file: &str, text: &str) -> Result<Scenario, ScenarioError> {
        super::parse::parse(file, text)
    }

    /// The state that the rules begin in. Default: `start`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_ref().map(|s| s.value.as_str())
    }

    /// What the kernel promises: the set that ships, adjusted.
    pub fn contract(&self) -> Contract {
        self.contract.applied()
    }

    /// Whether it says anything of it.
    pub fn has_contract(&self) -> bool {
        self.contract != Changes::default()
    }

    /// The files that it was read from.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Name and file of each rule.
    pub fn rule_files(&self) -> Vec<(String, String)> {
        let file = |rule: &Rule| self.sources.get(rule.place.source).map(|s| s.file.clone());
        self.rules
            .iter()
            .map(|rule| (rule.name.clone(), file(rule).unwrap_or_default()))
            .collect()
    }

    /// The text of its file; of several files, with a comment before each.
    pub fn to_text(&self) -> String {
        match self.sources.as_slice() {
            [one] => one.text.clone(),
            many => many
                .iter()
                .map(|s| format!("# --- {} ---\n{}\n", s.file.escape_debug(), s.text))
                .collect(),
        }
    }

    /// One scenario out of several: the rules one after the other. A setting that
    /// two files give differently, or a name that two different rules have, is refused.
    pub fn merge(scenarios: Vec<Scenario>) -> Result<Scenario, ScenarioError> {
        let mut merged = Scenario::default();
        let mut problems = Vec::new();
        let mut names: HashMap<String, Place> = HashMap::new();
        for scenario in scenarios {
            let shift = merged.sources.len();
            merged.sources.extend(scenario.sources);
            join(&mut merged.name, scenario.name, " + ");
            join(&mut merged.about, scenario.about, "\n");
            let mut merge = Merge {
                shift,
                sources: &merged.sources,
                problems: &mut problems,
            };
            let (into, from) = (&mut merged.device, scenario.device);
            merge.setting("queues", &mut into.queues, from.queues);
            merge.setting("read_only", &mut into.read_only, from.read_only);
            merge.setting("write_cache", &mut into.write_cache, from.write_cache);
            merge.setting("logical_block", &mut into.logical_block, from.logical_block);
            merge.setting("queue_size", &mut into.queue_size, from.queue_size);
            merge.setting(
                "physical_block",
                &mut into.physical_block,
                from.physical_block,
            );
            merge.setting(
                "alignment_offset",
                &mut into.alignment_offset,
                from.alignment_offset,
            );
            merge.setting("min_io", &mut into.min_io, from.min_io);
            merge.setting("opt_io", &mut into.opt_io, from.opt_io);
            merge.setting("size_max", &mut into.size_max, from.size_max);
            merge.setting("seg_max", &mut into.seg_max, from.seg_max);
            merge.setting("discard", &mut into.discard, from.discard);
            merge.setting("serial", &mut into.serial, from.serial);
            merge.setting("on_stop", &mut into.on_stop, from.on_stop);
            merge.setting("size", &mut into.size, from.size);
            merge.setting("state", &mut merged.state, scenario.state);
            merged.launch.join(scenario.launch, &mut merge);
            merged.contract.join(scenario.contract, &mut merge);
            for mut rule in scenario.rules {
                rule.place.source += shift;
                match names.get(&rule.name) {
                    Some(first) if same(&merged.rules, &rule, first) => {}
                    Some(_) if merge.problems.len() >= MAX_PROBLEMS => {}
                    Some(first) => {
                        let message = format!(
                            "a rule named `{}` is also in {}, expected names that no two rules share",
                            rule.name,
                            merge.locate(first)
                        );
                        merge.complain(&rule.place, message);
                    }
                    None => {
                        names.insert(rule.name.clone(), rule.place.clone());
                        merged.rules.push(rule);
                    }
                }
            }
        }
        super::parse::check_whole(&merged, &mut problems);
        if problems.is_empty() {
            Ok(merged)
        } else {
            Err(ScenarioError::new(problems))
        }
    }

    /// A problem at a place of this scenario.
    pub(super) fn problem(&self, place: &Place, message: String) -> Problem {
        problem(&self.sources, place, message)
    }
}

/// Whether the rule of this place is the very same: then it is said twice and meant once.
fn same(rules: &[Rule], rule: &Rule, first: &Place) -> bool {
    let mut twin = rule.clone();
    twin.place = first.clone();
    rules.contains(&twin)
}

fn join(into: &mut Option<String>, from: Option<String>, between: &str) {
    if let Some(from) = from {
        match into {
            Some(text) => {
                text.push_str(between);
                text.push_str(&from);
            }
            None => *into = Some(from),
        }
    }
}

fn problem(sources: &[Source], place: &Place, message: String) -> Problem {
    match sources.get(place.source) {
        Some(source) => Problem::new(&source.file, &source.text, place.span.clone(), message),
        // A scenario that was put together by hand has no file.
        None => Problem::new("scenario", "", 0..0, message),
    }
}

/// Settings of one file that go into those of the files before.
pub(super) struct Merge<'a> {
    /// What its own source numbers grow by.
    shift: usize,
    sources: &'a [Source],
    problems: &'a mut Vec<Problem>,
}

impl Merge<'_> {
    /// A setting that both may give, if they agree.
    pub(super) fn setting<T: PartialEq>(
        &mut self,
        key: &str,
        into: &mut Option<Set<T>>,
        from: Option<Set<T>>,
    ) {
        let Some(mut from) = from else { return };
        from.place.source += self.shift;
        match into {
            Some(first) if first.value != from.value => {
                let message = format!(
                    "`{key}` is set otherwise in {}, expected files that agree",
                    self.locate(&first.place)
                );
                self.complain(&from.place, message);
            }
            Some(_) => {}
            None => *into = Some(from),
        }
    }

    fn locate(&self, place: &Place) -> String {
        let p = problem(self.sources, place, String::new());
        format!("{}:{}:{}", p.file, p.line, p.column)
    }

    fn complain(&mut self, place: &Place, message: String) {
        let problem = problem(self.sources, place, message);
        self.problems.push(problem);
    }
}
