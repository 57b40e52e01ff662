// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The control messages of one connection, on the `vhost` crate's request
//! handler. Each is an event; what concerns a ring becomes an order to its
//! worker. `docs/device.md` says why this is not `vhost-user-backend`'s daemon.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::command::{ANSWER_LIMIT, Command, STOP_LIMIT, Start, Stopped};
use super::config::{F_EVENT_IDX, F_FLUSH, F_PROTOCOL, WRITEBACK_AT};
use super::connection::Stopper;
use super::disk::Disk;
use super::inflight::Area;
use super::memory::{GuestMap, MAX_REGIONS, RegionInfo};
use super::ring::{MAX_SIZE, RingPlace};
use crate::trace::event::DeviceKind;

/// A stop answers when the host kernel's I/O is over or given up.
const STOP_ANSWER: Duration = STOP_LIMIT.saturating_add(Duration::from_secs(1));

/// What of the protocol is offered.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIG)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::RESET_DEVICE)
    .union(VhostUserProtocolFeatures::INFLIGHT_SHMFD);

/// What the front end has said about a ring.
#[derive(Default)]
struct Vring {
    size: u16,
    place: RingPlace,
    base: u16,
    enabled: bool,
    running: bool,
    call: Option<File>,
    err: Option<File>,
}

/// See the module. One per connection: nothing of an earlier front end is left.
pub(super) struct Handler {
    disk: Arc<Disk>,
    owned: bool,
    features: u64,
    /// What of the protocol the front end has accepted.
    protocol: u64,
    /// The writeback byte that the driver chose, or the start value.
    chosen_writeback: bool,
    map: Arc<GuestMap>,
    /// Where the front end keeps what is in flight.
    area: Option<Arc<Area>>,
    vrings: Vec<Vring>,
    stopper: Arc<Stopper>,
    /// A ring was stopped before its I/O was over.
    unsettled: bool,
}

impl Handler {
    pub fn new(disk: Arc<Disk>, stopper: Arc<Stopper>) -> Handler {
        let vrings = disk.workers.iter().map(|_| Vring::default()).collect();
        let handler = Handler {
            chosen_writeback: disk.start_writeback,
            disk,
            owned: false,
            features: 0,
            protocol: 0,
            map: Arc::new(GuestMap::empty()),
            area: None,
            vrings,
            stopper,
            unsettled: false,
        };
        handler.settle_writeback();
        handler
    }

    /// Stops every ring: the connection is over, or the device is reset.
    pub fn stop_all(&mut self) {
        // All are asked before the first answer is waited for: one limit for all.
        let until = std::time::Instant::now() + STOP_ANSWER;
        let asked: Vec<_> = self
            .disk
            .workers
            .iter()
            .map(|w| w.post(Command::Stop))
            .collect();
        for (pending, vring) in asked.into_iter().zip(&mut self.vrings) {
            vring.running = false;
            match pending.wait(until) {
                Ok(Some(stopped)) => {
                    vring.base = stopped.base;
                    self.unsettled |= stopped.left > 0;
                }
                Ok(None) => {}
                Err(error) => {
                    self.unsettled = true;
                    tracing::error!(disk = self.disk.name, "{error}");
                }
            }
        }
    }

    fn event(&self, queue: u16, kind: DeviceKind, a: u64, b: u64, text: &str) {
        self.disk
            .hub
            .event(self.disk.number, queue, kind, a, b, text);
    }

    fn message(&self, name: &str, queue: u32, a: u64, b: u64) {
        tracing::debug!(disk = self.disk.name, queue, a, b, "{name}");
        let queue = u16::try_from(queue).unwrap_or(u16::MAX);
        self.event(queue, DeviceKind::Message, a, b, name);
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vrings.get_mut(index as usize);
        vring.ok_or(Error::InvalidParam)
    }

    /// The ring, which must not be running: what it is cannot change under a worker.
    fn idle_vring(&mut self, index: u32) -> Result<&mut Vring> {
        let vring = self.vring(index)?;
        if vring.running {
            return Err(Error::InvalidOperation("the ring is running"));
        }
        Ok(vring)
    }

    /// Gives an order to the worker of a ring and waits for its answer.
    fn order<T>(
        &self,
        index: u32,
        limit: Duration,
        order: impl FnOnce(std::sync::mpsc::SyncSender<T>) -> Command,
    ) -> Result<T> {
        let worker = self.disk.workers.get(index as usize);
        let worker = worker.ok_or(Error::InvalidParam)?;
        worker
            .call(limit, order)
            .map_err(|e| Error::ReqHandlerError(io::Error::other(e)))
    }

    fn writeback(&self) -> bool {
        let state = self.disk.state.as_ref();
        state.is_some_and(|s| s.writeback.load(Ordering::Relaxed))
    }

    /// A driver that cannot flush must not find a cache (virtio 1.3, 5.2.5.2); before the
    /// driver has said what it can, the start value shows.
    fn settle_writeback(&self) {
        let can_flush = self.features == 0 || self.features & F_FLUSH != 0;
        let on = self.chosen_writeback && can_flush;
        if let Some(state) = &self.disk.state
            && state.writeback.swap(on, Ordering::Relaxed) != on
        {
            self.event(0, DeviceKind::CacheMode, u64::from(on), 0, "");
        }
    }

    /// The workers move to another map.
    fn remap(&mut self, map: GuestMap) -> Result<()> {
        tracing::debug!(disk = self.disk.name, "memory: {map}");
        self.map = Arc::new(map);
        for index in 0..self.vrings.len() as u32 {
            if self.vring(index)?.running {
                let map = self.map.clone();
                self.order(index, ANSWER_LIMIT, |tell| Command::Memory(map, tell))?;
            }
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.stop_all();
        for vring in &mut self.vrings {
            *vring = Vring::default();
        }
        self.features = 0;
        self.area = None;
        self.chosen_writeback = self.disk.start_writeback;
        self.settle_writeback();
        self.event(0, DeviceKind::Reset, 0, 0, "");
    }

    /// Stops a ring, where it runs.
    fn stop(&mut self, index: u32) -> Result<()> {
        self.vring(index)?;
        // Until it has answered nobody knows.
        let before = std::mem::replace(&mut self.unsettled, true);
        let stopped = self.order(index, STOP_ANSWER, Command::Stop)?;
        self.unsettled = before;
        let vring = self.vring(index)?;
        vring.running = false;
        if let Some(Stopped { base, left, .. }) = stopped {
            vring.base = base;
            self.unsettled |= left > 0;
        }
        Ok(())
    }

    fn start(&mut self, index: u32, kick: Option<File>) -> Result<()> {
        if self.vring(index)?.running {
            self.stop(index)?;
        }
        if self.unsettled && !self.disk.settle(&self.stopper) {
            return Err(Error::InvalidOperation("the device ends"));
        }
        self.unsettled = false;
        let (map, event_idx) = (self.map.clone(), self.features & F_EVENT_IDX != 0);
        let without_enable = self.features & F_PROTOCOL == 0;
        let before = self.disk.epochs.fetch_add(1, Ordering::Relaxed);
        // A trace that goes on says how high it begins.
        let epoch = before.wrapping_add(1);
        let tracked = self.area.as_ref().and_then(|area| area.queue(index));
        let vring = self.vring(index)?;
        let start = Start {
            map,
            place: vring.place,
            size: vring.size,
            base: vring.base,
            event_idx,
            enabled: vring.enabled || without_enable,
            epoch,
            kick,
            call: share(&vring.call)?,
            err: share(&vring.err)?,
            tracked,
        };
        vring.running = true;
        self.order(index, STOP_ANSWER, |tell| {
            Command::Start(Box::new(start), tell)
        })?;
        self.note_return();
        Ok(())
    }

    /// A ring is served; where that is so of all that an earlier life of the device had begun,
    /// marks need not wait any more.
    fn note_return(&self) {
        let begun = |index| self.area.as_ref().is_some_and(|area| area.begun(index));
        let enabled = |v: &Vring| v.enabled || self.features & F_PROTOCOL == 0;
        let all = (0..)
            .zip(&self.vrings)
            .all(|(index, v)| v.running && enabled(v) || !begun(index));
        let any = self.vrings.iter().any(|v| v.running && enabled(v));
        if any && all {
            self.disk.hub.set_returned(Some(self.disk.number));
        }
    }
}

/// Words for what a message about shared memory was refused for.
fn refused(why: String) -> Error {
    tracing::debug!("memory refused: {why}");
    Error::ReqHandlerError(io::Error::other(why))
}

fn region(r: &VhostUserMemoryRegion) -> RegionInfo {
    RegionInfo {
        guest: r.guest_phys_addr,
        size: r.memory_size,
        user: r.user_addr,
        offset: r.mmap_offset,
    }
}

fn share(fd: &Option<File>) -> Result<Option<File>> {
    let shared = fd.as_ref().map(File::try_clone).transpose();
    shared.map_err(Error::ReqHandlerError)
}

/// Refuses what is no eventfd (a pipe could block us, a file would always be readable) and makes
/// it non-blocking: the other side may drain it between our poll and our read.
fn eventfd(fd: Option<File>) -> Result<Option<File>> {
    let Some(fd) = fd else { return Ok(None) };
    let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
    let target = std::fs::read_link(link).map_err(Error::ReqHandlerError)?;
    // Exactly: any file may be called so.
    if target.as_os_str() != "anon_inode:[eventfd]" {
        return Err(Error::InvalidOperation("the fd is no eventfd"));
    }
    let failed = |e: nix::Error| Error::ReqHandlerError(e.into());
    let flags = fcntl(fd.as_fd(), FcntlArg::F_GETFL).map_err(failed)?;
    let flags = OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK;
    fcntl(fd.as_fd(), FcntlArg::F_SETFL(flags)).map_err(failed)?;
    Ok(Some(fd))
}

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        self.message("SET_OWNER", 0, 0, 0);
        if std::mem::replace(&mut self.owned, true) {
            return Err(Error::InvalidOperation("SET_OWNER twice"));
        }
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.message("RESET_OWNER", 0, 0, 0);
        self.owned = false;
        self.reset();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.message("RESET_DEVICE", 0, 0, 0);
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        let features = self.disk.geometry.features();
        self.message("GET_FEATURES", 0, features, 0);
        Ok(features)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        self.message("SET_FEATURES", 0, features, 0);
        if features & !self.disk.geometry.features() != 0 {
            return Err(Error::FeatureMismatch);
        }
        if features != self.features && self.vrings.iter().any(|v| v.running) {
            return Err(Error::InvalidOperation(
                "features changed under a running ring",
            ));
        }
        self.features = features;
        self.event(0, DeviceKind::Features, features, 0, "");
        self.settle_writeback();
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.message("SET_MEM_TABLE", 0, regions.len() as u64, 0);
        let mut map = GuestMap::empty();
        for (r, file) in regions.iter().zip(files) {
            map = map.with(region(r), file).map_err(refused)?;
        }
        self.remap(map)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.message("SET_VRING_NUM", index, u64::from(num), 0);
        if num == 0 || num > MAX_SIZE || !num.is_power_of_two() {
            return Err(Error::InvalidParam);
        }
        self.idle_vring(index)?.size = num as u16;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        desc: u64,
        used: u64,
        avail: u64,
        _log: u64,
    ) -> Result<()> {
        self.message("SET_VRING_ADDR", index, desc, 0);
        let place = RingPlace { desc, avail, used };
        let vring = self.vring(index)?;
        if vring.running && vring.place != place {
            return Err(Error::InvalidOperation("the ring is running"));
        }
        vring.place = place;
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.message("SET_VRING_BASE", index, u64::from(base), 0);
        let base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        self.idle_vring(index)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.message("GET_VRING_BASE", index, 0, 0);
        self.stop(index)?;
        let vring = self.vring(index)?;
        Ok(VhostUserVringState::new(index, u32::from(vring.base)))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        self.message("SET_VRING_KICK", index, u64::from(fd.is_some()), 0);
        self.vring(index)?;
        let fd = eventfd(fd)?;
        if fd.is_none() {
            // Without a kick the front end asks for polling, which this device does not do.
            return Err(Error::InvalidOperation("a ring without a kick fd"));
        }
        self.start(index, fd)
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        self.message("SET_VRING_CALL", index, u64::from(fd.is_some()), 0);
        let fd = eventfd(fd)?;
        let for_worker = share(&fd)?;
        let vring = self.vring(index)?;
        vring.call = fd;
        if vring.running {
            self.order(index, ANSWER_LIMIT, |tell| Command::Call(for_worker, tell))?;
        }
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let index = u32::from(index);
        self.message("SET_VRING_ERR", index, u64::from(fd.is_some()), 0);
        let fd = eventfd(fd)?;
        let for_worker = share(&fd)?;
        let vring = self.vring(index)?;
        vring.err = fd;
        if vring.running {
            self.order(index, ANSWER_LIMIT, |tell| Command::Err(for_worker, tell))?;
        }
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        self.message("GET_PROTOCOL_FEATURES", 0, 0, 0);
        Ok(PROTOCOL)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        self.message("SET_PROTOCOL_FEATURES", 0, features, 0);
        // The crate goes by what was accepted, whatever was offered.
        if features & !PROTOCOL.bits() != 0 {
            return Err(Error::FeatureMismatch);
        }
        if features != self.protocol && self.vrings.iter().any(|v| v.running) {
            return Err(Error::InvalidOperation(
                "protocol features changed under a running ring",
            ));
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        self.message("GET_QUEUE_NUM", 0, 0, 0);
        Ok(self.vrings.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.message("SET_VRING_ENABLE", index, u64::from(enable), 0);
        let vring = self.vring(index)?;
        vring.enabled = enable;
        if vring.running {
            self.order(index, ANSWER_LIMIT, |tell| Command::Enable(enable, tell))?;
            self.note_return();
        }
        Ok(())
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        self.message("GET_CONFIG", 0, u64::from(offset), u64::from(size));
        let space = self.disk.geometry.space(self.writeback(), offset, size);
        space.ok_or(Error::InvalidParam)
    }

    fn set_config(&mut self, offset: u32, bytes: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        self.message("SET_CONFIG", 0, u64::from(offset), bytes.len() as u64);
        match (offset, bytes) {
            (WRITEBACK_AT, &[on]) if self.disk.state.is_some() => {
                // The byte is the guest's, QEMU hands it on as it is.
                self.chosen_writeback = on != 0;
                self.settle_writeback();
                Ok(())
            }
            _ => Err(Error::InvalidParam),
        }
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        self.message("GET_MAX_MEM_SLOTS", 0, 0, 0);
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        added: &VhostUserSingleMemoryRegion,
        fd: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        self.message("ADD_MEM_REG", 0, added.guest_phys_addr, added.memory_size);
        let map = self.map.with(region(added), fd).map_err(refused)?;
        self.remap(map)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, removed: &VhostUserSingleMemoryRegion) -> Result<()> {
        self.message(
            "REM_MEM_REG",
            0,
            removed.guest_phys_addr,
            removed.memory_size,
        );
        let map = self.map.without(region(removed)).map_err(refused)?;
        self.remap(map)
    }

    fn get_inflight_fd(&mut self, asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, size) = (asked.num_queues, asked.queue_size);
        self.message("GET_INFLIGHT_FD", 0, u64::from(queues), u64::from(size));
        if usize::from(queues) > self.vrings.len() {
            return Err(Error::InvalidParam);
        }
        let (file, len) = Area::create(queues, size).map_err(Error::ReqHandlerError)?;
        Ok((VhostUserInflight::new(len, 0, queues, size), file))
    }

    fn set_inflight_fd(&mut self, area: &VhostUserInflight, file: File) -> Result<()> {
        let (queues, size) = (area.num_queues, area.queue_size);
        self.message("SET_INFLIGHT_FD", 0, u64::from(queues), u64::from(size));
        if self.vrings.iter().any(|v| v.running) {
            return Err(Error::InvalidOperation("a ring is running"));
        }
        if usize::from(queues) > self.vrings.len() {
            return Err(Error::InvalidParam);
        }
        let opened = Area::open(&file, area.mmap_offset, area.mmap_size, queues, size);
        self.area = Some(opened.map_err(refused)?);
        Ok(())
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("not a GPU"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("SHARED_OBJECT is not offered"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("DEVICE_STATE is not offered"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("DEVICE_STATE is not offered"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("SHMEM is not offered"))
    }

    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(Error::InvalidOperation("LOG_SHMFD is not offered"))
    }
}
