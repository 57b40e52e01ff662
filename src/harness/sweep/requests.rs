// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests of a point, told by what they are and not by where they happen to lie on the
//! disk: so those of two fresh files can be compared.

use std::ops::Range;

use wtblk_shared::disk::SECTOR;
use wtblk_shared::mark::{CallBegin, CallEnd, Control, Extent, Mark};
use wtblk_shared::tag::Tag;

use super::Requests;
use crate::trace::event::{Body, DATA_DISK, Event, Op, RequestId, Submit};

/// A request of a point.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its number.
    pub id: RequestId,
    /// What it is: `write 4096+16384` (bytes of the file), `write log`, `flush`, `read elsewhere`.
    pub what: String,
    /// It is a write of the call's own data.
    pub data: bool,
}

/// The requests of a point, and what else of its events tells them.
#[derive(Debug, Default)]
pub struct Window {
    /// The requests from the arming of the faults to their disarming, in order.
    pub requests: Vec<Told>,
    /// Rules that fired: name and request, in order.
    pub fired: Vec<(String, RequestId)>,
    /// The call under test.
    pub call: Option<CallBegin>,
    /// Requests that were not completed at the end.
    pub open: Vec<RequestId>,
}

impl Window {
    /// Looks through the events of one point. `logs` are the bytes of the disk that are logs.
    pub fn of(events: &[Event], requests: Requests, logs: &[Range<u64>]) -> Window {
        let mut window = Window::default();
        let mut armed = false;
        let mut end: Option<CallEnd> = None;
        let mut taken: Vec<(RequestId, &Submit, bool)> = Vec::new();
        for event in events {
            match &event.body {
                Body::Mark(mark) => match mark.parse() {
                    Ok(Mark::Control(Control::Arm(_))) => armed = true,
                    Ok(Mark::Control(Control::Disarm(_))) => break,
                    Ok(Mark::Begin(begin)) if armed && window.call.is_none() => {
                        window.call = Some(begin);
                    }
                    Ok(Mark::End(this)) if end.is_none() => end = Some(this),
                    _ => {}
                },
                Body::Submit(s) if armed && s.disk == DATA_DISK => {
                    let in_call = window.call.as_ref().filter(|_| end.is_none());
                    let tag = in_call.and_then(|call| call.tag).and_then(Tag::new);
                    let of_call = tag.is_some() && Tag::from_ioprio(s.ioprio) == tag;
                    // As the rules count them: a write to the log is none of the call's data.
                    let data = of_call && s.op == Op::Write && !is_of(logs, s);
                    if requests == Requests::All || data {
                        taken.push((event.seq, s, of_call));
                    }
                }
                Body::Decide(d) if armed => window.fired.push((d.name.clone(), d.request)),
                _ => {}
            }
        }
        let extents = end.and_then(|e| e.extents);
        let before = window.call.as_ref().and_then(|call| call.extents.clone());
        let extents: Vec<Extent> = extents.into_iter().chain(before).flatten().collect();
        window.requests = taken
            .into_iter()
            .map(|(id, s, of_call)| tell(id, s, of_call, &extents, logs))
            .collect();
        window.open = still_open(events);
        window
    }

    /// The place of a request in the list.
    pub fn place(&self, id: RequestId) -> Option<usize> {
        self.requests.iter().position(|r| r.id == id)
    }

    /// The list as it is compared.
    pub fn words(&self) -> Vec<String> {
        self.requests.iter().map(|r| r.what.clone()).collect()
    }
}

/// Whether a request is about one of the logs.
fn is_of(logs: &[Range<u64>], s: &Submit) -> bool {
    let start = s.sector.saturating_mul(SECTOR);
    let end = start.saturating_add(u64::from(s.bytes));
    s.bytes > 0 && logs.iter().any(|log| log.start < end && start < log.end)
}

fn tell(id: RequestId, s: &Submit, of_call: bool, extents: &[Extent], logs: &[Range<u64>]) -> Told {
    let op = s.op.name();
    let start = s.sector.saturating_mul(SECTOR);
    let in_file = extents
        .iter()
        .filter(|e| e.has_place() && s.bytes > 0)
        .find(|e| e.physical <= start && start < e.physical.saturating_add(e.length))
        .map(|e| e.logical.saturating_add(start - e.physical));
    let what = match (s.op, in_file) {
        (Op::Flush, _) => op.to_owned(),
        (_, Some(off)) => format!("{op} {off}+{}", s.bytes),
        // How much a log write has to tell depends on what went before the point.
        _ if is_of(logs, s) => format!("{op} log"),
        _ => format!("{op} elsewhere"),
    };
    Told {
        id,
        what,
        data: of_call && s.op == Op::Write && in_file.is_some(),
    }
}

/// Requests of the disk under test that were taken and not completed.
fn still_open(events: &[Event]) -> Vec<RequestId> {
    let mut open = Vec::new();
    for event in events {
        match &event.body {
            Body::Submit(s) if s.disk == DATA_DISK => open.push(event.seq),
            Body::Complete(c) => open.retain(|id| *id != c.request),
            _ => {}
        }
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::event::{Complete, Decide, MarkEvent, Status};

    fn mark(seq: u64, line: &str) -> Event {
        let body = Body::Mark(MarkEvent {
            line: format!("wtblk/1 {line}"),
            ordered: true,
        });
        Event {
            seq,
            time_ns: 0,
            body,
        }
    }

    fn submit(seq: u64, op: Op, sector: u64, bytes: u32, tag: Option<u16>) -> Event {
        let body = Body::Submit(Submit {
            disk: DATA_DISK,
            queue: 0,
            op,
            sector,
            bytes,
            ioprio: tag.and_then(Tag::new).map_or(0, Tag::ioprio),
            epoch: 1,
            avail_pos: 0,
            digest: 0,
        });
        Event {
            seq,
            time_ns: 0,
            body,
        }
    }

    fn point() -> Vec<Event> {
        let begin = "begin call=3 test=t dev=1 ino=2 open=1 off=0 len=8192 flags=writethrough isize=8192 bsize=4096 tag=5 ext=0:40960:4096:2048,4096:8192:4096:2048";
        vec![
            submit(1, Op::Write, 0, 4096, None),
            mark(2, "arm rule=ioerr-1"),
            mark(3, begin),
            submit(4, Op::Write, 80, 4096, Some(5)),
            Event {
                seq: 5,
                time_ns: 0,
                body: Body::Decide(Decide {
                    request: 4,
                    rule: 0,
                    hold: false,
                    status: Some(Status::IOERR),
                    name: "ioerr-1".into(),
                    plan: String::new(),
                }),
            },
            Event {
                seq: 6,
                time_ns: 0,
                body: Body::Complete(Complete {
                    request: 4,
                    status: Status::IOERR,
                    avail_after: 0,
                    abandoned: false,
                    digest: 0,
                }),
            },
            submit(7, Op::Write, 16, 4096, Some(5)),
            submit(8, Op::Write, 2000, 512, Some(9)),
            mark(9, "end call=3 result=-5 isize=8192"),
            submit(10, Op::Flush, 0, 0, None),
            submit(11, Op::Write, 100, 512, Some(5)),
            mark(12, "disarm"),
            submit(13, Op::Write, 16, 4096, Some(5)),
        ]
    }

    #[test]
    fn the_calls_own_writes_by_their_place_in_the_file() {
        let window = Window::of(&point(), Requests::Data, &[]);
        assert_eq!(window.words(), ["write 0+4096", "write 4096+4096"]);
        assert!(window.requests.iter().all(|r| r.data));
        assert_eq!(window.fired, [("ioerr-1".to_owned(), 4)]);
        assert_eq!(window.place(7), Some(1));
        assert_eq!(window.call.unwrap().len, 8192);
        assert_eq!(window.open, [1, 7, 8, 10, 11, 13]);
    }

    #[test]
    fn a_write_to_the_log_is_none_of_the_data() {
        let log = 80 * 512..81 * 512;
        let window = Window::of(&point(), Requests::Data, &[log]);
        assert_eq!(window.words(), ["write 4096+4096"]);
    }

    #[test]
    fn all_requests_from_arming_to_disarming() {
        let log = 100 * 512..101 * 512;
        let window = Window::of(&point(), Requests::All, &[log]);
        assert_eq!(
            window.words(),
            [
                "write 0+4096",
                "write 4096+4096",
                "write elsewhere",
                "flush",
                "write log"
            ]
        );
        let data: Vec<bool> = window.requests.iter().map(|r| r.data).collect();
        assert_eq!(data, [true, true, false, false, false]);
    }
}
