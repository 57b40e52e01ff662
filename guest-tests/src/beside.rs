// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Something done in a thread of its own, of which the test wants to know whether it waits.
//!
//! It *waits* when the thread stays in D, did not run in between, over some mark round trips in
//! which the device had nothing under way but what it holds. One round trip is not enough: what waits for
//! the log or for a grace period is woken by a thread of the kernel, which takes its time.
//! It *went on* when what it does is over. Neither is decided by time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::sys;
use crate::task::{self, Sample, Task};
use crate::test::{Fail, Test};
use crate::world::World;

/// Limit of each wait.
pub const LIMIT: Duration = Duration::from_secs(5);

/// Limit of looking whether a thread waits: that takes many round trips, and a machine with too
/// much to do is no finding.
const LOOKING: Duration = Duration::from_secs(12);

/// Says when the thread is inside of what may wait, and when it is over: its marks wait for the
/// device, too, and are not meant.
#[derive(Clone, Default)]
pub struct Gate {
    tid: Arc<AtomicI32>,
    over: Arc<AtomicBool>,
}

impl Gate {
    /// Does what may wait.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        self.tid.store(sys::gettid(), Ordering::Release);
        let done = work();
        self.over.store(true, Ordering::Release);
        done
    }

    fn task(&self) -> Option<Task> {
        Some(self.tid.load(Ordering::Acquire))
            .filter(|tid| *tid != 0)
            .map(Task)
    }

    /// The thread that went inside.
    pub fn tid(&self) -> Option<i32> {
        self.task().map(|task| task.0)
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Looks until it is known whether the thread waits: where it stands still, or `None` where it went on.
    pub fn waits(&self, t: &Test, what: &str) -> Result<Option<String>, Fail> {
        let begun = Instant::now();
        let mut last = None;
        let mut alike = 0;
        while begun.elapsed() < LOOKING {
            // A mark round trip between the looks: standing still is not being preempted.
            t.world.note(format!("looking at {what}"));
            let idle = t.world.device_is_idle();
            let now = self.task().map(Task::sample);
            if self.is_over() {
                return Ok(None);
            }
            let still = idle && now.as_ref().is_some_and(Sample::stands_still);
            alike = if still && now == last { alike + 1 } else { 0 };
            if let Some(sample) = now.as_ref().filter(|_| alike == task::LOOKS) {
                return Ok(Some(sample.wchan.clone()));
            }
            last = now;
        }
        let state = self.task().map(Task::describe);
        Err(Fail::Error(format!(
            "{what} neither stood still nor went on in {} s ({})",
            LOOKING.as_secs(),
            state.as_deref().unwrap_or("it did not begin")
        )))
    }
}

/// The thread.
pub struct Beside<T> {
    /// What it does, for messages.
    pub what: String,
    /// Its gate.
    pub gate: Gate,
    result: Receiver<Result<T, Fail>>,
}

impl<T: Send + 'static> Beside<T> {
    /// Starts it. `work` goes through the gate with what may wait.
    pub fn start(
        world: &'static World,
        what: impl Into<String>,
        work: impl FnOnce(&Gate) -> Result<T, Fail> + Send + 'static,
    ) -> Beside<T> {
        let what = what.into();
        let gate = Gate::default();
        let (send, result) = mpsc::channel();
        let inner = gate.clone();
        world.spawn("beside", move || {
            let _ = send.send(work(&inner));
        });
        Beside { what, gate, result }
    }

    /// Where it waits; `None`: it went on.
    pub fn waits(&self, t: &Test) -> Result<Option<String>, Fail> {
        self.gate.waits(t, &self.what)
    }

    /// Its result, which must come now.
    pub fn finish(&self) -> Result<T, Fail> {
        match self.result.recv_timeout(LIMIT) {
            Ok(result) => result,
            Err(RecvTimeoutError::Timeout) => Err(Fail::Hung(format!(
                "{} does not end: {}",
                self.what,
                self.gate
                    .task()
                    .map_or("it did not begin".into(), Task::describe)
            ))),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Fail::Error(format!("the thread of {} broke", self.what)))
            }
        }
    }

    /// Whether it goes on although the device holds something.
    pub fn goes_on(&self) -> bool {
        let begun = Instant::now();
        while !self.gate.is_over() && begun.elapsed() < LIMIT {
            // State polling inside a limit; nothing is ordered by this sleep.
            std::thread::sleep(Duration::from_micros(200));
        }
        self.gate.is_over()
    }

    /// Its result where it is there already.
    pub fn come(&self) -> Option<Result<T, Fail>> {
        self.result.try_recv().ok()
    }
}
