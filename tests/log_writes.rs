// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The log of dm-log-writes on streams made by hand: where a flush stands, and
//! what an import says of a file that is wrong.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use wtblk::trace::TraceReader;
use wtblk::trace::event::{
    Body, Complete, DataEvent, DataKind, Decide, DeviceEvent, DeviceKind, Event, MarkEvent, Op,
    Status, Submit,
};
use wtblk::trace::export::Sink;
use wtblk::trace::log_writes::LogWrites;
use wtblk::trace::log_writes_import::{ImportError, import};

/// A stream with the ring's numbers as a device would have them.
#[derive(Default)]
struct Ring {
    events: Vec<Event>,
    avail: [u16; 4],
}

impl Ring {
    fn push(&mut self, body: Body) -> u64 {
        let seq = self.events.len() as u64;
        self.events.push(Event {
            seq,
            time_ns: seq,
            body,
        });
        seq
    }

    fn submit(&mut self, queue: u16, op: Op, sector: u64) -> u64 {
        let avail_pos = self.avail[usize::from(queue)];
        self.avail[usize::from(queue)] += 1;
        let bytes = if op == Op::Write { 512 } else { 0 };
        let id = self.push(Body::Submit(Submit {
            disk: 0,
            queue,
            op,
            sector,
            bytes,
            ioprio: 0,
            epoch: 1,
            avail_pos,
            digest: 0,
        }));
        if op == Op::Write {
            let bytes = vec![id as u8; 512];
            self.push(Body::Data(DataEvent {
                request: id,
                kind: DataKind::Stored,
                sector,
                bytes,
            }));
        }
        id
    }

    /// A completion; so many requests were made available before it was published that were
    /// not taken yet.
    fn done(&mut self, queue: u16, request: u64, unseen: u16, status: Status) {
        let avail_after = self.avail[usize::from(queue)] + unseen;
        self.push(Body::Complete(Complete {
            request,
            status,
            avail_after,
            abandoned: false,
            digest: 0,
        }));
    }

    fn ok(&mut self, request: u64) {
        self.done(0, request, 0, Status::OK);
    }

    fn mark(&mut self) {
        self.push(Body::Mark(MarkEvent {
            line: "wtblk/1 note text=m".into(),
            ordered: true,
        }));
    }

    /// The log in short: sectors of writes, `F`, `m` (a mark), `x` (a write left out).
    fn log(&self) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut sink = LogWrites::new(&path).unwrap();
        for event in &self.events {
            sink.event(event).unwrap();
        }
        sink.end().unwrap();
        short(&std::fs::read(&path).unwrap())
    }
}

fn short(log: &[u8]) -> String {
    let number = |at: usize| u64::from_le_bytes(log[at..at + 8].try_into().unwrap());
    let mut at = 512;
    let mut said = Vec::new();
    for _ in 0..number(16) {
        let [to, count, flags] = [0, 8, 16].map(|field| number(at + field));
        let text = String::from_utf8_lossy(&log[at + 32..at + 48]).into_owned();
        at += 512
            + if flags & 8 == 0 {
                count as usize * 512
            } else {
                0
            };
        said.push(match flags {
            0 => to.to_string(),
            1 => "F".into(),
            8 if text.starts_with("dm-log-writes") => continue,
            8 if text.starts_with("wtblk left out") => "x".into(),
            8 => "m".into(),
            other => panic!("flags {other}"),
        });
    }
    said.join(" ")
}

#[test]
fn a_write_that_was_completed_before_the_flush_was_submitted_stands_before_it() {
    let mut r = Ring::default();
    let a = r.submit(0, Op::Write, 10);
    r.ok(a);
    let flush = r.submit(0, Op::Flush, 0);
    let b = r.submit(0, Op::Write, 20);
    r.ok(b);
    r.ok(flush);
    assert_eq!(r.log(), "10 F 20");
}

/// The flush was in the ring already when the completion was published: nobody had seen it.
#[test]
fn a_completion_that_the_flush_did_not_wait_for_stands_behind_it() {
    let mut r = Ring::default();
    let a = r.submit(0, Op::Write, 10);
    r.done(0, a, 1, Status::OK);
    let flush = r.submit(0, Op::Flush, 0);
    r.ok(flush);
    assert_eq!(r.log(), "F 10");
    // One place later in the ring, and it had been.
    let mut r = Ring::default();
    let a = r.submit(0, Op::Write, 10);
    r.done(0, a, 1, Status::OK);
    let b = r.submit(0, Op::Write, 30);
    let flush = r.submit(0, Op::Flush, 0);
    r.ok(flush);
    r.ok(b);
    assert_eq!(r.log(), "10 F 30");
}

/// Of another queue only a mark tells: its barrier waits for all of them.
#[test]
fn the_order_of_numbers_between_queues_is_no_proof() {
    let stream = |marked: bool| {
        let mut r = Ring::default();
        let a = r.submit(1, Op::Write, 10);
        r.done(1, a, 0, Status::OK);
        if marked {
            r.mark();
        }
        let flush = r.submit(0, Op::Flush, 0);
        r.ok(flush);
        r.log()
    };
    assert_eq!(stream(false), "F 10");
    assert_eq!(stream(true), "10 m F");
}

#[test]
fn what_overlaps_keeps_the_order_of_completion() {
    let mut r = Ring::default();
    // Of another queue, not proven, but below one that is.
    let a = r.submit(1, Op::Write, 10);
    let b = r.submit(0, Op::Write, 10);
    r.done(1, a, 0, Status::OK);
    r.ok(b);
    let flush = r.submit(0, Op::Flush, 0);
    r.ok(flush);
    assert_eq!(r.log(), "10 10 F");
}

#[test]
fn what_failed_is_left_out_flushes_too() {
    let mut r = Ring::default();
    let a = r.submit(0, Op::Write, 10);
    let b = r.submit(0, Op::Write, 20);
    r.done(0, a, 0, Status::IOERR);
    r.ok(b);
    let flush = r.submit(0, Op::Flush, 0);
    r.done(0, flush, 0, Status::IOERR);
    r.submit(0, Op::Write, 30);
    assert_eq!(
        r.log(),
        "x 20 m",
        "what is in flight at the end did not happen"
    );
}

#[test]
fn a_write_that_a_rule_dropped_is_no_lack_of_contents() {
    let mut r = Ring::default();
    let a = r.submit(0, Op::Write, 10);
    r.events.pop();
    r.push(Body::Decide(Decide {
        request: a,
        rule: 0,
        hold: false,
        status: None,
        name: "drop".into(),
        plan: "dropped".into(),
    }));
    r.ok(a);
    let b = r.submit(0, Op::Write, 20);
    r.ok(b);
    assert_eq!(r.log(), "m 20");
}

/// The log of a few writes, as a file.
fn good_log(dir: &Path) -> PathBuf {
    let mut r = Ring::default();
    for sector in [3, 9, 12] {
        let a = r.submit(0, Op::Write, sector);
        r.ok(a);
        r.mark();
    }
    let flush = r.submit(0, Op::Flush, 0);
    r.ok(flush);
    let path = dir.join("log");
    let mut sink = LogWrites::new(&path).unwrap();
    for event in &r.events {
        sink.event(event).unwrap();
    }
    sink.end().unwrap();
    path
}

fn imported(log: &Path) -> Result<usize, ImportError> {
    let out = log.with_extension("trace");
    import(log, &out, true)?;
    let mut reader = TraceReader::open(&out).unwrap();
    let mut writes = 0;
    while let Some(event) = reader.next().unwrap() {
        writes += usize::from(matches!(&event.body, Body::Submit(s) if s.op == Op::Write));
    }
    Ok(writes)
}

#[test]
fn what_is_wrong_with_a_log_is_told_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let log = good_log(dir.path());
    assert_eq!(imported(&log).unwrap(), 3);
    let good = std::fs::read(&log).unwrap();
    // Where, what is written there, and what is said.
    let cases: [(usize, u64, &str); 11] = [
        (
            512,
            1 << 63,
            "byte 512: entry 0 lies at sector 9223372036854775808: no disk is so large",
        ),
        (
            512,
            (1 << 56) + 5,
            "byte 512: entry 0 lies at sector 72057594037927941",
        ),
        (512, 1 << 54, "byte 512: entry 0 lies at sector"),
        (0, 1, "byte 0: no log of dm-log-writes"),
        (8, 7, "byte 8: version 7"),
        (
            16,
            1 << 60,
            "byte 16: 1152921504606846976 entries in a file of",
        ),
        (24, 1000, "byte 24: sectors of 1000 bytes"),
        (512 + 16, 32, "byte 528: entry 0 has the unknown flags 0x20"),
        (
            512 + 8,
            1 << 40,
            "byte 520: entry 0 has 1099511627776 sectors",
        ),
        (
            512 + 8,
            4000,
            "byte 520: entry 0 has 2048000 bytes of data, the file ends before",
        ),
        (
            1536 + 24,
            481,
            "byte 1560: the mark of entry 1 has 481 bytes",
        ),
    ];
    for (at, value, said) in cases {
        let mut wrong = good.clone();
        wrong[at..at + 8].copy_from_slice(&value.to_le_bytes());
        std::fs::write(&log, &wrong).unwrap();
        let error = imported(&log).unwrap_err().to_string();
        assert!(error.contains(said), "{said}\n{error}");
        assert!(error.contains(log.to_str().unwrap()), "{error}");
    }
    std::fs::write(&log, &good[..good.len() - 700]).unwrap();
    let error = imported(&log).unwrap_err().to_string();
    assert!(error.contains("the file ends before"), "{error}");
    assert!(import(Path::new("/nowhere/log"), &log, true).is_err());
}

/// A discard or write-zeroes that is said to have made `sectors` sectors zeros.
fn zeroed(op: Op, bytes: u32, at: u64, sectors: &[u64]) -> Result<Vec<u8>, String> {
    let mut r = Ring::default();
    r.push(Body::Device(DeviceEvent {
        disk: 0,
        queue: 0,
        kind: DeviceKind::Begin,
        a: 0,
        b: 0,
        text: r#"{"capacity_sectors":10000}"#.into(),
    }));
    let id = r.submit(0, op, 8);
    if let Some(Body::Submit(s)) = r
        .events
        .iter_mut()
        .map(|e| &mut e.body)
        .find(|b| matches!(b, Body::Submit(_)))
    {
        s.bytes = bytes;
    }
    for n in sectors {
        r.push(Body::Data(DataEvent {
            request: id,
            kind: DataKind::Zeroed,
            sector: at,
            bytes: n.to_le_bytes().to_vec(),
        }));
    }
    r.ok(id);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let mut sink = LogWrites::new(&path).unwrap();
    for event in &r.events {
        sink.event(event).map_err(|e| e.to_string())?;
    }
    sink.end().map_err(|e| e.to_string())?;
    Ok(std::fs::read(&path).unwrap())
}

#[test]
fn zeros_that_nobody_asked_for_are_damage_and_not_written() {
    let log = zeroed(Op::WriteZeroes, 3 << 20, 8, &[6144]).unwrap();
    assert_eq!(short(&log), "8 2056 4104");
    // Superblock, three entries with their zeros, the end.
    assert_eq!(log.len(), 512 + 3 * (512 + (1 << 20)) + 512);
    assert!(log[1024..1024 + (1 << 20)].iter().all(|b| *b == 0));
    let refused = [
        zeroed(Op::WriteZeroes, 512, 8, &[u64::MAX]),
        zeroed(Op::WriteZeroes, 512, 8, &[2]),
        zeroed(Op::Discard, 512, 8, &[1 << 40]),
        // Each alone would do.
        zeroed(Op::WriteZeroes, 512, 8, &[1; 17]),
        zeroed(Op::Flush, 512, 8, &[1]),
        zeroed(Op::WriteZeroes, 1024, 9999, &[2]),
    ];
    // And contents that are longer than their request.
    let mut r = Ring::default();
    let id = r.submit(0, Op::Write, 3);
    r.ok(id);
    if let Body::Data(d) = &mut r.events[1].body {
        d.bytes = vec![0; 1024];
    }
    let dir = tempfile::tempdir().unwrap();
    let mut sink = LogWrites::new(&dir.path().join("log")).unwrap();
    sink.event(&r.events[0]).unwrap();
    let longer = sink.event(&r.events[1]).map_err(|e| e.to_string());
    for said in refused.into_iter().chain([longer.map(|()| Vec::new())]) {
        let said = said.unwrap_err();
        assert!(said.starts_with("damaged at record "), "{said}");
    }
}

/// The names in a folder.
fn names(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = names
        .map(|n| n.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn an_import_that_fails_leaves_the_older_trace_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = good_log(dir.path());
    let out = dir.path().join("trace");
    import(&log, &out, false).unwrap();
    let both = || [out.clone(), dir.path().join("trace.data")].map(|p| std::fs::read(p).unwrap());
    let (whole, before) = (names(dir.path()), both());
    assert_eq!(whole, ["log", "trace", "trace.data"]);
    let error = import(&log, &out, false).unwrap_err().to_string();
    assert!(error.contains("--force replaces it"), "{error}");
    // The last entry is not there; the ones before it were written somewhere by then.
    let good = std::fs::read(&log).unwrap();
    std::fs::write(&log, &good[..good.len() - 700]).unwrap();
    import(&log, &out, true).unwrap_err();
    assert_eq!((names(dir.path()), both()), (whole, before.clone()));
    import(&log, &dir.path().join("other"), false).unwrap_err();
    assert_eq!(names(dir.path()), ["log", "trace", "trace.data"]);
    std::fs::write(&log, &good).unwrap();
    import(&log, &out, true).unwrap();
    assert_ne!(both(), before, "replaced");
    // What is no trace is never replaced.
    std::fs::write(&out, "precious").unwrap();
    let error = import(&log, &out, true).unwrap_err().to_string();
    assert!(error.contains("is no trace"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever a log says: an answer, no panic, no endless reading.
    #[test]
    fn any_log_gets_an_answer(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20), cut: Option<prop::sample::Index>) {
        let dir = tempfile::tempdir().unwrap();
        let log = good_log(dir.path());
        let mut bytes = std::fs::read(&log).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        std::fs::write(&log, &bytes).unwrap();
        if let Err(error) = imported(&log) {
            prop_assert!(error.to_string().contains("byte "), "{error}");
        }
    }

    /// Whatever a trace says, its log can be read, and holds no write that was not completed.
    #[test]
    fn any_stream_gives_a_log(steps in prop::collection::vec((0u8..6, 0u64..6, any::<prop::sample::Index>()), 1..60)) {
        let mut r = Ring::default();
        let mut open = Vec::new();
        let mut good = 0;
        for (what, sector, which) in steps {
            match what {
                0 | 1 => open.push((r.submit(u16::from(what), Op::Write, sector), u16::from(what), true)),
                2 => open.push((r.submit(0, Op::Flush, 0), 0, false)),
                3 => r.mark(),
                _ if open.is_empty() => {}
                _ => {
                    let (id, queue, write) = open.remove(which.index(open.len()));
                    let status = if what == 4 { Status::OK } else { Status::IOERR };
                    good += usize::from(write && what == 4);
                    r.done(queue, id, u16::from(sector == 0), status);
                }
            }
        }
        let log = r.log();
        let writes = log.split(' ').filter(|w| w.parse::<u64>().is_ok()).count();
        prop_assert_eq!(writes, good, "{}", log);
    }
}
