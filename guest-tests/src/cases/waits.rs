// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The blocking matrix: while the device holds the write of one call, who waits for it and who
//! goes on. Beside a synchronous call, which has the inode lock, and beside an asynchronous one,
//! which has given it back.
//!
//! What is seen is told as a table (`waits` in results.json) and held against what the semantics
//! say. Where these leave it open it is told only. Then all of it again beside a call whose write
//! fails in the end: who waited has a right result of his own all the same, and does not hang.

mod deed;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use self::deed::Must::{self, GoOn, Open, Wait};
use self::deed::{Deed, Ready, What, deed};
use crate::aftermath::{self, Failed};
use crate::beside::Beside;
use crate::call::{Call, Done, OpenFile};
use crate::fate::{self, Fate, Holds};
use crate::flying::Caller;
use crate::pages;
use crate::scene::Stage;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, odd, result_text};
use crate::test::{Fail, OrFail, Test};
use crate::world::MOUNT;

/// Length of each file, in units: the length of the call, at its begin, whose folio is of that size, as the file was
/// evicted.
const FILE: u64 = 10;
/// In the call's page.
const SAME: u64 = 0;

/// The kind of call that is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Sync,
    Async,
}

impl Kind {
    fn word(self) -> &'static str {
        match self {
            Kind::Sync => "sync",
            Kind::Async => "async",
        }
    }
}

const EBUSY: i64 = -(libc::EBUSY as i64);
const EIO: i64 = -(libc::EIO as i64);

/// A synchronous call has the inode lock: whoever takes it waits, wherever in the file. Of an
/// asynchronous one only the page under writeback is left, and the dio count for whoever takes
/// blocks away.
#[rustfmt::skip]
fn deeds(u: u64) -> Vec<Deed> {
    let elsewhere = 4 * u;
    vec![
        deed("read-same", What::Look(|f, _| f.read_exact_at(&mut [0; 16], SAME)), Wait, Open),
        deed("read-elsewhere", What::Look(|f, u| f.read_exact_at(&mut [0; 16], 4 * u)), Wait, GoOn),
        deed("write-same", What::Change("write", SAME + 10, 1, |f, _| f.write_all_at(&[0x77], SAME + 10)), Wait, Wait),
        deed("write-elsewhere", What::Change("write", elsewhere, 1, |f, u| f.write_all_at(&[0x77], 4 * u)), Wait, GoOn),
        deed("writethrough-same", What::Writethrough(SAME), Wait, Wait),
        deed("writethrough-elsewhere", What::Writethrough(elsewhere), Wait, GoOn),
        deed("store-same", What::Store(SAME + 20), Wait, Wait),
        deed("store-elsewhere", What::Store(elsewhere + 20), GoOn, GoOn),
        deed("truncate", What::Change("truncate", 8 * u, 0, |f, u| f.set_len(8 * u)), Wait, Wait),
        deed("fallocate", What::Change("extend", FILE * u, u, |f, u| sys::fallocate(f, 0, FILE * u, u)), Wait, Wait),
        deed("fsync", What::Ask("fsync", File::sync_all), Wait, Wait),
        deed("syncfs", What::Ask("syncfs", sys::syncfs), Wait, Wait),
        deed("sync", What::Look(|_, _| { sys::sync(); Ok(()) }), Wait, Wait),
        deed("freeze", What::Freeze, Wait, Wait),
        deed("direct-read-same", What::DirectRead(SAME), Wait, Wait),
        deed("direct-read-elsewhere", What::DirectRead(elsewhere), Wait, GoOn),
        deed("direct-write-same", What::DirectWrite(SAME), Wait, Wait),
        deed("direct-write-elsewhere", What::DirectWrite(elsewhere), Wait, GoOn),
        deed("clone-source", What::Clone, Wait, Wait),
        // Not for a page that cannot be freed: it is left in the page cache.
        deed("reclaim", What::Look(|_, _| fs::write("/proc/sys/vm/drop_caches", "1")), GoOn, GoOn),
        Deed { result: EBUSY, ..deed("remount-read-only", What::Look(|_, _| odd::remount_read_only(MOUNT)), GoOn, GoOn) },
        Deed { result: EBUSY, ..deed("umount", What::Look(|_, _| sys::umount(MOUNT)), GoOn, GoOn) },
    ]
}

/// Runs the case beside a synchronous call.
pub fn beside_sync(t: &mut Test) -> Result<(), Fail> {
    all(t, Kind::Sync)
}

/// Runs it beside an asynchronous one.
pub fn beside_async(t: &mut Test) -> Result<(), Fail> {
    all(t, Kind::Async)
}

fn all(t: &Test, kind: Kind) -> Result<(), Fail> {
    let mut files = Vec::new();
    let shares = t.world.fact("reflink") == "yes";
    if !shares {
        t.note("blocks cannot be shared here: FICLONE was not tried");
    }
    if t.world.always_cow() {
        t.note("with always_cow there is no fallocate: it was not tried");
    }
    for fate in fate::BOTH {
        for deed in &deeds(t.world.unit()) {
            let refused = deed.name == "fallocate" && t.world.always_cow();
            if !refused && (shares || !matches!(deed.what, What::Clone)) {
                files.extend(one(t, kind, fate, deed)?);
            }
        }
        if kind == Kind::Sync {
            files.extend(signal(t, fate)?);
        }
    }
    check_after_remount(t, &mut files)
}

/// The call, in a thread of its own.
enum Held {
    Sync(Beside<Done>),
    Async(Caller),
}

impl Held {
    /// Starts it, with what the subject expects there now.
    fn start(t: &Test, s: &Subject, kind: Kind, fate: Fate) -> Held {
        let len = t.world.unit();
        match kind {
            Kind::Sync => Held::Sync(writethrough(t, s, SAME)),
            Kind::Async => Held::Async(Caller::start(t, s, fate.engine(t), SAME, len, 0)),
        }
    }

    fn finish(&self) -> Result<Done, Fail> {
        match self {
            Held::Sync(call) => call.finish(),
            Held::Async(caller) => caller.thread.finish(),
        }
    }
}

/// A call of a page by a thread of its own.
fn writethrough(t: &Test, s: &Subject, off: u64) -> Beside<Done> {
    let len = t.world.unit();
    let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
    let (pattern, flags) = ((s.number, s.version()), world.params.flag);
    let bytes = s.expect[off as usize..(off + len) as usize].to_vec();
    Beside::start(world, format!("a call at {off}"), move |gate| {
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
        let done =
            call.marked(|_| gate.inside(|| sys::pwritev2(&file.file, &[&bytes], off, flags)));
        // Closed before the result is known: what follows may be an umount.
        drop(file);
        done
    })
}

/// A deed beside a call. The files, as they must be after a remount.
fn one(t: &Test, kind: Kind, fate: Fate, deed: &Deed) -> Result<Vec<Subject>, Fail> {
    let must = match kind {
        Kind::Sync => deed.beside_sync,
        Kind::Async => deed.beside_async,
    };
    let (rule, len) = (fate.rule(t), t.world.unit());
    let mut s = Subject::written(t, &fate.name(deed.name), FILE * len)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let ready = Ready::new(t, &s, deed.what)?;
    s.evict(t)?;
    rule.switch_on(t)?;
    let without = s.expect.clone();
    s.put(SAME, len);
    let held = Held::start(t, &s, kind, fate);
    let with = s.expect.clone();
    let mut holds = Holds { with, without };
    let seen = rule.until_held(t).and_then(|()| {
        let thread = ready.start(t, &mut s, deed, kind, &mut holds)?;
        // Who may go on is given all the time; who must not, is looked at until it stands still.
        let waited = match must {
            GoOn if thread.goes_on() => None,
            _ => thread.waits(t)?,
        };
        // What was under writeback was not freed, whoever asked.
        let cached = pages::state(&s.open().file, SAME, len)?.cached;
        Ok((thread, waited, cached))
    });
    // Whatever was seen: neither must wait for ever.
    rule.release(t)?;
    let (thread, waited, cached) = seen?;
    let done = held.finish()?;
    let mut result = thread.finish()?;
    rule.switch_off(t)?;
    let what = format!("{} beside call {} ({})", deed.name, done.call, kind.word());
    judge(t, kind, fate, deed.name, must, waited.as_deref(), &what);
    // Told of the call's error it has done nothing; once more, and it does.
    let told = result == EIO && fate.fails() && deed.what.asks();
    if told {
        t.note(format!("{what} was told of its error"));
        result = ready.start(t, &mut s, deed, kind, &mut holds)?.finish()?;
    }
    t.check(result == deed.result, || {
        let again = if told { ", after an EIO" } else { "" };
        format!("{what} returned {}{again}", result_text(result))
    });
    fate.check_call(t, &what, &done, len);
    t.check(deed.name != "reclaim" || cached > 0, || {
        format!("{what}: the page that was under writeback is not in the page cache any more")
    });
    drop(ready);
    if fate.fails() {
        s.expect = holds.without;
        let failed = Failed {
            what,
            done,
            another: Some(another),
            told: told && deed.what.is_fsync(),
            after: holds.with,
        };
        return aftermath::look(t, Stage::new(s, SAME, len), failed);
    }
    drop(another);
    pages::report_twice(t.world, done.call, "after-call", &s.open().file, SAME, len)?;
    s.expect = holds.with;
    s.synced(t, &what)?;
    s.check_whole(t, &what)?;
    Ok(vec![s])
}

/// Who waits must not depend on how the write ends: the table is told once.
fn judge(
    t: &Test,
    kind: Kind,
    fate: Fate,
    name: &str,
    must: Must,
    waited: Option<&str>,
    what: &str,
) {
    let word = match must {
        Wait => "waits",
        GoOn => "goes-on",
        Open => "open",
    };
    if !fate.fails() {
        t.waited(kind.word(), name, waited, word);
    }
    match (waited, must) {
        (None, Wait) => t.fail(format!(
            "{what} went on while the call's write was in flight"
        )),
        (Some(place), GoOn) => t.fail(format!("{what} waited in {place}")),
        _ => {}
    }
}

/// A signal for the caller: the call is not interrupted, and returns all that it wrote, or its error.
fn signal(t: &Test, fate: Fate) -> Result<Vec<Subject>, Fail> {
    let len = t.world.unit();
    let mut s = Subject::written(t, &fate.name("signal"), FILE * len)?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    s.evict(t)?;
    let without = s.expect.clone();
    let rule = fate.rule(t);
    rule.switch_on(t)?;
    s.put(SAME, len);
    let call = writethrough(t, &s, SAME);
    let waited = rule.until_held(t).and_then(|()| {
        call.waits(t)?;
        let tid = call
            .gate
            .tid()
            .ok_or_else(|| Fail::Error("the caller did not begin".into()))?;
        odd::interrupt(tid).or_fail(|| "a signal".into())?;
        call.waits(t)
    });
    rule.release(t)?;
    let waited = waited?;
    let done = call.finish()?;
    rule.switch_off(t)?;
    let (kind, name) = (Kind::Sync, "the-call-with-a-signal");
    let what = format!("call {} with a signal", done.call);
    judge(t, kind, fate, name, Wait, waited.as_deref(), &what);
    fate.check_call(t, &what, &done, len);
    if !fate.fails() {
        s.check_call(t, &done, SAME, len)?;
        return Ok(vec![s]);
    }
    let failed = Failed {
        what,
        done,
        another: Some(another),
        told: false,
        after: std::mem::replace(&mut s.expect, without),
    };
    aftermath::look(t, Stage::new(s, SAME, len), failed)
}
