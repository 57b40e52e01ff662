// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run was asked for, by options and scenarios; and what it leaves in its folder.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use wtblk_shared::disk::DATA_SERIAL;

use super::append;
use super::catalog::{self, Defect};
use super::console::ConsoleTest;
use super::guest;
use super::image::Kind;
use super::judge;
use super::paths;
use super::run::{Options, draw_seed, known_defect, out_dir};
use crate::fault::{MAX_TEXT, Scenario, Shape};
use crate::input;
use crate::report::ktap;
use crate::report::model::{TestResult, status_of};
use crate::report::results::{BootSummary, Results, SCHEMA};

/// The test of random operations, what it may take beside its operations (a list that fails is
/// shortened), and the fewest operations per second. Its own limits are shorter.
const EXERCISER: &str = "exerciser";
const EXERCISER_LIMIT: u64 = 120;
const OPS_PER_SECOND: u64 = 6;

/// What options and scenarios ask for together.
pub(super) struct Asked {
    /// The options; where a scenario says what they leave open, as it says.
    pub(super) options: Options,
    /// The seed.
    pub(super) seed: u64,
    /// The seeded defect to switch on.
    pub(super) defect: Option<Defect>,
    /// The user's scenario files.
    pub(super) scenarios: Vec<PathBuf>,
    /// Rules of the user's files that have not fired yet: name and file.
    pub(super) idle_rules: Vec<(String, String)>,
    /// What scenarios and options say of the data disk.
    pub(super) shape: Shape,
    /// The file system.
    pub(super) fs: &'static Kind,
    /// Whether calls are tagged.
    pub(super) tags: bool,
}

/// What came of a run.
pub(super) struct Told<'a> {
    /// The tests, in their order.
    pub(super) results: &'a [TestResult],
    /// How many did not come to their end.
    pub(super) not_run: u64,
    /// The command's exit status.
    pub(super) status: u8,
    /// Why it could not go on.
    pub(super) trouble: Option<&'a anyhow::Error>,
    /// What it ran on.
    pub(super) environment: BTreeMap<&'static str, String>,
    /// The boots.
    pub(super) boots: &'a [BootSummary],
}

impl Asked {
    /// Reads the scenarios and refuses what does not go together.
    pub(super) fn of(mut options: Options) -> Result<Asked> {
        append::check(options.append.as_deref())?;
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
        Ok(Asked {
            seed,
            defect,
            scenarios: options.scenarios.clone(),
            idle_rules: scenario.rule_files(),
            shape,
            fs,
            tags,
            options,
        })
    }

    /// The tests that are meant, of those in this initramfs.
    pub(super) fn tests(&self, initramfs: &Path) -> Result<Vec<String>> {
        let names = catalog::tests(initramfs)?;
        let wanted = match (&self.options.tests, &self.defect) {
            (tests, _) if !tests.is_empty() => tests.clone(),
            // The tests that the table speaks of; all others say nothing of this defect.
            (_, Some(defect)) if self.options.expect => {
                defect.test.iter().map(|t| t.name.clone()).collect()
            }
            _ => return Ok(names),
        };
        for (n, name) in wanted.iter().enumerate() {
            if wanted[..n].contains(name) {
                bail!("--test {name} is given twice; --repeat N runs each test N times");
            }
            if let Some(defect) = self.defect.as_ref().filter(|_| self.options.expect)
                && !defect.test.iter().any(|t| &t.name == name)
            {
                bail!(
                    "--expect: the defect table says nothing of test '{name}' under '{}'",
                    defect.name
                );
            }
            if !names.contains(name) {
                refuse_list(name)?;
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
    pub(super) fn scenarios_for(&self, tests: &[String]) -> Result<Vec<PathBuf>> {
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

    /// A run on a kernel that cannot run any test: told at once, without a boot.
    pub(super) fn skipped(&self, why: &str, print: &mut impl Write) -> Result<u8> {
        let initramfs = match &self.options.initramfs {
            Some(file) => file.clone(),
            None => guest::initramfs()?,
        };
        let tests = self.tests(&initramfs)?;
        let out = out_dir(self.options.out.as_deref())?;
        let repeat = self.options.repeat;
        let mut results = Vec::new();
        ktap::begin(print, tests.len() * repeat as usize)?;
        for round in 1..=repeat {
            for name in &tests {
                let mut result = judge::skipped(name, why);
                result.repeat = round;
                ktap::test(print, results.len() + 1, &result, repeat)?;
                results.push(result);
            }
        }
        let status = status_of(&results);
        let told = Told {
            results: &results,
            not_run: 0,
            status,
            trouble: None,
            environment: self.options.kernel.environment(),
            boots: &[],
        };
        self.finish(&out, &initramfs, told, print)?;
        Ok(status)
    }

    /// With `--expect`: the differences to the defect table.
    pub(super) fn compare(&self, test: &ConsoleTest, result: &TestResult) -> Option<Vec<String>> {
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
    pub(super) fn exerciser_limit(&self, tests: &[String]) -> u64 {
        if !tests.iter().any(|name| name == EXERCISER) {
            return 0;
        }
        let ops = u64::from(self.options.ops.unwrap_or(0));
        EXERCISER_LIMIT + ops / OPS_PER_SECOND
    }

    /// Our words for the kernel command line.
    pub(super) fn words(&self, tests: &[String]) -> Vec<String> {
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
        if self.fs.realtime {
            words.push("wtblk_realtime".to_owned());
        }
        words.extend(self.options.append.clone());
        words
    }

    /// Writes what came of it into the folder `out`, and tells where.
    pub(super) fn finish(
        &self,
        out: &Path,
        initramfs: &Path,
        told: Told<'_>,
        print: &mut impl Write,
    ) -> Result<()> {
        let repeat_with = format!("{} --seed {}", self.options.command, self.seed);
        let mut environment = told.environment;
        environment.insert("fs", self.fs.name.to_owned());
        let document = Results {
            schema: SCHEMA,
            wtblk: env!("CARGO_PKG_VERSION"),
            status: told.status,
            error: told.trouble.map(|error| format!("{error:#}")),
            repeat_with: repeat_with.clone(),
            seed: self.seed,
            environment,
            defect: self.defect.as_ref().map(|d| d.name.clone()),
            scenarios: self.kept_scenarios(out, initramfs)?,
            idle_rules: self
                .idle_rules
                .iter()
                .map(|(name, _)| name.clone())
                .collect(),
            boots: told.boots.to_vec(),
            not_run: told.not_run,
            tests: told.results.to_vec(),
        };
        let json = serde_json::to_vec_pretty(&document)?;
        paths::write_whole(&out.join("results.json"), &json)?;
        paths::write_whole(&out.join("repeat"), format!("{repeat_with}\n").as_bytes())?;
        // A fault that never came proves nothing, and the KTAP above looks like a pass.
        for (name, file) in &self.idle_rules {
            writeln!(print, "# the rule '{name}' of {file} never fired")?;
        }
        writeln!(print, "# results: {}", out.join("results.json").display())?;
        writeln!(print, "# repeat with: {repeat_with}")?;
        Ok(())
    }

    /// Copies the scenario files into the run's folder; a number keeps names apart.
    fn kept_scenarios(&self, out: &Path, initramfs: &Path) -> Result<Vec<String>> {
        let names = self.tests(initramfs)?;
        let mut kept = Vec::new();
        for (i, path) in self.scenarios_for(&names)?.iter().enumerate() {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let name = format!("scenario-{}-{file}", i + 1);
            fs::copy(path, out.join(&name))
                .with_context(|| format!("cannot keep {}", path.display()))?;
            kept.push(name);
        }
        Ok(kept)
    }
}

/// Names with commas between them are no name: each has a `--test` of its own.
pub(super) fn refuse_list(name: &str) -> Result<()> {
    if name.contains(',') {
        let each: Vec<&str> = name.split(',').map(str::trim).collect();
        let each: Vec<&str> = each.into_iter().filter(|n| !n.is_empty()).collect();
        bail!(
            "there is no test '{name}'; --test takes one name and can be repeated: --test {}",
            each.join(" --test ")
        );
    }
    Ok(())
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
