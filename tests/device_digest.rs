// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the trace tells of the requests' data: digests when taken and when
//! completed, what changed in between, and contents where they are asked for.

mod common;

use common::driver::*;
use common::serve::{Serve, Trace};
use wtblk::trace::change::Change;
use wtblk::trace::event::{Body, DataEvent, DataKind, DeviceKind, Op};

const PAGE: usize = 4096;
/// Every write is held until the mark `release`; those at sector 800 fail.
const HOLD: &str = r#"
version = 1
[[fault]]
name = "h"
when = { op = "write" }
action = { hold = true }
"#;
const FAIL: &str = r#"
version = 1
[[fault]]
name = "f"
when = { op = "write", lba = "800+8" }
action = { status = "ioerr" }
[[fault]]
name = "torn"
when = { op = "write", lba = "1600+8" }
action = { torn = { sectors = ["2+2"] } }
"#;
/// A call over blocks 0 and 1 of a file that lies at sector 800.
const BEGIN: &str = "begin call=1 test=t dev=1 ino=1 open=1 off=0 len=8192 flags=writethrough \
                     isize=65536 bsize=4096 tag=3 ext=0:409600:8192:0";
const END: &str = "end call=1 result=8192 isize=65536 ext=0:409600:8192:0";

fn pattern(salt: u8) -> Vec<u8> {
    (0..PAGE).map(|i| (i / 3) as u8 ^ salt).collect()
}

/// Submits a write that is held, changes its bytes meanwhile, releases it.
fn held_write(d: &mut Driver, m: &mut Driver, sector: u64, change: &[(u64, &[u8])]) {
    m.mark("arm");
    let at = d.slot(0, 0) + 0x1000;
    d.poke(at, &pattern(1));
    let head = d.submit(0, 0, OUT, sector, PAGE as u32);
    d.kick(0);
    m.mark("wait held=1");
    for (offset, bytes) in change {
        d.poke(at + offset, bytes);
    }
    m.mark("release");
    assert_eq!(d.finish(0, 0, head), 0);
}

fn data(trace: &Trace) -> Vec<DataEvent> {
    let pick = |e: &wtblk::trace::event::Event| match &e.body {
        Body::Data(d) => Some(d.clone()),
        _ => None,
    };
    trace.0.iter().filter_map(pick).collect()
}

/// Digests of each write: when taken, when completed.
fn digests(trace: &Trace) -> Vec<(u64, u64)> {
    let completes = trace.completes();
    let of = |id: u64| completes.iter().find(|c| c.1.request == id);
    let writes = trace.submits().into_iter().filter(|s| s.1.op == Op::Write);
    writes
        .map(|(id, s)| (s.digest, of(id).map_or(0, |c| c.1.digest)))
        .collect()
}

#[test]
fn a_change_in_flight_is_seen_and_late_data_is_still_what_is_stored() {
    let serve = Serve::start(HOLD, &[]);
    let (mut d, mut m) = (
        Driver::connect(serve.data(), 1),
        Driver::connect(serve.mark(), 1),
    );
    // Before the call: nobody asks.
    held_write(&mut d, &mut m, 800, &[]);
    assert_eq!(m.mark(BEGIN), 0);
    held_write(&mut d, &mut m, 808, &[]);
    held_write(&mut d, &mut m, 800, &[(700, b"xy"), (4095, b"z")]);
    let mut want = pattern(1);
    want[700..702].copy_from_slice(b"xy");
    want[4095] = b'z';
    assert_eq!(d.read(800, PAGE), (0, want.clone()));
    // Neither its tag nor its blocks.
    held_write(&mut d, &mut m, 1600, &[(0, b"a")]);
    assert_eq!(m.mark(END), 0);
    held_write(&mut d, &mut m, 800, &[(0, b"a")]);
    let trace = serve.end();
    let [before, same, changed, elsewhere, after] = digests(&trace)[..] else {
        panic!("{:?}", digests(&trace));
    };
    assert_eq!([before, elsewhere, after], [(0, 0); 3]);
    assert_ne!(same.0, 0);
    assert_eq!(same.0, same.1);
    assert_eq!(changed.0, same.0, "the same bytes, the same digest");
    assert!(changed.1 != 0 && changed.1 != changed.0);
    assert_eq!(changed.1, twox_hash::XxHash3_64::oneshot(&want));
    let events = trace.device(DeviceKind::Changed);
    let [(request, bytes, text)] = &events[..] else {
        panic!("{events:?}");
    };
    let change = Change::parse(text).unwrap();
    assert_eq!(change.ranges, [(700, 2), (4095, 1)]);
    let old = pattern(1);
    assert_eq!(
        change.taken,
        format!("{:02x}{:02x}{:02x}", old[700], old[701], old[4095])
    );
    assert_eq!((change.found.as_str(), *bytes), ("78797a", 3));
    // It is told before the completion that it belongs to.
    let place = |what: &dyn Fn(&Body) -> bool| trace.0.iter().position(|e| what(&e.body)).unwrap();
    let told = place(&|b| matches!(b, Body::Device(e) if e.kind == DeviceKind::Changed));
    let done = place(&|b| matches!(b, Body::Complete(c) if c.request == *request));
    assert!(told < done);
    // Digests of the sectors of both writes of the call.
    let sectors = data(&trace);
    assert_eq!(sectors.len(), 2);
    assert!(sectors.iter().all(|s| s.kind == DataKind::Digests));
    let want: Vec<u8> = old
        .chunks(512)
        .flat_map(|s| twox_hash::XxHash3_64::oneshot(s).to_le_bytes())
        .collect();
    assert_eq!(sectors[1].bytes, want);
    assert_eq!((sectors[0].sector, sectors[1].sector), (808, 800));
}

#[test]
fn without_room_for_copies_the_sectors_are_told_and_all_means_all() {
    let serve = Serve::start(HOLD, &["--digest-memory", "100"]);
    let (mut d, mut m) = (
        Driver::connect(serve.data(), 1),
        Driver::connect(serve.mark(), 1),
    );
    assert_eq!(m.mark(BEGIN), 0);
    held_write(&mut d, &mut m, 800, &[(700, b"xy")]);
    held_write(&mut d, &mut m, 808, &[]);
    let trace = serve.end();
    let change = Change::parse(&trace.device(DeviceKind::Changed)[0].2).unwrap();
    assert_eq!(
        (change.ranges.as_slice(), change.exact),
        (&[(512, 512)][..], false)
    );
    let said = trace.device(DeviceKind::Limit);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].2.contains("copies of data"), "{said:?}");

    for (of, some) in [("all", true), ("off", false)] {
        let serve = Serve::start("", &["--digest", of]);
        let (mut d, mut m) = (
            Driver::connect(serve.data(), 1),
            Driver::connect(serve.mark(), 1),
        );
        assert_eq!(m.mark(BEGIN), 0);
        d.write(1600, &pattern(1));
        d.write(800, &pattern(1));
        let (_, read) = d.read(800, PAGE);
        let trace = serve.end();
        for (taken, found) in digests(&trace) {
            assert_eq!((taken != 0, found == taken), (some, true), "{of}");
        }
        let (id, read_submit) = trace.submits().pop().unwrap();
        assert_eq!((read_submit.op, read_submit.digest), (Op::Read, 0));
        let done = trace
            .completes()
            .into_iter()
            .find(|c| c.1.request == id)
            .unwrap();
        let want = twox_hash::XxHash3_64::oneshot(&read);
        assert_eq!(done.1.digest, if some { want } else { 0 });
        let begin = &trace.device(DeviceKind::Begin)[0].2;
        let begin: serde_json::Value = serde_json::from_str(begin).unwrap();
        assert_eq!(begin["digest"]["of"], of);
        assert_eq!(begin["digest"]["algorithm"], "xxh3-64");
    }
}

#[test]
fn contents_are_what_was_stored_read_or_lost() {
    let run = |of: &str, more: &[&str]| {
        let serve = Serve::start(FAIL, &[&["--trace-data", of], more].concat());
        let mut d = Driver::connect(serve.data(), 1);
        assert_eq!(d.write(8, &pattern(1)), 0);
        assert_eq!(d.write(800, &pattern(2)), 1);
        assert_eq!(d.write(1600, &pattern(3)), 0);
        assert_eq!(d.read(8, PAGE).0, 0);
        serve.end()
    };
    let short = |trace: &Trace| -> Vec<_> {
        let first = |d: DataEvent| (d.kind, d.sector, d.bytes);
        data(trace).into_iter().map(first).collect()
    };
    let stored = (DataKind::Stored, 8, pattern(1));
    let lost = (DataKind::Failed, 800, pattern(2));
    // Torn: only what reached the disk.
    let torn = (DataKind::Stored, 1602, pattern(3)[1024..2048].to_vec());
    let read = (DataKind::Read, 8, pattern(1));
    assert_eq!(short(&run("none", &[])), []);
    assert_eq!(short(&run("failing", &[])), std::slice::from_ref(&lost));
    assert_eq!(
        short(&run("writes", &[])),
        [stored.clone(), lost.clone(), torn.clone()]
    );
    let all = run("all", &[]);
    assert_eq!(
        short(&all),
        [stored.clone(), lost.clone(), torn.clone(), read]
    );
    all.assert_paired();
    // A limit: who found no room says so, and the reason is said once.
    let few = run("all", &["--trace-data-limit", "5000"]);
    let empty = |kind, sector| (kind, sector, Vec::new());
    assert_eq!(
        short(&few),
        [
            stored,
            empty(DataKind::Failed, 800),
            (torn.0, torn.1, Vec::new()),
            empty(DataKind::Read, 8)
        ]
    );
    assert_eq!(few.device(DeviceKind::Limit).len(), 1);
}
