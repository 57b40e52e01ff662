// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Cuts the events of a boot into points and judges each by itself: a verifier of its own is
//! told how the boot began and then this point's events, so that no point's verdict depends on
//! which points were done before it.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use wtblk_shared::mark::{Mark, PointBegin, PointEnd, SweepMark};
use wtblk_shared::sweep::rule;

use super::faults::{self, Fault};
use super::record::{Clean, Done, Found, Outcome, Swept};
use super::requests::Window;
use crate::harness::boot::Watch;
use crate::harness::console::kind_of;
use crate::trace::event::{Body, DATA_DISK, DeviceKind, Event, RequestId};
use crate::verify::Verifier;
use crate::verify::group::shape;
use crate::verify::render;
use crate::verify::story::Stories;
use crate::verify::verdict::{Verdict, Verdicts};

/// Events of one point, and of what comes before the first. A guest that sends more is not believed.
const MAX_EVENTS: usize = 100_000;
/// So long nothing may happen in a guest. Its own limits are far shorter; generous, as a limit that a
/// loaded machine reaches is a false alarm (60 s were reached in a boot with a load of 18 on 2 cores).
const SILENCE: Duration = Duration::from_secs(300);
/// Findings of a point that are kept.
const MAX_FOUND: usize = 16;
/// Alike findings of one boot that are told from near; of further ones only what happened.
const MAX_NEAR: u32 = 8;
/// Kinds of findings that are counted for that.
const MAX_KINDS: usize = 1024;

/// What a boot did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SweptBoot {
    /// Points that came to an end, that of the guest included.
    pub points: u64,
    /// Seconds from the first point's begin to the last one's end.
    pub seconds: f64,
}

/// What a boot gives.
pub enum Given {
    /// A clean pass.
    Clean(Clean),
    /// A point.
    Point(Box<Done>),
}

/// Who takes it.
pub type Taker<'a> = dyn FnMut(Given) -> Result<()> + 'a;

/// Follows one boot.
pub struct Judge<'a> {
    swept: &'a Swept,
    boot: String,
    take: &'a mut Taker<'a>,
    /// The clean passes that points are held against, by shape.
    cleans: HashMap<usize, Clean>,
    /// Shapes that have had a clean pass in this boot.
    warm: HashSet<usize>,
    /// What every verifier is told first.
    base: Vec<Event>,
    /// The file systems' logs.
    logs: Vec<Range<u64>>,
    in_flight: HashMap<RequestId, Event>,
    /// A point has begun once: what comes between points is not told.
    begun: bool,
    open: Option<Open>,
    trouble: Option<anyhow::Error>,
    last: Instant,
    /// Time of the first begin and the last end of a point that is no clean pass, ns.
    times: Option<(u64, u64)>,
    points: u64,
    /// Findings so far, by source and what happened without its numbers.
    alike: HashMap<(String, String), u32>,
}

/// A point that has begun.
struct Open {
    begin: PointBegin,
    shape: usize,
    carried: Vec<Event>,
    events: Vec<Event>,
    /// Some of its events are missing.
    lost: bool,
    time_ns: u64,
}

impl<'a> Judge<'a> {
    /// For one boot. `cleans` are those of earlier boots.
    pub fn new(
        swept: &'a Swept,
        boot: &str,
        cleans: impl Iterator<Item = Clean>,
        take: &'a mut Taker<'a>,
    ) -> Judge<'a> {
        Judge {
            swept,
            boot: boot.to_owned(),
            take,
            cleans: cleans.map(|clean| (clean.shape, clean)).collect(),
            warm: HashSet::new(),
            base: Vec::new(),
            logs: Vec::new(),
            in_flight: HashMap::new(),
            begun: false,
            open: None,
            trouble: None,
            last: Instant::now(),
            times: None,
            points: 0,
            alike: HashMap::new(),
        }
    }

    /// The boot is over; `ended` says how, where the guest did not end by itself. A point that was
    /// under way is one that the guest did not survive.
    pub fn finish(mut self, ended: Option<&str>) -> Result<SweptBoot> {
        if let Some(trouble) = self.trouble {
            return Err(trouble);
        }
        if let (Some(open), Some(how)) = (self.open.take(), ended) {
            let end = PointEnd::default();
            let died = said("guest", &format!("the guest did not survive: {how}"));
            self.judge(&open, &end, Some(died))?;
        }
        let (first, last) = self.times.unwrap_or_default();
        Ok(SweptBoot {
            points: self.points,
            seconds: Duration::from_nanos(last.saturating_sub(first)).as_secs_f64(),
        })
    }

    /// Of very many alike findings only the first are kept from near.
    fn shorten(&mut self, findings: &mut [Found]) {
        for found in findings {
            let key = (found.source.clone(), shape(&found.happened));
            if self.alike.len() >= MAX_KINDS && !self.alike.contains_key(&key) {
                continue;
            }
            let n = self.alike.entry(key).or_default();
            *n += 1;
            if *n > MAX_NEAR {
                found.text = vec![found.happened.clone()];
                found.finding = None;
            }
        }
    }

    fn take_event(&mut self, event: &Event) -> Result<()> {
        let mark = match &event.body {
            Body::Mark(mark) => mark.parse().ok(),
            _ => None,
        };
        match &mark {
            Some(Mark::Sweep(SweepMark::Begin(begin))) => return self.begin(event, begin),
            Some(Mark::Fs {
                log_start, log_len, ..
            }) if self.logs.len() < 64 => {
                self.logs
                    .push(*log_start..log_start.saturating_add(*log_len));
            }
            _ => {}
        }
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => {
                self.in_flight.insert(event.seq, event.clone());
            }
            Body::Complete(c) => {
                self.in_flight.remove(&c.request);
            }
            _ => {}
        }
        let Some(open) = &mut self.open else {
            if !self.begun || matters_between(event, mark.as_ref()) {
                self.base.push(event.clone());
            }
            if self.base.len() > MAX_EVENTS {
                bail!("the guest says more than {MAX_EVENTS} things before its first point");
            }
            return Ok(());
        };
        open.lost |= matches!(event.body, Body::Gap(_));
        if open.events.len() < MAX_EVENTS {
            open.events.push(event.clone());
        } else {
            open.lost = true;
        }
        if let Some(Mark::Sweep(SweepMark::End(end))) = &mark
            && let Some(open) = self.open.take()
        {
            self.end(event.time_ns, &open, end)?;
        }
        Ok(())
    }

    fn begin(&mut self, event: &Event, begin: &PointBegin) -> Result<()> {
        let is = |(test, name): &(String, String)| (test, name) == (&begin.test, &begin.shape);
        let Some(shape) = self.swept.shapes.iter().position(is) else {
            bail!(
                "the guest sweeps '{}/{}', which nobody asked for",
                begin.test,
                begin.shape
            );
        };
        let mut carried: Vec<Event> = self.in_flight.values().cloned().collect();
        carried.sort_by_key(|e| e.seq);
        if !self.begun {
            // What is still in flight comes with each point; told here it would be in flight for ever.
            let in_flight = &self.in_flight;
            self.base.retain(|e| !in_flight.contains_key(&e.seq));
            self.begun = true;
        }
        self.open = Some(Open {
            begin: begin.clone(),
            shape,
            carried,
            events: vec![event.clone()],
            lost: false,
            time_ns: event.time_ns,
        });
        Ok(())
    }

    fn end(&mut self, now_ns: u64, open: &Open, end: &PointEnd) -> Result<()> {
        if open.begin.index.is_some() {
            let first = self.times.map_or(open.time_ns, |(first, _)| first);
            self.times = Some((first, now_ns));
        }
        self.judge(open, end, None)
    }

    fn judge(&mut self, open: &Open, end: &PointEnd, died: Option<Found>) -> Result<()> {
        let window = Window::of(&open.events, self.swept.requests, &self.logs);
        let verdicts = self.verdicts(open);
        let Some(index) = open.begin.index else {
            return self.clean_pass(open, end, &window, &verdicts, died);
        };
        let fault = faults::find(&open.begin.fault)?;
        let mut point = Point {
            fault,
            window: &window,
            end,
            fired: fired(&open.begin, &window),
            findings: found(&verdicts),
        };
        point.findings.extend(died);
        point.own_checks();
        let clean = self.cleans.get(&open.shape);
        let (outcome, why) = point.outcome(&open.begin, clean, open.lost);
        let Point { mut findings, .. } = point;
        self.shorten(&mut findings);
        let first = open.events.first().map_or(0, |e| e.seq);
        let last = open.events.last().map_or(first, |e| e.seq);
        self.points += 1;
        (self.take)(Given::Point(Box::new(Done {
            index,
            test: open.begin.test.clone(),
            shape: open.begin.shape.clone(),
            fault: open.begin.fault.clone(),
            requests: open.begin.requests.clone(),
            outcome,
            why,
            result: end.result,
            fsync: end.fsync,
            rewrite: end.rewrite,
            decided: decided(&verdicts),
            findings,
            boot: self.boot.clone(),
            events: (first, last),
        })))
    }

    fn clean_pass(
        &mut self,
        open: &Open,
        end: &PointEnd,
        window: &Window,
        verdicts: &Verdicts,
        died: Option<Found>,
    ) -> Result<()> {
        let mut findings = found(verdicts);
        findings.extend(died);
        findings.extend(end.failures.iter().map(|text| said("guest", text)));
        let of_kernel = end.kernel.iter().filter(|line| kind_of(line).is_some());
        findings.extend(of_kernel.map(|line| said("kernel-log", line)));
        let places = window.fired.iter().filter_map(|(_, id)| window.place(*id));
        let clean = Clean {
            shape: open.shape,
            requests: window.words(),
            counted: places.collect(),
            findings,
            boot: self.boot.clone(),
        };
        if open.lost || end.result.is_none() {
            // Nothing to hold points against; the guest says why and ends.
            return Ok(());
        }
        // The first of a boot only warms up (`guest-tests/src/sweep.rs`).
        let warmed = !self.warm.insert(open.shape);
        if !warmed || self.cleans.contains_key(&open.shape) {
            return Ok(());
        }
        self.cleans.insert(open.shape, clean.clone());
        (self.take)(Given::Clean(clean))
    }

    fn verdicts(&self, open: &Open) -> Verdicts {
        let told = || self.base.iter().chain(&open.carried).chain(&open.events);
        let mut verifier = Verifier::of_trace();
        told().for_each(|event| verifier.event(event));
        let mut verdicts = verifier.finish();
        let mut stories = Stories::of(&verdicts);
        if !stories.is_empty() {
            told().for_each(|event| stories.event(event));
            stories.tell(&mut verdicts);
        }
        verdicts
    }
}

impl Watch for Judge<'_> {
    fn event(&mut self, event: &Event) {
        self.last = Instant::now();
        if self.trouble.is_none() {
            self.trouble = self.take_event(event).err();
        }
    }

    fn heard(&mut self) {
        self.last = Instant::now();
    }

    fn gives_up(&self) -> bool {
        self.trouble.is_some() || self.last.elapsed() > SILENCE
    }
}

/// Whether an event between points changes what can be judged of the next ones.
fn matters_between(event: &Event, mark: Option<&Mark>) -> bool {
    match &event.body {
        Body::Mark(_) => matches!(
            mark,
            Some(Mark::Boot | Mark::Env(_) | Mark::Fs { .. } | Mark::TestBegin { .. })
        ),
        Body::Device(d) => !matches!(d.kind, DeviceKind::Release | DeviceKind::Wait),
        Body::Gap(_) => true,
        _ => false,
    }
}

/// The requests on which the point's rules fired.
fn fired(begin: &PointBegin, window: &Window) -> Vec<RequestId> {
    let names: Vec<String> = begin
        .requests
        .iter()
        .map(|n| rule(&begin.fault, *n))
        .collect();
    let mine = window.fired.iter().filter(|(name, _)| names.contains(name));
    mine.map(|(_, id)| *id).collect()
}

/// The findings of the promises.
fn found(verdicts: &Verdicts) -> Vec<Found> {
    verdicts
        .findings()
        .take(MAX_FOUND)
        .map(|f| Found {
            source: f.promise.clone(),
            happened: f.happened.clone(),
            text: render::finding(f, None),
            finding: serde_json::to_value(f).ok(),
        })
        .collect()
}

/// Promises that were decided.
fn decided(verdicts: &Verdicts) -> u32 {
    let promises = verdicts.tests.iter().flat_map(|t| &t.promises);
    let decided = promises.filter(|p| !matches!(p.verdict, Verdict::NotChecked { .. }));
    decided.count() as u32
}

fn said(source: &str, text: &str) -> Found {
    Found {
        source: source.into(),
        happened: text.to_owned(),
        text: vec![text.to_owned()],
        finding: None,
    }
}

/// A point that is over.
struct Point<'a> {
    fault: &'static Fault,
    window: &'a Window,
    end: &'a PointEnd,
    fired: Vec<RequestId>,
    findings: Vec<Found>,
}

impl Point<'_> {
    /// A shutdown is legal where a log write or other metadata failed.
    fn may_shut_down(&self) -> bool {
        let is_data = |id: &RequestId| {
            let request = self.window.requests.iter().find(|r| r.id == *id);
            request.is_some_and(|r| r.data)
        };
        self.fault.fails && self.fired.iter().any(|id| !is_data(id))
    }

    /// The device keeps what it was told to.
    fn device_hangs(&self) -> bool {
        self.fault.hangs && self.fired.iter().any(|id| self.window.open.contains(id))
    }

    /// What the guest and its kernel say, and what a call must return that no promise is about.
    fn own_checks(&mut self) {
        let end = self.end;
        let prepared = end.result.is_some() || end.hung.is_some();
        if prepared {
            let failures = end.failures.iter().map(|text| said("guest", text));
            self.findings.extend(failures);
        }
        if let Some(place) = end.hung.as_ref().filter(|_| !self.device_hangs()) {
            self.findings.push(said("guest", place));
        }
        if end.shut_down && !self.may_shut_down() {
            let text = "the file system was shut down although no log or metadata request failed";
            self.findings.push(said("guest", text));
        }
        let wanted = self.window.call.as_ref().map(|call| call.len as i64);
        if let (Some(result), Some(wanted)) = (end.result, wanted)
            && !self.fault.fails
            && result != wanted
        {
            let text =
                format!("the call returned {result}, expected {wanted}: no request of it failed");
            self.findings.push(said("guest", &text));
        }
        if let Some(fsync) = end.fsync.filter(|f| *f != 0 && !self.fault.fails) {
            let text = format!("fsync returned {fsync}: no request failed");
            self.findings.push(said("guest", &text));
        }
        for line in &end.kernel {
            let counts = match kind_of(line) {
                None => false,
                Some("shutdown") => !self.may_shut_down(),
                Some("hung-task") => !self.device_hangs(),
                Some(_) => true,
            };
            if counts {
                self.findings.push(said("kernel-log", line));
            }
        }
    }

    fn outcome(
        &self,
        begin: &PointBegin,
        clean: Option<&Clean>,
        lost: bool,
    ) -> (Outcome, Option<String>) {
        if !self.findings.is_empty() {
            return (Outcome::Broken, None);
        }
        if lost {
            let why = "events of this point are missing";
            return (Outcome::Undecided, Some(why.into()));
        }
        if self.end.result.is_none() && self.end.hung.is_none() {
            let why = self.end.failures.first().cloned();
            return (Outcome::Undecided, why);
        }
        if let Err((outcome, why)) = self.as_in(begin, clean) {
            return (outcome, Some(why));
        }
        if let Some(place) = &self.end.hung {
            return (Outcome::Hung, Some(place.clone()));
        }
        if self.end.shut_down {
            return (Outcome::ShutDown, None);
        }
        (Outcome::Held, None)
    }

    /// The requests up to the last one that failed must be those of the clean pass.
    fn as_in(&self, begin: &PointBegin, clean: Option<&Clean>) -> Result<(), (Outcome, String)> {
        let diverged = |why: String| Err((Outcome::Diverged, why));
        let Some(clean) = clean else {
            return diverged("there was no clean pass".into());
        };
        let last = begin.requests.last().copied().unwrap_or(0);
        let due = (last as usize).checked_sub(1);
        let Some(&place) = due.and_then(|i| clean.counted.get(i)) else {
            return diverged(format!("the clean pass has no request {last}"));
        };
        let words = self.window.words();
        let want = clean.requests.get(..=place).unwrap_or_default();
        let came = words.get(..=place).unwrap_or(&words);
        if came != want {
            let differs = want.iter().zip(came).position(|(a, b)| a != b);
            let at = differs.unwrap_or(came.len());
            let word = |list: &[String]| list.get(at).map_or("nothing", String::as_str).to_owned();
            return diverged(format!(
                "request {} was '{}', in the clean pass '{}'",
                at + 1,
                word(came),
                word(want)
            ));
        }
        if self.fired.len() < begin.requests.len() {
            let why = format!("no such fault for '{}'", words.get(place).map_or("", |w| w));
            return Err((Outcome::NotApplied, why));
        }
        Ok(())
    }
}
