// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every trigger at a real connection: one rule that answers 77, a story of requests and marks, and
//! for each request whether it got that answer.

mod common;

use common::driver::*;
use common::serve::Serve;
use common::until;
use wtblk_shared::tag::Tag;

/// What the rule answers.
const STRUCK: u8 = 77;
const TAG: u16 = 5;

/// Where the call's file lies: 16 KiB at sector 2048. The log: 64 sectors at 4096.
const BEGIN: &str = "begin call=1 test=t dev=1 ino=7 open=1 off=0 len=16384 flags=writethrough,dsync \
                     isize=16384 bsize=4096 tag=5 ext=0:1048576:16384:0";
const END: &str = "end call=1 result=16384 isize=16384";
const FS: &str = "fs dev=1 kind=xfs bsize=4096 log_start=2097152 log_len=32768";

#[derive(Clone, Copy)]
enum Do {
    /// A request: kind, first sector, bytes, tagged; and whether the rule fires on it.
    Ask(u32, u64, u32, bool, bool),
    Mark(&'static str),
}
use Do::*;

const fn write(sector: u64, fires: bool) -> Do {
    Ask(OUT, sector, 4096, false, fires)
}
const fn read(sector: u64, fires: bool) -> Do {
    Ask(IN, sector, 4096, false, fires)
}
/// A write with the call's tag.
const fn tagged(sector: u64, fires: bool) -> Do {
    Ask(OUT, sector, 4096, true, fires)
}
const fn flush(fires: bool) -> Do {
    Ask(FLUSH, 0, 0, false, fires)
}

const NO: bool = false;
const YES: bool = true;

const STORIES: &[(&str, &[Do])] = &[
    ("op = \"write\"", &[read(0, NO), write(0, YES), flush(NO)]),
    ("op = \"read\"", &[write(0, NO), read(0, YES)]),
    ("op = \"flush\"", &[write(0, NO), flush(YES)]),
    (
        "op = \"get-id\"",
        &[write(0, NO), Ask(GET_ID, 0, 20, false, YES)],
    ),
    ("op = \"any\"", &[read(0, YES), write(0, YES), flush(YES)]),
    (
        "lba = \"100+8\"",
        &[
            write(92, NO),
            write(93, YES),
            read(100, YES),
            write(107, YES),
            write(108, NO),
            flush(NO),
        ],
    ),
    (
        "lba = [\"0+1\", \"64+1\"]",
        &[write(0, YES), write(1, NO), write(57, YES), write(65, NO)],
    ),
    (
        "class = \"log\"",
        &[
            write(4096, NO),
            Mark(FS),
            write(4096, YES),
            write(4159, YES),
            write(4160, NO),
            flush(NO),
        ],
    ),
    (
        "class = \"data\"",
        &[
            write(2048, NO),
            Mark(FS),
            Mark(BEGIN),
            write(2048, YES),
            write(2080, NO),
            write(4096, NO),
        ],
    ),
    (
        "class = \"other\"",
        &[
            write(2048, YES),
            Mark(FS),
            Mark(BEGIN),
            write(2048, NO),
            write(4096, NO),
            write(9000, YES),
            flush(YES),
        ],
    ),
    (
        "file = \"4096+8192\"",
        &[
            tagged(2056, NO),
            Mark(BEGIN),
            tagged(2048, NO),
            tagged(2056, YES),
            tagged(2064, YES),
            tagged(2072, NO),
            Mark(END),
            tagged(2056, NO),
        ],
    ),
    (
        "file = { ino = 7 }",
        &[Mark(BEGIN), tagged(2048, YES), tagged(9000, NO)],
    ),
    ("file = { ino = 8 }", &[Mark(BEGIN), tagged(2048, NO)]),
    (
        "size = 512",
        &[
            write(0, NO),
            Ask(OUT, 0, 512, false, YES),
            Ask(IN, 0, 512, false, YES),
        ],
    ),
    (
        "size = { min = 1024, max = \"2KiB\" }",
        &[
            Ask(OUT, 0, 512, false, NO),
            Ask(OUT, 0, 1024, false, YES),
            Ask(OUT, 0, 2048, false, YES),
            Ask(OUT, 0, 2560, false, NO),
        ],
    ),
    (
        "op = \"write\", nth_in_call = 2",
        &[
            write(0, NO),
            Mark(BEGIN),
            tagged(9000, NO),
            tagged(2048, NO),
            tagged(2056, YES),
            tagged(2064, NO),
            Mark(END),
            Mark(BEGIN),
            tagged(2048, NO),
            tagged(2048, YES),
        ],
    ),
    (
        "op = \"write\", nth = { n = 2, per = \"rule\" }",
        &[
            write(0, NO),
            read(0, NO),
            write(0, YES),
            write(0, NO),
            Mark("arm"),
            write(0, NO),
            write(0, YES),
        ],
    ),
    (
        "op = \"write\", every = { n = 2, per = \"rule\" }",
        &[write(0, NO), write(0, YES), write(0, NO), write(0, YES)],
    ),
    (
        "op = \"write\", nth = { n = 2, per = \"call\" }",
        &[
            tagged(0, NO),
            tagged(0, NO),
            Mark(BEGIN),
            tagged(0, NO),
            write(0, NO),
            tagged(0, YES),
            tagged(0, NO),
        ],
    ),
    (
        "op = \"write\", every = { n = 2, per = \"test\" }",
        &[
            write(0, NO),
            write(0, NO),
            Mark("test-begin name=t"),
            write(0, NO),
            write(0, YES),
            write(0, NO),
            Mark("test-begin name=u"),
            write(0, NO),
            write(0, YES),
        ],
    ),
    (
        "op = \"any\", probability = 1.0",
        &[write(0, YES), read(0, YES)],
    ),
    (
        "in_call = true",
        &[
            tagged(0, NO),
            Mark(BEGIN),
            tagged(0, YES),
            write(0, NO),
            Mark(END),
            tagged(0, NO),
        ],
    ),
    (
        "in_call = false",
        &[write(0, YES), Mark(BEGIN), tagged(0, NO), write(0, YES)],
    ),
    ("in_call = 2", &[Mark(BEGIN), tagged(2048, NO)]),
    ("in_call = 1", &[Mark(BEGIN), tagged(2048, YES)]),
    (
        "in_call = \"data\"",
        &[Mark(BEGIN), tagged(0, NO), tagged(2048, YES)],
    ),
    (
        "in_call = \"side\"",
        &[Mark(BEGIN), tagged(0, YES), tagged(2048, NO)],
    ),
    (
        "in_test = \"t\"",
        &[
            write(0, NO),
            Mark("test-begin name=t"),
            write(0, YES),
            Mark("test-end name=t"),
            write(0, NO),
            Mark("test-begin name=u"),
            write(0, NO),
        ],
    ),
    (
        "in_test = false",
        &[
            write(0, YES),
            Mark("test-begin name=t"),
            write(0, NO),
            Mark("test-end name=t"),
            write(0, YES),
        ],
    ),
    (
        "flags = [\"dsync\", \"writethrough\"]",
        &[tagged(0, NO), Mark(BEGIN), tagged(0, YES), write(0, NO)],
    ),
    ("flags = \"direct\"", &[Mark(BEGIN), tagged(0, NO)]),
    (
        "state = \"armed\"",
        &[
            write(0, NO),
            Mark("set-state state=armed"),
            write(0, YES),
            Mark("set-state state=start"),
            write(0, NO),
        ],
    ),
    (
        "op = \"write\", after = { mark = \"go\" }",
        &[
            write(0, NO),
            Mark("note text=stop"),
            write(0, NO),
            Mark("note text=go"),
            write(0, YES),
            Mark("arm"),
            write(0, NO),
        ],
    ),
    (
        "op = \"write\", after = { mark = \"go\", count = 2 }",
        &[
            Mark("note text=go"),
            write(0, NO),
            Mark("note text=go"),
            write(0, YES),
        ],
    ),
    (
        "op = \"write\", after = { flush = 2 }",
        &[flush(NO), write(0, NO), flush(NO), write(0, YES)],
    ),
    (
        "op = \"any\", after = { completions = 3 }",
        &[write(0, NO), read(0, NO), flush(NO), write(0, YES)],
    ),
    (
        "all = [{ op = \"write\" }, { lba = \"0+8\" }]",
        &[write(0, YES), read(0, NO), write(8, NO)],
    ),
    (
        "any = [{ op = \"flush\" }, { op = \"write\", lba = \"0+8\" }]",
        &[flush(YES), write(0, YES), write(8, NO), read(0, NO)],
    ),
    (
        "op = \"write\", not = { lba = \"0+8\" }",
        &[write(0, NO), write(8, YES), read(8, NO)],
    ),
];

struct World {
    serve: Serve,
    d: Driver,
    mark: Driver,
}

fn world(rules: &str) -> World {
    let serve = Serve::start(&format!("version = 1\n{rules}"), &[]);
    let d = Driver::connect(serve.data(), 1);
    let mark = Driver::connect(serve.mark(), 1);
    World { serve, d, mark }
}

fn strikes(when: &str) -> String {
    format!("[[fault]]\nname = \"r\"\nwhen = {{ {when} }}\naction = {{ status = {STRUCK} }}\n")
}

impl World {
    /// Makes a request available in slot `n`.
    fn post(&mut self, n: u64, kind: u32, sector: u64, bytes: u32, tag: bool) -> u16 {
        let at = self.d.slot(0, n);
        let ioprio = if tag {
            Tag::new(TAG).unwrap().ioprio().into()
        } else {
            0
        };
        self.d.header(at, kind, ioprio, sector);
        let mut parts = vec![(at, 16, 0)];
        if bytes > 0 {
            parts.push((at + 0x1000, bytes, if kind == OUT { 0 } else { WRITE }));
        }
        parts.push((at + 0x20, 1, WRITE));
        let head = self.d.chain(0, &parts);
        self.d.kick(0);
        head
    }

    fn ask(&mut self, kind: u32, sector: u64, bytes: u32, tag: bool) -> u8 {
        let head = self.post(0, kind, sector, bytes, tag);
        self.d.finish(0, 0, head)
    }

    fn write(&mut self) -> u8 {
        self.ask(OUT, 0, 512, false)
    }

    fn end(self) {
        drop((self.d, self.mark));
        self.serve.end().assert_paired();
    }
}

#[test]
fn each_trigger_strikes_what_it_names_and_nothing_else() {
    for (when, story) in STORIES {
        let mut w = world(&strikes(when));
        for (n, step) in story.iter().enumerate() {
            match *step {
                Mark(text) => assert_eq!(w.mark.mark(text), 0, "{when}: {text}"),
                Ask(kind, sector, bytes, tag, fires) => {
                    let status = w.ask(kind, sector, bytes, tag);
                    let want = if fires { STRUCK } else { 0 };
                    assert_eq!(status, want, "{when}: step {n}");
                }
            }
        }
        w.end();
    }
}

/// A request that the rule `keep` holds counts as one in flight.
#[test]
fn the_depth_in_flight() {
    let keep =
        "[[fault]]\nname = \"keep\"\nwhen = { lba = \"8000+8\" }\naction = { hold = true }\n";
    let mut w = world(&format!(
        "{keep}{}",
        strikes("op = \"write\", inflight = 2")
    ));
    assert_eq!(w.write(), 0, "alone");
    let held = w.post(1, OUT, 8000, 512, false);
    assert_eq!(w.mark.mark("wait held=1"), 0);
    assert_eq!(w.write(), STRUCK, "beside another");
    let second = w.post(2, OUT, 8000, 512, false);
    assert_eq!(w.mark.mark("wait held=2"), 0);
    assert_eq!(w.write(), 0, "the third");
    assert_eq!(w.mark.mark("release rule=keep"), 0);
    assert_eq!((w.d.finish(0, 1, held), w.d.finish(0, 2, second)), (0, 0));
    assert_eq!(w.write(), 0, "alone again");
    w.end();
}

#[test]
fn another_rule() {
    let first =
        "[[fault]]\nname = \"first\"\nwhen = { lba = \"100+8\" }\naction = { status = 9 }\n";
    let second = strikes("op = \"write\", after = { rule = \"first\", count = 2 }");
    let mut w = world(&format!("{first}{second}"));
    assert_eq!(w.write(), 0);
    assert_eq!(w.ask(OUT, 100, 512, false), 9);
    assert_eq!(w.write(), 0);
    assert_eq!(w.ask(OUT, 100, 512, false), 9);
    assert_eq!(w.write(), STRUCK);
    w.end();
}

/// A rule moves the state, and the other is in it.
#[test]
fn states_with_transitions() {
    let arm = "[[fault]]\nname = \"arm\"\nwhen = { op = \"flush\" }\ngoto = \"armed\"\n";
    let fire = format!(
        "{}goto = \"start\"\n",
        strikes("op = \"write\", state = \"armed\"")
    );
    let mut w = world(&format!("{arm}{fire}"));
    for _ in 0..2 {
        assert_eq!(w.write(), 0);
        assert!(w.mark.state().contains(" state=start "));
        assert_eq!(w.ask(FLUSH, 0, 0, false), 0);
        assert!(w.mark.state().contains(" state=armed "));
        assert_eq!(w.write(), STRUCK);
    }
    w.end();
}

#[test]
fn time_since_a_mark() {
    let mut w = world(&strikes(
        "op = \"write\", elapsed = { since = \"go\", ms = 30 }",
    ));
    assert_eq!(w.write(), 0, "no such mark yet");
    let begun = std::time::Instant::now();
    assert_eq!(w.mark.mark("note text=go"), 0);
    until("the time", || (w.write() == STRUCK).then_some(()));
    assert!(begun.elapsed().as_millis() >= 30);
    w.end();
    // An hour does not pass in a test.
    let mut w = world(&strikes(
        "op = \"write\", elapsed = { since = \"go\", ms = 3600000 }",
    ));
    assert_eq!(w.mark.mark("note text=go"), 0);
    assert_eq!(w.write(), 0);
    w.end();
}

/// By the seed alone: the same again with the same, otherwise with another.
#[test]
fn chance() {
    let throws = |seed: &str| {
        let text = format!(
            "version = 1\n{}",
            strikes("op = \"write\", probability = 0.5")
        );
        let serve = Serve::start(&text, &["--seed", seed]);
        let mut d = Driver::connect(serve.data(), 1);
        let all: Vec<u8> = (0..64).map(|_| d.write(0, &[1; 512])).collect();
        drop(d);
        serve.end();
        all
    };
    let one = throws("1");
    let struck = one.iter().filter(|s| **s == STRUCK).count();
    assert!((10..54).contains(&struck), "{struck} of 64");
    assert_eq!(one, throws("1"));
    assert_ne!(one, throws("2"));
}
