// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What survivors of the mutation run asked for: causes, facts and bounds, one step on either side of them.

use wtblk_shared::mark::{CallBegin, CallEnd, FileMark, Mark};

use super::super::Verifier;
use super::super::contract::{Contract, OnFailedWrite};
use super::builder::*;
use crate::trace::change::Change;
use crate::trace::event::{DeviceKind, Op};

fn count(s: &Stream, promise: &str) -> usize {
    let v = s.verdicts();
    v.findings().filter(|f| f.promise == promise).count()
}

fn dsync(number: u64) -> CallBegin {
    CallBegin {
        flags: vec!["writethrough".into(), "dsync".into()],
        ..call(number, 0, B)
    }
}

/// A call that returns EIO although all of it went well.
fn eio(s: &mut Stream, c: &CallBegin) {
    s.begin(c);
    let w = s.write(c.tag.unwrap(), DISK, B);
    s.ok(w);
    s.end(c, -5);
}

/// Only what is in the table may have failed: an unknown completion is no cause, and takes none away.
#[test]
fn the_end_of_a_request_that_nobody_knows_changes_no_cause() {
    let mut s = Stream::booted();
    s.fail(1 << 40);
    eio(&mut s, &call(1, 0, B));
    s.broken("error-report", &[]);
    let mut s = Stream::booted();
    s.stray(LOG, B);
    s.device(DeviceKind::QueueStop, 0, 0, "");
    s.epoch += 1;
    s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
    s.ok(1 << 40);
    eio(&mut s, &call(1, 0, B));
    s.silent();
}

/// What failed after its call's end is that call's, as data; what went well then is nobody's failure.
#[test]
fn a_late_failure_is_its_calls_and_a_late_success_none() {
    let late = |fails: bool, stray_fails: bool| {
        let mut s = Stream::booted();
        let c = call(1, 0, B);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        s.end(&c, if fails { -5 } else { B as i64 });
        let _ = if fails { s.fail(w) } else { s.ok(w) };
        if stray_fails {
            let w = s.stray(LOG, 512);
            s.fail(w);
        }
        s
    };
    let mut s = late(true, false);
    eio(&mut s, &call(2, 0, B));
    assert_eq!(count(&s, "error-report"), 1);
    let mut s = late(false, true);
    eio(&mut s, &call(2, 0, B));
    assert_eq!(count(&s, "error-report"), 0);
    // It may be what a later DSYNC call of the file returns.
    let mut s = late(true, false);
    eio(&mut s, &dsync(2));
    assert_eq!(count(&s, "error-report"), 0);
    let mut s = late(false, false);
    eio(&mut s, &dsync(2));
    assert_eq!(count(&s, "error-report"), 1);
}

/// A failed call that is remembered no more may be the cause of any DSYNC call's error; one that did not
/// fail is none.
#[test]
fn failures_that_were_forgotten_still_excuse() {
    for fails in [true, false] {
        let mut s = Stream::booted();
        let c = call(1, 0, B);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        if fails {
            s.fail(w);
            s.end(&c, -5);
        } else {
            s.ok(w);
            s.end(&c, B as i64);
        }
        for n in 2..1040 {
            let c = CallBegin {
                ino: 2,
                ..call(n, 8 * B, 0)
            };
            s.run(&c, &[]);
        }
        eio(&mut s, &dsync(2000));
        assert_eq!(count(&s, "error-report"), usize::from(!fails));
    }
}

/// A short copy of nothing counts no block whose request failed; nor does an error.
#[test]
fn a_result_that_counts_nothing_is_no_odd_count() {
    for (off, result) in [(0, -5), (0, 0), (700, 0), (700, -5)] {
        let mut s = Stream::booted();
        let c = call(1, off, B);
        s.begin(&c);
        let w = s.write(1, DISK, 2 * B);
        s.fail(w);
        s.end(&c, result);
        assert_eq!(s.of("error-report").observations.len(), 0, "{off} {result}");
    }
}

/// Without extents a failed request may have been the call's data.
#[test]
fn success_over_a_failed_request_of_unknown_place_is_not_held() {
    let mut s = Stream::booted();
    let c = CallBegin {
        extents: None,
        ..call(1, 0, B)
    };
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.fail(w);
    s.end(&c, B as i64);
    s.not_checked("error-report", "extents unknown");
}

/// The call is the file's, whoever wrote the same offset of another one later.
#[test]
fn a_stale_read_names_the_last_call_of_its_file_there() {
    let mut s = Stream::files_marked();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.run(&call(2, 8 * B, B), &[(DISK + 8 * B, B)]);
    let other = CallBegin {
        ino: 2,
        extents: Some(vec![ext(0, DISK + (100 << 20), B)]),
        ..call(3, 0, B)
    };
    s.run(&other, &[(DISK + (100 << 20), B)]);
    s.file(FileMark::Stale {
        dev: 8,
        ino: 1,
        off: 0,
        sector: 7,
    });
    assert_eq!(s.broken("data", &[]).call.unwrap().call, 1);
}

fn tag_probe(number: u64) -> CallBegin {
    let mut c = call(number, 0, B);
    c.flags.push("probe-tag".into());
    c
}

/// Other calls come, go and are lost while a probe of the tag runs: it still sees what comes untagged. A
/// request with a tag that nobody has is no untagged one.
#[test]
fn a_probe_of_the_tag_is_followed_to_its_own_end() {
    let beside: [fn(&mut Stream); 3] = [
        |_| {},
        |s| {
            s.run(&call(5, 64 * B, 0), &[]);
        },
        |s| {
            s.begin(&call(5, 64 * B, B));
            s.begin(&call(5, 64 * B, B));
        },
    ];
    for other in beside {
        let mut s = Stream::booted();
        s.begin(&tag_probe(10));
        other(&mut s);
        let w = s.stray(DISK, B);
        s.ok(w);
        s.end(&tag_probe(10), B as i64);
        s.run(&call(1, 0, B), &[(DISK, B)]);
        s.silent();
        let v = s.of("cover");
        let told = "tags are inexact: the probe call's request came without its tag";
        assert!(v.not_checked.contains_key(told), "{v:#?}");
    }
    let mut s = Stream::booted();
    s.begin(&tag_probe(10));
    for tag in [10, 77] {
        let w = s.write(tag, DISK, B);
        s.ok(w);
    }
    s.end(&tag_probe(10), B as i64);
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.held("cover", 1);
}

/// A probe whose own marks are not in order has shown nothing.
#[test]
fn a_probe_of_the_tag_with_an_obstacle_shows_nothing() {
    for obstructed in [false, true] {
        let mut s = Stream::bare();
        s.device(DeviceKind::QueueStart, 128, 0, "");
        s.begin(&tag_probe(10));
        if obstructed {
            s.unordered(Mark::End(CallEnd {
                call: 10,
                ..CallEnd::default()
            }));
        }
        let w = s.write(10, DISK, B);
        s.ok(w);
        s.end(&tag_probe(10), B as i64);
        s.run(&call(1, 0, B), &[(DISK, B)]);
        if obstructed {
            s.not_checked("cover", "whether tags arrive is not known");
        } else {
            s.held("cover", 1);
        }
    }
}

/// A disk with stable pages, and a call of file 1.
fn stable(direct_first: bool) -> Stream {
    let mut s = Stream::booted();
    s.env(&[("stable_writes", "1")]);
    s.mount();
    if direct_first {
        let c = CallBegin {
            flags: vec!["direct".into()],
            ..call(3000, 0, 0)
        };
        s.run(&c, &[]);
    }
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s
}

fn changes(s: &mut Stream, disk: u64, bytes: u64) {
    let w = s.stray(disk, bytes);
    let change = Change::default();
    s.change(w, &change);
    s.ok(w);
}

/// Of a write that reaches out of the file nobody has said that its pages are stable.
#[test]
fn a_write_that_begins_before_the_files_blocks_is_not_judged_for_stability() {
    for (disk, found) in [(DISK, 1), (DISK - B, 0)] {
        let mut s = stable(false);
        changes(&mut s, disk, 2 * B);
        assert_eq!(count(&s, "stable"), found);
    }
}

/// Where the table of ended calls is full, one that wrote the file with O_DIRECT may be forgotten.
#[test]
fn a_full_table_of_calls_says_nothing_of_o_direct() {
    for (more, found) in [(900, 0), (1100, 0)] {
        let mut s = stable(true);
        for n in 2..more {
            s.run(&call(n, 0, 0), &[]);
        }
        changes(&mut s, DISK, B);
        assert_eq!(count(&s, "stable"), found);
    }
    let mut s = stable(false);
    for n in 2..900 {
        s.run(&call(n, 0, 0), &[]);
    }
    changes(&mut s, DISK, B);
    assert_eq!(count(&s, "stable"), 1);
}

/// Two requests are enough to show an order.
#[test]
fn a_plug_probe_of_two_requests_shows_an_order() {
    let mut s = Stream::bare();
    s.power_on();
    s.probe_order(&[0, 1]);
    s.mark(Mark::TestBegin { name: TEST.into() });
    s.run(&call(1, 0, 2 * B), &[(DISK, B), (DISK + B, B)]);
    s.held("order", 1);
}

/// Calls whose folios may just be the same, and just not.
#[test]
fn folios_reach_so_far_and_no_further() {
    const REACH: u64 = 2 << 20;
    let twice = |number: u64, from: u64| {
        let at = DISK + from;
        (call(number, from, 2 * B), [(at, 2 * B), (at + B, B)])
    };
    for (others, from) in [(2 * B + REACH, 0), (0, B + REACH)] {
        let near = |s: &mut Stream, by: u64| {
            let others = if others == 0 { by } else { others - by };
            s.begin(&call(2, others, B));
            let (c, writes) = twice(1, from);
            s.run(&c, &writes);
        };
        let mut s = Stream::booted();
        near(&mut s, 0);
        assert_eq!(count(&s, "cover"), 1);
        let mut s = Stream::booted();
        near(&mut s, B);
        assert_eq!(count(&s, "cover"), 0);
    }
}

/// Only where the call begins beyond the end of the file is a block zeroed first, and only that of the end.
#[test]
fn a_block_sent_twice_is_the_one_of_the_old_end() {
    for (isize, len, writes, found) in [
        (100, 6000, [(0, B), (0, 2 * B)], 0),
        (2000, 6000, [(0, B), (0, 2 * B)], 1),
        (100, 10_000, [(0, 3 * B), (B, B)], 1),
    ] {
        let mut s = Stream::booted();
        let c = CallBegin {
            isize,
            ..call(1, 2000, len)
        };
        s.run(&c, &writes.map(|(at, n)| (DISK + at, n)));
        assert_eq!(count(&s, "cover"), found, "{isize} {len}");
    }
}

/// The bound of a call's requests.
#[test]
fn a_call_with_more_requests_than_are_kept_is_not_judged() {
    for (requests, why) in [(65_536, "the call failed"), (65_537, "too many requests")] {
        let mut s = Stream::booted();
        let c = call(1, 0, B);
        s.begin(&c);
        for _ in 0..requests {
            s.submit(Op::Read, ioprio(1), LOG, 512);
        }
        s.end(&c, -14);
        s.not_checked("cover", why);
    }
}

/// The bound of their parts in the file.
#[test]
fn a_call_with_more_fragments_than_are_kept_is_not_judged() {
    const PARTS: u64 = 2048;
    let parts = (0..PARTS).map(|n| ext(n * 1024, DISK + n * 512, 512));
    let c = CallBegin {
        bsize: 512,
        extents: Some(parts.collect()),
        ..call(1, 0, PARTS * 1024)
    };
    for (requests, why) in [(128, "the call failed"), (129, "too many requests")] {
        let mut s = Stream::booted();
        s.begin(&c);
        for _ in 0..requests {
            let w = s.write(1, DISK, PARTS * 512);
            s.ok(w);
        }
        s.end(&c, -14);
        s.not_checked("cover", why);
    }
}

const ERROR: OnFailedWrite = OnFailedWrite::Error;

/// A call that failed and returned this, asked by its file.
fn asked(flags: &[&str], first: i64, second: Option<i64>) -> Stream {
    let mut s = Stream::files_marked();
    for open in [101, 102] {
        s.file(FileMark::Opening { open });
        let (dev, ino) = (8, 1);
        s.file(FileMark::Open { open, dev, ino });
    }
    let c = CallBegin {
        open: 101,
        ..call(1, 0, B)
    };
    s.begin(&c);
    let w = s.write(1, DISK, B);
    s.fail(w);
    s.end(&c, first);
    if let Some(result) = second {
        let c = CallBegin {
            open: 102,
            flags: flags.iter().map(|f| (*f).to_owned()).collect(),
            ..call(2, 0, B)
        };
        s.begin(&c);
        let w = s.write(2, DISK, B);
        s.ok(w);
        s.end(&c, result);
    }
    s
}

fn sync(s: &mut Stream, open: u64, kind: &str, result: i64) {
    let (sync, kind) = (s.next, kind.to_owned());
    s.file(FileMark::SyncBegin { sync, open, kind });
    s.file(FileMark::SyncEnd { sync, result });
}

/// An error is a report by every contract, a count of 0 by some only.
#[test]
fn where_the_contract_wants_an_error_a_count_of_nothing_is_no_report() {
    for (result, found) in [(-5, 0), (0, 1)] {
        let mut s = asked(&[], result, None);
        sync(&mut s, 101, "fsync", 0);
        let contract = Contract {
            failed_write: ERROR,
            ..Contract::default()
        };
        let v = s.verdicts_by(contract);
        let ledger = v.findings().filter(|f| f.promise == "ledger").count();
        assert_eq!(ledger, found, "{v:#?}");
    }
}

/// That syncfs says nothing does not take back what fsync told.
#[test]
fn what_fsync_told_has_surfaced_whatever_syncfs_says() {
    let mut s = asked(&[], B as i64, None);
    sync(&mut s, 102, "fsync", 0);
    assert_eq!(count(&s, "ledger"), 1);
    sync(&mut s, 101, "fsync", -5);
    sync(&mut s, 102, "syncfs", 0);
    assert_eq!(count(&s, "ledger"), 0);
}

/// A DSYNC call without the flag is nobody's business.
#[test]
fn a_dsync_call_without_the_flag_is_not_judged() {
    let strict = |s: &Stream| {
        let v = s.verdicts_by(Contract::named("strict").unwrap());
        v.findings().filter(|f| f.promise == "errseq").count()
    };
    let judged = asked(&["writethrough", "dsync"], -5, Some(B as i64));
    assert_eq!(strict(&judged), 1);
    assert_eq!(strict(&asked(&["dsync"], -5, Some(B as i64))), 0);
}

/// A shutdown of the file system may be what fsync tells of.
#[test]
fn a_noted_shutdown_may_be_the_error_of_an_fsync() {
    for noted in [false, true] {
        let mut s = Stream::files_marked();
        s.file(FileMark::Opening { open: 101 });
        let (open, dev, ino) = (101, 8, 1);
        s.file(FileMark::Open { open, dev, ino });
        if noted {
            let text = "XFS (vda): Filesystem has been shut down".into();
            s.mark(Mark::Note { text });
        }
        let c = CallBegin {
            open: 101,
            ..call(1, 0, B)
        };
        s.run(&c, &[(DISK, B)]);
        sync(&mut s, 101, "fsync", -5);
        if noted {
            s.silent().not_checked("errseq", "it reported an error");
        } else {
            s.broken("errseq", &[]);
        }
    }
}

/// A queue that was stopped counts no more.
#[test]
fn who_stops_its_second_queue_has_one() {
    for stops in [true, false] {
        let mut s = Stream::booted();
        s.queue = 1;
        s.device(DeviceKind::QueueStart, 128, 1, "");
        if stops {
            s.device(DeviceKind::QueueStop, 0, 0, "");
        }
        s.queue = 0;
        s.run(&call(1, 0, 2 * B), &[(DISK, B), (DISK + B, B)]);
        if stops {
            s.held("order", 1);
        } else {
            s.not_checked("order", "more than one queue");
        }
    }
}

/// What the device offered is still offered after a boot; that no queue is known to be started says nothing.
#[test]
fn the_queues_that_the_device_offers_count_where_no_other_word_is() {
    let mut s = Stream::bare();
    s.device(DeviceKind::Begin, 0, 0, r#"{"queues":1}"#);
    s.device(DeviceKind::Features, INDIRECT, 0, "");
    s.mark(Mark::Boot);
    s.env(&[("scheduler", "none"), ("tags", "on")]);
    s.mount();
    s.probe_order(&[0, 1, 2]);
    s.mark(Mark::TestBegin { name: TEST.into() });
    s.run(&call(1, 0, 2 * B), &[(DISK, B), (DISK + B, B)]);
    s.held("order", 1);
}

/// What was otherwise only while the call ran counts, too: features, and what a probe showed.
#[test]
fn what_the_order_depends_on_may_change_and_change_back() {
    let between: [fn(&mut Stream); 3] = [
        |_| {},
        |s| {
            s.device(DeviceKind::Features, 0, 0, "");
            s.device(DeviceKind::Features, INDIRECT, 0, "");
        },
        |s| {
            s.probe_order(&[2, 1, 0]);
            s.probe_order(&[0, 1, 2]);
        },
    ];
    for (n, between) in between.into_iter().enumerate() {
        let mut s = Stream::booted();
        let c = call(1, 100 * B, 2 * B);
        s.begin(&c);
        for block in [101, 100] {
            let w = s.write(1, DISK + block * B, B);
            s.ok(w);
        }
        between(&mut s);
        s.end(&c, 2 * B as i64);
        assert_eq!(count(&s, "order"), usize::from(n == 0));
    }
}

/// Without indirect descriptors requests wait in lists, and may come long after their bio.
#[test]
fn late_arrivals_need_no_bio_after_the_error() {
    for (features, found) in [(INDIRECT, 1), (0, 0), (INDIRECT - 1, 0)] {
        let mut s = Stream::booted();
        s.device(DeviceKind::Features, features, 0, "");
        let c = call(1, 0, 8 * B);
        s.begin(&c);
        let w = s.write(1, DISK, B);
        s.fail(w);
        s.mark(Mark::ErrorSeen { call: 1 });
        for block in [2, 4, 6] {
            let w = s.write(1, DISK + block * B, B);
            s.ok(w);
        }
        s.end(&c, -5);
        assert_eq!(count(&s, "stop-after-error"), found);
    }
}

/// A new kernel begins with a table that is right, whatever was missing before.
#[test]
fn a_boot_after_a_gap_is_judged_again() {
    let mut s = Stream::booted();
    s.gap(5);
    s.power_on();
    s.mark(Mark::TestBegin { name: TEST.into() });
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.probe(1, 1);
    s.probe_state(1, 3000, 'D', 1);
    s.probe_state(1, 6000, 'D', 1);
    s.broken("progress", &[]);
}

/// A read takes no page into writeback.
#[test]
fn a_read_between_two_reports_explains_no_writeback() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, B), &[(DISK, B)]);
    s.report(1, 1);
    let r = s.submit(Op::Read, 0, DISK, B);
    s.ok(r);
    s.report(1, 1);
    s.broken("writeback-cleared", &[]);
}

/// The first event, if it is the device's begin, says by what is judged; nothing else does.
#[test]
fn a_trace_names_its_contract_in_its_first_event() {
    let mut text = serde_json::json!({});
    Contract::named("strict").unwrap().note_in(&mut text);
    let named = |kinds: &[DeviceKind]| {
        let mut s = Stream::bare();
        for kind in kinds {
            s.device(*kind, 0, 0, &text.to_string());
        }
        let mut v = Verifier::of_trace();
        s.events.iter().for_each(|e| v.event(e));
        v.finish().contract
    };
    assert_eq!(named(&[DeviceKind::Begin]), "strict");
    assert_eq!(named(&[DeviceKind::Features]), "rfc-v2");
    assert_eq!(named(&[DeviceKind::Features, DeviceKind::Begin]), "rfc-v2");
}
