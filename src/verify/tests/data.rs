// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `data`: streams that break it, that nearly do, and a slow judge.

use proptest::prelude::*;
use twox_hash::XxHash3_64;
use wtblk_shared::mark::{CallBegin, Change, FileContents, FileMark, Mark};
use wtblk_shared::{pattern, poison};

use super::builder::*;
use super::world::Dice;
use crate::trace::event::{Body, DataEvent, DataKind, Decide, DeviceKind, RequestId};

pub(super) const P: &str = "data";
const FILE: u32 = 7;
/// Bytes of the file that the streams are about.
pub(super) const LEN: usize = 64 * B as usize;

/// What a file holds: version 1 everywhere.
fn old() -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    pattern::fill(FILE, 1, 0, &mut bytes);
    bytes
}

/// A call of version 2.
pub(super) fn write_2(number: u64, off: u64, len: u64) -> CallBegin {
    CallBegin {
        pattern: Some((FILE, 2)),
        ..call(number, off, len)
    }
}

/// The file after the call.
pub(super) fn after(c: &CallBegin) -> Vec<u8> {
    let mut bytes = old();
    let (file, version) = c.pattern.unwrap();
    let (from, to) = (c.off as usize, (c.off + c.len) as usize);
    pattern::fill(file, version, c.off, &mut bytes[from..to]);
    bytes
}

fn digests(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks(512).map(XxHash3_64::oneshot).collect()
}

impl Stream {
    pub(super) fn told() -> Stream {
        let mut s = Stream::booted();
        s.env(&[("files", "marked")]);
        s
    }

    fn say(&mut self, request: RequestId, sector: u64, bytes: &[u8]) {
        let bytes = digests(bytes)
            .iter()
            .flat_map(|d| d.to_le_bytes())
            .collect();
        self.push(Body::Data(DataEvent {
            request,
            kind: DataKind::Digests,
            sector,
            bytes,
        }));
    }

    /// A write of these bytes of the file.
    pub(super) fn sends(&mut self, tag: u16, from: u64, to: u64, file: &[u8]) -> RequestId {
        let id = self.write(tag, DISK + from, to - from);
        self.say(id, (DISK + from) / 512, &file[from as usize..to as usize]);
        id
    }

    pub(super) fn contents(&mut self, off: u64, len: u64, file: &[u8]) -> u64 {
        self.mark(Mark::File(FileMark::Contents(FileContents {
            dev: 8,
            ino: 1,
            off,
            digests: digests(&file[off as usize..(off + len) as usize]),
        })))
    }

    fn changes(&mut self, change: u64, off: u64, len: u64, kind: &str) {
        self.mark(Mark::File(FileMark::ChangeBegin(Change {
            change,
            dev: 8,
            ino: 1,
            off,
            len,
            kind: kind.into(),
        })));
    }

    fn changed(&mut self, change: u64) {
        self.mark(Mark::File(FileMark::ChangeEnd {
            change,
            result: None,
        }));
    }
}

/// One call of whole blocks 3 and 4 that sends these bytes.
fn sent(file: &[u8]) -> Stream {
    let mut s = Stream::told();
    let c = write_2(1, 3 * B, 2 * B);
    s.begin(&c);
    s.sends(1, 3 * B, 5 * B, file);
    s.all_ok();
    s.end(&c, 2 * B as i64);
    s
}

#[test]
fn the_calls_bytes_are_held_against_its_pattern() {
    let c = write_2(1, 3 * B, 2 * B);
    let good = after(&c);
    sent(&good).held(P, 1).silent();
    let at = (4 * B + 1024) as usize;
    let spoilt = |spoil: &dyn Fn(&mut [u8])| {
        let mut file = good.clone();
        spoil(&mut file[at..at + 512]);
        let f = sent(&file).broken(P, &[]);
        assert!(f.happened.starts_with("1 sectors inside"), "{}", f.happened);
        assert_eq!(f.details["first"][0]["file_offset"], at);
        f.happened
    };
    // One bit of one byte.
    assert!(spoilt(&|s| s[300] ^= 4).contains("nobody"));
    assert!(spoilt(&|s| s.fill(0)).contains("was zeros"));
    assert!(spoilt(&|s| s.copy_from_slice(&old()[at..at + 512])).contains("version 1"));
    let place = good[at - 512..at].to_vec();
    assert!(spoilt(&|s| s.copy_from_slice(&place)).contains(&format!("file offset {}", at - 512)));
    let sector = (DISK + at as u64) / 512;
    assert!(spoilt(&|s| poison::fill(sector, s)).contains("poison"));
}

#[test]
fn split_merged_and_moved_requests_keep_their_bytes() {
    // Two extents in the other order on the disk, and one request over both.
    let c = CallBegin {
        extents: Some(vec![ext(3 * B, DISK + B, B), ext(4 * B, DISK, B)]),
        ..write_2(1, 3 * B, 2 * B)
    };
    let file = after(&c);
    let on_disk = [
        &file[4 * B as usize..5 * B as usize],
        &file[3 * B as usize..4 * B as usize],
    ]
    .concat();
    for cut in [512, 1024, 4096, 8192] {
        let mut s = Stream::told();
        s.begin(&c);
        for from in (0..2 * B).step_by(cut) {
            let id = s.write(1, DISK + from, cut as u64);
            s.say(
                id,
                (DISK + from) / 512,
                &on_disk[from as usize..from as usize + cut],
            );
        }
        s.all_ok();
        s.end(&c, 2 * B as i64);
        s.held(P, 1);
    }
    // The digests may come in pieces.
    let mut s = Stream::told();
    s.begin(&c);
    let id = s.write(1, DISK, 2 * B);
    s.say(id, DISK / 512, &on_disk[..B as usize]);
    s.say(id, DISK / 512 + 8, &on_disk[B as usize..]);
    s.all_ok();
    s.end(&c, 2 * B as i64);
    s.held(P, 1);
}

/// A call inside of block 3, and what it sends.
fn inside(file: &[u8]) -> (CallBegin, Stream) {
    let c = write_2(1, 3 * B + 700, 1000);
    let mut s = Stream::told();
    s.begin(&c);
    s.sends(1, 3 * B, 4 * B, file);
    s.all_ok();
    s.end(&c, 1000);
    (c, s)
}

#[test]
fn head_and_tail_are_held_against_the_page_cache() {
    let file = after(&write_2(1, 3 * B + 700, 1000));
    let (_, mut s) = inside(&file);
    s.not_checked(P, "no report of the page cache");
    // Another file, and a part, say nothing yet.
    s.mark(Mark::File(FileMark::Contents(FileContents {
        ino: 2,
        off: 3 * B,
        digests: vec![1; 8],
        dev: 8,
    })));
    s.contents(3 * B, 1024, &file);
    s.not_checked(P, "no report of the page cache");
    s.contents(3 * B, B, &file);
    s.held(P, 1).silent();
    // A byte before, in the sector that the call wrote half of, and behind.
    for at in [0usize, 600, 1700, 4095] {
        let mut wrong = file.clone();
        wrong[3 * B as usize + at] ^= 1;
        let (_, mut s) = inside(&wrong);
        s.contents(3 * B, B, &file);
        let f = s.broken(P, &[]);
        let place = 3 * B as usize + at / 512 * 512;
        assert!(
            f.happened.contains(&format!("file offset {place} ")),
            "{}",
            f.happened
        );
    }
}

/// Who wrote elsewhere in the block, beside the sectors of head and tail, excuses nothing; who
/// wrote into the first one, where the file begins, too, excuses that.
#[test]
fn who_changed_head_or_tail_before_the_report_excuses_these_sectors_only() {
    for (at, len, excused) in [
        (0, 512, true),
        (0, 1, true),
        (B, B, false),
        (8 * B, B, false),
    ] {
        let c = write_2(1, 700, 1000);
        let file = after(&c);
        let mut wrong = file.clone();
        wrong[600] ^= 1;
        let mut s = Stream::told();
        s.begin(&c);
        s.sends(1, 0, B, &wrong);
        s.all_ok();
        s.end(&c, 1000);
        s.changes(1, at, len, "write");
        s.changed(1);
        s.contents(0, B, &file);
        match excused {
            true => drop(s.silent()),
            false => drop(s.broken(P, &[])),
        }
    }
}

#[test]
fn what_somebody_else_did_is_not_blamed_on_the_call() {
    let c = write_2(1, 3 * B, 2 * B);
    let mut other = after(&c);
    pattern::fill(FILE, 3, 4 * B, &mut other[4 * B as usize..5 * B as usize]);
    let during = |s: &mut Stream, what: &dyn Fn(&mut Stream)| {
        s.begin(&c);
        what(s);
        s.sends(1, 3 * B, 5 * B, &other);
        s.all_ok();
        s.end(&c, 2 * B as i64);
    };
    let excused = |what: &dyn Fn(&mut Stream)| {
        let mut s = Stream::told();
        during(&mut s, what);
        s.silent().not_checked(P, "somebody else changed");
    };
    excused(&|s| {
        s.changes(1, 4 * B + 511, B - 600, "mmap");
        s.changed(1);
    });
    excused(&|s| s.changes(1, 4 * B, B, "write"));
    excused(&|s| s.changes(1, 60 * B, 1, "truncate"));
    excused(&|s| {
        s.begin(&CallBegin {
            tag: Some(70),
            ..call(70, 4 * B, B)
        });
    });
    // Elsewhere, in another file, or over before it began: no excuse.
    for what in [
        &(|s: &mut Stream| s.changes(1, 5 * B, B, "write")) as &dyn Fn(&mut Stream),
        &|s| {
            s.begin(&CallBegin {
                tag: Some(70),
                ino: 2,
                ..call(70, 4 * B, B)
            });
        },
    ] {
        let mut s = Stream::told();
        during(&mut s, what);
        s.broken(P, &[]);
    }
    let mut s = Stream::told();
    s.changes(1, 4 * B, B, "write");
    s.changed(1);
    during(&mut s, &|_| {});
    s.broken(P, &[]);
    // It began before and is not over.
    let mut s = Stream::told();
    s.changes(1, 4 * B, B, "mmap");
    during(&mut s, &|_| {});
    s.silent();
    // Head and tail, changed between the call and the report.
    let file = after(&write_2(1, 3 * B + 700, 1000));
    let mut later = file.clone();
    later[3 * B as usize] ^= 1;
    let (_, mut s) = inside(&file);
    s.changes(1, 3 * B, 1, "write");
    s.changed(1);
    s.contents(3 * B, B, &later);
    s.silent()
        .not_checked(P, "somebody else changed head or tail");
}

/// Two calls beside each other on one block: the sector may be of either, and of nobody else.
#[test]
fn of_calls_beside_each_other_each_may_have_had_the_last_word() {
    let c = write_2(1, 3 * B, 2 * B);
    let beside = |off: u64, len: u64, version: u32, sent: &[u8]| {
        let mut s = Stream::told();
        let other = CallBegin {
            tag: Some(70),
            pattern: Some((FILE, version)),
            ..call(70, off, len)
        };
        s.begin(&c);
        s.begin(&other);
        s.sends(1, 3 * B, 5 * B, sent);
        s.all_ok();
        s.end(&c, 2 * B as i64);
        s
    };
    let mine = after(&c);
    let block = (4 * B) as usize..(5 * B) as usize;
    let with = |version: u32, range: std::ops::Range<usize>| {
        let mut bytes = mine.clone();
        pattern::fill(FILE, version, range.start as u64, &mut bytes[range]);
        bytes
    };
    beside(4 * B, B, 3, &mine).silent().held(P, 1);
    beside(4 * B, B, 3, &with(3, block.clone()))
        .silent()
        .held(P, 1);
    // Of neither: what was there before, or half of each in one sector.
    beside(4 * B, B, 3, &with(1, block.clone())).broken(P, &[]);
    let half = block.start..block.start + 256;
    beside(4 * B, B, 3, &with(3, half)).broken(P, &[]);
    // The other's bytes where the other did not write.
    beside(5 * B, B, 3, &with(3, block.clone())).broken(P, &[]);
    // A part of the sector only: what is in it then is not said by a pattern.
    let end = block.start..block.start + 512;
    beside(4 * B, 100, 3, &with(3, end))
        .silent()
        .not_checked(P, "somebody else changed");
}

#[test]
fn what_is_not_known_is_not_judged() {
    let bad = old();
    let tried = |spoil: &dyn Fn(&mut Stream, &mut CallBegin), result: i64| {
        let mut s = Stream::told();
        let mut c = write_2(1, 3 * B, 2 * B);
        spoil(&mut s, &mut c);
        s.begin(&c);
        s.sends(1, 3 * B, 5 * B, &bad);
        s.all_ok();
        s.end(&c, result);
        s
    };
    let all = 2 * B as i64;
    tried(&|_, _| {}, all).broken(P, &[]);
    tried(&|_, c| c.pattern = None, all)
        .silent()
        .not_checked(P, "the call names no pattern");
    tried(&|s, _| s.env(&[("files", "some")]), all)
        .silent()
        .not_checked(P, "the guest does not tell");
    tried(&|_, c| c.extents = None, all)
        .silent()
        .not_checked(P, "extents unknown");
    tried(&|s, _| s.env(&[("tags", "off")]), all).silent();
    // What a failed call sent was its bytes all the same; after a short copy nobody knows.
    tried(&|_, _| {}, -5).broken(P, &["error-report"]);
    tried(&|_, c| c.flags.push("short-copy".into()), -14)
        .silent()
        .not_checked(P, "the call failed, perhaps after a short copy");
    // A short count: nothing is said of what is behind it.
    let mut s = Stream::told();
    let c = write_2(1, 3 * B, 2 * B);
    let mut half = after(&c);
    half[4 * B as usize..].fill(0);
    s.begin(&c);
    s.sends(1, 3 * B, 5 * B, &half);
    s.all_ok();
    s.end(&c, B as i64);
    s.held(P, 1).silent();
    // Without digests, or with too few of them.
    let mut s = Stream::told();
    s.begin(&c);
    s.write(1, DISK + 3 * B, B);
    s.sends(1, 4 * B, 5 * B, &after(&c));
    s.all_ok();
    s.end(&c, all);
    s.not_checked(P, "the digests of a request's sectors are not there");
    // A gap between the call and its report.
    let file = after(&write_2(1, 3 * B + 700, 1000));
    let (_, mut s) = inside(&file);
    s.gap(2);
    s.contents(3 * B, B, &bad);
    s.silent()
        .not_checked(P, "events are missing after the call");
    // A new boot, and the number again.
    let (c, mut s) = inside(&file);
    s.begin(&c);
    s.contents(3 * B, B, &bad);
    s.power_on();
    s.contents(3 * B, B, &bad);
    s.silent();
}

#[test]
fn poison_that_a_reader_saw_is_a_finding_unless_a_fault_did_it() {
    let stale = |s: &mut Stream, off: u64| {
        s.mark(Mark::File(FileMark::Stale {
            dev: 8,
            ino: 1,
            off,
            sector: 4711,
        }));
    };
    let mut s = Stream::told();
    s.run(&write_2(1, 0, B), &[(DISK, B)]);
    stale(&mut s, 512);
    let f = s.broken(P, &[]);
    assert!(f.happened.contains("sector 4711") && f.call.unwrap().call == 1);
    // Of no call of ours, it is still what nobody wrote.
    let mut s = Stream::told();
    stale(&mut s, 1 << 40);
    assert!(s.broken(P, &[]).call.is_none());
    let by_plan = |plan: &str| {
        let mut s = Stream::told();
        let w = s.stray(DISK, B);
        s.push(Body::Decide(Decide {
            request: w,
            rule: 0,
            hold: plan.contains("hold"),
            status: None,
            name: "r".into(),
            plan: plan.into(),
        }));
        s.ok(w);
        s.power_on();
        s.mark(Mark::TestBegin { name: TEST.into() });
        stale(&mut s, 0);
        s
    };
    for plan in [
        "dropped",
        "misdirected to 8",
        "delay 5.000 ms, torn: only 0+2",
        "stale",
        "cut",
        "x",
        "",
    ] {
        by_plan(plan).silent();
    }
    for plan in [
        "IOERR",
        "hold, 0x07",
        "delay 5.000 ms, turn 1 of 2 in group 3, UNSUPP",
    ] {
        by_plan(plan).broken(P, &[]);
    }
}

#[test]
fn hostile_digests_cost_bounded_memory() {
    let mut s = Stream::told();
    let c = write_2(1, 3 * B, 2 * B);
    s.begin(&c);
    let id = s.write(1, DISK + 3 * B, 2 * B);
    for _ in 0..20 {
        s.push(Body::Data(DataEvent {
            request: id,
            kind: DataKind::Digests,
            sector: u64::MAX,
            bytes: vec![1; (1 << 20) + 3],
        }));
    }
    // Of nobody's request.
    s.say(1 << 50, 0, &[0; 512]);
    s.all_ok();
    s.end(&c, 2 * B as i64);
    s.broken(P, &[]);
    // Contents of a billion places, and of none.
    let (_, mut s) = inside(&after(&write_2(1, 3 * B + 700, 1000)));
    for off in [0, 1, u64::MAX, u64::MAX - 511] {
        s.mark(Mark::File(FileMark::Contents(FileContents {
            dev: 8,
            ino: 1,
            off,
            digests: vec![0; 8],
        })));
    }
    s.silent();
}

/// Digests of this many sectors, of a call that nobody judges.
fn filled(s: &mut Stream, sectors: usize) -> (CallBegin, RequestId) {
    let c = CallBegin {
        flags: vec!["dsync".into()],
        ..call(9, 40 * B, B)
    };
    s.begin(&c);
    let request = s.write(9, DISK + 40 * B, B);
    s.push(Body::Data(DataEvent {
        request,
        kind: DataKind::Digests,
        sector: 0,
        bytes: vec![0; sectors * 8],
    }));
    (c, request)
}

/// The bound of digests, and who gives back what counts for it: the end of a call, judged or not, and what
/// ends the waiting for one whose requests do not come back.
#[test]
fn digests_are_bounded_and_given_back() {
    const MAX: usize = 1 << 20;
    let good = after(&write_2(1, 3 * B, 2 * B));
    let judged = |s: &mut Stream| {
        let c = write_2(1, 3 * B, 2 * B);
        s.begin(&c);
        let w = s.sends(1, 3 * B, 5 * B, &good);
        s.ok(w);
        s.end(&c, 2 * B as i64);
    };
    for (sectors, room) in [(MAX - 16, true), (MAX - 15, false)] {
        let mut s = Stream::told();
        filled(&mut s, sectors);
        judged(&mut s);
        if room {
            s.held(P, 1);
        } else {
            s.not_checked(P, "the digests of a request's sectors are not there");
        }
    }
    for stops in [false, true] {
        let mut s = Stream::told();
        let (c, w) = filled(&mut s, MAX);
        if stops {
            s.end(&c, B as i64);
            s.device(DeviceKind::QueueStop, 0, 0, "");
            s.epoch += 1;
            s.device(DeviceKind::QueueStart, 128, u64::from(s.epoch), "");
        } else {
            s.ok(w);
            s.end(&c, B as i64);
        }
        judged(&mut s);
        s.held(P, 1);
    }
}

/// A call that ended before its requests is judged when they are over.
#[test]
fn digests_of_a_call_that_ended_early_are_kept() {
    let c = write_2(1, 3 * B, 2 * B);
    let mut s = Stream::told();
    s.begin(&c);
    let w = s.sends(1, 3 * B, 5 * B, &after(&c));
    s.end(&c, 2 * B as i64);
    s.ok(w);
    s.held(P, 1);
}

/// Of a short count so small that no sector is surely the call's nothing is compared, and nothing held.
#[test]
fn a_count_of_no_whole_sector_is_not_held() {
    for (result, held) in [(0, false), (511, false), (512, true)] {
        for flag in ["none", "short-copy"] {
            let mut c = write_2(1, 3 * B, 2 * B);
            c.flags.push(flag.into());
            let mut s = Stream::told();
            s.begin(&c);
            s.sends(1, 3 * B, 5 * B, &after(&c));
            s.all_ok();
            s.end(&c, result);
            if held {
                s.held(P, 1);
            } else {
                s.not_checked(P, "of what was sent no sector");
            }
        }
    }
}

/// Head and tail of a block so large that they are too much to wait for.
#[test]
fn only_so_many_sectors_wait_for_the_page_cache() {
    for (sectors, why) in [
        (513, "no report of the page cache"),
        (514, "head and tail are longer"),
    ] {
        let c = CallBegin {
            bsize: sectors * 512,
            ..write_2(1, 0, 512)
        };
        let mut bytes = vec![0; sectors as usize * 512];
        pattern::fill(FILE, 2, 0, &mut bytes[..512]);
        let mut s = Stream::told();
        s.begin(&c);
        let w = s.write(1, DISK, sectors * 512);
        s.say(w, DISK / 512, &bytes);
        s.ok(w);
        s.end(&c, 512);
        s.not_checked(P, why);
    }
}

/// Who waits for the page cache is given up with its call, and no longer followed.
#[test]
fn a_call_that_is_forgotten_waits_for_no_report() {
    let file = after(&write_2(1, 3 * B + 700, 1000));
    let (_, mut s) = inside(&file);
    for n in 2..1100 {
        let c = CallBegin {
            ino: 2,
            ..call(n, 0, 0)
        };
        s.run(&c, &[]);
    }
    s.contents(3 * B, B, &file);
    let v = s.of(P);
    let reasons = v.not_checked.keys();
    assert!(
        !reasons.into_iter().any(|r| r.starts_with("somebody else")),
        "{v:#?}"
    );
}

proptest! {
    /// Calls one after the other, split by chance, some with a wrong byte, some reported on.
    #[test]
    fn each_byte_is_judged_by_who_wrote_it(seed: u64) {
        let mut dice = Dice(seed);
        let mut s = Stream::told();
        let mut file = old();
        let (mut bad, mut held) = (Vec::new(), 0);
        for n in 1..=1 + dice.below(6) {
            // Each in a part of its own: a report of one says nothing of another.
            let off = n * 8 * B + dice.below(2 * B);
            let len = 1 + dice.below(6 * B);
            let version = 2 + n as u32;
            let c = CallBegin { pattern: Some((FILE, version)), ..call(n, off, len) };
            pattern::fill(FILE, version, off, &mut file[off as usize..(off + len) as usize]);
            let (from, to) = (off - off % B, (off + len).next_multiple_of(B));
            s.begin(&c);
            let wrong = dice.one_in(3).then(|| from + dice.below(to - from));
            let mut sent = file.clone();
            if let Some(at) = wrong {
                sent[at as usize] ^= 0x55;
            }
            let mut at = from;
            while at < to {
                let next = (at + 512 * (1 + dice.below(16))).min(to);
                s.sends(n as u16, at, next, &sent);
                at = next;
            }
            s.all_ok();
            s.end(&c, len as i64);
            let reported = dice.one_in(2);
            if reported {
                s.contents(from, to - from, &file);
            }
            let sector = wrong.map(|at| at / 512 * 512);
            let of_pattern = |at: u64| off <= at && at + 512 <= off + len;
            let edges = (from..to).step_by(512).any(|at| !of_pattern(at));
            match sector {
                Some(at) if of_pattern(at) || reported => bad.push(n),
                _ if reported || !edges => held += 1,
                _ => {}
            }
        }
        let found: Vec<u64> = s.verdicts().findings().filter(|f| f.promise == P)
            .filter_map(|f| f.call.as_ref().map(|c| c.call)).collect();
        prop_assert_eq!(found, bad);
        prop_assert_eq!(s.of(P).held, held);
    }
}
