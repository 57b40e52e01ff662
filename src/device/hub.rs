// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the disks of one process share: the order of events, the rules, and
//! the counts that the state page tells.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use wtblk_shared::mark::Mark;

use super::wake::Wake;
use crate::fault::Engine;
use crate::fault::request::{Decision, Request};
use crate::trace::TraceWriter;
use crate::trace::event::{Body, DeviceEvent, DeviceKind};

/// See the module.
pub(super) struct Hub {
    pub trace: Arc<TraceWriter>,
    /// `None` where there are no rules: the data path then takes no lock.
    engine: Option<Mutex<Engine>>,
    /// By rule; locked only where something is held.
    held: Mutex<BTreeMap<String, u64>>,
    in_flight: AtomicU64,
    /// Readable when the number of held requests has changed: a mark may wait for it.
    changed: Wake,
}

impl Hub {
    pub fn new(trace: Arc<TraceWriter>, engine: Engine) -> io::Result<Hub> {
        Ok(Hub {
            trace,
            engine: (!engine.is_empty()).then(|| Mutex::new(engine)),
            held: Mutex::default(),
            in_flight: AtomicU64::new(0),
            changed: Wake::new()?,
        })
    }

    /// What the rules say to a request.
    pub fn decide(&self, request: &Request) -> Option<Decision> {
        let engine = self.engine.as_ref()?;
        let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        engine.decide(request, self.trace.now_ns())
    }

    /// Tells the rules what the guest said.
    pub fn mark(&self, mark: &Mark) {
        if let Some(engine) = &self.engine {
            let mut engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.mark(mark, self.trace.now_ns());
        }
    }

    /// Whether a rule has this name.
    pub fn knows(&self, rule: &str) -> bool {
        self.engine.as_ref().is_some_and(|engine| {
            let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
            engine.knows(rule)
        })
    }

    /// `NAME:fired:held,...` for the state page; spaces in a name become `%20`.
    pub fn rules(&self) -> String {
        let Some(engine) = &self.engine else {
            return String::new();
        };
        let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let rules = engine.rules();
        let rules = rules.iter().map(|state| {
            let name = &state.rule.name;
            let held = held.get(name).copied().unwrap_or(0);
            format!("{}:{}:{held}", name.replace(' ', "%20"), state.fired)
        });
        rules.collect::<Vec<_>>().join(",")
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

    /// A rule holds one request more.
    pub fn hold(&self, rule: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        *held.entry(rule.to_owned()).or_default() += 1;
        self.changed.signal();
    }

    /// A rule holds one request less.
    pub fn let_go(&self, rule: &str) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = held.get_mut(rule) {
            *count = count.saturating_sub(1);
        }
    }

    /// Counts requests as taken (or, negative, as completed).
    pub fn add_in_flight(&self, n: i64) {
        self.in_flight.fetch_add(n as u64, Ordering::SeqCst);
    }

    /// Requests held, by whatever rule.
    pub fn held(&self) -> u64 {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.values().sum()
    }

    /// Taken and not completed; held requests count.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// The event behind [`Hub::hold`]; its reader drains it.
    pub fn changed(&self) -> &Wake {
        &self.changed
    }
}
