// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk run --matrix`: every seeded defect with every test, the sound kernel first. Which
//! defect is found by which tests and checks, as a page of the docs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::catalog::{self, Defect};
use super::own::Source;
use super::paths;
use super::qemu::GUEST_MEMORY;
use super::run::{self, Options};
use crate::plain;
use crate::report::model::status;

/// Tests that have to find each defect.
pub const FINDERS: usize = 2;
/// Name of the row of the sound kernel.
const SOUND: &str = "clean";

/// What one row of the matrix has shown.
#[derive(Clone, Debug, Default)]
struct Row {
    /// `clean`, or the defect.
    name: String,
    /// What the table says of the defect; `None` for the sound kernel.
    defect: Option<Defect>,
    /// What it ran on.
    environment: BTreeMap<String, String>,
    /// By test: how often it ran, and how often each of its checks broke.
    tests: BTreeMap<String, Cell>,
}

#[derive(Clone, Debug, Default)]
struct Cell {
    runs: u32,
    /// Runs in which anything broke.
    found: u32,
    /// Runs that were skipped.
    skipped: u32,
    broken: BTreeMap<String, u32>,
}

impl Cell {
    /// Whether every run of the test found something.
    fn finds(&self) -> bool {
        self.runs > 0 && self.found == self.runs
    }

    /// Checks that broke in every run, those that broke in some in brackets.
    fn checks(&self) -> String {
        let name = |(check, n): (&String, &u32)| {
            if *n == self.runs {
                check.clone()
            } else {
                format!("({check})")
            }
        };
        self.broken.iter().map(name).collect::<Vec<_>>().join(", ")
    }
}

/// Checks by test: the test's name, the check's.
type Noise = BTreeSet<(String, String)>;

/// The part of `results.json` that a row needs.
#[derive(Deserialize)]
struct Document {
    /// The exit status of the row's run.
    #[serde(default)]
    status: u8,
    /// The command that repeats it.
    #[serde(default)]
    repeat_with: String,
    /// What it ran on.
    #[serde(default)]
    environment: BTreeMap<String, String>,
    tests: Vec<TestOfRow>,
}

#[derive(Deserialize)]
struct TestOfRow {
    name: String,
    skipped: Option<String>,
    subtests: Vec<SubtestOfRow>,
}

#[derive(Deserialize)]
struct SubtestOfRow {
    name: String,
    verdict: String,
}

impl Row {
    /// `noise` are the checks, by test, that the sound kernel broke: they find nothing.
    fn new(name: &str, defect: Option<Defect>, document: &Document, noise: &Noise) -> Row {
        let mut tests: BTreeMap<String, Cell> = BTreeMap::new();
        for test in &document.tests {
            let cell = tests.entry(test.name.clone()).or_default();
            let broken = test.subtests.iter().filter(|s| s.verdict == "broken");
            let broken = broken.filter(|s| !noise.contains(&(test.name.clone(), s.name.clone())));
            let broken: BTreeSet<&String> = broken.map(|s| &s.name).collect();
            cell.runs += 1;
            cell.found += u32::from(!broken.is_empty());
            cell.skipped += u32::from(test.skipped.is_some());
            for check in broken {
                *cell.broken.entry(check.clone()).or_default() += 1;
            }
        }
        Row {
            name: name.to_owned(),
            defect,
            environment: document.environment.clone(),
            tests,
        }
    }

    fn noise(&self) -> Noise {
        let of_test = |(test, cell): (&String, &Cell)| {
            let checks = cell.broken.keys().cloned();
            checks
                .map(|check| (test.clone(), check))
                .collect::<Vec<_>>()
        };
        self.tests.iter().flat_map(of_test).collect()
    }

    fn finders(&self) -> Vec<(&String, &Cell)> {
        self.tests.iter().filter(|(_, c)| c.finds()).collect()
    }

    /// What is wrong with the row; nothing where it is as it should be.
    fn faults(&self) -> Vec<String> {
        let Some(defect) = &self.defect else {
            let loud = self.tests.iter().filter(|(_, c)| c.found > 0);
            let loud = loud.map(|(test, c)| format!("{test} is not silent: {}", c.checks()));
            let empty = self.tests.is_empty().then(|| "no test ran".to_owned());
            return loud.chain(empty).collect();
        };
        let mut faults = Vec::new();
        let finders = self.finders().len();
        if finders < FINDERS {
            faults.push(format!(
                "{finders} tests find it in every run, {FINDERS} at least are wanted"
            ));
        }
        for expected in &defect.test {
            let Some(cell) = self.tests.get(&expected.name) else {
                continue;
            };
            for check in &expected.must {
                let broken = cell.broken.get(check).copied().unwrap_or(0);
                if broken < cell.runs {
                    faults.push(format!(
                        "{}: {check} has to be broken and was in {broken} of {} runs",
                        expected.name, cell.runs
                    ));
                }
            }
        }
        faults
    }
}

/// Runs all rows and prints them; the exit status. Rows that lie in the folder from an
/// interrupted run with the same command and seed are taken as they are. `command` is what was
/// typed, without seed and folder: printed with both where the matrix does not come to its end.
/// The page goes to the folder; see `is_whole` for when it goes to the docs, too.
pub fn run(mut options: Options, command: &str, print: &mut impl Write) -> Result<u8> {
    let defects: Vec<Defect> = catalog::defects()?
        .into_iter()
        .filter(|d| options.defect.as_ref().is_none_or(|name| *name == d.name))
        .collect();
    if defects.is_empty() {
        let name = options.defect.as_deref().unwrap_or_default();
        bail!("there is no defect '{name}' in kernel-config/defects.toml");
    }
    let out = run::out_dir(options.out.as_deref())?;
    let seed = options.seed.unwrap_or_else(run::draw_seed);
    let whole = is_whole(&options);
    let stop = run::interruption()?;
    let stopped = || stop.load(Ordering::Relaxed);
    let again = format!("{command} --seed {seed}");
    let ended = whole_matrix(&mut options, defects, seed, &out, &stop, print);
    let rows = match ended {
        Ok(Some(rows)) => rows,
        other => {
            // What failed because of the signal is not what is to be told.
            let why = other.err().filter(|_| !stopped());
            let first = why.as_ref().map_or("interrupted".to_owned(), |e| {
                e.to_string().lines().next().unwrap_or_default().to_owned()
            });
            writeln!(print, "Bail out! {}", plain::line(&first))?;
            let dir = plain::shell_word(&out.display().to_string());
            writeln!(print, "# go on with: {again} --out {dir}")?;
            return why.map_or(Ok(status::INTERRUPTED), Err);
        }
    };
    let text = page(&rows);
    let mut places = vec![out.join("defects.md")];
    if whole {
        places.push(paths::root()?.join("docs/defects.md"));
    }
    for place in &places {
        paths::write_whole(place, text.as_bytes())?;
        writeln!(print, "# the matrix: {}", place.display())?;
    }
    writeln!(print, "# repeat with: {again}")?;
    let bad = rows.iter().any(|row| !row.faults().is_empty());
    Ok(if bad { status::FINDING } else { status::HELD })
}

/// Whether it is the matrix of the docs: every defect and every test, on our own kernel, our own
/// guest program and a ground that nobody changed.
fn is_whole(options: &Options) -> bool {
    let all = options.defect.is_none() && options.tests.is_empty();
    let ours = matches!(options.kernel, Source::Ours) && options.initramfs.is_none();
    let ground = options.fs.is_none() && options.queues.is_none() && options.machine.is_none();
    let plain = options.scenarios.is_empty() && options.append.is_none() && options.tags.is_none();
    let guest = options.memory == GUEST_MEMORY && options.ops.is_none();
    all && ours && ground && plain && guest
}

/// All rows; `None` where it was interrupted.
fn whole_matrix(
    options: &mut Options,
    defects: Vec<Defect>,
    seed: u64,
    out: &Path,
    stop: &AtomicBool,
    print: &mut impl Write,
) -> Result<Option<Vec<Row>>> {
    // Once for all rows; where the tree lacks the flag nothing is to be built.
    if options.kernel.without_flag().is_none() {
        options.kernel = options.kernel.clone().built(stop)?;
    }
    writeln!(print, "KTAP version 1\n1..{}", defects.len() + 1)?;
    let mut rows: Vec<Row> = Vec::new();
    let all = std::iter::once(None).chain(defects.into_iter().map(Some));
    for (n, defect) in all.enumerate() {
        let name = defect
            .as_ref()
            .map_or(SOUND, |d| d.name.as_str())
            .to_owned();
        let dir = out.join(&name);
        let noise = rows.first().map(Row::noise).unwrap_or_default();
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let Some(row) = row(options, seed, &name, defect, &dir, &noise)? else {
            return Ok(None);
        };
        // A row of an earlier run may be of another kernel.
        if let Some(first) = rows.first().filter(|r| r.environment != row.environment) {
            bail!(
                "{}: the row '{name}' ran on something else than '{}': name a new folder",
                out.display(),
                first.name
            );
        }
        tell(print, n + 1, &row)?;
        rows.push(row);
    }
    Ok(Some(rows))
}

/// One row; `None` where it was interrupted.
fn row(
    options: &Options,
    seed: u64,
    name: &str,
    defect: Option<Defect>,
    dir: &Path,
    noise: &Noise,
) -> Result<Option<Row>> {
    let switched = defect.as_ref().map(|d| format!(" --defect {}", d.name));
    let with = |command: &str| format!("{command}{}", switched.as_deref().unwrap_or_default());
    let one = Options {
        defect: defect.as_ref().map(|d| d.name.clone()),
        seed: Some(seed),
        out: Some(dir.to_owned()),
        command: with(&options.command),
        one_test: with(&options.one_test),
        ..options.clone()
    };
    let path = dir.join("results.json");
    if path.is_file()
        && let Some(document) = kept(&path, &one, seed)?
    {
        return Ok(Some(Row::new(name, defect, &document, noise)));
    }
    // What an interrupted run has left of it.
    if dir.is_dir() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot clear {}", dir.display()))?;
    }
    fs::create_dir_all(dir)?;
    let mut ktap = fs::File::create(dir.join("ktap"))?;
    let ended = run::run(one, &mut ktap).with_context(|| format!("the row '{name}'"))?;
    if ended == status::INTERRUPTED {
        // A row without its end is none: it is made again.
        fs::remove_file(&path).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        })?;
        return Ok(None);
    }
    let document = read(&path)?;
    Ok(Some(Row::new(name, defect, &document, noise)))
}

fn read(path: &Path) -> Result<Document> {
    let json = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&json).with_context(|| path.display().to_string())
}

/// The row as an earlier run with the same command and seed left it; `None` where that did not
/// come to its end: not all tests ran.
fn kept(path: &Path, one: &Options, seed: u64) -> Result<Option<Document>> {
    let document = read(path)?;
    let same = format!("{} --seed {seed}", one.command);
    if document.repeat_with != same {
        bail!(
            "{} is of another run (`{}`, this one is `{same}`): name a new folder, or its seed",
            path.display(),
            document.repeat_with
        );
    }
    let ended = ![status::CANNOT, status::INTERRUPTED].contains(&document.status);
    Ok(ended.then_some(document))
}

/// Prints the row.
fn tell(print: &mut impl Write, number: usize, row: &Row) -> Result<()> {
    for (test, cell) in row.tests.iter().filter(|(_, c)| c.found > 0) {
        writeln!(
            print,
            "# {}: {test} found it in {} of {} runs: {}",
            row.name,
            cell.found,
            cell.runs,
            cell.checks()
        )?;
    }
    let faults = row.faults();
    for fault in &faults {
        writeln!(print, "# {}: {fault}", row.name)?;
    }
    let word = if faults.is_empty() { "ok" } else { "not ok" };
    writeln!(print, "{word} {number} {}", row.name)?;
    print.flush()?;
    Ok(())
}

/// The page.
fn page(rows: &[Row]) -> String {
    let mut text = String::from(
        "<!-- SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause -->\n\
         # Which defect is found by what\n\n\
         Written by `wtblk run --matrix`: every seeded defect of the reference kernel \
         (`reference-kernel.md`) with every test, the sound\nkernel first. `guest` are a test's own \
         checks, the other words promises (`promises.md`). In brackets: broken in some of the runs\n\
         only, where it depends on when something happens.\n\n",
    );
    for row in rows.iter().filter(|r| r.defect.is_none()) {
        let runs: u32 = row.tests.values().map(|c| c.runs).sum();
        let found: u32 = row.tests.values().map(|c| c.found).sum();
        let skipped: u32 = row.tests.values().map(|c| c.skipped).sum();
        text += &format!(
            "The sound kernel: {} tests, {runs} runs, {skipped} skipped, {found} with a finding.\n\n",
            row.tests.len()
        );
    }
    let defects: Vec<&Row> = rows.iter().filter(|r| r.defect.is_some()).collect();
    text += &grid(&defects);
    for row in defects {
        let about = row.defect.as_ref().map_or("", |d| d.about.as_str());
        text += &format!("\n## {}\n{about}\n\n", row.name);
        if row.tests.values().all(|c| c.found == 0) {
            text += "Found by nothing.\n";
            continue;
        }
        text += "| test | checks |\n| --- | --- |\n";
        for (test, cell) in row.tests.iter().filter(|(_, c)| c.found > 0) {
            let some = if cell.finds() {
                String::new()
            } else {
                format!(" ({} of {} runs)", cell.found, cell.runs)
            };
            text += &format!("| `{test}`{some} | {} |\n", cell.checks());
        }
    }
    text
}

/// Defects by checks: the number of tests whose check broke in every run.
fn grid(rows: &[&Row]) -> String {
    let cells = || rows.iter().flat_map(|r| r.tests.values());
    let checks: BTreeSet<&String> = cells().flat_map(|c| c.broken.keys()).collect();
    let mut text =
        String::from("How many tests find it, in all and by each check:\n\n| defect | tests |");
    for check in &checks {
        text += &format!(" {check} |");
    }
    text += "\n| --- | --- |";
    text += &" --- |".repeat(checks.len());
    text.push('\n');
    for row in rows {
        text += &format!("| `{}` | {} |", row.name, row.finders().len());
        for check in &checks {
            let always = |c: &&Cell| c.runs > 0 && c.broken.get(*check) == Some(&c.runs);
            match row.tests.values().filter(always).count() {
                0 => text += " |",
                n => text += &format!(" {n} |"),
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::harness::catalog::Expectation;

    fn document(tests: &[(&str, &[&str])]) -> Document {
        let tests = tests.iter().map(|(name, broken)| TestOfRow {
            name: (*name).to_owned(),
            skipped: None,
            subtests: ["guest", "align", "cover"]
                .iter()
                .map(|check| SubtestOfRow {
                    name: (*check).to_owned(),
                    verdict: if broken.contains(check) {
                        "broken"
                    } else {
                        "held"
                    }
                    .to_owned(),
                })
                .collect(),
        });
        Document {
            status: 0,
            repeat_with: String::new(),
            environment: BTreeMap::new(),
            tests: tests.collect(),
        }
    }

    fn silence() -> Noise {
        Noise::new()
    }

    fn defect() -> Option<Defect> {
        Some(Defect {
            name: "d".to_owned(),
            about: "does harm".to_owned(),
            test: vec![Expectation {
                name: "a".to_owned(),
                must: vec!["align".to_owned()],
                may: Vec::new(),
            }],
        })
    }

    #[test]
    fn a_defect_needs_two_tests_that_find_it_in_every_run() {
        let both = document(&[("a", &["align"]), ("b", &["guest"]), ("c", &[])]);
        let row = Row::new("d", defect(), &both, &silence());
        assert_eq!(row.faults(), Vec::<String>::new());
        // One of them only once of twice.
        let lucky = document(&[
            ("a", &["align"]),
            ("b", &["guest"]),
            ("a", &["align"]),
            ("b", &[]),
        ]);
        let row = Row::new("d", defect(), &lucky, &silence());
        assert_eq!(row.faults().len(), 1, "{:?}", row.faults());
        assert!(page(&[row]).contains("| `b` (1 of 2 runs) | (guest) |"));
        let none = Row::new("d", defect(), &document(&[("c", &[])]), &silence());
        assert_eq!(none.faults().len(), 1);
        assert!(page(&[none]).contains("Found by nothing."));
    }

    #[test]
    fn what_the_table_says_must_be_seen() {
        let other = document(&[("a", &["cover"]), ("b", &["guest"])]);
        let faults = Row::new("d", defect(), &other, &silence()).faults();
        assert_eq!(faults, ["a: align has to be broken and was in 0 of 1 runs"]);
    }

    #[test]
    fn the_sound_kernel_must_be_silent_and_must_have_run() {
        let silent = Row::new(
            SOUND,
            None,
            &document(&[("a", &[]), ("b", &[])]),
            &silence(),
        );
        assert!(silent.faults().is_empty());
        let loud = Row::new(SOUND, None, &document(&[("a", &["guest"])]), &silence());
        assert_eq!(loud.faults(), ["a is not silent: guest"]);
        assert_eq!(
            Row::new(SOUND, None, &document(&[]), &silence())
                .faults()
                .len(),
            1
        );
    }

    fn options() -> Options {
        Options {
            scenarios: Vec::new(),
            tests: Vec::new(),
            kernel: Source::Ours,
            initramfs: None,
            defect: None,
            expect: false,
            accel: crate::harness::accel::Choice::Tcg,
            machine: None,
            qemu: None,
            repeat: 1,
            ops: None,
            seed: None,
            out: None,
            flag: 0x200,
            tags: None,
            queues: None,
            fs: None,
            recording: crate::device::Recording::default(),
            append: None,
            memory: GUEST_MEMORY,
            limit: None,
            command: "wtblk run".to_owned(),
            one_test: "wtblk run".to_owned(),
        }
    }

    /// What is of one defect, or of another ground, must not take the place of the page of the docs.
    #[test]
    fn the_page_of_the_docs_is_that_of_the_whole_matrix_alone() {
        let mut plain = options();
        (plain.seed, plain.out, plain.repeat) = (Some(7), Some("/x".into()), 20);
        assert!(is_whole(&plain));
        let word = || Some("x".to_owned());
        let changes: [fn(&mut Options, Option<String>); 9] = [
            |o, word| o.defect = word,
            |o, word| o.tests.extend(word),
            |o, _| o.kernel = Source::Image("/k".into()),
            |o, word| o.fs = word,
            |o, word| o.append = word,
            |o, _| o.queues = Some(4),
            |o, _| o.tags = Some(false),
            |o, _| o.scenarios.push("/s".into()),
            |o, _| o.memory = 256,
        ];
        for (n, change) in changes.iter().enumerate() {
            let mut options = options();
            change(&mut options, word());
            assert!(!is_whole(&options), "change {n}");
        }
    }

    #[test]
    fn a_row_that_did_not_come_to_its_end_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("results.json");
        let kept_with = |status: u8, seed: u64| {
            let json = format!(
                "{{\"status\": {status}, \"repeat_with\": \"wtblk run --seed 7\", \"tests\": []}}"
            );
            fs::write(&path, json).unwrap();
            kept(&path, &options(), seed).map(|document| document.is_some())
        };
        for (status, is_kept) in [(0, true), (1, true), (3, true), (2, false), (130, false)] {
            assert_eq!(kept_with(status, 7).unwrap(), is_kept, "status {status}");
        }
        assert!(kept_with(0, 8).is_err());
    }

    #[test]
    fn the_grid_counts_tests_by_check() {
        let row = Row::new(
            "d",
            defect(),
            &document(&[("a", &["align", "guest"]), ("b", &["guest"])]),
            &silence(),
        );
        let text = page(&[row]);
        assert!(
            text.contains("| defect | tests | align | guest |"),
            "{text}"
        );
        assert!(text.contains("| `d` | 2 | 1 | 2 |"), "{text}");
    }

    #[test]
    fn what_the_sound_kernel_breaks_finds_nothing() {
        let loud = Row::new(SOUND, None, &document(&[("b", &["guest"])]), &silence());
        let both = document(&[("a", &["align"]), ("b", &["guest"])]);
        let row = Row::new("d", defect(), &both, &loud.noise());
        assert_eq!(row.finders().len(), 1);
        assert_eq!(row.faults().len(), 1);
    }
}
