// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify` on a stored trace: the same verdicts as on the stream, the
//! right status, and one clear error where there is no trace.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use wtblk::cli::verify::{verify, verify_with};
use wtblk::trace::event::{Body, Complete, DeviceEvent, DeviceKind, MarkEvent, Op, Status, Submit};
use wtblk::trace::{TraceReader, TraceWriter};
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
        test: "t".into(),
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
    writer.close();
    path
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
        "writeback-cleared  BROKEN (1 findings)",
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

/// A trace that begins as ours do, by this contract.
fn begun(dir: &Path, contract: &str) -> PathBuf {
    let from = trace(dir, Status::IOERR, -5, 0);
    let to = dir.join("begun.trace");
    let mut reader = TraceReader::open(&from).unwrap();
    let writer = TraceWriter::create(&to).unwrap();
    writer.record(&Body::Device(DeviceEvent {
        disk: 0,
        queue: 0,
        kind: DeviceKind::Begin,
        a: 0,
        b: 0,
        text: format!(r#"{{"queues":1,"contract":{contract}}}"#),
    }));
    while let Some(event) = reader.next().unwrap() {
        let mut body = event.body;
        if let Body::Complete(c) = &mut body {
            c.request += 1;
        }
        writer.record(&body);
    }
    writer.close();
    to
}

/// `strict` wants the errno of a failed write to be ENOSPC here, and the call says EIO.
fn strict() -> String {
    let mut contract = Contract::named("strict").unwrap();
    contract.errnos.by_status.insert(1, [28].into());
    contract.errnos.not_of_the_device.clear();
    serde_json::to_string(&contract).unwrap()
}

/// Zeroes the record with this number.
fn zero(path: &Path, number: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&[0; 64], 65536 + 64 * number).unwrap();
}

/// A command on a trace: its status, and what it said on standard error.
fn wtblk(verb: &str, args: &[&str], trace: &Path) -> (Option<i32>, String) {
    let mut wtblk = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"));
    let done = wtblk.arg(verb).args(args).arg(trace).output().unwrap();
    (done.status.code(), String::from_utf8(done.stderr).unwrap())
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let error = TraceReader::open(&fifo).err().unwrap().to_string();
    assert!(error.contains("it is no regular file"), "{error}");
}

#[test]
fn without_its_beginning_nobody_knows_what_a_trace_promises() {
    let dir = tempfile::tempdir().unwrap();
    let path = begun(dir.path(), &strict());
    let (status, said) = text(&path);
    assert_eq!(status, 1, "{said}");
    assert!(said.starts_with("contract strict\n"), "{said}");
    zero(&path, 0);
    let (status, said) = text(&path);
    assert_eq!(status, 3, "{said}");
    assert!(
        said.starts_with(
            "contract unknown\nevent 0 is missing: the trace is damaged: it was closed in order"
        ),
        "{said}"
    );
    assert!(said.contains("--contract says which"), "{said}");
    assert!(!said.contains("held ("), "{said}");
    // A scenario that says nothing of it is no answer.
    let scenario = dir.path().join("empty.toml");
    std::fs::write(&scenario, "version = 1\n").unwrap();
    assert_eq!(
        wtblk("verify", &["--scenario", scenario.to_str().unwrap()], &path).0,
        Some(3)
    );
    std::fs::write(&scenario, "version = 1\n[contract]\nset = \"rfc-v1\"\n").unwrap();
    assert_eq!(
        wtblk("verify", &["--scenario", scenario.to_str().unwrap()], &path).0,
        Some(0)
    );
    // Who says it is answered.
    let mut out = Vec::new();
    let contract = Contract::named("rfc-v2");
    assert_eq!(verify_with(&path, contract, false, &mut out).unwrap(), 0);
}

#[test]
fn what_is_cut_out_is_judged_by_the_same_contract() {
    let dir = tempfile::tempdir().unwrap();
    let path = begun(dir.path(), &strict());
    let small = dir.path().join("small.trace");
    let minimize = |more: &[&str]| {
        let mut args = vec![
            "--promise",
            "error-report",
            "--out",
            small.to_str().unwrap(),
        ];
        args.extend(more);
        wtblk("minimize", &args, &path)
    };
    assert_eq!(minimize(&[]).0, Some(1));
    let (status, said) = text(&small);
    assert_eq!(status, 1, "{said}");
    assert!(said.starts_with("contract strict\n"), "{said}");
    assert!(said.contains("error-report       BROKEN"), "{said}");
    // What is there is nobody's to replace.
    let (status, said) = minimize(&[]);
    assert_eq!(status, Some(2));
    assert!(
        said.contains("exists and is not empty: --force replaces it"),
        "{said}"
    );
    assert_eq!(minimize(&["--force"]).0, Some(1));
}

#[test]
fn a_cut_of_a_closed_trace_is_damage_and_one_that_was_not_closed_says_so_in_json_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = trace(dir.path(), Status::OK, 8192, 0);
    zero(&path, 7);
    let (_, said) = text(&path);
    assert!(
        said.contains("\nevent 7 is missing: the trace is damaged"),
        "{said}"
    );
    assert!(
        said.find("event 7 is missing") < said.find("\ntest "),
        "{said}"
    );
    let json = |path: &Path| {
        let mut out = Vec::new();
        verify(path, true, &mut out).unwrap();
        serde_json::from_slice::<serde_json::Value>(&out).unwrap()
    };
    assert_eq!(json(&path)["gaps"][0]["first"], 7);
    assert_eq!(json(&path)["notes"], serde_json::json!([]));
    // A writer that runs.
    let open = dir.path().join("open.trace");
    let writer = TraceWriter::create(&open).unwrap();
    writer.record(&mark(&Mark::Boot));
    let notes = json(&open)["notes"].to_string();
    assert!(notes.contains("the trace was not closed"), "{notes}");
}

#[test]
fn what_a_guest_calls_its_test_forges_no_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("forged.trace");
    let writer = TraceWriter::create(&path).unwrap();
    for name in ["x\n  cover              held (9 decided)", "\u{1b}[31mred"] {
        writer.record(&mark(&Mark::TestBegin { name: name.into() }));
    }
    writer.close();
    let (_, said) = text(&path);
    assert!(said.contains("test x\\n  cover"), "{said}");
    assert!(!said.contains("\n  cover              held"), "{said}");
    assert!(!said.contains('\u{1b}'), "{said:?}");
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
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_wtblk"))
        .arg("verify")
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
    let begin = serde_json::json!({"contract": wtblk::verify::contract::Contract::named("strict")});
    let named = dir.path().join("named.trace");
    let writer = TraceWriter::create(&named).unwrap();
    writer.record(&Body::Device(DeviceEvent {
        disk: 0,
        queue: 0,
        kind: DeviceKind::Begin,
        a: 0,
        b: 0,
        text: begin.to_string(),
    }));
    writer.close();
    let (_, says) = typed(&[named.to_str().unwrap()]);
    assert!(says.starts_with("contract strict\n"), "{says}");
    let (_, says) = typed(&[named.to_str().unwrap(), "--contract", "rfc-v1"]);
    assert!(says.starts_with("contract rfc-v1\n"), "{says}");
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
    let (status, says) = typed(&["--explain", "honesty"]);
    assert_eq!(status, 2);
    assert!(says.contains("align, cover, order"), "{says}");
}
