// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The random exerciser: lists of operations, drawn from a seed, each done to a fresh file and to a
//! model of what that file must hold (`docs/exerciser.md`).
//!
//! A list that fails is printed, done again, and shortened as long as what is left still fails: all
//! in the same boot, and all by the same code.

mod act;
mod draw;
mod look;
mod model;
pub mod op;
mod shrink;

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use act::{Actor, Stop};
use draw::{About, Draw};
use op::{Op, text};

use crate::probe::ROUNDS;
use crate::sys;
use crate::task::Task;
use crate::test::{Fail, Findings, Test};
use crate::world::World;

/// Operations of one file. The judge follows a file for 1024 calls after an error.
const EACH: usize = 100;
/// Operations where nobody says how many.
pub const OPS: u32 = 300;
/// The seed of those: the short run is always the same one.
const SEED: u64 = 1;
/// There are rules for so many requests of an operation.
const FAULTS: u32 = 4;
/// A list is shortened so long, and by so many tries.
const SHRINK: Duration = Duration::from_secs(20);
const TRIES: u32 = 150;

/// What was done, over all lists.
#[derive(Default)]
struct Counts {
    calls: AtomicUsize,
    failed: AtomicUsize,
    syncs: AtomicUsize,
}

/// How a list came out.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Came {
    /// Everything was as it must be.
    Well,
    /// At this operation something was not.
    Broken(usize, String),
    /// This operation does not end: what is known of it.
    Hangs(usize, String),
}

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let params = &t.world.params;
    let counts = Arc::new(Counts::default());
    if let Some(list) = &params.exerciser {
        t.note(format!(
            "the list of the command line, {} operations",
            list.len()
        ));
        return one(t, "list", list, &counts);
    }
    let (ops, seed) = match params.ops {
        Some(ops) => (ops as usize, params.seed),
        None => (OPS as usize, SEED),
    };
    t.note(format!("{ops} operations by seed {seed}"));
    let about = about(t.world);
    let mut draw = Draw::new(seed);
    let mut left = ops;
    let mut done = 0;
    while left > 0 {
        let mut list = draw.list(left.min(EACH), about);
        left -= list.len();
        // In the end of each everything comes from the disk.
        list.extend([Op::Evict { every: false }, Op::Remount]);
        let came = one(t, &format!("file-{done}"), &list, &counts);
        done += 1;
        if came.is_err() || !t.is_well() {
            t.note(format!("{left} operations were not tried any more"));
            return came;
        }
    }
    let count = |n: &AtomicUsize| n.load(Ordering::Relaxed);
    t.note(format!(
        "{done} files, {} calls, {} of which failed, {} fsyncs whose writes failed",
        count(&counts.calls),
        count(&counts.failed),
        count(&counts.syncs)
    ));
    Ok(())
}

/// What lists are about here.
fn about(world: &World) -> About {
    let b = world.bsize;
    About {
        bsize: b,
        most: b * if b > 8192 { 24 } else { 64 },
        other: act::other_len(b),
    }
}

/// Does a list, and shortens it where it fails.
fn one(t: &Test, name: &str, list: &[Op], counts: &Arc<Counts>) -> Result<(), Fail> {
    let (at, what) = match attempt(t.world, t.name, name, list, counts)? {
        Came::Well => return Ok(()),
        Came::Broken(at, what) => (at, what),
        Came::Hangs(at, what) => {
            // What hangs would hang again, with every file of this mount: it is not shortened.
            t.fail(format!("{name}, {}: {what}", place(list, at)));
            t.fail(again(&list[..list.len().min(at + 1)]));
            return Err(Fail::Hung(format!("{}: {what}", place(list, at))));
        }
    };
    t.fail(format!("{name}, {}: {what}", place(list, at)));
    let failed = &list[..list.len().min(at + 1)];
    t.note(format!("the list up to there: {}", text(failed)));
    shortened(t, failed)
}

fn shortened(t: &Test, failed: &[Op]) -> Result<(), Fail> {
    let begun = Instant::now();
    let counts = Arc::new(Counts::default());
    let mut tries = 0;
    let mut trouble = None;
    let mut last = String::new();
    let mut fails = |list: &[Op]| {
        if tries == TRIES || begun.elapsed() > SHRINK || trouble.is_some() {
            return None;
        }
        tries += 1;
        match attempt(t.world, t.name, &format!("again-{tries}"), list, &counts) {
            Ok(Came::Well) => Some(false),
            Ok(Came::Broken(at, what)) => {
                last = format!("{}: {what}", place(list, at));
                Some(true)
            }
            Ok(Came::Hangs(at, what)) => {
                trouble = Some(Fail::Hung(format!("{}: {what}", place(list, at))));
                None
            }
            Err(fail) => {
                trouble = Some(fail);
                None
            }
        }
    };
    if fails(failed) != Some(true) {
        t.fail("done again on a fresh file, the list did not fail: not shortened");
        t.fail(again(failed));
        return trouble.map_or(Ok(()), Err);
    }
    let (short, _) = shrink::shrink(failed, &mut fails);
    t.fail(format!(
        "shortened from {} operations to {} by {tries} tries: {last}",
        failed.len(),
        short.len()
    ));
    t.fail(again(&short));
    trouble.map_or(Ok(()), Err)
}

/// How to do a list again.
fn again(list: &[Op]) -> String {
    format!("do it again with: --append wtblk_exerciser={}", text(list))
}

/// An operation by its number, from 1, and its text.
fn place(list: &[Op], at: usize) -> String {
    match list.get(at) {
        Some(op) => format!("operation {} of {} ({op})", at + 1, list.len()),
        None => "the end".to_owned(),
    }
}

/// Does a list to a fresh file, in a thread of its own: an operation that does not end is told.
fn attempt(
    world: &'static World,
    test: &'static str,
    name: &str,
    list: &[Op],
    counts: &Arc<Counts>,
) -> Result<Came, Fail> {
    let at = Arc::new(AtomicUsize::new(0));
    let (send, come) = mpsc::channel();
    let tid = Arc::new(AtomicI32::new(0));
    let (thread_at, thread_counts) = (Arc::clone(&at), Arc::clone(counts));
    let thread_tid = Arc::clone(&tid);
    let (name, ops) = (name.to_owned(), list.to_vec());
    world.spawn("operations", move || {
        thread_tid.store(sys::gettid(), Ordering::Release);
        let did = all(world, test, &name, &ops, &thread_counts, &thread_at);
        let _ = send.send(did);
    });
    let limit = world.params.probe * ROUNDS;
    let mut before = usize::MAX;
    loop {
        let did = come.recv_timeout(limit);
        let now = at.load(Ordering::Acquire);
        return match did {
            Ok(Ok(())) => Ok(Came::Well),
            Ok(Err(Stop::Broken(what))) => Ok(Came::Broken(now, what)),
            Ok(Err(Stop::Trouble(Fail::Hung(what)))) => Ok(Came::Hangs(now, what)),
            Ok(Err(Stop::Trouble(fail))) => Err(fail),
            Err(RecvTimeoutError::Timeout) if now == before => {
                let task = Task(tid.load(Ordering::Acquire)).describe();
                Ok(Came::Hangs(now, format!("does not end ({task})")))
            }
            Err(RecvTimeoutError::Timeout) => {
                before = now;
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(Fail::Error("the thread of the operations broke".into()))
            }
        };
    }
}

fn all(
    world: &'static World,
    test: &'static str,
    name: &str,
    ops: &[Op],
    counts: &Counts,
    at: &AtomicUsize,
) -> Result<(), Stop> {
    // What it notes is of no interest: what it finds comes back.
    let t = Test::new(world, test, Arc::new(Findings::default()))?;
    let mut actor = Actor::new(&t, name, about(world).most, counts)?;
    for (i, op) in ops.iter().enumerate() {
        at.store(i, Ordering::Release);
        actor.act(op)?;
    }
    Ok(())
}

/// How much longer than another test it may take, in limits of a test.
pub fn limits(ops: Option<u32>) -> u32 {
    4 + ops.unwrap_or(OPS) / 100
}
