// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `error-mid-call` by AIO, over written blocks and a hole: the first bio of the call fails while
//! its submission stands still in the middle of the second. What was collected until then
//! must not stay in writeback.

use std::os::unix::fs::FileExt;

use wtblk_shared::pattern;

use crate::aftermath::others_told;
use crate::call::OpenFile;
use crate::faulty::{FaultyCall, run_faulty};
use crate::page_flags;
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::sys::uffd::PAGE;
use crate::test::{Fail, OrFail, Test};

/// The rule of `guest-tests/scenarios/async-error-mid-call.toml`.
const RULE: &str = "async-fail-first";
/// Length of the call: several pieces of 2 MiB, which is what the kernel takes at a time.
const LEN: u64 = 6 << 20;
/// The missing page: in the second piece behind the first mapping.
const MISSING: usize = (3 << 20) + PAGE;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let first = t.world.bsize.max(PAGE as u64);
    let mut s = Subject::written(t, "file", first)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let version = s.next_version();
    let done = run_faulty(
        t,
        &s,
        version,
        &FaultyCall {
            rule: RULE,
            len: LEN,
            missing: MISSING,
            first,
            by_aio: true,
        },
    )?;
    let what = format!("call {} (offset 0, length {LEN})", done.call);
    let eio = -i64::from(libc::EIO);
    t.check(
        done.result == eio || (0..LEN as i64).contains(&done.result),
        || {
            format!(
                "{what} ended with {}, expected -EIO",
                result_text(done.result)
            )
        },
    );
    let file = &s.open().file;
    pages::settle(file, 0, LEN, t.world.params.probe / 4)?;
    let state = pages::report_twice(t.world, done.call, "after-call", file, 0, LEN)?;
    if state.writeback > 0 {
        // Whatever comes next would wait for them.
        return Err(Fail::Hung(format!(
            "{what}: after it {} pages stay in writeback",
            state.writeback
        )));
    }
    page_flags::check(t, &what, done.call, s.open(), 0, LEN)?;
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0 || synced == eio, || {
        format!("fsync returned {}", result_text(synced))
    });
    others_told(t, &what, &s, &another, synced)?;
    drop(another);
    on_the_disk(t, &s, version, &what)?;
    s.writethrough(t, 0, LEN)?;
    s.check_whole(t, "after the second call")?;
    check_after_remount(t, &mut [s])
}

/// With the pages gone each block is old, new, or a hole: never what nobody wrote.
fn on_the_disk(t: &Test, s: &Subject, version: u32, what: &str) -> Result<(), Fail> {
    s.check_evicts(t, what);
    let size = s.open().size().or_fail(|| "fstat".into())?;
    let mut seen = vec![0; size as usize];
    s.open()
        .file
        .read_exact_at(&mut seen, 0)
        .or_fail(|| "reading back after the error".into())?;
    let b = t.world.bsize as usize;
    for (i, block) in seen.chunks(b).enumerate() {
        let off = i * b;
        let old = match s.expect.get(off..off + block.len()) {
            Some(known) => known == block,
            None => block.iter().all(|byte| *byte == 0),
        };
        if !old && pattern::first_difference(s.number, version, off as u64, block).is_some() {
            t.fail(format!(
                "{what}: block {i} holds neither its old bytes nor the call's{}",
                s.open().tell_stale(t.world, off as u64, block)
            ));
        }
    }
    Ok(())
}
