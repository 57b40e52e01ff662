// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The queue worker: one thread that owns a ring, takes requests from it and
//! gives them back. What a request means is its [`QueueDevice`]'s business.

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::active::{Active, Slot};
use super::chain::{self, Malformed};
use super::command::{Command, GIVE_UP, STOP_LIMIT, Start, Stopped};
use super::hub::Hub;
use super::memory::GuestMap;
use super::request::{self, Parsed};
use super::ring::RingError;
use super::slab::Slab;
use super::wake::Wake;
use crate::fault::request::Request;
use crate::trace::event::{DeviceKind, Status};

/// Most requests that are taken before what is over is given back: a driver that waits for the
/// first of many goes on while the others are done.
const BATCH: u16 = 8;

/// Pieces of guest memory, of all requests of a queue, from which on no further request is taken
/// until one is over: their lists are memory of ours (some 32 bytes each). A driver that keeps to
/// `seg_max` does not come there with a queue of 8192.
pub(super) const PIECES: usize = 1 << 20;

/// A request that was taken from the ring.
pub(super) struct Taken {
    /// What it asks for, or what is wrong with it.
    pub parsed: Result<Parsed, Malformed>,
    /// The memory it was parsed with: it belongs to this map until it is completed.
    pub map: Arc<GuestMap>,
    pub head: u16,
    pub position: u16,
    pub epoch: u32,
    /// It was taken before, by a device that was killed: the lower 32 bits of its number then, 0
    /// where it had none.
    pub again: Option<u32>,
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
    /// Requests follow that were all there by now.
    fn begin(&mut self) {}
    /// A request was taken; it ends in [`QueueDevice::poll`], which follows before anything
    /// is waited for. The number that it has in the trace, where it has one.
    fn take(&mut self, token: u64, taken: Taken) -> Option<u64>;
    /// Collects requests that are over.
    fn poll(&mut self, done: &mut Vec<Done>);
    /// Readable when `poll` has something to do.
    fn event(&self) -> BorrowedFd<'_>;
    /// Whether it waits for what others do, who may need this CPU for it.
    fn waits_for_others(&self) -> bool {
        false
    }
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
    /// The limit of a stop is over: of what is not, nothing more is begun.
    fn give_up(&mut self) {}
    /// Something in here panicked, or in whoever owns it: nothing that is in flight is gone on with.
    /// Tokens of what will come by [`QueueDevice::poll`] all the same, abandoned: what the host
    /// kernel has comes back.
    fn abandon_all(&mut self) -> Vec<u64>;
    /// A completion is about to be published: its event's number.
    fn publishing(&mut self, done: &Done) -> Option<u64>;
    /// Those whose numbers were taken have been published.
    fn published_all(&mut self) {}
    /// It was published.
    fn published(&mut self, number: Option<u64>, done: &Done, avail_after: u16, abandoned: bool);
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
    slots: Slab<Slot>,
    /// Pieces of guest memory of all of them.
    pieces: usize,
    /// It was told that they are as many as there may be.
    said_full: bool,
    /// It panicked since a ring was started last.
    fell: bool,
    done: Vec<Done>,
    /// What is being published.
    told: Vec<Told>,
    look: Look,
}

/// How an idle worker looks at its ring before it sleeps.
#[derive(Clone, Copy)]
pub(super) struct Look {
    /// How long; zero: not at all.
    pub time: Duration,
    /// There are fewer CPUs than workers that look: the others are let run between two looks.
    pub shares_cpu: bool,
}

/// A completion between its number and its event.
struct Told {
    done: Done,
    number: Option<u64>,
    published: bool,
}

impl<D: QueueDevice> Worker<D> {
    pub fn new(
        (disk, queue): (u8, u16),
        hub: Arc<Hub>,
        orders: Receiver<Command>,
        wake: Arc<Wake>,
        device: D,
        look: Look,
    ) -> Worker<D> {
        Worker {
            disk,
            queue,
            hub,
            orders,
            wake,
            device,
            active: None,
            slots: Slab::default(),
            pieces: 0,
            said_full: false,
            fell: false,
            done: Vec::new(),
            told: Vec::new(),
            look,
        }
    }

    /// The thread's life. A panic is an error of ours, and must be no end in silence: the ring stops
    /// like one that the guest has broken, and its queue is there for the next start. The connection
    /// stays, as the other queues' requests are its as well; and who reconnects by itself would bring
    /// the request back that it happened at.
    pub fn run(mut self) {
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.live())) {
            let why = format!("a worker panicked: {}", said(&*panic));
            tracing::error!(disk = self.disk, queue = self.queue, "{why}");
            let again = std::mem::replace(&mut self.fell, true);
            let recovered = catch_unwind(AssertUnwindSafe(|| self.fall(&why)));
            if again || recovered.is_err() {
                let text = format!("{why}; it cannot go on, no front end gets this queue any more");
                self.hub
                    .event(self.disk, self.queue, DeviceKind::BadRing, 0, 0, &text);
                tracing::error!(disk = self.disk, queue = self.queue, "{text}");
                return;
            }
        }
    }

    /// After a panic: the ring stops, and what is in flight is abandoned.
    fn fall(&mut self, why: &str) {
        if self.active.as_ref().is_none_or(|active| active.broken) {
            self.hub
                .event(self.disk, self.queue, DeviceKind::BadRing, 0, 0, why);
        }
        self.break_ring(&RingError(why.to_owned()));
        let mut left = self.device.abandon_all();
        self.slots.retain(|token| left.contains(&token));
        // Given back, as far as this side goes, when it happened.
        left.retain(|&token| !self.slots.contains(token));
        for token in left {
            let done = Done {
                token,
                status: Status::IOERR,
                written: 0,
                used_len: None,
                abandon: true,
            };
            let number = self.device.publishing(&done);
            self.device.published(number, &done, 0, true);
        }
        self.pieces = self.slots.iter().map(|slot| slot.pieces).sum();
    }

    fn live(&mut self) {
        let mut idle: Option<Instant> = None;
        loop {
            let mut busy = false;
            while let Ok(order) = self.orders.try_recv() {
                if matches!(order, Command::Shutdown) {
                    return;
                }
                self.obey(order);
                busy = true;
            }
            busy |= self.take_some();
            busy |= self.complete_all();
            if busy {
                idle = None;
                continue;
            }
            if self.spins(&mut idle) {
                match self.look.shares_cpu {
                    true => std::thread::yield_now(),
                    false => std::hint::spin_loop(),
                }
                continue;
            }
            idle = None;
            self.sleep();
        }
    }

    /// Whether there is still hope that something comes soon.
    fn spins(&self, idle: &mut Option<Instant>) -> bool {
        if self.look.time.is_zero()
            || !self.active.as_ref().is_some_and(Active::serving)
            || self.device.waits_for_others()
        {
            return false;
        }
        let now = Instant::now();
        now.saturating_duration_since(*idle.get_or_insert(now)) < self.look.time
    }

    /// Waits for a kick, an order, or something of the device.
    fn sleep(&mut self) {
        let full = self.pieces >= PIECES;
        if let Some(active) = self.active.as_mut().filter(|a| a.serving() && !full)
            && active.ring.enable_kicks()
        {
            return;
        }
        let kicked = self.wait();
        if kicked {
            self.drain_kick();
        }
        if let Some(active) = &mut self.active {
            active.ring.disable_kicks();
        }
    }

    /// Waits until there is something to do; whether the kick fd is readable.
    fn wait(&self) -> bool {
        let timeout = match self.device.deadline() {
            None => PollTimeout::NONE,
            Some(at) => round_up(at.saturating_duration_since(Instant::now())),
        };
        let serving = self.active.as_ref().filter(|a| a.serving());
        let kick = serving.and_then(|a| a.ring.kick());
        let fd = |fd| PollFd::new(fd, PollFlags::POLLIN);
        // The third is a stand-in where there is no kick fd.
        let mut fds = [
            fd(self.wake.as_fd()),
            fd(self.device.event()),
            fd(kick.unwrap_or(self.wake.as_fd())),
        ];
        let count = if kick.is_some() { 3 } else { 2 };
        match poll(&mut fds[..count], timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => tracing::error!(queue = self.queue, %error, "poll"),
        }
        if fds[0].any() == Some(true) {
            self.wake.drain();
        }
        count == 3 && fds[2].any() == Some(true)
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
            Command::Err(err, tell) => {
                if let Some(active) = &mut self.active {
                    active.err = err.map(Wake::from);
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
                while self.take_some() {}
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
            Command::Owes(tell) => {
                // Of a ring that runs nothing is owed: what was stopped before it is over by then.
                let count = if self.active.is_some() {
                    0
                } else {
                    self.slots.len()
                };
                let _ = tell.send(count);
            }
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
        if !self.slots.is_empty() {
            // Whoever gives the order has waited for them.
            let text = "a ring is to start while requests of the one before are not over";
            self.hub
                .event(self.disk, self.queue, DeviceKind::BadRing, 0, 0, text);
            return tracing::error!(disk = self.disk, queue = self.queue, "{text}");
        }
        let (a, b) = (u64::from(start.size), u64::from(start.epoch));
        let event =
            |kind, a, b, text: &str| self.hub.event(self.disk, self.queue, kind, a, b, text);
        match Active::new(start) {
            Ok(active) => {
                self.fell = false;
                event(DeviceKind::QueueStart, a, b, "");
                // Some front ends wait for one notification after they have set the fd, and there
                // may be used entries of an earlier device that the guest was not told of.
                active.ring.notify();
                self.active = Some(active);
            }
            Err((RingError(text), err)) => {
                event(DeviceKind::BadRing, 0, 0, &text);
                tracing::warn!(disk = self.disk, queue = self.queue, "ring refused: {text}");
                err.iter().for_each(Wake::signal);
            }
        }
    }

    /// Ends the ring. What the scenario holds is let go first, so only the store's I/O is waited
    /// for. At the limit the store gives up what it can, which fails; what the host kernel has
    /// even then is completed in the trace alone, whenever it is over ([`Command::Owes`]).
    fn stop(&mut self) -> Option<Stopped> {
        let _ = self.active.as_ref()?;
        let released = self.device.stop();
        let mut until = Instant::now() + STOP_LIMIT;
        let mut given_up = false;
        loop {
            self.complete_all();
            let left = until.saturating_duration_since(Instant::now());
            if self.slots.is_empty() {
                break;
            }
            if left.is_zero() && !given_up {
                given_up = true;
                self.device.give_up();
                until = Instant::now() + GIVE_UP;
                continue;
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
        Some(Stopped {
            base,
            released,
            left: self.slots.len(),
        })
    }

    /// Takes a batch of what the avail ring shows; whether there was anything. Asked until there
    /// is nothing it comes to an end: no head is taken twice.
    fn take_some(&mut self) -> bool {
        match self.try_take_some() {
            Ok(count) => count > 0,
            Err(error) => {
                self.break_ring(&error);
                false
            }
        }
    }

    fn try_take_some(&mut self) -> Result<u16, RingError> {
        let Some(active) = self.active.as_mut() else {
            return Ok(0);
        };
        if !active.serving() {
            return Ok(0);
        }
        active.look_at_memory()?;
        let mut count = 0;
        let mut shown = 0;
        while count < BATCH {
            if self.pieces >= PIECES {
                say_full(&self.hub, (self.disk, self.queue), &mut self.said_full);
                break;
            }
            let (position, head, again) = match active.again.pop_front() {
                // Older than all that the ring shows. Its place in the ring is not known any more.
                Some(again) => {
                    if count == 0 {
                        self.device.begin();
                    }
                    (active.ring.next_avail(), again.head, Some(again.number))
                }
                None => {
                    if shown == 0 {
                        shown = active.ring.shown()?;
                        if shown == 0 {
                            break;
                        }
                        self.device.begin();
                    }
                    let (position, head) = active.ring.take()?;
                    shown -= 1;
                    (position, head, None)
                }
            };
            count += 1;
            active.take(head)?;
            let ring = &active.ring;
            let map = ring.map();
            let parsed =
                chain::walk(map, ring.table(), head).and_then(|chain| request::parse(map, chain));
            let slot = Slot {
                head,
                epoch: active.epoch,
                map: map.clone(),
                status_at: match &parsed {
                    Ok(parsed) => Some(parsed.status),
                    Err(malformed) => malformed.status,
                },
                pieces: parsed.as_ref().map_or(0, |p| p.data.len()),
            };
            self.pieces += slot.pieces;
            let taken = Taken {
                parsed,
                map: map.clone(),
                head,
                position,
                epoch: active.epoch,
                again,
            };
            let token = self.slots.insert(slot);
            let number = self.device.take(token, taken);
            if let (Some(tracked), Some(number)) = (&active.tracked, number) {
                tracked.number(head, number);
            }
        }
        Ok(count)
    }

    /// Gives back everything that is over: all numbers first, then the used index, once, then
    /// the events, which tell the avail index as it was after that. Whether anything was over.
    fn complete_all(&mut self) -> bool {
        let mut done = std::mem::take(&mut self.done);
        self.device.poll(&mut done);
        if done.is_empty() {
            self.done = done;
            return false;
        }
        let mut told = std::mem::take(&mut self.told);
        let mut broken = None;
        let mut any = false;
        for done in done.drain(..) {
            let Some(slot) = self.slots.remove(done.token) else {
                continue;
            };
            self.pieces -= slot.pieces;
            let number = self.device.publishing(&done);
            let current = self.active.as_mut().filter(|a| a.epoch == slot.epoch);
            let published = match current {
                Some(active) if !done.abandon => match active.put(&slot, &done) {
                    Ok(()) => true,
                    Err(error) => {
                        broken.get_or_insert(error);
                        false
                    }
                },
                Some(active) => {
                    active.keep(&slot);
                    false
                }
                None => false,
            };
            any |= published;
            told.push(Told {
                done,
                number,
                published,
            });
        }
        self.done = done;
        let active = self.active.as_mut().filter(|_| any);
        let mut avail_after = 0;
        if let Some(active) = active {
            avail_after = active.publish();
        }
        self.device.published_all();
        for Told {
            done,
            number,
            published,
        } in told.drain(..)
        {
            let after = if published { avail_after } else { 0 };
            self.device.published(number, &done, after, !published);
        }
        self.told = told;
        if any
            && let Some(active) = &mut self.active
            && active.ring.wants_notification()
        {
            active.ring.notify();
        }
        if let Some(error) = broken {
            self.break_ring(&error);
        }
        true
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
            tracing::warn!(
                disk = self.disk,
                queue = self.queue,
                "ring stopped: {}",
                error.0
            );
        }
    }
}

/// What a panic said.
pub(super) fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a word")
}

/// Once for a worker.
fn say_full(hub: &Hub, (disk, queue): (u8, u16), said: &mut bool) {
    if !std::mem::replace(said, true) {
        let text = "requests in flight are of too many pieces: the next ones wait in the ring";
        tracing::warn!(queue, "{text}");
        hub.event(disk, queue, DeviceKind::Limit, PIECES as u64, 0, text);
    }
}

/// A poll that ends early would spin: up to the next millisecond.
fn round_up(left: Duration) -> PollTimeout {
    let ms = left.as_millis().saturating_add(u128::from(!left.is_zero()));
    PollTimeout::try_from(ms.min(60_000) as u32).unwrap_or(PollTimeout::MAX)
}
