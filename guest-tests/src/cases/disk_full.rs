// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file system becomes full in the middle of a call: it returns what it wrote, no more, and
//! that is on the disk. With no room for the first byte it returns ENOSPC, and nothing has happened.

use std::fs::File;

use crate::aftermath;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, result_text};
use crate::test::{Fail, OrFail, Test};

/// Blocks that the file has before.
const HAS: u64 = 8;
/// Largest piece that the filler is made of.
const PIECE: u64 = 256 << 20;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "file", HAS * b)?;
    let fails = Subject::written(t, "fails", HAS * b)?;
    let filler = fill(t)?;
    let tried = full(t, &mut s).and_then(|()| {
        // And a write of it fails besides.
        let (off, len, room) = short(b);
        aftermath::cut_short(t, "fails", fails, (off, room), |s, _| {
            s.call(t, off, len, 0).run(1)
        })
    });
    // Whatever was seen: the tests after this one need the room. Truncation gives it back at once,
    // an unlinked file's goes later.
    filler
        .set_len(0)
        .and_then(|()| filler.sync_all())
        .or_fail(|| "truncating the filler".into())?;
    drop(filler);
    std::fs::remove_file(t.dir.join("filler")).or_fail(|| "unlinking the filler".into())?;
    let mut files = tried?;
    // Now there is room.
    s.writethrough(t, 4 * b, 2 * HAS * b)?;
    s.synced(t, "with room again")?;
    files.push(s);
    check_after_remount(t, &mut files)
}

/// From blocks that are there into a hole: offset, length, and what there is room for.
fn short(b: u64) -> (u64, u64, u64) {
    (b + 100, 2 * HAS * b, (HAS - 1) * b - 100)
}

fn full(t: &Test, s: &mut Subject) -> Result<(), Fail> {
    let b = t.world.bsize;
    let (off, len, room) = short(b);
    let version = s.next_version();
    let done = s.call(t, off, len, 0).run(1)?;
    let what = format!(
        "call {} (offset {off}, length {len}, room for {room})",
        done.call
    );
    t.check(done.result == room as i64, || {
        format!("{what} returned {}", result_text(done.result))
    });
    s.check_short(t, &what, done.call, version, (off, room))?;
    // All of it in the hole.
    s.next_version();
    let done = s.call(t, 4 * HAS * b, 2 * b, 0).run(1)?;
    let what = format!("call {} without room", done.call);
    t.check(done.result == -i64::from(libc::ENOSPC), || {
        format!(
            "{what} returned {}, expected -ENOSPC",
            result_text(done.result)
        )
    });
    s.check_whole(t, &what)
}

/// A file that takes every block there is. Its name is of no interest to the device: no call is
/// made on it.
fn fill(t: &Test) -> Result<File, Fail> {
    let path = t.dir.join("filler");
    let file = File::create(&path).or_fail(|| format!("open {}", path.display()))?;
    let (mut at, mut piece) = (0, PIECE);
    while piece >= t.world.bsize {
        match sys::fallocate(&file, 0, at, piece) {
            Ok(()) => at += piece,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => piece /= 2,
            Err(e) => return Err(t.world.no_blocks(&e)),
        }
    }
    t.note(format!("the disk is full with {at} bytes more"));
    Ok(file)
}
