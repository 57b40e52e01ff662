// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a guest says about its files beside the marked calls: who opened them,
//! who asked for errors, who changed them, what size and pages they have.
//!
//! A guest that marks all of it says `files=marked` in its `env` mark.

use super::MarkError;
use super::text::{Keys, Writer};

/// Something about a file. Offsets, lengths and sizes are bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileMark {
    /// Before open(2): the number that the open file description will have.
    Opening {
        /// The number.
        open: u64,
    },
    /// After open(2).
    Open {
        /// Number of the open file description, unique in this boot; those that dup(2) makes share it.
        open: u64,
        /// `st_dev`.
        dev: u64,
        /// `st_ino`.
        ino: u64,
    },
    /// Before the last close(2).
    Close {
        /// The number.
        open: u64,
    },
    /// Before fsync(2) and what else asks an open file for its error.
    SyncBegin {
        /// Number of the question, unique in this boot.
        sync: u64,
        /// The open file description.
        open: u64,
        /// `fsync`, `fdatasync`, `msync`, `syncfs`, `sync_file_range_wait` (with a WAIT flag), `sync_file_range`.
        kind: String,
    },
    /// After it.
    SyncEnd {
        /// The number.
        sync: u64,
        /// 0, or minus the errno.
        result: i64,
    },
    /// Before something that is no marked call changes the file or its pages.
    ChangeBegin(Change),
    /// After it: when it is over nothing of it is still to come.
    ChangeEnd {
        /// The number.
        change: u64,
        /// 0, or minus the errno; `None` where it is not told.
        result: Option<i64>,
    },
    /// i_size as fstat(2) gives it.
    Stat {
        /// `st_dev`.
        dev: u64,
        /// `st_ino`.
        ino: u64,
        /// The size.
        isize: u64,
        /// Where in the test, a word.
        at: String,
    },
    /// What a reader of the file sees, after a call: for head and tail of its blocks.
    Contents(FileContents),
    /// A read of the file showed a sector that nobody has written since mkfs.
    Stale {
        /// `st_dev`.
        dev: u64,
        /// `st_ino`.
        ino: u64,
        /// Offset in the file.
        off: u64,
        /// The sector of the disk that the bytes say.
        sector: u64,
    },
    /// Before FIFREEZE.
    Freezing {
        /// `st_dev` of the file system's files.
        dev: u64,
    },
    /// The file system is frozen: FIFREEZE has returned 0.
    Frozen {
        /// `st_dev` of its files.
        dev: u64,
    },
    /// Before FITHAW.
    Thawing {
        /// `st_dev` of its files.
        dev: u64,
    },
    /// State of the file's pages (cachestat). Looked at after the file's mark before it was taken.
    Pages(FilePages),
}

/// A change of a file that is no marked call.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Change {
    /// Its number, unique in this boot.
    pub change: u64,
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// What it touches: offset.
    pub off: u64,
    /// Length.
    pub len: u64,
    /// `write`, `extend` (both may move i_size to the end of the range), `mmap`, `truncate`,
    /// `allocate`, `punch`, `reflink`, `unlink`.
    pub kind: String,
}

/// State of a file's pages.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FilePages {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Where in the test, a word.
    pub at: String,
    /// Start of the range in the file.
    pub off: u64,
    /// Length of the range.
    pub len: u64,
    /// Pages of it that are dirty.
    pub dirty: u64,
    /// Pages of it in writeback.
    pub writeback: u64,
}

/// What a range of a file holds, sector by sector.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct FileContents {
    /// `st_dev`.
    pub dev: u64,
    /// `st_ino`.
    pub ino: u64,
    /// Start of the range in the file, a multiple of 512.
    pub off: u64,
    /// xxh3-64 of each 512 bytes; what is beyond the end of the file counts as zeros.
    pub digests: Vec<u64>,
}

/// The verbs of these marks.
pub(super) const VERBS: [&str; 14] = [
    "opening",
    "open",
    "close",
    "sync-begin",
    "sync-end",
    "change-begin",
    "change-end",
    "stat",
    "pages",
    "contents",
    "stale",
    "frozen",
    "thawing",
    "freezing",
];

impl FileMark {
    pub(super) fn verb(&self) -> &'static str {
        VERBS[match self {
            FileMark::Opening { .. } => 0,
            FileMark::Open { .. } => 1,
            FileMark::Close { .. } => 2,
            FileMark::SyncBegin { .. } => 3,
            FileMark::SyncEnd { .. } => 4,
            FileMark::ChangeBegin(_) => 5,
            FileMark::ChangeEnd { .. } => 6,
            FileMark::Stat { .. } => 7,
            FileMark::Pages(_) => 8,
            FileMark::Contents(_) => 9,
            FileMark::Stale { .. } => 10,
            FileMark::Frozen { .. } => 11,
            FileMark::Thawing { .. } => 12,
            FileMark::Freezing { .. } => 13,
        }]
    }

    pub(super) fn write(&self, w: &mut Writer) {
        match self {
            FileMark::Opening { open } | FileMark::Close { open } => {
                w.num("open", open);
            }
            FileMark::Open { open, dev, ino } => {
                w.num("open", open).num("dev", dev).num("ino", ino);
            }
            FileMark::SyncBegin { sync, open, kind } => {
                w.num("sync", sync).num("open", open).text("kind", kind);
            }
            FileMark::SyncEnd { sync, result } => {
                w.num("sync", sync).num("result", result);
            }
            FileMark::ChangeBegin(c) => {
                w.num("change", c.change)
                    .num("dev", c.dev)
                    .num("ino", c.ino);
                w.num("off", c.off).num("len", c.len).text("kind", &c.kind);
            }
            FileMark::ChangeEnd { change, result } => {
                w.num("change", change);
                if let Some(result) = result {
                    w.num("result", result);
                }
            }
            FileMark::Freezing { dev } | FileMark::Frozen { dev } | FileMark::Thawing { dev } => {
                w.num("dev", dev);
            }
            FileMark::Stat {
                dev,
                ino,
                isize,
                at,
            } => {
                w.num("dev", dev).num("ino", ino).num("isize", isize);
                w.text("at", at);
            }
            FileMark::Contents(c) => {
                let list: Vec<String> = c.digests.iter().map(|d| format!("{d:016x}")).collect();
                w.num("dev", c.dev).num("ino", c.ino).num("off", c.off);
                w.text("digests", &list.join(","));
            }
            FileMark::Stale {
                dev,
                ino,
                off,
                sector,
            } => {
                w.num("dev", dev).num("ino", ino).num("off", off);
                w.num("sector", sector);
            }
            FileMark::Pages(p) => {
                w.num("dev", p.dev).num("ino", p.ino).text("at", &p.at);
                w.num("off", p.off).num("len", p.len);
                w.num("dirty", p.dirty).num("writeback", p.writeback);
            }
        }
    }

    /// The mark with this verb, one of [`VERBS`].
    pub(super) fn parse(verb: &str, keys: &Keys) -> Result<FileMark, MarkError> {
        Ok(match verb {
            "opening" => FileMark::Opening {
                open: keys.num("open")?,
            },
            "open" => FileMark::Open {
                open: keys.num("open")?,
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
            },
            "close" => FileMark::Close {
                open: keys.num("open")?,
            },
            "sync-begin" => FileMark::SyncBegin {
                sync: keys.num("sync")?,
                open: keys.num("open")?,
                kind: keys.text("kind")?,
            },
            "sync-end" => FileMark::SyncEnd {
                sync: keys.num("sync")?,
                result: keys.num("result")?,
            },
            "change-begin" => FileMark::ChangeBegin(Change {
                change: keys.num("change")?,
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
                off: keys.num("off")?,
                len: keys.num("len")?,
                kind: keys.text("kind")?,
            }),
            "change-end" => FileMark::ChangeEnd {
                change: keys.num("change")?,
                result: keys.opt("result")?,
            },
            "frozen" => FileMark::Frozen {
                dev: keys.num("dev")?,
            },
            "thawing" => FileMark::Thawing {
                dev: keys.num("dev")?,
            },
            "freezing" => FileMark::Freezing {
                dev: keys.num("dev")?,
            },
            "stat" => FileMark::Stat {
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
                isize: keys.num("isize")?,
                at: keys.text("at")?,
            },
            "contents" => FileMark::Contents(FileContents {
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
                off: keys.num("off")?,
                digests: digests(keys)?,
            }),
            "stale" => FileMark::Stale {
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
                off: keys.num("off")?,
                sector: keys.num("sector")?,
            },
            _ => FileMark::Pages(FilePages {
                dev: keys.num("dev")?,
                ino: keys.num("ino")?,
                at: keys.text("at")?,
                off: keys.num("off")?,
                len: keys.num("len")?,
                dirty: keys.num("dirty")?,
                writeback: keys.num("writeback")?,
            }),
        })
    }
}

/// Digests in hex, with commas between.
fn digests(keys: &Keys) -> Result<Vec<u64>, MarkError> {
    let (at, text) = keys.str_at("digests")?;
    let parts = text.split(',').filter(|part| !part.is_empty());
    let digests: Result<_, _> = parts.map(|part| u64::from_str_radix(part, 16)).collect();
    digests.map_err(|_| MarkError {
        at,
        what: "a digest is no hexadecimal number".into(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::Mark;
    use super::*;

    #[test]
    fn each_comes_back() {
        let change = Change {
            change: 3,
            dev: 8,
            ino: 9,
            off: 1,
            len: 2,
            kind: "write".into(),
        };
        let pages = FilePages {
            dev: 8,
            ino: 9,
            at: "before call".into(),
            off: 0,
            len: 4096,
            dirty: 1,
            writeback: 2,
        };
        let samples = [
            FileMark::Opening { open: 4 },
            FileMark::Open {
                open: 4,
                dev: 8,
                ino: 9,
            },
            FileMark::Close { open: 4 },
            FileMark::SyncBegin {
                sync: 1,
                open: 4,
                kind: "fsync".into(),
            },
            FileMark::SyncEnd {
                sync: 1,
                result: -5,
            },
            FileMark::ChangeBegin(change),
            FileMark::ChangeEnd {
                change: 3,
                result: None,
            },
            FileMark::Stat {
                dev: 8,
                ino: 9,
                isize: u64::MAX,
                at: "after-remount".into(),
            },
            FileMark::Pages(pages),
            FileMark::Contents(FileContents {
                dev: 8,
                ino: 9,
                off: 512,
                digests: vec![1, u64::MAX],
            }),
            FileMark::Stale {
                dev: 8,
                ino: 9,
                off: 4096,
                sector: 77,
            },
            FileMark::Frozen { dev: 8 },
            FileMark::Thawing { dev: 8 },
            FileMark::Freezing { dev: 8 },
        ];
        assert_eq!(samples.len(), VERBS.len());
        for (sample, verb) in samples.into_iter().zip(VERBS) {
            let mark = Mark::File(sample);
            let line = mark.to_line();
            assert!(line.starts_with(&format!("wtblk/1 {verb} ")), "{line}");
            assert_eq!(Mark::from_line(&line), Ok(mark));
            // Each key is needed.
            let short = line.rsplit_once(' ').unwrap().0;
            assert!(Mark::from_line(short).is_err(), "{short}");
        }
    }

    #[test]
    fn the_result_of_a_change_need_not_be_told() {
        for (line, told) in [
            ("wtblk/1 change-end change=3", None),
            ("wtblk/1 change-end change=3 result=0", Some(0)),
            ("wtblk/1 change-end change=3 result=-28", Some(-28)),
        ] {
            let mark = Mark::File(FileMark::ChangeEnd {
                change: 3,
                result: told,
            });
            assert_eq!(Mark::from_line(line).as_ref(), Ok(&mark));
            assert_eq!(mark.to_line(), line);
        }
        assert!(Mark::from_line("wtblk/1 change-end change=3 result=well").is_err());
    }
}
