// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! One event as the words of one record, and back.
//!
//! Word 0 is the commit word, 1 the time, 2 the place of the text, 3 to 6 say
//! what happened, 7 is the checksum of the text.

use std::borrow::Cow;

use super::event::{
    Body, Complete, DataEvent, DataKind, Decide, DeviceEvent, DeviceKind, Gap, MarkEvent, Op,
    Status, Submit,
};
use super::format::{MAX_TEXT, RECORD_WORDS};

/// Index of the first word that says what happened.
pub(super) const FACTS: usize = 3;
/// Index of the text's checksum.
pub(super) const TEXT_SUM: usize = 7;

/// Words 3 to 6 of a record.
pub(super) type Facts = [u64; 4];

/// Facts of a [`DataEvent`] that say where its bytes are, and their checksum. They are no
/// text: a reader that does not know the kind must not take them for one.
pub(super) const DATA_PLACE: usize = 2;

/// The bytes of a record of kind data, where it has any: their place, and their checksum.
pub(super) fn data_ref(kind: u8, words: &[u64; RECORD_WORDS]) -> Option<(u64, u64)> {
    let at = FACTS + DATA_PLACE;
    (kind == DATA && words[at] != 0).then(|| (words[at], words[at + 1]))
}

fn data_word(d: &DataEvent) -> u64 {
    d.kind as u64 | d.sector << 8
}

/// What the reader makes of a record.
pub(super) enum Decoded {
    /// An event.
    Body(Body),
    /// A kind that a newer minor added.
    Unknown,
}

const SUBMIT: u8 = 1;
const DECIDE: u8 = 2;
const COMPLETE: u8 = 3;
const MARK: u8 = 4;
const DEVICE: u8 = 5;
const GAP: u8 = 6;
const DATA: u8 = 7;

/// The record's kind, its facts and its text.
pub(super) fn encode(body: &Body) -> (u8, Facts, Cow<'_, str>) {
    let (kind, facts, text) = match body {
        Body::Decide(d) => return decide(d),
        Body::Submit(s) => (
            SUBMIT,
            [
                u64::from(s.disk)
                    | u64::from(op_code(s.op)) << 8
                    | u64::from(s.queue) << 16
                    | u64::from(s.ioprio) << 32
                    | u64::from(s.avail_pos) << 48,
                s.sector,
                u64::from(s.bytes) | u64::from(s.epoch) << 32,
                s.digest,
            ],
            "",
        ),
        Body::Complete(c) => (
            COMPLETE,
            [
                c.request,
                u64::from(c.avail_after)
                    | u64::from(c.abandoned) << 16
                    | u64::from(c.status.0) << 24,
                c.digest,
                0,
            ],
            "",
        ),
        Body::Mark(m) => (MARK, [u64::from(m.ordered), 0, 0, 0], m.line.as_str()),
        Body::Device(d) => (
            DEVICE,
            [
                u64::from(d.disk) | u64::from(d.kind as u8) << 8 | u64::from(d.queue) << 16,
                d.a,
                d.b,
                0,
            ],
            d.text.as_str(),
        ),
        // The place of the bytes is filled in by the writer, who knows it.
        Body::Data(d) => (DATA, [d.request, data_word(d), 0, 0], ""),
        Body::Gap(g) => (GAP, [g.missing, 0, 0, 0], g.why.as_str()),
    };
    (kind, facts, text.into())
}

/// The text is the name, and behind it the plan where there is one: the third
/// fact then says where it begins. So a reader of minor 0 still finds the name.
fn decide(d: &Decide) -> (u8, Facts, Cow<'_, str>) {
    let (plan_at, text) = if d.plan.is_empty() {
        (0, Cow::Borrowed(d.name.as_str()))
    } else {
        (
            d.name.len() as u64 + 1,
            format!("{} {}", d.name, d.plan).into(),
        )
    };
    let what = u64::from(d.rule)
        | u64::from(d.hold) << 16
        | u64::from(d.status.is_some()) << 17
        | u64::from(d.status.map_or(0, |s| s.0)) << 24;
    (DECIDE, [d.request, what, plan_at, 0], text)
}

/// Name and plan of a decision's text; a place that cannot be is no plan.
fn name_and_plan(text: String, plan_at: u64) -> (String, String) {
    let at = usize::try_from(plan_at).unwrap_or(0);
    match at
        .checked_sub(1)
        .and_then(|end| text.get(..end))
        .zip(text.get(at..))
    {
        Some((name, plan)) => (name.to_owned(), plan.to_owned()),
        None => (text, String::new()),
    }
}

/// What stands in for an event whose text found no room: a gap of one.
pub(super) fn lost_text() -> (u8, Facts) {
    (GAP, [1, LOST_TEXT, 0, 0])
}

/// Second fact of a gap that has no text because there was no room for any.
const LOST_TEXT: u64 = 1;

/// The event of a record whose checksum was right. Bits that are not ours are ignored.
/// `data` are the bytes that [`data_ref`] spoke of.
pub(super) fn decode(
    kind: u8,
    words: &[u64; RECORD_WORDS],
    text: String,
    data: Vec<u8>,
) -> Decoded {
    let [a, b, c, _] = facts(words);
    let body = match kind {
        SUBMIT => Body::Submit(submit(words)),
        DECIDE => {
            let (name, plan) = name_and_plan(text, c);
            Body::Decide(Decide {
                request: a,
                rule: b as u16,
                hold: bit(b, 16),
                status: bit(b, 17).then_some(Status((b >> 24) as u8)),
                name,
                plan,
            })
        }
        COMPLETE => Body::Complete(complete(words)),
        MARK => Body::Mark(MarkEvent {
            line: text,
            ordered: bit(a, 0),
        }),
        DEVICE => {
            let Some(kind) = device_kind((a >> 8) as u8) else {
                return Decoded::Unknown;
            };
            Body::Device(DeviceEvent {
                disk: a as u8,
                queue: (a >> 16) as u16,
                kind,
                a: b,
                b: c,
                text,
            })
        }
        DATA => {
            let Some(kind) = data_kind(b as u8) else {
                return Decoded::Unknown;
            };
            Body::Data(DataEvent {
                request: a,
                kind,
                sector: b >> 8,
                bytes: data,
            })
        }
        GAP if b == LOST_TEXT => Body::Gap(Gap {
            missing: a,
            why: "no room for its text in the trace's data file".into(),
        }),
        GAP => Body::Gap(Gap {
            missing: a,
            why: text,
        }),
        _ => return Decoded::Unknown,
    };
    Decoded::Body(body)
}

/// A record of a request or a completion that has no text; `None`: it is something else.
#[inline]
pub(super) fn decode_request(words: &[u64; RECORD_WORDS]) -> Option<Body> {
    match (words[0] as u8, words[2]) {
        (SUBMIT, 0) => Some(Body::Submit(submit(words))),
        (COMPLETE, 0) => Some(Body::Complete(complete(words))),
        _ => None,
    }
}

fn facts(words: &[u64; RECORD_WORDS]) -> Facts {
    [words[FACTS], words[4], words[5], words[6]]
}

#[inline]
fn submit(words: &[u64; RECORD_WORDS]) -> Submit {
    let [a, b, c, d] = facts(words);
    Submit {
        disk: a as u8,
        op: op_of((a >> 8) as u8),
        queue: (a >> 16) as u16,
        ioprio: (a >> 32) as u16,
        avail_pos: (a >> 48) as u16,
        sector: b,
        bytes: c as u32,
        epoch: (c >> 32) as u32,
        digest: d,
    }
}

#[inline]
fn complete(words: &[u64; RECORD_WORDS]) -> Complete {
    let [a, b, c, _] = facts(words);
    Complete {
        request: a,
        avail_after: b as u16,
        abandoned: bit(b, 16),
        status: Status((b >> 24) as u8),
        digest: c,
    }
}

fn bit(word: u64, n: u32) -> bool {
    word >> n & 1 == 1
}

fn op_code(op: Op) -> u8 {
    match op {
        Op::Other => 0,
        Op::Read => 1,
        Op::Write => 2,
        Op::Flush => 3,
        Op::GetId => 4,
        Op::Discard => 5,
        Op::WriteZeroes => 6,
    }
}

/// A code that a newer minor added is "any other type" to us.
fn op_of(code: u8) -> Op {
    match code {
        1 => Op::Read,
        2 => Op::Write,
        3 => Op::Flush,
        4 => Op::GetId,
        5 => Op::Discard,
        6 => Op::WriteZeroes,
        _ => Op::Other,
    }
}

fn data_kind(code: u8) -> Option<DataKind> {
    Some(match code {
        1 => DataKind::Stored,
        2 => DataKind::Read,
        3 => DataKind::Failed,
        4 => DataKind::Digests,
        5 => DataKind::Zeroed,
        _ => return None,
    })
}

fn device_kind(code: u8) -> Option<DeviceKind> {
    use DeviceKind::*;
    // In the order of their numbers, from 1.
    const KINDS: [DeviceKind; 23] = [
        Connected,
        Disconnected,
        Message,
        Features,
        QueueStart,
        QueueStop,
        CacheMode,
        Reset,
        BadChain,
        BadRing,
        BadMark,
        Release,
        Wait,
        StoreError,
        End,
        Begin,
        Limit,
        Scenario,
        Changed,
        Gone,
        Cut,
        HangUp,
        Again,
    ];
    let kind = *KINDS.get(usize::from(code).checked_sub(1)?)?;
    // The table above against the numbers in event.rs: a slip reads as unknown, a test sees it.
    (kind as u8 == code).then_some(kind)
}

/// Place of a text: byte offset / 8 in PATH.data in the upper 40 bits, length in
/// the lower 24. 0: no text.
pub(super) fn text_ref(offset: u64, len: usize) -> u64 {
    (offset / 8) << 24 | len as u64
}

/// Offset and length; the length may be anything up to 2^24.
pub(super) fn text_place(word: u64) -> (u64, usize) {
    ((word >> 24) * 8, (word & 0xff_ffff) as usize)
}

/// At most [`MAX_TEXT`] bytes of a text, cut between characters and saying so.
pub(super) fn cut(text: &str) -> std::borrow::Cow<'_, str> {
    const NOTE: &str = " [cut]";
    if text.len() <= MAX_TEXT {
        return text.into();
    }
    let mut end = MAX_TEXT - NOTE.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{NOTE}", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_device_kind_has_its_place_in_the_table() {
        let known: Vec<u8> = (0..=255).filter(|&n| device_kind(n).is_some()).collect();
        assert_eq!(known, (1..=DeviceKind::Again as u8).collect::<Vec<_>>());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(MAX_TEXT);
        let short = cut(&text);
        assert!(short.len() <= MAX_TEXT && short.ends_with("ä [cut]"));
        assert_eq!(cut("as it is"), "as it is");
    }

    #[test]
    fn a_place_of_text_comes_back() {
        for (offset, len) in [(65536, 1), (8 << 39, MAX_TEXT), (0, 0)] {
            assert_eq!(text_place(text_ref(offset, len)), (offset, len));
        }
    }
}
