// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Any stream of events into the verifier: a trace is a file, and its marks are
//! the guest's word.

use arbitrary::{Arbitrary, Result, Unstructured};

use crate::trace::event::{
    Body, Complete, DataEvent, DataKind, Decide, DeviceEvent, DeviceKind, Event, Gap, MarkEvent,
    Op, Status, Submit,
};
use crate::verify::Verifier;

/// Most events of one stream.
const MAX: u64 = 400;
/// Lines in which each `#` becomes a small number, mostly.
const LINES: [&str; 32] = [
    "boot",
    "env scheduler=none queues=1 tags=on files=marked cachestat=yes stable_writes=#",
    "fs dev=8 kind=xfs bsize=4096 log_start=#000000 log_len=#000000",
    "test-begin name=t#",
    "test-end name=t#",
    "begin call=# test=t# dev=8 ino=# open=# off=#000 len=#000 flags=writethrough,dsync isize=#0000 bsize=4096 tag=# ext=0:#0000:#00000:0",
    "begin call=# test=t# dev=8 ino=# open=# off=#000 len=#000 flags=writethrough,async isize=#0000 bsize=4096 tag=# pattern=#:# ext=0:#0000:#00000:0",
    "begin call=# test=t# dev=8 ino=# open=# off=4096 len=8192 flags=writethrough isize=65536 bsize=4096 tag=# ext=0:0:65536:0",
    "end call=# result=#000 isize=#0000 ext=0:#0000:#00000:0",
    "end call=# result=8192 isize=65536 ext=0:0:65536:0",
    "end call=# result=-5 isize=#0000",
    "error-seen call=#",
    "report call=# at=after-call off=0 len=#0000 cached=# dirty=0 writeback=0",
    "report call=# at=after-call off=0 len=65536 cached=# dirty=# writeback=#",
    "probe-begin probe=# call=# kind=fsync limit_ms=#",
    "probe-state probe=# waited_ms=#000 state=D switches=# wchan=w",
    "probe-end probe=# result=#",
    "opening open=#",
    "open open=# dev=8 ino=#",
    "close open=#",
    "sync-begin sync=# open=# kind=fsync",
    "sync-begin sync=# open=# kind=syncfs",
    "sync-end sync=# result=-5",
    "sync-end sync=# result=0",
    "change-begin change=# dev=8 ino=# off=#000 len=#000 kind=write",
    "change-end change=#",
    "pages dev=8 ino=# at=t off=0 len=65536 dirty=0 writeback=0",
    "stat dev=8 ino=# isize=#000 at=remount",
    "contents dev=8 ino=# off=#0000 digests=#,#,#",
    "stale dev=8 ino=# off=#000 sector=#",
    "note text=#",
    "release rule=rule",
];

/// See the module.
pub fn events(bytes: &[u8]) {
    let mut u = Unstructured::new(bytes);
    let mut verifier = Verifier::of_trace();
    let mut seq = 0u64;
    for _ in 0..MAX {
        let Ok(body) = body(&mut u, seq) else {
            break;
        };
        let missing = match &body {
            Body::Gap(gap) => gap.missing.min(1 << 20),
            _ => 1,
        };
        let time_ns = seq * 1_000_000;
        verifier.event(&Event { seq, time_ns, body });
        seq = seq.saturating_add(missing.max(1));
    }
    let verdicts = verifier.finish();
    // What is found can be told, for people and for machines.
    let json = serde_json::to_string(&verdicts);
    assert!(json.is_ok());
}

/// Mostly small, sometimes anything.
fn number(u: &mut Unstructured<'_>) -> Result<u64> {
    Ok(match u.int_in_range(0..=15u8)? {
        0 => u64::arbitrary(u)?,
        1 => u64::from(u32::arbitrary(u)?),
        _ => u.int_in_range(0..=7)?,
    })
}

fn request(u: &mut Unstructured<'_>, seq: u64) -> Result<u64> {
    Ok(match u.int_in_range(0..=15u8)? {
        0 => u64::arbitrary(u)?,
        _ => seq.saturating_sub(u.int_in_range(0..=15)?),
    })
}

fn body(u: &mut Unstructured<'_>, seq: u64) -> Result<Body> {
    if u.is_empty() {
        return Err(arbitrary::Error::NotEnoughData);
    }
    Ok(match u.int_in_range(0..=15u8)? {
        0..=3 => Body::Submit(Submit {
            disk: if u.ratio(1, 16)? {
                u8::arbitrary(u)?
            } else {
                0
            },
            queue: u16::from(u.int_in_range(0..=1u8)?),
            op: *u.choose(&[
                Op::Write,
                Op::Write,
                Op::Write,
                Op::Read,
                Op::Flush,
                Op::Discard,
                Op::WriteZeroes,
                Op::Other,
            ])?,
            sector: number(u)?.wrapping_mul(8),
            bytes: match u.ratio(1, 16)? {
                true => u32::arbitrary(u)?,
                false => u.int_in_range(0..=8u32)? * 4096,
            },
            // Class best effort with a hint: a tag.
            ioprio: (2 << 13) | (number(u)? as u16 & 0x1fff) << 3,
            epoch: 1,
            avail_pos: u16::arbitrary(u)?,
            digest: number(u)?,
        }),
        4..=6 => Body::Complete(Complete {
            request: request(u, seq)?,
            status: Status(if u.ratio(1, 4)? { u8::arbitrary(u)? } else { 0 }),
            avail_after: u16::arbitrary(u)?,
            abandoned: u.ratio(1, 16)?,
            digest: number(u)?,
        }),
        7 => Body::Decide(Decide {
            request: request(u, seq)?,
            rule: u16::arbitrary(u)?,
            hold: bool::arbitrary(u)?,
            status: bool::arbitrary(u)?.then_some(Status::IOERR),
            name: "rule".into(),
            plan: (*u.choose(&[
                "hold",
                "dropped",
                "torn: only 0+2",
                "corrupt: 1 bits from 4 on",
                "misdirected to 8",
            ])?)
            .into(),
        }),
        8 => Body::Device(DeviceEvent {
            disk: 0,
            queue: 0,
            kind: *u.choose(&[
                DeviceKind::Features,
                DeviceKind::QueueStart,
                DeviceKind::QueueStop,
                DeviceKind::CacheMode,
                DeviceKind::Reset,
                DeviceKind::Release,
                DeviceKind::Changed,
                DeviceKind::Cut,
                DeviceKind::HangUp,
                DeviceKind::Again,
                DeviceKind::Begin,
                DeviceKind::End,
            ])?,
            a: request(u, seq)?,
            b: number(u)?,
            text: text(u)?,
        }),
        9 => Body::Data(DataEvent {
            request: request(u, seq)?,
            kind: *u.choose(&[DataKind::Digests, DataKind::Stored, DataKind::Zeroed])?,
            sector: number(u)?,
            bytes: {
                let len = u.int_in_range(0..=64usize)?;
                u.bytes(len.min(u.len()))?.to_vec()
            },
        }),
        10 if u.ratio(1, 4)? => Body::Gap(Gap {
            missing: number(u)?,
            why: "fuzz".into(),
        }),
        _ => Body::Mark(MarkEvent {
            line: text(u)?,
            ordered: !u.ratio(1, 8)?,
        }),
    })
}

/// A line that mostly is a mark.
fn text(u: &mut Unstructured<'_>) -> Result<String> {
    if u.ratio(1, 12)? {
        let len = u.int_in_range(0..=80usize)?.min(u.len());
        return Ok(String::from_utf8_lossy(u.bytes(len)?).into_owned());
    }
    let mut line = String::from("wtblk/1 ");
    for c in u.choose(&LINES)?.chars() {
        if c == '#' {
            line.push_str(&number(u)?.to_string());
        } else {
            line.push(c);
        }
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wtblk_shared::mark::Mark;

    #[test]
    fn the_lines_are_marks() {
        for line in LINES {
            let line = format!("wtblk/1 {}", line.replace('#', "3"));
            if let Err(e) = Mark::from_line(&line) {
                panic!("{line}: {e}");
            }
        }
    }
}
