// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The faults that a sweep knows, and the scenario that has a rule for each
//! request that may fail.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use wtblk_shared::sweep::{COUNTER, rule};

use super::Requests;

/// A fault.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its name.
    pub name: &'static str,
    /// What becomes of the request.
    pub about: &'static str,
    /// The scenario's `action`.
    action: &'static str,
    /// The guest is told that the request failed.
    pub fails: bool,
    /// The guest is told that something is stored which is not: on log and metadata nothing is promised then.
    pub lies: bool,
    /// The request never comes back.
    pub hangs: bool,
}

/// The faults, in the order in which they are told.
#[rustfmt::skip]
pub const FAULTS: &[Fault] = &[
    Fault { name: "ioerr", about: "fails at once with IOERR, nothing is stored", action: r#"{ status = "ioerr" }"#, fails: true, lies: false, hangs: false },
    Fault { name: "late", about: "fails with IOERR after 5 ms, when later requests are under way", action: r#"{ status = "ioerr", delay = "5ms" }"#, fails: true, lies: false, hangs: false },
    Fault { name: "stored", about: "fails with IOERR, although all is stored", action: r#"{ status = "ioerr", store = true }"#, fails: true, lies: false, hangs: false },
    Fault { name: "unsupp", about: "fails with UNSUPP", action: r#"{ status = "unsupp" }"#, fails: true, lies: false, hangs: false },
    Fault { name: "torn", about: "stores its first sector and succeeds", action: "{ torn = { first = 1 } }", fails: false, lies: true, hangs: false },
    Fault { name: "drop", about: "stores nothing and succeeds", action: "{ drop = true }", fails: false, lies: true, hangs: false },
    Fault { name: "corrupt", about: "stores one bit wrong and succeeds", action: "{ corrupt = { bits = 1 } }", fails: false, lies: true, hangs: false },
    Fault { name: "delay", about: "succeeds after 5 ms", action: r#"{ delay = "5ms" }"#, fails: false, lies: false, hangs: false },
    Fault { name: "hang", about: "never comes back; the guest is booted again behind it", action: "{ hang = true }", fails: false, lies: false, hangs: true },
];

/// Most rules of a scenario.
const MAX_RULES: u32 = 4096;

/// The fault of this name.
pub fn find(name: &str) -> Result<&'static Fault> {
    let found = FAULTS.iter().find(|fault| fault.name == name);
    let Some(fault) = found else {
        let names: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
        bail!(
            "there is no fault '{name}'; the faults are: {}",
            names.join(", ")
        );
    };
    Ok(fault)
}

/// How many rules of each of so many faults a scenario has room for.
pub fn room(faults: usize) -> u32 {
    let faults = u32::try_from(faults).unwrap_or(MAX_RULES).max(1);
    (MAX_RULES - 1) / faults
}

/// The scenario: a rule that counts, and one for each fault and each of the first `rules` requests.
/// The guest disarms all of them before its first test and arms those of the point at hand.
pub fn scenario(faults: &[&Fault], requests: Requests, rules: u32) -> String {
    let mut text = String::from(
        "# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause\n# Written by `wtblk sweep`.\nversion = 1\n",
    );
    let mut add = |name: &str, when: &str, what: &str| {
        let _ = write!(
            text,
            "\n[[fault]]\nname = \"{name}\"\nwhen = {{ in_test = true, {when} }}\n{what}\n"
        );
    };
    let (counts, one): (_, fn(u32) -> String) = match requests {
        Requests::Data => ("op = \"write\", in_call = \"data\"", |n| {
            format!("op = \"write\", nth_in_call = {n}")
        }),
        Requests::All => ("op = \"any\"", |n| {
            format!("op = \"any\", nth = {{ n = {n}, per = \"rule\" }}")
        }),
    };
    // In place of an action: it lets the request go, and wins, so that it is counted.
    add(COUNTER, counts, "goto = \"start\"");
    for fault in faults {
        for n in 1..=rules {
            let action = format!("action = {}\ntimes = 1", fault.action);
            add(&rule(fault.name, n), &one(n), &action);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Scenario;

    #[test]
    fn every_fault_makes_a_scenario_that_is_accepted() {
        let all: Vec<&Fault> = FAULTS.iter().collect();
        for requests in [Requests::Data, Requests::All] {
            let text = scenario(&all, requests, 3);
            let parsed = Scenario::parse("sweep.toml", &text).unwrap();
            assert_eq!(parsed.rules.len(), 1 + 3 * FAULTS.len());
        }
        let text = scenario(&all[..1], Requests::All, room(1));
        assert_eq!(
            Scenario::parse("sweep.toml", &text).unwrap().rules.len(),
            4096
        );
        assert!(text.len() < 1 << 20);
    }

    #[test]
    fn an_unknown_fault_is_told_with_those_that_there_are() {
        assert_eq!(find("drop").unwrap().name, "drop");
        let said = find("rust").unwrap_err().to_string();
        assert!(said.contains("'rust'") && said.contains("ioerr"), "{said}");
    }
}
