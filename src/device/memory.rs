// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The guest's memory: the regions that the front end shares, mapped. A map
//! never changes; a change of regions makes a new one, and whoever still works
//! with the old keeps it mapped through its `Arc`. To vm-memory and the crates
//! on top of it a map is guest memory like any other.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion,
};

use super::shared::Shared;
use crate::sigbus::Watched;
use crate::store::Buffers;

/// Most regions that a front end may share (QEMU asks at start and keeps below).
pub(super) const MAX_REGIONS: usize = 64;

/// A region as a vhost-user message describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionInfo {
    /// Guest physical address.
    pub guest: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address in the front end's process: ring addresses are given in these.
    pub user: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// A range of guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub addr: u64,
    pub len: u32,
}

/// A list of them: that of a request with little data needs no memory of its own.
pub(super) type Segments = SmallVec<[Segment; 4]>;

/// See the module.
#[derive(Clone)]
pub(super) struct GuestMap {
    /// By region; dropped before they are unmapped.
    watched: Vec<Arc<Watched>>,
    memory: GuestMemoryMmap,
    regions: Vec<RegionInfo>,
}

impl GuestMap {
    /// A map without regions.
    pub fn empty() -> GuestMap {
        GuestMap {
            watched: Vec::new(),
            memory: GuestMemoryMmap::new(),
            regions: Vec::new(),
        }
    }

    /// This map and one more region.
    pub fn with(&self, info: RegionInfo, file: File) -> Result<GuestMap, String> {
        if self.regions.len() >= MAX_REGIONS {
            return Err(format!("more than {MAX_REGIONS} memory regions"));
        }
        if self
            .regions
            .iter()
            .any(|r| overlap(r.user, r.size, info.user, info.size))
        {
            return Err(format!(
                "{info:x?} overlaps another in the front end's addresses"
            ));
        }
        check_file(&info, &file)?;
        let size = usize::try_from(info.size).map_err(|e| e.to_string())?;
        let mapped = MmapRegion::from_file(FileOffset::new(file, info.offset), size)
            .map_err(|e| format!("cannot map {info:x?}: {e}"))?;
        // SAFETY: the region is part of each map that holds the value, which is dropped first;
        // its memory is touched by vm-memory, atomics and system calls, never by references.
        let watch = unsafe { Watched::new(mapped.as_ptr(), size) };
        let watch = watch.map_err(|e| format!("cannot map {info:x?}: {e}"))?;
        let region = GuestRegionMmap::new(mapped, GuestAddress(info.guest))
            .ok_or_else(|| format!("{info:x?} ends beyond the address space"))?;
        let memory = self
            .memory
            .insert_region(Arc::new(region))
            .map_err(|e| format!("{info:x?}: {e}"))?;
        let mut regions = self.regions.clone();
        regions.push(info);
        let mut watched = self.watched.clone();
        watched.push(Arc::new(watch));
        Ok(GuestMap {
            watched,
            memory,
            regions,
        })
    }

    /// This map without the region (its offset does not count: the message carries none of use).
    pub fn without(&self, info: RegionInfo) -> Result<GuestMap, String> {
        let same = |r: &RegionInfo| (r.guest, r.size, r.user) == (info.guest, info.size, info.user);
        let index = self.regions.iter().position(same);
        let index = index.ok_or_else(|| format!("{info:x?} is not mapped"))?;
        let mut regions = self.regions.clone();
        regions.remove(index);
        let mut watched = self.watched.clone();
        watched.remove(index);
        let memory = if regions.is_empty() {
            GuestMemoryMmap::new()
        } else {
            let removed = self
                .memory
                .remove_region(GuestAddress(info.guest), info.size)
                .map_err(|e| format!("{info:x?}: {e}"))?;
            removed.0
        };
        Ok(GuestMap {
            watched,
            memory,
            regions,
        })
    }

    /// The first region of which a page has gone: its file was made shorter.
    pub fn gone(&self) -> Option<&RegionInfo> {
        let gone = self.watched.iter().position(|w| w.is_broken());
        self.regions.get(gone?)
    }

    /// Guest physical address of an address in the front end's process.
    pub fn user_to_guest(&self, user: u64) -> Option<u64> {
        let at = |r: &RegionInfo| user.checked_sub(r.user).filter(|at| *at < r.size);
        self.regions
            .iter()
            .find_map(|r| at(r).map(|at| r.guest + at))
    }

    /// Whether all of the segment is memory.
    pub fn holds(&self, segment: Segment) -> bool {
        GuestMemoryBackend::check_range(
            &self.memory,
            GuestAddress(segment.addr),
            segment.len as usize,
        )
    }

    /// A piece for words, where all of it is in one region.
    pub fn shared(self: &Arc<GuestMap>, guest: u64, len: usize) -> Option<Shared> {
        let slice = GuestMemoryBackend::get_slice(&self.memory, GuestAddress(guest), len).ok()?;
        let base = slice.ptr_guard_mut().as_ptr().cast_const();
        // SAFETY: the slice is inside a region of this map, mapped readable and writable until the
        // map (which the value keeps) is dropped; all others access it through vm-memory or atomics.
        Some(unsafe { Shared::new(base, len, self.clone()) })
    }

    /// Buffers over the segments, which keep this map alive. `None` where one is not memory.
    pub fn buffers(self: &Arc<GuestMap>, segments: &[Segment]) -> Option<Buffers> {
        let mut ranges: SmallVec<[(*mut u8, usize); 4]> = SmallVec::new();
        for segment in segments {
            let at = GuestAddress(segment.addr);
            for slice in GuestMemoryBackend::get_slices(&self.memory, at, segment.len as usize) {
                let slice = slice.ok()?;
                ranges.push((slice.ptr_guard_mut().as_ptr(), slice.len()));
            }
        }
        // SAFETY: the slices are inside regions of this map, mapped readable and writable until
        // the map (which the buffers keep) is dropped; nobody makes Rust references to them.
        Some(unsafe { Buffers::new(ranges, self.clone()) })
    }
}

impl GuestMemoryBackend for GuestMap {
    type R = GuestRegionMmap;

    fn find_region(&self, addr: GuestAddress) -> Option<&GuestRegionMmap> {
        self.memory.find_region(addr)
    }

    fn iter(&self) -> impl Iterator<Item = &GuestRegionMmap> {
        self.memory.iter()
    }
}

fn overlap(a: u64, a_len: u64, b: u64, b_len: u64) -> bool {
    a < b.saturating_add(b_len) && b < a.saturating_add(a_len)
}

/// A region longer than its file would be a SIGBUS at the first touch.
fn check_file(info: &RegionInfo, file: &File) -> Result<(), String> {
    let meta = file.metadata().map_err(|e| e.to_string())?;
    if !meta.is_file() {
        return Err(format!("{info:x?}: its fd is no file that can be shared"));
    }
    let end = info.offset.checked_add(info.size);
    if info.size == 0 || end.is_none_or(|end| end > meta.size()) {
        return Err(format!(
            "{info:x?} is longer than its file of {} bytes",
            meta.size()
        ));
    }
    Ok(())
}

/// Number of regions and bytes, for the log.
impl std::fmt::Display for GuestMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: u64 = self.memory.iter().map(|r| r.len()).sum();
        write!(f, "{} regions, {bytes} bytes", self.regions.len())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn file(len: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn info(guest: u64, size: u64, user: u64) -> RegionInfo {
        RegionInfo {
            guest,
            size,
            user,
            offset: 0,
        }
    }

    #[test]
    fn regions_are_added_found_and_removed() {
        let map = GuestMap::empty();
        let map = map
            .with(info(0, 0x10000, 0x7000_0000), file(0x10000))
            .unwrap();
        let map = map
            .with(info(0x10000, 0x1000, 0x1000), file(0x1000))
            .unwrap();
        assert_eq!(map.user_to_guest(0x7000_8000), Some(0x8000));
        assert_eq!(map.user_to_guest(0x7001_0000), None);
        assert_eq!(map.user_to_guest(0x1fff), Some(0x10fff));
        assert_eq!(map.user_to_guest(u64::MAX), None);
        let across = Segment {
            addr: 0xfff0,
            len: 0x20,
        };
        assert!(map.holds(across));
        let map = Arc::new(map);
        assert_eq!(map.buffers(&[across]).unwrap().iovecs().len(), 2);
        let less = map.without(info(0x10000, 0x1000, 0x1000)).unwrap();
        assert!(!less.holds(across));
        assert!(Arc::new(less).buffers(&[across]).is_none());
        assert!(map.without(info(0x10000, 0x2000, 0x1000)).is_err());
    }

    #[test]
    fn overlaps_and_short_files_are_refused() {
        let map = GuestMap::empty();
        assert!(map.with(info(0, 0x2000, 0), file(0x1000)).is_err());
        assert!(map.with(info(0, 0, 0), file(0x1000)).is_err());
        let map = map.with(info(0, 0x2000, 0x8000), file(0x2000)).unwrap();
        assert!(map.with(info(0x1000, 0x1000, 0), file(0x1000)).is_err());
        assert!(
            map.with(info(0x4000, 0x1000, 0x9000), file(0x1000))
                .is_err()
        );
        let beyond = RegionInfo {
            offset: u64::MAX,
            ..info(0x4000, 0x1000, 0)
        };
        assert!(map.with(beyond, file(0x1000)).is_err());
        let pipe: File = std::io::pipe()
            .map(|(r, _w)| File::from(std::os::fd::OwnedFd::from(r)))
            .unwrap();
        assert!(map.with(info(0x4000, 0x1000, 0), pipe).is_err());
    }
}
