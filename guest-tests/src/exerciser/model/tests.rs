// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The model.

use super::*;

const B: u64 = 8;

fn bytes(byte: u8, len: u64) -> Vec<u8> {
    vec![byte; len as usize]
}

/// Three blocks of ones, on the disk.
fn synced() -> Model {
    let mut m = Model::new(B);
    m.write(0, &bytes(1, 3 * B));
    m.synced();
    m
}

fn failed(m: &mut Model, off: u64, new: &[u8], cache: &[u8], disk: &[u8]) -> Result<(), String> {
    let size = m.size().max(off + new.len() as u64);
    let call = Failed {
        off,
        bytes: new,
        sure: 0,
        size,
    };
    m.failed(&call, cache, disk)
}

#[test]
fn what_was_written_is_read_and_nothing_else() {
    let mut m = synced();
    m.write(4, &bytes(2, 6));
    assert_eq!(m.check(0, &[1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 1]), Ok(()));
    assert_eq!(m.check(0, &[1, 1, 1, 1, 2, 2, 2, 2, 2, 1, 1]), Err(8));
    assert!(m.is_dirty());
    // Far beyond the end: zeros between.
    m.write(5 * B + 1, &[7]);
    assert_eq!(m.size(), 5 * B + 2);
    assert_eq!(m.check(3 * B, &bytes(0, 2 * B + 1)), Ok(()));
    m.synced();
    assert!(!m.is_dirty() && m.is_certain());
}

#[test]
fn a_dirty_block_may_be_on_the_disk_in_any_state_that_it_had() {
    let mut m = synced();
    m.write(0, &bytes(2, B));
    m.write(0, &bytes(3, B));
    for byte in [1, 2, 3] {
        assert_eq!(m.check_disk(0, &bytes(byte, B)), Ok(()));
    }
    assert_eq!(m.check_disk(0, &bytes(4, B)), Err(0));
    m.synced();
    assert_eq!(m.check_disk(0, &bytes(2, B)), Err(0));
}

#[test]
fn after_a_failed_call_a_block_is_what_was_seen_and_no_third_thing() {
    let mut m = synced();
    let new = bytes(2, 2 * B);
    // The first block is on the disk, the second is not.
    let disk = [bytes(2, B), bytes(1, B)].concat();
    failed(&mut m, 0, &new, &new, &disk).unwrap();
    assert_eq!(m.check(0, &new), Ok(()));
    assert_eq!(m.check(0, &disk), Ok(()));
    // The first block is known: both layers have it.
    assert_eq!(m.check(0, &bytes(1, 2 * B)), Err(0));
    assert!(!m.is_certain());
    // A part of it is written: in whichever it was.
    m.write(B, &[9]);
    let one = [vec![9], bytes(1, B - 1)].concat();
    let two = [vec![9], bytes(2, B - 1)].concat();
    assert_eq!((m.check(B, &one), m.check(B, &two)), (Ok(()), Ok(())));
    // It comes from the disk: now it is known.
    m.synced();
    let whole = [bytes(2, B), one, bytes(1, B)].concat();
    assert_eq!(m.read_anew(&whole), Ok(()));
    assert!(m.is_certain());
    assert_eq!(m.check(B, &two), Err(B));
}

#[test]
fn neither_old_nor_new_is_found_in_both_layers() {
    let other = bytes(5, B);
    let (old, new) = (bytes(1, B), bytes(2, B));
    let e = failed(&mut synced(), 0, &new, &other, &old).unwrap_err();
    assert!(e.contains("holds neither its old bytes"), "{e}");
    let e = failed(&mut synced(), 0, &new, &new, &other).unwrap_err();
    assert!(e.contains("the disk holds neither"), "{e}");
}

#[test]
fn a_short_count_is_a_promise() {
    let call = Failed {
        off: 0,
        bytes: &bytes(2, 2 * B),
        sure: B as usize,
        size: 3 * B,
    };
    let (old, new) = (bytes(1, B), bytes(2, B));
    let both = |a: &[u8], b: &[u8]| [a, b].concat();
    let seen = both(&new, &old);
    assert_eq!(synced().failed(&call, &seen, &seen), Ok(()));
    assert!(synced().failed(&call, &seen, &both(&old, &old)).is_err());
    assert!(synced().failed(&call, &both(&old, &old), &seen).is_err());
}

#[test]
fn below_a_dirty_block_the_disk_holds_what_was_there_before() {
    let mut m = synced();
    m.write(0, &bytes(3, B));
    failed(&mut m, 0, &bytes(2, B), &bytes(2, B), &bytes(1, B)).unwrap();
    assert_eq!(m.check(0, &bytes(3, B)), Err(0));
    assert_eq!(m.check(0, &bytes(1, B)), Ok(()));
}

#[test]
fn the_size_is_exact_but_after_a_failed_extension() {
    let mut m = synced();
    assert!(m.clone().mounted(3 * B - 1).is_err());
    let new = bytes(2, 2 * B);
    let zeros = bytes(0, 2 * B);
    failed(&mut m, 4 * B, &new, &new, &zeros).unwrap();
    assert_eq!(m.size(), 6 * B);
    assert!(m.clone().mounted(6 * B + 1).is_err());
    assert!(m.clone().mounted(3 * B - 1).is_err());
    let mut cut = m.clone();
    assert_eq!(cut.mounted(3 * B), Ok(()));
    assert_eq!(cut.size(), 3 * B);
    // What succeeds behind it puts its own end on the disk.
    m.written_through(4 * B, &bytes(3, 4));
    m.pin(4 * B, &[bytes(3, 4), bytes(2, 4)].concat());
    assert!(m.clone().mounted(3 * B).is_err());
    assert_eq!(m.clone().mounted(4 * B + 4), Ok(()));
    // truncate(2) does so for all of it.
    m.truncate(5 * B);
    assert!(m.clone().mounted(4 * B + 4).is_err());
    assert_eq!(m.mounted(5 * B), Ok(()));
}

#[test]
fn holes_read_as_zeros_and_parts_of_blocks_are_dirty() {
    let mut m = synced();
    m.punch(4, 2 * B);
    let want = [bytes(1, 4), bytes(0, 2 * B), bytes(1, 4)].concat();
    assert_eq!(m.check(0, &want), Ok(()));
    assert_eq!(m.check_disk(B, &bytes(0, B)), Ok(()));
    assert_eq!(m.check_disk(B, &bytes(1, B)), Err(B));
    assert!(m.is_dirty());
    // Over the end of a file that ends in a block.
    m.truncate(2 * B + 3);
    m.punch(2 * B, 2 * B);
    assert_eq!(m.size(), 2 * B + 3);
    assert_eq!(m.check(2 * B, &bytes(0, 3)), Ok(()));
}

#[test]
fn what_was_cut_off_reads_as_zeros_when_the_file_grows_again() {
    let mut m = synced();
    m.truncate(B + 3);
    m.truncate(3 * B);
    let want = [bytes(1, B + 3), bytes(0, 2 * B - 3)].concat();
    assert_eq!(m.check(0, &want), Ok(()));
    // It is in the page cache only, as long as nobody has written it.
    assert_eq!(m.check_disk(B, &bytes(1, B)), Ok(()));
    m.synced();
    assert_eq!(m.check_disk(B, &bytes(1, B)), Err(B));
}

#[test]
fn shared_blocks_are_those_of_the_source() {
    let mut m = synced();
    m.write(0, &bytes(2, B));
    m.clone_range(0, B, 4 * B);
    assert_eq!(m.size(), 5 * B);
    assert_eq!(m.check(4 * B, &bytes(2, B)), Ok(()));
    assert_eq!(m.check_disk(4 * B, &bytes(1, B)), Err(4 * B));
    m.clone_bytes(&bytes(9, 2 * B), B);
    assert_eq!(m.check(B, &bytes(9, 2 * B)), Ok(()));
    // An uncertain block stays uncertain where it goes.
    failed(&mut m, 0, &bytes(3, B), &bytes(3, B), &bytes(2, B)).unwrap();
    m.clone_range(0, B, 2 * B);
    for byte in [2, 3] {
        assert_eq!(m.check(2 * B, &bytes(byte, B)), Ok(()));
    }
}

#[test]
fn a_failed_sync_leaves_dirty_blocks_open_and_no_others() {
    let mut m = synced();
    m.write(B, &bytes(2, B));
    let cache = [bytes(1, B), bytes(2, B), bytes(1, B)].concat();
    let disk = bytes(1, 3 * B);
    let mut good = m.clone();
    assert_eq!(good.sync_failed(&cache, &disk), Ok(()));
    assert_eq!(
        (good.check(0, &cache), good.check(0, &disk)),
        (Ok(()), Ok(()))
    );
    let other = [bytes(2, B), bytes(1, 2 * B)].concat();
    assert!(m.clone().sync_failed(&cache, &other).is_err());
    assert!(m.sync_failed(&disk, &disk).is_err());
}

#[test]
fn dirty_data_that_a_failed_call_has_lost_moves_no_size() {
    let mut m = synced();
    // Beyond the end on the disk; the call fails over the second block of it.
    m.write(3 * B, &bytes(2, B + 2));
    let cache = [bytes(3, B + 4), bytes(0, B - 4)].concat();
    failed(&mut m, 4 * B, &bytes(3, B + 4), &cache, &bytes(0, 2 * B)).unwrap();
    m.synced();
    // The block before it is still dirty, and written by the sync.
    assert!(m.clone().mounted(4 * B - 1).is_err());
    assert_eq!(m.clone().mounted(4 * B), Ok(()));
    assert_eq!(m.mounted(5 * B + 4), Ok(()));
}

/// A dirty folio of several blocks is not split where a part of it goes: what is left may stay dirty with it.
#[test]
fn dirty_blocks_that_are_taken_away_may_leave_others_dirty() {
    let written = |through: u64| {
        let mut m = Model::new(B);
        m.write(0, &[1; 4 * B as usize]);
        m.pin(0, &vec![1; (through * B) as usize]);
        m
    };
    for dirty in [false, true] {
        // All is clean, or the last block is dirty.
        let clean = written(if dirty { 3 } else { 4 });
        for take in [Model::truncate as fn(&mut Model, u64), |m, at| {
            m.punch(at, B)
        }] {
            let mut m = clean.clone();
            assert_eq!(m.is_dirty(), dirty);
            take(&mut m, 3 * B);
            assert_eq!(m.is_dirty(), dirty);
        }
    }
}
