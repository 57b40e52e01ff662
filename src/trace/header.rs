// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The header of either file, as the writer keeps it and as a reader sees it.

use std::sync::atomic::{AtomicU64, Ordering};

use super::format::{DATA_MAGIC, INDEX_MAGIC, MAJOR, MINOR, RECORD_BYTES, head, version_word};
use super::words::Words;

/// The writer's side: the mapped header of PATH.
#[derive(Debug)]
pub(super) struct HeaderWriter {
    words: Words,
}

impl HeaderWriter {
    /// Fills in a fresh header. Nobody sees the file before that is done.
    pub(super) fn begin(words: Words, id: u64, wall_ns: u64) -> HeaderWriter {
        let header = HeaderWriter { words };
        header.set(head::VERSION, version_word(MAJOR, MINOR));
        header.set(head::ID, id);
        header.set(head::WALL, wall_ns);
        header.set(head::MAGIC, INDEX_MAGIC);
        header
    }

    /// The header of a trace that is there, as it is.
    pub(super) fn of(words: Words) -> HeaderWriter {
        HeaderWriter { words }
    }

    /// The trace goes on: it is not closed any more.
    pub(super) fn open_again(&self) {
        self.set(head::FLAGS, 0);
        self.set(head::END, 0);
    }

    /// Fills in the header of PATH.data.
    pub(super) fn begin_data(words: &Words, id: u64) {
        let header = words.get();
        store(&header[head::VERSION], version_word(MAJOR, MINOR));
        store(&header[head::ID], id);
        store(&header[head::MAGIC], DATA_MAGIC);
    }

    /// Notes that `count` numbers from `first` on are lost. `false`: this entry
    /// had to be made endless because the table is full. One caller at a time.
    pub(super) fn note_gap(&self, first: u64, count: u64, errno: u64) -> bool {
        let header = self.words.get();
        let entries = load(&header[head::GAPS]) as usize;
        if let Some(last) = entries.checked_sub(1) {
            let entry = &header[head::GAP_TABLE + last * head::GAP_WORDS..];
            let last_count = load(&entry[1]);
            let follows = load(&entry[0]).checked_add(last_count) == Some(first);
            if follows && load(&entry[2]) == errno {
                store(&entry[1], last_count.saturating_add(count));
                return true;
            }
        }
        if entries >= head::MAX_GAPS {
            return false;
        }
        let room = entries + 1 < head::MAX_GAPS;
        let entry = &header[head::GAP_TABLE + entries * head::GAP_WORDS..];
        store(&entry[0], first);
        store(&entry[1], if room { count } else { u64::MAX - first });
        store(&entry[2], errno);
        store(&header[head::GAPS], entries as u64 + 1);
        room
    }

    /// Notes numbers that a killed writer took and never wrote: once the trace is closed they would
    /// look like damage. Where there is no room for that, they do: half of the table is left to gaps
    /// of a full disk, of which the last entry ends the trace.
    pub(super) fn note_killed(&self, first: u64, count: u64) {
        if load(&self.words.get()[head::GAPS]) < head::MAX_GAPS as u64 / 2 {
            self.note_gap(first, count, head::KILLED);
        }
    }

    /// Marks the file as closed in order; `end` numbers were given out.
    pub(super) fn close(&self, end: u64) {
        self.set(head::END, end);
        self.set(head::FLAGS, head::CLOSED);
    }

    fn set(&self, word: usize, value: u64) {
        store(&self.words.get()[word], value);
    }
}

fn store(word: &AtomicU64, value: u64) {
    word.store(value.to_le(), Ordering::Release);
}

fn load(word: &AtomicU64) -> u64 {
    u64::from_le(word.load(Ordering::Acquire))
}

/// A reader's copy of the header of PATH.
#[derive(Clone, Debug, Default)]
pub(super) struct Header {
    pub(super) id: u64,
    pub(super) wall_ns: u64,
    pub(super) closed: bool,
    pub(super) end: u64,
    /// (first, count, errno), as found; sorted where a writer of ours wrote it.
    pub(super) gaps: Vec<(u64, u64, u64)>,
}

/// Why a header was refused.
pub(super) enum BadHeader {
    /// Another kind of file.
    Not(String),
    /// A newer format.
    Newer(u16, u16),
}

impl Header {
    /// Judges the bytes of the header of PATH.
    pub(super) fn parse(bytes: &[u8]) -> Result<Header, BadHeader> {
        check(bytes, INDEX_MAGIC)?;
        let word = |i: usize| word(bytes, i);
        let entries = (word(head::GAPS) as usize).min(head::MAX_GAPS);
        Ok(Header {
            id: word(head::ID),
            wall_ns: word(head::WALL),
            closed: word(head::FLAGS) & head::CLOSED != 0,
            end: word(head::END),
            gaps: (0..entries)
                .map(|e| head::GAP_TABLE + e * head::GAP_WORDS)
                .map(|at| (word(at), word(at + 1), word(at + 2)))
                .collect(),
        })
    }

    /// Judges the bytes of the header of PATH.data, which must belong to this one.
    pub(super) fn check_data(&self, bytes: &[u8]) -> Result<(), BadHeader> {
        check(bytes, DATA_MAGIC)?;
        if word(bytes, head::ID) != self.id {
            return Err(BadHeader::Not("it belongs to another trace".into()));
        }
        Ok(())
    }

    /// The gap that `seq` lies in: the number after it, and the errno.
    pub(super) fn gap_at(&self, seq: u64) -> Option<(u64, u64)> {
        self.gaps
            .iter()
            .map(|&(first, count, errno)| (first, first.saturating_add(count), errno))
            .find(|&(first, end, _)| (first..end).contains(&seq))
            .map(|(_, end, errno)| (end, errno))
    }

    /// Where the first gap beyond `seq` begins.
    pub(super) fn next_gap(&self, seq: u64) -> Option<u64> {
        self.gaps
            .iter()
            .filter(|&&(first, count, _)| first > seq && count > 0)
            .map(|g| g.0)
            .min()
    }
}

fn check(bytes: &[u8], magic: u64) -> Result<(), BadHeader> {
    if word(bytes, head::MAGIC) != magic {
        return Err(BadHeader::Not("its first bytes are others".into()));
    }
    let version = word(bytes, head::VERSION);
    let (major, minor) = (version as u16, (version >> 16) as u16);
    if major > MAJOR {
        return Err(BadHeader::Newer(major, minor));
    }
    if major < MAJOR || version >> 32 != RECORD_BYTES {
        return Err(BadHeader::Not(format!(
            "format {major}.{minor} with records of {} bytes never existed",
            version >> 32
        )));
    }
    Ok(())
}

/// Word `i`; 0 beyond the end.
fn word(bytes: &[u8], i: usize) -> u64 {
    bytes
        .get(i * 8..)
        .and_then(|b| b.first_chunk())
        .map_or(0, |b| u64::from_le_bytes(*b))
}
