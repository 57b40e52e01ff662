// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a sweep has found so far: a file of lines that only grows, so that a kill
//! at any moment costs the point at hand and nothing else.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wtblk_shared::sweep::{Shard, points, points_of};

use super::Requests;
use super::faults::room;
use crate::harness::accel::Choice;
use crate::harness::qemu::Machine;

/// The file's name in the folder of a sweep.
pub const FILE: &str = "points.jsonl";
/// Name and version of its lines.
pub const SCHEMA: &str = "wtblk-sweep/1";
/// How a boot ended of whose end nothing is written.
const LOST: &str = "wtblk ended before the boot did";
/// A sweep's file that is larger is none of ours.
const MAX_FILE: u64 = 4 << 30;

/// What is swept: the same for all parts and boots of a sweep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Swept {
    /// Test and name of each shape.
    pub shapes: Vec<(String, String)>,
    /// The faults.
    pub faults: Vec<String>,
    /// Which requests.
    pub requests: Requests,
    /// Every two of them.
    pub pairs: bool,
    /// The seeded defect.
    pub defect: Option<String>,
    /// Seed.
    pub seed: u64,
}

/// A file that a boot needs, and how it was recognised.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    /// Where it lies.
    pub path: PathBuf,
    len: u64,
    modified_ns: u64,
}

impl Stamp {
    /// That of a file as it is now.
    pub fn of(path: &Path) -> Result<Stamp> {
        let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
        let modified = meta.modified()?.duration_since(UNIX_EPOCH);
        Ok(Stamp {
            path: path.to_path_buf(),
            len: meta.len(),
            // A tagged line cannot hold more than 64 bits (serde); 584 years of ns go into them.
            modified_ns: modified.map_or(0, |d| d.as_nanos() as u64),
        })
    }

    /// The file must still be the same.
    pub fn check(&self) -> Result<()> {
        if Stamp::of(&self.path)? != *self {
            bail!(
                "{} was changed since the sweep began: its points are another kernel's or another test's; begin a new one",
                self.path.display()
            );
        }
        Ok(())
    }
}

/// The first line: all that is needed to go on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of wtblk.
    pub wtblk: String,
    /// What is swept.
    pub swept: Swept,
    /// The part of it that is done here: K and N.
    pub shard: (u32, u32),
    /// The kernel image.
    pub kernel: Stamp,
    /// The initramfs.
    pub initramfs: Stamp,
    /// The board.
    pub machine: Machine,
    /// KVM or emulation.
    pub accel: Choice,
    /// The QEMU program.
    pub qemu: Option<PathBuf>,
    /// The flag's value.
    pub flag: u32,
    /// More words for the kernel command line.
    pub append: Option<String>,
    /// The command line, but for the folder.
    pub command: String,
}

impl Header {
    /// The part.
    pub fn shard(&self) -> Shard {
        Shard {
            part: self.shard.0,
            of: self.shard.1,
        }
    }
}

/// A clean pass: what the points of a shape are held against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clean {
    /// The shape: place in the list.
    pub shape: usize,
    /// The requests in order, as [`super::requests`] tells them.
    pub requests: Vec<String>,
    /// Places in the list of those that are counted.
    pub counted: Vec<usize>,
    /// What was wrong, without any fault.
    pub findings: Vec<Found>,
    /// The boot.
    pub boot: String,
}

/// What came of a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The fault came, everything that was decided held.
    Held,
    /// A finding.
    Broken,
    /// The file system was shut down, as it may be where a log or metadata request fails; else all held.
    ShutDown,
    /// It hangs because the device hangs, and is right to.
    Hung,
    /// The requests before were others than in the clean pass: not counted.
    Diverged,
    /// The request came, but the fault is not for one of its kind.
    NotApplied,
    /// No file could be made, or events are missing: nothing is known.
    Undecided,
}

/// Something wrong at a point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// A promise, `guest`, or `kernel-log`.
    pub source: String,
    /// What happened, with its numbers.
    pub happened: String,
    /// The same for people, from near.
    pub text: Vec<String>,
    /// The finding for machines, where it is a promise.
    pub finding: Option<Value>,
}

impl Eq for Found {}

/// A point that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Its index in the order of all points.
    pub index: u64,
    /// The test.
    pub test: String,
    /// The shape of the test.
    pub shape: String,
    /// The fault.
    pub fault: String,
    /// The requests that were to fail, from 1.
    pub requests: Vec<u32>,
    /// What came of it.
    pub outcome: Outcome,
    /// Why it is not simply held.
    pub why: Option<String>,
    /// What the call returned.
    pub result: Option<i64>,
    /// What fsync returned.
    pub fsync: Option<i64>,
    /// What the rewrite returned.
    pub rewrite: Option<i64>,
    /// Promises that were decided.
    pub decided: u32,
    /// What was wrong.
    pub findings: Vec<Found>,
    /// The boot.
    pub boot: String,
    /// Numbers of its first and last event in the trace of that boot.
    pub events: (u64, u64),
}

/// A boot that is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Booted {
    /// Its folder.
    pub dir: String,
    /// How it ended, in words.
    pub ended: String,
    /// Seconds of all of it, image and device included.
    pub seconds: f64,
    /// Points that were done in it.
    pub points: u64,
    /// Seconds from the begin of the first of them to the end of the last.
    pub sweeping: f64,
    /// What `xfs_repair -n` found wrong with the disk that it left.
    #[serde(default)]
    pub damage: Vec<String>,
    /// Why the disk was not looked at.
    #[serde(default)]
    pub not_repaired: Option<String>,
}

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "kebab-case")]
pub enum Line {
    /// See [`Header`].
    Header(Box<Header>),
    /// See [`Clean`].
    Clean(Clean),
    /// See [`Done`].
    Point(Box<Done>),
    /// See [`Booted`].
    Boot(Booted),
}

/// The file, and what it says.
#[derive(Debug)]
pub struct Record {
    file: File,
    /// The folder.
    pub dir: PathBuf,
    /// What is swept, and how.
    pub header: Header,
    /// The clean passes by shape.
    pub cleans: BTreeMap<usize, Clean>,
    /// The points that are done, by index.
    pub points: BTreeMap<u64, Done>,
    /// The boots that are over.
    pub boots: Vec<Booted>,
}

impl Record {
    /// Begins one.
    pub fn create(dir: &Path, header: Header) -> Result<Record> {
        let path = dir.join(FILE);
        let mut how = File::options();
        let file = how.read(true).append(true).create_new(true).open(&path);
        let file = file.with_context(|| format!("cannot make {}", path.display()))?;
        locked(&file, &path)?;
        let mut record = Record {
            file,
            dir: dir.to_path_buf(),
            header: header.clone(),
            cleans: BTreeMap::new(),
            points: BTreeMap::new(),
            boots: Vec::new(),
        };
        record.write(&Line::Header(Box::new(header)))?;
        Ok(record)
    }

    /// Goes on with one. A last line that was cut by a kill is taken away.
    pub fn resume(dir: &Path) -> Result<Record> {
        let path = dir.join(FILE);
        let file = File::options().read(true).append(true).open(&path);
        let mut file = file.with_context(|| format!("{} is no sweep: no {FILE}", dir.display()))?;
        locked(&file, &path)?;
        let text = whole_lines(&mut file, &path)?;
        file.set_len(text.len() as u64)?;
        Record::of(file, dir, &text)
    }

    /// Reads one that others may be writing.
    pub fn read(dir: &Path) -> Result<Record> {
        let path = dir.join(FILE);
        let mut file = File::open(&path)
            .with_context(|| format!("{} is no sweep: no {FILE}", dir.display()))?;
        let text = whole_lines(&mut file, &path)?;
        Record::of(file, dir, &text)
    }

    fn of(file: File, dir: &Path, text: &str) -> Result<Record> {
        let mut lines = text.lines().enumerate().map(|(i, line)| {
            let parsed: Result<Line, _> = serde_json::from_str(line);
            parsed.with_context(|| format!("{}, line {}", dir.join(FILE).display(), i + 1))
        });
        let header = match lines.next().transpose()? {
            Some(Line::Header(header)) if header.schema == SCHEMA => *header,
            Some(Line::Header(header)) => {
                bail!(
                    "{} is of '{}', expected '{SCHEMA}'",
                    dir.display(),
                    header.schema
                )
            }
            _ => bail!("{}: the first line of {FILE} is no header", dir.display()),
        };
        let (part, of) = header.shard;
        if part < 1 || part > of {
            bail!(
                "{}, line 1: `shard` is {part}/{of}, expected K/N with 1 <= K <= N",
                dir.join(FILE).display()
            );
        }
        let mut record = Record {
            file,
            dir: dir.to_path_buf(),
            header,
            cleans: BTreeMap::new(),
            points: BTreeMap::new(),
            boots: Vec::new(),
        };
        let mut places = HashMap::new();
        for (line, number) in lines.zip(2_usize..) {
            let line = line?;
            let wrong = match &line {
                Line::Clean(clean) => record.wrong_clean(clean),
                Line::Point(done) => {
                    places.entry(done.index).or_insert(number);
                    None
                }
                Line::Header(_) => Some("a second header".to_owned()),
                Line::Boot(_) => None,
            };
            if let Some(wrong) = wrong {
                bail!("{}, line {number}: {wrong}", dir.join(FILE).display());
            }
            record.take(line);
        }
        if let Some((index, wrong)) = record.wrong_point() {
            let number = places.get(&index).copied().unwrap_or_default();
            bail!("{}, line {number}: {wrong}", dir.join(FILE).display());
        }
        Ok(record)
    }

    /// What of a clean pass cannot be.
    fn wrong_clean(&self, clean: &Clean) -> Option<String> {
        let shapes = self.header.swept.shapes.len();
        if clean.shape >= shapes {
            return Some(format!(
                "`shape` is {}, the sweep has {shapes}, counted from 0",
                clean.shape
            ));
        }
        let most = room(1) as usize;
        if clean.counted.len() > most {
            let n = clean.counted.len();
            return Some(format!("`counted` has {n} requests, at most {most} can be"));
        }
        None
    }

    /// The first point that the sweep does not have, or has otherwise, and what is wrong with it.
    /// Where not all clean passes are there it is not known which points there are.
    fn wrong_point(&self) -> Option<(u64, String)> {
        let counts = self.counts()?;
        let swept = &self.header.swept;
        let of_each: u64 = counts.iter().map(|n| points_of(*n, swept.pairs)).sum();
        let all = of_each * swept.faults.len() as u64;
        if let Some((index, _)) = self.points.last_key_value().filter(|(i, _)| **i >= all) {
            let wrong = format!("`index` is {index}, the sweep has {all} points, counted from 0");
            return Some((*index, wrong));
        }
        let mut due = points(&counts, swept.faults.len(), swept.pairs);
        for done in self.points.values() {
            let point = due.find(|p| p.index == done.index)?;
            let (test, shape) = swept.shapes.get(point.shape)?;
            let fault = swept.faults.get(point.fault)?;
            let requests: Vec<u32> = point.requests().collect();
            if (&done.test, &done.shape, &done.fault, &done.requests)
                != (test, shape, fault, &requests)
            {
                let wrong = format!(
                    "`test`, `shape`, `fault`, `requests` are {}/{} {} {:?}; point {} is {test}/{shape} {fault} {requests:?}",
                    done.test, done.shape, done.fault, done.requests, done.index
                );
                return Some((done.index, wrong));
            }
        }
        None
    }

    /// Writes down the boots that have begun and of whose end nothing is written: wtblk was killed
    /// in them. For who goes on: they are over.
    pub fn note_lost_boots(&mut self) -> Result<()> {
        let known = |name: &String| self.boots.iter().any(|boot| boot.dir == *name);
        let begun = (1_u64..)
            .map(|n| format!("boot-{n}"))
            .take_while(|name| self.dir.join(name).exists());
        let lost: Vec<String> = begun.filter(|name| !known(name)).collect();
        for dir in lost {
            let points = self.points.values().filter(|p| p.boot == dir).count() as u64;
            self.add(Line::Boot(Booted {
                dir,
                ended: LOST.to_owned(),
                seconds: 0.0,
                points,
                sweeping: 0.0,
                damage: Vec::new(),
                not_repaired: Some(LOST.to_owned()),
            }))?;
        }
        Ok(())
    }

    /// Writes a line down, in one piece.
    pub fn add(&mut self, line: Line) -> Result<()> {
        self.write(&line)?;
        self.take(line);
        Ok(())
    }

    fn write(&mut self, line: &Line) -> Result<()> {
        let mut text = serde_json::to_string(line)?;
        text.push('\n');
        let path = self.dir.join(FILE);
        self.file
            .write_all(text.as_bytes())
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Header(_) => {}
            Line::Clean(clean) => {
                // The first one counts: points of later boots are held against the same.
                self.cleans.entry(clean.shape).or_insert(clean);
            }
            Line::Point(done) => {
                self.points.entry(done.index).or_insert(*done);
            }
            Line::Boot(boot) => self.boots.push(boot),
        }
    }

    /// How many requests each shape has; `None` until all clean passes are done.
    pub fn counts(&self) -> Option<Vec<u32>> {
        let shapes = 0..self.header.swept.shapes.len();
        shapes
            .map(|shape| self.cleans.get(&shape).map(|c| c.counted.len() as u32))
            .collect()
    }

    /// A name for the next boot: those of boots that a kill has ended are taken.
    pub fn next_boot(&self) -> String {
        (1_u64..)
            .map(|n| format!("boot-{n}"))
            .find(|name| !self.dir.join(name).exists())
            .unwrap_or_default()
    }
}

/// Two at one sweep would both do the same points.
fn locked(file: &File, path: &Path) -> Result<()> {
    if file.try_lock().is_err() {
        bail!("another wtblk is busy with {}", path.display());
    }
    Ok(())
}

/// The text up to the last newline.
fn whole_lines(file: &mut File, path: &Path) -> Result<String> {
    let len = file.metadata()?.len();
    if len > MAX_FILE {
        bail!(
            "{} has {len} bytes, at most {MAX_FILE} are read",
            path.display()
        );
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(len).read_to_end(&mut bytes)?;
    let end = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |i| i + 1);
    bytes.truncate(end);
    String::from_utf8(bytes).with_context(|| format!("{} is no text", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn header() -> Header {
        Header {
            schema: SCHEMA.into(),
            wtblk: "0".into(),
            swept: Swept {
                shapes: vec![("t".into(), "a".into()), ("t".into(), "b".into())],
                faults: vec!["ioerr".into()],
                requests: Requests::Data,
                pairs: false,
                defect: None,
                seed: 1,
            },
            shard: (1, 1),
            kernel: Stamp::of(Path::new("/proc/self/exe")).unwrap(),
            initramfs: Stamp::of(Path::new("/proc/self/exe")).unwrap(),
            machine: Machine::Microvm,
            accel: Choice::Tcg,
            qemu: None,
            flag: 0x200,
            append: None,
            command: "wtblk sweep".into(),
        }
    }

    pub fn done(index: u64, outcome: Outcome) -> Done {
        Done {
            index,
            test: "t".into(),
            shape: "a".into(),
            fault: "ioerr".into(),
            requests: vec![index as u32 + 1],
            outcome,
            why: None,
            result: Some(-5),
            fsync: Some(-5),
            rewrite: Some(4096),
            decided: 3,
            findings: Vec::new(),
            boot: "boot-1".into(),
            events: (1, 2),
        }
    }

    pub fn clean(shape: usize, count: usize) -> Clean {
        Clean {
            shape,
            requests: (0..count).map(|n| format!("write {n}")).collect(),
            counted: (0..count).collect(),
            findings: Vec::new(),
            boot: "boot-1".into(),
        }
    }

    /// Tests beside this one start programs: until they run, these have all of our files, and keep them locked.
    fn free(resume: impl Fn() -> Result<Record>) -> Record {
        let limit = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            match resume() {
                Ok(record) => return record,
                Err(e) if e.to_string().contains("another wtblk") => {}
                Err(e) => panic!("{e:#}"),
            }
            assert!(std::time::Instant::now() < limit, "it stays locked");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_sweep_goes_on_wherever_it_was_cut() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::create(dir.path(), header()).unwrap();
        record.add(Line::Clean(clean(0, 10))).unwrap();
        assert_eq!(record.counts(), None);
        record.add(Line::Clean(clean(1, 1))).unwrap();
        for index in 0..3 {
            record
                .add(Line::Point(Box::new(done(index, Outcome::Held))))
                .unwrap();
        }
        let busy = Record::resume(dir.path()).unwrap_err().to_string();
        assert!(busy.contains("another wtblk"), "{busy}");
        drop(record);
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        let first = whole.iter().position(|&b| b == b'\n').unwrap() + 1;
        for cut in first..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let mut record = free(|| Record::resume(dir.path()));
            let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count();
            assert_eq!(record.points.len(), lines.saturating_sub(3));
            // What is added then stands on a line of its own.
            record
                .add(Line::Point(Box::new(done(9, Outcome::Held))))
                .unwrap();
            drop(record);
            assert!(Record::read(dir.path()).unwrap().points.contains_key(&9));
        }
    }

    #[test]
    fn what_is_no_sweep_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let said = |text: &str| {
            std::fs::write(dir.path().join(FILE), text).unwrap();
            format!("{:#}", Record::read(dir.path()).unwrap_err())
        };
        assert!(said("").contains("no header"));
        assert!(said("{}\n").contains("line 1"));
        let mut other = header();
        other.schema = "wtblk-sweep/0".into();
        let line = serde_json::to_string(&Line::Header(Box::new(other))).unwrap();
        assert!(said(&format!("{line}\n")).contains("wtblk-sweep/0"));
        assert!(Record::read(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn what_the_sweep_cannot_have_is_refused_with_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let said = |header: Header, lines: &[Line]| {
            let header = Line::Header(Box::new(header));
            let all = std::iter::once(&header).chain(lines);
            let all: Vec<String> = all.map(|l| serde_json::to_string(l).unwrap()).collect();
            std::fs::write(dir.path().join(FILE), all.join("\n") + "\n").unwrap();
            match Record::read(dir.path()) {
                Ok(_) => String::new(),
                Err(e) => format!("{e:#}"),
            }
        };
        let point = |done: Done| Line::Point(Box::new(done));
        let cleans = || vec![Line::Clean(clean(0, 2)), Line::Clean(clean(1, 1))];
        let with = |last: Line| [cleans(), vec![point(done(0, Outcome::Held)), last]].concat();
        assert_eq!(said(header(), &with(point(done(1, Outcome::Held)))), "");
        let text = said(header(), &with(point(done(3, Outcome::Held))));
        assert!(
            text.contains("points.jsonl, line 5: `index` is 3, the sweep has 3 points"),
            "{text}"
        );
        let text = said(header(), &with(point(done(1_000_000, Outcome::Held))));
        assert!(text.contains("line 5: `index`"), "{text}");
        // A point that is there, and is another one.
        let mut other = done(1, Outcome::Held);
        other.requests = vec![1];
        let text = said(header(), &with(point(other)));
        assert!(
            text.contains("line 5: `test`, `shape`") && text.contains("t/a ioerr [2]"),
            "{text}"
        );
        let text = said(header(), &with(Line::Clean(clean(2, 1))));
        assert!(text.contains("line 5: `shape` is 2"), "{text}");
        let text = said(header(), &with(Line::Clean(clean(1, 5000))));
        assert!(text.contains("line 5: `counted` has 5000"), "{text}");
        let mut nobody = header();
        nobody.shard = (0, 1);
        let text = said(nobody, &[]);
        assert!(text.contains("line 1: `shard` is 0/1"), "{text}");
        assert!(
            said(header(), &with(Line::Header(Box::new(header())))).contains("a second header")
        );
    }

    #[test]
    fn a_boot_that_a_kill_has_ended_stands_among_the_boots() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::create(dir.path(), header()).unwrap();
        for name in ["boot-1", "boot-2"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        record.add(Line::Clean(clean(0, 2))).unwrap();
        record.add(Line::Clean(clean(1, 1))).unwrap();
        record
            .add(Line::Point(Box::new(done(0, Outcome::Held))))
            .unwrap();
        record.note_lost_boots().unwrap();
        // And it stays so: once each, in the file, too.
        record.note_lost_boots().unwrap();
        let read = Record::read(dir.path()).unwrap();
        for boots in [&record.boots, &read.boots] {
            let told: Vec<(&str, u64)> = boots.iter().map(|b| (b.dir.as_str(), b.points)).collect();
            assert_eq!(told, [("boot-1", 1), ("boot-2", 0)]);
            assert!(boots.iter().all(|b| b.not_repaired.is_some()));
        }
    }

    #[test]
    fn a_changed_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, "a").unwrap();
        let stamp = Stamp::of(&path).unwrap();
        stamp.check().unwrap();
        std::fs::write(&path, "ab").unwrap();
        assert!(stamp.check().is_err());
    }
}
