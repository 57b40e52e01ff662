// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Two and eight synchronous calls on one file at the same time: apart, side by side, of the same
//! block. The device holds the write of the first one: all others wait for the inode lock, and
//! come to their end after it, each with all its bytes; also where the first one fails, or one of those that waited.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};

use wtblk_shared::pattern;

use crate::beside::{Beside, LIMIT};
use crate::call::{Call, Done};
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, Pages, result_text};
use crate::test::{Fail, OrFail, Test};

/// The rules of `guest-tests/scenarios/synchronous-calls.toml`: the first one holds, the second one
/// lets the write fail when it is released, the third one lets the next write fail.
const HOLDS: &str = "synchronous-holds";
const FAILS: &str = "synchronous-fails";
const LATER: &str = "synchronous-later-fails";

/// Where the calls are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Apart,
    Beside,
    Same,
}

/// Whose write fails: that of the call that all others wait for, or of whoever comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    First,
    Later,
}

use Which::{First, Later};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for place in [Place::Apart, Place::Beside, Place::Same] {
        for count in [2, 8] {
            for fails in [None, Some(First), Some(Later)] {
                files.push(together(t, place, count, fails)?);
            }
        }
    }
    check_after_remount(t, &mut files)
}

/// A call whose mark is out, and that is made when somebody says so: to ask for the extents that the
/// mark tells takes the inode lock, too.
struct Begun {
    thread: Beside<Done>,
    ready: Receiver<()>,
    go: Sender<()>,
}

impl Begun {
    fn start(t: &Test, s: &Subject, off: u64, len: u64, version: u32) -> Begun {
        let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
        let pattern = (s.number, version);
        let (tell, ready) = mpsc::channel();
        let (go, told) = mpsc::channel::<()>();
        let thread = Beside::start(world, format!("the call at {off}"), move |gate| {
            let mut pages = Pages::new(len as usize).or_fail(|| "buffer of a call".into())?;
            pattern::fill(pattern.0, version, off, pages.bytes_mut());
            let flags = world.params.flag;
            let call = Call {
                world,
                test,
                file: &file,
                off,
                len,
                flags,
                words: &[],
                pattern,
            };
            let done = call.marked(|_| {
                let _ = tell.send(());
                // Where nobody says so any more the call is made all the same.
                let _ = told.recv_timeout(LIMIT * 4);
                gate.inside(|| sys::pwritev2(&file.file, &[pages.bytes()], off, flags))
            });
            // Closed before the result is known: what follows may be an umount.
            drop(file);
            done
        });
        Begun { thread, ready, go }
    }

    fn go(&self) -> Result<(), Fail> {
        let gone = || Fail::Error(format!("{} did not begin", self.thread.what));
        self.go.send(()).map_err(|_| gone())
    }
}

fn together(t: &Test, place: Place, count: u64, fails: Option<Which>) -> Result<Subject, Fail> {
    let whose = fails.map_or("none".into(), |which| format!("{which:?}"));
    let name = format!("{place:?}-{count}-{whose}").to_lowercase();
    let rule = Rule::named(if fails == Some(First) { FAILS } else { HOLDS });
    let later = Rule::named(LATER);
    let len = t.world.unit();
    let off = |i: u64| match place {
        Place::Apart => 2 * i * len,
        Place::Beside => i * len,
        Place::Same => 0,
    };
    let mut s = Subject::written(t, &name, 2 * count * len)?;
    s.evict(t)?;
    let mut calls = Vec::new();
    for i in 0..count {
        let version = s.next_version();
        let call = Begun::start(t, &s, off(i), len, version);
        let begun = call.ready.recv_timeout(LIMIT);
        begun.map_err(|_| Fail::Error(format!("{name}: call {i} did not begin")))?;
        s.put_version(version, off(i), len);
        calls.push((call, version));
    }
    rule.switch_on(t)?;
    let (first, others) = calls.split_first().expect("calls");
    let mut seen = first.0.go().and_then(|()| rule.until_held(t));
    for (other, _) in others {
        seen = seen.and_then(|()| other.go());
    }
    let waited = seen.and_then(|()| {
        let waits = |(call, _): &(Begun, u32)| call.thread.waits(t);
        others.iter().map(waits).collect::<Result<Vec<_>, _>>()
    });
    if fails == Some(Later) {
        later.switch_on(t)?;
    }
    // Whatever was seen: none of them must wait for ever.
    rule.release(t)?;
    let waited = waited?;
    let done = first.0.thread.finish()?;
    rule.switch_off(t)?;
    let all = len as i64;
    let told =
        |done: &Done| done.result == -i64::from(libc::EIO) || (0..all).contains(&done.result);
    let right = match fails {
        Some(First) => told(&done),
        _ => done.result == all,
    };
    t.check(right, || {
        let result = result_text(done.result);
        format!("{name}: the first call, {}, returned {result}", done.call)
    });
    let mut failed = (fails == Some(First)).then_some(off(0));
    for (i, ((other, _), waited)) in (1..).zip(others.iter().zip(&waited)) {
        let done = other.thread.finish()?;
        // Who comes next is theirs to settle; one of them it is.
        if fails == Some(Later) && failed.is_none() && told(&done) {
            failed = Some(off(i));
        } else {
            t.check(done.result == all, || {
                let result = result_text(done.result);
                format!("{name}: call {} beside it returned {result}", done.call)
            });
        }
        t.check(waited.is_some(), || {
            format!(
                "{name}: call {} went on while the first one's write was in flight",
                done.call
            )
        });
    }
    if fails == Some(Later) {
        let fired = later.fired(t)?;
        later.switch_off(t)?;
        t.check(fired == 1 && failed.is_some(), || {
            format!("{name}: {fired} writes failed, and none of the later calls was told")
        });
    }
    if let Some(Some(at)) = waited.first() {
        t.note(format!("{name}: the others waited in {at}"));
    }
    if place == Place::Same && count > 2 {
        last_of(t, &mut s, len, others)?;
    }
    if let Some(off) = failed {
        // Its error is told once more, by fsync, and then all is well again.
        let synced = s.open().fsync(t.world)?;
        t.check(synced == 0 || synced == -i64::from(libc::EIO), || {
            format!("{name}: fsync returned {}", result_text(synced))
        });
        s.writethrough(t, off, len)?;
    }
    s.check_whole(t, "after all calls")?;
    s.check_on_disk(t, &name, 0, off(count - 1) + len)?;
    Ok(s)
}

/// Which of them was the last is theirs to settle. That it is there whole is not; and the first one
/// was not the last.
fn last_of(t: &Test, s: &mut Subject, len: u64, calls: &[(Begun, u32)]) -> Result<(), Fail> {
    let mut seen = vec![0; len as usize];
    s.open()
        .file
        .read_exact_at(&mut seen, 0)
        .or_fail(|| "reading the block of all calls".into())?;
    let is = |version| pattern::first_difference(s.number, version, 0, &seen).is_none();
    match calls.iter().find(|(_, version)| is(*version)) {
        Some((_, version)) => s.put_version(*version, 0, len),
        None => t.fail("the block that all wrote holds what none of the later calls wrote"),
    }
    Ok(())
}
