// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `written-once`: a clean block is not sent again.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::json;
use wtblk_shared::mark::{CallBegin, Change, Extent, FileMark, FilePages, Mark, PageReport};

use super::attribution::World;
use super::call::{CallRequest, EndedCall, PastCall};
use super::contract::Contract;
use super::fast_hash::{NumberMap, NumberSet, PairMap};
use super::flight::bytes_of;
use super::folio_ranges::{covers, folios, inner, insert, parts, remove, rounded, window};
use super::promise::{About, Moment, Promise, list_few};
use super::verdict::{CallRef, Evidence, Finding, Ledger};
use crate::trace::event::{Op, RequestId, Submit};

/// The promise in words.
pub static ABOUT: About = About {
    name: "written-once",
    promised: "A block that the call has written is clean: nobody sends it to the disk again before \
               somebody has changed its folio.",
    judged_on: "the writes that arrive at places of the file whose folios were told clean: by a report \
                after the call, or because they were told clean before it and the call succeeded",
    broken_when: "a write arrives there before the next marked call or change of the same folio",
    not_checked_when: "the guest does not say files=marked; the folios (2 MiB around) were not told \
                       clean before the call nor after it; the call failed or fell short, unless the \
                       contract says that failed pages are clean; the file shares blocks and the block was \
                       dirty when its place was told; another call or change of the file ran \
                       beside it; extents unknown; events are missing",
    comes_from: "a writethrough clears the dirty state of exactly the blocks it sends; what stays dirty \
                 is sent once more by fsync or background writeback",
    broken_by: "a dirty bit that survives the writethrough: the defect double-write",
};

/// FIEMAP_EXTENT_SHARED: who writes it copies it first, and who shared it is not known.
const SHARED: u32 = 0x2000;
/// Files followed.
const MAX_FILES: usize = 1024;
/// Changes under way, of all files.
const MAX_CHANGES: usize = 4096;
/// Places on the disk that are followed, of all files.
const MAX_PIECES: usize = 1 << 16;
/// Requests kept for one finding.
const MAX_SHOWN: usize = 16;

const TOLD_NEITHER: &str = "its pages were told clean neither before the call nor after it";

const BESIDE: &str = "another call or change of the file ran beside it";
const TOO_MANY: &str = "too many changes at a time";

type Key = (u64, u64);

/// A place on the disk that must not be written.
#[derive(Clone, Copy, Debug)]
struct Piece {
    end: u64,
    key: Key,
    file: u64,
    since: u64,
}

/// A write that came although its block was clean.
#[derive(Clone, Debug)]
struct Again {
    request: RequestId,
    file: u64,
    bytes: u64,
    since: u64,
}

/// The last judged call on a file, and what came after it.
#[derive(Clone, Debug)]
struct Watch {
    call: CallRef,
    test: String,
    end_seq: u64,
    /// All of its blocks were followed at some time after it.
    clean: bool,
    why_not: &'static str,
    again: Vec<Again>,
    /// The last of them; how many writes, and bytes of all.
    last: Option<RequestId>,
    writes: u64,
    bytes: u64,
}

/// What is known of a file.
#[derive(Debug, Default)]
struct File {
    /// Ranges told clean: begin, end.
    clean: BTreeMap<u64, u64>,
    /// Where the last call's marks say that it lies.
    layout: Vec<Extent>,
    /// It shares blocks, or did: a dirty block of it may go to another place than was told, even
    /// where nobody shares it any more (XFS keeps what it has reserved for copies).
    shares: bool,
    isize: u64,
    /// Numbers of the calls and changes that are under way.
    calls: NumberSet,
    changes: NumberSet,
    /// When one last began.
    touched: u64,
    /// Of a pair of pages marks, the first: number, range.
    first: Option<(u64, Range<u64>)>,
    /// The call's folios were clean when it began.
    was_clean: NumberMap<Range<u64>>,
    watch: Option<Watch>,
}

impl File {
    /// Of a file that shares blocks only those keep a place that have been clean since it was told.
    fn moves(&mut self, dirty: &Range<u64>) {
        if self.shares {
            let rest = [0..dirty.start, dirty.end..u64::MAX];
            self.layout = parts(&self.layout, &rest);
        }
    }

    /// Where its last page ends.
    fn last_page(&self) -> u64 {
        let end = self.isize.checked_next_multiple_of(4096);
        end.unwrap_or(u64::MAX)
    }
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct WrittenOnce {
    failed_page_clean: bool,
    files: PairMap<File>,
    of_call: NumberMap<Key>,
    of_change: NumberMap<Key>,
    /// By place on the disk, without overlap.
    pieces: BTreeMap<u64, Piece>,
    /// By ended call, when it was last told something of: its end, or a report.
    told: NumberMap<u64>,
    /// There were more changes at a time than are followed.
    lost: bool,
}

/// The judge by this contract.
pub(super) fn judge(contract: &Contract) -> Box<dyn Promise> {
    Box::new(WrittenOnce {
        failed_page_clean: contract.failed_page_clean,
        ..WrittenOnce::default()
    })
}

impl Promise for WrittenOnce {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn follows(&self) -> &'static [Moment] {
        &[Moment::WriteTaken]
    }

    fn submitted(&mut self, id: RequestId, s: &Submit, _world: &World, _ledger: &mut Ledger) {
        if s.op != Op::Write || self.pieces.is_empty() {
            return;
        }
        let disk = bytes_of(s);
        for (start, piece) in self.take(&disk) {
            let (from, to) = (start.max(disk.start), piece.end.min(disk.end));
            // What is left of the piece is followed on.
            self.put(start, from, piece, 0);
            self.put(to, piece.end, piece, to - start);
            let Some(watch) = self
                .files
                .get_mut(&piece.key)
                .and_then(|f| f.watch.as_mut())
            else {
                continue;
            };
            let bytes = to - from;
            // A write may meet several pieces.
            watch.writes += u64::from(watch.last.replace(id) != Some(id));
            watch.bytes += bytes;
            if watch.again.len() < MAX_SHOWN {
                watch.again.push(Again {
                    request: id,
                    file: piece.file + (from - start),
                    bytes,
                    since: piece.since,
                });
            }
        }
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        match mark {
            Mark::Begin(b) => self.begin(seq, b, ledger),
            Mark::Report(r) => self.report(seq, r, world),
            Mark::File(FileMark::ChangeBegin(c)) => self.change(seq, c, ledger),
            Mark::File(FileMark::ChangeEnd { change, .. }) => {
                if let Some(key) = self.of_change.remove(change)
                    && let Some(file) = self.files.get_mut(&key)
                {
                    file.changes.remove(change);
                }
            }
            Mark::File(FileMark::Pages(p)) => self.pages(seq, p, world),
            _ => {}
        }
    }

    fn any_call_ended(&mut self, c: &EndedCall, judged: bool, w: &World, l: &mut Ledger) {
        let (number, key) = (c.begin.call, (c.begin.dev, c.begin.ino));
        let known = self.of_call.remove(&number) == Some(key);
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
        file.calls.remove(&number);
        let window = file.was_clean.remove(&number);
        file.isize = c.end.isize;
        let extents = c.end.extents.as_ref().or(c.begin.extents.as_ref());
        file.layout = extents.cloned().unwrap_or_default();
        file.shares |= file.layout.iter().any(|e| e.flags & SHARED != 0);
        let alone = file.touched == c.begin_seq && file.calls.is_empty() && file.changes.is_empty();
        if file.shares {
            // What was clean has not moved; the call's own blocks went to where they are told.
            let clean = file.clean.iter().map(|(s, e)| *s..*e);
            let mut known: Vec<_> = clean.collect();
            if alone {
                known.extend(window.clone());
                known.push(rounded(c.begin.off, c.begin.len, c.begin.bsize));
            }
            file.layout = parts(&file.layout, &known);
        }
        file.first = None;
        if !judged {
            return;
        }
        let failed = i128::from(c.end.result) != i128::from(c.begin.len)
            || c.requests.iter().any(CallRequest::failed);
        let why_not = if let Some(why) = w.facts.files_unmarked() {
            why
        } else if w.lost_calls {
            "a call was followed no more"
        } else if self.lost {
            TOO_MANY
        } else if failed && !self.failed_page_clean {
            file.layout.clear();
            "the call failed"
        } else if !alone {
            BESIDE
        } else if file.layout.is_empty() {
            "extents unknown"
        } else {
            TOLD_NEITHER
        };
        let watch = Watch {
            call: c.reference(),
            test: c.test().to_owned(),
            end_seq: c.end_seq,
            clean: false,
            why_not,
            again: Vec::new(),
            last: None,
            writes: 0,
            bytes: 0,
        };
        let mut follow = None;
        if matches!(why_not, TOLD_NEITHER | BESIDE) {
            self.told.insert(number, c.end_seq);
            if alone {
                follow = window.filter(|_| c.data_in_flight.is_empty());
            }
        }
        settle(file.watch.replace(watch), l);
        if let Some(window) = &follow {
            insert(&mut file.clean, window);
        }
        if why_not == TOLD_NEITHER {
            // Where the file lies is known now.
            let end = file.last_page();
            let known = file.clean.iter().map(|(s, e)| *s..*e);
            // Mostly remains of folios, of which nothing can be followed.
            let known: Vec<_> = known.filter(|r| !inner(r, end).is_empty()).collect();
            for range in known {
                self.set_clean(key, range, c.end_seq);
            }
        }
        if follow.is_some() {
            self.look_whether_followed(key);
        }
    }

    fn call_lost(&mut self, call: u64) {
        // It may still run: the world says so, and no report counts any more.
        if let Some(key) = self.of_call.remove(&call) {
            self.forget(key);
            if let Some(file) = self.files.get_mut(&key) {
                file.calls.remove(&call);
            }
        }
    }

    fn call_forgotten(&mut self, call: &PastCall, _ledger: &mut Ledger) {
        self.told.remove(&call.call.call);
    }

    fn interrupted(&mut self, lost: bool) {
        if lost {
            self.pieces.clear();
            self.of_call.clear();
            self.of_change.clear();
            self.told.clear();
            for file in self.files.values_mut() {
                let mut watch = file.watch.take();
                if let Some(w) = &mut watch
                    && w.again.is_empty()
                {
                    w.clean = false;
                    w.why_not = "events are missing after the call";
                }
                *file = File {
                    watch,
                    ..File::default()
                };
            }
        }
    }

    fn settle(&self, _world: &World, ledger: &mut Ledger) {
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_unstable_by_key(|(key, _)| **key);
        for (_, file) in files {
            settle(file.watch.clone(), ledger);
        }
    }

    fn reboot(&mut self) {
        *self = WrittenOnce {
            failed_page_clean: self.failed_page_clean,
            ..WrittenOnce::default()
        };
    }
}

impl WrittenOnce {
    fn file(&mut self, key: Key) -> Option<&mut File> {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&key) {
            return None;
        }
        Some(self.files.entry(key).or_default())
    }

    fn begin(&mut self, seq: u64, b: &CallBegin, ledger: &mut Ledger) {
        let key = (b.dev, b.ino);
        self.told.remove(&b.call);
        self.call_lost(b.call);
        let Some(file) = self.file(key) else { return };
        file.isize = b.isize;
        let window = window(&(b.off..b.off.saturating_add(b.len)), b.isize);
        // An extension past an unaligned end zeroes what follows that end, and leaves it dirty.
        let old_end = folios(&(b.isize..b.isize.saturating_add(1)));
        let zeroes = b.off > b.isize;
        let alone = file.calls.is_empty() && file.changes.is_empty();
        if alone
            && covers(&file.clean, &window, b.isize)
            && !(zeroes && super::flight::overlap(&old_end, &window))
        {
            file.was_clean.insert(b.call, window.clone());
        }
        file.calls.insert(b.call);
        file.touched = seq;
        file.first = None;
        settle(file.watch.take(), ledger);
        self.of_call.insert(b.call, key);
        self.set_dirty(key, &window);
        if zeroes {
            self.set_dirty(key, &old_end);
        }
    }

    fn change(&mut self, seq: u64, c: &Change, ledger: &mut Ledger) {
        let key = (c.dev, c.ino);
        self.lost |= self.of_change.len() >= MAX_CHANGES || self.of_change.contains_key(&c.change);
        let lost = self.lost;
        let Some(file) = self.file(key) else { return };
        file.touched = seq;
        file.first = None;
        file.shares |= c.kind == "reflink";
        settle(file.watch.take(), ledger);
        if !lost {
            file.changes.insert(c.change);
            self.of_change.insert(c.change, key);
        }
        if matches!(c.kind.as_str(), "write" | "mmap") && file_end(c) <= self.isize(key) {
            self.set_dirty(key, &folios(&(c.off..file_end(c))));
        } else {
            self.set_dirty(key, &(0..u64::MAX));
        }
    }

    fn isize(&self, key: Key) -> u64 {
        self.files.get(&key).map_or(0, |f| f.isize)
    }

    /// Two reports of one range, both clean, and nothing began in between.
    fn pages(&mut self, seq: u64, p: &FilePages, world: &World) {
        if world.facts.files_unmarked().is_some() || world.lost_calls || self.lost {
            return;
        }
        let key = (p.dev, p.ino);
        let Some(file) = self.file(key) else { return };
        let range = p.off..p.off.saturating_add(p.len);
        let quiet = file.calls.is_empty() && file.changes.is_empty();
        if p.dirty != 0 || p.writeback != 0 || !quiet {
            file.first = None;
            return;
        }
        match &file.first {
            Some((first, same)) if *same == range && file.touched < *first => {
                self.told_clean(key, range, seq);
            }
            _ => file.first = Some((seq, range)),
        }
    }

    /// A report that follows a call's end, or an earlier report of the call.
    fn report(&mut self, seq: u64, r: &PageReport, world: &World) {
        let Some(base) = self.told.get_mut(&r.call) else {
            return;
        };
        let since = std::mem::replace(base, seq);
        let Some(past) = world.past(r.call) else {
            return;
        };
        let key = (past.call.dev, past.call.ino);
        let Some(file) = self.files.get(&key) else {
            return;
        };
        let quiet = file.calls.is_empty() && file.changes.is_empty() && file.touched < since;
        if r.dirty == 0 && r.writeback == 0 && quiet && !world.lost_calls && !self.lost {
            let range = r.off..r.off.saturating_add(r.len);
            self.told_clean(key, range, seq);
        }
    }

    fn told_clean(&mut self, key: Key, range: Range<u64>, seq: u64) {
        self.set_clean(key, range, seq);
        self.look_whether_followed(key);
    }

    /// The promise is kept only as far as it is looked at: the last call's blocks must all
    /// be followed. A report of less than their folios makes none of them followed.
    fn look_whether_followed(&mut self, key: Key) {
        let Some((file, watch)) = self
            .files
            .get(&key)
            .and_then(|f| Some((f, f.watch.as_ref()?)))
        else {
            return;
        };
        if watch.clean || !matches!(watch.why_not, TOLD_NEITHER | BESIDE) {
            return;
        }
        let end = watch.call.off.saturating_add(watch.call.len);
        let mut followed = 0;
        for e in file.layout.iter().filter(|e| e.has_place()) {
            let from = e.logical.max(watch.call.off);
            let to = e.logical.saturating_add(e.length).min(end);
            if from < to {
                let disk = e.physical.saturating_add(from - e.logical);
                followed += self.followed(key, disk..disk.saturating_add(to - from));
            }
        }
        if followed >= watch.call.len
            && let Some(watch) = self.files.get_mut(&key).and_then(|f| f.watch.as_mut())
        {
            watch.clean = true;
        }
    }

    /// How many bytes of a place on the disk are followed for this file.
    fn followed(&self, key: Key, disk: Range<u64>) -> u64 {
        let before = self.pieces.range(..disk.start).next_back();
        let meet = before.into_iter().chain(self.pieces.range(disk.clone()));
        meet.filter(|(_, p)| p.key == key)
            .map(|(s, p)| p.end.min(disk.end).saturating_sub((*s).max(disk.start)))
            .sum()
    }

    /// The range is clean from now on; blocks whose whole folio it holds are followed.
    fn set_clean(&mut self, key: Key, range: Range<u64>, seq: u64) {
        let Some(file) = self.files.get_mut(&key) else {
            return;
        };
        insert(&mut file.clean, &range);
        // Beyond the end of the file there are no pages, and blocks come and go.
        let Range { start, end: stop } = inner(&range, file.last_page());
        let mut new = Vec::new();
        for e in &file.layout {
            let from = e.logical.max(start);
            let to = e.logical.saturating_add(e.length).min(stop);
            if from < to && e.has_place() && e.flags & SHARED == 0 {
                let disk = e.physical.saturating_add(from - e.logical);
                new.push((disk, disk.saturating_add(to - from), from));
            }
        }
        for (disk, end, file) in new {
            self.cut(&(disk..end));
            let piece = Piece {
                end,
                key,
                file,
                since: seq,
            };
            self.put(disk, end, piece, 0);
        }
    }

    /// Nothing is known of the folios any more.
    fn set_dirty(&mut self, key: Key, range: &Range<u64>) {
        let Some(file) = self.files.get_mut(&key) else {
            return;
        };
        remove(&mut file.clean, range);
        let mut places = Vec::new();
        for e in &file.layout {
            let from = e.logical.max(range.start);
            let to = e.logical.saturating_add(e.length).min(range.end);
            if from < to && e.has_place() {
                let disk = e.physical.saturating_add(from - e.logical);
                places.push(disk..disk.saturating_add(to - from));
            }
        }
        file.moves(range);
        for place in places {
            self.cut(&place);
        }
    }

    /// Follows a place no more; what lies around it is followed on.
    fn cut(&mut self, place: &Range<u64>) {
        for (start, piece) in self.take(place) {
            self.put(start, place.start.min(piece.end), piece, 0);
            if place.end < piece.end {
                self.put(place.end, piece.end, piece, place.end - start);
            }
        }
    }

    /// Follows a file no more until it is told clean again.
    fn forget(&mut self, key: Key) {
        self.set_dirty(key, &(0..u64::MAX));
        if let Some(file) = self.files.get_mut(&key) {
            file.was_clean.clear();
            file.first = None;
        }
    }

    /// Takes out the pieces that meet `disk`.
    fn take(&mut self, disk: &Range<u64>) -> Vec<(u64, Piece)> {
        let before = self.pieces.range(..disk.start).next_back();
        let first = before.filter(|(_, p)| p.end > disk.start).map(|(s, _)| *s);
        let inside = self.pieces.range(disk.clone()).map(|(s, _)| *s);
        let met: Vec<u64> = first.into_iter().chain(inside).collect();
        met.into_iter()
            .filter_map(|s| Some((s, self.pieces.remove(&s)?)))
            .collect()
    }

    /// Puts a part of a piece back; `skipped` bytes of it lie before.
    fn put(&mut self, start: u64, end: u64, piece: Piece, skipped: u64) {
        if start < end && self.pieces.len() < MAX_PIECES {
            let file = piece.file + skipped;
            self.pieces.insert(start, Piece { end, file, ..piece });
        }
    }
}

fn file_end(c: &Change) -> u64 {
    c.off.saturating_add(c.len)
}

fn settle(watch: Option<Watch>, ledger: &mut Ledger) {
    let Some(watch) = watch else { return };
    if !watch.again.is_empty() {
        ledger.broken(&ABOUT, finding(&watch));
    } else if watch.clean {
        ledger.held(&watch.test, &ABOUT);
    } else {
        ledger.not_checked(&watch.test, &ABOUT, watch.why_not);
    }
}

fn finding(watch: &Watch) -> Finding {
    let again = watch.again.iter().map(|a| {
        format!(
            "request {} ({} bytes at file offset {}, clean since event {})",
            a.request, a.bytes, a.file, a.since
        )
    });
    let happened = format!(
        "after the call's end (event {}) {} bytes of clean blocks were written again, by {} requests: {}; \
         no call or change of the file was marked in between",
        watch.end_seq,
        watch.bytes,
        watch.writes,
        list_few(again),
    );
    let mut events: Vec<u64> = watch
        .again
        .iter()
        .flat_map(|a| [a.request, a.since])
        .collect();
    events.push(watch.end_seq);
    let requests = watch.again.iter().map(|a| {
        json!({"request": a.request, "file_offset": a.file, "bytes": a.bytes, "clean_since": a.since})
    });
    ABOUT.finding(
        &watch.test,
        Some(watch.call.clone()),
        happened,
        &[Evidence::Extents, Evidence::Reports, Evidence::Marks],
        events,
        [
            ("bytes", json!(watch.bytes)),
            ("writes", json!(watch.writes)),
            ("requests", requests.collect()),
        ],
    )
}
