// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request's data is when it is taken and when it is completed: digests
//! of it, and for marked calls a bounded copy. So a change in between is seen,
//! and where. The store takes the data on its own, as late as it is told.
//!
//! Guest memory is only read by way of volatile copies: it may change under us.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use twox_hash::XxHash3_64;
use vm_memory::{Bytes, GuestAddress};
use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::Mark;
use wtblk_shared::tag::Tag;

use super::marked::Marked;
use super::memory::{GuestMap, Segment};
use super::request::Parsed;
use super::settings::DigestOf;
use crate::trace::change::Change;
use crate::trace::event::Op;

/// Longer requests are not looked at: no guest that means well sends them.
const MAX_REQUEST: u32 = 64 << 20;
/// Bytes looked at at a time; a multiple of a sector.
const CHUNK: usize = 64 << 10;

/// See the module. Shared by all queues.
#[derive(Debug)]
pub(super) struct Digests {
    of: DigestOf,
    room: Room,
    /// Marked calls that are open: without any the data path takes no lock.
    open: AtomicUsize,
    marked: RwLock<Marked>,
    /// It was said once that copies find no room.
    said: AtomicBool,
}

/// What may be kept of all requests together.
#[derive(Clone, Debug)]
struct Room {
    limit: u64,
    used: Arc<AtomicU64>,
}

/// Room that is taken; given back when dropped.
#[derive(Debug)]
struct Taken {
    bytes: u64,
    used: Arc<AtomicU64>,
}

impl Room {
    fn take(&self, bytes: u64) -> Option<Taken> {
        let more = |used: u64| used.checked_add(bytes).filter(|&n| n <= self.limit);
        let order = Ordering::Relaxed;
        self.used.fetch_update(order, order, more).ok()?;
        Some(Taken {
            bytes,
            used: self.used.clone(),
        })
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A look at a request's data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Look {
    /// Of all of it; never 0.
    pub digest: u64,
    /// Of its sectors, where asked for.
    pub sectors: Vec<u64>,
    /// The bytes, where asked for.
    pub bytes: Vec<u8>,
}

/// What is known of a request's data since it was taken.
#[derive(Debug)]
pub(super) struct Sample {
    /// A read brings its data at its completion.
    read: bool,
    /// As it was when taken; of a read nothing.
    pub look: Look,
    /// Of a marked call, but there was no room for a copy.
    pub crowded: bool,
    _room: Option<Taken>,
}

impl Digests {
    /// Keeps at most `limit` bytes of copies.
    pub fn new(of: DigestOf, limit: u64) -> Digests {
        Digests {
            of,
            room: Room {
                limit,
                used: Arc::default(),
            },
            open: AtomicUsize::new(0),
            marked: RwLock::default(),
            said: AtomicBool::new(false),
        }
    }

    /// Takes note of a mark.
    pub fn mark(&self, mark: &Mark) {
        if !matches!(mark, Mark::Boot | Mark::Begin(_) | Mark::End(_)) || self.of == DigestOf::Off {
            return;
        }
        let mut marked = self.marked.write().unwrap_or_else(PoisonError::into_inner);
        if marked.mark(mark) {
            self.open.store(marked.open(), Ordering::Release);
        }
    }

    /// Looks at a request that is being taken; `None` where nobody wants that.
    pub fn sample(&self, parsed: &Parsed, map: &GuestMap) -> Option<Box<Sample>> {
        let of_call = self.open.load(Ordering::Acquire) > 0 && self.is_marked(parsed);
        if self.of == DigestOf::Off || !(of_call || self.of == DigestOf::All) {
            return None;
        }
        let read = match parsed.op {
            Op::Read => true,
            Op::Write => false,
            _ => return None,
        };
        if parsed.bytes == 0 || parsed.bytes > MAX_REQUEST {
            return None;
        }
        let mut sample = Sample {
            read,
            look: Look::default(),
            crowded: false,
            _room: None,
        };
        if !read {
            let sectors = u64::from(parsed.bytes).div_ceil(SECTOR) * 8;
            let whole = sectors + u64::from(parsed.bytes);
            let room = |bytes| of_call.then(|| self.room.take(bytes)).flatten();
            let copy = room(whole);
            let copied = copy.is_some();
            sample._room = copy.or_else(|| room(sectors));
            sample.crowded = of_call && !copied;
            sample.look = look(map, &parsed.data, sample._room.is_some(), copied)?;
        }
        Some(Box::new(sample))
    }

    fn is_marked(&self, parsed: &Parsed) -> bool {
        let sectors = u64::from(parsed.bytes).div_ceil(SECTOR);
        let place = parsed.sector..parsed.sector.saturating_add(sectors);
        let marked = self.marked.read().unwrap_or_else(PoisonError::into_inner);
        marked.holds(Tag::from_ioprio(parsed.ioprio), &place)
    }

    /// Whether it is the first time that copies find no room.
    pub fn first_crowd(&self) -> bool {
        !self.said.swap(true, Ordering::Relaxed)
    }
}

impl Sample {
    /// Looks again, at the completion: the digest, and what has become different.
    pub fn again(&self, data: &[Segment], map: &GuestMap) -> Option<(u64, Option<Change>)> {
        let was = &self.look;
        let now = look(map, data, false, false)?;
        if self.read || now.digest == was.digest {
            return Some((now.digest, None));
        }
        // Where it differs takes a closer look, which is not needed as a rule.
        let now = look(map, data, !was.sectors.is_empty(), !was.bytes.is_empty())?;
        if now.digest == was.digest {
            return Some((now.digest, None));
        }
        let change = if !was.bytes.is_empty() {
            Change::of_bytes(&was.bytes, &now.bytes)
        } else {
            Change::of_sectors(&was.sectors, &now.sectors, SECTOR as usize)
        };
        Some((now.digest, Some(change)))
    }
}

/// One look at all of the data; `None` where some of it is no memory.
fn look(map: &GuestMap, data: &[Segment], sectors: bool, copy: bool) -> Option<Look> {
    let mut look = Look::default();
    let all = data.iter().map(|s| s.len as usize);
    let all = all.fold(0, usize::saturating_add);
    if copy || all <= CHUNK {
        let mut bytes = vec![0; all];
        let mut rest = bytes.as_mut_slice();
        for segment in data {
            let (part, later) = rest.split_at_mut_checked(segment.len as usize)?;
            map.read_slice(part, GuestAddress(segment.addr)).ok()?;
            rest = later;
        }
        look.digest = never_zero(digest(&bytes));
        if sectors {
            look.sectors = bytes.chunks(SECTOR as usize).map(digest).collect();
        }
        if copy {
            look.bytes = bytes;
        }
        return Some(look);
    }
    // More than is kept goes by in pieces.
    let mut whole = XxHash3_64::new();
    let mut chunk = vec![0; CHUNK];
    let mut have = 0;
    let mut take = |part: &[u8]| {
        std::hash::Hasher::write(&mut whole, part);
        if sectors {
            let digests = part.chunks(SECTOR as usize).map(digest);
            look.sectors.extend(digests);
        }
    };
    for segment in data {
        let (mut at, mut left) = (segment.addr, segment.len as usize);
        while left > 0 {
            let n = left.min(CHUNK - have);
            let room = chunk.get_mut(have..have + n)?;
            map.read_slice(room, GuestAddress(at)).ok()?;
            (at, left, have) = (at + n as u64, left - n, have + n);
            if have == CHUNK {
                take(&chunk);
                have = 0;
            }
        }
    }
    take(chunk.get(..have)?);
    look.digest = never_zero(std::hash::Hasher::finish(&whole));
    Some(look)
}

/// The digest of a sector's bytes.
fn digest(bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot(bytes)
}

/// 0 stands for "there is none" in a trace.
fn never_zero(digest: u64) -> u64 {
    digest.max(1)
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::map;
    use super::*;

    fn write(data: Vec<Segment>) -> Parsed {
        Parsed {
            op: Op::Write,
            sector: 8,
            bytes: data.iter().map(|s| s.len).sum(),
            ioprio: Tag::nth(3).ioprio(),
            data,
            zones: Vec::new(),
            status: 0,
        }
    }

    fn begun(digests: &Digests) {
        digests.mark(&Mark::Begin(wtblk_shared::mark::CallBegin {
            call: 1,
            tag: Some(3),
            ..Default::default()
        }));
    }

    fn seg(addr: u64, len: u32) -> Segment {
        Segment { addr, len }
    }

    #[test]
    fn the_cut_into_segments_does_not_matter() {
        let map = map();
        let bytes: Vec<u8> = (0..2048u32).map(|n| (n * 7 + n / 256) as u8).collect();
        map.write_slice(&bytes, GuestAddress(0x3000)).unwrap();
        let whole = look(&map, &[seg(0x3000, 2048)], true, true).unwrap();
        assert_eq!(whole.digest, XxHash3_64::oneshot(&bytes));
        assert_eq!(whole.sectors.len(), 4);
        assert_eq!(whole.sectors[1], XxHash3_64::oneshot(&bytes[512..1024]));
        assert_eq!(whole.bytes, bytes);
        let cut = [seg(0x3000, 1), seg(0x3001, 1000), seg(0x33e9, 1047)];
        assert_eq!(look(&map, &cut, true, true).unwrap(), whole);
        assert_eq!(look(&map, &[seg(u64::MAX - 1, 512)], true, true), None);
        assert_eq!(never_zero(0), 1);
    }

    #[test]
    fn only_what_is_asked_for_is_looked_at() {
        let map = map();
        let request = write(vec![seg(0x3000, 512)]);
        let off = Digests::new(DigestOf::Off, 1 << 20);
        begun(&off);
        assert!(off.sample(&request, &map).is_none());
        let marked = Digests::new(DigestOf::Marked, 1 << 20);
        assert!(marked.sample(&request, &map).is_none());
        begun(&marked);
        let sample = marked.sample(&request, &map).unwrap();
        assert_eq!((sample.look.bytes.len(), sample.crowded), (512, false));
        let stranger = Parsed {
            ioprio: 0,
            ..request
        };
        assert!(marked.sample(&stranger, &map).is_none());
        let all = Digests::new(DigestOf::All, 1 << 20);
        let sample = all.sample(&stranger, &map).unwrap();
        assert!(sample.look.digest != 0 && sample.look.bytes.is_empty());
        let read = Parsed {
            op: Op::Read,
            ..stranger
        };
        let sample = all.sample(&read, &map).unwrap();
        assert_eq!(sample.look.digest, 0);
        let (digest, change) = sample.again(&read.data, &map).unwrap();
        assert!(digest != 0 && change.is_none());
        let huge = Parsed {
            bytes: MAX_REQUEST + 1,
            ..read
        };
        assert!(all.sample(&huge, &map).is_none());
    }

    #[test]
    fn a_change_is_seen_to_the_byte_or_to_the_sector() {
        let map = map();
        let request = write(vec![seg(0x3000, 1024)]);
        // Room for a copy; for the digests of two sectors; for neither.
        for (limit, exact, ranges) in [
            (1 << 20, true, vec![(700, 2)]),
            (16, false, vec![(512, 512)]),
            (0, false, vec![]),
        ] {
            let digests = Digests::new(DigestOf::Marked, limit);
            begun(&digests);
            let sample = digests.sample(&request, &map).unwrap();
            assert_eq!(sample.crowded, limit < 1 << 20);
            assert_eq!(sample.again(&request.data, &map).unwrap().1, None);
            let old: [u8; 2] = map.read_obj(GuestAddress(0x3000 + 700)).unwrap();
            let new = old.map(|b| !b);
            map.write_obj(new, GuestAddress(0x3000 + 700)).unwrap();
            let (digest, change) = sample.again(&request.data, &map).unwrap();
            assert_ne!(digest, sample.look.digest);
            let change = change.unwrap();
            assert_eq!((change.exact, &change.ranges), (exact, &ranges));
            drop(sample);
            assert_eq!(digests.room.used.load(Ordering::Relaxed), 0);
        }
    }
}
