// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Looks after the thread that does the points: who stands at one step for long is looked at
//! as a probe is ([`crate::probe`]), but only then, so that a point that goes on pays nothing.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use wtblk_shared::mark::{Mark, ProbeBegin, ProbeState};

use crate::probe::ROUNDS;
use crate::sys;
use crate::task::{LOOKS, Sample, Task};
use crate::test::Fail;
use crate::world::World;

/// What a point does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A fresh file is made.
    Prepare,
    /// The call under test.
    Call,
    /// fsync after it.
    Fsync,
    /// The same range again, and reading back.
    Rewrite,
    /// The file is removed.
    Remove,
    /// The file system that was shut down is mounted again.
    Remount,
}

impl Step {
    fn word(self) -> &'static str {
        match self {
            Step::Prepare => "prepare",
            Step::Call => "call",
            Step::Fsync => "fsync",
            Step::Rewrite => "rewrite",
            Step::Remove => "unlink",
            Step::Remount => "umount",
        }
    }

    /// Whether it is something that is done after the call, which must not hang.
    fn is_probe(self) -> bool {
        !matches!(self, Step::Prepare | Step::Call)
    }
}

/// Where the thread is.
pub struct At {
    tid: AtomicI32,
    steps: AtomicU64,
    step: Mutex<(Step, u64)>,
}

impl At {
    /// Nowhere yet.
    pub fn new() -> At {
        At {
            tid: AtomicI32::new(0),
            steps: AtomicU64::new(0),
            step: Mutex::new((Step::Prepare, 0)),
        }
    }

    /// The calling thread is the one to be looked after.
    pub fn is_me(&self) {
        self.tid.store(sys::gettid(), Ordering::Release);
    }

    /// The next step; `call` is the call that it follows, 0 before one.
    pub fn step(&self, step: Step, call: u64) {
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = (step, call);
        self.steps.fetch_add(1, Ordering::AcqRel);
    }

    fn now(&self) -> (u64, Step, u64) {
        let steps = self.steps.load(Ordering::Acquire);
        let (step, call) = *self.step.lock().unwrap_or_else(PoisonError::into_inner);
        (steps, step, call)
    }

    fn task(&self) -> Task {
        Task(self.tid.load(Ordering::Acquire))
    }
}

/// How the thread came out.
pub enum Came<T> {
    /// It is over.
    Over(T),
    /// It hangs: where.
    Hangs(String),
}

/// Waits for the thread, and gives it up where it hangs.
pub fn watch<T>(world: &World, at: &At, over: &Receiver<T>) -> Result<Came<T>, Fail> {
    loop {
        let (before, ..) = at.now();
        match over.recv_timeout(world.params.probe) {
            Ok(result) => return Ok(Came::Over(result)),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fail::Error("the sweep's thread broke".into()));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        let (steps, step, call) = at.now();
        if steps == before
            && let Some(came) = Slow::new(world, at, steps, step, call)?.watch(over)?
        {
            return Ok(came);
        }
    }
}

/// A step that takes long.
struct Slow<'a> {
    world: &'a World,
    at: &'a At,
    steps: u64,
    step: Step,
    probe: u64,
    begun: Instant,
}

impl<'a> Slow<'a> {
    /// From now on it counts as a probe: it has its whole limit before it from here.
    fn new(world: &'a World, at: &'a At, steps: u64, step: Step, call: u64) -> Result<Self, Fail> {
        let slow = Slow {
            world,
            at,
            steps,
            step,
            probe: world.next_probe(),
            begun: Instant::now(),
        };
        if step.is_probe() {
            world.post(&Mark::ProbeBegin(ProbeBegin {
                probe: slow.probe,
                call,
                kind: step.word().to_owned(),
                limit_ms: world.params.probe.as_millis() as u64,
            }))?;
        }
        Ok(slow)
    }

    /// `None`: it went on.
    fn watch<T>(&self, over: &Receiver<T>) -> Result<Option<Came<T>>, Fail> {
        let limit = self.world.params.probe;
        let mut round = 1;
        loop {
            let wait = (limit * round).saturating_sub(self.begun.elapsed());
            if let Ok(result) = over.recv_timeout(wait) {
                self.went_on()?;
                return Ok(Some(Came::Over(result)));
            }
            if self.is_over() {
                self.went_on()?;
                return Ok(None);
            }
            let mut last = self.look()?;
            let mut still = true;
            for _ in 0..LOOKS {
                let owes_nothing = self.device_waits();
                let now = self.look()?;
                if self.is_over() {
                    self.went_on()?;
                    return Ok(None);
                }
                still = owes_nothing && now.stands_still() && now == last;
                last = now;
                if !still {
                    break;
                }
            }
            if still || round == ROUNDS {
                return Ok(Some(Came::Hangs(self.describe(&last, still))));
            }
            round += 1;
        }
    }

    fn is_over(&self) -> bool {
        self.at.now().0 != self.steps
    }

    fn went_on(&self) -> Result<(), Fail> {
        if self.step.is_probe() {
            self.world.post(&Mark::ProbeEnd {
                probe: self.probe,
                result: 0,
            })?;
        }
        Ok(())
    }

    /// The device has nothing but what it holds or hangs on purpose: nothing comes of waiting.
    fn device_waits(&self) -> bool {
        let state = self.world.marks.state().unwrap_or_default();
        let number = |key: &str| state.get(key).and_then(|n| n.parse::<u64>().ok());
        match (number("inflight"), number("held"), number("hung")) {
            (Some(all), Some(held), Some(hung)) => all == held + hung,
            _ => false,
        }
    }

    fn look(&self) -> Result<Sample, Fail> {
        let sample = self.at.task().sample();
        if self.step.is_probe() {
            self.world.post(&Mark::ProbeState(ProbeState {
                probe: self.probe,
                waited_ms: self.begun.elapsed().as_millis() as u64,
                state: sample.state,
                switches: sample.switches,
                wchan: sample.wchan.clone(),
            }))?;
        } else {
            self.world.note(format!("looking at {}", self.step.word()));
        }
        Ok(sample)
    }

    fn describe(&self, last: &Sample, still: bool) -> String {
        format!(
            "{} did not return in {} ms: state {} in {}, {}",
            self.step.word(),
            self.begun.elapsed().as_millis(),
            last.state,
            if last.wchan.is_empty() {
                "unknown"
            } else {
                &last.wchan
            },
            if still {
                "it stands still"
            } else {
                "it ran between two looks"
            }
        )
    }
}
