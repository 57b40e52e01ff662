// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The device against qemu-storage-daemon, and its own levels against each other.
//! `ci/bench` runs it; `docs/performance.md` says what it measures and why so.

mod backend;
mod client;
mod follow;
mod limits;
mod plan;
mod report;
mod stats;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use wtblk_shared::mark::{CallBegin, CallEnd, Extent, Mark};
use wtblk_shared::tag::Tag;

use backend::{BACKEND_CPU, Backend, CLIENT_CPU};
use client::Client;
use plan::{Around, Cell, SIZE};
use report::{Figures, Measured, Report};

/// Benchmark of the device.
#[derive(Parser)]
#[command(name = "ci/bench")]
struct Args {
    /// Write everything that was measured into this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Put the tables between the marks of docs/performance.md
    #[arg(long)]
    docs: bool,
    /// 3 short rounds: for a look, not for figures
    #[arg(long)]
    quick: bool,
    /// Only cells whose name contains one of these (comma separated), e.g. "null 4k,depth 1"
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    cases: Vec<String>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 9)]
    rounds: usize,
    /// Folder for the image of the disk cells (default: target/ of this checkout)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only back ends whose name contains one of these (comma separated)
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// Another build of wtblk, measured in the same run as this one
    #[arg(long, value_name = "PROGRAM")]
    against: Option<PathBuf>,
    /// Follow and judge a trace: what the level `verify` starts
    #[arg(long, value_name = "TRACE", hide = true)]
    follow: Option<PathBuf>,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

/// Bytes of the file that the marked calls write.
const FILE: u64 = SIZE / client::MARKED_PART;

/// How long a stretch is measured, and how long it runs before.
struct Times {
    rounds: usize,
    warm: Duration,
    stretch: Duration,
}

fn main() -> Result<()> {
    let args = Args::parse();
    if let Some(trace) = &args.follow {
        return follow::follow(trace);
    }
    stats::check();
    let times = Times {
        rounds: if args.quick { 3 } else { args.rounds },
        warm: Duration::from_millis(30),
        stretch: Duration::from_millis(if args.quick { 120 } else { 250 }),
    };
    ensure!(times.rounds > 0, "no rounds");
    backend::pin(CLIENT_CPU)?;
    let fast = tempfile::Builder::new()
        .prefix("wtblk-bench-")
        .tempdir_in("/dev/shm")?;
    let slow = match &args.dir {
        Some(dir) => dir.clone(),
        None => Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned(),
    };
    fs::create_dir_all(&slow)?;
    let slow = tempfile::Builder::new()
        .prefix("wtblk-bench-")
        .tempdir_in(slow)?;
    let cells: Vec<Cell> = plan::cells()
        .into_iter()
        .filter(|c| args.cases.is_empty() || args.cases.iter().any(|w| c.name().contains(w.trim())))
        .collect();
    if cells.is_empty() {
        bail!("no cell has such a name; the cells are: {}", names());
    }
    let mut around = around(fast.path(), slow.path(), &cells)?;
    around.against = args.against.clone();
    let begun = Instant::now();
    let mut report = Report::new(&around, slow.path(), times.rounds, times.stretch);
    report.limits = limits::measure(fast.path())?;
    for (n, cell) in cells.iter().enumerate() {
        eprintln!("{}/{} {}", n + 1, cells.len(), cell.name());
        let measured = measure(cell, &around, fast.path(), &times, &args.only)?;
        report.add(cell, measured);
    }
    report.seconds = begun.elapsed().as_secs();
    println!("{}", report.markdown());
    if let Some(path) = &args.json {
        fs::write(path, serde_json::to_string_pretty(&report)?)
            .with_context(|| format!("{}", path.display()))?;
    }
    if args.docs {
        report.write_docs(Path::new(env!("CARGO_MANIFEST_DIR")))?;
    }
    Ok(())
}

fn names() -> String {
    let names: Vec<String> = plan::cells().iter().map(Cell::name).collect();
    names.join(", ")
}

/// Makes what the cells need.
fn around(fast: &Path, slow: &Path, cells: &[Cell]) -> Result<Around> {
    let help = Command::new(env!("CARGO_BIN_EXE_wtblk"))
        .args(["serve", "--help"])
        .output()?;
    let peer = Command::new("qemu-storage-daemon")
        .arg("--version")
        .output();
    if peer.is_err() {
        eprintln!("qemu-storage-daemon is not installed: nothing to compare with");
    }
    let (tmpfs, disk) = (fast.join("image"), slow.join("image"));
    let uses = |store| cells.iter().any(|c| c.store == store);
    if uses(plan::Store::Tmpfs) {
        fill(&tmpfs)?;
    }
    if uses(plan::Store::Disk) {
        fill(&disk)?;
    }
    let empty = fast.join("empty.toml");
    fs::write(&empty, "version = 1\n")?;
    let direct = |path: &Path| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .custom_flags(nix::fcntl::OFlag::O_DIRECT.bits());
        options.open(path).is_ok()
    };
    Ok(Around {
        options: String::from_utf8_lossy(&help.stdout).into_owned(),
        tmpfs_direct: direct(&tmpfs),
        disk_direct: direct(&disk),
        tmpfs,
        disk,
        peer: peer.is_ok(),
        against: None,
        empty,
    })
}

/// An image without holes.
fn fill(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    let block = vec![0x77u8; 1 << 20];
    for at in 0..SIZE / block.len() as u64 {
        file.write_all_at(&block, at * block.len() as u64)?;
    }
    file.sync_all().context("cannot write the image")
}

/// Measures the back ends of a cell, one after the other in each round.
fn measure(
    cell: &Cell,
    around: &Around,
    dir: &Path,
    times: &Times,
    only: &[String],
) -> Result<Vec<Measured>> {
    let specs = plan::specs(cell, around);
    let wanted = |name: &str| only.is_empty() || only.iter().any(|o| name.contains(o.trim()));
    let mut running = Vec::new();
    for (n, spec) in specs.iter().filter(|s| wanted(&s.name)).enumerate() {
        let backend = Backend::start(spec, &dir.join(format!("b{n}")))?;
        match Contestant::new(backend, cell) {
            Ok(mut contestant) => {
                // A disk in memory begins as one hole.
                if cell.store == plan::Store::Memory {
                    contestant.client.fill(cell.job.bytes, SIZE)?;
                }
                running.push(contestant);
            }
            Err(failed) => {
                let (error, backend) = *failed;
                return Err(error.context(format!("{}: {}", spec.name, backend.said().trim())));
            }
        }
    }
    for round in 0..times.rounds {
        // Nobody is always the first, or always behind the same other.
        let count = running.len();
        for n in 0..count {
            let at = if round % 2 == 0 {
                (n + round / 2) % count
            } else {
                (count - 1 - n + round / 2) % count
            };
            let contestant = &mut running[at];
            contestant
                .round(cell, times)
                .with_context(|| contestant.backend.spec.name.clone())?;
        }
    }
    let mut measured = Vec::new();
    for contestant in running {
        measured.push(contestant.finish()?);
    }
    Ok(measured)
}

/// A back end with its client.
struct Contestant {
    client: Client,
    marks: Option<Client>,
    backend: Backend,
    call: u64,
    figures: Vec<Figures>,
    memory: backend::Memory,
}

impl Contestant {
    fn new(
        backend: Backend,
        cell: &Cell,
    ) -> std::result::Result<Contestant, Box<(anyhow::Error, Backend)>> {
        let queues = backend.spec.queues;
        let depth = cell.job.depth.div_ceil(queues);
        let client = Client::connect(&backend.socket(), queues, depth, cell.job.bytes);
        let marks = backend
            .has_marks()
            .then(|| Client::connect(&backend.mark_socket(), 1, 1, 64 << 10))
            .transpose();
        match (client, marks) {
            (Ok(client), Ok(marks)) => Ok(Contestant {
                client,
                marks,
                backend,
                call: 0,
                figures: Vec::new(),
                memory: backend::Memory::default(),
            }),
            (Err(error), _) | (_, Err(error)) => Err(Box::new((error, backend))),
        }
    }

    fn mark(&mut self, mark: &Mark) -> Result<()> {
        let Some(client) = &mut self.marks else {
            return Ok(());
        };
        let block = mark.to_block(512).context("a mark too long")?;
        client.write(&block)
    }

    /// One stretch: a marked call that a tenth of the requests belong to.
    fn round(&mut self, cell: &Cell, times: &Times) -> Result<()> {
        ensure!(self.client.capacity()? >= SIZE, "a disk too small");
        self.call += 1;
        let tag = Tag::nth(self.call);
        let extents = vec![Extent {
            logical: 0,
            physical: SIZE - FILE,
            length: FILE,
            flags: 0,
        }];
        self.mark(&Mark::Begin(CallBegin {
            call: self.call,
            test: "bench".into(),
            len: FILE,
            flags: vec!["writethrough".into()],
            isize: FILE,
            bsize: 4096,
            tag: Some(tag.number()),
            extents: Some(extents.clone()),
            ..CallBegin::default()
        }))?;
        let mut job = cell.job;
        job.ioprio = tag.ioprio();
        self.client.run(&job, times.warm)?;
        let cpu = self.backend.cpu()?;
        let stretch = self.client.run(&job, times.stretch)?;
        let cpu = self.backend.cpu()? - cpu;
        self.mark(&Mark::End(CallEnd {
            call: self.call,
            result: FILE as i64,
            isize: FILE,
            extents: Some(extents),
        }))?;
        let memory = self.backend.memory()?;
        self.memory.peak_kib = memory.peak_kib;
        self.memory.anon_kib = self.memory.anon_kib.max(memory.anon_kib);
        self.memory.file_kib = self.memory.file_kib.max(memory.file_kib);
        let count = stretch.requests.max(1) as f64;
        self.figures.push(Figures {
            per_second: count / stretch.time.as_secs_f64(),
            cpu_us: cpu.as_secs_f64() * 1e6 / count,
        });
        Ok(())
    }

    /// What it costs when nobody asks anything, too.
    fn finish(self) -> Result<Measured> {
        let idle = if self.backend.spec.name == plan::DEFAULT {
            const IDLE: Duration = Duration::from_millis(300);
            // The verifier catches up, the polling ends.
            std::thread::sleep(IDLE);
            let before = self.backend.cpu()?;
            std::thread::sleep(IDLE);
            let used = self.backend.cpu()? - before;
            Some(used.as_secs_f64() / IDLE.as_secs_f64())
        } else {
            None
        };
        Ok(Measured {
            name: self.backend.spec.name.clone(),
            peer: matches!(self.backend.spec.kind, backend::Kind::Peer(..)),
            figures: self.figures,
            memory: self.memory,
            idle,
        })
    }
}

/// What the figures were taken on.
pub fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .map_or("", |l| l.trim_start_matches([' ', '\t', ':']));
    let cpus = std::thread::available_parallelism().map_or(0, |_| {
        cpu.lines().filter(|l| l.starts_with("processor")).count()
    });
    let kernel = read("/proc/sys/kernel/osrelease");
    format!(
        "{cpus} CPUs ({model}), Linux {}; client on CPU {CLIENT_CPU}, back end and verifier on CPU {BACKEND_CPU}",
        kernel.trim()
    )
}
