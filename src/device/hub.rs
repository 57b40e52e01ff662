// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the disks of one process share: the order of events, the rules, and
//! the counts that the state page tells.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use wtblk_shared::mark::Mark;

use super::command::{Command, WorkerHandle};
use super::data_queue::DiskState;
use super::digest::Digests;
use super::groups::{Go, Groups};
use super::record_data::DataRecorder;
use super::settings::{Plans, Recording};
use super::wake::Wake;
use crate::control::{OpenCalls, RuleStanding};
use crate::fault::Engine;
use crate::fault::request::{Decision, DeviceFault, Request};
use crate::trace::TraceWriter;
use crate::trace::event::{Body, DATA_DISK, DeviceEvent, DeviceKind, Status};

/// On a cache line of its own: queues share none on the way of a request.
#[derive(Default)]
#[repr(align(64))]
struct Count(AtomicU64);

/// See the module.
pub(super) struct Hub {
    pub trace: Arc<TraceWriter>,
    /// By number of the disk; `None` where it has no rules: its data path then takes no lock.
    engines: Vec<Option<Mutex<Engine>>>,
    /// Asked before the rules.
    plans: Option<Plans>,
    /// The workers of all disks but the mark disk.
    workers: OnceLock<Arc<Vec<WorkerHandle>>>,
    /// These disks; the disk under test is the first.
    disks: OnceLock<Vec<Arc<DiskState>>>,
    pub groups: Groups,
    /// Looks at the data of requests.
    pub digests: Digests,
    /// Keeps it in the trace.
    pub recorder: DataRecorder,
    /// By rule; locked only where something is held.
    held: Mutex<BTreeMap<String, u64>>,
    hung: AtomicU64,
    /// For people who ask.
    calls: Mutex<OpenCalls>,
    /// By worker, each written by its own alone.
    in_flight: Box<[Count]>,
    /// A bit for each disk that had a guest when an earlier device ended, and does not run again yet.
    missing: AtomicU64,
    /// Readable when what a mark may wait for has changed.
    changed: Wake,
    /// The same for threads.
    told: (Mutex<u64>, Condvar),
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// There are at most 17 disks (`settings.rs`).
fn bit(disk: u8) -> u64 {
    1u64.checked_shl(u32::from(disk)).unwrap_or(0)
}

impl Hub {
    pub fn new(
        trace: Arc<TraceWriter>,
        engines: Vec<Engine>,
        plans: Option<Plans>,
        recording: &Recording,
    ) -> io::Result<Hub> {
        Ok(Hub {
            missing: AtomicU64::new(0),
            trace,
            engines: engines
                .into_iter()
                .map(|engine| (!engine.is_empty()).then(|| Mutex::new(engine)))
                .collect(),
            plans,
            workers: OnceLock::new(),
            disks: OnceLock::new(),
            groups: Groups::default(),
            digests: Digests::new(recording.digest, recording.digest_memory),
            recorder: DataRecorder::new(recording.data, recording.data_limit),
            held: Mutex::default(),
            hung: AtomicU64::new(0),
            calls: Mutex::default(),
            in_flight: (0..=u8::MAX).map(|_| Count::default()).collect(),
            changed: Wake::new()?,
            told: Default::default(),
        })
    }

    /// The disks, and the workers that releases go to, in the same order.
    pub fn set_disks(&self, disks: Vec<Arc<DiskState>>, workers: Arc<Vec<WorkerHandle>>) {
        let _ = self.disks.set(disks);
        let _ = self.workers.set(workers);
    }

    /// The disks but for the mark disk; the disk under test is the first.
    pub fn disks(&self) -> &[Arc<DiskState>] {
        self.disks.get().map_or(&[], Vec::as_slice)
    }

    /// The power is cut, for all disks. False where it was before.
    pub fn cut(&self) -> bool {
        let mut first = false;
        for disk in self.disks() {
            first |= disk.outage.cut();
        }
        for cache in self.disks().iter().filter_map(|d| d.cache.as_ref()) {
            cache.freeze();
        }
        first
    }

    fn engines(&self) -> impl Iterator<Item = &Mutex<Engine>> {
        self.engines.iter().flatten()
    }

    fn engine_of(&self, disk: u8) -> Option<&Mutex<Engine>> {
        self.engines.get(usize::from(disk))?.as_ref()
    }

    /// The workers of all disks but the mark disk.
    pub fn workers(&self) -> &[WorkerHandle] {
        self.workers.get().map_or(&[], |w| w.as_slice())
    }

    /// What the rules say to a request.
    pub fn decide(&self, request: &Request) -> Option<Decision> {
        if let Some(plans) = &self.plans {
            let decision = (lock(plans))(request);
            if decision.is_some() {
                return decision;
            }
        }
        let mut engine = lock(self.engine_of(request.disk)?);
        let decision = engine.decide(request, self.trace.now_ns());
        self.follow(engine);
        if decision.is_some() {
            self.tell();
        }
        decision
    }

    /// Tells the rules what the guest said.
    pub fn mark(&self, mark: &Mark) {
        lock(&self.calls).mark(mark);
        self.digests.mark(mark);
        for (disk, engine) in self.engines.iter().enumerate() {
            // Calls and their files are on the disk under test: elsewhere their places mean
            // something else.
            let places = matches!(mark, Mark::Begin(_) | Mark::End(_) | Mark::Fs { .. });
            if let Some(engine) = engine
                && (disk == usize::from(DATA_DISK) || !places)
            {
                let mut engine = lock(engine);
                engine.mark(mark, self.trace.now_ns());
                self.follow(engine);
                self.tell();
            }
        }
    }

    /// Tells the rules of a completion that the guest cannot see yet.
    pub fn completed(&self, request: &Request, status: Status) {
        if let Some(engine) = self.engine_of(request.disk) {
            let mut engine = lock(engine);
            engine.completed(request, status);
            self.follow(engine);
        }
    }

    /// Lets go what the rules want let go.
    fn follow(&self, mut engine: MutexGuard<'_, Engine>) {
        let rules = engine.take_releases();
        drop(engine);
        for rule in rules {
            self.release_groups(Some(&rule));
            for worker in self.workers() {
                worker.tell(Command::LetGo(rule.clone()));
            }
        }
    }

    /// Groups of the rule (`None`: of any) go as they are; how many requests that lets go.
    pub fn release_groups(&self, rule: Option<&str>) -> u64 {
        let (go, count) = self.groups.release(rule);
        go.into_iter().for_each(|go| self.go(go));
        count
    }

    /// A request of a group has its turn.
    pub fn go(&self, (queue, token): Go) {
        if let Some(worker) = self.workers().get(usize::from(queue)) {
            worker.tell(Command::Go(token));
        }
    }

    /// Whether a rule has this name.
    pub fn knows(&self, rule: &str) -> bool {
        self.engines().any(|e| lock(e).knows(rule))
    }

    /// The state that the rules of the disk under test (where it has none, of the first that has)
    /// are in; empty where there are none.
    pub fn state(&self) -> String {
        let state = |engine: &Mutex<Engine>| lock(engine).state().to_owned();
        self.engines().next().map(state).unwrap_or_default()
    }

    /// Whether a rule speaks of this state.
    pub fn knows_state(&self, state: &str) -> bool {
        let knows = |e: &Mutex<Engine>| lock(e).states().iter().any(|s| s == state);
        self.engines().any(knows)
    }

    /// The rules and their counters.
    pub fn rules(&self) -> Vec<RuleStanding> {
        let mut rules = Vec::new();
        for engine in self.engines() {
            let engine = lock(engine);
            let held = lock(&self.held);
            rules.extend(engine.rules().into_iter().map(|state| RuleStanding {
                name: state.rule.name.clone(),
                seen: state.seen,
                fired: state.fired,
                held: held.get(&state.rule.name).copied().unwrap_or(0),
                armed: state.armed,
                released: state.released,
            }));
        }
        rules
    }

    /// The marked call with this tag, and where the sector is in its file.
    pub fn find_call(&self, tag: u16, sector: u64) -> Option<(u64, Option<u64>)> {
        lock(&self.calls).find(tag, sector)
    }

    /// Records an event of a disk.
    pub fn event(&self, disk: u8, queue: u16, kind: DeviceKind, a: u64, b: u64, text: &str) -> u64 {
        self.trace.record(&Body::Device(DeviceEvent {
            disk,
            queue,
            kind,
            a,
            b,
            text: text.to_owned(),
        }))
    }

    /// Records what a rule did to the device as a whole; `request` is the one it fired on.
    pub fn outage_event(&self, (disk, queue): (u8, u16), request: u64, fault: DeviceFault) {
        let (kind, b) = match fault {
            DeviceFault::Gone => (DeviceKind::Gone, 0),
            DeviceFault::Cut => (DeviceKind::Cut, 0),
            DeviceFault::Disconnect { lose } => (DeviceKind::HangUp, u64::from(lose)),
        };
        self.event(disk, queue, kind, request, b, "");
        self.tell();
    }

    /// A rule holds one request more.
    pub fn hold(&self, rule: &str) {
        *lock(&self.held).entry(rule.to_owned()).or_default() += 1;
        self.tell();
    }

    /// A rule holds one request less.
    pub fn let_go(&self, rule: &str) {
        if let Some(count) = lock(&self.held).get_mut(rule) {
            *count = count.saturating_sub(1);
        }
        self.tell();
    }

    /// Counts requests that hang (or, negative, hang no more).
    pub fn add_hung(&self, n: i64) {
        self.hung.fetch_add(n as u64, Ordering::SeqCst);
        self.tell();
    }

    /// Counts requests as taken (or, negative, as completed).
    pub fn add_in_flight(&self, worker: u16, n: i64) {
        // There are not more workers (`settings.rs`).
        if let Some(count) = self.in_flight.get(usize::from(worker)) {
            count.0.fetch_add(n as u64, Ordering::AcqRel);
        }
    }

    /// Of a worker that has lost count.
    pub fn set_in_flight(&self, worker: u16, n: u64) {
        if let Some(count) = self.in_flight.get(usize::from(worker)) {
            count.0.store(n, Ordering::Release);
        }
    }

    /// Requests in flight where somebody may ask for their number: rules, or a test's plans.
    pub fn in_flight_for_rules(&self, disk: &DiskState) -> u32 {
        if self.engine_of(disk.number).is_none() && self.plans.is_none() {
            return 0;
        }
        let first = usize::from(disk.first_worker);
        let ours = self.in_flight.iter().skip(first);
        let ours = ours.take(usize::from(disk.queues));
        let sum: u64 = ours.map(|c| c.0.load(Ordering::Acquire)).sum();
        u32::try_from(sum).unwrap_or(u32::MAX)
    }

    /// Requests held, by whatever rule.
    pub fn held(&self) -> u64 {
        lock(&self.held).values().sum()
    }

    /// Requests that never complete while their ring runs.
    pub fn hung(&self) -> u64 {
        self.hung.load(Ordering::SeqCst)
    }

    /// Taken and not completed; held requests count.
    pub fn in_flight(&self) -> u64 {
        // A request is counted up and down by the same worker: no sum of theirs is below zero.
        let counts = self.in_flight.iter();
        counts.map(|c| c.0.load(Ordering::Acquire)).sum()
    }

    /// Marks wait for these disks, as their guest may have made requests before the mark.
    pub fn await_disks(&self, disks: impl IntoIterator<Item = u8>) {
        let bits = disks.into_iter().map(bit).fold(0, |all, bit| all | bit);
        self.missing.store(bits, Ordering::Release);
    }

    /// Whether marks are in order against requests: all disks run again that an earlier device had
    /// served.
    pub fn returned(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// The rings of a disk run again (`None`: nobody waits for any disk any more).
    pub fn set_returned(&self, disk: Option<u8>) {
        let bits = disk.map_or(u64::MAX, bit);
        if self.missing.fetch_and(!bits, Ordering::AcqRel) & bits != 0 {
            self.tell();
        }
    }

    /// The event behind waits; its reader drains it.
    pub fn changed(&self) -> &Wake {
        &self.changed
    }

    fn tell(&self) {
        self.changed.signal();
        *lock(&self.told.0) += 1;
        self.told.1.notify_all();
    }

    /// Waits until something has changed and `state` gives something, at the longest until `until`.
    pub fn wait<T>(&self, until: Instant, state: impl Fn() -> Option<T>) -> Option<T> {
        // Counts of requests in flight change without being told: look now and then.
        const LOOK: Duration = Duration::from_millis(20);
        loop {
            let before = *lock(&self.told.0);
            if let Some(value) = state() {
                return Some(value);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let told = lock(&self.told.0);
            if *told == before {
                drop(self.told.1.wait_timeout(told, left.min(LOOK)));
            }
        }
    }
}
