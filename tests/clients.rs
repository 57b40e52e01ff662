// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Clients that are not ours: qemu-io and qemu-img (block layer of QEMU 10,
//! libblkio) write, read, discard, zero and flush on every store and layer.
//! `ci/clients` fetches them once.

mod common;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use common::serve::{Serve, Trace};
use nix::sys::signal::Signal;
use wtblk::trace::event::Op;

/// The folder with the clients.
fn clients() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/ci/clients");
        let output = Command::new(script).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "ci/clients: {}", said(&output));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn client(serve: &Serve, program: &str, args: &[String]) -> Output {
    // A socket that answers: there may be a stale one of before.
    drop(serve.data());
    let disk = format!(
        "driver=virtio-blk-vhost-user,path={},cache.direct=on",
        serve.path("data").display()
    );
    let mut command = Command::new("timeout");
    command.arg("60").arg(clients().join("run")).arg(program);
    command.args(args).arg("--image-opts").arg(disk);
    command.stdin(Stdio::null()).output().unwrap()
}

/// Runs qemu-io with these commands, all of which must succeed.
fn io(serve: &Serve, commands: &[String]) {
    let args: Vec<String> = commands
        .iter()
        .flat_map(|c| ["-c".to_owned(), c.clone()])
        .collect();
    let output = client(serve, "qemu-io", &args);
    let said = said(&output);
    assert!(output.status.success(), "{commands:?}: {said}");
    assert!(!said.contains("failed"), "{commands:?}: {said}");
}

const SIZE: u64 = 16 << 20;
/// A rule that keeps old contents, for the layer of stale reads.
const STALE: &str = r#"
version = 1
[[fault]]
name = "old"
when = { op = "read", lba = "0+64", after = { mark = "never" } }
action = { stale = "0+4096" }
"#;

/// What is served: scenario, options, block.
fn stores() -> Vec<(&'static str, Vec<&'static str>, u64)> {
    let image = ["--image", "img", "--size", "16MiB"];
    let memory = ["--memory", "16MiB"];
    let with = |base: &[&'static str], more: &[&'static str]| [base, more].concat();
    vec![
        ("", with(&memory, &[]), 512),
        ("", with(&memory, &["--volatile-cache", "--poison"]), 512),
        ("", with(&image, &[]), 512),
        ("", with(&image, &["--volatile-cache"]), 512),
        ("", with(&image, &["--poison"]), 512),
        ("", with(&image, &["--aio", "threads"]), 512),
        ("", with(&image, &["--write-cache", "off"]), 512),
        (STALE, with(&image, &["--volatile-cache", "--poison"]), 512),
        (
            "",
            with(&image, &["--logical-block", "4096", "--queue-size", "256"]),
            4096,
        ),
    ]
}

/// Ranges with what they hold in the end, of commands that set them.
fn script(block: u64) -> (Vec<String>, Vec<(u64, u64, u8)>) {
    let mut commands = Vec::new();
    let mut holds: Vec<(u64, u64, u8)> = Vec::new();
    let mut at = 0;
    // Odd lengths, far beyond one segment at last.
    for (n, blocks) in [1, 3, 8, 31, 128, 255].into_iter().enumerate() {
        let (len, byte) = (blocks * block, n as u8 + 1);
        commands.push(format!("aio_write -P {byte} {at} {len}"));
        holds.push((at, len, byte));
        at += len + block;
    }
    commands.push("aio_flush".into());
    at = at.next_multiple_of(1 << 20);
    commands.push(format!("write -P 170 {at} 1M"));
    for (what, from, len) in [
        ("write -z", 0, 64),
        ("write -z -u", 128, 64),
        ("discard", 256, 128),
        ("write -P 90", 384, 32),
    ] {
        commands.push(format!("{what} {} {}", at + from * 1024, len * 1024));
    }
    for (from, len, byte) in [
        (0, 64, 0),
        (64, 64, 170),
        (128, 64, 0),
        (192, 64, 170),
        (256, 128, 0),
        (384, 32, 90),
        (416, 608, 170),
    ] {
        holds.push((at + from * 1024, len * 1024, byte));
    }
    commands.push(format!("write -f -P 60 {} 64k", at + (2 << 20)));
    holds.push((at + (2 << 20), 64 << 10, 60));
    commands.push("flush".into());
    (commands, holds)
}

fn reads(holds: &[(u64, u64, u8)]) -> Vec<String> {
    let read = |(at, len, byte): &(u64, u64, u8)| format!("read -P {byte} {at} {len}");
    holds.iter().map(read).collect()
}

#[test]
fn qemu_io_finds_what_it_wrote_on_every_store_and_layer() {
    for (scenario, args, block) in stores() {
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), scenario, &args);
        let (commands, holds) = script(block);
        let reads = reads(&holds);
        io(&serve, &commands);
        io(&serve, &reads);
        if !args.contains(&"--image") {
            serve.end();
            continue;
        }
        // After a flush even SIGKILL takes nothing; the image itself has the bytes.
        let dir = serve.kill();
        let bytes = std::fs::read(dir.path().join("img")).unwrap();
        for &(at, len, byte) in &holds {
            let held = &bytes[at as usize..(at + len) as usize];
            assert!(held.iter().all(|&b| b == byte), "{args:?}: {at}+{len}");
        }
        let serve = Serve::start_in(dir, scenario, &args);
        // A discarded range is a hole, and a hole of an image of before is poison.
        let poison = args.contains(&"--poison");
        let hole = |r: &String| poison && r.starts_with("read -P 0") && r.ends_with(" 131072");
        let reads: Vec<_> = reads.into_iter().filter(|r| !hole(r)).collect();
        io(&serve, &reads);
        serve.end();
    }
}

#[test]
fn qemu_io_does_notice_a_wrong_byte() {
    let scenario = r#"
version = 1
[[fault]]
name = "wrong"
when = { op = "write", nth = { n = 2, per = "rule" } }
action = { corrupt = { bits = 1 } }
"#;
    let serve = Serve::start(scenario, &[]);
    let commands = ["write -P 5 0 64k", "write -P 5 64k 64k", "read -P 5 0 128k"];
    let args = commands.map(|c| ["-c".to_owned(), c.to_owned()]).concat();
    let output = client(&serve, "qemu-io", &args);
    let said = said(&output);
    assert!(
        !output.status.success() && said.contains("Pattern verification failed"),
        "{said}"
    );
    serve.end();
}

#[test]
fn qemu_img_bench_keeps_many_requests_in_flight() {
    let mut stores = stores();
    stores.push(("", vec!["--null", "1GiB"], 512));
    for (scenario, args, _) in stores {
        let serve = Serve::start_in(tempfile::tempdir().unwrap(), scenario, &args);
        let bench = |more: &[&str]| {
            let args = [&["bench", "-c", "2000", "-d", "32", "-s", "4096"], more].concat();
            let args: Vec<String> = args.iter().map(|&a| a.into()).collect();
            let output = client(&serve, "qemu-img", &args);
            assert!(output.status.success(), "{args:?}: {}", said(&output));
        };
        bench(&["-w", "--pattern=0x5a", "--flush-interval=100"]);
        bench(&[]);
        if !args.contains(&"--null") {
            io(&serve, &[format!("read -P 90 0 {}", 2000 * 4096)]);
        }
        let requests = ended(serve);
        requests.assert_paired();
        let count = |op| requests.submits().iter().filter(|s| s.1.op == op).count();
        assert_eq!(count(Op::Write), 2000);
        assert!(count(Op::Read) >= 2000 && count(Op::Flush) >= 20);
    }
}

fn ended(mut serve: Serve) -> Trace {
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
    serve.trace()
}

#[test]
fn the_disk_is_as_large_as_it_was_made() {
    let serve = Serve::start("", &[]);
    let args = ["info".to_owned(), "--output=json".to_owned()];
    let output = client(&serve, "qemu-img", &args);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["virtual-size"], SIZE, "{}", said(&output));
    serve.end();
}
