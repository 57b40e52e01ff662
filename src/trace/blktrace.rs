// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Export as blktrace's binary files, one for each queue: PREFIX.blktrace.N, what
//! `blkparse` prints and `btt` takes. The structure is `struct blk_io_trace` of
//! `include/uapi/linux/blktrace_api.h`, little-endian.
//!
//! The device sees a request when it is taken and when it is completed; so queueing,
//! allocation, insertion and issue all stand at the moment of the taking. The call's
//! tag is in the field for the pid.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use wtblk_shared::mark::Mark;
use wtblk_shared::tag::Tag;

use super::event::{Body, DATA_DISK, Event, Op, RequestId, Submit};
use super::export::{ExportError, Sink, output};

/// BLK_IO_TRACE_MAGIC | BLK_IO_TRACE_VERSION.
const MAGIC: u32 = 0x6561_7400 | 0x07;
/// The device number that virtio's first disk usually has, as the kernel's `dev_t`: 254:0.
const DEVICE: u32 = 254 << 20;
/// Categories (BLK_TC_*), already shifted.
mod category {
    pub(super) const READ: u32 = 1 << 16;
    pub(super) const WRITE: u32 = 1 << 17;
    pub(super) const FLUSH: u32 = 1 << 18;
    pub(super) const QUEUE: u32 = 1 << 20;
    pub(super) const ISSUE: u32 = 1 << 22;
    pub(super) const COMPLETE: u32 = 1 << 23;
    pub(super) const NOTIFY: u32 = 1 << 26;
    pub(super) const DISCARD: u32 = 1 << 29;
}
/// Actions (__BLK_TA_*): queued, a request allocated, inserted, sent to the driver, completed.
const QUEUED: u32 = 1 | category::QUEUE;
const GOT: u32 = 4 | category::QUEUE;
const INSERTED: u32 = 12 | category::QUEUE;
const ISSUED: u32 = 7 | category::ISSUE;
const COMPLETED: u32 = 8 | category::COMPLETE;
/// Notes (__BLK_TN_*): the name of a pid, the wall clock, a message.
const PROCESS: u32 = category::NOTIFY;
const TIMESTAMP: u32 = 1 | category::NOTIFY;
const MESSAGE: u32 = 2 | category::NOTIFY;
/// Longest message; BLK_TN_MAX_MSG of the kernel.
const MAX_MESSAGE: usize = 128;
/// Requests in flight that are followed.
const MAX_OPEN: usize = 1 << 20;
/// Queues: each is a file.
pub const MAX_QUEUES: u16 = 256;

/// Writes the files.
#[derive(Debug)]
pub struct Blktrace {
    prefix: PathBuf,
    files: HashMap<u16, (PathBuf, BufWriter<File>)>,
    sequence: u32,
    now_ns: u64,
    wall_ns: u64,
    open: HashMap<RequestId, Submit>,
    /// Tags that have got their names.
    named: HashSet<u16>,
    /// Which call has a tag now.
    calls: HashMap<u16, u64>,
}

/// One record, but for what all have.
struct Record<'a> {
    cpu: u16,
    action: u32,
    sector: u64,
    bytes: u32,
    pid: u32,
    error: u16,
    pdu: &'a [u8],
}

/// PREFIX.blktrace.N.
pub fn file_of(prefix: &Path, queue: u16) -> PathBuf {
    let mut name = prefix.to_owned().into_os_string();
    name.push(format!(".blktrace.{queue}"));
    name.into()
}

impl Blktrace {
    /// Into PREFIX.blktrace.0 and so on; `wall_ns` is the wall clock at the begin of the trace.
    pub fn new(prefix: &Path, wall_ns: u64) -> Result<Blktrace, ExportError> {
        let mut sink = Blktrace {
            prefix: prefix.to_owned(),
            files: HashMap::new(),
            sequence: 0,
            now_ns: 0,
            wall_ns,
            open: HashMap::new(),
            named: HashSet::new(),
            calls: HashMap::new(),
        };
        // A trace without any request is one, too.
        sink.file(0)?;
        Ok(sink)
    }

    /// The file of a queue, made when its first record comes.
    fn file(&mut self, cpu: u16) -> Result<&mut (PathBuf, BufWriter<File>), ExportError> {
        if !self.files.contains_key(&cpu) {
            let path = file_of(&self.prefix, cpu);
            let file = File::create(&path).map_err(output(&path))?;
            self.files.insert(cpu, (path, BufWriter::new(file)));
            let wall = self.wall_ns.saturating_add(self.now_ns);
            let seconds = u32::try_from(wall / 1_000_000_000).unwrap_or(u32::MAX);
            let rest = (wall % 1_000_000_000) as u32;
            let pdu = [seconds.to_le_bytes(), rest.to_le_bytes()].concat();
            self.record(&Record::note(cpu, TIMESTAMP, 0, &pdu))?;
        }
        let path = || ExportError::Cannot("a queue without a file".into());
        self.files.get_mut(&cpu).ok_or_else(path)
    }

    fn record(&mut self, r: &Record<'_>) -> Result<(), ExportError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut raw = Vec::with_capacity(48 + r.pdu.len());
        for word in [MAGIC, self.sequence] {
            raw.extend(word.to_le_bytes());
        }
        for word in [self.now_ns, r.sector] {
            raw.extend(word.to_le_bytes());
        }
        for word in [r.bytes, r.action, r.pid, DEVICE, u32::from(r.cpu)] {
            raw.extend(word.to_le_bytes());
        }
        raw.extend(r.error.to_le_bytes());
        raw.extend((r.pdu.len() as u16).to_le_bytes());
        raw.extend(r.pdu);
        let (path, file) = self.file(r.cpu)?;
        file.write_all(&raw).map_err(output(path))
    }

    fn submit(&mut self, id: RequestId, s: &Submit) -> Result<(), ExportError> {
        if s.queue >= MAX_QUEUES || self.open.len() >= MAX_OPEN {
            return Ok(());
        }
        let pid = pid(s);
        let tag = pid as u16;
        if tag != 0 && self.named.insert(tag) {
            let name = match self.calls.get(&tag) {
                Some(call) => format!("call-{call}"),
                None => format!("tag-{tag}"),
            };
            // The kernel's names have 16 bytes, with a zero at the end.
            let mut pdu = name.into_bytes();
            pdu.resize(16, 0);
            self.record(&Record::note(s.queue, PROCESS, pid, &pdu))?;
        }
        for action in [QUEUED, GOT, INSERTED, ISSUED] {
            self.record(&Record::of(s, action, 0))?;
        }
        self.open.insert(id, s.clone());
        Ok(())
    }

    fn message(&mut self, text: &str) -> Result<(), ExportError> {
        let text = text.replace(|c: char| c.is_control(), " ");
        let cut = text.floor_char_boundary(MAX_MESSAGE);
        self.record(&Record::note(0, MESSAGE, 0, &text.as_bytes()[..cut]))
    }
}

impl<'a> Record<'a> {
    fn note(cpu: u16, action: u32, pid: u32, pdu: &'a [u8]) -> Record<'a> {
        Record {
            cpu,
            action,
            sector: 0,
            bytes: 0,
            pid,
            error: 0,
            pdu,
        }
    }

    fn of(s: &Submit, action: u32, error: u16) -> Record<'a> {
        let kind = match s.op {
            Op::Read | Op::GetId => category::READ,
            Op::Write | Op::WriteZeroes | Op::Other => category::WRITE,
            Op::Flush => category::WRITE | category::FLUSH,
            Op::Discard => category::WRITE | category::DISCARD,
        };
        Record {
            cpu: s.queue,
            action: action | kind,
            sector: s.sector,
            bytes: s.bytes,
            pid: pid(s),
            error,
            pdu: &[],
        }
    }
}

/// The call's tag; 0 where there is none.
fn pid(s: &Submit) -> u32 {
    Tag::from_ioprio(s.ioprio).map_or(0, |t| u32::from(t.number()))
}

impl Sink for Blktrace {
    fn event(&mut self, event: &Event) -> Result<(), ExportError> {
        // Times need not rise with the numbers, but those of a file must.
        self.now_ns = self.now_ns.max(event.time_ns);
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => self.submit(event.seq, s),
            Body::Complete(c) => match self.open.remove(&c.request) {
                Some(s) if !c.abandoned => {
                    // What Linux makes of IOERR, UNSUPP and the rest: EIO, EOPNOTSUPP, EIO.
                    let errno = match c.status.0 {
                        0 => 0,
                        2 => 95,
                        _ => 5,
                    };
                    self.record(&Record::of(&s, COMPLETED, errno))
                }
                _ => Ok(()),
            },
            Body::Mark(m) => {
                if let Ok(Mark::Begin(b)) = m.parse()
                    && let Some(tag) = b.tag
                {
                    self.calls.insert(tag, b.call);
                    self.named.remove(&tag);
                }
                self.message(&m.line)
            }
            Body::Gap(g) => self.message(&format!("wtblk: {} events are missing", g.missing)),
            Body::Decide(d) => {
                let text = format!("wtblk: rule {} on request {}", d.name, d.request);
                self.message(&text)
            }
            _ => Ok(()),
        }
    }

    fn end(&mut self) -> Result<(), ExportError> {
        for (path, file) in self.files.values_mut() {
            file.flush().map_err(output(path))?;
        }
        Ok(())
    }
}
