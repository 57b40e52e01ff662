// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The caller's buffer ends too early: a call that copied something returns how much, and no
//! more than that, and what it says is on the disk.

use wtblk_shared::{RWF_DSYNC, pattern};

use crate::aftermath;
use crate::call::{Call, Done};
use crate::subject::{Subject, check_after_remount};
use crate::sys::guarded::{BAD, Guarded};
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

/// Bytes behind the good ones that the call asks for, and cannot get.
const LITTLE: usize = 4000;

/// Where, how many good bytes, whether the bad ones are an iovec of their own, more flags.
type Place = (u64, u64, bool, u32);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let mut written = Subject::written(t, "written", 64 * b)?;
    let mut append = Subject::written(t, "append", 2 * b + 100)?;
    let mut allocated = Subject::create(t, "allocated")?;
    allocated.allocate(t, 0, 32 * b)?;
    allocated.synced(t, "before the calls")?;
    let places: &[Place] = &[
        (0, 4 * b, false, 0),
        (8 * b + 100, 3 * b + 5, false, 0),
        (16 * b, 2 * b, true, 0),
        (24 * b + 7, b, true, RWF_DSYNC),
    ];
    for place in places {
        short(t, &mut written, *place, LITTLE)?;
        // New blocks, whose pages are not up to date.
        short(t, &mut allocated, *place, LITTLE)?;
    }
    for (good, apart) in [(b, false), (300, false), (2 * b + 77, true)] {
        let end = append.expect.len() as u64;
        short(t, &mut append, (end, good, apart, 0), LITTLE)?;
    }
    nothing(t, &mut written, LITTLE)?;
    let mut files = vec![written, append, allocated];
    // More bad pages than one, also where the file's pages have to be read first.
    let page = b.max(4096);
    for (name, cached) in [("cached", true), ("read", false)] {
        for (part, good) in [("none", 0), ("pages", 4 * page), ("part", 3 * page - 100)] {
            let mut s = Subject::written(t, &format!("{part}-{name}"), 16 * page)?;
            if !cached {
                s.evict(t)?;
            }
            match good {
                0 => nothing(t, &mut s, BAD)?,
                _ => short(t, &mut s, (b + 60, good, false, 0), BAD)?,
            }
            files.push(s);
        }
    }
    // And a write of it fails besides.
    for (name, good) in [("fails-pages", 4 * page), ("fails-part", 3 * page - 100)] {
        let s = Subject::written(t, name, 16 * page)?;
        let place = (b + 60, good, false, 0);
        let after = aftermath::cut_short(t, name, s, (place.0, good), |s, version| {
            call(t, s, version, place, BAD)
        })?;
        files.extend(after);
    }
    for s in &files {
        s.synced(t, "after all calls")?;
        s.evict(t)?;
        s.check_whole(t, "read from the disk")?;
    }
    check_after_remount(t, &mut files)
}

fn short(t: &Test, s: &mut Subject, place: Place, bad: usize) -> Result<(), Fail> {
    let (off, good, ..) = place;
    let version = s.next_version();
    let done = call(t, s, version, place, bad)?;
    let (call, result) = (done.call, done.result);
    let what = format!(
        "call {call} (offset {off}, {good} good bytes of {})",
        good + bad as u64
    );
    t.check(result > 0 && result <= good as i64, || {
        format!("{what} returned {}", result_text(result))
    });
    // Whatever it says, more than the good bytes cannot be there.
    let there = (result.max(0) as u64).min(good);
    if there == 0 {
        return Ok(());
    }
    if there < good {
        t.note(format!("{what} returned {there}"));
    }
    s.check_short(t, &what, call, version, (off, there))
}

fn call(t: &Test, s: &Subject, version: u32, place: Place, bad: usize) -> Result<Done, Fail> {
    let (off, good, apart, more) = place;
    let buffer = Guarded::new(good as usize, |bytes| {
        pattern::fill(s.number, version, off, bytes);
    })
    .or_fail(|| "a buffer with a bad page".into())?;
    let call = Call {
        words: &["short-copy"],
        len: good + bad as u64,
        pattern: (s.number, version),
        ..s.call(t, off, good, more)
    };
    call.marked(|_| buffer.pwritev2(&call.file.file, bad, apart, off, call.flags))
}

/// Not one good byte: EFAULT, and nothing has happened.
fn nothing(t: &Test, s: &mut Subject, bad: usize) -> Result<(), Fail> {
    let off = s.end() / 2;
    let version = s.next_version();
    let done = call(t, s, version, (off, 0, false, 0), bad)?;
    let (number, result) = (done.call, done.result);
    t.check(result == -i64::from(libc::EFAULT), || {
        format!(
            "call {number} without a good byte returned {}, expected -EFAULT",
            result_text(result)
        )
    });
    s.check_clean(t, "without a good byte", number, off, bad as u64)?;
    s.check_whole(t, "after a call without a good byte")
}
