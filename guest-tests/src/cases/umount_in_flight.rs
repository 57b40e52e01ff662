// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking the mount away while an asynchronous call is held: umount says EBUSY, as the call keeps
//! the file; a lazy umount takes the mount out of sight, and what is in flight comes to its end
//! all the same. So does one whose write fails: nothing of it may keep the file system.

use crate::aftermath;
use crate::fate::{self, Fate};
use crate::flying::Caller;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, odd, result_text};
use crate::test::{Fail, OrFail, Test};
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
    let without = s.expect.clone();
    rule.switch_on(t)?;
    s.put(0, b);
    let caller = Caller::start(t, &s, fate.engine(t), 0, b, 0);
    s.close();
    let tried = rule.until_held(t).and_then(|()| {
        let submitted = caller.submitted(t)?;
        let plain = t.world.limited("umount", t.world.params.probe, || {
            sys::result_of(sys::umount(MOUNT))
        })?;
        let lazy = t.world.limited("lazy umount", t.world.params.probe, || {
            sys::result_of(odd::detach(MOUNT))
        })?;
        Ok((submitted, plain, lazy))
    });
    // Whatever was seen: the call must not wait for ever.
    rule.release(t)?;
    let done = caller.thread.finish()?;
    rule.switch_off(t)?;
    let (submitted, plain, lazy) = tried?;
    t.check(submitted.is_ok(), || "the submission waited".into());
    t.check(plain == -i64::from(libc::EBUSY), || {
        format!(
            "umount in flight returned {}, expected -EBUSY",
            result_text(plain)
        )
    });
    t.check(lazy == 0, || {
        format!("a lazy umount in flight returned {}", result_text(lazy))
    });
    fate.check_call(t, "umount", &done, b);
    if lazy != 0 && plain != 0 {
        s.reopen(t)?;
        return check_after_remount(t, &mut [s]);
    }
    // The call's thread has closed the file: nobody keeps the file system any more.
    let world = t.world;
    world.limited("mount", world.params.test, || world.mount())??;
    std::fs::metadata(&t.dir).or_fail(|| "the test's folder".into())?;
    s.reopen(t)?;
    if fate.fails() {
        let with = std::mem::replace(&mut s.expect, without);
        let stage = Stage::new(s, 0, b);
        aftermath::old_or_new(t, "after a lazy umount and a mount", &stage, &with)?;
        s = stage.subject;
        // It has found another file system, which knows of no error.
        s.synced(t, "after a lazy umount and a mount")?;
        s.writethrough(t, 0, b)?;
        return check_after_remount(t, &mut [s]);
    }
    s.check_whole(t, "after a lazy umount and a mount")?;
    s.check_on_disk(t, "after a lazy umount and a mount", 0, b)?;
    check_after_remount(t, &mut [s])
}
