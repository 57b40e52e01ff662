// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A disk: what it is and the workers of its queues. It outlives connections.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::command::{Command, WorkerHandle};
use super::config::Geometry;
use super::data_queue::DiskState;
use super::hub::Hub;
use super::worker::{Look, QueueDevice, Worker};

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
    /// Starts the workers; `device` makes what stands behind each queue, `look` is how long an idle
    /// worker looks at its ring before it sleeps.
    pub fn run<D: QueueDevice + 'static>(
        &self,
        idle: Idle,
        look: Duration,
        mut device: impl FnMut(u16) -> io::Result<D>,
    ) -> io::Result<Threads> {
        let mut threads = Vec::new();
        // Asked now: of an affinity that is set later nobody tells us.
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let look = Look {
            time: look,
            shares_cpu: self.workers.len() > cpus,
        };
        for ((queue, orders), handle) in (0..).zip(idle.0).zip(self.workers.iter()) {
            let place = (self.number, queue);
            let device = device(queue)?;
            let worker = Worker::new(place, self.hub.clone(), orders, handle.wake(), device, look);
            let name = format!("{}-{queue}", self.name);
            threads.push(thread::Builder::new().name(name).spawn(|| worker.run())?);
        }
        Ok(Threads(threads))
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
