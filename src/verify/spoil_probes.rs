// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Damage for the selftest to what a probe tells: see `spoil`.

use std::collections::HashMap;

use wtblk_shared::mark::{Mark, ProbeBegin, ProbeState};
use wtblk_shared::tag::Tag;

use super::spoil::{Dice, Site, mark, new_event};
use super::spoil_errors::of_test;
use crate::trace::event::{Body, DeviceKind, Event, MarkEvent};

/// `progress`: a probe waits longer than its limit although the device owes nothing.
pub(super) fn hangs(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    let probe = |e: &Event| match mark(e) {
        Some(Mark::ProbeBegin(p)) => Some(p),
        _ => None,
    };
    // Also of the test's failed call, which is no site.
    let test = of_test(events, site);
    let rest = events.iter().enumerate().take(test.end).skip(test.start);
    let probes: Vec<_> = rest.filter_map(|(i, e)| Some((i, probe(e)?))).collect();
    // One that ends while the device has nothing: beside a held request, or one of nobody's that failed, the
    // kernel is not to blame.
    let end_of = |(begin, probe): &(usize, ProbeBegin)| {
        let ends = |e: &Event| matches!(mark(e), Some(Mark::ProbeEnd { probe: p, .. }) if p == probe.probe);
        let behind = events.get(*begin..)?;
        let end = begin + behind.iter().position(ends)?;
        (!may_wait(events.get(..end)?)).then_some(end)
    };
    let found = probes.iter().find_map(|p| Some((&p.1, end_of(p)?)));
    let Some((probe, end)) = found else {
        return false;
    };
    let probe = probe.clone();
    // All that the probe sent is done: it waits for something else.
    let waited = probe.limit_ms + 100;
    let at_ns = events.get(end).map_or(0, |e| e.time_ns) + 2 * waited * 1_000_000;
    for (n, ms) in [(0, waited), (1, waited + 5)] {
        let state = Mark::ProbeState(ProbeState {
            probe: probe.probe,
            waited_ms: ms,
            state: 'D',
            switches: 7,
            wchan: "folio_wait_bit_common".into(),
        });
        let body = Body::Mark(MarkEvent {
            line: state.to_line(),
            ordered: true,
        });
        let mut event = new_event(events, end, body);
        event.seq += n;
        event.time_ns = at_ns + n * 5_000_000;
        events.insert(end + n as usize, event);
    }
    for event in events.iter_mut().skip(end + 2) {
        event.time_ns += 2 * waited * 1_000_000 + 10_000_000;
    }
    site.sure("progress")
}

/// Whether a request was taken and not given back, or one without a call's tag has failed.
fn may_wait(events: &[Event]) -> bool {
    let mut open = HashMap::new();
    let mut failed = false;
    for event in events {
        match &event.body {
            Body::Submit(s) => {
                let tag = Tag::from_ioprio(s.ioprio);
                open.insert(event.seq, tag.is_none());
            }
            Body::Complete(c) => {
                failed |= open.remove(&c.request) == Some(true) && !c.status.is_ok();
            }
            // What a device that was killed still had.
            Body::Device(d) if d.kind == DeviceKind::Reset => open.clear(),
            _ => {}
        }
    }
    failed || !open.is_empty()
}
