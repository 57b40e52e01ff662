// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Remounting read-only while an asynchronous call is held whose file nobody else has open: EBUSY,
//! as the call still writes. When it is over the same remount succeeds, and the data is there. Also
//! where it is over with an error: that is no reason to stay writable for ever.

use std::fs::File;
use std::time::Instant;

use super::returns_after_io::LIMIT;
use crate::aftermath;
use crate::fate::{self, Fate};
use crate::flying::Caller;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{odd, result_of, result_text};
use crate::test::{Fail, Test};
use crate::world::MOUNT;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    for fate in fate::BOTH {
        in_flight(t, fate)?;
    }
    Ok(())
}

fn in_flight(t: &Test, fate: Fate) -> Result<(), Fail> {
    let b = t.world.bsize;
    let rule = fate.rule(t);
    let mut s = Subject::written(t, &fate.name("file"), 16 * b)?;
    s.evict(t)?;
    rule.switch_on(t)?;
    let without = s.expect.clone();
    s.put(b, 2 * b);
    let caller = Caller::start(t, &s, fate.engine(t), b, 2 * b, 0);
    // The call's thread has it open, too, and nobody else.
    s.close();
    let tried = rule.until_held(t).and_then(|()| {
        let submitted = caller.submitted(t)?;
        Ok((submitted, read_only(t)?))
    });
    // Whatever was seen: the call must not wait for ever.
    rule.release(t)?;
    let done = caller.thread.finish()?;
    rule.switch_off(t)?;
    let (submitted, result) = tried?;
    t.check(submitted.is_ok(), || "the submission waited".into());
    t.check(result == -i64::from(libc::EBUSY), || {
        format!(
            "a remount read-only in flight returned {}, expected -EBUSY",
            result_text(result)
        )
    });
    fate.check_call(t, "remount read-only", &done, 2 * b);
    // Who let the file go is told before the kernel has let it go.
    let begun = Instant::now();
    let mut after = read_only(t)?;
    while after == -i64::from(libc::EBUSY) && begun.elapsed() < LIMIT {
        t.world.note("the remount is tried again");
        after = read_only(t)?;
    }
    t.check(after == 0, || {
        format!(
            "a remount read-only after the call returned {}",
            result_text(after)
        )
    });
    let open = File::options().write(true).open(s.path());
    let refused = open.map_or_else(|e| e.raw_os_error(), |_| None);
    t.check(after != 0 || refused == Some(libc::EROFS), || {
        "a file could be opened for writing although all is read-only".into()
    });
    let back = t.world.limited("remount", t.world.params.test, || {
        result_of(odd::remount_read_write(MOUNT))
    })?;
    if back != 0 {
        return Err(Fail::Error(format!(
            "the remount for writing returned {}",
            result_text(back)
        )));
    }
    s.reopen(t)?;
    if fate.fails() {
        let with = std::mem::replace(&mut s.expect, without);
        let stage = Stage::new(s, b, 2 * b);
        aftermath::old_or_new(t, "after the call", &stage, &with)?;
        s = stage.subject;
        s.writethrough(t, b, 2 * b)?;
        // Nobody had the file open who could be told of the error: the first who has, may be.
        let told = s.open().fsync(t.world)?;
        t.check(told == 0 || told == -i64::from(libc::EIO), || {
            format!("fsync after the call returned {}", result_text(told))
        });
        s.synced(t, "after another one")?;
        return check_after_remount(t, &mut [s]);
    }
    s.check_whole(t, "after the call")?;
    s.check_on_disk(t, "after the call", b, 2 * b)?;
    s.writethrough(t, 0, b)?;
    check_after_remount(t, &mut [s])
}

fn read_only(t: &Test) -> Result<i64, Fail> {
    t.world
        .limited("remount read-only", t.world.params.test, || {
            result_of(odd::remount_read_only(MOUNT))
        })
}
