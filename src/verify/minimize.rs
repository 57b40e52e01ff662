// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cuts a stream of events to those that still show a finding.
//!
//! Delta debugging with the verifier as the oracle. What belongs together is cut
//! together: a request with all that became of it, a call's begin with its end. While
//! it is cut, events keep their numbers; so the finding has to come out in the very
//! same words, and no other finding that the cutting itself makes is taken for it.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use wtblk_shared::mark::Mark;
use wtblk_shared::tag::Tag;

use super::Verifier;
use super::contract::Contract;
use super::verdict::{CallRef, Finding};
use crate::trace::event::{Body, Event};

/// What is looked for in a cut stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    promise: String,
    test: String,
    happened: String,
    call: Option<CallRef>,
}

impl Wanted {
    /// This finding, and no other.
    pub fn new(finding: &Finding) -> Wanted {
        Wanted {
            promise: finding.promise.clone(),
            test: finding.test.clone(),
            happened: finding.happened.clone(),
            call: finding.call.clone(),
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub struct Minimized {
    /// The events that are left, with the numbers that they had.
    pub events: Vec<Event>,
    /// How often the verifier was asked.
    pub tries: u64,
    /// Nothing more can be left out, one piece at a time; false: the time was up.
    pub minimal: bool,
}

/// The piece of the first event. Pieces are kept in ascending order, so it is also its place.
const FIRST: usize = 0;

/// The streams that are tried.
struct Search<'e> {
    events: &'e [Event],
    /// Which piece each event belongs to.
    piece: Vec<usize>,
    wanted: Wanted,
    contract: Contract,
    until: Instant,
    tries: u64,
}

/// Cuts `events` until nothing more can go, or `limit` has passed. `None`: the finding is
/// not in the stream.
pub fn minimize(
    events: &[Event],
    finding: &Finding,
    contract: &Contract,
    limit: Duration,
) -> Option<Minimized> {
    let (piece, pieces) = pieces(events);
    let mut search = Search {
        events,
        piece,
        wanted: Wanted::new(finding),
        contract: contract.clone(),
        until: Instant::now() + limit,
        tries: 0,
    };
    let mut kept: Vec<usize> = (0..pieces).collect();
    if !search.shows(&kept) {
        return None;
    }
    // What it will most likely be, first: of a long trace nearly all goes at once.
    let likely = search.likely(finding);
    if likely.len() < kept.len() && search.shows(&likely) {
        kept = likely;
    }
    let minimal = search.cut(&mut kept);
    Some(Minimized {
        events: search.of(&kept),
        tries: search.tries,
        minimal,
    })
}

impl Search<'_> {
    /// The events of these pieces (ascending).
    fn of(&self, kept: &[usize]) -> Vec<Event> {
        let in_it = |i: usize| kept.binary_search(&i).is_ok();
        let all = self.events.iter().zip(&self.piece);
        all.filter(|(_, p)| in_it(**p))
            .map(|(e, _)| e.clone())
            .collect()
    }

    /// Whether the finding comes out of these pieces.
    fn shows(&mut self, kept: &[usize]) -> bool {
        self.tries += 1;
        let mut keep = vec![false; self.piece.len()];
        for p in kept {
            if let Some(k) = keep.get_mut(*p) {
                *k = true;
            }
        }
        let mut verifier = Verifier::new(self.contract.clone());
        for (event, p) in self.events.iter().zip(&self.piece) {
            if keep.get(*p).copied().unwrap_or(false) {
                verifier.event(event);
            }
        }
        let verdicts = verifier.finish();
        verdicts.findings().any(|f| Wanted::new(f) == self.wanted)
    }

    /// Device, boot, facts, the finding's own events, and the requests with its call's tag.
    fn likely(&self, finding: &Finding) -> Vec<usize> {
        let tag = finding.call.as_ref().and_then(|c| c.tag);
        let last = finding.events.last().copied().unwrap_or(u64::MAX);
        let mut likely: Vec<usize> = self
            .events
            .iter()
            .zip(&self.piece)
            .filter(|(e, p)| {
                **p == FIRST
                    || finding.events.contains(&e.seq)
                    || e.seq <= last
                        && match &e.body {
                            Body::Submit(s) => {
                                tag.is_some() && Tag::from_ioprio(s.ioprio).map(Tag::number) == tag
                            }
                            Body::Mark(m) => {
                                matches!(m.parse(), Ok(Mark::Boot | Mark::Env(_) | Mark::Fs { .. }))
                                    || finding.call.as_ref().is_some_and(|c| {
                                        m.line.contains(&format!("call={} ", c.call))
                                    })
                            }
                            Body::Device(_) => true,
                            _ => false,
                        }
            })
            .map(|(_, p)| *p)
            .collect();
        likely.sort_unstable();
        likely.dedup();
        likely
    }

    /// Leaves out ever smaller runs of pieces; whether it came to its end.
    fn cut(&mut self, kept: &mut Vec<usize>) -> bool {
        let mut size = kept.len().div_ceil(2).max(1);
        loop {
            let mut changed = false;
            // From the end: what comes later depends on what came before. The first one stays.
            let mut end = kept.len();
            while end > FIRST + 1 {
                if Instant::now() >= self.until {
                    return false;
                }
                let start = end.saturating_sub(size).max(FIRST + 1);
                let mut less = kept.clone();
                less.drain(start..end);
                if self.shows(&less) {
                    *kept = less;
                    changed = true;
                }
                end = start;
            }
            match (size, changed) {
                (1, false) => return true,
                (1, true) => {}
                _ => size = size.div_ceil(2),
            }
        }
    }
}

/// Which piece each event belongs to, and how many pieces there are.
fn pieces(events: &[Event]) -> (Vec<usize>, usize) {
    let mut next = 0;
    let mut new = || {
        next += 1;
        next - 1
    };
    let mut requests: HashMap<u64, usize> = HashMap::new();
    let mut calls: BTreeMap<u64, usize> = BTreeMap::new();
    let mut list = Vec::with_capacity(events.len());
    for event in events {
        let piece = match &event.body {
            Body::Submit(_) => {
                let piece = new();
                requests.insert(event.seq, piece);
                piece
            }
            Body::Decide(d) => *requests.entry(d.request).or_insert_with(&mut new),
            Body::Data(d) => *requests.entry(d.request).or_insert_with(&mut new),
            Body::Complete(c) => *requests.entry(c.request).or_insert_with(&mut new),
            Body::Mark(m) => match m.parse() {
                Ok(Mark::Begin(b)) => {
                    let piece = new();
                    calls.insert(b.call, piece);
                    piece
                }
                Ok(Mark::End(e)) => match calls.remove(&e.call) {
                    Some(piece) => piece,
                    None => new(),
                },
                _ => new(),
            },
            Body::Device(_) | Body::Gap(_) => new(),
        };
        list.push(piece);
    }
    // A late use of `new` by an entry of a map keeps numbers ascending, but not in the
    // order of first events: that is all the search needs.
    (list, next)
}

/// The events with numbers from 0 on, as a file holds them. What speaks of a request that is
/// not there any more is left out.
pub fn renumber(events: &[Event]) -> Vec<Event> {
    let mut numbers: HashMap<u64, u64> = HashMap::new();
    let mut list = Vec::with_capacity(events.len());
    for event in events {
        let mut event = event.clone();
        let request = match &mut event.body {
            Body::Decide(d) => Some(&mut d.request),
            Body::Data(d) => Some(&mut d.request),
            Body::Complete(c) => Some(&mut c.request),
            _ => None,
        };
        if let Some(request) = request {
            match numbers.get(request) {
                Some(new) => *request = *new,
                None => continue,
            }
        }
        let seq = list.len() as u64;
        numbers.insert(event.seq, seq);
        event.seq = seq;
        if let Body::Gap(gap) = &mut event.body {
            // Numbers follow each other: of what is missing one stands for all.
            gap.missing = 1;
        }
        list.push(event);
    }
    list
}
