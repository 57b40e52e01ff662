// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The events that prove a finding, and what of their order is certain.
//!
//! Numbers of concurrent requests are arbitrary. So a step says of an earlier one
//! "surely before me" only by a rule that makes it so (`docs/architecture.md`,
//! "Numbering"), and names the rule.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use wtblk_shared::mark::Mark;

use crate::trace::event::{Body, Complete, Event, Op, Submit};

/// An earlier event, and why it surely came before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// Its number.
    pub event: u64,
    /// The rule.
    pub why: String,
}

/// An event of the chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Its number.
    pub event: u64,
    /// What happened, in words.
    pub what: String,
    /// Events of the chain that surely came before it: the nearest ones.
    pub after: Vec<After>,
}

const COMPLETION: &str = "completes it";
const TAGGED: &str = "carries the tag of the call that began there";
const SAME_CALL: &str = "ends the call that began there";
const SEEN: &str = "was submitted once the guest could see that completion";
const OF_CALL: &str = "was written after the call had ended there";
const MARKS: &str = "is a later mark: they are taken one by one";

/// The chain of these events, ascending by number.
pub fn of(events: &[&Event]) -> Vec<Step> {
    let mut known = Known::default();
    events
        .iter()
        .map(|e| {
            let after = known.take(e);
            Step {
                event: e.seq,
                what: what(e),
                after,
            }
        })
        .collect()
}

/// What was met of the chain so far.
#[derive(Default)]
struct Known<'e> {
    submits: HashMap<u64, &'e Submit>,
    /// Completions, with the ring position from which on requests may have seen them.
    completions: Vec<(u64, &'e Complete)>,
    begins: HashMap<u64, (u64, u16)>,
    ends: HashMap<u64, u64>,
    last_mark: Option<u64>,
}

impl<'e> Known<'e> {
    fn take(&mut self, event: &'e Event) -> Vec<After> {
        let mut after = Vec::new();
        let mut add = |event: Option<u64>, why: &str| {
            after.extend(event.map(|event| After {
                event,
                why: why.to_owned(),
            }));
        };
        match &event.body {
            Body::Submit(s) => {
                let tag = wtblk_shared::tag::Tag::from_ioprio(s.ioprio).map(|t| t.number());
                let begin = self.begins.values().filter(|b| Some(b.1) == tag).max();
                add(begin.map(|b| b.0), TAGGED);
                add(self.seen_by(s), SEEN);
                self.submits.insert(event.seq, s);
            }
            Body::Complete(c) => {
                let of = self.submits.contains_key(&c.request).then_some(c.request);
                add(of, COMPLETION);
                self.completions.push((event.seq, c));
            }
            Body::Mark(m) if m.ordered => {
                match m.parse() {
                    Ok(Mark::Begin(b)) => {
                        self.begins.insert(b.call, (event.seq, b.tag.unwrap_or(0)));
                    }
                    Ok(Mark::End(e)) => {
                        add(self.begins.get(&e.call).map(|b| b.0), SAME_CALL);
                        self.ends.insert(e.call, event.seq);
                    }
                    Ok(Mark::Report(r)) => match self.ends.get(&r.call).copied() {
                        Some(end) if self.last_mark == Some(end) => add(Some(end), OF_CALL),
                        _ => add(self.last_mark, MARKS),
                    },
                    _ => add(self.last_mark, MARKS),
                }
                self.last_mark = Some(event.seq);
            }
            _ => {}
        }
        after
    }

    /// The last completion of the chain that was published on the request's queue before
    /// the request was made available: its place in the ring is not before what the
    /// avail index was after the publication.
    fn seen_by(&self, s: &Submit) -> Option<u64> {
        let of = |c: &Complete| self.submits.get(&c.request);
        self.completions
            .iter()
            .rfind(|(_, c)| {
                // A free running 16 bit counter, and a ring of at most half of that.
                let ahead = s.avail_pos.wrapping_sub(c.avail_after);
                of(c).is_some_and(|was| {
                    (was.queue, was.epoch) == (s.queue, s.epoch) && ahead < 1 << 15
                }) && !c.abandoned
            })
            .map(|(seq, _)| *seq)
    }
}

/// An event in a few words.
fn what(event: &Event) -> String {
    match &event.body {
        Body::Submit(s) => submit(event.seq, s),
        Body::Complete(c) if c.abandoned => format!("request {} is given up", c.request),
        Body::Complete(c) => format!("request {} is completed: {}", c.request, c.status),
        Body::Decide(d) => format!("rule {} fires on request {}", clean(&d.name), d.request),
        Body::Mark(m) => match m.parse() {
            Ok(mark) => self::mark(&mark),
            Err(_) => "a mark that cannot be read".to_owned(),
        },
        Body::Device(d) => format!("the device: {:?} {}", d.kind, clean(&d.text)),
        Body::Data(d) => format!("contents of request {} ({:?})", d.request, d.kind),
        Body::Gap(g) => format!("{} events are missing", g.missing),
    }
}

fn submit(id: u64, s: &Submit) -> String {
    let place = match s.op {
        Op::Flush | Op::GetId => String::new(),
        _ => format!(", sector {}, {} bytes", s.sector, s.bytes),
    };
    format!("request {id} is taken: {}{place}", s.op.name())
}

fn mark(mark: &Mark) -> String {
    match mark {
        Mark::Begin(b) => format!("call {} begins: {} bytes at {}", b.call, b.len, b.off),
        Mark::End(e) => format!("call {} ends: it returned {}", e.call, e.result),
        Mark::ErrorSeen { call } => format!("the error of call {call} is seen in its pages"),
        Mark::Report(r) => format!(
            "pages of file offsets {} to {} ({}): {} dirty, {} in writeback",
            r.off,
            r.off.saturating_add(r.len),
            clean(&r.at),
            r.dirty,
            r.writeback
        ),
        Mark::ProbeBegin(p) => format!("probe {} ({}) begins", p.probe, clean(&p.kind)),
        Mark::ProbeState(p) => format!(
            "probe {} waits {} ms in state {}",
            p.probe,
            p.waited_ms,
            p.state.escape_default()
        ),
        Mark::ProbeEnd { probe, result } => format!("probe {probe} ends: {result}"),
        other => clean(&other.to_line()),
    }
}

/// Text of the guest: no control characters, not endless.
fn clean(text: &str) -> String {
    const MOST: usize = 120;
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(MOST).map(plain).collect();
    if text.chars().nth(MOST).is_some() {
        short.push_str(" ...");
    }
    short
}
