// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The main job, on a real kernel in a real QEMU: the sound kernel keeps every
//! promise, each seeded defect breaks just what the table says.

mod support;

use support::clean::{assert_clean, by_nature};
use support::run;
use wtblk::harness::catalog;

#[test]
fn the_clean_kernel_keeps_every_promise() {
    let run = run(&[]);
    assert_clean(&run, by_nature);
    // Rows of the errno table that another kernel may lack.
    let said = |what: &str| {
        run.stdout
            .lines()
            .any(|l| l.contains("# errnos: ") && l.contains(what))
    };
    assert!(said("a write to a swap file: -ETXTBSY"), "{}", run.said());
    // Nor is any other part left out, ext4 of `unsupported` for one.
    let left_out = run.stdout.lines().find(|l| {
        ["was not tried", ": not tried, ", "by AIO alone"]
            .iter()
            .any(|what| l.contains(what))
    });
    assert_eq!(left_out, None, "{}", run.said());
    for beside in ["sync", "async"] {
        let name = format!("waits-beside-{beside}");
        let tests = run.results["tests"].as_array().expect("tests");
        let test = tests.iter().find(|t| t["name"] == name.as_str());
        let waits = test.and_then(|t| t["waits"].as_array()).expect("a table");
        assert!(waits.len() >= 22, "{name}: {waits:#?}");
        for wait in waits {
            let waited = wait["waited"].as_bool().expect("whether it waited");
            assert_eq!(wait["beside"], beside);
            assert_eq!(wait["at"].is_string(), waited, "{wait:#}");
            let must = wait["must"].as_str().expect("what the semantics say");
            let right = must == "open" || waited == (must == "waits");
            assert!(right, "{wait:#}");
        }
    }
}

#[test]
fn the_matrix_says_who_finds_a_defect_and_goes_on_where_it_was() {
    let row = ["--matrix", "--defect", "partial-dirty", "--seed", "5"];
    let both = ["--test", "dirty-neighbours", "--test", "dirty-by-mapping"];
    let first = run(&[&row[..], &both].concat());
    assert_eq!(first.status, 0, "{}", first.said());
    for line in ["ok 1 clean", "ok 2 partial-dirty"] {
        assert!(first.stdout.contains(line), "{}", first.said());
    }
    let page = || std::fs::read_to_string(first.dir.path().join("defects.md")).expect("the page");
    let told = page();
    assert!(told.contains("| `partial-dirty` | 2 |"), "{told}");
    assert!(
        told.contains("2 tests, 2 runs, 0 skipped, 0 with a finding"),
        "{told}"
    );
    let again = (first.stdout.lines()).find_map(|line| line.strip_prefix("# repeat with: "));
    let again = again.unwrap_or_else(|| panic!("{}", first.said()));
    for word in ["--defect partial-dirty", "--test dirty-by-mapping"] {
        assert!(again.contains(word), "{word}: {again}");
    }
    assert!(again.ends_with(" --matrix --seed 5"), "{again}");
    // The rows are there: nothing is booted, and the same is said.
    let boot = first.dir.path().join("clean/boot-1/trace.wtblk");
    let made = |path| {
        std::fs::metadata(path)
            .and_then(|m| m.modified())
            .expect("a trace")
    };
    let before = made(&boot);
    let again = support::wtblk()
        .args(["run", "--accel", "tcg", "--out"])
        .arg(first.dir.path())
        .args([&row[..], &both].concat())
        .output()
        .expect("wtblk starts");
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!((page(), made(&boot)), (told, before));
    // One test is not enough.
    let alone = run(&[&row[..], &both[..2]].concat());
    assert_eq!(alone.status, 1, "{}", alone.said());
    assert!(
        alone.stdout.contains("2 at least are wanted"),
        "{}",
        alone.said()
    );
}

/// A realtime device is judged as any other.
#[test]
fn on_a_realtime_device_defects_are_found() {
    for (test, defect, broken) in [
        ("fails-unwritten", "unwritten-leak", "data"),
        ("dsync", "dsync-no-flush", "durable"),
    ] {
        let run = run(&["--fs", "xfs-rt", "--test", test, "--defect", defect]);
        assert_eq!(run.status, 1, "{}", run.said());
        assert_eq!(run.verdict(test, broken), "broken", "{}", run.said());
    }
}

#[test]
fn every_defect_breaks_what_the_table_says() {
    let ready_made = concat!(env!("CARGO_MANIFEST_DIR"), "/guest-tests/scenarios/defects");
    for defect in catalog::defects().expect("the table") {
        // The file says which defect, and to compare; the table says which tests.
        let file = format!("{ready_made}/{}.toml", defect.name);
        let run = run(&["--scenario", &file]);
        assert_eq!(run.results["defect"], defect.name.as_str());
        assert_eq!(run.status, 0, "{}: {}", defect.name, run.said());
        for test in run.results["tests"].as_array().expect("tests") {
            assert_eq!(test["unexpected"], serde_json::json!([]), "{}", run.said());
        }
    }
}

/// What is legal by one contract is found by another.
#[test]
fn an_error_that_fsync_does_not_repeat_is_judged_by_the_contract() {
    let defect = [
        "--append",
        "iomap.wt_defect=error-not-recorded",
        "--test",
        "errseq",
    ];
    let open = run(&defect);
    assert_eq!(open.status, 0, "{}", open.said());
    assert_eq!(open.verdict("errseq", "errseq"), "held");
    let file = scenario("version = 1\n[contract]\nfsync_repeats = \"once\"\n");
    let once = ["--scenario", file.path().to_str().expect("a path")];
    let found = run(&[&defect[..], &once].concat());
    assert_eq!(found.status, 1, "{}", found.said());
    assert_eq!(found.verdict("errseq", "errseq"), "broken");
    assert_eq!(found.verdict("errseq", "ledger"), "held");
    // And the sound kernel keeps the narrower contract.
    let clean = run(&[&once[..], &["--test", "errseq"]].concat());
    assert_eq!(clean.status, 0, "{}", clean.said());
    assert_eq!(clean.verdict("errseq", "errseq"), "held");
}

/// Without a cache there is nothing to flush.
#[test]
fn a_write_through_device_holds_durable_trivially() {
    let file = scenario("version = 1\n[device]\nwrite_cache = false\n");
    let path = file.path().to_str().expect("a path");
    let run = run(&[
        "--scenario",
        path,
        "--test",
        "dsync",
        "--defect",
        "dsync-no-flush",
    ]);
    assert_eq!(run.status, 0, "{}", run.said());
    assert_eq!(run.verdict("dsync", "durable"), "held");
    assert!(run.stdout.contains("held trivially"), "{}", run.said());
}

#[test]
fn every_defect_has_a_scenario_and_no_other_has() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/guest-tests/scenarios/defects");
    let files = std::fs::read_dir(folder).expect("the folder");
    let mut there: Vec<String> = files
        .map(|f| f.expect("a file").path())
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into())
        .collect();
    there.sort();
    let defects = catalog::defects().expect("the table");
    let mut named: Vec<String> = defects.into_iter().map(|d| d.name).collect();
    named.sort();
    assert_eq!(there, named);
}

#[test]
fn what_the_device_does_to_the_data_is_not_blamed_on_the_kernel() {
    // A bit of the stored data flips; a write goes elsewhere: what was sent was right, the guest
    // reads something else, and the poison that it may read is no kernel's doing.
    for action in [
        "corrupt = { bits = 1, offset = 77 }",
        "misdirect = { by = 64 }",
    ] {
        let file = scenario(&format!(
            "version = 1\n[[fault]]\nname = \"bad\"\ntest = \"overwrite-aligned\"\n\
             when = {{ op = \"write\", nth_in_call = 1 }}\naction = {{ {action} }}\ntimes = 1\n",
        ));
        let path = file.path().to_str().expect("a path");
        let run = run(&["--scenario", path, "--test", "overwrite-aligned"]);
        assert_eq!(run.status, 1, "{}", run.said());
        assert_eq!(run.verdict("overwrite-aligned", "guest"), "broken");
        assert_eq!(run.verdict("overwrite-aligned", "data"), "held");
        assert_eq!(run.verdict("overwrite-aligned", "stable"), "held");
    }
}

#[test]
fn the_finding_of_the_store_says_which_bytes_changed() {
    let run = run(&["--test", "store-in-flight", "--defect", "no-write-protect"]);
    assert_eq!(run.status, 1, "{}", run.said());
    for words in [
        "bytes 100 to 101 (file offset 100)",
        "changed, from",
        "in flight for",
    ] {
        let text = run.stdout.replace("\n  #             ", " ");
        assert!(text.contains(words), "'{words}' is missing\n{}", run.said());
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
    // From near: the call drawn, the chain of events, what the kernel logged, the command.
    let story = &cleared["story"];
    let failed = &story["requests"][0];
    assert_eq!(
        (&failed["status"], &failed["rule"]),
        (&1.into(), &"fail-first".into())
    );
    assert_eq!(story["left"], serde_json::json!([[0, 8 << 20]]));
    assert!(
        story["chain"].as_array().is_some_and(|c| c.len() >= 4),
        "{story:#}"
    );
    let log = story["kernel_log"].to_string();
    assert!(log.contains("I/O error, dev vd"), "{log}");
    let command = story["repeat_with"].as_str().expect("a command");
    assert!(
        command.ends_with("--test error-mid-call") && command.contains("--seed "),
        "{command}"
    );
    for line in ["[x        ", "I/O error, dev vd", command] {
        assert!(text.contains(line), "'{line}' is missing\n{}", run.said());
    }
    // One cause: the fsync hangs because of the pages that were left.
    let groups = tests[0]["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 1, "{groups:#?}");
    assert_eq!(text.matches("picture ").count(), 1, "{}", run.said());
    assert_eq!(run.results["boots"][0]["contract"], "rfc-v2");
    // A stored trace tells the same, but for the kernel's log.
    let trace = run.dir.path().join("boot-1/trace.wtblk");
    let again = support::wtblk()
        .arg("verify")
        .arg(trace)
        .output()
        .expect("verify");
    let again = String::from_utf8_lossy(&again.stdout);
    assert!(
        again.contains("[x        ") && again.contains("repeat "),
        "{again}"
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

fn scenario(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), text).expect("the scenario");
    file
}

#[test]
fn a_kernel_without_the_flag_decides_nothing() {
    // The reference kernel knows 0x200 only: another value is a flag that it never heard of.
    let run = run(&["--flag", "0x400"]);
    assert_eq!(run.status, 3, "{}", run.said());
    for test in run.results["tests"].as_array().expect("tests") {
        let why = test["skipped"].as_str().expect("a reason");
        assert!(why.contains("0x400") && why.contains("absent"), "{why}");
    }
}

#[test]
fn misaligned_is_skipped_where_it_is_no_defect() {
    let file = scenario("version = 1\n[device]\nlogical_block = 4096\n");
    let path = file.path().to_str().expect("a path");
    let run = run(&[
        "--scenario",
        path,
        "--defect",
        "misaligned",
        "--test",
        "overwrite-unaligned",
    ]);
    assert_eq!(run.status, 3, "{}", run.said());
    let why = run.results["tests"][0]["skipped"]
        .as_str()
        .expect("a reason");
    assert!(why.contains("logical blocks (4096) smaller"), "{why}");
}

#[test]
fn a_kind_that_the_kernel_does_not_have_decides_nothing() {
    // Our kernel is built without XFS_DEBUG, the only one with this knob.
    let run = run(&["--fs", "xfs-always-cow", "--test", "overwrite-aligned"]);
    assert_eq!(run.status, 3, "{}", run.said());
    let why = run.results["tests"][0]["skipped"]
        .as_str()
        .expect("a reason");
    assert!(why.contains("XFS_DEBUG"), "{why}");
}

#[test]
fn a_kind_that_there_is_not_is_refused_before_anything_is_built() {
    for (args, says) in [
        (&["--fs", "ext9"][..], "xfs-1k, xfs-2k, xfs-4k"),
        (&["--fs", ""], "xfs-1k, xfs-2k, xfs-4k"),
    ] {
        let run = run(args);
        assert_eq!(run.status, 2, "{}", run.said());
        assert!(run.stderr.contains(says), "{}", run.stderr);
    }
    let file = scenario("version = 1\n[device]\nlogical_block = 4096\n[run]\nfs = \"xfs-1k\"\n");
    let run = run(&["--scenario", file.path().to_str().expect("a path")]);
    assert_eq!(run.status, 2, "{}", run.said());
    assert!(run.stderr.contains("1024"), "{}", run.stderr);
}

#[test]
fn the_tests_after_a_hung_one_get_a_boot_of_their_own() {
    let run = run(&[
        "--defect",
        "leak-writeback",
        "--test",
        "error-mid-call",
        "--test",
        "overwrite-aligned",
    ]);
    assert_eq!(run.status, 1, "{}", run.said());
    assert_eq!(
        run.results["boots"].as_array().map(Vec::len),
        Some(2),
        "{}",
        run.said()
    );
    assert_eq!(run.results["tests"][1]["boot"], "boot-2");
    assert_eq!(run.verdict("overwrite-aligned", "guest"), "held");
    assert_eq!(run.verdict("overwrite-aligned", "align"), "held");
}

#[test]
fn a_guest_at_its_limit_is_ended_and_judged_and_our_own_doing_is_no_finding() {
    // Nobody releases it: the guest waits for us, not for its kernel.
    let file = scenario(
        "version = 1\n[[fault]]\nname = \"never\"\ntest = \"overwrite-aligned\"\n\
         when = { op = \"write\", nth_in_call = 1 }\naction = { hold = true }\n",
    );
    let path = file.path().to_str().expect("a path");
    let run = run(&[
        "--scenario",
        path,
        "--test",
        "overwrite-aligned",
        "--limit",
        "15",
    ]);
    assert_eq!(run.status, 1, "{}", run.said());
    let how = run.results["tests"][0]["unfinished"]
        .as_str()
        .expect("how it ended");
    assert!(how.contains("time limit"), "{how}");
    assert_eq!(run.verdict("overwrite-aligned", "guest"), "broken");
    for (_, subtest, verdict, _) in run.verdicts() {
        assert!(
            subtest == "guest" || verdict != "broken",
            "{subtest}\n{}",
            run.said()
        );
    }
}
