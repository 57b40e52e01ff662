// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a trace loses and what it does not: a killed writer, a full disk.
//! The writer is a child process, because limits and signals hit a whole process.

use std::fs;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use wtblk::trace::event::*;
use wtblk::trace::{TraceError, TraceReader, TraceWriter};

const HEADER: u64 = 65536;
const CHUNK_RECORDS: u64 = 65536;

fn read_all(reader: &mut TraceReader) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = reader.next().unwrap() {
        events.push(event);
    }
    events
}

fn submit(n: u64) -> Body {
    Body::Submit(Submit {
        disk: DATA_DISK,
        queue: (n >> 32) as u16,
        op: Op::Write,
        sector: n * 8,
        bytes: 4096,
        ioprio: 0x4008,
        epoch: 1,
        avail_pos: n as u16,
        digest: !n,
    })
}

fn note(text: impl Into<String>) -> Body {
    Body::Mark(MarkEvent {
        line: text.into(),
        ordered: true,
    })
}

/// What the child of the tests below is to do; without it the child is no test.
const TASK: &str = "WTBLK_TRACE_CHILD";

fn child(task: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "child_of_the_other_tests",
            "--ignored",
            "--nocapture",
        ])
        .env(TASK, task)
        .env("WTBLK_TRACE_PATH", path)
        .stdout(Stdio::null());
    command
}

#[test]
#[ignore = "started by the other tests as their child process"]
fn child_of_the_other_tests() {
    let Ok(task) = std::env::var(TASK) else {
        return;
    };
    let path = PathBuf::from(std::env::var_os("WTBLK_TRACE_PATH").unwrap());
    match task.as_str() {
        "write-and-die" => {
            let writer = TraceWriter::create(&path).unwrap();
            for n in 0..70_000 {
                writer.record(&submit(n));
            }
            writer.record(&note("the last word"));
            let hole = writer.reserve();
            writer.record(&note("after the hole"));
            writer.reserve();
            assert_eq!(hole, 70_001);
            // SAFETY: sends a signal to ourselves, touches no memory.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        }
        "no-room" => {
            limit_files(1024 * 1024);
            let error = TraceWriter::create(&path).unwrap_err();
            assert!(matches!(error, TraceError::NoRoom { .. }), "{error}");
            assert!(error.to_string().contains(path.to_str().unwrap()));
            assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        }
        "full-in-between" => {
            limit_files(HEADER + 64 * CHUNK_RECORDS);
            let writer = TraceWriter::create(&path).unwrap();
            for n in 0..CHUNK_RECORDS + 10 {
                writer.record(&submit(n));
            }
            limit_files(libc::RLIM_INFINITY);
            for n in CHUNK_RECORDS + 10..2 * CHUNK_RECORDS + 5 {
                writer.record(&submit(n));
            }
            writer.close();
        }
        "full-of-texts" => {
            limit_files(HEADER + 64 * CHUNK_RECORDS);
            let writer = TraceWriter::create(&path).unwrap();
            for n in 0..7 {
                writer.record(&note(n.to_string().repeat(700_000)));
            }
            limit_files(libc::RLIM_INFINITY);
            std::thread::sleep(std::time::Duration::from_millis(150));
            writer.record(&note("again"));
            writer.close();
        }
        "tmpfs" => tmpfs(&path),
        other => panic!("unknown task {other}"),
    }
}

fn limit_files(bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a live rlimit.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
    assert_eq!(rc, 0);
}

#[test]
fn what_was_committed_survives_sigkill() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    let status = child("write-and-die", &path).status().unwrap();
    assert_eq!(status.signal(), Some(libc::SIGKILL));

    let mut reader = TraceReader::open(&path).unwrap();
    let events = read_all(&mut reader);
    assert!(!reader.closed());
    assert_eq!(events.len(), 70_003);
    assert_eq!(events[69_999].body, submit(69_999));
    assert_eq!(events[70_000].body, note("the last word"));
    let Body::Gap(gap) = &events[70_001].body else {
        panic!("{:?}", events[70_001])
    };
    assert_eq!((events[70_001].seq, gap.missing), (70_001, 1));
    assert!(gap.why.contains("killed"), "{}", gap.why);
    assert_eq!(events[70_002].body, note("after the hole"));
}

#[test]
fn no_room_at_the_begin_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(
        child("no-room", &dir.path().join("t"))
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn no_room_in_between_is_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    assert!(child("full-in-between", &path).status().unwrap().success());
    let events = read_all(&mut TraceReader::open(&path).unwrap());
    assert_eq!(events.len() as u64, CHUNK_RECORDS + 1 + 5);
    let gap = &events[CHUNK_RECORDS as usize];
    assert_eq!(gap.seq, CHUNK_RECORDS);
    assert_eq!(
        gap.body,
        Body::Gap(Gap {
            missing: CHUNK_RECORDS,
            why: "no room for the trace: File too large (os error 27)".into()
        })
    );
    assert_eq!(events.last().unwrap().body, submit(2 * CHUNK_RECORDS + 4));
}

#[test]
fn no_room_for_a_text_loses_that_event_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t");
    assert!(child("full-of-texts", &path).status().unwrap().success());
    let events = read_all(&mut TraceReader::open(&path).unwrap());
    let kept = events.iter().map(|e| matches!(e.body, Body::Mark(_)));
    assert_eq!(
        kept.collect::<Vec<_>>(),
        [true, true, true, true, true, false, false, true]
    );
    assert_eq!(events[7].body, note("again"));
    assert!(matches!(events[5].body, Body::Gap(Gap { missing: 1, .. })));
}

/// In a mount namespace of its own, on a tmpfs with room for one chunk of each file.
fn tmpfs(path: &Path) {
    let writer = TraceWriter::create(path).unwrap();
    for n in 0..CHUNK_RECORDS + 10 {
        writer.record(&submit(n));
    }
    let error = TraceWriter::create(&path.with_extension("second")).unwrap_err();
    assert!(matches!(error, TraceError::NoRoom { .. }), "{error}");
    writer.close();
    let events = read_all(&mut TraceReader::open(path).unwrap());
    assert_eq!(events.len() as u64, CHUNK_RECORDS + 1);
    let Body::Gap(gap) = &events[CHUNK_RECORDS as usize].body else {
        panic!("no gap")
    };
    assert_eq!(gap.missing, 10);
    assert!(gap.why.contains("No space left"), "{}", gap.why);

    // It cannot be gone on with, and stays what it was.
    drop(writer);
    let filler = path.with_extension("filler");
    while fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(&filler)
        .unwrap()
        .write_all(&[1; 4096])
        .is_ok()
    {}
    let error = TraceWriter::go_on(path, |_| Ok(()))
        .map(drop)
        .expect_err("no room");
    assert!(error.to_string().contains("No space left"), "{error}");
    let mut reader = TraceReader::open(path).unwrap();
    assert_eq!(read_all(&mut reader), events);
    assert!(reader.closed());
    drop(reader);
    fs::remove_file(filler).unwrap();
    fs::remove_file(path).unwrap();
    fs::remove_file(path.with_extension("data")).unwrap();

    // Where only a text finds no room, that text is lost.
    let writer = TraceWriter::create(path).unwrap();
    writer.record(&submit(0));
    drop(writer);
    let (writer, _) = TraceWriter::go_on(path, |_| Ok(())).unwrap();
    writer.record(&note("no room"));
    writer.record(&submit(2));
    writer.close();
    let events = read_all(&mut TraceReader::open(path).unwrap());
    assert_eq!(events.len(), 3);
    assert!(matches!(events[1].body, Body::Gap(Gap { missing: 1, .. })));
    assert_eq!(events[2].body, submit(2));
}

#[test]
fn a_full_tmpfs_is_no_sigbus() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("unshare")
        .args(["-m", "mount", "-t", "tmpfs", "none"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|s| s.success()) {
        let root = nix::unistd::geteuid().is_root();
        assert!(
            !root,
            "not checked: root cannot mount a tmpfs (no unshare?)"
        );
        eprintln!("SKIP: cannot mount a tmpfs (not root)");
        return;
    }
    let child = child("tmpfs", &dir.path().join("t"));
    let status = Command::new("unshare")
        .args([
            "-m",
            "sh",
            "-c",
            "mount -t tmpfs -o size=9m none \"$0\" && exec \"$@\"",
        ])
        .arg(dir.path())
        .arg(child.get_program())
        .args(child.get_args())
        .env(TASK, "tmpfs")
        .env("WTBLK_TRACE_PATH", dir.path().join("t"))
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
}
