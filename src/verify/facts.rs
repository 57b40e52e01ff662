// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is known about guest and device beyond the stream of requests: what
//! the guest found out (`env` marks), what was negotiated, what the boot-time
//! probe calls showed.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::trace::event::{DeviceEvent, DeviceKind};

/// VIRTIO_RING_F_INDIRECT_DESC (virtio 1.3, 6): without it a ring of 128
/// entries fills up and requests wait in lists that reorder.
const INDIRECT_DESC: u64 = 1 << 28;
/// Facts kept; a guest that tells more is not believed.
const MAX_FACTS: usize = 256;
/// What the guest tells that the order of arrival depends on.
const ORDER_FACTS: [&str; 3] = ["scheduler", "queues", "pressure"];

/// Reason: see the name.
pub const PRESSURE: &str = "the guest is short of memory on purpose";

/// What a probe call showed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Probe {
    /// It was not seen.
    #[default]
    NotRun,
    /// It was, but it showed nothing.
    Inconclusive,
    /// As it should be.
    Good,
    /// Not as it should be.
    Bad,
}

/// The facts.
#[derive(Debug, Default)]
pub struct Facts {
    env: BTreeMap<String, String>,
    /// Queues of the data disk that are started.
    started: BTreeSet<u16>,
    offered: Option<u64>,
    features: Option<u64>,
    /// Whether the device has a write-back cache.
    write_back: Option<bool>,
    lost: bool,
    changes: u64,
    logs: BTreeMap<u64, Range<u64>>,
    /// File systems that were mounted when the disk asked for stable pages.
    stable: BTreeSet<u64>,
    /// Whether one plugged batch arrived ascending.
    plug_order: Probe,
    /// Whether a request arrived with its tag.
    pub tag_arrives: Probe,
    /// Whether one of an asynchronous writethrough call did, by each way that was tried.
    async_tag_arrives: Probe,
}

impl Facts {
    /// Facts from the guest; later ones win.
    pub fn env(&mut self, facts: &BTreeMap<String, String>) {
        for (key, value) in facts {
            if self.env.len() < MAX_FACTS || self.env.contains_key(key) {
                let old = self.env.insert(key.clone(), value.clone());
                let changed = old.as_ref() != Some(value);
                self.changes += u64::from(changed && ORDER_FACTS.contains(&key.as_str()));
            }
        }
    }

    /// A file system was mounted: where its log is.
    pub fn fs(&mut self, dev: u64, log_start: u64, log_len: u64) {
        if self.env.get("stable_writes").is_some_and(|v| v == "1") {
            if self.stable.len() < MAX_FACTS {
                self.stable.insert(dev);
            }
        } else {
            self.stable.remove(&dev);
        }
        if log_len == 0 {
            self.logs.remove(&dev);
        } else if self.logs.len() < MAX_FACTS {
            self.logs
                .insert(dev, log_start..log_start.saturating_add(log_len));
        }
    }

    /// Something happened to the data disk, or the first event of all.
    pub fn device(&mut self, event: &DeviceEvent) {
        match event.kind {
            DeviceKind::Begin => {
                let json: Option<serde_json::Value> = serde_json::from_str(&event.text).ok();
                self.offered = json.as_ref().and_then(|j| j.get("queues")?.as_u64());
                self.write_back = json.and_then(|j| j.get("write_cache")?.as_bool());
            }
            DeviceKind::Features => self.features = Some(event.a),
            DeviceKind::CacheMode => self.write_back = Some(event.a != 0),
            DeviceKind::QueueStart => {
                self.started.insert(event.queue);
            }
            DeviceKind::QueueStop | DeviceKind::BadRing => {
                self.started.remove(&event.queue);
            }
            DeviceKind::Reset | DeviceKind::Connected => self.started.clear(),
            _ => return,
        }
        self.changes += 1;
    }

    /// Events are missing, among them perhaps a reboot: no fact crosses that.
    pub fn gap(&mut self) {
        *self = Facts {
            lost: true,
            changes: self.changes + 1,
            ..Facts::default()
        };
    }

    /// A new kernel: what the old one told counts no more, what the device knows does.
    pub fn boot(&mut self) {
        *self = Facts {
            started: std::mem::take(&mut self.started),
            offered: self.offered,
            features: self.features,
            write_back: self.write_back,
            changes: self.changes + 1,
            ..Facts::default()
        };
    }

    /// What a probe of the plug order showed.
    pub fn plugged(&mut self, shown: Probe) {
        self.changes += u64::from(self.plug_order != shown);
        self.plug_order = shown;
    }

    /// What a probe of the tag showed. By several asynchronous ways: all must be good.
    pub fn tagged(&mut self, asynchronous: bool, shown: Probe) {
        if !asynchronous {
            self.tag_arrives = shown;
        } else if self.async_tag_arrives != Probe::Bad {
            self.async_tag_arrives = shown;
        }
    }

    /// Changes so far of what the order depends on: two equal answers mean that
    /// it was the same all the time in between.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Whether all of `disk` lies in a log.
    pub fn is_log(&self, disk: &Range<u64>) -> bool {
        self.logs
            .values()
            .any(|l| l.start <= disk.start && disk.end <= l.end)
    }

    /// Whether pages of this file system that are written stay as they are, whoever wrote them.
    pub fn stable_pages(&self, dev: u64) -> bool {
        self.stable.contains(&dev)
    }

    /// Whether the guest tells of everything that changes the files of its marked calls.
    pub fn files_marked(&self) -> bool {
        self.env.get("files").is_some_and(|v| v == "marked")
    }

    /// Why the tags of calls cannot be trusted; `None`: they can.
    pub fn tags_inexact(&self, asynchronous: bool) -> Option<&'static str> {
        let says = |key: &str| self.env.get(key).map(String::as_str);
        let good = |value: Option<&str>| matches!(value, Some("on" | "exact"));
        match says("tags") {
            Some("off") => return Some("tags are off"),
            Some("on" | "exact") | None => {}
            Some(_) => return Some("tags are inexact: the guest says so"),
        }
        if self.tag_arrives == Probe::Bad {
            return Some("tags are inexact: the probe call's request came without its tag");
        }
        if self.tag_arrives != Probe::Good && !good(says("tags")) {
            return Some(self.missing("whether tags arrive is not known"));
        }
        if !asynchronous {
            return None;
        }
        // io-wq shows whatever tag the submitter has at that moment, unless the request's priority is used.
        match self.async_tag_arrives {
            Probe::Bad => Some(
                "tags of asynchronous calls are inexact: the probe's request came without its tag",
            ),
            Probe::Good => None,
            _ if good(says("tags_async")) => None,
            _ => Some("tags of asynchronous calls are not known to be exact"),
        }
    }

    /// Whether the device has a write-back cache that the guest knows of; why that is not known.
    pub fn write_back(&self) -> Result<bool, &'static str> {
        match (
            self.write_back,
            self.env.get("write_cache").map(String::as_str),
        ) {
            (Some(true), Some("write-through")) => {
                Err("the guest was told to take the disk for write-through")
            }
            (Some(on), _) => Ok(on),
            (None, _) => Err(self.missing("the device's cache mode is not known")),
        }
    }

    /// Why the guest's word about files is not all of it; `None`: opens, fsyncs and
    /// changes of every file with a marked call are marked, too.
    pub fn files_unmarked(&self) -> Option<&'static str> {
        let all = self.env.get("files").is_some_and(|v| v == "marked");
        (!all).then(|| {
            self.missing("the guest does not say that it marks all that is done to its files")
        })
    }

    /// Why a request may arrive long after its bio was submitted; `None`: it does not.
    pub fn late_arrivals(&self) -> Option<String> {
        match self.env.get("scheduler").map(String::as_str) {
            Some("none") => {}
            Some(other) => return Some(format!("the I/O scheduler is '{other}', not 'none'")),
            None => return Some(self.missing("the I/O scheduler is not known").into()),
        }
        match self.features {
            Some(f) if f & INDIRECT_DESC != 0 => {}
            Some(_) => return Some("no indirect descriptors".into()),
            None => return Some(self.missing("the features are not known").into()),
        }
        self.memory_pressure().then(|| PRESSURE.into())
    }

    /// The guest is short of memory on purpose: requests wait in lists that reorder.
    fn memory_pressure(&self) -> bool {
        self.env.get("pressure").is_some_and(|v| v != "off")
    }

    /// Why arrival order says nothing about submission order; `None`: it does.
    pub fn order_unknown(&self) -> Option<String> {
        let says = |key: &str| self.env.get(key).map(String::as_str);
        match says("scheduler") {
            Some("none") => {}
            Some(other) => return Some(format!("the I/O scheduler is '{other}', not 'none'")),
            None => return Some(self.missing("the I/O scheduler is not known").into()),
        }
        // What the guest uses beats what the device would have offered.
        let guest = says("queues").and_then(|n| n.parse().ok());
        let started = Some(self.started.len() as u64).filter(|n| *n > 0);
        match guest.max(started).or(self.offered) {
            Some(1) => {}
            Some(_) => return Some("more than one queue".into()),
            None => return Some(self.missing("the number of queues is not known").into()),
        }
        match self.features {
            Some(f) if f & INDIRECT_DESC != 0 => {}
            Some(_) => return Some("no indirect descriptors".into()),
            None => return Some(self.missing("the features are not known").into()),
        }
        match self.plug_order {
            Probe::Good if self.memory_pressure() => Some(PRESSURE.into()),
            Probe::Good => None,
            Probe::Bad => Some("this kernel reorders a plugged batch".into()),
            Probe::Inconclusive => Some("the plug-order probe showed nothing".into()),
            Probe::NotRun => Some(self.missing("the plug-order probe was not seen").into()),
        }
    }

    fn missing(&self, what: &'static str) -> &'static str {
        if self.lost {
            "events are missing: facts about the guest may have changed"
        } else {
            what
        }
    }
}
