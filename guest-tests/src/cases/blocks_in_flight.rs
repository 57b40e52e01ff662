// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is done to a file while the device holds the write of an asynchronous call on it: who
//! waits until the call is over, and who goes on.
//!
//! Whoever takes blocks away has to wait, wherever they are, as for direct I/O; fsync and a
//! write of the same page wait for the page; nobody else does, as the call has given the
//! inode lock back. The write succeeds, and once more it fails: who waited goes on all the same.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::aftermath::{self, Failed};
use crate::beside::Beside;
use crate::call::OpenFile;
use crate::fate::{self, Fate, Holds};
use crate::flying::Caller;
use crate::pages;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, result_text};
use crate::test::{Fail, Test};
use crate::world::World;

/// Length of each file, in units: the length of the call, at its begin, whose folio is of that size, as the file was
/// evicted.
const FILE: u64 = 10;
/// FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE of `include/uapi/linux/falloc.h`.
const KEEP_SIZE: i32 = 1;
const PUNCH_HOLE: i32 = 2;
const EIO: i64 = -(libc::EIO as i64);

/// A change as a mark tells it: its kind, range and length.
type Change = Option<(&'static str, u64, u64)>;

/// Something to do to the file, given the unit's bytes.
struct Deed {
    name: &'static str,
    /// How a mark calls it; `None`: it changes nothing.
    change: fn(u64) -> Change,
    /// Whether it has to wait for the call; `None`: the flag does not say.
    waits: Option<bool>,
    /// Whether it asks the file for errors: then it may be told of the call's, once.
    asks: bool,
    work: fn(&File, u64) -> io::Result<()>,
    /// What the file holds afterwards.
    after: fn(&mut Vec<u8>, u64),
}

const DEEDS: &[Deed] = &[
    Deed {
        name: "truncate-all",
        change: |_| Some(("truncate", 0, 0)),
        waits: Some(true),
        asks: false,
        work: |f, _| f.set_len(0),
        after: |bytes, _| bytes.clear(),
    },
    Deed {
        name: "truncate-behind",
        change: |u| Some(("truncate", 8 * u, 0)),
        waits: Some(true),
        asks: false,
        work: |f, u| f.set_len(8 * u),
        after: |bytes, u| bytes.truncate(8 * u as usize),
    },
    Deed {
        name: "truncate-up",
        change: |u| Some(("extend", FILE * u, u)),
        waits: Some(true),
        asks: false,
        work: |f, u| f.set_len(FILE * u + u),
        after: |bytes, u| bytes.resize((FILE * u + u) as usize, 0),
    },
    Deed {
        name: "punch",
        change: |u| Some(("punch", 0, u)),
        waits: Some(true),
        asks: true,
        work: |f, u| sys::fallocate(f, PUNCH_HOLE | KEEP_SIZE, 0, u),
        after: |bytes, u| bytes[..u as usize].fill(0),
    },
    Deed {
        name: "punch-elsewhere",
        change: |u| Some(("punch", 4 * u, u)),
        waits: Some(true),
        asks: true,
        work: |f, u| sys::fallocate(f, PUNCH_HOLE | KEEP_SIZE, 4 * u, u),
        after: |bytes, u| bytes[4 * u as usize..5 * u as usize].fill(0),
    },
    Deed {
        name: "write-same",
        change: |_| Some(("write", 10, 1)),
        waits: Some(true),
        asks: false,
        work: |f, _| f.write_all_at(&[0x77], 10),
        after: |bytes, _| bytes[10] = 0x77,
    },
    Deed {
        name: "write-elsewhere",
        change: |u| Some(("write", 4 * u, 1)),
        waits: Some(false),
        asks: false,
        work: |f, u| f.write_all_at(&[0x77], 4 * u),
        after: |bytes, u| bytes[4 * u as usize] = 0x77,
    },
    Deed {
        name: "read-same",
        change: |_| None,
        // Open in the RFC: the page holds the new data already.
        waits: None,
        asks: false,
        work: |f, _| f.read_exact_at(&mut [0; 16], 10),
        after: |_, _| {},
    },
    Deed {
        name: "read-elsewhere",
        change: |_| None,
        waits: Some(false),
        asks: false,
        work: |f, u| f.read_exact_at(&mut [0; 16], 4 * u),
        after: |_, _| {},
    },
    Deed {
        name: "sync",
        change: |_| None,
        waits: Some(true),
        asks: false,
        work: |_, _| {
            sys::sync();
            Ok(())
        },
        after: |_, _| {},
    },
];

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    let unit = t.world.unit();
    for fate in fate::BOTH {
        for deed in DEEDS {
            let one = |world: &'static World, file: Arc<OpenFile>| {
                Beside::start(world, deed.name, move |gate| {
                    let work = |f: &File| gate.inside(|| (deed.work)(f, unit));
                    match (deed.change)(unit) {
                        Some((kind, off, len)) => file.change_told(world, kind, off, len, work),
                        None => Ok(sys::result_of(work(&file.file))),
                    }
                })
            };
            files.extend(in_flight(t, fate, deed, one)?);
        }
        let fsync = |world: &'static World, file: Arc<OpenFile>| {
            Beside::start(world, "fsync", move |gate| {
                file.ask(world, "fsync", |f| gate.inside(|| f.sync_all()))
            })
        };
        files.extend(in_flight(t, fate, &FSYNC, fsync)?);
    }
    check_after_remount(t, &mut files)
}

/// fsync is marked as what it is, and tells the open file of the call's error.
const FSYNC: Deed = Deed {
    name: "fsync",
    change: |_| None,
    waits: Some(true),
    asks: true,
    work: |_, _| Ok(()),
    after: |_, _| {},
};

/// Does it while the call's write is held. The files, as they must be after a remount.
fn in_flight(
    t: &Test,
    fate: Fate,
    deed: &Deed,
    start: impl Fn(&'static World, Arc<OpenFile>) -> Beside<i64>,
) -> Result<Vec<Subject>, Fail> {
    let name = fate.name(deed.name);
    let len = t.world.unit();
    let rule = fate.rule(t);
    let mut s = Subject::written(t, &name, FILE * len)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    s.evict(t)?;
    let without = s.expect.clone();
    rule.switch_on(t)?;
    s.put(0, len);
    let caller = Caller::start(t, &s, fate.engine(t), 0, len, 0);
    let thread = rule.until_held(t).and_then(|()| {
        let thread = start(t.world, Arc::clone(s.open()));
        // Who may go on is given all the time; who must not, is looked at until it stands still.
        let waited = match deed.waits {
            Some(false) if thread.goes_on() => None,
            _ => thread.waits(t)?,
        };
        // Who went on tells so before the write may end: it is what `serialised` is judged on.
        let result = match &waited {
            None => Some(thread.finish()?),
            Some(_) => None,
        };
        Ok((thread, waited, result))
    });
    // Whatever was seen: neither must wait for ever.
    rule.release(t)?;
    let done = caller.thread.finish();
    let (thread, waited, result) = thread?;
    let done = done?;
    let result = result.map_or_else(|| thread.finish(), Ok)?;
    rule.switch_off(t)?;
    // Told of the call's error it has done nothing; once more, and it does.
    let told = result == EIO && fate.fails() && deed.asks;
    let at_last = match told {
        true => start(t.world, Arc::clone(s.open())).finish()?,
        false => result,
    };
    t.check(at_last == 0, || {
        let again = if told { ", after an EIO" } else { "" };
        format!("{name} returned {}{again}", result_text(at_last))
    });
    fate.check_call(t, &name, &done, len);
    match (&waited, deed.waits) {
        (None, Some(true)) => t.fail(format!(
            "{name} went on while the write of call {} was in flight",
            done.call
        )),
        (Some(place), Some(false)) => t.fail(format!(
            "{name} waited in {place} for call {}, which has given the inode lock back",
            done.call
        )),
        _ => {}
    }
    if !fate.fails() {
        t.note(match &waited {
            Some(place) => format!("{name} waited in {place}"),
            None => format!("{name} went on"),
        });
    }
    let with = std::mem::take(&mut s.expect);
    let mut holds = Holds { with, without };
    holds.change(|bytes| (deed.after)(bytes, len));
    if fate.fails() {
        s.expect = holds.without;
        let failed = Failed {
            what: format!("{name}: call {}", done.call),
            done,
            another: Some(another),
            told: told && deed.name == FSYNC.name,
            after: holds.with,
        };
        return aftermath::look(t, Stage::new(s, 0, len), failed);
    }
    drop(another);
    s.expect = holds.with;
    let file = &s.open().file;
    pages::report_twice(t.world, done.call, "after-call", file, 0, len)?;
    s.check_whole(t, &name)?;
    Ok(vec![s])
}
