// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Export as Chrome trace JSON, which Perfetto's viewer opens: a lane per call, a
//! slice per request, flows from call to request.
//!
//! Slices of one lane must not overlap, so the requests in flight at one time lie in
//! lanes of their own, the lowest free one for each. Times are microseconds.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use wtblk_shared::mark::{CallBegin, Mark};
use wtblk_shared::tag::Tag;

use super::event::{Body, DATA_DISK, Event, RequestId, Submit};
use super::export::{ExportError, Sink, output};

/// The "process" of the calls, that of the requests, and that of the rest.
const CALLS: u32 = 1;
const REQUESTS: u32 = 2;
const DEVICE: u32 = 3;
/// Requests in flight, and open calls, that are followed.
const MAX_OPEN: usize = 1 << 20;

/// Writes the JSON.
#[derive(Debug)]
pub struct Perfetto<W> {
    out: W,
    path: PathBuf,
    begun: bool,
    now_ns: u64,
    lanes: BTreeSet<usize>,
    lanes_made: usize,
    requests: HashMap<RequestId, Slice>,
    calls: HashMap<u64, Lane>,
    by_tag: HashMap<Tag, u64>,
    /// Lanes of calls that have their names.
    named: HashSet<u64>,
    /// Calls of all boots, so that a number that comes again has a lane of its own.
    met: u64,
}

#[derive(Debug)]
struct Slice {
    at_ns: u64,
    lane: usize,
    submit: Submit,
    call: Option<u64>,
    rule: Option<String>,
}

#[derive(Debug)]
struct Lane {
    at_ns: u64,
    number: u64,
    begin: CallBegin,
}

impl<W: Write> Perfetto<W> {
    /// Into `out`, which messages call `path`.
    pub fn new(out: W, path: PathBuf) -> Perfetto<W> {
        Perfetto {
            out,
            path,
            begun: false,
            now_ns: 0,
            lanes: BTreeSet::new(),
            lanes_made: 0,
            requests: HashMap::new(),
            calls: HashMap::new(),
            by_tag: HashMap::new(),
            named: HashSet::new(),
            met: 0,
        }
    }

    fn write(&mut self, value: &Value) -> Result<(), ExportError> {
        let before = if self.begun {
            ",\n"
        } else {
            "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n"
        };
        self.begun = true;
        write!(self.out, "{before}{value}").map_err(output(&self.path))
    }

    fn name(&mut self, pid: u32, tid: Option<u64>, name: &str) -> Result<(), ExportError> {
        let what = if tid.is_some() {
            "thread_name"
        } else {
            "process_name"
        };
        self.write(&json!({"ph": "M", "pid": pid, "tid": tid.unwrap_or(0), "name": what, "args": {"name": name}}))
    }

    fn begin(&mut self) -> Result<(), ExportError> {
        self.name(CALLS, None, "calls of the guest")?;
        self.name(REQUESTS, None, "requests of the disk")?;
        self.name(DEVICE, None, "marks and device")
    }

    fn submit(&mut self, id: RequestId, s: &Submit) -> Result<(), ExportError> {
        if self.requests.len() >= MAX_OPEN {
            return Ok(());
        }
        let lane = match self.lanes.pop_first() {
            Some(free) => free,
            None => {
                let new = self.lanes_made;
                self.lanes_made += 1;
                self.name(REQUESTS, Some(new as u64), &format!("in flight {new}"))?;
                new
            }
        };
        let tag = Tag::from_ioprio(s.ioprio);
        let call = tag.and_then(|t| self.by_tag.get(&t)).copied();
        if let Some(lane_of_call) = call.and_then(|c| self.calls.get(&c)).map(|c| c.number) {
            let ts = us(self.now_ns);
            self.write(&json!({"ph": "s", "cat": "call", "name": "request", "id": id, "pid": CALLS, "tid": lane_of_call, "ts": ts}))?;
            self.write(&json!({"ph": "f", "bp": "e", "cat": "call", "name": "request", "id": id, "pid": REQUESTS, "tid": lane, "ts": ts}))?;
        }
        let slice = Slice {
            at_ns: self.now_ns,
            lane,
            submit: s.clone(),
            call,
            rule: None,
        };
        self.requests.insert(id, slice);
        self.depth()
    }

    fn depth(&mut self) -> Result<(), ExportError> {
        let depth = self.requests.len();
        self.write(&json!({"ph": "C", "pid": REQUESTS, "tid": 0, "name": "in flight", "ts": us(self.now_ns), "args": {"requests": depth}}))
    }

    fn complete(&mut self, id: RequestId, status: &str) -> Result<(), ExportError> {
        let Some(slice) = self.requests.remove(&id) else {
            return Ok(());
        };
        self.lanes.insert(slice.lane);
        self.slice(id, &slice, status)?;
        self.depth()
    }

    fn slice(&mut self, id: RequestId, slice: &Slice, status: &str) -> Result<(), ExportError> {
        let s = &slice.submit;
        self.write(&json!({
            "ph": "X", "cat": "request", "name": format!("{} {}+{}", s.op.name(), s.sector, s.bytes.div_ceil(512)),
            "pid": REQUESTS, "tid": slice.lane, "ts": us(slice.at_ns),
            "dur": us(self.now_ns.saturating_sub(slice.at_ns)),
            "args": {
                "request": id, "status": status, "bytes": s.bytes, "queue": s.queue, "call": slice.call,
                "tag": Tag::from_ioprio(s.ioprio).map(|t| t.number()), "rule": slice.rule,
            },
        }))
    }

    fn call(&mut self, lane: &Lane, result: Value) -> Result<(), ExportError> {
        let b = &lane.begin;
        self.write(&json!({
            "ph": "X", "cat": "call", "name": format!("call {} {}+{}", b.call, b.off, b.len),
            "pid": CALLS, "tid": lane.number, "ts": us(lane.at_ns),
            "dur": us(self.now_ns.saturating_sub(lane.at_ns)),
            "args": {"test": b.test, "flags": b.flags, "ino": b.ino, "tag": b.tag, "result": result},
        }))
    }

    fn mark(&mut self, mark: Mark) -> Result<(), ExportError> {
        match mark {
            Mark::Begin(begin) if self.calls.len() < MAX_OPEN => {
                let number = self.met;
                self.met += 1;
                if self.named.insert(number) {
                    let name = format!("call {} {}", begin.call, begin.test);
                    self.name(CALLS, Some(number), &name)?;
                }
                if let Some(tag) = begin.tag.and_then(Tag::new) {
                    self.by_tag.insert(tag, begin.call);
                }
                let at_ns = self.now_ns;
                let lane = Lane {
                    at_ns,
                    number,
                    begin,
                };
                if let Some(old) = self.calls.insert(lane.begin.call, lane) {
                    self.call(&old, json!("no end"))?;
                }
                Ok(())
            }
            Mark::End(end) => {
                let Some(lane) = self.calls.remove(&end.call) else {
                    return Ok(());
                };
                self.by_tag.retain(|_, call| *call != end.call);
                self.call(&lane, json!(end.result))
            }
            other => self.instant(&other.to_line()),
        }
    }

    fn instant(&mut self, name: &str) -> Result<(), ExportError> {
        self.write(&json!({"ph": "i", "s": "g", "pid": DEVICE, "tid": 0, "name": name, "ts": us(self.now_ns)}))
    }
}

impl<W: Write> Sink for Perfetto<W> {
    fn event(&mut self, event: &Event) -> Result<(), ExportError> {
        if !self.begun {
            self.begin()?;
        }
        // Times need not rise with the numbers; a slice must not end before it begins.
        self.now_ns = self.now_ns.max(event.time_ns);
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => self.submit(event.seq, s),
            Body::Complete(c) => {
                let status = match c.abandoned {
                    true => "abandoned".to_owned(),
                    false => c.status.to_string(),
                };
                self.complete(c.request, &status)
            }
            Body::Decide(d) => {
                if let Some(slice) = self.requests.get_mut(&d.request) {
                    slice.rule = Some(d.name.clone());
                }
                Ok(())
            }
            Body::Mark(m) => match m.parse() {
                Ok(mark) if m.ordered => self.mark(mark),
                _ => self.instant(&m.line),
            },
            Body::Device(d) => {
                let text: String = d.text.chars().take(200).collect();
                self.instant(&format!("{:?} {text}", d.kind))
            }
            Body::Gap(g) => self.instant(&format!("{} events are missing: {}", g.missing, g.why)),
            Body::Submit(_) | Body::Data(_) => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ExportError> {
        if !self.begun {
            self.begin()?;
        }
        let mut open: Vec<_> = self.requests.drain().collect();
        open.sort_unstable_by_key(|(id, _)| *id);
        for (id, slice) in open {
            self.slice(id, &slice, "not completed")?;
        }
        let mut calls: Vec<_> = self.calls.drain().map(|(_, lane)| lane).collect();
        calls.sort_unstable_by_key(|lane| lane.number);
        for lane in calls {
            self.call(&lane, json!("no end"))?;
        }
        writeln!(self.out, "\n]}}").map_err(output(&self.path))?;
        self.out.flush().map_err(output(&self.path))
    }
}

/// Microseconds, the unit of the format.
fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}
