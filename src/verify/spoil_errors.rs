// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Damage for the selftest in traces of tests with failures, to the contents, and by others: see `spoil`.

#![expect(clippy::ptr_arg, reason = "one type for all rows of the table")]

use std::ops::Range;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{Change, Extent, FileMark, Mark};
use wtblk_shared::tag::Tag;

use super::minimize::renumber;
use super::spoil::{Dice, Site, completion, mark, new_event, set_mark};
use crate::trace::event::{
    Body, Complete, DATA_DISK, DataKind, Event, MarkEvent, Op, Status, Submit,
};

/// The events of the site's test.
pub(super) fn of_test(events: &[Event], site: &Site) -> Range<usize> {
    let (before, after) = events.split_at(site.begin.min(events.len()));
    let begins = |e: &Event| matches!(mark(e), Some(Mark::TestBegin { .. }));
    let ends = |e: &Event| matches!(mark(e), Some(Mark::TestEnd { .. }));
    let first = before.iter().rposition(begins).unwrap_or(0);
    let last = after.iter().position(ends).unwrap_or(after.len());
    first..site.begin + last
}

/// An fsync that said 0 says EIO, as the fsync of the same open file before it did; nothing
/// failed and no call ran in between.
fn told_again(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let mut told: Option<u64> = None;
    let mut asked: Option<(u64, u64)> = None;
    let mut places = Vec::new();
    for at in of_test(events, site) {
        let Some(event) = events.get(at) else { break };
        if let Body::Complete(c) = &event.body
            && !c.status.is_ok()
        {
            told = None;
        }
        match mark(event) {
            Some(Mark::Begin(_) | Mark::End(_)) => told = None,
            Some(Mark::File(FileMark::SyncBegin { sync, open, .. })) => asked = Some((sync, open)),
            Some(Mark::File(FileMark::SyncEnd { sync, result })) => {
                let open = asked.take().filter(|a| a.0 == sync).map(|a| a.1);
                if result == -5 {
                    told = open;
                } else if result == 0 && open.is_some() && open == told {
                    places.push((at, sync));
                }
            }
            _ => {}
        }
    }
    let n = dice.below(places.len() as u64) as usize;
    let Some((at, sync)) = places.get(n).copied() else {
        return false;
    };
    if let Some(event) = events.get_mut(at) {
        set_mark(event, &Mark::File(FileMark::SyncEnd { sync, result: -5 }));
    }
    true
}

/// `errseq`: see [`told_again`].
pub(super) fn told_from_nowhere(e: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    told_again(e, site, dice) && site.sure("errseq")
}

/// `ledger`: see [`told_again`]; whether fsyncs were decided is what `errseq` says.
pub(super) fn told_twice(e: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    told_again(e, site, dice) && site.sure("errseq") && site.held("ledger")
}

/// Blocks of two extents of the call are sent behind the test's only error-seen.
pub(super) fn goes_on(events: &mut Vec<Event>, site: &Site, _: &mut Dice) -> bool {
    let test = of_test(events, site);
    let seen = |i: usize| match events.get(i).and_then(mark) {
        Some(Mark::ErrorSeen { call }) => Some((i, call)),
        _ => None,
    };
    let all: Vec<_> = test.clone().filter_map(seen).collect();
    let &[(seen, call)] = all.as_slice() else {
        return false;
    };
    let before = events.get(test.start..seen).unwrap_or_default();
    let is_begin = |e: &Event| match mark(e) {
        Some(Mark::Begin(b)) if b.call == call => Some(b),
        _ => None,
    };
    let Some(begin) = before.iter().find_map(is_begin) else {
        return false;
    };
    let tag = begin.tag.and_then(Tag::new);
    let sent = before.iter().rev().find_map(|e| match &e.body {
        Body::Submit(s) => (s.disk == DATA_DISK
            && s.op == Op::Write
            && tag.is_some()
            && Tag::from_ioprio(s.ioprio) == tag)
            .then(|| s.clone()),
        _ => None,
    });
    let Some(sent) = sent else { return false };
    // A block each of two extents: no bio holds both.
    let inside = |e: &&Extent| {
        e.has_place()
            && e.logical >= begin.off
            && e.logical + e.length <= begin.off + begin.len
            && e.length >= begin.bsize
    };
    let extents = begin.extents.iter().flatten().filter(inside);
    let places: Vec<u64> = extents.rev().take(2).map(|e| e.physical).collect();
    // What touches may be one extent, and one bio, when the call ends.
    if !matches!(places[..], [a, b] if a.abs_diff(b) > begin.bsize) {
        return false;
    }
    let mut at = seen + 1;
    for place in places {
        let submit = Submit {
            sector: place / SECTOR,
            bytes: begin.bsize as u32,
            digest: 0,
            ..sent.clone()
        };
        let submit = new_event(events, seen, Body::Submit(submit));
        let done = Complete {
            request: submit.seq,
            status: Status::OK,
            avail_after: 0,
            abandoned: false,
            digest: 0,
        };
        events.insert(at, submit);
        let done = new_event(events, seen, Body::Complete(done));
        events.insert(at + 1, done);
        at += 2;
    }
    site.held("stop-after-error")
}

/// A sector of a data request has another digest.
pub(super) fn other_bytes(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let b = &site.begin_mark;
    if !(b.off.is_multiple_of(SECTOR) && b.len.is_multiple_of(SECTOR)) {
        return false;
    }
    let id = events.get(site.one(dice)).map_or(0, |e| e.seq);
    let digests = events.iter_mut().find_map(|e| match &mut e.body {
        Body::Data(d) if d.request == id && d.kind == DataKind::Digests => Some(d),
        _ => None,
    });
    let Some(d) = digests else { return false };
    let at = dice.below(d.bytes.len() as u64) as usize;
    let Some(byte) = d.bytes.get_mut(at) else {
        return false;
    };
    *byte ^= 1;
    site.sure("data")
}

/// A truncate of the file begins and succeeds while a data request is in flight.
pub(super) fn passed_by(events: &mut Vec<Event>, site: &Site, dice: &mut Dice) -> bool {
    let at = site.one(dice);
    if completion(events, at).is_none() {
        return false;
    }
    // A number that no guest counts to.
    let change = u64::MAX;
    let (dev, ino) = (site.begin_mark.dev, site.begin_mark.ino);
    let kind = "truncate".to_owned();
    let begin = FileMark::ChangeBegin(Change {
        change,
        dev,
        ino,
        off: 0,
        len: 0,
        kind,
    });
    let end = FileMark::ChangeEnd {
        change,
        result: Some(0),
    };
    for (n, mark) in [begin, end].into_iter().enumerate() {
        let line = Mark::File(mark).to_line();
        let event = new_event(
            events,
            at,
            Body::Mark(MarkEvent {
                line,
                ordered: true,
            }),
        );
        events.insert(at + 1 + n, event);
    }
    // What comes before what is asked by number.
    *events = renumber(events);
    // What else is not decided where the guest does not tell who changes its files.
    site.sure("size")
}
