// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The first of many extents of a call fails while the call stands still in the
//! second: nothing of the others may go to the disk any more.

use crate::aftermath::others_told;
use crate::call::OpenFile;
use crate::cases::multi_extent::{EXTENTS, descending};
use crate::faulty::{FaultyCall, run_faulty};
use crate::page_flags;
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::sys::uffd::PAGE;
use crate::test::{Fail, Test};

/// Length of each extent: whole pages, so that none begins inside a folio of the one before.
const CHUNK: u64 = 64 << 10;

/// Runs the case with a synchronous call.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    stop(t, "fail-first-extent", false)
}

/// Runs it with a call by AIO: the submission stands still, and must send no more.
pub fn run_async(t: &mut Test) -> Result<(), Fail> {
    stop(t, "async-fail-first-extent", true)
}

/// The rules are those of `guest-tests/scenarios/stop-after-error.toml` and `async-stop-after-error.toml`.
fn stop(t: &mut Test, rule: &'static str, by_aio: bool) -> Result<(), Fail> {
    let len = EXTENTS * CHUNK;
    let mut s = descending(t, CHUNK)?;
    s.prepare(t, 0, len)?;
    // New folios: those that are older than the call can reach over two extents.
    let mut list = [s];
    check_after_remount(t, &mut list)?;
    let [mut s] = list;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let version = s.next_version();
    let faulty = FaultyCall {
        rule,
        len,
        missing: CHUNK as usize + 2 * PAGE,
        first: CHUNK,
        by_aio,
    };
    let done = run_faulty(t, &s, version, &faulty)?;
    let what = format!("call {} (offset 0, length {len})", done.call);
    let eio = -i64::from(libc::EIO);
    t.check(
        done.result == eio || (0..len as i64).contains(&done.result),
        || {
            format!(
                "{what} returned {}, expected -EIO",
                result_text(done.result)
            )
        },
    );
    aftermath(t, &mut s, another, done.call, len)?;
    check_after_remount(t, &mut [s])
}

fn aftermath(
    t: &Test,
    s: &mut Subject,
    another: OpenFile,
    call: u64,
    len: u64,
) -> Result<(), Fail> {
    let file = &s.open().file;
    pages::settle(file, 0, len, t.world.params.probe / 4)?;
    let state = pages::report_twice(t.world, call, "after-call", file, 0, len)?;
    t.check(state.writeback == 0, || {
        format!("after it {} pages stay in writeback", state.writeback)
    });
    page_flags::check(t, "after the error", call, s.open(), 0, len)?;
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0 || synced == -i64::from(libc::EIO), || {
        format!("fsync returned {}", result_text(synced))
    });
    others_told(t, "after the error", s, &another, synced)?;
    drop(another);
    s.check_evicts(t, "after the error");
    s.writethrough(t, 0, len)?;
    s.check_whole(t, "after the second call")
}
