// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk sweep`: every request of a call fails in turn, all in one boot as long
//! as the guest lives. `docs/sweep.md` says what a point is.

pub mod compare;
pub mod faults;
mod judge;
pub mod record;
pub mod report;
pub mod requests;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use wtblk_shared::sweep::{Shard, points};

use self::compare::Compared;
use self::faults::Fault;
use self::judge::{Given, Judge};
use self::record::{Booted, Header, Line, Record, SCHEMA, Stamp, Swept};
use self::report::Whole;
use super::accel::Choice;
use super::append;
use super::asked::refuse_list;
use super::boot::{self, Ended, Plan, Ran, TRACE};
use super::catalog;
use super::ground::{Ground, Wanted};
use super::image::{Kind, Repair};
use super::own::Source;
use super::paths;
use super::progress::Progress;
use super::qemu::{GUEST_MEMORY, Machine, Qemu};
use super::run::{draw_seed, in_words, interruption, known_defect, out_dir, without_tests};
use crate::device::Recording;
use crate::fault::Shape;
use crate::plain;
use crate::report::model::status;

/// Which requests of a point fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Requests {
    /// The data writes of the call.
    Data,
    /// Everything from the begin of the call to the end of the fsync behind it: reads, log writes, flushes.
    All,
}

/// What to sweep, in a new folder.
#[derive(Clone, Debug)]
pub struct Options {
    /// The tests whose calls are swept.
    pub tests: Vec<String>,
    /// The faults.
    pub faults: Vec<String>,
    /// Which requests fail.
    pub requests: Requests,
    /// Every two of them.
    pub pairs: bool,
    /// The part that is done here.
    pub shard: Shard,
    /// Which kernel.
    pub kernel: Source,
    /// An initramfs; `None`: ours, built if need be.
    pub initramfs: Option<PathBuf>,
    /// A defect of the reference kernel to switch on.
    pub defect: Option<String>,
    /// KVM or emulation.
    pub accel: Choice,
    /// The board; `None`: the one that suits the kernel image.
    pub machine: Option<Machine>,
    /// The QEMU program.
    pub qemu: Option<PathBuf>,
    /// The seed; `None`: one is drawn and printed.
    pub seed: Option<u64>,
    /// Where the results go; `None`: a new folder in the cache.
    pub out: Option<PathBuf>,
    /// Value of the flag.
    pub flag: u32,
    /// More words for the kernel command line.
    pub append: Option<String>,
    /// The command line that repeats the sweep, without seed and out.
    pub command: String,
}

/// Rules for each fault that a first boot has; of a call with more requests the guest tells.
const RULES: u32 = 128;
/// A boot may take so long if it says something now and then.
const BOOT_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Begins a sweep and does all of it. The exit status.
pub fn begin(options: Options, compare: u32, print: &mut impl Write) -> Result<u8> {
    if let Some(why) = options.kernel.without_flag() {
        writeln!(print, "# SKIP {why}")?;
        return Ok(status::UNDECIDED);
    }
    let interrupted = interruption()?;
    let (record, ground) = match prepare(options, &interrupted) {
        // mkfs and cargo hear a signal of the terminal, too: what failed because of it is not what is to be told.
        Err(_) if interrupted.load(Ordering::Relaxed) => return Ok(status::INTERRUPTED),
        other => other?,
    };
    Sweep::new(record, ground, interrupted)?.run(compare, print)
}

/// Goes on with the sweep in this folder.
pub fn resume(dir: &Path, compare: u32, print: &mut impl Write) -> Result<u8> {
    let interrupted = interruption()?;
    let mut record = Record::resume(dir)?;
    record.note_lost_boots()?;
    let header = &record.header;
    append::check(header.append.as_deref())
        .with_context(|| format!("{}, line 1", dir.join(record::FILE).display()))?;
    header.kernel.check()?;
    header.initramfs.check()?;
    let ground = Ground::prepare(
        Qemu::find(header.qemu.as_deref())?,
        Wanted {
            kernel: Source::Image(header.kernel.path.clone()),
            initramfs: Some(&header.initramfs.path),
            machine: Some(header.machine),
            accel: header.accel,
            interrupted: &interrupted,
        },
    )?;
    Sweep::new(record, ground, interrupted)?.run(compare, print)
}

/// Tells what the parts of a sweep have found together. The exit status is that of their whole.
pub fn merge(dirs: &[PathBuf], out: Option<&Path>, print: &mut impl Write) -> Result<u8> {
    let records: Result<Vec<Record>> = dirs.iter().map(|dir| Record::read(dir)).collect();
    let records = records?;
    let whole = Whole::of(&records).context("there is no sweep to tell of")?;
    for (record, other) in records.iter().zip(records.iter().skip(1)) {
        if record.header.swept != other.header.swept {
            bail!(
                "{} and {} are parts of different sweeps: test, fault, requests, pairs, defect and seed must be the same",
                record.dir.display(),
                other.dir.display()
            );
        }
        if let (Some(one), Some(two)) = (record.counts(), other.counts())
            && one != two
        {
            bail!(
                "{} and {} counted different requests ({one:?} and {two:?}): their points are not the same",
                record.dir.display(),
                other.dir.display()
            );
        }
    }
    whole.print(print)?;
    let status = if whole.done() < whole.points() && whole.status() == status::HELD {
        writeln!(
            print,
            "# not all parts are here: nothing is decided of the rest"
        )?;
        status::UNDECIDED
    } else {
        whole.status()
    };
    if let Some(out) = out {
        std::fs::create_dir_all(out)?;
        paths::write_whole(&out.join("results.json"), &whole.json(status, None, None))?;
    }
    Ok(status)
}

fn prepare(options: Options, interrupted: &AtomicBool) -> Result<(Record, Ground)> {
    append::check(options.append.as_deref())?;
    let qemu = Qemu::find(options.qemu.as_deref())?;
    let faults: Result<Vec<&Fault>> = options.faults.iter().map(|f| faults::find(f)).collect();
    let faults = faults?;
    for (i, fault) in faults.iter().enumerate() {
        if faults.iter().skip(i + 1).any(|other| other == fault) {
            bail!("--fault {}: named twice", fault.name);
        }
        if fault.lies && options.requests == Requests::All {
            bail!(
                "--fault {} tells the file system a lie; where it hits log or metadata nothing is promised: only with --requests data",
                fault.name
            );
        }
    }
    let defect = options.defect.as_deref().map(known_defect).transpose()?;
    let wanted = Wanted {
        kernel: options.kernel,
        initramfs: options.initramfs.as_deref(),
        machine: options.machine,
        accel: options.accel,
        interrupted,
    };
    let ground = Ground::prepare(qemu, wanted)?;
    let all = catalog::shapes(&ground.initramfs)?;
    let mut shapes = Vec::new();
    for test in &options.tests {
        let of_test = all.iter().filter(|(name, _)| name == test);
        let before = shapes.len();
        shapes.extend(of_test.cloned());
        if shapes.len() == before {
            refuse_list(test)?;
            let mut known: Vec<&str> = all.iter().map(|(test, _)| test.as_str()).collect();
            known.dedup();
            bail!(
                "test '{test}' cannot be swept; those that can: {}",
                known.join(", ")
            );
        }
    }
    let mut seen = shapes.clone();
    seen.sort();
    seen.dedup();
    if seen.len() != shapes.len() {
        bail!("--test: the same test is named twice");
    }
    let header = Header {
        schema: SCHEMA.to_owned(),
        wtblk: env!("CARGO_PKG_VERSION").to_owned(),
        swept: Swept {
            shapes,
            faults: options.faults,
            requests: options.requests,
            pairs: options.pairs,
            defect: defect.map(|d| d.name),
            seed: options.seed.unwrap_or_else(draw_seed),
        },
        shard: (options.shard.part, options.shard.of),
        kernel: Stamp::of(&ground.kernel)?,
        initramfs: Stamp::of(&ground.initramfs)?,
        machine: ground.machine,
        accel: options.accel,
        qemu: options.qemu,
        flag: options.flag,
        append: options.append,
        command: options.command,
    };
    let dir = out_dir(options.out.as_deref())?;
    Ok((Record::create(&dir, header)?, ground))
}

/// A sweep under way.
struct Sweep {
    record: Record,
    ground: Ground,
    faults: Vec<&'static Fault>,
    interrupted: Arc<AtomicBool>,
    /// Rules that a boot has for each fault.
    rules: u32,
    progress: Option<Progress>,
}

impl Sweep {
    fn new(record: Record, ground: Ground, interrupted: Arc<AtomicBool>) -> Result<Sweep> {
        let names = &record.header.swept.faults;
        let faults: Result<Vec<&Fault>> = names.iter().map(|f| faults::find(f)).collect();
        let faults = faults?;
        Ok(Sweep {
            record,
            ground,
            rules: RULES.min(faults::room(faults.len())),
            faults,
            interrupted,
            progress: None,
        })
    }

    fn run(mut self, compare: u32, print: &mut impl Write) -> Result<u8> {
        let trouble = self.boots().err();
        if let Some(progress) = self.progress.take() {
            progress.end(&format!("{} points", self.record.points.len()));
        }
        let stopped = self.interrupted.load(Ordering::Relaxed);
        let seconds = match &trouble {
            None if compare > 0 && !stopped => self.one_by_one(compare),
            _ => Ok(Vec::new()),
        };
        let stopped = self.interrupted.load(Ordering::Relaxed);
        let (seconds, trouble) = match (seconds, trouble) {
            (Ok(seconds), trouble) => (seconds, trouble),
            (Err(error), _) => (Vec::new(), Some(error)),
        };
        let trouble = trouble.filter(|_| !stopped);
        let records = [self.record];
        let whole = Whole::of(&records).context("there is no sweep to tell of")?;
        let compared = (!seconds.is_empty()).then(|| Compared::of(&seconds, &whole.rates()));
        whole.print(print)?;
        if let Some(compared) = &compared {
            compared.print(print)?;
        }
        let status = match &trouble {
            Some(_) => status::CANNOT,
            None if stopped => status::INTERRUPTED,
            None => whole.status(),
        };
        let error = trouble.as_ref().map(|error| format!("{error:#}"));
        let [record] = &records;
        let results = record.dir.join("results.json");
        paths::write_whole(&results, &whole.json(status, error, compared.as_ref()))?;
        writeln!(print, "# results: {}", results.display())?;
        if status == status::INTERRUPTED || status == status::CANNOT {
            let program = record.header.command.split(' ').next().unwrap_or("wtblk");
            let dir = plain::shell_word(&record.dir.display().to_string());
            writeln!(print, "# go on with: {program} sweep --resume {dir}")?;
        }
        let seed = record.header.swept.seed;
        writeln!(
            print,
            "# repeat with: {} --seed {seed}",
            record.header.command
        )?;
        trouble.map_or(Ok(status), Err)
    }

    /// The first point of this part that is not done; `None`: all are. Unknown before the clean passes: 0.
    fn next(&self) -> Option<u64> {
        let Some(counts) = self.record.counts() else {
            return Some(0);
        };
        let shard = self.record.header.shard();
        points(&counts, self.faults.len(), self.record.header.swept.pairs)
            .map(|p| p.index)
            .find(|index| shard.takes(*index) && !self.record.points.contains_key(index))
    }

    fn boots(&mut self) -> Result<()> {
        while let Some(from) = self.next() {
            if self.interrupted.load(Ordering::Relaxed) {
                return Ok(());
            }
            self.enough_rules()?;
            let before = (self.record.cleans.len(), self.record.points.len());
            let (ran, _) = self.boot(from, u64::MAX, true)?;
            if ran.ended == Ended::Interrupted {
                return Ok(());
            }
            let counts = self.record.counts().unwrap_or_default();
            let more_rules = counts.iter().any(|n| *n > self.rules);
            if before == (self.record.cleans.len(), self.record.points.len()) && !more_rules {
                bail!(
                    "the guest did no point: {}\nthe last lines of its console:\n{}",
                    without_tests(&ran.ended),
                    ran.last_lines.join("\n")
                );
            }
        }
        Ok(())
    }

    /// As many rules as the clean passes have requests.
    fn enough_rules(&mut self) -> Result<()> {
        let counts = self.record.counts().unwrap_or_default();
        let most = counts.into_iter().max().unwrap_or(0);
        let room = faults::room(self.faults.len());
        if most > room {
            bail!(
                "a call makes {most} requests, and there is room for rules of {room} with {} faults: name fewer",
                self.faults.len()
            );
        }
        self.rules = self.rules.max(most);
        Ok(())
    }

    /// Some points once more, each in a boot of its own: seconds of each.
    fn one_by_one(&mut self, how_many: u32) -> Result<Vec<f64>> {
        let done: Vec<u64> = self.record.points.keys().copied().collect();
        let mut seconds = Vec::new();
        for i in 0..u64::from(how_many) {
            let at = i * done.len() as u64 / u64::from(how_many);
            let Some(index) = done.get(at as usize) else {
                bail!("there is no point to compare with");
            };
            let (ran, points) = self.boot(*index, 1, false)?;
            if ran.ended == Ended::Interrupted {
                return Ok(seconds);
            }
            if points.0 != 1 {
                bail!("a boot for point {index} alone did {} points", points.0);
            }
            seconds.push(points.1);
        }
        Ok(seconds)
    }

    /// A boot that does at most so many points from this one on, and writes them down unless it is
    /// only a comparison. The points, and the seconds of all of it.
    fn boot(&mut self, from: u64, most: u64, keep: bool) -> Result<(Ran, (u64, f64))> {
        let begun = Instant::now();
        let name = self.record.next_boot();
        let dir = self.record.dir.join(&name);
        let words = self.words(from, most);
        let scenario = self.record.dir.join("sweep.toml");
        let header = self.record.header.clone();
        let text = faults::scenario(&self.faults, header.swept.requests, self.rules);
        paths::write_whole(&scenario, text.as_bytes())?;
        let plan = Plan {
            ground: &self.ground,
            tests: &[],
            scenarios: &[scenario],
            shape: &Shape::default(),
            fs: Kind::named(None, 512)?,
            recording: Recording::default(),
            words,
            seed: header.swept.seed,
            dir: &dir,
            memory: GUEST_MEMORY,
            limit: BOOT_LIMIT,
            repeat_with: &header.command,
            interrupted: &self.interrupted,
        };
        let cleans: Vec<_> = self.record.cleans.values().cloned().collect();
        let (record, progress) = (&mut self.record, &mut self.progress);
        let mut take = |given: Given| {
            if !keep {
                return Ok(());
            }
            match given {
                Given::Clean(clean) => record.add(Line::Clean(clean)),
                Given::Point(done) => {
                    step(progress, record, &done.shape);
                    record.add(Line::Point(done))
                }
            }
        };
        let mut judge = Judge::new(&header.swept, &name, cleans.into_iter(), &mut take);
        let ran = boot::follow(&plan, &mut judge)?;
        let died = match &ran.ended {
            Ended::Interrupted | Ended::Device(_) | Ended::Qemu(_) => None,
            how => Some(in_words(how)),
        };
        let swept = judge.finish(died.as_deref())?;
        let seconds = begun.elapsed().as_secs_f64();
        // Before anything is refused: what went wrong in it is told of a boot that is known.
        if keep {
            let (damage, not_repaired) = match &ran.repair {
                Repair::Clean => (Vec::new(), None),
                Repair::Damaged(lines) => (lines.clone(), None),
                Repair::NotChecked(why) => (Vec::new(), Some(why.clone())),
            };
            self.record.add(Line::Boot(Booted {
                dir: name.clone(),
                ended: in_words(&ran.ended),
                seconds: rounded(seconds),
                points: swept.points,
                sweeping: rounded(swept.seconds),
                damage,
                not_repaired,
            }))?;
        }
        if let Some(why) = &ran.store_error {
            bail!(
                "the device could not store what the guest wrote ({why}): this boot proves nothing"
            );
        }
        if let Ended::Device(_) | Ended::Qemu(_) = &ran.ended {
            return Err(anyhow!("{}; see {}", in_words(&ran.ended), dir.display()));
        }
        if let Some(why) = &ran.console.bail_out {
            bail!("the guest did not come up: {why}; see {}", dir.display());
        }
        if let Some(skipped) = ran.console.tests.iter().find_map(skip) {
            bail!("the guest cannot be swept: {skipped}");
        }
        if keep {
            // Nobody will look at the trace of a boot in which everything held; it is large.
            let of_boot = self.record.points.values().filter(|p| p.boot == name);
            if of_boot.clone().all(|p| p.findings.is_empty())
                && matches!(ran.ended, Ended::Guest(_))
                && !matches!(&ran.repair, Repair::Damaged(_))
            {
                let contents = dir.join(format!("{TRACE}.data"));
                let _ = std::fs::remove_file(dir.join(TRACE)).and(std::fs::remove_file(contents));
            }
        } else {
            let _ = std::fs::remove_dir_all(&dir);
        }
        Ok((ran, (swept.points, seconds)))
    }

    fn words(&self, from: u64, most: u64) -> Vec<String> {
        let header = &self.record.header;
        let swept = &header.swept;
        let mut tests: Vec<&str> = swept.shapes.iter().map(|(test, _)| test.as_str()).collect();
        tests.dedup();
        let requests = match swept.requests {
            Requests::Data => "data",
            Requests::All => "all",
        };
        let mut words = vec![
            format!("wtblk_sweep={}", tests.join(",")),
            format!("wtblk_sweep_faults={}", swept.faults.join(",")),
            format!("wtblk_sweep_requests={requests}"),
            format!("wtblk_sweep_shard={}/{}", header.shard.0, header.shard.1),
            format!("wtblk_sweep_rules={}", self.rules),
            format!("wtblk_sweep_from={from}"),
            format!("wtblk_sweep_most={most}"),
            format!("wtblk_flag={:#x}", header.flag),
            format!("wtblk_seed={}", swept.seed),
        ];
        if swept.pairs {
            words.push("wtblk_sweep_pairs".to_owned());
        }
        if let Some(counts) = self.record.counts() {
            let counts: Vec<String> = counts.iter().map(u32::to_string).collect();
            words.push(format!("wtblk_sweep_counts={}", counts.join(",")));
        }
        if let Some(defect) = &swept.defect {
            words.push(format!("wtblk_defect={defect}"));
            words.push(format!("iomap.wt_defect={defect}"));
        }
        words.extend(header.append.clone());
        words
    }
}

/// One point more on the bar, which begins with the first one.
fn step(progress: &mut Option<Progress>, record: &Record, shape: &str) {
    let bar = progress.get_or_insert_with(|| {
        let swept = &record.header.swept;
        let counts = record.counts().unwrap_or_default();
        let shard = record.header.shard();
        let mine = points(&counts, swept.faults.len(), swept.pairs)
            .filter(|p| shard.takes(p.index) && !record.points.contains_key(&p.index));
        Progress::with_rate("sweep", mine.count() as u64)
    });
    bar.step(shape);
}

fn skip(test: &super::console::ConsoleTest) -> Option<String> {
    match &test.outcome {
        super::console::Outcome::Skip(why) => Some(why.clone()),
        _ => None,
    }
}

fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
