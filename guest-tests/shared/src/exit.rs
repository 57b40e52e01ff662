// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! How the guest says to the host how its boot went: one byte to the
//! `isa-debug-exit` port.
//!
//! QEMU ends with status `2 * byte + 1`. The bytes start at 16 so that none of
//! these statuses is one that QEMU itself ends with (1 for a bad argument).

/// I/O port of `-device isa-debug-exit,iobase=0x501,iosize=1`.
pub const PORT: u64 = 0x501;
/// Every test was ok or skipped.
pub const OK: u8 = 16;
/// At least one test was not ok; none hung.
pub const NOT_OK: u8 = 17;
/// The guest could not run its tests: a disk is missing, a bad parameter, no mount.
pub const COULD_NOT_RUN: u8 = 18;
/// A test hung; the tests after it were not run.
pub const HUNG: u8 = 19;
/// The guest program itself broke (a panic).
pub const BROKEN: u8 = 20;

/// The byte behind a QEMU exit status; `None` where no guest byte makes it.
pub fn from_qemu_status(status: i32) -> Option<u8> {
    let byte = u8::try_from(status.checked_sub(1)? / 2).ok()?;
    (status % 2 == 1 && (OK..=BROKEN).contains(&byte)).then_some(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_statuses() {
        assert_eq!(from_qemu_status(33), Some(OK));
        assert_eq!(from_qemu_status(41), Some(BROKEN));
        for other in [0, 1, 2, 31, 34, 43, -1, i32::MIN, i32::MAX] {
            assert_eq!(from_qemu_status(other), None);
        }
    }
}
