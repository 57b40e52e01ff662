// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mark: one line of text that the guest writes to the mark disk.
//!
//! `wtblk/1 VERB key=value key=value ...\n`, NUL padded to a whole number of
//! sectors, one O_DIRECT write each. Values are percent-encoded where they hold
//! a space, a control character, `%` or a byte above 0x7e; so a shell can write
//! marks too. Keys that a reader does not know are skipped (a newer guest may
//! say more), a missing or malformed key that the verb needs is an error.
//!
//! Numbers are decimal; offsets and lengths are bytes.

mod file;
mod sweep;
#[cfg(test)]
mod tests;
mod text;

use std::collections::BTreeMap;
use std::fmt;

use crate::disk::MARK_MAX;

pub use file::{Change, FileContents, FileMark, FilePages};
pub use sweep::{PointBegin, PointEnd, SweepMark};
use text::{Keys, Writer, shorten, words};

/// The first word of every mark: name and schema version.
pub const MAGIC: &str = "wtblk/1";

/// One extent of a file as FIEMAP told it, all in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset in the file.
    pub logical: u64,
    /// Offset on the disk; meaningless where the flags say it is unknown.
    pub physical: u64,
    /// Length.
    pub length: u64,
    /// `FIEMAP_EXTENT_*` of `include/uapi/linux/fiemap.h`.
    pub flags: u32,
}

impl Extent {
    /// FIEMAP_EXTENT_UNKNOWN, _DELALLOC, or _DATA_INLINE: no place on disk (yet).
    pub fn has_place(&self) -> bool {
        self.flags & (0x2 | 0x4 | 0x200) == 0
    }
}

/// Begin of a marked system call, written by the calling thread before it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CallBegin {
    /// Number of the call, unique in this boot.
    pub call: u64,
    /// The test that makes the call.
    pub test: String,
    /// `st_dev` of the file.
    pub dev: u64,
    /// `st_ino` of the file.
    pub ino: u64,
    /// Number of the open file description, unique in this boot.
    pub open: u64,
    /// Offset of the call in the file, bytes.
    pub off: u64,
    /// Length of the call, bytes.
    pub len: u64,
    /// `RWF_*` flags, and what the open file adds, as names: `writethrough`, `dsync`, `direct`, `async`.
    pub flags: Vec<String>,
    /// i_size before the call, bytes.
    pub isize: u64,
    /// The file system's block size, bytes.
    pub bsize: u64,
    /// The call tag's number; `None` where tags are off.
    pub tag: Option<u16>,
    /// Pattern of the bytes: file number and version.
    pub pattern: Option<(u32, u32)>,
    /// The extents known before the call; `None` where FIEMAP failed.
    pub extents: Option<Vec<Extent>>,
}

/// End of a marked system call, written by the calling thread after it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CallEnd {
    /// The call's number.
    pub call: u64,
    /// Bytes written, or minus the errno.
    pub result: i64,
    /// i_size after the call, bytes.
    pub isize: u64,
    /// The extents known after the call; `None` where FIEMAP failed.
    pub extents: Option<Vec<Extent>>,
}

/// State of a file's pages, from cachestat(2).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PageReport {
    /// The call whose range this is.
    pub call: u64,
    /// Where in the test: a word such as `after-call` or `after-probes`.
    pub at: String,
    /// Start of the range in the file, bytes, page aligned.
    pub off: u64,
    /// Length of the range, bytes.
    pub len: u64,
    /// Pages of the range in the page cache.
    pub cached: u64,
    /// Pages of the range that are dirty.
    pub dirty: u64,
    /// Pages of the range in writeback.
    pub writeback: u64,
}

/// A probe: an operation that must not hang, done by a thread of its own.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProbeBegin {
    /// Number of the probe, unique in this boot.
    pub probe: u64,
    /// The call whose aftermath is probed.
    pub call: u64,
    /// `fsync`, `rewrite`, `sync`, `umount`, ...
    pub kind: String,
    /// How long it may take, ms.
    pub limit_ms: u64,
}

/// What a helper saw of a probe that has not ended (`/proc/self/task/TID`).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ProbeState {
    /// The probe's number.
    pub probe: u64,
    /// Time since its begin, ms.
    pub waited_ms: u64,
    /// State letter of `/proc/.../stat`.
    pub state: char,
    /// Context switches so far, voluntary and not.
    pub switches: u64,
    /// Kernel function it waits in (`/proc/.../wchan`), may be empty.
    pub wchan: String,
}

/// What to do with the device, now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Release what the named rule holds; `None`: release everything held.
    /// A rule that is released holds nothing from then on, until it is armed again.
    Release(Option<String>),
    /// Arm a rule again: counters at zero, holds and fires afresh. `None`: all rules.
    Arm(Option<String>),
    /// Let a rule fire no more; what it holds stays held. `None`: all rules.
    Disarm(Option<String>),
    /// Complete this mark when at least so many requests are held, after 5 s at
    /// the latest; the state page's `wait` says which it was.
    WaitHeld(u64),
    /// The same when the scenario's rules are in this state.
    WaitState(String),
    /// The same when the rule has fired so often.
    WaitFired(String, u64),
    /// Move the scenario's rules to a state that one of them speaks of.
    SetState(String),
}

/// A mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// The guest's PID 1 started: numbers of calls, probes and open files start again.
    Boot,
    /// Facts about the guest, found out by probing. Known keys are in `docs/marks.md`.
    Env(BTreeMap<String, String>),
    /// A file system was mounted: what requests can be classed by. Bytes on the disk.
    Fs {
        /// `st_dev` of its files.
        dev: u64,
        /// Its type, e.g. `xfs`.
        kind: String,
        /// Block size.
        bsize: u64,
        /// Start of the log on the disk; 0 length where unknown.
        log_start: u64,
        /// Length of the log.
        log_len: u64,
    },
    /// A test begins.
    TestBegin {
        /// Its name.
        name: String,
    },
    /// A test ended.
    TestEnd {
        /// Its name.
        name: String,
    },
    /// A marked call begins.
    Begin(CallBegin),
    /// A marked call ended.
    End(CallEnd),
    /// The failed block of the call was seen out of writeback: the kernel knows the error.
    ErrorSeen {
        /// The call.
        call: u64,
    },
    /// State of pages.
    Report(PageReport),
    /// A probe begins.
    ProbeBegin(ProbeBegin),
    /// State of a probe beyond its limit.
    ProbeState(ProbeState),
    /// A probe ended.
    ProbeEnd {
        /// Its number.
        probe: u64,
        /// 0 or more: success; minus the errno otherwise.
        result: i64,
    },
    /// Something about a file beside the marked calls.
    File(FileMark),
    /// A point of a sweep begins, or is over.
    Sweep(SweepMark),
    /// Free text, for the reader of a trace.
    Note {
        /// The text.
        text: String,
    },
    /// An order to the device.
    Control(Control),
}

/// Why a mark was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkError {
    /// Byte offset in the line at which it went wrong.
    pub at: usize,
    /// What is wrong and what was expected.
    pub what: String,
}

impl fmt::Display for MarkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mark, byte {}: {}", self.at, self.what)
    }
}

impl std::error::Error for MarkError {}

impl Mark {
    /// The line, without newline or padding.
    pub fn to_line(&self) -> String {
        let mut w = Writer::new(self.verb());
        match self {
            Mark::Boot => {}
            Mark::Env(facts) => {
                for (key, value) in facts {
                    w.text(key, value);
                }
            }
            Mark::Fs {
                dev,
                kind,
                bsize,
                log_start,
                log_len,
            } => {
                w.num("dev", dev).text("kind", kind).num("bsize", bsize);
                w.num("log_start", log_start).num("log_len", log_len);
            }
            Mark::TestBegin { name } | Mark::TestEnd { name } => {
                w.text("name", name);
            }
            Mark::Begin(b) => {
                w.num("call", b.call)
                    .text("test", &b.test)
                    .num("dev", b.dev)
                    .num("ino", b.ino);
                w.num("open", b.open).num("off", b.off).num("len", b.len);
                w.text("flags", &b.flags.join(","))
                    .num("isize", b.isize)
                    .num("bsize", b.bsize);
                if let Some(tag) = b.tag {
                    w.num("tag", tag);
                }
                if let Some((file, version)) = b.pattern {
                    w.text("pattern", &format!("{file}:{version}"));
                }
                w.extents(&b.extents);
            }
            Mark::End(e) => {
                w.num("call", e.call)
                    .num("result", e.result)
                    .num("isize", e.isize);
                w.extents(&e.extents);
            }
            Mark::ErrorSeen { call } => {
                w.num("call", call);
            }
            Mark::Report(r) => {
                w.num("call", r.call)
                    .text("at", &r.at)
                    .num("off", r.off)
                    .num("len", r.len);
                w.num("cached", r.cached)
                    .num("dirty", r.dirty)
                    .num("writeback", r.writeback);
            }
            Mark::ProbeBegin(p) => {
                w.num("probe", p.probe)
                    .num("call", p.call)
                    .text("kind", &p.kind);
                w.num("limit_ms", p.limit_ms);
            }
            Mark::ProbeState(p) => {
                w.num("probe", p.probe).num("waited_ms", p.waited_ms);
                w.text("state", &p.state.to_string())
                    .num("switches", p.switches);
                w.text("wchan", &p.wchan);
            }
            Mark::ProbeEnd { probe, result } => {
                w.num("probe", probe).num("result", result);
            }
            Mark::File(f) => f.write(&mut w),
            Mark::Sweep(s) => s.write(&mut w),
            Mark::Note { text } => {
                w.text("text", text);
            }
            Mark::Control(c) => match c {
                Control::Release(rule) | Control::Arm(rule) | Control::Disarm(rule) => {
                    if let Some(rule) = rule {
                        w.text("rule", rule);
                    }
                }
                Control::WaitHeld(n) => {
                    w.num("held", n);
                }
                Control::WaitState(state) | Control::SetState(state) => {
                    w.text("state", state);
                }
                Control::WaitFired(rule, n) => {
                    w.text("rule", rule).num("fired", n);
                }
            },
        }
        w.line
    }

    /// The bytes of the O_DIRECT write: line, newline, NULs up to a multiple of
    /// `block` bytes. `None` where the mark would be longer than [`MARK_MAX`].
    pub fn to_block(&self, block: usize) -> Option<Vec<u8>> {
        let mut bytes = self.to_line().into_bytes();
        bytes.push(b'\n');
        if bytes.len() > MARK_MAX {
            return None;
        }
        bytes.resize(bytes.len().next_multiple_of(block), 0);
        Some(bytes)
    }

    fn verb(&self) -> &'static str {
        match self {
            Mark::Boot => "boot",
            Mark::Env(_) => "env",
            Mark::Fs { .. } => "fs",
            Mark::TestBegin { .. } => "test-begin",
            Mark::TestEnd { .. } => "test-end",
            Mark::Begin(_) => "begin",
            Mark::End(_) => "end",
            Mark::ErrorSeen { .. } => "error-seen",
            Mark::Report(_) => "report",
            Mark::ProbeBegin(_) => "probe-begin",
            Mark::ProbeState(_) => "probe-state",
            Mark::ProbeEnd { .. } => "probe-end",
            Mark::File(f) => f.verb(),
            Mark::Sweep(s) => s.verb(),
            Mark::Note { .. } => "note",
            Mark::Control(Control::Release(_)) => "release",
            Mark::Control(Control::Arm(_)) => "arm",
            Mark::Control(Control::Disarm(_)) => "disarm",
            Mark::Control(Control::SetState(_)) => "set-state",
            Mark::Control(_) => "wait",
        }
    }

    /// Parses the bytes of a write to the mark area: the line up to its newline.
    /// Whatever follows must be NULs.
    pub fn from_block(bytes: &[u8]) -> Result<Mark, MarkError> {
        let head = &bytes[..bytes.len().min(MARK_MAX)];
        let Some(end) = head.iter().position(|&b| b == b'\n') else {
            return Err(MarkError {
                at: head.len(),
                what: format!("no newline in the first {MARK_MAX} bytes"),
            });
        };
        if let Some(i) = bytes[end + 1..].iter().position(|&b| b != 0) {
            return Err(MarkError {
                at: end + 1 + i,
                what: "only NULs may follow the newline".into(),
            });
        }
        let line = std::str::from_utf8(&bytes[..end]).map_err(|e| MarkError {
            at: e.valid_up_to(),
            what: "not UTF-8".into(),
        })?;
        Mark::from_line(line)
    }

    /// Parses a line without its newline.
    pub fn from_line(line: &str) -> Result<Mark, MarkError> {
        let mut words = words(line);
        match words.next() {
            Some(word) if word.text == MAGIC => {}
            Some(other) => {
                return Err(MarkError {
                    at: other.at,
                    what: format!("schema '{}', expected '{MAGIC}'", shorten(other.text)),
                });
            }
            None => {
                return Err(MarkError {
                    at: 0,
                    what: format!("empty, expected '{MAGIC} VERB ...'"),
                });
            }
        }
        let Some(word) = words.next() else {
            return Err(MarkError {
                at: line.len(),
                what: "no verb".into(),
            });
        };
        let (verb_at, verb) = (word.at, word.text);
        let keys = Keys::read(verb, line.len(), words)?;
        Ok(match verb {
            "boot" => Mark::Boot,
            "env" => Mark::Env(keys.into_all().collect()),
            "fs" => Mark::Fs {
                dev: keys.num("dev")?,
                kind: keys.text("kind")?,
                bsize: keys.num("bsize")?,
                log_start: keys.num("log_start")?,
                log_len: keys.num("log_len")?,
            },
            "test-begin" => Mark::TestBegin {
                name: keys.text("name")?,
            },
            "test-end" => Mark::TestEnd {
                name: keys.text("name")?,
            },
            "begin" => Mark::Begin(CallBegin {
                call: keys.num("call")?,
                test: keys.text("test")?,
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
                open: keys.num("open")?,
                off: keys.num("off")?,
                len: keys.num("len")?,
                flags: keys
                    .str("flags")?
                    .split(',')
                    .filter(|f| !f.is_empty())
                    .map(str::to_owned)
                    .collect(),
                isize: keys.num("isize")?,
                bsize: keys.num("bsize")?,
                tag: keys.opt("tag")?,
                pattern: keys.pattern()?,
                extents: keys.extents()?,
            }),
            "end" => Mark::End(CallEnd {
                call: keys.num("call")?,
                result: keys.num("result")?,
                isize: keys.num("isize")?,
                extents: keys.extents()?,
            }),
            "error-seen" => Mark::ErrorSeen {
                call: keys.num("call")?,
            },
            "report" => Mark::Report(PageReport {
                call: keys.num("call")?,
                at: keys.text("at")?,
                off: keys.num("off")?,
                len: keys.num("len")?,
                cached: keys.num("cached")?,
                dirty: keys.num("dirty")?,
                writeback: keys.num("writeback")?,
            }),
            "probe-begin" => Mark::ProbeBegin(ProbeBegin {
                probe: keys.num("probe")?,
                call: keys.num("call")?,
                kind: keys.text("kind")?,
                limit_ms: keys.num("limit_ms")?,
            }),
            "probe-state" => Mark::ProbeState(ProbeState {
                probe: keys.num("probe")?,
                waited_ms: keys.num("waited_ms")?,
                state: keys.text("state")?.chars().next().unwrap_or('?'),
                switches: keys.num("switches")?,
                wchan: keys.text("wchan")?,
            }),
            "probe-end" => Mark::ProbeEnd {
                probe: keys.num("probe")?,
                result: keys.num("result")?,
            },
            _ if file::VERBS.contains(&verb) => Mark::File(FileMark::parse(verb, &keys)?),
            _ if sweep::VERBS.contains(&verb) => Mark::Sweep(SweepMark::parse(verb, &keys)?),
            "note" => Mark::Note {
                text: keys.text("text")?,
            },
            "release" => Mark::Control(Control::Release(keys.opt_text("rule"))),
            "arm" => Mark::Control(Control::Arm(keys.opt_text("rule"))),
            "disarm" => Mark::Control(Control::Disarm(keys.opt_text("rule"))),
            "wait" => Mark::Control(match (keys.opt_text("state"), keys.opt_text("rule")) {
                (Some(state), _) => Control::WaitState(state),
                (None, Some(rule)) => Control::WaitFired(rule, keys.num("fired")?),
                (None, None) => Control::WaitHeld(keys.num("held")?),
            }),
            "set-state" => Mark::Control(Control::SetState(keys.text("state")?)),
            other => {
                return Err(MarkError {
                    at: verb_at,
                    what: format!("unknown verb '{}'", shorten(other)),
                });
            }
        })
    }
}
