// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `serialised`.

use wtblk_shared::mark::{Change, FileMark};

use super::builder::*;

/// What is done beside the call.
#[derive(Clone, Copy)]
struct Deed {
    kind: &'static str,
    off: u64,
    len: u64,
}

const TRUNCATE: Deed = Deed {
    kind: "truncate",
    off: 0,
    len: 0,
};

fn begin(s: &mut Stream, deed: Deed) {
    s.file(FileMark::ChangeBegin(Change {
        change: 1,
        dev: 8,
        ino: 1,
        off: deed.off,
        len: deed.len,
        kind: deed.kind.into(),
    }));
}

fn end(s: &mut Stream, result: Option<i64>) {
    s.file(FileMark::ChangeEnd { change: 1, result });
}

/// A call of blocks 4 and 5 whose write is in flight before the deed begins and, if it does not
/// wait, after it has ended.
fn beside(s: &mut Stream, deed: Deed, waits: bool, result: Option<i64>) {
    let c = call(1, 4 * B, 2 * B);
    s.begin(&c);
    let d = s.write(1, DISK + 4 * B, 2 * B);
    begin(s, deed);
    if !waits {
        end(s, result);
    }
    s.ok(d);
    if waits {
        end(s, result);
    }
    s.end(&c, 2 * B as i64);
}

fn judged(deed: Deed, waits: bool, result: Option<i64>) -> Stream {
    let mut s = Stream::files_marked();
    beside(&mut s, deed, waits, result);
    s
}

#[test]
fn who_takes_blocks_away_waits() {
    let punch = |off, len| Deed {
        kind: "punch",
        off,
        len,
    };
    let truncate = |off| Deed { off, ..TRUNCATE };
    for deed in [TRUNCATE, truncate(5 * B), punch(0, 64 * B), punch(5 * B, B)] {
        judged(deed, true, Some(0)).held("serialised", 1).silent();
        let f = judged(deed, false, Some(0)).broken("serialised", &[]);
        assert!(f.happened.contains("did not wait for request"), "{f:?}");
    }
    // Not its blocks, or not whole ones; other changes; what failed or does not say.
    for deed in [
        truncate(6 * B),
        truncate(5 * B + 1),
        punch(0, 4 * B),
        punch(4 * B + 1, 2 * B - 2),
        punch(6 * B, B),
        Deed {
            kind: "write",
            ..TRUNCATE
        },
    ] {
        judged(deed, false, Some(0)).silent();
        assert_nothing(&judged(deed, false, Some(0)));
    }
    judged(TRUNCATE, false, Some(-5))
        .held("serialised", 1)
        .silent();
    judged(TRUNCATE, false, None).held("serialised", 1).silent();
}

fn assert_nothing(s: &Stream) {
    use super::super::verdict::Verdict;
    let of = s.of("serialised");
    assert!(
        !matches!(of.verdict, Verdict::Held { .. } | Verdict::Broken { .. }),
        "{of:?}"
    );
}

#[test]
fn a_write_that_came_after_the_begin_may_be_of_new_blocks() {
    let mut s = Stream::files_marked();
    let c = call(1, 0, B);
    s.begin(&c);
    begin(&mut s, TRUNCATE);
    let d = s.write(1, DISK, B);
    end(&mut s, Some(0));
    s.ok(d);
    s.end(&c, B as i64);
    s.silent();
    assert_nothing(&s);
}

#[test]
fn another_file_is_another_matter() {
    let mut s = Stream::files_marked();
    let mut c = call(1, 0, B);
    c.ino = 2;
    s.begin(&c);
    let d = s.write(1, DISK, B);
    begin(&mut s, TRUNCATE);
    end(&mut s, Some(0));
    s.ok(d);
    s.end(&c, B as i64);
    s.silent();
    assert_nothing(&s);
}

/// A call with a freeze: what happens, in this order.
fn frozen(steps: &str, dev: u64) -> Stream {
    let mut s = Stream::files_marked();
    let c = call(1, 0, B);
    let mut d = 0;
    for step in steps.split(' ') {
        match step {
            "call" => drop(s.begin(&c)),
            "write" => d = s.write(1, DISK, B),
            "ok" => drop(s.ok(d)),
            "end" => drop(s.end(&c, B as i64)),
            "freezing" => drop(s.file(FileMark::Freezing { dev })),
            "frozen" => drop(s.file(FileMark::Frozen { dev })),
            "thawing" => drop(s.file(FileMark::Thawing { dev })),
            "gap" => s.gap(1),
            other => panic!("{other}"),
        }
    }
    s
}

#[test]
fn a_freeze_waits_and_what_is_frozen_stays() {
    for waits in [
        "call write freezing ok frozen end thawing",
        "call write freezing ok end frozen thawing",
        "call write freezing ok end",
        "freezing frozen call thawing write ok end",
    ] {
        frozen(waits, 8).held("serialised", 1).silent();
    }
    for passed in [
        "call write freezing frozen ok end thawing",
        "call write freezing frozen thawing ok end",
        "call write freezing frozen end ok",
        "freezing frozen call write ok end thawing",
        "call freezing frozen write thawing ok end",
        "call freezing frozen write ok end",
    ] {
        let f = frozen(passed, 8).broken("serialised", &["sync-return"]);
        assert!(f.happened.contains("the freeze did not wait"), "{f:?}");
        // Another file system.
        let s = frozen(passed, 9);
        assert_nothing(&s);
    }
    for apart in [
        "freezing frozen thawing call write ok end",
        "call write ok end freezing frozen thawing",
        // It failed, and nobody was told that it had not.
        "freezing call write ok end",
    ] {
        let s = frozen(apart, 8);
        s.silent();
        assert_nothing(&s);
    }
}

#[test]
fn nothing_is_concluded_across_a_gap() {
    // The thaw may be what is missing.
    let s = frozen("freezing frozen gap call write ok end", 8);
    s.silent();
    assert_nothing(&s);
}

#[test]
fn a_guest_that_does_not_tell_all_is_not_believed() {
    let mut s = Stream::booted();
    beside(&mut s, TRUNCATE, false, Some(0));
    s.not_checked("serialised", "the guest does not say that it marks all");
}
