// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk run`: tests into boots, boots into results.

use std::collections::VecDeque;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use wtblk_shared::exit;

use super::accel::Choice;
use super::asked::{Asked, Told};
use super::boot::{self, Ended, Plan};
use super::catalog::{self, Defect};
use super::console::Outcome;
use super::ground::{Ground, Wanted};
use super::judge;
use super::own::Source;
use super::paths;
use super::qemu::{Machine, Qemu};
use crate::device::Recording;
use crate::plain;
use crate::report::ktap;
use crate::report::model::{TestResult, status, status_of};
use crate::report::results::BootSummary;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Scenario files beside the tests' own.
    pub scenarios: Vec<PathBuf>,
    /// Tests; empty: all of them.
    pub tests: Vec<String>,
    /// Which kernel.
    pub kernel: Source,
    /// An initramfs; `None`: ours, built if need be.
    pub initramfs: Option<PathBuf>,
    /// A defect of the reference kernel to switch on.
    pub defect: Option<String>,
    /// Compare with the defect table instead of asking for silence.
    pub expect: bool,
    /// KVM or emulation.
    pub accel: Choice,
    /// The board; `None`: the one that suits the kernel image.
    pub machine: Option<Machine>,
    /// The QEMU program.
    pub qemu: Option<PathBuf>,
    /// How often each test is run.
    pub repeat: u32,
    /// Operations of the test `exerciser`; `None`: its short run.
    pub ops: Option<u32>,
    /// The seed; `None`: one is drawn and printed.
    pub seed: Option<u64>,
    /// Where results go; `None`: a new folder in the cache.
    pub out: Option<PathBuf>,
    /// Value of the flag.
    pub flag: u32,
    /// Whether calls are tagged; `None`: what the scenarios say, else yes.
    pub tags: Option<bool>,
    /// Queues of the data disk; `None`: what the scenarios say, else 1.
    pub queues: Option<u16>,
    /// The kind of file system; `None`: what the scenarios say, else XFS with blocks of a page.
    pub fs: Option<String>,
    /// What the device records of the requests' data.
    pub recording: Recording,
    /// More words for the kernel command line.
    pub append: Option<String>,
    /// Memory of the guest, MiB.
    pub memory: u32,
    /// Longest time of one boot; `None`: by the number of tests.
    pub limit: Option<Duration>,
    /// The command line that repeats the run, without seed and out.
    pub command: String,
    /// The same without tests and repetitions.
    pub one_test: String,
}

/// Runs of the cache that are kept when a new one is made there, beside those
/// that found something.
const KEEP_RUNS: usize = 20;
/// Seconds that a boot may take before and after its tests, and per test.
/// Generous: a limit that a loaded machine reaches is a false alarm.
const BOOT_LIMIT: u64 = 30;
const TEST_LIMIT: u64 = 20;

/// Everything that is the same for all boots of a run.
struct Run {
    asked: Asked,
    ground: Ground,
    out: PathBuf,
    interrupted: Arc<AtomicBool>,
    boots: Vec<BootSummary>,
    /// Where the run ended early.
    due: Option<Due>,
}

/// What a run that ended early did not come to: of the repetition that was under way.
struct Due {
    round: u32,
    tests: VecDeque<String>,
    /// The boot that was to run them; empty where there was none yet.
    boot: String,
}

/// A flag that the signals of an interruption set.
pub(super) fn interruption() -> Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    Ok(interrupted)
}

/// Runs the tests, prints KTAP to `print`, writes the results; the exit status.
pub fn run(options: Options, print: &mut impl Write) -> Result<u8> {
    let interrupted = interruption()?;
    // A signal reaches every process of the terminal: what failed because of it
    // (mkfs, say) is not what is to be told.
    let is_stopped = || interrupted.load(Ordering::Relaxed);
    // What is cheap to refuse is refused before anything is built.
    let found = Qemu::find(options.qemu.as_deref());
    let (qemu, asked) = match found.and_then(|qemu| Ok((qemu, Asked::of(options)?))) {
        Err(_) if is_stopped() => return Ok(status::INTERRUPTED),
        found => found?,
    };
    if let Some(why) = asked.options.kernel.without_flag() {
        return asked.skipped(&why, print);
    }
    let prepared = Run::prepare(asked, qemu, Arc::clone(&interrupted));
    let prepared = prepared.and_then(|run| Ok((run.asked.tests(&run.ground.initramfs)?, run)));
    let (tests, mut run) = match prepared {
        Err(_) if is_stopped() => return Ok(status::INTERRUPTED),
        prepared => prepared?,
    };
    let repeat = run.asked.options.repeat;
    let mut results: Vec<TestResult> = Vec::new();
    ktap::begin(print, tests.len() * repeat as usize)?;
    let trouble = run.rounds(&tests, &mut results, print).err();
    let trouble = trouble.filter(|_| !run.interrupted.load(Ordering::Relaxed));
    let status = match &trouble {
        Some(_) => status::CANNOT,
        None if run.interrupted.load(Ordering::Relaxed) => status::INTERRUPTED,
        None => status_of(&results),
    };
    let why = match &trouble {
        Some(error) => Some(error.to_string().lines().next().unwrap_or_default().into()),
        None if status == status::INTERRUPTED => Some("interrupted".to_owned()),
        None => None,
    };
    let mut not_run = 0;
    if let Some(why) = &why {
        writeln!(print, "Bail out! {}", plain::line(why))?;
        not_run = tests.len() as u64 * u64::from(repeat) - results.len() as u64;
        if let Some(due) = run.due.take() {
            results.extend(due.tests.iter().map(|name| TestResult {
                repeat: due.round,
                boot: due.boot.clone(),
                ..judge::not_run(name, why)
            }));
        }
        let all = tests.len() * repeat as usize;
        writeln!(print, "# not run to their end: {not_run} of {all} tests")?;
    }
    let told = Told {
        results: &results,
        not_run,
        status,
        trouble: trouble.as_ref(),
        environment: run.ground.environment(),
        boots: &run.boots,
    };
    run.asked
        .finish(&run.out, &run.ground.initramfs, told, print)?;
    trouble.map_or(Ok(status), Err)
}

impl Run {
    fn prepare(asked: Asked, qemu: Qemu, interrupted: Arc<AtomicBool>) -> Result<Run> {
        let options = &asked.options;
        let out = out_dir(options.out.as_deref())?;
        let ground = Ground::prepare(
            qemu,
            Wanted {
                kernel: options.kernel.clone(),
                initramfs: options.initramfs.as_deref(),
                machine: options.machine,
                accel: options.accel,
                interrupted: &interrupted,
            },
        )?;
        Ok(Run {
            asked,
            ground,
            out,
            interrupted,
            boots: Vec::new(),
            due: None,
        })
    }

    /// Every test, as often as asked, in as few boots as the guest allows.
    fn rounds(
        &mut self,
        tests: &[String],
        results: &mut Vec<TestResult>,
        print: &mut impl Write,
    ) -> Result<()> {
        let repeat = self.asked.options.repeat;
        for round in 1..=repeat {
            let mut left: VecDeque<String> = tests.iter().cloned().collect();
            let mut due = Due {
                round,
                tests: left.clone(),
                boot: String::new(),
            };
            while !left.is_empty() {
                if self.interrupted.load(Ordering::Relaxed) {
                    self.due = Some(due);
                    return Ok(());
                }
                let scenarios = self.asked.scenarios_for(left.make_contiguous())?;
                let booted = self.one_boot(round, &mut left, &scenarios);
                due.boot = self.boots.last().map_or(String::new(), |b| b.dir.clone());
                let (ended, trouble) = match booted {
                    Ok(came) => came,
                    Err(error) => {
                        self.due = Some(due);
                        return Err(error);
                    }
                };
                due.tests.clone_from(&left);
                for result in ended {
                    ktap::test(print, results.len() + 1, &result, repeat)?;
                    results.push(result);
                }
                if let Some(trouble) = trouble {
                    self.due = Some(due);
                    return Err(trouble);
                }
            }
        }
        Ok(())
    }

    /// Boots for as many of the tests left as the guest lives for, and takes
    /// those that ended (or ended the guest) off the list. Trouble of the host is
    /// no finding: what ended before it stands, the run does not go on.
    fn one_boot(
        &mut self,
        round: u32,
        left: &mut VecDeque<String>,
        scenarios: &[PathBuf],
    ) -> Result<(Vec<TestResult>, Option<anyhow::Error>)> {
        let name = format!("boot-{}", self.boots.len() + 1);
        let dir = self.out.join(&name);
        let tests: Vec<String> = left.iter().cloned().collect();
        let seed = self.asked.seed.wrapping_add(u64::from(round - 1));
        let repeat_with = format!("{} --seed {seed}", self.asked.options.one_test);
        let limit = self.asked.options.limit.unwrap_or(Duration::from_secs(
            BOOT_LIMIT + TEST_LIMIT * tests.len() as u64 + self.asked.exerciser_limit(&tests),
        ));
        let outcome = boot::boot(&Plan {
            ground: &self.ground,
            tests: &tests,
            scenarios,
            shape: &self.asked.shape,
            fs: self.asked.fs,
            recording: self.asked.options.recording,
            words: self.asked.words(&tests),
            seed,
            dir: &dir,
            memory: self.asked.options.memory,
            limit,
            repeat_with: &repeat_with,
            interrupted: &self.interrupted,
        })?;
        let (outcome, verdicts) = (outcome.ran, outcome.verdicts);
        self.boots.push(BootSummary {
            dir: name.clone(),
            contract: verdicts.contract.clone(),
            ended: in_words(&outcome.ended),
            guest: outcome.console.env.clone(),
            calls: verdicts.calls,
            seconds: (outcome.seconds * 1000.0).round() / 1000.0,
        });
        self.asked
            .idle_rules
            .retain(|(name, _)| !outcome.fired.contains(name));
        if let Some(why) = &outcome.store_error {
            bail!(
                "the device could not store what the guest wrote ({why}): this boot proves nothing"
            );
        }
        let trouble = match &outcome.ended {
            Ended::Interrupted => return Ok((Vec::new(), None)),
            Ended::Device(_) | Ended::Qemu(_) => Some(anyhow!(
                "{}; see {}",
                in_words(&outcome.ended),
                dir.display()
            )),
            _ => None,
        };
        let mut console = outcome.console;
        if console.plan.is_none() || console.bail_out.is_some() {
            let why = console
                .bail_out
                .unwrap_or_else(|| without_tests(&outcome.ended));
            bail!(
                "the guest did not come up: {why}\nthe last lines of its console ({}):\n{}",
                dir.join("console.log").display(),
                outcome.last_lines.join("\n")
            );
        }
        // The guest died in the test after the last one that it reported.
        let hung =
            matches!(console.tests.last(), Some(t) if matches!(t.outcome, Outcome::Timeout(_)));
        let unfinished = match &outcome.ended {
            Ended::Guest(_) if hung || console.tests.len() == tests.len() => None,
            how => Some(in_words(how)).filter(|_| trouble.is_none()),
        };
        if let Some(how) = &unfinished
            && let Some(next) = tests.get(console.tests.len())
        {
            console.end_test(next.clone(), Outcome::Timeout(how.clone()));
        }
        let mut results = Vec::new();
        for test in &console.tests {
            // Only tests that were asked for, in their order: the console is the guest's word.
            if left.front() != Some(&test.name) {
                bail!(
                    "the guest reported '{}' where '{}' was due",
                    test.name,
                    left.front().map_or("nothing", |n| n)
                );
            }
            left.pop_front();
            let died = test.name == console.tests.last().map_or("", |t| t.name.as_str());
            let mut result = judge::test(test, &verdicts);
            result.repeat = round;
            result.boot = name.clone();
            result.unfinished = unfinished.clone().filter(|_| died);
            if died {
                result.subtests.push(judge::repair(&outcome.repair));
            }
            result.unexpected = self.asked.compare(test, &result);
            results.push(result);
        }
        Ok((results, trouble))
    }
}

pub(super) fn known_defect(name: &str) -> Result<Defect> {
    let defects = catalog::defects()?;
    let names: Vec<String> = defects.iter().map(|d| d.name.clone()).collect();
    defects
        .into_iter()
        .find(|d| d.name == name)
        .with_context(|| {
            format!(
                "there is no defect '{name}'; the defects are: {}",
                names.join(", ")
            )
        })
}

pub(super) fn in_words(ended: &Ended) -> String {
    match ended {
        Ended::Guest(exit::OK) => "the guest ended: all its tests passed".to_owned(),
        Ended::Guest(exit::NOT_OK) => "the guest ended: some of its tests failed".to_owned(),
        Ended::Guest(exit::COULD_NOT_RUN) => "the guest could not run its tests".to_owned(),
        Ended::Guest(exit::HUNG) => "the guest ended: a test hung".to_owned(),
        Ended::Guest(exit::BROKEN) => "the guest program broke".to_owned(),
        Ended::Guest(code) => format!("the guest ended with code {code}"),
        Ended::Panic(line) => format!("the guest kernel panicked: {line}"),
        Ended::Left => "the guest shut the machine down, or reset it, without a word".to_owned(),
        Ended::Qemu(how) => format!("QEMU ended: {how}"),
        Ended::Limit => "the guest reached its time limit and was killed".to_owned(),
        Ended::Device(how) => format!("the device ended before the guest: {how}"),
        Ended::Interrupted => "interrupted".to_owned(),
    }
}

/// The same of a guest that ran no test of ours: that none failed says nothing.
pub(super) fn without_tests(ended: &Ended) -> String {
    match ended {
        Ended::Guest(exit::OK | exit::NOT_OK) => {
            "the guest ended by itself without running a test; is the initramfs that of \
             `wtblk kernel guest`, and does --append ask for something else?"
                .to_owned()
        }
        other => in_words(other),
    }
}

pub(super) fn draw_seed() -> u64 {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    // Short enough to be typed.
    (now.as_nanos() as u64 ^ u64::from(std::process::id())) % 1_000_000
}

/// Whether the run in this folder is over and found nothing.
fn held(dir: &Path) -> bool {
    let results = fs::read(dir.join("results.json")).unwrap_or_default();
    let results: serde_json::Value = serde_json::from_slice(&results).unwrap_or_default();
    results["status"] == status::HELD
}

/// The folder for results: given (must not hold a run already), or a new one in the cache.
pub(super) fn out_dir(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(dir) = given {
        fs::create_dir_all(dir).with_context(|| format!("cannot make --out {}", dir.display()))?;
        if dir.join("results.json").exists() || dir.join("boot-1").exists() {
            bail!(
                "--out {}: there is a run in it already; name a new folder",
                dir.display()
            );
        }
        return dir
            .canonicalize()
            .with_context(|| format!("cannot resolve {}", dir.display()));
    }
    let runs = paths::cache()?.join("runs");
    fs::create_dir_all(&runs)?;
    let mut old: Vec<PathBuf> = fs::read_dir(&runs)?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    old.sort_by_key(|p| fs::metadata(p).and_then(|m| m.modified()).ok());
    let surplus = old.len().saturating_sub(KEEP_RUNS - 1);
    for dir in &old[..surplus] {
        // What held is not worth keeping for ever; a finding is, and another wtblk
        // may be busy in a folder without results.
        if held(dir) {
            let _ = fs::remove_dir_all(dir);
        }
    }
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let dir = runs.join(format!("{}-{}", now.as_millis(), std::process::id()));
    fs::create_dir_all(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_ran_nothing_is_not_said_to_have_passed() {
        for ended in [Ended::Guest(exit::OK), Ended::Guest(exit::NOT_OK)] {
            let said = without_tests(&ended);
            assert!(said.contains("without running a test"), "{said}");
            assert!(!said.contains("passed"), "{said}");
        }
        assert!(without_tests(&Ended::Limit).contains("time limit"));
    }
}
