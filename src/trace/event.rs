// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The event: what the device says happened, in one order for all queues and
//! disks. Everything right of the device (verifier, exports, reports) knows
//! nothing but events.
//!
//! The order is exact for what the guest serialised and arbitrary between
//! concurrent requests; a finding may use only the former. Three rules make it
//! exact (`docs/architecture.md`, "Numbering"):
//!
//! * a `Submit` takes its number after the avail entry was read;
//! * a `Complete` takes its number before the used index is published, and
//!   tells the avail index read after the publication;
//! * whatever was in a ring when a mark arrived is numbered before the mark.

use std::fmt;

use wtblk_shared::mark::{Mark, MarkError};

/// Number of a request: the sequence number of its `Submit`.
pub type RequestId = u64;

/// An event with its place in the order.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// Its number: counts from 0, no number twice, gaps only where a [`Gap`] says so.
    pub seq: u64,
    /// Monotonic time in ns since the trace began. For people; no rule uses it.
    pub time_ns: u64,
    /// What happened.
    pub body: Body,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub enum Body {
    /// A request was taken from the ring.
    Submit(Submit),
    /// A rule of the scenario fired on a request.
    Decide(Decide),
    /// A request's completion was published.
    Complete(Complete),
    /// The guest wrote a mark.
    Mark(MarkEvent),
    /// Something happened to the device or its connection.
    Device(DeviceEvent),
    /// Contents of a request, or the digests of its sectors.
    Data(DataEvent),
    /// Events are missing here.
    Gap(Gap),
}

/// Kind of a request (virtio 1.3, 5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// VIRTIO_BLK_T_IN.
    Read,
    /// VIRTIO_BLK_T_OUT.
    Write,
    /// VIRTIO_BLK_T_FLUSH.
    Flush,
    /// VIRTIO_BLK_T_GET_ID.
    GetId,
    /// VIRTIO_BLK_T_DISCARD.
    Discard,
    /// VIRTIO_BLK_T_WRITE_ZEROES.
    WriteZeroes,
    /// Any other type, or a chain too broken to have one.
    Other,
}

impl Op {
    /// Its name, as scenarios, `trace show` and the control socket spell it.
    pub fn name(self) -> &'static str {
        match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Flush => "flush",
            Op::GetId => "get-id",
            Op::Discard => "discard",
            Op::WriteZeroes => "write-zeroes",
            Op::Other => "other",
        }
    }
}

/// Status byte of a completion (virtio 1.3, 5.2.6): a raw byte, because a
/// scenario may send one that the standard does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Status(pub u8);

impl Status {
    /// VIRTIO_BLK_S_OK.
    pub const OK: Status = Status(0);
    /// VIRTIO_BLK_S_IOERR.
    pub const IOERR: Status = Status(1);
    /// VIRTIO_BLK_S_UNSUPP.
    pub const UNSUPP: Status = Status(2);

    /// Whether the driver takes it for success.
    pub fn is_ok(self) -> bool {
        self == Status::OK
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Status::OK => f.write_str("OK"),
            Status::IOERR => f.write_str("IOERR"),
            Status::UNSUPP => f.write_str("UNSUPP"),
            Status(other) => write!(f, "{other:#04x}"),
        }
    }
}

/// A request was taken.
#[derive(Clone, Debug, PartialEq)]
pub struct Submit {
    /// Disk: 0 is the disk under test. The mark disk's writes are [`MarkEvent`]s, not requests.
    pub disk: u8,
    /// Queue index.
    pub queue: u16,
    /// Kind.
    pub op: Op,
    /// First sector (512 bytes); 0 for flush and get-id.
    pub sector: u64,
    /// Data length, bytes.
    pub bytes: u32,
    /// The header's ioprio field: the call tag where the hint is not 0.
    pub ioprio: u16,
    /// The ring's epoch: counts the starts of queues. A request belongs to one.
    pub epoch: u32,
    /// Position in the avail ring, counted without wrap since the ring started (free running u16 as the ring has it).
    pub avail_pos: u16,
    /// Digest of the data taken; 0 where none was asked for.
    pub digest: u64,
}

/// A rule fired.
#[derive(Clone, Debug, PartialEq)]
pub struct Decide {
    /// The request.
    pub request: RequestId,
    /// Index of the rule in the scenario.
    pub rule: u16,
    /// The request is kept back until a release.
    pub hold: bool,
    /// The status that the request will get; `None`: what the store says.
    pub status: Option<Status>,
    /// The rule's name.
    pub name: String,
    /// All that it does, in short words; empty in a trace that does not tell.
    pub plan: String,
}

/// A completion was published.
#[derive(Clone, Debug, PartialEq)]
pub struct Complete {
    /// The request.
    pub request: RequestId,
    /// Its status byte.
    pub status: Status,
    /// avail index read after the used index was published: requests at ring
    /// positions before it were submitted before the guest could see this completion.
    pub avail_after: u16,
    /// The ring was stopped meanwhile: nothing was written to guest memory.
    pub abandoned: bool,
    /// Digest of the guest's buffer at this moment; 0 where none was asked for.
    pub digest: u64,
}

/// A mark, as parsed, or why it could not be.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkEvent {
    /// The text of the mark up to its newline (at most 32 KiB).
    pub line: String,
    /// It was one aligned write that began at the mark area: ordered against the
    /// requests. A buffered `echo` arrives when writeback likes: unordered.
    pub ordered: bool,
}

impl MarkEvent {
    /// The mark in the line.
    pub fn parse(&self) -> Result<Mark, MarkError> {
        Mark::from_line(&self.line)
    }
}

/// Kinds of [`DeviceEvent`]. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeviceKind {
    /// A front end connected; `a` counts connections of this disk.
    Connected = 1,
    /// It went; `text` says why: [`WENT`] where it did so by itself.
    Disconnected = 2,
    /// A control message, `text` is its name.
    Message = 3,
    /// Features acknowledged: `a`.
    Features = 4,
    /// Queue `queue` started: `a` size, `b` epoch.
    QueueStart = 5,
    /// Queue `queue` stopped: `a` next avail position, `b` requests released by the stop.
    QueueStop = 6,
    /// Write cache: `a` = 1 write-back, 0 write-through.
    CacheMode = 7,
    /// The device was reset.
    Reset = 8,
    /// A descriptor chain was malformed: `a` head, `text` what.
    BadChain = 9,
    /// The ring was: queue `queue` stopped with `text`.
    BadRing = 10,
    /// A mark was refused: `text`.
    BadMark = 11,
    /// A release: `a` requests let go, `text` the rule or `*`.
    Release = 12,
    /// A wait ended: `a` = 1 the state was reached, 0 "not yet".
    Wait = 13,
    /// The store failed: `a` errno, `text`.
    StoreError = 14,
    /// `serve` is ending: `text` why.
    End = 15,
    /// The first event: `text` is JSON of what is served (capacity in sectors, logical block bytes, queues, serials, version).
    Begin = 16,
    /// A limit was reached: `text` which.
    Limit = 17,
    /// The scenario, as text, `a` = number of rules.
    Scenario = 18,
    /// The guest changed the data of write `a` between its taking and its completion, by at least `b`
    /// bytes; `text` is a [`super::change::Change`].
    Changed = 19,
    /// A rule took the disk away on request `a`: every request that is completed from here on fails.
    Gone = 20,
    /// A rule cut the power on request `a`: nothing is completed any more, the image is frozen.
    Cut = 21,
    /// A rule closes the connection on request `a`; `b` = 1: what is in flight is lost, 0: completed first.
    HangUp = 22,
    /// Request `a` was in flight when an earlier device was killed, and was taken anew; `b` are the
    /// lower 32 bits of its number then, 0: it had got none.
    Again = 23,
}

/// Something happened to the device or its connection.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceEvent {
    /// Disk, as in [`Submit`]; 255 is the mark disk.
    pub disk: u8,
    /// Queue, where the kind speaks of one.
    pub queue: u16,
    /// What.
    pub kind: DeviceKind,
    /// See [`DeviceKind`].
    pub a: u64,
    /// See [`DeviceKind`].
    pub b: u64,
    /// See [`DeviceKind`].
    pub text: String,
}

/// The text of a [`DeviceKind::Disconnected`] begins so where the front end closed its connection: nothing
/// that the device did, or was told, made it.
pub const WENT: &str = "disconnected";

impl DeviceEvent {
    /// The front end closed its connection by itself, as QEMU does when it ends: who comes next may be
    /// another guest, or no guest at all.
    pub fn front_end_went(&self) -> bool {
        self.kind == DeviceKind::Disconnected && self.text.starts_with(WENT)
    }
}

/// What a [`DataEvent`] holds. The numbers are part of the file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DataKind {
    /// What a write stored, and where: faults included, byte for byte.
    Stored = 1,
    /// What a read brought to the guest.
    Read = 2,
    /// What stood in the guest's buffer when a write failed; nothing of it is known to be stored.
    Failed = 3,
    /// Digests of the sectors of a write when it was taken, eight bytes each, little-endian.
    Digests = 4,
    /// What a discard or write-zeroes makes zeros: the number of sectors, eight bytes, little-endian.
    Zeroed = 5,
}

/// Contents of a request, or a part of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataEvent {
    /// The request.
    pub request: RequestId,
    /// What the bytes are.
    pub kind: DataKind,
    /// The sector of the disk at which they begin.
    pub sector: u64,
    /// At most 1 MiB, further ones are an event of their own. Empty: there was no room to keep them.
    pub bytes: Vec<u8>,
}

/// Events are missing: `seq` of the event is the first missing number.
#[derive(Clone, Debug, PartialEq)]
pub struct Gap {
    /// How many numbers are missing.
    pub missing: u64,
    /// Why.
    pub why: String,
}

/// Disk number of the disk under test in events.
pub const DATA_DISK: u8 = 0;
/// Disk number of the mark disk in events.
pub const MARK_DISK: u8 = 255;
