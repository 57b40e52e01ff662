// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Errors of one kind of thing that records them (a file's mapping, a file
//! system) and the open files that ask it: `lib/errseq.c` seen from outside.

use super::attribution::World;
use super::call::CallRequest;
use super::contract::{Contract, EIO, Errnos, FsyncRepeats};
use super::errors::{Check, Key, Outcome, Unit};
use super::fast_hash::{NumberMap, PairMap};

/// Failed calls followed of one file or file system.
const MAX_UNITS: usize = 64;
/// Files and open files followed.
const MAX_FILES: usize = 1024;
const MAX_OPENS: usize = 4096;
/// What surely looks for errors and uses them up: the first five ask the file
/// (`file_check_and_advance_wb_err`), the last one its file system (fs/sync.c).
const ASKS: [&str; 6] = [
    "fsync",
    "fdatasync",
    "msync",
    "dsync",
    "sync_file_range_wait",
    "syncfs",
];

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

/// A file, or a file system.
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

/// Errors by what recorded them, and open files.
#[derive(Clone, Debug)]
pub(super) struct Book {
    repeats: FsyncRepeats,
    errnos: Errnos,
    files: PairMap<File>,
    opens: NumberMap<Open>,
    /// More of something than is followed.
    pub lost: bool,
}

impl Book {
    /// An empty book.
    pub fn new(contract: &Contract) -> Book {
        Book {
            repeats: contract.fsync_repeats,
            errnos: contract.errnos.clone(),
            files: Default::default(),
            opens: Default::default(),
            lost: false,
        }
    }

    /// Nothing is known any more.
    pub fn clear(&mut self) {
        self.files.clear();
        self.opens.clear();
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

    /// It is another one from now on: a new mount.
    pub fn anew(&mut self, key: Key, seq: u64) {
        if let Some(file) = self.file(key) {
            *file = File {
                pinned: Some(seq),
                ..File::default()
            };
        }
    }

    /// A call by this open file.
    pub fn called(&mut self, open: u64, key: Key, seq: u64) {
        self.file(key);
        let room = self.opens.len() < MAX_OPENS;
        match self.opens.get_mut(&open) {
            Some(open) => {
                open.key.get_or_insert(key);
            }
            None if room => {
                let state = Open {
                    key: Some(key),
                    since: seq,
                    ..Open::default()
                };
                self.opens.insert(open, state);
            }
            None => self.lost = true,
        }
    }

    /// It will be opened.
    pub fn opening(&mut self, open: u64, seq: u64) {
        let begun = Open {
            after: Some(seq),
            since: u64::MAX,
            ..Open::default()
        };
        if self.opens.len() >= MAX_OPENS || self.opens.insert(open, begun).is_some() {
            self.lost = true;
        }
    }

    /// It is open: as long as one is, what was recorded is kept.
    pub fn opened(&mut self, open: u64, key: Key, seq: u64) {
        if self.opens.len() >= MAX_OPENS && !self.opens.contains_key(&open) {
            self.lost = true;
            return;
        }
        let state = self.opens.entry(open).or_default();
        state.key = Some(key);
        state.since = seq;
        if let Some(file) = self.file(key) {
            file.opens += 1;
            file.pinned.get_or_insert(seq);
        }
    }

    /// It is closed. `evicted`: with the last one what was recorded may be forgotten.
    pub fn closed(&mut self, open: u64, evicted: bool) {
        let key = self.opens.remove(&open).and_then(|o| o.key);
        if let Some(file) = key.and_then(|k| self.files.get_mut(&k)) {
            file.opens = file.opens.saturating_sub(1);
            if file.opens == 0 && evicted {
                file.pinned = None;
            }
        }
    }

    /// Whether it is followed.
    pub fn knows(&mut self, key: Key) -> bool {
        self.file(key).is_some()
    }

    /// A call ended with requests under way: until they are over nobody need know of an error of it.
    pub fn waits(&mut self, key: Key) {
        if let Some(file) = self.file(key) {
            file.pending += 1;
        }
    }

    /// They are over.
    pub fn waited(&mut self, key: Key) {
        if let Some(file) = self.file(key) {
            file.pending = file.pending.saturating_sub(1);
        }
    }

    /// What fails there is not known any more, for this reason.
    pub fn unclear(&mut self, key: Key, why: &'static str) {
        if let Some(file) = self.file(key) {
            file.unclear = Some(why);
        }
    }

    /// Whether a check that ended since then may have told somebody of an error.
    pub fn told_since(&self, key: Key, seq: u64) -> bool {
        self.files.get(&key).is_some_and(|f| f.checked >= seq)
    }

    /// A call failed.
    pub fn add(&mut self, key: Key, unit: Unit) {
        if let Some(file) = self.file(key) {
            if file.units.len() < MAX_UNITS {
                file.units.push(unit);
            } else {
                file.unclear = Some("too many failed calls on the file");
            }
        }
    }

    /// The units of one.
    pub fn units_of(&self, key: Key) -> &[Unit] {
        self.files.get(&key).map_or(&[], |f| &f.units)
    }

    /// A call's unit.
    pub fn unit(&mut self, key: Key, call: u64) -> Option<&mut Unit> {
        let file = self.files.get_mut(&key)?;
        file.units.iter_mut().find(|u| u.call.call == call)
    }

    /// Whether it is within its bounds.
    #[cfg(test)]
    pub fn is_bounded(&self) -> bool {
        self.files.len() <= MAX_FILES && self.opens.len() <= MAX_OPENS
    }

    fn file(&mut self, key: Key) -> Option<&mut File> {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&key) {
            self.lost = true;
            return None;
        }
        Some(self.files.entry(key).or_default())
    }

    /// A check begins.
    pub fn asks(&mut self, open: u64) {
        if let Some(open) = self.opens.get_mut(&open) {
            open.busy += 1;
            open.beside |= open.busy > 1;
        }
    }

    /// A check ended. `certain`: it surely asked.
    pub fn check(
        &mut self,
        number: u64,
        kind: String,
        at: [u64; 2],
        result: i64,
        certain: bool,
        world: &World,
    ) -> Option<Check> {
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
        // sync_file_range asks only where it waits.
        let asks = ASKS.contains(&kind.as_str());
        let certain = certain && !beside && asks && (result >= 0 || reports);
        let checked_before = file.checked;
        // Who was told nothing has used up nothing.
        if result < 0 {
            open.maybe = end;
            file.checked = end;
        }
        if certain {
            open.sure = Some((begin, end));
        }
        let why = if beside {
            Some("two checks of the open file ran beside each other")
        } else if !asks {
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
            if world.failures_unseen() {
                return answer(Outcome::Unclear(
                    "it reported an error, and which requests failed is not known: events are \
                     missing, or the device stopped (a log of dm-log-writes knows no failures)",
                ));
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
            // Recorded with its completion; what the call says of it is still to come.
            if failed_and_open(world, key) {
                return answer(Outcome::Unclear(
                    "it reported an error while a call that had failed was not over",
                ));
            }
            if new.is_empty() {
                return answer(Outcome::FromNowhere(spent));
            }
            let private = |u: &&mut Unit| {
                u.delivered && (self.repeats == FsyncRepeats::Never || u.recorded == Some(false))
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
                FsyncRepeats::Once => old || unseen,
                FsyncRepeats::Never => false,
                FsyncRepeats::Either => u.recorded == Some(true) && old && !own,
            };
            if must {
                missed.push(u.clone());
            } else if self.repeats == FsyncRepeats::Either && u.delivered && old && !own {
                u.recorded.get_or_insert(false);
            }
        }
        if missed.is_empty() {
            return answer(Outcome::Right);
        }
        answer(Outcome::Missed(missed))
    }
}

/// Whether a request of a call that has not ended has failed, of this file or (inode 0) file system.
fn failed_and_open(world: &World, (dev, ino): Key) -> bool {
    world
        .open_calls()
        .filter(|c| c.begin.dev == dev && (ino == 0 || c.begin.ino == ino))
        .any(|c| c.requests.iter().any(CallRequest::failed))
}
