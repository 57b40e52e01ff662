// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The ready-made scenarios: every file is good, and each of those in
//! `guest-tests/scenarios/actions/` does at a real connection what it says.

mod common;

use std::collections::BTreeSet;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::driver::*;
use common::serve::{Serve, Trace, wtblk};
use common::until;
use vhost::VhostBackend as _;

/// The place that the files speak of.
const AT: u64 = 2048;
/// What is on the whole disk before.
const OLD: u8 = 0x11;
const NEW: u8 = 0x22;
const SIZE: usize = 16 << 20;

/// A device that was started with one of the files, and both its disks.
struct World {
    serve: Serve,
    d: Driver,
    mark: Driver,
}

impl World {
    fn start(file: &Path) -> World {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("image"), vec![OLD; SIZE]).unwrap();
        let file = file.to_str().unwrap();
        let serve = Serve::start_in(dir, "", &["--image", "image", "--scenario", file]);
        let d = Driver::connect(serve.data(), 1);
        let mark = Driver::connect(serve.mark(), 1);
        World { serve, d, mark }
    }

    /// Bytes of the image file, now.
    fn image(&self, sector: u64, len: usize) -> Vec<u8> {
        let file = std::fs::File::open(self.serve.path("image")).unwrap();
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, sector * 512).unwrap();
        bytes
    }

    #[track_caller]
    fn assert_image(&self, sector: u64, len: usize, byte: u8, what: &str) {
        let bytes = self.image(sector, len);
        let other = bytes.iter().position(|&b| b != byte);
        assert_eq!(other, None, "{what}: {byte:#x} expected from {sector} on");
    }

    /// Writes 4 KiB to the place; the status.
    fn write(&mut self) -> u8 {
        self.d.write(AT, &[NEW; 4096])
    }

    /// The same without waiting, from slot `n`.
    fn submit(&mut self, n: u64) -> u16 {
        self.submit_to(n, AT, 4096)
    }

    fn submit_to(&mut self, n: u64, sector: u64, len: u32) -> u16 {
        let at = self.d.slot(0, n) + 0x1000;
        self.d.poke(at, &vec![NEW; len as usize]);
        self.d.submit(0, n, OUT, sector, len)
    }

    fn flush(&mut self) -> u8 {
        let head = self.d.submit(0, 7, FLUSH, 0, 0);
        self.d.kick(0);
        self.d.finish(0, 7, head)
    }

    fn until_state(&mut self, what: &str) {
        until(what, || self.mark.state().contains(what).then_some(()));
    }

    /// The rule's `fired` on the state page.
    fn fired(&mut self, rule: &str) -> u64 {
        let state = self.mark.state();
        let rules = state.split("rules=").nth(1).unwrap_or_default();
        let mut counts = rules.split([',', '\n', ' ']).map(|r| r.split(':'));
        let fired = counts.find_map(|mut c| (c.next() == Some(rule)).then(|| c.next()).flatten());
        fired.and_then(|n| n.parse().ok()).expect("the rule's line")
    }
}

/// The file's name, what shows it, and what the trace must say afterwards.
type Shown = (&'static str, fn(&mut World), fn(&Trace));

const ACTIONS: &[Shown] = &[
    ("status-ioerr", |w| fails_once(w, 1, OLD), anything),
    ("status-unsupp", |w| fails_once(w, 2, OLD), anything),
    ("status-raw", |w| fails_once(w, 77, OLD), anything),
    ("status-store", |w| fails_once(w, 1, NEW), anything),
    ("delay-fixed", |w| overtaken(w, 50), overtakes),
    ("delay-range", |w| overtaken(w, 20), overtakes),
    ("delay-per-kib", |w| overtaken(w, 10 + 4 * 5), overtakes),
    ("hold", held_until_released, overtakes),
    ("hold-limit", |w| overtaken(w, 100), overtakes),
    ("order", three_writes, last_first),
    ("hang", hangs, anything),
    ("torn", torn, anything),
    ("corrupt", corrupt, anything),
    ("drop", dropped, anything),
    ("misdirect", misdirected, anything),
    ("stale", stale, anything),
    ("drop-flush", flush_that_lies, anything),
    ("late-flush", flush_that_is_late, anything),
    ("used-len", wrong_length, anything),
    ("disconnect-keep", |w| closes(w, true), nothing_lost),
    ("disconnect-lose", |w| closes(w, false), one_lost),
    ("gone", gone, anything),
    ("cut", cut, anything),
];

fn fails_once(w: &mut World, status: u8, stored: u8) {
    assert_eq!(w.write(), status);
    w.assert_image(AT, 4096, stored, "the image");
    assert_eq!(w.write(), 0, "only once");
    w.assert_image(AT, 4096, NEW, "the image");
}

/// A write that waits so long and a read that is submitted with it.
fn overtaken(w: &mut World, ms: u64) {
    let begun = Instant::now();
    let late = w.submit(1);
    let read = w.d.submit(0, 2, IN, 0, 512);
    w.d.kick(0);
    assert_eq!(w.d.finish(0, 2, read), 0);
    assert_eq!(w.d.finish(0, 1, late), 0);
    assert!(begun.elapsed() >= Duration::from_millis(ms), "too soon");
    w.assert_image(AT, 4096, NEW, "the image");
}

fn held_until_released(w: &mut World) {
    let late = w.submit(1);
    w.d.kick(0);
    assert_eq!(w.mark.mark("wait held=1"), 0);
    assert_eq!(w.d.read(AT, 512), (0, vec![OLD; 512]), "not stored yet");
    assert!(!w.d.is_done(0, late));
    assert_eq!(w.mark.mark("release rule=hold"), 0);
    assert_eq!(w.d.finish(0, 1, late), 0);
    w.assert_image(AT, 4096, NEW, "the image");
}

fn three_writes(w: &mut World) {
    let heads: Vec<u16> = (0..3).map(|n| w.submit_to(n, AT + n, 512)).collect();
    w.d.kick(0);
    for (n, head) in (0..).zip(heads) {
        assert_eq!(w.d.finish(0, n, head), 0);
    }
    assert_eq!(w.image(AT, 4 * 512)[..1536], [NEW; 1536]);
}

fn hangs(w: &mut World) {
    let never = w.submit(1);
    w.d.kick(0);
    w.until_state(" hung=1 ");
    assert_eq!(w.d.read(0, 512).0, 0, "others pass");
    assert_eq!(w.mark.mark("release"), 0);
    assert_eq!(w.d.read(0, 512).0, 0);
    assert!(!w.d.is_done(0, never), "a release is not for it");
}

fn torn(w: &mut World) {
    assert_eq!(w.write(), 0, "it says that all is well");
    let bytes = w.image(AT, 4096);
    assert_eq!(bytes[..512], [NEW; 512]);
    assert_eq!(bytes[512..], [OLD; 3584]);
}

fn corrupt(w: &mut World) {
    assert_eq!(w.write(), 0);
    let bytes = w.image(AT, 4096);
    assert_eq!((bytes[100] ^ NEW).count_ones(), 1);
    let others = bytes.iter().filter(|&&b| b != NEW).count();
    assert_eq!(others, 1);
    assert_eq!(w.d.peek(w.d.slot(0, 0) + 0x1000, 4096), [NEW; 4096]);
}

fn dropped(w: &mut World) {
    assert_eq!(w.write(), 0);
    assert_eq!(w.d.read(AT, 4096), (0, vec![OLD; 4096]));
    w.assert_image(AT, 4096, OLD, "the image");
}

fn misdirected(w: &mut World) {
    assert_eq!(w.write(), 0);
    w.assert_image(AT, 4096, OLD, "the image");
    w.assert_image(AT + 64, 4096, NEW, "the image");
    w.assert_image(AT + 72, 512, OLD, "the image");
}

fn stale(w: &mut World) {
    assert_eq!(w.write(), 0);
    assert_eq!(w.d.read(AT, 4096), (0, vec![OLD; 4096]));
    assert_eq!(w.d.read(AT, 4096), (0, vec![NEW; 4096]), "only once");
}

fn flush_that_lies(w: &mut World) {
    assert_eq!(w.write(), 0);
    assert_eq!(w.flush(), 0, "it says so");
    w.assert_image(AT, 4096, OLD, "and did nothing");
    assert_eq!(w.flush(), 0);
    w.assert_image(AT, 4096, NEW, "the image");
}

fn flush_that_is_late(w: &mut World) {
    assert_eq!(w.d.write(0, &[NEW; 512]), 0);
    assert_eq!(w.write(), 0);
    assert_eq!(w.flush(), 0);
    w.assert_image(0, 512, NEW, "the image");
    w.assert_image(AT, 4096, OLD, "all but the last write");
    assert_eq!(w.flush(), 0);
    w.assert_image(AT, 4096, NEW, "the image");
}

fn wrong_length(w: &mut World) {
    for want in [1, 4097] {
        let head = w.d.submit(0, 3, IN, AT, 4096);
        w.d.kick(0);
        assert_eq!(w.d.wait(0, head), want);
        assert_eq!(w.d.status(w.d.slot(0, 3) + 0x20), 0);
        assert_eq!(w.d.peek(w.d.slot(0, 3) + 0x1000, 4096), [OLD; 4096]);
        w.d.queues[0].forget();
    }
}

fn closes(w: &mut World, keep: bool) {
    let last = w.submit(1);
    w.d.kick(0);
    until("a closed connection", || {
        w.d.frontend.get_features().is_err().then_some(())
    });
    assert_eq!(w.d.is_done(0, last), keep);
    // The next one is served as if nothing had been.
    w.d = Driver::connect(w.serve.data(), 1);
    assert_eq!(w.write(), 0);
    w.assert_image(AT, 4096, NEW, "the image");
}

fn gone(w: &mut World) {
    assert_eq!(w.d.write(0, &[NEW; 512]), 0, "not yet");
    assert_eq!(w.write(), 1);
    assert_eq!(w.d.write(0, &[OLD; 512]), 1);
    assert_eq!(w.d.read(0, 512).0, 1);
    assert_eq!(w.flush(), 1);
    w.assert_image(0, 512, NEW, "the image");
    w.assert_image(AT, 4096, OLD, "the image");
}

fn cut(w: &mut World) {
    assert_eq!(w.d.write(0, &[NEW; 512]), 0);
    assert_eq!(w.flush(), 0);
    assert_eq!(w.d.write(8, &[NEW; 512]), 0);
    let last = w.submit(1);
    w.d.kick(0);
    w.until_state(" device=cut ");
    assert!(!w.d.is_done(0, last));
    w.assert_image(0, 512, NEW, "it was flushed");
    w.assert_image(8, 512, OLD, "it was not");
    w.assert_image(AT, 4096, OLD, "the image");
}

fn anything(_: &Trace) {}

/// Sectors of the data disk's first requests in the order of their completion.
fn completed(trace: &Trace) -> Vec<u64> {
    let data: Vec<_> = trace.submits();
    let data = |request| data.iter().find(|(seq, s)| *seq == request && s.disk == 0);
    let completes = trace.completes();
    let sectors = completes.iter().filter_map(|(_, c)| data(c.request));
    sectors.map(|(_, s)| s.sector).collect()
}

fn overtakes(trace: &Trace) {
    let came: Vec<u64> = trace
        .submits()
        .iter()
        .filter(|(_, s)| s.disk == 0)
        .map(|(_, s)| s.sector)
        .collect();
    assert_eq!(came[0], AT, "the slow one came first");
    assert_eq!(completed(trace).last(), Some(&AT), "and completed last");
}

fn last_first(trace: &Trace) {
    assert_eq!(completed(trace), [AT + 2, AT + 1, AT]);
}

fn lost(trace: &Trace) -> usize {
    trace
        .completes()
        .iter()
        .filter(|(_, c)| c.abandoned)
        .count()
}

fn nothing_lost(trace: &Trace) {
    assert_eq!(lost(trace), 0);
}

fn one_lost(trace: &Trace) {
    assert_eq!(lost(trace), 1);
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-tests/scenarios")
}

/// The scenario files of a folder and of those in it.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut list = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list.extend(files(&path));
        } else {
            assert_eq!(path.extension().unwrap(), "toml", "{}", path.display());
            list.push(path);
        }
    }
    list.sort();
    list
}

#[test]
fn each_action_does_what_its_file_says() {
    for (name, show, afterwards) in ACTIONS {
        let mut w = World::start(&folder().join(format!("actions/{name}.toml")));
        eprintln!("{name}"); // Shown only where the test fails.
        show(&mut w);
        assert!(w.fired(name) > 0, "{name} has not fired");
        let World { serve, d, mark } = w;
        drop((d, mark));
        let trace = serve.end();
        trace.assert_paired();
        afterwards(&trace);
    }
}

#[test]
fn every_file_of_an_action_is_exercised() {
    let there: BTreeSet<String> = files(&folder().join("actions"))
        .iter()
        .map(|p| p.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let shown: BTreeSet<String> = ACTIONS
        .iter()
        .map(|(name, ..)| (*name).to_owned())
        .collect();
    assert_eq!(there, shown);
}

/// Status and standard output of `wtblk ARGS`.
fn says(args: &[&str]) -> (i32, String) {
    let output = wtblk().args(args).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap_or(-1), text)
}

#[test]
fn check_accepts_every_file_that_is_shipped() {
    let all = files(&folder());
    assert!(all.len() >= 25, "{all:?}");
    for file in &all {
        let text = std::fs::read_to_string(file).unwrap();
        assert!(
            text.starts_with("# SPDX-License-Identifier: "),
            "{}",
            file.display()
        );
        let (status, said) = says(&["scenario", "check", file.to_str().unwrap()]);
        assert_eq!(status, 0, "{}: {said}", file.display());
    }
}

#[test]
fn check_accepts_the_scenario_of_the_readme() {
    let readme = std::fs::read_to_string(folder().join("../../README.md")).unwrap();
    // The indented block behind the heading.
    let section = readme.split("## A scenario\n").nth(1).expect("the section");
    let block: String = section
        .lines()
        .skip_while(|l| l.is_empty())
        .map_while(|l| l.strip_prefix("    "))
        .map(|l| format!("{l}\n"))
        .collect();
    assert!(block.contains("[[fault]]"), "{block}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("readme.toml");
    std::fs::write(&path, block).unwrap();
    let (status, said) = says(&["scenario", "check", path.to_str().unwrap()]);
    assert_eq!(status, 0, "{said}");
}

#[test]
fn the_subcommands_and_their_statuses() {
    let hold = folder().join("actions/hold.toml");
    let hold = hold.to_str().unwrap();
    let (status, text) = says(&["scenario", "explain", hold]);
    assert!(
        status == 0 && text.starts_with("hold: when it is a write"),
        "{text}"
    );
    let (status, text) = says(&["scenario", "schema"]);
    let schema = folder().join("../../docs/scenario.schema.json");
    assert_eq!(
        (status, text),
        (0, std::fs::read_to_string(schema).unwrap())
    );
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "version = 1\nfualt = 1\n").unwrap();
    let bad = bad.to_str().unwrap();
    for args in [
        &["scenario", "check", bad][..],
        &["scenario", "check", "/nowhere.toml"],
        &["scenario", "explain", bad],
        &["scenario", "check"],
        &["replay", "/nowhere", "--scenario", hold],
        &["replay", hold, "--scenario", hold],
        &["ctl", "/nowhere", "status"],
    ] {
        assert_eq!(says(args).0, 2, "{args:?}");
    }

    let serve = Serve::start("", &["--scenario", hold, "--control", "control"]);
    let mut d = Driver::connect(serve.data(), 1);
    let control = serve.path("control");
    let ctl = |words: &[&str]| says(&[&["ctl", control.to_str().unwrap()], words].concat());
    until("the control socket", || control.exists().then_some(()));
    let (status, said) = ctl(&["wait", "--held", "1", "--limit-ms", "1"]);
    assert_eq!((status, said.as_str()), (1, "not yet\n"));
    let head = d.submit(0, 1, OUT, AT, 512);
    d.kick(0);
    assert_eq!(ctl(&["wait", "--held", "1"]).0, 0);
    let (status, said) = ctl(&["status"]);
    assert!(
        status == 0 && said.contains("rule hold: seen 1, fired 1, holds 1"),
        "{said}"
    );
    assert_eq!(ctl(&["release", "nobody"]).0, 2);
    assert_eq!(ctl(&["release", "hold"]), (0, "1 released\n".to_owned()));
    assert_eq!(d.finish(0, 1, head), 0);
    drop(d);
    let trace = serve.path("trace");
    let (status, said) = says(&["replay", trace.to_str().unwrap(), "--scenario", hold]);
    assert!(
        status == 0 && said.contains("hold: fired 1 of 1 seen"),
        "{said}"
    );
    serve.end().assert_paired();
}
