// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A ring that stops while the store is busy for longer than the limit: the
//! front end has its answer in time, and nothing of what was given up is written
//! after the next front end has begun.

mod common;

use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::driver::*;
use common::inside::Inside;
use common::serve::{Serve, Trace};
use common::until;
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;
use wtblk::device::Wrap;
use wtblk::store::{Completion, Op, Store, StoreQueue};
use wtblk::trace::event::{Body, DeviceKind, Status};

/// Bytes of the image. All requests together zero it 16 times each: some 340 GiB, which is far from
/// done within the limit. A quarter of that was done in time once, by a machine with large caches.
const IMAGE: usize = 512 << 20;
const REQUESTS: u64 = 64;
/// The limit of a stop, what is given up comes back in, and some time for a busy machine.
const IN_TIME: Duration = Duration::from_millis(5000 + 200 + 2500);

/// An image that lies in memory, full of sevens: there zeros must be written.
fn image() -> (File, String) {
    let file = File::from(memfd_create(c"image", MFdFlags::empty()).unwrap());
    let sevens = vec![7; 1 << 20];
    for at in (0..IMAGE).step_by(sevens.len()) {
        file.write_all_at(&sevens, at as u64).unwrap();
    }
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    (file, path)
}

fn first(image: &File) -> u8 {
    let mut byte = [0];
    image.read_exact_at(&mut byte, 0).unwrap();
    byte[0]
}

/// Has more zeroed than can be in the time there is, and waits until it has begun.
fn zero_for_long(d: &mut Driver, image: &File) -> Vec<u16> {
    let segment = [
        0u64.to_le_bytes().to_vec(),
        ((IMAGE / 512) as u32).to_le_bytes().to_vec(),
        vec![0; 4],
    ];
    let raw = segment.concat().repeat(16);
    let mut heads = Vec::new();
    for n in 0..REQUESTS.min(u64::from(QUEUE_SIZE) / 3) {
        d.poke(d.slot(0, n) + 0x1000, &raw);
        heads.push(d.submit(0, n, WRITE_ZEROES, 0, raw.len() as u32));
    }
    d.force_kick(0);
    until("zeroing", || (first(image) == 0).then_some(()));
    heads
}

/// Writes and flushes, and sees for a while that it stays.
fn write_and_watch(d: &mut Driver, image: &File) {
    let new = vec![9; 0x8000];
    assert_eq!(d.write(0, &new), 0);
    let head = d.submit(0, 1, FLUSH, 0, 0);
    d.kick(0);
    assert_eq!(d.finish(0, 1, head), 0);
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        let mut bytes = vec![0; new.len()];
        image.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == new, "what was written and flushed was wiped");
    }
}

/// All requests are over before this event, some of them given up.
fn assert_over_before(trace: &Trace, kind: DeviceKind, nth: usize) {
    let found = trace
        .0
        .iter()
        .filter(|e| matches!(&e.body, Body::Device(d) if d.kind == kind));
    let seq = found.map(|e| e.seq).nth(nth).unwrap();
    let zeroes = trace.submits();
    let zeroes = zeroes
        .iter()
        .filter(|(_, s)| s.op == wtblk::trace::event::Op::WriteZeroes);
    let zeroes: Vec<u64> = zeroes.map(|z| z.0).collect();
    assert!(!zeroes.is_empty());
    let completes = trace.completes();
    let over = completes
        .iter()
        .filter(|(_, c)| zeroes.contains(&c.request));
    let over: Vec<_> = over.collect();
    assert_eq!(over.len(), zeroes.len());
    assert!(
        over.iter().all(|(at, _)| *at < seq),
        "{kind:?} is {seq}: {over:?}"
    );
    assert!(over.iter().any(|(_, c)| c.status == Status::IOERR));
    let told = trace.device(DeviceKind::StoreError);
    assert!(
        told.iter().any(|e| e.0 == libc::ECANCELED as u64),
        "{told:?}"
    );
}

fn serve(path: &str, aio: &str) -> Serve {
    let dir = tempfile::tempdir().unwrap();
    Serve::start_in(dir, "", &["--image", path, "--aio", aio])
}

fn stopping_gives_up(aio: &str) {
    let (image, path) = image();
    let serve = serve(&path, aio);
    let mut d = Driver::connect(serve.data(), 1);
    let heads = zero_for_long(&mut d, &image);
    let begun = Instant::now();
    let base = d.stop(0);
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    // Those that were taken are over, and the driver knows.
    assert!(base > 0);
    for &head in &heads[..usize::from(base)] {
        assert!(d.is_done(0, head));
    }
    drop(d);
    let mut d = Driver::connect(serve.data(), 1);
    write_and_watch(&mut d, &image);
    drop(d);
    assert_over_before(&serve.end(), DeviceKind::QueueStop, 0);
}

#[test]
fn a_stopping_ring_gives_up_zeroes_in_memory() {
    stopping_gives_up("auto");
}

#[test]
fn a_stopping_ring_gives_up_zeroes_by_io_uring() {
    stopping_gives_up("io_uring");
}

#[test]
fn a_stopping_ring_gives_up_zeroes_of_threads() {
    stopping_gives_up("threads");
}

#[test]
fn the_next_front_end_finds_nothing_that_is_still_being_zeroed() {
    let (image, path) = image();
    let serve = serve(&path, "auto");
    let mut d = Driver::connect(serve.data(), 1);
    zero_for_long(&mut d, &image);
    let begun = Instant::now();
    drop(d);
    let mut d = Driver::connect(serve.data(), 1);
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    write_and_watch(&mut d, &image);
    drop(d);
    assert_over_before(&serve.end(), DeviceKind::Connected, 1);
}

#[test]
fn a_signal_ends_the_process_within_the_limit() {
    let (image, path) = image();
    let mut serve = serve(&path, "auto");
    let mut d = Driver::connect(serve.data(), 1);
    zero_for_long(&mut d, &image);
    let begun = Instant::now();
    serve.signal(Signal::SIGTERM);
    assert_eq!(serve.wait(), 0);
    assert!(begun.elapsed() < IN_TIME, "{:?}", begun.elapsed());
    assert_over_before(&serve.trace(), DeviceKind::Disconnected, 0);
}

/// A store whose writes are with the host kernel until they are let go.
struct Stuck(Arc<dyn Store>, Arc<AtomicBool>, Arc<EventFd>);

struct StuckQueue {
    inner: Box<dyn StoreQueue>,
    waiting: Vec<(u64, Op)>,
    go: Arc<AtomicBool>,
    event: Arc<EventFd>,
}

impl Store for Stuck {
    fn capacity(&self) -> u64 {
        self.0.capacity()
    }

    fn queue(&self) -> std::io::Result<Box<dyn StoreQueue>> {
        Ok(Box::new(StuckQueue {
            inner: self.0.queue()?,
            waiting: Vec::new(),
            go: self.1.clone(),
            event: self.2.clone(),
        }))
    }
}

impl StoreQueue for StuckQueue {
    fn submit(&mut self, token: u64, op: Op) {
        match op {
            Op::Write { .. } if !self.go.load(Ordering::SeqCst) => self.waiting.push((token, op)),
            op => self.inner.submit(token, op),
        }
    }

    fn reap(&mut self, into: &mut Vec<Completion>) {
        if self.go.load(Ordering::SeqCst) {
            for (token, op) in self.waiting.drain(..) {
                self.inner.submit(token, op);
            }
        }
        self.inner.reap(into);
    }

    fn give_up(&mut self) {
        self.inner.give_up();
    }

    fn event(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.event.as_fd()
    }
}

struct StuckDisk {
    inside: Inside,
    go: Arc<AtomicBool>,
    event: Arc<EventFd>,
}

impl StuckDisk {
    fn start() -> StuckDisk {
        let (go, event) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(EventFd::new().unwrap()),
        );
        let (theirs, wake) = (go.clone(), event.clone());
        let wrap: Wrap =
            Arc::new(move |store| Arc::new(Stuck(store, theirs.clone(), wake.clone())));
        let inside = Inside::start_with(1, Vec::new(), false, |_| None, Some(wrap));
        StuckDisk { inside, go, event }
    }

    /// A write that does not come back.
    fn write(&self, d: &mut Driver) {
        d.poke(d.slot(0, 0) + 0x1000, &[7; 512]);
        let taken = || Trace::read(&self.inside.path("trace")).submits().len();
        let before = taken();
        d.submit(0, 0, OUT, 0, 512);
        d.kick(0);
        until("the write to be taken", || (taken() > before).then_some(()));
    }

    fn let_go(&self) {
        self.go.store(true, Ordering::SeqCst);
        self.event.write(1).unwrap();
    }
}

/// Position of the nth device event of a kind.
fn at(trace: &Trace, kind: DeviceKind, nth: usize) -> u64 {
    let found = trace
        .0
        .iter()
        .filter(|e| matches!(&e.body, Body::Device(d) if d.kind == kind));
    found.map(|e| e.seq).nth(nth).unwrap()
}

#[test]
fn nobody_is_served_before_the_host_kernel_has_done_the_last_of_before() {
    let mut disk = StuckDisk::start();
    let mut d = disk.inside.data(1);
    disk.write(&mut d);
    let begun = Instant::now();
    // Answered in time all the same.
    d.stop(0);
    assert!(begun.elapsed() < IN_TIME);
    drop(d);
    // Somebody else wants to write there, and waits.
    let stream = disk.inside.connect("data");
    let served = Arc::new(Mutex::new(false));
    let (done, path) = (served.clone(), disk.inside.path("trace"));
    let next = std::thread::spawn(move || {
        let mut d = Driver::connect(stream, 1);
        *done.lock().unwrap() = true;
        assert_eq!(d.write(0, &[9; 512]), 0);
        d
    });
    let said = |trace: &Trace| {
        let limits = trace.device(DeviceKind::Limit);
        limits
            .iter()
            .any(|l| l.2.contains("no front end is served"))
    };
    until("the device to say so", || {
        said(&Trace::read(&path)).then_some(())
    });
    assert!(!*served.lock().unwrap());
    disk.let_go();
    drop(next.join().unwrap());
    // The late write came first.
    assert_eq!(disk.inside.image(0, 512), [9; 512]);
    let trace = disk.inside.end();
    let late = trace.completes()[0].clone();
    assert!(late.1.abandoned);
    assert!(late.0 < at(&trace, DeviceKind::Connected, 1));
}

#[test]
fn a_ring_waits_for_what_it_had_before_and_the_end_waits_for_nobody() {
    let mut disk = StuckDisk::start();
    let mut d = disk.inside.data(1);
    disk.write(&mut d);
    let base = d.stop(0);
    let path = disk.inside.path("trace");
    let again = std::thread::spawn(move || {
        d.start(0, base);
        assert_eq!(d.write(0, &[9; 512]), 0);
        d
    });
    until("the device to say so", || {
        let limits = Trace::read(&path).device(DeviceKind::Limit);
        limits
            .iter()
            .any(|l| l.2.contains("no ring started"))
            .then_some(())
    });
    disk.let_go();
    let mut d = again.join().unwrap();
    let trace = Trace::read(&path);
    assert!(trace.completes()[0].0 < at(&trace, DeviceKind::QueueStart, 1));
    // Once more, and nobody lets it go.
    disk.go.store(false, Ordering::SeqCst);
    disk.write(&mut d);
    drop(d);
    let waiting = disk.inside.connect("data");
    until("the device to say so again", || {
        let limits = Trace::read(&path).device(DeviceKind::Limit);
        let said = limits.iter().filter(|l| l.2.contains("no ring started"));
        (said.count() == 2).then_some(())
    });
    let begun = Instant::now();
    disk.inside.end();
    assert!(begun.elapsed() < IN_TIME);
    drop(waiting);
}
