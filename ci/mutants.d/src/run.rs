// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Runs the tests with each mutant on.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// What the tests said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Caught,
    /// It used up its CPU time or its memory's limit ended it.
    Timeout,
    Survived,
}

/// One line of results.jsonl.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Line {
    pub name: String,
    pub outcome: Outcome,
    /// The first failed test's words.
    pub by: String,
}

/// One step: a test, or a program with all of its tests.
#[derive(Clone)]
pub struct Step {
    pub binary: PathBuf,
    /// Names of tests; none: all that the arguments leave.
    pub tests: Vec<String>,
    pub args: Vec<String>,
    /// Cases of a property.
    pub cases: u32,
    /// Seconds of CPU time.
    pub limit: u64,
    /// What it took without a mutant.
    pub seconds: f64,
    /// The mutants that its tests come by, and that say something else there than the original.
    pub reached: BTreeSet<usize>,
}

impl Step {
    /// A test that is so short that the start of its program is what costs.
    fn is_short(&self) -> bool {
        self.tests.len() == 1 && self.seconds < SHORT
    }
}

/// Seconds. Shorter tests of one program run together, the others one by one: a mutant that a
/// short one catches costs little, and that are most.
const SHORT: f64 = 0.3;

pub struct Runner {
    pub tree: PathBuf,
    pub steps: Vec<Step>,
    /// Words before each command.
    pub through: Vec<String>,
    pub jobs: usize,
}

impl Runner {
    /// Runs the tests with this number: those that come by it, the short ones first.
    fn one(&self, number: usize) -> Result<(Outcome, String)> {
        let mut by = "no test comes by it, or it says what the original says".to_owned();
        let reached = self.steps.iter().filter(|s| s.reached.contains(&number));
        let (short, long): (Vec<&Step>, Vec<&Step>) = reached.partition(|s| s.is_short());
        let together = short.first().map(|first| Step {
            tests: short.iter().flat_map(|s| s.tests.clone()).collect(),
            reached: BTreeSet::new(),
            ..(*first).clone()
        });
        for step in together.iter().chain(long) {
            let (outcome, said) = self.step(step, ("WTBLK_MUTANT", &number.to_string()))?;
            if outcome != Outcome::Survived {
                return Ok((outcome, said));
            }
            by = said;
        }
        Ok((Outcome::Survived, by))
    }

    fn step(&self, step: &Step, switch: (&str, &str)) -> Result<(Outcome, String)> {
        let mut words: Vec<String> = self.through.clone();
        // 4 GiB of memory, and CPU time instead of time: others may be busy here.
        let limits = [
            "prlimit".into(),
            format!("--cpu={}", step.limit),
            "--as=4294967296".into(),
            "--core=0".into(),
        ];
        words.extend(limits);
        words.push(step.binary.display().to_string());
        words.extend(step.args.iter().cloned());
        if !step.tests.is_empty() {
            words.push("--exact".into());
            words.extend(step.tests.iter().cloned());
        }
        let (program, args) = words.split_first().context("a program")?;
        let output = Command::new(program)
            .args(args)
            .current_dir(&self.tree)
            .env(switch.0, switch.1)
            .env("PROPTEST_CASES", step.cases.to_string())
            .env("PROPTEST_RNG_SEED", "1")
            .env("PROPTEST_MAX_SHRINK_ITERS", "0")
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "true")
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {program}"))?;
        if output.status.success() {
            return Ok((Outcome::Survived, String::new()));
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let by: String = said
            .lines()
            .filter(|l| !l.is_empty())
            .take(2)
            .collect::<Vec<_>>()
            .join(" ");
        let by: String = by.chars().take(300).collect();
        Ok(match output.status.signal() {
            Some(9 | 24) => (Outcome::Timeout, by),
            _ => (Outcome::Caught, by),
        })
    }

    /// The tests must pass where no mutant is on. While they run it is noted which mutants they come by.
    pub fn control(&mut self, list: &Path) -> Result<()> {
        for n in 0..self.steps.len() {
            let _ = std::fs::remove_file(list);
            let path = list.display().to_string();
            let begun = Instant::now();
            let (outcome, said) = self.step(&self.steps[n], ("WTBLK_MUTANT_WATCH", &path))?;
            ensure!(
                outcome == Outcome::Survived,
                "without a mutant the tests fail: {said}"
            );
            // A test that comes by nothing writes no list.
            let text = std::fs::read_to_string(list).unwrap_or_default();
            let reached: Result<_, _> = text.lines().map(str::parse).collect();
            let step = &mut self.steps[n];
            step.reached = reached.context("the list of the mutants come by")?;
            step.seconds = begun.elapsed().as_secs_f64();
        }
        self.steps.retain(|s| !s.reached.is_empty());
        ensure!(!self.steps.is_empty(), "no test comes by any mutant");
        // What many cases take is for what everything else has let through.
        self.steps.sort_by(|a, b| {
            (a.cases, a.seconds)
                .partial_cmp(&(b.cases, b.seconds))
                .expect("no NaN")
        });
        let short = self.steps.iter().filter(|s| s.is_short()).count();
        println!("{} steps, {short} of them short", self.steps.len());
        for step in self.steps.iter().filter(|s| !s.is_short()) {
            println!(
                "{:.1} s, comes by {} mutants: {}",
                step.seconds,
                step.reached.len(),
                step.tests.first().map_or("a whole program", String::as_str)
            );
        }
        Ok(())
    }

    /// All of these; each result is added to the file at once.
    pub fn all(&self, mutants: &[(usize, &str)], results: &Path) -> Result<Vec<Line>> {
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(results)?;
        let file = Mutex::new(file);
        let next = AtomicUsize::new(0);
        let lines = Mutex::new(Vec::new());
        let work = || -> Result<()> {
            while let Some((number, name)) = mutants.get(next.fetch_add(1, Ordering::Relaxed)) {
                let (outcome, by) = self.one(*number)?;
                let line = Line {
                    name: (*name).to_owned(),
                    outcome,
                    by,
                };
                let mut text = serde_json::to_string(&line)?;
                text.push('\n');
                file.lock().expect("no panic").write_all(text.as_bytes())?;
                if outcome != Outcome::Caught {
                    println!("{outcome:?}: {name}");
                }
                lines.lock().expect("no panic").push(line);
            }
            Ok(())
        };
        let failed = std::thread::scope(|s| {
            let workers: Vec<_> = (0..self.jobs.max(1)).map(|_| s.spawn(work)).collect();
            workers
                .into_iter()
                .filter_map(|w| w.join().expect("no panic").err())
                .next()
        });
        if let Some(e) = failed {
            bail!(e);
        }
        Ok(lines.into_inner().expect("no panic"))
    }
}
