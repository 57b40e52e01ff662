// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queue worker: one thread that owns a ring, takes requests from it and
//! gives them back. What a request means is its [`QueueDevice`]'s business.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use vm_memory::{Bytes, GuestAddress};

use super::chain::{self, Malformed};
use super::command::{Command, STOP_LIMIT, Start, Stopped};
use super::hub::Hub;
use super::memory::GuestMap;
use super::request::{self, Parsed};
use super::ring::{Ring, RingError};
use super::wake::Wake;
use crate::fault::request::Request;
use crate::trace::event::{DeviceKind, Status};

/// A request that was taken from the ring.
pub(super) struct Taken {
    /// What it asks for, or what is wrong with it.
    pub parsed: Result<Parsed, Malformed>,
    /// The memory it was parsed with: it belongs to this map until it is completed.
    pub map: Arc<GuestMap>,
    pub head: u16,
    pub position: u16,
    pub epoch: u32,
}

/// A request that is over.
#[derive(Debug)]
pub(super) struct Done {
    pub token: u64,
    pub status: Status,
    /// Bytes of data written to the guest, the status byte not counted.
    pub written: u32,
    /// What to tell the guest was written instead, status byte and all.
    pub used_len: Option<u32>,
    /// Do not tell the guest.
    pub abandon: bool,
}

/// A request in flight, for whoever asks.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub request: Request,
    /// The rule that fired on it.
    pub rule: Option<String>,
    /// What it waits for, in a word.
    pub waits: &'static str,
}

/// What stands behind a queue.
pub(super) trait QueueDevice: Send {
    /// A request was taken; it ends in [`QueueDevice::poll`].
    fn take(&mut self, token: u64, taken: Taken);
    /// Collects requests that are over.
    fn poll(&mut self, done: &mut Vec<Done>);
    /// Readable when `poll` has something to do.
    fn event(&self) -> BorrowedFd<'_>;
    /// When `poll` has something to do without any event.
    fn deadline(&self) -> Option<Instant>;
    /// Lets go what a rule holds; how many.
    fn release(&mut self, rule: Option<&str>) -> u64;
    /// Lets go this request, where it is held.
    fn release_one(&mut self, _request: u64) -> u64 {
        0
    }
    /// A request whose turn has come in its group goes on.
    fn go(&mut self, _token: u64) {}
    /// What is in flight.
    fn list(&self) -> Vec<Flight> {
        Vec::new()
    }
    /// The ring stops: lets go everything held in the way the scenario says; how many.
    fn stop(&mut self) -> u64;
    /// A completion is about to be published: its event's number.
    fn publishing(&mut self, done: &Done) -> Option<u64>;
    /// It was published.
    fn published(&mut self, number: Option<u64>, done: &Done, avail_after: u16, abandoned: bool);
}

/// The ring while it runs.
struct Active {
    ring: Ring,
    epoch: u32,
    /// Not served any more, because it was found broken.
    broken: bool,
    /// By head: whether the chain is in flight.
    taken: Vec<bool>,
    /// The vring could keep it, but has no way to signal it.
    err: Option<Wake>,
}

impl Active {
    /// Whether requests are taken.
    fn serving(&self) -> bool {
        !self.broken && self.ring.vring().is_enabled()
    }
}

/// What is needed to complete a request.
struct Slot {
    head: u16,
    epoch: u32,
    map: Arc<GuestMap>,
    status_at: Option<u64>,
}

/// See the module.
pub(super) struct Worker<D> {
    pub disk: u8,
    pub queue: u16,
    pub hub: Arc<Hub>,
    pub orders: Receiver<Command>,
    pub wake: Arc<Wake>,
    pub device: D,
    active: Option<Active>,
    slots: HashMap<u64, Slot>,
    next_token: u64,
    done: Vec<Done>,
}

impl<D: QueueDevice> Worker<D> {
    pub fn new(
        (disk, queue): (u8, u16),
        hub: Arc<Hub>,
        orders: Receiver<Command>,
        wake: Arc<Wake>,
        device: D,
    ) -> Worker<D> {
        Worker {
            disk,
            queue,
            hub,
            orders,
            wake,
            device,
            active: None,
            slots: HashMap::new(),
            next_token: 0,
            done: Vec::new(),
        }
    }

    /// The thread's life.
    pub fn run(mut self) {
        loop {
            let kicked = self.wait();
            if kicked {
                self.drain_kick();
            }
            self.wake.drain();
            while let Ok(order) = self.orders.try_recv() {
                if matches!(order, Command::Shutdown) {
                    return;
                }
                self.obey(order);
            }
            self.take_all();
            self.complete_all();
        }
    }

    /// Waits until there is something to do; whether the kick fd is readable.
    fn wait(&self) -> bool {
        let mut fds = vec![
            PollFd::new(self.wake.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.device.event(), PollFlags::POLLIN),
        ];
        let serving = self.active.as_ref().filter(|a| a.serving());
        // Locked over the wait, which keeps the fd open; nobody else has this vring.
        let vring = serving.map(|a| a.ring.vring());
        if let Some(kick) = vring.as_ref().and_then(|v| v.get_kick().as_ref()) {
            // SAFETY: `vring` keeps the fd open, and lives longer than `fds` is used.
            let kick = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            fds.push(PollFd::new(kick, PollFlags::POLLIN));
        }
        let timeout = match self.device.deadline() {
            None => PollTimeout::NONE,
            Some(at) => round_up(at.saturating_duration_since(Instant::now())),
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => tracing::error!(queue = self.queue, %error, "poll"),
        }
        fds.get(2).and_then(PollFd::any).unwrap_or(false)
    }

    fn drain_kick(&mut self) {
        let Some(active) = &mut self.active else {
            return;
        };
        if let Err(error) = active.ring.drain_kick() {
            self.break_ring(&error);
        }
    }

    fn obey(&mut self, order: Command) {
        // Whoever asked may have given up waiting: a lost answer is no error.
        match order {
            Command::Start(start, tell) => {
                self.start(*start);
                let _ = tell.send(());
            }
            Command::Stop(tell) => {
                let _ = tell.send(self.stop());
            }
            Command::Enable(on, tell) => {
                if let Some(active) = &mut self.active {
                    active.ring.set_enabled(on);
                }
                let _ = tell.send(());
            }
            Command::Call(call, tell) => {
                if let Some(active) = &mut self.active {
                    active.ring.set_call(call);
                    active.ring.notify();
                }
                let _ = tell.send(());
            }
            Command::Memory(map, tell) => {
                let moved = self.active.as_mut().map(|active| active.ring.remap(&map));
                if let Some(Err(error)) = moved {
                    self.break_ring(&error);
                }
                let _ = tell.send(());
            }
            Command::Sync(tell) => {
                self.take_all();
                let _ = tell.send(());
            }
            Command::Release(rule, tell) => {
                let count = self.device.release(rule.as_deref());
                let _ = tell.send(count);
            }
            Command::ReleaseOne(request, tell) => {
                let _ = tell.send(self.device.release_one(request));
            }
            Command::LetGo(rule) => {
                let count = self.device.release(Some(&rule));
                if count > 0 {
                    let kind = DeviceKind::Release;
                    self.hub.event(self.disk, self.queue, kind, count, 0, &rule);
                }
            }
            Command::Go(token) => self.device.go(token),
            Command::List(tell) => {
                let _ = tell.send(self.device.list());
            }
            Command::Shutdown => {}
        }
    }

    fn start(&mut self, start: Start) {
        if self.active.is_some() {
            self.stop();
        }
        let Start {
            map, place, size, ..
        } = start;
        let err = start.err.map(Wake::from);
        let (a, b) = (u64::from(size), u64::from(start.epoch));
        match Ring::new(map, place, size, start.base, start.event_idx) {
            Ok(mut ring) => {
                self.hub
                    .event(self.disk, self.queue, DeviceKind::QueueStart, a, b, "");
                ring.set_kick(start.kick);
                ring.set_call(start.call);
                ring.set_enabled(start.enabled);
                // Some front ends wait for one notification after they have set the fd, and there
                // may be used entries of an earlier device that the guest was not told of.
                ring.notify();
                self.active = Some(Active {
                    ring,
                    epoch: start.epoch,
                    broken: false,
                    taken: vec![false; usize::from(size)],
                    err,
                });
            }
            Err(RingError(text)) => {
                self.hub
                    .event(self.disk, self.queue, DeviceKind::BadRing, 0, 0, &text);
                tracing::warn!(queue = self.queue, "ring refused: {text}");
                err.iter().for_each(Wake::signal);
            }
        }
    }

    /// Ends the ring. What the scenario holds is let go first, so only I/O in the host kernel
    /// is waited for; what is not over by the limit is completed in the trace alone.
    fn stop(&mut self) -> Option<Stopped> {
        let _ = self.active.as_ref()?;
        let released = self.device.stop();
        let until = Instant::now() + STOP_LIMIT;
        loop {
            self.complete_all();
            let left = until.saturating_duration_since(Instant::now());
            if self.slots.is_empty() {
                break;
            }
            if left.is_zero() {
                let text = "requests still with the host kernel 5 s after a stop";
                let count = self.slots.len() as u64;
                self.hub
                    .event(self.disk, self.queue, DeviceKind::Limit, count, 0, text);
                break;
            }
            let mut fds = [PollFd::new(self.device.event(), PollFlags::POLLIN)];
            let _ = poll(&mut fds, round_up(left));
        }
        let active = self.active.take()?;
        let base = active.ring.next_avail();
        self.hub.event(
            self.disk,
            self.queue,
            DeviceKind::QueueStop,
            u64::from(base),
            released,
            "",
        );
        Some(Stopped { base, released })
    }

    /// Takes everything that the avail ring shows. Bounded: no head is taken twice.
    fn take_all(&mut self) {
        if let Err(error) = self.try_take_all() {
            self.break_ring(&error);
        }
    }

    fn try_take_all(&mut self) -> Result<(), RingError> {
        let Some(active) = self.active.as_mut() else {
            return Ok(());
        };
        if !active.serving() {
            return Ok(());
        }
        loop {
            while let Some((position, head)) = active.ring.take()? {
                let in_flight = &mut active.taken[usize::from(head)];
                if std::mem::replace(in_flight, true) {
                    return Err(RingError(format!(
                        "chain {head} was made available while it is in flight"
                    )));
                }
                let ring = &active.ring;
                let map = ring.map();
                let parsed = chain::walk(&map, ring.table(), ring.size(), head)
                    .and_then(|chain| request::parse(&map, chain));
                let token = self.next_token;
                self.next_token += 1;
                let slot = Slot {
                    head,
                    epoch: active.epoch,
                    map: map.clone(),
                    status_at: match &parsed {
                        Ok(parsed) => Some(parsed.status),
                        Err(malformed) => malformed.status,
                    },
                };
                self.slots.insert(token, slot);
                let taken = Taken {
                    parsed,
                    map,
                    head,
                    position,
                    epoch: active.epoch,
                };
                self.device.take(token, taken);
            }
            if !active.ring.enable_kicks()? {
                return Ok(());
            }
        }
    }

    /// Gives back everything that is over, then notifies once.
    fn complete_all(&mut self) {
        let mut done = std::mem::take(&mut self.done);
        self.device.poll(&mut done);
        let mut published = false;
        for done in done.drain(..) {
            published |= self.complete(&done);
        }
        self.done = done;
        if !published {
            return;
        }
        if let Some(active) = &mut self.active {
            match active.ring.wants_notification() {
                Ok(true) => active.ring.notify(),
                Ok(false) => {}
                Err(error) => self.break_ring(&error),
            }
        }
    }

    /// Whether something was published.
    fn complete(&mut self, done: &Done) -> bool {
        let Some(slot) = self.slots.remove(&done.token) else {
            return false;
        };
        let number = self.device.publishing(done);
        let current = self.active.as_mut().filter(|a| a.epoch == slot.epoch);
        let outcome = match current {
            Some(active) if !done.abandon => publish(active, &slot, done).map(Some),
            Some(active) => {
                // The guest is never told, so the head stays in flight for it.
                active.taken[usize::from(slot.head)] = true;
                Ok(None)
            }
            None => Ok(None),
        };
        let (avail_after, error) = match outcome {
            Ok(avail_after) => (avail_after, None),
            Err(error) => (None, Some(error)),
        };
        let abandoned = avail_after.is_none();
        self.device
            .published(number, done, avail_after.unwrap_or(0), abandoned);
        if let Some(error) = error {
            self.break_ring(&error);
        }
        !abandoned
    }

    /// This queue is served no further until it is started again; others go on.
    fn break_ring(&mut self, error: &RingError) {
        let Some(active) = &mut self.active else {
            return;
        };
        if !active.broken {
            active.broken = true;
            active.err.iter().for_each(Wake::signal);
            self.hub
                .event(self.disk, self.queue, DeviceKind::BadRing, 0, 0, &error.0);
            tracing::warn!(queue = self.queue, "ring stopped: {}", error.0);
        }
    }
}

/// Writes the status, gives the chain back; the avail index read afterwards.
fn publish(active: &mut Active, slot: &Slot, done: &Done) -> Result<u16, RingError> {
    let mut len = 0;
    if let Some(at) = slot.status_at {
        let written = slot.map.write_obj(done.status.0, GuestAddress(at));
        written.map_err(|e| RingError(format!("cannot write a status at {at:#x}: {e}")))?;
        len = done.written.saturating_add(1);
    }
    let len = done.used_len.unwrap_or(len);
    active.taken[usize::from(slot.head)] = false;
    active.ring.publish(slot.head, len)?;
    active.ring.avail_idx()
}

/// A poll that ends early would spin: up to the next millisecond.
fn round_up(left: Duration) -> PollTimeout {
    let ms = left.as_millis().saturating_add(u128::from(!left.is_zero()));
    PollTimeout::try_from(ms.min(60_000) as u32).unwrap_or(PollTimeout::MAX)
}
