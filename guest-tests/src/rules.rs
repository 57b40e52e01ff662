// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that a test switches on and off. Each is written so that it fires only after a note with
//! its name, counted from its last `arm`: until somebody switches it on it is asleep, in whatever boot.

use std::time::Instant;

use wtblk_shared::mark::{Control, Mark};

use crate::beside::LIMIT;
use crate::test::{Fail, Test};

/// A rule by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule(String);

impl Rule {
    /// The rule of this name.
    pub fn named(name: impl Into<String>) -> Rule {
        Rule(name.into())
    }

    /// Wakes it; its counters are 0.
    pub fn switch_on(&self, t: &Test) -> Result<(), Fail> {
        self.switch_off(t)?;
        let text = self.0.clone();
        t.world.post(&Mark::Note { text })
    }

    /// Lets it sleep; what it holds stays held.
    pub fn switch_off(&self, t: &Test) -> Result<(), Fail> {
        let rule = Some(self.0.clone());
        t.world.post(&Mark::Control(Control::Arm(rule)))
    }

    /// Lets go what it holds; it holds no more, but its status still applies.
    pub fn release(&self, t: &Test) -> Result<(), Fail> {
        let rule = Some(self.0.clone());
        t.world.post(&Mark::Control(Control::Release(rule)))
    }

    /// How often it fired since it was switched on.
    pub fn fired(&self, t: &Test) -> Result<u32, Fail> {
        self.count(t, 1)
    }

    /// How many requests it holds.
    pub fn held(&self, t: &Test) -> Result<u32, Fail> {
        self.count(t, 2)
    }

    fn count(&self, t: &Test, word: usize) -> Result<u32, Fail> {
        let state = t.world.marks.state().unwrap_or_default();
        let rules = state.get("rules").map_or("", String::as_str);
        of_rule(rules, &self.0, word).ok_or_else(|| {
            Fail::Error(format!(
                "the device has no rule {}: the case needs its scenario",
                self.0
            ))
        })
    }

    /// Waits until it holds a request.
    pub fn until_held(&self, t: &Test) -> Result<(), Fail> {
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            t.world
                .post(&Mark::Control(Control::WaitFired(self.0.clone(), 1)))?;
            if self.held(t)? > 0 {
                return Ok(());
            }
        }
        Err(Fail::Error(format!("the rule {} holds nothing", self.0)))
    }
}

/// A number of `NAME:FIRED:HELD,...`.
fn of_rule(rules: &str, name: &str, word: usize) -> Option<u32> {
    let rule = rules
        .split(',')
        .find(|r| r.split(':').next() == Some(name))?;
    rule.split(':').nth(word)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_is_found_by_its_whole_name() {
        let rules = "fail-10:1:0,fail-1:3:2,x:0:0";
        assert_eq!(of_rule(rules, "fail-1", 1), Some(3));
        assert_eq!(of_rule(rules, "fail-1", 2), Some(2));
        assert_eq!(of_rule(rules, "fail", 1), None);
        assert_eq!(of_rule("", "x", 1), None);
        assert_eq!(of_rule("x:...", "x", 1), None);
    }
}
