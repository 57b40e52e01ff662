// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several disks in one process: one order of events, rules of their own, one power.

mod common;

use common::driver::*;
use common::serve::Serve;
use wtblk::trace::event::{DeviceKind, Op, Status};

const LOG: &str = "name=log,memory=16MiB,socket=log,queues=2";
const MORE: &str = "name=spare,image=spare.img,size=1MiB,socket=spare,logical-block=4096";

fn connect(serve: &Serve, name: &str, queues: usize) -> Driver {
    let path = serve.path(name);
    let stream = common::until("a socket that answers", || {
        std::os::unix::net::UnixStream::connect(&path).ok()
    });
    Driver::connect(stream, queues)
}

#[test]
fn each_has_its_bytes_and_all_have_one_order() {
    let serve = Serve::start("", &["--disk", LOG, "--disk", MORE]);
    let mut data = Driver::connect(serve.data(), 1);
    let mut log = connect(&serve, "log", 2);
    let mut spare = connect(&serve, "spare", 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    assert_eq!(spare.config(20, 4), 4096u32.to_le_bytes());
    let head = log.submit(1, 9, GET_ID, 0, 20);
    log.kick(1);
    log.wait(1, head);
    assert_eq!(&log.peek(log.slot(1, 9) + 0x1000, 10), b"wtblk-log\0");
    for n in 0..4u8 {
        for (at, disk) in [&mut data, &mut log, &mut spare].into_iter().enumerate() {
            assert_eq!(disk.write(8, &[n * 3 + at as u8 + 1; 4096]), 0);
        }
        assert_eq!(mark.mark(&format!("note text=round-{n}")), 0);
    }
    for (at, disk) in [&mut data, &mut log, &mut spare].into_iter().enumerate() {
        assert_eq!(disk.read(8, 4096), (0, vec![10 + at as u8; 4096]));
    }
    // What was made available before a mark is numbered before it, on every disk, kicked or not.
    let slow = log.submit(1, 1, OUT, 16, 512);
    assert_eq!(mark.mark("note text=behind"), 0);
    log.force_kick(1);
    assert_eq!(log.finish(1, 1, slow), 0);
    drop((data, log, spare, mark));
    let trace = serve.end();
    trace.assert_paired();
    let writes: Vec<(u64, u8)> = trace
        .submits()
        .iter()
        .filter(|s| s.1.op == Op::Write)
        .map(|(seq, s)| (*seq, s.disk))
        .collect();
    let disks: Vec<u8> = writes.iter().map(|w| w.1).collect();
    assert_eq!(disks, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 1]);
    let marks = trace.marks();
    for n in 0..4 {
        let next = writes.get(3 * n + 3).map_or(u64::MAX, |w| w.0);
        assert!(writes[3 * n + 2].0 < marks[n].0 && marks[n].0 < next);
    }
    assert!(
        marks[4].0 > writes[12].0,
        "the barrier is that of all disks"
    );
    let begin = &trace.device(DeviceKind::Begin)[0].2;
    let begin: serde_json::Value = serde_json::from_str(begin).unwrap();
    assert_eq!(begin["more_disks"][0]["name"], "log");
    assert_eq!(begin["more_disks"][1]["capacity_sectors"], 2048);
}

#[test]
fn rules_are_of_one_disk() {
    let scenario = r#"
version = 1
[[fault]]
name = "here"
when = { op = "write", nth = { n = 2, per = "rule" } }
action = { status = "ioerr" }
[[fault]]
name = "there"
disk = "log"
when = { op = "write", inflight = 1 }
action = { hold = true }
[[fault]]
name = "gone"
disk = "spare"
when = { op = "flush" }
action = { gone = true }
"#;
    let serve = Serve::start(scenario, &["--disk", LOG, "--disk", MORE]);
    let mut data = Driver::connect(serve.data(), 1);
    let mut log = connect(&serve, "log", 2);
    let mut spare = connect(&serve, "spare", 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    let held = log.submit(1, 1, OUT, 0, 512);
    log.kick(1);
    assert_eq!(mark.mark("wait held=1"), 0);
    // Another one in flight on its disk: the rule is about one alone.
    assert_eq!(log.write(8, &[1; 512]), 0);
    assert_eq!(data.write(0, &[1; 512]), 0);
    assert_eq!(data.write(0, &[1; 512]), 1);
    assert_eq!(spare.write(0, &[1; 4096]), 0);
    let head = spare.submit(0, 0, FLUSH, 0, 0);
    spare.kick(0);
    assert_eq!(spare.finish(0, 0, head), 1);
    assert_eq!(spare.write(0, &[1; 4096]), 1, "gone");
    assert_eq!(data.write(0, &[1; 512]), 0, "and no other disk is");
    assert!(mark.state().contains("there:1:1"), "{}", mark.state());
    assert_eq!(mark.mark("release rule=there"), 0);
    assert_eq!(log.finish(1, 1, held), 0);
    drop((data, log, spare, mark));
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.device(DeviceKind::Gone).len(), 1);
    let failed = trace.completes();
    let failed = failed.iter().filter(|c| c.1.status == Status::IOERR);
    assert_eq!(failed.count(), 3);
}

#[test]
fn the_power_is_that_of_all() {
    let scenario = r#"
version = 1
[[fault]]
name = "cut"
disk = "spare"
when = { op = "flush" }
action = { cut = true }
"#;
    let serve = Serve::start_in(
        tempfile::tempdir().unwrap(),
        scenario,
        &["--image", "img", "--size", "1MiB", "--disk", MORE],
    );
    let mut data = Driver::connect(serve.data(), 1);
    let mut spare = connect(&serve, "spare", 1);
    assert_eq!(data.write(0, &[1; 512]), 0);
    assert_eq!(spare.write(0, &[1; 4096]), 0);
    spare.submit(0, 0, FLUSH, 0, 0);
    spare.kick(0);
    let cut = || (!serve.trace().device(DeviceKind::Cut).is_empty()).then_some(());
    common::until("the cut", cut);
    let head = data.submit(0, 1, FLUSH, 0, 0);
    data.force_kick(0);
    let taken = || {
        let submits = serve.trace().submits();
        submits
            .iter()
            .any(|s| s.1.disk == 0 && s.1.op == Op::Flush)
            .then_some(())
    };
    common::until("the flush to be taken", taken);
    assert!(!data.is_done(0, head));
    let dir = serve.kill();
    let image = std::fs::read(dir.path().join("img")).unwrap();
    assert!(image.iter().all(|&b| b == 0), "nothing was flushed");
    drop((data, spare));
}

#[test]
fn one_front_end_may_go_and_others_stay() {
    let serve = Serve::start("", &["--disk", LOG]);
    let mut data = Driver::connect(serve.data(), 1);
    for round in 0..3 {
        let mut log = connect(&serve, "log", 1);
        assert_eq!(log.write(round, &[5; 512]), 0);
        drop(log);
        assert_eq!(data.write(round, &[6; 512]), 0);
    }
    drop(data);
    let trace = serve.end();
    trace.assert_paired();
    assert_eq!(trace.submits().len(), 6);
}
