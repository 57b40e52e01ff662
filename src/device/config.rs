// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Features and the configuration space (virtio 1.3, 5.2.3 and 5.2.4).

use vhost::vhost_user::message::VhostUserVirtioFeatures;
use virtio_bindings::virtio_blk as blk;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring as ring;

/// Data descriptors per request that we announce: a queue of 128 less header and status.
const SEG_MAX: u32 = 126;
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
}

impl Geometry {
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
        if self.read_only {
            bits |= 1 << blk::VIRTIO_BLK_F_RO;
        }
        bits
    }

    /// `size` bytes of the space from `offset` on; `None` beyond its end.
    pub fn space(&self, writeback: bool, offset: u32, size: u32) -> Option<Vec<u8>> {
        let mut space = [0u8; SPACE];
        let mut put = |at: usize, bytes: &[u8]| space[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.sectors.to_le_bytes());
        put(12, &SEG_MAX.to_le_bytes());
        put(20, &self.block.to_le_bytes());
        put(WRITEBACK_AT as usize, &[u8::from(writeback)]);
        put(34, &self.queues.to_le_bytes());
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
        Geometry {
            sectors: 0x1_0203,
            block: 4096,
            queues: 3,
            read_only: false,
            cache: true,
        }
    }

    #[test]
    fn fields_are_where_the_standard_has_them() {
        let space = geometry().space(true, 0, 60).unwrap();
        assert_eq!(space[..4], [3, 2, 1, 0]);
        assert_eq!(space[12], 126);
        assert_eq!(space[20..24], [0, 16, 0, 0]);
        assert_eq!((space[32], space[34]), (1, 3));
        assert_eq!(geometry().space(false, 32, 1), Some(vec![0]));
        assert_eq!(geometry().space(false, 255, 2), None);
        assert_eq!(geometry().space(false, u32::MAX, 1), None);
    }

    #[test]
    fn features_follow_the_disk() {
        let all = geometry().features();
        assert_eq!(all & F_FLUSH, F_FLUSH);
        let mark = Geometry {
            cache: false,
            read_only: true,
            ..geometry()
        };
        assert_eq!(mark.features() & F_FLUSH, 0);
        assert_eq!(mark.features() & (1 << 5), 1 << 5);
    }
}
