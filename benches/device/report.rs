// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables and JSON of a run.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::backend::Memory;
use crate::limits::Limits;
use crate::plan::{self, Around, Cell, Store};
use crate::stats::{Median, median};

/// One stretch of one back end.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    pub per_second: f64,
    /// CPU time of the back end per request, microseconds.
    pub cpu_us: f64,
}

/// One back end in one cell.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub name: String,
    pub peer: bool,
    pub figures: Vec<Figures>,
    pub memory: Memory,
    /// CPUs used while nobody asks anything.
    pub idle: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Row {
    cell: String,
    store: &'static str,
    write: bool,
    bytes: usize,
    depth: usize,
    backends: Vec<Summary>,
}

#[derive(Debug, Serialize)]
struct Summary {
    per_second: Median,
    cpu_us: Median,
    /// To the best peer of the cell, pairs of the same round.
    ratio: Option<Median>,
    cpu_ratio: Option<Median>,
    #[serde(flatten)]
    measured: Measured,
}

#[derive(Debug, Serialize)]
struct Aim {
    what: String,
    aim: f64,
    /// The ratio is to stay below the aim.
    at_most: bool,
    /// Nothing is to change: the aim lies within the interval.
    same: bool,
    reached: Option<Median>,
}

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    schema: u32,
    commit: String,
    machine: String,
    peer: String,
    disk: String,
    rounds: usize,
    stretch_ms: u64,
    pub seconds: u64,
    pub limits: Limits,
    rows: Vec<Row>,
}

fn said(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    text.unwrap_or_default()
        .lines()
        .next()
        .unwrap_or("")
        .to_owned()
}

fn each(figures: &[Figures], what: fn(&Figures) -> f64) -> Vec<f64> {
    figures.iter().map(what).collect()
}

/// Median of the ratios of the same rounds.
fn ratio(a: &[Figures], b: &[Figures], what: fn(&Figures) -> f64) -> Option<Median> {
    let pairs = a.iter().zip(b).map(|(a, b)| what(a) / what(b));
    median(&pairs.collect::<Vec<_>>())
}

fn speed(f: &Figures) -> f64 {
    f.per_second
}

fn cpu(f: &Figures) -> f64 {
    f.cpu_us
}

impl Report {
    pub fn new(around: &Around, disk: &Path, rounds: usize, stretch: Duration) -> Report {
        let kind = said("stat", &["-f", "-c", "%T", &disk.to_string_lossy()]);
        let direct = if around.disk_direct {
            "O_DIRECT"
        } else {
            "buffered: it has no O_DIRECT"
        };
        Report {
            schema: 1,
            commit: said("git", &["describe", "--always", "--dirty"]),
            machine: crate::machine(),
            peer: said("qemu-storage-daemon", &["--version"]),
            disk: format!("{kind}, {direct}"),
            rounds,
            stretch_ms: stretch.as_millis() as u64,
            seconds: 0,
            limits: Limits::default(),
            rows: Vec::new(),
        }
    }

    pub fn add(&mut self, cell: &Cell, all: Vec<Measured>) {
        let mid = |m: &Measured| median(&each(&m.figures, speed)).map_or(0.0, |m| m.median);
        let best = all
            .iter()
            .filter(|m| m.peer)
            .max_by(|a, b| mid(a).total_cmp(&mid(b)))
            .map(|m| m.figures.clone());
        let summary = |measured: Measured| {
            let figures = &measured.figures;
            Some(Summary {
                per_second: median(&each(figures, speed))?,
                cpu_us: median(&each(figures, cpu))?,
                ratio: best.as_ref().and_then(|b| ratio(figures, b, speed)),
                cpu_ratio: best.as_ref().and_then(|b| ratio(figures, b, cpu)),
                measured,
            })
        };
        self.rows.push(Row {
            cell: cell.name(),
            store: cell.store.name(),
            write: cell.job.write,
            bytes: cell.job.bytes,
            depth: cell.job.depth,
            backends: all.into_iter().filter_map(summary).collect(),
        });
    }

    fn find(&self, store: Store, write: bool, bytes: usize, depth: usize) -> Option<&Row> {
        self.rows
            .iter()
            .find(|r| (r.store, r.write, r.bytes, r.depth) == (store.name(), write, bytes, depth))
    }

    fn aims(&self) -> Vec<Aim> {
        const K4: usize = 4 << 10;
        const K128: usize = 128 << 10;
        let mut aims = Vec::new();
        let name = |row: &Row, who: &str| format!("{}: {who}", row.cell);
        let cells = [
            (Store::Null, false, K4, 32, plan::DEFAULT, 1.3),
            (Store::Null, true, K4, 32, plan::DEFAULT, 1.0),
            (Store::Tmpfs, false, K4, 32, plan::DEFAULT, 1.8),
            (Store::Tmpfs, true, K4, 32, plan::DEFAULT, 1.8),
            (Store::Tmpfs, true, K128, 32, plan::DEFAULT, 1.2),
            (Store::Disk, false, K4, 32, plan::DEFAULT, 1.0),
            (Store::Disk, true, K4, 32, plan::DEFAULT, 1.0),
            (Store::Disk, true, K128, 32, plan::DEFAULT, 1.0),
            (Store::Null, false, K4, 1, plan::SLEEPS, 1.0),
            (Store::Null, true, K4, 1, plan::SLEEPS, 1.0),
            (Store::Tmpfs, false, K4, 1, plan::SLEEPS, 1.1),
            (Store::Tmpfs, true, K4, 1, plan::SLEEPS, 1.1),
            (Store::Null, false, K4, 1, plan::BRIEF, 1.0),
            (Store::Null, true, K4, 1, plan::BRIEF, 1.0),
            (Store::Tmpfs, false, K4, 1, plan::BRIEF, 1.1),
            (Store::Tmpfs, true, K4, 1, plan::BRIEF, 1.1),
            (Store::Null, false, K4, 1, plan::DEFAULT, 8.0),
            (Store::Null, true, K4, 1, plan::DEFAULT, 8.0),
            (Store::Tmpfs, false, K4, 1, plan::DEFAULT, 3.5),
            (Store::Tmpfs, true, K4, 1, plan::DEFAULT, 3.5),
        ];
        for (store, write, bytes, depth, who, aim) in cells {
            if let Some(row) = self.find(store, write, bytes, depth) {
                aims.push(Aim {
                    what: name(row, who),
                    aim,
                    at_most: false,
                    same: false,
                    reached: row.of(who).and_then(|s| s.ratio),
                });
            }
        }
        for (store, aim) in [(Store::Null, 1.0), (Store::Tmpfs, 1.1)] {
            for write in [false, true] {
                let Some(row) = self.find(store, write, K4, 1) else {
                    continue;
                };
                let peer = row.backends.iter();
                let mut peer = peer.filter(|s| s.measured.name.ends_with(plan::PEER_SLEEPS));
                let pair = row.of(plan::SLEEPS).zip(peer.next());
                aims.push(Aim {
                    what: name(
                        row,
                        "verify, poll off against a peer that does not poll either",
                    ),
                    aim,
                    at_most: false,
                    same: false,
                    reached: pair
                        .and_then(|(a, b)| ratio(&a.measured.figures, &b.measured.figures, speed)),
                });
            }
        }
        for write in [false, true] {
            if let Some(row) = self.find(Store::Tmpfs, write, K4, 32) {
                aims.push(Aim {
                    what: format!("{}: CPU time per request", row.cell),
                    aim: 0.6,
                    at_most: true,
                    same: false,
                    reached: row.of(plan::DEFAULT).and_then(|s| s.cpu_ratio),
                });
            }
            for (who, base, store, aim) in [
                ("trace", "off", Store::Null, 0.95),
                (plan::DEFAULT, "off", Store::Null, 0.85),
                ("verify, all digests", "off", Store::Null, 0.6),
                (plan::EMPTY, plan::DEFAULT, Store::Null, 1.0),
                (plan::FOUR, plan::DEFAULT, Store::Memory, 0.95),
            ] {
                if let Some(row) = self.find(store, write, K4, 32) {
                    let pair = row.of(who).zip(row.of(base));
                    let reached = pair
                        .and_then(|(a, b)| ratio(&a.measured.figures, &b.measured.figures, speed));
                    aims.push(Aim {
                        what: format!("{}: {who} against {base}", row.cell),
                        aim,
                        at_most: false,
                        same: who == plan::EMPTY,
                        reached,
                    });
                }
            }
        }
        for row in &self.rows {
            for s in &row.backends {
                let name = &s.measured.name;
                let Some(other) = row.of(&format!("{}{name}", plan::OTHER)) else {
                    continue;
                };
                aims.push(Aim {
                    what: format!("{}: {name} against the other build", row.cell),
                    aim: 1.0,
                    at_most: false,
                    same: false,
                    reached: ratio(&s.measured.figures, &other.measured.figures, speed),
                });
            }
        }
        let ours = |row: &Row| row.of(plan::DEFAULT).map(|s| s.measured.clone());
        let ours: Vec<Measured> = self.rows.iter().filter_map(ours).collect();
        let idle: Vec<f64> = ours.iter().filter_map(|m| m.idle).collect();
        let anon = ours.iter().map(|m| m.memory.anon_kib).max();
        for (what, aim, reached) in [
            (
                "idle CPU, %, median of the cells",
                1.0,
                median(&idle).map(|m| m.times(100.0)),
            ),
            (
                "memory of our own, MiB, the largest of the cells",
                32.0,
                anon.and_then(|kib| median(&[kib as f64 / 1024.0])),
            ),
        ] {
            aims.push(Aim {
                what: what.to_owned(),
                aim,
                at_most: true,
                same: false,
                reached,
            });
        }
        aims
    }

    /// The tables, for people and for docs/performance.md.
    pub fn markdown(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "Commit {}; {}; {}; disk: {}; {} rounds of {} ms, {} s in all. Medians and 95 % intervals.\n",
            self.commit,
            self.machine,
            self.peer,
            self.disk,
            self.rounds,
            self.stretch_ms,
            self.seconds
        );
        let _ = writeln!(out, "| aim | at least | reached | |\n|---|---|---|---|");
        for aim in self.aims() {
            let (reached, verdict) = match aim.reached {
                Some(m) => (
                    format!("{:.2} ({:.2} to {:.2})", m.median, m.low, m.high),
                    if aim.met(m) { "met" } else { "**not met**" },
                ),
                None => ("not measured".to_owned(), ""),
            };
            let bound = match (aim.same, aim.at_most) {
                (true, _) => "no difference: ",
                (_, true) => "at most ",
                _ => "",
            };
            let _ = writeln!(
                out,
                "| {} | {bound}{} | {reached} | {verdict} |",
                aim.what, aim.aim
            );
        }
        let _ = writeln!(
            out,
            "\n| cell | back end | thousand requests/s | ratio to the best peer | CPU us/request | own memory MiB | idle CPU |\n|---|---|---|---|---|---|---|"
        );
        for row in &self.rows {
            for (n, s) in row.backends.iter().enumerate() {
                let cell = if n == 0 { row.cell.as_str() } else { "" };
                let k = |v: f64| format!("{:.1}", v / 1000.0);
                let ratio = match s.ratio {
                    Some(m) => format!("{:.2} ({:.2} to {:.2})", m.median, m.low, m.high),
                    None => "".into(),
                };
                let idle = s
                    .measured
                    .idle
                    .map_or(String::new(), |i| format!("{:.2} %", i * 100.0));
                let _ = writeln!(
                    out,
                    "| {cell} | {} | {} ({} to {}) | {ratio} | {:.2} ({:.2} to {:.2}) | {:.1} | {idle} |",
                    s.measured.name,
                    k(s.per_second.median),
                    k(s.per_second.low),
                    k(s.per_second.high),
                    s.cpu_us.median,
                    s.cpu_us.low,
                    s.cpu_us.high,
                    s.measured.memory.anon_kib as f64 / 1024.0
                );
            }
        }
        let _ = writeln!(
            out,
            "\nLimits: a copy between the guest's buffers and a disk in memory takes {:.0} ns for 4 KiB (random), {:.1} us for 128 KiB. A loop that only gives requests back, without any connection, does {:.0} thousand reads and {:.0} thousand writes of 4 KiB a second at depth 32, {:.0} thousand reads at depth 1.",
            self.limits.copy_4k_ns,
            self.limits.copy_128k_ns / 1000.0,
            self.limits.bare_read / 1000.0,
            self.limits.bare_write / 1000.0,
            self.limits.bare_read_1 / 1000.0
        );
        out
    }

    /// Puts the tables into docs/performance.md.
    pub fn write_docs(&self, root: &Path) -> Result<()> {
        const BEGIN: &str = "<!-- ci/bench --docs: begin -->\n";
        const END: &str = "<!-- ci/bench --docs: end -->\n";
        let path = root.join("docs/performance.md");
        let text = fs::read_to_string(&path).context("docs/performance.md")?;
        let (head, rest) = text.split_once(BEGIN).context("no begin mark")?;
        let (_, tail) = rest.split_once(END).context("no end mark")?;
        let table = self.markdown();
        fs::write(&path, format!("{head}{BEGIN}\n{table}\n{END}{tail}"))?;
        Ok(())
    }
}

impl Row {
    fn of(&self, name: &str) -> Option<&Summary> {
        self.backends.iter().find(|s| s.measured.name == name)
    }
}

impl Aim {
    /// The interval is not on the wrong side of the aim by more than 3 %; of what should make no
    /// difference, it has the aim in it.
    fn met(&self, m: Median) -> bool {
        if self.same {
            m.low <= self.aim && self.aim <= m.high
        } else if self.at_most {
            m.high <= self.aim * 1.03
        } else {
            m.low >= self.aim * 0.97
        }
    }
}
