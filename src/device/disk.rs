// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk: what it is and the workers of its queues. It outlives connections.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::command::{Command, WorkerHandle};
use super::config::Geometry;
use super::connection::Stopper;
use super::data_queue::DiskState;
use super::hub::Hub;
use super::worker::{Look, QueueDevice, Worker};
use crate::trace::event::DeviceKind;

/// How long [`Disk::settle`] waits for a worker's answer before it looks whether the device ends.
const SETTLE_LOOK: Duration = Duration::from_millis(100);
/// After so much of it people are told.
const SETTLE_SAY: Duration = Duration::from_millis(500);
const SETTLE_TEXT: &str =
    "no front end is served and no ring started before the I/O of the stopped rings is over";

/// See the module.
pub(super) struct Disk {
    /// Its number in events.
    pub number: u8,
    pub name: String,
    pub hub: Arc<Hub>,
    pub geometry: Geometry,
    /// The disk under test has a state; the mark disk has not.
    pub state: Option<Arc<DiskState>>,
    /// The writeback byte at start and after a reset.
    pub start_writeback: bool,
    pub workers: Arc<Vec<WorkerHandle>>,
    /// Counts the starts of queues.
    pub epochs: AtomicU32,
    pub connections: AtomicU64,
}

/// Orders of workers that do not run yet.
pub(super) struct Idle(Vec<Receiver<Command>>);

/// Handles for `queues` workers, and what their threads will need.
pub(super) fn handles(queues: u16) -> io::Result<(Arc<Vec<WorkerHandle>>, Idle)> {
    let mut handles = Vec::new();
    let mut idle = Vec::new();
    for queue in 0..queues {
        let (orders, receiver) = channel();
        handles.push(WorkerHandle::new(queue, orders)?);
        idle.push(receiver);
    }
    Ok((Arc::new(handles), Idle(idle)))
}

/// Threads of a disk's workers.
pub(super) struct Threads(Vec<JoinHandle<()>>);

impl Disk {
    /// Starts the workers; `devices` are what stands behind each queue, `look` is how an idle worker
    /// looks at its ring before it sleeps.
    pub fn run<D: QueueDevice + 'static>(
        &self,
        idle: Idle,
        look: Look,
        devices: Vec<D>,
    ) -> io::Result<Threads> {
        let mut threads = Vec::new();
        let queues = (0..).zip(idle.0).zip(self.workers.iter());
        for (((queue, orders), handle), device) in queues.zip(devices) {
            let place = (self.number, queue);
            let worker = Worker::new(place, self.hub.clone(), orders, handle.wake(), device, look);
            let name = format!("{}-{queue}", self.name);
            threads.push(thread::Builder::new().name(name).spawn(|| worker.run())?);
        }
        Ok(Threads(threads))
    }

    /// Waits until the host kernel has no I/O left of a ring that has stopped, whatever that
    /// takes: a write that comes late would wipe what was written since. `false`: the device ends.
    pub fn settle(&self, stopper: &Stopper) -> bool {
        let begun = Instant::now();
        let mut said = false;
        let asked: Vec<_> = self.workers.iter().map(|w| w.post(Command::Owes)).collect();
        for (mut asked, worker) in asked.into_iter().zip(self.workers.iter()) {
            loop {
                let answer = asked.look(SETTLE_LOOK);
                let count = match answer {
                    // A thread that is gone took its way into the store with it.
                    Ok(Some(0)) | Err(_) => break,
                    Ok(Some(count)) => count as u64,
                    // It is within a system call itself.
                    Ok(None) => 0,
                };
                if begun.elapsed() >= SETTLE_SAY && !std::mem::replace(&mut said, true) {
                    let (disk, queue) = (&self.name, worker.queue());
                    tracing::warn!(disk, queue, "{SETTLE_TEXT}");
                    let kind = DeviceKind::Limit;
                    self.hub
                        .event(self.number, queue, kind, count, 0, SETTLE_TEXT);
                }
                // Whoever owes something is asked again after a while.
                let mut fds = [PollFd::new(stopper.wake().as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(20u8));
                if stopper.stopping() {
                    return false;
                }
                if matches!(answer, Ok(Some(_))) {
                    asked = worker.post(Command::Owes);
                }
            }
        }
        if said {
            tracing::warn!(disk = self.name, "the I/O of the stopped rings is over");
        }
        true
    }

    /// Ends the workers; one that is stuck in the host kernel is left behind.
    pub fn end(&self, threads: Threads, limit: Duration) {
        for worker in self.workers.iter() {
            worker.shutdown();
        }
        join_until(threads.0, Instant::now() + limit);
    }
}

/// Joins what ends in time.
pub(super) fn join_until(threads: Vec<JoinHandle<()>>, until: Instant) {
    for thread in threads {
        while !thread.is_finished() && Instant::now() < until {
            thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}
