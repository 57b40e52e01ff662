// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control socket: every verb, who may use it, and what nonsense comes to.

mod common;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use common::driver::*;
use common::inside::Inside;
use common::serve::Serve;
use common::until;
use wtblk::control::client::Client;
use wtblk::control::{Answer, LINE_MAX, Line};
use wtblk::fault::request::Request;
use wtblk::trace::event::{Body, DeviceKind};

const SCENARIO: &str = r#"
version = 1
[[fault]]
name = "late"
when = { op = "write", lba = "3000+2000" }
action = { hold = true }
[[fault]]
name = "fail"
when = { op = "read" }
action = { status = "ioerr" }
"#;

struct World {
    serve: Serve,
    data: Driver,
    mark: Driver,
    ctl: Client,
}

fn world() -> World {
    let serve = Serve::start(SCENARIO, &["--control", "control", "--queues", "2"]);
    let data = Driver::connect(serve.data(), 2);
    let mark = Driver::connect(serve.mark(), 1);
    let path = serve.path("control");
    let ctl = until("a control socket", || Client::connect(&path).ok());
    World {
        serve,
        data,
        mark,
        ctl,
    }
}

fn with(verb: &str, change: impl FnOnce(&mut Line)) -> Line {
    let mut line = Line::of(verb);
    change(&mut line);
    line
}

impl World {
    fn ask(&mut self, verb: &str, change: impl FnOnce(&mut Line)) -> Answer {
        let answer = self.ctl.ask(&with(verb, change)).unwrap().1;
        assert_eq!(answer.wtblk, 1);
        answer
    }

    fn hold(&mut self, queue: usize, n: u64) -> u16 {
        let head = self.data.submit(queue, n, OUT, 3000 + n, 512);
        self.data.kick(queue);
        head
    }
}

#[test]
fn every_verb() {
    let mut w = world();
    let mode = std::fs::metadata(w.serve.path("control"))
        .unwrap()
        .permissions();
    assert_eq!(mode.mode() & 0o777, 0o600);
    // A tagged write of a marked call, held.
    let begin = "begin call=7 test=t dev=1 ino=2 open=3 off=0 len=4096 flags= isize=0 bsize=4096 tag=5 ext=4096:1536000:4096:0";
    assert_eq!(w.mark.mark(begin), 0);
    let slot = w.data.slot(1, 1);
    let tag = wtblk_shared::tag::Tag::new(5).unwrap();
    w.data.header(slot, OUT, u32::from(tag.ioprio()), 3001);
    let parts = vec![
        (slot, 16, 0),
        (slot + 0x1000, 512, 0),
        (slot + 0x20, 1, WRITE),
    ];
    let tagged = w.data.chain(1, &parts);
    w.data.kick(1);
    let plain = w.hold(0, 2);
    assert_eq!(w.ask("wait", |l| l.held = Some(2)).reached, Some(true));
    let list = w.ask("query", |_| {}).requests.unwrap();
    assert_eq!(list.len(), 2);
    let of = |sector: u64| list.iter().find(|r| r.sector == sector).unwrap();
    let (one, other) = (of(3001), of(3002));
    assert_eq!(
        (one.tag, one.call, one.file_offset),
        (Some(5), Some(7), Some(4096 + 512))
    );
    assert_eq!(
        (one.waits.as_str(), one.rule.as_deref()),
        ("hold", Some("late"))
    );
    assert_eq!((one.queue, other.queue, other.tag), (1, 0, None));
    // One, then all.
    assert_eq!(
        w.ask("release", |l| l.request = Some(one.request)).released,
        Some(1)
    );
    assert_eq!(w.data.finish(1, 1, tagged), 0);
    assert!(!w.ask("release", |l| l.request = Some(one.request)).ok);
    let answer = w.ask("release", |l| l.rule = Some("late".into()));
    assert_eq!(answer.released, Some(1));
    assert_eq!(w.data.finish(0, 2, plain), 0);
    // A released rule holds nothing until it is armed again, and the status says so.
    assert_eq!(w.data.write(3000, &[1; 512]), 0);
    let released = |w: &mut World| {
        let rules = w.ask("status", |_| {}).status.unwrap().rules;
        rules.iter().map(|r| r.released).collect::<Vec<_>>()
    };
    assert_eq!(released(&mut w), [true, false]);
    assert!(w.ask("arm", |l| l.rule = Some("late".into())).ok);
    assert_eq!(released(&mut w), [false, false]);
    let head = w.hold(0, 3);
    let fired = |l: &mut Line| {
        l.rule = Some("late".into());
        l.fired = Some(1);
    };
    assert_eq!(w.ask("wait", fired).reached, Some(true));
    // A rule fires a moment before its request counts as held.
    let held = |l: &mut Line| l.held = Some(1);
    assert_eq!(w.ask("wait", held).reached, Some(true));
    let status = w.ask("status", |_| {}).status.unwrap();
    assert_eq!(
        (status.device.as_str(), status.held, status.inflight),
        ("ok", 1, 1)
    );
    let late = &status.rules[0];
    assert_eq!(
        (late.name.as_str(), late.fired, late.held, late.armed),
        ("late", 1, 1, true)
    );
    assert_eq!(w.ask("release", |_| {}).released, Some(1));
    assert_eq!(w.data.finish(0, 3, head), 0);
    assert_eq!(w.data.read(0, 512).0, 1);
    assert!(w.ask("disarm", |l| l.rule = Some("fail".into())).ok);
    assert_eq!(w.data.read(0, 512).0, 0);
    let error = w.ask("arm", |l| l.rule = Some("nobody".into())).error;
    assert!(error.unwrap().contains("no rule is named 'nobody'"));
    assert!(!w.ask("set-state", |l| l.state = Some("nowhere".into())).ok);
    // Not yet, in its time.
    let begin = Instant::now();
    let answer = w.ask("wait", |l| {
        l.held = Some(1);
        l.limit_ms = Some(100);
    });
    assert_eq!(answer.reached, Some(false));
    // What never comes is not waited for.
    let answer = w.ask("wait", |l| l.state = Some("nowhere".into()));
    assert!(answer.error.unwrap().contains("state 'nowhere'"));
    assert!(begin.elapsed() >= Duration::from_millis(100));
    let World {
        serve,
        data,
        mark,
        ctl,
    } = w;
    drop((data, mark, ctl));
    let path = serve.path("control");
    let trace = serve.end();
    assert!(!path.exists());
    trace.assert_paired();
    let orders: Vec<_> = trace
        .marks()
        .into_iter()
        .filter(|m| !m.2)
        .map(|m| m.1)
        .collect();
    let want = [
        "release rule=late",
        "arm rule=late",
        "release",
        "disarm rule=fail",
    ];
    assert_eq!(orders, want.map(|o| format!("wtblk/1 {o}")));
    assert_eq!(trace.device(DeviceKind::Wait).len(), 4);
}

#[test]
fn only_its_owner_may_connect() {
    // Another user can be had by root alone.
    if !nix::unistd::geteuid().is_root() {
        return common::not_checked("another user");
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = dir.path().join("wtblk");
    std::fs::copy(env!("CARGO_BIN_EXE_wtblk"), &program).unwrap();
    let serve = Serve::start_in(dir, "", &["--memory", "1MiB", "--control", "control"]);
    let socket = serve.path("control");
    until("a control socket", || Client::connect(&socket).ok());
    // Even where the file's mode lets everybody.
    std::fs::set_permissions(&socket, PermissionsExt::from_mode(0o666)).unwrap();
    let ask = |uid: u32| {
        let mut command = Command::new(&program);
        let output = command.arg("ctl").arg(&socket).arg("status").uid(uid);
        let output = output.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (ok, said) = ask(65534);
    assert!(
        !ok && said.contains("only the owner of the device may control it"),
        "{said}"
    );
    let (ok, said) = ask(0);
    assert!(ok, "{said}");
    drop(serve);
}

#[test]
fn a_wait_ends_after_five_seconds_and_holds_up_nobody() {
    let mut w = world();
    let path = w.serve.path("control");
    let waiting = std::thread::spawn(move || {
        let begin = Instant::now();
        let mut ctl = Client::connect(&path).unwrap();
        let line = with("wait", |l| {
            l.held = Some(9);
            l.limit_ms = Some(3_600_000);
        });
        (ctl.ask(&line).unwrap().1, begin.elapsed())
    });
    assert_eq!(w.data.write(0, &[1; 512]), 0);
    assert!(w.ask("status", |_| {}).ok);
    let (answer, waited) = waiting.join().unwrap();
    assert_eq!(answer.reached, Some(false));
    assert!(waited >= Duration::from_secs(5) && waited < Duration::from_secs(9));
}

/// Sends bytes; what comes back until the device closes or is silent.
fn raw(inside: &Inside, bytes: &[u8], close: bool) -> String {
    let mut stream = inside.connect("control");
    stream
        .set_read_timeout(Some(Duration::from_secs(8)))
        .unwrap();
    let _ = stream.write_all(bytes);
    if close {
        stream.shutdown(std::net::Shutdown::Write).unwrap();
    }
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn nonsense_is_answered_or_cut_off_and_the_disk_goes_on() {
    let mut inside = Inside::start(1, vec![], false, |_: &Request| None);
    let mut d = inside.data(1);
    for nonsense in [
        "\n",
        "{}\n",
        "{\"wtblk\":1}\n",
        "{\"wtblk\":1,\"verb\":\"\\u0000\"}\n",
        "{\"wtblk\":1,\"verb\":\"wait\",\"held\":-1}\n",
        "\u{fffd}\n",
        "[[[[[[[[\n",
        // The values of a line, without its keys.
        "[1,\"status\",null,null,null,null,null,null]\n",
    ] {
        let answer = raw(&inside, nonsense.as_bytes(), true);
        assert!(
            answer.starts_with("{\"wtblk\":1,\"ok\":false"),
            "{nonsense}: {answer}"
        );
    }
    assert!(raw(&inside, &[b'x'; LINE_MAX + 7], false).contains("a line of more than"));
    let deep = "[".repeat(LINE_MAX - 1) + "\n";
    assert!(raw(&inside, deep.as_bytes(), true).contains("\"ok\":false"));
    // Two lines in one piece, then half a line: two answers.
    let two = "{\"wtblk\":1,\"verb\":\"status\"}\n{\"wtblk\":1,\"verb\":\"query\"}\n{\"wt";
    assert_eq!(raw(&inside, two.as_bytes(), true).lines().count(), 2);
    // A line that does not end: cut off.
    let begin = Instant::now();
    assert_eq!(raw(&inside, b"{\"wtblk\"", false), "");
    assert!(begin.elapsed() < Duration::from_secs(7));
    // One that asks for a lot and reads nothing is cut off too; the others go on meanwhile.
    let mut deaf = inside.connect("control");
    deaf.set_nonblocking(true).unwrap();
    let asks = "{\"wtblk\":1,\"verb\":\"status\"}\n".repeat(2000);
    let _ = deaf.write(asks.as_bytes());
    let others: Vec<UnixStream> = (0..12).map(|_| inside.connect("control")).collect();
    until("a refusal", || {
        let mut text = [0; 200];
        let refused = others.iter().any(|mut s| {
            s.set_nonblocking(true).unwrap();
            let n = s.read(&mut text).unwrap_or(0);
            String::from_utf8_lossy(&text[..n]).contains("too many")
        });
        refused.then_some(())
    });
    drop(others);
    assert_eq!(d.write(0, &[1; 512]), 0);
    let path = inside.path("control");
    until("room again", || {
        Client::connect(&path).ok()?.ask(&Line::of("status")).ok()
    });
    drop(d);
    let trace = inside.end();
    let wrong = trace.0.iter().filter(|e| matches!(&e.body, Body::Mark(_)));
    assert_eq!(wrong.count(), 0);
}
