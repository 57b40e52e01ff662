// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A log of dm-log-writes as a trace.
//!
//! Such a log has no completions, no failures, no tags and nothing that was in flight:
//! what it says was written, was. So each entry becomes a request that is taken and
//! completed at once, and two things keep the promises from what is not known: the guest's
//! `tags` are said to be off, and a gap follows each boot, so that nothing is concluded
//! from what the device owed or from who failed.
//!
//! The file is hostile: every length is held against its size before it is used.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde_json::json;
use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{MAGIC as MARK_MAGIC, Mark};

use crate::{input, plain};

use super::TraceWriter;
use super::error::TraceError;
use super::event::{
    Body, Complete, DATA_DISK, DataEvent, DataKind, DeviceEvent, DeviceKind, Gap, MarkEvent, Op,
    Status, Submit,
};
use super::log_writes::{END, ENTRY, MAGIC, MAX_SECTORS, VERSION, flags};
use super::whole::WholeTrace;

/// Contents in one event.
const PIECE: u64 = 1 << 20;
/// Sector sizes that a disk has.
const SECTOR_SIZES: std::ops::RangeInclusive<u64> = 512..=65536;

/// Why a log was not imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The file cannot be opened or read.
    #[error("cannot read {path} at byte {at}: {source}", path = plain::path(path))]
    Read {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// It is no such log, or not a whole one.
    #[error("{path}, byte {at}: {what}", path = plain::path(path))]
    Wrong {
        /// The file.
        path: PathBuf,
        /// Where.
        at: u64,
        /// What is wrong.
        what: String,
    },
    /// The trace cannot be made.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// What was imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Entries of the log.
    pub entries: u64,
    /// Writes, discards among them.
    pub writes: u64,
    /// Flushes, also those that a write asks for.
    pub flushes: u64,
    /// Marks.
    pub marks: u64,
}

/// A log being read.
struct Log {
    path: PathBuf,
    file: BufReader<File>,
    at: u64,
    len: u64,
    sector: u64,
}

/// Makes a trace of the log `from`, whole or not at all; `force`: in place of one that is there.
pub fn import(from: &Path, to: &Path, force: bool) -> Result<Imported, ImportError> {
    let mut log = Log::open(from)?;
    let entries = log.superblock()?;
    let trace = WholeTrace::create(to, force)?;
    let writer = trace.writer();
    begin(writer, from);
    let mut done = Imported::default();
    for n in 0..entries {
        log.entry(n, entries, writer, &mut done)?;
        done.entries += 1;
    }
    trace.publish()?;
    Ok(done)
}

fn begin(writer: &TraceWriter, from: &Path) {
    let text = json!({"imported_from": "dm-log-writes", "file": from.display().to_string()});
    writer.record(&Body::Device(DeviceEvent {
        disk: DATA_DISK,
        queue: 0,
        kind: DeviceKind::Begin,
        a: 0,
        b: 0,
        text: text.to_string(),
    }));
    unknown(writer);
}

/// From here on nothing is known of requests in flight, failures and tags.
fn unknown(writer: &TraceWriter) {
    writer.record(&Body::Gap(Gap {
        missing: 1,
        why: "a log of dm-log-writes has no completions and no failures".into(),
    }));
    let off: BTreeMap<_, _> = [("tags".to_owned(), "off".to_owned())].into();
    mark(writer, &Mark::Env(off).to_line());
}

fn mark(writer: &TraceWriter, line: &str) {
    writer.record(&Body::Mark(MarkEvent {
        line: line.to_owned(),
        ordered: true,
    }));
}

impl Log {
    fn open(path: &Path) -> Result<Log, ImportError> {
        let failed = |source| ImportError::Read {
            path: path.to_owned(),
            at: 0,
            source,
        };
        let mut file = input::open(path).map_err(failed)?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(ImportError::Wrong {
                path: path.to_owned(),
                at: 0,
                what: "it is no regular file and no block device".into(),
            });
        }
        // A block device has its length at its end, too.
        let len = file.seek(SeekFrom::End(0)).map_err(failed)?;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(Log {
            path: path.to_owned(),
            file: BufReader::with_capacity(1 << 20, file),
            at: 0,
            len,
            sector: SECTOR,
        })
    }

    fn wrong(&self, at: u64, what: impl Into<String>) -> ImportError {
        ImportError::Wrong {
            path: self.path.clone(),
            at,
            what: what.into(),
        }
    }

    fn take(&mut self, bytes: u64) -> Result<Vec<u8>, ImportError> {
        let mut buffer = vec![0; usize::try_from(bytes).unwrap_or(0)];
        self.file
            .read_exact(&mut buffer)
            .map_err(|source| ImportError::Read {
                path: self.path.clone(),
                at: self.at,
                source,
            })?;
        self.at += bytes;
        Ok(buffer)
    }

    /// The number of entries.
    fn superblock(&mut self) -> Result<u64, ImportError> {
        const FIELDS: u64 = 28;
        if self.len < FIELDS {
            return Err(self.wrong(0, "too short for the superblock of dm-log-writes"));
        }
        let head = self.take(FIELDS)?;
        let [magic, version, entries] = [word(&head, 0), word(&head, 8), word(&head, 16)];
        let sector = head.get(24..28).and_then(|b| b.first_chunk());
        self.sector = sector.map_or(0, |b| u64::from(u32::from_le_bytes(*b)));
        if magic != MAGIC {
            return Err(self.wrong(0, "no log of dm-log-writes: its magic is not there"));
        }
        if version != VERSION {
            return Err(self.wrong(
                8,
                format!("version {version} of dm-log-writes, expected {VERSION}"),
            ));
        }
        if !self.sector.is_power_of_two() || !SECTOR_SIZES.contains(&self.sector) {
            let what = format!(
                "sectors of {} bytes, expected a power of two from 512 to 65536",
                self.sector
            );
            return Err(self.wrong(24, what));
        }
        if entries > self.len / self.sector {
            let what = format!("{entries} entries in a file of {} bytes", self.len);
            return Err(self.wrong(16, what));
        }
        self.skip_to(self.sector)?;
        Ok(entries)
    }

    fn skip_to(&mut self, at: u64) -> Result<(), ImportError> {
        let step = i64::try_from(at - self.at).unwrap_or(i64::MAX);
        self.file
            .seek_relative(step)
            .map_err(|source| ImportError::Read {
                path: self.path.clone(),
                at,
                source,
            })?;
        self.at = at;
        Ok(())
    }

    fn entry(
        &mut self,
        n: u64,
        of: u64,
        writer: &TraceWriter,
        done: &mut Imported,
    ) -> Result<(), ImportError> {
        let at = self.at;
        if self.len - at < self.sector {
            return Err(self.wrong(at, format!("the file ends before entry {n} of {of}")));
        }
        let header = self.take(self.sector)?;
        let [sector, sectors, kind, data] = [0, 8, 16, 24].map(|field| word(&header, field));
        if kind & !flags::ALL != 0 {
            return Err(self.wrong(
                at + 16,
                format!("entry {n} has the unknown flags {kind:#x}"),
            ));
        }
        if kind & flags::MARK != 0 {
            let room = self.sector - ENTRY as u64;
            if data > room {
                let what = format!(
                    "the mark of entry {n} has {data} bytes, its sector has room for {room}"
                );
                return Err(self.wrong(at + 24, what));
            }
            done.marks += 1;
            let text = header.get(ENTRY..ENTRY + data as usize).unwrap_or_default();
            self.mark(text, writer);
            return Ok(());
        }
        let bytes = sectors.checked_mul(self.sector);
        let place = sector.saturating_mul(self.sector / SECTOR);
        let Some(bytes) = bytes.filter(|b| *b <= u64::from(u32::MAX)) else {
            let what = format!("entry {n} has {sectors} sectors: more than a request can have");
            return Err(self.wrong(at + 8, what));
        };
        // Beyond that neither a disk nor a trace has a place.
        if bytes > 0 && place.saturating_add(bytes / SECTOR) > MAX_SECTORS {
            let what = format!("entry {n} lies at sector {sector}: no disk is so large");
            return Err(self.wrong(at, what));
        }
        if kind & flags::FLUSH != 0 {
            done.flushes += 1;
            request(writer, Op::Flush, 0, 0, |_| Ok(()))?;
        }
        if kind & flags::DISCARD != 0 {
            done.writes += 1;
            let zeroed = bytes / SECTOR;
            request(writer, Op::Discard, place, bytes, |id| {
                let bytes = zeroed.to_le_bytes().to_vec();
                data_event(writer, id, DataKind::Zeroed, place, bytes);
                Ok(())
            })?;
        } else if bytes > 0 {
            if bytes > self.len - self.at {
                let what = format!("entry {n} has {bytes} bytes of data, the file ends before");
                return Err(self.wrong(at + 8, what));
            }
            done.writes += 1;
            request(writer, Op::Write, place, bytes, |id| {
                let mut left = bytes;
                let mut to = place;
                while left > 0 {
                    let piece = self.take(left.min(PIECE))?;
                    left -= piece.len() as u64;
                    let sectors = piece.len() as u64 / SECTOR;
                    data_event(writer, id, DataKind::Stored, to, piece);
                    to += sectors;
                }
                Ok(())
            })?;
        }
        if kind & flags::FUA != 0 {
            done.flushes += 1;
            request(writer, Op::Flush, 0, 0, |_| Ok(()))?;
        }
        Ok(())
    }

    /// A mark of ours is one again; any other text becomes a note.
    fn mark(&self, text: &[u8], writer: &TraceWriter) {
        let text = String::from_utf8_lossy(text);
        let text = text.trim_end_matches('\0');
        if text == END {
            return;
        }
        let ours = text
            .strip_prefix(MARK_MAGIC)
            .is_some_and(|t| t.starts_with(' '));
        match ours.then(|| Mark::from_line(text)) {
            Some(Ok(Mark::Env(mut facts))) => {
                facts.retain(|key, _| !key.starts_with("tags"));
                mark(writer, &Mark::Env(facts).to_line());
            }
            Some(Ok(Mark::Boot)) => {
                mark(writer, text);
                unknown(writer);
            }
            Some(Ok(_)) => {
                mark(writer, text);
            }
            // One of ours that was cut, say.
            Some(Err(_)) | None => {
                let note = Mark::Note {
                    text: text.to_owned(),
                };
                mark(writer, &note.to_line());
            }
        }
    }
}

/// A request that is taken and completed at once.
fn request(
    writer: &TraceWriter,
    op: Op,
    sector: u64,
    bytes: u64,
    contents: impl FnOnce(u64) -> Result<(), ImportError>,
) -> Result<(), ImportError> {
    let id = writer.record(&Body::Submit(Submit {
        disk: DATA_DISK,
        queue: 0,
        op,
        sector,
        bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        ioprio: 0,
        epoch: 1,
        avail_pos: 0,
        digest: 0,
    }));
    contents(id)?;
    writer.record(&Body::Complete(Complete {
        request: id,
        status: Status::OK,
        avail_after: 0,
        abandoned: false,
        digest: 0,
    }));
    Ok(())
}

fn data_event(writer: &TraceWriter, request: u64, kind: DataKind, sector: u64, bytes: Vec<u8>) {
    writer.record(&Body::Data(DataEvent {
        request,
        kind,
        sector,
        bytes,
    }));
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|b| b.first_chunk());
    field.map_or(0, |b| u64::from_le_bytes(*b))
}
