// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Findings with one cause, put together.
//!
//! Two findings of one test are taken to have one cause where they are about the
//! same call, or where the same promise was broken in the same words with other
//! numbers. That is a help for the reader: no verdict rests on it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::verdict::{Finding, TestVerdicts, Verdict};

/// Findings that are taken to have one cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The test.
    pub test: String,
    /// The promises that were broken, and in how many findings each.
    pub promises: Vec<(String, u64)>,
    /// Numbers of the calls, the first few.
    pub calls: Vec<u64>,
    /// The findings: promise, and place among its findings in this test.
    pub findings: Vec<(String, usize)>,
    /// What happened, as the first of them says.
    pub happened: String,
}

/// Calls named in a group.
const MAX_CALLS: usize = 16;

/// The groups of a test, in the order of their first findings; where a finding belongs
/// is its place in the list.
pub fn groups(test: &TestVerdicts) -> Vec<Group> {
    let mut findings: Vec<(&Finding, usize)> = Vec::new();
    for promise in &test.promises {
        if let Verdict::Broken { findings: list, .. } = &promise.verdict {
            findings.extend(list.iter().enumerate().map(|(i, f)| (f, i)));
        }
    }
    let mut union = Union::new(findings.len());
    let mut by_call: HashMap<(u64, u64), usize> = HashMap::new();
    let mut by_shape: HashMap<(&str, String), usize> = HashMap::new();
    for (i, (f, _)) in findings.iter().enumerate() {
        if let Some(call) = &f.call {
            // Numbers of calls start again with each boot; the file's do, too, but seldom alike.
            let other = *by_call.entry((call.call, call.ino)).or_insert(i);
            union.join(i, other);
        }
        let other = *by_shape
            .entry((&f.promise, shape(&f.happened)))
            .or_insert(i);
        union.join(i, other);
    }
    let mut places: HashMap<usize, usize> = HashMap::new();
    let mut groups: Vec<Group> = Vec::new();
    for (i, (f, place)) in findings.iter().enumerate() {
        let at = *places.entry(union.root(i)).or_insert_with(|| {
            groups.push(Group {
                test: test.test.clone(),
                promises: Vec::new(),
                calls: Vec::new(),
                findings: Vec::new(),
                happened: f.happened.clone(),
            });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(at) else {
            continue;
        };
        match group.promises.iter_mut().find(|(p, _)| *p == f.promise) {
            Some((_, n)) => *n += 1,
            None => group.promises.push((f.promise.clone(), 1)),
        }
        if let Some(call) = f.call.as_ref().map(|c| c.call)
            && !group.calls.contains(&call)
            && group.calls.len() < MAX_CALLS
        {
            group.calls.push(call);
        }
        group.findings.push((f.promise.clone(), *place));
    }
    groups
}

/// What happened, without its numbers and without the list behind the first colon.
pub(crate) fn shape(happened: &str) -> String {
    let head = happened.split([':', ';']).next().unwrap_or_default();
    let mut shape = String::new();
    for c in head.chars() {
        match c {
            '0'..='9' => {
                if !shape.ends_with('0') {
                    shape.push('0');
                }
            }
            c => shape.push(c),
        }
    }
    // "one run ... does", "3 runs ... do".
    shape
        .replace("one run", "0 runs")
        .replace("runs of data requests does", "runs of data requests do")
}

/// Sets that grow together.
struct Union(Vec<usize>);

impl Union {
    fn new(n: usize) -> Union {
        Union((0..n).collect())
    }

    fn root(&mut self, mut i: usize) -> usize {
        while let Some(&up) = self.0.get(i)
            && up != i
        {
            let above = self.0.get(up).copied().unwrap_or(up);
            if let Some(own) = self.0.get_mut(i) {
                *own = above;
            }
            i = above;
        }
        i
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        if let Some(own) = self.0.get_mut(a.max(b)) {
            *own = a.min(b);
        }
    }
}
