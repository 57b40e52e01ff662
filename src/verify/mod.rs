// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The promises: events in, findings out.
//!
//! Everything here is a function of the events: no clock, no file, no guest.
//! So the same code judges a run while it goes on, a stored trace and the
//! streams that a property test makes up. What each promise means stands in
//! `docs/promises.md` and, in short, in the `ABOUT` of its file.
//!
//! * `attribution` says whose request it is and what the device owes;
//! * one file per promise, behind one trait, decides;
//! * [`verdict`] adds up, [`render`] says it to people.
//!
//! Memory is bounded whatever the guest says: so many open calls, probes, requests,
//! tests and findings, and of calls that ended a fixed number for later reports.
//! So is the work per event.

pub mod align;
mod attribution;
mod call;
pub mod chain;
pub mod contract;
pub mod cover;
pub mod data;
pub mod durable;
mod error_book;
pub mod error_report;
mod errors;
pub mod errseq;
pub mod explain;
mod extents;
mod facts;
mod fast_hash;
mod flight;
mod flying;
mod folio_ranges;
pub mod group;
pub mod ledger;
pub mod minimize;
pub mod no_overlap;
pub mod order;
pub mod picture;
pub mod progress;
pub mod promise;
pub mod render;
mod sectors;
pub mod selftest;
pub mod serialised;
pub mod size;
mod slots;
mod spoil;
mod spoil_errors;
mod spoil_probes;
pub mod stable;
pub mod stop_after_error;
pub mod story;
pub mod sync_return;
pub mod verdict;
pub mod writeback_cleared;
mod writers;
pub mod written_once;
mod wrote;

#[cfg(test)]
mod tests;

use wtblk_shared::mark::{CallBegin, CallEnd, Mark};

pub use self::attribution::touches_data;
use self::attribution::{GAP, NUMBER, STOPPED, TOO_MANY, World};
use self::call::{Call, EndedCall, has_flag};
use self::contract::{Contract, Told};
use self::flight::InFlight;
use self::promise::{Followers, Moment, Promise};
use self::verdict::{Ledger, Verdicts};
use crate::trace::event::{
    Body, Complete, DATA_DISK, DeviceEvent, DeviceKind, Event, MARK_DISK, MarkEvent, Op,
};

/// Judges a stream of events, one event at a time.
#[derive(Debug)]
pub struct Verifier {
    world: World,
    judges: Vec<Box<dyn Promise>>,
    followers: Followers,
    ledger: Ledger,
    /// The trace's first event may still say by which contract it is judged.
    ask_trace: bool,
}

impl Verifier {
    /// A judge by this contract.
    pub fn new(contract: Contract) -> Verifier {
        let judges = promise::judges(&contract);
        Verifier {
            world: World::default(),
            followers: Followers::of(&judges),
            judges,
            ledger: Ledger::new(&contract),
            ask_trace: false,
        }
    }

    /// A judge by the contract that the trace itself names in its first event;
    /// where it names none, by the default one; where that event is lost, by none at all.
    pub fn of_trace() -> Verifier {
        Verifier {
            ask_trace: true,
            ..Verifier::new(Contract::default())
        }
    }

    /// Takes the next event.
    pub fn event(&mut self, event: &Event) {
        if std::mem::take(&mut self.ask_trace) {
            match Told::by(event) {
                Told::This(contract) => *self = Verifier::new(*contract),
                Told::Nothing => {}
                Told::Lost(why) => self.ledger = Ledger::without_contract(why),
            }
        }
        self.world.now_ns = event.time_ns;
        self.world.now_seq = event.seq;
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => {
                self.world.submit(event.seq, s);
                let moment = match s.op {
                    Op::Write => Moment::WriteTaken,
                    Op::Flush => Moment::FlushTaken,
                    _ => return,
                };
                for at in self.followers.at(moment) {
                    if let Some(judge) = self.judges.get_mut(*at) {
                        judge.submitted(event.seq, s, &self.world, &mut self.ledger);
                    }
                }
            }
            Body::Submit(s) => {
                if s.disk != MARK_DISK {
                    self.world.flight.submit_elsewhere(event.seq);
                }
            }
            Body::Decide(d) => self.world.decided(d),
            Body::Complete(c) => {
                let (request, over) = self.world.complete(event.seq, c);
                let call = over.and_then(|number| self.world.stop_waiting(number));
                if let Some(request) = &request {
                    self.completed(event.seq, c, request);
                }
                if let Some(call) = call {
                    self.settled(&call);
                }
            }
            Body::Mark(m) => self.mark(event.seq, m),
            Body::Device(d) => self.device(d),
            Body::Data(d) => {
                for at in self.followers.at(Moment::Contents) {
                    if let Some(judge) = self.judges.get_mut(*at) {
                        judge.data(d, &self.world);
                    }
                }
            }
            Body::Gap(g) => {
                self.world.gap(event.seq, g.missing);
                self.interrupted(GAP, true);
            }
        }
    }

    fn completed(&mut self, seq: u64, c: &Complete, request: &InFlight) {
        let digested = (request.digest != 0).then_some(Moment::DigestedWriteDone);
        let moments = match request.op {
            Op::Write => [Some(Moment::WriteDone), digested],
            Op::Flush => [Some(Moment::FlushDone), None],
            _ => return,
        };
        for moment in moments.into_iter().flatten() {
            for at in self.followers.at(moment) {
                if let Some(judge) = self.judges.get_mut(*at) {
                    judge.completed(seq, c, request, &self.world, &mut self.ledger);
                }
            }
        }
    }

    /// The verdicts as they would be if the guest ended here.
    pub fn verdicts_so_far(&self) -> Verdicts {
        let mut ledger = self.ledger.clone();
        self.settle(&mut ledger, "the call has not ended");
        ledger.into_verdicts()
    }

    /// The verdicts; the stream is over.
    pub fn finish(mut self) -> Verdicts {
        let mut ledger = std::mem::replace(&mut self.ledger, Ledger::new(&Contract::default()));
        self.settle(&mut ledger, "the call did not end");
        ledger.into_verdicts()
    }

    fn mark(&mut self, seq: u64, event: &MarkEvent) {
        let mark = match event.parse() {
            Ok(mark) => mark,
            Err(_) => return self.ledger.loose("a mark that could not be read"),
        };
        if !event.ordered {
            return self.unordered(&mark);
        }
        match &mark {
            Mark::Boot => self.boot(),
            Mark::Begin(begin) => self.begin(seq, begin),
            Mark::End(end) => self.end(seq, end),
            _ => self.world.mark(&mark),
        }
        if let Mark::TestBegin { name } = &mark {
            self.ledger.test(name);
        }
        for judge in &mut self.judges {
            judge.mark(seq, &mark, &self.world, &mut self.ledger);
        }
    }

    /// A mark from a buffered write arrives at any time: it can tell facts, but
    /// not when something happened.
    fn unordered(&mut self, mark: &Mark) {
        match mark {
            Mark::Env(_) | Mark::Fs { .. } | Mark::Note { .. } => self.world.mark(mark),
            Mark::Begin(begin) => {
                self.world.obstruct_call(begin.call);
                if is_judged(begin) {
                    self.cannot_judge(&begin.test, "its marks are not ordered");
                }
            }
            Mark::End(end) => self.world.obstruct_call(end.call),
            _ => self.ledger.loose("an unordered mark, not used"),
        }
    }

    fn begin(&mut self, seq: u64, begin: &CallBegin) {
        if let Some(old) = self.world.stop_waiting(begin.call) {
            self.never_settled(&old, NUMBER);
        }
        if let Some(old) = self.world.begin(seq, begin) {
            self.call_lost(&old);
        }
        if is_judged(begin) {
            self.ledger.call();
        }
    }

    fn end(&mut self, seq: u64, end: &CallEnd) {
        let Some(call) = self.world.end(seq, end) else {
            return self.ledger.loose("the end of a call that has no begin");
        };
        for old in self.world.keep_past(&call) {
            for judge in &mut self.judges {
                judge.call_forgotten(&old, &mut self.ledger);
            }
        }
        let judged = is_judged(&call.begin);
        for judge in &mut self.judges {
            judge.any_call_ended(&call, judged, &self.world, &mut self.ledger);
        }
        let obstacle = call
            .obstacle
            .or(call.facts.tags_inexact)
            .or_else(|| self.world.facts.tags_inexact(call.is("async")));
        if let Some(why) = obstacle {
            if judged {
                self.cannot_judge(call.test(), why);
            }
            return;
        }
        if judged {
            for judge in &mut self.judges {
                judge.call_ended(&call, &self.world, &mut self.ledger);
            }
        }
        if call.data_in_flight.is_empty() {
            self.settled(&call);
        } else if let Some(call) = self.world.keep_late(call) {
            self.never_settled(&call, TOO_MANY);
        }
    }

    /// Nobody will know how the last requests of an ended call came out.
    fn never_settled(&mut self, call: &EndedCall, why: &str) {
        for judge in self.judges.iter_mut().filter(|j| j.waits_for_requests()) {
            if is_judged(&call.begin) {
                self.ledger.not_checked(call.test(), judge.about(), why);
            }
            judge.never_settled(call);
        }
    }

    fn settled(&mut self, call: &EndedCall) {
        if is_judged(&call.begin) {
            for judge in &mut self.judges {
                judge.call_settled(call, &self.world, &mut self.ledger);
            }
        }
    }

    fn device(&mut self, event: &DeviceEvent) {
        if event.disk == DATA_DISK {
            for at in self.followers.at(Moment::Device) {
                if let Some(judge) = self.judges.get_mut(*at) {
                    judge.device(event, &self.world);
                }
            }
        }
        let of_all = matches!(event.kind, DeviceKind::Begin | DeviceKind::End);
        if (event.disk == DATA_DISK || of_all) && self.world.device(event) {
            self.interrupted(STOPPED, false);
        }
        if event.disk == DATA_DISK && event.front_end_went() {
            // What comes next may be no guest, and need not mark what it does.
            self.boot_ends("the guest's front end went", STOPPED);
        }
    }

    /// Nothing may be concluded across this point.
    fn interrupted(&mut self, why: &str, lost: bool) {
        for call in self.world.take_late() {
            self.never_settled(&call, why);
        }
        for judge in &mut self.judges {
            judge.interrupted(lost);
        }
    }

    fn boot(&mut self) {
        let lost = "the guest rebooted before the call ended";
        self.boot_ends("the guest rebooted", lost);
    }

    /// Nothing that was known of the guest is true of the next one. `lost`: why a call is not judged.
    fn boot_ends(&mut self, why: &str, lost: &'static str) {
        for judge in &mut self.judges {
            judge.settle(&self.world, &mut self.ledger);
            judge.reboot();
        }
        self.interrupted(why, false);
        for mut call in self.world.boot() {
            call.obstacle = Some(lost);
            self.call_lost(&call);
        }
    }

    fn settle(&self, ledger: &mut Ledger, not_ended: &str) {
        for call in self.world.open_calls().filter(|c| is_judged(&c.begin)) {
            let why = call.obstacle.unwrap_or(not_ended);
            for judge in self.judges.iter().filter(|j| j.judges_calls()) {
                ledger.not_checked(&call.begin.test, judge.about(), why);
            }
        }
        for call in self.world.late().filter(|c| is_judged(&c.begin)) {
            for judge in self.judges.iter().filter(|j| j.waits_for_requests()) {
                let why = "requests of the call were not completed";
                ledger.not_checked(call.test(), judge.about(), why);
            }
        }
        for judge in &self.judges {
            judge.settle(&self.world, ledger);
        }
    }

    /// A call that began will never be judged.
    fn call_lost(&mut self, call: &Call) {
        for judge in &mut self.judges {
            judge.call_lost(call.begin.call);
        }
        if is_judged(&call.begin) {
            let why = call.obstacle.unwrap_or("the call did not end");
            self.cannot_judge(&call.begin.test, why);
        }
    }

    fn cannot_judge(&mut self, test: &str, why: &str) {
        for judge in self.judges.iter().filter(|j| j.judges_calls()) {
            self.ledger.not_checked(test, judge.about(), why);
        }
    }
}

/// Whether the promises are about this call: it has the flag, it is no probe of
/// the boot, and O_DIRECT, which has no business with the flag, is not set.
fn is_judged(begin: &CallBegin) -> bool {
    has_flag(begin, "writethrough")
        && !has_flag(begin, "direct")
        && !begin.flags.iter().any(|f| f.starts_with("probe-"))
}
