// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The caller is killed while the device holds its write: the process stays until the write is
//! over, nothing is left in writeback, and what was copied is on the disk.
//!
//! The caller is a process of its own: this program once more, with the tag of the thread that
//! started it.

use std::fs::File;
use std::process::{Child, Command, ExitCode, Stdio};

use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use super::returns_after_io::until_held;
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, result_text};
use crate::task::LOOKS;
use crate::test::{Fail, OrFail, Test};

/// The first word of the child's command line.
pub const CHILD: &str = "--writethrough";
/// The rules of `guest-tests/scenarios/killed.toml`.
const HOLD: &str = "killed-held";
const FAIL: &str = "killed-fails";
/// Length of the call: several pages, the last one a part.
const LEN: u64 = 3 * 4096 + 100;
/// Length of the file.
const FILE: u64 = 16 * 4096;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    for rule in [HOLD, FAIL] {
        t.world
            .post(&Mark::Control(Control::Disarm(Some(rule.into()))))?;
    }
    let mut files = [one(t, "held", HOLD)?, one(t, "fails", FAIL)?];
    check_after_remount(t, &mut files)
}

fn one(t: &Test, name: &str, rule: &str) -> Result<Subject, Fail> {
    let mut s = Subject::written(t, name, FILE)?;
    s.evict(t)?;
    t.world
        .post(&Mark::Control(Control::Arm(Some(rule.into()))))?;
    let old = s.expect.clone();
    s.put(0, LEN);
    let mut seen = Ok(());
    let call = s.call(t, 0, LEN, 0);
    let done = call.marked(|_| {
        seen = kill(t, &s, rule);
        // Nobody took the result.
        -i64::from(libc::EINTR)
    })?;
    seen?;
    let what = format!("{name}: call {} of a process that was killed", done.call);
    let file = &s.open().file;
    pages::settle(file, 0, LEN, t.world.params.probe / 4)?;
    let state = pages::report_twice(t.world, done.call, "after-call", file, 0, LEN)?;
    t.check(state.writeback == 0, || {
        format!(
            "{what}: after it {} pages stay in writeback",
            state.writeback
        )
    });
    let synced = s.open().fsync(t.world)?;
    let eio = -i64::from(libc::EIO);
    let allowed = synced == 0 || (rule == FAIL && synced == eio);
    t.check(allowed, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    t.note(format!("{what}: fsync returned {}", result_text(synced)));
    s.check_evicts(t, &what);
    if rule == FAIL {
        // Nothing of the write was stored.
        s.expect = old;
    }
    s.check_whole(t, &what)?;
    s.writethrough(t, 0, LEN)?;
    Ok(s)
}

/// The child's life.
fn kill(t: &Test, s: &Subject, rule: &str) -> Result<(), Fail> {
    let mut child = start(t, s)?;
    let killed = until_held(t).and_then(|()| {
        child.kill().or_fail(|| "kill".into())?;
        // It cannot go before its write is over: the kernel waits for that without heed of signals.
        for _ in 0..LOOKS {
            t.world.note("looking at the child");
            if let Some(how) = child.try_wait().or_fail(|| "wait".into())? {
                return Err(Fail::Error(format!(
                    "the process went ({how}) while its write was held"
                )));
            }
        }
        Ok(())
    });
    // Whatever was seen: it must not wait for ever.
    t.world
        .post(&Mark::Control(Control::Release(Some(rule.into()))))?;
    let gone = t
        .world
        .limited("wait", t.world.params.probe, move || child.wait());
    let how = gone?.or_fail(|| "wait".into())?;
    killed?;
    use std::os::unix::process::ExitStatusExt;
    t.check(how.signal() == Some(libc::SIGKILL), || {
        format!("the process that was killed ended with {how}")
    });
    Ok(())
}

/// Starts it. It has the I/O priority of this thread, which is the call's tag.
fn start(t: &Test, s: &Subject) -> Result<Child, Fail> {
    Command::new("/proc/self/exe")
        .arg(CHILD)
        .arg(s.path())
        .args([t.world.params.flag, s.number, s.version()].map(|n| n.to_string()))
        .stdin(Stdio::null())
        .spawn()
        .or_fail(|| "starting a process".into())
}

/// What the child does: one call, and its result is the exit code (0: all of it was written).
pub fn child(words: &[String]) -> ExitCode {
    let number = |i: usize| words.get(i).and_then(|w| w.parse::<u32>().ok());
    let (Some(path), Some(flag), Some(file), Some(version)) =
        (words.first(), number(1), number(2), number(3))
    else {
        return ExitCode::from(2);
    };
    let Ok(target) = File::options().write(true).open(path) else {
        return ExitCode::from(3);
    };
    let mut bytes = vec![0; LEN as usize];
    pattern::fill(file, version, 0, &mut bytes);
    match sys::pwritev2(&target, &[&bytes], 0, flag) {
        n if n == LEN as i64 => ExitCode::SUCCESS,
        _ => ExitCode::from(1),
    }
}
