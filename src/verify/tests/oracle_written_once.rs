// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `written-once` against a judge that looks at each page and each sector: files with holes and unaligned
//! ends, blocks out of order, shared or taken over, reports of parts, calls side by side, late requests.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use proptest::prelude::*;
use wtblk_shared::mark::{
    CallBegin, CallEnd, Change, Extent, FileMark, FilePages, Mark, PageReport,
};

use super::super::contract::Contract;
use super::builder::*;
use super::world::Dice;

const S: u64 = 512;
const FOLIO: u64 = 2 << 20;
/// Pages of a folio, and of the longest file.
const PAGES: u64 = FOLIO / B;
const MOST: u64 = 3 * PAGES + 9;
const SHARED: u32 = 0x2000;
const NO_PLACE: u32 = 0x2;

/// What came of the last judged call on a file.
#[derive(Clone, Debug)]
struct Watch {
    call: u64,
    range: Range<u64>,
    end: u64,
    clean: bool,
    why_not: &'static str,
    /// Sectors sent again: request, offset in the file, since when it was clean.
    again: BTreeSet<(u64, u64, u64)>,
}

/// Neither before nor after; beside another.
const NEITHER: &str = "its pages were told clean neither before the call nor after it";
const BESIDE: &str = "another call or change of the file ran beside it";

#[derive(Clone, Debug, Default)]
struct File {
    /// Pages told clean.
    clean: BTreeSet<u64>,
    layout: Vec<Extent>,
    shares: bool,
    isize: u64,
    calls: BTreeSet<u64>,
    changes: BTreeSet<u64>,
    touched: u64,
    first: Option<(u64, Range<u64>)>,
    /// Of the calls that found all pages of their folios clean, those pages.
    found_clean: BTreeMap<u64, Vec<u64>>,
    watch: Option<Watch>,
}

/// The slow judge.
#[derive(Clone, Debug, Default)]
struct Oracle {
    failed_page_clean: bool,
    files: BTreeMap<u64, File>,
    /// By sector of the disk: file, offset in it, since when.
    followed: BTreeMap<u64, (u64, u64, u64)>,
    /// By ended call: its file, when it was last told something of.
    told: BTreeMap<u64, (u64, u64)>,
    /// Verdicts: held, not checked by reason, findings by call.
    held: u64,
    skipped: BTreeMap<String, u64>,
    broken: BTreeMap<u64, Watch>,
}

fn pages(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / B..bytes.end.div_ceil(B)
}

/// The pages of the folio of a page, as far as a file of this size has them.
fn folio(page: u64, isize: u64) -> Range<u64> {
    let first = page / PAGES * PAGES;
    first..(first + PAGES).min(isize.div_ceil(B))
}

/// The pages of all folios that a range touches.
fn folios(bytes: &Range<u64>) -> Range<u64> {
    let touched = pages(bytes);
    touched.start / PAGES * PAGES..touched.end.div_ceil(PAGES) * PAGES
}

/// The place on the disk of a byte of a file.
fn place(layout: &[Extent], at: u64) -> Option<(u64, u32)> {
    let e = layout
        .iter()
        .find(|e| e.logical <= at && at < e.logical + e.length)?;
    (e.flags & NO_PLACE == 0).then_some((e.physical + (at - e.logical), e.flags))
}

/// The layout in pieces of a page, as far as they are wanted.
fn by_page(layout: &[Extent], wanted: impl Fn(u64) -> bool) -> Vec<Extent> {
    let mut pieces = Vec::new();
    for e in layout {
        for at in (e.logical..e.logical + e.length).step_by(B as usize) {
            if wanted(at / B) {
                let physical = e.physical + (at - e.logical);
                pieces.push(Extent {
                    logical: at,
                    physical,
                    length: B,
                    flags: e.flags,
                });
            }
        }
    }
    pieces
}

impl Oracle {
    fn settle(&mut self, watch: Option<Watch>) {
        let Some(w) = watch else { return };
        if !w.again.is_empty() {
            self.broken.insert(w.call, w);
        } else if w.clean {
            self.held += 1;
        } else {
            *self.skipped.entry(w.why_not.to_owned()).or_default() += 1;
        }
    }

    fn settle_file(&mut self, ino: u64) {
        let watch = self.files.entry(ino).or_default().watch.take();
        self.settle(watch);
    }

    /// Pages that are no longer known to be clean, and nor are the blocks that hold them.
    fn dirty(&mut self, ino: u64, gone: Range<u64>) {
        let file = self.files.get_mut(&ino).unwrap();
        file.clean.retain(|p| !gone.contains(p));
        for e in file.layout.iter().filter(|e| e.flags & NO_PLACE == 0) {
            for at in (e.physical..e.physical + e.length).step_by(S as usize) {
                if gone.contains(&((e.logical + at - e.physical) / B)) {
                    self.followed.remove(&(at / S));
                }
            }
        }
        // A copy goes elsewhere.
        if file.shares {
            file.layout = by_page(&file.layout, |page| !gone.contains(&page));
        }
    }

    /// Follows the blocks of all folios whose every page is among these.
    fn follow(&mut self, ino: u64, told: &BTreeSet<u64>, seq: u64) {
        let file = &self.files[&ino];
        let mut whole: BTreeMap<u64, bool> = BTreeMap::new();
        for page in 0..file.isize.div_ceil(B) {
            let all = whole
                .entry(page / PAGES)
                .or_insert_with(|| folio(page, file.isize).all(|p| told.contains(&p)));
            if !*all {
                continue;
            }
            for at in (page * B..page * B + B).step_by(S as usize) {
                if let Some((disk, 0)) = place(&file.layout, at) {
                    self.followed.insert(disk / S, (ino, at, seq));
                }
            }
        }
    }

    /// Whether all of the call's blocks are followed.
    fn look(&mut self, ino: u64) {
        let file = self.files.get_mut(&ino).unwrap();
        let Some(w) = &mut file.watch else { return };
        let counts = w.why_not == NEITHER || w.why_not == BESIDE;
        let layout = &file.layout;
        let all = (w.range.start / S..w.range.end.div_ceil(S)).all(|s| {
            place(layout, s * S)
                .and_then(|(disk, _)| self.followed.get(&(disk / S)))
                .is_some_and(|f| f.0 == ino)
        });
        w.clean |= counts && all;
    }

    fn told_clean(&mut self, ino: u64, told: Range<u64>, seq: u64) {
        let told: BTreeSet<u64> = told.collect();
        self.files.get_mut(&ino).unwrap().clean.extend(&told);
        self.follow(ino, &told, seq);
        self.look(ino);
    }

    fn begin(&mut self, seq: u64, b: &CallBegin) {
        self.settle_file(b.ino);
        let file = self.files.get_mut(&b.ino).unwrap();
        let range = b.off..b.off + b.len;
        let has = b.isize.max(range.end).div_ceil(B);
        let touched = folios(&range);
        let window: Vec<u64> = touched.filter(|p| *p < has).collect();
        let end = folios(&(b.isize..b.isize + 1));
        let zeroes = b.off > b.isize;
        let alone = file.calls.is_empty() && file.changes.is_empty();
        let clean = |p: &u64| *p >= b.isize.div_ceil(B) || file.clean.contains(p);
        if alone && window.iter().all(clean) && !(zeroes && window.iter().any(|p| end.contains(p)))
        {
            file.found_clean.insert(b.call, window.clone());
        }
        (file.isize, file.touched, file.first) = (b.isize, seq, None);
        file.calls.insert(b.call);
        self.dirty(b.ino, folios(&range).start..folios(&range).end.min(has));
        if zeroes {
            self.dirty(b.ino, end);
        }
    }

    fn end(&mut self, seq: u64, begun: u64, b: &CallBegin, e: &CallEnd, failed: bool, late: bool) {
        let file = self.files.get_mut(&b.ino).unwrap();
        file.calls.remove(&b.call);
        let window = file.found_clean.remove(&b.call);
        (file.isize, file.first) = (e.isize, None);
        let extents = e.extents.as_ref().or(b.extents.as_ref());
        file.layout = extents.cloned().unwrap_or_default();
        let alone = file.touched == begun && file.calls.is_empty() && file.changes.is_empty();
        file.shares |= file.layout.iter().any(|e| e.flags & SHARED != 0);
        if file.shares {
            // Dirty pages may go elsewhere than it is told; the call's own have gone.
            let mut known = file.clean.clone();
            if alone {
                known.extend(window.iter().flatten());
                known.extend(pages(&(b.off..b.off + b.len)));
            }
            file.layout = by_page(&file.layout, |page| known.contains(&page));
        }
        if b.flags.is_empty() {
            return;
        }
        let failed = failed || e.result != b.len as i64;
        let why_not = match () {
            () if failed && !self.failed_page_clean => {
                file.layout.clear();
                "the call failed"
            }
            () if !alone => BESIDE,
            () if file.layout.is_empty() => "extents unknown",
            () => NEITHER,
        };
        if why_not == NEITHER || why_not == BESIDE {
            self.told.insert(b.call, (b.ino, seq));
        }
        self.settle_file(b.ino);
        let file = self.files.get_mut(&b.ino).unwrap();
        file.watch = Some(Watch {
            call: b.call,
            range: b.off..b.off + b.len,
            end: seq,
            clean: false,
            why_not,
            again: BTreeSet::new(),
        });
        let known = why_not == NEITHER || why_not == BESIDE;
        let window = window.filter(|_| alone && !late && known);
        let found = window.is_some();
        file.clean.extend(window.unwrap_or_default());
        if why_not == NEITHER {
            let clean = file.clean.clone();
            self.follow(b.ino, &clean, seq);
        }
        if found {
            self.look(b.ino);
        }
    }

    fn change(&mut self, seq: u64, c: &Change) {
        self.settle_file(c.ino);
        let file = self.files.get_mut(&c.ino).unwrap();
        (file.touched, file.first) = (seq, None);
        file.shares |= c.kind == "reflink";
        file.changes.insert(c.change);
        let inside = ["write", "mmap"].contains(&c.kind.as_str()) && c.off + c.len <= file.isize;
        let gone = if inside {
            folios(&(c.off..c.off + c.len))
        } else {
            0..u64::MAX
        };
        self.dirty(c.ino, gone);
    }

    fn pages(&mut self, seq: u64, p: &FilePages) {
        let file = self.files.entry(p.ino).or_default();
        let range = p.off..p.off + p.len;
        let quiet = file.calls.is_empty() && file.changes.is_empty();
        if p.dirty + p.writeback > 0 || !quiet {
            file.first = None;
            return;
        }
        match &file.first {
            Some((first, same)) if *same == range && file.touched < *first => {
                self.told_clean(p.ino, pages(&range), seq);
            }
            _ => file.first = Some((seq, range)),
        }
    }

    fn report(&mut self, seq: u64, r: &PageReport) {
        let Some((ino, since)) = self.told.get(&r.call).copied() else {
            return;
        };
        self.told.insert(r.call, (ino, seq));
        let file = &self.files[&ino];
        let quiet = file.calls.is_empty() && file.changes.is_empty() && file.touched < since;
        if quiet && r.dirty + r.writeback == 0 {
            self.told_clean(ino, pages(&(r.off..r.off + r.len)), seq);
        }
    }

    fn write(&mut self, id: u64, disk: u64, bytes: u64) {
        for sector in disk / S..(disk + bytes) / S {
            if let Some((ino, at, since)) = self.followed.remove(&sector)
                && let Some(w) = &mut self.files.get_mut(&ino).unwrap().watch
            {
                w.again.insert((id, at, since));
            }
        }
    }

    fn finish(&mut self) {
        let files: Vec<u64> = self.files.keys().copied().collect();
        files.into_iter().for_each(|ino| self.settle_file(ino));
    }
}

/// A file of the made-up kernel.
struct Disk {
    layout: Vec<Extent>,
    isize: u64,
}

struct Maker {
    dice: Dice,
    s: Stream,
    o: Oracle,
    disks: Vec<Disk>,
    open: Vec<(CallBegin, u64, bool, Option<u64>)>,
    changes: Vec<(u64, u64)>,
    calls: u64,
    numbers: u64,
}

impl Maker {
    /// A page near something: borders of folios and extents, the end of the file.
    fn page(&mut self, file: usize) -> u64 {
        let near = match self.dice.below(4) {
            0 => self.disks[file].isize / B,
            1 => {
                let list = &self.disks[file].layout;
                let n = self.dice.below(list.len() as u64) as usize;
                list.get(n).map_or(0, |e| e.logical / B)
            }
            2 => self.dice.below(MOST),
            _ => PAGES * self.dice.below(4),
        };
        (near + self.dice.below(5)).saturating_sub(2).min(MOST - 1)
    }

    fn pages(&mut self, file: usize) -> Range<u64> {
        let (a, b) = (self.page(file), self.page(file));
        match self.dice.below(4) {
            0 => 0..MOST,
            // Whole folios, or one page less.
            1 => a / PAGES * PAGES..(b.max(a) / PAGES + 1) * PAGES - self.dice.below(2),
            2 => a / PAGES * PAGES + self.dice.below(2)..MOST,
            _ => a.min(b)..a.max(b) + 1,
        }
    }

    /// Runs of pages, out of order on the disk, some without a place, some shared.
    fn lay_out(&mut self, file: u64) -> Vec<Extent> {
        let mut cuts: Vec<u64> = (0..self.dice.below(4))
            .map(|_| 1 + self.dice.below(MOST - 1))
            .collect();
        if self.dice.one_in(3) {
            cuts.push(PAGES - 1 + self.dice.below(3));
        }
        cuts.extend([0, MOST]);
        cuts.sort_unstable();
        cuts.dedup();
        let runs: Vec<_> = cuts.windows(2).map(|w| (w[0], w[1] - w[0])).collect();
        let mut order: Vec<usize> = (0..runs.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, self.dice.below(i as u64 + 1) as usize);
        }
        // Sometimes where another file lies.
        let region = if self.dice.one_in(6) { 1 - file } else { file };
        let mut disk = DISK + region * (64 << 20) + self.dice.below(3) * B;
        let mut list = vec![ext(0, 0, 0); runs.len()];
        for i in order {
            let (first, n) = runs[i];
            let flags = match self.dice.below(12) {
                0 => SHARED,
                1 => NO_PLACE,
                _ => 0,
            };
            list[i] = Extent {
                flags,
                ..ext(first * B, disk, n * B)
            };
            disk += n * B + if self.dice.one_in(3) { B } else { 0 };
        }
        // A hole.
        if list.len() > 1 && self.dice.one_in(4) {
            list.remove(self.dice.below(list.len() as u64) as usize);
        }
        list
    }

    fn begin(&mut self) {
        let file = self.dice.below(2) as usize;
        let (a, b) = (self.page(file), self.page(file));
        let off = a.min(b) * B + self.dice.below(2) * self.dice.below(B);
        let len = match self.dice.below(3) {
            0 => 1 + self.dice.below(B),
            1 => (1 + self.dice.below(4)) * B - off % B,
            _ => a.abs_diff(b) * B + 1 + self.dice.below(B),
        };
        self.calls += 1;
        let d = &self.disks[file];
        let c = CallBegin {
            ino: file as u64,
            isize: d.isize,
            extents: (!self.dice.one_in(8)).then(|| d.layout.clone()),
            flags: if self.dice.one_in(8) {
                vec![]
            } else {
                vec!["writethrough".into()]
            },
            ..call(self.calls, off, len.min(MOST * B - off))
        };
        let seq = self.s.begin(&c);
        self.o.begin(seq, &c);
        let page = c.off / B * B;
        let here = place(&d.layout, page).filter(|_| c.extents.is_some());
        let fails = self.dice.one_in(10);
        let mut late = None;
        if let Some((disk, _)) = here {
            let w = self.s.write(self.calls as u16, disk, B);
            self.o.write(w, disk, B);
            late = Some(w);
        }
        self.open.push((c, seq, fails, late));
    }

    fn end(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let n = self.dice.below(self.open.len() as u64) as usize;
        let (c, begun, fails, write) = self.open.swap_remove(n);
        let file = c.ino as usize;
        let late = self.dice.one_in(8);
        let fails = fails && !late && write.is_some();
        if let Some(w) = write.filter(|_| !late) {
            if fails {
                self.s.fail(w)
            } else {
                self.s.ok(w)
            };
        }
        let d = &mut self.disks[file];
        d.isize = d.isize.max(c.off + c.len);
        if self.dice.one_in(8) {
            self.disks[file].layout = self.lay_out(file as u64);
        }
        let result = match self.dice.below(12) {
            0 => -5,
            1 => c.len as i64 - 1,
            _ => c.len as i64,
        };
        let e = CallEnd {
            call: c.call,
            result,
            isize: self.disks[file].isize,
            extents: (c.extents.is_some() && !self.dice.one_in(8))
                .then(|| self.disks[file].layout.clone()),
        };
        let seq = self.s.mark(Mark::End(e.clone()));
        // Its place is known by begin or end, so what is in flight is its data.
        let late = late && write.is_some();
        self.o.end(seq, begun, &c, &e, fails, late);
        if let Some(w) = write.filter(|_| late) {
            self.s.ok(w);
        }
    }

    fn change(&mut self) {
        let file = self.dice.below(2) as usize;
        self.numbers += 1;
        let (a, b) = (self.page(file), self.page(file));
        let (mut off, mut len) = (a.min(b) * B, a.abs_diff(b) * B + 1 + self.dice.below(B));
        if self.dice.one_in(3) {
            (off, len) = (a * B, B);
        }
        if self.dice.one_in(4) {
            // To the very end of the file, or one byte more.
            len = (self.disks[file].isize + self.dice.below(2))
                .saturating_sub(off)
                .max(1);
        }
        let kinds = [
            "write", "mmap", "write", "mmap", "punch", "truncate", "reflink",
        ];
        let c = Change {
            change: self.numbers,
            dev: 8,
            ino: file as u64,
            off,
            len,
            kind: kinds[self.dice.below(7) as usize].into(),
        };
        let seq = self.s.file(FileMark::ChangeBegin(c.clone()));
        self.o.change(seq, &c);
        self.changes.push((c.change, c.ino));
        if !self.dice.one_in(4) {
            self.changed();
        }
    }

    fn changed(&mut self) {
        if let Some((change, ino)) = self.changes.pop() {
            let result = None;
            self.s.file(FileMark::ChangeEnd { change, result });
            self.o.files.get_mut(&ino).unwrap().changes.remove(&change);
        }
    }

    fn told(&mut self) {
        let file = self.dice.below(2) as usize;
        let told = self.pages(file);
        let of = |r: &Range<u64>| (r.start * B, (r.end - r.start) * B);
        let (off, len) = of(&told);
        for n in 0..2 {
            let at = "t".to_owned();
            let dirty = u64::from(self.dice.one_in(12));
            let writeback = u64::from(self.dice.one_in(12));
            // Now and then of another range.
            let len = if n == 1 && self.dice.one_in(10) {
                len + B
            } else {
                len
            };
            let (dev, ino) = (8, file as u64);
            let p = FilePages {
                dev,
                ino,
                at,
                off,
                len,
                dirty,
                writeback,
            };
            let seq = self.s.file(FileMark::Pages(p.clone()));
            self.o.pages(seq, &p);
            if self.dice.one_in(10) {
                self.change();
            }
        }
    }

    fn report(&mut self) {
        let call = 1 + self.dice.below(self.calls + 1);
        let file = self.dice.below(2) as usize;
        let told = self.pages(file);
        let r = PageReport {
            call,
            at: "t".into(),
            off: told.start * B,
            len: (told.end - told.start) * B,
            cached: 0,
            dirty: u64::from(self.dice.one_in(10)),
            writeback: u64::from(self.dice.one_in(10)),
        };
        let seq = self.s.mark(Mark::Report(r.clone()));
        self.o.report(seq, &r);
    }

    /// Some sectors near something.
    fn stray(&mut self) {
        let file = self.dice.below(2) as usize;
        let page = self.page(file);
        let Some((disk, _)) = place(&self.disks[file].layout, page * B) else {
            return;
        };
        let disk = disk + self.dice.below(2) * S * self.dice.below(8);
        let bytes = match self.dice.below(4) {
            0 => S,
            1 => S * (1 + self.dice.below(30)),
            2 => B * (1 + self.dice.below(3)),
            _ => B * (1 + self.dice.below(700)),
        };
        let id = self.s.stray(disk, bytes);
        self.o.write(id, disk, bytes);
        self.s.ok(id);
    }
}

/// A stream by chance, and what the slow judge says of it.
fn chance(seed: u64, steps: u64, failed_page_clean: bool) -> (Stream, Oracle) {
    let mut m = Maker {
        dice: Dice(seed),
        s: Stream::files_marked(),
        o: Oracle {
            failed_page_clean,
            ..Oracle::default()
        },
        disks: Vec::new(),
        open: Vec::new(),
        changes: Vec::new(),
        calls: 0,
        numbers: 0,
    };
    for file in 0..2 {
        let layout = m.lay_out(file);
        let end = PAGES * m.dice.below(4) * B;
        let isize = end + m.dice.below(5) * m.dice.below(2 * B);
        m.disks.push(Disk { layout, isize });
        m.o.files.insert(file, File::default());
    }
    for _ in 0..steps {
        match m.dice.below(12) {
            0..=2 if m.open.len() < 2 => m.begin(),
            3..=5 => m.end(),
            6 => m.change(),
            7 => m.changed(),
            8 => m.told(),
            9 => m.report(),
            _ => m.stray(),
        }
    }
    while !m.open.is_empty() {
        m.end();
    }
    m.o.finish();
    (m.s, m.o)
}

proptest! {
    #[test]
    fn each_sector_is_judged_by_the_plain_definition(seed: u64, steps in 1u64..60, failed_page_clean: bool) {
        let (s, o) = chance(seed, steps, failed_page_clean);
        let contract = Contract { failed_page_clean, ..Contract::default() };
        let verdicts = s.verdicts_by(contract);
        let mut found: BTreeMap<u64, BTreeSet<(u64, u64, u64)>> = BTreeMap::new();
        for f in verdicts.findings().filter(|f| f.promise == "written-once") {
            let call = f.call.as_ref().unwrap().call;
            let want = &o.broken.get(&call).unwrap_or_else(|| panic!("no finding is due: {f:#?}"));
            let of = |r: &serde_json::Value, key: &str| r[key].as_u64().unwrap();
            let mut sectors = BTreeSet::new();
            let list = f.details["requests"].as_array().unwrap();
            for r in list {
                for at in (0..of(r, "bytes")).step_by(S as usize) {
                    sectors.insert((of(r, "request"), of(r, "file_offset") + at, of(r, "clean_since")));
                }
            }
            let requests: BTreeSet<u64> = want.again.iter().map(|a| a.0).collect();
            prop_assert_eq!(&f.details["bytes"], want.again.len() as u64 * S);
            prop_assert_eq!(&f.details["writes"], requests.len());
            if list.len() < 16 {
                prop_assert_eq!(&sectors, &want.again);
            }
            prop_assert!(sectors.is_subset(&want.again));
            prop_assert!(f.events.contains(&want.end));
            found.insert(call, sectors);
        }
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), o.broken.keys().collect::<Vec<_>>());
        if let Some(v) = verdicts.get(TEST, "written-once") {
            prop_assert_eq!(v.held, o.held);
            prop_assert_eq!(&v.not_checked, &o.skipped);
        }
    }
}
