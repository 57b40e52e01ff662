// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The list of mutants, as cargo-mutants makes it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

/// Line and column, both from 1 on.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Span {
    pub start: Place,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Function {
    pub return_type: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Mutant {
    pub name: String,
    pub file: String,
    pub function: Option<Function>,
    pub genre: String,
    pub replacement: String,
    pub span: Span,
}

/// All mutants of these files of the tree.
pub fn mutants(tree: &Path, globs: &[String]) -> Result<Vec<Mutant>> {
    let mut command = Command::new("cargo");
    command.args(["mutants", "--no-config", "--list", "--json"]);
    for glob in globs {
        command.args(["-f", glob]);
    }
    let output = command
        .current_dir(tree)
        .output()
        .context("cargo mutants")?;
    ensure!(
        output.status.success(),
        "cargo mutants --list: {}\n(cargo install cargo-mutants?)",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).context("the list of cargo mutants")
}
