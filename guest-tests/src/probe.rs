// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Probes: operations that must not hang, each in a thread of its own that says
//! when it begins and ends, while a supervisor looks at those that do not end.
//!
//! A thread *stands still* when it is in D at one place, a mark round trip apart and many
//! times in a row, did not run in between, and the device has nothing but what it holds.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use wtblk_shared::mark::{Mark, ProbeBegin, ProbeState};

use crate::sys;
use crate::task::{LOOKS, Sample, Task};
use crate::test::Fail;
use crate::world::World;

/// Limits that a probe which does not stand still is given.
pub const ROUNDS: u32 = 4;

/// A probe under way.
pub struct Probe {
    number: u64,
    /// `fsync`, `sync`, ...
    pub kind: &'static str,
    start: Instant,
    limit: Duration,
    tid: Arc<AtomicI32>,
    result: Receiver<Result<i64, Fail>>,
}

/// How a probe came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Came {
    /// It returned this (0 or more, or minus errno).
    Back(i64),
    /// It did not return within its limit; what the last look saw, and whether
    /// it stood still between two looks.
    Not(Sample, bool),
}

impl Probe {
    /// Starts `work` in a thread of its own.
    pub fn start(
        world: &'static World,
        call: u64,
        kind: &'static str,
        work: impl FnOnce() -> Result<i64, Fail> + Send + 'static,
    ) -> Probe {
        let number = world.next_probe();
        let limit = world.params.probe;
        let tid = Arc::new(AtomicI32::new(0));
        let (send, result) = mpsc::channel();
        let thread_tid = Arc::clone(&tid);
        world.spawn(kind, move || {
            thread_tid.store(sys::gettid(), Ordering::Release);
            let done = world
                .post(&Mark::ProbeBegin(ProbeBegin {
                    probe: number,
                    call,
                    kind: kind.to_owned(),
                    limit_ms: limit.as_millis() as u64,
                }))
                .and_then(|()| work())
                .and_then(|result| {
                    world.post(&Mark::ProbeEnd {
                        probe: number,
                        result,
                    })?;
                    Ok(result)
                });
            let _ = send.send(done);
        });
        Probe {
            number,
            kind,
            start: Instant::now(),
            limit,
            tid,
            result,
        }
    }

    /// Waits for the probe, and looks at it whenever its limit is over once more. One
    /// that stands still is given up at once; one that runs, on a machine with too
    /// much to do, only after several limits.
    pub fn watch(&self, world: &World) -> Result<Came, Fail> {
        let mut round = 1;
        loop {
            let wait = (self.limit * round).saturating_sub(self.start.elapsed());
            match self.result.recv_timeout(wait) {
                Ok(result) => return Ok(Came::Back(result?)),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fail::Error(format!(
                        "the {} probe's thread broke",
                        self.kind
                    )));
                }
            }
            let mut last = self.look(world)?;
            let mut still = true;
            for _ in 0..LOOKS {
                let idle = world.device_is_idle();
                let now = self.look(world)?;
                // It may have come back just now: then it did not wait for ever.
                if let Ok(result) = self.result.try_recv() {
                    return Ok(Came::Back(result?));
                }
                still = idle && now.stands_still() && now == last;
                last = now;
                if !still {
                    break;
                }
            }
            if still || round == ROUNDS {
                return Ok(Came::Not(last, still));
            }
            round += 1;
        }
    }

    fn look(&self, world: &World) -> Result<Sample, Fail> {
        let sample = Task(self.tid.load(Ordering::Acquire)).sample();
        world.post(&Mark::ProbeState(ProbeState {
            probe: self.number,
            waited_ms: self.start.elapsed().as_millis() as u64,
            state: sample.state,
            switches: sample.switches,
            wchan: sample.wchan.clone(),
        }))?;
        Ok(sample)
    }

    /// The outcome in words.
    pub fn describe(&self, came: &Came) -> String {
        match came {
            Came::Back(result) => format!("{} returned {}", self.kind, sys::result_text(*result)),
            Came::Not(s, still) => format!(
                "{} did not return in {} ms: state {} in {}, {}",
                self.kind,
                self.start.elapsed().as_millis(),
                s.state,
                if s.wchan.is_empty() {
                    "unknown"
                } else {
                    &s.wchan
                },
                if *still {
                    "it stands still"
                } else {
                    "it ran between two looks"
                }
            ),
        }
    }
}
