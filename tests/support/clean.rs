// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run on the sound kernel must say of each test: held, or not checked for a reason that is known.

use super::Run;

/// Nothing broken, nothing skipped, and nothing that could have been checked was not.
pub fn assert_clean(run: &Run, explained: impl Fn(&str, &str) -> bool) {
    assert_clean_but(run, &[], explained);
}

/// The same where these tests are to be skipped, and no others.
pub fn assert_clean_but(run: &Run, skipped: &[&str], explained: impl Fn(&str, &str) -> bool) {
    assert_eq!(run.status, 0, "{}", run.said());
    let tests = run.results["tests"]
        .as_array()
        .expect("tests in results.json");
    assert!(tests.len() >= 6, "{}", run.said());
    let mut seconds = 0.0;
    for test in tests {
        let is_one = test["name"].as_str().is_some_and(|n| skipped.contains(&n));
        assert_eq!(test["skipped"].is_string(), is_one, "{}", run.said());
        // Of a short one whose lines came at once with those before it: 0.
        seconds += test["seconds"].as_f64().expect("seconds of a test");
        assert!(test["unfinished"].is_null(), "{}", run.said());
    }
    assert!(seconds > 0.0, "{}", run.said());
    // All of them at once: a boot is dear.
    let wrong: Vec<String> = run
        .verdicts()
        .into_iter()
        .filter(|(test, ..)| !skipped.contains(&test.as_str()))
        .filter(|(test, subtest, verdict, _)| {
            verdict == "broken" || (verdict == "not-checked" && !explained(test, subtest))
        })
        .map(|(test, subtest, verdict, reasons)| format!("{test}/{subtest} {verdict}: {reasons:?}"))
        .collect();
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), run.said());
}

/// Tests whose calls are repeated with failing requests.
pub const WITH_ERROR_POINTS: &[&str] = &[
    "hole",
    "unwritten",
    "small-extents",
    "long-extent",
    "sub-block",
    "reflink",
    "across-2g",
    "iovecs",
    "source-mapped",
    "over-delalloc",
    "dirty-neighbours",
    "dirty-by-mapping",
    "async-error-points",
];

/// Tests in which a held write fails while somebody waits for it, with all that has to be right after it.
const FAIL_IN_FLIGHT: &[&str] = &[
    "concurrent-calls",
    "store-in-flight",
    "stable-in-flight",
    "blocks-in-flight",
    "freeze-in-flight",
    "clone-in-flight",
    "waits-beside-sync",
    "waits-beside-async",
    "behind-writeback",
    "bad-buffer",
    "disk-full",
    "quota",
    "few-bios",
    "few-bios-async",
];

/// What a test leaves open by its nature.
pub fn by_nature(test: &str, subtest: &str) -> bool {
    match subtest {
        "guest" | "kernel-log" | "repair" => false,
        // Probes are made after errors.
        "progress" => {
            !["error-mid-call", "killed", "signal-mid-call"].contains(&test)
                && !WITH_ERROR_POINTS.contains(&test)
                && !FAIL_IN_FLIGHT.contains(&test)
        }
        // Something has to fail, and a helper to see it.
        "ledger" => {
            ![
                "error-mid-call",
                "fails-while-held",
                "stop-after-error",
                "errseq",
                "async-aio",
                "async-uring",
                "fails-unwritten",
                "async-stop-after-error",
                "async-error-mid-call",
                "stable-among-three",
                "synchronous-calls",
                "several-at-once",
                "memory-pressure",
                "exerciser",
                "umount-in-flight",
                "read-only-in-flight",
                "killed",
                "racing-writers",
            ]
            .contains(&test)
                && !WITH_ERROR_POINTS.contains(&test)
                && !FAIL_IN_FLIGHT.contains(&test)
        }
        "stop-after-error" => ![
            "error-mid-call",
            "stop-after-error",
            "async-stop-after-error",
            "async-error-mid-call",
        ]
        .contains(&test),
        "durable" => ![
            "dsync",
            "async-aio",
            "async-uring",
            "bad-buffer",
            "errnos",
            "exerciser",
        ]
        .contains(&test),
        // Somebody has to take blocks away, or to freeze.
        "serialised" => ![
            "blocks-in-flight",
            "freeze-in-flight",
            "waits-beside-sync",
            "waits-beside-async",
        ]
        .contains(&test),
        // These ask nobody.
        "errseq" => ["multi-extent", "multi-extent-async"].contains(&test),
        "size" => false,
        // Somebody else runs beside each call; of the failed call only a part of a folio is told.
        "written-once" => [
            "store-in-flight",
            "fails-while-held",
            "concurrent-calls",
            "stable-in-flight",
            "stable-among-three",
            "bad-buffer",
            "disk-full",
            "quota",
            "racing-writers",
            "killed",
            "synchronous-calls",
            "clone-in-flight",
            "several-at-once",
            "unsupported",
        ]
        .contains(&test),
        // Its calls are refused before they reach the disk.
        _ => test == "unsupported",
    }
}
