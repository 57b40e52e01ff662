// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A store through a mapping into a page that a call is writing to the disk.
//!
//! The device holds the call's write. A page of it is mapped, and was written
//! through the mapping before, so that its page table entry allows stores. The
//! kernel has to take that away before it sends the page: then the store waits
//! until the write is over. It is released when the storing thread stands
//! still, or when it has gone on although it should not.
//!
//! Where the write fails the store goes on as well: its page is dirty then, with the call's bytes in
//! it, and comes to the disk after all.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use crate::aftermath::{self, Failed};
use crate::call::{Call, Done, OpenFile};
use crate::fate::{self, Fate};
use crate::pages;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::sys::{self, result_text};
use crate::task::Task;
use crate::test::{Fail, OrFail, Test};

/// Length of the file.
const FILE: u64 = 1 << 20;
/// Length of the call, one request.
const LEN: u64 = 64 << 10;
/// Where the bytes are stored: the first makes the page's entry writable, the second races.
const FIRST: usize = 200;
const RACING: usize = 100;
/// What is dirtied at least.
const PAGE: usize = 4096;
/// Limit of each wait.
const LIMIT: Duration = Duration::from_secs(5);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for fate in fate::BOTH {
        files.extend(race(t, fate)?);
    }
    check_after_remount(t, &mut files)
}

fn race(t: &Test, fate: Fate) -> Result<Vec<Subject>, Fail> {
    let rule = fate.rule(t);
    let mut s = Subject::written(t, &fate.name("file"), FILE)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let map = Mapping::new(&s.open().file, FILE as usize).or_fail(|| "mmap".into())?;
    let map = Arc::new(map);
    store(t, &s, &map, FIRST, 0xa5)?;
    s.expect[FIRST] = 0xa5;
    let mut without = s.expect.clone();
    rule.switch_on(t)?;
    s.put(0, LEN);
    let racing = !s.expect[RACING];
    // Everything that needs memory comes before the store: it may hold the address space.
    let storer = Storer::start(t, &s, &map, racing);
    let (send, done) = mpsc::channel();
    call(t, &s, send);
    let came = rule.until_held(t).and_then(|()| storer.race(t));
    // Whatever was seen: neither must wait for ever.
    rule.release(t)?;
    let done = done
        .recv_timeout(LIMIT)
        .map_err(|_| Fail::Hung("the call did not return after the release".into()))??;
    let went_on = came?;
    t.check(!went_on, || {
        format!(
            "call {}: a store into a page of it went on while its write was in flight",
            done.call
        )
    });
    if !went_on {
        storer.finish()?;
    }
    let what = format!("call {} (offset 0, length {LEN})", done.call);
    rule.switch_off(t)?;
    fate.check_call(t, &what, &done, LEN);
    drop(storer);
    s.expect[RACING] = racing;
    if fate.fails() {
        // The store made its page dirty when the call's bytes were in it.
        let page = RACING / PAGE * PAGE..(RACING / PAGE + 1) * PAGE;
        without[page.clone()].copy_from_slice(&s.expect[page]);
        let failed = Failed {
            what,
            done,
            another: Some(another),
            told: false,
            after: std::mem::replace(&mut s.expect, without),
        };
        let mut stage = Stage::new(s, 0, LEN);
        stage.keep.push(map);
        return aftermath::look(t, stage, failed);
    }
    drop(another);
    // The store may have made the page dirty again; in writeback it is no more.
    let file = Arc::clone(s.open());
    let state = pages::report_twice(t.world, done.call, "after-call", &file.file, 0, LEN)?;
    t.check(state.writeback == 0, || {
        format!("{what}: {} pages stay in writeback", state.writeback)
    });
    s.check_whole(t, &what)?;
    // What was stored behind the kernel's back is seen when the page is unmapped.
    drop(map);
    let synced = file.fsync(t.world)?;
    t.check(synced == 0, || {
        format!("fsync returned {}", result_text(synced))
    });
    drop(file);
    Ok(vec![s])
}

/// A store, told before and after.
fn store(t: &Test, s: &Subject, map: &Mapping, at: usize, byte: u8) -> Result<(), Fail> {
    s.open()
        .change(t.world, "mmap", at as u64, 1, |_| map.store(at, byte))
}

/// The call, in a thread of its own.
fn call(t: &Test, s: &Subject, send: Sender<Result<Done, Fail>>) {
    let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
    let pattern = (s.number, s.version());
    world.spawn("caller", move || {
        let call = Call {
            world,
            test,
            file: &file,
            off: 0,
            len: LEN,
            flags: world.params.flag,
            words: &[],
            pattern,
        };
        let result = call.run(1);
        // Closed before the result is known: what follows is an umount.
        drop(file);
        let _ = send.send(result);
    });
}

/// The thread that stores when it is told to.
struct Storer {
    go: Sender<()>,
    task: Receiver<i32>,
    stored: Receiver<Result<(), Fail>>,
}

impl Storer {
    fn start(t: &Test, s: &Subject, map: &Arc<Mapping>, byte: u8) -> Storer {
        let (world, file, map) = (t.world, Arc::clone(s.open()), Arc::clone(map));
        let (go, told) = mpsc::channel();
        let (tell_task, task) = mpsc::channel();
        let (send, stored) = mpsc::channel();
        world.spawn("storer", move || {
            if told.recv().is_err() {
                return;
            }
            let change = file.change(world, "mmap", RACING as u64, 1, |_| {
                let _ = tell_task.send(sys::gettid());
                map.store(RACING, byte);
            });
            // The mapping goes with the test, not with this thread.
            drop((file, map));
            let _ = send.send(change);
        });
        Storer { go, task, stored }
    }

    /// Lets it store while the write is held; whether it went on.
    fn race(&self, t: &Test) -> Result<bool, Fail> {
        let broke = || Fail::Error("the storing thread broke".into());
        self.go.send(()).map_err(|_| broke())?;
        let task = Task(self.task.recv_timeout(LIMIT).map_err(|_| broke())?);
        let begun = Instant::now();
        while begun.elapsed() < LIMIT {
            let first = task.sample();
            // A mark round trip between the looks: standing still is not being preempted.
            t.world.note("looking at the storing thread");
            let second = task.sample();
            match self.stored.try_recv() {
                Ok(stored) => return stored.map(|()| true),
                Err(mpsc::TryRecvError::Disconnected) => return Err(broke()),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            let in_kernel = !second.wchan.is_empty();
            if first.state == 'D' && first == second && in_kernel {
                t.note(format!("the store waited in {}", second.wchan));
                return Ok(false);
            }
        }
        Err(Fail::Error(format!(
            "the storing thread neither stood still nor went on in {} s ({})",
            LIMIT.as_secs(),
            task.describe()
        )))
    }

    /// After the release it goes on.
    fn finish(&self) -> Result<(), Fail> {
        match self.stored.recv_timeout(LIMIT) {
            Ok(stored) => stored,
            Err(RecvTimeoutError::Timeout) => Err(Fail::Hung(
                "the store did not go on after the release".into(),
            )),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Fail::Error("the storing thread broke".into()))
            }
        }
    }
}
