// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Discard and write-zeroes by the book (virtio 1.3, 5.2.6), on every store
//! and layer, and what rules make of them.

mod common;

use std::os::unix::fs::MetadataExt;

use common::driver::*;
use common::inside::Inside;
use common::serve::Serve;
use wtblk::fault::request::{DataFault, Plan};
use wtblk::trace::event::{DeviceKind, Op, Status};

const UNMAP: u32 = 1;
const SECTORS: u64 = 32768;

#[test]
fn ranges_become_zeros_and_nothing_else_does() {
    for args in [
        &["--memory", "16MiB"] as &[&str],
        &["--image", "img", "--size", "16MiB"],
        &["--image", "img", "--size", "16MiB", "--volatile-cache"],
        &["--memory", "16MiB", "--volatile-cache"],
        &["--memory", "16MiB", "--write-cache", "off"],
    ] {
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", args);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.features >> 13 & 3, 3);
        for (kind, flags) in [(DISCARD, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, UNMAP)] {
            let mut want = vec![7u8; 32 * 512];
            assert_eq!(d.write(64, &want), 0);
            let zones = [(66, 3, flags), (80, 8, flags), (72, 1, flags)];
            assert_eq!(d.zero(kind, &zones), 0);
            for (sector, sectors) in [(2, 3), (16, 8), (8, 1)] {
                want[sector * 512..(sector + sectors) * 512].fill(0);
            }
            assert!(d.read(64, want.len()) == (0, want), "{args:?}, type {kind}");
        }
        // The last sector; none; as many segments as were announced.
        assert_eq!(d.zero(WRITE_ZEROES, &[(SECTORS - 1, 1, 0)]), 0);
        assert_eq!(d.zero(DISCARD, &[(5, 0, 0)]), 0);
        assert_eq!(d.zero(DISCARD, &[(5, 1, 0); 16]), 0);
        drop(d);
        let trace = serve.end();
        trace.assert_paired();
        let (id, first) = trace.submits()[1].clone();
        assert_eq!(
            (first.op, first.sector, first.bytes),
            (Op::Discard, 66, 22 * 512)
        );
        let said = trace.device(DeviceKind::Message);
        let said = said
            .iter()
            .find(|m| m.0 == id && m.2.starts_with("segments"));
        assert_eq!(said.unwrap().2, "segments: 66+3 80+8 72+1");
    }
}

#[test]
fn what_is_wrong_is_refused_and_nothing_is_zeroed() {
    let serve = Serve::start("", &[]);
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(d.write(0, &[7; 4096]), 0);
    let over = d.config(36, 4);
    let over = u32::from_le_bytes(over.try_into().unwrap()) + 1;
    for (kind, zones, status) in [
        (DISCARD, vec![(0, 1, UNMAP)], 2),
        (DISCARD, vec![(0, 1, 0), (1, 1, 2)], 2),
        (WRITE_ZEROES, vec![(0, 1, 2)], 2),
        (WRITE_ZEROES, vec![(0, 1, 1 << 31 | UNMAP)], 2),
        (WRITE_ZEROES, vec![(0, 1, 0), (SECTORS - 1, 2, 0)], 1),
        (WRITE_ZEROES, vec![(u64::MAX, 1, 0)], 1),
        (DISCARD, vec![(0, over, 0)], 1),
        (DISCARD, vec![(0, 1, 0); 17], 1),
        (DISCARD, vec![], 1),
    ] {
        assert_eq!(d.zero(kind, &zones), status, "type {kind}, {zones:?}");
    }
    // Part of a segment.
    let head = d.submit(0, 0, DISCARD, 0, 20);
    d.kick(0);
    assert_eq!(d.finish(0, 0, head), 1);
    assert_eq!(d.read(0, 4096), (0, vec![7; 4096]));
    drop(d);
    serve.end().assert_paired();

    for args in [&["--discard", "off"], &["--read-only", "--queues=1"]] {
        let serve = Serve::start("", args);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.features >> 13 & 3, 0, "not offered");
        let status = if args[0] == "--discard" { 2 } else { 1 };
        assert_eq!(d.zero(WRITE_ZEROES, &[(0, 1, 0)]), status);
        drop(d);
        serve.end();
    }
}

#[test]
fn a_sparse_image_stays_sparse() {
    let args = ["--image", "img", "--size", "16MiB"];
    let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &args);
    let used = || std::fs::metadata(serve.path("img")).unwrap().blocks() * 512;
    let mut d = Driver::connect(serve.data(), 1);
    assert_eq!(used(), 0);
    for n in 0..32 {
        assert_eq!(d.write(2048 + n * 64, &[7; 32768]), 0);
    }
    assert!(used() >= 1 << 20);
    assert_eq!(d.zero(DISCARD, &[(2048, 1024, 0)]), 0);
    assert!(used() < 1 << 20, "{}", used());
    assert_eq!(d.zero(WRITE_ZEROES, &[(3072, 1024, UNMAP)]), 0);
    assert!(used() <= 64 << 10, "{}", used());
    drop(d);
    serve.end();
}

#[test]
fn written_through_it_is_durable_without_a_flush() {
    for (cache, want) in [("on", 7), ("off", 0)] {
        let args = ["--image", "img", "--size", "16MiB", "--volatile-cache"];
        let args = [&args[..], &["--write-cache", cache]].concat();
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), "", &args);
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.write(0, &[7; 4096]), 0);
        let head = d.submit(0, 0, FLUSH, 0, 0);
        d.kick(0);
        assert_eq!(d.finish(0, 0, head), 0);
        assert_eq!(d.zero(WRITE_ZEROES, &[(0, 8, 0)]), 0);
        // SIGKILL is a power cut.
        let dir = serve.kill();
        assert_eq!(
            std::fs::read(dir.path().join("img")).unwrap()[..4096],
            [want; 4096]
        );
    }
}

#[test]
fn rules_fail_drop_tear_and_hold_them() {
    let scenario = r#"
version = 1
[[fault]]
name = "failed"
when = { op = "discard", lba = "100+1" }
action = { status = "ioerr" }
[[fault]]
name = "dropped"
when = { op = "write-zeroes", lba = "200+1" }
action = { drop = true }
[[fault]]
name = "torn"
when = { op = "write-zeroes", lba = "300+1" }
action = { torn = { first = 2 } }
[[fault]]
name = "late"
when = { op = "discard", size = 1536 }
action = { delay = "1ms" }
[[fault]]
name = "held"
when = { op = "write-zeroes", lba = "400+8" }
action = { hold = true }
"#;
    let serve = Serve::start(scenario, &[]);
    let mut d = Driver::connect(serve.data(), 1);
    let mut m = Driver::connect(serve.mark(), 1);
    assert_eq!(d.write(96, &vec![7; 400 * 512 / 8]), 0);
    for at in [200, 300, 400] {
        assert_eq!(d.write(at, &[7; 4096]), 0);
    }
    assert_eq!(d.zero(DISCARD, &[(96, 8, 0)]), 1);
    assert_eq!(d.read(96, 4096).1, [7; 4096]);
    assert_eq!(d.zero(WRITE_ZEROES, &[(200, 8, 0)]), 0);
    assert_eq!(d.read(200, 4096).1, [7; 4096]);
    assert_eq!(d.zero(WRITE_ZEROES, &[(300, 8, 0)]), 0);
    let torn = d.read(300, 4096).1;
    assert_eq!(
        (&torn[..1024], &torn[1024..]),
        (&[0; 1024][..], &[7; 3072][..])
    );
    assert_eq!(d.zero(DISCARD, &[(104, 3, 0)]), 0);
    assert_eq!(d.read(104, 1536).1, [0; 1536]);
    let mut raw = 404u64.to_le_bytes().to_vec();
    raw.extend(1u32.to_le_bytes());
    raw.extend(0u32.to_le_bytes());
    d.poke(d.slot(0, 5) + 0x1000, &raw);
    let head = d.submit(0, 5, WRITE_ZEROES, 0, 16);
    d.kick(0);
    assert_eq!(m.mark("wait held=1"), 0);
    assert_eq!(d.read(404, 512).1, [7; 512]);
    assert_eq!(m.mark("release rule=held"), 0);
    assert_eq!(d.finish(0, 5, head), 0);
    assert_eq!(d.read(404, 512).1, [0; 512]);
    drop((d, m));
    let trace = serve.end();
    trace.assert_paired();
    let failed = trace.completes();
    assert_eq!(
        failed
            .iter()
            .filter(|c| c.1.status == Status::IOERR)
            .count(),
        1
    );
}

#[test]
fn a_torn_one_of_several_segments_counts_from_the_lowest_sector() {
    let mut inside = Inside::start(1, Vec::new(), false, |request| {
        (request.op == Op::WriteZeroes).then(|| Plan {
            data: Some(DataFault::Torn(vec![(1, 4)])),
            ..Plan::default()
        })
    });
    let mut d = inside.data(1);
    assert_eq!(d.write(0, &[7; 8192]), 0);
    assert_eq!(d.zero(WRITE_ZEROES, &[(8, 4, 0), (4, 2, 0)]), 0);
    // Sectors 5 to 8 of the disk: one of each segment.
    let (_, bytes) = d.read(0, 8192);
    let zeroed: Vec<usize> = (0..16).filter(|n| bytes[n * 512] == 0).collect();
    assert_eq!(zeroed, [5, 8]);
    drop(d);
    inside.end();
}
