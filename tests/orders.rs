// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Every completion order of five concurrent O_DIRECT writes of a real guest:
//! one rule per order, and what the guest saw and what the trace says are as planned.

mod support;

use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{built, inherited, lines, wtblk};
use wtblk::harness::accel::Accel;
use wtblk::harness::image;
use wtblk::harness::qemu::{GUEST_MEMORY, Machine, Qemu, Vm};
use wtblk::trace::TraceReader;
use wtblk::trace::event::{Body, DATA_DISK, Event, Op};
use wtblk_shared::mark::Mark;

const GROUP: usize = 5;
const ROUNDS: usize = 120;
/// Bytes of a write of the aid; so far apart are they.
const EACH: u32 = 12_288;
const APART: u64 = 2 * EACH as u64 / 512;
/// The boot and all rounds, emulated, on a loaded machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Rule `k` has the first writes that the rules before it have used up, and puts them in order `k`.
/// `times` counts requests, so a group is five of them.
fn scenario() -> String {
    let mut text = "version = 1\n".to_owned();
    for k in 0..ROUNDS {
        let _ = write!(
            text,
            "[[fault]]\nname = \"order-{k}\"\ntest = \"ordered-writes\"\n\
             when = {{ op = \"write\", size = {EACH}, not = {{ class = \"log\" }} }}\n\
             action = {{ order = {{ group = {GROUP}, index = {k}, limit = \"20s\" }} }}\n\
             times = {GROUP}\n"
        );
    }
    text
}

/// The order of this number: which arrival goes first, second, ...; all in lexical order.
fn planned(mut index: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..GROUP).collect();
    let mut order = Vec::new();
    for n in (0..GROUP).rev() {
        let below: usize = (1..=n).product();
        order.push(left.remove(index / below));
        index %= below;
    }
    order
}

/// Killed when the test fails.
struct Ends(Child);

impl Ends {
    fn within(&mut self, limit: Duration, what: &str) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < limit, "{what}: not over after {limit:?}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots the guest with the aid and gives the trace.
fn events() -> Vec<Event> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("orders.toml"), scenario()).unwrap();
    image::xfs(
        &dir.path().join("data.img"),
        image::Kind::named(None, 512).unwrap(),
        512,
    )
    .unwrap();
    let [data, mark] = [(); 2].map(|()| UnixStream::pair().unwrap());
    let theirs = (OwnedFd::from(data.1), OwnedFd::from(mark.1));
    let mut serve = wtblk();
    serve.current_dir(dir.path()).args([
        "serve",
        "--image",
        "data.img",
        "--trace",
        "trace",
        "--scenario",
        "orders.toml",
    ]);
    serve.args([
        "--fd",
        &inherited(&data.0),
        "--mark-fd",
        &inherited(&mark.0),
    ]);
    let mut device = Ends(serve.spawn().unwrap());
    drop((data.0, mark.0));

    let kernel = built("build");
    let words = [
        "wtblk_tests=ordered-writes".to_owned(),
        format!("wtblk_test_ms={}", LIMIT.as_millis()),
    ];
    let vm = Vm {
        machine: Machine::Microvm,
        accel: Accel::Tcg,
        kernel: &kernel,
        initramfs: &built("guest"),
        words: &words,
        disks: Some((&theirs.0, &theirs.1)),
        third: None,
        queues: 1,
        queue_size: None,
        memory: GUEST_MEMORY,
        name: dir.path().display().to_string(),
    };
    let mut command = vm.command(&Qemu::find(None).unwrap());
    inherited(&theirs.0);
    inherited(&theirs.1);
    let mut qemu = Ends(command.stdout(Stdio::piped()).spawn().unwrap());
    let console = lines(qemu.0.stdout.take().unwrap());
    let end = Instant::now() + LIMIT;
    let mut said = Vec::new();
    while !said
        .last()
        .is_some_and(|l: &String| l.contains("ok 1 ordered-writes"))
    {
        match console.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) => said.push(line),
            Err(e) => panic!("the aid did not end ({e}):\n{}", said.join("\n")),
        }
    }
    let verdict = said.pop().unwrap_or_default();
    assert!(
        !verdict.contains("not ok 1"),
        "{}\n{verdict}",
        said.join("\n")
    );
    qemu.within(LIMIT, "QEMU");
    kill(Pid::from_raw(device.0.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(device.within(LIMIT, "the device"), Some(0));
    let mut reader = TraceReader::open(&dir.path().join("trace")).unwrap();
    let mut events = Vec::new();
    while let Some(event) = reader.next().unwrap() {
        events.push(event);
    }
    events
}

/// What happened until a round's mark.
#[derive(Default)]
struct Round {
    /// Numbers and sectors of the writes that a rule put in order, as they came.
    came: Vec<(u64, u64)>,
    /// The rules that did.
    rules: Vec<u16>,
    /// Sectors, as they completed.
    completed: Vec<u64>,
    /// Indexes of the writes, as the guest collected them.
    seen: Vec<usize>,
}

fn rounds(events: &[Event]) -> Vec<Round> {
    let mut rounds = Vec::new();
    let mut now = Round::default();
    for event in events {
        match &event.body {
            Body::Decide(d) => {
                now.rules.push(d.rule);
                let submit = events.iter().find_map(|e| match &e.body {
                    Body::Submit(s) if e.seq == d.request => Some(s),
                    _ => None,
                });
                let submit = submit.expect("the request that was decided on");
                assert_eq!(
                    (submit.disk, submit.op, submit.bytes),
                    (DATA_DISK, Op::Write, EACH)
                );
                now.came.push((d.request, submit.sector));
            }
            Body::Complete(c) => {
                assert!(!c.abandoned);
                let of = now.came.iter().find(|(request, _)| *request == c.request);
                now.completed.extend(of.map(|(_, sector)| *sector));
            }
            Body::Mark(mark) => {
                let Ok(Mark::Note { text }) = mark.parse() else {
                    continue;
                };
                let Some((number, seen)) =
                    text.strip_prefix("round ").and_then(|t| t.split_once(": "))
                else {
                    continue;
                };
                assert_eq!(number, rounds.len().to_string());
                now.seen = seen.split(' ').map(|n| n.parse().unwrap()).collect();
                rounds.push(std::mem::take(&mut now));
            }
            Body::Gap(gap) => panic!("events are missing: {gap:?}"),
            _ => {}
        }
    }
    rounds
}

#[test]
fn every_order_of_five_writes_of_a_guest() {
    let rounds = rounds(&events());
    assert_eq!(rounds.len(), ROUNDS);
    let first = rounds[0]
        .came
        .iter()
        .map(|(_, sector)| *sector)
        .min()
        .unwrap();
    for (k, round) in rounds.iter().enumerate() {
        assert_eq!(round.rules, [k as u16; GROUP], "round {k}");
        // The file lies in one piece, so that a sector tells which of the writes it is.
        let index = |sector: u64| {
            assert_eq!((sector - first) % APART, 0, "round {k}");
            ((sector - first) / APART) as usize
        };
        let arrivals: Vec<usize> = round
            .came
            .iter()
            .map(|(_, sector)| index(*sector))
            .collect();
        let want: Vec<usize> = planned(k)
            .into_iter()
            .map(|arrival| arrivals[arrival])
            .collect();
        let completed: Vec<usize> = round.completed.iter().map(|s| index(*s)).collect();
        assert_eq!(
            completed, want,
            "round {k}, in the trace; they came as {arrivals:?}"
        );
        assert_eq!(
            round.seen, want,
            "round {k}, in the guest; they came as {arrivals:?}"
        );
    }
    let mut orders: Vec<_> = rounds.into_iter().map(|r| r.seen).collect();
    orders.sort();
    orders.dedup();
    assert_eq!(orders.len(), ROUNDS, "all of them different");
}
