// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Who is told of a failed call by fsync: the caller's open file, one that was
//! open before, one opened before anybody asked and one opened after, in
//! several orders; by syncfs and by sync_file_range; and that a call that succeeds brings no error back.
//!
//! Whether fsync repeats an error that the call returned is the kernel's
//! policy (`fsync_repeats`); that it does so once, and tells all or nobody, is not.

use std::sync::Arc;

use wtblk_shared::RWF_DSYNC;
use wtblk_shared::mark::{Control, Mark};

use crate::call::{Call, Done, OpenFile};
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// The rule of `guest-tests/scenarios/errseq.toml`.
const RULE: &str = "fail-once";
const EIO: i64 = -(libc::EIO as i64);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, "file", 16 * b)?;
    let path = t.dir.join("file");
    let another = || OpenFile::open(t.world, &path, false).map(Arc::new);
    let caller = Arc::clone(s.open());
    let before = another()?;

    // An error, asked for by all, the caller first.
    fail_call(t, &mut s, 0)?;
    let unseen = another()?;
    let told = fsync(t, "the caller", &caller)?;
    same(
        t,
        told,
        "the caller",
        &[("another", &before), ("one opened after it", &unseen)],
    )?;
    let seen = another()?;
    let all = [
        ("the caller", &caller),
        ("another", &before),
        ("one opened after it", &unseen),
        ("one opened after all asked", &seen),
    ];
    nobody(t, "asked again", &all)?;

    // A call that succeeds tells of no older error.
    s.writethrough(t, 0, 4 * b)?;
    nobody(t, "after a good call", &all)?;

    // Two errors before anybody asks count as one; another asks first.
    fail_call(t, &mut s, 4 * b)?;
    fail_call(t, &mut s, 8 * b)?;
    let told = fsync(t, "another", &before)?;
    let late = another()?;
    same(
        t,
        told,
        "another",
        &[
            ("the caller", &caller),
            ("one opened after an older error", &unseen),
            ("one opened after all asked", &seen),
        ],
    )?;
    nobody(t, "asked again", &all)?;
    if told == EIO {
        nobody(
            t,
            "opened after another had asked",
            &[("a late one", &late)],
        )?;
    }

    // And one that was opened after the error asks first: nobody had asked before it was opened.
    fail_call(t, &mut s, 4 * b)?;
    let newest = another()?;
    let told = fsync(t, "one opened after it", &newest)?;
    same(
        t,
        told,
        "one opened after it",
        &[
            ("another", &before),
            ("one opened after an older error", &unseen),
            ("the caller", &caller),
            ("one opened after all asked", &seen),
        ],
    )?;
    nobody(t, "asked again", &all)?;
    nobody(t, "asked again", &[("one opened after it", &newest)])?;

    // The file system is asked apart from the file, and both once. A waiting sync_file_range asks the file.
    fail_call(t, &mut s, 0)?;
    let told = checked(t, "syncfs of another", before.syncfs(t.world)?);
    let others = [
        ("syncfs of the caller", caller.syncfs(t.world)?),
        ("sync_file_range of another", before.sync_range(t.world)?),
        ("fsync of the caller", caller.fsync(t.world)?),
    ];
    for (what, result) in others {
        t.check(result == told, || {
            let (result, told) = (result_text(result), result_text(told));
            format!("{what} returned {result}, syncfs of another {told}")
        });
    }
    for file in [&before, &caller] {
        let result = file.syncfs(t.world)?;
        t.check(result == 0, || {
            format!("a second syncfs returned {}", result_text(result))
        });
    }
    nobody(
        t,
        "after syncfs and sync_file_range",
        &[("the caller", &caller), ("another", &before)],
    )?;

    // A DSYNC call whose own writes are well asks like an fsync.
    fail_call(t, &mut s, 0)?;
    let done = call(t, &mut s, &before, 12 * b, b, RWF_DSYNC)?;
    t.check(done.result == EIO || done.result == b as i64, || {
        format!(
            "the DSYNC call {} returned {}",
            done.call,
            result_text(done.result)
        )
    });
    nobody(t, "after its DSYNC call", &[("another", &before)])?;
    fsync(t, "the caller", &caller)?;

    // What the file holds is known again.
    s.writethrough(t, 0, 16 * b)?;
    s.check_whole(t, "after the last call")?;
    drop((caller, before, unseen, seen, late, newest));
    check_after_remount(t, &mut [s])
}

/// A call of four blocks by the subject's open file that fails.
fn fail_call(t: &Test, s: &mut Subject, off: u64) -> Result<(), Fail> {
    t.world
        .post(&Mark::Control(Control::Arm(Some(RULE.into()))))?;
    let len = 4 * t.world.bsize;
    let file = Arc::clone(s.open());
    let done = call(t, s, &file, off, len, 0)?;
    t.check(
        done.result == EIO || (0..len as i64).contains(&done.result),
        || {
            format!(
                "call {} returned {}, expected -EIO (it needs the scenario errseq.toml)",
                done.call,
                result_text(done.result)
            )
        },
    );
    Ok(())
}

fn call(
    t: &Test,
    s: &mut Subject,
    file: &OpenFile,
    off: u64,
    len: u64,
    more: u32,
) -> Result<Done, Fail> {
    s.put(off, len);
    Call {
        world: t.world,
        test: t.name,
        file,
        off,
        len,
        flags: t.world.params.flag | more,
        words: &[],
        pattern: (s.number, s.version()),
    }
    .run(1)
}

/// fsync returns 0 or EIO.
fn fsync(t: &Test, who: &str, file: &OpenFile) -> Result<i64, Fail> {
    let result = file.fsync(t.world)?;
    Ok(checked(t, &format!("fsync of {who}"), result))
}

/// fsync of all of them returns what that of `first` did.
fn same(t: &Test, told: i64, first: &str, files: &[(&str, &Arc<OpenFile>)]) -> Result<(), Fail> {
    for (who, file) in files {
        let result = fsync(t, who, file)?;
        t.check(result == told, || {
            let (result, told) = (result_text(result), result_text(told));
            format!("fsync of {who} returned {result}, of {first} {told}")
        });
    }
    Ok(())
}

/// It is 0 or EIO.
fn checked(t: &Test, what: &str, result: i64) -> i64 {
    t.check(result == 0 || result == EIO, || {
        format!("{what} returned {}", result_text(result))
    });
    result
}

/// fsync of all of them returns 0.
fn nobody(t: &Test, when: &str, files: &[(&str, &Arc<OpenFile>)]) -> Result<(), Fail> {
    for (who, file) in files {
        let result = fsync(t, who, file)?;
        t.check(result == 0, || {
            format!(
                "{when}: fsync of {who} (open file {}) returned {}",
                file.open,
                result_text(result)
            )
        });
    }
    Ok(())
}
