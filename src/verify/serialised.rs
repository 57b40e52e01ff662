// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `serialised`: who takes blocks away, or freezes the file system, waits for the calls in flight.

use std::collections::VecDeque;
use std::ops::Range;

use serde_json::json;
use wtblk_shared::mark::{Change, FileMark, Mark};

use super::attribution::World;
use super::call::{CallRequest, EndedCall};
use super::contract::Contract;
use super::promise::{About, Promise, request_json};
use super::verdict::{Evidence, Ledger};

/// The promise in words.
pub static ABOUT: About = About {
    name: "serialised",
    promised: "While data of a call is in flight its blocks are not given back (truncate, hole punch), and \
               its file system is not frozen.",
    judged_on: "the marks around a truncate, hole punch or freeze, and the data requests in flight at them: \
                the comparison is exact, since a completion is numbered before the guest can see it",
    broken_when: "a data request that was in flight before a truncate or punch of its blocks began is still \
                  in flight when that has succeeded; or one is in flight, or arrives, after FIFREEZE \
                  succeeded and before FITHAW",
    not_checked_when: "the guest does not say files=marked; the backend stopped while the call ran; extents \
                       unknown, or a request lies partly outside. Nothing is decided of calls beside which \
                       none of this happened",
    comes_from: "inode_dio_wait() in truncate and fallocate, and the freeze protection that the kiocb keeps \
                 until ki_complete (kiocb_start_write, fs/aio.c, io_uring/rw.c); writeback of the folios \
                 keeps both waiting, too",
    broken_by: "an asynchronous call that gives its protection back when it has been submitted: the defects \
                truncate and freeze",
};

/// Changes and freezes that are remembered; nothing is decided of older ones.
const MAX: usize = 1024;

/// Something that has to wait for what is in flight.
#[derive(Clone, Debug)]
struct Taking {
    what: What,
    /// Its begin mark.
    begin: u64,
    /// The mark that it has succeeded.
    done: Option<u64>,
    /// The thaw.
    undone: Option<u64>,
}

#[derive(Clone, Debug)]
enum What {
    /// Bytes of a file are taken away by this change.
    Blocks {
        change: u64,
        file: (u64, u64),
        bytes: Range<u64>,
        kind: String,
    },
    /// A file system is frozen.
    Freeze { dev: u64 },
}

impl Taking {
    fn in_words(&self) -> String {
        match &self.what {
            What::Blocks { change, kind, .. } => format!("the {kind} (change {change})"),
            What::Freeze { .. } => "the freeze".to_owned(),
        }
    }

    /// Whether it is about this data request of the call.
    fn concerns(&self, call: &EndedCall, r: &CallRequest) -> bool {
        match &self.what {
            What::Freeze { dev } => *dev == call.begin.dev,
            What::Blocks { file, bytes, .. } => {
                // Of blocks that are only touched a part is zeroed, nothing is given back.
                let block = call.begin.bsize.max(1);
                let start = bytes
                    .start
                    .checked_next_multiple_of(block)
                    .unwrap_or(u64::MAX);
                let end = bytes.end / block * block;
                let inside = |from: u64, len: u64| from < end && start < from.saturating_add(len);
                start < end
                    && *file == (call.begin.dev, call.begin.ino)
                    && r.fragments().iter().any(|f| inside(f.file, f.len))
            }
        }
    }

    /// Whether the request should have kept it waiting, and has not.
    fn passed(&self, r: &CallRequest) -> bool {
        let Some(done) = self.done else { return false };
        match self.what {
            What::Blocks { .. } => r.id < self.begin && in_flight(r, done),
            What::Freeze { .. } => {
                let frozen = r.id > done && self.undone.is_none_or(|thaw| r.id < thaw);
                in_flight(r, done) || frozen
            }
        }
    }

    /// Whether it met the call at all: it began while the request was in flight, or was there when
    /// the call began.
    fn met(&self, call: &EndedCall, r: &CallRequest) -> bool {
        let began_frozen = matches!(self.what, What::Freeze { .. })
            && self.done.is_some_and(|done| done < call.begin_seq)
            && self.undone.is_none_or(|thaw| call.begin_seq < thaw);
        in_flight(r, self.begin) || began_frozen
    }
}

/// Whether the request was in flight at this event.
fn in_flight(r: &CallRequest, seq: u64) -> bool {
    r.id < seq && r.done.is_none_or(|d| d.seq > seq)
}

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Serialised::default())
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct Serialised {
    /// By their begin.
    takings: VecDeque<Taking>,
}

impl Serialised {
    fn begin(&mut self, seq: u64, what: What) {
        if self.takings.len() == MAX {
            self.takings.pop_front();
        }
        self.takings.push_back(Taking {
            what,
            begin: seq,
            done: None,
            undone: None,
        });
    }

    fn change(&mut self, seq: u64, c: &Change) {
        let bytes = match c.kind.as_str() {
            "truncate" => c.off..u64::MAX,
            "punch" => c.off..c.off.saturating_add(c.len),
            _ => return,
        };
        let what = What::Blocks {
            change: c.change,
            file: (c.dev, c.ino),
            bytes,
            kind: c.kind.clone(),
        };
        self.begin(seq, what);
    }

    /// The last one begun that is so.
    fn last(&mut self, is: impl Fn(&Taking) -> bool) -> Option<&mut Taking> {
        self.takings.iter_mut().rev().find(|t| is(t))
    }
}

impl Promise for Serialised {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn waits_for_requests(&self) -> bool {
        true
    }

    fn mark(&mut self, seq: u64, mark: &Mark, _world: &World, _ledger: &mut Ledger) {
        let Mark::File(mark) = mark else { return };
        match mark {
            FileMark::ChangeBegin(c) => self.change(seq, c),
            // What failed has taken nothing away, perhaps, and of what is not told nothing is known.
            FileMark::ChangeEnd {
                change: number,
                result: Some(0),
            } => {
                let this = |t: &Taking| {
                    matches!(&t.what, What::Blocks { change, .. } if change == number)
                        && t.done.is_none()
                };
                if let Some(taking) = self.last(this) {
                    taking.done = Some(seq);
                }
            }
            FileMark::Freezing { dev } => self.begin(seq, What::Freeze { dev: *dev }),
            FileMark::Frozen { dev } => {
                let this = |t: &Taking| matches!(t.what, What::Freeze { dev: d } if d == *dev);
                if let Some(freeze) = self.last(this)
                    && freeze.done.is_none()
                {
                    freeze.done = Some(seq);
                }
            }
            FileMark::Thawing { dev } => {
                // Several may have frozen it, one after the other; a thaw is a thaw.
                for t in &mut self.takings {
                    if matches!(t.what, What::Freeze { dev: d } if d == *dev) {
                        t.undone.get_or_insert(seq);
                    }
                }
            }
            _ => {}
        }
    }

    fn interrupted(&mut self, lost: bool) {
        // A thaw may be among what is lost.
        if lost {
            self.takings.clear();
        }
    }

    fn call_settled(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        let concerned = |t: &Taking| call.data().any(|r| t.concerns(call, r) && t.met(call, r));
        let broken = |t: &Taking| {
            let r = call.data().find(|r| t.concerns(call, r) && t.passed(r));
            r.map(|r| (t.clone(), r))
        };
        let found = self.takings.iter().find_map(broken);
        if found.is_none() && !self.takings.iter().any(concerned) {
            return;
        }
        if let Some(why) = world.facts.files_unmarked().or_else(|| call.data_unclear()) {
            return ledger.not_checked(call.test(), &ABOUT, why);
        }
        let Some((taking, request)) = found else {
            return ledger.held(call.test(), &ABOUT);
        };
        let done = taking.done.unwrap_or(taking.begin);
        let completed = match request.done {
            Some(d) => format!("completed at event {}", d.seq),
            None => "not completed".to_owned(),
        };
        let happened = format!(
            "{} did not wait for {} of the call: it had succeeded at event {done}, and the request was taken \
             at event {} and {completed}",
            taking.in_words(),
            request.describe(),
            request.id,
        );
        let mut events = call.proof(std::iter::once(request));
        events.extend([taking.begin, done]);
        events.extend(taking.undone);
        let finding = ABOUT.finding(
            call.test(),
            Some(call.reference()),
            happened,
            &[Evidence::Tag, Evidence::Extents, Evidence::Marks],
            events,
            [
                ("request", request_json(request)),
                ("began", json!(taking.begin)),
                ("succeeded", json!(done)),
            ],
        );
        ledger.broken(&ABOUT, finding);
    }

    fn reboot(&mut self) {
        self.takings.clear();
    }
}
