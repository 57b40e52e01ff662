// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The steps of a request: delayed, kept back, done by the store, ended. What
//! its plan says happens here, each part at its point.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use smallvec::smallvec;

use super::super::carry::{Transfer, Zeroing, flip, scatter};
use super::{DataQueue, Pending, Waits, id};
use crate::fault::request::{DataFault, DeviceFault};
use crate::store::{self, Completion};
use crate::trace::event::{DeviceKind, Op, Status};

/// A write waits before its data is taken (late DMA), a read when it has been done.
#[derive(Clone, Copy, PartialEq)]
enum Step {
    Delay,
    Keep,
    Io,
    End,
}

const READ: [Step; 4] = [Step::Io, Step::Delay, Step::Keep, Step::End];
const OTHER: [Step; 4] = [Step::Delay, Step::Keep, Step::Io, Step::End];

fn steps(op: Op) -> [Step; 4] {
    match op {
        Op::Read => READ,
        _ => OTHER,
    }
}

impl Pending {
    /// It will be held, or wait in a group, but has not come to that step.
    pub(super) fn is_to_be_kept(&self) -> bool {
        let mut left = steps(self.request.op).into_iter().skip(self.step);
        let kept = self.plan.hold.is_some() || self.plan.order.is_some();
        kept && left.any(|step| step == Step::Keep)
    }
}

impl DataQueue {
    /// Takes steps until one of them waits.
    pub(super) fn advance(&mut self, token: u64) {
        while let Some(pending) = self.pending.get_mut(token) {
            if pending.lost {
                return self.end(token);
            }
            let steps = steps(pending.request.op);
            let Some(&step) = steps.get(pending.step) else {
                // It has ended before, but nothing was to be heard of it until its ring stops.
                return self.end(token);
            };
            pending.step += 1;
            let waits = match step {
                Step::Delay => self.delay(token),
                Step::Keep => self.keep(token),
                Step::Io => self.begin(token),
                Step::End => return self.end(token),
            };
            if let Some(pending) = self.pending.get_mut(token) {
                pending.waits = waits;
            }
            if waits != Waits::Nothing {
                return;
            }
        }
    }

    fn clock(&mut self, token: u64, ns: u64) {
        let until = Instant::now().checked_add(Duration::from_nanos(ns));
        if let (Some(until), Some(pending)) = (until, self.pending.get_mut(token)) {
            pending.until = Some(until);
            self.clocks.insert((until, token));
        }
    }

    fn delay(&mut self, token: u64) -> Waits {
        let Some(pending) = self.pending.get_mut(token) else {
            return Waits::Nothing;
        };
        let Some(ns) = pending.plan.delay_ns else {
            return Waits::Nothing;
        };
        if let Some(abandon) = self.stopping {
            pending.lost = abandon;
            return Waits::Nothing;
        }
        self.clock(token, ns);
        Waits::Delay
    }

    fn keep(&mut self, token: u64) -> Waits {
        let worker = self.worker();
        let Some(pending) = self.pending.get_mut(token) else {
            return Waits::Nothing;
        };
        let plan = &pending.plan;
        let waits = plan.hold.is_some() || plan.order.is_some() || plan.hang;
        if let Some(abandon) = self.stopping {
            pending.lost = abandon && waits;
            self.keep_no_more(token);
            return Waits::Nothing;
        }
        if let Some(hold) = &pending.plan.hold {
            let limit = hold.limit_ns;
            self.hub.hold(pending.rule());
            if let Some(ns) = limit {
                self.clock(token, ns);
            }
            return Waits::Hold;
        }
        if let (Some(slot), Some(key)) = (&pending.plan.order, pending.group()) {
            let rule = pending.rule();
            self.hub.hold(rule);
            let place = (worker, token);
            // Its own turn comes as an order, too: the worker is not done with this one yet.
            if let Some(go) = self.hub.groups.join(key, rule, slot, place) {
                self.hub.go(go);
            }
            if let Some(text) = self.hub.groups.first_forgotten() {
                let id = pending.request.id;
                self.event(DeviceKind::Limit, 0, id, &text);
            }
            return Waits::Order;
        }
        if pending.plan.hang {
            self.hub.add_hung(1);
            return Waits::Hang;
        }
        Waits::Nothing
    }

    /// Nothing will keep the request. It never takes its place in a group, but counts as arrived:
    /// the others must not wait for it.
    pub(super) fn keep_no_more(&mut self, token: u64) {
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        let key = pending.group();
        pending.plan.hold = None;
        if let (Some(slot), Some(key)) = (pending.plan.order.take(), key)
            && let Some(go) = self.hub.groups.pass(key, pending.rule(), &slot, self.queue)
        {
            self.hub.go(go);
        }
    }

    /// Has the request done by the store, where there is something to do.
    fn begin(&mut self, token: u64) -> Waits {
        let Some(pending) = self.pending.get_mut(token) else {
            return Waits::Nothing;
        };
        let outage = &self.disk.outage;
        // The request that the disk is gone with fails like those after it: nothing is stored.
        let goes = pending.plan.device == Some(DeviceFault::Gone) && self.stopping.is_none();
        if goes || outage.is_gone() || outage.is_silent() {
            pending.status = Status::IOERR;
            return Waits::Nothing;
        }
        if pending.error().is_some() && !pending.plan.store {
            return Waits::Nothing;
        }
        let fault = pending.plan.data.as_ref();
        let op = pending.request.op;
        let ops = match op {
            Op::Write | Op::Discard | Op::WriteZeroes if self.disk.read_only => None,
            Op::Read | Op::Write => {
                let transfer = Transfer {
                    write: op == Op::Write,
                    sector: pending.request.sector,
                    bytes: pending.request.bytes,
                    data: &pending.data,
                    map: &pending.map,
                    fault,
                };
                transfer.ops(self.disk.capacity)
            }
            Op::Flush => Some(match (fault, &self.disk.cache) {
                (Some(DataFault::Dropped), _) => store::Ops::new(),
                (_, None) => smallvec![store::Op::Flush],
                (Some(DataFault::LateFlush(n)), _) => {
                    let covers = pending.covers.saturating_sub(u64::from(*n));
                    smallvec![store::Op::FlushFirst(covers)]
                }
                _ => smallvec![store::Op::FlushFirst(pending.covers)],
            }),
            Op::GetId => {
                let written = scatter(&pending.map, &pending.data, &id(&self.disk.serial));
                pending.written = written.unwrap_or(0);
                written.map(|_| store::Ops::new())
            }
            Op::Discard | Op::WriteZeroes if self.disk.discard => {
                let zeroing = Zeroing {
                    op,
                    sector: pending.request.sector,
                    zones: &pending.zones,
                    fault,
                };
                let ops = zeroing.ops(self.disk.capacity);
                ops.map_err(|status| pending.status = status).ok()
            }
            Op::Discard | Op::WriteZeroes | Op::Other => {
                pending.status = Status::UNSUPP;
                None
            }
        };
        let Some(mut ops) = ops else {
            if pending.status.is_ok() {
                pending.status = Status::IOERR;
            }
            return Waits::Nothing;
        };
        if let Some(pending) = self.pending.get(token) {
            self.storing(pending, &mut ops);
        }
        self.submit(token, ops)
    }

    fn submit(&mut self, token: u64, ops: store::Ops) -> Waits {
        let Some(pending) = self.pending.get_mut(token) else {
            return Waits::Nothing;
        };
        pending.ops = ops.len();
        for op in ops {
            let number = self.ops.insert(token);
            self.store.submit(number, op);
        }
        if pending.ops > 0 {
            Waits::Store
        } else {
            Waits::Nothing
        }
    }

    /// The store has done an operation.
    pub(super) fn stored(&mut self, completion: Completion) {
        let Some(token) = self.ops.remove(completion.token) else {
            return;
        };
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        pending.ops -= 1;
        if self.disk.cache.is_some() {
            pending
                .receipts
                .extend(self.store.receipt(completion.token));
        }
        let (id, left) = (pending.request.id, pending.ops);
        if let Err(error) = completion.result {
            pending.status = Status::IOERR;
            let (op, sector) = (pending.request.op.name(), pending.request.sector);
            let disk = self.disk.number;
            tracing::warn!(disk, request = id, op, sector, "the store failed: {error}");
            let errno = error.raw_os_error().unwrap_or(libc::EIO) as u64;
            self.event(DeviceKind::StoreError, errno, id, &error.to_string());
        }
        if left == 0 {
            let waits = self.done(token);
            if let Some(pending) = self.pending.get_mut(token) {
                pending.waits = waits;
            }
            if waits == Waits::Nothing {
                self.advance(token);
            }
        }
    }

    /// The store has done everything that the request was asked for.
    fn done(&mut self, token: u64) -> Waits {
        let Some(pending) = self.pending.get_mut(token) else {
            return Waits::Nothing;
        };
        if !pending.status.is_ok() {
            return Waits::Nothing;
        }
        let through = !self.disk.writeback.load(Ordering::Relaxed);
        match pending.request.op {
            Op::Write | Op::Discard | Op::WriteZeroes if through && !pending.flushing => {
                pending.flushing = true;
                if let Some(cache) = &self.disk.cache {
                    // Its own flush covers it.
                    cache.complete(&std::mem::take(&mut pending.receipts), || 0);
                }
                return self.submit(token, smallvec![store::Op::Flush]);
            }
            Op::Read => {
                pending.written = pending.request.bytes;
                if let Some(DataFault::Corrupt(bits)) = &pending.plan.data
                    && flip(&pending.map, &pending.data, bits).is_none()
                {
                    pending.status = Status::IOERR;
                }
            }
            _ => {}
        }
        Waits::Nothing
    }

    /// The request is over, or would be: what its plan has for the device happens now.
    fn end(&mut self, token: u64) {
        if self.pending.get(token).is_some_and(Pending::is_to_be_kept) {
            self.keep_no_more(token);
        }
        let Some(pending) = self.pending.get_mut(token) else {
            return;
        };
        let (request, fault) = (pending.request.id, pending.plan.device.take());
        let mut status = pending.error().unwrap_or(pending.status);
        let mut written = pending.written;
        let (hub, queue, disk) = (&self.hub, self.queue, &self.disk);
        let outage = &disk.outage;
        // A ring that stops is left by what it holds, not by what happens to the device.
        let happened = fault
            .filter(|_| self.stopping.is_none())
            .filter(|fault| match fault {
                DeviceFault::Gone => outage.go(),
                // The power is that of all disks.
                DeviceFault::Cut => hub.cut(),
                DeviceFault::Disconnect { lose } => outage.close(*lose),
            });
        if let Some(what) = happened {
            hub.outage_event((disk.number, queue), request, what);
        }
        if outage.is_gone() {
            (status, written) = (Status::IOERR, 0);
        }
        match self.stopping {
            Some(_) => {
                let abandon = pending.lost || outage.is_silent();
                self.finish(token, status, written, abandon);
            }
            None if outage.is_silent() => {
                // Until its ring stops.
                pending.waits = Waits::Hang;
                hub.add_hung(1);
            }
            None => self.finish(token, status, written, false),
        }
    }
}
