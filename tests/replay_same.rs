// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Random rules and random requests at a real device: what `wtblk replay` makes of the recorded trace is, decision
//! by decision, what the device did; and a second device that is told the same does the same.

mod common;

use common::driver::*;
use common::serve::{Serve, Trace};
use proptest::prelude::*;
use wtblk::cli::replay::Replay;
use wtblk::fault::{Engine, Scenario};
use wtblk::trace::event::{Body, DATA_DISK};
use wtblk_shared::tag::Tag;

const TAG: u16 = 5;

fn rule() -> impl Strategy<Value = String> {
    let when = prop::sample::select(vec![
        "op = \"write\"",
        "op = \"any\", probability = 0.3",
        "op = \"write\", probability = 0.5",
        "op = \"read\", lba = \"0+32\"",
        "op = \"write\", nth_in_call = 2",
        "op = \"write\", every = { n = 3, per = \"rule\" }",
        "every = { n = 2, per = \"call\" }",
        "nth = { n = 2, per = \"test\" }",
        "op = \"any\", inflight = { min = 2 }",
        "op = \"write\", after = { flush = 1 }",
        "op = \"write\", after = { rule = \"r0\", count = 2 }",
        "op = \"any\", after = { completions = 4 }",
        "op = \"write\", state = \"s1\"",
        "op = \"any\", in_call = \"data\"",
        "op = \"write\", class = \"data\"",
        "op = \"write\", file = \"4096+8192\"",
        "op = \"write\", after = { mark = \"go\" }",
    ]);
    let action = prop::sample::select(vec![
        "status = \"ioerr\"",
        "status = 9, store = true",
        "delay = \"200us\"",
        "delay = { min = \"1us\", max = \"90us\" }",
        "used_len = 3",
    ]);
    let goto = prop::option::of(prop::sample::select(vec!["start", "s1"]));
    (when, action, prop::option::of(1u8..4), goto).prop_map(|(when, action, times, goto)| {
        let times = times.map_or(String::new(), |n| format!("times = {n}\n"));
        let goto = goto.map_or(String::new(), |s| format!("goto = \"{s}\"\n"));
        format!("when = {{ {when} }}\naction = {{ {action} }}\n{times}{goto}")
    })
}

#[derive(Clone, Debug)]
enum Step {
    /// These are made available together: kind, sector, tagged.
    Batch(Vec<(u32, u64, bool)>),
    Mark(&'static str),
}

fn step() -> impl Strategy<Value = Step> {
    let request = (
        prop::sample::select(vec![IN, OUT, OUT, FLUSH]),
        0u64..64,
        any::<bool>(),
    );
    prop_oneof![
        4 => prop::collection::vec(request, 1..6).prop_map(Step::Batch),
        1 => prop::sample::select(vec![
            "begin call=1 test=t dev=1 ino=7 open=1 off=0 len=16384 flags=writethrough isize=16384 bsize=4096 tag=5 ext=0:0:16384:0",
            "end call=1 result=16384 isize=16384",
            "test-begin name=t",
            "test-end name=t",
            "note text=go",
        ]).prop_map(Step::Mark),
    ]
}

/// A device that is told all this: its trace.
fn told(scenario: &str, steps: &[Step], seed: u64) -> Trace {
    let serve = Serve::start(scenario, &["--seed", &seed.to_string()]);
    let mut d = Driver::connect(serve.data(), 1);
    let mut mark = Driver::connect(serve.mark(), 1);
    let tag = Tag::new(TAG).expect("a tag").ioprio().into();
    for step in steps {
        match step {
            Step::Mark(text) => {
                // One that the parser refuses would leave all of it untried.
                assert_eq!(mark.mark(text), 0, "{text}");
            }
            Step::Batch(requests) => {
                let mut heads = Vec::new();
                for (n, &(kind, sector, tagged)) in (0..).zip(requests) {
                    let at = d.slot(0, n);
                    d.header(at, kind, if tagged { tag } else { 0 }, sector);
                    let mut parts = vec![(at, 16, 0)];
                    match kind {
                        OUT => parts.push((at + 0x1000, 512, 0)),
                        IN => parts.push((at + 0x1000, 512, WRITE)),
                        _ => {}
                    }
                    parts.push((at + 0x20, 1, WRITE));
                    heads.push(d.chain(0, &parts));
                }
                d.kick(0);
                for (n, head) in (0..).zip(heads) {
                    d.finish(0, n, head);
                }
            }
        }
    }
    drop((d, mark));
    serve.end()
}

/// Which rule decided what, by the number of the request among all.
fn decided(trace: &Trace) -> Vec<(usize, u16, String, String)> {
    let submits = trace.submits();
    let number = |id: u64| submits.iter().position(|(seq, _)| *seq == id);
    let pick = |body: &Body| match body {
        Body::Decide(d) => Some((
            number(d.request).expect("a request"),
            d.rule,
            d.name.clone(),
            d.plan.clone(),
        )),
        _ => None,
    };
    trace.0.iter().filter_map(|e| pick(&e.body)).collect()
}

/// The same by the replay.
fn replayed(trace: &Trace, scenario: &str, seed: u64) -> Vec<(usize, u16, String, String)> {
    let scenario = Scenario::parse("f", scenario).expect("a scenario");
    let mut replay = Replay::new(Engine::new(&scenario, seed));
    let mut all = Vec::new();
    let mut number = 0;
    for event in &trace.0 {
        let lines = replay.event(event);
        let Body::Submit(submit) = &event.body else {
            continue;
        };
        if submit.disk != DATA_DISK {
            continue;
        }
        for line in lines {
            let said = line.split_once(": rule ").expect("a decision").1;
            let (rule, rest) = said.split_once(" (").expect("a name");
            let (name, plan) = rest.split_once("): ").expect("a plan");
            let rule = rule.parse().expect("a number");
            all.push((number, rule, name.to_owned(), plan.to_owned()));
        }
        number += 1;
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 50, ..ProptestConfig::default() })]

    #[test]
    fn a_replay_decides_as_the_device_did(
        rules in prop::collection::vec(rule(), 1..5),
        steps in prop::collection::vec(step(), 1..12),
        seed in 0u64..1000,
    ) {
        let text: String = rules.iter().enumerate()
            .map(|(n, r)| format!("[[fault]]\nname = \"r{n}\"\n{r}"))
            .collect();
        let text = format!("version = 1\n{text}");
        if Scenario::parse("f", &text).is_err() {
            return Ok(());
        }
        let trace = told(&text, &steps, seed);
        trace.assert_paired();
        let did = decided(&trace);
        prop_assert_eq!(&replayed(&trace, &text, seed), &did, "{}", text);
    }
}
