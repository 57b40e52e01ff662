// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of `wtblk serve`: sockets, disks and threads set up, a signal
//! waited for, everything brought to an orderly end.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use wtblk_shared::disk::{MARK_DISK_LEN, MARK_SERIAL, SECTOR};

use super::command::STOP_LIMIT;
use super::config::Geometry;
use super::connection::{self, Stopper};
use super::control::ControlSocket;
use super::data_queue::{DataQueue, DiskState};
use super::disk::{self, Disk, Threads, join_until};
use super::hub::Hub;
use super::mark_queue::MarkQueue;
use super::notify::notify;
use super::settings::{Layers, ServeConfig, Settings};
use super::socket::{Address, Socket};
use super::wake::Wake;
use crate::fault::Engine;
use crate::store::Store;
use crate::trace::TraceWriter;
use crate::trace::event::{DATA_DISK, DeviceKind, MARK_DISK};

/// Beyond [`STOP_LIMIT`]: for threads to end.
const MARGIN: Duration = Duration::from_millis(500);

/// Serves until SIGINT, SIGTERM or, for a connected socket, until its peer has gone.
pub fn serve(config: ServeConfig) -> Result<()> {
    // First of all: a signal during set-up must find its sockets removed again, too.
    let signals = signal_pipe().context("cannot catch signals")?;
    let settings = Settings::of(&config)?;
    let engine = Engine::new(&settings.scenario, config.seed);
    let kept = [engine.kept_ranges(), config.kept.clone()].concat();
    let Layers { store, cache } = settings.store(
        config.poison,
        config.volatile_cache || settings.needs_cache(),
        &kept,
    )?;
    let socket = Socket::open(&config.socket)?;
    let mark_socket = config.mark_socket.as_ref().map(Socket::open).transpose()?;
    let control = config.control.clone().map(Address::Path);
    let control = control.as_ref().map(Socket::open).transpose()?;
    let trace = Arc::new(match &config.trace {
        Some(path) => TraceWriter::create(path)?,
        None => TraceWriter::null(),
    });
    let rules = settings.scenario.rules.len() as u64;
    let hub = Arc::new(Hub::new(
        trace.clone(),
        engine,
        config.plans.clone(),
        cache,
        &config.recording,
    )?);
    let begin = describe(&config, &settings, &*store, mark_socket.is_some());
    hub.event(DATA_DISK, 0, DeviceKind::Begin, 0, 0, &begin);
    if !config.scenarios.is_empty() {
        let text = settings.scenario.to_text();
        hub.event(
            DATA_DISK,
            0,
            DeviceKind::Scenario,
            rules,
            config.seed,
            &text,
        );
    }

    let ended = Arc::new(Wake::new()?);
    let mut running = vec![data_disk(&hub, &settings, &*store, socket, &ended)?];
    let data = &running[0];
    if let Some(socket) = mark_socket {
        let workers = data.disk.workers.clone();
        running.push(mark_disk(&hub, workers, socket)?);
    }
    let control = control.map(|socket| ControlSocket::start(hub.clone(), socket));
    let control = control.transpose()?;
    notify("READY=1");
    let why = wait(&signals, config.end.as_deref().unwrap_or(&signals), &ended)?;
    notify("STOPPING=1");
    tracing::info!("ending: {why}");
    hub.event(DATA_DISK, 0, DeviceKind::End, 0, 0, why);
    drop(control);
    end(running);
    // An orderly end of a disk keeps what it has said it has.
    if let Some(cache) = &hub.cache
        && let Err(error) = cache.write_out(STOP_LIMIT)
    {
        tracing::error!(%error, "cannot write the volatile cache out");
        let text = format!("the volatile cache was not written out: {error}");
        hub.event(DATA_DISK, 0, DeviceKind::Limit, 0, 0, &text);
    }
    trace.close();
    Ok(())
}

/// A disk with its threads.
struct Running {
    disk: Arc<Disk>,
    workers: Threads,
    connection: JoinHandle<()>,
    stopper: Arc<Stopper>,
}

fn run(disk: Arc<Disk>, workers: Threads, socket: Socket, ended: Arc<Wake>) -> io::Result<Running> {
    let stopper = Stopper::new()?;
    if disk.state.is_some() {
        disk.hub.outage.set_connection(stopper.clone());
    }
    let connection = connection::serve(disk.clone(), socket, stopper.clone(), ended)?;
    Ok(Running {
        disk,
        workers,
        connection,
        stopper,
    })
}

fn data_disk(
    hub: &Arc<Hub>,
    settings: &Settings,
    store: &dyn Store,
    socket: Socket,
    ended: &Arc<Wake>,
) -> Result<Running> {
    let geometry = Geometry::of(&settings.shape, store.capacity() / SECTOR);
    let state = Arc::new(DiskState {
        capacity: store.capacity(),
        read_only: geometry.read_only,
        discard: geometry.discard,
        serial: settings.serial().to_owned(),
        writeback: AtomicBool::new(settings.write_cache()),
        abandon_on_stop: settings.abandon_on_stop,
    });
    let (workers, idle) = disk::handles(settings.queues())?;
    hub.set_workers(workers.clone());
    let disk = Arc::new(Disk {
        number: DATA_DISK,
        name: "data",
        hub: hub.clone(),
        geometry,
        state: Some(state.clone()),
        start_writeback: settings.write_cache(),
        workers,
        epochs: AtomicU32::new(0),
        connections: AtomicU64::new(0),
    });
    let threads = disk.run(idle, settings.poll.spin(), |queue| {
        let store = store.queue()?;
        Ok(DataQueue::new(hub.clone(), state.clone(), queue, store))
    })?;
    Ok(run(disk, threads, socket, ended.clone())?)
}

fn mark_disk(
    hub: &Arc<Hub>,
    data: Arc<Vec<super::command::WorkerHandle>>,
    socket: Socket,
) -> Result<Running> {
    let (workers, idle) = disk::handles(1)?;
    let disk = Arc::new(Disk {
        number: MARK_DISK,
        name: "mark",
        hub: hub.clone(),
        geometry: Geometry::of_marks(MARK_DISK_LEN / SECTOR),
        state: None,
        start_writeback: false,
        workers,
        epochs: AtomicU32::new(0),
        connections: AtomicU64::new(0),
    });
    let threads = disk.run(idle, Duration::ZERO, |_| {
        Ok(MarkQueue::new(hub.clone(), data.clone()))
    })?;
    // Only the end of the disk under test ends the process.
    let nobody = Arc::new(Wake::new()?);
    Ok(run(disk, threads, socket, nobody)?)
}

/// First the connections, which complete what is in flight; then the workers.
fn end(running: Vec<Running>) {
    let until = Instant::now() + STOP_LIMIT + MARGIN;
    for each in &running {
        each.stopper.stop();
    }
    let mut disks = Vec::new();
    for each in running {
        join_until(vec![each.connection], until);
        disks.push((each.disk, each.workers));
    }
    for (disk, workers) in disks {
        disk.end(workers, MARGIN);
    }
}

/// The text of the Begin event.
fn describe(config: &ServeConfig, settings: &Settings, store: &dyn Store, marks: bool) -> String {
    let mut what = json!({
        "wtblk": env!("CARGO_PKG_VERSION"),
        "capacity_sectors": store.capacity() / SECTOR,
        "logical_block": settings.block(),
        "queues": settings.queues(),
        "read_only": settings.read_only(),
        "write_cache": settings.write_cache(),
        "digest": {
            "algorithm": "xxh3-64",
            "granularity": "request",
            "sector_bytes": SECTOR,
            "of": config.recording.digest.name(),
        },
        "on_stop": if settings.abandon_on_stop { "abandon" } else { "complete" },
        "serial": settings.serial(),
        "mark_serial": marks.then_some(MARK_SERIAL),
    });
    settings.scenario.contract().note_in(&mut what);
    what.to_string()
}

/// Readable after SIGINT or SIGTERM.
fn signal_pipe() -> io::Result<UnixStream> {
    let (ours, handlers) = UnixStream::pair()?;
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::low_level::pipe::register(signal, handlers.try_clone()?)?;
    }
    Ok(ours)
}

/// Waits for the end; says what it was.
fn wait(signals: &UnixStream, end: &UnixStream, ended: &Wake) -> Result<&'static str> {
    loop {
        let mut fds = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(ended.as_fd(), PollFlags::POLLIN),
            PollFd::new(end.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for a signal"),
        }
        if fds[0].any() == Some(true) {
            return Ok("signal");
        }
        if fds[2].any() == Some(true) {
            return Ok("told to");
        }
        if fds[1].any() == Some(true) {
            return Ok("the front end has gone");
        }
    }
}
