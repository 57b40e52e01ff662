// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The caller is killed while the device holds its write: in the call's last wait, in its middle, or with
//! an asynchronous call on its way. A synchronous call's process stays until the write is over; nothing is left in
//! writeback, and what was copied is on the disk.
//!
//! The caller is a process of its own: this program once more, with the tag of the thread that
//! started it.

use std::fs::File;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use super::returns_after_io::until_held;
use crate::aftermath::others_told;
use crate::beside::LIMIT;
use crate::call::OpenFile;
use crate::flying::ASYNC;
use crate::page_flags;
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::uffd::{FaultingBuffer, PAGE};
use crate::sys::{self, Pages, aio, result_text, uring};
use crate::task::{self, LOOKS};
use crate::test::{Fail, OrFail, Test};
use crate::versions::Versions;
use crate::world::MOUNT;

/// The first word of the child's command line.
pub const CHILD: &str = "--writethrough";
/// The rules of `guest-tests/scenarios/killed.toml`.
const HOLD: &str = "killed-held";
const FAIL: &str = "killed-fails";
/// Length of the call: several pages, the last one a part.
const LEN: u64 = 3 * 4096 + 100;
/// Length of the file.
const FILE: u64 = 16 * 4096;
/// Length of a call that stops in its middle, and of its file.
pub const MIDDLE: u64 = 4 << 20;
/// Where its buffer has no page: in the second chunk of 2 MiB, which is what the kernel takes at a time, so that
/// the first one is collected.
pub const MISSING: usize = (3 << 20) + PAGE;
/// How long the child waits for an asynchronous call: it is killed long before.
const CHILD_WAITS: Duration = Duration::from_secs(60);
/// Between two looks at a process that somebody else has to wake.
const POLL: Duration = Duration::from_millis(1);

/// How the child makes its call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// pwritev2, which waits for its write.
    Sync,
    /// The same from a buffer with a page that never comes: it stops while it copies.
    Middle,
    Aio,
    Uring,
}

impl Way {
    const ALL: [Way; 4] = [Way::Sync, Way::Middle, Way::Aio, Way::Uring];

    fn word(self) -> &'static str {
        match self {
            Way::Sync => "sync",
            Way::Middle => "middle",
            Way::Aio => "aio",
            Way::Uring => "uring",
        }
    }

    fn len(self) -> u64 {
        match self {
            Way::Middle => MIDDLE,
            _ => LEN,
        }
    }

    fn is_async(self) -> bool {
        matches!(self, Way::Aio | Way::Uring)
    }

    /// The fact without which it cannot be.
    fn needs(self) -> Option<&'static str> {
        match self {
            Way::Sync => None,
            Way::Middle => Some("userfaultfd"),
            Way::Aio => Some("aio"),
            Way::Uring => Some("io_uring"),
        }
    }
}

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    for rule in [HOLD, FAIL] {
        t.world
            .post(&Mark::Control(Control::Disarm(Some(rule.into()))))?;
    }
    let mut files = Vec::new();
    for way in Way::ALL {
        if let Some(fact) = way.needs().filter(|fact| t.world.fact(fact) != "yes") {
            let (way, is) = (way.word(), t.world.fact(fact));
            t.note(format!("{way}: not tried, {fact} is {is}"));
            continue;
        }
        for (name, rule) in [("held", HOLD), ("fails", FAIL)] {
            files.push(one(t, &format!("{}-{name}", way.word()), way, rule)?);
        }
    }
    // io_uring closes the file of a process that is gone when it comes to it.
    for s in &mut files {
        s.close();
    }
    until_unused(t)?;
    for s in &mut files {
        s.reopen(t)?;
    }
    check_after_remount(t, &mut files)
}

/// A file whose first mapping is a block, but no less than a page, and whose rest is allocated: the call's first bio
/// is out while the second is collected.
pub fn stands_in_the_middle(t: &Test, name: &str) -> Result<Subject, Fail> {
    let mut s = Subject::create(t, name)?;
    s.allocate(t, 0, MIDDLE)?;
    // Two mappings in one page would make the writer wait for the first one's bio.
    s.prepare(t, 0, t.world.bsize.max(PAGE as u64))?;
    Ok(s)
}

fn one(t: &Test, name: &str, way: Way, rule: &str) -> Result<Subject, Fail> {
    let len = way.len();
    let mut s = match way {
        Way::Middle => stands_in_the_middle(t, name)?,
        _ => Subject::written(t, name, FILE)?,
    };
    s.evict(t)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    t.world
        .post(&Mark::Control(Control::Arm(Some(rule.into()))))?;
    let version = s.next_version();
    let mut versions = Versions::from(&s);
    versions.add_call(&mut s, version, 0, len);
    let mut seen = Ok(());
    let mut call = s.call(t, 0, len, 0);
    if way.is_async() {
        call.words = &[ASYNC];
    }
    let done = call.marked(|_| {
        seen = kill(t, &s, way, rule);
        // Nobody took the result.
        -i64::from(libc::EINTR)
    })?;
    seen?;
    let what = format!("{name}: call {} of a process that was killed", done.call);
    let file = &s.open().file;
    let state = pages::report_twice(t.world, done.call, "after-call", file, 0, len)?;
    t.check(state.writeback == 0, || {
        format!(
            "{what}: after it {} pages stay in writeback",
            state.writeback
        )
    });
    page_flags::check(t, &what, done.call, s.open(), 0, len)?;
    let synced = s.open().fsync(t.world)?;
    let eio = -i64::from(libc::EIO);
    let allowed = synced == 0 || (rule == FAIL && synced == eio);
    t.check(allowed, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    t.note(format!("{what}: fsync returned {}", result_text(synced)));
    others_told(t, &what, &s, &another, synced)?;
    drop(another);
    s.check_evicts(t, &what);
    match (way, rule) {
        // How far it came nobody knows.
        (Way::Middle, _) => versions.check(t, &s, &what)?,
        (_, HOLD) => {
            s.put_version(version, 0, len);
            s.check_whole(t, &what)?;
        }
        // Nothing of the write was stored.
        _ => s.check_whole(t, &what)?,
    }
    s.writethrough(t, 0, len)?;
    Ok(s)
}

/// The child's life, and what is left of its write.
fn kill(t: &Test, s: &Subject, way: Way, rule: &str) -> Result<(), Fail> {
    let mut child = start(t, s, way)?;
    let killed = until_held(t)
        .and_then(|()| match way {
            Way::Middle => until_in_the_middle(&mut child),
            _ => Ok(()),
        })
        .and_then(|()| {
            child.kill().or_fail(|| "kill".into())?;
            let gone = stays(t, &mut child)?;
            // A synchronous call cannot go before its write is over: the kernel waits for that without
            // heed of signals. With an asynchronous one it may.
            match gone {
                Some(how) if !way.is_async() => Err(Fail::Error(format!(
                    "the process went ({how}) while its write was held"
                ))),
                gone => Ok(gone),
            }
        });
    // Whatever was seen: it must not wait for ever.
    t.world
        .post(&Mark::Control(Control::Release(Some(rule.into()))))?;
    let gone = t
        .world
        .limited("wait", t.world.params.probe, move || child.wait());
    let how = gone?.or_fail(|| "wait".into())?;
    if way.is_async() {
        let did = match killed? {
            Some(_) => "went while its write was held",
            None => "stayed until its write was over",
        };
        t.note(format!("{}: the process {did}", way.word()));
    } else {
        killed?;
    }
    use std::os::unix::process::ExitStatusExt;
    t.check(how.signal() == Some(libc::SIGKILL), || {
        format!("the process that was killed ended with {how}")
    });
    pages::settle(&s.open().file, 0, way.len(), t.world.params.probe / 4)?;
    Ok(())
}

/// Whether it is still there after so many looks.
fn stays(t: &Test, child: &mut Child) -> Result<Option<ExitStatus>, Fail> {
    for _ in 0..LOOKS {
        t.world.note("looking at the child");
        if let Some(how) = child.try_wait().or_fail(|| "wait".into())? {
            return Ok(Some(how));
        }
    }
    Ok(None)
}

/// Waits until the child stands at the page that is missing.
fn until_in_the_middle(child: &mut Child) -> Result<(), Fail> {
    let begun = Instant::now();
    while begun.elapsed() < LIMIT {
        if task::place_of(child.id()).contains("userfault") {
            return Ok(());
        }
        if let Some(how) = child.try_wait().or_fail(|| "wait".into())? {
            return Err(Fail::Error(format!("the process went by itself ({how})")));
        }
        // State polling inside a limit; nothing is ordered by this sleep.
        std::thread::sleep(POLL);
    }
    let place = task::place_of(child.id());
    Err(Fail::Error(format!(
        "the process does not stop in the middle of its call, but in {place}"
    )))
}

/// Unmounts as soon as nobody uses the file system any more, and mounts again.
fn until_unused(t: &Test) -> Result<(), Fail> {
    let begun = Instant::now();
    loop {
        let umount = t
            .world
            .limited("umount", t.world.params.probe * 4, || sys::umount(MOUNT))?;
        match umount {
            Ok(()) => return t.world.mount(),
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < LIMIT => {}
            Err(e) => return Err(Fail::Error(format!("umount: {e}"))),
        }
        // State polling inside a limit; nothing is ordered by this sleep.
        std::thread::sleep(POLL);
    }
}

/// Starts it. It has the I/O priority of this thread, which is the call's tag.
fn start(t: &Test, s: &Subject, way: Way) -> Result<Child, Fail> {
    Command::new("/proc/self/exe")
        .args([CHILD, way.word()])
        .arg(s.path())
        .args([t.world.params.flag, s.number, s.version()].map(|n| n.to_string()))
        .stdin(Stdio::null())
        .spawn()
        .or_fail(|| "starting a process".into())
}

/// What the child does: one call, and its result is the exit code (0: all of it was written).
pub fn child(words: &[String]) -> ExitCode {
    let number = |i: usize| words.get(i).and_then(|w| w.parse::<u32>().ok());
    let way = |w: &String| Way::ALL.into_iter().find(|way| way.word() == w);
    let (Some(way), Some(path), Some(flag), Some(file), Some(version)) = (
        words.first().and_then(way),
        words.get(1),
        number(2),
        number(3),
        number(4),
    ) else {
        return ExitCode::from(2);
    };
    let Ok(target) = File::options().write(true).open(path) else {
        return ExitCode::from(3);
    };
    let fill = |off, bytes: &mut [u8]| pattern::fill(file, version, off, bytes);
    match write(way, &target, flag, fill) {
        Ok(n) if n == way.len() as i64 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(1),
        Err(_) => ExitCode::from(4),
    }
}

fn write(
    way: Way,
    target: &File,
    flag: u32,
    fill: impl Fn(u64, &mut [u8]),
) -> std::io::Result<i64> {
    let len = way.len() as usize;
    if way == Way::Middle {
        let buffer = FaultingBuffer::new(len, MISSING, fill)?;
        return Ok(buffer.pwritev2(target, len, 0, flag));
    }
    let mut pages = Pages::new(len.next_multiple_of(PAGE))?;
    fill(0, &mut pages.bytes_mut()[..len]);
    match way {
        Way::Aio => {
            let mut writes = aio::Writes::submit(target, pages, len, &[0], None, flag)?;
            let events = writes.collect(CHILD_WAITS)?;
            Ok(events.first().map_or(0, |event| event.1))
        }
        Way::Uring => uring::Write::submit(target, pages, len, 0, None, flag)?.collect(CHILD_WAITS),
        Way::Sync | Way::Middle => Ok(sys::pwritev2(target, &[&pages.bytes()[..len]], 0, flag)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_has_a_word_of_its_own() {
        for (i, way) in Way::ALL.into_iter().enumerate() {
            let found = Way::ALL.into_iter().position(|w| w.word() == way.word());
            assert_eq!(found, Some(i));
        }
    }

    #[test]
    fn a_child_that_was_told_nothing_of_use_says_so() {
        let child = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            format!("{:?}", child(&words))
        };
        let wrong = format!("{:?}", ExitCode::from(2));
        assert_eq!(child(&[]), wrong);
        assert_eq!(child(&["by-hand", "/tmp/x", "0", "1", "1"]), wrong);
    }
}
