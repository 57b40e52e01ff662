// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Events per second and peak memory of the judge, all promises on, from a stored trace.
//!
//! `cargo bench --bench verify [-- EVENTS...]`; without numbers 10^5, 10^6 and 10^7. Each row is
//! a process of its own, so that its peak of memory is its own. Marked traffic: calls of 64 KiB,
//! each two marks, 16 writes of 4 KiB and two page reports (36 events). Unmarked: writes and reads of
//! nobody, 32 in flight.

use std::path::Path;
use std::process::Command;
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

/// One row, in a process of its own.
fn row(path: &Path, kind: &str) {
    let before = peak();
    let begun = Instant::now();
    let mut reader = TraceReader::open(path).unwrap();
    let mut events = 0u64;
    while reader.next().unwrap().is_some() {
        events += 1;
    }
    let read = begun.elapsed().as_secs_f64();
    let mut reader = TraceReader::open(path).unwrap();
    let mut verifier = Verifier::of_trace();
    let begun = Instant::now();
    while let Some(event) = reader.next().unwrap() {
        verifier.event(&event);
    }
    let verdicts = verifier.finish();
    let seconds = begun.elapsed().as_secs_f64();
    assert_eq!(verdicts.findings().next(), None, "the stream is legal");
    let million = |s: f64| events as f64 / s / 1e6;
    println!(
        "{kind:<9} {events:>9} events: {:>6.2} million/s judged and read, {:>6.2} read alone, peak memory {} KiB ({before} before)",
        million(seconds),
        million(read),
        peak(),
    );
}

fn main() {
    // Cargo adds --bench.
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    if let [row_of, path, kind] = args.as_slice()
        && row_of == "row"
    {
        return row(Path::new(path), kind);
    }
    let numbers: Vec<u64> = args.iter().filter_map(|a| a.parse().ok()).collect();
    let numbers = if numbers.is_empty() {
        vec![100_000, 1_000_000, 10_000_000]
    } else {
        numbers
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    for (kind, make) in [
        ("marked", marked as fn(&TraceWriter, u64)),
        ("unmarked", unmarked),
    ] {
        for events in &numbers {
            let writer = TraceWriter::create(&path).unwrap();
            begin(&writer);
            make(&writer, *events);
            writer.close();
            let this = std::env::current_exe().unwrap();
            let status = Command::new(this).arg("row").arg(&path).arg(kind).status();
            assert!(status.unwrap().success());
        }
    }
}
