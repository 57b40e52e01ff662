// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is measured: the cells, and the back ends of each.

use std::path::{Path, PathBuf};

use crate::backend::{Kind, Level, Spec};
use crate::client::Job;

/// Bytes of each disk: far beyond the caches of the CPU.
pub const SIZE: u64 = 512 << 20;

/// Where the bytes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Null,
    Memory,
    Tmpfs,
    Disk,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub store: Store,
    pub job: Job,
}

/// Name of the back end that the aims speak of.
pub const DEFAULT: &str = "verify";
/// The same without polling.
pub const SLEEPS: &str = "verify, poll off";
/// The same with a last look of 2 us.
pub const BRIEF: &str = "verify, poll brief";
/// What the name of a peer that does not poll ends with.
pub const PEER_SLEEPS: &str = ", no polling";
/// The same with four queues.
pub const FOUR: &str = "verify, 4 queues";
/// The same with a scenario that has no rule.
pub const EMPTY: &str = "verify, empty scenario";

/// What the names of the back ends of another build begin with.
pub const OTHER: &str = "other build: ";

/// What is there to be measured with.
pub struct Around {
    /// `serve`'s options, as its help lists them.
    pub options: String,
    /// Image on the tmpfs and on the disk, written once.
    pub tmpfs: PathBuf,
    pub disk: PathBuf,
    /// O_DIRECT works there.
    pub tmpfs_direct: bool,
    pub disk_direct: bool,
    pub peer: bool,
    /// Another build of wtblk to compare with.
    pub against: Option<PathBuf>,
    pub empty: PathBuf,
}

impl Store {
    pub fn name(self) -> &'static str {
        match self {
            Store::Null => "null",
            Store::Memory => "memory",
            Store::Tmpfs => "tmpfs",
            Store::Disk => "disk",
        }
    }
}

impl Cell {
    /// As `--cases` and the table spell it.
    pub fn name(&self) -> String {
        let job = &self.job;
        format!(
            "{} {}k {} {} depth {}",
            self.store.name(),
            job.bytes / 1024,
            if job.sequential {
                "sequential"
            } else {
                "random"
            },
            if job.write { "write" } else { "read" },
            job.depth
        )
    }
}

/// All cells, in the order of the table.
pub fn cells() -> Vec<Cell> {
    let mut cells = Vec::new();
    for store in [Store::Null, Store::Memory, Store::Tmpfs, Store::Disk] {
        for depth in [32, 1] {
            for (write, sequential, bytes) in [
                (false, false, 4 << 10),
                (true, false, 4 << 10),
                (true, true, 128 << 10),
            ] {
                let job = Job {
                    write,
                    sequential,
                    bytes,
                    depth,
                    span: SIZE,
                    ioprio: 0,
                };
                cells.push(Cell { store, job });
            }
        }
    }
    cells
}

/// The back ends of a cell.
pub fn specs(cell: &Cell, around: &Around) -> Vec<Spec> {
    let mut specs = Vec::new();
    if around.peer {
        peers(cell.store, around, &mut specs);
        // Whoever must be woken up is compared with the same, too.
        if cell.job.depth == 1
            && let Some(Spec { name, kind, queues }) = specs.last().cloned()
            && let Kind::Peer(blockdev, _) = kind
        {
            specs.push(Spec {
                name: format!("{name}{PEER_SLEEPS}"),
                kind: Kind::Peer(blockdev, false),
                queues,
            });
        }
    }
    let deep = cell.job.depth > 1;
    let small = cell.job.bytes == 4096;
    let mut ours = |name: &str, level: Level, queues: usize, more: &[&str]| {
        if let Some(args) = args(cell.store, level, around, more) {
            let mut build = |name: String, program: PathBuf| {
                let args = args.clone();
                specs.push(Spec {
                    name,
                    kind: Kind::Ours {
                        program,
                        args,
                        level,
                    },
                    queues,
                });
            };
            build(name.to_owned(), env!("CARGO_BIN_EXE_wtblk").into());
            if let Some(other) = &around.against {
                build(format!("{OTHER}{name}"), other.clone());
            }
        }
    };
    ours(DEFAULT, Level::Verify, 1, &[]);
    match cell.store {
        Store::Null => {
            ours("off", Level::Off, 1, &[]);
            ours("trace", Level::Trace, 1, &[]);
            ours("verify, all digests", Level::All, 1, &[]);
            if deep && small {
                let empty = around.empty.to_string_lossy().into_owned();
                ours(EMPTY, Level::Verify, 1, &["--scenario", &empty]);
            }
        }
        Store::Memory if deep => ours(FOUR, Level::Verify, 4, &[]),
        Store::Tmpfs if deep => ours("off", Level::Off, 1, &[]),
        _ => {}
    }
    if !deep {
        ours(SLEEPS, Level::Verify, 1, &["--poll", "off"]);
        ours(BRIEF, Level::Verify, 1, &["--poll", "brief"]);
    }
    specs
}

fn peers(store: Store, around: &Around, specs: &mut Vec<Spec>) {
    let mut peer = |name: &str, blockdev: String| {
        specs.push(Spec {
            name: format!("qsd {name}"),
            kind: Kind::Peer(blockdev, true),
            queues: 1,
        });
    };
    let file = |path: &Path, aio: &str, direct: bool| {
        format!(
            "driver=file,node-name=n,filename={},aio={aio},locking=off,cache.direct={},discard=unmap",
            path.display(),
            if direct { "on" } else { "off" }
        )
    };
    match store {
        Store::Null => peer(
            "null-co",
            format!("driver=null-co,node-name=n,size={SIZE},read-zeroes=off"),
        ),
        Store::Memory => {}
        Store::Tmpfs => {
            peer("threads", file(&around.tmpfs, "threads", false));
            // Native asynchronous I/O has no other way than O_DIRECT.
            if around.tmpfs_direct {
                peer("native", file(&around.tmpfs, "native", true));
            }
            peer("io_uring", file(&around.tmpfs, "io_uring", false));
        }
        Store::Disk => {
            let direct = around.disk_direct;
            peer("threads", file(&around.disk, "threads", direct));
            if direct {
                peer("native", file(&around.disk, "native", direct));
            }
            peer("io_uring", file(&around.disk, "io_uring", direct));
        }
    }
}

/// `None` where `serve` has not what it takes.
fn args(store: Store, level: Level, around: &Around, more: &[&str]) -> Option<Vec<String>> {
    let has = |option: &str| around.options.split_whitespace().any(|w| w == option);
    let size = SIZE.to_string();
    let mut args: Vec<String> = match store {
        Store::Null => vec!["--null".into(), size],
        Store::Memory => vec!["--memory".into(), size],
        Store::Tmpfs => vec!["--image".into(), around.tmpfs.to_string_lossy().into()],
        Store::Disk => vec!["--image".into(), around.disk.to_string_lossy().into()],
    };
    args.extend(more.iter().map(|&a| a.into()));
    if has("--no-lock") {
        // All of them have the same image, and one at a time writes.
        args.push("--no-lock".into());
    }
    let digest = match level {
        Level::Off => None,
        Level::Trace => Some("off"),
        Level::Verify => Some("marked"),
        Level::All => Some("all"),
    };
    if level == Level::Off && !has("--no-judge") {
        return None;
    }
    if let Some(digest) = digest {
        if has("--digest") {
            args.extend(["--digest".into(), digest.into()]);
        } else if level == Level::All {
            return None;
        }
    }
    let wanted = args.iter().filter(|a| a.starts_with("--"));
    wanted.clone().all(|a| has(a)).then_some(args)
}
