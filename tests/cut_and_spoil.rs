// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk minimize` and `wtblk selftest` on traces of real guests.

mod support;

use std::path::{Path, PathBuf};

use support::{run, wtblk};
use wtblk::trace::TraceReader;
use wtblk::trace::event::Event;

fn typed(args: &[&str]) -> (i32, String) {
    let output = wtblk().args(args).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.code().unwrap(), said)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn events(path: &Path) -> Vec<Event> {
    let mut reader = TraceReader::open(path).unwrap();
    let mut events = Vec::new();
    while let Some(event) = reader.next().unwrap() {
        events.push(event);
    }
    events
}

#[test]
fn a_trace_is_cut_to_what_shows_the_finding() {
    let run = run(&["--test", "error-mid-call", "--defect", "leak-writeback"]);
    let trace = run.dir.path().join("boot-1/trace.wtblk");
    let small = run.dir.path().join("small");
    for (promise, most) in [("writeback-cleared", 13), ("progress", 13)] {
        let (status, said) = typed(&[
            "minimize",
            text(&trace),
            "--force",
            "--out",
            text(&small),
            "--promise",
            promise,
        ]);
        assert_eq!(status, 0, "{said}");
        assert!(said.contains("nothing more can be left out"), "{said}");
        let left = events(&small);
        assert!(left.len() <= most, "{promise}: {left:#?}");
        let (status, said) = typed(&["verify", text(&small)]);
        assert_eq!(status, 1, "{said}");
        assert!(
            said.contains(&format!("finding: {promise} is broken")),
            "{said}"
        );
        // Times are those of the events: a limit is measured by them.
        let all = events(&trace);
        assert!(
            left.iter()
                .all(|e| all.iter().any(|a| a.time_ns == e.time_ns))
        );
    }
    let (status, said) = typed(&[
        "minimize",
        text(&trace),
        "--force",
        "--out",
        text(&small),
        "--promise",
        "align",
    ]);
    assert_eq!(status, 2);
    assert!(said.contains("there is no such finding"), "{said}");
}

/// Tests whose traces have a place for each promise. The judge goes through the whole of a trace for every damage:
/// that of all tests takes minutes (`ci/soak` does it).
const PLACES: [&str; 10] = [
    "overwrite-aligned",
    "overwrite-unaligned",
    "multi-extent",
    "dsync",
    "errseq",
    "store-in-flight",
    "stop-after-error",
    "fails-while-held",
    "freeze-in-flight",
    "async-stop-after-error",
];

/// What is aimed at a promise is seen by it, always; and the traces of the clean kernel
/// have a place for each promise.
#[test]
fn all_damage_that_is_aimed_at_a_promise_is_found() {
    let tests = PLACES.iter().flat_map(|test| ["--test", *test]);
    let args: Vec<&str> = ["--tags", "on"].into_iter().chain(tests).collect();
    let run = run(&args);
    assert_eq!(run.status, 0, "{}", run.said());
    let traces: Vec<PathBuf> = (1..)
        .map(|n| run.dir.path().join(format!("boot-{n}/trace.wtblk")))
        .take_while(|p| p.exists())
        .collect();
    let mut args = vec!["selftest", "--mutants", "3"];
    args.extend(traces.iter().map(|p| text(p)));
    let (status, said) = typed(&args);
    assert_eq!(status, 0, "{said}");
    let table = said.split("by promise").next().unwrap();
    for row in table.lines().skip(1) {
        let fine = row.contains("100.0 % (") || row.contains("no place for it");
        assert!(fine, "{row}\n{said}");
    }
    for promise in [
        "align",
        "cover",
        "no-overlap",
        "stable",
        "sync-return",
        "error-report",
        "size",
        "written-once",
        "order",
        "data",
        "errseq",
        "ledger",
        "stop-after-error",
        "durable",
        "writeback-cleared",
        "progress",
        "serialised",
    ] {
        let mut rows = table
            .lines()
            .filter(|l| l.trim_start().starts_with(promise));
        assert!(rows.any(|r| r.contains("100.0 % (")), "{promise}\n{said}");
    }
    assert!(said.contains("blind damage"), "{said}");
}
