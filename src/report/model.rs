// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The result of a run, before it is printed.

use serde::Serialize;

use crate::verify::group::Group;

/// What came of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It was decided, and it held.
    Held,
    /// A finding.
    Broken,
    /// It could not be decided.
    NotChecked,
}

/// One check of one test: a promise, the guest's own checks, or the kernel log.
#[derive(Clone, Debug, Serialize)]
pub struct Subtest {
    /// `guest`, `kernel-log`, or the promise's name.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
    /// How many single decisions it rests on.
    pub decisions: u64,
    /// Why it was not checked, or not everywhere.
    pub reasons: Vec<String>,
    /// Lines for people: the findings, or the guest's diagnostics.
    pub text: Vec<String>,
    /// The findings for machines.
    pub findings: Vec<serde_json::Value>,
}

/// Something that was done beside a call in flight: whether it waited.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Wait {
    /// What kind of call was in flight.
    pub beside: String,
    /// What was done.
    pub deed: String,
    /// Whether it waited.
    pub waited: bool,
    /// The kernel function that it waited in; null where it went on.
    pub at: Option<String>,
    /// What the semantics say: `waits`, `goes-on`, or `open`.
    pub must: String,
}

impl Wait {
    /// Reads a line of the guest: `beside=B deed=D did=waited at=PLACE must=M`.
    pub fn read(line: &str) -> Option<Wait> {
        let mut words = line.split(' ').map(|word| word.split_once('='));
        let mut next = |key: &str| {
            let (name, value) = words.next()??;
            (name == key && !value.is_empty()).then(|| value.to_owned())
        };
        let (beside, deed) = (next("beside")?, next("deed")?);
        let waited = match next("did")?.as_str() {
            "waited" => true,
            "went-on" => false,
            _ => return None,
        };
        let at = next("at")?;
        let must = next("must").filter(|m| ["waits", "goes-on", "open"].contains(&m.as_str()))?;
        Some(Wait {
            beside,
            deed,
            waited,
            at: waited.then_some(at),
            must,
        })
    }
}

/// One test in one repetition.
#[derive(Clone, Debug, Serialize)]
pub struct TestResult {
    /// Its name.
    pub name: String,
    /// Which repetition, from 1.
    pub repeat: u32,
    /// Wall time from the end of the test before it (or from when the guest was ready) to its own.
    pub seconds: f64,
    /// Folder of the boot it ran in, within the run's folder.
    pub boot: String,
    /// Set where the guest skipped it: the reason.
    pub skipped: Option<String>,
    /// Set where it was due when the run ended early: why that was.
    pub not_run: Option<String>,
    /// Set where it did not come to its end: how the guest ended.
    pub unfinished: Option<String>,
    /// Its checks.
    pub subtests: Vec<Subtest>,
    /// With `--expect`: how it differs from the defect table; empty if as expected.
    pub unexpected: Option<Vec<String>>,
    /// Its findings of promises by what is taken to be their cause.
    pub groups: Vec<Group>,
    /// Who waited for a call in flight and who went on, where the test looked at that.
    pub waits: Vec<Wait>,
}

impl TestResult {
    /// Names of the checks that broke.
    pub fn broken(&self) -> Vec<String> {
        let broken = self
            .subtests
            .iter()
            .filter(|s| s.verdict == Verdict::Broken);
        broken.map(|s| s.name.clone()).collect()
    }

    /// The test as a whole. A skipped one decided nothing, however many promises
    /// happened to hold meanwhile.
    pub fn verdict(&self) -> Verdict {
        if self.subtests.iter().any(|s| s.verdict == Verdict::Broken) {
            return Verdict::Broken;
        }
        let decided = self.subtests.iter().any(|s| s.verdict == Verdict::Held);
        if self.skipped.is_some() || !decided {
            Verdict::NotChecked
        } else {
            Verdict::Held
        }
    }

    /// What counts for the run's status: with `--expect` the comparison, else the verdict.
    pub fn judged(&self) -> Verdict {
        match &self.unexpected {
            Some(_) if self.skipped.is_some() => Verdict::NotChecked,
            Some(differences) if differences.is_empty() => Verdict::Held,
            Some(_) => Verdict::Broken,
            None => self.verdict(),
        }
    }
}

/// Exit status of a command (`docs/architecture.md`, "Status").
pub mod status {
    /// Everything that was decided held.
    pub const HELD: u8 = 0;
    /// A finding.
    pub const FINDING: u8 = 1;
    /// Could not run, or bad input.
    pub const CANNOT: u8 = 2;
    /// Nothing was decided.
    pub const UNDECIDED: u8 = 3;
    /// Interrupted.
    pub const INTERRUPTED: u8 = 130;
}

/// The status of a run with these results.
pub fn status_of(results: &[TestResult]) -> u8 {
    let verdicts: Vec<Verdict> = results.iter().map(TestResult::judged).collect();
    if verdicts.contains(&Verdict::Broken) {
        status::FINDING
    } else if verdicts.contains(&Verdict::Held) {
        status::HELD
    } else {
        status::UNDECIDED
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn subtest(name: &str, verdict: Verdict) -> Subtest {
        Subtest {
            name: name.into(),
            verdict,
            decisions: 1,
            reasons: vec!["no call in this test".into()],
            text: vec!["line one".into(), "line # two".into()],
            findings: vec![],
        }
    }

    pub(crate) fn test(name: &str, subtests: Vec<Subtest>) -> TestResult {
        TestResult {
            name: name.into(),
            repeat: 1,
            seconds: 0.0,
            boot: "boot-1".into(),
            skipped: None,
            not_run: None,
            unfinished: None,
            subtests,
            unexpected: None,
            groups: Vec::new(),
            waits: Vec::new(),
        }
    }

    #[test]
    fn the_guests_line_of_who_waited_is_read_or_passed_over() {
        let wait = Wait::read("beside=sync deed=read did=waited at=rwsem must=waits").unwrap();
        assert_eq!((wait.waited, wait.at.as_deref()), (true, Some("rwsem")));
        assert_eq!(
            (wait.beside.as_str(), wait.must.as_str()),
            ("sync", "waits")
        );
        let on = Wait::read("beside=async deed=read did=went-on at=- must=open").unwrap();
        assert_eq!((on.waited, on.at), (false, None));
        for odd in [
            "",
            "beside=sync deed=read",
            "deed=read beside=sync did=waited at=x must=waits",
            "beside=sync deed=read did=slept at=x must=waits",
            "beside=sync deed=read did=waited at=x must=maybe",
            "beside= deed=read did=waited at=x must=waits",
        ] {
            assert_eq!(Wait::read(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_finding_wins_and_nothing_decided_is_not_success() {
        let held = test(
            "a",
            vec![
                subtest("guest", Verdict::Held),
                subtest("align", Verdict::NotChecked),
            ],
        );
        let broken = test(
            "b",
            vec![
                subtest("guest", Verdict::Held),
                subtest("align", Verdict::Broken),
            ],
        );
        let open = test("c", vec![subtest("align", Verdict::NotChecked)]);
        let mut skipped = held.clone();
        skipped.skipped = Some("no flag".into());
        assert_eq!(status_of(&[held.clone(), open.clone()]), status::HELD);
        assert_eq!(status_of(&[held, broken.clone()]), status::FINDING);
        assert_eq!(status_of(&[open, skipped.clone()]), status::UNDECIDED);
        assert_eq!(status_of(&[]), status::UNDECIDED);
        // A skipped test that found something all the same is a finding.
        skipped
            .subtests
            .push(subtest("kernel-log", Verdict::Broken));
        assert_eq!(status_of(&[skipped]), status::FINDING);
        // As expected under a defect: success; a difference: a finding.
        let mut expected = broken.clone();
        expected.unexpected = Some(vec![]);
        assert_eq!(status_of(&[expected]), status::HELD);
        let mut other = broken;
        other.unexpected = Some(vec!["x".into()]);
        assert_eq!(status_of(&[other]), status::FINDING);
    }
}
