// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Page flags behind an error: what cachestat(2) cannot see. It counts marks of the page cache's tree; a
//! folio has flags of its own, and a folio that is still locked, or whose flags say something else than
//! its marks, is a defect.

use std::fs::File;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use crate::call::OpenFile;
use crate::pages;
use crate::probe::{Came, Probe};
use crate::subject::rounded;
use crate::sys::CacheStat;
use crate::sys::page_flags::{self, PageFlags};
use crate::test::{Fail, OrFail, Test};

/// Bits of `include/uapi/linux/kernel-page-flags.h`.
const LOCKED: u64 = 1 << 0;
const DIRTY: u64 = 1 << 4;
const WRITEBACK: u64 = 1 << 8;
const PAGE: u64 = 4096;
/// Between two looks at a state that nobody announces.
const POLL: Duration = Duration::from_millis(1);

/// No page of the call's blocks is locked or in writeback, and each is dirty where cachestat says so. A
/// page that is locked can stop who looks at it, so it is a probe that looks.
pub fn check(
    t: &Test,
    what: &str,
    call: u64,
    file: &Arc<OpenFile>,
    off: u64,
    len: u64,
) -> Result<(), Fail> {
    let world = t.world;
    for fact in ["cachestat", "page_flags"] {
        if world.fact(fact) != "yes" {
            let is = world.fact(fact);
            t.note_once(format!("page flags were not looked at: {fact} is {is}"));
            return Ok(());
        }
    }
    let (from, to) = rounded(world.bsize.max(PAGE), off, len);
    let (file, limit) = (Arc::clone(file), world.params.probe / 4);
    let (tell, told) = mpsc::channel();
    let probe = Probe::start(world, call, "page-flags", move || {
        let _ = tell.send(settled(&file.file, from, to - from, limit));
        // Closed before the result is known: what follows may be an umount.
        drop(file);
        Ok(0)
    });
    let came = probe.watch(world)?;
    if let Came::Not(..) = came {
        t.fail(format!("{what}: {}", probe.describe(&came)));
        return Err(Fail::Hung("a look at the page flags did not return".into()));
    }
    let seen = told
        .try_recv()
        .map_err(|_| Fail::Error("a look at the page flags told nothing".into()))??;
    for wrong in seen.wrong {
        t.fail(format!("{what}: by their page flags {wrong}"));
    }
    if seen.pages == 0 {
        t.note_once(
            "a call of which no page was in the page cache: no flags to look at".to_owned(),
        );
    }
    Ok(())
}

/// What a look saw.
struct Seen {
    pages: usize,
    wrong: Vec<String>,
}

/// Looks until nothing is wrong, at most `limit`: writeback of pages that may be dirty passes by.
fn settled(file: &File, from: u64, len: u64, limit: Duration) -> Result<Seen, Fail> {
    let begun = Instant::now();
    loop {
        let pages = page_flags::of(file, from, len).or_fail(|| "reading page flags".into())?;
        let wrong = wrong(&pages, |off, len| pages::state(file, off, len))?;
        if wrong.is_empty() || begun.elapsed() >= limit {
            let pages = pages.len();
            return Ok(Seen { pages, wrong });
        }
        // State polling inside a limit; nothing is ordered by this sleep.
        std::thread::sleep(POLL);
    }
}

/// What is wrong with these pages, in words; `state` is cachestat's word of a range.
fn wrong(
    pages: &[PageFlags],
    state: impl Fn(u64, u64) -> Result<CacheStat, Fail>,
) -> Result<Vec<String>, Fail> {
    let mut wrong = Vec::new();
    for (bit, is) in [(LOCKED, "locked"), (WRITEBACK, "in writeback")] {
        let mut with = pages.iter().filter(|p| p.flags & bit != 0);
        if let Some(first) = with.next() {
            let (n, off) = (with.count() + 1, first.off);
            wrong.push(format!("{n} pages from offset {off} on are {is}"));
        }
    }
    // Pages side by side together, as long as they are alike.
    let alike =
        |a: &PageFlags, b: &PageFlags| a.off + PAGE == b.off && a.flags & DIRTY == b.flags & DIRTY;
    for run in pages.chunk_by(alike) {
        let (off, n) = (run[0].off, run.len() as u64);
        let flagged = if run[0].flags & DIRTY != 0 { n } else { 0 };
        let marked = state(off, n * PAGE)?.dirty;
        if flagged != marked {
            wrong.push(format!(
                "{flagged} of the {n} pages from offset {off} on are dirty, and cachestat says {marked}"
            ));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(flags: &[u64]) -> Vec<PageFlags> {
        let offs = (0..).step_by(PAGE as usize);
        let pages = offs.zip(flags);
        pages
            .map(|(off, &flags)| PageFlags { off, flags })
            .collect()
    }

    /// What is wrong where cachestat says that the pages from `dirty` on are dirty.
    fn said(flags: &[u64], dirty: u64) -> Vec<String> {
        let end = |off: u64, len: u64| (off + len).saturating_sub(dirty.max(off)) / PAGE;
        wrong(&pages(flags), |off, len| {
            Ok(CacheStat::of_dirty(end(off, len)))
        })
        .unwrap()
    }

    #[test]
    fn clean_pages_and_such_as_both_call_dirty_are_well() {
        assert!(said(&[], 0).is_empty());
        assert!(said(&[8, 8, 8], u64::MAX).is_empty());
        assert!(said(&[8, DIRTY, DIRTY | 8], PAGE).is_empty());
    }

    #[test]
    fn a_page_that_is_locked_or_in_writeback_is_told() {
        let wrong = said(&[0, LOCKED, WRITEBACK, WRITEBACK], u64::MAX);
        assert_eq!(wrong.len(), 2);
        assert!(wrong[0].contains("1 pages from offset 4096 on are locked"));
        assert!(wrong[1].contains("2 pages from offset 8192 on are in writeback"));
    }

    #[test]
    fn flags_and_marks_that_differ_are_told() {
        let lost = said(&[0, 0, 0], PAGE);
        assert!(
            lost[0].contains("0 of the 3 pages from offset 0 on are dirty, and cachestat says 2")
        );
        let left = said(&[0, DIRTY], u64::MAX);
        assert!(
            left[0]
                .contains("1 of the 1 pages from offset 4096 on are dirty, and cachestat says 0")
        );
        // Two that make up for each other do not.
        assert_eq!(said(&[DIRTY, 0], PAGE).len(), 2);
    }
}
