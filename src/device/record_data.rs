// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Contents of requests in the trace, as far as they are asked for and find room.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use wtblk_shared::disk::SECTOR;

use super::memory::{GuestMap, Segment};
use super::settings::DataOf;
use crate::store::{Buffers, Op as StoreOp};
use crate::trace::TraceWriter;
use crate::trace::event::{Body, DataEvent, DataKind, Op, RequestId};

/// Bytes of one event.
const PIECE: usize = 1 << 20;

/// See the module. Shared by all queues.
#[derive(Debug)]
pub(super) struct DataRecorder {
    of: DataOf,
    left: AtomicU64,
    limit: u64,
    said: AtomicBool,
}

/// A request whose contents are recorded.
pub(super) struct Recorded<'a> {
    pub trace: &'a TraceWriter,
    pub id: RequestId,
    pub sector: u64,
}

impl DataRecorder {
    /// Records at most `limit` bytes.
    pub fn new(of: DataOf, limit: u64) -> DataRecorder {
        DataRecorder {
            of,
            left: AtomicU64::new(limit),
            limit,
            said: AtomicBool::new(false),
        }
    }

    /// What a write is about to store. The store gets the very bytes that are recorded: those
    /// in the guest may change once more. `fails`: it will be answered with an error all the same.
    /// The text that is to be said about the limit, where it is reached now.
    pub fn stored(
        &self,
        request: &Recorded<'_>,
        fails: bool,
        ops: &mut [StoreOp],
    ) -> Option<String> {
        let wanted = match self.of {
            DataOf::None => false,
            DataOf::Failing => fails,
            DataOf::Writes | DataOf::All => true,
        };
        if !wanted {
            return None;
        }
        let mut full = None;
        for op in ops {
            let (offset, buffers) = match op {
                StoreOp::Write { offset, buffers } => (offset, buffers),
                StoreOp::Discard { offset, len } | StoreOp::WriteZeroes { offset, len, .. } => {
                    let sectors = *len / SECTOR;
                    let bytes = sectors.to_le_bytes().to_vec();
                    request.event(DataKind::Zeroed, *offset / SECTOR, bytes);
                    continue;
                }
                _ => continue,
            };
            let sector = *offset / SECTOR;
            if self.take(buffers.len()) {
                let bytes = buffers.to_vec();
                request.record(DataKind::Stored, sector, &bytes);
                *buffers = Buffers::owned(bytes);
            } else {
                full = full.or(self.dropped(request, DataKind::Stored, sector));
            }
        }
        full
    }

    /// What is in the guest's buffer when a request completes: what a read brought, or what a
    /// write that failed without being stored was to store.
    pub fn completed(
        &self,
        request: &Recorded<'_>,
        op: Op,
        fails: bool,
        (data, map): (&[Segment], &Arc<GuestMap>),
    ) -> Option<String> {
        let kind = match (op, self.of) {
            (Op::Write, DataOf::Failing | DataOf::Writes | DataOf::All) if fails => {
                DataKind::Failed
            }
            (Op::Read, DataOf::All) if !fails => DataKind::Read,
            _ => return None,
        };
        let buffers = map.buffers(data)?;
        if self.take(buffers.len()) {
            request.record(kind, request.sector, &buffers.to_vec());
            return None;
        }
        self.dropped(request, kind, request.sector)
    }

    fn take(&self, bytes: u64) -> bool {
        let order = Ordering::Relaxed;
        let less = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(order, order, less).is_ok()
    }

    /// The event says that there was something; the text is said once.
    fn dropped(&self, request: &Recorded<'_>, kind: DataKind, sector: u64) -> Option<String> {
        request.event(kind, sector, Vec::new());
        let first = !self.said.swap(true, Ordering::Relaxed);
        first.then(|| {
            format!(
                "trace data: {} bytes is the limit, the data of this and further requests is not kept",
                self.limit
            )
        })
    }
}

impl Recorded<'_> {
    fn record(&self, kind: DataKind, sector: u64, bytes: &[u8]) {
        for (n, piece) in bytes.chunks(PIECE).enumerate() {
            let at = sector + (n * PIECE) as u64 / SECTOR;
            self.event(kind, at, piece.to_vec());
        }
    }

    /// The digests of a write's sectors.
    pub fn digests(&self, sectors: &[u64]) {
        for (n, piece) in sectors.chunks(PIECE / 8).enumerate() {
            let at = self.sector + (n * PIECE / 8) as u64;
            let mut bytes = Vec::with_capacity(piece.len() * 8);
            for digest in piece {
                bytes.extend_from_slice(&digest.to_le_bytes());
            }
            self.event(DataKind::Digests, at, bytes);
        }
    }

    fn event(&self, kind: DataKind, sector: u64, bytes: Vec<u8>) {
        self.trace.record(&Body::Data(DataEvent {
            request: self.id,
            kind,
            sector,
            bytes,
        }));
    }
}
