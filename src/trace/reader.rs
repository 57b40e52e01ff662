// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Reads a trace, finished or growing, strictly by number.
//!
//! Whatever the file says is hostile. It is read with `pread`, not mapped: a
//! file that is cut short meanwhile must not kill its reader. A record seen half
//! (its commit word before its facts) fails its checksum and is read again.

use std::collections::TryReserveError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::input;

use super::block::{self, Block, Record};
use super::error::TraceError;
use super::event::{Body, Event, Gap};
use super::format::{HEADER_BYTES, MAX_TEXT, RECORD_BYTES, head, record_offset};
use super::header::{BadHeader, Header};
use super::record::{Decoded, TEXT_SUM, data_ref, decode, decode_request, text_place};
use super::texts::{Bad, Texts};
use super::writer::data_path;

/// How often a record with a wrong checksum is read again before it counts as damaged.
const TRIES: usize = 4;

/// Why there is nothing for a number, where more comes after it.
pub(super) const KILLED: &str = "taken but never written: its writer was killed";

/// A trace being read.
#[derive(Debug)]
pub struct TraceReader {
    path: PathBuf,
    data_path: PathBuf,
    index: File,
    data: File,
    header: Header,
    /// Nothing will be committed any more.
    is_final: bool,
    /// All was read, and `is_final`.
    ended: bool,
    seq: u64,
    time_ns: u64,
    skipped: u64,
    damage: Option<String>,
    block: Block,
    texts: Texts,
}

impl TraceReader {
    /// Opens a trace that nobody writes any more: closed, or its writer is dead.
    /// Numbers that were taken and never committed become gaps.
    pub fn open(path: &Path) -> Result<TraceReader, TraceError> {
        TraceReader::with_mode(path, true)
    }

    /// Opens a trace that may still grow. The reader waits at a number that was
    /// taken and not committed yet, until the file is closed or
    /// [`TraceReader::set_final`] says that its writer is dead.
    pub fn open_live(path: &Path) -> Result<TraceReader, TraceError> {
        TraceReader::with_mode(path, false)
    }

    fn with_mode(path: &Path, is_final: bool) -> Result<TraceReader, TraceError> {
        let data_path = data_path(path);
        let open = |path: &Path| {
            let failed = |source| TraceError::Open {
                path: path.to_owned(),
                source,
            };
            let file = input::open(path).map_err(failed)?;
            match file.metadata().map_err(failed)?.is_file() {
                true => Ok(file),
                false => Err(refuse(path, BadHeader::Not("it is no regular file".into()))),
            }
        };
        // The named file first: whether it is a trace at all is the first thing to say.
        let index = open(path)?;
        let header = Header::parse(&read_header(&index, path)?).map_err(|b| refuse(path, b))?;
        let data = open(&data_path)?;
        header
            .check_data(&read_header(&data, &data_path)?)
            .map_err(|b| refuse(&data_path, b))?;
        let mut texts = Texts::default();
        if is_final {
            texts.set_complete();
        }
        Ok(TraceReader {
            path: path.to_owned(),
            data_path,
            index,
            data,
            header,
            is_final,
            ended: false,
            seq: 0,
            time_ns: 0,
            skipped: 0,
            damage: None,
            block: Block::default(),
            texts,
        })
    }

    /// The next event in the order of the numbers. `None`: nothing more for
    /// now, or for ever where the trace is final. After an error the reader
    /// stays where it is: the next call gives the same error.
    #[allow(clippy::should_implement_trait)] // An iterator that ended would not be asked again; this one is.
    #[inline]
    pub fn next(&mut self) -> Result<Option<Event>, TraceError> {
        // Most records are requests and completions: nothing more is to be read for them.
        if let Some(record) = self.block.whole(self.seq)
            && let Some(body) = decode_request(&record)
        {
            let seq = self.seq;
            self.seq += 1;
            self.time_ns = record[1];
            return Ok(Some(Event {
                seq,
                time_ns: record[1],
                body,
            }));
        }
        self.next_of_any_kind()
    }

    fn next_of_any_kind(&mut self) -> Result<Option<Event>, TraceError> {
        while !self.ended {
            let seq = self.seq;
            let mut record = self.committed(seq)?;
            if record.is_none() {
                // Looked at in this order: what stood before the closing, or
                // before a gap was noted, is seen by the second look.
                self.refresh_header()?;
                self.block.clear();
                record = self.committed(seq)?;
            }
            if let Some(record) = record {
                if let Some(event) = self.event(seq, &record)? {
                    return Ok(Some(event));
                }
                continue;
            }
            // Of a lost chunk only what was given out is missing.
            let given_out = match self.header.closed {
                true => self.header.end,
                false => u64::MAX,
            };
            if let Some((end, errno)) = self.header.gap_at(seq).filter(|_| seq < given_out) {
                let end = end.min(given_out);
                let why = match errno {
                    head::KILLED => KILLED.to_owned(),
                    errno => {
                        let why = io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(0));
                        format!("no room for the trace: {why}")
                    }
                };
                return Ok(Some(self.gap(end, why)));
            }
            if !self.is_final && !self.header.closed {
                return Ok(None);
            }
            match self.hole_end(seq)? {
                // Committed this very moment, although nobody should write any more.
                Some(end) if end == seq => {}
                Some(end) => {
                    let why = self.why_missing(seq, end)?;
                    return Ok(Some(self.gap(end, why)));
                }
                None => self.ended = true,
            }
        }
        Ok(None)
    }

    /// From now on nothing more is expected: the writer is dead.
    pub fn set_final(&mut self) {
        self.is_final = true;
        self.texts.set_complete();
    }

    /// Whether the file was closed in order, as of the last call of
    /// [`TraceReader::next`]. Where that call gave `None`, all of it was read.
    pub fn closed(&self) -> bool {
        self.header.closed
    }

    /// What the file itself shows to be damaged, as far as it was read: the first such place. An
    /// unfinished file is not damaged, and a wrong checksum is an error of [`TraceReader::next`].
    pub fn damage(&self) -> Option<&str> {
        self.damage.as_deref()
    }

    /// Wall clock at the begin of the trace, ns since 1970.
    pub fn began_wall_ns(&self) -> u64 {
        self.header.wall_ns
    }

    /// Records of kinds that only a newer wtblk knows, passed over so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// The number that comes next.
    pub fn position(&self) -> u64 {
        self.seq
    }

    /// Whether the gap table of the file knows that this number is lost.
    pub(super) fn notes_gap(&self, seq: u64) -> bool {
        self.header.gap_at(seq).is_some()
    }

    fn gap(&mut self, end: u64, why: String) -> Event {
        let seq = self.seq;
        self.seq = end;
        Event {
            seq,
            time_ns: self.time_ns,
            body: Body::Gap(Gap {
                missing: end - seq,
                why,
            }),
        }
    }

    /// The record as an event; `None` for a kind that is skipped.
    fn event(&mut self, seq: u64, record: &Record) -> Result<Option<Event>, TraceError> {
        let text = self.text(seq, record)?;
        let kind = record[0] as u8;
        let data = match data_ref(kind, record) {
            Some((place, sum)) => self.payload(seq, place, sum)?.to_vec(),
            None => Vec::new(),
        };
        let body = match decode(kind, record, text, data) {
            Decoded::Body(body) => body,
            Decoded::Unknown => {
                self.skipped += 1;
                self.seq = self.after(seq, 1)?;
                return Ok(None);
            }
        };
        let count = match &body {
            Body::Gap(gap) => gap.missing.max(1),
            _ => 1,
        };
        self.seq = self.after(seq, count)?;
        self.time_ns = record[1];
        Ok(Some(Event {
            seq,
            time_ns: record[1],
            body,
        }))
    }

    fn after(&self, seq: u64, count: u64) -> Result<u64, TraceError> {
        seq.checked_add(count)
            .ok_or_else(|| self.corrupt(seq, "its gap passes the last number there is"))
    }

    /// The record, if it is committed. Its checksum is right.
    fn committed(&mut self, seq: u64) -> Result<Option<Record>, TraceError> {
        for _ in 0..TRIES {
            if let Some(record) = self.block.whole(seq) {
                return Ok(Some(record));
            }
            let read = self.block.load(&self.index, seq);
            read.map_err(|source| self.unread(seq, source))?;
            if let Some(record) = self.block.whole(seq) {
                return Ok(Some(record));
            }
            if self.block.record(seq).is_none_or(|r| r[0] == 0) {
                return Ok(None);
            }
        }
        Err(self.corrupt(seq, "its checksum is wrong"))
    }

    fn unread(&self, seq: u64, source: io::Error) -> TraceError {
        TraceError::Read {
            path: self.path.clone(),
            at: record_offset(seq).unwrap_or(u64::MAX),
            source,
        }
    }

    /// Where the hole at `seq` ends: at the next committed record, at the next
    /// gap, or at the end of a closed trace; `None`: there is nothing after it.
    fn hole_end(&mut self, seq: u64) -> Result<Option<u64>, TraceError> {
        let gap = self.header.next_gap(seq);
        let mut at = seq;
        let next_record = loop {
            let read = self.block.load_some(&self.index, at, block::MOST);
            read.map_err(|source| self.unread(at, source))?;
            let records = self.block.len();
            let found = (at..at.saturating_add(records))
                .find(|&s| self.block.record(s).is_some_and(|r| r[0] != 0));
            if found.is_some() || records == 0 || gap.is_some_and(|g| at >= g) {
                break found;
            }
            at = at.saturating_add(records);
        };
        let end = Some(self.header.end).filter(|&end| self.header.closed && end > seq);
        Ok([next_record, gap, end].into_iter().flatten().min())
    }

    /// Why the events from `seq` to before `end` are not there. What is missing from a file that
    /// was closed in order, and that its gap table does not name, was there.
    fn why_missing(&mut self, seq: u64, end: u64) -> Result<String, TraceError> {
        if !self.header.closed {
            return Ok(KILLED.into());
        }
        let meta = self.index.metadata();
        let len = meta.map_err(|source| self.unread(seq, source))?.len();
        let there = record_offset(seq).is_some_and(|at| at + RECORD_BYTES <= len);
        let events = self.header.end;
        let (what, why) = match there {
            false => (
                format!(
                    "cut after it was closed: it had {events} events, the file ends before event {seq}"
                ),
                format!("damaged: the file was cut after it was closed with {events} events"),
            ),
            true => (
                match end - seq {
                    1 => format!("event {seq} is missing, although the trace was closed in order"),
                    _ => format!(
                        "events {seq}..{} are missing, although the trace was closed in order",
                        end - 1
                    ),
                },
                "damaged: the trace was closed in order and has no gap here".to_owned(),
            ),
        };
        self.damage.get_or_insert(what);
        Ok(why)
    }

    fn refresh_header(&mut self) -> Result<(), TraceError> {
        let bytes = read_header(&self.index, &self.path)?;
        let header = Header::parse(&bytes).map_err(|b| refuse(&self.path, b))?;
        if header.id != self.header.id {
            return Err(refuse(
                &self.path,
                BadHeader::Not("it was overwritten by another trace".into()),
            ));
        }
        self.header = header;
        Ok(())
    }

    fn text(&mut self, seq: u64, record: &Record) -> Result<String, TraceError> {
        let bytes = self.payload(seq, record[2], record[TEXT_SUM])?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.corrupt(seq, "its text is not UTF-8")),
        }
    }

    /// The bytes at this place of the data file; their checksum is right.
    fn payload(&mut self, seq: u64, place: u64, sum: u64) -> Result<&[u8], TraceError> {
        let (at, len) = text_place(place);
        if len == 0 {
            return Ok(&[]);
        }
        let corrupt = |what| TraceError::Corrupt {
            path: self.path.clone(),
            record: seq,
            what,
        };
        if len > MAX_TEXT {
            return Err(corrupt(format!(
                "its text of {len} bytes is over the limit"
            )));
        }
        match self.texts.get(&self.data, at, len, sum) {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err(bad)) => Err(corrupt(format!(
                "its text (byte {at} of the data file) {}",
                match bad {
                    Bad::Absent => "is not there",
                    Bad::Damaged => "has a wrong checksum",
                }
            ))),
            Err(source) => Err(TraceError::Read {
                path: self.data_path.clone(),
                at,
                source,
            }),
        }
    }

    fn corrupt(&self, record: u64, what: impl Into<String>) -> TraceError {
        TraceError::Corrupt {
            path: self.path.clone(),
            record,
            what: what.into(),
        }
    }
}

fn refuse(path: &Path, bad: BadHeader) -> TraceError {
    let path = path.to_owned();
    match bad {
        BadHeader::Not(what) => TraceError::NotATrace { path, what },
        BadHeader::Newer(major, minor) => TraceError::NewerMajor { path, major, minor },
    }
}

/// The header, or the part of it that is in use.
fn read_header(file: &File, path: &Path) -> Result<Vec<u8>, TraceError> {
    let failed = |source| TraceError::Read {
        path: path.to_owned(),
        at: 0,
        source,
    };
    let mut bytes = Vec::new();
    let read = read_at_most(file, 0, head::GAP_TABLE * 8, &mut bytes).map_err(failed)?;
    bytes.truncate(read);
    let gaps = bytes
        .get(head::GAPS * 8..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u64::from_le_bytes(*b));
    if gaps > 0 {
        let read = read_at_most(file, 0, HEADER_BYTES as usize, &mut bytes).map_err(failed)?;
        bytes.truncate(read);
    }
    Ok(bytes)
}

/// Reads `len` bytes into the begin of `into`, or fewer where the file ends; how many.
pub(super) fn read_at_most(
    file: &File,
    at: u64,
    len: usize,
    into: &mut Vec<u8>,
) -> io::Result<usize> {
    if into.len() < len {
        into.try_reserve_exact(len - into.len())
            .map_err(|_: TryReserveError| io::Error::from(io::ErrorKind::OutOfMemory))?;
        into.resize(len, 0);
    }
    let room = into.get_mut(..len).unwrap_or_default();
    let mut done = 0;
    while done < len {
        // Beyond i64 there is no file; pread would say EINVAL.
        let Some(from) = at
            .checked_add(done as u64)
            .filter(|&a| i64::try_from(a).is_ok())
        else {
            break;
        };
        match file.read_at(&mut room[done..], from) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
