// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A descriptor chain, walked by our own code: a chain that is malformed is
//! told from one that has ended. Each descriptor is read once, so that a guest
//! that rewrites it meanwhile fools only itself.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use super::memory::{GuestMap, Segment};

/// Bytes of a descriptor.
const DESC_LEN: u32 = 16;
/// Most descriptors of an indirect table: QEMU's own limit for a queue, and far beyond seg_max.
const INDIRECT_MAX: u32 = 1024;

/// A well-formed chain. Readable parts come before writable ones.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub readable: Vec<Segment>,
    pub writable: Vec<Segment>,
}

/// A chain that breaks the rules.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed {
    /// What is wrong.
    pub what: String,
    /// Where its status byte is: only where the walk came to a proper end.
    pub status: Option<u64>,
}

/// The descriptor table that a walk is in.
struct Table {
    addr: u64,
    count: u32,
    indirect: bool,
}

/// Walks the chain that begins at `head` of the table of `size` descriptors at `table`.
pub(super) fn walk(map: &GuestMap, table: u64, size: u16, head: u16) -> Result<Chain, Malformed> {
    let mut chain = Chain::default();
    let mut first_fault: Option<String> = None;
    let mut last_writable;
    let mut bytes = 0u64;
    let mut table = Table {
        addr: table,
        count: u32::from(size),
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
        if desc.refers_to_indirect_table() {
            table = enter(&desc, &table).map_err(broken)?;
            (index, walked) = (0, 0);
            continue;
        }
        let segment = Segment {
            addr: desc.addr().0,
            len: desc.len(),
        };
        let writable = desc.is_write_only();
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
        if !desc.has_next() {
            break;
        }
        index = u32::from(desc.next());
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

fn read(map: &GuestMap, table: &Table, index: u32) -> Option<Descriptor> {
    let at = table.addr.checked_add(u64::from(index * DESC_LEN))?;
    map.read_obj(GuestAddress(at)).ok()
}

/// The table that an indirect descriptor leads to.
fn enter(desc: &Descriptor, from: &Table) -> Result<Table, String> {
    if from.indirect {
        return Err("an indirect descriptor inside an indirect table".into());
    }
    if desc.has_next() {
        return Err("an indirect descriptor with a next one".into());
    }
    let len = desc.len();
    if len == 0 || !len.is_multiple_of(DESC_LEN) {
        return Err(format!("an indirect table of {len} bytes"));
    }
    let count = len / DESC_LEN;
    if count > INDIRECT_MAX {
        return Err(format!(
            "an indirect table of {count} descriptors, the limit is {INDIRECT_MAX}"
        ));
    }
    Ok(Table {
        addr: desc.addr().0,
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
        let desc = Descriptor::new(d.0, d.1, d.2, d.3);
        map.write_obj(desc, GuestAddress(table + 16 * at)).unwrap();
    }

    fn walked(descs: &[(u64, u32, u16, u16)]) -> Result<Chain, Malformed> {
        let map = map();
        for (i, d) in descs.iter().enumerate() {
            // The first eight are the ring's table, the rest an indirect one at 0x1000.
            let table = if i < 8 { 0 } else { 0x1000 - 128 };
            put(&map, table, i as u64, *d);
        }
        walk(&map, 0, 8, 0)
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
            chain.readable,
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
