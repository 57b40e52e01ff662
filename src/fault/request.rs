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
}

/// What a rule wants done with a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Index of the rule in the scenario.
    pub rule: u16,
    /// Its name.
    pub name: String,
    /// Keep the request back until the rule is released. The point: before a
    /// write's data is copied out of the guest, before a read is done.
    pub hold: bool,
    /// Status to give; an error status stores and reads nothing.
    pub status: Option<Status>,
}
