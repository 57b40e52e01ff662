// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The main job, on a real kernel in a real QEMU: the sound kernel keeps every
//! promise, each seeded defect breaks just what the table says.

mod support;

use support::{Run, run};
use wtblk::harness::catalog;

/// Nothing broken, nothing skipped, and nothing that could have been checked was not.
fn assert_clean(run: &Run, explained: impl Fn(&str, &str) -> bool) {
    assert_eq!(run.status, 0, "{}", run.said());
    let tests = run.results["tests"]
        .as_array()
        .expect("tests in results.json");
    assert!(tests.len() >= 6, "{}", run.said());
    for test in tests {
        assert!(test["skipped"].is_null(), "{}", run.said());
        assert!(test["unfinished"].is_null(), "{}", run.said());
    }
    for (test, subtest, verdict, reasons) in run.verdicts() {
        let open = verdict == "not-checked" && !explained(&test, &subtest);
        assert!(
            !open,
            "{test}/{subtest} not checked: {reasons:?}\n{}",
            run.said()
        );
        assert_ne!(verdict, "broken", "{test}/{subtest}\n{}", run.said());
    }
}

/// What a test leaves open by its nature.
fn by_nature(test: &str, subtest: &str) -> bool {
    match subtest {
        "guest" | "kernel-log" => false,
        // Probes are made after errors.
        "progress" => test != "error-mid-call",
        // Its calls are refused before they reach the disk.
        _ => test == "unsupported",
    }
}

#[test]
fn the_clean_kernel_keeps_every_promise() {
    assert_clean(&run(&[]), by_nature);
}

#[test]
fn without_tags_the_clean_kernel_is_not_blamed() {
    // Who asked is not known then, so most of it is not checked; the guest's own checks are.
    assert_clean(&run(&["--tags", "off"]), |_, subtest| {
        !matches!(subtest, "guest" | "kernel-log")
    });
}

#[test]
fn with_two_queues_the_clean_kernel_is_not_blamed() {
    assert_clean(&run(&["--queues", "2"]), |test, subtest| {
        subtest == "order" || by_nature(test, subtest)
    });
}

#[test]
fn on_the_pc_board_the_clean_kernel_keeps_every_promise() {
    assert_clean(&run(&["--machine", "pc"]), by_nature);
}

#[test]
fn every_defect_breaks_what_the_table_says() {
    for defect in catalog::defects().expect("the table") {
        let run = run(&["--defect", &defect.name, "--expect"]);
        assert_eq!(run.status, 0, "{}: {}", defect.name, run.said());
        for test in run.results["tests"].as_array().expect("tests") {
            assert_eq!(test["unexpected"], serde_json::json!([]), "{}", run.said());
        }
    }
}

#[test]
fn the_finding_of_the_leak_says_what_a_maintainer_asks() {
    let run = run(&["--test", "error-mid-call", "--defect", "leak-writeback"]);
    assert_eq!(run.status, 1, "{}", run.said());
    let tests = run.results["tests"].as_array().expect("tests");
    let findings = |promise: &str| {
        let subtests = tests[0]["subtests"].as_array().expect("subtests");
        let sub = subtests
            .iter()
            .find(|s| s["name"] == promise)
            .expect("the promise");
        sub["findings"].as_array().expect("findings").clone()
    };
    let cleared = &findings("writeback-cleared")[0];
    assert_eq!(cleared["call"]["off"], 0);
    assert_eq!(cleared["call"]["len"], 8 << 20);
    let text = run.stdout.clone();
    // The failed request, the pages that stay, that the device owes nothing, the fsync that hangs.
    for word in ["IOERR", "in writeback", "fsync", "not ok 1 error-mid-call"] {
        assert!(text.contains(word), "'{word}' is missing\n{}", run.said());
    }
    assert!(
        findings("progress")
            .iter()
            .any(|f| f.to_string().contains("fsync")),
        "{}",
        run.said()
    );
}

#[test]
fn a_seed_is_printed_and_the_command_repeats_the_run() {
    let first = run(&["--test", "overwrite-aligned", "--seed", "77"]);
    assert_eq!(first.status, 0, "{}", first.said());
    let repeat = first.results["repeat_with"]
        .as_str()
        .expect("a command")
        .to_owned();
    assert!(
        repeat.ends_with("--seed 77") && repeat.contains("--test overwrite-aligned"),
        "{repeat}"
    );
    assert!(!repeat.contains("--out"), "{repeat}");
}
