// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The sound kernel keeps every promise on each kind of file system, block size, sector size and
//! machine, and whatever is not checked there is so for a reason that is known.
//!
//! Here a few tests on each, those above all that have something of their own to do with it (all tests run once on the
//! default, `verdicts.rs`); `WTBLK_TIMES=N` with `-- --ignored` (`ci/soak`): all tests on all grounds, N times each.

mod support;

use support::clean::{assert_clean_but, by_nature};
use support::{Run, run};

/// Something to run all guest tests on.
struct Ground {
    name: &'static str,
    args: &'static [&'static str],
    /// Tests that cannot be had there.
    skipped: &'static [&'static str],
    /// What is not checked there, beside what is not by the test's nature.
    open: fn(&str, &str) -> bool,
}

const fn fs(name: &'static str, args: &'static [&'static str]) -> Ground {
    Ground {
        name,
        args,
        skipped: &[],
        open: |_, _| false,
    }
}

/// A scenario that says nothing but the size of a sector.
const SECTOR: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/support/sector-4096.toml"
);

const ALL: &[Ground] = &[
    fs("xfs-4k", &[]),
    fs("xfs-1k", &["--fs", "xfs-1k"]),
    fs("xfs-2k", &["--fs", "xfs-2k"]),
    fs("xfs-8k", &["--fs", "xfs-8k"]),
    fs("xfs-64k", &["--fs", "xfs-64k"]),
    // XFS 6.12 counts no quota and shares no blocks on a realtime device.
    Ground {
        skipped: &["quota", "reflink", "clone-in-flight"],
        ..fs("xfs-rt", &["--fs", "xfs-rt"])
    },
    fs("sectors of 4096", &["--scenario", SECTOR]),
    // Who asked is not known then, so most of it is not checked; the guest's own checks are.
    Ground {
        skipped: &["async-error-mid-call"],
        open: |_, subtest| !matches!(subtest, "guest" | "kernel-log" | "repair"),
        ..fs("without tags", &["--tags", "off"])
    },
    Ground {
        open: |_, subtest| subtest == "order",
        ..fs("two queues", &["--queues", "2"])
    },
    fs("board pc", &["--machine", "pc"]),
    fs("256 MiB", &["--memory", "256"]),
];

/// Each way of a call once: overwriting, allocating, by parts of blocks, asynchronous, beside others, failing.
const FEW: &[&str] = &[
    "overwrite-unaligned",
    "beyond-eof",
    "error-mid-call",
    "dsync",
    "errseq",
    "blocks-in-flight",
    "async-uring",
    "hole",
    "sub-block",
    "over-delalloc",
    "several-at-once",
];

/// Those, and these besides.
fn few(name: &str, besides: &[&str]) -> Run {
    let tests = FEW.iter().chain(besides);
    let words: Vec<&str> = tests.flat_map(|test| ["--test", test]).collect();
    on(name, &words)
}

fn on(name: &str, more: &[&str]) -> Run {
    let ground = ALL.iter().find(|g| g.name == name).expect("a ground");
    let run = run(&[ground.args, more].concat());
    assert_clean_but(&run, ground.skipped, |test, subtest| {
        (ground.open)(test, subtest) || by_nature(test, subtest)
    });
    run
}

#[test]
fn blocks_of_1k() {
    few("xfs-1k", &["small-extents", "multi-extent", "reflink"]);
}

#[test]
fn blocks_above_the_page_size() {
    few(
        "xfs-64k",
        &[
            "stable-in-flight",
            "concurrent-calls",
            "keeps-stable",
            "reflink",
        ],
    );
}

/// The disk under test is the realtime device: where FIEMAP says that a file lies is a place there.
#[test]
fn a_realtime_device() {
    let run = few("xfs-rt", &["quota", "dirty-neighbours"]);
    let guest = run.results["boots"][0]["guest"].as_str().expect("facts");
    assert!(
        guest.split(' ').any(|fact| fact == "realtime=on"),
        "{guest}"
    );
}

#[test]
fn sectors_of_4096_bytes() {
    few("sectors of 4096", &["overwrite-aligned", "iovecs"]);
}

#[test]
fn no_tags() {
    few(
        "without tags",
        &[
            "disk-full",
            "quota",
            "synchronous-calls",
            "async-error-mid-call",
            "bad-buffer",
        ],
    );
}

#[test]
fn two_queues() {
    few("two queues", &["long-extent", "synchronous-calls"]);
}

#[test]
fn the_board_pc() {
    few("board pc", &[]);
}

#[test]
#[ignore = "long: ci/soak"]
fn everywhere_and_often() {
    let times = std::env::var("WTBLK_TIMES").unwrap_or_else(|_| "1".into());
    let mut wrong = Vec::new();
    let (mut boots, mut calls) = (0, 0);
    for ground in ALL {
        let begun = std::time::Instant::now();
        let ran = std::panic::catch_unwind(|| on(ground.name, &["--repeat", &times]));
        let seconds = begun.elapsed().as_secs();
        let Ok(run) = ran else {
            eprintln!("{:<16} WRONG, {seconds} s", ground.name);
            wrong.push(ground.name);
            continue;
        };
        let list = run.results["boots"].as_array().expect("boots");
        let of_it: u64 = list.iter().filter_map(|b| b["calls"].as_u64()).sum();
        let open = run
            .verdicts()
            .iter()
            .filter(|v| v.2 == "not-checked")
            .count();
        let tests = run.results["tests"].as_array().expect("tests");
        let skipped = tests.iter().filter(|t| t["skipped"].is_string()).count();
        eprintln!(
            "{:<16} {} tests, {skipped} skipped, no finding; {} boots, {of_it} calls; {open} \
             subtests not checked, all explained; {seconds} s",
            ground.name,
            tests.len(),
            list.len(),
        );
        boots += list.len();
        calls += of_it;
        assert!(of_it > 0, "{}", run.said());
    }
    eprintln!("{boots} boots, {calls} calls");
    assert!(wrong.is_empty(), "{wrong:?}");
}
