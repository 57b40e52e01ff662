// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a finding looks like from near: the requests of its call, and the chain
//! of events that proves it.
//!
//! The judges keep only what they must. So the story is told by a second reading
//! of the events, once it is known which findings there are: [`Stories`] is told
//! the findings, then every event again, and gives each finding its story.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{CallEnd, Mark};
use wtblk_shared::tag::Tag;

use super::call::{Call, CallRequest, Class, Done, EndedCall};
use super::chain::{self, Step};
use super::verdict::{Finding, Verdict, Verdicts};
use crate::trace::event::{Body, DATA_DISK, Event, RequestId};

/// Findings of one trace that get a story; further ones have their numbers.
pub const MAX_STORIES: usize = 256;
/// Requests of one call that are told.
const MAX_REQUESTS: usize = 4096;
/// Events of one finding that are told.
const MAX_STEPS: usize = 256;

/// A request of the call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its number: that of the event that took it.
    pub request: u64,
    /// Kind.
    pub op: String,
    /// `data`, `side` or `partly` (some of its sectors are not the call's).
    pub class: String,
    /// First sector.
    pub sector: u64,
    /// Length, bytes.
    pub bytes: u32,
    /// Where in the file: begin and end, bytes.
    pub file: Vec<(u64, u64)>,
    /// The how manieth of the call's requests that arrived, from 1.
    pub arrived: usize,
    /// The how manieth that was completed, from 1; `None`: it was not.
    pub completed: Option<usize>,
    /// The event of its completion.
    pub completed_at: Option<u64>,
    /// Its status byte.
    pub status: Option<u8>,
    /// The rule of the scenario that fired on it.
    pub rule: Option<String>,
}

/// A finding from near.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// The call's range in the file, rounded out to blocks; `None`: no call is known.
    pub range: Option<(u64, u64)>,
    /// Block size of the file system, bytes.
    pub block: u64,
    /// The call's begin and end marks, by event.
    pub begin: Option<u64>,
    /// See `begin`.
    pub end: Option<u64>,
    /// The requests with the call's tag, in order of arrival.
    pub requests: Vec<Told>,
    /// More requests of the call that are not told.
    pub more_requests: u64,
    /// What of the range no request wrote with success: begin and end in the file, bytes.
    pub left: Vec<(u64, u64)>,
    /// The events that prove the finding, each with those that it surely came after.
    pub chain: Vec<Step>,
    /// What the kernel logged from the call's begin to the last of these events.
    pub kernel_log: Vec<String>,
    /// The command that repeats it.
    pub repeat_with: Option<String>,
}

/// Tells stories: [`Stories::of`], [`Stories::event`] for every event, [`Stories::tell`].
#[derive(Debug, Default)]
pub struct Stories {
    /// Numbers of calls that findings speak of.
    calls: HashSet<u64>,
    /// Numbers of events that findings rest on.
    wanted: HashSet<u64>,
    /// Those events.
    kept: HashMap<u64, Event>,
    /// Calls of these numbers, each with every boot's; in the order of their begin.
    met: Vec<Met>,
    /// Those that run, by number.
    open: HashMap<u64, usize>,
    /// Those that run, by tag.
    tags: HashMap<Tag, usize>,
    /// Requests that are followed: the call, and their place there.
    requests: HashMap<RequestId, (usize, usize)>,
}

/// A call that was met.
#[derive(Debug)]
struct Met {
    call: Option<Call>,
    ended: Option<EndedCall>,
    begin_seq: u64,
    rules: BTreeMap<usize, String>,
    completions: Vec<usize>,
    more: u64,
}

impl Stories {
    /// The findings that are to be told.
    pub fn of(verdicts: &Verdicts) -> Stories {
        let mut stories = Stories::default();
        for finding in verdicts.findings().take(MAX_STORIES) {
            stories.calls.extend(finding.call.as_ref().map(|c| c.call));
            stories.wanted.extend(finding.events.iter().take(MAX_STEPS));
        }
        stories
    }

    /// Whether there is nothing to tell: no second reading is needed.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty() && self.wanted.is_empty()
    }

    /// Takes the next event of the second reading.
    pub fn event(&mut self, event: &Event) {
        if self.wanted.contains(&event.seq) {
            let mut event = event.clone();
            if let Body::Data(data) = &mut event.body {
                // Contents are not told, and may be large.
                data.bytes.clear();
            }
            self.kept.insert(event.seq, event);
        }
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => {
                let tag = Tag::from_ioprio(s.ioprio);
                let Some(&at) = tag.and_then(|t| self.tags.get(&t)) else {
                    return;
                };
                let Some(met) = self.met.get_mut(at) else {
                    return;
                };
                if let Some(call) = &mut met.call {
                    let room = call.requests.len() < MAX_REQUESTS;
                    match room.then(|| call.take(event.seq, s, true)).flatten() {
                        Some(place) => {
                            self.requests.insert(event.seq, (at, place));
                        }
                        None => met.more += 1,
                    }
                }
            }
            Body::Decide(d) => {
                if let Some((at, place)) = self.requests.get(&d.request)
                    && let Some(met) = self.met.get_mut(*at)
                {
                    met.rules.insert(*place, d.name.clone());
                }
            }
            Body::Complete(c) if !c.abandoned => {
                if let Some((at, place)) = self.requests.remove(&c.request)
                    && let Some(met) = self.met.get_mut(at)
                {
                    let done = Done {
                        seq: event.seq,
                        status: c.status,
                        stable: None,
                        avail_after: c.avail_after,
                    };
                    met.completed(place, done);
                }
            }
            Body::Mark(m) if m.ordered => {
                if let Ok(mark) = m.parse() {
                    self.mark(event.seq, mark);
                }
            }
            _ => {}
        }
    }

    fn mark(&mut self, seq: u64, mark: Mark) {
        match mark {
            Mark::Boot => {
                self.open.clear();
                self.tags.clear();
            }
            Mark::Begin(begin) if self.calls.contains(&begin.call) => {
                let at = self.met.len();
                self.open.insert(begin.call, at);
                if let Some(tag) = begin.tag.and_then(Tag::new) {
                    self.tags.insert(tag, at);
                }
                self.met.push(Met {
                    call: Some(Call::new(begin, seq)),
                    ended: None,
                    begin_seq: seq,
                    rules: BTreeMap::new(),
                    completions: Vec::new(),
                    more: 0,
                });
            }
            Mark::End(end) => {
                if let Some(at) = self.open.remove(&end.call)
                    && let Some(met) = self.met.get_mut(at)
                {
                    met.end(end, seq);
                    self.tags.retain(|_, of| *of != at);
                }
            }
            _ => {}
        }
    }

    /// Gives the findings their stories.
    pub fn tell(mut self, verdicts: &mut Verdicts) {
        for met in &mut self.met {
            if let Some(call) = &met.call {
                // It never ended: told by what was known at its begin.
                let end = CallEnd {
                    call: call.begin.call,
                    ..CallEnd::default()
                };
                met.end(end, 0);
            }
        }
        let mut left = MAX_STORIES;
        for test in &mut verdicts.tests {
            for promise in &mut test.promises {
                if let Verdict::Broken { findings, .. } = &mut promise.verdict {
                    for finding in findings.iter_mut().take(left) {
                        finding.story = Some(Box::new(self.story(finding)));
                    }
                    left = left.saturating_sub(findings.len());
                }
            }
        }
    }

    fn story(&self, finding: &Finding) -> Story {
        let events = finding.events.iter().take(MAX_STEPS);
        let kept: Vec<&Event> = events.filter_map(|e| self.kept.get(e)).collect();
        let chain = chain::of(&kept);
        let Some(met) = self.met_by(finding) else {
            return Story {
                chain,
                ..Story::default()
            };
        };
        let Some(call) = &met.ended else {
            return Story::default();
        };
        let place = |i: usize| met.completions.iter().position(|p| *p == i).map(|n| n + 1);
        let requests: Vec<Told> = call
            .requests
            .iter()
            .enumerate()
            .map(|(i, r)| told(r, i + 1, place(i), met.rules.get(&i)))
            .collect();
        Story {
            range: Some((call.range.start, call.range.end)),
            block: call.begin.bsize,
            begin: Some(call.begin_seq),
            end: Some(call.end_seq).filter(|seq| *seq > 0),
            left: not_written(call),
            requests,
            more_requests: met.more,
            chain,
            ..Story::default()
        }
    }

    /// The call that the finding is about: its last begin before the first event
    /// that is no begin, for numbers of calls start again with each boot.
    fn met_by(&self, finding: &Finding) -> Option<&Met> {
        let number = finding.call.as_ref()?.call;
        let of_number = |m: &&Met| m.ended.as_ref().is_some_and(|c| c.begin.call == number);
        let last = finding.events.last().copied().unwrap_or(u64::MAX);
        let mut of_call = self.met.iter().filter(of_number);
        of_call
            .clone()
            .find(|m| finding.events.contains(&m.begin_seq))
            .or_else(|| of_call.rfind(|m| m.begin_seq <= last))
    }
}

impl Met {
    fn completed(&mut self, place: usize, done: Done) {
        let requests = match (&mut self.call, &mut self.ended) {
            (Some(call), _) => &mut call.requests,
            (None, Some(ended)) => &mut ended.requests,
            (None, None) => return,
        };
        if let Some(request) = requests.get_mut(place) {
            request.done = Some(done);
            self.completions.push(place);
        }
    }

    fn end(&mut self, end: CallEnd, seq: u64) {
        if let Some(call) = self.call.take() {
            self.ended = Some(call.end(end, seq));
        }
    }
}

fn told(r: &CallRequest, arrived: usize, completed: Option<usize>, rule: Option<&String>) -> Told {
    let class = match r.class {
        Class::Data(_) => "data",
        Class::Straddling => "partly",
        Class::Unknown | Class::Side => "side",
    };
    let mut file: Vec<(u64, u64)> = r
        .fragments()
        .iter()
        .map(|f| (f.file, f.file + f.len))
        .collect();
    file.sort_unstable();
    Told {
        request: r.id,
        op: r.op.name().to_owned(),
        class: class.to_owned(),
        sector: r.disk.start / SECTOR,
        bytes: r.bytes,
        file,
        arrived,
        completed,
        completed_at: r.done.map(|d| d.seq),
        status: r.done.map(|d| d.status.0),
        rule: rule.cloned(),
    }
}

/// What of the call's range no request wrote with success.
fn not_written(call: &EndedCall) -> Vec<(u64, u64)> {
    let good = |r: &&CallRequest| r.done.is_some_and(|d| d.status.is_ok());
    let mut parts: Vec<(u64, u64)> = call
        .data()
        .filter(good)
        .flat_map(|r| r.fragments())
        .map(|f| (f.file, f.file + f.len))
        .collect();
    parts.sort_unstable();
    let mut left = Vec::new();
    let mut at = call.range.start;
    for (start, end) in parts {
        if start > at {
            left.push((at, start));
        }
        at = at.max(end);
    }
    if at < call.range.end {
        left.push((at, call.range.end));
    }
    left
}
