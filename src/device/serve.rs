// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The life of `wtblk serve`: sockets, disks and threads set up, a signal
//! waited for, everything brought to an orderly end.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use wtblk_shared::disk::{DATA_NAME, MARK_DISK_LEN, MARK_SERIAL, SECTOR};

use super::command::STOP_LIMIT;
use super::config::Geometry;
use super::connection::{self, Stopper};
use super::control::ControlSocket;
use super::data_queue::{DataQueue, DiskState};
use super::disk::{self, Disk, Idle, Threads, join_until};
use super::hub::Hub;
use super::mark_queue::MarkQueue;
use super::notify::Manager;
use super::outage::Outage;
use super::settings::{Layers, ServeConfig, Settings};
use super::socket::{Address, Socket};
use super::wake::Wake;
use super::worker::Look;
use crate::fault::Engine;
use crate::sandbox::Confined;
use crate::store::Store;
use crate::trace::event::{Body, Complete, DATA_DISK, DeviceKind, MARK_DISK, Status};
use crate::trace::{Left, TraceWriter};

/// Beyond [`STOP_LIMIT`]: for threads to end.
const MARGIN: Duration = Duration::from_millis(500);

/// Serves until SIGINT, SIGTERM, SIGHUP or, for a connected socket, until its peer has gone.
pub fn serve(config: ServeConfig) -> Result<()> {
    // First of all: a signal during set-up must find its sockets removed again, too.
    let signals = signal_pipe().context("cannot catch signals")?;
    let settings = Settings::of(&config)?;
    let mut engines = Vec::new();
    let mut opened = Vec::new();
    for (number, each) in (DATA_DISK..).zip(disks(&config, &settings)) {
        let rules_of = (number != DATA_DISK).then_some(each.name);
        let engine = Engine::of_disk(&settings.scenario, config.seed, number, rules_of);
        let mut kept = engine.kept_ranges();
        if number == DATA_DISK {
            kept.extend(&config.kept);
        }
        let volatile = config.volatile_cache || settings.needs_cache(rules_of);
        // Before the image, which may be made: a socket that cannot be had leaves no file behind.
        let socket = Socket::open(each.socket)?;
        let layers = each.settings.store(config.poison, volatile, &kept);
        let mut layers = layers.with_context(|| format!("disk {}", each.name))?;
        if let Some(wrap) = &config.wrap {
            layers.store = wrap(layers.store);
        }
        engines.push(engine);
        opened.push((number, each.name, each.settings, layers, socket));
    }
    let mark_socket = config.mark_socket.as_ref().map(Socket::open).transpose()?;
    let control = config.control.clone().map(Address::Path);
    let control = control.as_ref().map(Socket::open).transpose()?;
    let size = opened.first().map_or(0, |o| o.3.store.capacity());
    let (trace, left) = match &config.trace {
        Some(path) if config.continue_trace => {
            TraceWriter::go_on(path, |left| same_size(&left.begin, size / SECTOR))?
        }
        Some(path) => (TraceWriter::create(path)?, Left::default()),
        None => (TraceWriter::null(), Left::default()),
    };
    let trace = Arc::new(trace);
    let rules = settings.scenario.rules.len() as u64;
    let plans = config.plans.clone();
    let hub = Hub::new(trace.clone(), engines, plans, &config.recording);
    let hub = Arc::new(hub.context("cannot set the device up")?);
    let sizes: Vec<u64> = opened.iter().map(|o| o.3.store.capacity()).collect();
    let ended = Arc::new(Wake::new().context("cannot set the device up")?);
    let mut made = Vec::new();
    let (mut states, mut workers) = (Vec::new(), Vec::new());
    for (number, name, settings, layers, socket) in opened {
        let first_worker = u16::try_from(workers.len()).unwrap_or(u16::MAX);
        let disk = Made::new(&hub, (number, name), settings, layers, first_worker, &left);
        let disk = disk.with_context(|| format!("cannot set disk {name} up"))?;
        states.push(disk.state.clone());
        workers.extend(disk.disk.workers.iter().cloned());
        made.push((disk, settings, socket));
    }
    // Asked now: of an affinity that is set later nobody tells us, and the limits of a container
    // are in files.
    let cpus = thread::available_parallelism().map_or(1, usize::from);
    let manager = Manager::find();
    // All is open and made that will be needed, and no thread was started.
    let sockets = made.iter().map(|(_, _, socket)| socket);
    let sockets = sockets.chain(&mark_socket).chain(&control);
    let folders: Vec<_> = sockets.filter_map(Socket::folder).collect();
    let confined = config.sandbox.enter(&folders)?;
    let confined = confined.as_ref().map_or("off", Confined::word);
    tracing::info!("sandbox: {confined}");

    bury(&hub, &left);
    let numbers = (DATA_DISK..).zip(&states).map(|(number, _)| number);
    hub.await_disks(numbers.filter(|number| left.served.contains(number)));
    let mut begin = describe(&config, &settings, &sizes, mark_socket.is_some());
    begin["sandbox"] = confined.into();
    let begin = begin.to_string();
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

    let workers = Arc::new(workers);
    hub.set_disks(states, workers.clone());
    let mut running = Vec::new();
    let mut stores = Kept::new();
    for (disk, settings, socket) in made {
        stores.push(disk.store.clone());
        let name = disk.disk.name.clone();
        let disk = disk.run(settings, socket, &ended, cpus);
        running.push(disk.with_context(|| format!("cannot start disk {name}"))?);
    }
    if let Some(socket) = mark_socket {
        let disk = mark_disk(&hub, workers, config.marks_per_second, socket);
        running.push(disk.context("cannot start the mark disk")?);
    }
    let control = control.map(|socket| ControlSocket::start(hub.clone(), socket));
    let control = control
        .transpose()
        .context("cannot start the control socket")?;
    manager.tell("READY=1");
    let why = wait(&signals, config.end.as_deref().unwrap_or(&signals), &ended)?;
    manager.tell("STOPPING=1");
    tracing::info!("ending: {why}");
    hub.event(DATA_DISK, 0, DeviceKind::End, 0, 0, why);
    drop(control);
    end(running);
    // An orderly end of a disk keeps what it has said it has.
    let mut lost = Vec::new();
    for disk in hub.disks() {
        if let Some(cache) = &disk.cache
            && let Err(error) = cache.write_out(STOP_LIMIT)
        {
            let text = format!("the volatile cache was not written out: {error}");
            hub.event(disk.number, 0, DeviceKind::Limit, 0, 0, &text);
            lost.push(format!("{}: {error}", disk.serial));
        }
    }
    drop(stores);
    trace.close();
    if !lost.is_empty() {
        anyhow::bail!(
            "the volatile cache could not be written out, what was in it is lost ({})",
            lost.join("; ")
        );
    }
    Ok(())
}

/// What a device that was killed had in flight is over, as far as its trace goes: what became of
/// it nobody knows. What is taken anew has numbers of its own.
fn bury(hub: &Hub, left: &Left) {
    if !hub.trace.goes_on() {
        return;
    }
    let mut disks: Vec<u8> = left.open.iter().map(|o| o.1).chain([DATA_DISK]).collect();
    disks.sort_unstable();
    disks.dedup();
    for disk in disks {
        let text = "the device before was killed, or ended";
        hub.event(disk, 0, DeviceKind::Disconnected, 0, 0, text);
    }
    for &(request, _) in &left.open {
        hub.trace.record(&Body::Complete(Complete {
            request,
            status: Status::IOERR,
            avail_after: 0,
            abandoned: true,
            digest: 0,
        }));
    }
}

/// A disk with its threads.
struct Running {
    disk: Arc<Disk>,
    workers: Threads,
    connection: JoinHandle<()>,
    stopper: Arc<Stopper>,
}

/// Keeps a disk's store: its threads end with it.
type Kept = Vec<Arc<dyn Store>>;

fn run(disk: Arc<Disk>, workers: Threads, socket: Socket, ended: Arc<Wake>) -> io::Result<Running> {
    let stopper = Stopper::new()?;
    if let Some(state) = &disk.state {
        state.outage.set_connection(stopper.clone());
    }
    let connection = connection::serve(disk.clone(), socket, stopper.clone(), ended)?;
    Ok(Running {
        disk,
        workers,
        connection,
        stopper,
    })
}

/// A disk that is to be served.
struct Served<'a> {
    name: &'a str,
    settings: &'a Settings,
    socket: &'a Address,
}

/// The disk under test, and the others in the order of their numbers.
fn disks<'a>(config: &'a ServeConfig, settings: &'a Settings) -> Vec<Served<'a>> {
    let mut disks = vec![Served {
        name: DATA_NAME,
        settings,
        socket: &config.socket,
    }];
    let more = settings.more.iter().map(|(name, socket, settings)| Served {
        name,
        settings,
        socket,
    });
    disks.extend(more);
    disks
}

/// A disk whose threads do not run yet.
struct Made {
    disk: Arc<Disk>,
    state: Arc<DiskState>,
    store: Arc<dyn Store>,
    queues: Vec<DataQueue>,
    idle: Idle,
}

impl Made {
    fn new(
        hub: &Arc<Hub>,
        (number, name): (u8, &str),
        settings: &Settings,
        layers: Layers,
        first_worker: u16,
        left: &Left,
    ) -> Result<Made> {
        let Layers { store, cache } = layers;
        let geometry = Geometry::of(&settings.shape, store.capacity() / SECTOR);
        let state = Arc::new(DiskState {
            number,
            first_worker,
            queues: settings.queues(),
            cache,
            outage: Outage::default(),
            capacity: store.capacity(),
            read_only: geometry.read_only,
            discard: geometry.discard,
            serial: settings.serial().to_owned(),
            writeback: AtomicBool::new(settings.write_cache()),
            abandon_on_stop: settings.abandon_on_stop,
        });
        let mut queues = Vec::new();
        for queue in 0..settings.queues() {
            let store = store.queue();
            let store = store.with_context(|| format!("disk {name}: queue {queue}"))?;
            queues.push(DataQueue::new(hub.clone(), state.clone(), queue, store));
        }
        let (workers, idle) = disk::handles(settings.queues())?;
        let disk = Arc::new(Disk {
            number,
            name: name.to_owned(),
            hub: hub.clone(),
            geometry,
            state: Some(state.clone()),
            start_writeback: settings.write_cache(),
            workers,
            // No epoch is given out twice in a trace.
            epochs: AtomicU32::new(left.epochs.get(&number).copied().unwrap_or(0)),
            connections: AtomicU64::new(0),
        });
        Ok(Made {
            disk,
            state,
            store,
            queues,
            idle,
        })
    }

    fn run(
        self,
        settings: &Settings,
        socket: Socket,
        ended: &Arc<Wake>,
        cpus: usize,
    ) -> Result<Running> {
        let Made {
            disk, queues, idle, ..
        } = self;
        let look = Look {
            time: settings.poll.look(),
            shares_cpu: queues.len() > cpus,
        };
        let threads = disk.run(idle, look, queues)?;
        // Only the end of the disk under test ends the process.
        let ended = match disk.number {
            DATA_DISK => ended.clone(),
            _ => Arc::new(Wake::new()?),
        };
        Ok(run(disk, threads, socket, ended)?)
    }
}

fn mark_disk(
    hub: &Arc<Hub>,
    data: Arc<Vec<super::command::WorkerHandle>>,
    per_second: u32,
    socket: Socket,
) -> Result<Running> {
    let (workers, idle) = disk::handles(1)?;
    let disk = Arc::new(Disk {
        number: MARK_DISK,
        name: "mark".to_owned(),
        hub: hub.clone(),
        geometry: Geometry::of_marks(MARK_DISK_LEN / SECTOR),
        state: None,
        start_writeback: false,
        workers,
        epochs: AtomicU32::new(0),
        connections: AtomicU64::new(0),
    });
    let look = Look {
        time: Duration::ZERO,
        shares_cpu: false,
    };
    let queue = MarkQueue::new(hub.clone(), data, per_second);
    let threads = disk.run(idle, look, vec![queue])?;
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

/// Whether the trace whose begin this is speaks of a disk of so many sectors.
fn same_size(begin: &str, sectors: u64) -> Result<(), String> {
    let begin: serde_json::Value = serde_json::from_str(begin).unwrap_or_default();
    match begin["capacity_sectors"].as_u64() {
        Some(before) if before != sectors => Err(format!(
            "it is of a disk of {before} sectors, this one has {sectors}"
        )),
        _ => Ok(()),
    }
}

/// The text of the Begin event.
fn describe(
    config: &ServeConfig,
    settings: &Settings,
    sizes: &[u64],
    marks: bool,
) -> serde_json::Value {
    let more: Vec<_> = (1..)
        .zip(&settings.more)
        .map(|(number, (name, _, settings))| {
            json!({
                "number": number,
                "name": name,
                "serial": settings.serial(),
                "capacity_sectors": sizes.get(number).map(|size| size / SECTOR),
            })
        })
        .collect();
    let mut what = json!({
        "wtblk": env!("CARGO_PKG_VERSION"),
        "capacity_sectors": sizes.first().map(|size| size / SECTOR),
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
        "more_disks": more,
    });
    settings.scenario.contract().note_in(&mut what);
    what
}

/// Readable after SIGINT, SIGTERM or, unless whoever started us wants it ignored (nohup), SIGHUP.
fn signal_pipe() -> io::Result<UnixStream> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let (ours, handlers) = UnixStream::pair()?;
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        if signal != SIGHUP || !ignored(SIGHUP) {
            signal_hook::low_level::pipe::register(signal, handlers.try_clone()?)?;
        }
    }
    Ok(ours)
}

/// Whether the signal is ignored, as the kernel tells it (proc_pid_status(5)).
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    mask.is_some_and(|mask| mask & 1 << (signal - 1) != 0)
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
