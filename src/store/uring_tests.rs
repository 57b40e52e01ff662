// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! io_uring against threads: the same operations, the same bytes.

use std::path::Path;

use proptest::prelude::*;

use super::super::buf::tests::Owned;
use super::super::tests::{contract, wait};
use super::super::{Aio, FileStore, ImageOptions, Store};
use super::*;

const SIZE: u64 = 1 << 20;

/// Whether there is something to test: a host may forbid io_uring.
fn allowed() -> bool {
    let allowed = UringQueue::possible();
    if let Err(error) = &allowed {
        eprintln!("not checked: the host forbids io_uring ({error})");
    }
    allowed.is_ok()
}

fn store(path: &Path, aio: Aio) -> FileStore {
    let options = ImageOptions {
        create: Some(SIZE),
        aio,
        ..Default::default()
    };
    FileStore::open(path, &options).unwrap()
}

#[derive(Clone, Debug)]
enum Action {
    /// First sector, sectors, lengths of the pieces, what the memory begins behind.
    Write(u64, u64, Vec<usize>, usize, u8),
    Read(u64, u64, Vec<usize>, usize),
    Zeroes(u64, u64, bool),
    Discard(u64, u64),
    Flush,
}

fn action() -> impl Strategy<Value = Action> {
    let place = || (0u64..2040, 1u64..200).prop_map(|(s, n)| (s, n.min(2048 - s)));
    let cuts = || {
        prop_oneof![
            Just(vec![]),
            prop::collection::vec(1usize..5000, 0..6),
            prop::collection::vec(Just(512usize), 0..40),
            Just(vec![1usize; 1500]),
        ]
    };
    // Aligned or not.
    let skew = || prop_oneof![Just(0usize), Just(512), 1usize..600];
    prop_oneof![
        4 => (place(), cuts(), skew(), any::<u8>())
            .prop_map(|((s, n), cuts, skew, byte)| Action::Write(s, n, cuts, skew, byte)),
        4 => (place(), cuts(), skew()).prop_map(|((s, n), cuts, skew)| Action::Read(s, n, cuts, skew)),
        1 => (place(), any::<bool>()).prop_map(|((s, n), unmap)| Action::Zeroes(s, n, unmap)),
        1 => place().prop_map(|(s, n)| Action::Discard(s, n)),
        1 => Just(Action::Flush),
    ]
}

/// Does one action; the bytes that it read.
fn act(queue: &mut dyn StoreQueue, action: &Action) -> Vec<u8> {
    let mut read = None;
    let memory = |bytes: Vec<u8>, cuts: &[usize], skew: usize| {
        // Memory that begins `skew` bytes behind a page.
        let page = vec![0u8; bytes.len() + 8192];
        let owned = Owned::new(page);
        let whole = owned.buffers(&[]);
        let base = whole.iovecs()[0].iov_base as usize;
        let from = base.next_multiple_of(4096) - base + skew;
        whole.part(from as u64, bytes.len() as u64).copy_in(&bytes);
        let all: Vec<usize> = std::iter::once(from).chain(cuts.iter().copied()).collect();
        let cut = owned.buffers(&all);
        (owned, cut.part(from as u64, bytes.len() as u64))
    };
    let op = match action {
        Action::Write(sector, sectors, cuts, skew, byte) => {
            let len = *sectors as usize * 512;
            let bytes = (0..len).map(|i| byte.wrapping_add((i / 7) as u8)).collect();
            let (owned, buffers) = memory(bytes, cuts, *skew);
            read = Some((owned, buffers.clone(), false));
            Op::Write {
                offset: sector * 512,
                buffers,
            }
        }
        Action::Read(sector, sectors, cuts, skew) => {
            let (owned, buffers) = memory(vec![9; *sectors as usize * 512], cuts, *skew);
            read = Some((owned, buffers.clone(), true));
            Op::Read {
                offset: sector * 512,
                buffers,
            }
        }
        &Action::Zeroes(sector, sectors, unmap) => Op::WriteZeroes {
            offset: sector * 512,
            len: sectors * 512,
            unmap,
        },
        &Action::Discard(sector, sectors) => Op::Discard {
            offset: sector * 512,
            len: sectors * 512,
        },
        Action::Flush => Op::Flush,
    };
    queue.submit(1, op);
    let done = wait(queue, 1);
    assert!(done[0].result.is_ok(), "{action:?}: {:?}", done[0].result);
    match read {
        Some((owned, buffers, true)) => {
            let mut bytes = vec![0; buffers.len() as usize];
            buffers.copy_out(&mut bytes);
            drop(owned);
            bytes
        }
        _ => Vec::new(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..Default::default() })]
    #[test]
    fn the_same_as_threads(actions in prop::collection::vec(action(), 1..30)) {
        if !allowed() {
            return Ok(());
        }
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        let stores = [store(&paths[0], Aio::IoUring), store(&paths[1], Aio::Threads)];
        let mut queues = stores.each_ref().map(|s| s.queue().unwrap());
        for action in &actions {
            let [a, b] = queues.each_mut().map(|q| act(&mut **q, action));
            prop_assert!(a == b, "{:?}", action);
        }
        let [a, b] = paths.map(|p| std::fs::read(p).unwrap());
        prop_assert!(a == b);
    }
}

#[test]
fn what_every_store_must_do() {
    if !allowed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for aio in [Aio::IoUring, Aio::Auto] {
        contract(&store(&dir.path().join("image"), aio));
    }
}

/// More at once than the ring has entries for.
#[test]
fn a_thousand_at_once() {
    if !allowed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir.path().join("image"), Aio::IoUring);
    let mut queue = store.queue().unwrap();
    let memory: Vec<_> = (0..1000u64)
        .map(|n| Owned::new(vec![n as u8; 512]))
        .collect();
    for (n, memory) in (0..).zip(&memory) {
        let op = Op::Write {
            offset: n * 512,
            buffers: memory.buffers(&[]),
        };
        queue.submit(n, op);
    }
    let done = wait(&mut *queue, 1000);
    assert!(done.iter().all(|c| c.result.is_ok()));
    let bytes = std::fs::read(dir.path().join("image")).unwrap();
    assert!((0..1000).all(|n| bytes[n * 512..(n + 1) * 512] == [n as u8; 512]));
}

/// What a file system says that has no ZERO_RANGE, and short transfers.
#[test]
fn zeros_are_written_and_short_transfers_go_on() {
    let mut flight = Flight {
        token: 1,
        work: Work::Allocate {
            len: 3 << 20,
            mode: 0,
        },
        offset: 4096,
        done: 0,
        list: Vec::new(),
        first: 0,
        bounce: None,
        given_up: false,
    };
    assert!(matches!(flight.land(-libc::EOPNOTSUPP), Landed::More));
    for left in [3u64, 2, 1] {
        assert_eq!(flight.len() - flight.done, left << 20);
        let landed = flight.land(1 << 20);
        assert_eq!(matches!(landed, Landed::More), left > 1);
    }
    let owned = Owned::new(vec![0; 3000]);
    let mut flight = Flight {
        work: Work::Read(owned.buffers(&[1000, 1000])),
        done: 0,
        bounce: None,
        ..flight
    };
    flight.prepare(None);
    assert!(matches!(flight.land(1500), Landed::More));
    assert_eq!((flight.first, flight.list[1].iov_len), (1, 500));
    assert!(matches!(flight.land(-libc::EINTR), Landed::More));
    assert!(matches!(flight.land(0), Landed::Over(Err(_))));
    assert!(matches!(flight.land(-libc::EIO), Landed::Over(Err(_))));
    assert!(matches!(flight.land(1500), Landed::Over(Ok(()))));
}

/// The kernel refuses what the ring is not for: other files, other operations, other registrations.
#[test]
fn a_ring_does_nothing_but_read_and_write_its_file() {
    if UringQueue::possible().is_err() {
        return;
    }
    let file = tempfile::tempfile().unwrap();
    file.set_len(4096).unwrap();
    let (mut ring, confined) = confined_ring(&file).unwrap();
    assert!(confined, "Linux 5.10 and later can");
    let mut bytes = [0u8; 512];
    let (at, len) = (bytes.as_mut_ptr(), bytes.len() as u32);
    let other = types::Fd(file.as_raw_fd());
    let name = c"/etc/hostname".as_ptr();
    let entries = [
        (opcode::Read::new(FILE, at, len).build(), 512),
        // The same file by its descriptor.
        (opcode::Read::new(other, at, len).build(), -libc::EACCES),
        (
            opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name).build(),
            -libc::EACCES,
        ),
        (
            opcode::Socket::new(libc::AF_UNIX, libc::SOCK_STREAM, 0).build(),
            -libc::EACCES,
        ),
        (
            opcode::Nop::new().build().flags(Flags::FIXED_FILE),
            -libc::EACCES,
        ),
    ];
    for (number, (entry, result)) in entries.into_iter().enumerate() {
        // SAFETY: what the entries point to lives until their completions are seen, just below.
        unsafe { ring.submission().push(&entry.user_data(number as u64)) }.unwrap();
        ring.submit_and_wait(1).unwrap();
        let completion = ring.completion().next().unwrap();
        assert_eq!(
            (completion.user_data(), completion.result()),
            (number as u64, result)
        );
    }
    let more = ring
        .submitter()
        .register_files_update(0, &[file.as_raw_fd()]);
    assert_eq!(more.unwrap_err().raw_os_error(), Some(libc::EACCES));
}

#[test]
fn memory_of_our_own_is_bounded_and_everybody_gets_his_turn() {
    if !allowed() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    drop(store(&path, Aio::IoUring));
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let target = Target {
        _locked: file.try_clone().unwrap(),
        file,
        // As past the page cache, whatever the file system can do.
        direct: Some(4096),
        capacity: SIZE,
    };
    let mut queue = UringQueue::new(Arc::new(target)).unwrap();
    let count = 2 * BOUNCES as u64 + 3;
    for n in 0..count {
        let buffers = Buffers::owned(vec![n as u8; 512]);
        queue.submit(
            n,
            Op::Write {
                offset: n * 512,
                buffers,
            },
        );
        assert!(queue.bouncing <= BOUNCES);
    }
    assert_eq!(queue.bouncing, BOUNCES);
    let mut done = Vec::new();
    while done.len() < count as usize {
        queue.reap(&mut done);
        assert!(queue.bouncing <= BOUNCES);
    }
    assert!(done.iter().all(|c| c.result.is_ok()));
    assert_eq!(queue.bouncing, 0);
    let bytes = std::fs::read(&path).unwrap();
    let wanted = |n: u64| {
        bytes[n as usize * 512..][..512]
            .iter()
            .all(|&b| b == n as u8)
    };
    assert!((0..count).all(wanted));
}
