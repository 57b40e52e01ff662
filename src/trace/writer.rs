// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes a trace. Shared by all queues; what they share on the way of a request
//! is one `fetch_add`. Never waits for a reader, never fails: what finds no room
//! becomes a gap that the reader shows.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::holder::holder;
use crate::plain;

use super::chunks::{Chunk, Chunks};
use super::error::TraceError;
use super::event::Body;
use super::format::{
    CHUNK_BYTES, CHUNK_RECORDS, DATA_MAGIC, HEADER_BYTES, INDEX_MAGIC, MAX_CHUNKS, MAX_TEXT,
    RECORD_WORDS, commit_word, mix, text_sum, text_words,
};
use super::header::HeaderWriter;
use super::record::{DATA_PLACE, FACTS, TEXT_SUM, cut, encode, lost_text, text_ref};
use super::resume::{self, Left, Place};
use super::words::Words;

/// The errno of a gap that our own limit made.
const EFBIG: u64 = libc::EFBIG as u64;

/// How long a full disk is left in peace before the next text tries again.
const RETRY_NS: u64 = 100_000_000;

/// A trace being written. `Send` and `Sync`; share it as an `Arc`.
#[derive(Debug)]
pub struct TraceWriter {
    next: AtomicU64,
    began: Instant,
    /// What the trace had behind it when this process began.
    before_ns: u64,
    /// Its first events are of another process.
    goes_on: bool,
    files: Option<Arc<Files>>,
}

/// A chunk that will be needed.
#[derive(Debug)]
enum Ahead {
    Index(u64),
    Data(u64),
}

#[derive(Debug)]
struct Files {
    header: HeaderWriter,
    /// For people.
    path: PathBuf,
    index: Chunks,
    data: Chunks,
    /// Next free byte after the header of PATH.data, a multiple of 8.
    data_next: AtomicU64,
    /// Not before this time is a chunk of texts tried again.
    data_retry_ns: AtomicU64,
    closed: AtomicBool,
    /// The index has all the chunks it may have.
    full: AtomicBool,
    /// People were told that events are lost.
    said: AtomicBool,
    /// To the thread that makes chunks ahead.
    ahead: Sender<Ahead>,
    /// Its other end, until there is such a thread. It is made when it is first wanted, by whoever
    /// writes: so it has the sandbox of the writer, which is entered after a trace is made.
    idle: Mutex<Option<Receiver<Ahead>>>,
}

/// `data_next` of a closed trace.
const NO_MORE: u64 = u64::MAX;

impl TraceWriter {
    /// Makes PATH and PATH.data, in place of whatever trace was there, with
    /// room for the first events. They appear under their names only when
    /// they are complete, so a reader that finds PATH can open it.
    pub fn create(path: &Path) -> Result<TraceWriter, TraceError> {
        let failed = |source| TraceError::Create {
            path: path.to_owned(),
            source,
        };
        let data_path = data_path(path);
        // Kept until the new one has the name: of two that come at once one is told of the other.
        let old = place_for(path)?;
        let index = Fresh::create(path).map_err(failed)?;
        lock(&index.file, path)?;
        let data = Fresh::create(&data_path).map_err(failed)?;
        let files = Files::begin(path, &index.file, &data.file).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => TraceError::NoRoom {
                    path: path.to_owned(),
                    need: 2 * (HEADER_BYTES + CHUNK_BYTES),
                    source,
                },
                _ => failed(source),
            }
        })?;
        data.publish().map_err(failed)?;
        index.publish().map_err(failed)?;
        drop(old);
        Ok(TraceWriter {
            next: AtomicU64::new(0),
            began: Instant::now(),
            before_ns: 0,
            goes_on: false,
            files: Some(Arc::new(files)),
        })
    }

    /// Goes on with the trace at PATH that another process, which must be dead, has left; makes
    /// one where there is none. What that process left open is told. `fits` says why what is left
    /// cannot be gone on with; then nothing is changed.
    pub fn go_on(
        path: &Path,
        fits: impl FnOnce(&Left) -> Result<(), String>,
    ) -> Result<(TraceWriter, Left), TraceError> {
        if !path.exists() {
            tracing::info!(
                "there is no trace {} to go on with: it is begun anew",
                path.display()
            );
            return Ok((TraceWriter::create(path)?, Left::default()));
        }
        let failed = |source| TraceError::GoOn {
            path: path.to_owned(),
            source,
        };
        let (place, left) = resume::look(path)?;
        fits(&left).map_err(|why| TraceError::Another {
            path: path.to_owned(),
            why,
        })?;
        let files = Arc::new(Files::go_on(path, &place).map_err(failed)?);
        let writer = TraceWriter {
            next: AtomicU64::new(place.next),
            began: Instant::now(),
            before_ns: place.now_ns,
            goes_on: true,
            files: Some(files),
        };
        Ok((writer, left))
    }

    /// Whether its first events are of another process.
    pub fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// A trace that gives numbers and keeps nothing.
    pub fn null() -> TraceWriter {
        TraceWriter {
            next: AtomicU64::new(0),
            began: Instant::now(),
            before_ns: 0,
            goes_on: false,
            files: None,
        }
    }

    /// Whether events found no room so far.
    pub(super) fn lost_events(&self) -> bool {
        let files = self.files.as_ref();
        files.is_some_and(|f| f.said.load(Ordering::Relaxed))
    }

    /// Takes the next number. It must be committed: until then a live reader waits at it.
    pub fn reserve(&self) -> u64 {
        // AcqRel: see `close`.
        self.next.fetch_add(1, Ordering::AcqRel)
    }

    /// Writes the event with a number from [`TraceWriter::reserve`], once.
    pub fn commit(&self, seq: u64, body: &Body) {
        let Some(files) = &self.files else { return };
        files.commit(seq, self.now_ns(), body);
    }

    /// The same with a time of [`TraceWriter::now_ns`] that several events share: reading the
    /// clock costs as much as writing a record.
    pub fn commit_at(&self, seq: u64, time_ns: u64, body: &Body) {
        let Some(files) = &self.files else { return };
        files.commit(seq, time_ns, body);
    }

    /// Takes a number and writes the event with it.
    pub fn record(&self, body: &Body) -> u64 {
        let seq = self.reserve();
        self.commit(seq, body);
        seq
    }

    /// The same with a time that is known: see [`TraceWriter::commit_at`], or of another trace.
    pub fn record_at(&self, time_ns: u64, body: &Body) -> u64 {
        let seq = self.reserve();
        if let Some(files) = &self.files {
            files.commit(seq, time_ns, body);
        }
        seq
    }

    /// The same for events that are timed only where they are kept: 0 where none is.
    pub fn stamp(&self) -> u64 {
        self.files.as_ref().map_or(0, |_| self.now_ns())
    }

    /// Monotonic time since the trace began.
    pub fn now_ns(&self) -> u64 {
        let since = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.before_ns.saturating_add(since)
    }

    /// Marks the file as closed in order and gives back the room that was not
    /// used. Call it when the threads that write are done: an event that is
    /// committed later is lost.
    pub fn close(&self) {
        let Some(files) = &self.files else { return };
        let mut index = files.index.lock();
        let mut data = files.data.lock();
        if files.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        index.stopped = true;
        data.stopped = true;
        // Whoever takes a number after this read-modify-write synchronises with it
        // and so sees `closed`; whoever took one before writes below `end`. Either
        // way nobody touches what is cut off. The same holds for texts.
        let end = self.next.fetch_add(0, Ordering::AcqRel);
        let used = files.data_next.swap(NO_MORE, Ordering::AcqRel);
        files.header.close(end);
        files
            .index
            .cut(&index, end.saturating_mul(RECORD_WORDS as u64 * 8));
        files.data.cut(&data, used);
    }
}

impl Drop for TraceWriter {
    /// Whoever opens the trace next may do so at once: the thread that makes chunks ahead may still
    /// have the file open for a moment.
    fn drop(&mut self) {
        if let Some(files) = &self.files {
            let _ = files.index.file().unlock();
        }
    }
}

/// PATH.data.
pub(super) fn data_path(path: &Path) -> PathBuf {
    with_suffix(path, ".data")
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Whether a new trace may take these names; the old one, locked, where there is one.
pub(super) fn place_for(path: &Path) -> Result<Option<File>, TraceError> {
    let failed = |source| TraceError::Create {
        path: path.to_owned(),
        source,
    };
    for (name, magic) in [(path, INDEX_MAGIC), (&data_path(path), DATA_MAGIC)] {
        // The new file takes the name of the old: never that of an image, a
        // device, a folder or anything else that is no trace.
        if let Some(why) = irreplaceable(name, magic) {
            let why = format!("{} exists and {why}", plain::path(name));
            return Err(failed(io::Error::other(why)));
        }
    }
    let old = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        old => Some(old.map_err(failed)?),
    };
    if let Some(old) = &old {
        lock(old, path)?;
    }
    Ok(old)
}

/// Takes the trace for this process, as long as the file is open. A file system without locks is no error.
pub(super) fn lock(file: &File, path: &Path) -> Result<(), TraceError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(TraceError::InUse {
            path: path.to_owned(),
            by: holder(file, "this process"),
        }),
        Err(TryLockError::Error(error)) => {
            let shown = path.display();
            tracing::warn!("trace {shown} cannot be locked ({error}): nobody else is kept from it");
            Ok(())
        }
    }
}

/// Why a trace must not take this name; `None` where nothing or such a file of a trace has it.
fn irreplaceable(name: &Path, magic: u64) -> Option<&'static str> {
    let meta = fs::metadata(name).ok()?;
    if !meta.is_file() {
        return Some("is no regular file");
    }
    if meta.len() == 0 {
        return None;
    }
    let mut found = [0; 8];
    let read = File::open(name).and_then(|mut file| file.read_exact(&mut found));
    (read.is_err() || u64::from_le_bytes(found) != magic)
        .then_some("is no trace: it is not overwritten")
}

/// A file that has not got its name yet; removed when it never gets it.
struct Fresh {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
    published: bool,
}

impl Fresh {
    fn create(path: &Path) -> io::Result<Fresh> {
        let temporary = with_suffix(path, ".wtblk-new");
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        Ok(Fresh {
            file,
            temporary,
            path: path.to_owned(),
            published: false,
        })
    }

    fn publish(mut self) -> io::Result<()> {
        fs::rename(&self.temporary, &self.path)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if !self.published {
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

impl Files {
    /// Allocates headers and first chunks.
    fn begin(path: &Path, index_file: &File, data_file: &File) -> io::Result<Files> {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
        let id = mix(wall, u64::from(std::process::id()));
        let index_header = Words::allocate(index_file, 0, HEADER_BYTES as usize)?;
        let data_header = Words::allocate(data_file, 0, HEADER_BYTES as usize)?;
        HeaderWriter::begin_data(&data_header, id);
        let (ahead, wanted) = channel();
        let files = Files {
            header: HeaderWriter::begin(index_header, id, wall),
            path: path.to_owned(),
            index: Chunks::new(index_file.try_clone()?),
            data: Chunks::new(data_file.try_clone()?),
            data_next: AtomicU64::new(0),
            data_retry_ns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            said: AtomicBool::new(false),
            ahead,
            idle: Mutex::new(Some(wanted)),
        };
        files.index.make(&files.index.lock(), 0)?;
        files.data.make(&files.data.lock(), 0)?;
        Ok(files)
    }

    /// Over files that are there.
    fn go_on(path: &Path, place: &Place) -> io::Result<Files> {
        let header = Words::allocate(&place.index, 0, HEADER_BYTES as usize)?;
        let (ahead, wanted) = channel();
        let files = Files {
            header: HeaderWriter::of(header),
            path: path.to_owned(),
            index: Chunks::new(place.index.try_clone()?),
            data: Chunks::new(place.data.try_clone()?),
            data_next: AtomicU64::new(place.data_next),
            data_retry_ns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            full: AtomicBool::new(false),
            said: AtomicBool::new(false),
            ahead,
            idle: Mutex::new(Some(wanted)),
        };
        // What is there of a chunk stays: allocating it again changes nothing.
        let chunk = place.next / CHUNK_RECORDS;
        files.index.make(&files.index.lock(), chunk)?;
        let chunk = place.data_next / CHUNK_BYTES;
        if let Err(error) = files.data.make(&files.data.lock(), chunk) {
            match error.raw_os_error() {
                // As in a trace that is being written: it is tried again with each text. A guest that
                // waits for its disk is not to lose it for that.
                Some(libc::ENOSPC | libc::EDQUOT) => {}
                _ => return Err(error),
            }
        }
        // Last: a trace that cannot be gone on with is left as it is.
        files.header.open_again();
        for &(first, count) in &place.killed {
            files.header.note_killed(first, count);
        }
        Ok(files)
    }

    /// Tells the thread that makes chunks ahead of need: allocating room may take the host's file
    /// system its time, and no queue is to wait for that. It ends with the files, which have the
    /// other end.
    fn want(self: &Arc<Files>, chunk: Ahead) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(wanted) = idle.take() {
            let files = Arc::downgrade(self);
            let thread = thread::Builder::new().name("trace-ahead".into());
            let made = thread.spawn(move || {
                for chunk in wanted {
                    let Some(files) = files.upgrade() else { return };
                    match chunk {
                        Ahead::Index(chunk) => files.index.make_ahead(chunk),
                        Ahead::Data(chunk) => files.data.make_ahead(chunk),
                    }
                }
            });
            if let Err(error) = made {
                tracing::warn!("no thread makes room for the trace ahead of need: {error}");
            }
        }
        drop(idle);
        // Without the thread whoever needs the chunk makes it.
        let _ = self.ahead.send(chunk);
    }

    fn commit(self: &Arc<Files>, seq: u64, time_ns: u64, body: &Body) {
        if self.closed.load(Ordering::SeqCst) {
            return;
        }
        let (chunk, slot) = (seq / CHUNK_RECORDS, seq % CHUNK_RECORDS);
        let Some(words) = self.index_chunk(chunk) else {
            return;
        };
        let at = slot as usize * RECORD_WORDS;
        let record = &words[at..at + RECORD_WORDS];

        let (mut kind, mut facts, text) = encode(body);
        let (mut place, mut sum) = (0, 0);
        if !text.is_empty() {
            let text = cut(&text);
            match self.keep_text(text.as_bytes(), time_ns) {
                Some(kept) => (place, sum) = (kept, text_sum(text.as_bytes())),
                None => (kind, facts) = lost_text(),
            }
        }
        if let Body::Data(data) = body
            && let bytes = &data.bytes[..data.bytes.len().min(MAX_TEXT)]
            && !bytes.is_empty()
            && let Some(kept) = self.keep_text(bytes, time_ns)
        {
            (facts[DATA_PLACE], facts[DATA_PLACE + 1]) = (kept, text_sum(bytes));
        }
        let mut rest = [time_ns, place, 0, 0, 0, 0, sum];
        rest[FACTS - 1..TEXT_SUM - 1].copy_from_slice(&facts);
        for (word, value) in record[1..].iter().zip(rest) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        // Release: who sees the commit word sees the record and its text.
        record[0].store(commit_word(seq, kind, &rest).to_le(), Ordering::Release);

        // The next chunk is there before anybody needs it; a second try for a disk
        // that was full at the first.
        if slot == 0 || slot == CHUNK_RECORDS / 4 * 3 {
            self.want(Ahead::Index(chunk + 1));
        }
    }

    /// Once: whoever looks at the trace later finds the gaps in it.
    fn say(&self, why: &io::Error) {
        if !self.said.swap(true, Ordering::Relaxed) {
            let path = self.path.display();
            tracing::warn!("the trace {path} has no room, events are lost from here on: {why}");
        }
    }

    /// The chunk, made now where it must be; `None` where its events are lost.
    fn index_chunk(&self, chunk: u64) -> Option<&[AtomicU64]> {
        match self.index.get(chunk) {
            Chunk::Ready(words) => return Some(words),
            Chunk::Lost => return None,
            Chunk::Missing if chunk >= MAX_CHUNKS as u64 => {
                if !self.full.swap(true, Ordering::Relaxed) {
                    self.say(&io::Error::from_raw_os_error(libc::EFBIG));
                    let mut lock = self.index.lock();
                    let first = MAX_CHUNKS as u64 * CHUNK_RECORDS;
                    self.header.note_gap(first, u64::MAX - first, EFBIG);
                    lock.stopped = true;
                }
                return None;
            }
            Chunk::Missing => {}
        }
        let mut lock = self.index.lock();
        if matches!(self.index.get(chunk), Chunk::Missing)
            && let Err(error) = self.index.make(&lock, chunk)
        {
            if self.closed.load(Ordering::SeqCst) {
                return None;
            }
            self.say(&error);
            let errno = error.raw_os_error().unwrap_or(0);
            let noted = self.header.note_gap(
                chunk * CHUNK_RECORDS,
                CHUNK_RECORDS,
                u64::from(errno.unsigned_abs()),
            );
            self.index.give_up(&lock, chunk);
            if !noted {
                // No more room to say what is missing: everything from here on is.
                lock.stopped = true;
            }
        }
        match self.index.get(chunk) {
            Chunk::Ready(words) => Some(words),
            Chunk::Lost | Chunk::Missing => None,
        }
    }

    /// Writes a text (not empty, at most MAX_TEXT bytes) and gives its place.
    fn keep_text(self: &Arc<Files>, text: &[u8], now_ns: u64) -> Option<u64> {
        let need = (text.len() as u64).next_multiple_of(8);
        let mut start = 0;
        self.data_next
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |next| {
                if next == NO_MORE {
                    return None;
                }
                // A text never crosses chunks: the next one may be missing.
                start = if next % CHUNK_BYTES + need > CHUNK_BYTES {
                    next.next_multiple_of(CHUNK_BYTES)
                } else {
                    next
                };
                Some(start + need)
            })
            .ok()?;
        let (chunk, from) = (start / CHUNK_BYTES, start % CHUNK_BYTES);
        let words = self.data_chunk(chunk, now_ns)?;
        for (word, value) in words[(from / 8) as usize..].iter().zip(text_words(text)) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
        // The record's release store publishes these too; the fence only says so here.
        fence(Ordering::Release);
        let half = CHUNK_BYTES / 2;
        if from < half && from + need >= half {
            self.want(Ahead::Data(chunk + 1));
        }
        Some(text_ref(HEADER_BYTES + start, text.len()))
    }

    /// Unlike an index chunk, one of texts is never given up: what finds no room
    /// is lost text by text.
    fn data_chunk(&self, chunk: u64, now_ns: u64) -> Option<&[AtomicU64]> {
        match self.data.get(chunk) {
            Chunk::Ready(words) => return Some(words),
            Chunk::Lost => return None,
            Chunk::Missing if now_ns < self.data_retry_ns.load(Ordering::Relaxed) => return None,
            Chunk::Missing => {}
        }
        let lock = self.data.lock();
        if matches!(self.data.get(chunk), Chunk::Missing)
            && let Err(error) = self.data.make(&lock, chunk)
        {
            self.say(&error);
            self.data_retry_ns
                .store(now_ns.saturating_add(RETRY_NS), Ordering::Relaxed);
            return None;
        }
        match self.data.get(chunk) {
            Chunk::Ready(words) => Some(words),
            Chunk::Lost | Chunk::Missing => None,
        }
    }
}
