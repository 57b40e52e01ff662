// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who changed which bytes of which file, and when: marked calls and the
//! changes that the guest tells of. So that one's bytes are not blamed on another.

use std::collections::VecDeque;
use std::ops::Range;

use wtblk_shared::mark::{FileMark, Mark};

/// Changes that are remembered; what is older may have been anything.
const MAX: usize = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Writers {
    list: VecDeque<Writer>,
    /// Up to this event changes may be forgotten.
    forgot: u64,
}

#[derive(Debug)]
struct Writer {
    who: Who,
    file: (u64, u64),
    range: Range<u64>,
    begin: u64,
    /// Of a call: whose bytes they are, where it says so.
    pattern: Option<(u32, u32)>,
    /// `None`: not over, as far as is known.
    end: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Call(u64),
    Change(u64),
}

impl Writers {
    /// Takes note of a mark.
    pub fn mark(&mut self, seq: u64, mark: &Mark) {
        match mark {
            Mark::Begin(b) => {
                let range = b.off..b.off.saturating_add(b.len);
                self.begin(seq, Who::Call(b.call), (b.dev, b.ino), range, b.pattern);
            }
            Mark::End(e) => self.end(seq, Who::Call(e.call)),
            Mark::File(FileMark::ChangeBegin(c)) => {
                let end = c.off.saturating_add(c.len);
                // These move or free blocks behind their begin, whatever length they tell.
                let whole = ["truncate", "punch", "reflink", "unlink"].contains(&c.kind.as_str());
                let range = if whole { 0..u64::MAX } else { c.off..end };
                self.begin(seq, Who::Change(c.change), (c.dev, c.ino), range, None);
            }
            Mark::File(FileMark::ChangeEnd { change, .. }) => self.end(seq, Who::Change(*change)),
            _ => {}
        }
    }

    /// Events are missing: who changes what is not known until the guest tells its facts again.
    pub fn lost(&mut self) {
        self.list.clear();
    }

    /// Whether somebody beside this call may have changed bytes of the range between its begin (that
    /// event) and now.
    pub fn others(&self, call: u64, file: (u64, u64), range: &Range<u64>, since: u64) -> bool {
        self.forgot > since || self.beside(call, file, range, since).next().is_some()
    }

    /// The patterns of the calls that may have written the whole range meanwhile, if nobody else may have
    /// changed a byte of it; `None` where that is not all that can be in it.
    pub fn others_patterns(
        &self,
        call: u64,
        file: (u64, u64),
        range: &Range<u64>,
        since: u64,
    ) -> Option<Vec<(u32, u32)>> {
        if self.forgot > since {
            return None;
        }
        self.beside(call, file, range, since)
            .map(|w| {
                let whole = w.range.start <= range.start && range.end <= w.range.end;
                w.pattern.filter(|_| whole)
            })
            .collect()
    }

    fn beside<'a>(
        &'a self,
        call: u64,
        file: (u64, u64),
        range: &'a Range<u64>,
        since: u64,
    ) -> impl Iterator<Item = &'a Writer> {
        self.list.iter().filter(move |w| {
            w.file == file
                && !(w.who == Who::Call(call) && w.begin == since)
                && w.range.start < range.end
                && range.start < w.range.end
                && w.end.is_none_or(|end| end > since)
        })
    }

    fn begin(
        &mut self,
        seq: u64,
        who: Who,
        file: (u64, u64),
        range: Range<u64>,
        pattern: Option<(u32, u32)>,
    ) {
        if self.list.len() == MAX
            && let Some(old) = self.list.pop_front()
        {
            self.forgot = self.forgot.max(old.end.unwrap_or(u64::MAX));
        }
        self.list.push_back(Writer {
            who,
            file,
            range,
            begin: seq,
            pattern,
            end: None,
        });
    }

    fn end(&mut self, seq: u64, who: Who) {
        let mut open = self.list.iter_mut().rev().filter(|w| w.who == who);
        if let Some(writer) = open.find(|w| w.end.is_none()) {
            writer.end = Some(seq);
        }
    }
}
