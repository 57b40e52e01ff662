// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `data`: what is sent are the call's bytes, and around them the file's.

use std::collections::BTreeMap;
use std::ops::Range;

use serde_json::json;
use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{FileContents, FileMark, Mark};

use super::attribution::World;
use super::call::{CallRequest, EndedCall, PastCall};
use super::contract::Contract;
use super::fast_hash::NumberMap;
use super::promise::{About, Moment, Promise, list_few};
use super::sectors::{guess, of_pattern};
use super::verdict::{CallRef, Evidence, Ledger};
use super::writers::Writers;
use crate::trace::event::{DataEvent, DataKind, RequestId};

/// Digests kept of the requests of all calls that are not settled: those of 512 MiB.
const MAX_SECTORS: usize = 1 << 20;
/// Sectors of a call that wait for the page cache's word: its first and its last block.
const MAX_EDGES: usize = 512;
/// Wrong sectors that a finding tells one by one.
const MAX_TOLD: usize = 16;

/// The promise in words.
pub static ABOUT: About = About {
    name: "data",
    promised: "A call sends the bytes that it was given, in whole blocks with what the page cache holds \
               around them; and no reader sees what nobody wrote.",
    judged_on: "the device's digests of the sectors of the call's data requests when they were taken, \
                against the pattern that the begin mark names and, for head and tail, against the guest's \
                digests of its page cache after the call (mark contents); poison that the guest read",
    broken_when: "a sector wholly inside what the call wrote is not its pattern; a sector of the first or \
                  last block that is not is another one than in the page cache; a read of a file shows \
                  sectors that nobody has written since mkfs (mark stale)",
    not_checked_when: "the call names no pattern; a request's digests are not there; the call failed after a \
                       short copy, or counts no whole sector of what it sent; of a sector between the old end of the file and the call's first block, sent twice, the last \
                       one only is compared (it is zeroed and flushed first); the guest does not tell who changes its files (files=marked), or \
                       somebody changed the sector meanwhile whose pattern is not known; no report of the page cache followed for \
                       head and tail. Poison counts as an observation once a fault has touched data",
    comes_from: "rounding out to blocks must not invent bytes: iomap reads the rest of a block that is not \
        up to date before it copies (__iomap_write_begin); blocks that were never written read zeros \
        (unwritten extents, i_size)",
    broken_by: "bytes taken from the wrong place of a folio, a block whose rest was not read or not \
        written, extents marked written although the write failed; the defects wrong-bytes, and misaligned in a new block",
};

/// The judge by this contract.
pub(super) fn judge(_contract: &Contract) -> Box<dyn Promise> {
    Box::new(Data::default())
}

/// A sector that waits for the page cache's word.
#[derive(Clone, Copy, Debug)]
struct Edge {
    request: RequestId,
    digest: u64,
}

/// A call that ended well and has edges, by file offset.
#[derive(Debug)]
struct Waiting {
    call: CallRef,
    test: String,
    begin_seq: u64,
    edges: BTreeMap<u64, Edge>,
    unclear: Option<&'static str>,
}

/// The judge.
#[derive(Debug, Default)]
pub(super) struct Data {
    /// Digests by call and request.
    digests: NumberMap<NumberMap<Vec<u64>>>,
    kept: usize,
    writers: Writers,
    waiting: NumberMap<Waiting>,
}

/// What one sector of a call's data should be.
enum Want {
    Pattern,
    /// What the page cache holds.
    Cache,
    /// It cannot be said.
    Nothing,
}

impl Data {
    fn take(&mut self, call: u64) -> NumberMap<Vec<u64>> {
        let list = self.digests.remove(&call).unwrap_or_default();
        self.kept -= list.values().map(Vec::len).sum::<usize>();
        list
    }

    fn contents(&mut self, seq: u64, report: &FileContents, ledger: &mut Ledger) {
        let file = (report.dev, report.ino);
        let known = |at: u64| {
            let index = at.checked_sub(report.off)? / SECTOR;
            report.digests.get(usize::try_from(index).ok()?).copied()
        };
        let mut done = Vec::new();
        for (number, w) in &mut self.waiting {
            if (w.call.dev, w.call.ino) != file
                || w.unclear.is_some()
                || !report.off.is_multiple_of(SECTOR)
            {
                continue;
            }
            let mut bad = Vec::new();
            let mut left = false;
            let told: Vec<u64> = w
                .edges
                .keys()
                .copied()
                .filter(|at| known(*at).is_some())
                .collect();
            for at in told {
                if self
                    .writers
                    .others(*number, file, &(at..at + SECTOR), w.begin_seq)
                {
                    w.unclear = Some(
                        "somebody else changed head or tail before the page cache was reported",
                    );
                    left = true;
                    break;
                }
                let Some(edge) = w.edges.remove(&at) else {
                    continue;
                };
                if known(at) != Some(edge.digest) {
                    bad.push((at, edge));
                }
            }
            if !bad.is_empty() {
                ledger.broken(&ABOUT, edge_finding(w, &bad, seq));
                done.push(*number);
            } else if !left && w.edges.is_empty() {
                ledger.held(&w.test, &ABOUT);
                done.push(*number);
            }
        }
        for number in done {
            self.waiting.remove(&number);
        }
    }

    /// Nothing more will be heard of the page cache.
    fn give_up(w: &Waiting, ledger: &mut Ledger) {
        let why = w
            .unclear
            .unwrap_or("no report of the page cache followed for head and tail");
        ledger.not_checked(&w.test, &ABOUT, why);
    }
}

impl Promise for Data {
    fn about(&self) -> &'static About {
        &ABOUT
    }

    fn judges_calls(&self) -> bool {
        true
    }

    fn follows(&self) -> &'static [Moment] {
        &[Moment::Contents]
    }

    fn waits_for_requests(&self) -> bool {
        true
    }

    fn data(&mut self, event: &DataEvent, world: &World) {
        let owner = world.flight.get(event.request).and_then(|r| r.owner);
        let (Some((call, _)), DataKind::Digests) = (owner, event.kind) else {
            return;
        };
        let count = event.bytes.len() / 8;
        if self.kept + count > MAX_SECTORS {
            return;
        }
        self.kept += count;
        let words = event.bytes.as_chunks::<8>().0.iter();
        let list = self.digests.entry(call).or_default();
        let list = list.entry(event.request).or_default();
        list.extend(words.map(|w| u64::from_le_bytes(*w)));
    }

    fn mark(&mut self, seq: u64, mark: &Mark, world: &World, ledger: &mut Ledger) {
        self.writers.mark(seq, mark);
        match mark {
            Mark::Begin(begin) => {
                self.take(begin.call);
                if let Some(old) = self.waiting.remove(&begin.call) {
                    Data::give_up(&old, ledger);
                }
            }
            Mark::End(end) if !world.is_late(end.call) => drop(self.take(end.call)),
            Mark::File(FileMark::Contents(report)) => self.contents(seq, report, ledger),
            Mark::File(FileMark::Stale {
                dev,
                ino,
                off,
                sector,
            }) => {
                if world.touched_data() {
                    let what = "a reader saw what nobody wrote, after a fault that touched data";
                    return ledger.observe(&world.test, &ABOUT, what);
                }
                let call = world.last_call_at((*dev, *ino), *off);
                let happened = format!(
                    "a read of dev {dev} ino {ino} at file offset {off} showed sector {sector} of the disk, \
                     which nobody has written since mkfs: unwritten or freed blocks are readable"
                );
                let details = [("file_offset", json!(off)), ("sector", json!(sector))];
                let events = call.iter().map(|c| c.end_seq).chain([seq]).collect();
                let call = call.map(|c| c.call.clone());
                let evidence = [Evidence::Contents];
                let finding =
                    ABOUT.finding(&world.test, call, happened, &evidence, events, details);
                ledger.broken(&ABOUT, finding);
            }
            _ => {}
        }
    }

    fn call_settled(&mut self, call: &EndedCall, world: &World, ledger: &mut Ledger) {
        let digests = self.take(call.begin.call);
        let mut skip = |why: &str| ledger.not_checked(call.test(), &ABOUT, why);
        let Some(pattern) = call.begin.pattern else {
            return skip("the call names no pattern");
        };
        if let Some(why) = call.data_unclear() {
            return skip(why);
        }
        if call.data().next().is_none() {
            return skip(call.why_no_data());
        }
        if call.is("short-copy") && call.end.result < 0 {
            return skip("the call failed, perhaps after a short copy");
        }
        if !world.facts.files_marked() {
            return skip("the guest does not tell who changes its files");
        }
        let file = (call.begin.dev, call.begin.ino);
        let written = written(call);
        let (mut bad, mut edges) = (Vec::new(), BTreeMap::new());
        let mut unclear = None;
        let mut compared = false;
        let zeroed = call.zeroed_first();
        for r in call.data() {
            let Some(list) = digests
                .get(&r.id)
                .filter(|l| l.len() as u64 * SECTOR >= u64::from(r.bytes))
            else {
                unclear.get_or_insert("the digests of a request's sectors are not there");
                continue;
            };
            for (at, disk, digest) in sectors(r, list) {
                // What was flushed before the call's own data is the file's: that comes in a later request.
                let later = |o: &CallRequest| {
                    o.id > r.id
                        && o.fragments()
                            .iter()
                            .any(|f| (f.file..f.file + f.len).contains(&at))
                };
                if zeroed.contains(&at) && call.data().any(later) {
                    continue;
                }
                let want = want(call, &written, at);
                compared |= matches!(want, Want::Pattern);
                match want {
                    Want::Nothing => {}
                    Want::Cache if edges.len() < MAX_EDGES => {
                        let request = r.id;
                        edges.insert(at, Edge { request, digest });
                    }
                    Want::Cache => {
                        unclear.get_or_insert("head and tail are longer than is looked at");
                    }
                    Want::Pattern if digest == of_pattern(pattern, at) => {}
                    Want::Pattern => {
                        let range = at..at + SECTOR;
                        let number = call.begin.call;
                        // Of calls beside each other each may have had the last word.
                        match self
                            .writers
                            .others_patterns(number, file, &range, call.begin_seq)
                        {
                            None => {
                                unclear
                                    .get_or_insert("somebody else changed the sectors meanwhile");
                            }
                            Some(others) if others.iter().any(|p| digest == of_pattern(*p, at)) => {
                            }
                            Some(_) => bad.push((r, at, disk, digest)),
                        }
                    }
                }
            }
        }
        if !bad.is_empty() {
            let said = |(r, at, disk, digest): &(&CallRequest, u64, u64, u64)| {
                format!(
                    "file offset {at} (request {}, byte {disk} of the disk) was {}",
                    r.id,
                    guess(*digest, pattern, *at, *disk)
                )
            };
            let happened = format!(
                "{} sectors inside file offsets {} to {}, which the call wrote, were sent with other bytes: {}",
                bad.len(),
                written.start,
                written.end,
                list_few(bad.iter().map(said))
            );
            let mut requests: Vec<&CallRequest> = bad.iter().map(|b| b.0).collect();
            requests.dedup_by_key(|r| r.id);
            let finding = ABOUT.finding(
                call.test(),
                Some(call.reference()),
                happened,
                &[
                    Evidence::Tag,
                    Evidence::Extents,
                    Evidence::Pattern,
                    Evidence::Digests,
                ],
                call.proof(requests.into_iter()),
                [
                    ("wrong_sectors", json!(bad.len())),
                    ("pattern", json!([pattern.0, pattern.1])),
                    (
                        "first",
                        bad.iter()
                            .take(MAX_TOLD)
                            .map(|(r, at, disk, digest)| {
                                json!({
                                    "request": r.id, "file_offset": at, "disk": disk,
                                    "is": guess(*digest, pattern, *at, *disk),
                                })
                            })
                            .collect(),
                    ),
                ],
            );
            return ledger.broken(&ABOUT, finding);
        }
        if let Some(why) = unclear {
            return skip(why);
        }
        if edges.is_empty() && !compared {
            return skip("of what was sent no sector is wholly inside what the call wrote");
        }
        if edges.is_empty() {
            return ledger.held(call.test(), &ABOUT);
        }
        let waiting = Waiting {
            call: call.reference(),
            test: call.test().to_owned(),
            begin_seq: call.begin_seq,
            edges,
            unclear: None,
        };
        self.waiting.insert(call.begin.call, waiting);
    }

    fn never_settled(&mut self, call: &EndedCall) {
        self.take(call.begin.call);
    }

    fn call_forgotten(&mut self, call: &PastCall, ledger: &mut Ledger) {
        if let Some(w) = self.waiting.remove(&call.call.call) {
            Data::give_up(&w, ledger);
        }
    }

    fn interrupted(&mut self, lost: bool) {
        if lost {
            self.writers.lost();
            for w in self.waiting.values_mut() {
                w.unclear = Some("events are missing after the call");
            }
        }
    }

    fn settle(&self, _world: &World, ledger: &mut Ledger) {
        self.waiting.values().for_each(|w| Data::give_up(w, ledger));
    }

    fn reboot(&mut self) {
        *self = Data::default();
    }
}

/// What the call says it wrote; of one that failed, what it was to write.
fn written(call: &EndedCall) -> Range<u64> {
    let len = u64::try_from(call.end.result).map_or(call.begin.len, |n| n.min(call.begin.len));
    call.begin.off..call.begin.off.saturating_add(len)
}

fn want(call: &EndedCall, written: &Range<u64>, at: u64) -> Want {
    let sector = at..at.saturating_add(SECTOR);
    if written.start <= sector.start && sector.end <= written.end {
        Want::Pattern
    } else if call.end.result == i64::try_from(call.begin.len).unwrap_or(i64::MAX) {
        Want::Cache
    } else {
        Want::Nothing
    }
}

/// A request's sectors: offset in the file, byte on the disk, digest.
fn sectors<'a>(
    r: &'a CallRequest,
    digests: &'a [u64],
) -> impl Iterator<Item = (u64, u64, u64)> + 'a {
    let mut first = 0;
    r.fragments().iter().flat_map(move |f| {
        let from = first;
        first += f.len;
        // Fragments are of whole sectors: places on the disk are.
        (0..f.len / SECTOR).filter_map(move |n| {
            let into = from + n * SECTOR;
            let digest = digests.get(usize::try_from(into / SECTOR).ok()?)?;
            Some((
                f.file + n * SECTOR,
                r.disk.start.saturating_add(into),
                *digest,
            ))
        })
    })
}

fn edge_finding(w: &Waiting, bad: &[(u64, Edge)], seq: u64) -> super::verdict::Finding {
    let said = |(at, edge): &(u64, Edge)| format!("file offset {at} (request {})", edge.request);
    let happened = format!(
        "{} sectors of the call's first and last block, outside of what it wrote, were sent with other bytes \
         than the page cache holds (event {seq}): {}",
        bad.len(),
        list_few(bad.iter().map(said))
    );
    let mut events: Vec<u64> = bad.iter().map(|(_, e)| e.request).collect();
    events.extend([w.begin_seq, seq]);
    let evidence = [
        Evidence::Tag,
        Evidence::Extents,
        Evidence::Contents,
        Evidence::Digests,
    ];
    let places: Vec<u64> = bad.iter().map(|b| b.0).collect();
    let details = [("file_offsets", json!(places))];
    ABOUT.finding(
        &w.test,
        Some(w.call.clone()),
        happened,
        &evidence,
        events,
        details,
    )
}
