// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk trace show FILE`: one line per event, for people.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{Control, Extent, Mark};
use wtblk_shared::tag::Tag;

use super::trace_state;
use crate::plain::{self, counted};
use crate::trace::TraceReader;
use crate::trace::event::{
    Body, Complete, DATA_DISK, DataEvent, DataKind, Decide, DeviceEvent, DeviceKind, Event,
    MARK_DISK, MarkEvent, Op, RequestId, Submit,
};

/// Requests in flight whose latency is kept in mind; more are shown without it.
const MAX_IN_FLIGHT: usize = 1 << 20;
/// Characters of a text that are shown.
const MAX_SHOWN: usize = 200;

/// Prints the trace, one line per event. A reader of the output that goes away is no error.
pub fn show(path: &Path, out: &mut impl Write) -> anyhow::Result<()> {
    let mut reader = TraceReader::open(path)?;
    match print(&mut reader, out) {
        Err(Stopped::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Err(Stopped::Output(e)) => Err(e.into()),
        Err(Stopped::Trace(e)) => Err(e.into()),
        Ok(()) => Ok(()),
    }
}

enum Stopped {
    Output(io::Error),
    Trace(crate::trace::TraceError),
}

fn print(reader: &mut TraceReader, out: &mut impl Write) -> Result<(), Stopped> {
    let mut printer = Printer::default();
    let result = loop {
        match reader.next() {
            Ok(Some(event)) => {
                writeln!(out, "{}", printer.line(&event)).map_err(Stopped::Output)?;
            }
            Ok(None) => break Ok(()),
            // What could be read is shown before the error is.
            Err(error) => break Err(Stopped::Trace(error)),
        }
    };
    if result.is_ok() {
        for note in trace_state::notes(reader, "shown") {
            writeln!(out, "({note})").map_err(Stopped::Output)?;
        }
    }
    out.flush().map_err(Stopped::Output)?;
    result
}

/// Remembers what a line needs of the lines before it.
#[derive(Default)]
struct Printer {
    submitted: HashMap<RequestId, u64>,
}

impl Printer {
    fn line(&mut self, event: &Event) -> String {
        let (kind, details) = match &event.body {
            Body::Submit(s) => {
                if self.submitted.len() < MAX_IN_FLIGHT {
                    self.submitted.insert(event.seq, event.time_ns);
                }
                ("submit", submit(event.seq, s))
            }
            Body::Decide(d) => ("decide", decide(d)),
            Body::Complete(c) => {
                let since = self.submitted.remove(&c.request);
                let latency = since.map(|at| event.time_ns.saturating_sub(at));
                ("complete", complete(c, latency))
            }
            Body::Mark(m) => ("mark", mark(m)),
            Body::Device(d) => ("device", device(d)),
            Body::Data(d) => ("data", data(d)),
            Body::Gap(g) => ("gap", format!("{}: {}", missing(g.missing), clean(&g.why))),
        };
        format!(
            "{:>8} {:>12} {kind:<8} {details}",
            event.seq,
            ms(event.time_ns)
        )
    }
}

/// `1 event is missing`.
fn missing(n: u64) -> String {
    counted(n, "event is missing", "events are missing")
}

/// Milliseconds with microseconds behind the point.
fn ms(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

fn submit(id: RequestId, s: &Submit) -> String {
    let mut line = format!("#{id} {}", s.op.name());
    if !matches!(s.op, Op::Flush | Op::GetId) {
        let _ = write!(
            line,
            " lba {}+{} ({} B)",
            s.sector,
            u64::from(s.bytes).div_ceil(SECTOR),
            s.bytes
        );
    }
    match Tag::from_ioprio(s.ioprio) {
        Some(tag) => {
            let _ = write!(line, " tag {}", tag.number());
        }
        None if s.ioprio != 0 => {
            let _ = write!(line, " ioprio {:#06x}", s.ioprio);
        }
        None => {}
    }
    let _ = write!(line, " q{}", s.queue);
    if s.disk != 0 {
        let _ = write!(line, " disk {}", s.disk);
    }
    if s.digest != 0 {
        let _ = write!(line, " digest {:016x}", s.digest);
    }
    line
}

fn decide(d: &Decide) -> String {
    let mut line = format!("#{} by rule {} ({}):", d.request, d.rule, clean(&d.name));
    if !d.plan.is_empty() {
        let _ = write!(line, " {}", clean(&d.plan));
        return line;
    }
    if d.hold {
        line.push_str(" hold");
    }
    if let Some(status) = d.status {
        let _ = write!(line, " {}", status);
    }
    line
}

fn complete(c: &Complete, latency_ns: Option<u64>) -> String {
    let mut line = format!("#{} {}", c.request, c.status);
    if let Some(ns) = latency_ns {
        let _ = write!(line, " after {} ms", ms(ns));
    }
    if c.abandoned {
        line.push_str(" (abandoned: the ring had stopped)");
    } else {
        let _ = write!(line, " avail {}", c.avail_after);
    }
    if c.digest != 0 {
        let _ = write!(line, " digest {:016x}", c.digest);
    }
    line
}

fn data(d: &DataEvent) -> String {
    let what = match d.kind {
        DataKind::Stored => "stored",
        DataKind::Read => "read",
        DataKind::Failed => "of the failed write",
        DataKind::Digests => {
            return format!("#{} digests of {} sectors", d.request, d.bytes.len() / 8);
        }
        DataKind::Zeroed => {
            let sectors = d.bytes.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
            return format!("#{} zeroed: lba {}+{sectors}", d.request, d.sector);
        }
    };
    match d.bytes.len() {
        0 => format!("#{} {what}: lba {}, not kept", d.request, d.sector),
        n => format!("#{} {what}: lba {} ({n} B)", d.request, d.sector),
    }
}

fn mark(m: &MarkEvent) -> String {
    let mut line = match m.parse() {
        Ok(mark) => known_mark(&mark),
        Err(error) => format!("{} ({error})", clean(&m.line)),
    };
    if !m.ordered {
        line.push_str(" (unordered)");
    }
    line
}

fn known_mark(mark: &Mark) -> String {
    match mark {
        Mark::Begin(b) => {
            let mut line = format!(
                "begin call {} {}: ino {} {}+{} [{}]",
                b.call,
                clean(&b.test),
                b.ino,
                b.off,
                b.len,
                clean(&b.flags.join(","))
            );
            if let Some(tag) = b.tag {
                let _ = write!(line, " tag {tag}");
            }
            let _ = write!(line, " isize {}{}", b.isize, extents(b.extents.as_deref()));
            line
        }
        Mark::End(e) => format!(
            "end call {}: {} isize {}{}",
            e.call,
            result(e.result),
            e.isize,
            extents(e.extents.as_deref())
        ),
        Mark::Report(r) => format!(
            "report call {} {}: {}+{} cached {} dirty {} writeback {}",
            r.call,
            clean(&r.at),
            r.off,
            r.len,
            r.cached,
            r.dirty,
            r.writeback
        ),
        Mark::ErrorSeen { call } => format!("error-seen call {call}"),
        Mark::ProbeBegin(p) => format!(
            "probe {} {} begins, call {}, limit {} ms",
            p.probe,
            clean(&p.kind),
            p.call,
            p.limit_ms
        ),
        Mark::ProbeState(p) => format!(
            "probe {} waits {} ms in state {}, {} switches {}",
            p.probe,
            p.waited_ms,
            p.state.escape_default(),
            p.switches,
            clean(&p.wchan)
        ),
        Mark::ProbeEnd {
            probe,
            result: outcome,
        } => format!("probe {probe} ended: {}", result(*outcome)),
        Mark::TestBegin { name } => format!("test {} begins", clean(name)),
        Mark::TestEnd { name } => format!("test {} ended", clean(name)),
        Mark::Note { text } => format!("note {}", clean(text)),
        Mark::Control(control) => match control {
            Control::Release(rule) => order("release", rule.as_deref()),
            Control::Arm(rule) => order("arm", rule.as_deref()),
            Control::Disarm(rule) => order("disarm", rule.as_deref()),
            Control::WaitHeld(n) => format!("wait for {n} held"),
            Control::WaitState(state) => format!("wait for state {state}"),
            Control::WaitFired(rule, n) => format!("wait until {rule} has fired {n} times"),
            Control::SetState(state) => format!("set state {state}"),
        },
        Mark::Boot | Mark::Env(_) | Mark::Fs { .. } | Mark::File(_) | Mark::Sweep(_) => {
            let line = mark.to_line();
            let after = line.split_once(' ').map_or("", |(_, rest)| rest);
            clean(after)
        }
    }
}

fn order(verb: &str, rule: Option<&str>) -> String {
    format!("{verb} {}", rule.map_or_else(|| "*".into(), clean))
}

fn result(result: i64) -> String {
    if result >= 0 {
        return result.to_string();
    }
    let errno = i32::try_from(result.unsigned_abs()).unwrap_or(i32::MAX);
    match nix::errno::Errno::from_raw(errno) {
        nix::errno::Errno::UnknownErrno => result.to_string(),
        known => format!("{known:?}"),
    }
}

/// The first extents in sectors of the disk, as requests are shown.
fn extents(extents: Option<&[Extent]>) -> String {
    const SHOWN: usize = 4;
    let Some(list) = extents else {
        return " extents unknown".into();
    };
    let mut line = format!(" extents {}", list.len());
    for extent in list.iter().take(SHOWN) {
        if extent.has_place() {
            let _ = write!(
                line,
                " {}->lba {}+{}",
                extent.logical,
                extent.physical / SECTOR,
                extent.length.div_ceil(SECTOR)
            );
        } else {
            let _ = write!(line, " {}->nowhere", extent.logical);
        }
    }
    if list.len() > SHOWN {
        line.push_str(" ...");
    }
    line
}

fn device(d: &DeviceEvent) -> String {
    let mut line = String::new();
    match d.disk {
        DATA_DISK => {}
        MARK_DISK => line.push_str("mark disk: "),
        other => push(&mut line, format_args!("disk {other}: ")),
    }
    match d.kind {
        DeviceKind::Connected => push(&mut line, format_args!("connected, number {}", d.a)),
        DeviceKind::Changed => push(
            &mut line,
            format_args!("data of #{} changed in flight, {} B", d.a, d.b),
        ),
        DeviceKind::Disconnected => line.push_str("disconnected"),
        DeviceKind::Gone => push(&mut line, format_args!("gone, on #{}", d.a)),
        DeviceKind::Cut => push(&mut line, format_args!("power cut, on #{}", d.a)),
        DeviceKind::HangUp => {
            let how = ["completed first", "lost"][usize::from(d.b == 1)];
            push(
                &mut line,
                format_args!("a rule hangs up on #{}, what is in flight is {how}", d.a),
            );
        }
        DeviceKind::Again => push(
            &mut line,
            format_args!("#{} was in flight when the device was killed", d.a),
        ),
        DeviceKind::Message => line.push_str("message"),
        DeviceKind::Features => push(&mut line, format_args!("features {:#x}", d.a)),
        DeviceKind::QueueStart => push(
            &mut line,
            format_args!("q{} started, size {}, epoch {}", d.queue, d.a, d.b),
        ),
        DeviceKind::QueueStop => push(
            &mut line,
            format_args!("q{} stopped at {}, {} released", d.queue, d.a, d.b),
        ),
        DeviceKind::CacheMode => line.push_str(match d.a {
            0 => "cache write-through",
            _ => "cache write-back",
        }),
        DeviceKind::Reset => line.push_str("reset"),
        DeviceKind::BadChain => push(
            &mut line,
            format_args!("q{} bad chain at head {}", d.queue, d.a),
        ),
        DeviceKind::BadRing => push(&mut line, format_args!("q{} bad ring", d.queue)),
        DeviceKind::BadMark => line.push_str("mark refused"),
        DeviceKind::Release => push(&mut line, format_args!("{} requests released", d.a)),
        DeviceKind::Wait => line.push_str(match d.a {
            0 => "wait: not yet",
            _ => "wait: reached",
        }),
        DeviceKind::StoreError => push(
            &mut line,
            format_args!("store: {}", result(-i64::try_from(d.a).unwrap_or(i64::MAX))),
        ),
        DeviceKind::End => line.push_str("end"),
        DeviceKind::Begin => {
            line.push_str("begin");
            // Far behind in a text that is cut.
            let what: Option<serde_json::Value> = serde_json::from_str(&d.text).ok();
            if let Some(word) = what.as_ref().and_then(|what| what["sandbox"].as_str()) {
                push(&mut line, format_args!(", sandbox {}", clean(word)));
            }
        }
        DeviceKind::Limit => line.push_str("limit"),
        DeviceKind::Scenario => push(&mut line, format_args!("scenario of {} rules", d.a)),
    }
    if !d.text.is_empty() {
        push(&mut line, format_args!(": {}", clean(&d.text)));
    }
    line
}

fn push(line: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = line.write_fmt(what);
}

/// A text of the guest on one line of a terminal: not too long.
fn clean(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}...", plain::line(text.get(..end).unwrap_or_default())),
        None => plain::line(text),
    }
}
