// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Taking the mount away while an asynchronous call is held: umount says EBUSY, as the call keeps
//! the file; a lazy umount takes the mount out of sight, and what is in flight comes to its end
//! all the same.

use wtblk_shared::mark::{Control, Mark};

use super::returns_after_io::until_held;
use crate::flying::{Caller, Engine};
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, odd, result_text};
use crate::test::{Fail, OrFail, Test};
use crate::world::MOUNT;

/// The rule of `guest-tests/scenarios/umount-in-flight.toml`.
const RULE: &str = "hold-umount";

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "file", 16 * b)?;
    s.evict(t)?;
    t.world
        .post(&Mark::Control(Control::Arm(Some(RULE.into()))))?;
    s.put(0, b);
    let caller = Caller::start(t, &s, Engine::Aio, 0, b, 0);
    s.close();
    let tried = until_held(t).and_then(|()| {
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
    t.world
        .post(&Mark::Control(Control::Release(Some(RULE.into()))))?;
    let done = caller.thread.finish()?;
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
    t.check(done.result == b as i64, || {
        format!("call {} returned {}", done.call, result_text(done.result))
    });
    if lazy != 0 && plain != 0 {
        s.reopen(t)?;
        return check_after_remount(t, &mut [s]);
    }
    // The call's thread has closed the file: nobody keeps the file system any more.
    let world = t.world;
    world.limited("mount", world.params.test, || world.mount())??;
    std::fs::metadata(&t.dir).or_fail(|| "the test's folder".into())?;
    s.reopen(t)?;
    s.check_whole(t, "after a lazy umount and a mount")?;
    s.check_on_disk(t, "after a lazy umount and a mount", 0, b)?;
    check_after_remount(t, &mut [s])
}
