// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events per second and peak memory of the judge, all promises on, from a stored trace.
//!
//! `cargo bench --bench verify [-- EVENTS...]`; without numbers 10^5, 10^6 and 10^7. Each row is
//! a process of its own, so that its peak of memory is its own, and the best of several readings.
//! Marked traffic: calls of 64 KiB, each two marks, 16 writes of 4 KiB and two page reports (36
//! events). Unmarked: writes and reads of nobody, 32 in flight.
//!
//! The cost must grow linearly and the memory not at all: the status is 1 where an event of the
//! longest trace costs half as much again as one of the shortest, or the peak of memory grows so.
//! Whether the aims are met is told only: that depends on the machine.
//!
//! `-- make KIND EVENTS FILE` and `-- row FILE KIND` do one of both, for a profiler.

use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use wtblk::trace::event::{Body, Complete, DeviceEvent, DeviceKind, MarkEvent, Op, Status, Submit};
use wtblk::trace::{TraceReader, TraceWriter};
use wtblk::verify::Verifier;
use wtblk_shared::mark::{CallBegin, CallEnd, Extent, Mark, PageReport};
use wtblk_shared::tag::Tag;

fn mark(writer: &TraceWriter, mark: &Mark) {
    writer.record(&Body::Mark(MarkEvent {
        line: mark.to_line(),
        ordered: true,
    }));
}

fn submit(writer: &TraceWriter, op: Op, sector: u64, ioprio: u16) -> u64 {
    writer.record(&Body::Submit(Submit {
        disk: 0,
        queue: 0,
        op,
        sector,
        bytes: 4096,
        ioprio,
        epoch: 1,
        avail_pos: 0,
        digest: if ioprio == 0 { 0 } else { sector + 1 },
    }))
}

fn complete(writer: &TraceWriter, request: u64, digest: u64) {
    writer.record(&Body::Complete(Complete {
        request,
        status: Status::OK,
        avail_after: 0,
        abandoned: false,
        digest,
    }));
}

fn begin(writer: &TraceWriter) {
    let device = |kind, a, b, text: &str| {
        writer.record(&Body::Device(DeviceEvent {
            disk: 0,
            queue: 0,
            kind,
            a,
            b,
            text: text.into(),
        }));
    };
    device(
        DeviceKind::Begin,
        0,
        0,
        r#"{"queues":1,"write_cache":true}"#,
    );
    device(DeviceKind::Features, 1 << 28, 0, "");
    device(DeviceKind::QueueStart, 128, 1, "");
    mark(writer, &Mark::Boot);
    let facts = [
        ("scheduler", "none"),
        ("queues", "1"),
        ("tags", "on"),
        ("files", "marked"),
    ];
    let own = |(k, v): (&str, &str)| (k.to_owned(), v.to_owned());
    mark(writer, &Mark::Env(facts.map(own).into()));
}

/// Calls one after the other, round and round in a file of 64 MiB.
fn marked(writer: &TraceWriter, events: u64) {
    const CALL: u64 = 64 << 10;
    let extents = Some(vec![Extent {
        logical: 0,
        physical: 64 << 20,
        length: 64 << 20,
        flags: 0,
    }]);
    for n in 0..events / 36 {
        let off = n * CALL % (64 << 20);
        let tag = Tag::nth(n);
        mark(
            writer,
            &Mark::Begin(CallBegin {
                call: n + 1,
                test: "t".into(),
                dev: 8,
                ino: 1,
                open: 1,
                off,
                len: CALL,
                flags: vec!["writethrough".into()],
                isize: 64 << 20,
                bsize: 4096,
                tag: Some(tag.number()),
                pattern: None,
                extents: extents.clone(),
            }),
        );
        let sector = |i: u64| ((64 << 20) + off + i * 4096) / 512;
        let ids: Vec<u64> = (0..16)
            .map(|i| submit(writer, Op::Write, sector(i), tag.ioprio()))
            .collect();
        for (i, id) in ids.into_iter().enumerate() {
            complete(writer, id, sector(i as u64) + 1);
        }
        mark(
            writer,
            &Mark::End(CallEnd {
                call: n + 1,
                result: CALL as i64,
                isize: 64 << 20,
                extents: extents.clone(),
            }),
        );
        for _ in 0..2 {
            mark(
                writer,
                &Mark::Report(PageReport {
                    call: n + 1,
                    at: "after-call".into(),
                    off,
                    len: CALL,
                    cached: 16,
                    dirty: 0,
                    writeback: 0,
                }),
            );
        }
    }
}

fn unmarked(writer: &TraceWriter, events: u64) {
    let mut flight = std::collections::VecDeque::new();
    for n in 0..events / 2 {
        let op = if n % 4 == 3 { Op::Read } else { Op::Write };
        let sector = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44 << 3;
        flight.push_back(submit(writer, op, sector, 0));
        if flight.len() == 32
            && let Some(id) = flight.pop_front()
        {
            complete(writer, id, 0);
        }
    }
    flight.into_iter().for_each(|id| complete(writer, id, 0));
}

/// The highest memory of this process so far, KiB (VmHWM of proc(5)).
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let number = line.and_then(|l| l.split_whitespace().next());
    number.and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Million events per second that are wanted of a core.
const AIMS: [(&str, f64); 2] = [("marked", 3.0), ("unmarked", 10.0)];
/// How much more an event, or the memory, of the longest trace may cost than of the shortest.
const LINEAR: f64 = 1.5;

/// What a row says, on one line: events, seconds of judging and of reading alone, KiB at most.
struct Row {
    events: u64,
    judged: f64,
    read: f64,
    peak: u64,
}

/// One row, in a process of its own.
fn row(path: &Path, kind: &str) -> Row {
    let before = peak();
    let (mut events, mut judged, mut read) = (0u64, f64::MAX, f64::MAX);
    let begun = Instant::now();
    // The best of some: a short trace is judged in less time than the machine needs to wake up.
    for round in 0..50 {
        if round > 2 && begun.elapsed().as_secs() > 1 {
            break;
        }
        let at = Instant::now();
        let mut reader = TraceReader::open(path).unwrap();
        events = 0;
        while let Some(event) = reader.next().unwrap() {
            std::hint::black_box(&event);
            events += 1;
        }
        read = read.min(at.elapsed().as_secs_f64());
        let at = Instant::now();
        let mut reader = TraceReader::open(path).unwrap();
        let mut verifier = Verifier::of_trace();
        while let Some(event) = reader.next().unwrap() {
            verifier.event(&event);
        }
        let verdicts = verifier.finish();
        judged = judged.min(at.elapsed().as_secs_f64());
        assert_eq!(verdicts.findings().next(), None, "the stream is legal");
    }
    let million = |s: f64| events as f64 / s / 1e6;
    eprintln!(
        "{kind:<9} {events:>9} events: {:>6.2} million/s judged and read, {:>6.2} read alone, peak memory {} KiB ({before} before)",
        million(judged),
        million(read),
        peak(),
    );
    Row {
        events,
        judged,
        read,
        peak: peak(),
    }
}

fn make(path: &Path, kind: &str, events: u64) {
    let writer = TraceWriter::create(path).unwrap();
    begin(&writer);
    match kind {
        "marked" => marked(&writer, events),
        _ => unmarked(&writer, events),
    }
    writer.close();
}

/// The row of a process of its own.
fn ask(path: &Path, kind: &str) -> Row {
    let this = std::env::current_exe().unwrap();
    let mut command = Command::new(this);
    command.arg("row").arg(path).arg(kind);
    let output = command.stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let mut words = text.split_whitespace();
    let mut next = || words.next().expect("a row of four numbers");
    Row {
        events: next().parse().unwrap(),
        judged: next().parse().unwrap(),
        read: next().parse().unwrap(),
        peak: next().parse().unwrap(),
    }
}

/// Whether cost and memory grow as they may.
fn grows_well(kind: &str, aim: f64, rows: &[Row]) -> bool {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else {
        return true;
    };
    let cost = |r: &Row| r.judged / r.events as f64;
    let slowest = rows.iter().map(|r| 1e-6 / cost(r)).fold(f64::MAX, f64::min);
    let (time, memory) = (
        cost(last) / cost(first),
        last.peak as f64 / first.peak as f64,
    );
    let good = time < LINEAR && memory < LINEAR;
    println!(
        "{kind}: {slowest:.2} million/s at least, wanted {aim}: {}; of it {:.0} % is reading; an event of the longest trace costs \
         {time:.2} times one of the shortest, the memory is {memory:.2} times as large: {}",
        if slowest >= aim { "met" } else { "not met" },
        last.read / last.judged * 100.0,
        if good { "linear" } else { "NOT LINEAR" },
    );
    good
}

fn main() -> ExitCode {
    // Cargo adds --bench.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["row", path, kind] => {
            let row = row(Path::new(path), kind);
            println!("{} {} {} {}", row.events, row.judged, row.read, row.peak);
            return ExitCode::SUCCESS;
        }
        ["make", kind, events, path] => {
            make(Path::new(path), kind, events.parse().unwrap());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    let mut numbers: Vec<u64> = args.iter().filter_map(|a| a.parse().ok()).collect();
    if numbers.is_empty() {
        numbers = vec![100_000, 1_000_000, 10_000_000];
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let mut good = true;
    for (kind, aim) in AIMS {
        let mut rows = Vec::new();
        for events in &numbers {
            make(&path, kind, *events);
            rows.push(ask(&path, kind));
        }
        good &= grows_well(kind, aim, &rows);
    }
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
