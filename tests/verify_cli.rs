// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify` on a stored trace: the same verdicts as on the stream, the
//! right status, and one clear error where there is no trace.

use std::path::{Path, PathBuf};

use wtblk::cli::verify::verify;
use wtblk::trace::TraceWriter;
use wtblk::trace::event::{Body, Complete, DeviceEvent, DeviceKind, MarkEvent, Op, Status, Submit};
use wtblk::verify::contract::Contract;
use wtblk::verify::verdict::{Verdict, Verdicts};
use wtblk_shared::mark::{CallBegin, CallEnd, Extent, Mark, PageReport};
use wtblk_shared::tag::Tag;

fn mark(mark: &Mark) -> Body {
    Body::Mark(MarkEvent {
        line: mark.to_line(),
        ordered: true,
    })
}

/// A trace of one call whose only write ended with `status`; its end mark says
/// `result`, and then so many pages are in writeback in two reports.
fn trace(dir: &Path, status: Status, result: i64, pages: u64) -> PathBuf {
    let path = dir.join("run.trace");
    let writer = TraceWriter::create(&path).unwrap();
    call(&writer, "t", status, result, pages);
    writer.close();
    path
}

/// The `Begin` event of a trace that is to be judged by this contract.
fn begin(contract: &Contract) -> Body {
    let mut text = serde_json::json!({});
    contract.note_in(&mut text);
    Body::Device(DeviceEvent {
        disk: 0,
        queue: 0,
        kind: DeviceKind::Begin,
        a: 0,
        b: 0,
        text: text.to_string(),
    })
}

/// The call of [`trace`].
fn call(writer: &TraceWriter, test: &str, status: Status, result: i64, pages: u64) {
    let extents = Some(vec![Extent {
        logical: 0,
        physical: 1 << 20,
        length: 1 << 20,
        flags: 0,
    }]);
    writer.record(&mark(&Mark::Boot));
    writer.record(&mark(&Mark::Env(
        [("tags".to_owned(), "on".to_owned())].into(),
    )));
    writer.record(&mark(&Mark::Begin(CallBegin {
        call: 1,
        test: test.into(),
        len: 8192,
        flags: vec!["writethrough".into()],
        isize: 1 << 20,
        bsize: 4096,
        tag: Some(1),
        extents: extents.clone(),
        ..CallBegin::default()
    })));
    let request = writer.record(&Body::Submit(Submit {
        disk: 0,
        queue: 0,
        op: Op::Write,
        sector: 2048,
        bytes: 8192,
        ioprio: Tag::nth(1).ioprio(),
        epoch: 1,
        avail_pos: 0,
        digest: 0,
    }));
    writer.record(&Body::Complete(Complete {
        request,
        status,
        avail_after: 1,
        abandoned: false,
        digest: 0,
    }));
    writer.record(&mark(&Mark::End(CallEnd {
        call: 1,
        result,
        isize: 1 << 20,
        extents,
    })));
    for _ in 0..2 {
        writer.record(&mark(&Mark::Report(PageReport {
            call: 1,
            at: "after-call".into(),
            len: 8192,
            writeback: pages,
            ..PageReport::default()
        })));
    }
}

fn text(path: &Path) -> (u8, String) {
    let mut out = Vec::new();
    let status = verify(path, false, &mut out).unwrap();
    (status, String::from_utf8(out).unwrap())
}

#[test]
fn a_good_trace_is_status_0() {
    let dir = tempfile::tempdir().unwrap();
    let (status, text) = text(&trace(dir.path(), Status::OK, 8192, 0));
    assert_eq!(status, 0, "{text}");
    assert!(
        text.contains("cover              held (1 decided)"),
        "{text}"
    );
    assert!(text.contains("the I/O scheduler is not known"), "{text}");
}

#[test]
fn a_finding_is_status_1_in_text_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let path = trace(dir.path(), Status::IOERR, -5, 2);
    let (status, text) = text(&path);
    assert_eq!(status, 1, "{text}");
    for word in [
        "writeback-cleared  BROKEN (1 finding)",
        "file offset 0, length 8192",
        "2 of 2 pages",
        "The device owes nothing",
    ] {
        let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
        let word = word.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains(&word), "{word}\n{text}");
    }
    let long = text.lines().find(|l| l.chars().count() > 110);
    assert_eq!(long, None);

    let mut out = Vec::new();
    assert_eq!(verify(&path, true, &mut out).unwrap(), 1);
    let verdicts: Verdicts = serde_json::from_slice(&out).unwrap();
    let found = verdicts.get("t", "writeback-cleared").unwrap();
    assert!(matches!(&found.verdict, Verdict::Broken { findings, .. } if findings.len() == 1));
    assert_eq!(verdicts.findings().count(), 1);
}

#[test]
fn a_trace_that_says_nothing_is_status_3() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("empty.trace");
    TraceWriter::create(&path).unwrap().close();
    let (status, said) = text(&path);
    assert_eq!(status, 3);
    assert!(said.contains("nothing was decided"), "{said}");
    // Only there.
    let (_, said) = text(&trace(dir.path(), Status::OK, 8192, 0));
    assert!(!said.contains("nothing was decided"), "{said}");
}

#[test]
fn no_trace_is_an_error() {
    let mut out = Vec::new();
    let error = verify(Path::new("/nowhere/x.trace"), false, &mut out).unwrap_err();
    assert!(error.to_string().contains("/nowhere/x.trace"), "{error}");
    assert!(out.is_empty());
}

/// `wtblk verify` as it is typed: status and what it says.
fn typed(args: &[&str]) -> (i32, String) {
    command("verify", args)
}

fn command(verb: &str, args: &[&str]) -> (i32, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"))
        .arg(verb)
        .args(args)
        .output()
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.code().unwrap(), String::from_utf8(text).unwrap())
}

#[test]
fn the_contract_decides_and_the_trace_names_its_own() {
    let dir = tempfile::tempdir().unwrap();
    // A failed write, a short count: legal unless the contract is strict.
    let path = trace(dir.path(), Status::IOERR, 4096, 0);
    let file = path.to_str().unwrap();
    let (status, says) = typed(&[file]);
    assert_eq!(status, 0, "{says}");
    assert!(says.starts_with("contract rfc-v2\n"), "{says}");
    let (status, says) = typed(&[file, "--contract", "strict"]);
    assert_eq!(status, 1, "{says}");
    assert!(says.starts_with("contract strict\n"), "{says}");
    let (status, says) = typed(&[file, "--contract", "rfc-v9"]);
    assert_eq!(status, 2);
    assert!(says.contains("rfc-v1, rfc-v2, strict"), "{says}");

    let scenario = dir.path().join("s.toml");
    std::fs::write(
        &scenario,
        "version = 1\n[contract]\nset = \"strict\"\noff = [\"error-report\"]\n",
    )
    .unwrap();
    let (status, says) = typed(&[file, "--scenario", scenario.to_str().unwrap()]);
    assert_eq!(status, 0, "{says}");
    assert!(
        says.contains("the contract does not make this promise"),
        "{says}"
    );

    // The first event of a trace of ours says what it is to be judged by.
    let named = dir.path().join("named.trace");
    let writer = TraceWriter::create(&named).unwrap();
    writer.record(&begin(&Contract::named("strict").unwrap()));
    writer.close();
    let (_, says) = typed(&[named.to_str().unwrap()]);
    assert!(says.starts_with("contract strict\n"), "{says}");
    let (_, says) = typed(&[named.to_str().unwrap(), "--contract", "rfc-v1"]);
    assert!(says.starts_with("contract rfc-v1\n"), "{says}");

    // How it was adjusted is told; and a scenario that says nothing of it changes nothing.
    let (_, says) = typed(&[file, "--scenario", scenario.to_str().unwrap()]);
    let head = "contract strict, adjusted by the scenario\n  adjusted: off: error-report\n";
    assert!(says.starts_with(head), "{says}");
    std::fs::write(&scenario, "version = 1\n").unwrap();
    let args = [
        named.to_str().unwrap(),
        "--scenario",
        scenario.to_str().unwrap(),
    ];
    let (_, says) = typed(&args);
    assert!(says.starts_with("contract strict\n"), "{says}");
    assert!(says.contains("(the scenario has no [contract]"), "{says}");
}

fn strict_and_broken(dir: &Path) -> PathBuf {
    let path = dir.join("strict.trace");
    let writer = TraceWriter::create(&path).unwrap();
    writer.record(&begin(&Contract::named("strict").unwrap()));
    // A failed write and a short count: only the strict contract minds.
    call(&writer, "t", Status::IOERR, 4096, 0);
    writer.close();
    path
}

fn zero(path: &Path, record: u64) {
    let file = std::fs::File::options().write(true).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 64], 65536 + 64 * record).unwrap();
}

fn json(args: &[&str]) -> (serde_json::Value, String) {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"))
        .args(["verify", "--json"])
        .args(args)
        .output()
        .unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    (serde_json::from_slice(&out.stdout).unwrap(), said)
}

#[test]
fn a_trace_that_lost_its_contract_is_not_judged_by_another() {
    let dir = tempfile::tempdir().unwrap();
    let path = strict_and_broken(dir.path());
    let file = path.to_str().unwrap();
    assert_eq!(typed(&[file]).0, 1);
    zero(&path, 0);
    let (status, says) = typed(&[file]);
    assert_eq!(status, 3, "{says}");
    assert!(
        says.starts_with("contract unknown\n  the beginning of the trace is missing"),
        "{says}"
    );
    assert!(
        says.contains("the contract of this trace is lost: say --contract"),
        "{says}"
    );
    assert!(
        !says.contains(" held ") && !says.contains("BROKEN"),
        "{says}"
    );
    let (value, _) = json(&[file]);
    let lost = value["contract_lost"].as_str().unwrap();
    assert!(
        lost.contains("the beginning of the trace is missing"),
        "{lost}"
    );
    assert_eq!(typed(&[file, "--contract", "strict"]).0, 1);
    assert_eq!(typed(&[file, "--contract", "rfc-v2"]).0, 0);
}

#[test]
fn what_is_missing_from_a_closed_trace_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = strict_and_broken(dir.path());
    let file = path.to_str().unwrap();
    let (value, said) = json(&[file]);
    assert_eq!(
        (&value["closed"], &value["damaged"]),
        (&true.into(), &serde_json::Value::Null)
    );
    assert_eq!(said, "");
    zero(&path, 2);
    let (_, says) = typed(&[file]);
    let line = "the trace is damaged: event 2 is missing, although the trace was closed in order";
    assert_eq!(
        says.lines().nth(1),
        Some(line),
        "before the verdicts\n{says}"
    );
    assert!(says.contains("event 2 is missing: damaged: "), "{says}");
    let (value, said) = json(&[file]);
    assert_eq!(value["damaged"], line);
    assert!(said.contains(line), "{said}");

    let index = std::fs::File::options().write(true).open(&path).unwrap();
    index.set_len(65536 + 64 * 5 + 10).unwrap();
    let (_, says) = typed(&[file, "--contract", "strict"]);
    assert!(
        says.contains(
            "events 5..8 are missing: damaged: the file was cut after it was closed with 9 events"
        ),
        "{says}"
    );
    let mut out = Vec::new();
    wtblk::cli::trace::show(&path, &mut out).unwrap();
    let shown = String::from_utf8(out).unwrap();
    assert!(shown.ends_with(&format!("({line})\n")), "{shown}");
}

#[test]
fn a_trace_without_its_end_is_told_of_on_standard_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("open.trace");
    let writer = TraceWriter::create(&path).unwrap();
    call(&writer, "t", Status::OK, 8192, 0);
    drop(writer);
    let file = path.to_str().unwrap();
    let (value, said) = json(&[file]);
    assert_eq!(value["closed"], false);
    let line = "the trace was not closed: its writer runs, or was killed here";
    assert!(said.contains(line), "{said}");
    for args in [
        &["trace", "export", file, "--to", "jsonl"][..],
        &["selftest", file, "--mutants", "1"],
    ] {
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"));
        let out = { out }.args(args).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(said.contains(line), "{args:?}: {said}");
        assert!(!String::from_utf8(out.stdout).unwrap().contains(line));
    }
}

#[test]
fn a_guests_words_and_file_names_reach_the_terminal_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("odd.trace");
    let writer = TraceWriter::create(&path).unwrap();
    call(
        &writer,
        "t\u{1b}[31m\nok 1 forged\u{202e}",
        Status::IOERR,
        4096,
        2,
    );
    writer.close();
    let (status, says) = typed(&[path.to_str().unwrap(), "--contract", "strict"]);
    assert_eq!(status, 1, "{says}");
    assert!(
        says.contains(r"test t\u{1b}[31m\nok 1 forged\u{202e}"),
        "{says}"
    );
    let plain = |text: &str| {
        !text
            .chars()
            .any(|c| c.is_control() && c != '\n' || c == '\u{202e}')
    };
    assert!(plain(&says), "{says:?}");
    assert!(!says.contains("\nok 1"), "{says}");
    for name in ["e\u{1b}[31mvil", "a\nb"] {
        for args in [
            vec!["verify", name],
            vec!["trace", "show", name],
            vec![
                "trace",
                "import",
                "--from",
                "log-writes",
                "--out",
                "/nowhere/x",
                name,
            ],
            vec!["scenario", "check", name],
            vec!["replay", name, "--scenario", name],
        ] {
            let out = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"))
                .args(&args)
                .output()
                .unwrap();
            let said = String::from_utf8([out.stdout, out.stderr].concat()).unwrap();
            assert!(
                plain(&said) && said.contains("No such file"),
                "{args:?}: {said:?}"
            );
            assert!(!said.contains("a\nb"), "{args:?}: {said:?}");
        }
    }
}

fn minimize(args: &[&str]) -> (i32, String) {
    command("minimize", args)
}

#[test]
fn a_small_trace_keeps_the_contract_that_it_is_judged_by() {
    let dir = tempfile::tempdir().unwrap();
    let path = strict_and_broken(dir.path());
    let (file, small) = (path.to_str().unwrap(), dir.path().join("small"));
    let small = small.to_str().unwrap();
    let (status, said) = minimize(&[file, "--out", small]);
    assert_eq!(status, 0, "{said}");
    assert!(said.contains("by contract strict"), "{said}");
    let (status, says) = typed(&[small]);
    assert_eq!(status, 1, "{says}");
    assert!(says.starts_with("contract strict\n"), "{says}");
    assert!(says.contains("finding: error-report is broken"), "{says}");

    // One that is there stays, whatever is wrong.
    let before = std::fs::read(small).unwrap();
    let (status, said) = minimize(&[file, "--out", small]);
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("--force replaces it"), "{said}");
    let (status, said) = minimize(&[file, "--out", small, "--force", "--contract", "rfc-v1"]);
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("there is no such finding"), "{said}");
    assert_eq!(std::fs::read(small).unwrap(), before);
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|n| n.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(
        names,
        ["small", "small.data", "strict.trace", "strict.trace.data"]
    );
    assert_eq!(minimize(&[file, "--out", small, "--force"]).0, 0);

    // Without its beginning it needs to be told.
    zero(&path, 0);
    let (status, said) = minimize(&[file, "--out", small, "--force"]);
    assert_eq!(status, 2, "{said}");
    assert!(said.contains("--contract"), "{said}");
    let args = [file, "--out", small, "--force", "--contract", "strict"];
    assert_eq!(minimize(&args).0, 0);
    assert_eq!(typed(&[small, "--contract", "strict"]).0, 1);
}

#[test]
fn selftest_says_that_a_trace_has_findings_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = strict_and_broken(dir.path());
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"))
        .args(["selftest", "--mutants", "1", path.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("it has 1 finding of its own"), "{said}");
}

#[test]
fn every_promise_explains_itself() {
    for name in wtblk::verify::promise::NAMES {
        let (status, says) = typed(&["--explain", name]);
        assert_eq!(status, 0, "{says}");
        for title in ["promised", "comes from", "broken by", "not checked when"] {
            assert!(says.contains(&format!("\n  {title}\n      ")), "{says}");
        }
        assert!(says.lines().all(|l| l.chars().count() <= 100), "{says}");
    }
    for beside in ["guest", "kernel-log", "repair"] {
        let (status, says) = typed(&["--explain", beside]);
        assert_eq!(status, 0, "{says}");
        let flat = says.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(
            flat.contains("No promise") && flat.contains("verify leaves"),
            "{says}"
        );
    }
    let (status, says) = typed(&["--explain", "order", "FILE"]);
    assert_eq!(status, 2);
    assert!(
        says.contains("wtblk verify --explain <PROMISE>\n"),
        "{says}"
    );
    let (status, says) = typed(&["--explain", "honesty"]);
    assert_eq!(status, 2);
    assert!(says.contains("align, cover, order"), "{says}");
}
