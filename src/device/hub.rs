// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the disks of one process share: the order of events, the rules, and
//! the counts that the state page tells.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};
use wtblk_shared::mark::Mark;

use crate::fault::engine::Engine;
use crate::fault::request::{Decision, Request};
use crate::trace::TraceWriter;
use crate::trace::event::{Body, DeviceEvent, DeviceKind};

/// See the module.
pub(super) struct Hub {
    pub trace: Arc<TraceWriter>,
    /// `None` where there are no rules: the data path then takes no lock.
    engine: Option<Mutex<Engine>>,
    held: AtomicU64,
    in_flight: AtomicU64,
    /// Readable when the number of held requests has changed: a mark may wait for it.
    changed: EventFd,
}

impl Hub {
    pub fn new(trace: Arc<TraceWriter>, engine: Engine) -> io::Result<Hub> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Hub {
            trace,
            engine: (!engine.is_empty()).then(|| Mutex::new(engine)),
            held: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            changed: EventFd::from_flags(flags)?,
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
            engine.mark(mark);
        }
    }

    /// `NAME:fired:held,...` for the state page.
    pub fn rules(&self) -> String {
        let Some(engine) = &self.engine else {
            return String::new();
        };
        let engine = engine.lock().unwrap_or_else(PoisonError::into_inner);
        rule_list(&engine)
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

    /// Counts requests as held (or, negative, as no longer held).
    pub fn add_held(&self, n: i64) {
        self.held.fetch_add(n as u64, Ordering::SeqCst);
        // Fails only when the counter is full, and then it is readable anyway.
        let _ = self.changed.write(1);
    }

    /// Counts requests as taken (or, negative, as completed).
    pub fn add_in_flight(&self, n: i64) {
        self.in_flight.fetch_add(n as u64, Ordering::SeqCst);
    }

    pub fn held(&self) -> u64 {
        self.held.load(Ordering::SeqCst)
    }

    /// Taken and not completed; held requests count.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// The event behind [`Hub::add_held`]; its reader drains it.
    pub fn changed(&self) -> &EventFd {
        &self.changed
    }
}

fn rule_list(engine: &Engine) -> String {
    let rules = engine.counters();
    let rules = rules
        .iter()
        .map(|r| format!("{}:{}:{}", r.name, r.fired, r.held));
    rules.collect::<Vec<_>>().join(",")
}
