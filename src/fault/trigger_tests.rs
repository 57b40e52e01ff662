// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Each trigger both ways, and what each action becomes.

use wtblk_shared::mark::{CallBegin, CallEnd, Control, Extent, Mark};
use wtblk_shared::tag::Tag;

use super::engine::Engine;
use super::request::{DataFault, DeviceFault, OrderBy, Plan, Request};
use super::scenario::Scenario;
use crate::trace::event::{Op, Status};

fn engine(text: &str) -> Engine {
    let scenario = Scenario::parse("t", &format!("version = 1\n{text}"));
    Engine::new(&scenario.unwrap_or_else(|e| panic!("{e}")), 7)
}

/// One rule that fails what its trigger lets through.
fn when(when: &str) -> Engine {
    engine(&format!(
        "[[fault]]\nname = \"r\"\nwhen = {{ {when} }}\naction = {{ status = \"ioerr\" }}\n"
    ))
}

/// One rule that does this to everything.
fn action(action: &str) -> Engine {
    engine(&format!(
        "[[fault]]\nname = \"r\"\nwhen = {{ op = \"any\" }}\naction = {{ {action} }}\n"
    ))
}

fn request(op: Op, sector: u64, bytes: u32) -> Request {
    Request {
        id: 0,
        disk: 0,
        queue: 0,
        op,
        sector,
        bytes,
        tag: None,
        inflight: 1,
    }
}

fn write(sector: u64) -> Request {
    request(Op::Write, sector, 4096)
}

fn tagged(sector: u64) -> Request {
    Request {
        tag: Tag::new(5),
        ..write(sector)
    }
}

fn fires(engine: &mut Engine, request: &Request) -> bool {
    engine.decide(request, 0).is_some()
}

/// On which of so many writes it fires, from 1.
fn which(engine: &mut Engine, request: &Request, n: usize) -> Vec<usize> {
    (1..=n).filter(|_| fires(engine, request)).collect()
}

fn note(text: &str) -> Mark {
    Mark::Note { text: text.into() }
}

/// Call 1 of inode 9 with tag 5: bytes 0 to 16383, blocks 8192.. before 0.. on the disk.
fn begin() -> CallBegin {
    let extent = |logical, physical| Extent {
        logical,
        physical,
        length: 8192,
        flags: 0,
    };
    CallBegin {
        call: 1,
        ino: 9,
        len: 16384,
        bsize: 4096,
        tag: Some(5),
        flags: vec!["writethrough".into(), "dsync".into()],
        extents: Some(vec![extent(8192, 0), extent(0, 1 << 20)]),
        ..CallBegin::default()
    }
}

fn plan(action_text: &str, request: &Request) -> Plan {
    let decision = action(action_text).decide(request, 0);
    decision.unwrap_or_else(|| panic!("{action_text}")).plan
}

#[test]
fn ops_and_their_logic() {
    let reads = |t: &str| fires(&mut when(t), &request(Op::Read, 0, 512));
    assert!(reads("op = \"read\"") && !reads("op = \"write\""));
    assert!(reads("not = { op = \"write\" }") && !reads("not = { op = \"read\" }"));
    assert!(reads("any = [{ op = \"read\" }, { op = \"write\" }]"));
    assert!(!reads("any = [{ op = \"flush\" }, { op = \"write\" }]"));
    assert!(reads("all = [{ op = \"read\" }, { size = 512 }]"));
    assert!(!reads("all = [{ op = \"read\" }, { size = 513 }]"));
}

#[test]
fn sizes_and_depth() {
    for (t, hit) in [
        ("size = 4096", true),
        ("size = \"4KiB\"", true),
        ("size = { min = 4097 }", false),
        ("size = { max = \"4KiB\" }", true),
        ("inflight = 1", true),
        ("inflight = { min = 2 }", false),
        ("inflight = { max = 4 }", true),
    ] {
        assert_eq!(fires(&mut when(t), &write(0)), hit, "{t}");
    }
}

#[test]
fn places() {
    let mut e = when("lba = [\"0+8\", \"4+8\", \"100+1\"], nth = { n = 2, per = \"rule\" }");
    // Two of the ranges touch: it counts once all the same.
    assert_eq!(which(&mut e, &write(4), 3), [2]);
    assert!(!fires(&mut e, &write(50)));
    let fs = Mark::Fs {
        dev: 1,
        kind: "xfs".into(),
        bsize: 4096,
        log_start: 1 << 20,
        log_len: 4096,
    };
    for (class, hits) in [
        ("log", [true, false, false]),
        ("data", [false, true, false]),
        ("other", [false, false, true]),
    ] {
        let mut e = when(&format!("class = \"{class}\""));
        e.mark(&fs, 0);
        e.mark(
            &Mark::End(CallEnd {
                call: 1,
                extents: Some(vec![Extent {
                    logical: 0,
                    physical: 4096,
                    length: 4096,
                    flags: 0,
                }]),
                ..CallEnd::default()
            }),
            0,
        );
        let found = [2048, 8, 99].map(|sector| fires(&mut e, &write(sector)));
        assert_eq!(found, hits, "{class}");
        e.mark(&Mark::Boot, 0);
        assert_eq!(fires(&mut e, &write(8)), class == "other", "boot forgets");
    }
}

#[test]
fn bytes_of_the_file() {
    for (t, hits) in [
        // Sectors 0, 8, 2048, 2056 are bytes 8192, 12288, 0, 4096.
        ("file = \"0+1\"", [false, false, true, false]),
        ("file = \"8191+2\"", [true, false, false, true]),
        ("file = { ino = 9 }", [true; 4]),
        ("file = { ino = 8, range = \"0+99999\" }", [false; 4]),
        ("in_call = \"data\"", [true; 4]),
        ("in_call = \"side\"", [false; 4]),
    ] {
        let mut e = when(t);
        e.mark(&Mark::Begin(begin()), 0);
        assert_eq!(
            [0, 8, 2048, 2056].map(|s| fires(&mut e, &tagged(s))),
            hits,
            "{t}"
        );
        assert!(!fires(&mut e, &write(0)), "{t}: not of the call");
    }
    // An allocating call: by what came before.
    let mut e = when("file = \"4096+4096\"");
    e.mark(
        &Mark::Begin(CallBegin {
            extents: None,
            ..begin()
        }),
        0,
    );
    assert_eq!(which(&mut e, &tagged(777), 4), [2]);
}

/// The write of the log that an allocating call may or may not cause changes no count.
#[test]
fn a_write_to_the_log_is_no_data_of_an_allocating_call() {
    let mut e = when("op = \"write\", nth_in_call = 2");
    let fs = Mark::Fs {
        dev: 1,
        kind: "xfs".into(),
        bsize: 4096,
        log_start: 800 * 512,
        log_len: 4096,
    };
    e.mark(&fs, 0);
    let unknown = CallBegin {
        extents: None,
        ..begin()
    };
    e.mark(&Mark::Begin(unknown), 0);
    let asked = [800, 777, 801, 785];
    assert_eq!(
        asked.map(|s| fires(&mut e, &tagged(s))),
        [false, false, false, true]
    );
}

#[test]
fn calls_tests_and_flags() {
    for (t, inside, outside) in [
        ("in_call = true", true, false),
        ("in_call = false", false, true),
        ("in_call = 1", true, false),
        ("in_call = 2", false, false),
        ("flags = \"dsync\"", true, false),
        ("flags = [\"dsync\", \"writethrough\"]", true, false),
        ("flags = [\"dsync\", \"async\"]", false, false),
        ("not = { flags = \"async\" }", true, true),
    ] {
        let mut e = when(t);
        e.mark(&Mark::Begin(begin()), 0);
        assert_eq!(fires(&mut e, &tagged(0)), inside, "{t}");
        e.mark(
            &Mark::End(CallEnd {
                call: 1,
                ..CallEnd::default()
            }),
            0,
        );
        assert_eq!(fires(&mut e, &tagged(0)), outside, "{t}");
    }
    let mut e = when("in_call = \"side\"");
    e.mark(&Mark::Begin(begin()), 0);
    assert!(fires(&mut e, &tagged(500)) && !fires(&mut e, &tagged(0)));
    for (t, inside, outside) in [
        ("in_test = true", true, false),
        ("in_test = false", false, true),
        ("in_test = \"a\"", true, false),
        ("in_test = \"b\"", false, false),
    ] {
        let mut e = when(t);
        e.mark(&Mark::TestBegin { name: "a".into() }, 0);
        assert_eq!(fires(&mut e, &write(0)), inside, "{t}");
        e.mark(&Mark::TestEnd { name: "a".into() }, 0);
        assert_eq!(fires(&mut e, &write(0)), outside, "{t}");
    }
}

#[test]
fn counts_say_through_what() {
    let mut e = when("op = \"write\", nth = { n = 2, per = \"rule\" }");
    assert_eq!(which(&mut e, &write(0), 5), [2]);
    e.mark(&Mark::Control(Control::Arm(None)), 0);
    assert!(!fires(&mut e, &request(Op::Read, 0, 512)));
    assert_eq!(which(&mut e, &write(0), 5), [2], "armed: from the start");
    let mut e = when("op = \"write\", every = { n = 3, per = \"rule\" }");
    assert_eq!(which(&mut e, &write(0), 9), [3, 6, 9]);
    assert_eq!((e.rules()[0].seen, e.rules()[0].fired), (3, 3));
    // The same, where it is not all that the rule asks for.
    let mut e = when("size = 4096, every = { n = 3, per = \"rule\" }");
    assert_eq!(which(&mut e, &write(0), 9), [3, 6, 9]);
    let mut e = when("not = { nth = { n = 2, per = \"rule\" } }");
    assert_eq!(which(&mut e, &write(0), 4), [1, 3, 4]);
    let mut e = when("nth = { n = 2, per = \"call\" }");
    assert_eq!(which(&mut e, &tagged(0), 3), [0; 0], "no call");
    for _ in 0..2 {
        e.mark(&Mark::Begin(begin()), 0);
        assert_eq!(which(&mut e, &tagged(0), 4), [2]);
    }
    let mut e = when("nth = { n = 2, per = \"test\" }");
    assert_eq!(which(&mut e, &write(0), 3), [0; 0], "no test");
    for _ in 0..2 {
        e.mark(&Mark::TestBegin { name: "a".into() }, 0);
        assert_eq!(which(&mut e, &write(0), 4), [2]);
    }
}

/// A rule of a test counts while its test runs, and goes on where it was.
#[test]
fn counts_stand_still_outside_their_test() {
    let mut e = engine(
        "[[fault]]\nname = \"r\"\ntest = \"a\"\nwhen = { op = \"write\", nth = { n = 3, per = \"rule\" } }\naction = { hold = true }",
    );
    let a = || Mark::TestBegin { name: "a".into() };
    assert_eq!(which(&mut e, &write(0), 5), [0; 0]);
    e.mark(&a(), 0);
    assert_eq!(which(&mut e, &write(0), 2), [0; 0]);
    e.mark(&Mark::TestEnd { name: "a".into() }, 0);
    assert_eq!(which(&mut e, &write(0), 5), [0; 0]);
    e.mark(&a(), 0);
    assert_eq!(which(&mut e, &write(0), 5), [1]);
}

#[test]
fn dice_are_the_seeds() {
    let hits = which(&mut when("probability = 0.25"), &write(0), 4000);
    assert!((800..1200).contains(&hits.len()), "{}", hits.len());
    assert_eq!(
        hits,
        which(&mut when("probability = 0.25"), &write(0), 4000)
    );
    assert_eq!(which(&mut when("probability = 1"), &write(0), 5).len(), 5);
}

#[test]
fn states_move_and_can_be_read() {
    let mut e = engine(
        "state = \"a\"\n[[fault]]\nname = \"go\"\nwhen = { state = \"a\", op = \"flush\" }\ngoto = \"b\"\n[[fault]]\nname = \"r\"\nwhen = { state = \"b\" }\naction = { status = 3 }\ngoto = \"a\"\n",
    );
    assert!(!fires(&mut e, &write(0)));
    let moved = e.decide(&request(Op::Flush, 0, 0), 0).unwrap();
    assert_eq!((moved.plan, e.state()), (Plan::default(), "b"));
    assert!(fires(&mut e, &write(0)));
    assert_eq!(e.state(), "a");
    assert!(!fires(&mut e, &write(0)));
    assert!(e.set_state("b") && !e.set_state("nowhere"));
    assert!(fires(&mut e, &write(0)));
}

#[test]
fn after_events_and_times() {
    let flush = request(Op::Flush, 0, 0);
    for (t, events) in [
        (
            "after = { mark = \"go\", count = 2 }",
            vec![note("go"), note("no"), note("go")],
        ),
        ("after = { flush = 1 }", vec![]),
        ("after = { completions = 3 }", vec![]),
    ] {
        let mut e = when(t);
        assert!(!fires(&mut e, &write(0)), "{t}");
        e.completed(&flush, Status::IOERR);
        assert!(!fires(&mut e, &write(0)), "{t}");
        events.iter().for_each(|m| e.mark(m, 0));
        e.completed(&flush, Status::OK);
        e.completed(&write(0), Status::OK);
        assert!(fires(&mut e, &write(0)), "{t}");
        e.mark(&Mark::Control(Control::Arm(None)), 0);
        assert!(!fires(&mut e, &write(0)), "{t}: armed afresh");
    }
    let mut e = engine(
        "[[fault]]\nname = \"b\"\nwhen = { after = { rule = \"a\", count = 2 } }\naction = { hang = true }\n[[fault]]\nname = \"a\"\nwhen = { op = \"any\" }\naction = { status = 3 }\n",
    );
    let names: Vec<_> = (0..3)
        .filter_map(|_| e.decide(&write(0), 0))
        .map(|d| d.name)
        .collect();
    assert_eq!(names, ["a", "a", "b"]);
    let mut e = when("elapsed = { since = \"go\", ms = 2 }");
    assert!(e.decide(&write(0), 9_000_000).is_none(), "no note yet");
    e.mark(&note("go"), 1_000_000);
    assert!(e.decide(&write(0), 2_999_999).is_none());
    assert!(e.decide(&write(0), 3_000_000).is_some());
}

#[test]
fn holds_end_with_an_event() {
    let mut e = action("hold = { limit = \"500ms\", until = { flush = 1 } }");
    let hold = e.decide(&write(0), 0).unwrap().plan.hold.unwrap();
    assert_eq!(hold.limit_ns, Some(500_000_000));
    for _ in 0..2 {
        assert!(e.take_releases().is_empty());
        e.completed(&request(Op::Flush, 0, 0), Status::OK);
        assert_eq!(e.take_releases(), ["r"]);
        e.completed(&request(Op::Flush, 0, 0), Status::OK);
        assert!(e.take_releases().is_empty(), "nothing held");
        assert!(e.decide(&write(0), 0).unwrap().plan.hold.is_some());
    }
    e.mark(&Mark::Control(Control::Release(None)), 0);
    assert!(!fires(&mut e, &write(0)));
}

#[test]
fn plans_of_single_actions() {
    let w = write(8);
    let data = |a: &str| plan(a, &w).data.unwrap();
    assert_eq!(plan("delay = \"5ms\"", &w).delay_ns, Some(5_000_000));
    assert_eq!(
        plan("delay = { fixed = \"1us\", per_kib = \"1us\" }", &w).delay_ns,
        Some(5_000)
    );
    let ns = plan("delay = { min = \"1ms\", max = \"2ms\" }", &w)
        .delay_ns
        .unwrap();
    assert!((1_000_000..=2_000_000).contains(&ns));
    assert!(plan("hang = true", &w).hang);
    assert_eq!(data("torn = { first = 3 }"), DataFault::Torn(vec![(0, 3)]));
    assert_eq!(data("torn = { last = 3 }"), DataFault::Torn(vec![(5, 3)]));
    assert_eq!(
        data("torn = { sectors = [7, \"1+2\", 2, 99] }"),
        DataFault::Torn(vec![(1, 2), (7, 1)])
    );
    let torn = plan("torn = { first = 1 }, status = \"ioerr\"", &w);
    assert!(torn.store && torn.status == Some(Status::IOERR));
    let stored = plan("status = 9, store = true", &w);
    assert!(stored.store && stored.data.is_none());
    assert_eq!(
        data("corrupt = { bits = 9, offset = 4 }"),
        DataFault::Corrupt(vec![(4, 0xff), (5, 1)])
    );
    let DataFault::Corrupt(bits) = data("corrupt = { bits = 100 }") else {
        panic!("no corruption");
    };
    assert_eq!(bits.iter().map(|(_, m)| m.count_ones()).sum::<u32>(), 100);
    assert!(bits.iter().all(|(at, _)| *at < 4096));
    assert_eq!(data("drop = true"), DataFault::Dropped);
    assert_eq!(data("misdirect = { by = -3 }"), DataFault::Misdirected(5));
    assert_eq!(data("misdirect = { to = 3 }"), DataFault::Misdirected(3));
    let flush = request(Op::Flush, 0, 0);
    assert_eq!(
        plan("drop_flush = true", &flush).data,
        Some(DataFault::Dropped)
    );
    assert_eq!(
        plan("late_flush = { writes = 2 }", &flush).data,
        Some(DataFault::LateFlush(2))
    );
    assert!(!fires(&mut action("drop_flush = true"), &w), "no flush");
    assert_eq!(plan("used_len = 0", &w).used_len, Some(0));
    for (text, fault) in [
        (
            "disconnect = { inflight = \"keep\" }",
            DeviceFault::Disconnect { lose: false },
        ),
        (
            "disconnect = { inflight = \"lose\" }",
            DeviceFault::Disconnect { lose: true },
        ),
        ("gone = true", DeviceFault::Gone),
        ("cut = true", DeviceFault::Cut),
    ] {
        assert_eq!(plan(text, &w).device, Some(fault));
    }
    let mut e = action("stale = [\"8+8\", \"16+8\"]");
    assert_eq!(e.kept_ranges().len(), 1, "joined");
    assert!(!fires(&mut e, &w) && !fires(&mut e, &request(Op::Read, 7, 512)));
    let old = e.decide(&request(Op::Read, 12, 4096), 0).unwrap();
    assert_eq!(old.plan.data, Some(DataFault::Stale));
}

/// The arrivals of a group in the order in which they complete.
fn order(engine: &mut Engine, group: usize, sectors: &[u64]) -> Vec<usize> {
    let mut list: Vec<(OrderBy, usize)> = (0..group)
        .map(|arrival| {
            let sector = sectors.get(arrival).copied().unwrap_or(0);
            let plan = engine.decide(&write(sector), 0).unwrap().plan;
            (plan.order.unwrap().turn, arrival)
        })
        .collect();
    list.sort();
    list.into_iter().map(|(_, arrival)| arrival).collect()
}

#[test]
fn orders_of_groups() {
    let by = |text: &str| {
        let mut e = action(&format!("order = {{ group = 3, {text} }}"));
        order(&mut e, 3, &[16, 0, 8])
    };
    assert_eq!(by("permutation = [2, 0, 1]"), [2, 0, 1]);
    assert_eq!(by("permutation = \"reverse\""), [2, 1, 0]);
    assert_eq!(by("permutation = \"offset\""), [1, 2, 0]);
    assert_eq!(by("index = 3"), [1, 2, 0]);
    assert_eq!(
        by("permutation = \"seeded\""),
        by("permutation = \"seeded\"")
    );
    let mut e = action("order = { group = 5, permutation = \"all\" }");
    let all: std::collections::BTreeSet<_> = (0..120).map(|_| order(&mut e, 5, &[])).collect();
    assert_eq!(all.len(), 120);
    // Armed in the middle of a group: the next one has another number.
    let mut group = || e.decide(&write(0), 0).unwrap().plan.order.unwrap().group;
    assert_eq!((group(), group()), (120, 120));
    e.mark(&Mark::Control(Control::Arm(None)), 0);
    assert_eq!(
        e.decide(&write(0), 0).unwrap().plan.order.unwrap().group,
        121
    );
}
