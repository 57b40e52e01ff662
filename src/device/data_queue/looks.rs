// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the trace is told of a request's data.

use super::super::digest::Sample;
use super::super::record_data::Recorded;
use super::super::worker::Done;
use super::{DataQueue, Pending};
use crate::store;
use crate::trace::event::{DATA_DISK, DeviceKind, RequestId};

impl DataQueue {
    /// A request was taken, and this is what its data was.
    pub(super) fn sampled(&self, id: RequestId, sector: u64, sample: Option<&Sample>) {
        let Some(sample) = sample else { return };
        let (trace, digests) = (&*self.hub.trace, &self.hub.digests);
        Recorded { trace, id, sector }.digests(&sample.look.sectors);
        if sample.crowded && digests.first_crowd() {
            let text = "copies of data in flight: no room for this write and perhaps further ones, \
                        digests alone";
            self.event(DeviceKind::Limit, 0, id, text);
        }
    }

    /// A request was taken that is too long to be looked at.
    pub(super) fn not_sampled(&self, id: RequestId) {
        let text =
            "a request of more than 64 MiB: its data, and that of further ones, is not looked at";
        self.event(DeviceKind::Limit, 0, id, text);
    }

    /// A request's data is about to be stored.
    pub(super) fn storing(&self, pending: &Pending, ops: &mut [store::Op]) {
        if self.disk.number != DATA_DISK {
            return;
        }
        let request = self.recorded(pending);
        let fails = pending.error().is_some();
        if let Some(text) = self.hub.recorder.stored(&request, fails, ops) {
            self.event(DeviceKind::Limit, 0, request.id, &text);
        }
    }

    /// A request is about to be given back: what is its data now? Not asked of one whose
    /// ring has stopped: its memory may be in other use.
    pub(super) fn look_again(&mut self, done: &Done) {
        let Some(pending) = self.pending.get(done.token) else {
            return;
        };
        if self.disk.number != DATA_DISK {
            return;
        }
        if done.abandon || self.stopping.is_some() || pending.epoch != self.epoch {
            return;
        }
        let request = self.recorded(pending);
        let (id, op, fails) = (request.id, pending.request.op, !done.status.is_ok());
        // What was stored in spite of its error was recorded then.
        let stored = pending.error().is_some() && pending.plan.store;
        if !stored {
            let memory = (pending.data.as_slice(), &pending.map);
            if let Some(text) = self.hub.recorder.completed(&request, op, fails, memory) {
                self.event(DeviceKind::Limit, 0, id, &text);
            }
        }
        let sample = pending.sample.as_ref();
        let scratch = &mut self.scratch;
        let again = sample.and_then(|s| s.again(&pending.data, &pending.map, scratch));
        let Some((digest, change)) = again else {
            return;
        };
        if let Some(change) = change {
            let kind = DeviceKind::Changed;
            self.event(kind, id, change.bytes(), &change.to_text());
        }
        if let Some(pending) = self.pending.get_mut(done.token) {
            pending.digest = digest;
        }
    }

    fn recorded(&self, pending: &Pending) -> Recorded<'_> {
        Recorded {
            trace: &self.hub.trace,
            id: pending.request.id,
            sector: pending.request.sector,
        }
    }
}
