// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `wtblk verify` on a stored trace: the same verdicts as on the stream, the
//! right status, and one clear error where there is no trace.

use std::path::{Path, PathBuf};

use wtblk::cli::verify::verify;
use wtblk::trace::TraceWriter;
use wtblk::trace::event::{Body, Complete, DeviceEvent, DeviceKind, MarkEvent, Op, Status, Submit};
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
