// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A synchronous call whose first data write the device holds and then fails:
//! the call has to wait for it, and to return its error.

use wtblk_shared::mark::{Control, Mark};

use super::returns_after_io::{Came, LEN, LIMIT, start, until_held, watch};
use crate::aftermath::others_told;
use crate::call::OpenFile;
use crate::page_flags;
use crate::subject::{Subject, check_after_remount};
use crate::sys::result_text;
use crate::test::{Fail, Test};

/// The rule of `guest-tests/scenarios/fails-while-held.toml`.
const RULE: &str = "fail-held";

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut s = Subject::written(t, "file", 1 << 20)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    s.put(0, LEN);
    // A device that was there before this boot may have used it up.
    t.world
        .post(&Mark::Control(Control::Arm(Some(RULE.into()))))?;
    let (tid, done) = start(t, &s);
    let came = until_held(t).and_then(|()| watch(t, &tid, &done));
    // Whatever was seen: the caller must not wait for ever.
    t.world
        .post(&Mark::Control(Control::Release(Some(RULE.into()))))?;
    let done = match came? {
        Came::Waits => done
            .recv_timeout(LIMIT)
            .map_err(|_| Fail::Hung("the call did not return after the release".into()))??,
        Came::Back(done) => {
            t.fail(format!(
                "call {} returned while its first data write was held",
                done.call
            ));
            done
        }
    };
    let eio = -i64::from(libc::EIO);
    t.check(
        done.result == eio || (0..LEN as i64).contains(&done.result),
        || {
            format!(
                "call {} returned {} although its data write failed",
                done.call,
                result_text(done.result)
            )
        },
    );
    // This waits for what a call that came back too early has left under way.
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0 || synced == eio, || {
        format!("fsync returned {}", result_text(synced))
    });
    t.note(format!("fsync returned {}", result_text(synced)));
    others_told(t, "after the error", &s, &another, synced)?;
    drop(another);
    page_flags::check(t, "after the error", done.call, s.open(), 0, LEN)?;
    // What failed is neither dirty nor in writeback: nobody needs its pages any more.
    s.check_evicts(t, "after the error");
    // The same range again, so that it is known what the file holds.
    s.writethrough(t, 0, LEN)?;
    let again = s.open().fsync(t.world)?;
    t.check(again == 0, || {
        format!(
            "fsync after a call that succeeded returned {}",
            result_text(again)
        )
    });
    s.check_whole(t, "after the second call")?;
    check_after_remount(t, &mut [s])
}
