// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A piece of guest memory that lies in one region, as words that the guest may
//! change at any moment: the parts of a ring. Looked up once, not at each access.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use super::memory::GuestMap;

/// See the module. Little-endian, as virtio 1.3 has everything.
pub(super) struct Shared {
    base: *const u8,
    len: usize,
    /// Keeps it mapped.
    _map: Arc<GuestMap>,
}

// SAFETY: the memory belongs to no thread; it is accessed by atomic operations only, and stays
// mapped wherever the value goes.
unsafe impl Send for Shared {}

impl Shared {
    /// # Safety
    /// `base` is the address of `len` bytes that stay mapped, readable and writable, for as long as
    /// `map` lives, and nobody makes a Rust reference to them that is not to atomics.
    pub unsafe fn new(base: *const u8, len: usize, map: Arc<GuestMap>) -> Shared {
        Shared {
            base,
            len,
            _map: map,
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it begins at a multiple of so many bytes, as it is mapped here.
    pub fn is_aligned(&self, bytes: usize) -> bool {
        (self.base as usize).is_multiple_of(bytes)
    }

    fn at<T>(&self, at: usize) -> &T
    where
        T: Word,
    {
        let inside = at.checked_add(size_of::<T>());
        assert!(inside.is_some_and(|end| end <= self.len), "outside");
        let address = self.base.wrapping_add(at).cast::<T>();
        assert!(address.is_aligned(), "not aligned");
        // SAFETY: inside of what the contract of `new` speaks of, aligned, and `T` is an atomic,
        // for which every pattern of bits is a value. The reference lives no longer than `self`.
        unsafe { &*address }
    }

    pub fn u16(&self, at: usize, order: Ordering) -> u16 {
        u16::from_le(self.at::<AtomicU16>(at).load(order))
    }

    pub fn u64(&self, at: usize) -> u64 {
        u64::from_le(self.at::<AtomicU64>(at).load(Ordering::Relaxed))
    }

    pub fn set_u16(&self, at: usize, value: u16, order: Ordering) {
        self.at::<AtomicU16>(at).store(value.to_le(), order);
    }

    pub fn set_u32(&self, at: usize, value: u32) {
        let word = self.at::<AtomicU32>(at);
        word.store(value.to_le(), Ordering::Relaxed);
    }
}

/// Only atomics are made references to.
trait Word {}
impl Word for AtomicU16 {}
impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

#[cfg(test)]
mod tests {
    use super::super::chain::tests::map;
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn words_are_where_the_guest_has_them() {
        let map = Arc::new(map());
        let shared = map.shared(0x100, 32).unwrap();
        shared.set_u16(2, 0x1234, Ordering::Release);
        shared.set_u32(4, 0x5566_7788);
        let seen: u64 = map.read_obj(GuestAddress(0x100)).unwrap();
        assert_eq!(seen, 0x5566_7788_1234_0000);
        assert_eq!(shared.u64(0), seen);
        assert_eq!(shared.u16(6, Ordering::Acquire), 0x5566);
    }

    #[test]
    fn nothing_outside_and_nothing_misaligned() {
        let map = Arc::new(map());
        assert!(map.shared(0xfff0, 17).is_none());
        assert!(map.shared(u64::MAX, 2).is_none());
        let shared = map.shared(0x100, 32).unwrap();
        for at in [31, 32, usize::MAX, 1] {
            let read = std::panic::AssertUnwindSafe(|| shared.u16(at, Ordering::Relaxed));
            assert!(std::panic::catch_unwind(read).is_err(), "{at}");
        }
    }
}
