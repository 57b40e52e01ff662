// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A quota is used up in the middle of a call: it returns what it wrote, no more, and that is on
//! the disk. Where not one byte fits it returns EDQUOT (a project's quota: ENOSPC), and nothing has
//! happened. What needs no new blocks goes on.

use crate::aftermath;
use crate::subject::{Subject, check_after_remount};
use crate::sys::quota::{self, Who};
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

/// The file, in blocks: written, a hole, written, a long hole up to its end.
const FIRST: u64 = 8;
const SHORT_HOLE: u64 = 2;
const SECOND: u64 = 2;
const LONG_HOLE: u64 = 64;
/// Blocks that may still be taken. XFS sets some aside for the tree of extents when it takes any, so
/// the short hole needs more than its own, and the long one far more than there are.
const ROOM: u64 = 24;

/// XFS's mount options.
const OPTIONS: &str = "uquota,pquota";

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let world = t.world;
    // Whether quotas count is decided by the mount.
    world.umount()?;
    let mounted = world.limited("mount", world.params.test, || world.mount_with(OPTIONS))?;
    if let Err(e) = mounted {
        world.limited("mount", world.params.test, || world.mount())??;
        return Err(Fail::Skip(format!(
            "a mount with {OPTIONS} said '{e}': it needs a kernel with CONFIG_XFS_QUOTA"
        )));
    }
    let mut files = Vec::new();
    let tried = [
        ("user", Who::User(1000), libc::EDQUOT),
        ("project", Who::Project(1000), libc::ENOSPC),
    ]
    .into_iter()
    .try_for_each(|(name, who, errno)| {
        files.push(used_up(t, name, who, -i64::from(errno))?);
        Ok(())
    });
    // Whatever was seen: the tests after this one know of no quota.
    check_after_remount(t, &mut files)?;
    tried
}

/// A file of `who`, the quota used up in calls on it, and lifted again.
fn used_up(t: &Test, name: &str, who: Who, refused: i64) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let disk = t.world.mounted();
    let mut s = Subject::create(t, name)?;
    quota::give(&s.open().file, who).or_fail(|| format!("giving the file to {who:?}"))?;
    if let Err(e) = quota::used(disk, who) {
        return Err(Fail::Skip(format!(
            "quotactl of {who:?} said '{e}': this file system counts no quota"
        )));
    }
    let second = (FIRST + SHORT_HOLE) * b;
    let long = second + SECOND * b;
    // The size first: a file that grows by writing may have blocks beyond its end.
    s.allocate_by(t, long + LONG_HOLE * b, |f| f.set_len(long + LONG_HOLE * b))?;
    s.prepare(t, 0, FIRST * b)?;
    s.prepare(t, second, SECOND * b)?;
    let used = quota::used(disk, who).or_fail(|| "quotactl".into())?;
    t.check(used == (FIRST + SECOND) * b, || {
        format!(
            "{who:?} has {used} bytes, expected {}",
            (FIRST + SECOND) * b
        )
    });
    quota::limit(disk, who, used + ROOM * b).or_fail(|| "setting a quota".into())?;

    // From written blocks over the short hole, which still fits, into the long one, which does not.
    let off = b + 100;
    let (room, version) = (long - off, s.next_version());
    let done = s.call(t, off, room + LONG_HOLE * b - 300, 0).run(1)?;
    let what = format!("{name}: call {} (offset {off}, room for {room})", done.call);
    t.check(done.result == room as i64, || {
        format!("{what} returned {}", result_text(done.result))
    });
    s.check_short(t, &what, done.call, version, (off, room))?;
    // All of it in the hole; and behind the end of the file.
    for off in [long + b, s.end()] {
        s.next_version();
        let done = s.call(t, off, 2 * ROOM * b, 0).run(1)?;
        let what = format!("{name}: call {} without room", done.call);
        t.check(done.result == refused, || {
            format!(
                "{what} returned {}, expected {}",
                result_text(done.result),
                result_text(refused)
            )
        });
        s.check_whole(t, &what)?;
    }
    // What was refused has taken nothing, and keeps nobody from what takes nothing.
    let used = quota::used(disk, who).or_fail(|| "quotactl".into())?;
    let wanted = (FIRST + SHORT_HOLE + SECOND) * b;
    t.check(used == wanted, || {
        format!("{name}: {who:?} has {used} bytes in the end, expected {wanted}")
    });
    s.synced(t, "with the quota used up")?;
    s.writethrough(t, 100, 2 * b)?;
    // And a write of the call fails besides.
    let fails = format!("{name}-fails");
    let mut s = aftermath::cut_short(t, &fails, s, (off, room), |s, _| {
        s.call(t, off, room + LONG_HOLE * b - 300, 0).run(1)
    })?
    .swap_remove(0);

    quota::limit(disk, who, 0).or_fail(|| "lifting the quota".into())?;
    s.writethrough(t, off, room + LONG_HOLE * b - 300)?;
    s.writethrough(t, s.end(), 2 * ROOM * b)?;
    s.synced(t, "without a limit")?;
    Ok(s)
}
