// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a rule does, as the file says it. A [`super::request::Plan`] is what
//! becomes of it for one request.

use super::request::DeviceFault;
use super::rule::{After, SectorRange};
use crate::trace::event::{Op, Status};

/// What a rule does. Contradictory parts were refused when the file was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Action {
    /// Wait.
    pub delay: Option<Delay>,
    /// Keep the request back until the rule is released.
    pub hold: Option<HoldFor>,
    /// Keep groups of requests back and complete them in a planned order.
    pub order: Option<Order>,
    /// Never complete it.
    pub hang: bool,
    /// What becomes of the data.
    pub data: Option<DataAction>,
    /// The request gets this status, never 0.
    pub status: Option<Status>,
    /// With a status: the I/O is done all the same.
    pub store: bool,
    /// The used length reported, bytes.
    pub used_len: Option<u32>,
    /// What happens to the device.
    pub device: Option<DeviceFault>,
}

/// How long to wait, ns: one of `min..=max` by the seed, and so much for each KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delay {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: u64,
    /// For each KiB of data.
    pub per_kib: u64,
}

/// How long to hold, beside the release by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HoldFor {
    /// At most so long, ns.
    pub limit: Option<u64>,
    /// Until this happens, counted from the first request that is held.
    pub until: Option<After>,
}

/// A planned order of completion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Requests of a group.
    pub group: u32,
    /// Their order.
    pub by: Permutation,
    /// An incomplete group goes after so long, ns.
    pub limit: Option<u64>,
}

/// An order of the requests of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Permutation {
    /// The turn of each request, by arrival.
    Turns(Vec<u32>),
    /// The last to come is the first.
    Reverse,
    /// By ascending offset.
    Offset,
    /// By the seed.
    Seeded,
    /// The order of this number among the `group!` orders, in lexical order.
    Index(u64),
    /// Each group the next of all orders.
    All,
}

/// What becomes of a request's data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataAction {
    /// A write or write-zeroes stores only a part.
    Torn(Torn),
    /// Bits are flipped.
    Corrupt {
        /// How many.
        bits: u32,
        /// From this byte on; `None`: anywhere, by the seed.
        offset: Option<u32>,
    },
    /// A write, discard or write-zeroes is not done.
    Drop,
    /// Elsewhere.
    Misdirect(Misdirect),
    /// A read gives old content of these ranges: sorted, not overlapping.
    Stale(Vec<SectorRange>),
    /// A flush is not done.
    DropFlush,
    /// A flush leaves out the last so many writes.
    LateFlush(u32),
}

/// What a torn write stores. Sectors count from its first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Torn {
    /// The first so many.
    First(u32),
    /// The last so many.
    Last(u32),
    /// These (first, count): sorted, merged.
    Sectors(Vec<(u32, u32)>),
}

/// Where misdirected I/O goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misdirect {
    /// So many sectors further.
    By(i64),
    /// To this sector.
    To(u64),
}

impl Action {
    /// It does nothing.
    pub fn is_nothing(&self) -> bool {
        *self == Action::default()
    }

    /// It can do all that it says to a request of this kind.
    pub fn suits(&self, op: Op) -> bool {
        self.data.as_ref().is_none_or(|data| data.suits(op))
    }
}

impl DataAction {
    /// The kinds of requests it can be done to.
    pub fn suits(&self, op: Op) -> bool {
        match self {
            DataAction::Torn(_) => matches!(op, Op::Write | Op::WriteZeroes),
            DataAction::Corrupt { .. } | DataAction::Misdirect(_) => {
                matches!(op, Op::Read | Op::Write)
            }
            DataAction::Drop => matches!(op, Op::Write | Op::Discard | Op::WriteZeroes),
            DataAction::Stale(_) => op == Op::Read,
            DataAction::DropFlush | DataAction::LateFlush(_) => op == Op::Flush,
        }
    }

    /// Its key in a file.
    pub fn key(&self) -> &'static str {
        match self {
            DataAction::Torn(_) => "torn",
            DataAction::Corrupt { .. } => "corrupt",
            DataAction::Drop => "drop",
            DataAction::Misdirect(_) => "misdirect",
            DataAction::Stale(_) => "stale",
            DataAction::DropFlush => "drop_flush",
            DataAction::LateFlush(_) => "late_flush",
        }
    }

    /// The kinds of requests it can be done to, in words.
    pub fn suits_what(&self) -> &'static str {
        match self {
            DataAction::Torn(_) => "a write or a write-zeroes",
            DataAction::Corrupt { .. } | DataAction::Misdirect(_) => "a read or a write",
            DataAction::Drop => "a write, a discard or a write-zeroes",
            DataAction::Stale(_) => "a read",
            DataAction::DropFlush | DataAction::LateFlush(_) => "a flush",
        }
    }
}
