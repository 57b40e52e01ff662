// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The vhost-user-blk device. The only room that knows vhost and virtio.
//!
//! A front end's control messages arrive in `transport` and become orders to
//! the queue workers; a worker walks its ring and hands requests to what
//! stands behind it, the disk under test or the mark disk. `docs/device.md`
//! tells the threads, the numbering and what happens at a stop.

mod active;
mod carry;
mod chain;
mod command;
mod config;
mod connection;
mod control;
mod data_queue;
mod digest;
mod disk;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzz_messages;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod gate;
mod groups;
mod hub;
mod inflight;
mod mark_queue;
mod marked;
mod memory;
mod notify;
mod orders;
mod outage;
mod rate;
mod record_data;
mod request;
mod ring;
mod serve;
mod settings;
mod shared;
mod slab;
mod socket;
mod transport;
mod wake;
mod worker;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzz_messages::fuzz_messages;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use fuzzing::fuzz_ring;
pub use serve::serve;
pub use settings::{
    Backing, DataOf, DigestOf, MARKS_PER_SECOND, MoreDisk, Plans, Poll, Recording, ServeConfig,
    Settings, Wrap,
};
pub use socket::Address;
