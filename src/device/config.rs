// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Features and the configuration space (virtio 1.3, 5.2.3 and 5.2.4).

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring as ring;

use super::request::MAX_ZONES;
use crate::fault::Shape;

/// Data descriptors per request that we announce: a queue of 128 less header and status.
const SEG_MAX: u32 = 126;
/// Most sectors of a segment of discard and write-zeroes: 2 GiB less 4 KiB, so that the bytes
/// of a request fit the trace.
pub(super) const MAX_ZONE_SECTORS: u32 = (1 << 22) - 8;
/// Discards should be of whole pieces of so many sectors: a host file system gives nothing
/// smaller back.
const DISCARD_ALIGNMENT: u32 = 8;
/// Bytes that a front end may read: what follows the fields we fill is zero.
const SPACE: usize = 256;
/// Offset of the writeback byte, the only one that the driver may write.
pub(super) const WRITEBACK_AT: u32 = 32;

pub(super) const F_EVENT_IDX: u64 = 1 << ring::VIRTIO_RING_F_EVENT_IDX;
pub(super) const F_FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;
pub(super) const F_PROTOCOL: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// What a disk is, as its driver sees it.
#[derive(Clone, Debug)]
pub(super) struct Geometry {
    /// Capacity in sectors of 512 bytes.
    pub sectors: u64,
    /// Logical block in bytes.
    pub block: u32,
    /// Number of queues.
    pub queues: u16,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether the disk has a cache to flush: the mark disk has none.
    pub cache: bool,
    /// Whether discard and write-zeroes are offered.
    pub discard: bool,
    /// Most bytes of a data segment.
    pub size_max: Option<u32>,
    /// Most data segments of a request.
    pub seg_max: u32,
    pub topology: Option<Topology>,
}

/// Where I/O of this disk should begin and how long it should be (virtio 1.3, 5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Topology {
    /// Logical blocks of a physical one, as a power of two.
    pub physical_exp: u8,
    /// Logical blocks before the first whole physical one.
    pub alignment_offset: u8,
    /// Logical blocks that I/O should have at least.
    pub min_io: u16,
    /// Logical blocks that I/O should best have.
    pub opt_io: u32,
}

impl Topology {
    /// Of a shape without contradictions; `None` where it says nothing of it.
    fn of(shape: &Shape) -> Option<Topology> {
        let Shape {
            physical_block,
            alignment_offset,
            min_io,
            opt_io,
            ..
        } = *shape;
        let said = [physical_block, alignment_offset, min_io, opt_io];
        if said.iter().all(Option::is_none) {
            return None;
        }
        let block = shape.block();
        let blocks = |bytes: Option<u32>| bytes.unwrap_or(0) / block;
        let physical = physical_block.unwrap_or(block) / block;
        Some(Topology {
            physical_exp: physical.max(1).ilog2() as u8,
            alignment_offset: blocks(alignment_offset) as u8,
            min_io: blocks(min_io) as u16,
            opt_io: blocks(opt_io),
        })
    }
}

impl Geometry {
    /// A disk under test, of a shape without contradictions.
    pub fn of(shape: &Shape, sectors: u64) -> Geometry {
        let read_only = shape.read_only.unwrap_or(false);
        let queue = shape.queue_size.map_or(u32::MAX, u32::from);
        Geometry {
            sectors,
            block: shape.block(),
            queues: shape.queues.unwrap_or(1),
            read_only,
            cache: true,
            discard: shape.discard.unwrap_or(true) && !read_only,
            size_max: shape.size_max,
            seg_max: shape.seg_max.unwrap_or(SEG_MAX.min(queue - 2)),
            topology: Topology::of(shape),
        }
    }

    /// A mark disk.
    pub fn of_marks(sectors: u64) -> Geometry {
        Geometry {
            cache: false,
            discard: false,
            ..Geometry::of(&Shape::default(), sectors)
        }
    }

    /// The features to offer.
    pub fn features(&self) -> u64 {
        let mut bits = 1 << VIRTIO_F_VERSION_1
            | F_EVENT_IDX
            | 1 << ring::VIRTIO_RING_F_INDIRECT_DESC
            | 1 << blk::VIRTIO_BLK_F_SEG_MAX
            | 1 << blk::VIRTIO_BLK_F_BLK_SIZE
            | 1 << blk::VIRTIO_BLK_F_MQ
            | F_PROTOCOL;
        if self.cache {
            bits |= F_FLUSH | 1 << blk::VIRTIO_BLK_F_CONFIG_WCE;
        }
        for (is, bit) in [
            (self.read_only, blk::VIRTIO_BLK_F_RO),
            (self.discard, blk::VIRTIO_BLK_F_DISCARD),
            (self.discard, blk::VIRTIO_BLK_F_WRITE_ZEROES),
            (self.size_max.is_some(), blk::VIRTIO_BLK_F_SIZE_MAX),
            (self.topology.is_some(), blk::VIRTIO_BLK_F_TOPOLOGY),
        ] {
            bits |= u64::from(is) << bit;
        }
        bits
    }

    /// `size` bytes of the space from `offset` on; `None` beyond its end.
    pub fn space(&self, writeback: bool, offset: u32, size: u32) -> Option<Vec<u8>> {
        let mut space = [0u8; SPACE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(8, &self.size_max.unwrap_or(0).to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        if let Some(t) = &self.topology {
            put(24, &[t.physical_exp, t.alignment_offset]);
            put(26, &t.min_io.to_le_bytes());
            put(28, &t.opt_io.to_le_bytes());
        }
        put(WRITEBACK_AT as usize, &[u8::from(writeback)]);
        put(34, &self.queues.to_le_bytes());
        if self.discard {
            // Discard: sectors, segments, alignment; write-zeroes: sectors, segments, may unmap.
            for (at, value) in [
                (36, MAX_ZONE_SECTORS),
                (40, MAX_ZONES),
                (44, DISCARD_ALIGNMENT),
                (48, MAX_ZONE_SECTORS),
                (52, MAX_ZONES),
            ] {
                put(at, &value.to_le_bytes());
            }
            put(56, &[1]);
        }
        let from = offset as usize;
        space
            .get(from..from.checked_add(size as usize)?)
            .map(<[u8]>::to_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        let shape = Shape {
            logical_block: Some(4096),
            queues: Some(3),
            ..Shape::default()
        };
        Geometry::of(&shape, 0x1_0203)
    }

    #[test]
    fn fields_are_where_the_standard_has_them() {
        let space = geometry().space(true, 0, 60).unwrap();
        assert_eq!(space[..4], [3, 2, 1, 0]);
        assert_eq!(space[12], 126);
        assert_eq!(space[20..24], [0, 16, 0, 0]);
        assert_eq!((space[32], space[34]), (1, 3));
        assert_eq!(space[24..32], [0; 8]);
        assert_eq!(space[36..40], MAX_ZONE_SECTORS.to_le_bytes());
        assert_eq!((space[40], space[44], space[52], space[56]), (16, 8, 16, 1));
        assert_eq!(geometry().space(false, 32, 1), Some(vec![0]));
        assert_eq!(geometry().space(false, 255, 2), None);
        assert_eq!(geometry().space(false, u32::MAX, 1), None);
    }

    #[test]
    fn features_follow_the_disk() {
        let all = geometry().features();
        assert_eq!(all & F_FLUSH, F_FLUSH);
        assert_eq!(all & (1 << 34), 0, "no packed rings");
        let mark = Geometry::of_marks(1);
        assert_eq!(mark.features() & (F_FLUSH | 1 << 13 | 1 << 14), 0);
        let shape = Shape {
            read_only: Some(true),
            ..Shape::default()
        };
        let features = Geometry::of(&shape, 1).features();
        assert_eq!(features & (1 << 5 | 1 << 13 | 1 << 14), 1 << 5);
    }

    #[test]
    fn topology_and_limits_show_where_they_are_set() {
        let shape = Shape {
            queue_size: Some(64),
            size_max: Some(0x2_0000),
            physical_block: Some(4096),
            alignment_offset: Some(1024),
            min_io: Some(8192),
            opt_io: Some(65536),
            ..Shape::default()
        };
        let g = Geometry::of(&shape, 8);
        assert_eq!(g.features() & 0x402, 0x402);
        assert_eq!(geometry().features() & 0x402, 0);
        let space = g.space(true, 0, 60).unwrap();
        assert_eq!(space[8..16], [0, 0, 2, 0, 62, 0, 0, 0]);
        assert_eq!(space[24..32], [3, 2, 16, 0, 128, 0, 0, 0]);
    }
}
