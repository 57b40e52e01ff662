// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest writes under load, reboots, is reset, and is killed and comes again
//! by another connection, round after round, beside one `wtblk serve`: every
//! block is right. `WTBLK_CHURN=N` says how many rounds (`ci/soak`: 50).

mod common;
mod support;

use common::serve::{Serve, Trace};
use nix::sys::signal::Signal;
use support::guest::{Guest, LIMIT, Way};
use wtblk::harness::image;
use wtblk::trace::event::{DeviceKind, Op};

fn boot(serve: &Serve, rounds: u32, queues: u16, way: Way) -> Guest {
    let words = [
        "wtblk_tests=churn".to_owned(),
        format!("wtblk_rounds={rounds}"),
        "wtblk_test_ms=120000".to_owned(),
    ];
    Guest::boot(serve.dir(), way, &words, queues)
}

/// By connections that end with the guest.
fn once(serve: &Serve) -> Way {
    Way::Once(serve.data().into(), serve.mark().into(), None)
}

/// What came of so many rounds: the lines of the aid, what was wrong, the events.
struct Outcome {
    said: Vec<String>,
    wrong: Vec<String>,
    trace: Trace,
}

fn churn(rounds: u32, scenario: &str, args: &[&str], queues: u16) -> Outcome {
    let dir = tempfile::tempdir().unwrap();
    image::xfs(
        &dir.path().join("data.img"),
        image::Kind::named(None, 512).unwrap(),
        512,
    )
    .unwrap();
    let number = queues.to_string();
    let args = [&["--image", "data.img", "--queues", &number], args].concat();
    let mut serve = Serve::start_in(dir, scenario, &args);
    let mut guest = boot(&serve, rounds, queues, once(&serve));
    let (mut said, mut wrong, mut all) = (Vec::new(), Vec::new(), Vec::new());
    loop {
        let line = match guest.console.recv_timeout(LIMIT) {
            Ok(line) => line,
            Err(e) => panic!("nothing came ({e}):\n{}", all.join("\n")),
        };
        all.push(line.clone());
        let plain = ["checked:", "resets itself", "wants to be", "churn: done"];
        if plain.iter().any(|w| line.contains(w)) {
            said.push(line.clone());
        } else if line.contains("# churn:") || line.contains("Bail out") {
            wrong.push(line.clone());
        }
        if line.contains("wants to be reset") {
            guest.reset();
        } else if line.contains("wants to be killed") {
            drop(guest);
            guest = boot(&serve, rounds, queues, once(&serve));
        } else if line.contains("ok 1 churn") {
            break;
        } else if line.contains("Kernel panic") {
            panic!("{}", all.join("\n"));
        }
    }
    drop(guest);
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
    Outcome {
        said,
        wrong,
        trace: serve.trace(),
    }
}

fn rounds() -> u32 {
    let said = std::env::var("WTBLK_CHURN").unwrap_or_else(|_| "3".into());
    said.parse().expect("WTBLK_CHURN is a number of rounds")
}

#[test]
fn every_block_is_right_after_reboot_reset_and_reconnect() {
    let rounds = rounds();
    let outcome = churn(rounds, "", &["--poison", "--volatile-cache"], 2);
    let said = outcome.said.join("\n");
    assert!(outcome.wrong.is_empty(), "{:?}\n{said}", outcome.wrong);
    for round in 1..=rounds {
        let line = format!("# churn: round {round} checked:");
        assert!(said.contains(&line), "{line}\n{said}");
    }
    assert!(said.contains("# churn: done"), "{said}");
    outcome.trace.assert_paired();
    let resets = outcome.trace.device(DeviceKind::QueueStart).len();
    assert!(resets > rounds as usize, "{resets}");
}

#[test]
fn a_lost_write_is_noticed() {
    // One write in twelve is acknowledged and not stored.
    let scenario = r#"
version = 1
[[fault]]
name = "lost"
when = { op = "write", size = 12288, probability = 0.08 }
action = { drop = true }
"#;
    let outcome = churn(2, scenario, &[], 1);
    // One that is lost at once leaves an older version, one that is lost later a hole in the order.
    let lost = |l: &String| l.contains("neither new nor old") || l.contains("before, is old");
    assert!(
        outcome.wrong.iter().any(lost),
        "{:?}\n{:?}",
        outcome.wrong,
        outcome.said
    );
    let writes = outcome.trace.submits();
    assert!(
        writes
            .iter()
            .any(|s| s.1.op == Op::Write && s.1.bytes == 12288)
    );
}

/// Keeps some of the guest's writes in flight at any time: whoever kills the device meets them.
const SLOW: &str = r#"
version = 1
[[fault]]
name = "slow"
when = { op = "write", size = 12288, every = { n = 4, per = "rule" } }
action = { delay = "20ms" }
"#;

/// The device is killed by SIGKILL while the guest writes, and started again: QEMU connects anew,
/// and the guest never hears of it. `WTBLK_KILLS=N` says how often (`ci/soak`: 100).
#[test]
fn every_block_is_right_though_the_device_is_killed() {
    let kills: usize = std::env::var("WTBLK_KILLS").map_or(4, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    image::xfs(
        &dir.path().join("data.img"),
        image::Kind::named(None, 512).unwrap(),
        512,
    )
    .unwrap();
    // Poison tells a block that was lost from one that is old.
    let args = [
        "--image",
        "data.img",
        "--queues",
        "2",
        "--poison",
        "--continue-trace",
    ];
    let mut serve = Serve::start_in(dir, SLOW, &args);
    // Far more rounds than it will come to.
    let guest = boot(&serve, 10_000, 2, Way::Again(serve.dir().to_owned()));
    let (mut done, mut checked, mut all) = (0, 0, Vec::new());
    // A kernel that restarts takes its own disks away first, and fails what is still under way.
    let mut restarts = false;
    while done < kills || checked == 0 {
        let line = match guest.console.recv_timeout(LIMIT) {
            Ok(line) => line,
            Err(e) => panic!("nothing came after {done} kills ({e}):\n{}", all.join("\n")),
        };
        all.push(line.clone());
        restarts = (restarts || line.contains("resets itself")) && !line.contains("Linux version");
        assert!(
            !line.contains("Kernel panic")
                && !line.contains("not ok")
                && (restarts || !line.contains("I/O error")),
            "{}",
            all.join("\n")
        );
        if line.contains("neither new nor old") || line.contains("before, is old") {
            panic!("after {done} kills:\n{}", all.join("\n"));
        }
        checked += usize::from(line.contains("checked:"));
        if line.contains("wants to be") {
            // All lanes are writing: now, and several times more before the machine is reset.
            for _ in 0..kills.div_ceil(4).min(10) {
                serve = Serve::start_in(serve.kill(), SLOW, &args);
                done += 1;
                // The guest's writes must be seen to go on before it is killed again.
                let before = serve.trace().submits().len();
                common::until("the guest's writes to go on", || {
                    let completes = serve.trace().completes();
                    let done = completes.iter().filter(|c| !c.1.abandoned).count();
                    (serve.trace().submits().len() > before + 20 && done > 20).then_some(())
                });
            }
            guest.reset();
        }
    }
    drop(guest);
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
    let trace = serve.trace();
    trace.assert_paired();
    let again = trace.device(DeviceKind::Again).len();
    eprintln!("{done} kills, {checked} rounds checked, {again} requests taken anew");
    assert!(again > 0, "nothing was in flight at any of {done} kills");
}
