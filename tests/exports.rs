// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Traces in other programs' formats, from a real guest: a log of dm-log-writes
//! whose replay gives the image that the guest left, byte for byte; blktrace
//! files that Debian's tools take; JSON that is what it says it is.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use support::{built, inherited, wtblk};
use wtblk::harness::accel::Accel;
use wtblk::harness::image;
use wtblk::harness::qemu::{GUEST_MEMORY, Machine, Qemu, Vm};
use wtblk::trace::TraceReader;
use wtblk::trace::event::{Body, Complete, DATA_DISK, DataKind, Event, Op, Status, Submit};

/// One run of a guest, for all tests here.
struct Guest {
    dir: tempfile::TempDir,
}

static GUEST: LazyLock<Guest> = LazyLock::new(Guest::run);

impl Guest {
    /// Boots, runs some tests (a failing write among them), keeps image and trace.
    fn run() -> Guest {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        image::xfs(
            &path("before.img"),
            image::Kind::named(None, 512).unwrap(),
            512,
        )
        .unwrap();
        std::fs::copy(path("before.img"), path("data.img")).unwrap();
        let [data, mark] = [(); 2].map(|()| UnixStream::pair().unwrap());
        let ours = (data.0, mark.0);
        let theirs = (OwnedFd::from(data.1), OwnedFd::from(mark.1));
        let scenario =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("guest-tests/scenarios/error-mid-call.toml");
        let mut device = wtblk()
            .args(["serve", "--trace-data", "writes", "--image"])
            .arg(path("data.img"))
            .arg("--trace")
            .arg(path("trace"))
            .arg("--scenario")
            .arg(scenario)
            .args([
                "--fd",
                &inherited(&ours.0),
                "--mark-fd",
                &inherited(&ours.1),
            ])
            .spawn()
            .unwrap();
        drop(ours);
        let words = ["wtblk_tests=overwrite-aligned,error-mid-call,beyond-eof".to_owned()];
        let kernel = built("build");
        let vm = Vm {
            machine: Machine::Microvm,
            accel: Accel::Tcg,
            kernel: &kernel,
            initramfs: &built("guest"),
            words: &words,
            disks: Some((&theirs.0, &theirs.1)),
            third: None,
            queues: 1,
            queue_size: None,
            memory: GUEST_MEMORY,
            name: dir.path().display().to_string(),
        };
        let mut command = vm.command(&Qemu::find(None).unwrap());
        inherited(&theirs.0);
        inherited(&theirs.1);
        let output = command.stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(33), "{said}");
        kill(Pid::from_raw(device.id() as i32), Signal::SIGTERM).unwrap();
        assert!(device.wait().unwrap().success());
        Guest { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn events(&self) -> Vec<Event> {
        events(&self.path("trace"))
    }

    /// `wtblk trace export --to FORMAT`; where it went.
    fn export(&self, to: &str) -> PathBuf {
        // Tests run side by side: a file for each.
        static OUTS: AtomicU64 = AtomicU64::new(0);
        let n = OUTS.fetch_add(1, Ordering::Relaxed);
        let out = self.path(&format!("out-{n}.{to}"));
        let (status, said) = typed(&["export", "--to", to], &self.path("trace"), &out);
        assert_eq!(status, 0, "{said}");
        out
    }
}

fn events(path: &Path) -> Vec<Event> {
    let mut reader = TraceReader::open(path).unwrap();
    let mut events = Vec::new();
    while let Some(event) = reader.next().unwrap() {
        events.push(event);
    }
    events
}

/// `wtblk trace ARGS FILE --out OUT`: status, and all that it said.
fn typed(args: &[&str], file: &Path, out: &Path) -> (i32, String) {
    let output = wtblk()
        .arg("trace")
        .args(args)
        .arg(file)
        .arg("--out")
        .arg(out)
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    (
        output.status.code().unwrap(),
        String::from_utf8_lossy(&said).into_owned(),
    )
}

/// An entry of a log, as the reader of this test understands it: by the
/// description of the format alone, without any code of ours.
#[derive(Clone, Debug, PartialEq)]
enum Entry {
    Write(u64, Vec<u8>),
    Discard(u64, u64),
    Flush,
    Mark(String),
}

/// Reads a log to its last byte.
fn read_log(log: &[u8]) -> Vec<Entry> {
    let number = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    assert_eq!(number(0), 0x006a_7366_7773_6872, "magic");
    assert_eq!(number(8), 1, "version");
    let sector = u32::from_le_bytes(log[24..28].try_into().unwrap()) as usize;
    let mut at = sector;
    let mut entries = Vec::new();
    for _ in 0..number(16) {
        let [to, count, flags, len] = [0, 8, 16, 24].map(|field| number(at + field));
        let header = at;
        at += sector;
        if flags & 8 != 0 {
            let text = &log[header + 32..header + 32 + len as usize];
            entries.push(Entry::Mark(String::from_utf8(text.to_vec()).unwrap()));
            continue;
        }
        if flags & 1 != 0 {
            entries.push(Entry::Flush);
        }
        if flags & 4 != 0 {
            entries.push(Entry::Discard(to, count));
        } else if count > 0 {
            let bytes = count as usize * sector;
            entries.push(Entry::Write(to, log[at..at + bytes].to_vec()));
            at += bytes;
        }
    }
    assert_eq!(at, log.len(), "nothing behind the last entry");
    entries
}

fn replay(image: &mut [u8], entries: &[Entry]) {
    for entry in entries {
        match entry {
            Entry::Write(to, bytes) => {
                let at = *to as usize * 512;
                image[at..at + bytes.len()].copy_from_slice(bytes);
            }
            Entry::Discard(to, count) => {
                image[*to as usize * 512..(to + count) as usize * 512].fill(0);
            }
            Entry::Flush | Entry::Mark(_) => {}
        }
    }
}

#[test]
fn the_log_replayed_gives_the_image_byte_for_byte() {
    let guest = &*GUEST;
    let entries = read_log(&std::fs::read(guest.export("log-writes")).unwrap());
    let mut image = std::fs::read(guest.path("before.img")).unwrap();
    let left = std::fs::read(guest.path("data.img")).unwrap();
    assert!(image != left, "the guest has written");
    replay(&mut image, &entries);
    let differs = image.iter().zip(&left).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first byte that differs");
    assert_eq!(image.len(), left.len());
    assert_eq!(
        entries.last(),
        Some(&Entry::Mark("dm-log-writes-end".into()))
    );
    // One write less, and the image is another: the comparison can fail.
    let last = entries
        .iter()
        .rposition(|e| matches!(e, Entry::Write(..)))
        .unwrap();
    let mut less = entries.clone();
    less.remove(last);
    let mut other = std::fs::read(guest.path("before.img")).unwrap();
    replay(&mut other, &less);
    assert!(other != left);
}

#[test]
fn failed_writes_are_left_out_and_marked_and_flushes_stand_behind_what_they_cover() {
    let guest = &*GUEST;
    let entries = read_log(&std::fs::read(guest.export("log-writes")).unwrap());
    let events = guest.events();
    let mut submits = BTreeMap::new();
    let (mut good, mut failed, mut flushes) = (0, 0, 0);
    for e in &events {
        match &e.body {
            Body::Submit(s) if s.disk == DATA_DISK => {
                submits.insert(e.seq, s.op);
            }
            Body::Complete(c) => match submits.get(&c.request) {
                Some(Op::Write) if c.status.is_ok() => good += 1,
                Some(Op::Write) => failed += 1,
                Some(Op::Flush) if c.status.is_ok() => flushes += 1,
                _ => {}
            },
            _ => {}
        }
    }
    let count = |want: fn(&Entry) -> bool| entries.iter().filter(|e| want(e)).count();
    assert_eq!(count(|e| matches!(e, Entry::Flush)), flushes);
    assert!(failed > 0 && flushes > 0);
    let marks = count(|e| matches!(e, Entry::Mark(m) if m.starts_with("wtblk left out write ")));
    assert_eq!(marks, failed);
    // A write is one entry, or several where it is longer than 1 MiB.
    assert!(count(|e| matches!(e, Entry::Write(..))) >= good);
    // The guest's own marks are there, in their order.
    let ours = |m: &&String| m.starts_with("wtblk/1 ");
    let in_log: Vec<&String> = entries
        .iter()
        .filter_map(|e| match e {
            Entry::Mark(m) => Some(m),
            _ => None,
        })
        .filter(ours)
        .collect();
    let in_trace: Vec<&String> = events
        .iter()
        .filter_map(|e| match &e.body {
            Body::Mark(m) => Some(&m.line),
            _ => None,
        })
        .collect();
    assert_eq!(in_log.len(), in_trace.len());
    assert!(
        in_log
            .iter()
            .zip(&in_trace)
            .all(|(a, b)| b.starts_with(a.as_str()))
    );
}

#[test]
fn what_was_imported_is_exported_as_it_was_and_gives_no_finding() {
    let guest = &*GUEST;
    let log = guest.export("log-writes");
    let back = guest.path("back");
    let (status, said) = typed(&["import", "--from", "log-writes"], &log, &back);
    assert_eq!(status, 0, "{said}");
    let mut verdicts = Vec::new();
    let status = wtblk::cli::verify::verify(&back, true, &mut verdicts).unwrap();
    let verdicts = String::from_utf8(verdicts).unwrap();
    assert_ne!(status, 1, "{verdicts}");
    for promise in ["align", "cover", "order", "sync-return", "error-report"] {
        let json: Value = serde_json::from_str(&verdicts).unwrap();
        for test in json["tests"].as_array().unwrap() {
            let all = test["promises"].as_array().unwrap();
            let one = all.iter().find(|p| p["promise"] == promise).unwrap();
            assert_eq!(one["verdict"], "not-checked", "{one:#}");
        }
    }
    // Contents are the same; a log that begins with a gap is not exported again.
    let contents = |events: &[Event]| -> BTreeMap<u64, Vec<u8>> {
        let mut disk = BTreeMap::new();
        for e in events {
            if let Body::Data(d) = &e.body
                && d.kind == DataKind::Stored
            {
                for (n, sector) in d.bytes.chunks(512).enumerate() {
                    disk.insert(d.sector + n as u64, sector.to_vec());
                }
            }
        }
        disk
    };
    assert!(contents(&events(&back)) == contents(&guest.events()));
    let again = guest.path("again.log");
    let (status, said) = typed(&["export", "--to", "log-writes"], &back, &again);
    assert_eq!(status, 2);
    assert!(said.contains("events are missing"), "{said}");
}

#[test]
fn a_trace_without_contents_says_which_option_keeps_them() {
    let dir = tempfile::tempdir().unwrap();
    let run = support::run(&["--test", "overwrite-aligned"]);
    let trace = run.dir.path().join("boot-1/trace.wtblk");
    let (status, said) = typed(
        &["export", "--to", "log-writes"],
        &trace,
        &dir.path().join("x"),
    );
    assert_eq!(status, 2);
    assert!(said.contains("--trace-data writes"), "{said}");
}

fn program(name: &str, args: &[&str], dir: &Path) -> String {
    let output = Command::new(name)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|e| panic!("{name}: {e}; ./ci/setup installs it"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{name}: {said}");
    said
}

#[test]
fn blkparse_prints_the_trace_and_btt_accepts_it() {
    let guest = &*GUEST;
    let prefix = guest.export("blktrace");
    let name = prefix.file_name().unwrap().to_str().unwrap();
    let dir = guest.dir.path();
    let text = program("blkparse", &["-i", name, "-d", "merged.bin"], dir);
    let mut submits = BTreeMap::new();
    let mut expected = BTreeSet::new();
    for e in guest.events() {
        match &e.body {
            Body::Submit(s) if s.disk == DATA_DISK => {
                submits.insert(e.seq, s.clone());
            }
            Body::Complete(c) => {
                if let Some(s) = submits.get(&c.request)
                    && s.op == Op::Write
                {
                    let pid = wtblk_shared::tag::Tag::from_ioprio(s.ioprio);
                    let pid = pid.map_or(0, |t| t.number());
                    let error = if c.status.is_ok() { 0 } else { 5 };
                    expected.insert((pid, s.sector, s.bytes / 512, error));
                }
            }
            _ => {}
        }
    }
    assert!(expected.iter().any(|e| e.0 != 0) && expected.iter().any(|e| e.3 != 0));
    let mut printed = BTreeSet::new();
    for line in text.lines() {
        // 254,0 cpu sequence time pid action rwbs sector + sectors [error]
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, _, pid, "C", rwbs, sector, "+", sectors, error] = words.as_slice()
            && rwbs.starts_with('W')
        {
            let error: i32 = error.trim_matches(['[', ']']).parse().unwrap();
            printed.insert((
                pid.parse().unwrap(),
                sector.parse().unwrap(),
                sectors.parse().unwrap(),
                error.abs(),
            ));
        }
    }
    assert_eq!(printed, expected, "{text}");
    for action in [" Q ", " G ", " I ", " D "] {
        assert!(text.contains(action), "no{action}in\n{text}");
    }
    let btt = program("btt", &["-i", "merged.bin"], dir);
    for line in ["Q2C", "D2C", "All Devices"] {
        assert!(btt.contains(line), "{line} is missing:\n{btt}");
    }
}

#[test]
fn every_event_is_a_line_of_json() {
    let guest = &*GUEST;
    let text = std::fs::read_to_string(guest.export("jsonl")).unwrap();
    let events = guest.events();
    assert_eq!(text.lines().count(), events.len());
    for (line, event) in text.lines().zip(&events) {
        let json: Value = serde_json::from_str(line).unwrap();
        assert_eq!(json["seq"], event.seq);
        if let Body::Mark(m) = &event.body {
            assert_eq!(json["line"], m.line);
        }
    }
}

#[test]
fn perfetto_gets_slices_that_do_not_overlap_and_flows_that_meet() {
    let guest = &*GUEST;
    let text = std::fs::read_to_string(guest.export("perfetto")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let all = json["traceEvents"].as_array().unwrap();
    let of = |ph: &str, cat: &str| -> Vec<&Value> {
        all.iter()
            .filter(|e| e["ph"] == ph && e["cat"] == cat)
            .collect()
    };
    let events = guest.events();
    let requests = events
        .iter()
        .filter(|e| matches!(&e.body, Body::Submit(s) if s.disk == DATA_DISK))
        .count();
    assert_eq!(of("X", "request").len(), requests);
    let calls = events
        .iter()
        .filter(|e| matches!(&e.body, Body::Mark(m) if m.line.starts_with("wtblk/1 begin ")));
    assert_eq!(of("X", "call").len(), calls.count());
    let mut lanes: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    for e in all.iter().filter(|e| e["ph"] == "X") {
        let lane = (e["pid"].as_u64().unwrap(), e["tid"].as_u64().unwrap());
        let (at, dur) = (e["ts"].as_f64().unwrap(), e["dur"].as_f64().unwrap());
        lanes.entry(lane).or_default().push((at, at + dur));
    }
    for (lane, mut slices) in lanes {
        slices.sort_by(|a, b| a.partial_cmp(b).unwrap());
        assert!(
            slices.windows(2).all(|w| w[0].1 <= w[1].0 + 0.002),
            "lane {lane:?}"
        );
    }
    let ids = |list: Vec<&Value>| -> BTreeSet<u64> {
        list.iter().map(|e| e["id"].as_u64().unwrap()).collect()
    };
    let (from, to) = (ids(of("s", "call")), ids(of("f", "call")));
    assert!(!from.is_empty());
    assert_eq!(from, to);
}

#[test]
fn an_export_writes_over_nothing_and_leaves_no_half() {
    let dir = tempfile::tempdir().unwrap();
    let trace = dir.path().join("t");
    let writer = wtblk::trace::TraceWriter::create(&trace).unwrap();
    let write = Submit {
        op: Op::Write,
        bytes: 512,
        disk: DATA_DISK,
        queue: 0,
        sector: 8,
        ioprio: 0,
        epoch: 1,
        avail_pos: 0,
        digest: 0,
    };
    let request = writer.record(&Body::Submit(write));
    writer.record(&Body::Complete(Complete {
        request,
        status: Status::OK,
        avail_after: 1,
        abandoned: false,
        digest: 0,
    }));
    writer.close();
    let data = dir.path().join("t.data");
    let before = [&trace, &data].map(|path| std::fs::read(path).unwrap());
    for out in [&trace, &data] {
        for args in [
            ["export", "--to", "jsonl", "--force"].as_slice(),
            &["export", "--to", "log-writes", "--force"],
        ] {
            let (status, said) = typed(args, &trace, out);
            assert_eq!(status, 2, "{said}");
            assert!(said.contains("is the trace that is read"), "{said}");
        }
    }
    assert_eq!(
        before,
        [&trace, &data].map(|path| std::fs::read(path).unwrap())
    );
    let other = dir.path().join("disk.img");
    std::fs::write(&other, "somebody's").unwrap();
    let (status, said) = typed(&["export", "--to", "perfetto"], &trace, &other);
    assert_eq!((status, said.contains("--force")), (2, true), "{said}");
    assert_eq!(std::fs::read(&other).unwrap(), b"somebody's");
    let (status, said) = typed(&["export", "--to", "perfetto", "--force"], &trace, &other);
    assert_eq!(status, 0, "{said}");
    // Without contents there is no log, and no half of one.
    let log = dir.path().join("log");
    let (status, said) = typed(&["export", "--to", "log-writes"], &trace, &log);
    assert_eq!(status, 2, "{said}");
    assert!(!log.exists());
}
