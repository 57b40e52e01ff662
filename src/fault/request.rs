// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the fault engine is asked and what it answers. Nothing of vhost here.

use wtblk_shared::tag::Tag;

use crate::trace::event::{Op, RequestId, Status};

/// A request, as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its number (that of its `Submit`).
    pub id: RequestId,
    /// Disk.
    pub disk: u8,
    /// Queue.
    pub queue: u16,
    /// Kind.
    pub op: Op,
    /// First sector (512 bytes).
    pub sector: u64,
    /// Data length, bytes.
    pub bytes: u32,
    /// The call tag, if it has one.
    pub tag: Option<Tag>,
    /// Requests of the disk that were taken and not completed when this one
    /// was decided on, itself among them: alone it is 1.
    pub inflight: u32,
}

/// What a rule wants done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index of the rule in the scenario.
    pub rule: u16,
    /// Its name.
    pub name: String,
    /// What to do.
    pub plan: Plan,
}

/// The parts of a fault; the default is none of them. The order in which they
/// act on a write: `delay`, then `hold` (or `order`, or `hang`), all before its
/// data is copied out of the guest; then `data`; then `status`, `used_len` and
/// `device` at its completion. A read is done, `data` applied, before it waits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Wait so long, ns.
    pub delay_ns: Option<u64>,
    /// Keep the request back.
    pub hold: Option<Hold>,
    /// Keep it back until its group is complete, then go in the planned order.
    pub order: Option<OrderSlot>,
    /// Never complete it while the ring runs.
    pub hang: bool,
    /// What becomes of its data; `None`: it is stored, read or flushed as asked,
    /// unless an error status without `store` forbids it.
    pub data: Option<DataFault>,
    /// Status to give. An error status does nothing to the store unless `store`.
    pub status: Option<Status>,
    /// With an error status: do the I/O all the same.
    pub store: bool,
    /// Used length to report instead of the right one, bytes.
    pub used_len: Option<u32>,
    /// What happens to the device when this request would complete.
    pub device: Option<DeviceFault>,
}

/// Keep a request back until its rule is released.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hold {
    /// Released by itself after so long, ns.
    pub limit_ns: Option<u64>,
}

/// A place in a group of requests that complete in a planned order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderSlot {
    /// The group: counts the times that the rule has begun one.
    pub group: u64,
    /// How many requests the group has.
    pub size: u32,
    /// This request's place in the order: the device sorts by it, and by arrival
    /// where it is the same, when the group is complete. One group has one kind.
    pub turn: OrderBy,
    /// The group goes in its order as it is when its first request has waited so
    /// long, ns. Until then only a release of the rule lets an incomplete one go.
    pub limit_ns: Option<u64>,
}

/// How the turns of a group are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OrderBy {
    /// This is its turn, `0..size`: known when the request arrives.
    Turn(u32),
    /// By ascending offset: bytes in the file where the call is known, else bytes on the disk.
    Offset(u64),
}

/// What becomes of a request's data. Sectors count from the request's first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataFault {
    /// A write stores only these sectors (first, count), ascending, not overlapping.
    Torn(Vec<(u32, u32)>),
    /// These bits of the data are flipped: byte offset in the request, mask.
    Corrupt(Vec<(u32, u8)>),
    /// A write is not stored; a flush is not done. Acknowledged all the same.
    Dropped,
    /// The I/O goes to this sector instead. The engine does not know where the
    /// disk ends: beyond it the request fails, as any request there does.
    Misdirected(u64),
    /// A read gives what the range held before its last write. It lies wholly
    /// within the ranges that the device was told to keep ([`super::Engine::kept_ranges`]).
    Stale,
    /// A flush covers only what was completed before the flush was *submitted*,
    /// but for the last so many writes of it.
    LateFlush(u32),
}

/// What happens to the device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceFault {
    /// The connection is closed. `lose`: requests in flight are forgotten, which
    /// hangs a guest for ever; otherwise they are completed first.
    Disconnect {
        /// Forget what is in flight.
        lose: bool,
    },
    /// This and every later request fails with IOERR.
    Gone,
    /// Power cut: nothing is stored any more, what is not durable is lost, nothing completes.
    Cut,
}
