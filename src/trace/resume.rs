// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A trace that goes on where another process left it, killed or closed: the
//! numbers go on, and what was in flight is known.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::TraceError;
use super::event::{Body, DeviceKind, RequestId};
use super::format::{CHUNK_BYTES, HEADER_BYTES};
use super::reader::{KILLED, TraceReader};
use super::writer::{data_path, lock};

/// Requests that are kept in mind; a trace with more in flight is not from us.
const MAX_OPEN: usize = 1 << 20;

/// Holes that are kept in mind: there are as many as threads that wrote.
const MAX_KILLED: usize = 1024;

/// What the process before left.
#[derive(Debug, Default)]
pub struct Left {
    /// Requests that were not completed, ascending, with their disk.
    pub open: Vec<(RequestId, u8)>,
    /// Disks whose front end has started a ring and has not gone by itself since: it may come again.
    pub served: BTreeSet<u8>,
    /// The highest epoch of a ring, by disk.
    pub epochs: BTreeMap<u8, u32>,
    /// The text of the first begin: what the disk was like, as JSON. Empty where there is none.
    pub begin: String,
}

/// Where a writer goes on.
pub(super) struct Place {
    pub(super) index: File,
    pub(super) data: File,
    /// The next number.
    pub(super) next: u64,
    /// Where texts go on, after the header of PATH.data.
    pub(super) data_next: u64,
    /// ns since the trace began.
    pub(super) now_ns: u64,
    /// Numbers that the killed writer never wrote: the first, and how many.
    pub(super) killed: Vec<(u64, u64)>,
}

/// Reads all of the trace at PATH.
pub(super) fn look(path: &Path) -> Result<(Place, Left), TraceError> {
    let failed = |source| TraceError::GoOn {
        path: path.to_owned(),
        source,
    };
    let write = |path: &Path| OpenOptions::new().read(true).write(true).open(path);
    let index = write(path).map_err(failed)?;
    // Before it is read: a live writer's would be cut in the middle.
    lock(&index, path)?;
    let mut reader = TraceReader::open(path)?;
    let (mut open, mut left, mut last_ns) = (BTreeMap::new(), Left::default(), 0);
    let mut killed = Vec::new();
    while let Some(event) = reader.next()? {
        last_ns = event.time_ns.max(last_ns);
        match event.body {
            Body::Submit(s) => {
                let epoch = left.epochs.entry(s.disk).or_default();
                *epoch = s.epoch.max(*epoch);
                open.insert(event.seq, s.disk);
                if open.len() > MAX_OPEN {
                    let what = format!("more than {MAX_OPEN} requests in flight");
                    return Err(failed(io::Error::other(what)));
                }
            }
            Body::Complete(c) => {
                open.remove(&c.request);
            }
            // What an earlier life has noted stays noted.
            Body::Gap(gap)
                if gap.why == KILLED
                    && killed.len() < MAX_KILLED
                    && !reader.notes_gap(event.seq) =>
            {
                killed.push((event.seq, gap.missing));
            }
            Body::Device(d) if d.kind == DeviceKind::QueueStart => {
                let epoch = left.epochs.entry(d.disk).or_default();
                *epoch = u32::try_from(d.b).unwrap_or(u32::MAX).max(*epoch);
                left.served.insert(d.disk);
            }
            Body::Device(d) if d.front_end_went() => {
                left.served.remove(&d.disk);
            }
            Body::Device(d) if d.kind == DeviceKind::Begin && left.begin.is_empty() => {
                left.begin = d.text;
            }
            _ => {}
        }
    }
    left.open = open.into_iter().collect();
    let data = write(&data_path(path)).map_err(failed)?;
    // A killed writer's last chunk is used to nobody knows where: texts go on in the next.
    let used = data.metadata().map_err(failed)?.len();
    let data_next = used
        .saturating_sub(HEADER_BYTES)
        .next_multiple_of(CHUNK_BYTES);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall = wall.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    // The wall clock may have been set back meanwhile.
    let now_ns = wall.saturating_sub(reader.began_wall_ns()).max(last_ns);
    let place = Place {
        index,
        data,
        next: reader.position(),
        data_next,
        now_ns,
        killed,
    };
    Ok((place, left))
}
