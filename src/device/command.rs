// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Orders to a queue worker, each answered by a channel of its own and waited
//! for with a limit: nobody hangs because a worker does.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use super::inflight::Tracked;
use super::memory::GuestMap;
use super::ring::RingPlace;
use super::wake::Wake;
use super::worker::Flight;

/// How long a stop waits for the store's I/O.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(5);
/// Beyond it: until what the store has given up has come back.
pub(super) const GIVE_UP: Duration = Duration::from_millis(200);
/// How long the answer to any other order may take.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Everything a ring needs to start.
pub(super) struct Start {
    pub map: Arc<GuestMap>,
    pub place: RingPlace,
    pub size: u16,
    pub base: u16,
    pub event_idx: bool,
    pub enabled: bool,
    pub epoch: u32,
    pub kick: Option<File>,
    pub call: Option<File>,
    pub err: Option<File>,
    /// Where the front end keeps what is in flight; the ring goes on by it and not by `base`.
    pub tracked: Option<Tracked>,
}

/// How a ring stood when it stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopped {
    /// Next avail position: where the next start goes on.
    pub base: u16,
    /// Requests released by the stop.
    pub released: u64,
    /// Requests that the host kernel still has.
    pub left: usize,
}

/// An order.
pub(super) enum Command {
    /// Serve this ring from now on.
    Start(Box<Start>, SyncSender<()>),
    /// Finish what is in flight and touch guest memory no more. `None`: there was no ring.
    Stop(SyncSender<Option<Stopped>>),
    /// Take requests, or take none for now.
    Enable(bool, SyncSender<()>),
    /// Another fd to notify through.
    Call(Option<File>, SyncSender<()>),
    /// Another fd to tell of errors.
    Err(Option<File>, SyncSender<()>),
    /// Regions were added or removed.
    Memory(Arc<GuestMap>, SyncSender<()>),
    /// Take everything that the avail ring shows now.
    Sync(SyncSender<()>),
    /// Let go what the rule (`None`: any rule) holds; tells how many.
    Release(Option<String>, SyncSender<u64>),
    /// Let go this one request, where it is held; tells how many that were.
    ReleaseOne(u64, SyncSender<u64>),
    /// As `Release`, but the worker itself makes the event: the rules want it so.
    LetGo(String),
    /// The turn of this request of a group has come.
    Go(u64),
    /// Tell how many requests of a ring that has stopped the host kernel still has.
    Owes(SyncSender<usize>),
    /// Tell what is in flight.
    List(SyncSender<Vec<Flight>>),
    /// End the thread.
    Shutdown,
}

/// A worker that did not answer.
#[derive(Debug, thiserror::Error)]
#[error("queue {queue} does not answer")]
pub(super) struct NoAnswer {
    pub queue: u16,
}

/// An order that is under way.
pub(super) struct Pending<T> {
    queue: u16,
    answer: Receiver<T>,
}

impl<T> Pending<T> {
    /// The answer, if it comes in this time: a worker that is gone gives none ever, which is
    /// `Err`.
    pub fn look(&self, limit: Duration) -> Result<Option<T>, NoAnswer> {
        match self.answer.recv_timeout(limit) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(NoAnswer { queue: self.queue }),
        }
    }

    /// Waits for the answer.
    pub fn wait(self, until: Instant) -> Result<T, NoAnswer> {
        let left = until.saturating_duration_since(Instant::now());
        let queue = self.queue;
        self.answer
            .recv_timeout(left)
            .map_err(|_| NoAnswer { queue })
    }
}

/// The way to a worker.
#[derive(Clone)]
pub(super) struct WorkerHandle {
    queue: u16,
    orders: Sender<Command>,
    wake: Arc<Wake>,
}

impl WorkerHandle {
    pub fn new(queue: u16, orders: Sender<Command>) -> io::Result<WorkerHandle> {
        Ok(WorkerHandle {
            queue,
            orders,
            wake: Arc::new(Wake::new()?),
        })
    }

    /// Of its disk.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Readable when there are orders; the worker drains it.
    pub fn wake(&self) -> Arc<Wake> {
        self.wake.clone()
    }

    /// Gives an order; the answer is waited for later.
    pub fn post<T>(&self, order: impl FnOnce(SyncSender<T>) -> Command) -> Pending<T> {
        let (tell, answer) = sync_channel(1);
        // A worker that is gone drops the order, and with it `tell`: the wait ends at once.
        let _ = self.orders.send(order(tell));
        self.wake.signal();
        Pending {
            queue: self.queue,
            answer,
        }
    }

    /// Gives an order and waits.
    pub fn call<T>(
        &self,
        limit: Duration,
        order: impl FnOnce(SyncSender<T>) -> Command,
    ) -> Result<T, NoAnswer> {
        self.post(order).wait(Instant::now() + limit)
    }

    /// Gives an order that has no answer.
    pub fn tell(&self, order: Command) {
        let _ = self.orders.send(order);
        self.wake.signal();
    }

    /// Ends the worker.
    pub fn shutdown(&self) {
        self.tell(Command::Shutdown);
    }
}
