// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One `wtblk serve` for a long time (`ci/long-run`: two hours), while guests of every kind of file
//! system come and go: all guest tests, random operations with random faults, writes under load
//! that a reset or a kill ends, and front ends that leave in the middle. What it holds is sampled
//! and must not grow, and the judge finds nothing in all of its trace.
//!
//! `WTBLK_LONG_RUN=SECONDS`, and `WTBLK_LONG_RUN_TO=DIR` for the samples and, where something was
//! wrong, for trace and console. In `ci/test` it is one short round: the long run's own test.

mod common;
mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::driver::{DISCARD, Driver, FLUSH};
use common::hostile::{message, send};
use common::serve::Serve;
use common::until;
use nix::sys::signal::Signal;
use nix::unistd::{Whence, lseek};
use support::flat::{self, Sample};
use support::guest::{Guest, LIMIT, Way};
use support::{built, wtblk};
use wtblk::harness::catalog;
use wtblk::harness::image::{self, KINDS, Kind, meta_of};

/// Beside the tests' own rules: what makes requests slow at random, while `churn` writes.
const SLOW: &str = r#"
version = 1
[[fault]]
name = "long-run-slow"
when = { in_test = "churn", probability = 0.05 }
action = { delay = "7ms" }
[[fault]]
name = "long-run-slower"
when = { in_test = "churn", op = "write", probability = 0.01 }
action = { delay = "40ms" }
"#;

/// Between two samples.
const EACH: Duration = Duration::from_secs(10);
/// Bytes of a write of the front end that lays a file system onto the disk.
const PIECE: usize = 0xf000;

/// The device, and what is known of its life.
struct Long {
    serve: Serve,
    begun: Instant,
    /// Guests and front ends so far.
    guests: Arc<AtomicU32>,
    samples: Arc<Mutex<Vec<Sample>>>,
    sampler: Option<JoinHandle<()>>,
    over: Arc<AtomicBool>,
    /// Descriptors while nobody is connected.
    rest: usize,
    /// Where samples go, and what is kept of a failure.
    to: PathBuf,
    wrong: Vec<String>,
}

impl Long {
    fn begin(to: &Path) -> Long {
        let mut args: Vec<String> = ["--image", "data.img", "--size", "1GiB", "--poison"]
            .map(str::to_owned)
            .into();
        args.extend(["--volatile-cache".into(), "--disk".into()]);
        args.push("name=meta,image=meta.img,size=512MiB,socket=meta".into());
        for scenario in scenarios() {
            args.extend(["--scenario".into(), scenario.display().to_string()]);
        }
        let words: Vec<&str> = args.iter().map(String::as_str).collect();
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), SLOW, &words);
        let mut long = Long {
            begun: Instant::now(),
            guests: Arc::default(),
            samples: Arc::default(),
            sampler: None,
            over: Arc::default(),
            rest: 0,
            to: to.to_owned(),
            wrong: Vec::new(),
            serve,
        };
        // The first connection makes what stays for all of them.
        drop(Driver::connect(long.serve.data(), 1));
        drop(Driver::connect(long.serve.mark(), 1));
        drop(Driver::connect(long.meta(), 1));
        let pid = long.serve.pid();
        let mut last = 0;
        // Two looks alike: the threads of the last connection have ended.
        until("the device to rest", || {
            std::thread::sleep(Duration::from_millis(200));
            let now = Sample::of(pid, 0.0, 0, true).unwrap().descriptors;
            (std::mem::replace(&mut last, now) == now).then_some(())
        });
        long.rest = last;
        long.sampler = Some(long.sample_on());
        long
    }

    /// A thread that samples.
    fn sample_on(&self) -> JoinHandle<()> {
        let (pid, begun) = (self.serve.pid(), self.begun);
        let (guests, samples, over) =
            (self.guests.clone(), self.samples.clone(), self.over.clone());
        std::thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let guests = guests.load(Ordering::Relaxed);
                let at = begun.elapsed().as_secs_f64();
                if let Ok(sample) = Sample::of(pid, at, guests, false) {
                    samples.lock().unwrap().push(sample);
                }
                std::thread::park_timeout(EACH);
            }
        })
    }

    fn meta(&self) -> UnixStream {
        UnixStream::connect(self.serve.path("meta")).unwrap()
    }

    /// Nobody is connected any more, and the device has given back what it had for them.
    fn rests(&mut self) {
        let pid = self.serve.pid();
        let end = Instant::now() + common::LIMIT;
        loop {
            let guests = self.guests.fetch_add(0, Ordering::Relaxed);
            let at = self.begun.elapsed().as_secs_f64();
            let sample = Sample::of(pid, at, guests, true).unwrap();
            if sample.descriptors <= self.rest {
                self.samples.lock().unwrap().push(sample);
                break;
            }
            if Instant::now() > end {
                self.wrong.push(format!(
                    "{} descriptors at rest after {guests} guests, {} at first",
                    sample.descriptors, self.rest
                ));
                self.rest = sample.descriptors;
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let samples = self.samples.lock().unwrap();
        flat::write(&self.to.join("samples.csv"), &samples);
    }

    /// A fresh file system, put onto the disks by a front end of ours.
    fn lay(&mut self, kind: &Kind) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fresh.img");
        image::xfs(&path, kind, 512).unwrap();
        copy(&path, self.serve.data());
        if kind.realtime {
            copy(&meta_of(&path), self.meta());
        }
        self.guests.fetch_add(1, Ordering::Relaxed);
        self.rests();
    }

    fn boot(&self, kind: &Kind, words: &[String]) -> Guest {
        let meta = kind.realtime.then(|| self.meta().into());
        let way = Way::Once(self.serve.data().into(), self.serve.mark().into(), meta);
        let mut words = words.to_vec();
        if kind.realtime {
            words.push("wtblk_realtime".into());
        }
        self.guests.fetch_add(1, Ordering::Relaxed);
        Guest::boot(self.serve.dir(), way, &words, 1)
    }

    /// Boots and follows to the end: every one of the tests says ok.
    fn tests(&mut self, kind: &Kind, tests: &[String], more: &[String]) {
        self.lay(kind);
        // Who shares two cores with others for hours comes late now and then; a hang stays one.
        let own = [
            format!("wtblk_tests={}", tests.join(",")),
            "wtblk_test_ms=60000".to_owned(),
        ];
        let words = [&own, more].concat();
        let guest = self.boot(kind, &words);
        let mut all = Vec::new();
        let mut fine = 0;
        while let Ok(line) = guest.console.recv_timeout(LIMIT) {
            let said = untimed(&line);
            fine += usize::from(said.starts_with("ok "));
            if said.starts_with("not ok ") || said.starts_with("Kernel panic") {
                self.wrong.push(format!("{}: {line}", kind.name));
            }
            all.push(line);
        }
        if fine != tests.len() {
            self.keep(
                &format!("{}: {fine} of {} tests ok", kind.name, tests.len()),
                &all,
            );
        }
        drop(guest);
        self.rests();
    }

    /// Writes under load, ended by the guest's own reset, by the monitor's, by a kill, in turn.
    fn churn(&mut self, kind: &Kind, rounds: u32) {
        self.lay(kind);
        let words = [
            "wtblk_tests=churn".to_owned(),
            format!("wtblk_rounds={rounds}"),
            "wtblk_test_ms=120000".to_owned(),
        ];
        let mut guest = self.boot(kind, &words);
        let (mut all, mut checked) = (Vec::new(), 0);
        while let Ok(line) = guest.console.recv_timeout(LIMIT) {
            all.push(line.clone());
            checked += u32::from(line.contains("checked:"));
            if line.contains("neither new nor old")
                || line.contains("before, is old")
                || untimed(&line).starts_with("Kernel panic")
                || untimed(&line).starts_with("not ok")
            {
                self.wrong.push(format!("{}: {line}", kind.name));
            } else if line.contains("wants to be reset") {
                guest.reset();
            } else if line.contains("wants to be killed") {
                drop(guest);
                self.rests();
                guest = self.boot(kind, &words);
            } else if untimed(&line).starts_with("ok 1 churn") {
                break;
            }
        }
        if checked != rounds {
            self.keep(
                &format!("{}: {checked} of {rounds} rounds", kind.name),
                &all,
            );
        }
        drop(guest);
        self.rests();
    }

    /// Front ends that say nothing, half a message, or go while a request is under way.
    fn passers_by(&mut self) {
        for half in [0, 5, 12, 20] {
            let whole = message(1, 8, &[0; 8]);
            let stream = self.serve.data();
            send(&stream, &whole[..half], &[]);
        }
        for n in 0..4 {
            let mut d = Driver::connect(self.serve.data(), 1);
            for slot in 0..8 {
                d.submit(0, slot, n % 2, slot * 8, 4096);
            }
            d.kick(0);
        }
        self.guests.fetch_add(8, Ordering::Relaxed);
        self.rests();
    }

    /// Something is wrong: what was said on the console.
    fn keep(&mut self, what: &str, console: &[String]) {
        let name = format!("console-{}", self.wrong.len());
        std::fs::write(self.to.join(&name), console.join("\n")).unwrap();
        self.wrong.push(format!("{what}; see {name}"));
    }

    /// Ends the device and judges all that it recorded.
    fn end(mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            sampler.thread().unpark();
            sampler.join().unwrap();
        }
        self.serve.signal(Signal::SIGTERM);
        assert_eq!(self.serve.wait(), 0);
        let trace = self.serve.path("trace");
        let judged = wtblk().arg("verify").arg(&trace).output().unwrap();
        if judged.status.code() != Some(0) {
            let said = String::from_utf8_lossy(&judged.stdout).into_owned();
            std::fs::write(self.to.join("verify"), said).unwrap();
            let why = format!("the judge: status {:?}; see verify", judged.status.code());
            self.wrong.push(why);
        }
        let samples = self.samples.lock().unwrap();
        let most = samples.iter().map(|s| s.rss).max().unwrap_or(0);
        let grown = flat::grown(&samples);
        eprintln!(
            "{:.0} s, {} guests and front ends, {} MiB of trace, at most {} MiB resident: {grown:?}",
            self.begun.elapsed().as_secs_f64(),
            self.guests.load(Ordering::Relaxed),
            ["trace", "trace.data"]
                .map(|file| std::fs::metadata(self.serve.path(file)).map_or(0, |m| m.len()))
                .iter()
                .sum::<u64>()
                >> 20,
            most >> 10,
        );
        self.wrong.extend(grown.unwrap_or_default());
        if !self.wrong.is_empty() {
            // A copy: the folder of the device goes with it.
            for file in ["trace", "trace.data"] {
                std::fs::copy(self.serve.path(file), self.to.join(file)).unwrap();
            }
        }
        assert!(self.wrong.is_empty(), "{:#?}", self.wrong);
    }
}

/// A line of the console without the kernel's time before it.
fn untimed(line: &str) -> &str {
    match line
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    {
        Some((_, said)) => said,
        None => line,
    }
}

/// The scenarios of all guest tests; several have the same.
fn scenarios() -> BTreeSet<PathBuf> {
    let tests = catalog::tests(&built("guest")).unwrap();
    let of = tests.iter().map(|test| catalog::scenario_of(test).unwrap());
    of.flatten().collect()
}

/// Discards all of a disk, and writes what the image has.
fn copy(image: &Path, to: UnixStream) {
    let mut d = Driver::connect(to, 1);
    let file = File::open(image).unwrap();
    // The largest that the device takes in one request: 16 zones of 32 MiB.
    let (each, most) = (1 << 16, 16);
    let zones: Vec<(u64, u32, u32)> = (0..file.metadata().unwrap().len() / (u64::from(each) << 9))
        .map(|n| (n * u64::from(each), each, 0))
        .collect();
    for some in zones.chunks(most) {
        assert_eq!(d.zero(DISCARD, some), 0);
    }
    let mut at = 0;
    while let Ok(data) = lseek(&file, at, Whence::SeekData) {
        let hole = lseek(&file, data, Whence::SeekHole).unwrap();
        let mut place = data as u64;
        while place < hole as u64 {
            let mut piece = vec![0; PIECE.min((hole as u64 - place) as usize)];
            file.read_exact_at(&mut piece, place).unwrap();
            assert_eq!(d.write(place / 512, &piece), 0);
            place += piece.len() as u64;
        }
        at = hole;
    }
    let head = d.submit(0, 0, FLUSH, 0, 0);
    d.kick(0);
    assert_eq!(d.finish(0, 0, head), 0);
}

fn seconds() -> Option<u64> {
    let said = std::env::var("WTBLK_LONG_RUN").ok()?;
    Some(said.parse().expect("WTBLK_LONG_RUN is a number of seconds"))
}

#[test]
fn a_device_serves_guest_after_guest_and_does_not_grow() {
    let here = tempfile::tempdir().unwrap();
    let to = std::env::var_os("WTBLK_LONG_RUN_TO").map(PathBuf::from);
    let to = to.as_deref().unwrap_or(here.path());
    std::fs::create_dir_all(to).unwrap();
    let mut long = Long::begin(to);
    let exerciser = ["exerciser".to_owned()];
    let Some(seconds) = seconds() else {
        let few = ["overwrite-aligned", "error-mid-call", "concurrent-calls"].map(str::to_owned);
        for kind in ["xfs-4k", "xfs-rt"] {
            long.tests(Kind::named(Some(kind), 512).unwrap(), &few, &[]);
        }
        let kind = Kind::named(Some("xfs-1k"), 512).unwrap();
        long.tests(
            kind,
            &exerciser,
            &["wtblk_ops=60".into(), "wtblk_seed=3".into()],
        );
        long.churn(kind, 3);
        long.passers_by();
        return long.end();
    };
    let tests = catalog::tests(&built("guest")).unwrap();
    let mut cycle = 0;
    'all: loop {
        cycle += 1;
        for kind in KINDS.iter().filter(|k| !k.always_cow) {
            let words = [
                "wtblk_ops=600".to_owned(),
                format!("wtblk_seed={}", 100 * cycle + kind.block / 1024),
            ];
            long.tests(kind, &tests, &[]);
            long.tests(kind, &exerciser, &words);
            long.churn(kind, 3);
            long.passers_by();
            eprintln!(
                "{:.0} s: cycle {cycle}, {}, {} wrong",
                long.begun.elapsed().as_secs_f64(),
                kind.name,
                long.wrong.len()
            );
            if long.begun.elapsed().as_secs() >= seconds {
                break 'all;
            }
        }
    }
    long.end();
}

#[test]
fn growth_is_noticed() {
    let sample = |n: u32, anon: u64, descriptors: usize, threads: u64| Sample {
        at: f64::from(n),
        anon,
        rss: 0,
        descriptors,
        threads,
        guests: n,
        rests: true,
    };
    let all = |of: &dyn Fn(u32) -> Sample| (0..60).map(of).collect::<Vec<_>>();
    let flat = all(&|n| sample(n, 4000 + u64::from(n % 5) * 100, 20, 6));
    assert_eq!(flat::grown(&flat), Ok(vec![]));
    let memory = all(&|n| sample(n, 4000 + u64::from(n) * 80, 20, 6));
    let descriptors = all(&|n| sample(n, 4000, 20 + n as usize / 12, 6));
    let threads = all(&|n| sample(n, 4000, 20, 6 + u64::from(n / 12)));
    for (samples, what) in [
        (memory, "KiB"),
        (descriptors, "descriptors"),
        (threads, "threads"),
    ] {
        let grown = flat::grown(&samples).unwrap();
        assert!(grown.len() == 1 && grown[0].contains(what), "{grown:?}");
    }
    assert!(flat::grown(&flat[..20]).is_err());
    // A guest's memory is not its own.
    let mut busy = flat.clone();
    busy.iter_mut().for_each(|s| s.rests = s.guests < 50);
    busy[55].anon = 1 << 20;
    assert_eq!(flat::grown(&busy), Ok(vec![]));
}
