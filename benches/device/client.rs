// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The client: virtqueues and vhost-user transport are those of the crate
//! `virtio-driver`. Only the request's 20 bytes are ours, because the crate's own
//! request type has no way to set the field that carries the call tag.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use memmap2::MmapMut;
use virtio_driver::virtqueue::{Virtqueue, VirtqueueLayout};
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioFeatureFlags,
    VirtioTransport, iovec,
};

/// Entries of a queue: a request takes three.
const QUEUE_SIZE: u16 = 128;
/// The marked calls' file has this part of the disk, its end.
pub const MARKED_PART: u64 = 8;
/// Longest that a request may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Header and status of a request, in memory that the device sees.
#[derive(Clone, Copy)]
#[repr(C)]
struct Request {
    kind: u32,
    /// The field that virtio calls reserved: Linux's driver puts the I/O priority there.
    ioprio: u32,
    sector: u64,
    status: u8,
}

/// What the requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Job {
    pub write: bool,
    pub sequential: bool,
    pub bytes: usize,
    /// Over all queues.
    pub depth: usize,
    /// Bytes of the disk that are used.
    pub span: u64,
    /// Put on every tenth request; 0: on none.
    pub ioprio: u16,
}

/// What a stretch of time brought.
#[derive(Clone, Copy, Debug)]
pub struct Stretch {
    pub requests: u64,
    pub time: Duration,
}

struct Queue {
    vq: Virtqueue<'static, Request>,
    notifier: Box<dyn QueueNotifier>,
    /// By head: the slot of the request.
    slots: Vec<usize>,
    free: Vec<usize>,
}

/// A connection to a back end.
pub struct Client {
    queues: Vec<Queue>,
    /// One buffer per slot and queue.
    data: MmapMut,
    buffer: usize,
    rng: u64,
    /// Where sequential requests are, those of marked calls apart.
    next: [u64; 2],
    count: u64,
    /// Dropped after the queues: it owns their memory.
    transport: Transport,
    _memory: File,
}

/// A ring in this process, for the bare loop of `limits`.
pub struct BareRing {
    pub size: u16,
    pub desc: *const u8,
    pub avail: *const u8,
    pub used: *mut u8,
}

// SAFETY: addresses; whoever follows them says how.
unsafe impl Send for BareRing {}

/// The bare loop always looks.
struct NoKick;

impl QueueNotifier for NoKick {
    fn notify(&self) -> io::Result<()> {
        Ok(())
    }
}

type Transport = VhostUser<VirtioBlkConfig, Request>;

fn transport(socket: &Path) -> Result<Transport> {
    let features = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
    // A driver that cannot flush would get a disk without a write cache.
    let flush = VirtioBlkFeatureFlags::FLUSH.bits();
    let path = socket.to_str().context("a socket path that is no text")?;
    let begun = Instant::now();
    let transport = loop {
        match Transport::new(path, features.bits() | flush) {
            Ok(transport) => break transport,
            Err(error) if begun.elapsed() > Duration::from_secs(10) => {
                return Err(error).with_context(|| format!("cannot connect to {path}"));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let got = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
    ensure!(got.contains(features), "{path} lacks features: {got:?}");
    Ok(transport)
}

/// Queues in memory of the transport's.
fn rings(transport: &mut Transport, queues: usize) -> Result<Vec<Virtqueue<'static, Request>>> {
    let features = VirtioFeatureFlags::from_bits_truncate(transport.get_features());
    let layout = VirtqueueLayout::new::<Request>(queues, usize::from(QUEUE_SIZE), features)?;
    let translators: Vec<_> = (0..queues).map(|_| transport.iova_translator()).collect();
    let memory = transport.alloc_queue_mem(&layout)?.as_mut_ptr();
    let mut rings = Vec::new();
    for (n, translator) in translators.into_iter().enumerate() {
        // SAFETY: the memory is `queues` times `end_offset` bytes long, each queue gets a part
        // of its own, and it stays mapped as long as the transport, which a client drops last.
        let part = unsafe {
            std::slice::from_raw_parts_mut(memory.add(n * layout.end_offset), layout.end_offset)
        };
        rings.push(Virtqueue::new(translator, part, QUEUE_SIZE, features)?);
    }
    Ok(rings)
}

impl Client {
    /// Connects; `depth` requests of at most `bytes` bytes fit in.
    pub fn connect(socket: &Path, queues: usize, depth: usize, bytes: usize) -> Result<Client> {
        let mut transport = transport(socket)?;
        let rings = rings(&mut transport, queues)?;
        transport.setup_queues(&rings)?;
        let notifiers = (0..queues).map(|n| transport.get_submission_notifier(n));
        let notifiers = notifiers.collect();
        Client::over(rings, notifiers, transport, depth, bytes)
    }

    /// A client whose other side is in this process: the device behind the socket gives addresses
    /// a meaning and is never told of the ring.
    pub fn bare(socket: &Path, depth: usize, bytes: usize) -> Result<(Client, BareRing)> {
        let mut transport = transport(socket)?;
        let rings = rings(&mut transport, 1)?;
        let ring = BareRing {
            size: QUEUE_SIZE,
            desc: rings[0].desc_table_ptr(),
            avail: rings[0].driver_area_ptr(),
            used: rings[0].device_area_ptr().cast_mut(),
        };
        let client = Client::over(rings, vec![Box::new(NoKick)], transport, depth, bytes)?;
        Ok((client, ring))
    }

    fn over(
        rings: Vec<Virtqueue<'static, Request>>,
        notifiers: Vec<Box<dyn QueueNotifier>>,
        mut transport: Transport,
        depth: usize,
        bytes: usize,
    ) -> Result<Client> {
        let buffer = bytes.next_multiple_of(4096);
        let len = rings.len() * depth * buffer;
        let memory = File::from(nix::sys::memfd::memfd_create(
            c"bench-guest",
            nix::sys::memfd::MFdFlags::MFD_CLOEXEC,
        )?);
        memory.set_len(len as u64)?;
        // SAFETY: the file is ours; the device that shares it is what the benchmark is about.
        let mut data = unsafe { MmapMut::map_mut(&memory)? };
        data.fill(0x5a);
        transport.map_mem_region(data.as_ptr() as usize, len, memory.as_raw_fd(), 0)?;
        let rings = rings.into_iter().zip(notifiers).enumerate();
        let queues = rings.map(|(n, (mut vq, notifier))| {
            // The client looks by itself and asks for no signals.
            vq.set_used_notif_enabled(false);
            Queue {
                notifier,
                vq,
                slots: vec![0; usize::from(QUEUE_SIZE)],
                free: (n * depth..(n + 1) * depth).rev().collect(),
            }
        });
        Ok(Client {
            queues: queues.collect(),
            data,
            buffer,
            rng: 0x9e37_79b9_7f4a_7c15,
            next: [0; 2],
            count: 0,
            transport,
            _memory: memory,
        })
    }

    /// Bytes of the disk.
    pub fn capacity(&self) -> Result<u64> {
        Ok(self.transport.get_config()?.capacity.to_native() * 512)
    }

    /// Keeps `job.depth` requests in flight for a while. Requests that were in flight at the
    /// end are waited for and do not count.
    pub fn run(&mut self, job: &Job, time: Duration) -> Result<Stretch> {
        let begun = Instant::now();
        let each = job.depth / self.queues.len();
        ensure!(each > 0, "fewer requests in flight than queues");
        let mut requests = 0;
        let mut in_flight = vec![0usize; self.queues.len()];
        let mut last = begun;
        let elapsed = loop {
            let mut done = 0;
            for (queue, flying) in in_flight.iter_mut().enumerate() {
                if *flying < each {
                    self.submit(queue, job, each - *flying)?;
                    *flying = each;
                }
                let n = self.reap(queue)?;
                *flying -= n;
                done += n;
            }
            requests += done as u64;
            let now = Instant::now();
            if done > 0 {
                last = now;
            } else if now - last > LIMIT {
                bail!("no completion within {LIMIT:?}");
            }
            if now - begun >= time {
                break now - begun;
            }
        };
        for (queue, flying) in in_flight.iter_mut().enumerate() {
            let since = Instant::now();
            while *flying > 0 {
                *flying -= self.reap(queue)?;
                ensure!(since.elapsed() < LIMIT, "no completion within {LIMIT:?}");
            }
        }
        Ok(Stretch {
            requests,
            time: elapsed,
        })
    }

    /// Writes the whole disk once.
    pub fn fill(&mut self, bytes: usize, span: u64) -> Result<()> {
        // Requests of no call keep out of the last part.
        let span = span * MARKED_PART / (MARKED_PART - 1);
        let most: usize = self.queues.iter().map(|q| q.free.len()).min().unwrap_or(1);
        let mut left = (span - span / MARKED_PART) / bytes as u64;
        let mut flying = 0;
        let job = Job {
            write: true,
            sequential: true,
            bytes,
            depth: most,
            span,
            ioprio: 0,
        };
        let since = Instant::now();
        while left > 0 || flying > 0 {
            let count = (most - flying).min(left as usize);
            self.submit(0, &job, count)?;
            left -= count as u64;
            flying += count;
            flying -= self.reap(0)?;
            ensure!(since.elapsed() < LIMIT, "the disk cannot be filled");
        }
        Ok(())
    }

    /// One write at the disk's start, waited for: a mark.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() <= self.buffer, "too long");
        let slot = self.queues[0].free[self.queues[0].free.len() - 1];
        let at = slot * self.buffer;
        self.data[at..at + bytes.len()].copy_from_slice(bytes);
        self.request(0, 1, 0, 0, bytes.len())?;
        self.kick(0)?;
        let since = Instant::now();
        while self.reap(0)? == 0 {
            ensure!(since.elapsed() < LIMIT, "a mark did not complete");
        }
        Ok(())
    }

    fn submit(&mut self, queue: usize, job: &Job, count: usize) -> Result<()> {
        let blocks = job.span / job.bytes as u64;
        let marked = blocks / MARKED_PART;
        for _ in 0..count {
            self.count += 1;
            let tagged = self.count.is_multiple_of(10) && job.ioprio != 0;
            let (first, room) = match tagged {
                true => (blocks - marked, marked),
                false => (0, blocks - marked),
            };
            let at = if job.sequential {
                let next = &mut self.next[usize::from(tagged)];
                *next += 1;
                *next
            } else {
                self.random()
            };
            let block = first + at % room;
            let ioprio = if tagged { job.ioprio } else { 0 };
            if job.write {
                let free = &self.queues[queue].free;
                let at = free[free.len() - 1] * self.buffer;
                // New contents for each write, as a guest has them.
                let fill = (self.count as u8) | 1;
                self.data[at..at + job.bytes].fill(fill);
            }
            let sector = block * (job.bytes as u64 / 512);
            self.request(queue, u32::from(job.write), ioprio, sector, job.bytes)?;
        }
        self.kick(queue)
    }

    fn random(&mut self) -> u64 {
        self.rng ^= self.rng << 13;
        self.rng ^= self.rng >> 7;
        self.rng ^= self.rng << 17;
        self.rng
    }

    fn request(
        &mut self,
        queue: usize,
        kind: u32,
        ioprio: u16,
        sector: u64,
        len: usize,
    ) -> Result<()> {
        let q = &mut self.queues[queue];
        let slot = q.free.pop().context("no free slot")?;
        let data = self.data[slot * self.buffer..].as_mut_ptr();
        let head = q.vq.add_request(|request, add| {
            *request = Request {
                kind,
                ioprio: u32::from(ioprio),
                sector,
                status: 0xff,
            };
            let part = |base: *mut u8, len: usize| iovec {
                iov_base: base.cast(),
                iov_len: len,
            };
            add(part((&raw mut request.kind).cast(), 16), false)?;
            add(part(data, len), kind == 0)?;
            add(part(&raw mut request.status, 1), true)
        })?;
        q.slots[usize::from(head)] = slot;
        Ok(())
    }

    fn kick(&mut self, queue: usize) -> Result<()> {
        let q = &mut self.queues[queue];
        if q.vq.avail_notif_needed()
            && let Err(error) = q.notifier.notify()
        {
            ensure!(error.kind() == io::ErrorKind::WouldBlock, "kick: {error}");
        }
        Ok(())
    }

    /// Takes what is completed; how many that were.
    fn reap(&mut self, queue: usize) -> Result<usize> {
        let Queue {
            vq, slots, free, ..
        } = &mut self.queues[queue];
        let mut done = 0;
        for completion in vq.completions() {
            let status = completion.req.status;
            ensure!(status == 0, "a request failed with status {status}");
            free.push(slots[usize::from(completion.id)]);
            done += 1;
        }
        Ok(done)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.queues.clear();
    }
}
