// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mutation testing of `src/verify` in one build.
//!
//! cargo-mutants says which mutants there are. It would build the tree again for each, which
//! takes days for thousands on a small machine. Here all of them go into one copy of the tree,
//! each behind a number that the environment names (mutant schemata, Untch 1993); what rustc
//! refuses is taken out again until it builds; and the tests run once for each number.
//! What cannot live beside the original is listed, to be tried by cargo-mutants itself.

mod list;
mod refused;
mod rewrite;
mod run;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;

use list::Mutant;
use rewrite::Fate;
use run::{Line, Outcome, Runner, Step};

#[derive(Debug, Parser)]
struct Args {
    /// Where the copy, its build and the results go.
    #[arg(long, default_value = "target/mutants")]
    out: PathBuf,
    /// Files, as globs of cargo-mutants.
    #[arg(long, default_values_t = ["src/verify/*.rs".to_owned()])]
    file: Vec<String>,
    /// Only mutants whose name has this in it.
    #[arg(long, default_value = "")]
    only: String,
    /// Only those that the last results in --out do not call caught.
    #[arg(long)]
    retry: bool,
    /// Goes on where the last run in --out was cut off. The judge must be what it was then; tests may be new.
    #[arg(long)]
    resume: bool,
    /// Runs the tests through this command (a word or several).
    #[arg(long, default_value = "")]
    through: String,
    /// At a time.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// CPU seconds of one test program with one mutant.
    #[arg(long, default_value_t = 30)]
    limit: u64,
    /// Only the steps that find most.
    #[arg(long)]
    quick: bool,
    /// Every nth mutant only: a sample.
    #[arg(long, default_value_t = 1)]
    every: usize,
}

/// Tests of the library that know the judge.
const LIB: [&str; 4] = ["verify::", "report::", "cli::", "harness::judge"];
/// Those among them that take long.
const SLOW: [&str; 5] = [
    "verify::tests::mutants",
    "verify::tests::attacks",
    "verify::tests::legal",
    "verify::tests::disturbances::tags_are_used_again",
    "verify::tests::stable::a_kernel_that_changes",
];
/// Files whose mutants come first.
const FIRST: [&str; 9] = [
    "/written_once.rs",
    "/error_book.rs",
    "/no_overlap.rs",
    "/size.rs",
    "/stable.rs",
    "/writers.rs",
    "/writeback_cleared.rs",
    "/durable.rs",
    "/data.rs",
];
/// Files that say what was decided, or damage traces to try the judge.
const TEXT: [&str; 11] = [
    "/spoil.rs",
    "/spoil_errors.rs",
    "/selftest.rs",
    "/minimize.rs",
    "/chain.rs",
    "/story.rs",
    "/group.rs",
    "/explain.rs",
    "/render.rs",
    "/picture.rs",
    "/promise.rs",
];
/// What the thousands of runs spend their time in; all else is a plain debug build, with its checks.
const OPTIMIZED: [&str; 7] = [
    "wtblk.opt-level=1",
    "wtblk.debug=0",
    "wtblk-shared.opt-level=2",
    "twox-hash.opt-level=3",
    "serde_json.opt-level=2",
    "proptest.opt-level=2",
    "chacha20.opt-level=3",
];
/// Integration tests that need no guest.
const TESTS: [&str; 1] = ["verify_cli"];

fn main() -> Result<()> {
    let mut args = Args::parse();
    fs::create_dir_all(&args.out)?;
    args.out = args.out.canonicalize()?;
    let tree = args.out.join("tree");
    copy_tree(Path::new("."), &tree)?;
    let mutants = list::mutants(Path::new("."), &args.file)?;
    println!("{} mutants", mutants.len());

    let target = args.out.join("target");
    let mut dropped = BTreeSet::new();
    let mut unviable = BTreeMap::new();
    let mut alone: BTreeMap<usize, &str> = BTreeMap::new();
    if args.resume {
        let [refused, beside] =
            ["unviable.txt", "alone.txt"].map(|list| fs::read_to_string(args.out.join(list)));
        let (refused, beside) = (refused?, beside?);
        for (n, mutant) in (1..).zip(&mutants) {
            let of = |line: &str| {
                let rest = line.strip_prefix(mutant.name.as_str());
                rest.is_some_and(|rest| rest.starts_with(": "))
            };
            if refused.lines().any(of) {
                unviable.insert(n, "rustc refuses it".to_owned());
                dropped.insert(n);
            } else if beside.lines().any(of) {
                alone.insert(n, "it cannot live beside the original");
                dropped.insert(n);
            }
        }
    }
    loop {
        let fates = put_in(&tree, &mutants, &dropped)?;
        for (number, fate) in &fates {
            match fate {
                Fate::Placed => {}
                Fate::Ungrammatical => {
                    unviable.insert(*number, "no grammar has it".to_owned());
                }
                Fate::Alone(why) => {
                    alone.insert(*number, why);
                }
            }
        }
        let refused = refused::check(&tree, &target)?;
        if refused.unviable.is_empty() && refused.alone.is_empty() {
            break;
        }
        println!(
            "rustc refuses {} mutants, and {} beside the original",
            refused.unviable.len(),
            refused.alone.len()
        );
        dropped.extend(refused.unviable.keys());
        for number in refused.alone {
            if dropped.insert(number) {
                alone.insert(number, "rustc refuses it beside the original");
            }
        }
        unviable.extend(refused.unviable);
    }
    alone.retain(|n, _| !unviable.contains_key(n));
    let name = |n: &usize| mutants[*n - 1].name.as_str();
    let text = |list: Vec<String>| list.join("\n") + "\n";
    fs::write(
        args.out.join("unviable.txt"),
        text(
            unviable
                .iter()
                .map(|(n, why)| format!("{}: {why}", name(n)))
                .collect(),
        ),
    )?;
    fs::write(
        args.out.join("alone.txt"),
        text(
            alone
                .iter()
                .map(|(n, why)| format!("{}: {why}", name(n)))
                .collect(),
        ),
    )?;

    let results = args.out.join("results.jsonl");
    let old = read(&results)?;
    let caught = |name: &str| old.get(name).is_some_and(|l| l.outcome == Outcome::Caught);
    // What decides comes first: a run that is cut off has judged that.
    let rank = |n: &usize| {
        let is = |list: &[&str]| {
            list.iter()
                .position(|file| mutants[n - 1].file.ends_with(file))
        };
        match (is(&FIRST), is(&TEXT)) {
            (Some(at), _) => at,
            (None, None) => FIRST.len(),
            (None, Some(at)) => FIRST.len() + 1 + at,
        }
    };
    let mut order: Vec<usize> = (1..=mutants.len()).collect();
    order.sort_by_key(rank);
    let chosen: Vec<(usize, &str)> = order
        .into_iter()
        .filter(|n| !unviable.contains_key(n) && !alone.contains_key(n))
        .map(|n| (n, name(&n)))
        .filter(|(_, name)| name.contains(&args.only))
        .filter(|(_, name)| {
            !(args.retry && caught(name)) && !(args.resume && old.contains_key(*name))
        })
        .step_by(args.every.max(1))
        .collect();
    println!(
        "{} unviable, {} to be tried alone, {} are run",
        unviable.len(),
        alone.len(),
        chosen.len()
    );
    let mut runner = Runner {
        steps: build(&tree, &target, args.limit, args.quick)?,
        tree,
        through: args.through.split_whitespace().map(str::to_owned).collect(),
        jobs: args.jobs,
    };
    runner.control(&args.out.join("reached.txt"))?;
    if !args.retry && !args.resume {
        let _ = fs::remove_file(&results);
    }
    let lines = runner.all(&chosen, &results)?;
    let of = |outcome| lines.iter().filter(|l| l.outcome == outcome).count();
    println!(
        "{} run: {} caught, {} timed out, {} survived",
        lines.len(),
        of(Outcome::Caught),
        of(Outcome::Timeout),
        of(Outcome::Survived)
    );
    Ok(())
}

/// The last result of each mutant.
fn read(path: &Path) -> Result<BTreeMap<String, Line>> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let lines = text.lines().map(serde_json::from_str::<Line>);
    lines
        .map(|l| l.map(|l| (l.name.clone(), l)).context("results.jsonl"))
        .collect()
}

/// Writes only what changed: what was built of the rest stays.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, bytes).with_context(|| path.display().to_string())
}

/// Copies what git knows, or would. The judge's files come later, with their mutants.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(from)
        .output()
        .context("git")?;
    ensure!(output.status.success(), "git ls-files");
    let mut known = BTreeSet::new();
    for name in String::from_utf8(output.stdout)?.split_terminator('\0') {
        known.insert(name.to_owned());
        let Ok(bytes) = fs::read(from.join(name)) else {
            continue; // deleted, not yet committed
        };
        if name.starts_with("src/verify/") && !name.contains("/tests/") {
            continue;
        }
        let bytes = match name {
            "src/lib.rs" => [
                // What a lint has to say of a mutant is no reason against it.
                &b"#![allow(warnings, arithmetic_overflow, unconditional_panic)]\n"[..],
                &bytes[..],
                b"#[doc(hidden)]\npub mod mutant_switch;\n",
            ]
            .concat(),
            _ => bytes,
        };
        write(&to.join(name), &bytes)?;
    }
    write(
        &to.join("src/mutant_switch.rs"),
        include_bytes!("switch.rs"),
    )?;
    known.insert("src/mutant_switch.rs".to_owned());
    // What went away since the last time.
    for folder in ["src", "tests"] {
        for path in files(&to.join(folder))? {
            let name = path.strip_prefix(to)?.display().to_string();
            if !known.contains(&name) {
                fs::remove_file(path)?;
            }
        }
    }
    Ok(())
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut list = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match path.is_dir() {
            true => list.extend(files(&path)?),
            false => list.push(path),
        }
    }
    Ok(list)
}

/// Writes the files of the judge with their mutants; numbers begin at 1.
fn put_in(
    tree: &Path,
    mutants: &[Mutant],
    dropped: &BTreeSet<usize>,
) -> Result<BTreeMap<usize, Fate>> {
    let mut by_file: BTreeMap<String, Vec<(usize, &Mutant)>> = BTreeMap::new();
    for path in files(Path::new("src/verify"))? {
        let name = path.display().to_string();
        if !name.contains("/tests/") {
            by_file.insert(name, Vec::new());
        }
    }
    for (i, mutant) in mutants.iter().enumerate() {
        match by_file.get_mut(&mutant.file) {
            Some(list) => list.push((i + 1, mutant)),
            None => bail!("{}: only files of src/verify", mutant.name),
        }
    }
    let mut fates = BTreeMap::new();
    for (name, list) in by_file {
        let text = fs::read_to_string(&name)?;
        let (new, of_file) =
            rewrite::rewrite(&text, &list, dropped).with_context(|| name.clone())?;
        write(&tree.join(&name), new.as_bytes())?;
        fates.extend(of_file);
    }
    Ok(fates)
}

/// Builds the tests.
fn build(tree: &Path, target: &Path, limit: u64, quick: bool) -> Result<Vec<Step>> {
    let mut command = Command::new("cargo");
    command.args(["test", "--no-run", "--lib", "--message-format=json"]);
    for option in OPTIMIZED {
        command.args(["--config", &format!("profile.dev.package.{option}")]);
    }
    let tests = if quick { &[][..] } else { &TESTS[..] };
    for test in tests {
        command.args(["--test", test]);
    }
    let output = command
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cargo test")?;
    ensure!(output.status.success(), "the tests do not build");
    let mut programs = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let line: serde_json::Value = serde_json::from_str(line)?;
        if let (Some(name), Some(path), Some(true)) = (
            line["target"]["name"].as_str(),
            line["executable"].as_str(),
            line["profile"]["test"].as_bool(),
        ) {
            programs.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    let program = |name: &str| {
        programs
            .get(name)
            .cloned()
            .with_context(|| format!("no test program {name}"))
    };
    let words = |words: &[&str]| -> Vec<String> { words.iter().map(|w| (*w).to_owned()).collect() };
    let one = ["--test-threads=1", "--nocapture"];
    let skip: Vec<&str> = SLOW.iter().flat_map(|s| ["--skip", s]).collect();
    let lib = program("wtblk")?;
    let mut steps = Vec::new();
    for name in names(&lib)? {
        steps.push(Step {
            binary: lib.clone(),
            tests: vec![name],
            args: words(&one),
            cases: 8,
            limit,
            seconds: 0.0,
            reached: BTreeSet::new(),
        });
    }
    if quick {
        return Ok(steps);
    }
    for test in tests {
        steps.push(Step {
            binary: program(test)?,
            tests: Vec::new(),
            args: words(&one),
            cases: 8,
            limit,
            seconds: 0.0,
            reached: BTreeSet::new(),
        });
    }
    let many = [&LIB[..], &one[..], &skip[..]].concat();
    steps.push(Step {
        binary: lib,
        tests: Vec::new(),
        args: words(&many),
        cases: 200,
        limit: limit * 4,
        seconds: 0.0,
        reached: BTreeSet::new(),
    });
    Ok(steps)
}

/// The library's tests that have to do with the judge.
fn names(program: &Path) -> Result<Vec<String>> {
    let output = Command::new(program)
        .args(LIB)
        .arg("--list")
        .output()
        .with_context(|| format!("starting {}", program.display()))?;
    let text = String::from_utf8(output.stdout).context("the list of the tests")?;
    let names = text.lines().filter_map(|l| l.strip_suffix(": test"));
    Ok(names.map(str::to_owned).collect())
}
