// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The blocking matrix: while the device holds the write of one call, who waits for it and who
//! goes on. Beside a synchronous call, which has the inode lock, and beside an asynchronous one,
//! which has given it back.
//!
//! What is seen is told as a table (`waits` in results.json) and held against what the semantics
//! say. Where these leave it open it is told only.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use wtblk_shared::mark::{Control, FileMark, Mark};

use super::returns_after_io::until_held;
use crate::beside::{Beside, Gate};
use crate::call::{Call, Done, OpenFile};
use crate::flying::{Caller, Engine};
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::mapping::Mapping;
use crate::sys::{self, Pages, odd, result_text};
use crate::test::{Fail, OrFail, Test};
use crate::world::{MOUNT, World};

/// Length of the call, at the begin of the file. Its folio is of this size: the file was evicted.
const LEN: u64 = 4096;
/// Length of each file.
const FILE: u64 = 16 * LEN;
/// In the call's page, and in another one.
const SAME: u64 = 0;
const ELSEWHERE: u64 = 4 * LEN;

/// What the semantics say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Must {
    Wait,
    GoOn,
    Open,
}
use Must::{GoOn, Open, Wait};

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

    /// The rule of `guest-tests/scenarios/waits-beside-sync.toml` and `waits-beside-async.toml`.
    fn rule(self) -> &'static str {
        match self {
            Kind::Sync => "waits-sync",
            Kind::Async => "waits-async",
        }
    }
}

/// What is done; each is given what it needs.
#[derive(Clone, Copy, Debug)]
enum What {
    /// Something to the file, told as a change of this kind, range and length.
    Change(&'static str, u64, u64, fn(&File) -> io::Result<()>),
    /// Something that changes nothing.
    Look(fn(&File) -> io::Result<()>),
    /// Asks for errors, told as this kind.
    Ask(&'static str, fn(&File) -> io::Result<()>),
    /// A write of a page by a call with the flag.
    Writethrough(u64),
    /// A byte through a mapping.
    Store(u64),
    /// O_DIRECT, of a page.
    DirectRead(u64),
    DirectWrite(u64),
    /// Freezes the file system, and thaws it.
    Freeze,
    /// Makes the file's blocks blocks of another one as well.
    Clone,
}

/// Something to do beside a call.
struct Deed {
    name: &'static str,
    what: What,
    beside_sync: Must,
    beside_async: Must,
    /// What it returns.
    result: i64,
}

const fn deed(name: &'static str, what: What, beside_sync: Must, beside_async: Must) -> Deed {
    Deed {
        name,
        what,
        beside_sync,
        beside_async,
        result: 0,
    }
}

const EBUSY: i64 = -(libc::EBUSY as i64);

/// A synchronous call has the inode lock: whoever takes it waits, wherever in the file. Of an
/// asynchronous one only the page under writeback is left, and the dio count for whoever takes
/// blocks away.
#[rustfmt::skip]
const DEEDS: &[Deed] = &[
    deed("read-same", What::Look(|f| f.read_exact_at(&mut [0; 16], SAME)), Wait, Open),
    deed("read-elsewhere", What::Look(|f| f.read_exact_at(&mut [0; 16], ELSEWHERE)), Wait, GoOn),
    deed("write-same", What::Change("write", SAME + 10, 1, |f| f.write_all_at(&[0x77], SAME + 10)), Wait, Wait),
    deed("write-elsewhere", What::Change("write", ELSEWHERE, 1, |f| f.write_all_at(&[0x77], ELSEWHERE)), Wait, GoOn),
    deed("writethrough-same", What::Writethrough(SAME), Wait, Wait),
    deed("writethrough-elsewhere", What::Writethrough(ELSEWHERE), Wait, GoOn),
    deed("store-same", What::Store(SAME + 20), Wait, Wait),
    deed("store-elsewhere", What::Store(ELSEWHERE + 20), GoOn, GoOn),
    deed("truncate", What::Change("truncate", 8 * LEN, 0, |f| f.set_len(8 * LEN)), Wait, Wait),
    deed("fallocate", What::Change("extend", FILE, LEN, |f| sys::fallocate(f, 0, FILE, LEN)), Wait, Wait),
    deed("fsync", What::Ask("fsync", File::sync_all), Wait, Wait),
    deed("syncfs", What::Ask("syncfs", sys::syncfs), Wait, Wait),
    deed("sync", What::Look(|_| { sys::sync(); Ok(()) }), Wait, Wait),
    deed("freeze", What::Freeze, Wait, Wait),
    deed("direct-read-same", What::DirectRead(SAME), Wait, Wait),
    deed("direct-read-elsewhere", What::DirectRead(ELSEWHERE), Wait, GoOn),
    deed("direct-write-same", What::DirectWrite(SAME), Wait, Wait),
    deed("direct-write-elsewhere", What::DirectWrite(ELSEWHERE), Wait, GoOn),
    deed("clone-source", What::Clone, Wait, Wait),
    // Not for a page that cannot be freed: it is left in the page cache.
    deed("reclaim", What::Look(|_| fs::write("/proc/sys/vm/drop_caches", "1")), GoOn, GoOn),
    Deed { result: EBUSY, ..deed("remount-read-only", What::Look(|_| odd::remount_read_only(MOUNT)), GoOn, GoOn) },
    Deed { result: EBUSY, ..deed("umount", What::Look(|_| sys::umount(MOUNT)), GoOn, GoOn) },
];

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
    for deed in DEEDS {
        if matches!(deed.what, What::Clone) && !shares {
            t.note("blocks cannot be shared here: FICLONE was not tried");
            continue;
        }
        files.push(one(t, kind, deed)?);
    }
    if kind == Kind::Sync {
        files.push(signal(t)?);
    }
    check_after_remount(t, &mut files)
}

/// The call, in a thread of its own.
enum Held {
    Sync(Beside<Done>),
    Async(Caller),
}

impl Held {
    /// Starts it, with what the subject expects there now, and waits until the device holds its write.
    fn start(t: &Test, s: &Subject, kind: Kind) -> (Held, Result<(), Fail>) {
        let held = match kind {
            Kind::Sync => Held::Sync(writethrough(t, s, SAME)),
            Kind::Async => Held::Async(Caller::start(t, s, Engine::Aio, SAME, LEN, 0)),
        };
        (held, until_held(t))
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
    let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
    let (pattern, flags) = ((s.number, s.version()), world.params.flag);
    let bytes = s.expect[off as usize..(off + LEN) as usize].to_vec();
    Beside::start(world, format!("a call at {off}"), move |gate| {
        let call = Call {
            world,
            test,
            file: &file,
            off,
            len: LEN,
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

fn one(t: &Test, kind: Kind, deed: &Deed) -> Result<Subject, Fail> {
    let must = match kind {
        Kind::Sync => deed.beside_sync,
        Kind::Async => deed.beside_async,
    };
    let mut s = Subject::written(t, deed.name, FILE)?;
    let ready = Ready::new(t, &s, deed.what)?;
    s.evict(t)?;
    t.world
        .post(&Mark::Control(Control::Arm(Some(kind.rule().into()))))?;
    s.put(SAME, LEN);
    let (held, came) = Held::start(t, &s, kind);
    let mut expected = s.expect.clone();
    let seen = came.and_then(|()| {
        let thread = ready.start(t, &mut s, deed, kind, &mut expected)?;
        // Who may go on is given all the time; who must not, is looked at until it stands still.
        let waited = match must {
            GoOn if thread.goes_on() => None,
            _ => thread.waits(t)?,
        };
        // What was under writeback was not freed, whoever asked.
        let cached = pages::state(&s.open().file, SAME, LEN)?.cached;
        Ok((thread, waited, cached))
    });
    // Whatever was seen: neither must wait for ever.
    t.world
        .post(&Mark::Control(Control::Release(Some(kind.rule().into()))))?;
    let (thread, waited, cached) = seen?;
    let done = held.finish()?;
    let result = thread.finish()?;
    let what = format!("{} beside call {} ({})", deed.name, done.call, kind.word());
    judge(t, kind, deed.name, must, waited.as_deref(), &what);
    t.check(result == deed.result, || {
        format!("{what} returned {}", result_text(result))
    });
    t.check(done.result == LEN as i64, || {
        format!("{what}: the call returned {}", result_text(done.result))
    });
    t.check(deed.name != "reclaim" || cached > 0, || {
        format!("{what}: the page that was under writeback is not in the page cache any more")
    });
    pages::report_twice(t.world, done.call, "after-call", &s.open().file, SAME, LEN)?;
    drop(ready);
    s.expect = expected;
    s.synced(t, &what)?;
    s.check_whole(t, &what)?;
    Ok(s)
}

fn judge(t: &Test, kind: Kind, name: &str, must: Must, waited: Option<&str>, what: &str) {
    let word = match must {
        Wait => "waits",
        GoOn => "goes-on",
        Open => "open",
    };
    t.waited(kind.word(), name, waited, word);
    match (waited, must) {
        (None, Wait) => t.fail(format!(
            "{what} went on while the call's write was in flight"
        )),
        (Some(place), GoOn) => t.fail(format!("{what} waited in {place}")),
        _ => {}
    }
}

/// What has to be there before the call.
struct Ready {
    map: Option<Arc<Mapping>>,
    direct: Option<Arc<OpenFile>>,
    other: Option<Arc<OpenFile>>,
}

impl Ready {
    fn new(t: &Test, s: &Subject, what: What) -> Result<Ready, Fail> {
        let mut ready = Ready {
            map: None,
            direct: None,
            other: None,
        };
        match what {
            What::Store(_) => {
                let map = Mapping::new(&s.open().file, FILE as usize).or_fail(|| "mmap".into())?;
                ready.map = Some(Arc::new(map));
            }
            What::DirectRead(_) | What::DirectWrite(_) => {
                let file = OpenFile::open(t.world, s.path(), true)?;
                ready.direct = Some(Arc::new(file));
            }
            What::Clone => {
                let path = s.path().with_extension("copy");
                ready.other = Some(Arc::new(OpenFile::open(t.world, &path, false)?));
            }
            _ => {}
        }
        Ok(ready)
    }

    /// Starts the deed. `expected` becomes what the file holds when both are over.
    fn start(
        &self,
        t: &Test,
        s: &mut Subject,
        deed: &Deed,
        kind: Kind,
        expected: &mut Vec<u8>,
    ) -> Result<Beside<i64>, Fail> {
        let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
        Ok(match deed.what {
            What::Change(what, off, len, work) => {
                after(deed.name, off, len, expected);
                beside(world, deed.name, file, move |gate, file| {
                    file.change_told(world, what, off, len, |f| gate.inside(|| work(f)))
                })
            }
            What::Look(work) => beside(world, deed.name, file, move |gate, file| {
                Ok(sys::result_of(gate.inside(|| work(&file.file))))
            }),
            What::Ask(kind, work) => beside(world, deed.name, file, move |gate, file| {
                file.ask(world, kind, |f| gate.inside(|| work(f)))
            }),
            What::Writethrough(off) => {
                let write = PageWrite::new(s, kind, off, world.params.flag, expected)?;
                beside(world, deed.name, file, move |gate, file| {
                    write.run(world, test, gate, file)
                })
            }
            What::Store(at) => {
                let byte = !expected[at as usize];
                expected[at as usize] = byte;
                let map = self.map.clone().expect("a mapping");
                beside(world, deed.name, file, move |gate, file| {
                    file.change_told(world, "mmap", at, 1, |_| {
                        gate.inside(|| map.store(at as usize, byte));
                        Ok(())
                    })
                })
            }
            What::DirectRead(off) => {
                let direct = self.direct.clone().expect("a file");
                beside(world, deed.name, direct, move |gate, file| {
                    let mut pages = Pages::new(LEN as usize).or_fail(|| "buffer".into())?;
                    let read = || file.file.read_exact_at(pages.bytes_mut(), off);
                    Ok(sys::result_of(gate.inside(read)))
                })
            }
            What::DirectWrite(off) => {
                let direct = self.direct.clone().expect("a file");
                let write = PageWrite::new(s, kind, off, 0, expected)?;
                beside(world, deed.name, direct, move |gate, file| {
                    write.run(world, test, gate, file)
                })
            }
            What::Freeze => beside(world, deed.name, file, move |gate, file| {
                let dev = file.dev;
                world.post(&Mark::File(FileMark::Freezing { dev }))?;
                let result = sys::result_of(gate.inside(|| sys::freeze(&file.file)));
                if result == 0 {
                    world.post(&Mark::File(FileMark::Frozen { dev }))?;
                    world.post(&Mark::File(FileMark::Thawing { dev }))?;
                    sys::thaw(&file.file).or_fail(|| "FITHAW".into())?;
                }
                Ok(result)
            }),
            What::Clone => {
                let other = self.other.clone().expect("a file");
                beside(world, deed.name, file, move |gate, file| {
                    // The source's blocks are shared from then on: that is a change of it, too.
                    file.change_told(world, "reflink", 0, FILE, |from| {
                        gate.inside(|| sys::clone_range(&other.file, from, 0, FILE, 0))
                    })
                })
            }
        })
    }
}

/// What a change leaves in the file.
fn after(name: &str, off: u64, len: u64, expected: &mut Vec<u8>) {
    match name {
        "truncate" => expected.truncate(off as usize),
        "fallocate" => expected.resize((off + len) as usize, 0),
        _ => expected[off as usize..(off + len) as usize].fill(0x77),
    }
}

fn beside(
    world: &'static World,
    name: &str,
    file: Arc<OpenFile>,
    work: impl FnOnce(&Gate, &OpenFile) -> Result<i64, Fail> + Send + 'static,
) -> Beside<i64> {
    Beside::start(world, name, move |gate| {
        let result = work(gate, &file);
        // Closed before the result is known: what follows may be an umount.
        drop(file);
        result
    })
}

/// A write of a page, to be made by another thread.
struct PageWrite {
    kind: Kind,
    off: u64,
    flags: u32,
    pattern: (u32, u32),
    pages: Pages,
}

impl PageWrite {
    /// Of the subject's next version; `expected` gets it.
    fn new(
        s: &mut Subject,
        kind: Kind,
        off: u64,
        flags: u32,
        expected: &mut [u8],
    ) -> Result<PageWrite, Fail> {
        let range = off as usize..(off + LEN) as usize;
        s.put(off, LEN);
        let mut pages = Pages::new(LEN as usize).or_fail(|| "buffer".into())?;
        pages.bytes_mut().copy_from_slice(&s.expect[range.clone()]);
        expected[range].copy_from_slice(pages.bytes());
        Ok(PageWrite {
            kind,
            off,
            flags,
            pattern: (s.number, s.version()),
            pages,
        })
    }

    /// 0 where it wrote all of it.
    fn run(
        &self,
        world: &'static World,
        test: &'static str,
        gate: &Gate,
        file: &OpenFile,
    ) -> Result<i64, Fail> {
        let write = |f: &File| {
            let bytes = self.pages.bytes();
            gate.inside(|| sys::pwritev2(f, &[bytes], self.off, self.flags))
        };
        let written = match self.kind {
            // The begin mark of a call tells extents, and to ask for these takes the inode lock:
            // it would wait before the write has begun.
            Kind::Sync => file.change(world, "write", self.off, LEN, write)?,
            Kind::Async => {
                let call = Call {
                    world,
                    test,
                    file,
                    off: self.off,
                    len: LEN,
                    flags: self.flags,
                    words: &[],
                    pattern: self.pattern,
                };
                call.marked(|_| write(&file.file))?.result
            }
        };
        Ok(if written == LEN as i64 { 0 } else { written })
    }
}

/// A signal for the caller: the call is not interrupted, and returns all that it wrote.
fn signal(t: &Test) -> Result<Subject, Fail> {
    let mut s = Subject::written(t, "signal", FILE)?;
    s.evict(t)?;
    let rule = Kind::Sync.rule();
    t.world
        .post(&Mark::Control(Control::Arm(Some(rule.into()))))?;
    s.put(SAME, LEN);
    let call = writethrough(t, &s, SAME);
    let waited = until_held(t).and_then(|()| {
        call.waits(t)?;
        let tid = call
            .gate
            .tid()
            .ok_or_else(|| Fail::Error("the caller did not begin".into()))?;
        odd::interrupt(tid).or_fail(|| "a signal".into())?;
        call.waits(t)
    });
    t.world
        .post(&Mark::Control(Control::Release(Some(rule.into()))))?;
    let waited = waited?;
    let done = call.finish()?;
    let what = format!("call {} with a signal", done.call);
    judge(
        t,
        Kind::Sync,
        "the-call-with-a-signal",
        Wait,
        waited.as_deref(),
        &what,
    );
    s.check_call(t, &done, SAME, LEN)?;
    Ok(s)
}
