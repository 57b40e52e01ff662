// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-blk request out of a chain (virtio 1.3, 5.2.6). The framing is
//! free: the header is the first 16 readable bytes, the status the last
//! writable byte, the data what lies between, however it is cut.

use vm_memory::{Bytes, GuestAddress};

use super::carry::gather;
use super::chain::{Chain, Malformed};
use super::memory::{GuestMap, Segment, Segments};
use crate::trace::event::Op;
use wtblk_shared::disk::SECTOR;

/// Bytes of the header: type, ioprio (virtio: reserved), sector.
const HEADER_LEN: usize = 16;

/// Bytes of a segment of a discard or write-zeroes (virtio 1.3, 5.2.6).
const ZONE_LEN: usize = 16;
/// Most such segments of a request; what the configuration space announces.
pub(super) const MAX_ZONES: u32 = 16;

/// A segment of a discard or write-zeroes, as the driver says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    pub sector: u64,
    pub sectors: u32,
    pub flags: u32,
}

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub op: Op,
    /// First sector; of several zones the lowest.
    pub sector: u64,
    /// Data in bytes; of zones what lies between the lowest and the highest.
    pub bytes: u32,
    /// Of a discard or write-zeroes; empty where there are none, too many, or part of one.
    pub zones: Vec<Zone>,
    /// Type 32 bits, then this field: Linux puts the I/O priority there.
    pub ioprio: u16,
    /// Where the data is: readable for a write, writable for a read.
    pub data: Segments,
    /// Where the status byte goes.
    pub status: u64,
}

/// Parses a well-formed chain.
pub(super) fn parse(map: &GuestMap, chain: Chain) -> Result<Parsed, Malformed> {
    let Chain {
        mut readable,
        mut writable,
    } = chain;
    let status = pop_last_byte(&mut writable).ok_or_else(|| Malformed {
        what: "no writable byte for the status".into(),
        status: None,
    })?;
    let header = take_header(map, &mut readable).ok_or_else(|| Malformed {
        what: format!("a header shorter than {HEADER_LEN} bytes"),
        status: Some(status),
    })?;
    let header = u128::from_le_bytes(header);
    let op = op(header as u32);
    let data = match op {
        Op::Read | Op::GetId => writable,
        _ => readable,
    };
    // The walk has limited the whole chain to 4 GiB.
    let len = data.iter().map(|s| s.len).fold(0, u32::saturating_add);
    let mut zones = Vec::new();
    let (sector, bytes) = match op {
        Op::Read | Op::Write => ((header >> 64) as u64, len),
        Op::Discard | Op::WriteZeroes => {
            zones = read_zones(map, &data, len).ok_or_else(|| Malformed {
                what: "segments that cannot be read".into(),
                status: Some(status),
            })?;
            span(&zones)
        }
        _ => (0, len),
    };
    Ok(Parsed {
        op,
        sector,
        bytes,
        zones,
        ioprio: (header >> 32) as u16,
        data,
        status,
    })
}

fn op(kind: u32) -> Op {
    match kind {
        0 => Op::Read,
        1 => Op::Write,
        4 => Op::Flush,
        8 => Op::GetId,
        11 => Op::Discard,
        13 => Op::WriteZeroes,
        _ => Op::Other,
    }
}

/// Copied once: what the driver changes later does not count.
fn read_zones(map: &GuestMap, data: &[Segment], len: u32) -> Option<Vec<Zone>> {
    let len = len as usize;
    if !len.is_multiple_of(ZONE_LEN) || len > MAX_ZONES as usize * ZONE_LEN {
        return Some(Vec::new());
    }
    let bytes = gather(map, data, 0, len)?;
    let (chunks, _) = bytes.as_chunks::<ZONE_LEN>();
    let zone = |raw: &[u8; ZONE_LEN]| {
        let raw = u128::from_le_bytes(*raw);
        Zone {
            sector: raw as u64,
            sectors: (raw >> 64) as u32,
            flags: (raw >> 96) as u32,
        }
    };
    Some(chunks.iter().map(zone).collect())
}

/// The lowest sector, and the bytes up to the highest.
fn span(zones: &[Zone]) -> (u64, u32) {
    let first = zones.iter().map(|z| z.sector).min().unwrap_or(0);
    let ends = zones
        .iter()
        .map(|z| z.sector.saturating_add(u64::from(z.sectors)));
    let sectors = ends.max().unwrap_or(0) - first;
    let most = u64::from(u32::MAX) / SECTOR;
    (first, (sectors.min(most) * SECTOR) as u32)
}

fn pop_last_byte(segments: &mut Segments) -> Option<u64> {
    let last = segments.last_mut()?;
    last.len -= 1;
    let at = last.addr + u64::from(last.len);
    if last.len == 0 {
        segments.pop();
    }
    Some(at)
}

/// Takes the header off the front; it may be cut anywhere.
fn take_header(map: &GuestMap, segments: &mut Segments) -> Option<[u8; HEADER_LEN]> {
    let mut header = [0; HEADER_LEN];
    let mut have = 0;
    let mut used_up = 0;
    for segment in segments.iter_mut() {
        let n = (segment.len as usize).min(HEADER_LEN - have);
        let part = &mut header[have..have + n];
        map.read_slice(part, GuestAddress(segment.addr)).ok()?;
        have += n;
        segment.addr += n as u64;
        segment.len -= n as u32;
        used_up += usize::from(segment.len == 0);
        if have == HEADER_LEN {
            segments.drain(..used_up);
            return Some(header);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::map;
    use smallvec::smallvec;

    use super::*;

    fn seg(addr: u64, len: u32) -> Segment {
        Segment { addr, len }
    }

    fn header(map: &GuestMap, kind: u32, ioprio: u32, sector: u64) {
        let raw = u128::from(kind) | u128::from(ioprio) << 32 | u128::from(sector) << 64;
        map.write_obj(raw.to_le_bytes(), GuestAddress(0x2000))
            .unwrap();
    }

    #[test]
    fn any_framing_of_a_write() {
        let map = map();
        header(&map, 1, 0x4011, 77);
        for (readable, data) in [
            (
                vec![seg(0x2000, 16), seg(0x3000, 512)],
                vec![seg(0x3000, 512)],
            ),
            (vec![seg(0x2000, 528)], vec![seg(0x2010, 512)]),
            (
                vec![
                    seg(0x2000, 1),
                    seg(0x2001, 14),
                    seg(0x200f, 1),
                    seg(0x3000, 500),
                    seg(0x4000, 12),
                ],
                vec![seg(0x3000, 500), seg(0x4000, 12)],
            ),
            (
                vec![seg(0x2000, 8), seg(0x2008, 8 + 512)],
                vec![seg(0x2010, 512)],
            ),
        ] {
            let readable = Segments::from_vec(readable);
            let writable = smallvec![seg(0x5000, 1)];
            let parsed = parse(&map, Chain { readable, writable }).unwrap();
            assert_eq!(
                (parsed.op, parsed.sector, parsed.bytes),
                (Op::Write, 77, 512)
            );
            assert_eq!((parsed.ioprio, parsed.status), (0x4011, 0x5000));
            assert_eq!(parsed.data.as_slice(), data);
        }
    }

    #[test]
    fn a_read_and_its_status_share_a_descriptor() {
        let map = map();
        header(&map, 0, 0, 3);
        let readable = smallvec![seg(0x2000, 16)];
        let writable = smallvec![seg(0x3000, 100), seg(0x4000, 413)];
        let parsed = parse(&map, Chain { readable, writable }).unwrap();
        assert_eq!(parsed.bytes, 512);
        assert_eq!(parsed.data.as_slice(), [seg(0x3000, 100), seg(0x4000, 412)]);
        assert_eq!(parsed.status, 0x4000 + 412);
    }

    #[test]
    fn zones_of_a_discard() {
        let map = map();
        header(&map, 11, 0, 99);
        let put = |at: u64, sector: u64, sectors: u32, flags: u32| {
            let raw = u128::from(sector) | u128::from(sectors) << 64 | u128::from(flags) << 96;
            map.write_obj(raw.to_le_bytes(), GuestAddress(at)).unwrap();
        };
        put(0x3000, 1000, 8, 0);
        put(0x3010, 100, 16, 1);
        let zones = |len: u32| {
            let readable = smallvec![seg(0x2000, 16), seg(0x3000, 5), seg(0x3005, len - 5)];
            let writable = smallvec![seg(0x5000, 1)];
            parse(&map, Chain { readable, writable }).unwrap()
        };
        let two = zones(32);
        assert_eq!((two.sector, two.bytes), (100, 908 * 512));
        let (sector, sectors, flags) = (100, 16, 1);
        assert_eq!(two.zones.len(), 2);
        assert_eq!(
            two.zones[1],
            Zone {
                sector,
                sectors,
                flags
            }
        );
        assert!(zones(31).zones.is_empty());
        assert!(zones(17 * 16).zones.is_empty());
        put(0x3000, u64::MAX, u32::MAX, 0);
        put(0x3010, 0, 1, 0);
        assert_eq!(zones(32).bytes, u32::MAX - 511);
    }

    #[test]
    fn header_or_status_missing() {
        let map = map();
        let short = Chain {
            readable: smallvec![seg(0x2000, 15)],
            writable: smallvec![seg(0x5000, 2)],
        };
        assert_eq!(parse(&map, short).unwrap_err().status, Some(0x5001));
        let mute = Chain {
            readable: smallvec![seg(0x2000, 16)],
            writable: smallvec![],
        };
        assert_eq!(parse(&map, mute).unwrap_err().status, None);
    }
}
