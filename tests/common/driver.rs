// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A virtio-blk driver over vhost-user: split rings in a memfd that both
//! sides map, chains put together descriptor by descriptor.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;

use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

use super::{LIMIT, until};

pub const QUEUE_SIZE: u16 = 128;
const MEMORY: usize = 32 << 20;
/// Each queue's rings.
const RINGS: u64 = 0x4000;
/// Buffers: one slot per head, header first, status at 0x20, data from 0x1000.
const SLOTS: u64 = 0x10_0000;
const SLOT: u64 = 0x1_0000;

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

pub const IN: u32 = 0;
pub const OUT: u32 = 1;
pub const FLUSH: u32 = 4;
pub const GET_ID: u32 = 8;
pub const GET_LIFETIME: u32 = 10;
pub const DISCARD: u32 = 11;
pub const WRITE_ZEROES: u32 = 13;
pub const SECURE_ERASE: u32 = 14;

pub const F_RO: u64 = 1 << 5;
pub const F_FLUSH: u64 = 1 << 9;
pub const F_EVENT_IDX: u64 = 1 << 29;

/// Descriptors of a chain: address, length, flags without NEXT.
pub type Parts = Vec<(u64, u32, u16)>;

pub struct Driver {
    pub frontend: Frontend,
    /// The same connection, for what `frontend` does not send.
    pub stream: UnixStream,
    pub features: u64,
    pub memory: GuestMemoryMmap,
    pub queues: Vec<Queue>,
    event_idx: bool,
    mask: u64,
    /// What it keeps for the device of the requests in flight.
    inflight: Option<(VhostUserInflight, std::fs::File)>,
}

pub struct Queue {
    index: u64,
    kick: EventFd,
    call: EventFd,
    pub avail: u16,
    /// The avail index at the last look whether a kick is wanted.
    kicked: Cell<u16>,
    used: u16,
    /// The next is taken from the back.
    free: Vec<u16>,
    /// What chains in flight are made of, by their heads.
    chains: HashMap<u16, Vec<u16>>,
    /// Completed and not yet asked for: head, used length.
    done: HashMap<u16, u32>,
}

/// Negotiates all that is offered and not masked; what was offered.
fn handshake(stream: UnixStream, mask: u64) -> (Frontend, u64) {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    let mut frontend = Frontend::from_stream(stream, 256);
    frontend.set_owner().unwrap();
    let features = frontend.get_features().unwrap();
    let protocol = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(protocol).unwrap();
    assert!(protocol.contains(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS));
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features & mask).unwrap();
    (frontend, features)
}

impl Driver {
    /// Connects, negotiates everything offered and starts `queues` queues.
    pub fn connect(stream: UnixStream, queues: usize) -> Driver {
        Driver::connect_with(stream, queues, u64::MAX)
    }

    pub fn connect_with(stream: UnixStream, queues: usize, mask: u64) -> Driver {
        let mut driver = Driver::negotiate(stream, queues, mask);
        for index in 0..queues {
            driver.start(index, 0);
        }
        driver
    }

    /// Everything but the rings.
    pub fn negotiate(stream: UnixStream, queues: usize, mask: u64) -> Driver {
        let same = stream.try_clone().unwrap();
        let (frontend, features) = handshake(stream, mask);
        let file = std::fs::File::from(memfd_create(c"guest", MFdFlags::empty()).unwrap());
        file.set_len(MEMORY as u64).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let region = memory.iter().next().unwrap();
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[info]).unwrap();
        let queues = (0..queues as u64).map(|index| Queue {
            index,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(libc::EFD_NONBLOCK).unwrap(),
            avail: 0,
            kicked: Cell::new(0),
            used: 0,
            free: (0..QUEUE_SIZE).rev().collect(),
            chains: HashMap::new(),
            done: HashMap::new(),
        });
        let queues = queues.collect();
        Driver {
            frontend,
            stream: same,
            features,
            memory,
            queues,
            event_idx: features & mask & F_EVENT_IDX != 0,
            mask,
            inflight: None,
        }
    }

    /// As `connect`, but keeps for the device what is in flight.
    pub fn connect_tracked(stream: UnixStream, queues: usize) -> Driver {
        let mut driver = Driver::negotiate(stream, queues, u64::MAX);
        let wanted = VhostUserInflight::new(0, 0, queues as u16, QUEUE_SIZE);
        let (area, file) = driver.frontend.get_inflight_fd(&wanted).unwrap();
        let set = driver.frontend.set_inflight_fd(&area, file.as_raw_fd());
        set.unwrap();
        driver.inflight = Some((area, file));
        for index in 0..queues {
            driver.start(index, 0);
        }
        driver
    }

    /// To the device's next life, as QEMU does it: the rings as they are, from the used index on.
    pub fn reconnect(&mut self, stream: UnixStream) {
        self.stream = stream.try_clone().unwrap();
        self.frontend = handshake(stream, self.mask).0;
        let region = self.memory.iter().next().unwrap();
        let info = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.frontend.set_mem_table(&[info]).unwrap();
        if let Some((area, file)) = &self.inflight {
            let set = self.frontend.set_inflight_fd(area, file.as_raw_fd());
            set.unwrap();
        }
        for index in 0..self.queues.len() {
            let at = GuestAddress(self.queues[index].used_at(2));
            let used: u16 = self.memory.load(at, Ordering::Acquire).unwrap();
            self.start(index, used);
        }
    }

    /// Sets a ring up and starts it at avail position `base`.
    pub fn start(&mut self, index: usize, base: u16) {
        let f = &mut self.frontend;
        let host = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let q = &self.queues[index];
        f.set_vring_num(index, QUEUE_SIZE).unwrap();
        f.set_vring_base(index, base).unwrap();
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host + q.desc(0),
            avail_ring_addr: host + q.avail_at(0),
            used_ring_addr: host + q.used_at(0),
            log_addr: None,
        };
        f.set_vring_addr(index, &config).unwrap();
        f.set_vring_call(index, &q.call).unwrap();
        f.set_vring_kick(index, &q.kick).unwrap();
        f.set_vring_enable(index, true).unwrap();
    }

    /// Queue 0 of this size and at these places, started; its kick fd.
    pub fn set_up(&mut self, size: u16, desc: u64, avail: u64, used: u64) -> EventFd {
        let host = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let kick = EventFd::new(0).unwrap();
        let f = &mut self.frontend;
        f.set_vring_num(0, size).unwrap();
        f.set_vring_base(0, 0).unwrap();
        let config = VringConfigData {
            queue_max_size: size,
            queue_size: size,
            flags: 0,
            desc_table_addr: host.wrapping_add(desc),
            avail_ring_addr: host.wrapping_add(avail),
            used_ring_addr: host.wrapping_add(used),
            log_addr: None,
        };
        f.set_vring_addr(0, &config).unwrap();
        f.set_vring_kick(0, &kick).unwrap();
        f.set_vring_enable(0, true).unwrap();
        kick
    }

    /// Stops a ring; the base that the device gives.
    pub fn stop(&mut self, index: usize) -> u16 {
        self.frontend.set_vring_enable(index, false).unwrap();
        self.frontend.get_vring_base(index).unwrap() as u16
    }

    pub fn config(&mut self, offset: u32, size: u32) -> Vec<u8> {
        let flags = VhostUserConfigFlags::empty();
        let buf = vec![0; size as usize];
        self.frontend
            .get_config(offset, size, flags, &buf)
            .unwrap()
            .1
    }

    pub fn set_config(&mut self, offset: u32, bytes: &[u8]) -> bool {
        let flags = VhostUserConfigFlags::WRITABLE;
        self.frontend.set_config(offset, flags, bytes).is_ok()
    }

    pub fn put_desc(&self, table: u64, at: u64, addr: u64, len: u32, flags: u16, next: u16) {
        let desc = Descriptor::new(addr, len, flags, next);
        let to = GuestAddress(table + 16 * at);
        self.memory.write_obj(desc, to).unwrap();
    }

    /// Makes the chain of these descriptors available (linked in order; flags without NEXT).
    /// The head is also the first descriptor's index.
    pub fn chain(&mut self, index: usize, parts: &[(u64, u32, u16)]) -> u16 {
        let heads: Vec<u16> = (0..parts.len().max(1))
            .map(|_| self.queues[index].free.pop().unwrap())
            .collect();
        let table = self.queues[index].desc(0);
        for (i, &(addr, len, flags)) in parts.iter().enumerate() {
            let next = heads.get(i + 1);
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            let at = u64::from(heads[i]);
            self.put_desc(table, at, addr, len, flags, next.copied().unwrap_or(0));
        }
        self.make_available(index, heads[0]);
        let head = heads[0];
        self.queues[index].chains.insert(head, heads);
        head
    }

    pub fn make_available(&mut self, index: usize, head: u16) {
        let q = &mut self.queues[index];
        let entry = q.avail_at(4 + 2 * u64::from(q.avail % QUEUE_SIZE));
        self.memory.write_obj(head, GuestAddress(entry)).unwrap();
        q.avail = q.avail.wrapping_add(1);
        let at = GuestAddress(q.avail_at(2));
        self.memory.store(q.avail, at, Ordering::Release).unwrap();
    }

    /// Tells the device, the way a driver does: only where the device asked for it.
    pub fn kick(&self, index: usize) {
        std::sync::atomic::fence(Ordering::SeqCst);
        let q = &self.queues[index];
        let wanted = if self.event_idx {
            let at = GuestAddress(q.used_at(4 + 8 * u64::from(QUEUE_SIZE)));
            let event: u16 = self.memory.load(at, Ordering::Relaxed).unwrap();
            // The event lies among what was made available since (virtio 1.3, 2.7.10).
            let old = q.kicked.replace(q.avail);
            q.avail.wrapping_sub(event).wrapping_sub(1) < q.avail.wrapping_sub(old)
        } else {
            true
        };
        if wanted {
            q.kick.write(1).unwrap();
        }
    }

    pub fn force_kick(&self, index: usize) {
        self.queues[index].kick.write(1).unwrap();
    }

    /// Takes a kick back, where the device has not read it yet.
    pub fn steal_kick(&self, index: usize) {
        // The device has made it non-blocking.
        let _ = self.queues[index].kick.read();
    }

    /// Collects what the device has given back.
    pub fn reap(&mut self, index: usize) {
        let q = &mut self.queues[index];
        let idx_at = GuestAddress(q.used_at(2));
        // Again after the event index is set: what came in between is not told.
        loop {
            let before = q.used;
            Driver::reap_once(&self.memory, q, idx_at);
            if self.event_idx {
                let at = GuestAddress(q.avail_at(4 + 2 * u64::from(QUEUE_SIZE)));
                self.memory.store(q.used, at, Ordering::Relaxed).unwrap();
            }
            std::sync::atomic::fence(Ordering::SeqCst);
            if q.used == before {
                return;
            }
        }
    }

    fn reap_once(memory: &GuestMemoryMmap, q: &mut Queue, idx_at: GuestAddress) {
        while memory.load::<u16>(idx_at, Ordering::Acquire).unwrap() != q.used {
            let entry = q.used_at(4 + 8 * u64::from(q.used % QUEUE_SIZE));
            let head: u32 = memory.read_obj(GuestAddress(entry)).unwrap();
            let len: u32 = memory.read_obj(GuestAddress(entry + 4)).unwrap();
            q.done.insert(head as u16, len);
            q.used = q.used.wrapping_add(1);
        }
    }

    /// Whether the call fd was signalled since the last look.
    pub fn called(&self, index: usize) -> bool {
        self.queues[index].call.read().is_ok()
    }

    /// Gives a running ring another call fd.
    pub fn new_call(&mut self, index: usize) {
        let call = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        self.frontend.set_vring_call(index, &call).unwrap();
        self.queues[index].call = call;
    }

    pub fn is_done(&mut self, index: usize, head: u16) -> bool {
        self.reap(index);
        self.queues[index].done.contains_key(&head)
    }

    /// Waits for a chain by the call fd alone: a lost notification fails the test. Its used length.
    pub fn wait(&mut self, index: usize, head: u16) -> u32 {
        until("a completion", || {
            self.reap(index);
            if let Some(len) = self.queues[index].done.remove(&head) {
                // Used again as late as can be.
                let q = &mut self.queues[index];
                let parts = q.chains.remove(&head).unwrap_or_default();
                q.free.splice(0..0, parts);
                return Some(len);
            }
            let q = &self.queues[index];
            // SAFETY: the fd is open as long as the queue lives.
            let call = unsafe { BorrowedFd::borrow_raw(q.call.as_raw_fd()) };
            let mut fds = [PollFd::new(call.as_fd(), PollFlags::POLLIN)];
            let n = poll(&mut fds, LIMIT.as_millis() as u16).unwrap();
            assert_eq!(n, 1, "no notification");
            q.call.read().unwrap();
            None
        })
    }

    /// The slot of buffers that goes with a number.
    pub fn slot(&self, index: usize, n: u64) -> u64 {
        SLOTS + (self.queues[index].index * 64 + n % 64) * SLOT
    }

    pub fn header(&self, at: u64, kind: u32, ioprio: u32, sector: u64) {
        let raw = u128::from(kind) | u128::from(ioprio) << 32 | u128::from(sector) << 64;
        self.memory
            .write_obj(raw.to_le_bytes(), GuestAddress(at))
            .unwrap();
    }

    pub fn status(&self, at: u64) -> u8 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    pub fn poke(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        bytes
    }

    /// A plain request in slot `n`: header, data, status. Not kicked, not waited for.
    pub fn submit(&mut self, index: usize, n: u64, kind: u32, sector: u64, len: u32) -> u16 {
        let slot = self.slot(index, n);
        self.header(slot, kind, 0, sector);
        self.poke(slot + 0x20, &[0xee]);
        let mut parts = vec![(slot, 16, 0)];
        if len > 0 {
            let readable = matches!(kind, OUT | DISCARD | SECURE_ERASE | WRITE_ZEROES);
            let flags = if readable { 0 } else { WRITE };
            parts.push((slot + 0x1000, len, flags));
        }
        parts.push((slot + 0x20, 1, WRITE));
        self.chain(index, &parts)
    }

    /// Waits; status of slot `n`.
    pub fn finish(&mut self, index: usize, n: u64, head: u16) -> u8 {
        self.wait(index, head);
        self.status(self.slot(index, n) + 0x20)
    }

    pub fn write(&mut self, sector: u64, bytes: &[u8]) -> u8 {
        self.poke(self.slot(0, 0) + 0x1000, bytes);
        let head = self.submit(0, 0, OUT, sector, bytes.len() as u32);
        self.kick(0);
        self.finish(0, 0, head)
    }

    pub fn read(&mut self, sector: u64, len: usize) -> (u8, Vec<u8>) {
        self.poke(self.slot(0, 0) + 0x1000, &vec![0x5a; len]);
        let head = self.submit(0, 0, IN, sector, len as u32);
        self.kick(0);
        let status = self.finish(0, 0, head);
        (status, self.peek(self.slot(0, 0) + 0x1000, len))
    }

    /// A discard or write-zeroes of these segments: sector, sectors, flags.
    pub fn zero(&mut self, kind: u32, zones: &[(u64, u32, u32)]) -> u8 {
        let mut raw = Vec::new();
        for &(sector, sectors, flags) in zones {
            raw.extend(sector.to_le_bytes());
            raw.extend(sectors.to_le_bytes());
            raw.extend(flags.to_le_bytes());
        }
        self.poke(self.slot(0, 0) + 0x1000, &raw);
        let head = self.submit(0, 0, kind, 0, raw.len() as u32);
        self.kick(0);
        self.finish(0, 0, head)
    }

    /// Writes a mark in slot `n` of the mark disk without waiting.
    pub fn post_mark(&mut self, n: u64, text: &str) -> u16 {
        let mut block = format!("wtblk/1 {text}\n").into_bytes();
        block.resize(block.len().next_multiple_of(512), 0);
        self.poke(self.slot(0, n) + 0x1000, &block);
        let head = self.submit(0, n, OUT, 0, block.len() as u32);
        self.kick(0);
        head
    }

    pub fn mark(&mut self, text: &str) -> u8 {
        let head = self.post_mark(1, text);
        self.finish(0, 1, head)
    }

    /// The state page of the mark disk.
    pub fn state(&mut self) -> String {
        let (status, page) = self.read(2048, 4096);
        assert_eq!(status, 0);
        let end = page.iter().position(|&b| b == 0).unwrap_or(page.len());
        String::from_utf8(page[..end].to_vec()).unwrap()
    }
}

impl Queue {
    pub fn desc(&self, offset: u64) -> u64 {
        0x1000 + self.index * RINGS + offset
    }

    pub fn avail_at(&self, offset: u64) -> u64 {
        self.desc(0x1000) + offset
    }

    pub fn used_at(&self, offset: u64) -> u64 {
        self.desc(0x2000) + offset
    }

    /// All heads are free again: after a restart of the ring.
    pub fn forget(&mut self) {
        self.free = (0..QUEUE_SIZE).rev().collect();
        self.done.clear();
    }
}
