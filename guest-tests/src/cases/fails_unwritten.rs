// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls over allocated blocks that fail: whatever was not written stays unwritten, and reads as
//! zeros when the pages are gone. The disk below holds something else there.

use wtblk_shared::mark::{Control, Mark};

use crate::aftermath::others_told;
use crate::call::{Done, OpenFile};
use crate::fiemap;
use crate::flying::{Caller, Engine};
use crate::page_flags;
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// The rules of `guest-tests/scenarios/fails-unwritten.toml`: of the call's first data write and
/// of its third, and of those behind the third.
const FIRST: &str = "unwritten-first";
const THIRD: &str = "unwritten-third";
const REST: &str = "unwritten-rest";

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    for rule in [FIRST, THIRD, REST] {
        order(t, Control::Disarm(Some(rule.into())))?;
    }
    let mut files = vec![all(t, "all", None)?, third(t)?];
    if t.world.fact("aio") == "yes" {
        files.push(all(t, "all-aio", Some(Engine::Aio))?);
    }
    check_after_remount(t, &mut files)
}

fn order(t: &Test, control: Control) -> Result<(), Fail> {
    t.world.post(&Mark::Control(control))
}

/// A call that fails, of what the subject does not expect.
fn failing(
    t: &Test,
    s: &mut Subject,
    rule: &str,
    engine: Option<Engine>,
    off: u64,
    len: u64,
) -> Result<Done, Fail> {
    order(t, Control::Arm(Some(rule.into())))?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    s.next_version();
    let done = match engine {
        None => s.call(t, off, len, 0).run(1)?,
        Some(engine) => Caller::start(t, s, engine, off, len, 0).thread.finish()?,
    };
    let eio = -i64::from(libc::EIO);
    t.check(
        done.result == eio || (0..len as i64).contains(&done.result),
        || {
            format!(
                "call {} returned {}, expected -EIO (it needs the scenario fails-unwritten.toml)",
                done.call,
                result_text(done.result)
            )
        },
    );
    pages::report_twice(t.world, done.call, "after-call", &s.open().file, off, len)?;
    page_flags::check(t, "after the error", done.call, s.open(), off, len)?;
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0 || synced == eio, || {
        format!("fsync returned {}", result_text(synced))
    });
    others_told(t, "after the error", s, &another, synced)?;
    Ok(done)
}

/// No block of the range has become a written one.
fn check_unwritten(t: &Test, s: &Subject, what: &str, off: u64, len: u64) -> Result<(), Fail> {
    for (logical, _, length, flags) in fiemap::places(&s.extents()?, off, len) {
        t.check(flags & fiemap::UNWRITTEN != 0, || {
            format!(
                "{what}: the {length} bytes of file offset {logical} were not written, and are \
                 no unwritten extent any more"
            )
        });
    }
    s.check_evicts(t, what);
    s.check_range(t, &format!("{what}, read from the disk"), off, len)
}

/// One extent, and its only write fails.
fn all(t: &Test, name: &str, engine: Option<Engine>) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::create(t, name)?;
    s.allocate(t, 0, 16 * b)?;
    s.synced(t, "before the call")?;
    let done = failing(t, &mut s, FIRST, engine, 4 * b, 4 * b)?;
    let what = format!("{name}: after call {}", done.call);
    check_unwritten(t, &s, &what, 0, 16 * b)?;
    finish(t, s)
}

/// Unwritten, written, unwritten: three writes, of which the last fails, in as many parts as it comes.
fn third(t: &Test) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let page = b.max(4096);
    let mut s = Subject::create(t, "third")?;
    s.allocate(t, 0, 12 * page)?;
    s.prepare(t, 4 * page, page)?;
    order(t, Control::Arm(Some(REST.into())))?;
    let done = failing(t, &mut s, THIRD, None, 0, 12 * page)?;
    order(t, Control::Disarm(Some(REST.into())))?;
    let what = format!("third: after call {}", done.call);
    check_unwritten(t, &s, &what, 5 * page, 7 * page)?;
    finish(t, s)
}

/// The whole file once more, so that it is known what it holds.
fn finish(t: &Test, mut s: Subject) -> Result<Subject, Fail> {
    let len = s.expect.len() as u64;
    s.writethrough(t, 0, len)?;
    Ok(s)
}
