// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is durable at the moment of a power cut, told from the trace alone: the
//! writes that were completed before some flush was submitted, by the numbers of
//! their events. The image must be that and nothing else.

mod common;

use common::driver::*;
use common::serve::{Serve, Trace};
use common::until;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use wtblk::trace::event::{Op, Status};

/// Sectors of each queue's part of the disk: what two queues write at once has no order.
const PART: u64 = 24;
/// Flushes are held a while, so that writes are completed meanwhile.
const SLOW_FLUSH: &str = r#"
version = 1
[[fault]]
name = "slow"
when = { op = "flush" }
action = { delay = { min = "0us", max = "3ms" } }
"#;

/// A request of a script: queue, kind, first sector of the queue's part, sectors.
type Asked = (usize, u32, u64, u64);

fn request() -> impl Strategy<Value = Asked> {
    let kind =
        prop_oneof![6 => Just(OUT), 1 => Just(DISCARD), 1 => Just(WRITE_ZEROES), 2 => Just(FLUSH)];
    (0..2usize, kind, 0..PART, 1..8u64).prop_map(|(q, k, at, n)| (q, k, at, n.min(PART - at)))
}

/// Submits without waiting; the byte that it leaves.
fn submit(d: &mut Driver, n: usize, (queue, kind, at, sectors): Asked) -> (u16, u8) {
    let sector = queue as u64 * PART + at;
    let slot = d.slot(queue, n as u64);
    let byte = (n % 250) as u8 + 1;
    let (len, byte) = match kind {
        OUT => {
            d.poke(slot + 0x1000, &vec![byte; sectors as usize * 512]);
            (sectors as u32 * 512, byte)
        }
        FLUSH => (0, 0),
        _ => {
            let mut raw = sector.to_le_bytes().to_vec();
            raw.extend((sectors as u32).to_le_bytes());
            raw.extend(0u32.to_le_bytes());
            d.poke(slot + 0x1000, &raw);
            (16, 0)
        }
    };
    let head = d.submit(queue, n as u64, kind, sector, len);
    d.kick(queue);
    (head, byte)
}

/// The disk's first bytes, if of the writes only those are applied that `durable` names.
fn disk(writes: &[(u64, u64, u64, u8)], durable: impl Fn(u64) -> bool) -> Vec<u8> {
    let mut bytes = vec![0; 2 * PART as usize * 512];
    for &(completed, sector, sectors, byte) in writes {
        if durable(completed) {
            bytes[sector as usize * 512..(sector + sectors) as usize * 512].fill(byte);
        }
    }
    bytes
}

/// Runs a script to its end and pulls the plug. The image, what it should be by the trace, and
/// what it would be if a flush covered all that was completed before its own completion.
fn cut(script: &[Vec<Asked>], more: &[&str]) -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let args = [
        "--image",
        "img",
        "--size",
        "1MiB",
        "--volatile-cache",
        "--queues",
        "2",
    ];
    let dir = tempfile::tempdir().unwrap();
    let serve = Serve::start_in(dir, SLOW_FLUSH, &[&args[..], more].concat());
    let mut d = Driver::connect(serve.data(), 2);
    let mut bytes: [Vec<u8>; 2] = Default::default();
    let mut n = 0;
    for batch in script {
        let mut sent = Vec::new();
        for &asked in batch {
            let (head, byte) = submit(&mut d, n, asked);
            bytes[asked.0].push(byte);
            sent.push((asked.0, n as u64, head));
            n += 1;
        }
        for (queue, n, head) in sent {
            assert_eq!(d.finish(queue, n, head), 0);
        }
        d.queues.iter_mut().for_each(Queue::forget);
    }
    // A completion can be seen in the ring a moment before its event is committed.
    until("all events", || {
        let trace = serve.trace();
        (trace.completes().len() == n).then_some(())
    });
    let dir = serve.kill();
    let trace = Trace::read(&dir.path().join("trace"));
    let completed: std::collections::HashMap<u64, u64> = trace
        .completes()
        .iter()
        .filter(|c| c.1.status == Status::OK)
        .map(|(seq, c)| (c.request, *seq))
        .collect();
    let (mut writes, mut flushes, mut ends) = (Vec::new(), Vec::new(), Vec::new());
    let mut next = [0, 0];
    for (seq, s) in trace.submits() {
        let queue = usize::from(s.queue);
        let byte = bytes[queue][next[queue]];
        next[queue] += 1;
        let end = completed[&seq];
        match s.op {
            Op::Flush => {
                flushes.push(seq);
                ends.push(end);
            }
            _ => writes.push((end, s.sector, u64::from(s.bytes) / 512, byte)),
        }
    }
    let covered = |by: &[u64], end: u64| by.iter().any(|&flush| end < flush);
    let want = disk(&writes, |end| covered(&flushes, end));
    let naive = disk(&writes, |end| covered(&ends, end));
    let mut image = std::fs::read(dir.path().join("img")).unwrap();
    image.truncate(want.len());
    (image, want, naive)
}

#[test]
fn the_image_is_what_the_events_say_is_durable() {
    let script = prop::collection::vec(prop::collection::vec(request(), 1..12), 1..8);
    let mut runner = TestRunner::new(Config {
        failure_persistence: None,
        ..Config::with_cases(16)
    });
    let told_apart = std::cell::Cell::new(0);
    runner
        .run(&script, |script| {
            for more in [&[] as &[&str], &["--poison"]] {
                let (mut image, mut want, mut naive) = cut(&script, more);
                if !more.is_empty() {
                    // Poison is nowhere in the image: the same as without it.
                    assert!(wtblk_shared::poison::find(&image).is_none());
                }
                told_apart.set(told_apart.get() + u32::from(want != naive));
                prop_assert!(std::mem::take(&mut image) == std::mem::take(&mut want));
                naive.clear();
            }
            Ok(())
        })
        .unwrap();
    assert!(
        told_apart.get() > 0,
        "no case would have noticed a flush that covers too much"
    );
}

#[test]
fn written_through_everything_completed_is_durable() {
    let script: Vec<Vec<Asked>> = (0..6)
        .map(|n| vec![(0, OUT, n, 3), (1, WRITE_ZEROES, n, 2), (1, OUT, n + 4, 2)])
        .collect();
    let (image, _, _) = cut(&script, &["--write-cache", "off"]);
    let mut want = vec![0; 2 * PART as usize * 512];
    for (n, (queue, kind, at, sectors)) in script.into_iter().flatten().enumerate() {
        let byte = if kind == OUT { n as u8 + 1 } else { 0 };
        let start = (queue as u64 * PART + at) as usize * 512;
        want[start..start + sectors as usize * 512].fill(byte);
    }
    assert!(image == want);
}
