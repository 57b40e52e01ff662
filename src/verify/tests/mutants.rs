// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Legal streams, spoilt in one place each: every kind of damage is found, by
//! the promise that is meant for it.

use wtblk_shared::mark::{CallEnd, Mark};

use super::super::contract::Contract;
use super::builder::*;
use super::world::{Dice, Wanted, legal};
use crate::trace::event::{Body, Event, Op, Status};

/// A call of a tame stream: where its begin, its data writes and its end are.
struct Found {
    begin: usize,
    end: usize,
    ended: CallEnd,
    /// Places of the data requests' Submit events, in order of arrival.
    data: Vec<usize>,
}

fn parse(e: &Event) -> Option<Mark> {
    match &e.body {
        Body::Mark(m) => m.parse().ok(),
        _ => None,
    }
}

/// A call with at least `least` data requests, at random.
fn find(events: &[Event], dice: &mut Dice, least: usize) -> Option<Found> {
    let mut found = Vec::new();
    for (end, e) in events.iter().enumerate() {
        let Some(Mark::End(ended)) = parse(e) else {
            continue;
        };
        let is_begin = |e: &Event| matches!(parse(e), Some(Mark::Begin(b)) if b.call == ended.call);
        let Some(begin) = events.iter().position(is_begin) else {
            continue;
        };
        let Some(Mark::Begin(b)) = parse(&events[begin]) else {
            continue;
        };
        if !b.flags.contains(&"writethrough".to_owned()) || b.flags.len() > 1 {
            continue;
        }
        let range = b.off - b.off % B..(b.off + b.len).next_multiple_of(B);
        let places: Vec<_> = ended.extents.iter().flatten().collect();
        let is_data = |i: &usize| match &events[*i].body {
            Body::Submit(s) if s.op == Op::Write && s.ioprio == ioprio(b.tag.unwrap()) => {
                let at = s.sector * 512;
                places.iter().any(|x| {
                    let file = (x.logical + at).wrapping_sub(x.physical);
                    at >= x.physical && at < x.physical + x.length && range.contains(&file)
                })
            }
            _ => false,
        };
        let data: Vec<_> = (begin..end).filter(is_data).collect();
        if data.len() >= least {
            found.push(Found {
                begin,
                end,
                ended,
                data,
            });
        }
    }
    let n = found.len() as u64;
    (n > 0).then(|| found.swap_remove(dice.below(n) as usize))
}

fn completion(events: &[Event], request: u64) -> usize {
    let is = |e: &Event| matches!(&e.body, Body::Complete(c) if c.request == request);
    events.iter().position(is).unwrap()
}

fn set_result(e: &mut Event, mut end: CallEnd, result: i64) {
    end.result = result;
    if let Body::Mark(m) = &mut e.body {
        m.line = Mark::End(end).to_line();
    }
}

/// Spoils 60 streams each; those in which nothing fits are passed over.
fn each(promise: &str, least: usize, spoil: impl Fn(&mut Vec<Event>, &Found, &mut Dice) -> bool) {
    let mut spoilt = 0;
    for seed in 0..90 {
        let mut events = legal(seed, 6, Wanted { wild: false }).events;
        let mut dice = Dice(seed ^ 0xabc);
        let Some(call) = find(&events, &mut dice, least) else {
            continue;
        };
        if !spoil(&mut events, &call, &mut dice) {
            continue;
        }
        spoilt += 1;
        let verdicts = judge(&events, Contract::default());
        assert!(
            verdicts.findings().any(|f| f.promise == promise
                && f.call.as_ref().is_some_and(|c| c.call == call.ended.call)),
            "seed {seed}, call {}: {verdicts:#?}",
            call.ended.call
        );
    }
    assert!(spoilt >= 30, "only {spoilt} streams were fit for it");
}

#[test]
fn a_lost_request_breaks_cover() {
    each("cover", 1, |events, call, dice| {
        let i = call.data[dice.below(call.data.len() as u64) as usize];
        let done = completion(events, events[i].seq);
        events.remove(done.max(i));
        events.remove(done.min(i));
        true
    });
}

#[test]
fn a_doubled_request_breaks_cover() {
    each("cover", 1, |events, call, dice| {
        let i = call.data[dice.below(call.data.len() as u64) as usize];
        let (mut again, old) = (events[i].clone(), events[i].seq);
        again.seq = 1 << 40;
        let mut done = events[completion(events, old)].clone();
        if let Body::Complete(c) = &mut done.body {
            c.request = again.seq;
        }
        events.insert(call.end, done);
        events.insert(call.end, again);
        true
    });
}

#[test]
fn a_shortened_run_breaks_align() {
    each("align", 1, |events, call, _| {
        // The first of all by place: its run begins there.
        let place = |i: &usize| match &events[*i].body {
            Body::Submit(s) => s.sector,
            _ => u64::MAX,
        };
        let first = *call.data.iter().min_by_key(|i| place(i)).unwrap();
        let Body::Submit(s) = &mut events[first].body else {
            return false;
        };
        s.sector += 1;
        s.bytes -= 512;
        s.bytes > 0
    });
}

#[test]
fn swapped_requests_break_order() {
    each("order", 2, |events, call, dice| {
        let n = dice.below(call.data.len() as u64 - 1) as usize;
        let (a, b) = (call.data[n], call.data[n + 1]);
        let take = |e: &Event| match &e.body {
            Body::Submit(s) => (s.sector, s.bytes),
            _ => (0, 0),
        };
        let (x, y) = (take(&events[a]), take(&events[b]));
        for (i, (sector, bytes)) in [(a, y), (b, x)] {
            if let Body::Submit(s) = &mut events[i].body {
                (s.sector, s.bytes) = (sector, bytes);
            }
        }
        true
    });
}

#[test]
fn an_end_that_comes_too_early_breaks_sync_return() {
    each("sync-return", 1, |events, call, _| {
        let last = call.data.iter().map(|i| completion(events, events[*i].seq));
        let last = last.max().unwrap();
        if last < *call.data.last().unwrap() || last < call.begin {
            return false;
        }
        let end = events.remove(call.end);
        events.insert(last, end);
        true
    });
}

#[test]
fn a_swallowed_error_breaks_error_report() {
    each("error-report", 1, |events, call, dice| {
        let i = call.data[dice.below(call.data.len() as u64) as usize];
        let done = completion(events, events[i].seq);
        if let Body::Complete(c) = &mut events[done].body {
            c.status = Status(1 + dice.below(255) as u8);
        }
        true
    });
}

#[test]
fn an_invented_error_breaks_error_report() {
    each("error-report", 1, |events, call, _| {
        set_result(&mut events[call.end], call.ended.clone(), -5);
        true
    });
}

#[test]
fn a_write_of_somebody_else_in_flight_breaks_no_overlap() {
    each("no-overlap", 1, |events, call, dice| {
        // Just before or just behind one of its writes, of one of its sectors.
        let i = call.data[dice.below(call.data.len() as u64) as usize];
        let mut other = events[i].clone();
        let Body::Submit(s) = &mut other.body else {
            return false;
        };
        s.sector += dice.below(u64::from(s.bytes) / 512);
        (s.bytes, s.ioprio) = (512, 0);
        other.seq = 1 << 40;
        let mut done = events[completion(events, events[i].seq)].clone();
        if let Body::Complete(c) = &mut done.body {
            c.request = other.seq;
        }
        events.insert(call.end, done);
        events.insert(i + dice.below(2) as usize, other);
        true
    });
}

#[test]
fn another_digest_at_the_completion_breaks_stable() {
    each("stable", 1, |events, call, dice| {
        let i = call.data[dice.below(call.data.len() as u64) as usize];
        let done = completion(events, events[i].seq);
        if let Body::Complete(c) = &mut events[done].body {
            c.digest ^= 1 << dice.below(64);
        }
        true
    });
}

/// Events at the end of a stream in which nothing is under way any more.
fn at_rest(events: &[Event], add: impl FnOnce(&mut Stream)) -> Vec<Event> {
    let mut s = Stream {
        next: events.last().unwrap().seq + 1,
        events: events.to_vec(),
        epoch: 1,
        now_ns: events.last().unwrap().time_ns,
        ..Stream::default()
    };
    s.all_ok();
    add(&mut s);
    s.events
}

#[test]
fn a_leaked_page_breaks_writeback_cleared() {
    each("writeback-cleared", 1, |events, call, dice| {
        let pages = 1 + dice.below(9);
        *events = at_rest(events, |s| {
            // A range that nobody has told clear.
            s.report_range(call.ended.call, 1, 64 * B, pages);
            s.report_range(call.ended.call, 1, 64 * B, pages);
        });
        true
    });
}

#[test]
fn a_hung_probe_breaks_progress() {
    each("progress", 1, |events, call, dice| {
        let waited = 2000 + dice.below(9000);
        *events = at_rest(events, |s| {
            s.probe(1 << 30, call.ended.call);
            s.probe_state(1 << 30, waited, 'D', 9);
            s.probe_state(1 << 30, waited + 1, 'D', 9);
        });
        true
    });
}
