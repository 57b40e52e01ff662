// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `progress`: nobody hangs for a device that owes nothing.

use std::collections::BTreeMap;

use serde_json::json;
use wtblk_shared::mark::{Mark, ProbeBegin, ProbeState};

use super::attribution::World;
use super::contract::Contract;
use super::promise::{About, Promise};
use super::verdict::{CallRef, Evidence, Finding, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "progress",
    promised: "Whatever is done to the file afterwards does not hang while the device owes nothing.",
    judged_on: "the states of a probe's task (D, context switches) and the requests in flight at each",
    broken_when: "a probe is in D state beyond its limit in two reports with no context switch between \
                  them, while the backend has nothing held, hung or in flight and takes nothing, and \
                  has had nothing in flight for half of the limit before the second report",
    not_checked_when: "the probe's state was not reported twice; the device had been idle for less than \
                       half of the limit; requests were held or in flight; the \
                       data disk was not running; events are missing; a request of no call failed, \
                       which a file system may retry for ever; the probe went on once the device had \
                       taken further requests",
    comes_from: "fsync, sync, truncate and umount wait for writeback, locks and transactions only; where \
        the device owes nothing all of them must come back",
    broken_by: "a folio left in writeback or locked, a dio count or freeze protection that is never \
        dropped; the defect leak-writeback",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Progress::default())
}

#[derive(Clone, Debug)]
struct Seen {
    seq: u64,
    state: ProbeState,
    submits: u64,
}

#[derive(Clone, Debug)]
struct Probe {
    age: u64,
    begin: ProbeBegin,
    seq: u64,
    time_ns: u64,
    test: String,
    first: Option<Seen>,
    pair: Option<(Seen, Seen)>,
    why_not: Option<&'static str>,
    /// Why its end does not show that it never hung.
    end_proves_nothing: Option<&'static str>,
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Probes that have not ended.
    probes: BTreeMap<u64, Probe>,
    /// The same, the oldest first, by a number that counts begins.
    by_age: BTreeMap<u64, u64>,
    begun: u64,
}

/// Probes that have not ended. A guest that says it has more is not believed.
const MAX_OPEN: usize = 1024;

impl Promise for Progress {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        match mark {
            Mark::ProbeBegin(begin) => {
                self.begun += 1;
                let probe = Probe {
                    age: self.begun,
                    begin: begin.clone(),
                    seq,
                    time_ns: world.now_ns,
                    test: world.test_of(begin.call),
                    first: None,
                    pair: None,
                    why_not: None,
                    end_proves_nothing: None,
                };
                if let Some(old) = self.take(begin.probe) {
                    old.lost("the probe's number was used again", world, ledger);
                }
                let oldest = self.by_age.values().next().copied();
                if self.probes.len() >= MAX_OPEN
                    && let Some(old) = oldest.and_then(|n| self.take(n))
                {
                    old.lost("too many probes at a time", world, ledger);
                }
                self.by_age.insert(self.begun, begin.probe);
                self.probes.insert(begin.probe, probe);
            }
            Mark::ProbeState(state) => {
                if let Some(probe) = self.probes.get_mut(&state.probe) {
                    probe.seen(seq, state, world);
                }
            }
            Mark::ProbeEnd { probe, .. } => {
                if let Some(probe) = self.take(*probe) {
                    probe.ended(seq, world, ledger);
                }
            }
            _ => {}
        }
    }

    fn interrupted(&mut self, lost: bool) {
        for probe in self.probes.values_mut() {
            probe.first = None;
            if lost {
                // What would have excused a pair may be missing, or the pair itself.
                if probe.pair.take().is_some() {
                    probe.why_not = Some("events are missing after the reports");
                }
                probe.end_proves_nothing = Some("events are missing while the probe ran");
            }
        }
    }

    fn settle(&self, world: &World, ledger: &mut Ledger) {
        for probe in self.probes.values() {
            let why = probe
                .why_not
                .unwrap_or("the probe did not end and its state was not reported");
            probe.lost(why, world, ledger);
        }
    }

    fn reboot(&mut self) {
        self.probes.clear();
        self.by_age.clear();
    }
}

impl Progress {
    fn take(&mut self, number: u64) -> Option<Probe> {
        let probe = self.probes.remove(&number)?;
        self.by_age.remove(&probe.age);
        Some(probe)
    }
}

impl Probe {
    fn seen(&mut self, seq: u64, state: &ProbeState, world: &World) {
        let excuse = if state.state != 'D' {
            Some("the probe did not end, but its task was not in D state")
        } else if state.waited_ms < self.begin.limit_ms {
            Some("the probe was reported only before its limit")
        } else if let Some(why) = world.flight.not_idle() {
            Some(why)
        } else if world.unexplained_failures() {
            Some("a request of no call failed: the file system may retry it for ever")
        } else {
            None
        };
        if excuse.is_some() {
            self.first = None;
            self.why_not = excuse;
            return;
        }
        let now = Seen {
            seq,
            state: state.clone(),
            submits: world.flight.submits(),
        };
        // Requests that came and went in between could be what it waits for.
        let unmoved = |a: &Seen| a.state.switches == now.state.switches && a.submits == now.submits;
        match &self.first {
            Some(first) if unmoved(first) => {
                // A task that the device has just let go needs time to be woken.
                let half = self.begin.limit_ms.saturating_mul(1_000_000 / 2);
                if world.idle_ns(self.time_ns) >= half {
                    self.pair = Some((first.clone(), now));
                } else if self.pair.is_none() {
                    let why = "the device had been idle for less than half of the probe's limit";
                    self.why_not = Some(why);
                    self.end_proves_nothing.get_or_insert(why);
                }
            }
            _ => {
                self.why_not = Some("the probe's state was not reported twice without a change");
                self.first = Some(now);
            }
        }
    }

    /// It will not be followed any more: what it has shown counts, or else why not.
    fn lost(&self, why: &str, world: &World, ledger: &mut Ledger) {
        match &self.pair {
            Some((a, b)) => ledger.broken(&ABOUT, self.finding(a, b, None, world)),
            None => ledger.not_checked(&self.test, &ABOUT, why),
        }
    }

    fn ended(self, seq: u64, world: &World, ledger: &mut Ledger) {
        match &self.pair {
            None => match self.end_proves_nothing {
                Some(why) => ledger.not_checked(&self.test, &ABOUT, why),
                None => ledger.held(&self.test, &ABOUT),
            },
            Some((_, b)) if b.submits != world.flight.submits() => ledger.not_checked(
                &self.test,
                &ABOUT,
                "the probe went on beyond its limit, after the device had taken further requests",
            ),
            Some((a, b)) => ledger.broken(&ABOUT, self.finding(a, b, Some(seq), world)),
        }
    }

    fn finding(&self, a: &Seen, b: &Seen, ended: Option<u64>, world: &World) -> Finding {
        let s = &b.state;
        let wchan = if s.wchan.is_empty() {
            "unknown"
        } else {
            &s.wchan
        };
        let after = match ended {
            Some(seq) => format!("it went on at event {seq}, without any further request"),
            None => "it has not returned".to_owned(),
        };
        let happened = format!(
            "probe {} ({}) of call {} waited {} ms, its limit is {} ms: state D in {wchan} at events {} and \
             {} with {} context switches at both; {after}. The device owes nothing: no request held, hung \
             or in flight at both, none taken in between",
            self.begin.probe,
            self.begin.kind,
            self.begin.call,
            s.waited_ms,
            self.begin.limit_ms,
            a.seq,
            b.seq,
            s.switches,
        );
        let call: Option<CallRef> = world.past(self.begin.call).map(|p| p.call.clone());
        let mut events = vec![self.seq, a.seq, b.seq];
        events.extend(ended);
        ABOUT.finding(
            &self.test,
            call,
            happened,
            &[Evidence::ProbeState, Evidence::InFlight],
            events,
            [
                ("probe", json!(self.begin.probe)),
                ("kind", json!(self.begin.kind)),
                ("waited_ms", json!(s.waited_ms)),
                ("limit_ms", json!(self.begin.limit_ms)),
                ("state", json!("D")),
                ("wchan", json!(s.wchan)),
                ("switches", json!(s.switches)),
                ("ended", json!(ended)),
                ("owed_requests", json!(0)),
            ],
        )
    }
}
