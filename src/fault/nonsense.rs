// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rules that can be read and mean nothing: what they ask for cannot be, or
//! what they begin cannot end. Only what is so for certain is refused.

use super::index::{must_hold, op_mask};
use super::rule::{After, CallIs, Count, Per, Rule, TestIs, Trigger};

/// Why no request can ever satisfy the rule's `when`.
pub(super) fn never(rule: &Rule) -> Option<String> {
    if op_mask(&rule.when).ops().next().is_none() {
        return Some("holds for nothing: no kind of request is left".into());
    }
    let mut parts = Vec::new();
    must_hold(&rule.when, &mut parts);
    if parts
        .iter()
        .any(|part| matches!(part, Trigger::InFlight { max: 0, .. }))
    {
        return Some("holds for nothing: the request itself is in flight".into());
    }
    let waits = parts
        .iter()
        .any(|part| matches!(part, Trigger::After(After::Rule { name, .. }) if *name == rule.name));
    if waits {
        return Some("waits for the rule itself, which never fires before".into());
    }
    let own = rule.test.clone().map(TestIs::Named).map(Trigger::Test);
    parts.extend(&own);
    for (n, a) in parts.iter().enumerate() {
        for b in parts.iter().skip(n + 1) {
            if let Some(why) = exclude(a, b) {
                return Some(format!("holds for nothing: {why}"));
            }
        }
    }
    None
}

/// Why the two cannot hold for one request.
fn exclude(a: &Trigger, b: &Trigger) -> Option<String> {
    use Trigger::{Call, Class, InFlight, NthInCall, Size, State, Test};
    match (a, b) {
        (State(a), State(b)) if a != b => {
            Some(format!("the rules are never in the states `{a}` and `{b}`"))
        }
        (Class(a), Class(b)) if a != b => Some("no place is of two classes".into()),
        (Size { min, max }, Size { min: m, max: n })
        | (InFlight { min, max }, InFlight { min: m, max: n })
            if max < m || n < min =>
        {
            Some("the two ranges have nothing in common".into())
        }
        (NthInCall { op, n }, NthInCall { op: o, n: m }) if op == o && n != m => {
            Some(format!("no request of a call is number {n} and number {m}"))
        }
        (Test(a), Test(b)) => tests(a, b),
        (Call(CallIs::None), other) | (other, Call(CallIs::None)) if is_of_call(other) => {
            Some("what is of no call is not counted, placed or marked by one".into())
        }
        (Call(CallIs::Number(a)), Call(CallIs::Number(b))) if a != b => {
            Some(format!("a request of call {a} is not of call {b}"))
        }
        (Call(CallIs::Data), Call(CallIs::Side)) | (Call(CallIs::Side), Call(CallIs::Data)) => {
            Some("a data request of a call is no side request".into())
        }
        _ => None,
    }
}

fn tests(a: &TestIs, b: &TestIs) -> Option<String> {
    match (a, b) {
        (TestIs::Named(a), TestIs::Named(b)) if a != b => {
            Some(format!("the tests `{a}` and `{b}` never run at once"))
        }
        (TestIs::None, TestIs::Named(test)) | (TestIs::Named(test), TestIs::None) => {
            Some(format!("while `{test}` runs, a test does"))
        }
        (TestIs::None, TestIs::Some) | (TestIs::Some, TestIs::None) => {
            Some("either a test runs or none".into())
        }
        _ => None,
    }
}

/// It holds for requests of a call only.
fn is_of_call(trigger: &Trigger) -> bool {
    match trigger {
        Trigger::NthInCall { .. } | Trigger::File(_) | Trigger::Flags(_) => true,
        Trigger::Call(call) => *call != CallIs::None,
        Trigger::Count(Count { per, .. }) => *per == Per::Call,
        _ => false,
    }
}

/// Why the last group of the rule never gets complete, and is never let go by itself.
pub(super) fn short_group(rule: &Rule) -> Option<String> {
    let order = rule.action.order.as_ref()?;
    let (times, size) = (rule.times?, u64::from(order.group.max(1)));
    let left = times % size;
    if left == 0 || order.limit.is_some() {
        return None;
    }
    Some(format!(
        "`times = {times}` leaves a group of {size} with {left}, which wait for ever, expected a multiple of {size} (or a `limit` in `order`)"
    ))
}

#[cfg(test)]
mod tests {
    use crate::fault::Scenario;

    fn is_fine(rule: &str) {
        let text = format!("version = 1\n[[fault]]\nname = \"a\"\n{rule}");
        let found = Scenario::parse("f", &text);
        assert!(found.is_ok(), "{rule}: {}", found.unwrap_err());
    }

    /// What is refused is in `tests/scenario_wrong.txt`; this is like it, and possible.
    #[test]
    fn what_can_be_is_let_through() {
        for when in [
            r#"not = { op = "read" }"#,
            r#"any = [{ state = "a" }, { state = "b" }]"#,
            r#"state = "a", not = { state = "b" }"#,
            r#"in_call = true, op = "write", nth_in_call = 2"#,
            r#"in_call = false, class = "data""#,
            r#"in_call = "data", flags = "dsync""#,
            r#"size = 512, all = [{ size = { max = 512 } }]"#,
            r#"lba = "0+8", all = [{ lba = "8+8" }]"#,
            r#"file = "0+512", all = [{ file = "512+512" }]"#,
            r#"in_test = true"#,
            r#"inflight = { min = 0, max = 1 }"#,
            r#"not = { after = { rule = "a" } }"#,
            r#"any = [{ after = { rule = "a" } }, { op = "write" }]"#,
        ] {
            is_fine(&format!(
                "test = \"t\"\nwhen = {{ {when} }}\naction = {{ status = \"ioerr\" }}\n"
            ));
        }
        for (order, times) in [("", 6), ("", 3), (", limit = \"1s\"", 4)] {
            is_fine(&format!(
                "when = {{ op = \"write\" }}\ntimes = {times}\naction = {{ order = {{ group = 3, permutation = \"reverse\"{order} }} }}\n"
            ));
        }
    }
}
