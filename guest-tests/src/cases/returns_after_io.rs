// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A synchronous call whose first data write the device holds: it has to wait
//! for it. The write is released when the calling thread stands still, or when
//! it has come back although it should not.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use wtblk_shared::mark::{Control, Mark};

use crate::call::{Call, Done};
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, result_text};
use crate::task::Task;
use crate::test::{Fail, Test};

/// The rule of `guest-tests/scenarios/returns-after-io.toml`.
const RULE: &str = "hold-first";
/// Length of the call: no whole number of blocks, several pages.
pub const LEN: u64 = 300_000;
/// Limit of each wait.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut s = Subject::written(t, "file", 1 << 20)?;
    s.put(0, LEN);
    // A device that was there before this boot may have used it up.
    t.world
        .post(&Mark::Control(Control::Arm(Some(RULE.into()))))?;
    let (tid, done) = start(t, &s);
    let came = until_held(t).and_then(|()| watch(t, &tid, &done));
    // Whatever was seen: the caller must not wait for ever.
    t.world
        .post(&Mark::Control(Control::Release(Some(RULE.into()))))?;
    let done = match came? {
        Came::Waits => done
            .recv_timeout(LIMIT)
            .map_err(|_| Fail::Hung("the call did not return after the release".into()))??,
        Came::Back(done) => {
            t.fail(format!(
                "call {} returned while its first data write was held",
                done.call
            ));
            done
        }
    };
    let what = format!("call {} (offset 0, length {LEN})", done.call);
    t.check(done.result == LEN as i64, || {
        format!(
            "{what} returned {}, expected {LEN}",
            result_text(done.result)
        )
    });
    s.check_clean(t, &what, done.call, 0, LEN)?;
    s.check_whole(t, &what)?;
    check_after_remount(t, &mut [s])
}

/// The call, in a thread of its own; its thread id and its result.
pub fn start(t: &Test, s: &Subject) -> (Receiver<i32>, Receiver<Result<Done, Fail>>) {
    let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
    let pattern = (s.number, s.version());
    let (tell_tid, tid) = mpsc::channel();
    let (send, done) = mpsc::channel();
    world.spawn("caller", move || {
        let _ = tell_tid.send(sys::gettid());
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
        // Closed before the result is known: what follows may be an umount.
        drop(file);
        let _ = send.send(result);
    });
    (tid, done)
}

/// Waits until the device holds the write.
pub fn until_held(t: &Test) -> Result<(), Fail> {
    until_so_many_held(t, 1)
}

/// Waits until the device holds so many.
pub fn until_so_many_held(t: &Test, count: u64) -> Result<(), Fail> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        t.world.post(&Mark::Control(Control::WaitHeld(count)))?;
        let state = t.world.marks.state().unwrap_or_default();
        let held = state.get("held").and_then(|n| n.parse().ok());
        if held >= Some(count) {
            return Ok(());
        }
    }
    Err(Fail::Error(format!(
        "the device does not hold {count}: the case needs its scenario"
    )))
}

/// What the caller does while its write is held.
pub enum Came {
    /// It stands still in D.
    Waits,
    /// It came back.
    Back(Done),
}

pub fn watch(
    t: &Test,
    tid: &Receiver<i32>,
    done: &Receiver<Result<Done, Fail>>,
) -> Result<Came, Fail> {
    let task = Task(
        tid.recv_timeout(LIMIT)
            .map_err(|_| Fail::Error("the caller did not start".into()))?,
    );
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        let first = task.sample();
        // A mark round trip between the looks: standing still is not being preempted.
        t.world.note("looking at the caller");
        let second = task.sample();
        match done.recv_timeout(Duration::ZERO) {
            Ok(result) => return Ok(Came::Back(result?)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fail::Error("the caller's thread broke".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if first.state == 'D' && first == second {
            t.note(format!("the call waited in {}", second.wchan));
            return Ok(Came::Waits);
        }
    }
    Err(Fail::Error(format!(
        "the caller neither stood still nor came back in {} s",
        LIMIT.as_secs()
    )))
}
