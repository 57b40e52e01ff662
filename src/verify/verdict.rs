// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What comes out: verdicts, findings and what was merely odd.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::contract::Contract;
use super::group::{Group, groups};
use super::promise::{self, About};
use super::story::Story;

/// Version of [`Verdicts`] as JSON.
pub const SCHEMA: u32 = 1;
/// Findings kept of one promise in one test; further ones are only counted, so
/// that a kernel that is wrong a million times does not fill the memory.
pub const MAX_FINDINGS: usize = 64;
/// Findings kept of all promises and tests; beyond them one of each promise and test.
const MAX_ALL_FINDINGS: usize = 4096;
/// Tests that are told apart.
pub const MAX_TESTS: usize = 4096;
/// The name of all further ones.
pub const FURTHER_TESTS: &str = "(further tests)";
/// Different reasons kept of one promise in one test.
const MAX_REASONS: usize = 32;
/// Why a promise is not judged: it is switched off.
const NOT_MADE: &str = "the contract does not make this promise";
/// Why none is: nobody knows what was promised.
const LOST: &str = "the contract of this trace is lost: say --contract";

/// What a finding rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// The call tag in the request's I/O priority.
    Tag,
    /// The extents of the call's begin and end.
    Extents,
    /// The marks of the call.
    Marks,
    /// Page reports (cachestat).
    Reports,
    /// State of a probe's task.
    ProbeState,
    /// The device's own table of requests in flight.
    InFlight,
    /// Digests of the requests' data.
    Digests,
    /// The pattern of the call's bytes.
    Pattern,
    /// What the guest says of its files' contents.
    Contents,
}

/// The call that a finding is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallRef {
    /// Number of the call in its boot.
    pub call: u64,
    /// `st_dev` of the file.
    pub dev: u64,
    /// `st_ino` of the file.
    pub ino: u64,
    /// Number of the open file description.
    pub open: u64,
    /// Offset in the file, bytes.
    pub off: u64,
    /// Length, bytes.
    pub len: u64,
    /// Flags, by name.
    pub flags: Vec<String>,
    /// Its tag.
    pub tag: Option<u16>,
    /// What it returned: bytes, or minus the errno; `None` where it had not ended.
    pub result: Option<i64>,
}

/// A broken promise, with its proof.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Name of the promise.
    pub promise: String,
    /// The test.
    pub test: String,
    /// The call; `None` where it is not known any more.
    pub call: Option<CallRef>,
    /// What was promised, one sentence.
    pub promised: String,
    /// What happened, with its numbers.
    pub happened: String,
    /// The same numbers for machines.
    pub details: BTreeMap<String, Value>,
    /// What it rests on.
    pub evidence: Vec<Evidence>,
    /// Sequence numbers of the events that prove it, ascending.
    pub events: Vec<u64>,
    /// The finding from near, where the events could be read a second time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub story: Option<Box<Story>>,
}

/// Verdict of one promise in one test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// It was decided at least once and held every time.
    Held {
        /// How often it was decided.
        decisions: u64,
    },
    /// It was broken.
    Broken {
        /// The findings, at most [`MAX_FINDINGS`].
        findings: Vec<Finding>,
        /// How many more there were.
        more: u64,
    },
    /// It was never decided.
    NotChecked {
        /// Why, and how often.
        reasons: BTreeMap<String, u64>,
    },
}

/// One promise in one test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromiseVerdict {
    /// Name of the promise.
    pub promise: String,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Decisions that held, beside a broken one too.
    pub held: u64,
    /// Cases that could not be decided, by reason, beside decided ones too.
    pub not_checked: BTreeMap<String, u64>,
    /// Odd but legal, by what.
    pub observations: BTreeMap<String, u64>,
}

/// All promises in one test.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TestVerdicts {
    /// Name of the test.
    pub test: String,
    /// One entry per promise, always all of them, always in the same order.
    pub promises: Vec<PromiseVerdict>,
    /// The findings by what is taken to be their cause.
    #[serde(default)]
    pub groups: Vec<Group>,
}

/// The verdicts on a trace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdicts {
    /// Version of this structure.
    pub schema: u32,
    /// Name of the contract.
    pub contract: String,
    /// What is other than in the set of that name.
    #[serde(default)]
    pub contract_adjusted: Vec<String>,
    /// Why the contract of the trace is not known: no promise was checked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract_lost: Option<String>,
    /// Calls with the flag that began and that the promises are about, of all boots.
    #[serde(default)]
    pub calls: u64,
    /// By test, in the order of their first appearance.
    pub tests: Vec<TestVerdicts>,
    /// Odd things that belong to no promise, by what.
    pub observations: BTreeMap<String, u64>,
}

impl Verdicts {
    /// All findings.
    pub fn findings(&self) -> impl Iterator<Item = &Finding> {
        self.promises().flat_map(|p| match &p.verdict {
            Verdict::Broken { findings, .. } => findings.as_slice(),
            _ => &[],
        })
    }

    /// All findings, to be added to.
    pub fn findings_mut(&mut self) -> impl Iterator<Item = &mut Finding> {
        let promises = self.tests.iter_mut().flat_map(|t| &mut t.promises);
        promises.flat_map(|p| match &mut p.verdict {
            Verdict::Broken { findings, .. } => findings.as_mut_slice(),
            _ => &mut [],
        })
    }

    /// The verdict of `promise` in `test`.
    pub fn get(&self, test: &str, promise: &str) -> Option<&PromiseVerdict> {
        let test = self.tests.iter().find(|t| t.test == test)?;
        test.promises.iter().find(|p| p.promise == promise)
    }

    /// Exit status: 1 a finding, 0 something was decided and held, 3 nothing was decided.
    pub fn status(&self) -> u8 {
        if self
            .promises()
            .any(|p| matches!(p.verdict, Verdict::Broken { .. }))
        {
            1
        } else if self
            .promises()
            .any(|p| matches!(p.verdict, Verdict::Held { .. }))
        {
            0
        } else {
            3
        }
    }

    fn promises(&self) -> impl Iterator<Item = &PromiseVerdict> {
        self.tests.iter().flat_map(|t| &t.promises)
    }
}

/// Tally of one promise in one test.
#[derive(Clone, Debug, Default)]
struct Tally {
    held: u64,
    findings: Vec<Finding>,
    more: u64,
    not_checked: BTreeMap<String, u64>,
    observations: BTreeMap<String, u64>,
}

/// Where promises write down what they decided.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// Of each promise, why it is not judged at all.
    off: Vec<Option<&'static str>>,
    contract: String,
    contract_adjusted: Vec<String>,
    contract_lost: Option<&'static str>,
    names: Vec<String>,
    rows: HashMap<String, usize>,
    /// The row that was asked for last: mostly it is asked for again.
    last: usize,
    findings: usize,
    calls: u64,
    tallies: Vec<Vec<Tally>>,
    loose: BTreeMap<String, u64>,
}

impl Ledger {
    pub(super) fn new(contract: &Contract) -> Ledger {
        Ledger {
            off: promise::ABOUT
                .iter()
                .map(|a| contract.off.contains(a.name).then_some(NOT_MADE))
                .collect(),
            contract: contract.name.clone(),
            contract_adjusted: contract.adjusted(),
            contract_lost: None,
            names: Vec::new(),
            rows: HashMap::new(),
            last: 0,
            findings: 0,
            calls: 0,
            tallies: Vec::new(),
            loose: BTreeMap::new(),
        }
    }

    /// Of a trace whose contract is not known: nothing is judged.
    pub(super) fn without_contract(why: &'static str) -> Ledger {
        Ledger {
            off: vec![Some(LOST); promise::ABOUT.len()],
            contract: "unknown".to_owned(),
            contract_lost: Some(why),
            ..Ledger::new(&Contract::default())
        }
    }

    /// A test exists, even if nothing in it can be judged.
    pub(super) fn test(&mut self, test: &str) -> usize {
        if self.names.get(self.last).is_some_and(|name| name == test) {
            return self.last;
        }
        if let Some(row) = self.rows.get(test) {
            self.last = *row;
            return *row;
        }
        let name = match self.names.len() {
            0..MAX_TESTS => test,
            MAX_TESTS => FURTHER_TESTS,
            _ => return MAX_TESTS,
        };
        self.rows.insert(name.to_owned(), self.names.len());
        self.names.push(name.to_owned());
        self.tallies
            .push(vec![Tally::default(); promise::ABOUT.len()]);
        self.names.len() - 1
    }

    fn tally(&mut self, test: &str, about: &About) -> Option<&mut Tally> {
        let row = self.test(test);
        let place =
            |is: fn(&About, &About) -> bool| promise::ABOUT.iter().position(|a| is(a, about));
        // There is one of each; only a copy of one must be looked for by its name.
        let column = place(|a, b| std::ptr::eq(a, b)).or_else(|| place(|a, b| a.name == b.name))?;
        if self.off.get(column).copied().flatten().is_some() {
            return None;
        }
        self.tallies.get_mut(row)?.get_mut(column)
    }

    pub(super) fn held(&mut self, test: &str, about: &About) {
        if let Some(t) = self.tally(test, about) {
            t.held += 1;
        }
    }

    pub(super) fn broken(&mut self, about: &About, finding: Finding) {
        let test = finding.test.clone();
        let most = if self.findings < MAX_ALL_FINDINGS {
            MAX_FINDINGS
        } else {
            1
        };
        if let Some(t) = self.tally(&test, about) {
            if t.findings.len() < most {
                t.findings.push(finding);
                self.findings += 1;
            } else {
                t.more += 1;
            }
        }
    }

    pub(super) fn not_checked(&mut self, test: &str, about: &About, reason: &str) {
        if let Some(t) = self.tally(test, about) {
            count(&mut t.not_checked, reason);
        }
    }

    pub(super) fn observe(&mut self, test: &str, about: &About, what: &str) {
        if let Some(t) = self.tally(test, about) {
            count(&mut t.observations, what);
        }
    }

    /// A call that the promises are about has begun.
    pub(super) fn call(&mut self) {
        self.calls += 1;
    }

    /// An observation that belongs to no promise.
    pub(super) fn loose(&mut self, what: &str) {
        count(&mut self.loose, what);
    }

    pub(super) fn into_verdicts(self) -> Verdicts {
        let off = self.off;
        let tests = self.names.into_iter().zip(self.tallies);
        Verdicts {
            schema: SCHEMA,
            contract: self.contract,
            contract_adjusted: self.contract_adjusted,
            contract_lost: self.contract_lost.map(str::to_owned),
            calls: self.calls,
            tests: tests
                .map(|(test, row)| TestVerdicts {
                    groups: Vec::new(),
                    test,
                    promises: row
                        .into_iter()
                        .zip(promise::ABOUT)
                        .zip(&off)
                        .map(|((tally, about), off)| tally.into_verdict(about.name, *off))
                        .collect(),
                })
                .map(|test| TestVerdicts {
                    groups: groups(&test),
                    ..test
                })
                .collect(),
            observations: self.loose,
        }
    }
}

impl Tally {
    fn into_verdict(self, promise: &str, off: Option<&str>) -> PromiseVerdict {
        let verdict = if !self.findings.is_empty() {
            Verdict::Broken {
                findings: self.findings,
                more: self.more,
            }
        } else if self.held > 0 {
            Verdict::Held {
                decisions: self.held,
            }
        } else {
            let mut reasons = self.not_checked.clone();
            if let Some(why) = off {
                count(&mut reasons, why);
            } else if reasons.is_empty() {
                count(&mut reasons, "nothing to judge was seen");
            }
            Verdict::NotChecked { reasons }
        };
        PromiseVerdict {
            promise: promise.to_owned(),
            verdict,
            held: self.held,
            not_checked: self.not_checked,
            observations: self.observations,
        }
    }
}

fn count(map: &mut BTreeMap<String, u64>, what: &str) {
    if let Some(n) = map.get_mut(what) {
        *n += 1;
    } else {
        let key = if map.len() < MAX_REASONS {
            what
        } else {
            "others"
        };
        *map.entry(key.to_owned()).or_insert(0) += 1;
    }
}
