// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors and those who asked for them: which failed calls an fsync of an open
//! file may, must or cannot report. `errseq` and `ledger` judge by it.
//!
//! A *unit* is the failure of one call: all its failed data requests. It is
//! recorded in the mapping, if at all, between the first failed completion and
//! the end of the call. A *check* is an fsync (or a DSYNC call whose own writes
//! succeeded): it takes place somewhere between its two marks, gets every error
//! recorded since the last check of its open file, and uses it up
//! (lib/errseq.c). What is not certain in these intervals is allowed.

use wtblk_shared::mark::{CallBegin, FileMark, Mark};

use super::attribution::World;
use super::call::{CallRequest, EndedCall};
use super::contract::{Contract, OnFailedWrite};
use super::error_book::Book;
use super::fast_hash::NumberMap;
use super::verdict::CallRef;

/// Checks under way that are followed.
const MAX_SYNCS: usize = 1024;
/// The check that asks the file system.
const SYNCFS: &str = "syncfs";

/// `st_dev` and `st_ino`.
pub type Key = (u64, u64);

/// The failure of one call.
#[derive(Clone, Debug)]
pub struct Unit {
    /// The call.
    pub call: CallRef,
    /// Its test.
    pub test: String,
    /// Its failed data requests, the first few.
    pub failed: Vec<CallRequest>,
    /// First and last failed completion.
    pub from: u64,
    /// See `from`.
    pub to: u64,
    /// The call's end, or the last completion where that came later.
    pub over: u64,
    /// The call returned it.
    pub delivered: bool,
    /// Whether the mapping recorded it, where a check has shown that.
    pub recorded: Option<bool>,
    /// A check may have reported it.
    pub surfaced: bool,
    /// A check that should have known of it and said 0: open file, events.
    pub denied: Option<(u64, [u64; 2])>,
    /// When a check that surely reported it ended.
    pub(super) seen: Option<u64>,
}

/// How a check came out.
#[derive(Clone, Debug)]
pub struct Check {
    /// The open file.
    pub open: u64,
    /// Its file.
    pub key: Key,
    /// `fsync` and so on, or `dsync` for a call.
    pub kind: String,
    /// Begin and end.
    pub at: [u64; 2],
    /// What it returned.
    pub result: i64,
    /// What can be said of it.
    pub outcome: Outcome,
}

/// What can be said of a check.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// As it should be.
    Right,
    /// Nothing, for this reason.
    Unclear(&'static str),
    /// It reported an error although none was left to report; those that this open file
    /// has had reported before.
    FromNowhere(Vec<Unit>),
    /// It reported errors that the contract leaves to the call alone.
    NotItsBusiness(Vec<Unit>),
    /// It reported nothing although these were recorded.
    Missed(Vec<Unit>),
}

/// The table of errors and checks.
#[derive(Clone, Debug)]
pub struct Errors {
    failed_write: OnFailedWrite,
    files: Book,
    /// By `st_dev`, inode 0: what syncfs asks for (`s_wb_err` of the super block, which
    /// `mapping_set_error` sets as well).
    systems: Book,
    /// Open file, begin, kind.
    syncs: NumberMap<(u64, u64, String)>,
}

/// The file system of a file.
fn system((dev, _): Key) -> Key {
    (dev, 0)
}

fn key(b: &CallBegin) -> Key {
    (b.dev, b.ino)
}

impl Errors {
    /// An empty table.
    pub fn new(contract: &Contract) -> Errors {
        Errors {
            failed_write: contract.failed_write,
            files: Book::new(contract),
            systems: Book::new(contract),
            syncs: Default::default(),
        }
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.files.clear();
        self.systems.clear();
        self.syncs.clear();
    }

    /// All units.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        self.files.units()
    }

    /// Forgets a call's unit.
    pub fn take(&mut self, key: Key, call: u64) -> Option<Unit> {
        self.systems.take(system(key), call);
        self.files.take(key, call)
    }

    /// A mark; the check that it ends.
    pub fn mark(&mut self, seq: u64, mark: &Mark, world: &World) -> Option<Check> {
        match mark {
            Mark::Begin(b) => {
                self.files.called(b.open, key(b), seq);
                self.systems.called(b.open, system(key(b)), seq);
                if super::call::has_flag(b, "dsync") {
                    self.files.asks(b.open);
                }
            }
            Mark::Fs { dev, .. } => self.systems.anew((*dev, 0), seq),
            Mark::File(FileMark::Opening { open }) => {
                self.both(|book| book.opening(*open, seq));
            }
            Mark::File(FileMark::Open { open, dev, ino }) => {
                self.files.opened(*open, (*dev, *ino), seq);
                self.systems.opened(*open, (*dev, 0), seq);
            }
            Mark::File(FileMark::Close { open }) => {
                self.files.closed(*open, true);
                self.systems.closed(*open, false);
            }
            Mark::File(FileMark::SyncBegin { sync, open, kind }) => {
                let kind: String = kind.chars().take(32).collect();
                self.asked(&kind).asks(*open);
                let full = self.syncs.len() >= MAX_SYNCS;
                if full || self.syncs.insert(*sync, (*open, seq, kind)).is_some() {
                    self.both(|book| book.lost = true);
                }
            }
            Mark::File(FileMark::SyncEnd { sync, result }) => {
                let (open, begin, kind) = self.syncs.remove(sync)?;
                let of_system = kind == SYNCFS;
                let book = self.asked(&kind);
                let check = book.check(open, kind, [begin, seq], *result, true, world);
                if let Some(check) = check.as_ref().filter(|_| of_system) {
                    self.told_by_system(check.key);
                }
                return check;
            }
            _ => {}
        }
        None
    }

    /// A call ended. The check that it was, where it is a DSYNC call.
    pub fn call_ended(&mut self, c: &EndedCall, judged: bool, world: &World) -> Option<Check> {
        let key = key(&c.begin);
        if !self.files.knows(key) {
            return None;
        }
        let failed = c.data().any(CallRequest::failed);
        if judged && !c.data_in_flight.is_empty() {
            // Settled later; until then nobody need know of an error of it.
            self.files.waits(key);
            self.systems.waits(system(key));
        } else if judged && c.obstacle.is_none() {
            self.add(c, c.end_seq);
        } else if c.requests.iter().any(CallRequest::failed) {
            self.unclear(key, "a call of which not all is known failed on the file");
        }
        if !c.is("dsync") {
            return None;
        }
        let open = c.begin.open;
        let at = [c.begin_seq, c.end_seq];
        let own = failed || !c.data_in_flight.is_empty() || c.end.result == 0;
        let result = c.end.result.min(0);
        let check = self
            .files
            .check(open, "dsync".into(), at, result, !own, world);
        // What a failed DSYNC call says is error-report's.
        check.filter(|_| !own && judged)
    }

    /// The last request of an ended call was completed.
    pub fn call_settled(&mut self, c: &EndedCall, now: u64) {
        if c.data_in_flight.is_empty() {
            return;
        }
        let key = key(&c.begin);
        self.waited(key);
        if c.obstacle.is_some() {
            self.unclear(key, "a call of which not all is known ran on the file");
        } else {
            self.add(c, now.max(c.end_seq));
        }
    }

    /// How the call failed will not be known.
    pub fn never_settled(&mut self, c: &EndedCall) {
        let key = key(&c.begin);
        self.waited(key);
        self.unclear(key, "how a call on the file came out is not known");
    }

    fn add(&mut self, c: &EndedCall, over: u64) {
        let failed: Vec<&CallRequest> = c.data().filter(|r| r.failed()).collect();
        let at = || failed.iter().filter_map(|r| r.done.map(|d| d.seq));
        let (Some(from), Some(to)) = (at().min(), at().max()) else {
            return;
        };
        let result = c.end.result;
        let short = i128::from(result) < i128::from(c.begin.len);
        let delivered = result < 0 || (short && self.failed_write == OnFailedWrite::ErrorOrShort);
        let key = key(&c.begin);
        // By a check that ended before the call did.
        let surfaced =
            self.files.told_since(key, from) || self.systems.told_since(system(key), from);
        let unit = Unit {
            call: c.reference(),
            test: c.test().to_owned(),
            failed: failed.iter().take(4).map(|r| (*r).clone()).collect(),
            from,
            to,
            over,
            delivered,
            recorded: None,
            surfaced,
            denied: None,
            seen: None,
        };
        self.systems.add(system(key), unit.clone());
        self.files.add(key, unit);
    }

    fn both(&mut self, what: impl Fn(&mut Book)) {
        what(&mut self.files);
        what(&mut self.systems);
    }

    /// Whom a check of this kind asks.
    fn asked(&mut self, kind: &str) -> &mut Book {
        match kind {
            SYNCFS => &mut self.systems,
            _ => &mut self.files,
        }
    }

    fn waited(&mut self, key: Key) {
        self.files.waited(key);
        self.systems.waited(system(key));
    }

    fn unclear(&mut self, key: Key, why: &'static str) {
        self.files.unclear(key, why);
        self.systems.unclear(system(key), why);
    }

    /// What syncfs told of, or should have told of, is no secret to the ledger.
    fn told_by_system(&mut self, system: Key) {
        for asked in self.systems.units_of(system) {
            let key = (asked.call.dev, asked.call.ino);
            if let Some(unit) = self.files.unit(key, asked.call.call) {
                unit.surfaced |= asked.surfaced;
                unit.denied = unit.denied.or(asked.denied);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_opens_for_ever_fills_no_memory() {
        let mut errors = Errors::new(&Contract::default());
        let world = World::default();
        for n in 0..20_000u64 {
            let kind = "fsync".to_owned();
            let marks = [
                FileMark::Opening { open: 2 * n },
                FileMark::Open {
                    open: 2 * n + 1,
                    dev: 8,
                    ino: n,
                },
                FileMark::SyncBegin {
                    sync: n,
                    open: 2 * n + 1,
                    kind,
                },
            ];
            for mark in marks {
                errors.mark(n, &Mark::File(mark), &world);
            }
        }
        assert!(errors.files.lost && errors.systems.lost);
        assert!(errors.files.is_bounded() && errors.systems.is_bounded());
        assert!(errors.syncs.len() <= MAX_SYNCS);
    }

    /// Nobody has told that they were opened.
    #[test]
    fn open_files_that_only_their_calls_tell_of_are_bounded_too() {
        let mut errors = Errors::new(&Contract::default());
        let world = World::default();
        for n in 0..20_000u64 {
            let call = CallBegin {
                call: n,
                open: n,
                dev: 8,
                ino: 1,
                ..CallBegin::default()
            };
            errors.mark(n, &Mark::Begin(call), &world);
        }
        assert!(errors.files.is_bounded() && errors.systems.is_bounded());
    }
}
