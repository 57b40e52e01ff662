// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `size`: a file is never longer than what was written to it.

use std::collections::BTreeMap;

use serde_json::json;
use wtblk_shared::mark::{FileMark, Mark};

use super::attribution::World;
use super::call::{CallRequest, Class, EndedCall};
use super::contract::{Contract, IsizeAfterError};
use super::fast_hash::{NumberMap, PairMap};
use super::promise::{About, Promise};
use super::verdict::{CallRef, Evidence, Finding, Ledger};
use crate::trace::event::Op;

/// The promise in words.
pub static ABOUT: About = About {
    name: "size",
    promised: "The file is not longer than what was written to it: its size comes from the bytes of \
               the call and not from the blocks they lie in.",
    judged_on: "i_size at the begin and end of calls and in stat marks, and what other marked calls \
                and changes of the file may have done to it",
    broken_when: "i_size at a call's end, or in a stat mark later (after a remount, say), is beyond all \
                  sizes that were told before and the end of what was written; for a failed call the \
                  contract's isize_after_error says what it may and must be",
    not_checked_when: "the guest does not say files=marked: another writer may have made the file \
                       longer; events are missing; a call was followed no more; too many files",
    comes_from: "pwrite(2): a write extends the file to offset + count; the size is taken from the \
                 original range and not from the rounded one, also on disk",
    broken_by: "i_size, in memory or on disk, from the end of the last block: the defect eof-extend",
};

/// Files followed; a guest that has more is not checked for the others.
const MAX_FILES: usize = 4096;
/// Calls of a file, and changes of all, that are open at a time.
const MAX_OPEN: usize = 1024;

type Key = (u64, u64);

/// What is known of a file.
#[derive(Debug, Default)]
struct File {
    /// The greatest size that it rightly had so far.
    ceiling: u64,
    /// A judged call was made: from then on the size is told whole.
    judged: Option<CallRef>,
    /// Calls and changes under way, with the end of what they may write.
    calls: BTreeMap<u64, u64>,
    changes: BTreeMap<u64, u64>,
    /// When something last began or ended that is no judged call.
    disturbed: u64,
}

impl File {
    /// The greatest size that others than `call` may have made.
    fn others(&self, call: Option<u64>) -> u64 {
        let calls = self.calls.iter().filter(|(n, _)| Some(**n) != call);
        let reach = calls.chain(&self.changes).map(|(_, end)| *end).max();
        self.ceiling.max(reach.unwrap_or(0))
    }
}

/// The judge.
#[derive(Debug)]
pub(super) struct Size {
    after_error: IsizeAfterError,
    files: PairMap<File>,
    /// Of open calls and changes, their files.
    of_call: NumberMap<Key>,
    of_change: NumberMap<Key>,
}

/// The judge by this contract.
pub(super) fn judge(contract: &Contract) -> Box<dyn Promise> {
    Box::new(Size {
        after_error: contract.isize_after_error,
        files: Default::default(),
        of_call: Default::default(),
        of_change: Default::default(),
    })
}

impl Promise for Size {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        match mark {
            Mark::Begin(b) => {
                self.call_lost(b.call);
                let Some(file) = self.file((b.dev, b.ino)) else {
                    return;
                };
                if file.calls.len() < MAX_OPEN {
                    file.ceiling = file.ceiling.max(b.isize);
                    file.calls.insert(b.call, b.off.saturating_add(b.len));
                    self.of_call.insert(b.call, (b.dev, b.ino));
                }
            }
            Mark::File(FileMark::ChangeBegin(c)) => {
                self.end_change(c.change);
                let grows = matches!(c.kind.as_str(), "write" | "extend" | "truncate" | "reflink");
                let reach = c.off.saturating_add(c.len);
                let room = self.of_change.len() < MAX_OPEN;
                let Some(file) = self.file((c.dev, c.ino)) else {
                    return;
                };
                file.disturbed = seq;
                if room {
                    file.changes.insert(c.change, if grows { reach } else { 0 });
                    self.of_change.insert(c.change, (c.dev, c.ino));
                } else {
                    // It will not be followed: whatever it may do is allowed from now on.
                    file.ceiling = u64::MAX;
                }
            }
            Mark::File(FileMark::ChangeEnd { change, .. }) => self.end_change(*change),
            Mark::File(FileMark::Stat {
                dev,
                ino,
                isize,
                at,
            }) => self.stat(seq, (*dev, *ino), *isize, at, world, ledger),
            _ => {}
        }
    }

    fn any_call_ended(&mut self, c: &EndedCall, judged: bool, w: &World, l: &mut Ledger) {
        let number = c.begin.call;
        let key = (c.begin.dev, c.begin.ino);
        let known = self.of_call.remove(&number) == Some(key);
        let after_error = self.after_error;
        let Some(file) = self.files.get_mut(&key).filter(|_| known) else {
            if judged {
                l.not_checked(
                    c.test(),
                    &ABOUT,
                    "the call's file was not followed all the time",
                );
            }
            return;
        };
        if judged {
            match w.facts.files_unmarked() {
                Some(why) => l.not_checked(c.test(), &ABOUT, why),
                None if w.lost_calls => {
                    l.not_checked(c.test(), &ABOUT, "a call was followed no more");
                }
                None => match wrong(c, file, after_error) {
                    Some(finding) => l.broken(&ABOUT, finding),
                    None => l.held(c.test(), &ABOUT),
                },
            }
            file.judged = Some(c.reference());
        } else {
            file.disturbed = c.end_seq;
        }
        file.calls.remove(&number);
        // What is wrong is told once: from here on it is how the file is.
        file.ceiling = file.ceiling.max(c.end.isize);
        let written = u64::try_from(c.end.result).unwrap_or(0);
        file.ceiling = file.ceiling.max(reach(c, written));
        // Of a failed call, too: its data may be there and its error that of the log, and after a remount the
        // file is as long as the log says.
        if judged && own(c, after_error) > file.ceiling {
            file.ceiling = file.ceiling.max(arrived(c));
        }
    }

    fn call_lost(&mut self, call: u64) {
        if let Some(key) = self.of_call.remove(&call)
            && let Some(file) = self.files.get_mut(&key)
            && let Some(reach) = file.calls.remove(&call)
        {
            // It may still run.
            file.ceiling = file.ceiling.max(reach);
        }
    }

    fn interrupted(&mut self, lost: bool) {
        if lost {
            self.reboot();
        }
    }

    fn reboot(&mut self) {
        self.files.clear();
        self.of_call.clear();
        self.of_change.clear();
    }
}

impl Size {
    fn file(&mut self, key: Key) -> Option<&mut File> {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&key) {
            return None;
        }
        Some(self.files.entry(key).or_default())
    }

    fn end_change(&mut self, change: u64) {
        if let Some(key) = self.of_change.remove(&change)
            && let Some(file) = self.files.get_mut(&key)
            && let Some(reach) = file.changes.remove(&change)
        {
            file.ceiling = file.ceiling.max(reach);
        }
    }

    fn stat(&mut self, seq: u64, key: Key, isize: u64, at: &str, w: &World, l: &mut Ledger) {
        let Some(file) = self.files.get_mut(&key) else {
            return;
        };
        let Some(call) = file.judged.clone() else {
            file.ceiling = file.ceiling.max(isize);
            return;
        };
        let most = file.others(None);
        if let Some(why) = w.facts.files_unmarked() {
            l.not_checked(&w.test, &ABOUT, why);
        } else if w.lost_calls {
            l.not_checked(&w.test, &ABOUT, "a call was followed no more");
        } else if isize <= most {
            l.held(&w.test, &ABOUT);
        } else {
            let at: String = at.chars().take(64).collect();
            let happened = format!(
                "i_size is {isize} at event {seq} ({at}), {} bytes beyond the {most} that the file ever \
                 rightly had; the last call on it was {}",
                isize - most,
                call.call
            );
            let details = [("isize", json!(isize)), ("most", json!(most))];
            let evidence = [Evidence::Marks];
            l.broken(
                &ABOUT,
                ABOUT.finding(&w.test, Some(call), happened, &evidence, vec![seq], details),
            );
        }
        file.ceiling = file.ceiling.max(isize);
    }
}

/// Where the call's first `n` bytes end; 0 where there are none.
fn reach(c: &EndedCall, n: u64) -> u64 {
    if n > 0 {
        c.begin.off.saturating_add(n)
    } else {
        0
    }
}

/// Whether the call failed, or fell short and may have met an error.
fn has_failed(c: &EndedCall) -> bool {
    let short = i128::from(c.end.result) < i128::from(c.begin.len);
    // Whose requests these are is not known without tags: then nothing speaks against an error.
    c.end.result < 0
        || (short
            && (c.obstacle.or(c.facts.tags_inexact).is_some()
                || c.requests.iter().any(CallRequest::failed)))
}

/// The greatest size that the call itself may have made, by what it returned and the contract.
fn own(c: &EndedCall, after_error: IsizeAfterError) -> u64 {
    let written = u64::try_from(c.end.result).unwrap_or(0).min(c.begin.len);
    match after_error {
        _ if !has_failed(c) => reach(c, written),
        IsizeAfterError::Old => reach(c, written),
        IsizeAfterError::Extended | IsizeAfterError::Either => reach(c, c.begin.len),
    }
}

/// What is wrong with the size at the end of a call.
fn wrong(c: &EndedCall, file: &File, after_error: IsizeAfterError) -> Option<Finding> {
    let begin = &c.begin;
    let own = own(c, after_error);
    let failed = has_failed(c);
    let most = file.others(Some(begin.call)).max(own);
    let isize = c.end.isize;
    let (what, bound) = if isize > most {
        ("beyond", most)
    } else {
        let least = sent(c)?;
        let undisturbed = file.disturbed < c.begin_seq && file.changes.is_empty();
        let must = after_error == IsizeAfterError::Extended && failed && undisturbed;
        if !must || isize >= least {
            return None;
        }
        ("short of", least)
    };
    let happened = format!(
        "i_size was {} before the call and is {isize} after it, {} bytes {what} {bound}; the call wrote \
         {} bytes at {} and returned {}",
        begin.isize,
        isize.abs_diff(bound),
        begin.len,
        begin.off,
        c.end.result,
    );
    Some(ABOUT.finding(
        c.test(),
        Some(c.reference()),
        happened,
        &[Evidence::Marks],
        vec![c.begin_seq, c.end_seq],
        [
            ("isize_before", json!(begin.isize)),
            ("isize", json!(isize)),
            ("bound", json!(bound)),
        ],
    ))
}

/// How far into the file data of the call may have come to the disk.
fn arrived(c: &EndedCall) -> u64 {
    let end = reach(c, c.begin.len);
    if c.obstacle.is_some() || c.data_unclear().is_some() {
        return end;
    }
    // Where nobody tells the places at the end, a write of the call may have been data in a new one.
    let placed = |r: &CallRequest| r.op != Op::Write || matches!(r.class, Class::Data(_));
    if c.end.extents.is_none() && c.requests.iter().any(|r| !placed(r) && !r.failed()) {
        return end;
    }
    let there = c.data().filter(|r| !r.failed());
    let fragments = there.flat_map(|r| r.fragments());
    fragments
        .map(|f| f.file + f.len)
        .max()
        .unwrap_or(0)
        .min(end)
}

/// Where the data requests show that the call had come to in the file: what is
/// sent was copied before, and the size moved with it.
fn sent(c: &EndedCall) -> Option<u64> {
    if c.obstacle.is_some() || c.data_unclear().is_some() {
        return None;
    }
    let fragments = c.data().flat_map(|r| r.fragments());
    let end = fragments.map(|f| f.file + f.len).max()?;
    Some(end.min(c.begin.off.saturating_add(c.begin.len)))
}
