// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a sweep found, as text and as `results.json`: a grid of the points, and
//! the findings, alike ones together.

use std::collections::BTreeMap;
use std::io::{self, Write};

use serde::Serialize;
use serde_json::json;

use super::compare::Compared;
use super::record::{Booted, Done, Found, Header, Outcome, Record, SCHEMA};
use crate::plain;
use crate::report::model::status;
use crate::verify::group::shape;
use wtblk_shared::sweep::{points, points_of};

/// Cells of a row of the grid.
const WIDTH: usize = 64;
/// Points that a group names in the text.
const NAMED: usize = 8;

/// Findings that are alike.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Group {
    /// A promise, `guest`, or `kernel-log`.
    pub source: String,
    /// What happened at the first of them.
    pub happened: String,
    /// How many points show it.
    pub points: u64,
    /// Their indexes.
    pub indexes: Vec<u64>,
    /// The first of them from near.
    pub example: Vec<String>,
}

/// The sign of an outcome in the grid.
fn sign(outcome: Outcome) -> char {
    match outcome {
        Outcome::Held => '.',
        Outcome::Broken => 'F',
        Outcome::ShutDown => 'S',
        Outcome::Hung => 'H',
        Outcome::Diverged => 'd',
        Outcome::NotApplied => '-',
        Outcome::Undecided => '?',
    }
}

/// What the signs mean.
const LEGEND: &str = ". held  F finding  S shut down  H hung with the device  d diverged  - not applied  ? undecided";

/// All points of the parts that are at hand.
pub struct Whole<'a> {
    header: &'a Header,
    records: &'a [Record],
    counts: Option<Vec<u32>>,
    done: BTreeMap<u64, &'a Done>,
}

impl<'a> Whole<'a> {
    /// Of one sweep, or of its parts.
    pub fn of(records: &'a [Record]) -> Option<Whole<'a>> {
        let first = records.first()?;
        Some(Whole {
            header: &first.header,
            records,
            counts: records.iter().find_map(Record::counts),
            done: records
                .iter()
                .flat_map(|r| r.points.iter().map(|(i, d)| (*i, d)))
                .collect(),
        })
    }

    /// How many points have this outcome.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.done.values().filter(|d| d.outcome == outcome).count() as u64
    }

    /// Points that are done.
    pub fn done(&self) -> u64 {
        self.done.len() as u64
    }

    /// All points of the sweep, done or not; 0 where that is not known yet.
    pub fn points(&self) -> u64 {
        let swept = &self.header.swept;
        let counts = self.counts.iter().flatten();
        let of_each: u64 = counts.map(|n| points_of(*n, swept.pairs)).sum();
        of_each * swept.faults.len() as u64
    }

    /// Why there is no point at all, where all is counted and there is none.
    fn no_points(&self) -> Option<String> {
        let counts = self.counts.as_ref().filter(|_| self.points() == 0)?;
        let counted: Vec<String> = (counts.iter().enumerate())
            .map(|(shape, n)| format!("{} {n}", self.shape_name(shape)))
            .collect();
        let needs = match self.header.swept.pairs {
            true => "--pairs needs a call with two requests at least",
            false => "no call makes a request of those that would fail",
        };
        Some(format!("{needs}; counted were: {}", counted.join(", ")))
    }

    /// The status of a sweep that came to its end.
    pub fn status(&self) -> u8 {
        let broken_clean = self.cleans().any(|found| !found.is_empty());
        let decided = [Outcome::Held, Outcome::ShutDown, Outcome::Hung];
        let damaged = self.boots().any(|boot| !boot.damage.is_empty());
        if self.count(Outcome::Broken) > 0 || broken_clean || damaged {
            status::FINDING
        } else if decided.iter().any(|o| self.count(*o) > 0) {
            status::HELD
        } else {
            status::UNDECIDED
        }
    }

    fn cleans(&self) -> impl Iterator<Item = &[Found]> {
        let all = self.records.iter().flat_map(|r| r.cleans.values());
        all.map(|clean| clean.findings.as_slice())
    }

    fn boots(&self) -> impl Iterator<Item = &Booted> {
        self.records.iter().flat_map(|r| &r.boots)
    }

    /// Findings that are alike, the most frequent first.
    pub fn groups(&self) -> Vec<Group> {
        let mut places: BTreeMap<(String, String), usize> = BTreeMap::new();
        let mut groups: Vec<Group> = Vec::new();
        for done in self.done.values() {
            for found in &done.findings {
                let key = (found.source.clone(), shape(&found.happened));
                let at = *places.entry(key).or_insert_with(|| {
                    groups.push(Group {
                        source: found.source.clone(),
                        happened: found.happened.clone(),
                        points: 0,
                        indexes: Vec::new(),
                        example: found.text.clone(),
                    });
                    groups.len() - 1
                });
                if let Some(group) = groups.get_mut(at)
                    && group.indexes.last() != Some(&done.index)
                {
                    group.points += 1;
                    group.indexes.push(done.index);
                }
            }
        }
        groups.sort_by_key(|g| std::cmp::Reverse(g.points));
        groups
    }

    /// The grid, the findings and the sums, for people.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.print_grid(out)?;
        for clean in self.records.iter().flat_map(|r| r.cleans.values()) {
            for found in &clean.findings {
                let name = self.shape_name(clean.shape);
                writeln!(out, "\nwithout any fault, {name}: {}", found.source)?;
                for line in &found.text {
                    writeln!(out, "  {line}")?;
                }
            }
        }
        for group in self.groups() {
            let named: Vec<String> = group
                .indexes
                .iter()
                .take(NAMED)
                .filter_map(|index| self.done.get(index).map(|d| name(d)))
                .collect();
            let more = group.indexes.len().saturating_sub(named.len());
            let more = if more > 0 {
                format!(", {more} more")
            } else {
                String::new()
            };
            writeln!(
                out,
                "\n{} at {} points: {}{more}",
                group.source,
                group.points,
                named.join(", ")
            )?;
            for line in &group.example {
                writeln!(out, "  {line}")?;
            }
        }
        for boot in self.boots().filter(|boot| !boot.damage.is_empty()) {
            writeln!(
                out,
                "\nrepair after {} ({} points): xfs_repair -n finds damage",
                boot.dir, boot.points
            )?;
            for line in &boot.damage {
                writeln!(out, "  {}", plain::line(line))?;
            }
        }
        let mut not_repaired: BTreeMap<&str, u64> = BTreeMap::new();
        for why in self.boots().filter_map(|boot| boot.not_repaired.as_deref()) {
            *not_repaired.entry(why).or_default() += 1;
        }
        for (why, n) in not_repaired {
            writeln!(out, "# repair not checked after {n} boots: {why}")?;
        }
        let mut whys: BTreeMap<(Outcome, String), (&str, u64)> = BTreeMap::new();
        for done in self.done.values() {
            if let Some(why) = &done.why
                && done.outcome != Outcome::Hung
            {
                whys.entry((done.outcome, shape(why))).or_insert((why, 0)).1 += 1;
            }
        }
        for ((outcome, _), (why, n)) in whys.iter().take(16) {
            writeln!(out, "# {n} points {}, the first: {why}", word(*outcome))?;
        }
        let sums: Vec<String> = OUTCOMES
            .iter()
            .map(|o| (word(*o), self.count(*o)))
            .filter(|(_, n)| *n > 0)
            .map(|(word, n)| format!("{n} {word}"))
            .collect();
        writeln!(
            out,
            "# {} of {} points: {}",
            self.done.len(),
            self.points(),
            if sums.is_empty() {
                "none".to_owned()
            } else {
                sums.join(", ")
            }
        )?;
        if let Some(why) = self.no_points() {
            writeln!(out, "# no points: {why}")?;
        }
        let rates = self.rates();
        writeln!(
            out,
            "# {} boots; within them {:.1} points/s, boots included {:.0} points/min",
            rates.boots, rates.per_second, rates.per_minute
        )
    }

    fn print_grid(&self, out: &mut impl Write) -> io::Result<()> {
        let swept = &self.header.swept;
        writeln!(out, "{LEGEND}")?;
        let Some(counts) = &self.counts else {
            return writeln!(out, "the requests are not counted yet");
        };
        let mut rows: BTreeMap<(usize, usize, u32), String> = BTreeMap::new();
        for p in points(counts, swept.faults.len(), swept.pairs) {
            // Of pairs, a row for each first request.
            let first = if swept.pairs { p.first } else { 0 };
            let row = rows.entry((p.shape, p.fault, first)).or_default();
            row.push(self.done.get(&p.index).map_or(' ', |d| sign(d.outcome)));
        }
        for ((shape, fault, first), cells) in rows {
            let fault = swept.faults.get(fault).map_or("", String::as_str);
            let first = if first > 0 {
                format!(" {first}+")
            } else {
                String::new()
            };
            let label = format!("{} {fault}{first}", self.shape_name(shape));
            let cells: Vec<char> = cells.chars().collect();
            for (i, part) in cells.chunks(WIDTH).enumerate() {
                let label = if i == 0 { label.as_str() } else { "" };
                writeln!(out, "{label:<36} |{}|", part.iter().collect::<String>())?;
            }
        }
        Ok(())
    }

    fn shape_name(&self, shape: usize) -> String {
        let shape = self.header.swept.shapes.get(shape);
        shape.map_or_else(String::new, |(test, name)| format!("{test}/{name}"))
    }

    /// How fast it went.
    pub fn rates(&self) -> Rates {
        let boots = || self.boots();
        // How long a boot took that a kill has ended is not known: none of its points count here.
        let timed = boots().filter(|b| b.seconds > 0.0);
        let points: u64 = timed.map(|b| b.points).sum();
        let per = |seconds: f64| {
            if seconds > 0.0 {
                points as f64 / seconds
            } else {
                0.0
            }
        };
        Rates {
            boots: boots().count(),
            points,
            per_second: per(boots().map(|b| b.sweeping).sum()),
            per_minute: 60.0 * per(boots().map(|b| b.seconds).sum()),
        }
    }

    /// `results.json`.
    pub fn json(&self, status: u8, error: Option<String>, compared: Option<&Compared>) -> Vec<u8> {
        let swept = &self.header.swept;
        let grid: Vec<_> = self.done.values().map(|d| json!({
            "index": d.index, "test": d.test, "shape": d.shape, "fault": d.fault, "requests": d.requests,
            "outcome": d.outcome, "why": d.why, "result": d.result, "fsync": d.fsync, "rewrite": d.rewrite,
            "decided": d.decided, "broken": d.findings.iter().map(|f| &f.source).collect::<Vec<_>>(),
            "boot": d.boot, "events": d.events,
        })).collect();
        let cleans: BTreeMap<&usize, _> = self.records.iter().flat_map(|r| &r.cleans).collect();
        let cleans: Vec<_> = cleans.values().map(|c| json!({
            "name": self.shape_name(c.shape), "requests": c.requests, "counted": c.counted.len(), "findings": c.findings,
        })).collect();
        let outcomes: BTreeMap<&str, u64> = OUTCOMES
            .iter()
            .map(|o| (word(*o), self.count(*o)))
            .collect();
        let boots: Vec<_> = self.boots().collect();
        let document = json!({
            "schema": SCHEMA, "wtblk": env!("CARGO_PKG_VERSION"), "status": status, "error": error,
            "command": self.header.command, "swept": swept,
            "shards": self.records.iter().map(|r| r.header.shard).collect::<Vec<_>>(),
            "kernel": self.header.kernel.path, "points": self.points(), "outcomes": outcomes,
            "clean": cleans, "grid": grid, "groups": self.groups(), "boots": boots,
            "rates": self.rates(), "compared": compared,
        });
        let mut bytes = serde_json::to_vec_pretty(&document).unwrap_or_default();
        bytes.push(b'\n');
        bytes
    }
}

/// How fast a sweep went.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Rates {
    /// Boots.
    pub boots: usize,
    /// Points in them.
    pub points: u64,
    /// Points per second, from the first point's begin to the last one's end in each boot.
    pub per_second: f64,
    /// Points per minute, all of the boots included.
    pub per_minute: f64,
}

const OUTCOMES: [Outcome; 7] = [
    Outcome::Held,
    Outcome::Broken,
    Outcome::ShutDown,
    Outcome::Hung,
    Outcome::Diverged,
    Outcome::NotApplied,
    Outcome::Undecided,
];

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Held => "held",
        Outcome::Broken => "broken",
        Outcome::ShutDown => "shut-down",
        Outcome::Hung => "hung",
        Outcome::Diverged => "diverged",
        Outcome::NotApplied => "not-applied",
        Outcome::Undecided => "undecided",
    }
}

/// A point's name for people: `multi-extent/holes ioerr 3+5`.
fn name(d: &Done) -> String {
    let requests: Vec<String> = d.requests.iter().map(u32::to_string).collect();
    format!("{}/{} {} {}", d.test, d.shape, d.fault, requests.join("+"))
}

#[cfg(test)]
mod tests {
    use super::super::record::Line;
    use super::super::record::tests::{clean, done, header};
    use super::*;

    fn record(dir: &tempfile::TempDir) -> Record {
        let mut record = Record::create(dir.path(), header()).unwrap();
        record.add(Line::Clean(clean(0, 3))).unwrap();
        record.add(Line::Clean(clean(1, 1))).unwrap();
        record
    }

    fn text(records: &[Record]) -> String {
        let mut out = Vec::new();
        Whole::of(records).unwrap().print(&mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn the_grid_shows_each_point_and_alike_findings_stand_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut r = record(&dir);
        for (index, happened) in [(0, "request 7 failed"), (2, "request 123 failed")] {
            let mut point = done(index, Outcome::Broken);
            point.findings.push(Found {
                source: "error-report".into(),
                happened: happened.into(),
                text: vec![happened.into()],
                finding: None,
            });
            r.add(Line::Point(Box::new(point))).unwrap();
        }
        r.add(Line::Point(Box::new(done(1, Outcome::Held))))
            .unwrap();
        let records = [r];
        let said = text(&records);
        assert!(
            said.contains("t/a ioerr                            |F.F|"),
            "{said}"
        );
        assert!(
            said.contains("t/b ioerr                            | |"),
            "{said}"
        );
        assert!(
            said.contains("error-report at 2 points: t/a ioerr 1, t/a ioerr 3\n"),
            "{said}"
        );
        assert!(said.contains("3 of 4 points: 1 held, 2 broken"), "{said}");
        let whole = Whole::of(&records).unwrap();
        assert_eq!(whole.groups().len(), 1);
        assert_eq!(whole.status(), status::FINDING);
    }

    #[test]
    fn the_status_says_what_was_decided() {
        for (outcomes, want) in [
            (vec![], status::UNDECIDED),
            (
                vec![Outcome::Diverged, Outcome::NotApplied, Outcome::Undecided],
                status::UNDECIDED,
            ),
            (vec![Outcome::Diverged, Outcome::ShutDown], status::HELD),
            (vec![Outcome::Held], status::HELD),
            (vec![Outcome::Held, Outcome::Broken], status::FINDING),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut r = record(&dir);
            for (i, outcome) in outcomes.iter().enumerate() {
                r.add(Line::Point(Box::new(done(i as u64, *outcome))))
                    .unwrap();
            }
            assert_eq!(Whole::of(&[r]).unwrap().status(), want, "{outcomes:?}");
        }
        // What is wrong without any fault counts, too.
        let dir = tempfile::tempdir().unwrap();
        let mut r = Record::create(dir.path(), header()).unwrap();
        let mut bad = clean(0, 1);
        bad.findings.push(Found {
            source: "guest".into(),
            happened: "x".into(),
            text: Vec::new(),
            finding: None,
        });
        r.add(Line::Clean(bad)).unwrap();
        assert_eq!(Whole::of(&[r]).unwrap().status(), status::FINDING);
    }

    #[test]
    fn a_disk_that_a_boot_left_damaged_is_a_finding_and_one_not_looked_at_is_told() {
        let boot = |dir: &str, damage: &[&str], not_repaired: Option<&str>| Booted {
            dir: dir.into(),
            ended: "it ended by itself".into(),
            seconds: 1.0,
            points: 1,
            sweeping: 1.0,
            damage: damage.iter().map(|line| (*line).to_owned()).collect(),
            not_repaired: not_repaired.map(str::to_owned),
        };
        let dir = tempfile::tempdir().unwrap();
        let mut r = record(&dir);
        let held = Line::Point(Box::new(done(0, Outcome::Held)));
        r.add(held).unwrap();
        r.add(Line::Boot(boot("boot-1", &[], Some("it hung"))))
            .unwrap();
        let mut records = [r];
        assert_eq!(Whole::of(&records).unwrap().status(), status::HELD);
        assert!(text(&records).contains("repair not checked after 1 boots: it hung\n"));
        let [r] = &mut records;
        r.add(Line::Boot(boot("boot-2", &["bad magic"], None)))
            .unwrap();
        assert_eq!(Whole::of(&records).unwrap().status(), status::FINDING);
        let said = text(&records);
        assert!(said.contains("repair after boot-2"), "{said}");
        assert!(said.contains("\n  bad magic\n"), "{said}");
    }

    #[test]
    fn a_sweep_without_points_says_why() {
        for (pairs, count, why) in [
            (
                true,
                1,
                "--pairs needs a call with two requests at least; counted were: t/a 1, t/b 1",
            ),
            (
                false,
                0,
                "no call makes a request of those that would fail; counted were: t/a 0, t/b 0",
            ),
            (false, 1, ""),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let mut head = header();
            head.swept.pairs = pairs;
            let mut r = Record::create(dir.path(), head).unwrap();
            for shape in 0..2 {
                r.add(Line::Clean(clean(shape, count))).unwrap();
            }
            let said = text(&[r]);
            assert_eq!(said.contains("# no points: "), !why.is_empty(), "{said}");
            assert!(said.contains(why), "{said}");
        }
    }

    #[test]
    fn parts_make_a_whole() {
        let (one, two, all) = (
            tempfile::tempdir(),
            tempfile::tempdir(),
            tempfile::tempdir(),
        );
        let (one, two, all) = (one.unwrap(), two.unwrap(), all.unwrap());
        let mut parts = [record(&one), record(&two)];
        let mut whole = record(&all);
        for index in 0..4_u64 {
            let line = Line::Point(Box::new(done(index, Outcome::Held)));
            parts[index as usize % 2].add(line.clone()).unwrap();
            whole.add(line).unwrap();
        }
        assert_eq!(text(&parts), text(&[whole]));
    }
}
