// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request's data is when it is taken and when it is completed: digests
//! of it, and for marked calls a bounded copy. So a change in between is seen,
//! and where. The store takes the data on its own, as late as it is told.
//!
//! Guest memory is only read by way of volatile copies: it may change under us.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

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
/// Bytes compared at a time: they stay in the CPU's nearest cache.
const PIECE: usize = 8 << 10;
/// Copies of at most so many bytes are used again, and how many wait for that.
const MAX_SPARE: usize = 256 << 10;
const SPARES: usize = 16;

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
    /// It was said once that a request is too long.
    said_long: AtomicBool,
}

/// What may be kept of all requests together.
#[derive(Clone, Debug)]
struct Room {
    limit: u64,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    used: AtomicU64,
    /// Memory of copies that are not needed any more: new one is paged in and cleared each time.
    spare: Mutex<Vec<Vec<u8>>>,
}

/// Room that is taken, and the copy in it; given back when dropped.
#[derive(Debug)]
struct Taken {
    bytes: u64,
    shared: Arc<Shared>,
}

impl Room {
    fn take(&self, bytes: u64) -> Option<Taken> {
        let more = |used: u64| used.checked_add(bytes).filter(|&n| n <= self.limit);
        let order = Ordering::Relaxed;
        self.shared.used.fetch_update(order, order, more).ok()?;
        Some(Taken {
            bytes,
            shared: self.shared.clone(),
        })
    }
}

impl Shared {
    fn spares(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Sample {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.look.bytes);
        if let Some(taken) = &self.room
            && (1..=MAX_SPARE).contains(&bytes.capacity())
        {
            let mut spares = taken.shared.spares();
            if spares.len() < SPARES {
                spares.push(bytes);
            }
        }
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
    room: Option<Taken>,
}

impl Digests {
    /// Keeps at most `limit` bytes of copies.
    pub fn new(of: DigestOf, limit: u64) -> Digests {
        Digests {
            of,
            room: Room {
                limit,
                shared: Arc::default(),
            },
            open: AtomicUsize::new(0),
            marked: RwLock::default(),
            said: AtomicBool::new(false),
            said_long: AtomicBool::new(false),
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

    /// Looks at a request that is being taken; `None` where nobody wants that. What `scratch`
    /// holds means nothing: memory to work in.
    pub fn sample(
        &self,
        parsed: &Parsed,
        map: &GuestMap,
        scratch: &mut Vec<u8>,
    ) -> Option<Box<Sample>> {
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
            room: None,
        };
        if !read {
            let sectors = u64::from(parsed.bytes).div_ceil(SECTOR) * 8;
            let whole = sectors + u64::from(parsed.bytes);
            let room = |bytes| of_call.then(|| self.room.take(bytes)).flatten();
            let copy = room(whole);
            let copied = copy.is_some();
            sample.room = copy.or_else(|| room(sectors));
            sample.crowded = of_call && !copied;
            let keeps = match copied {
                true => Keeps::Copy(self.room.shared.spares().pop().unwrap_or_default()),
                false => Keeps::Digest(scratch),
            };
            sample.look = look(map, &parsed.data, sample.room.is_some(), keeps)?;
        }
        Some(Box::new(sample))
    }

    /// Whether it is the first request that is not looked at for its length alone.
    pub fn first_long(&self, parsed: &Parsed) -> bool {
        if parsed.bytes <= MAX_REQUEST || self.of == DigestOf::Off {
            return false;
        }
        let has_data = matches!(parsed.op, Op::Read | Op::Write);
        let of_call = || self.open.load(Ordering::Acquire) > 0 && self.is_marked(parsed);
        has_data
            && (self.of == DigestOf::All || of_call())
            && !self.said_long.swap(true, Ordering::Relaxed)
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
    pub fn again(
        &self,
        data: &[Segment],
        map: &GuestMap,
        scratch: &mut Vec<u8>,
    ) -> Option<(u64, Option<Change>)> {
        let was = &self.look;
        let copied = !was.bytes.is_empty();
        // The same bytes have the same digest.
        if copied && is_same(map, data, &was.bytes, scratch)? {
            return Some((was.digest, None));
        }
        if !copied {
            let now = look(map, data, false, Keeps::Digest(scratch))?;
            if self.read || now.digest == was.digest {
                return Some((now.digest, None));
            }
        }
        // Where it differs takes a closer look, which is not needed as a rule.
        let keeps = match copied {
            true => Keeps::Copy(Vec::new()),
            false => Keeps::Digest(scratch),
        };
        let now = look(map, data, !was.sectors.is_empty(), keeps)?;
        if now.digest == was.digest {
            return Some((now.digest, None));
        }
        let change = if copied {
            Change::of_bytes(&was.bytes, &now.bytes)
        } else {
            Change::of_sectors(&was.sectors, &now.sectors, SECTOR as usize)
        };
        Some((now.digest, Some(change)))
    }
}

/// What is kept of the data that is looked at, and the memory for it.
enum Keeps<'a> {
    Copy(Vec<u8>),
    Digest(&'a mut Vec<u8>),
}

/// Makes it so long, whatever it holds.
fn sized(bytes: &mut Vec<u8>, len: usize) -> &mut [u8] {
    if bytes.len() < len {
        bytes.resize(len, 0);
    }
    &mut bytes[..len]
}

/// Whether the data is still these bytes; `None` where some of it is no memory.
fn is_same(
    map: &GuestMap,
    data: &[Segment],
    mut was: &[u8],
    scratch: &mut Vec<u8>,
) -> Option<bool> {
    for segment in data {
        let (mut at, mut left) = (segment.addr, segment.len as usize);
        while left > 0 {
            let n = left.min(PIECE);
            let piece = sized(scratch, n);
            map.read_slice(piece, GuestAddress(at)).ok()?;
            let (before, later) = was.split_at_checked(n)?;
            if piece != before {
                return Some(false);
            }
            (at, left, was) = (at + n as u64, left - n, later);
        }
    }
    Some(true)
}

/// One look at all of the data; `None` where some of it is no memory.
fn look(map: &GuestMap, data: &[Segment], sectors: bool, keeps: Keeps<'_>) -> Option<Look> {
    let mut look = Look::default();
    let all = data.iter().map(|s| s.len as usize);
    let all = all.fold(0, usize::saturating_add);
    let scratch = match keeps {
        Keeps::Copy(mut bytes) => {
            sized(&mut bytes, all);
            bytes.truncate(all);
            look.take(map, data, &mut bytes, sectors)?;
            look.bytes = bytes;
            return Some(look);
        }
        Keeps::Digest(scratch) if all <= CHUNK => {
            look.take(map, data, sized(scratch, all), sectors)?;
            return Some(look);
        }
        Keeps::Digest(scratch) => scratch,
    };
    // More than is kept goes by in pieces.
    let mut whole = XxHash3_64::new();
    let chunk = sized(scratch, CHUNK);
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
                take(chunk);
                have = 0;
            }
        }
    }
    take(chunk.get(..have)?);
    look.digest = never_zero(std::hash::Hasher::finish(&whole));
    Some(look)
}

impl Look {
    /// Of data that fits into `bytes`.
    fn take(
        &mut self,
        map: &GuestMap,
        data: &[Segment],
        bytes: &mut [u8],
        sectors: bool,
    ) -> Option<()> {
        let mut rest = &mut *bytes;
        for segment in data {
            let (part, later) = rest.split_at_mut_checked(segment.len as usize)?;
            map.read_slice(part, GuestAddress(segment.addr)).ok()?;
            rest = later;
        }
        self.digest = never_zero(digest(bytes));
        if sectors {
            self.sectors = bytes.chunks(SECTOR as usize).map(digest).collect();
        }
        Some(())
    }
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
    use smallvec::smallvec;

    use super::super::memory::Segments;
    use super::*;

    fn write(data: Segments) -> Parsed {
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
        let whole = look(&map, &[seg(0x3000, 2048)], true, Keeps::Copy(vec![9; 5000])).unwrap();
        assert_eq!(whole.digest, XxHash3_64::oneshot(&bytes));
        assert_eq!(whole.sectors.len(), 4);
        assert_eq!(whole.sectors[1], XxHash3_64::oneshot(&bytes[512..1024]));
        assert_eq!(whole.bytes, bytes);
        let cut = [seg(0x3000, 1), seg(0x3001, 1000), seg(0x33e9, 1047)];
        assert_eq!(
            look(&map, &cut, true, Keeps::Copy(vec![9; 5000])).unwrap(),
            whole
        );
        assert_eq!(
            look(
                &map,
                &[seg(u64::MAX - 1, 512)],
                true,
                Keeps::Copy(Vec::new())
            ),
            None
        );
        assert_eq!(never_zero(0), 1);
    }

    #[test]
    fn only_what_is_asked_for_is_looked_at() {
        let map = map();
        let request = write(smallvec![seg(0x3000, 512)]);
        let off = Digests::new(DigestOf::Off, 1 << 20);
        begun(&off);
        assert!(off.sample(&request, &map, &mut Vec::new()).is_none());
        let marked = Digests::new(DigestOf::Marked, 1 << 20);
        assert!(marked.sample(&request, &map, &mut Vec::new()).is_none());
        begun(&marked);
        let sample = marked.sample(&request, &map, &mut Vec::new()).unwrap();
        assert_eq!((sample.look.bytes.len(), sample.crowded), (512, false));
        let stranger = Parsed {
            ioprio: 0,
            ..request
        };
        assert!(marked.sample(&stranger, &map, &mut Vec::new()).is_none());
        let all = Digests::new(DigestOf::All, 1 << 20);
        let sample = all.sample(&stranger, &map, &mut Vec::new()).unwrap();
        assert!(sample.look.digest != 0 && sample.look.bytes.is_empty());
        let read = Parsed {
            op: Op::Read,
            ..stranger
        };
        let sample = all.sample(&read, &map, &mut Vec::new()).unwrap();
        assert_eq!(sample.look.digest, 0);
        let (digest, change) = sample.again(&read.data, &map, &mut Vec::new()).unwrap();
        assert!(digest != 0 && change.is_none());
        let huge = Parsed {
            bytes: MAX_REQUEST + 1,
            ..read
        };
        assert!(all.sample(&huge, &map, &mut Vec::new()).is_none());
    }

    #[test]
    fn memory_of_copies_is_used_again_and_nothing_of_the_old_is_seen() {
        let map = map();
        let digests = Digests::new(DigestOf::Marked, 1 << 20);
        begun(&digests);
        let mut scratch = vec![7; 3];
        // Longer, shorter, and longer again, each where the one before left its memory.
        for (n, len) in [2048, 512, 4096, 1024].into_iter().enumerate() {
            let bytes: Vec<u8> = (0..len).map(|i| (i / 3 + n as u32) as u8).collect();
            map.write_slice(&bytes, GuestAddress(0x3000)).unwrap();
            let cut = write(smallvec![seg(0x3000, 7), seg(0x3007, len - 7)]);
            let sample = digests.sample(&cut, &map, &mut scratch).unwrap();
            assert_eq!(sample.look.bytes, bytes);
            let whole = XxHash3_64::oneshot(&bytes);
            let again = sample.again(&cut.data, &map, &mut scratch).unwrap();
            assert_eq!(again, (whole, None));
            let last = GuestAddress(0x3000 + u64::from(len) - 1);
            map.write_obj(!bytes[len as usize - 1], last).unwrap();
            let (digest, change) = sample.again(&cut.data, &map, &mut scratch).unwrap();
            assert_ne!(digest, whole);
            assert_eq!(change.unwrap().ranges, [(len - 1, 1)]);
            assert!(digests.room.shared.spares().is_empty(), "it is in use");
            drop(sample);
            assert_eq!(digests.room.shared.spares().len(), 1);
        }
    }

    #[test]
    fn a_change_is_seen_to_the_byte_or_to_the_sector() {
        let map = map();
        let request = write(smallvec![seg(0x3000, 1024)]);
        // Room for a copy; for the digests of two sectors; for neither.
        for (limit, exact, ranges) in [
            (1 << 20, true, vec![(700, 2)]),
            (16, false, vec![(512, 512)]),
            (0, false, vec![]),
        ] {
            let digests = Digests::new(DigestOf::Marked, limit);
            begun(&digests);
            let sample = digests.sample(&request, &map, &mut Vec::new()).unwrap();
            assert_eq!(sample.crowded, limit < 1 << 20);
            assert_eq!(
                sample
                    .again(&request.data, &map, &mut Vec::new())
                    .unwrap()
                    .1,
                None
            );
            let old: [u8; 2] = map.read_obj(GuestAddress(0x3000 + 700)).unwrap();
            let new = old.map(|b| !b);
            map.write_obj(new, GuestAddress(0x3000 + 700)).unwrap();
            let (digest, change) = sample.again(&request.data, &map, &mut Vec::new()).unwrap();
            assert_ne!(digest, sample.look.digest);
            let change = change.unwrap();
            assert_eq!((change.exact, &change.ranges), (exact, &ranges));
            drop(sample);
            assert_eq!(digests.room.shared.used.load(Ordering::Relaxed), 0);
        }
    }
}
