// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every mark comes back, every bad one says where.

use super::*;

fn samples() -> Vec<Mark> {
    let extents = Some(vec![
        Extent {
            logical: 0,
            physical: 8192,
            length: 4096,
            flags: 0,
        },
        Extent {
            logical: 4096,
            physical: 1 << 20,
            length: 65536,
            flags: 0x800,
        },
    ]);
    vec![
        Mark::Boot,
        Mark::Env(
            [
                ("tags".to_owned(), "exact".to_owned()),
                ("why".to_owned(), "a b=c%".to_owned()),
            ]
            .into(),
        ),
        Mark::Fs {
            dev: 1,
            kind: "xfs".into(),
            bsize: 4096,
            log_start: 1 << 28,
            log_len: 64 << 20,
        },
        Mark::TestBegin { name: "t".into() },
        Mark::TestEnd { name: "t".into() },
        Mark::Begin(CallBegin {
            call: 7,
            test: "error-mid-call".into(),
            dev: 65024,
            ino: 133,
            open: 4,
            off: 4095,
            len: 70_000,
            flags: vec!["writethrough".into(), "dsync".into()],
            isize: 8 << 20,
            bsize: 4096,
            tag: Some(8183),
            pattern: Some((7, 2)),
            extents: extents.clone(),
        }),
        Mark::Begin(CallBegin {
            call: 8,
            test: "t".into(),
            bsize: 4096,
            ..Default::default()
        }),
        Mark::End(CallEnd {
            call: 7,
            result: -5,
            isize: 1,
            extents,
        }),
        Mark::End(CallEnd {
            call: 7,
            result: 5,
            isize: 1,
            extents: Some(vec![]),
        }),
        Mark::ErrorSeen { call: 7 },
        Mark::Report(PageReport {
            call: 7,
            at: "after-call".into(),
            len: 4096,
            writeback: 511,
            ..Default::default()
        }),
        Mark::ProbeBegin(ProbeBegin {
            probe: 1,
            call: 7,
            kind: "fsync".into(),
            limit_ms: 2000,
        }),
        Mark::ProbeState(ProbeState {
            probe: 1,
            waited_ms: 2001,
            state: 'D',
            switches: 3,
            wchan: "folio_wait_bit".into(),
        }),
        Mark::ProbeEnd {
            probe: 1,
            result: -5,
        },
        Mark::Note {
            text: "zwölf % of\n it".into(),
        },
        Mark::Control(Control::Release(None)),
        Mark::Control(Control::Release(Some("first write".into()))),
        Mark::Control(Control::Arm(Some("x".into()))),
        Mark::Control(Control::Disarm(None)),
        Mark::Control(Control::WaitHeld(1)),
        Mark::Control(Control::WaitState("armed".into())),
        Mark::Control(Control::WaitFired("first write".into(), 3)),
        Mark::Control(Control::SetState("a b".into())),
    ]
}

#[test]
fn every_mark_comes_back() {
    for mark in samples() {
        let block = mark.to_block(512).unwrap();
        assert_eq!(block.len() % 512, 0);
        assert_eq!(
            Mark::from_block(&block).as_ref(),
            Ok(&mark),
            "{}",
            mark.to_line()
        );
    }
}

#[test]
fn unknown_keys_are_skipped_and_missing_ones_named() {
    assert_eq!(
        Mark::from_line("wtblk/1 error-seen call=3 colour=red"),
        Ok(Mark::ErrorSeen { call: 3 })
    );
    let e = Mark::from_line("wtblk/1 error-seen").unwrap_err();
    assert!(e.what.contains("call="), "{e}");
}

#[test]
fn bad_marks_say_where() {
    for (line, at, what) in [
        ("", 0, "empty"),
        ("wtblk/2 boot", 0, "schema"),
        ("wtblk/1", 7, "no verb"),
        ("wtblk/1 dance", 8, "unknown verb"),
        ("wtblk/1 error-seen call", 19, "key=value"),
        ("wtblk/1 error-seen call=x", 19, "no number"),
        ("wtblk/1 error-seen call=1 call=2", 26, "twice"),
        ("wtblk/1 note text=%4", 13, "percent"),
        ("wtblk/1 end call=1 result=0 isize=0 ext=1:2", 36, "extent"),
        (
            "wtblk/1 end call=1 result=0 isize=0 ext=1:2:18446744073709551615:0",
            36,
            "extent",
        ),
    ] {
        let e = Mark::from_line(line).unwrap_err();
        assert_eq!(e.at, at, "{line}: {e}");
        assert!(e.what.contains(what), "{line}: {e}");
    }
    assert!(
        Mark::from_block(b"wtblk/1 boot\0\0\0")
            .unwrap_err()
            .what
            .contains("newline")
    );
    assert!(
        Mark::from_block(b"wtblk/1 boot\nx")
            .unwrap_err()
            .what
            .contains("NULs")
    );
    assert!(
        Mark::from_block(b"\xff\n")
            .unwrap_err()
            .what
            .contains("UTF-8")
    );
}

#[test]
fn a_mark_too_long_is_refused() {
    assert_eq!(
        Mark::Note {
            text: "x".repeat(MARK_MAX)
        }
        .to_block(512),
        None
    );
}

#[test]
fn a_line_of_very_many_keys_is_read_as_one_of_few() {
    let line = |keys: usize, last: &str| {
        let keys: String = (0..keys).map(|n| format!("  k{n}={n}%20")).collect();
        format!("{MAGIC} env{keys} {last}")
    };
    for keys in [0, 1, 31, 32, 33, 2000] {
        let Ok(Mark::Env(facts)) = Mark::from_line(&line(keys, "")) else {
            panic!("{keys} keys");
        };
        assert_eq!(facts.len(), keys);
        let last = facts.get(&format!("k{}", keys.saturating_sub(1)));
        let right = keys.checked_sub(1).map(|n| format!("{n} "));
        assert_eq!(last, right.as_ref());
        if keys > 0 {
            let twice = line(keys, "k0=1 none");
            let error = Mark::from_line(&twice).unwrap_err();
            assert!(error.what.contains("twice"), "{error}");
            assert_eq!(error.at, twice.len() - "k0=1 none".len());
        }
    }
}
