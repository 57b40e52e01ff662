// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random rules times random stories: no panic, the same again, counters that fit.

use proptest::prelude::*;
use wtblk::fault::request::{OrderBy, Request};
use wtblk::fault::{Engine, Scenario};
use wtblk::trace::event::{Op, Status};
use wtblk_shared::mark::{CallBegin, CallEnd, Control, Extent, Mark};
use wtblk_shared::tag::Tag;

fn leaf() -> impl Strategy<Value = String> {
    let per = || prop::sample::select(vec!["rule", "call", "test"]);
    let fixed = prop::sample::select(vec![
        "op = \"write\"",
        "op = \"read\"",
        "op = \"any\"",
        "class = \"log\"",
        "class = \"data\"",
        "class = \"other\"",
        "in_call = true",
        "in_call = \"side\"",
        "in_call = 1",
        "in_test = true",
        "in_test = \"t\"",
        "flags = \"dsync\"",
        "state = \"start\"",
        "state = \"s1\"",
        "after = { mark = \"go\" }",
        "after = { flush = 2 }",
        "after = { rule = \"r0\", count = 2 }",
        "after = { completions = 3 }",
        "elapsed = { since = \"go\", ms = 0 }",
        "elapsed = { since = \"go\", ms = 5 }",
        "in_test = false",
        "inflight = { max = 2 }",
        "size = { min = 512, max = \"4KiB\" }",
        "file = { ino = 1, range = \"0+8192\" }",
        "file = \"4096+4096\"",
        "lba = [\"0+16\", \"8+16\"]",
        "probability = 0.5",
    ]);
    prop_oneof![
        4 => fixed.prop_map(str::to_owned),
        1 => (0u64..64, 1u64..64).prop_map(|(s, l)| format!("lba = \"{s}+{l}\"")),
        1 => (1u64..4).prop_map(|n| format!("nth_in_call = {n}")),
        1 => (1u64..4, per()).prop_map(|(n, p)| format!("nth = {{ n = {n}, per = \"{p}\" }}")),
        1 => (1u64..4, per()).prop_map(|(n, p)| format!("every = {{ n = {n}, per = \"{p}\" }}")),
    ]
}

/// A table of triggers, nested.
fn when() -> impl Strategy<Value = String> {
    leaf().prop_recursive(3, 8, 3, |inner| {
        let list = || prop::collection::vec(inner.clone(), 1..3);
        let tables = |l: Vec<String>| {
            let tables: Vec<_> = l.iter().map(|t| format!("{{ {t} }}")).collect();
            tables.join(", ")
        };
        prop_oneof![
            list().prop_map(move |l| format!("all = [{}]", tables(l))),
            list().prop_map(move |l| format!("any = [{}]", tables(l))),
            inner.clone().prop_map(|t| format!("not = {{ {t} }}")),
            (list(), leaf())
                .prop_map(move |(l, t)| format!("{t}, all = [{}]", tables(l)))
                .prop_filter("said twice", |t| !t.starts_with("all")),
        ]
    })
}

fn rule() -> impl Strategy<Value = String> {
    let action = prop::sample::select(vec![
        "status = \"ioerr\"",
        "hold = true",
        "hold = { limit = \"1ms\", until = { completions = 2 } }",
        "hold = { until = { mark = \"go\" } }, status = 7",
        "delay = { min = \"1us\", max = \"9us\", per_kib = \"1us\" }, used_len = 0",
        "order = { group = 3, permutation = \"all\" }",
        "order = { group = 3, permutation = \"seeded\" }",
        "order = { group = 4, permutation = \"offset\" }",
        "order = { group = 2, index = 1 }",
        "hang = true",
        "torn = { last = 2 }, status = 3",
        "corrupt = { bits = 40 }",
        "corrupt = { bits = 9, offset = 600 }",
        "drop = true",
        "misdirect = { by = -9 }",
        "stale = [\"0+64\"]",
        "late_flush = { writes = 1 }",
        "drop_flush = true",
        "gone = true",
    ]);
    let goto = prop::option::of(prop::sample::select(vec!["start", "s1"]));
    let test = prop::option::of(prop::sample::select(vec!["t", "u"]));
    (when(), action, prop::option::of(1u64..4), test, goto).prop_map(
        |(when, action, times, test, goto)| {
            let times = times.map_or(String::new(), |n| format!("times = {n}\n"));
            let test = test.map_or(String::new(), |t| format!("test = \"{t}\"\n"));
            let goto = goto.map_or(String::new(), |s| format!("goto = \"{s}\"\n"));
            format!("when = {{ {when} }}\naction = {{ {action} }}\n{times}{test}{goto}")
        },
    )
}

#[derive(Clone, Debug)]
enum Step {
    Request(Request),
    Completed(Request, Status),
    Mark(Mark),
    State(&'static str),
}

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0u64..64, 1 => 0u64..65536, 1 => any::<u64>()]
}

fn request() -> impl Strategy<Value = Request> {
    let op = prop::sample::select(vec![Op::Read, Op::Write, Op::Flush, Op::Discard, Op::Other]);
    let bytes = prop_oneof![Just(4096u32), 0u32..9000, any::<u32>()];
    let tag = prop::option::of(0u16..3);
    (op, number(), bytes, tag, 1u32..5).prop_map(|(op, sector, bytes, tag, inflight)| Request {
        id: 0,
        disk: 0,
        queue: 0,
        op,
        sector,
        bytes,
        tag: tag.and_then(Tag::new),
        inflight,
    })
}

fn extents() -> impl Strategy<Value = Option<Vec<Extent>>> {
    let extent =
        (number(), number(), number(), any::<bool>()).prop_map(|(l, p, len, clean)| Extent {
            logical: l % (1 << 50) * 512,
            physical: p % (1 << 50) * 512,
            length: len % (1 << 50) * 512,
            flags: if clean { 0 } else { 2 },
        });
    prop::option::of(prop::collection::vec(extent, 0..4))
}

fn mark() -> impl Strategy<Value = Mark> {
    let begin = (
        0u64..4,
        0u64..9,
        number(),
        prop::option::of(0u16..3),
        extents(),
    )
        .prop_map(|(call, off, len, tag, extents)| {
            Mark::Begin(CallBegin {
                call,
                ino: call % 2,
                off: off * 1000,
                len,
                bsize: 4096 * (len % 3 % 2),
                tag,
                flags: vec!["dsync".into()],
                extents,
                ..CallBegin::default()
            })
        });
    let end = (0u64..4, extents()).prop_map(|(call, extents)| {
        Mark::End(CallEnd {
            call,
            extents,
            ..CallEnd::default()
        })
    });
    let name = || prop::sample::select(vec!["t".to_owned(), "u".to_owned()]);
    let which = || prop::option::of((0usize..4).prop_map(|n| format!("r{n}")));
    prop_oneof![
        3 => begin,
        2 => end,
        1 => name().prop_map(|name| Mark::TestBegin { name }),
        1 => name().prop_map(|name| Mark::TestEnd { name }),
        1 => which().prop_map(|r| Mark::Control(Control::Release(r))),
        1 => which().prop_map(|r| Mark::Control(Control::Arm(r))),
        1 => which().prop_map(|r| Mark::Control(Control::Disarm(r))),
        1 => Just(Mark::Note { text: "go".into() }),
        1 => (number(), number()).prop_map(|(log_start, log_len)| Mark::Fs {
            dev: 1, kind: "xfs".into(), bsize: 4096, log_start, log_len,
        }),
        1 => Just(Mark::Boot),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => request().prop_map(Step::Request),
        2 => (request(), 0u8..3).prop_map(|(r, s)| Step::Completed(r, Status(s))),
        3 => mark().prop_map(Step::Mark),
        1 => prop::sample::select(vec!["start", "s1", "nowhere"]).prop_map(Step::State),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn pure_and_counted(
        rules in prop::collection::vec(rule(), 1..6),
        steps in prop::collection::vec(step(), 0..100),
        seed in 0u64..3,
    ) {
        let text: String = rules.iter().enumerate()
            .map(|(n, r)| format!("[[fault]]\nname = \"r{n}\"\n{r}"))
            .collect();
        // Some contradict themselves (a torn read): then that is said.
        let Ok(scenario) = Scenario::parse("f", &format!("version = 1\n{text}")) else {
            return Ok(());
        };
        let (mut one, mut two) = (Engine::new(&scenario, seed), Engine::new(&scenario, seed));
        let mut slow = Engine::asking_all(&scenario, seed);
        let mut fired = vec![0u64; rules.len()];
        for (now, step) in steps.iter().enumerate() {
            let now = now as u64 * 1_000_000;
            match step {
                Step::State(state) => {
                    prop_assert_eq!(one.set_state(state), two.set_state(state));
                    slow.set_state(state);
                }
                Step::Completed(request, status) => {
                    one.completed(request, *status);
                    two.completed(request, *status);
                    slow.completed(request, *status);
                }
                Step::Mark(mark) => {
                    one.mark(mark, now);
                    two.mark(mark, now);
                    slow.mark(mark, now);
                    if let Mark::Control(Control::Arm(which)) = mark {
                        for (n, count) in fired.iter_mut().enumerate() {
                            if which.as_ref().is_none_or(|w| *w == format!("r{n}")) {
                                *count = 0;
                            }
                        }
                    }
                }
                Step::Request(request) => {
                    let ready: Vec<bool> = one.rules().iter().map(|r| r.armed && r.in_test).collect();
                    let decision = one.decide(request, now);
                    prop_assert_eq!(&decision, &two.decide(request, now));
                    prop_assert_eq!(&decision, &slow.decide(request, now), "the index");
                    if let Some(d) = decision {
                        prop_assert!(ready[usize::from(d.rule)]);
                        fired[usize::from(d.rule)] += 1;
                        if let Some(order) = &d.plan.order
                            && let OrderBy::Turn(turn) = order.turn
                        {
                            prop_assert!(turn < order.size);
                        }
                        prop_assert!(!d.plan.to_string().is_empty());
                    }
                }
            }
            let releases = one.take_releases();
            prop_assert_eq!(&releases, &two.take_releases());
            prop_assert_eq!(&releases, &slow.take_releases());
            prop_assert_eq!(one.state(), slow.state());
            for (rule, asked) in one.rules().iter().zip(&slow.rules()) {
                prop_assert_eq!((rule.seen, rule.fired), (asked.seen, asked.fired));
            }
            for (rule, fired) in one.rules().iter().zip(&fired) {
                prop_assert_eq!(rule.fired, *fired);
                prop_assert!(rule.seen >= rule.fired);
                prop_assert!(rule.rule.times.is_none_or(|t| rule.fired <= t));
            }
        }
        prop_assert_eq!(one, two);
    }
}
