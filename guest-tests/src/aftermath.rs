// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Error points: which requests of a call fail and when, and everything that has to be right after
//! it, whatever the call was about.
//!
//! After each: the result is an error or a short count; no page stays in writeback; fsync of the
//! caller's open file and of another say the same, once; each block is old or new, in the page
//! cache and on the disk, and all others are what they were; the range can be written again, and
//! then everything is as if nothing had been. A remount follows for all files of a scene together.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::beside::{Beside, Gate};
use crate::call::{Call, Done, OpenFile};
use crate::page_flags;
use crate::pages;
use crate::probe::{Came, Probe};
use crate::rules::Rule;
use crate::scene::{Source, Stage};
use crate::subject::{Subject, rounded, stale};
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

const EIO: i64 = -(libc::EIO as i64);
/// There are rules for so many requests of a call.
const MOST: u32 = 32;

/// Which requests of a call fail, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Point {
    /// Data writes.
    Write {
        /// The write, from 1; `None`: every one.
        nth: Option<u32>,
        /// Held first, and failed when the call waits for it.
        late: bool,
    },
    /// The first read of what is missing of a block.
    Read,
}

impl Point {
    /// The rule's name.
    pub fn rule(self) -> String {
        let Point::Write { nth, late } = self else {
            return "points-read".into();
        };
        let when = if late { "late" } else { "fail" };
        match nth {
            Some(n) => format!("points-{when}-{n}"),
            None => format!("points-{when}-all"),
        }
    }
}

/// The points of a call of so many requests: the first, a middle one, the last, every one; and the
/// first and every one late.
pub fn points(requests: u32) -> Vec<Point> {
    let last = requests.clamp(1, MOST);
    let mut points = Vec::new();
    for late in [false, true] {
        let mut some = vec![1];
        if !late {
            some.extend([last / 2 + 1, last]);
            some.dedup();
        }
        points.extend(
            some.into_iter()
                .map(|n| Point::Write { nth: Some(n), late }),
        );
        if last > 1 {
            points.push(Point::Write { nth: None, late });
        }
    }
    points
}

/// Makes the call of a stage with this point, and looks at everything that follows. The files, as
/// they must be after a remount.
pub fn error_point(
    t: &Test,
    name: &str,
    mut stage: Stage,
    point: Point,
) -> Result<Vec<Subject>, Fail> {
    let another = OpenFile::open(t.world, stage.subject.path(), false)?;
    let before = stage.subject.expect.clone();
    let Some(done) = faulty_call(t, name, &mut stage, point)? else {
        return Ok(files(stage));
    };
    check_told(t, name, &done, stage.len);
    let what = format!("{name}: call {}", done.call);
    let after = std::mem::replace(&mut stage.subject.expect, before);
    let failed = Failed {
        what,
        done,
        another: Some(another),
        told: false,
        after,
    };
    look(t, stage, failed)
}

/// A call of which a request failed, with its file as the call has left it.
pub struct Failed {
    /// What it was, for messages.
    pub what: String,
    /// The call.
    pub done: Done,
    /// A file that was open before.
    pub another: Option<OpenFile>,
    /// Whether the caller's open file has been told of the error by an fsync.
    pub told: bool,
    /// What the file holds where the call's bytes are there; the subject expects what it holds without.
    pub after: Vec<u8>,
}

/// The result of a call of which a request failed: an error, or a short count.
pub fn check_told(t: &Test, what: &str, done: &Done, len: u64) {
    t.check(
        done.result == EIO || (0..len as i64).contains(&done.result),
        || {
            let result = result_text(done.result);
            format!(
                "{what}: call {} returned {result} although a request of it failed",
                done.call
            )
        },
    );
}

/// A call that cannot come further than `room` bytes from `off` on, and whose first write fails besides; then everything
/// that follows. `call` makes it, of this version of the pattern. The files, as they must be after a remount.
pub fn cut_short(
    t: &Test,
    name: &str,
    mut s: Subject,
    (off, room): (u64, u64),
    call: impl FnOnce(&Subject, u32) -> Result<Done, Fail>,
) -> Result<Vec<Subject>, Fail> {
    let another = OpenFile::open(t.world, s.path(), false)?;
    let before = s.expect.clone();
    let version = s.next_version();
    let first = Point::Write {
        nth: Some(1),
        late: false,
    };
    let rule = Rule::named(first.rule());
    rule.switch_on(t)?;
    let done = call(&s, version)?;
    let fired = rule.fired(t)?;
    rule.switch_off(t)?;
    let what = format!("{name}: call {}", done.call);
    s.put_version(version, off, room);
    if fired == 0 && !t.world.tags {
        // Its data went where nothing was before: without its tag no rule finds it there.
        t.note(format!("{name}: no error point without tags"));
        t.check(done.result == room as i64, || {
            format!("{what} returned {}", result_text(done.result))
        });
        return Ok(vec![s]);
    }
    t.check(fired > 0, || {
        format!("{what} sent no request that could fail")
    });
    check_told(t, name, &done, room);
    let failed = Failed {
        what,
        done,
        another: Some(another),
        told: false,
        after: std::mem::replace(&mut s.expect, before),
    };
    look(t, Stage::new(s, off, room), failed)
}

/// Looks at everything that follows. The files, as they must be after a remount.
pub fn look(t: &Test, mut stage: Stage, failed: Failed) -> Result<Vec<Subject>, Fail> {
    let Failed {
        what,
        done,
        another,
        told,
        after,
    } = failed;
    settled(t, &what, &stage, &done)?;
    asked(t, &what, &stage, &done, another.as_ref(), told)?;
    drop(another);
    old_or_new(t, &format!("{what}, in the page cache"), &stage, &after)?;
    // With its mapping a page cannot leave the page cache.
    stage.keep.clear();
    stage.source = Source::Parts(Vec::new());
    stage.subject.evict(t)?;
    old_or_new(t, &format!("{what}, on the disk"), &stage, &after)?;
    stage.subject.expect = after;
    edges(t, &what, &mut stage)?;
    again(t, &what, &mut stage, &done)?;
    Ok(files(stage))
}

fn files(stage: Stage) -> Vec<Subject> {
    let mut files = vec![stage.subject];
    files.extend(stage.others);
    files
}

/// The call, with the rule on; `None` where the rule met no request, so that nothing failed.
fn faulty_call(
    t: &Test,
    name: &str,
    stage: &mut Stage,
    point: Point,
) -> Result<Option<Done>, Fail> {
    let rule = Rule::named(point.rule());
    let caller = stage.caller(t);
    rule.switch_on(t)?;
    let done = if let Point::Write { nth, late: true } = point {
        let thread = Beside::start(t.world, format!("the call of {name}"), |gate| {
            caller.make(gate)
        });
        let is_async = stage.engine.is_some();
        let mut early = None;
        // With every one held it goes on sending; with the first it has to stand still in the end. An
        // asynchronous one need not; its event must not be there.
        let waits = rule.until_held(t).and_then(|()| {
            let still = nth.is_some() && thread.waits(t)?.is_some();
            Ok(if is_async {
                early = thread.come();
                early.is_none()
            } else {
                still || nth.is_none() && !thread.gate.is_over()
            })
        });
        // Whatever was seen: the caller must not wait for ever.
        rule.release(t)?;
        let done = early.unwrap_or_else(|| thread.finish())?;
        let waits = waits?;
        t.check(waits, || {
            format!(
                "{name}: call {} returned while a write of it was held",
                done.call
            )
        });
        done
    } else {
        caller.make(&Gate::default())?
    };
    let fired = rule.fired(t)?;
    rule.switch_off(t)?;
    if fired > 0 {
        return Ok(Some(done));
    }
    // Fewer requests than the clean pass had: told, and no error point.
    let later = matches!(point, Point::Write { nth: Some(n), .. } if n > 1);
    t.check(later, || {
        format!("{name}: call {} sent no request that could fail", done.call)
    });
    t.check(done.result == stage.len as i64, || {
        format!(
            "{name}: call {} returned {} and no write of it failed",
            done.call,
            result_text(done.result)
        )
    });
    t.note(format!("{name}: diverged, there was no such request"));
    Ok(None)
}

/// No page stays in writeback.
fn settled(t: &Test, what: &str, stage: &Stage, done: &Done) -> Result<(), Fail> {
    if t.world.fact("cachestat") != "yes" {
        return Ok(());
    }
    let file = &stage.subject.open().file;
    let (from, to) = rounded(t.world.unit(), stage.off, stage.len);
    let len = to - from;
    pages::settle(file, from, len, t.world.params.probe / 4)?;
    let state = pages::report_twice(t.world, done.call, "after-call", file, from, len)?;
    t.check(state.writeback == 0, || {
        format!(
            "{what}: after it {} pages stay in writeback",
            state.writeback
        )
    });
    let (call, file) = (done.call, stage.subject.open());
    page_flags::check(t, what, call, file, stage.off, stage.len)
}

/// fsync of the caller's open file and of another one: both are told of the error or none, and once.
/// `told`: the caller's has been, before.
fn asked(
    t: &Test,
    what: &str,
    stage: &Stage,
    done: &Done,
    another: Option<&OpenFile>,
    told: bool,
) -> Result<(), Fail> {
    let world = t.world;
    let own = Arc::clone(stage.subject.open());
    let now = outcome(
        t,
        Probe::start(world, done.call, "fsync", move || own.fsync(world)),
    )?;
    t.check(now == 0 || now == EIO && !told, || {
        let again = if told { ", after one that told" } else { "" };
        format!("{what}: fsync returned {}{again}", result_text(now))
    });
    let all = if told { EIO } else { now };
    match another {
        Some(another) => others_told(t, what, &stage.subject, another, all),
        None => not_once_more(t, what, &stage.subject),
    }
}

/// The caller's open file was `told` this by fsync: another one, open since before the call, is told the same; and the
/// caller's not once more.
pub fn others_told(
    t: &Test,
    what: &str,
    s: &Subject,
    another: &OpenFile,
    told: i64,
) -> Result<(), Fail> {
    let others = another.fsync(t.world)?;
    t.check(others == told, || {
        format!(
            "{what}: fsync of another open file returned {}, the caller's {}",
            result_text(others),
            result_text(told)
        )
    });
    not_once_more(t, what, s)
}

fn not_once_more(t: &Test, what: &str, s: &Subject) -> Result<(), Fail> {
    let once_more = s.open().fsync(t.world)?;
    t.check(once_more == 0, || {
        format!(
            "{what}: a second fsync of the caller's open file returned {}",
            result_text(once_more)
        )
    });
    Ok(())
}

/// Each block of the call is what it was, what the call wanted, or, on the disk, what was there
/// before the pages were dirty; nothing else has changed.
pub fn old_or_new(t: &Test, what: &str, stage: &Stage, after: &[u8]) -> Result<(), Fail> {
    let s = &stage.subject;
    let size = s.open().size().or_fail(|| "fstat".into())?;
    let most = s.end().max(stage.off + stage.len);
    t.check(s.end() <= size && size <= most, || {
        format!("{what}: i_size is {size}, expected {} to {most}", s.end())
    });
    let mut seen = vec![0; size.clamp(s.base(), most).saturating_sub(s.base()) as usize];
    s.open()
        .file
        .read_exact_at(&mut seen, s.base())
        .or_fail(|| format!("{what}: reading back"))?;
    let b = t.world.bsize as usize;
    let (from, to) = rounded(t.world.bsize, stage.off, stage.len);
    for (i, block) in seen.chunks(b).enumerate() {
        let at = s.base() + (i * b) as u64;
        let same = |with: &[u8]| is(block, with, i * b);
        let inside = from <= at && at < to;
        if same(&s.expect) || inside && (same(after) || stage.older.as_deref().is_some_and(same)) {
            continue;
        }
        t.fail(format!(
            "{what}: the block at {at} holds neither its old bytes nor the failed call's{}{}",
            if inside {
                ""
            } else {
                "; it is not of the call"
            },
            stale(block)
        ));
    }
    Ok(())
}

/// Bytes of the call's blocks that are not its own can be lost with it, where they were dirty: what
/// is there now, which was looked at, is what the next call leaves there.
fn edges(t: &Test, what: &str, stage: &mut Stage) -> Result<(), Fail> {
    let b = t.world.bsize;
    let s = &mut stage.subject;
    let size = s.open().size().or_fail(|| "fstat".into())?;
    for at in [stage.off / b * b, (stage.off + stage.len - 1) / b * b] {
        let len = b.min(size.saturating_sub(at)) as usize;
        let mut seen = vec![0; len];
        s.open()
            .file
            .read_exact_at(&mut seen, at)
            .or_fail(|| format!("{what}: reading a block of the call's edges"))?;
        let from = s.index(at);
        let known = s.expect.get_mut(from..).unwrap_or_default();
        let n = known.len().min(len);
        known[..n].copy_from_slice(&seen[..n]);
    }
    Ok(())
}

/// Whether the bytes are those at `from` of `with`, which is followed by zeros.
pub fn is(bytes: &[u8], with: &[u8], from: usize) -> bool {
    let known = with.get(from..).unwrap_or_default();
    let n = known.len().min(bytes.len());
    bytes[..n] == known[..n] && bytes[n..].iter().all(|&b| b == 0)
}

/// The same range once more: now all of it is well.
fn again(t: &Test, what: &str, stage: &mut Stage, failed: &Done) -> Result<(), Fail> {
    let world = t.world;
    let s = &mut stage.subject;
    let version = s.next_version();
    s.put_version(version, stage.off, stage.len);
    let (test, number) = (t.name, s.number);
    let (file, off, len) = (Arc::clone(s.open()), stage.off, stage.len);
    let (tell, call) = std::sync::mpsc::channel();
    let rewrite = Probe::start(world, failed.call, "rewrite", move || {
        let done = Call {
            world,
            test,
            file: &file,
            off,
            len,
            flags: world.params.flag,
            words: &[],
            pattern: (number, version),
        }
        .run(1)?;
        let _ = tell.send(done);
        Ok(done.result)
    });
    outcome(t, rewrite)?;
    let done = call
        .try_recv()
        .map_err(|_| Fail::Error(format!("{what}: the rewrite told no result")))?;
    let s = &stage.subject;
    s.check_call(t, &done, off, len)?;
    s.check_whole(t, "after the rewrite")?;
    let synced = s.open().fsync(world)?;
    t.check(synced == 0, || {
        format!(
            "{what}: fsync after the rewrite returned {}",
            result_text(synced)
        )
    });
    for other in &stage.others {
        other.evict(t)?;
        other.check_whole(t, "after an error beside it")?;
    }
    Ok(())
}

/// What a probe returned; that it does not is the end of the boot.
fn outcome(t: &Test, probe: Probe) -> Result<i64, Fail> {
    let came = probe.watch(t.world)?;
    match came {
        Came::Back(result) => Ok(result),
        Came::Not(..) => {
            t.fail(probe.describe(&came));
            Err(Fail::Hung(format!("{} did not return", probe.kind)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(requests: u32) -> Vec<String> {
        let short = |p: Point| p.rule().replace("points-", "");
        points(requests).into_iter().map(short).collect()
    }

    #[test]
    fn the_first_a_middle_the_last_and_every_request() {
        assert_eq!(names(1), ["fail-1", "late-1"]);
        assert_eq!(
            names(2),
            ["fail-1", "fail-2", "fail-all", "late-1", "late-all"]
        );
        assert_eq!(names(8)[..4], ["fail-1", "fail-5", "fail-8", "fail-all"]);
        assert_eq!(names(100)[2], "fail-32");
        assert_eq!(names(0), ["fail-1", "late-1"]);
    }

    #[test]
    fn bytes_beyond_what_is_known_are_zeros() {
        assert!(is(&[1, 2], &[0, 1, 2], 1));
        assert!(is(&[2, 0], &[0, 1, 2], 2));
        assert!(!is(&[2, 1], &[0, 1, 2], 2));
        assert!(is(&[0], &[], 5));
    }
}
