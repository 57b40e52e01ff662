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

use wtblk_shared::mark::{FileMark, Mark};

use super::attribution::World;
use super::call::{CallRequest, EndedCall};
use super::contract::{Contract, EIO, Errnos, OnFailedWrite};
use super::fast_hash::{NumberMap, PairMap};
use super::verdict::CallRef;

/// Failed calls followed of one file.
const MAX_UNITS: usize = 64;
/// Files, open files and questions followed.
const MAX_FILES: usize = 1024;
const MAX_OPENS: usize = 4096;
const MAX_SYNCS: usize = 1024;

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
    seen: Option<u64>,
}

/// An open file description.
#[derive(Clone, Debug, Default)]
struct Open {
    key: Option<Key>,
    /// Not open before.
    after: Option<u64>,
    /// Surely open since.
    since: u64,
    /// Begin and end of the last certain check.
    sure: Option<(u64, u64)>,
    /// End of the last one that may have used an error up.
    maybe: u64,
    /// Checks under way.
    busy: u32,
    /// Checks ran beside each other.
    beside: bool,
}

/// A file.
#[derive(Clone, Debug, Default)]
struct File {
    units: Vec<Unit>,
    /// More failed than are followed, or how a call failed is not known.
    unclear: Option<&'static str>,
    /// End of the last check that may have told anybody of an error.
    checked: u64,
    /// Calls that have ended and whose last requests are under way.
    pending: u32,
    /// How many are surely open, and since when at least one was.
    opens: u32,
    pinned: Option<u64>,
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
    repeats: super::contract::FsyncRepeats,
    failed_write: OnFailedWrite,
    errnos: Errnos,
    files: PairMap<File>,
    opens: NumberMap<Open>,
    /// Open file, begin, kind.
    syncs: NumberMap<(u64, u64, String)>,
    /// More of something than is followed.
    lost: bool,
}

impl Errors {
    /// An empty table.
    pub fn new(contract: &Contract) -> Errors {
        Errors {
            repeats: contract.fsync_repeats,
            failed_write: contract.failed_write,
            errnos: contract.errnos.clone(),
            files: Default::default(),
            opens: Default::default(),
            syncs: Default::default(),
            lost: false,
        }
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.files.clear();
        self.opens.clear();
        self.syncs.clear();
        self.lost = false;
    }

    /// All units.
    pub fn units(&self) -> impl Iterator<Item = &Unit> {
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_unstable_by_key(|(key, _)| **key);
        files.into_iter().flat_map(|(_, f)| &f.units)
    }

    /// Forgets a call's unit.
    pub fn take(&mut self, key: Key, call: u64) -> Option<Unit> {
        let file = self.files.get_mut(&key)?;
        let at = file.units.iter().position(|u| u.call.call == call)?;
        // Whoever asks later may still be told of it.
        file.unclear = Some("too many calls ago");
        Some(file.units.remove(at))
    }

    /// A mark; the check that it ends.
    pub fn mark(&mut self, seq: u64, mark: &Mark, world: &World) -> Option<Check> {
        match mark {
            Mark::Begin(b) => {
                let key = (b.dev, b.ino);
                self.file(key);
                let room = self.opens.len() < MAX_OPENS;
                match self.opens.get_mut(&b.open) {
                    Some(open) => {
                        open.key.get_or_insert(key);
                    }
                    None if room => {
                        let open = Open {
                            key: Some(key),
                            since: seq,
                            ..Open::default()
                        };
                        self.opens.insert(b.open, open);
                    }
                    None => self.lost = true,
                }
                if super::call::has_flag(b, "dsync") {
                    self.asks(b.open);
                }
            }
            Mark::File(FileMark::Opening { open }) => {
                let begun = Open {
                    after: Some(seq),
                    since: u64::MAX,
                    ..Open::default()
                };
                if self.opens.len() >= MAX_OPENS || self.opens.insert(*open, begun).is_some() {
                    self.lost = true;
                }
            }
            Mark::File(FileMark::Open { open, dev, ino }) => {
                let key = (*dev, *ino);
                if self.opens.len() >= MAX_OPENS && !self.opens.contains_key(open) {
                    self.lost = true;
                    return None;
                }
                let state = self.opens.entry(*open).or_default();
                state.key = Some(key);
                state.since = seq;
                if let Some(file) = self.file(key) {
                    file.opens += 1;
                    file.pinned.get_or_insert(seq);
                }
            }
            Mark::File(FileMark::Close { open }) => {
                let key = self.opens.remove(open).and_then(|o| o.key);
                if let Some(file) = key.and_then(|k| self.files.get_mut(&k)) {
                    file.opens = file.opens.saturating_sub(1);
                    if file.opens == 0 {
                        file.pinned = None;
                    }
                }
            }
            Mark::File(FileMark::SyncBegin { sync, open, kind }) => {
                self.asks(*open);
                let kind: String = kind.chars().take(32).collect();
                let full = self.syncs.len() >= MAX_SYNCS;
                if full || self.syncs.insert(*sync, (*open, seq, kind)).is_some() {
                    self.lost = true;
                }
            }
            Mark::File(FileMark::SyncEnd { sync, result }) => {
                let (open, begin, kind) = self.syncs.remove(sync)?;
                return self.check(open, kind, [begin, seq], *result, true, world);
            }
            _ => {}
        }
        None
    }

    /// A call ended. The check that it was, where it is a DSYNC call.
    pub fn call_ended(&mut self, c: &EndedCall, judged: bool, world: &World) -> Option<Check> {
        let key = (c.begin.dev, c.begin.ino);
        self.file(key)?;
        let failed = c.data().any(CallRequest::failed);
        let file = self.files.get_mut(&key)?;
        if judged && !c.data_in_flight.is_empty() {
            // Settled later; until then nobody need know of an error of it.
            file.pending += 1;
        } else if judged && c.obstacle.is_none() {
            self.add(c, c.end_seq);
        } else if c.requests.iter().any(CallRequest::failed) {
            file.unclear = Some("a call of which not all is known failed on the file");
        }
        if !c.is("dsync") {
            return None;
        }
        let open = c.begin.open;
        let at = [c.begin_seq, c.end_seq];
        let own = failed || !c.data_in_flight.is_empty() || c.end.result == 0;
        let result = c.end.result.min(0);
        let check = self.check(open, "dsync".into(), at, result, !own, world);
        // What a failed DSYNC call says is error-report's.
        check.filter(|_| !own && judged)
    }

    /// The last request of an ended call was completed.
    pub fn call_settled(&mut self, c: &EndedCall, now: u64) {
        if c.data_in_flight.is_empty() {
            return;
        }
        if let Some(file) = self.files.get_mut(&(c.begin.dev, c.begin.ino)) {
            file.pending = file.pending.saturating_sub(1);
            if c.obstacle.is_some() {
                file.unclear = Some("a call of which not all is known ran on the file");
            } else {
                self.add(c, now.max(c.end_seq));
            }
        }
    }

    /// How the call failed will not be known.
    pub fn never_settled(&mut self, c: &EndedCall) {
        if let Some(file) = self.file((c.begin.dev, c.begin.ino)) {
            file.pending = file.pending.saturating_sub(1);
            file.unclear = Some("how a call on the file came out is not known");
        }
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
        let unit = Unit {
            call: c.reference(),
            test: c.test().to_owned(),
            failed: failed.iter().take(4).map(|r| (*r).clone()).collect(),
            from,
            to,
            over,
            delivered,
            recorded: None,
            surfaced: false,
            denied: None,
            seen: None,
        };
        if let Some(file) = self.file((c.begin.dev, c.begin.ino)) {
            if file.units.len() < MAX_UNITS {
                file.units.push(unit);
            } else {
                file.unclear = Some("too many failed calls on the file");
            }
        }
    }

    fn file(&mut self, key: Key) -> Option<&mut File> {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&key) {
            self.lost = true;
            return None;
        }
        Some(self.files.entry(key).or_default())
    }

    fn asks(&mut self, open: u64) {
        if let Some(open) = self.opens.get_mut(&open) {
            open.busy += 1;
            open.beside |= open.busy > 1;
        }
    }

    fn check(
        &mut self,
        number: u64,
        kind: String,
        at: [u64; 2],
        result: i64,
        certain: bool,
        world: &World,
    ) -> Option<Check> {
        use super::contract::FsyncRepeats as Repeats;
        let open = self.opens.get_mut(&number)?;
        open.busy = open.busy.saturating_sub(1);
        let beside = open.beside;
        open.beside &= open.busy > 0;
        let key = open.key?;
        let file = self.files.get_mut(&key)?;
        let asker = open.clone();
        let [begin, end] = at;
        let errno = i32::try_from(result.unsigned_abs()).unwrap_or(0);
        let reports = result < 0
            && (errno == EIO || self.errnos.by_status.values().any(|s| s.contains(&errno)));
        // sync_file_range need not ask, and syncfs asks somebody else.
        let asks_file = matches!(kind.as_str(), "fsync" | "fdatasync" | "msync" | "dsync");
        let certain = certain && !beside && asks_file && (result >= 0 || reports);
        let checked_before = file.checked;
        // Who was told nothing has used up nothing.
        if kind != "syncfs" && result < 0 {
            open.maybe = end;
            file.checked = end;
        }
        if certain {
            open.sure = Some((begin, end));
        }
        let why = if beside {
            Some("two checks of the open file ran beside each other")
        } else if !asks_file {
            Some("what this call asks for is not followed")
        } else if result < 0 && !reports {
            Some("an errno that no device causes")
        } else if self.lost || world.lost_calls {
            Some("more calls, files or checks than are followed")
        } else if file.pending > 0 {
            Some("requests of a call that has ended are under way")
        } else {
            file.unclear
        };
        let answer = |outcome| {
            Some(Check {
                open: number,
                key,
                kind,
                at,
                result,
                outcome,
            })
        };
        // New to this open file, as far as is known.
        let may = |u: &Unit| match (asker.sure, asker.after) {
            (Some((before, _)), _) => u.to >= before,
            (None, Some(opened)) if asker.since >= u.from => u.seen.is_none_or(|s| s >= opened),
            _ => true,
        };
        if reports {
            let other = world.unexplained_failures() || world.shutdown_noted();
            let spent: Vec<Unit> = file.units.iter().filter(|u| !may(u)).cloned().collect();
            let mut new: Vec<&mut Unit> = file.units.iter_mut().filter(|u| may(u)).collect();
            for u in &mut new {
                u.surfaced = true;
            }
            if let Some(why) = why {
                return answer(Outcome::Unclear(why));
            }
            if other {
                return answer(Outcome::Unclear(
                    "it reported an error, and a request of no call failed in this boot, or a \
                     shutdown was noted",
                ));
            }
            if !certain {
                return answer(Outcome::Unclear("the call's own writes failed"));
            }
            if new.is_empty() {
                return answer(Outcome::FromNowhere(spent));
            }
            let private = |u: &&mut Unit| {
                u.delivered && (self.repeats == Repeats::Never || u.recorded == Some(false))
            };
            if new.iter().all(private) {
                let list = new.iter().map(|u| (**u).clone()).collect();
                return answer(Outcome::NotItsBusiness(list));
            }
            for u in new.iter_mut().filter(|u| u.to < begin) {
                u.seen.get_or_insert(end);
            }
            if let [only] = new.as_mut_slice() {
                only.recorded = Some(true);
            }
            return answer(Outcome::Right);
        }
        if !certain || result < 0 {
            return answer(Outcome::Unclear(
                why.unwrap_or("the call's own writes failed"),
            ));
        }
        let why = why.or_else(|| world.facts.files_unmarked());
        if let Some(why) = why {
            return answer(Outcome::Unclear(why));
        }
        let pinned = file.pinned.unwrap_or(u64::MAX);
        let mut missed = Vec::new();
        for u in &mut file.units {
            // Surely recorded before it, if at all, and surely not given to this open file yet.
            if u.to >= begin || u.over >= begin || (asker.maybe > 0 && asker.maybe >= u.from) {
                continue;
            }
            let old = asker.since < u.from;
            // Who opens after an error that nobody has seen yet is told of it, too.
            let unseen = pinned < u.from
                && asker.after.is_some_and(|a| a > u.over)
                && checked_before < u.from;
            if old {
                u.denied.get_or_insert((number, at));
            }
            let own = u.call.open == number;
            let must = match self.repeats {
                _ if !u.delivered => false,
                Repeats::Once => old || unseen,
                Repeats::Never => false,
                Repeats::Either => u.recorded == Some(true) && old && !own,
            };
            if must {
                missed.push(u.clone());
            } else if self.repeats == Repeats::Either && u.delivered && old && !own {
                u.recorded.get_or_insert(false);
            }
        }
        if missed.is_empty() {
            return answer(Outcome::Right);
        }
        answer(Outcome::Missed(missed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_opens_for_ever_fills_no_memory() {
        let mut errors = Errors::new(&Contract::default());
        let world = World::default();
        for n in 0..3 * MAX_OPENS as u64 {
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
        assert!(errors.lost);
        assert!(errors.opens.len() <= MAX_OPENS);
        assert!(errors.files.len() <= MAX_FILES);
        assert!(errors.syncs.len() <= MAX_SYNCS);
    }
}
