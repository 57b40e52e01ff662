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
use super::boot::{self, Ended, Plan};
use super::catalog::{self, Defect};
use super::console::{ConsoleTest, Outcome};
use super::ground::{Ground, Wanted};
use super::image::Kind;
use super::judge;
use super::paths;
use super::qemu::{Machine, Qemu};
use crate::device::Recording;
use crate::fault::Shape;
use crate::fault::{MAX_TEXT, Scenario};
use crate::input;
use crate::report::ktap;
use crate::report::model::{TestResult, status, status_of};
use crate::report::results::{BootSummary, Results, SCHEMA};
use wtblk_shared::disk::DATA_SERIAL;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Scenario files beside the tests' own.
    pub scenarios: Vec<PathBuf>,
    /// Tests; empty: all of them.
    pub tests: Vec<String>,
    /// A kernel image; `None`: ours, built if need be.
    pub kernel: Option<PathBuf>,
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
/// The test of random operations, what it may take beside its operations (a list that fails is
/// shortened), and the fewest operations per second. Its own limits are shorter.
const EXERCISER: &str = "exerciser";
const EXERCISER_LIMIT: u64 = 120;
const OPS_PER_SECOND: u64 = 6;

/// Everything that is the same for all boots of a run.
struct Run {
    options: Options,
    ground: Ground,
    seed: u64,
    out: PathBuf,
    defect: Option<Defect>,
    scenarios: Vec<PathBuf>,
    /// Rules of the user's files that have not fired yet: name and file.
    idle_rules: Vec<(String, String)>,
    /// What scenarios and options say of the data disk.
    shape: Shape,
    fs: &'static Kind,
    tags: bool,
    interrupted: Arc<AtomicBool>,
    boots: Vec<BootSummary>,
}

/// Runs the tests, prints KTAP to `print`, writes the results; the exit status.
pub fn run(options: Options, print: &mut impl Write) -> Result<u8> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    // A signal reaches every process of the terminal: what failed because of it
    // (mkfs, say) is not what is to be told.
    let stopped = |e| {
        if interrupted.load(Ordering::Relaxed) {
            Ok(None)
        } else {
            Err(e)
        }
    };
    let prepared = Run::prepare(options, Arc::clone(&interrupted));
    let prepared = prepared
        .and_then(|run| Ok((run.chosen_tests()?, run)))
        .map_or_else(stopped, |p| Ok(Some(p)))?;
    let Some((tests, mut run)) = prepared else {
        return Ok(status::INTERRUPTED);
    };
    let repeat = run.options.repeat;
    let mut results: Vec<TestResult> = Vec::new();
    ktap::begin(print, tests.len() * repeat as usize)?;
    let trouble = run.rounds(&tests, &mut results, print).err();
    let trouble = trouble.filter(|_| !run.interrupted.load(Ordering::Relaxed));
    let status = match &trouble {
        Some(_) => status::CANNOT,
        None if run.interrupted.load(Ordering::Relaxed) => status::INTERRUPTED,
        None => status_of(&results),
    };
    if let Some(error) = &trouble {
        let text = error.to_string();
        writeln!(
            print,
            "Bail out! {}",
            text.lines().next().unwrap_or_default()
        )?;
    } else if status == status::INTERRUPTED {
        writeln!(print, "Bail out! interrupted")?;
    }
    run.finish(&results, status, trouble.as_ref(), print)?;
    trouble.map_or(Ok(status), Err)
}

impl Run {
    fn prepare(mut options: Options, interrupted: Arc<AtomicBool>) -> Result<Run> {
        // What is cheap to refuse is refused before anything is built.
        let qemu = Qemu::find(options.qemu.as_deref())?;
        let scenario = checked_scenarios(&options.scenarios)?;
        let mut shape = scenario.device.shape();
        shape.queues = options.queues.or(shape.queues);
        if let Some(serial) = shape.serial.as_deref().filter(|s| *s != DATA_SERIAL) {
            bail!("the guest tests look for a disk named `{DATA_SERIAL}`, not `{serial}`");
        }
        let launch = &scenario.launch;
        if options.tests.is_empty() {
            options.tests = launch.tests().to_vec();
        }
        let named = options.defect.as_deref().or(launch.defect());
        let defect = named.map(known_defect).transpose()?;
        // A comparison is meant with the defect that the file names.
        options.expect |= options.defect.is_none() && launch.expect() == Some(true);
        if options.expect && defect.is_none() {
            bail!("--expect compares with the defect table: it needs --defect");
        }
        let fs = Kind::named(options.fs.as_deref().or(launch.fs()), shape.block())?;
        let seed = options.seed.or(launch.seed()).unwrap_or_else(draw_seed);
        let tags = options.tags.or(launch.tags()).unwrap_or(true);
        let out = out_dir(options.out.as_deref())?;
        let ground = Ground::prepare(
            qemu,
            &Wanted {
                kernel: options.kernel.as_deref(),
                initramfs: options.initramfs.as_deref(),
                machine: options.machine,
                accel: options.accel,
            },
        )?;
        Ok(Run {
            ground,
            seed,
            out,
            defect,
            scenarios: options.scenarios.clone(),
            idle_rules: scenario.rule_files(),
            shape,
            fs,
            tags,
            options,
            interrupted,
            boots: Vec::new(),
        })
    }

    /// Every test, as often as asked, in as few boots as the guest allows.
    fn rounds(
        &mut self,
        tests: &[String],
        results: &mut Vec<TestResult>,
        print: &mut impl Write,
    ) -> Result<()> {
        let repeat = self.options.repeat;
        for round in 1..=repeat {
            let mut left: VecDeque<String> = tests.iter().cloned().collect();
            while !left.is_empty() && !self.interrupted.load(Ordering::Relaxed) {
                let scenarios = self.scenarios_for(left.make_contiguous())?;
                let (ended, trouble) = self.one_boot(round, &mut left, &scenarios)?;
                for result in ended {
                    ktap::test(print, results.len() + 1, &result, repeat)?;
                    results.push(result);
                }
                if let Some(trouble) = trouble {
                    return Err(trouble);
                }
            }
        }
        Ok(())
    }

    fn chosen_tests(&self) -> Result<Vec<String>> {
        let names = catalog::tests(&self.ground.initramfs)?;
        let wanted = match (&self.options.tests, &self.defect) {
            (tests, _) if !tests.is_empty() => tests.clone(),
            // The tests that the table speaks of; all others say nothing of this defect.
            (_, Some(defect)) if self.options.expect => {
                defect.test.iter().map(|t| t.name.clone()).collect()
            }
            _ => return Ok(names),
        };
        for name in &wanted {
            if let Some(defect) = self.defect.as_ref().filter(|_| self.options.expect)
                && !defect.test.iter().any(|t| &t.name == name)
            {
                bail!(
                    "--expect: the defect table says nothing of test '{name}' under '{}'",
                    defect.name
                );
            }
            if !names.contains(name) {
                bail!(
                    "there is no test '{name}'; the tests are: {}",
                    names.join(", ")
                );
            }
        }
        Ok(wanted)
    }

    /// The user's scenarios, then those of the tests at hand. Tests that share a
    /// boot share the device; each one's rules are armed only between its marks.
    fn scenarios_for(&self, tests: &[String]) -> Result<Vec<PathBuf>> {
        let mut scenarios = self.scenarios.clone();
        for test in tests {
            if let Some(path) = catalog::scenario_of(test)?
                && !scenarios.contains(&path)
            {
                scenarios.push(path);
            }
        }
        Ok(scenarios)
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
        let seed = self.seed.wrapping_add(u64::from(round - 1));
        let repeat_with = format!("{} --seed {seed}", self.options.one_test);
        let limit = self.options.limit.unwrap_or(Duration::from_secs(
            BOOT_LIMIT + TEST_LIMIT * tests.len() as u64 + self.exerciser_limit(&tests),
        ));
        let outcome = boot::boot(&Plan {
            ground: &self.ground,
            tests: &tests,
            scenarios,
            shape: &self.shape,
            fs: self.fs,
            recording: self.options.recording,
            words: self.words(&tests),
            seed,
            dir: &dir,
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
            seconds: (outcome.seconds * 1000.0).round() / 1000.0,
        });
        self.idle_rules
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
            let why = console.bail_out.unwrap_or_else(|| in_words(&outcome.ended));
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
            result.unexpected = self.compare(test, &result);
            results.push(result);
        }
        Ok((results, trouble))
    }

    /// With `--expect`: the differences to the defect table.
    fn compare(&self, test: &ConsoleTest, result: &TestResult) -> Option<Vec<String>> {
        if !self.options.expect {
            return None;
        }
        let table = self
            .defect
            .as_ref()?
            .test
            .iter()
            .find(|t| t.name == test.name);
        let broken = result.broken();
        Some(match table {
            Some(expectation) => expectation.differences(&broken),
            None => broken
                .iter()
                .map(|name| format!("{name} is broken and the table names no such test"))
                .collect(),
        })
    }

    /// Seconds more that the exerciser may take.
    fn exerciser_limit(&self, tests: &[String]) -> u64 {
        if !tests.iter().any(|name| name == EXERCISER) {
            return 0;
        }
        let ops = u64::from(self.options.ops.unwrap_or(0));
        EXERCISER_LIMIT + ops / OPS_PER_SECOND
    }

    fn words(&self, tests: &[String]) -> Vec<String> {
        let mut words = vec![
            format!("wtblk_tests={}", tests.join(",")),
            format!("wtblk_flag={:#x}", self.options.flag),
            format!("wtblk_tags={}", if self.tags { "on" } else { "off" }),
            format!("wtblk_seed={}", self.seed),
        ];
        if let Some(defect) = &self.defect {
            words.push(format!("wtblk_defect={}", defect.name));
            words.push(format!("iomap.wt_defect={}", defect.name));
        }
        if let Some(ops) = self.options.ops {
            words.push(format!("wtblk_ops={ops}"));
        }
        if self.fs.always_cow {
            words.push("wtblk_always_cow".to_owned());
        }
        words.extend(self.options.append.clone());
        words
    }

    fn finish(
        &self,
        results: &[TestResult],
        status: u8,
        trouble: Option<&anyhow::Error>,
        print: &mut impl Write,
    ) -> Result<()> {
        let repeat_with = format!("{} --seed {}", self.options.command, self.seed);
        let mut environment = self.ground.environment();
        environment.insert("fs", self.fs.name.to_owned());
        let document = Results {
            schema: SCHEMA,
            wtblk: env!("CARGO_PKG_VERSION"),
            status,
            error: trouble.map(|error| format!("{error:#}")),
            repeat_with: repeat_with.clone(),
            seed: self.seed,
            environment,
            defect: self.defect.as_ref().map(|d| d.name.clone()),
            scenarios: self.kept_scenarios()?,
            idle_rules: self
                .idle_rules
                .iter()
                .map(|(name, _)| name.clone())
                .collect(),
            boots: self.boots.clone(),
            tests: results.to_vec(),
        };
        let json = serde_json::to_vec_pretty(&document)?;
        paths::write_whole(&self.out.join("results.json"), &json)?;
        paths::write_whole(
            &self.out.join("repeat"),
            format!("{repeat_with}\n").as_bytes(),
        )?;
        // A fault that never came proves nothing, and the KTAP above looks like a pass.
        for (name, file) in &self.idle_rules {
            writeln!(print, "# the rule '{name}' of {file} never fired")?;
        }
        writeln!(
            print,
            "# results: {}",
            self.out.join("results.json").display()
        )?;
        writeln!(print, "# repeat with: {repeat_with}")?;
        Ok(())
    }

    /// Copies the scenario files into the run's folder; a number keeps names apart.
    fn kept_scenarios(&self) -> Result<Vec<String>> {
        let names: Vec<String> = self.chosen_tests()?;
        let mut kept = Vec::new();
        for (i, path) in self.scenarios_for(&names)?.iter().enumerate() {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("scenario-{}-{file}", i + 1);
            fs::copy(path, self.out.join(&name))
                .with_context(|| format!("cannot keep {}", path.display()))?;
            kept.push(name);
        }
        Ok(kept)
    }
}

/// Reads the user's scenarios once here, so that a typo is told before a boot and
/// what they say of the device is known; merged.
fn checked_scenarios(files: &[PathBuf]) -> Result<Scenario> {
    let mut parsed = Vec::new();
    for file in files {
        let text = input::text(file, "scenario", MAX_TEXT)?;
        parsed.push(Scenario::parse(&file.display().to_string(), &text)?);
    }
    Ok(Scenario::merge(parsed)?)
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
