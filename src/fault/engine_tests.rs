// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the engine decides.

use wtblk_shared::mark::{CallBegin, CallEnd, Control, Extent, Mark};
use wtblk_shared::tag::Tag;

use super::calls::MAX_CALLS;
use super::engine::Engine;
use super::request::{Decision, Hold, Plan, Request};
use super::scenario::Scenario;
use crate::trace::event::{Op, Status};

fn engine(rules: &str) -> Engine {
    let text = format!("version = 1\n{rules}");
    Engine::new(&Scenario::parse("test", &text).unwrap(), 1)
}

fn request(op: Op, sector: u64, bytes: u32, tag: Option<u16>) -> Request {
    Request {
        id: 0,
        disk: 0,
        queue: 0,
        op,
        sector,
        bytes,
        tag: tag.and_then(Tag::new),
        inflight: 1,
    }
}

fn write(sector: u64, tag: u16) -> Request {
    request(Op::Write, sector, 4096, Some(tag))
}

/// The name of the rule that fires.
fn fires(engine: &mut Engine, request: &Request) -> Option<String> {
    engine.decide(request, 0).map(|d| d.name)
}

fn extent(logical: u64, physical: u64, length: u64) -> Extent {
    Extent {
        logical,
        physical,
        length,
        flags: 0,
    }
}

/// Call `call` with tag 5: 16 KiB at offset 4095 of a file with blocks of 4096.
fn begin(call: u64, extents: Option<Vec<Extent>>) -> Mark {
    Mark::Begin(CallBegin {
        call,
        off: 4095,
        len: 16384,
        bsize: 4096,
        tag: Some(5),
        extents,
        ..CallBegin::default()
    })
}

fn end(call: u64) -> Mark {
    Mark::End(CallEnd {
        call,
        ..CallEnd::default()
    })
}

fn control(order: fn(Option<String>) -> Control, rule: &str) -> Mark {
    Mark::Control(order((rule != "*").then(|| rule.to_owned())))
}

/// 20 KiB from offset 0 (rounded out) in two pieces, the second one before the first.
fn two_pieces() -> Option<Vec<Extent>> {
    Some(vec![extent(8192, 0, 1 << 20), extent(0, 1 << 20, 8192)])
}

const NTH: &str = "[[fault]]\nname = \"second\"\nwhen = { op = \"write\", nth_in_call = 2 }\naction = { status = \"ioerr\", hold = true }\n";

#[test]
fn the_nth_data_write_of_a_call() {
    let mut e = engine(NTH);
    // No call yet.
    assert_eq!(fires(&mut e, &write(2048, 5)), None);
    e.mark(&begin(1, two_pieces()), 0);
    assert_eq!(fires(&mut e, &write(2048, 5)), None, "the first");
    assert_eq!(fires(&mut e, &write(4096, 5)), None, "not in the range");
    assert_eq!(fires(&mut e, &write(2056 + 1, 5)), None, "half outside");
    assert_eq!(fires(&mut e, &write(24, 5)), None, "beyond the rounded end");
    assert_eq!(fires(&mut e, &write(16, 6)), None, "another tag");
    assert_eq!(fires(&mut e, &request(Op::Write, 16, 4096, None)), None);
    let read = request(Op::Read, 2048, 4096, Some(5));
    assert_eq!(fires(&mut e, &read), None, "a read");
    assert_eq!(
        e.decide(&write(16, 5), 0),
        Some(Decision {
            rule: 0,
            name: "second".into(),
            plan: Plan {
                hold: Some(Hold::default()),
                status: Some(Status::IOERR),
                ..Plan::default()
            }
        })
    );
    assert_eq!(fires(&mut e, &write(8, 5)), None, "the third");
    e.mark(&end(1), 0);
    e.mark(&begin(2, two_pieces()), 0);
    assert_eq!(fires(&mut e, &write(8, 5)), None);
    assert_eq!(fires(&mut e, &write(8, 5)).as_deref(), Some("second"));
    e.mark(&end(2), 0);
    assert_eq!(fires(&mut e, &write(8, 5)), None, "no call");
    assert_eq!((e.rules()[0].seen, e.rules()[0].fired), (2, 2));
}

/// With `--tags off` the place alone tells; another's tag or another place does not count.
#[test]
fn a_call_without_a_tag_is_known_by_its_place() {
    let untagged = |extents| match begin(1, extents) {
        Mark::Begin(b) => Mark::Begin(wtblk_shared::mark::CallBegin { tag: None, ..b }),
        other => other,
    };
    let mut e = engine(NTH);
    e.mark(&untagged(two_pieces()), 0);
    assert_eq!(
        fires(&mut e, &request(Op::Write, 16, 4096, None)),
        None,
        "the first"
    );
    assert_eq!(
        fires(&mut e, &write(16, 5)),
        None,
        "tagged: somebody else's"
    );
    assert_eq!(
        fires(&mut e, &request(Op::Write, 1 << 30, 4096, None)),
        None,
        "another place"
    );
    assert_eq!(
        fires(&mut e, &request(Op::Write, 16, 4096, None)).as_deref(),
        Some("second")
    );
    e.mark(&end(1), 0);
    assert_eq!(
        fires(&mut e, &request(Op::Write, 16, 4096, None)),
        None,
        "after its end"
    );
    // Neither tag nor place: nobody's.
    let mut e = engine(NTH);
    e.mark(&untagged(None), 0);
    for _ in 0..3 {
        assert_eq!(fires(&mut e, &request(Op::Write, 16, 4096, None)), None);
    }
}

#[test]
fn an_op_of_any_counts_reads_and_writes_together() {
    let mut e = engine(
        "[[fault]]\nname = \"a\"\nwhen = { op = \"any\", nth_in_call = 2 }\naction = { hold = true }\n",
    );
    e.mark(&begin(1, two_pieces()), 0);
    let read = request(Op::Read, 2048, 4096, Some(5));
    assert_eq!(fires(&mut e, &read), None);
    assert_eq!(fires(&mut e, &write(2048, 5)).as_deref(), Some("a"));
}

/// Calls of which not every block has its place at the begin: any write with the tag counts.
#[test]
fn allocating_calls_fall_back_to_the_tag() {
    let flagged = |flags| {
        let mut list = two_pieces().unwrap();
        list[1].flags = flags;
        Some(list)
    };
    for (what, extents) in [
        ("fiemap failed", None),
        ("a file of holes", Some(vec![])),
        ("a hole at the begin", Some(vec![extent(4096, 0, 1 << 20)])),
        ("a hole at the end", Some(vec![extent(0, 0, 16384)])),
        (
            "a hole within",
            Some(vec![extent(0, 0, 4096), extent(8192, 8192, 1 << 20)]),
        ),
        ("delayed allocation", flagged(0x4)),
        ("unknown", flagged(0x2)),
        ("shared: copy on write", flagged(0x2000)),
        ("encoded", flagged(0x8)),
    ] {
        let mut e = engine(NTH);
        e.mark(&begin(1, extents), 0);
        assert_eq!(fires(&mut e, &write(1 << 30, 5)), None, "{what}");
        assert_eq!(fires(&mut e, &request(Op::Flush, 0, 0, Some(5))), None);
        assert!(fires(&mut e, &write(77, 5)).is_some(), "{what}");
    }
    // Unwritten blocks have their place.
    let mut e = engine(NTH);
    e.mark(&begin(1, flagged(0x800)), 0);
    assert_eq!(fires(&mut e, &write(1 << 30, 5)), None);
    assert_eq!(fires(&mut e, &write(1 << 30, 5)), None);
}

#[test]
fn a_range_of_sectors() {
    let mut e = engine(
        "[[fault]]\nname = \"bad\"\nwhen = { op = \"write\", lba = \"2048+8\" }\naction = { status = 9 }\n",
    );
    for (sector, bytes, hit) in [
        (2040, 4096, false),
        (2041, 4096, true),
        (2040, 4608, true),
        (2048, 512, true),
        (2055, 512, true),
        (2056, 512, false),
        (0, u32::MAX, true),
        (u64::MAX, 4096, false),
        (2050, 0, false),
    ] {
        let r = request(Op::Write, sector, bytes, None);
        assert_eq!(e.decide(&r, 0).is_some(), hit, "{sector} {bytes}");
    }
    assert_eq!(fires(&mut e, &request(Op::Read, 2048, 512, None)), None);
    let marks = Request {
        disk: 255,
        ..request(Op::Write, 2048, 512, None)
    };
    assert_eq!(fires(&mut e, &marks), None, "another disk");
}

const TWO: &str = "[[fault]]\nname = \"a\"\nwhen = { op = \"write\" }\naction = { hold = true }\ntimes = 2\n[[fault]]\nname = \"b\"\nwhen = { op = \"any\" }\naction = { status = \"unsupp\", hold = true }\n";

#[test]
fn the_first_rule_that_can_fire_wins_and_all_count() {
    let mut e = engine(TWO);
    let w = write(0, 1);
    let names: Vec<_> = (0..3).map(|_| fires(&mut e, &w).unwrap()).collect();
    assert_eq!(names, ["a", "a", "b"]);
    let counts: Vec<_> = e.rules().iter().map(|r| (r.seen, r.fired)).collect();
    assert_eq!(counts, [(3, 2), (3, 1)]);
}

#[test]
fn release_arm_and_disarm() {
    let mut e = engine(TWO);
    let w = write(0, 1);
    e.mark(&control(Control::Release, "a"), 0);
    // It would do nothing, so it does not stand in the way.
    assert_eq!(fires(&mut e, &w).as_deref(), Some("b"));
    e.mark(&control(Control::Release, "*"), 0);
    let d = e.decide(&w, 0).unwrap();
    assert_eq!(
        (d.plan.hold.is_some(), d.plan.status),
        (false, Some(Status::UNSUPP))
    );
    assert!(e.rules()[1].released && !e.rules()[1].holds());
    e.mark(&control(Control::Arm, "b"), 0);
    assert!(!e.rules()[1].released && e.rules()[1].seen == 0 && e.rules()[1].fired == 0);
    assert!(e.decide(&w, 0).unwrap().plan.hold.is_some());
    e.mark(&control(Control::Disarm, "*"), 0);
    assert_eq!(fires(&mut e, &w), None);
    e.mark(&control(Control::Arm, "*"), 0);
    assert_eq!(fires(&mut e, &w).as_deref(), Some("a"));
    e.mark(&control(Control::Disarm, "nobody"), 0);
    assert!(e.rules().iter().all(|r| r.armed));
    assert!(e.knows("a") && !e.knows("nobody"));
}

#[test]
fn a_rule_of_a_test_works_between_its_marks() {
    let mut e = engine(
        "[[fault]]\nname = \"a\"\ntest = \"t\"\nwhen = { op = \"write\" }\naction = { hold = true }\n",
    );
    let w = write(0, 1);
    let test_begin = |name: &str| Mark::TestBegin { name: name.into() };
    let test_end = |name: &str| Mark::TestEnd { name: name.into() };
    assert_eq!(fires(&mut e, &w), None);
    for (mark, works) in [
        (test_begin("t"), true),
        (test_end("u"), true),
        (test_end("t"), false),
        (test_begin("t"), true),
        (test_begin("u"), false),
        (test_begin("t"), true),
        (Mark::Boot, false),
    ] {
        e.mark(&mark, 0);
        assert_eq!(fires(&mut e, &w).is_some(), works, "{mark:?}");
    }
    assert_eq!(e.rules()[0].seen, 4);
}

#[test]
fn what_a_guest_can_make_it_keep_is_bounded() {
    let mut e = engine(NTH);
    let call = |n: u64| {
        Mark::Begin(CallBegin {
            call: n,
            len: 1,
            bsize: 1,
            tag: Some((n % u64::from(wtblk_shared::tag::TAGS)) as u16),
            ..CallBegin::default()
        })
    };
    for n in 0..3 * MAX_CALLS as u64 {
        e.mark(&call(n), 0);
    }
    assert_eq!(e.calls_dropped(), 2 * MAX_CALLS as u64);
    // The oldest went, the newest is there.
    let newest = ((3 * MAX_CALLS as u64 - 1) % u64::from(wtblk_shared::tag::TAGS)) as u16;
    fires(&mut e, &write(0, newest));
    assert!(fires(&mut e, &write(0, newest)).is_some());
    e.mark(&Mark::Boot, 0);
    fires(&mut e, &write(0, newest));
    assert_eq!(fires(&mut e, &write(0, newest)), None);
}

#[test]
fn an_empty_engine_says_so() {
    let mut e = engine("");
    assert!(e.is_empty());
    assert_eq!(fires(&mut e, &write(0, 0)), None);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    fn rule() -> impl Strategy<Value = String> {
        let when = prop_oneof![
            Just("op = \"write\"".to_owned()),
            Just("op = \"flush\"".to_owned()),
            Just("op = \"any\"".to_owned()),
            (0u64..64, 1u64..64).prop_map(|(s, l)| format!("lba = \"{s}+{l}\"")),
            (1u64..4).prop_map(|n| format!("op = \"write\", nth_in_call = {n}")),
            (1u64..4).prop_map(|n| format!("nth_in_call = {n}, lba = \"0+32\"")),
        ];
        let action = prop::sample::select(vec![
            "status = \"ioerr\"",
            "hold = true",
            "status = 7, hold = true",
        ]);
        let times = prop::option::of(1u64..4);
        let test = prop::option::of(prop::sample::select(vec!["t", "u"]));
        (when, action, times, test).prop_map(|(when, action, times, test)| {
            let times = times.map_or(String::new(), |n| format!("times = {n}\n"));
            let test = test.map_or(String::new(), |t| format!("test = \"{t}\"\n"));
            format!("when = {{ {when} }}\naction = {{ {action} }}\n{times}{test}")
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Request(Request),
        Mark(Mark),
    }

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![0u64..64, 0u64..65536, any::<u64>()]
    }

    fn extents() -> impl Strategy<Value = Option<Vec<Extent>>> {
        let one = (number(), number(), number(), any::<u32>(), any::<bool>());
        let one = one.prop_map(|(l, p, len, flags, clean)| Extent {
            logical: l,
            physical: p,
            length: len,
            flags: if clean { 0 } else { flags },
        });
        prop::option::of(prop::collection::vec(one, 0..4))
    }

    fn step() -> impl Strategy<Value = Step> {
        let op = prop::sample::select(vec![Op::Read, Op::Write, Op::Flush, Op::Other]);
        let tag = || prop::option::of(prop_oneof![0u16..3, any::<u16>()]);
        let request = (op, number(), any::<u32>(), tag())
            .prop_map(|(op, s, b, t)| Step::Request(request(op, s, b % 65536, t)));
        let begin = (0u64..4, number(), number(), number(), tag(), extents()).prop_map(
            |(call, off, len, bsize, tag, extents)| {
                Mark::Begin(CallBegin {
                    call,
                    off,
                    len,
                    bsize,
                    tag,
                    extents,
                    ..CallBegin::default()
                })
            },
        );
        let name = || prop::sample::select(vec!["t".to_owned(), "u".to_owned()]);
        let rule = || prop::option::of((0usize..4).prop_map(|n| format!("r{n}")));
        let mark = prop_oneof![
            3 => begin,
            2 => (0u64..4).prop_map(end),
            1 => name().prop_map(|name| Mark::TestBegin { name }),
            1 => name().prop_map(|name| Mark::TestEnd { name }),
            1 => rule().prop_map(|r| Mark::Control(Control::Release(r))),
            1 => rule().prop_map(|r| Mark::Control(Control::Arm(r))),
            1 => rule().prop_map(|r| Mark::Control(Control::Disarm(r))),
            1 => Just(Mark::Boot),
        ];
        prop_oneof![3 => request, 2 => mark.prop_map(Step::Mark)]
    }

    proptest! {
        /// Same inputs, same decisions; counters that fit the decisions; no panic.
        #[test]
        fn pure_and_counted(
            rules in prop::collection::vec(rule(), 0..5),
            steps in prop::collection::vec(step(), 0..80),
        ) {
            let text: String = rules.iter().enumerate()
                .map(|(n, r)| format!("[[fault]]\nname = \"r{n}\"\n{r}"))
                .collect();
            let (mut one, mut two) = (engine(&text), engine(&text));
            let mut fired = vec![0u64; rules.len()];
            for (now, step) in steps.iter().enumerate() {
                match step {
                    Step::Mark(mark) => {
                        one.mark(mark, 0);
                        two.mark(mark, 0);
                        if let Mark::Control(Control::Arm(which)) = mark {
                            for (n, count) in fired.iter_mut().enumerate() {
                                if which.as_ref().is_none_or(|w| *w == format!("r{n}")) {
                                    *count = 0;
                                }
                            }
                        }
                    }
                    Step::Request(request) => {
                        let before = one.clone();
                        let decision = one.decide(request, now as u64);
                        // No clock: another time changes nothing.
                        prop_assert_eq!(&decision, &two.decide(request, 0));
                        if let Some(d) = decision {
                            let state = &before.rules()[usize::from(d.rule)];
                            fired[usize::from(d.rule)] += 1;
                            prop_assert_eq!(&state.rule.name, &d.name);
                            prop_assert!(state.armed && (d.plan.hold.is_some() || d.plan.status.is_some()));
                            prop_assert_eq!(d.plan.hold.is_some(), state.holds());
                            prop_assert_eq!(d.plan.status, state.rule.action.status);
                        }
                    }
                }
                prop_assert_eq!(&one, &two);
                for (state, count) in one.rules().iter().zip(&fired) {
                    prop_assert_eq!(state.fired, *count);
                    prop_assert!(state.fired <= state.seen);
                    prop_assert!(state.rule.times.is_none_or(|t| state.fired <= t));
                }
            }
        }
    }
}
