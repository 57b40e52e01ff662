// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can be run: the guest's tests, their scenarios, and the seeded defects
//! with what each must break.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::cpio;
use super::paths;

/// Names of the tests in this initramfs. The guest program is a static Linux binary, so
/// the host just asks it: no second list to keep in step.
pub fn tests(initramfs: &Path) -> Result<Vec<String>> {
    let text = listed(initramfs, "list")?;
    let tests: Vec<String> = text.lines().map(str::to_owned).collect();
    if tests.is_empty() {
        bail!("{} lists no test", initramfs.display());
    }
    Ok(tests)
}

/// What can be swept: test and name of each shape.
pub fn shapes(initramfs: &Path) -> Result<Vec<(String, String)>> {
    let text = listed(initramfs, "list-sweep")?;
    let words = text.lines().filter_map(|line| line.split_once(' '));
    Ok(words
        .map(|(test, name)| (test.to_owned(), name.to_owned()))
        .collect())
}

/// What the guest program answers to this option, kept beside the initramfs.
fn listed(initramfs: &Path, option: &str) -> Result<String> {
    let list = initramfs.with_extension(option);
    let text = match std::fs::read_to_string(&list) {
        Ok(text) => text,
        Err(_) => {
            let text = ask(initramfs, option)?;
            // A read-only folder only costs the asking again.
            let _ = paths::write_whole(&list, text.as_bytes());
            text
        }
    };
    Ok(text)
}

fn ask(initramfs: &Path, option: &str) -> Result<String> {
    let bytes =
        std::fs::read(initramfs).with_context(|| format!("cannot read {}", initramfs.display()))?;
    let init = cpio::find(&bytes, "init")
        .with_context(|| format!("{} holds no /init", initramfs.display()))?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("init");
    std::fs::write(&path, init)?;
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    let output = Command::new(&path)
        .arg(format!("--{option}"))
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            format!(
                "cannot run the /init of {} to list its tests",
                initramfs.display()
            )
        })?;
    if !output.status.success() {
        bail!(
            "the /init of {} does not know --{option}",
            initramfs.display()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The scenario that belongs to a test, if it has one. Several tests may have the same: a link.
pub fn scenario_of(test: &str) -> Result<Option<PathBuf>> {
    let path = paths::root()?
        .join("guest-tests/scenarios")
        .join(format!("{test}.toml"));
    if !path.is_file() {
        return Ok(None);
    }
    let whole = path.canonicalize();
    whole.with_context(|| path.display().to_string()).map(Some)
}

/// A defect of the second kernel patch and what it must show.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Defect {
    /// Its name, as `iomap.wt_defect` takes it.
    pub name: String,
    /// What it does, in a line.
    pub about: String,
    /// What each test must, may and must not break under it.
    pub test: Vec<Expectation>,
}

/// What one test shows of a defect. What is in neither list must stay silent.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The test.
    pub name: String,
    /// Subtests that must break: promises, `guest`, `kernel-log`.
    #[serde(default)]
    pub must: Vec<String>,
    /// Subtests that may break.
    #[serde(default)]
    pub may: Vec<String>,
}

impl Expectation {
    /// Compares with the subtests that broke; the differences in words, none if as expected.
    pub fn differences(&self, broken: &[String]) -> Vec<String> {
        let missing = self.must.iter().filter(|name| !broken.contains(name));
        let extra = broken
            .iter()
            .filter(|name| !self.must.contains(name) && !self.may.contains(name));
        missing
            .map(|name| format!("{name} should be broken and is not"))
            .chain(extra.map(|name| format!("{name} is broken and should not be")))
            .collect()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DefectFile {
    defect: Vec<Defect>,
}

/// The table of defects, `kernel-config/defects.toml`.
pub fn defects() -> Result<Vec<Defect>> {
    let path = paths::root()?.join("kernel-config/defects.toml");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let file: DefectFile = toml::from_str(&text).with_context(|| path.display().to_string())?;
    Ok(file.defect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defect_table_is_readable_and_each_defect_must_break_something() {
        let defects = defects().unwrap();
        assert!(!defects.is_empty());
        for defect in defects {
            assert!(
                defect.test.iter().any(|t| !t.must.is_empty()),
                "{} is found by nothing",
                defect.name
            );
        }
    }

    #[test]
    fn differences_are_told_both_ways() {
        let expectation = Expectation {
            name: "t".into(),
            must: vec!["a".into()],
            may: vec!["b".into()],
        };
        assert!(
            expectation
                .differences(&["a".into(), "b".into()])
                .is_empty()
        );
        assert!(expectation.differences(&["a".into()]).is_empty());
        assert_eq!(
            expectation.differences(&["b".into()]),
            ["a should be broken and is not"]
        );
        assert_eq!(
            expectation.differences(&["a".into(), "c".into()]),
            ["c is broken and should not be"]
        );
    }
}
