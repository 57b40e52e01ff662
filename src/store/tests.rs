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

#[test]
fn an_image_that_cannot_be_made_is_not_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let with = |size| ImageOptions {
        create: Some(size),
        ..Default::default()
    };
    // Not whole blocks; more than any file may have.
    for size in [700, u64::MAX - 511] {
        assert!(FileStore::open(&path, &with(size)).is_err());
        assert!(!path.exists(), "{size}");
    }
    drop(FileStore::open(&path, &with(4096)).unwrap());
    // One of before stays.
    assert!(FileStore::open(&path, &with(8192)).is_err());
    assert!(path.exists());
}

#[test]
fn zeroes_that_are_given_up_end_and_nothing_follows() {
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::FileExt;
    const LEN: u64 = 64 << 20;
    // 25 GiB.
    const COUNT: u64 = 400;
    for aio in [Aio::Auto, Aio::IoUring, Aio::Threads] {
        let name = c"image";
        let flags = nix::sys::memfd::MFdFlags::MFD_CLOEXEC;
        let file = std::fs::File::from(nix::sys::memfd::memfd_create(name, flags).unwrap());
        let sevens = vec![7; LEN as usize];
        file.write_all_at(&sevens, 0).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let options = ImageOptions {
            aio,
            ..Default::default()
        };
        let store = FileStore::open(path.as_ref(), &options).unwrap();
        let mut queue = store.queue().unwrap();
        for token in 0..COUNT {
            let op = Op::WriteZeroes {
                offset: 0,
                len: LEN,
                unmap: false,
            };
            queue.submit(token, op);
        }
        let mut done = Vec::new();
        queue.reap(&mut done);
        queue.give_up();
        let left = COUNT as usize - done.len();
        done.append(&mut wait(&mut *queue, left));
        let errno = |c: &Completion| c.result.as_ref().err().and_then(io::Error::raw_os_error);
        let given_up = done.iter().filter(|c| errno(c) == Some(libc::ECANCELED));
        assert!(given_up.count() > COUNT as usize / 2, "{aio:?}");
        file.write_all_at(&sevens, 0).unwrap();
        // What comes later is done as ever, and only that.
        let (offset, buffers) = (0, Buffers::owned(vec![8; 512]));
        queue.submit(0, Op::Write { offset, buffers });
        assert!(wait(&mut *queue, 1)[0].result.is_ok());
        std::thread::sleep(Duration::from_millis(100));
        let mut bytes = vec![0; LEN as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(
            bytes[..512] == [8; 512] && bytes[512..] == sevens[512..],
            "{aio:?}"
        );
        let mut none = Vec::new();
        queue.reap(&mut none);
        assert!(none.is_empty());
    }
}
