// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What every store must do, run against each.

use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};

use super::buf::tests::Owned;
use super::*;

pub(super) fn wait(queue: &mut dyn StoreQueue, count: usize) -> Vec<Completion> {
    let mut done = Vec::new();
    loop {
        let before = done.len();
        queue.reap(&mut done);
        if done.len() >= count {
            break;
        }
        if done.len() > before {
            continue;
        }
        let mut fds = [PollFd::new(queue.event(), PollFlags::POLLIN)];
        let n = poll(&mut fds, 10_000u16).unwrap();
        assert_eq!(n, 1, "nothing completed within 10 s");
    }
    done.sort_by_key(|c| c.token);
    done
}

pub(super) fn contract(store: &dyn Store) {
    let mut queue = store.queue().unwrap();
    let data: Vec<u8> = (0..64 * 1024u32).map(|i| (i / 3) as u8).collect();
    let from = Owned::new(data.clone());
    queue.submit(
        7,
        Op::Write {
            offset: 4096,
            buffers: from.buffers(&[1, 511, 4000]),
        },
    );
    assert!(wait(&mut *queue, 1)[0].result.is_ok());
    let to: Vec<_> = (0..8).map(|_| Owned::new(vec![9; 64 * 1024])).collect();
    for (i, memory) in to.iter().enumerate() {
        let op = Op::Read {
            offset: 4096,
            buffers: memory.buffers(&[13, 13]),
        };
        queue.submit(i as u64, op);
    }
    queue.submit(8, Op::Flush);
    let done = wait(&mut *queue, 9);
    assert!(done.iter().all(|c| c.result.is_ok()));
    assert!(to.iter().all(|memory| memory.bytes() == data));
    // Drained: no stale wake-up is left.
    let mut fds = [PollFd::new(queue.event(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, 0u16).unwrap(), 0);
    // Zeroed and thrown away: both read as zeros, what is beside them stays.
    let mut data = data;
    for (offset, op) in [
        (
            4096 + 512,
            Op::WriteZeroes {
                offset: 4096 + 512,
                len: 1024,
                unmap: false,
            },
        ),
        (
            4096 + 8192,
            Op::WriteZeroes {
                offset: 4096 + 8192,
                len: 1024,
                unmap: true,
            },
        ),
        (
            4096 + 16384,
            Op::Discard {
                offset: 4096 + 16384,
                len: 1024,
            },
        ),
    ] {
        queue.submit(1, op);
        assert!(wait(&mut *queue, 1)[0].result.is_ok());
        data[offset - 4096..offset - 3072].fill(0);
        let op = Op::Read {
            offset: 4096,
            buffers: to[0].buffers(&[600]),
        };
        queue.submit(1, op);
        assert!(wait(&mut *queue, 1)[0].result.is_ok());
        assert!(to[0].bytes() == data);
    }
    let (offset, len) = (store.capacity() - 512, 1024);
    for op in [
        Op::Discard { offset, len },
        Op::WriteZeroes {
            offset,
            len,
            unmap: true,
        },
    ] {
        queue.submit(1, op);
        assert!(wait(&mut *queue, 1)[0].result.is_err());
    }
    // Beyond the end: the request fails, the queue goes on.
    let op = Op::Read {
        offset: store.capacity(),
        buffers: to[0].buffers(&[]),
    };
    queue.submit(1, op);
    assert!(wait(&mut *queue, 1)[0].result.is_err());
    queue.submit(2, Op::Flush);
    assert!(wait(&mut *queue, 1)[0].result.is_ok());
}

#[test]
fn memory() {
    contract(&MemoryStore::new(1 << 20).unwrap());
}

#[test]
fn file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let options = ImageOptions {
        create: Some(1 << 20),
        ..Default::default()
    };
    let store = FileStore::open(&path, &options).unwrap();
    contract(&store);
    let begin = std::time::Instant::now();
    drop(store);
    assert!(begin.elapsed() < Duration::from_secs(5));
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
}

#[test]
fn unfit_images_are_refused_in_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let open = |options: &ImageOptions| match FileStore::open(&path, options) {
        Ok(_) => String::from("opened"),
        Err(e) => format!("{e:#}"),
    };
    let plain = ImageOptions::default();
    assert!(open(&plain).contains("does not exist"));
    std::fs::write(&path, [0; 700]).unwrap();
    assert!(open(&plain).contains("multiple"));
    std::fs::write(&path, [0; 1024]).unwrap();
    assert_eq!(open(&plain), "opened");
    let other_size = ImageOptions {
        create: Some(4096),
        ..Default::default()
    };
    assert!(open(&other_size).contains("exists with 1024 bytes"));
    let big_blocks = ImageOptions {
        block: 4096,
        ..Default::default()
    };
    assert!(open(&big_blocks).contains("4096"));
}
