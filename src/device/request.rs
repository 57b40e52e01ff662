// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-blk request out of a chain (virtio 1.3, 5.2.6). The framing is
//! free: the header is the first 16 readable bytes, the status the last
//! writable byte, the data what lies between, however it is cut.

use vm_memory::{Bytes, GuestAddress};

use super::chain::{Chain, Malformed};
use super::memory::{GuestMap, Segment};
use crate::trace::event::Op;

/// Bytes of the header: type, ioprio (virtio: reserved), sector.
const HEADER_LEN: usize = 16;

/// A request.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parsed {
    pub op: Op,
    pub sector: u64,
    pub bytes: u32,
    /// Type 32 bits, then this field: Linux puts the I/O priority there.
    pub ioprio: u16,
    /// Where the data is: readable for a write, writable for a read.
    pub data: Vec<Segment>,
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
    let bytes = data.iter().map(|s| s.len).fold(0, u32::saturating_add);
    let sector = match op {
        Op::Read | Op::Write => (header >> 64) as u64,
        _ => 0,
    };
    Ok(Parsed {
        op,
        sector,
        bytes,
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

fn pop_last_byte(segments: &mut Vec<Segment>) -> Option<u64> {
    let last = segments.last_mut()?;
    last.len -= 1;
    let at = last.addr + u64::from(last.len);
    if last.len == 0 {
        segments.pop();
    }
    Some(at)
}

/// Takes the header off the front; it may be cut anywhere.
fn take_header(map: &GuestMap, segments: &mut Vec<Segment>) -> Option<[u8; HEADER_LEN]> {
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
            let writable = vec![seg(0x5000, 1)];
            let parsed = parse(&map, Chain { readable, writable }).unwrap();
            assert_eq!(
                (parsed.op, parsed.sector, parsed.bytes),
                (Op::Write, 77, 512)
            );
            assert_eq!((parsed.ioprio, parsed.status), (0x4011, 0x5000));
            assert_eq!(parsed.data, data);
        }
    }

    #[test]
    fn a_read_and_its_status_share_a_descriptor() {
        let map = map();
        header(&map, 0, 0, 3);
        let readable = vec![seg(0x2000, 16)];
        let writable = vec![seg(0x3000, 100), seg(0x4000, 413)];
        let parsed = parse(&map, Chain { readable, writable }).unwrap();
        assert_eq!(parsed.bytes, 512);
        assert_eq!(parsed.data, [seg(0x3000, 100), seg(0x4000, 412)]);
        assert_eq!(parsed.status, 0x4000 + 412);
    }

    #[test]
    fn header_or_status_missing() {
        let map = map();
        let short = Chain {
            readable: vec![seg(0x2000, 15)],
            writable: vec![seg(0x5000, 2)],
        };
        assert_eq!(parse(&map, short).unwrap_err().status, Some(0x5001));
        let mute = Chain {
            readable: vec![seg(0x2000, 16)],
            writable: vec![],
        };
        assert_eq!(parse(&map, mute).unwrap_err().status, None);
    }
}
