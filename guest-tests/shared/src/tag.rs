// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The call tag: a number that travels in the I/O priority.
//!
//! `ioprio_set(2)` gives a thread a priority of class (3 bits), hint (10 bits)
//! and level (3 bits); the block layer stamps it on bios that carry none and
//! Linux's virtio-blk copies it into the request header's `ioprio` field
//! (`drivers/block/virtio_blk.c`, `virtblk_setup_cmd`). We use the class
//! best-effort and a hint that is never 0: an unset priority shows as
//! best-effort with hint 0, so hint 0 means "not tagged". Hints need Linux 6.5.

/// Number of different tags: 1023 hints of 8 levels each.
pub const TAGS: u16 = 1023 * 8;

const CLASS_BE: u16 = 2;
const CLASS_SHIFT: u16 = 13;
const HINT_SHIFT: u16 = 3;

/// A call tag, `0..TAGS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(u16);

impl Tag {
    /// The tag with this number; `None` from [`TAGS`] on.
    pub fn new(number: u16) -> Option<Tag> {
        (number < TAGS).then_some(Tag(number))
    }

    /// The `n`-th tag of an endless round through all of them.
    pub fn nth(n: u64) -> Tag {
        Tag((n % u64::from(TAGS)) as u16)
    }

    /// The tag's number, `0..TAGS`.
    pub fn number(self) -> u16 {
        self.0
    }

    /// The value for `ioprio_set(2)`, which is also what arrives in the header.
    pub fn ioprio(self) -> u16 {
        (CLASS_BE << CLASS_SHIFT) | ((1 + self.0 / 8) << HINT_SHIFT) | (self.0 % 8)
    }

    /// The tag in an I/O priority; `None` where the hint is 0 or the class is
    /// another one, that is: nobody tagged this request.
    pub fn from_ioprio(ioprio: u16) -> Option<Tag> {
        let hint = (ioprio >> HINT_SHIFT) & 0x3ff;
        if ioprio >> CLASS_SHIFT != CLASS_BE || hint == 0 {
            return None;
        }
        Some(Tag((hint - 1) * 8 + (ioprio & 7)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tag_survives_the_priority() {
        for n in 0..TAGS {
            let tag = Tag::new(n).unwrap();
            assert_eq!(Tag::from_ioprio(tag.ioprio()), Some(tag));
        }
        assert_eq!(Tag::new(TAGS), None);
        assert_eq!(Tag::nth(u64::from(TAGS)), Tag::nth(0));
    }

    #[test]
    fn ordinary_priorities_are_no_tags() {
        for level in 0..8 {
            for class in 0..4 {
                assert_eq!(Tag::from_ioprio((class << 13) | level), None);
            }
        }
        // A hint in another class is somebody else's priority.
        assert_eq!(Tag::from_ioprio((1 << 13) | (5 << 3)), None);
    }
}
