// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Export as a log of dm-log-writes, which xfstests' replay tools read.
//!
//! Unlike the original ours is true to the completions: a write stands where it was
//! completed, a failed one is left out and a mark says so. A FLUSH entry stands so
//! that the writes before it are those whose completion was delivered before the
//! flush was submitted. What was delivered is known from the ring (a request at or
//! beyond the avail index read after the publication was made available after it) and
//! from marks (their barrier waits for every queue). Of two writes that overlapped
//! while in flight the later completion stands later, even beyond a flush.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Seek as _, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;
use wtblk_shared::disk::SECTOR;

use super::event::{
    Body, Complete, DATA_DISK, DataEvent, DataKind, DeviceKind, Event, Op, RequestId, Status,
    Submit,
};
use super::export::{ExportError, Sink, output};

/// `WRITE_LOG_MAGIC`: the bytes `shwsfj` and two zeros, backwards.
pub(super) const MAGIC: u64 = 0x006a_7366_7773_6872;
/// `WRITE_LOG_VERSION`.
pub(super) const VERSION: u64 = 1;
/// Flags of an entry.
pub(super) mod flags {
    /// A flush before the data.
    pub const FLUSH: u64 = 1;
    /// The data is durable when it is complete.
    pub const FUA: u64 = 2;
    /// No data: the sectors are discarded.
    pub const DISCARD: u64 = 4;
    /// A text instead of data.
    pub const MARK: u64 = 8;
    /// Those that there are, 16 (the write was of metadata) among them.
    pub const ALL: u64 = 31;
}
/// Bytes of an entry's header before a mark's text.
pub(super) const ENTRY: usize = 32;
/// The kernel ends its logs with this mark.
pub(super) const END: &str = "dm-log-writes-end";
/// Bytes of contents that wait for their completion, or for a flush before them.
const MAX_WAITING: u64 = 1 << 30;
/// Completed writes that may wait for a proof that they were delivered.
const MAX_FLOATING: usize = 4096;
/// Requests in flight.
const MAX_OPEN: usize = 1 << 20;
/// Bytes of zeros in one entry.
const ZEROS: usize = 1 << 20;
/// Zones of a discard or write-zeroes that a device of ours takes.
const MAX_ZONES: u64 = 16;
/// No disk has more sectors: its last byte would have no place in a file.
pub(super) const MAX_SECTORS: u64 = 1 << 54;

/// What a request put on the disk.
#[derive(Debug)]
enum Stored {
    Bytes(u64, Vec<u8>),
    Zeros(u64, u64),
    Discarded(u64, u64),
}

impl Stored {
    fn range(&self) -> (u64, u64) {
        match self {
            Stored::Bytes(at, bytes) => (*at, at.saturating_add(bytes.len() as u64 / SECTOR)),
            Stored::Zeros(at, n) | Stored::Discarded(at, n) => (*at, at.saturating_add(*n)),
        }
    }

    fn bytes(&self) -> u64 {
        match self {
            Stored::Bytes(_, bytes) => bytes.len() as u64,
            _ => 0,
        }
    }
}

/// A request in flight.
#[derive(Debug)]
struct Open {
    submit: Submit,
    stored: Vec<Stored>,
    /// Its contents found no room in the trace.
    dropped: bool,
    /// A rule fired on it.
    rule: Option<String>,
    /// Sectors that it is said to have made zeros.
    zeroed: u64,
}

/// A completed write.
#[derive(Debug)]
struct Written {
    stored: Vec<Stored>,
    queue: u16,
    epoch: u32,
    /// The place in its ring from which on requests were submitted after its publication.
    after: u64,
    /// Whoever comes from now on, on any queue, was submitted after its publication.
    seen_by_all: bool,
}

/// How far a ring has come.
#[derive(Debug, Default)]
struct Ring {
    epoch: u32,
    /// Place of the last request that was taken, counted without wrap.
    at: u64,
}

impl Ring {
    /// A free running 16 bit place near the last one, without wrap.
    fn place(&self, place: u16) -> u64 {
        let step = place.wrapping_sub(self.at as u16).cast_signed();
        self.at.wrapping_add_signed(i64::from(step))
    }
}

/// Ranges that do not touch, by begin.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u64, u64>);

impl Ranges {
    fn meets(&self, (start, end): (u64, u64)) -> bool {
        let before = self.0.range(..end).next_back();
        start < end && before.is_some_and(|(_, last)| *last > start)
    }

    fn insert(&mut self, (mut start, mut end): (u64, u64)) {
        while let Some((s, e)) = self.0.range(..=end).next_back().map(|(s, e)| (*s, *e)) {
            if e < start {
                break;
            }
            self.0.remove(&s);
            (start, end) = (start.min(s), end.max(e));
        }
        self.0.insert(start, end);
    }
}

#[derive(Debug)]
enum Entry {
    Written(Written),
    Mark(String),
    /// A flush that is in flight, and what it was submitted behind is before it.
    Flush(RequestId),
    /// It was completed well.
    Flushed,
}

/// Writes the log.
#[derive(Debug)]
pub struct LogWrites {
    path: PathBuf,
    out: BufWriter<File>,
    entries: u64,
    open: HashMap<RequestId, Open>,
    rings: HashMap<u16, Ring>,
    /// In the order of the log; the first flush in flight keeps back what follows.
    waiting: VecDeque<Entry>,
    /// Completed, in that order, but not surely delivered to whoever submits a flush now.
    floating: Vec<Entry>,
    bytes: u64,
    /// Bytes of contents that the trace had, ever.
    seen: u64,
    /// The first write that was completed well and of which the trace has no contents.
    missing: Option<(RequestId, bool)>,
    gap: bool,
    /// Sectors of the disk, as far as the trace tells.
    sectors: u64,
    /// The output is a file: zeros need no room in it.
    sparse: bool,
}

impl LogWrites {
    /// Into this file, made anew.
    pub fn new(path: &Path) -> Result<LogWrites, ExportError> {
        let file = File::create(path).map_err(output(path))?;
        let sparse = file.metadata().is_ok_and(|m| m.is_file());
        let mut log = LogWrites {
            path: path.to_owned(),
            out: BufWriter::with_capacity(1 << 20, file),
            entries: 0,
            open: HashMap::new(),
            rings: HashMap::new(),
            waiting: VecDeque::new(),
            floating: Vec::new(),
            bytes: 0,
            seen: 0,
            missing: None,
            gap: false,
            sectors: MAX_SECTORS,
            sparse,
        };
        // The number of entries is filled in at the end.
        log.put(&superblock(0))?;
        Ok(log)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out.write_all(bytes).map_err(output(&self.path))
    }

    fn entry(
        &mut self,
        sector: u64,
        sectors: u64,
        flags: u64,
        data: u64,
        text: &[u8],
    ) -> Result<(), ExportError> {
        let mut header = [0u8; SECTOR as usize];
        for (field, word) in header
            .chunks_exact_mut(8)
            .zip([sector, sectors, flags, data])
        {
            field.copy_from_slice(&word.to_le_bytes());
        }
        for (to, from) in header.iter_mut().skip(ENTRY).zip(text) {
            *to = *from;
        }
        self.entries += 1;
        self.put(&header)
    }

    /// A text; one that is too long for its sector is cut.
    fn mark(&mut self, text: &str) -> Result<(), ExportError> {
        let cut = text.floor_char_boundary(SECTOR as usize - ENTRY - 1);
        let text = &text.as_bytes()[..cut];
        self.entry(0, 0, flags::MARK, text.len() as u64, text)
    }

    fn stored(&mut self, stored: &Stored) -> Result<(), ExportError> {
        match stored {
            // data_len is 0 but for marks: the data follows by nr_sectors, as the kernel has it.
            Stored::Bytes(at, bytes) => {
                self.entry(*at, bytes.len() as u64 / SECTOR, 0, 0, &[])?;
                self.put(bytes)
            }
            Stored::Discarded(at, n) => self.entry(*at, *n, flags::DISCARD, 0, &[]),
            Stored::Zeros(at, n) => {
                let zeros = vec![0; if self.sparse { 0 } else { ZEROS }];
                let most = ZEROS as u64 / SECTOR;
                for first in (0..*n).step_by(most as usize) {
                    let n = most.min(n - first);
                    self.entry(at.saturating_add(first), n, 0, 0, &[])?;
                    let bytes = n * SECTOR;
                    match zeros.get(..bytes as usize) {
                        Some(zeros) => self.put(zeros)?,
                        // The log ends with a mark, so that what is passed over is in the file.
                        None => {
                            let step = SeekFrom::Current(bytes as i64);
                            self.out.seek(step).map_err(output(&self.path))?;
                        }
                    }
                }
                Ok(())
            }
        }
    }

    fn submit(&mut self, id: RequestId, s: &Submit) -> Result<(), ExportError> {
        let ring = self.rings.entry(s.queue).or_default();
        if ring.epoch != s.epoch {
            // A ring's life begins where it may go back a little.
            *ring = Ring {
                epoch: s.epoch,
                at: u64::from(s.avail_pos) + (1 << 16),
            };
        } else {
            ring.at = ring.at.max(ring.place(s.avail_pos));
        }
        if s.op == Op::Flush {
            self.settle(s.queue);
            self.waiting.push_back(Entry::Flush(id));
        }
        if self.open.len() >= MAX_OPEN {
            return Err(ExportError::Cannot(format!(
                "more than {MAX_OPEN} requests are in flight at event {id}"
            )));
        }
        let open = Open {
            submit: s.clone(),
            stored: Vec::new(),
            dropped: false,
            rule: None,
            zeroed: 0,
        };
        self.open.insert(id, open);
        Ok(())
    }

    /// Moves what was surely delivered to whoever submits on `queue` now, and marks
    /// among it, to its place in the log; and what overlaps a later part of it.
    fn settle(&mut self, queue: u16) {
        let mut stays = vec![false; self.floating.len()];
        let mut moved = Ranges::default();
        let ring = self.rings.get(&queue);
        for (entry, stays) in self.floating.iter().zip(&mut stays).rev() {
            let Entry::Written(w) = entry else { continue };
            let on_ring = |r: &Ring| w.queue == queue && (w.epoch != r.epoch || r.at >= w.after);
            let delivered = w.seen_by_all || ring.is_some_and(on_ring);
            if delivered || w.stored.iter().any(|s| moved.meets(s.range())) {
                w.stored.iter().for_each(|s| moved.insert(s.range()));
            } else {
                *stays = true;
            }
        }
        let mut stays = stays.into_iter();
        let (stay, go): (Vec<_>, Vec<_>) = std::mem::take(&mut self.floating)
            .into_iter()
            .partition(|_| stays.next().unwrap_or(false));
        self.floating = stay;
        self.waiting.extend(go);
    }

    fn data(&mut self, seq: u64, d: &DataEvent) -> Result<(), ExportError> {
        let Some(open) = self.open.get_mut(&d.request) else {
            return Ok(());
        };
        let whole = d.bytes.len() as u64 / SECTOR * SECTOR == d.bytes.len() as u64;
        let damaged = |what| ExportError::Damaged { record: seq, what };
        let fits = |sectors: u64| {
            let end = d.sector.checked_add(sectors);
            if end.is_some_and(|end| end <= self.sectors) {
                return Ok(());
            }
            Err(damaged(format!(
                "{sectors} sectors at {} of a disk of {}",
                d.sector, self.sectors
            )))
        };
        let asked = u64::from(open.submit.bytes).div_ceil(SECTOR);
        match d.kind {
            DataKind::Stored if d.bytes.is_empty() => open.dropped = true,
            DataKind::Stored if whole => {
                let sectors = d.bytes.len() as u64 / SECTOR;
                if sectors > asked {
                    return Err(damaged(format!(
                        "{sectors} sectors of request {}, which has {asked}",
                        d.request
                    )));
                }
                fits(sectors)?;
                self.bytes += d.bytes.len() as u64;
                self.seen += d.bytes.len() as u64;
                open.stored.push(Stored::Bytes(d.sector, d.bytes.clone()));
            }
            DataKind::Zeroed => {
                let sectors = match <[u8; 8]>::try_from(d.bytes.as_slice()) {
                    Ok(bytes) => u64::from_le_bytes(bytes),
                    Err(_) => return Err(damaged("zeros without their number of sectors".into())),
                };
                // It is written out: what the request cannot have asked for must not come in.
                open.zeroed = open.zeroed.saturating_add(sectors);
                if sectors > asked || open.zeroed > asked * MAX_ZONES {
                    return Err(damaged(format!(
                        "{sectors} sectors made zeros by request {} of {asked}",
                        d.request
                    )));
                }
                fits(sectors)?;
                self.seen += 1;
                open.stored.push(match open.submit.op {
                    Op::Discard => Stored::Discarded(d.sector, sectors),
                    Op::WriteZeroes => Stored::Zeros(d.sector, sectors),
                    other => {
                        let what = format!("zeros of a request that is a {}", other.name());
                        return Err(damaged(what));
                    }
                });
            }
            _ => {}
        }
        if self.bytes > MAX_WAITING {
            return Err(ExportError::Cannot(format!(
                "at the data of request {} more than {MAX_WAITING} bytes wait for completions and flushes",
                d.request
            )));
        }
        Ok(())
    }

    fn complete(&mut self, c: &Complete) -> Result<(), ExportError> {
        let Some(open) = self.open.remove(&c.request) else {
            return Ok(());
        };
        let bytes: u64 = open.stored.iter().map(Stored::bytes).sum();
        let s = &open.submit;
        let place = format!(
            "{} sectors at {}",
            s.bytes.div_ceil(SECTOR as u32),
            s.sector
        );
        let rule = open
            .rule
            .as_ref()
            .map_or(String::new(), |r| format!(", rule {r}"));
        let good = c.status == Status::OK && !c.abandoned;
        match s.op {
            Op::Flush => {
                let mine = |e: &Entry| matches!(e, Entry::Flush(id) if *id == c.request);
                if let Some(at) = self.waiting.iter().position(mine)
                    && let Some(entry) = self.waiting.get_mut(at)
                {
                    *entry = match good {
                        true => Entry::Flushed,
                        false => Entry::Mark(format!(
                            "wtblk failed flush {}: {}{rule}",
                            c.request, c.status
                        )),
                    };
                }
            }
            Op::Write | Op::Discard | Op::WriteZeroes if !good => {
                self.bytes -= bytes;
                let how = if c.abandoned {
                    "not completed".to_owned()
                } else {
                    c.status.to_string()
                };
                let text = format!(
                    "wtblk left out {} {}: {how}, {place}{rule}",
                    s.op.name(),
                    c.request
                );
                self.float(Entry::Mark(text));
            }
            Op::Write | Op::Discard | Op::WriteZeroes => {
                if open.stored.is_empty() && s.bytes > 0 {
                    if open.rule.is_none() || open.dropped {
                        self.missing.get_or_insert((c.request, open.dropped));
                    }
                    let text = format!(
                        "wtblk {} {} was not stored: {place}{rule}",
                        s.op.name(),
                        c.request
                    );
                    self.float(Entry::Mark(text));
                } else {
                    let ring = self.rings.get(&s.queue);
                    let after = ring.map_or(u64::MAX, |r| r.place(c.avail_after));
                    self.float(Entry::Written(Written {
                        stored: open.stored,
                        queue: s.queue,
                        epoch: s.epoch,
                        after,
                        seen_by_all: false,
                    }));
                }
            }
            _ => {}
        }
        self.drain()
    }

    fn float(&mut self, entry: Entry) {
        self.floating.push(entry);
        // With several queues and no mark for so long: number order will do.
        if self.floating.len() > MAX_FLOATING {
            self.waiting.extend(self.floating.drain(..MAX_FLOATING / 2));
        }
    }

    /// Writes what waits for no flush.
    fn drain(&mut self) -> Result<(), ExportError> {
        while !matches!(self.waiting.front(), None | Some(Entry::Flush(_))) {
            match self.waiting.pop_front() {
                Some(Entry::Written(w)) => {
                    for stored in &w.stored {
                        self.stored(stored)?;
                        self.bytes -= stored.bytes();
                    }
                }
                Some(Entry::Mark(text)) => self.mark(&text)?,
                Some(Entry::Flushed) => self.entry(0, 0, flags::FLUSH, 0, &[])?,
                Some(Entry::Flush(_)) | None => {}
            }
        }
        Ok(())
    }

    fn enough(&self) -> Result<(), ExportError> {
        if self.gap {
            return Err(ExportError::Cannot(
                "events are missing in this trace: a log of its writes would not be whole".into(),
            ));
        }
        match self.missing {
            None => Ok(()),
            Some((_, false)) if self.seen == 0 => Err(ExportError::Cannot(
                "the trace holds no contents of writes: record it with --trace-data writes (or all)".into(),
            )),
            Some((id, true)) => Err(ExportError::Cannot(format!(
                "the trace had no room for the contents of write {id} and perhaps further ones: record it with a larger --trace-data-limit"
            ))),
            Some((id, false)) => Err(ExportError::Cannot(format!(
                "the trace holds no contents of write {id}: record it with --trace-data writes (or all)"
            ))),
        }
    }
}

/// The superblock, which fills the first sector.
fn superblock(entries: u64) -> [u8; SECTOR as usize] {
    let mut sector = [0u8; SECTOR as usize];
    let words = [MAGIC, VERSION, entries, SECTOR];
    for (field, word) in sector.chunks_exact_mut(8).zip(words) {
        field.copy_from_slice(&word.to_le_bytes());
    }
    sector
}

impl Sink for LogWrites {
    fn event(&mut self, event: &Event) -> Result<(), ExportError> {
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => self.submit(event.seq, s),
            Body::Decide(d) => {
                if let Some(open) = self.open.get_mut(&d.request) {
                    open.rule = Some(d.name.clone());
                }
                Ok(())
            }
            Body::Data(d) => self.data(event.seq, d),
            Body::Device(d) if d.kind == DeviceKind::Begin => {
                let begin: Value = serde_json::from_str(&d.text).unwrap_or_default();
                let sectors = begin.get("capacity_sectors").and_then(Value::as_u64);
                self.sectors = sectors.unwrap_or(MAX_SECTORS).min(MAX_SECTORS);
                Ok(())
            }
            Body::Complete(c) => self.complete(c),
            Body::Mark(m) => {
                if m.ordered {
                    for entry in &mut self.floating {
                        if let Entry::Written(w) = entry {
                            w.seen_by_all = true;
                        }
                    }
                }
                // Before what was completed without being surely delivered nobody knows.
                self.settle(0);
                self.waiting.push_back(Entry::Mark(m.line.clone()));
                self.drain()
            }
            Body::Gap(_) => {
                self.gap = true;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ExportError> {
        self.enough()?;
        // What is in flight still was not completed; flushes among it never took place.
        self.waiting.retain(|e| !matches!(e, Entry::Flush(_)));
        let rest = std::mem::take(&mut self.floating);
        self.waiting.extend(rest);
        self.drain()?;
        self.mark(END)?;
        let entries = self.entries;
        let failed = output(&self.path);
        self.out.seek(SeekFrom::Start(0)).map_err(&failed)?;
        self.out.write_all(&superblock(entries)).map_err(&failed)?;
        self.out.flush().map_err(&failed)
    }
}
