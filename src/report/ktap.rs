// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! KTAP (the kernel's `Documentation/dev-tools/ktap.rst`): one test per guest
//! test, one subtest per promise. Printed test by test, as the run goes.

use std::io::{self, Write};

use super::model::{Subtest, TestResult, Verdict};
use crate::plain;

/// The version line and the plan.
pub fn begin(out: &mut impl Write, tests: usize) -> io::Result<()> {
    writeln!(out, "KTAP version 1\n1..{tests}")
}

/// One test with its subtests. `number` counts from 1; `repeats` is the total.
pub fn test(
    out: &mut impl Write,
    number: usize,
    result: &TestResult,
    repeats: u32,
) -> io::Result<()> {
    writeln!(out, "  KTAP version 1\n  1..{}", result.subtests.len())?;
    for (i, subtest) in result.subtests.iter().enumerate() {
        one(out, i + 1, subtest)?;
    }
    if let Some(how) = &result.unfinished {
        writeln!(
            out,
            "# the test did not come to its end: {}",
            plain::line(how)
        )?;
    }
    for difference in result.unexpected.iter().flatten() {
        writeln!(out, "# unexpected: {}", plain::line(difference))?;
    }
    let mut name = clean(&result.name);
    if repeats > 1 {
        name.push_str(&format!(" ({} of {repeats})", result.repeat));
    }
    let expected = if result.unexpected.is_some() {
        " as the defect table says"
    } else {
        ""
    };
    match (result.judged(), &result.skipped) {
        (Verdict::Broken, _) => writeln!(out, "not ok {number} {name}")?,
        (Verdict::Held, _) => writeln!(out, "ok {number} {name}{expected}")?,
        (Verdict::NotChecked, Some(reason)) => {
            writeln!(out, "ok {number} {name} # SKIP {}", clean(reason))?
        }
        (Verdict::NotChecked, None) => {
            writeln!(out, "ok {number} {name} # SKIP nothing was decided")?
        }
    }
    out.flush()
}

fn one(out: &mut impl Write, number: usize, subtest: &Subtest) -> io::Result<()> {
    let name = clean(&subtest.name);
    match subtest.verdict {
        Verdict::Held => {
            for line in &subtest.text {
                writeln!(out, "  # {}", plain::line(line))?;
            }
            writeln!(out, "  ok {number} {name}")?;
            for reason in &subtest.reasons {
                let reason = plain::line(reason);
                writeln!(out, "  # {name}: not checked for a part: {reason}")?;
            }
        }
        Verdict::NotChecked => {
            let reason = subtest.reasons.join("; ");
            writeln!(
                out,
                "  ok {number} {name} # SKIP not checked: {}",
                clean(&reason)
            )?;
        }
        Verdict::Broken => {
            for line in &subtest.text {
                writeln!(out, "  # {}", plain::line(line))?;
            }
            writeln!(out, "  not ok {number} {name}")?;
        }
    }
    Ok(())
}

/// A `#` begins a directive, a newline a new line: neither may stand in a name, nor anything
/// that a terminal would take for an order.
fn clean(text: &str) -> String {
    plain::words(&text.replace('#', "no."))
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::{subtest, test as result};
    use super::*;

    #[test]
    fn what_the_guest_says_forges_no_line_and_moves_no_cursor() {
        let odd = "x\u{1b}[2J\nok 9 forged";
        let mut sub = subtest("guest", Verdict::Broken);
        (sub.name, sub.text) = (odd.into(), vec![odd.into()]);
        let mut held = subtest("align", Verdict::Held);
        held.reasons = vec![odd.into()];
        let mut result = result(odd, vec![sub, held]);
        result.unfinished = Some(odd.into());
        let mut out = Vec::new();
        test(&mut out, 1, &result, 1).unwrap();
        let said = String::from_utf8(out).unwrap();
        assert!(!said.contains(['\u{1b}', '\t']), "{said:?}");
        assert!(!said.contains("\nok 9"), "{said:?}");
    }

    #[test]
    fn the_text_is_ktap() {
        let mut skipped = result("c", vec![subtest("align", Verdict::NotChecked)]);
        skipped.skipped = Some("no flag #1".into());
        let results = [
            result(
                "a",
                vec![
                    subtest("guest", Verdict::Held),
                    subtest("align", Verdict::NotChecked),
                ],
            ),
            result("b", vec![subtest("progress", Verdict::Broken)]),
            skipped,
        ];
        let mut out = Vec::new();
        begin(&mut out, 3).unwrap();
        for (i, r) in results.iter().enumerate() {
            test(&mut out, i + 1, r, 1).unwrap();
        }
        let want = "\
KTAP version 1
1..3
  KTAP version 1
  1..2
  # line one
  # line # two
  ok 1 guest
  # guest: not checked for a part: no call in this test
  ok 2 align # SKIP not checked: no call in this test
ok 1 a
  KTAP version 1
  1..1
  # line one
  # line # two
  not ok 1 progress
not ok 2 b
  KTAP version 1
  1..1
  ok 1 align # SKIP not checked: no call in this test
ok 3 c # SKIP no flag no.1
";
        assert_eq!(String::from_utf8(out).unwrap(), want);
    }
}
