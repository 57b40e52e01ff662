// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A front end as it may be, mostly valid: its messages and descriptors, the memory of its rings, the area
//! of what is in flight. See [`crate::fuzzing`].

use std::fs::File;
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::time::{Duration, Instant};

use arbitrary::{Arbitrary, Result, Unstructured};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::vhost_user::BackendReqHandler;

use super::config::Geometry;
use super::connection::{Stopper, connection};
use super::data_queue::{DataQueue, DiskState};
use super::disk::{Disk, Threads, handles};
use super::hub::Hub;
use super::outage::Outage;
use super::settings::Recording;
use super::worker::Look;
use crate::fault::Shape;
use crate::store::{MemoryStore, Store};
use crate::trace::TraceWriter;

/// Queues of the disk.
const QUEUES: u16 = 2;
/// Sectors of it.
const SECTORS: u64 = 128;
/// Bytes of each file of memory, and where the front end has the first.
const MEMORY: u64 = 0x1_0000;
const USER: u64 = 0x7000_0000;
/// Messages of a connection at most: the socket holds all of them, and all answers.
const MESSAGES: usize = 16;
/// An end comes within this, whatever was said.
const LIMIT: Duration = Duration::from_secs(9);

/// A disk whose workers run, for all connections of a thread.
struct World {
    disk: Arc<Disk>,
    stopper: Arc<Stopper>,
    _threads: Threads,
}

thread_local! {
    static WORLD: World = world();
}

fn world() -> World {
    let shape = Shape {
        queues: Some(QUEUES),
        ..Shape::default()
    };
    let trace = Arc::new(TraceWriter::null());
    let hub = Hub::new(trace, Vec::new(), None, &Recording::default());
    let hub = Arc::new(hub.expect("an eventfd"));
    let geometry = Geometry::of(&shape, SECTORS);
    let state = Arc::new(DiskState {
        number: 0,
        first_worker: 0,
        queues: QUEUES,
        cache: None,
        outage: Outage::default(),
        capacity: SECTORS * 512,
        read_only: false,
        discard: geometry.discard,
        serial: "fuzz".into(),
        writeback: AtomicBool::new(true),
        abandon_on_stop: false,
    });
    let store = MemoryStore::new(SECTORS * 512).expect("memory for a disk");
    let queue = |queue| {
        let store = store.queue().expect("a queue");
        DataQueue::new(hub.clone(), state.clone(), queue, store)
    };
    let devices = (0..QUEUES).map(queue).collect();
    let (workers, idle) = handles(QUEUES).expect("eventfds");
    hub.set_disks(vec![state.clone()], workers.clone());
    let disk = Arc::new(Disk {
        number: 0,
        name: "fuzz".into(),
        hub: hub.clone(),
        geometry,
        state: Some(state),
        start_writeback: true,
        workers,
        epochs: AtomicU32::new(0),
        connections: AtomicU64::new(0),
    });
    let look = Look {
        time: Duration::ZERO,
        shares_cpu: true,
    };
    let threads = disk.run(idle, look, devices).expect("threads");
    World {
        disk,
        stopper: Stopper::new().expect("an eventfd"),
        _threads: threads,
    }
}

/// Descriptors of this process, or those of a name alone: whoever runs beside us has some as well.
fn open(named: &str) -> usize {
    let all = std::fs::read_dir("/proc/self/fd").expect("a folder of descriptors");
    let links = all.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    links
        .filter(|link| link.to_string_lossy().contains(named))
        .count()
}

/// Feeds one connection: it ends, its descriptors are closed, and the next one is served.
pub fn fuzz_messages(bytes: &[u8]) {
    // In tests others open and close descriptors meanwhile.
    let named = if cfg!(test) { NAME } else { "" };
    WORLD.with(|world| {
        let before = open(named);
        let begun = Instant::now();
        let why = serve(world, bytes);
        assert!(begun.elapsed() < LIMIT, "it took {:?}", begun.elapsed());
        assert!(!why.contains("panicked"), "{why}");
        assert_eq!(open(named), before, "descriptors were left open ({why})");
    });
}

/// Of the files of memory.
const NAME: &str = "memfd:wtblk-fuzz-message";

fn serve(world: &World, bytes: &[u8]) -> String {
    let (front_end, stream) = UnixStream::pair().expect("a pair of sockets");
    let mut u = Unstructured::new(bytes);
    let _ = speak(&mut u, &front_end);
    front_end
        .shutdown(Shutdown::Write)
        .expect("it is connected");
    let handle = BackendReqHandler::handle_request;
    connection(&world.disk, stream, None, &world.stopper, handle)
}

/// What goes with a message.
#[derive(Clone, Copy)]
enum Fd {
    Memory,
    Event,
    Pipe,
}

struct Message {
    code: u32,
    body: Vec<u8>,
    fds: Vec<Fd>,
}

fn speak(u: &mut Unstructured<'_>, front_end: &UnixStream) -> Result<()> {
    let memory = memory(u)?;
    if u.ratio(3, 4)? {
        for message in begin(u)? {
            post(
                front_end,
                &memory,
                message.code,
                1,
                &message.body,
                &message.fds,
            );
        }
    }
    for _ in 0..MESSAGES {
        if u.is_empty() {
            break;
        }
        let mut message = message(u)?;
        if u.ratio(1, 16)? {
            message.fds = (0..u.int_in_range(0..=3u8)?)
                .map(|_| u.choose(&[Fd::Memory, Fd::Event, Fd::Pipe]).copied())
                .collect::<Result<_>>()?;
        }
        if u.ratio(1, 16)? {
            let len = u.int_in_range(0..=64usize)?;
            message.body.resize(len, 0xff);
        }
        let flags = match u.ratio(1, 32)? {
            true => u32::arbitrary(u)?,
            false => *u.choose(&[1u32, 1, 1 | 1 << 3])?,
        };
        post(
            front_end,
            &memory,
            message.code,
            flags,
            &message.body,
            &message.fds,
        );
    }
    Ok(())
}

/// Memory with bytes of the fuzzer's in it: rings at its begin, an area of what is in flight.
fn memory(u: &mut Unstructured<'_>) -> Result<File> {
    let name = c"wtblk-fuzz-message";
    let file = File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC).expect("a file in memory"));
    file.set_len(MEMORY).expect("it can grow");
    for _ in 0..u.int_in_range(0..=12u8)? {
        let bytes: [u8; 16] = Arbitrary::arbitrary(u)?;
        // Descriptors, the avail ring, the used ring, the area's two queues.
        let at = *u.choose(&[0u64, 16, 32, 0x1000, 0x2000, 0x4000, 0x4010, 0x4040, 0x5000])?;
        file.write_all_at(&bytes, at).expect("it is long enough");
    }
    Ok(file)
}

/// What makes a ring run.
fn begin(u: &mut Unstructured<'_>) -> Result<Vec<Message>> {
    let mut all = vec![
        plain(3, Vec::new()),
        plain(16, words(&[PROTOCOL])),
        plain(2, words(&[FEATURES])),
        Message {
            code: 5,
            body: [words(&[1]), words(&[0, MEMORY, USER, 0])].concat(),
            fds: vec![Fd::Memory],
        },
    ];
    if u.ratio(1, 2)? {
        all.push(Message {
            code: 32,
            body: inflight(0x1000, 0x4000, 1, 8),
            fds: vec![Fd::Memory],
        });
    }
    all.push(plain(8, state(0, 8)));
    all.push(plain(9, addr(0, USER)));
    if u.ratio(3, 4)? {
        for code in [13, 12] {
            all.push(Message {
                code,
                body: words(&[0]),
                fds: vec![Fd::Event],
            });
        }
        all.push(plain(18, state(0, 1)));
    }
    Ok(all)
}

/// MQ, REPLY_ACK, CONFIG, RESET_DEVICE, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
const PROTOCOL: u64 = 1 | 1 << 3 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 15;
/// VERSION_1, PROTOCOL_FEATURES, EVENT_IDX, INDIRECT_DESC, FLUSH.
const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 29 | 1 << 28 | 1 << 9;

fn plain(code: u32, body: Vec<u8>) -> Message {
    let fds = Vec::new();
    Message { code, body, fds }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn state(index: u32, number: u32) -> Vec<u8> {
    [index.to_le_bytes(), number.to_le_bytes()].concat()
}

fn addr(index: u32, at: u64) -> Vec<u8> {
    let places = [at, at.wrapping_add(0x2000), at.wrapping_add(0x1000), 0];
    [state(index, 0), words(&places)].concat()
}

fn inflight(size: u64, offset: u64, queues: u16, len: u16) -> Vec<u8> {
    let rest = [queues.to_le_bytes(), len.to_le_bytes()].concat();
    [words(&[size, offset]), rest, vec![0; 4]].concat()
}

fn number(u: &mut Unstructured<'_>) -> Result<u32> {
    match u.ratio(1, 8)? {
        true => u32::arbitrary(u),
        false => u
            .choose(&[0, 1, 1, 2, 7, 8, 8, 64, 128, 32768, 65535, 65536])
            .copied(),
    }
}

fn index(u: &mut Unstructured<'_>) -> Result<u32> {
    match u.ratio(1, 16)? {
        true => u32::arbitrary(u),
        false => u.choose(&[0, 0, 0, 1, 2]).copied(),
    }
}

fn place(u: &mut Unstructured<'_>) -> Result<u64> {
    match u.int_in_range(0..=15u8)? {
        0 => u64::arbitrary(u),
        1 => Ok(u64::MAX - u64::from(u16::arbitrary(u)?)),
        2..=5 => Ok(USER + u64::from(u16::arbitrary(u)?)),
        _ => u
            .choose(&[
                0,
                MEMORY,
                2 * MEMORY,
                USER,
                USER + MEMORY,
                USER + 0x1000,
                0x1000,
            ])
            .copied(),
    }
}

fn region(u: &mut Unstructured<'_>) -> Result<Vec<u8>> {
    let size = match u.ratio(1, 8)? {
        true => place(u)?,
        false => *u.choose(&[MEMORY, MEMORY, MEMORY / 2, 0x1000])?,
    };
    let offset = match u.ratio(1, 8)? {
        true => place(u)?,
        false => *u.choose(&[0, 0, 0, 0x1000, 0x10])?,
    };
    Ok(words(&[place(u)?, size, place(u)?, offset]))
}

/// A message of a kind that there is, mostly.
fn message(u: &mut Unstructured<'_>) -> Result<Message> {
    const CODES: [u32; 30] = [
        1, 2, 3, 4, 5, 5, 8, 9, 9, 10, 11, 11, 12, 12, 13, 14, 15, 16, 17, 18, 18, 24, 25, 31, 32,
        32, 34, 36, 37, 38,
    ];
    let code = match u.ratio(1, 16)? {
        true => *u.choose(&[
            0,
            6,
            7,
            19,
            20,
            21,
            26,
            33,
            39,
            40,
            41,
            42,
            43,
            44,
            u32::MAX,
        ])?,
        false => *u.choose(&CODES)?,
    };
    let one = |fd| vec![fd];
    let (body, fds) = match code {
        2 => {
            let more = u.ratio(1, 4)?.then(|| u64::arbitrary(u)).transpose()?;
            (words(&[FEATURES ^ more.unwrap_or(0)]), Vec::new())
        }
        16 => {
            let more = u.ratio(1, 4)?.then(|| u64::arbitrary(u)).transpose()?;
            (words(&[PROTOCOL ^ more.unwrap_or(0)]), Vec::new())
        }
        5 => {
            let count = u.int_in_range(0..=3u32)?;
            let mut body = state(count, 0);
            for _ in 0..count {
                body.extend(region(u)?);
            }
            (body, vec![Fd::Memory; count as usize])
        }
        8 | 10 | 11 | 18 => (state(index(u)?, number(u)?), Vec::new()),
        9 => (addr(index(u)?, place(u)?), Vec::new()),
        12..=14 => {
            let none = u.ratio(1, 8)?;
            let body = words(&[u64::from(index(u)?) | u64::from(none) << 8]);
            let fd = match u.ratio(1, 8)? {
                true => *u.choose(&[Fd::Memory, Fd::Pipe])?,
                false => Fd::Event,
            };
            (body, if none { Vec::new() } else { one(fd) })
        }
        24 | 25 => {
            let size = u.int_in_range(0..=64u32)?;
            let numbers = [number(u)?, size, number(u)?].map(u32::to_le_bytes);
            (
                [numbers.concat(), vec![1; size as usize]].concat(),
                Vec::new(),
            )
        }
        31 | 32 => {
            let size = *u.choose(&[0u64, 0x100, 0x1000, MEMORY, u64::MAX])?;
            let offset = *u.choose(&[0u64, 0x4000, 0x5000, 1, u64::MAX])?;
            let (queues, len) = (number(u)? as u16, number(u)? as u16);
            let fds = if code == 32 {
                one(Fd::Memory)
            } else {
                Vec::new()
            };
            (inflight(size, offset, queues, len), fds)
        }
        37 => ([words(&[0]), region(u)?].concat(), one(Fd::Memory)),
        38 => ([words(&[0]), region(u)?].concat(), Vec::new()),
        _ => (Vec::new(), Vec::new()),
    };
    Ok(Message { code, body, fds })
}

fn post(to: &UnixStream, memory: &File, code: u32, flags: u32, body: &[u8], fds: &[Fd]) {
    let header = [code, flags, body.len() as u32]
        .map(u32::to_le_bytes)
        .concat();
    let make = |fd: &Fd| match fd {
        Fd::Memory => memory.as_fd().try_clone_to_owned().expect("a descriptor"),
        Fd::Event => OwnedFd::from(EventFd::from_value(1).expect("an eventfd")),
        Fd::Pipe => OwnedFd::from(std::io::pipe().expect("a pipe").0),
    };
    let owned: Vec<OwnedFd> = fds.iter().map(make).collect();
    let raw: Vec<i32> = owned.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let rights = if raw.is_empty() { &[][..] } else { &rights[..] };
    let bytes = [IoSlice::new(&header), IoSlice::new(body)];
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    // Nobody has closed it yet, and there is room for all of them.
    let sent = sendmsg::<()>(to.as_raw_fd(), &bytes, rights, flags, None);
    assert!(sent.is_ok(), "{sent:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    /// It does not end at the first message each time.
    #[test]
    fn rings_start() {
        for n in 0..200u8 {
            let bytes: Vec<u8> = (0..400u32)
                .map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8 ^ n.wrapping_mul(31))
                .collect();
            fuzz_messages(&bytes);
        }
        let started = WORLD.with(|world| world.disk.epochs.load(Ordering::Relaxed));
        assert!(started >= 50, "{started} of 200");
    }
}
