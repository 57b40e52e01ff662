// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Findings from near: picture, chain, groups.

use proptest::prelude::*;
use wtblk_shared::mark::CallBegin;

use super::super::contract::Contract;
use super::super::render;
use super::super::story::{MAX_STORIES, Stories, Story};
use super::super::verdict::Verdicts;
use super::builder::*;
use super::world::{Wanted, legal};
use crate::trace::event::{Body, Event};

/// The verdicts with their stories.
fn told(events: &[Event]) -> Verdicts {
    let mut verdicts = judge(events, Contract::default());
    let mut stories = Stories::of(&verdicts);
    assert_eq!(stories.is_empty(), verdicts.findings().next().is_none());
    for event in events {
        stories.event(event);
    }
    stories.tell(&mut verdicts);
    verdicts
}

fn the_story(verdicts: &Verdicts, promise: &str) -> Story {
    let found = verdicts.findings().find(|f| f.promise == promise);
    *found.unwrap().story.clone().unwrap()
}

/// A call of four blocks of which the second fails and nobody is told.
fn swallowed() -> Stream {
    let mut s = Stream::booted();
    let c = call(3, 0, 4 * B);
    s.begin(&c);
    let first = s.write(3, DISK, B);
    let second = s.write(3, DISK + B, 2 * B);
    let third = s.write(3, DISK + 3 * B, B);
    let log = s.write(3, LOG, 512);
    s.ok(third);
    s.fail(second);
    s.ok(log);
    s.ok(first);
    s.end(&c, 4 * B as i64);
    s
}

#[test]
fn the_requests_of_the_call_are_told_with_their_orders() {
    let verdicts = told(&swallowed().events);
    let story = the_story(&verdicts, "error-report");
    assert_eq!((story.range, story.block), (Some((0, 4 * B)), B));
    let seen: Vec<_> = story
        .requests
        .iter()
        .map(|r| (r.arrived, r.completed, r.status, r.class.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            (1, Some(4), Some(0), "data"),
            (2, Some(2), Some(1), "data"),
            (3, Some(1), Some(0), "data"),
            (4, Some(3), Some(0), "side"),
        ]
    );
    assert_eq!(story.left, [(B, 3 * B)]);
    let finding = verdicts.findings().next().unwrap();
    let text = render::finding(finding, None).join("\n");
    for part in [
        "[        xxxxxxxxxxxxxxxx        ] 2nd IOERR",
        "[        ????????????????        ] left: 8192 bytes",
        "4 blocks of 4096",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

/// Each step names only what came surely before it, and by which rule.
#[test]
fn the_chain_says_what_is_certain_and_nothing_else() {
    let story = the_story(&told(&swallowed().events), "error-report");
    let numbers: Vec<u64> = story.chain.iter().map(|s| s.event).collect();
    let after: Vec<Vec<u64>> = story
        .chain
        .iter()
        .map(|s| s.after.iter().map(|a| a.event).collect())
        .collect();
    let &[begin, submit, complete, end] = numbers.as_slice() else {
        panic!("{story:#?}");
    };
    assert_eq!(after, [vec![], vec![begin], vec![submit], vec![begin]]);
    assert!(end > complete);
    // Nothing says that the completion was seen before the end mark was written.
    assert!(story.chain[3].what.contains("returned 16384"), "{story:#?}");
}

#[test]
fn a_request_that_a_completion_was_visible_to_says_so() {
    let mut s = Stream::booted();
    let c = call(3, 0, 2 * B);
    s.begin(&c);
    let ring = |s: &mut Stream, at: u16| {
        if let Some(Event {
            body: Body::Submit(x),
            ..
        }) = s.events.last_mut()
        {
            x.avail_pos = at;
        }
    };
    let a = s.write(3, DISK + B, B);
    ring(&mut s, 7);
    s.ok(a);
    if let Some(Event {
        body: Body::Complete(x),
        ..
    }) = s.events.last_mut()
    {
        x.avail_after = 8;
    }
    let b = s.write(3, DISK, B);
    ring(&mut s, 8);
    s.ok(b);
    s.end(&c, 2 * B as i64);
    let rules = |s: &Stream| {
        let story = the_story(&told(&s.events), "order");
        let step = story.chain.iter().find(|x| x.event == b).unwrap();
        step.after.iter().map(|a| a.event).collect::<Vec<_>>()
    };
    let begin = c_begin(&s);
    assert_eq!(rules(&s), [begin, a + 1]);
    // A place in the ring before what the index was then: submitted earlier, perhaps.
    let at = s.events.iter().position(|e| e.seq == b).unwrap();
    if let Body::Submit(x) = &mut s.events[at].body {
        x.avail_pos = 7;
    }
    assert_eq!(rules(&s), [begin]);
}

fn c_begin(s: &Stream) -> u64 {
    let is = |e: &&Event| matches!(&e.body, Body::Mark(m) if m.line.contains(" begin call=3 "));
    s.events.iter().find(is).unwrap().seq
}

/// Two promises that one call breaks have one cause; so have calls that break one
/// promise alike. Another promise of another call has not.
#[test]
fn findings_of_one_cause_are_grouped() {
    let mut s = swallowed();
    let lost = |s: &mut Stream, number: u64| {
        let c = call(number, 0, 2 * B);
        s.begin(&c);
        let r = s.write(number as u16, DISK, B);
        s.ok(r);
        s.end(&c, 2 * B as i64);
    };
    lost(&mut s, 4);
    lost(&mut s, 5);
    let both = call(6, 0, 2 * B);
    s.begin(&both);
    s.write(6, DISK, B);
    s.end(&both, 2 * B as i64);
    s.all_ok();
    let verdicts = told(&s.events);
    let groups = &verdicts.tests[0].groups;
    let seen: Vec<_> = groups
        .iter()
        .map(|g| (g.promises.clone(), g.calls.clone()))
        .collect();
    let p = |name: &str, n| (name.to_owned(), n);
    assert_eq!(
        seen,
        [
            (vec![p("cover", 2)], vec![4, 5]),
            (vec![p("sync-return", 1)], vec![6]),
            (vec![p("error-report", 1)], vec![3]),
        ],
        "{verdicts:#?}"
    );
    let text = render::verdicts(&verdicts).join("\n");
    assert_eq!(text.matches("picture ").count(), 3, "{text}");
    assert_eq!(text.matches("\n      also  ").count(), 1, "{text}");
    // The same as JSON: everything that the text shows, and back again.
    let json = serde_json::to_string(&verdicts).unwrap();
    assert_eq!(serde_json::from_str::<Verdicts>(&json).unwrap(), verdicts);
}

#[test]
fn numbers_that_start_again_with_a_boot_are_told_apart() {
    let mut s = swallowed();
    s.power_on();
    let c = CallBegin {
        off: 8 * B,
        ..call(3, 8 * B, B)
    };
    s.begin(&c);
    let r = s.write(3, DISK + 8 * B, B);
    s.ok(r);
    s.end(&c, B as i64);
    let story = the_story(&told(&s.events), "error-report");
    assert_eq!(story.range, Some((0, 4 * B)));
    assert_eq!(story.requests.len(), 4);
}

proptest! {
    /// Whatever a trace says, telling it does no harm and has its bounds.
    #[test]
    fn any_stream_can_be_told(seed: u64, swaps in prop::collection::vec(any::<(prop::sample::Index, prop::sample::Index)>(), 0..60)) {
        let mut events = legal(seed, 8, Wanted { wild: true }).events;
        for (a, b) in swaps {
            let (a, b) = (a.index(events.len()), b.index(events.len()));
            events.swap(a, b);
        }
        let verdicts = told(&events);
        prop_assert!(verdicts.findings().filter(|f| f.story.is_some()).count() <= MAX_STORIES);
        for f in verdicts.findings() {
            for step in &f.story.as_ref().unwrap().chain {
                prop_assert!(f.events.contains(&step.event));
                prop_assert!(step.after.iter().all(|a| a.event != step.event));
            }
        }
        render::verdicts(&verdicts);
    }
}
