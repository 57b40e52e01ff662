// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The marked calls that are under way, so that whoever asks what is in flight
//! hears the call and the place in its file.

use std::collections::BTreeMap;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{Extent, Mark};

/// Most calls that are remembered; a new one then takes the place of the oldest.
const MAX: usize = 1024;

/// See the module. By tag: a tag belongs to the last call that began with it.
#[derive(Debug, Default)]
pub struct OpenCalls(BTreeMap<u16, Open>);

#[derive(Debug)]
struct Open {
    call: u64,
    /// What FIEMAP told before the call; blocks that it allocates are not among them.
    extents: Vec<Extent>,
}

impl OpenCalls {
    /// Takes note of a mark.
    pub fn mark(&mut self, mark: &Mark) {
        match mark {
            Mark::Boot => self.0.clear(),
            Mark::Begin(begin) => {
                let Some(tag) = begin.tag else { return };
                if self.0.len() >= MAX && !self.0.contains_key(&tag) {
                    let oldest = self.0.iter().min_by_key(|(_, open)| open.call);
                    let oldest = oldest.map(|(&tag, _)| tag);
                    oldest.and_then(|tag| self.0.remove(&tag));
                }
                let open = Open {
                    call: begin.call,
                    extents: begin.extents.clone().unwrap_or_default(),
                };
                self.0.insert(tag, open);
            }
            Mark::End(end) => self.0.retain(|_, open| open.call != end.call),
            _ => {}
        }
    }

    /// The call with this tag, and where the sector is in its file.
    pub fn find(&self, tag: u16, sector: u64) -> Option<(u64, Option<u64>)> {
        let open = self.0.get(&tag)?;
        let at = sector.checked_mul(SECTOR);
        let within = |e: &Extent| {
            let into = at?.checked_sub(e.physical)?;
            (e.has_place() && into < e.length).then(|| e.logical.saturating_add(into))
        };
        Some((open.call, open.extents.iter().find_map(within)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wtblk_shared::mark::{CallBegin, CallEnd};

    #[test]
    fn a_request_finds_its_call_and_its_place() {
        let mut calls = OpenCalls::default();
        let extent = Extent {
            logical: 8192,
            physical: 1 << 20,
            length: 4096,
            flags: 0,
        };
        let begin = |call, tag| {
            Mark::Begin(CallBegin {
                call,
                tag: Some(tag),
                extents: Some(vec![extent.clone()]),
                ..CallBegin::default()
            })
        };
        calls.mark(&begin(5, 3));
        assert_eq!(calls.find(3, 2048 + 1), Some((5, Some(8192 + 512))));
        assert_eq!(calls.find(3, 2048 + 8), Some((5, None)));
        assert_eq!(calls.find(4, 2048), None);
        for n in 0..3000u64 {
            calls.mark(&begin(10 + n, (n % 2000) as u16 + 10));
        }
        assert!(calls.0.len() <= MAX);
        calls.mark(&Mark::End(CallEnd {
            call: 3009,
            ..CallEnd::default()
        }));
        assert_eq!(calls.find(1009, 0), None);
        calls.mark(&Mark::Boot);
        assert!(calls.0.is_empty());
    }
}
