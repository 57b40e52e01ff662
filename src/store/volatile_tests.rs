// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The cache against an oracle that is a list of writes and flushes.

use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, poll};
use proptest::prelude::*;

use super::super::MemoryStore;
use super::super::buf::tests::Owned;
use super::super::tests::{contract, wait};
use super::*;

const DISK: usize = 16 * 512;

fn read(queue: &mut dyn StoreQueue, offset: u64, len: usize) -> Vec<u8> {
    let memory = Owned::new(vec![0xaa; len]);
    let buffers = memory.buffers(&[700, 100]);
    queue.submit(u64::MAX, Op::Read { offset, buffers });
    assert!(wait(queue, 1)[0].result.is_ok());
    memory.bytes()
}

fn layer() -> (Arc<MemoryStore>, VolatileStore) {
    let inner = Arc::new(MemoryStore::new(1 << 20).unwrap());
    let store = VolatileStore::new(inner.clone()).unwrap();
    (inner, store)
}

/// The guest hears of a write.
fn tell(store: &VolatileStore, queue: &mut dyn StoreQueue, token: u64) {
    let receipt = queue.receipt(token).expect("a write");
    assert_eq!(queue.receipt(token), None);
    assert_eq!(store.cache().complete(&[receipt], || 5), 5);
}

#[test]
fn it_is_a_store_like_any_other() {
    contract(&layer().1);
}

/// Of writes that nobody was told of nothing leaves the cache: it fills.
#[test]
fn a_write_that_finds_no_room_fails_alone() {
    const PART: u64 = 32 << 20;
    let inner = Arc::new(MemoryStore::new(PART).unwrap());
    let store = VolatileStore::new(inner).unwrap();
    let mut queue = store.queue().unwrap();
    let memory = Owned::new(vec![7; PART as usize]);
    let mut write = |token: u64, len: u64| {
        let buffers = memory.buffers(&[len as usize]);
        queue.submit(token, Op::Write { offset: 0, buffers });
        wait(queue.as_mut(), 1).remove(0).result
    };
    for token in 0..FULL / PART {
        assert!(write(token, PART).is_ok(), "{token}");
    }
    let error = write(100, 512).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
    let queue = queue.as_mut();
    assert_eq!(read(queue, 0, 1024), vec![7; 1024]);
    for token in 0..FULL / PART {
        tell(&store, queue, token);
    }
    queue.submit(101, Op::Flush);
    assert!(wait(queue, 1)[0].result.is_ok());
    let buffers = memory.buffers(&[512]);
    queue.submit(102, Op::Write { offset: 0, buffers });
    assert!(wait(queue, 1)[0].result.is_ok(), "there is room again");
}

#[test]
fn only_what_was_flushed_survives() {
    let (inner, store) = layer();
    let mut queue = store.queue().unwrap();
    let mut write = |byte: u8| {
        let buffers = Buffers::owned(vec![byte; 512]);
        let offset = 0;
        queue.submit(1, Op::Write { offset, buffers });
        assert!(wait(&mut *queue, 1)[0].result.is_ok());
        tell(&store, &mut *queue, 1);
    };
    write(1);
    write(2);
    write(3);
    let cache = store.cache();
    assert_eq!((cache.completed(), cache.account().volatile), (3, 3));
    let mut below = inner.queue().unwrap();
    assert_eq!(read(&mut *below, 0, 512), [0; 512]);
    // The older version of the sector, which the cache shows no more.
    queue.submit(2, Op::FlushFirst(2));
    assert!(wait(&mut *queue, 1)[0].result.is_ok());
    assert_eq!(read(&mut *below, 0, 512), [2; 512]);
    assert_eq!(read(&mut *queue, 0, 512), [3; 512]);
    cache.freeze();
    queue.submit(3, Op::Flush);
    assert!(wait(&mut *queue, 1)[0].result.is_err());
    let buffers = Buffers::owned(vec![9; 512]);
    queue.submit(4, Op::Write { offset: 0, buffers });
    assert!(wait(&mut *queue, 1)[0].result.is_err());
    cache.write_out(Duration::from_secs(5)).unwrap();
    assert_eq!(read(&mut *below, 0, 512), [2; 512]);
}

#[test]
fn an_orderly_end_keeps_everything_and_gives_the_memory_back() {
    let (inner, store) = layer();
    let mut queue = store.queue().unwrap();
    for n in 0..100u64 {
        let buffers = Buffers::owned(vec![n as u8; 1536]);
        let offset = n * 512;
        queue.submit(n, Op::Write { offset, buffers });
    }
    wait(&mut *queue, 100);
    (0..100).for_each(|n| tell(&store, &mut *queue, n));
    store.cache().write_out(Duration::from_secs(5)).unwrap();
    let account = store.cache().account();
    assert_eq!((account.bytes, account.volatile), (0, 0));
    let mut below = inner.queue().unwrap();
    for n in 0..100u64 {
        assert_eq!(read(&mut *below, n * 512, 512), vec![n as u8; 512]);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(usize, usize),
    /// The same with zeros: as a discard, or as zeroes.
    Zero(usize, usize, bool),
    /// Reaps what is over; the guest hears of the first so many of all that are.
    Reap(usize),
    Flush,
    FlushFirst(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..15usize, 1..5usize).prop_map(|(at, n)| Step::Write(at, n)),
        2 => (0..15usize, 1..9usize, any::<bool>()).prop_map(|(at, n, d)| Step::Zero(at, n, d)),
        3 => (0..6usize).prop_map(Step::Reap),
        1 => Just(Step::Flush),
        1 => (0..20u64).prop_map(Step::FlushFirst),
    ]
}

/// A write of the oracle: range in bytes, its byte, its place among the completed.
struct Said {
    range: std::ops::Range<usize>,
    byte: u8,
    completed: Option<u64>,
}

/// The disk, if of the writes only these had been.
fn disk(writes: &[Said], which: impl Fn(&Said) -> bool) -> Vec<u8> {
    let mut bytes = vec![0; DISK];
    for write in writes.iter().filter(|w| which(w)) {
        bytes[write.range.clone()].fill(write.byte);
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// Two queues. Reads show all that arrived; the inner store shows, after any flush and
    /// after a cut, exactly the writes that some flush covered.
    #[test]
    fn durable_is_what_a_flush_covered(
        steps in prop::collection::vec((any::<bool>(), step()), 1..60),
    ) {
        let (inner, store) = layer();
        let mut queues = [store.queue().unwrap(), store.queue().unwrap()];
        let mut below = inner.queue().unwrap();
        let mut writes: Vec<Said> = Vec::new();
        let (mut completed, mut durable) = (0u64, 0u64);
        // Over, and not told: by queue, and by number in the oracle.
        let mut over: [Vec<usize>; 2] = Default::default();
        for (n, (second, step)) in steps.into_iter().enumerate() {
            let queue = &mut queues[usize::from(second)];
            let over = &mut over[usize::from(second)];
            match step {
                Step::Write(at, sectors) => {
                    let range = at * 512..((at + sectors) * 512).min(DISK);
                    let byte = n as u8 + 1;
                    let buffers = Buffers::owned(vec![byte; range.len()]);
                    // The token says which write of the oracle it is.
                    let token = writes.len() as u64;
                    queue.submit(token, Op::Write { offset: range.start as u64, buffers });
                    writes.push(Said { range, byte, completed: None });
                }
                Step::Zero(at, sectors, discard) => {
                    let range = at * 512..((at + sectors) * 512).min(DISK);
                    let (offset, len) = (range.start as u64, range.len() as u64);
                    let unmap = n.is_multiple_of(2);
                    let op = match discard {
                        true => Op::Discard { offset, len },
                        false => Op::WriteZeroes { offset, len, unmap },
                    };
                    queue.submit(writes.len() as u64, op);
                    writes.push(Said { range, byte: 0, completed: None });
                }
                Step::Reap(told) => {
                    let mut done = Vec::new();
                    queue.reap(&mut done);
                    prop_assert!(done.iter().all(|c| c.result.is_ok()));
                    over.extend(done.iter().map(|c| c.token as usize));
                    for write in over.drain(..told.min(over.len())) {
                        tell(&store, &mut **queue, write as u64);
                        completed += 1;
                        writes[write].completed = Some(completed);
                    }
                }
                Step::Flush | Step::FlushFirst(_) => {
                    let covers = match step { Step::FlushFirst(n) => n.min(completed), _ => completed };
                    let op = match step { Step::FlushFirst(n) => Op::FlushFirst(n), _ => Op::Flush };
                    queue.submit(u64::MAX, op);
                    let mut flushed = false;
                    while !flushed {
                        let mut done = Vec::new();
                        let mut fds = [PollFd::new(queue.event(), PollFlags::POLLIN)];
                        poll(&mut fds, 10_000u16).unwrap();
                        queue.reap(&mut done);
                        for completion in done {
                            prop_assert!(completion.result.is_ok());
                            if completion.token == u64::MAX {
                                flushed = true;
                                continue;
                            }
                            over.push(completion.token as usize);
                        }
                    }
                    durable = durable.max(covers);
                    let kept = |w: &Said| w.completed.is_some_and(|n| n <= durable);
                    let want = disk(&writes, kept);
                    prop_assert_eq!(read(&mut *below, 0, DISK), want);
                }
            }
        }
        for queue in &mut queues {
            queue.reap(&mut Vec::new());
        }
        prop_assert_eq!(read(&mut *queues[0], 0, DISK), disk(&writes, |_| true));
        store.cache().freeze();
        let want = disk(&writes, |w| w.completed.is_some_and(|n| n <= durable));
        drop(queues);
        prop_assert_eq!(read(&mut *below, 0, DISK), want);
    }
}
