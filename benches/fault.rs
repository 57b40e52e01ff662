// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a request costs in the fault engine: without rules, and with a thousand of each kind.
//! `cargo bench --bench fault`; the ratio to `one rule` says more than the time on a busy machine.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion};
use wtblk::fault::request::Request;
use wtblk::fault::{Engine, Scenario};
use wtblk::trace::event::Op;
use wtblk_shared::mark::{CallBegin, Extent, Mark};
use wtblk_shared::tag::Tag;

const RULES: usize = 1000;

fn engine(rules: impl Iterator<Item = String>) -> Engine {
    let mut text = "version = 1\n".to_owned();
    for (n, rule) in rules.enumerate() {
        text += &format!("[[fault]]\nname = \"r{n}\"\naction = {{ status = \"ioerr\" }}\n{rule}\n");
    }
    let scenario = match Scenario::parse("bench", &text) {
        Ok(scenario) => scenario,
        Err(error) => panic!("{error}"),
    };
    let mut engine = Engine::new(&scenario, 1);
    engine.mark(
        &Mark::Begin(CallBegin {
            call: 1,
            len: 1 << 30,
            bsize: 4096,
            tag: Some(5),
            extents: Some(vec![Extent {
                logical: 0,
                physical: 0,
                length: 1 << 30,
                flags: 0,
            }]),
            ..CallBegin::default()
        }),
        0,
    );
    let text = "came".to_owned();
    engine.mark(&Mark::Note { text }, 0);
    engine
}

/// A thousand rules of one kind, none of which fires on these requests but where the name says so.
fn rules(kind: &str) -> Engine {
    let rule = |n: usize| match kind {
        "lba" => format!(
            "when = {{ op = \"write\", lba = \"{}+8\" }}\ntimes = 1",
            n * 8
        ),
        "nth per rule" => format!(
            "when = {{ op = \"write\", nth = {{ n = {}, per = \"rule\" }} }}",
            1_000_000_000_000 + n
        ),
        "nth_in_call" => format!(
            "when = {{ op = \"write\", nth_in_call = {} }}",
            1_000_000_000_000 + n
        ),
        "of other tests" => format!("test = \"t{n}\"\nwhen = {{ op = \"write\" }}"),
        "other states" => format!("when = {{ op = \"write\", state = \"s{n}\" }}"),
        "used up" => "when = { op = \"write\" }\ntimes = 1".to_owned(),
        "other sizes" => format!("when = {{ op = \"write\", size = {} }}", 512 * (n + 9)),
        "other calls" => format!("when = {{ op = \"write\", in_call = {} }}", n + 2),
        "after a note" => format!("when = {{ op = \"write\", after = {{ mark = \"m{n}\" }} }}"),
        "after notes that came" => {
            format!(
                "when = {{ op = \"write\", after = {{ mark = \"came\" }}, lba = \"{}+8\" }}",
                (1 << 40) + n
            )
        }
        "after completions" => format!(
            "when = {{ op = \"write\", after = {{ completions = {} }} }}",
            1_000_000_000_000u64 + n as u64
        ),
        "elapsed" => {
            format!("when = {{ op = \"write\", elapsed = {{ since = \"m{n}\", ms = 1 }} }}")
        }
        "elapsed, later" => format!(
            "when = {{ op = \"write\", elapsed = {{ since = \"came\", ms = {} }} }}",
            80_000_000 + n
        ),
        "class" => "when = { op = \"write\", class = \"log\" }".to_owned(),
        "in_test" => format!("when = {{ op = \"write\", in_test = \"t{n}\" }}"),
        "in flight" => format!("when = {{ op = \"write\", inflight = {} }}", n + 9),
        "used up, all of this size" => {
            "when = { op = \"write\", size = 4096 }\ntimes = 1".to_owned()
        }
        "dice" => "when = { op = \"write\", probability = 1e-12 }".to_owned(),
        "mixed" => match n % 5 {
            0 => format!(
                "when = {{ op = \"write\", lba = \"{}+8\" }}\ntimes = 1",
                n * 8
            ),
            1 => format!(
                "when = {{ op = \"write\", nth_in_call = {} }}",
                1_000_000_000_000 + n
            ),
            2 => format!("test = \"t{n}\"\nwhen = {{ op = \"write\" }}"),
            3 => format!("when = {{ op = \"write\", state = \"s{n}\" }}"),
            _ => format!("when = {{ op = \"flush\", nth = {{ n = {n}, per = \"rule\" }} }}"),
        },
        other => panic!("{other}"),
    };
    engine((0..RULES).map(rule))
}

fn request(n: u64) -> Request {
    Request {
        id: n,
        disk: 0,
        queue: 0,
        op: Op::Write,
        sector: n * 8 % 100_000,
        bytes: 4096,
        tag: Tag::new(5),
        inflight: 3,
    }
}

fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    let mut run = |name: &str, mut engine: Engine| {
        let mut n = 0;
        // What fires once has fired.
        for warm in 0..20_000 {
            engine.decide(&request(warm), 0);
        }
        group.bench_function(BenchmarkId::from_parameter(name), |b| {
            b.iter(|| {
                n += 1;
                black_box(engine.decide(black_box(&request(n)), n))
            });
        });
    };
    run("no rule", engine(std::iter::empty()));
    run(
        "one rule",
        engine(std::iter::once(
            "when = { op = \"write\", lba = \"900000+8\" }".to_owned(),
        )),
    );
    for kind in [
        "mixed",
        "lba",
        "nth per rule",
        "nth_in_call",
        "of other tests",
        "other states",
        "used up",
        "other sizes",
        "other calls",
        "after a note",
        "after notes that came",
        "after completions",
        "elapsed",
        "elapsed, later",
        "class",
        "in_test",
        "in flight",
        "dice",
        "used up, all of this size",
    ] {
        run(&format!("1000 {kind}"), rules(kind));
    }
}

/// Criterion's own macros make a function without documentation.
fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    decide(&mut criterion);
    criterion.final_summary();
}
