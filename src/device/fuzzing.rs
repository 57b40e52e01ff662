// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A ring and its chains as a hostile driver may leave them, mostly valid: see
//! [`crate::fuzzing`].

use std::cell::RefCell;
use std::sync::Arc;

use arbitrary::{Arbitrary, Result, Unstructured};
use vm_memory::{Bytes, GuestAddress};

use super::chain::walk;
use super::memory::{GuestMap, RegionInfo};
use super::request;
use super::ring::{Ring, RingPlace};

/// Bytes of memory, in two regions side by side.
const MEMORY: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x5000;
/// Indirect tables, headers, data.
const REST: u64 = 0x6000;

thread_local! {
    static MAP: RefCell<Option<Arc<GuestMap>>> = const { RefCell::new(None) };
}

fn map() -> Arc<GuestMap> {
    MAP.with_borrow_mut(|map| {
        let map = map.get_or_insert_with(|| {
            let region = |guest| {
                let file = tempfile::tempfile().expect("a file of the fuzzer's own");
                file.set_len(MEMORY / 2).expect("it can grow");
                let size = MEMORY / 2;
                let (user, offset) = (guest, 0);
                let info = RegionInfo {
                    guest,
                    size,
                    user,
                    offset,
                };
                (info, file)
            };
            let (low, high) = (region(0), region(MEMORY / 2));
            let map = GuestMap::empty().with(low.0, low.1);
            let map = map.and_then(|map| map.with(high.0, high.1));
            Arc::new(map.expect("memory of the fuzzer's own"))
        });
        Arc::clone(map)
    })
}

/// Feeds one ring: memory is laid out, all that is available is taken, walked, parsed, given back.
pub fn fuzz_ring(bytes: &[u8]) {
    let map = map();
    let zeros = vec![0u8; MEMORY as usize / 2];
    for at in [0, MEMORY / 2] {
        let clean = map.write_slice(&zeros, GuestAddress(at));
        assert!(clean.is_ok());
    }
    let mut u = Unstructured::new(bytes);
    let (size, base, event_idx) = match begin(&mut u) {
        Ok(begin) => begin,
        Err(_) => return,
    };
    let _ = lay_out(&mut u, &map, size);
    let place = RingPlace {
        desc: 0,
        avail: AVAIL,
        used: USED,
    };
    let Ok(mut ring) = Ring::new(Arc::clone(&map), place, size, base, event_idx) else {
        return assert!(!size.is_power_of_two() || size > 1024, "a ring of {size}");
    };
    // A guest that adds while we take never gets more than its queue's length in at a time.
    for _ in 0..=u32::from(size) {
        if !matches!(ring.shown(), Ok(1..)) {
            break;
        }
        let Ok((_, head)) = ring.take() else {
            break;
        };
        assert!(head < size);
        if let Ok(chain) = walk(ring.map(), ring.table(), head) {
            let parts = chain.readable.iter().chain(&chain.writable);
            let total: u64 = parts.clone().map(|s| u64::from(s.len)).sum();
            assert!(total <= u64::from(u32::MAX), "a chain of {total} bytes");
            for part in parts {
                assert!(part.len > 0 && map.holds(*part), "{part:?}");
            }
            if let Ok(parsed) = request::parse(&map, chain) {
                assert!(parsed.status < MEMORY);
                let data: u64 = parsed.data.iter().map(|s| u64::from(s.len)).sum();
                assert!(data <= total);
                assert!(map.buffers(&parsed.data).is_some());
            }
        }
        ring.put(head, 1);
        ring.publish();
        let _ = ring.wants_notification();
    }
    let _ = ring.enable_kicks();
}

fn begin(u: &mut Unstructured<'_>) -> Result<(u16, u16, bool)> {
    let size = match u.ratio(1, 16)? {
        true => u16::arbitrary(u)?,
        false => 1 << u.int_in_range(0..=7u8)?,
    };
    let base = if u.ratio(1, 4)? {
        u16::arbitrary(u)?
    } else {
        0
    };
    Ok((size, base, bool::arbitrary(u)?))
}

fn lay_out(u: &mut Unstructured<'_>, map: &GuestMap, size: u16) -> Result<()> {
    let put = |at: u64, bytes: &[u8]| {
        let _ = map.write_slice(bytes, GuestAddress(at));
    };
    let ahead = match u.ratio(1, 8)? {
        true => u16::arbitrary(u)?,
        false => u.int_in_range(0..=size.min(16))?,
    };
    put(AVAIL + 2, &ahead.to_le_bytes());
    for n in 0..u64::from(ahead.min(64)) {
        let head = small(u, size)?;
        put(AVAIL + 4 + 2 * n, &head.to_le_bytes());
    }
    // The ring's table, then indirect ones and headers anywhere.
    let count = u.int_in_range(0..=24u64)?;
    for n in 0..count {
        let at = match u.ratio(3, 4)? {
            true => 16 * n,
            false => REST + 16 * u.int_in_range(0..=64u64)?,
        };
        put(at, &descriptor(u, size)?);
    }
    while !u.is_empty() {
        let kind = *u.choose(&[0u32, 1, 4, 8, 11, 13, 99])?;
        let mut header = [0u8; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&u64::arbitrary(u)?.to_le_bytes());
        put(REST + 0x1000 + 64 * u.int_in_range(0..=31u64)?, &header);
    }
    Ok(())
}

fn small(u: &mut Unstructured<'_>, size: u16) -> Result<u16> {
    Ok(match u.ratio(1, 12)? {
        true => u16::arbitrary(u)?,
        false => u.int_in_range(0..=size.clamp(1, 24) - 1)?,
    })
}

fn descriptor(u: &mut Unstructured<'_>, size: u16) -> Result<[u8; 16]> {
    let addr = match u.int_in_range(0..=15u8)? {
        0 => u64::arbitrary(u)?,
        // About the border of the regions, and about the end.
        1 => MEMORY / 2 - 16 + u.int_in_range(0..=32u64)?,
        2 => MEMORY - 16 + u.int_in_range(0..=32u64)?,
        3..=6 => REST + 16 * u.int_in_range(0..=64u64)?,
        _ => REST + 0x1000 + 64 * u.int_in_range(0..=31u64)?,
    };
    let len = match u.int_in_range(0..=15u8)? {
        0 => u32::arbitrary(u)?,
        1..=4 => 16,
        5..=8 => 1,
        9..=11 => 16 * u.int_in_range(0..=40u32)?,
        _ => 512 * u.int_in_range(0..=9u32)?,
    };
    // NEXT 1, WRITE 2, INDIRECT 4.
    let flags = match u.ratio(1, 16)? {
        true => u16::arbitrary(u)?,
        false => *u.choose(&[0u16, 1, 1, 1, 2, 3, 3, 4, 5])?,
    };
    let next = small(u, size)?;
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&addr.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    Ok(bytes)
}
