// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Which mutants rustc refuses: its errors, carried to the numbers in the text.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use syn::visit::{self, Visit};
use syn::{Expr, Lit};

/// Line and column, from 1 and from 0 on.
type At = (usize, usize);

/// Where numbers stand in a rewritten text.
#[derive(Default)]
struct Map {
    /// What is run when a mutant is on.
    then: Vec<(At, At, usize)>,
    /// Parentheses around mutants, or the matches that they are arms of.
    around: Vec<(At, At, BTreeSet<usize>)>,
}

fn number(e: &Expr) -> Option<usize> {
    let Expr::Call(call) = e else { return None };
    let Expr::Path(path) = &*call.func else {
        return None;
    };
    let last = &path.path.segments.last()?.ident;
    if (last != "on" && last != "on_if") || path.path.segments.len() != 3 {
        return None;
    }
    match call.args.first()? {
        Expr::Lit(l) => match &l.lit {
            Lit::Int(i) => i.base10_parse().ok(),
            _ => None,
        },
        _ => None,
    }
}

/// The mutant that deletes an arm without a guard.
fn deleted(guard: &Expr) -> Option<usize> {
    match guard {
        Expr::Paren(p) => deleted(&p.expr),
        Expr::Unary(u) => number(&u.expr),
        _ => None,
    }
}

fn ends(s: impl syn::spanned::Spanned) -> (At, At) {
    let (a, b) = (s.span().start(), s.span().end());
    ((a.line, a.column), (b.line, b.column))
}

#[derive(Default)]
struct Numbers(BTreeSet<usize>);

impl<'a> Visit<'a> for Numbers {
    fn visit_expr(&mut self, e: &'a Expr) {
        self.0.extend(number(e));
        visit::visit_expr(self, e);
    }
}

fn numbers(e: &Expr) -> BTreeSet<usize> {
    let mut all = Numbers::default();
    all.visit_expr(e);
    all.0
}

impl<'a> Visit<'a> for Map {
    fn visit_expr(&mut self, e: &'a Expr) {
        match e {
            Expr::If(i) => {
                if let Some(n) = number(&i.cond) {
                    // The condition may hold it, too.
                    for (a, b) in [ends(&i.cond), ends(&i.then_branch)] {
                        self.then.push((a, b, n));
                    }
                }
            }
            Expr::Paren(p) => {
                let all = numbers(&p.expr);
                if !all.is_empty() {
                    let (a, b) = ends(e);
                    self.around.push((a, b, all));
                }
            }
            Expr::Match(m) => {
                // Without an arm that had no guard the match may not be exhaustive.
                let guards = m.arms.iter().filter_map(|arm| arm.guard.as_ref());
                let all: BTreeSet<usize> = guards.filter_map(|(_, g)| deleted(g)).collect();
                if !all.is_empty() {
                    let (a, b) = ends(&m.expr);
                    self.around.push((a, b, all));
                }
            }
            _ => {}
        }
        visit::visit_expr(self, e);
    }
}

impl Map {
    /// The mutant that is refused at this place.
    fn then(&self, from: At, to: At) -> Option<usize> {
        let inside = self.then.iter().filter(|(a, b, _)| *a <= from && to <= *b);
        inside.max_by_key(|(a, _, _)| *a).map(|x| x.2)
    }

    /// All mutants of the smallest piece of text that must be blamed.
    fn around(&self, from: At, to: At) -> Option<&BTreeSet<usize>> {
        let inside = self
            .around
            .iter()
            .filter(|(a, b, _)| *a <= from && to <= *b);
        inside.max_by_key(|(a, _, _)| *a).map(|x| &x.2)
    }
}

/// What one look of rustc at the tree gave.
#[derive(Default)]
pub struct Refused {
    /// What these put in is no Rust.
    pub unviable: BTreeMap<usize, String>,
    /// These cannot live beside the original; alone they may.
    pub alone: BTreeSet<usize>,
}

/// Lets rustc look at the tree. Nothing refused: it builds.
pub fn check(tree: &Path, target: &Path) -> Result<Refused> {
    let output = Command::new("cargo")
        .args([
            "check",
            "--lib",
            "--profile",
            "test",
            "--message-format=json",
        ])
        .current_dir(tree)
        .env("CARGO_TARGET_DIR", target)
        .stderr(Stdio::piped())
        .output()
        .context("cargo check")?;
    let mut refused = Refused::default();
    let mut maps: BTreeMap<String, Map> = BTreeMap::new();
    let mut lost = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(line) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let message = &line["message"];
        if message["level"] != "error" {
            continue;
        }
        let spans = message["spans"].as_array().cloned().unwrap_or_default();
        if spans.is_empty() {
            continue; // "aborting due to ..."
        }
        let text = message["message"].as_str().unwrap_or_default();
        if !blame(tree, &spans, text, &mut maps, &mut refused)? {
            lost.push(message["rendered"].as_str().unwrap_or_default().to_owned());
        }
    }
    if refused.unviable.is_empty() && refused.alone.is_empty() && !output.status.success() {
        bail!(
            "cargo check fails, and no mutant is to blame:\n{}\n{}",
            lost.join("\n"),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(refused)
}

fn blame(
    tree: &Path,
    spans: &[Value],
    text: &str,
    maps: &mut BTreeMap<String, Map>,
    refused: &mut Refused,
) -> Result<bool> {
    // Primary spans first: they say where it is wrong, the others why.
    let (primary, other): (Vec<_>, Vec<_>) = spans.iter().partition(|s| s["is_primary"] == true);
    let mut around = None;
    for span in primary.into_iter().chain(other) {
        let file = span["file_name"].as_str().unwrap_or_default().to_owned();
        if !maps.contains_key(&file) {
            let mut map = Map::default();
            if let Ok(text) = std::fs::read_to_string(tree.join(&file)) {
                map.visit_file(&syn::parse_file(&text).context("not Rust")?);
            }
            maps.insert(file.clone(), map);
        }
        let at = |line: &str, column: &str| {
            let n = |key: &str| span[key].as_u64().unwrap_or(0) as usize;
            (n(line), n(column).saturating_sub(1))
        };
        let (from, to) = (
            at("line_start", "column_start"),
            at("line_end", "column_end"),
        );
        let Some(map) = maps.get(&file) else { continue };
        if let Some(number) = map.then(from, to) {
            refused.unviable.insert(number, text.to_owned());
            return Ok(true);
        }
        around = around.or_else(|| map.around(from, to).cloned());
    }
    let found = around.is_some();
    refused.alone.extend(around.into_iter().flatten());
    Ok(found)
}
