// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The mark disk: its layout, the barrier, waits that hold up nobody.

mod common;

use std::time::{Duration, Instant};

use common::driver::*;
use common::serve::Serve;
use wtblk::trace::event::DeviceKind;

const SCENARIO: &str = r#"
version = 1
[[fault]]
name = "late"
when = { op = "write", lba = "3000+2000" }
action = { hold = true }
"#;

#[test]
fn the_layout() {
    let serve = Serve::start("", &[]);
    let mut mark = Driver::connect(serve.mark(), 1);
    assert_eq!(mark.features & F_FLUSH, 0, "no cache to flush");
    assert_eq!(mark.config(0, 8), 4096u64.to_le_bytes());
    let head = mark.submit(0, 2, GET_ID, 0, 20);
    mark.kick(0);
    assert_eq!(mark.finish(0, 2, head), 0);
    assert_eq!(&mark.peek(mark.slot(0, 2) + 0x1000, 11), b"wtblk-mark\0");
    assert_eq!(mark.mark("boot"), 0);
    assert_eq!(
        mark.read(0, 4096),
        (0, vec![0; 4096]),
        "marks are not read back"
    );
    assert_eq!(mark.mark("note text=two%20words"), 0);
    let state = mark.state();
    assert!(state.starts_with("wtblk/1 state seq="), "{state}");
    assert!(
        state.ends_with(" held=0 inflight=0 wait=none rules=\n"),
        "{state}"
    );
    // A part of the state page, and what lies behind it.
    assert_eq!(mark.read(2049, 1024), (0, vec![0; 1024]));
    assert_eq!(mark.read(4095, 512), (0, vec![0; 512]));
    assert_eq!(mark.read(4096, 512).0, 1);
    drop(mark);
    let marks = serve.end().marks();
    let lines: Vec<&str> = marks.iter().map(|m| m.1.as_str()).collect();
    assert_eq!(lines, ["wtblk/1 boot", "wtblk/1 note text=two%20words"]);
}

#[test]
fn bad_marks_are_refused_and_unordered_ones_told() {
    let serve = Serve::start("", &[]);
    let mut mark = Driver::connect(serve.mark(), 1);
    assert_eq!(mark.mark("dance"), 1);
    assert_eq!(mark.write(0, &[b'x'; 512]), 1);
    assert_eq!(mark.write(0, &[0xff; 65536 - 4096]), 1);
    assert_eq!(
        mark.write(128, b"wtblk/1 boot\n"),
        1,
        "half a sector, outside"
    );
    assert_eq!(
        mark.write(2048, &[0; 512]),
        1,
        "the state page is no mark area"
    );
    // As the page cache writes it: a page, most of it padding.
    let mut page = b"wtblk/1 note text=cached\n".to_vec();
    page.resize(4096, 0);
    assert_eq!(mark.write(0, &page), 0);
    page.truncate(512);
    assert_eq!(mark.write(8, &page), 0);
    assert_eq!(mark.mark("note text=direct"), 0);
    drop(mark);
    let trace = serve.end();
    assert_eq!(trace.device(DeviceKind::BadMark).len(), 5);
    let ordered: Vec<bool> = trace.marks().iter().map(|m| m.2).collect();
    assert_eq!(ordered, [false, false, true]);
}

#[test]
fn what_was_available_before_a_mark_is_numbered_before_it() {
    let serve = Serve::start("", &["--queues", "3"]);
    let mut data = Driver::connect(serve.data(), 3);
    let mut mark = Driver::connect(serve.mark(), 1);
    let rounds = 50u64;
    for round in 0..rounds {
        let mut heads = Vec::new();
        for queue in 0..3 {
            for n in 0..4 {
                // Made available and not kicked: only the barrier makes the device look.
                let sector = round * 100 + queue as u64 * 10 + n;
                heads.push((queue, data.submit(queue, n, OUT, sector, 512)));
            }
        }
        assert_eq!(mark.mark(&format!("note text={round}")), 0);
        for queue in 0..3 {
            data.force_kick(queue);
        }
        for (queue, head) in heads {
            data.wait(queue, head);
        }
        for queue in 0..3 {
            data.queues[queue].forget();
        }
        mark.queues[0].forget();
    }
    drop((data, mark));
    let trace = serve.end();
    trace.assert_paired();
    let marks = trace.marks();
    let submits = trace.submits();
    assert_eq!(submits.len() as u64, rounds * 12);
    for (seq, submit) in submits {
        let round = (submit.sector / 100) as usize;
        assert!(
            seq < marks[round].0,
            "{submit:?} was numbered after its mark"
        );
        assert!(round == 0 || seq > marks[round - 1].0);
    }
}

#[test]
fn a_wait_delays_no_other_mark() {
    let serve = Serve::start(SCENARIO, &[]);
    let mut data = Driver::connect(serve.data(), 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    let begin = Instant::now();
    let never = mark.post_mark(2, "wait held=7");
    let soon = mark.post_mark(3, "wait held=1");
    for i in 0..10 {
        assert_eq!(mark.mark(&format!("note text={i}")), 0);
    }
    assert!(!mark.is_done(0, never) && !mark.is_done(0, soon));
    assert!(begin.elapsed() < Duration::from_secs(4));
    let held = data.submit(0, 0, OUT, 3000, 512);
    data.kick(0);
    assert_eq!(mark.finish(0, 3, soon), 0);
    assert!(mark.state().contains("held=1 inflight=1 wait=ok"));
    assert!(!mark.is_done(0, never));
    assert_eq!(mark.finish(0, 2, never), 0);
    let waited = begin.elapsed();
    assert!(
        waited >= Duration::from_millis(4900) && waited < Duration::from_secs(9),
        "{waited:?}"
    );
    assert!(mark.state().contains("wait=not-yet"));
    // A wait that is under way when everything ends.
    mark.post_mark(4, "wait held=9");
    assert_eq!(mark.mark("release"), 0);
    assert_eq!(data.finish(0, 0, held), 0);
    drop((data, mark));
    let trace = serve.end();
    trace.assert_paired();
    let waits: Vec<_> = trace
        .device(DeviceKind::Wait)
        .iter()
        .map(|w| (w.0, w.1))
        .collect();
    assert_eq!(waits, [(1, 1), (0, 1), (0, 0)]);
}

/// The verbs about states, from inside the guest: moved, waited for, refused where no rule knows them.
#[test]
fn states_are_moved_and_waited_for_by_marks() {
    let scenario = "version = 1\n\
        [[fault]]\nname = \"one\"\nwhen = { op = \"write\", state = \"armed\" }\n\
        action = { status = \"ioerr\" }\ntimes = 1\ngoto = \"fired\"\n";
    let serve = Serve::start(scenario, &[]);
    let mut data = Driver::connect(serve.data(), 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    assert_eq!(data.write(0, &[1; 512]), 0, "not armed yet");
    assert_eq!(mark.mark("set-state state=nowhere"), 1);
    assert_eq!(mark.mark("wait state=nowhere"), 1);
    assert_eq!(mark.mark("wait rule=nobody fired=1"), 1);
    assert_eq!(mark.mark("set-state state=armed"), 0);
    assert_eq!(mark.mark("wait state=armed"), 0);
    assert!(mark.state().contains("wait=ok"), "{}", mark.state());
    // Both wait before it happens.
    let fired = mark.post_mark(2, "wait rule=one fired=1");
    let state = mark.post_mark(3, "wait state=fired");
    assert_eq!(data.write(0, &[1; 512]), 1);
    for (slot, head) in [(2, fired), (3, state)] {
        assert_eq!(mark.finish(0, slot, head), 0);
    }
    assert!(mark.state().contains("wait=ok"), "{}", mark.state());
    drop((data, mark));
    serve.end().assert_paired();
}
