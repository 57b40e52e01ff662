// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A descriptor chain, walked by our own code: a chain that is malformed is
//! told from one that has ended. Each descriptor is read once, so that a guest
//! that rewrites it meanwhile fools only itself.

use std::sync::Arc;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use vm_memory::{Bytes, GuestAddress};

use super::memory::{GuestMap, Segment, Segments};
use super::shared::Shared;

/// Bytes of a descriptor.
const DESC_LEN: u32 = 16;
/// Most descriptors of an indirect table: QEMU's own limit for a queue, and far beyond seg_max.
const INDIRECT_MAX: u32 = 1024;

/// A well-formed chain. Readable parts come before writable ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub readable: Segments,
    pub writable: Segments,
}

/// A chain that breaks the rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// What is wrong.
    pub what: String,
    /// Where its status byte is: only where the walk came to a proper end.
    pub status: Option<u64>,
}

/// A descriptor (virtio 1.3, 2.7.5).
struct Descriptor {
    addr: u64,
    len: u32,
    flags: u32,
    next: u16,
}

impl Descriptor {
    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// The descriptor table that a walk is in.
struct Table<'a> {
    words: Words<'a>,
    count: u32,
    indirect: bool,
}

enum Words<'a> {
    Ring(&'a Shared),
    Indirect(Shared),
    /// A table that lies badly: at this address, looked up at each access.
    Anywhere(u64),
}

/// Walks the chain that begins at `head` of the ring's descriptor table.
pub(super) fn walk(map: &Arc<GuestMap>, ring: &Shared, head: u16) -> Result<Chain, Malformed> {
    let mut chain = Chain::default();
    let mut first_fault: Option<String> = None;
    let mut last_writable;
    let mut bytes = 0u64;
    let mut table = Table {
        words: Words::Ring(ring),
        count: ring.len() as u32 / DESC_LEN,
        indirect: false,
    };
    let mut index = u32::from(head);
    let mut walked = 0;
    let broken = |what: String| Malformed { what, status: None };
    loop {
        if index >= table.count {
            return Err(broken(format!(
                "descriptor {index} of a table of {}",
                table.count
            )));
        }
        // Counted per table: an indirect one starts anew.
        if walked >= table.count {
            return Err(broken("the chain loops".into()));
        }
        walked += 1;
        let desc = read(map, &table, index)
            .ok_or_else(|| broken(format!("descriptor {index} is not in guest memory")))?;
        if desc.has(VRING_DESC_F_INDIRECT) {
            table = enter(map, &desc, &table).map_err(broken)?;
            (index, walked) = (0, 0);
            continue;
        }
        let segment = Segment {
            addr: desc.addr,
            len: desc.len,
        };
        let writable = desc.has(VRING_DESC_F_WRITE);
        // A fault of one segment does not end the walk: the end of the chain may hold a status
        // byte through which the guest can be told.
        let fault = if segment.len == 0 {
            Some("a descriptor of length 0".to_owned())
        } else if !map.holds(segment) {
            Some(format!(
                "{} bytes at {:#x} are not guest memory",
                segment.len, segment.addr
            ))
        } else if !writable && !chain.writable.is_empty() {
            Some("a readable descriptor after a writable one".to_owned())
        } else {
            None
        };
        last_writable = (writable && fault.is_none()).then_some(segment);
        first_fault = first_fault.or(fault);
        if writable {
            chain.writable.push(segment);
        } else {
            chain.readable.push(segment);
        }
        bytes += u64::from(segment.len);
        if !desc.has(VRING_DESC_F_NEXT) {
            break;
        }
        index = u32::from(desc.next);
    }
    if bytes > u64::from(u32::MAX) {
        first_fault.get_or_insert_with(|| "the chain is longer than 4 GiB".into());
    }
    match first_fault {
        None => Ok(chain),
        Some(what) => Err(Malformed {
            what,
            status: last_writable.map(|s| s.addr + u64::from(s.len) - 1),
        }),
    }
}

/// The index is inside the table. Each half is read once.
fn read(map: &GuestMap, table: &Table<'_>, index: u32) -> Option<Descriptor> {
    let at = (index * DESC_LEN) as usize;
    let (addr, rest) = match &table.words {
        Words::Ring(words) => (words.u64(at), words.u64(at + 8)),
        Words::Indirect(words) => (words.u64(at), words.u64(at + 8)),
        Words::Anywhere(base) => {
            let at = base.checked_add(at as u64)?;
            let both: u128 = map.read_obj(GuestAddress(at)).ok()?;
            let both = u128::from_le(both);
            (both as u64, (both >> 64) as u64)
        }
    };
    Some(Descriptor {
        addr,
        len: rest as u32,
        flags: u32::from((rest >> 32) as u16),
        next: (rest >> 48) as u16,
    })
}

/// The table that an indirect descriptor leads to.
fn enter<'a>(
    map: &Arc<GuestMap>,
    desc: &Descriptor,
    from: &Table<'_>,
) -> Result<Table<'a>, String> {
    if from.indirect {
        return Err("an indirect descriptor inside an indirect table".into());
    }
    if desc.has(VRING_DESC_F_NEXT) {
        return Err("an indirect descriptor with a next one".into());
    }
    let len = desc.len;
    if len == 0 || !len.is_multiple_of(DESC_LEN) {
        return Err(format!("an indirect table of {len} bytes"));
    }
    let count = len / DESC_LEN;
    if count > INDIRECT_MAX {
        return Err(format!(
            "an indirect table of {count} descriptors, the limit is {INDIRECT_MAX}"
        ));
    }
    let words = map
        .shared(desc.addr, len as usize)
        .filter(|words| words.is_aligned(8));
    Ok(Table {
        words: words.map_or(Words::Anywhere(desc.addr), Words::Indirect),
        count,
        indirect: true,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::memory::RegionInfo;
    use super::super::memory::tests::file;
    use super::*;

    pub(in super::super) fn map() -> GuestMap {
        let info = RegionInfo {
            guest: 0,
            size: 0x10000,
            user: 0,
            offset: 0,
        };
        GuestMap::empty().with(info, file(0x10000)).unwrap()
    }

    pub(in super::super) fn put(map: &GuestMap, table: u64, at: u64, d: (u64, u32, u16, u16)) {
        let desc = u128::from(d.0)
            | u128::from(d.1) << 64
            | u128::from(d.2) << 96
            | u128::from(d.3) << 112;
        map.write_obj(desc.to_le(), GuestAddress(table + 16 * at))
            .unwrap();
    }

    fn walked(descs: &[(u64, u32, u16, u16)]) -> Result<Chain, Malformed> {
        let map = Arc::new(map());
        for (i, d) in descs.iter().enumerate() {
            // The first eight are the ring's table, the rest an indirect one at 0x1000.
            let table = if i < 8 { 0 } else { 0x1000 - 128 };
            put(&map, table, i as u64, *d);
        }
        walk(&map, &map.shared(0, 128).unwrap(), 0)
    }

    #[test]
    fn an_indirect_table_may_lie_anywhere() {
        let map = Arc::new(map());
        for at in [0x1000, 0x1004, 0x1001] {
            put(&map, 0, 0, (at, 32, 4, 0));
            put(&map, at, 0, (0x3000, 512, 1, 1));
            put(&map, at, 1, (0x4000, 1, 2, 0));
            let chain = walk(&map, &map.shared(0, 128).unwrap(), 0).unwrap();
            assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
            assert_eq!(chain.readable[0].addr, 0x3000, "{at:#x}");
        }
    }

    #[test]
    fn good_chains() {
        let chain = walked(&[
            (0x2000, 16, 1, 2),
            (0, 0, 0, 0),
            (0x3000, 512, 3, 4),
            (0, 0, 0, 0),
            (0x4000, 1, 2, 0),
        ]);
        let chain = chain.unwrap();
        assert_eq!(
            chain.readable.as_slice(),
            [Segment {
                addr: 0x2000,
                len: 16
            }]
        );
        assert_eq!(chain.writable.len(), 2);
        let nothing = (0, 0, 0, 0);
        let indirect = walked(&[
            (0x2000, 16, 1, 1),
            (0x1000, 32, 4, 0),
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            (0x3000, 512, 1, 1),
            (0x4000, 1, 2, 0),
        ]);
        let indirect = indirect.unwrap();
        assert_eq!((indirect.readable.len(), indirect.writable.len()), (2, 1));
    }

    #[test]
    fn broken_chains_have_no_status() {
        let nothing = (0, 0, 0, 0);
        let deep = [
            (0x1000, 16, 4, 0),
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            nothing,
            (0x1000, 16, 4, 0),
        ];
        for (descs, what) in [
            (&[(0x2000, 16, 1, 0)][..], "loops"),
            (&[(0x2000, 16, 1, 1), (0x2000, 16, 1, 0)], "loops"),
            (&[(0x2000, 16, 1, 8)], "descriptor 8"),
            (&[(0x1000, 0, 4, 0)], "table of 0 bytes"),
            (&[(0x1000, 24, 4, 0)], "table of 24 bytes"),
            (&[(0x1000, 16 * 1025, 4, 0)], "1025 descriptors"),
            (&[(0x1000, 32, 5, 1)], "with a next"),
            (&[(0xffff_0000, 32, 4, 0)], "not in guest memory"),
            (&[(u64::MAX - 3, 32, 4, 0)], "not in guest memory"),
            (&deep, "inside an indirect"),
        ] {
            let e = walked(descs).unwrap_err();
            assert!(e.what.contains(what), "{}: {what}", e.what);
            assert_eq!(e.status, None, "{what}");
        }
    }

    #[test]
    fn bad_segments_leave_the_status_reachable() {
        for (bad, what) in [
            ((0x2000, 0, 1, 1), "length 0"),
            ((0xfff0, 0x20, 1, 1), "not guest memory"),
            ((u64::MAX, 0x20, 1, 1), "not guest memory"),
        ] {
            let e = walked(&[bad, (0x4000, 3, 2, 0)]).unwrap_err();
            assert!(e.what.contains(what), "{}: {what}", e.what);
            assert_eq!(e.status, Some(0x4002));
        }
        let order =
            walked(&[(0x2000, 16, 3, 1), (0x2000, 16, 1, 2), (0x4000, 1, 2, 0)]).unwrap_err();
        assert!(order.what.contains("after a writable"));
        assert_eq!(order.status, Some(0x4000));
        let last = walked(&[(0x2000, 16, 1, 1), (0xffff_0000, 1, 2, 0)]).unwrap_err();
        assert_eq!(last.status, None);
    }
}
