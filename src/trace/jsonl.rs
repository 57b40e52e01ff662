// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Export as JSON Lines: an object per event, nothing left out but the contents of requests.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::event::{Body, DataKind, Event};
use super::export::{ExportError, Sink, output};

/// Writes an object per line.
#[derive(Debug)]
pub struct Jsonl<W> {
    out: W,
    path: PathBuf,
}

impl<W: Write> Jsonl<W> {
    /// Into `out`, which messages call `path`.
    pub fn new(out: W, path: PathBuf) -> Jsonl<W> {
        Jsonl { out, path }
    }
}

impl<W: Write> Sink for Jsonl<W> {
    fn event(&mut self, event: &Event) -> Result<(), ExportError> {
        let mut object = body(&event.body);
        if let Some(map) = object.as_object_mut() {
            map.insert("seq".into(), json!(event.seq));
            map.insert("time_ns".into(), json!(event.time_ns));
        }
        writeln!(self.out, "{object}").map_err(output(&self.path))
    }

    fn end(&mut self) -> Result<(), ExportError> {
        self.out.flush().map_err(output(&self.path))
    }
}

/// 64 bits do not survive every reader of JSON numbers.
fn hex(digest: u64) -> Value {
    match digest {
        0 => Value::Null,
        some => json!(format!("{some:016x}")),
    }
}

fn body(body: &Body) -> Value {
    match body {
        Body::Submit(s) => json!({
            "kind": "submit", "disk": s.disk, "queue": s.queue, "op": s.op.name(), "sector": s.sector,
            "bytes": s.bytes, "ioprio": s.ioprio,
            "tag": wtblk_shared::tag::Tag::from_ioprio(s.ioprio).map(|t| t.number()),
            "epoch": s.epoch, "avail_pos": s.avail_pos, "digest": hex(s.digest),
        }),
        Body::Decide(d) => json!({
            "kind": "decide", "request": d.request, "rule": d.rule, "name": d.name, "hold": d.hold,
            "status": d.status.map(|s| s.0), "plan": d.plan,
        }),
        Body::Complete(c) => json!({
            "kind": "complete", "request": c.request, "status": c.status.0, "avail_after": c.avail_after,
            "abandoned": c.abandoned, "digest": hex(c.digest),
        }),
        Body::Mark(m) => {
            json!({"kind": "mark", "line": m.line, "ordered": m.ordered})
        }
        Body::Device(d) => json!({
            "kind": "device", "what": format!("{:?}", d.kind), "disk": d.disk, "queue": d.queue,
            "a": d.a, "b": d.b, "text": d.text,
        }),
        Body::Gap(g) => json!({"kind": "gap", "missing": g.missing, "why": g.why}),
        Body::Data(d) => {
            let words = d.bytes.chunks_exact(8).map(|w| {
                let word = w.first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
                match d.kind {
                    DataKind::Digests => hex(word),
                    _ => json!(word),
                }
            });
            let told: Option<Vec<Value>> =
                matches!(d.kind, DataKind::Digests | DataKind::Zeroed).then(|| words.collect());
            json!({
                "kind": "data", "request": d.request, "what": format!("{:?}", d.kind), "sector": d.sector,
                "bytes": d.bytes.len(), "words": told,
            })
        }
    }
}
