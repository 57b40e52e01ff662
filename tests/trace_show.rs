// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk trace show`: what the lines look like.

use std::io::{self, Write};

use wtblk::cli::trace::show;
use wtblk::trace::TraceWriter;
use wtblk::trace::event::*;
use wtblk_shared::tag::Tag;

fn mark(line: &str) -> Body {
    Body::Mark(MarkEvent {
        line: line.into(),
        ordered: true,
    })
}

fn device(kind: DeviceKind, a: u64, b: u64, text: &str) -> Body {
    Body::Device(DeviceEvent {
        disk: DATA_DISK,
        queue: 0,
        kind,
        a,
        b,
        text: text.into(),
    })
}

fn events() -> Vec<Body> {
    let write = Submit {
        disk: DATA_DISK,
        queue: 0,
        op: Op::Write,
        sector: 4096,
        bytes: 4096,
        ioprio: Tag::new(17).unwrap().ioprio(),
        epoch: 1,
        avail_pos: 0,
        digest: 0,
    };
    vec![
        device(DeviceKind::Begin, 0, 0, "{\"queues\":1}"),
        device(DeviceKind::QueueStart, 128, 1, ""),
        mark("wtblk/1 test-begin name=error-mid-call"),
        mark(
            "wtblk/1 begin call=1 test=t dev=1 ino=133 open=1 off=4096 len=4096 flags=writethrough isize=8192 bsize=4096 tag=17 ext=4096:2097152:4096:0",
        ),
        Body::Submit(write.clone()),
        Body::Decide(Decide {
            request: 4,
            rule: 0,
            hold: true,
            status: Some(Status::IOERR),
            name: "fail-first".into(),
            plan: "hold, IOERR".into(),
        }),
        Body::Submit(Submit {
            op: Op::Flush,
            sector: 0,
            bytes: 0,
            ioprio: 0,
            queue: 1,
            ..write
        }),
        Body::Complete(Complete {
            request: 6,
            status: Status::OK,
            avail_after: 2,
            abandoned: false,
            digest: 0,
        }),
        mark("wtblk/1 release rule=fail-first"),
        Body::Complete(Complete {
            request: 4,
            status: Status(9),
            avail_after: 2,
            abandoned: true,
            digest: 0,
        }),
        mark("wtblk/1 end call=1 result=-5 isize=8192"),
        mark("garbage \u{1b}[31m"),
        device(DeviceKind::StoreError, 28, 0, "write"),
        Body::Gap(Gap {
            missing: 1,
            why: "lost".into(),
        }),
    ]
}

/// The output without its times.
fn shown(path: &std::path::Path) -> String {
    let mut out = Vec::new();
    show(path, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let line = |l: &str| {
        let words: Vec<&str> = l.split(' ').collect();
        let times = words.windows(3).filter(|w| w[0] == "after" && w[2] == "ms");
        let mut l = l.to_owned();
        for w in times {
            l = l.replace(&format!("after {} ms", w[1]), "after T ms");
        }
        match l.get(..9).zip(l.get(21..)) {
            Some((seq, rest)) if !l.starts_with('(') => format!("{seq}T{rest}\n"),
            _ => format!("{l}\n"),
        }
    };
    text.lines().map(line).collect()
}

#[test]
fn one_aligned_line_per_event() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let writer = TraceWriter::create(&path).unwrap();
    for body in events() {
        writer.record(&body);
    }
    let expected = r#"       0 T device   begin: {"queues":1}
       1 T device   q0 started, size 128, epoch 1
       2 T mark     test error-mid-call begins
       3 T mark     begin call 1 t: ino 133 4096+4096 [writethrough] tag 17 isize 8192 extents 1 4096->lba 4096+8
       4 T submit   #4 write lba 4096+8 (4096 B) tag 17 q0
       5 T decide   #4 by rule 0 (fail-first): hold, IOERR
       6 T submit   #6 flush q1
       7 T complete #6 OK after T ms avail 2
       8 T mark     release fail-first
       9 T complete #4 0x09 after T ms (abandoned: the ring had stopped)
      10 T mark     end call 1: EIO isize 8192 extents unknown
      11 T mark     garbage \u{1b}[31m (mark, byte 0: schema 'garbage', expected 'wtblk/1')
      12 T device   store: ENOSPC: write
      13 T gap      1 event is missing: lost
"#;
    let killed = "(the trace was not closed: its writer runs, or was killed here)\n";
    assert_eq!(shown(&path), format!("{expected}{killed}"));
    writer.close();
    assert_eq!(shown(&path), expected);
}

/// `wtblk trace show FILE | head`.
struct Closed;

impl Write for Closed {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_broken_pipe_is_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    TraceWriter::create(&path).unwrap().record(&mark("x"));
    show(&path, &mut Closed).unwrap();
    let error = show(&dir.path().join("none"), &mut Closed).unwrap_err();
    assert!(error.to_string().contains("cannot open trace"), "{error}");
}
