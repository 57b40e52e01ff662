// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One test's result: the guest's own word, the kernel's log, the promises.

use super::console::{ConsoleTest, Outcome};
use super::image::Repair;
use crate::report::model::{Subtest, TestResult, Verdict, Wait};
use crate::verify::group::Group;
use crate::verify::render;
use crate::verify::verdict::{self, PromiseVerdict, Verdicts};

/// Puts together what is known of a test. Repetition, boot and comparison are the caller's.
pub fn test(test: &ConsoleTest, verdicts: &Verdicts) -> TestResult {
    let mut subtests = vec![guest(test), kernel_log(test)];
    if let Some(judged) = verdicts.tests.iter().find(|t| t.test == test.name) {
        let groups = &judged.groups;
        subtests.extend(judged.promises.iter().map(|p| promise(p, groups)));
    }
    let skipped = match &test.outcome {
        Outcome::Skip(reason) => Some(reason.clone()),
        _ => None,
    };
    let judged = verdicts.tests.iter().find(|t| t.test == test.name);
    TestResult {
        groups: judged.map(|t| t.groups.clone()).unwrap_or_default(),
        name: test.name.clone(),
        repeat: 1,
        seconds: (test.time.as_secs_f64() * 1000.0).round() / 1000.0,
        boot: String::new(),
        skipped,
        not_run: None,
        unfinished: None,
        subtests,
        unexpected: None,
        waits: waits(test),
    }
}

/// A test that was not begun.
pub fn skipped(name: &str, why: &str) -> TestResult {
    TestResult {
        groups: Vec::new(),
        name: name.to_owned(),
        repeat: 1,
        seconds: 0.0,
        boot: String::new(),
        skipped: Some(why.to_owned()),
        not_run: None,
        unfinished: None,
        subtests: vec![Subtest {
            name: "guest".into(),
            verdict: Verdict::NotChecked,
            decisions: 0,
            reasons: vec![why.to_owned()],
            text: Vec::new(),
            findings: Vec::new(),
        }],
        unexpected: None,
        waits: Vec::new(),
    }
}

/// A test that was due when the run ended early.
pub fn not_run(name: &str, why: &str) -> TestResult {
    let why = format!("not run to its end: {why}");
    TestResult {
        skipped: None,
        not_run: Some(why.clone()),
        ..skipped(name, &why)
    }
}

/// The guest's lines of who waited.
fn waits(test: &ConsoleTest) -> Vec<Wait> {
    let begin = format!("{}: waits: ", test.name);
    let lines = test.diagnostics.iter();
    lines
        .filter_map(|line| Wait::read(line.strip_prefix(&begin)?))
        .collect()
}

fn guest(test: &ConsoleTest) -> Subtest {
    let (verdict, reasons) = match &test.outcome {
        Outcome::Pass => (Verdict::Held, Vec::new()),
        Outcome::Fail => (Verdict::Broken, Vec::new()),
        Outcome::Skip(reason) => (Verdict::NotChecked, vec![reason.clone()]),
        Outcome::Timeout(_) => (Verdict::Broken, Vec::new()),
    };
    let mut text = test.diagnostics.clone();
    if let Outcome::Timeout(why) = &test.outcome {
        text.push(why.clone());
    }
    let decisions = u64::from(verdict != Verdict::NotChecked);
    Subtest {
        name: "guest".into(),
        verdict,
        decisions,
        reasons,
        text,
        findings: Vec::new(),
    }
}

fn kernel_log(test: &ConsoleTest) -> Subtest {
    let (counts, passed_over): (Vec<_>, Vec<_>) = test.kernel.iter().partition(|f| f.counts());
    let verdict = if counts.is_empty() {
        Verdict::Held
    } else {
        Verdict::Broken
    };
    let reasons = passed_over.iter().map(|f| f.passed_over()).collect();
    Subtest {
        name: "kernel-log".into(),
        verdict,
        decisions: 1,
        reasons,
        text: counts.iter().map(|f| f.line.clone()).collect(),
        findings: counts
            .iter()
            .map(|f| serde_json::json!({"kind": f.kind, "line": f.line}))
            .collect(),
    }
}

/// What `xfs_repair -n` said of the image after the boot, as a subtest of the boot's last test.
pub fn repair(said: &Repair) -> Subtest {
    let (verdict, reasons, text) = match said {
        Repair::Clean => (Verdict::Held, Vec::new(), Vec::new()),
        Repair::NotChecked(why) => (Verdict::NotChecked, vec![why.clone()], Vec::new()),
        Repair::Damaged(lines) => (Verdict::Broken, Vec::new(), lines.clone()),
    };
    Subtest {
        name: "repair".into(),
        verdict,
        decisions: u64::from(verdict != Verdict::NotChecked),
        reasons,
        findings: text
            .iter()
            .map(|line| serde_json::json!({"kind": "repair", "line": line}))
            .collect(),
        text,
    }
}

fn promise(promise: &PromiseVerdict, groups: &[Group]) -> Subtest {
    let reasons = |map: &std::collections::BTreeMap<String, u64>| -> Vec<String> {
        map.keys().cloned().collect()
    };
    let mut decisions = promise.held;
    let (verdict, reasons, text, findings) = match &promise.verdict {
        verdict::Verdict::Held { .. } => (
            Verdict::Held,
            reasons(&promise.not_checked),
            Vec::new(),
            Vec::new(),
        ),
        verdict::Verdict::NotChecked { reasons: why } => {
            (Verdict::NotChecked, reasons(why), Vec::new(), Vec::new())
        }
        verdict::Verdict::Broken { findings, more } => {
            decisions += findings.len() as u64 + more;
            let text = render::findings(promise, groups);
            let json = findings
                .iter()
                .filter_map(|f| serde_json::to_value(f).ok())
                .collect();
            (Verdict::Broken, reasons(&promise.not_checked), text, json)
        }
    };
    let mut text = text;
    let observed = promise.observations.iter();
    text.extend(
        observed.map(|(what, n)| format!("{}: observed {n} times: {what}", promise.promise)),
    );
    Subtest {
        name: promise.promise.clone(),
        verdict,
        decisions,
        reasons,
        text,
        findings,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_was_due_is_neither_held_nor_skipped() {
        let due = not_run("dsync", "QEMU ended: killed");
        assert_eq!(due.verdict(), Verdict::NotChecked);
        assert_eq!((due.skipped, due.name.as_str()), (None, "dsync"));
        let why = "not run to its end: QEMU ended: killed";
        assert_eq!(due.not_run.as_deref(), Some(why));
        assert_eq!(due.subtests[0].reasons, [why]);
    }

    #[test]
    fn a_damaged_image_is_a_finding_and_an_open_log_is_none() {
        let damaged = repair(&Repair::Damaged(vec!["bad magic".into()]));
        assert_eq!(damaged.verdict, Verdict::Broken);
        assert_eq!((damaged.text.len(), damaged.findings.len()), (1, 1));
        let open = repair(&Repair::NotChecked("why".into()));
        assert_eq!((open.verdict, open.decisions), (Verdict::NotChecked, 0));
        assert_eq!(open.reasons, ["why"]);
        assert_eq!(repair(&Repair::Clean).verdict, Verdict::Held);
    }
}
