// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A test while it runs: its name, its folder, and what it found.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use crate::world::World;

/// Why a test stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fail {
    /// It cannot be done here.
    Skip(String),
    /// Something that it needs went wrong.
    Error(String),
    /// Something does not return.
    Hung(String),
}

/// Turns an error into a [`Fail::Error`] that says what was tried.
pub trait OrFail<T> {
    /// `what` was tried.
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Fail>;
}

impl<T> OrFail<T> for io::Result<T> {
    fn or_fail(self, what: impl FnOnce() -> String) -> Result<T, Fail> {
        self.map_err(|e| Fail::Error(format!("{}: {e}", what())))
    }
}

/// What a test found so far. Shared, so that the runner can print it when the
/// test's thread does not come back.
#[derive(Default)]
pub struct Findings {
    /// What was wrong.
    pub failures: Mutex<Vec<String>>,
    /// What is worth telling.
    pub notes: Mutex<Vec<String>>,
    /// Who waited for whom, one line each.
    pub waits: Mutex<Vec<String>>,
    /// The thread that runs the test; 0 before it started.
    pub tid: AtomicI32,
}

/// A running test.
pub struct Test {
    /// The world.
    pub world: &'static World,
    /// Its name.
    pub name: &'static str,
    /// Its own folder on the data disk.
    pub dir: PathBuf,
    findings: Arc<Findings>,
}

/// More lines than this help nobody.
const MOST_LINES: usize = 20;
/// Lines of who waited: they are data, and no test makes more.
const MOST_WAITS: usize = 100;

impl Test {
    /// A test about to run in the calling thread.
    pub fn new(
        world: &'static World,
        name: &'static str,
        findings: Arc<Findings>,
    ) -> Result<Test, Fail> {
        findings.tid.store(crate::sys::gettid(), Ordering::Release);
        let dir = PathBuf::from(crate::world::MOUNT).join(name);
        std::fs::create_dir_all(&dir).or_fail(|| format!("mkdir {}", dir.display()))?;
        Ok(Test {
            world,
            name,
            dir,
            findings,
        })
    }

    /// Removes what an earlier boot left in the folder of test `name`; no file in it has a marked call in
    /// this boot. Call it before the test begins: what it writes is not the test's.
    pub fn clear(name: &str) -> Result<(), Fail> {
        let dir = PathBuf::from(crate::world::MOUNT).join(name);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => {
                removed.or_fail(|| format!("removing {} of an earlier boot", dir.display()))?
            }
        }
        // XFS gives the blocks back in the background; this waits for it, and writes the log.
        let mount = std::fs::File::open(crate::world::MOUNT);
        mount
            .and_then(|mount| crate::sys::syncfs(&mount))
            .or_fail(|| "syncfs".into())
    }

    /// Whether nothing is wrong so far.
    pub fn is_well(&self) -> bool {
        let failures = &self.findings.failures;
        failures
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .is_empty()
    }

    /// Records that something is wrong; the test goes on.
    pub fn fail(&self, what: impl Into<String>) {
        push(&self.findings.failures, what.into(), MOST_LINES);
    }

    /// Records that something is wrong unless `held`.
    pub fn check(&self, held: bool, what: impl FnOnce() -> String) {
        if !held {
            self.fail(what());
        }
    }

    /// Records something worth telling.
    pub fn note(&self, what: impl Into<String>) {
        push(&self.findings.notes, what.into(), MOST_LINES);
    }

    /// The same, unless it was said before.
    pub fn note_once(&self, what: String) {
        let notes = &self.findings.notes;
        let said = notes
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .contains(&what);
        if !said {
            self.note(what);
        }
    }

    /// Records whether something waited while a call of this kind was in flight, and where; and what
    /// the semantics say of it: `waits`, `goes-on` or `open`. The harness keeps it as a table.
    pub fn waited(&self, beside: &str, deed: &str, place: Option<&str>, must: &str) {
        let (did, place) = match place {
            Some(place) => ("waited", place),
            None => ("went-on", "-"),
        };
        let line = format!("beside={beside} deed={deed} did={did} at={place} must={must}");
        push(&self.findings.waits, line, MOST_WAITS);
    }
}

fn push(list: &Mutex<Vec<String>>, line: String, most: usize) {
    let mut list = list.lock().unwrap_or_else(|e| e.into_inner());
    match list.len() {
        n if n < most => list.push(line),
        n if n == most => list.push("... more of this left out".into()),
        _ => {}
    }
}
