// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk sweep` on a real kernel: the sound one is silent at every point, a defect is found,
//! parts make the whole, and a sweep goes on after a kill.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::wtblk;

fn sweep(args: &[&str]) -> Output {
    let mut command = wtblk();
    command.arg("sweep").args(args);
    command.output().expect("wtblk starts")
}

fn begin(out: &Path, args: &[&str]) -> Output {
    let out = out.to_str().unwrap();
    sweep(&[&["--accel", "tcg", "--seed", "7", "--out", out], args].concat())
}

fn said(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn results(dir: &Path) -> Value {
    let bytes = std::fs::read(dir.join("results.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

/// Outcome by shape, fault and requests.
fn grid(results: &Value) -> BTreeMap<(String, String, String), String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let points = results["grid"].as_array().unwrap();
    points
        .iter()
        .map(|p| {
            let key = (
                text(&p["shape"]),
                text(&p["fault"]),
                p["requests"].to_string(),
            );
            (key, text(&p["outcome"]))
        })
        .collect()
}

/// Each point of the grid has this outcome. Where a call allocates, log writes come within it and
/// the places lie otherwise in another boot: such points may diverge or stay undecided (told, and
/// not counted as held), but never come out the other way.
fn assert_all(output: &Output, results: &Value, points: usize, outcome: &str) {
    let grid = grid(results);
    assert_eq!(grid.len(), points, "{}", said(output));
    for (point, came) in &grid {
        let open = point.0 == "holes" && ["diverged", "undecided"].contains(&came.as_str());
        assert!(
            came == outcome || open,
            "{point:?} {came}: {}",
            said(output)
        );
    }
    assert_eq!(results["points"], points, "{}", said(output));
}

/// Points that came to a verdict.
fn settled(results: &Value) -> impl Iterator<Item = &Value> {
    let points = results["grid"].as_array().unwrap().iter();
    points.filter(|p| p["outcome"] != "diverged" && p["outcome"] != "undecided")
}

#[test]
fn every_data_write_of_a_call_over_extents_fails_in_turn_and_the_sound_kernel_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let output = begin(
        dir.path(),
        &["--test", "multi-extent", "--fault", "ioerr,drop"],
    );
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(dir.path());
    let counted: u64 = (results["clean"].as_array().unwrap().iter())
        .map(|c| c["counted"].as_u64().unwrap())
        .sum();
    // Eight extents each of two shapes at least, and the third has holes between.
    assert!(counted >= 24, "{}", said(&output));
    assert_all(&output, &results, 2 * counted as usize, "held");
    assert_eq!(
        results["boots"].as_array().unwrap().len(),
        1,
        "{}",
        said(&output)
    );
    for point in settled(&results) {
        let failed = point["result"].as_i64().unwrap() < 0;
        assert_eq!(failed, point["fault"] == "ioerr", "{point}");
        assert!(point["decided"].as_u64().unwrap() > 5, "{point}");
    }
}

#[test]
fn a_swallowed_error_is_found_at_every_request() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--test", "multi-extent", "--defect", "swallowed-error"];
    let output = begin(dir.path(), &args);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    let results = results(dir.path());
    let all = grid(&results).len();
    assert!(all >= 24, "{}", said(&output));
    assert_all(&output, &results, all, "broken");
    for point in settled(&results) {
        let broken = point["broken"].as_array().unwrap();
        assert!(broken.iter().any(|b| b == "error-report"), "{point}");
    }
    // Alike ones stand together: far fewer groups than points.
    let groups = results["groups"].as_array().unwrap();
    assert!(groups.len() < all / 2, "{}", said(&output));
    assert_eq!(
        groups[0]["points"].as_u64().unwrap() as usize,
        settled(&results).count(),
        "{}",
        said(&output)
    );
}

#[test]
fn a_log_write_that_fails_shuts_the_file_system_down_and_the_sweep_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--test", "dsync", "--requests", "all"];
    let output = begin(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(dir.path());
    let count = |outcome: &str| results["outcomes"][outcome].as_u64().unwrap();
    // Data of three calls, and the log that each has to force.
    assert!(count("held") >= 3, "{}", said(&output));
    assert!(count("shut-down") >= 3, "{}", said(&output));
    assert_eq!(count("broken") + count("undecided"), 0, "{}", said(&output));
    assert_eq!(
        results["boots"].as_array().unwrap().len(),
        1,
        "{}",
        said(&output)
    );
}

#[test]
fn a_shutdown_in_an_allocating_call_leaves_old_blocks_or_new_ones_and_a_sound_disk() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--test", "unwritten", "--requests", "all"];
    let output = begin(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(dir.path());
    let count = |outcome: &str| results["outcomes"][outcome].as_u64().unwrap();
    assert!(count("held") >= 2, "{}", said(&output));
    assert!(count("shut-down") >= 1, "{}", said(&output));
    // The disk was looked at behind all of them.
    let boots = results["boots"].as_array().unwrap();
    assert!(!boots.is_empty());
    for boot in boots {
        assert!(boot["not_repaired"].is_null(), "{}", said(&output));
        assert_eq!(boot["damage"], serde_json::json!([]), "{}", said(&output));
    }
}

#[test]
fn every_two_requests_fail_and_late_ones_are_both_met() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--test", "hole", "--fault", "late", "--pairs"];
    let output = begin(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(dir.path());
    let counted: u64 = (results["clean"].as_array().unwrap().iter())
        .map(|c| c["counted"].as_u64().unwrap())
        .map(|n| n * (n - 1) / 2)
        .sum();
    // Where the first has failed before the second is sent there is no second.
    let grid = grid(&results);
    assert!(
        counted >= 3 && grid.len() as u64 == counted,
        "{}",
        said(&output)
    );
    let open = |came: &str| came == "held" || came == "diverged";
    assert!(grid.values().all(|came| open(came)), "{}", said(&output));
    assert!(settled(&results).count() > 0, "{}", said(&output));
    for point in settled(&results) {
        assert_eq!(point["requests"].as_array().unwrap().len(), 2, "{point}");
        assert!(point["result"].as_i64().unwrap() < 0, "{point}");
    }
}

#[test]
fn a_guest_that_hangs_is_booted_again_behind_that_point() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["--test", "overwrite-aligned", "--fault", "hang,delay"];
    let output = begin(dir.path(), &args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(dir.path());
    let grid = grid(&results);
    let hang = grid.iter().filter(|((_, fault, _), _)| fault == "hang");
    let hung = hang
        .clone()
        .filter(|(_, outcome)| *outcome == "hung")
        .count();
    assert!(hung >= 2 && hung == hang.count(), "{}", said(&output));
    let boots = results["boots"].as_array().unwrap().len();
    assert!((hung..=hung + 1).contains(&boots), "{}", said(&output));
}

#[test]
fn parts_of_a_sweep_have_the_result_of_the_whole() {
    let test = [
        "--test",
        "overwrite-aligned",
        "--test",
        "overwrite-unaligned",
        "--requests",
        "all",
    ];
    let dir = tempfile::tempdir().unwrap();
    let mut merge = Vec::new();
    for (name, shard) in [("whole", "1/1"), ("one", "1/2"), ("two", "2/2")] {
        let out = dir.path().join(name);
        let output = begin(&out, &[&test[..], &["--shard", shard]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        if name != "whole" {
            merge.push("--merge".to_owned());
            merge.push(out.to_str().unwrap().to_owned());
        }
    }
    let both = dir.path().join("both");
    let mut args: Vec<&str> = merge.iter().map(String::as_str).collect();
    args.extend(["--out", both.to_str().unwrap()]);
    let merged = sweep(&args);
    assert_eq!(merged.status.code(), Some(0), "{}", said(&merged));
    let whole = results(&dir.path().join("whole"));
    let one = results(&dir.path().join("one"));
    assert!(grid(&one).len() < grid(&whole).len(), "{}", said(&merged));
    // Which points there are is fixed; how they came out is the same but for log writes that come by themselves.
    let settled = |results: &Value| {
        let mut points = grid(results);
        points.retain(|_, outcome| outcome != "diverged");
        points
    };
    let (parts, all) = (results(&both), whole);
    let due = grid(&all).len();
    assert_eq!(
        grid(&parts).into_keys().collect::<Vec<_>>(),
        grid(&all).into_keys().collect::<Vec<_>>()
    );
    let (parts, all) = (settled(&parts), settled(&all));
    for (point, outcome) in &parts {
        assert!(
            all.get(point).is_none_or(|other| other == outcome),
            "{point:?}"
        );
    }
    assert!(parts.len() * 2 > due, "{}", said(&merged));
    // One part alone decides nothing of the rest.
    let alone = sweep(&["--merge", dir.path().join("one").to_str().unwrap()]);
    assert_eq!(alone.status.code(), Some(3), "{}", said(&alone));
}

#[test]
fn a_sweep_goes_on_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut command = wtblk();
    command.args(["sweep", "--accel", "tcg", "--seed", "7", "--out"]);
    command.arg(dir.path());
    command.args(["--test", "multi-extent", "--fault", "ioerr,stored,delay"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().expect("wtblk starts");
    let file = dir.path().join("points.jsonl");
    let points = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        text.matches(r#""line":"point""#).count()
    };
    let begun = Instant::now();
    while points() < 3 {
        assert!(begun.elapsed() < Duration::from_secs(120), "no points");
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        // Looking at a file now and then; nothing is ordered by it.
        std::thread::sleep(Duration::from_millis(2));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let before = points();
    let output = sweep(&["--resume", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let results = results(dir.path());
    let all = results["points"].as_u64().unwrap() as usize;
    assert!(before < all, "killed too late: {}", said(&output));
    assert_all(&output, &results, all, "held");
    // No point twice.
    assert_eq!(points(), all, "{}", said(&output));
    let boots = results["grid"].as_array().unwrap().iter();
    let second = boots.filter(|p| p["boot"] == "boot-2").count();
    assert_eq!(second, all - before, "{}", said(&output));
    // The boot that died stands among the others.
    let boots: Vec<_> = (results["boots"].as_array().unwrap().iter())
        .map(|b| (b["dir"].as_str().unwrap(), b["points"].as_u64().unwrap()))
        .collect();
    let (before, rest) = (before as u64, (all - before) as u64);
    assert_eq!(boots, [("boot-1", before), ("boot-2", rest)]);
    // Nothing is left: it only tells.
    let again = sweep(&["--resume", dir.path().to_str().unwrap()]);
    assert_eq!(again.status.code(), Some(0), "{}", said(&again));
    assert_eq!(points(), all);
}

#[test]
fn what_cannot_be_swept_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    for (args, why) in [
        (&["--test", "errseq"][..], "multi-extent"),
        (&["--test", "multi-extent", "--fault", "rust"], "ioerr"),
        (
            &[
                "--test",
                "multi-extent",
                "--fault",
                "drop",
                "--requests",
                "all",
            ],
            "a lie",
        ),
        (&["--test", "dsync", "--test", "dsync"], "twice"),
        (&["--test", "dsync", "--fault", "ioerr,ioerr"], "twice"),
        (&["--test", "dsync", "--shard", "3/2"], "K/N"),
        (&["--test", "dsync", "--defect", "none-such"], "none-such"),
        (&["--test", "dsync,hole"], "--test dsync --test hole"),
        (
            &["--test", "dsync", "--append", "wtblk_sweep_from=9"],
            "own word",
        ),
    ] {
        let output = begin(&dir.path().join("out"), args);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(why),
            "{}",
            said(&output)
        );
    }
    for args in [
        &["--resume", "/nonexistent"][..],
        &["--merge", "/nonexistent"],
        &[],
        &["--resume", "x", "--pairs"],
    ] {
        let output = sweep(args);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    }
}
