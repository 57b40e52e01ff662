// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Running `wtblk run` from a test, and reading what it left.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod clean;
pub mod flat;
pub mod guest;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde_json::Value;

/// The program under test.
pub fn wtblk() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wtblk"));
    command.stdin(Stdio::null());
    command
}

/// A run that ended.
pub struct Run {
    /// Exit status.
    pub status: i32,
    /// Standard output: KTAP.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// results.json; null where there is none.
    pub results: Value,
    /// The run's folder, kept while this lives.
    pub dir: tempfile::TempDir,
}

/// `wtblk run --out TEMPORARY ARGS`, to its end. Emulated, so that a test means the same everywhere.
pub fn run(args: &[&str]) -> Run {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut command = wtblk();
    command
        .args(["run", "--accel", "tcg", "--out"])
        .arg(dir.path())
        .args(args);
    let output = command.output().expect("wtblk starts");
    ended(output, dir)
}

/// The same from an [`Output`].
pub fn ended(output: Output, dir: tempfile::TempDir) -> Run {
    let results = std::fs::read(dir.path().join("results.json"))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Value::Null);
    tell_times(&results);
    Run {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        results,
        dir,
    }
}

/// Adds how long each test of the guest took to the file that `ci/test` names.
fn tell_times(results: &Value) {
    let Some(file) = std::env::var_os("WTBLK_TEST_TIMES") else {
        return;
    };
    let lines: String = (results["tests"].as_array().into_iter().flatten())
        .filter(|test| test["skipped"].is_null())
        .map(|test| {
            let name = test["name"].as_str().unwrap_or("?");
            let with = match results["defect"].as_str() {
                Some(defect) => format!("{name} ({defect})"),
                None => name.to_owned(),
            };
            format!("{:.3} {with}\n", test["seconds"].as_f64().unwrap_or(0.0))
        })
        .collect();
    // One write at the end of the file, so that what tests side by side tell does not mix.
    let told = File::options().append(true).create(true).open(&file);
    told.and_then(|mut f| f.write_all(lines.as_bytes()))
        .expect("the file of times");
}

/// A run whose test fails leaves its folder where `WTBLK_KEEP_FAILED` says: what is rare has to be looked at when it comes.
impl Drop for Run {
    fn drop(&mut self) {
        let Some(to) = std::env::var_os("WTBLK_KEEP_FAILED").filter(|_| std::thread::panicking())
        else {
            return;
        };
        let to = PathBuf::from(to).join(self.dir.path().file_name().expect("a folder's name"));
        let copied = Command::new("cp")
            .arg("-a")
            .arg(self.dir.path())
            .arg(&to)
            .status();
        eprintln!("kept in {}: {copied:?}", to.display());
    }
}

impl Run {
    /// What is not as it should be, in few lines: a log that is cut short still holds them.
    pub fn wrong(&self) -> String {
        let tail: Vec<&str> = self.stderr.lines().rev().take(20).collect();
        let not_ok = self
            .stdout
            .lines()
            .filter(|l| l.trim_start().starts_with("not ok"));
        let broken = self.verdicts().into_iter().filter(|v| v.2 == "broken");
        let broken = broken.map(|(test, sub, _, why)| format!("{test}/{sub}: {}", why.join("; ")));
        let lines = not_ok.map(str::to_owned).chain(broken);
        let lines = lines.chain(tail.into_iter().rev().map(|l| format!("stderr: {l}")));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Everything said, for a failed assertion.
    pub fn said(&self) -> String {
        format!(
            "status {}\n--- stdout\n{}\n--- stderr\n{}\n--- of it, what is wrong\n{}",
            self.status,
            self.stdout,
            self.stderr,
            self.wrong()
        )
    }

    /// (test, subtest, verdict, reasons) of every subtest.
    pub fn verdicts(&self) -> Vec<(String, String, String, Vec<String>)> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let mut list = Vec::new();
        for test in self.results["tests"].as_array().into_iter().flatten() {
            for sub in test["subtests"].as_array().into_iter().flatten() {
                let reasons = sub["reasons"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(text)
                    .collect();
                list.push((
                    text(&test["name"]),
                    text(&sub["name"]),
                    text(&sub["verdict"]),
                    reasons,
                ));
            }
        }
        list
    }

    /// The verdict of one subtest.
    pub fn verdict(&self, test: &str, subtest: &str) -> String {
        let all = self.verdicts();
        let found = all.into_iter().find(|(t, s, ..)| t == test && s == subtest);
        found
            .unwrap_or_else(|| panic!("no subtest {test}/{subtest}: {}", self.said()))
            .2
    }
}

/// Where `wtblk` keeps things; also where the built kernel and guest lie.
pub fn built(what: &str) -> PathBuf {
    let output = wtblk()
        .args(["kernel", what])
        .output()
        .expect("wtblk starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
}

/// Lets children inherit the descriptor; its number.
pub fn inherited(fd: &(impl AsFd + AsRawFd)) -> String {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    fd.as_raw_fd().to_string()
}

/// Reads lines in a thread, so that a wait for one can have a limit.
pub fn lines(from: impl std::io::Read + Send + 'static) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if send
                .send(String::from_utf8_lossy(&line).into_owned())
                .is_err()
            {
                return;
            }
        }
    });
    receive
}
