// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Something to do beside a call that is held: what it needs, what it returns, and what the file
//! holds afterwards.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use wtblk_shared::mark::{FileMark, Mark};

use super::{FILE, Kind};
use crate::beside::{Beside, Gate};
use crate::call::{Call, OpenFile};
use crate::fate::Holds;
use crate::subject::Subject;
use crate::sys::mapping::Mapping;
use crate::sys::{self, Pages};
use crate::test::{Fail, OrFail, Test};
use crate::world::World;

/// What the semantics say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    Wait,
    GoOn,
    Open,
}

/// What is done; each is given what it needs, the last of a function's words is the unit in bytes.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// Something to the file, told as a change of this kind, range and length.
    Change(&'static str, u64, u64, fn(&File, u64) -> io::Result<()>),
    /// Something that changes nothing.
    Look(fn(&File, u64) -> io::Result<()>),
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

impl What {
    /// Whether it asks the file for errors (who writes it back first, does): then it may be told of
    /// the call's, once, and has done nothing.
    pub fn asks(self) -> bool {
        use What::{Ask, Clone, DirectRead, DirectWrite};
        matches!(self, Ask(..) | DirectRead(_) | DirectWrite(_) | Clone)
    }

    /// Whether it is an fsync, which tells an open file.
    pub fn is_fsync(self) -> bool {
        matches!(self, What::Ask("fsync", _))
    }
}

/// Something to do beside a call.
pub struct Deed {
    /// Its name in the table.
    pub name: &'static str,
    /// What it is.
    pub what: What,
    /// What the semantics say beside a synchronous call.
    pub beside_sync: Must,
    /// And beside an asynchronous one.
    pub beside_async: Must,
    /// What it returns.
    pub result: i64,
}

pub const fn deed(name: &'static str, what: What, beside_sync: Must, beside_async: Must) -> Deed {
    Deed {
        name,
        what,
        beside_sync,
        beside_async,
        result: 0,
    }
}

/// What has to be there before the call.
pub struct Ready {
    map: Option<Arc<Mapping>>,
    direct: Option<Arc<OpenFile>>,
    other: Option<Arc<OpenFile>>,
}

impl Ready {
    /// Makes it ready.
    pub fn new(t: &Test, s: &Subject, what: What) -> Result<Ready, Fail> {
        let mut ready = Ready {
            map: None,
            direct: None,
            other: None,
        };
        match what {
            What::Store(_) => {
                let map = Mapping::new(&s.open().file, (FILE * t.world.unit()) as usize)
                    .or_fail(|| "mmap".into())?;
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

    /// Starts the deed. `holds` becomes what the file may hold when both are over.
    pub fn start(
        &self,
        t: &Test,
        s: &mut Subject,
        deed: &Deed,
        kind: Kind,
        holds: &mut Holds,
    ) -> Result<Beside<i64>, Fail> {
        let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
        let unit = world.unit();
        Ok(match deed.what {
            What::Change(what, off, len, work) => {
                holds.change(|bytes| after(deed.name, off, len, bytes));
                beside(world, deed.name, file, move |gate, file| {
                    file.change_told(world, what, off, len, |f| gate.inside(|| work(f, unit)))
                })
            }
            What::Look(work) => beside(world, deed.name, file, move |gate, file| {
                Ok(sys::result_of(gate.inside(|| work(&file.file, unit))))
            }),
            What::Ask(kind, work) => beside(world, deed.name, file, move |gate, file| {
                file.ask(world, kind, |f| gate.inside(|| work(f)))
            }),
            What::Writethrough(off) => {
                let write = PageWrite::new(s, kind, (off, unit), world.params.flag, holds)?;
                beside(world, deed.name, file, move |gate, file| {
                    write.run(world, test, gate, file)
                })
            }
            What::Store(at) => {
                let byte = !holds.with[at as usize];
                holds.change(|bytes| bytes[at as usize] = byte);
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
                    let mut pages = Pages::new(unit as usize).or_fail(|| "buffer".into())?;
                    let read = || file.file.read_exact_at(pages.bytes_mut(), off);
                    Ok(sys::result_of(gate.inside(read)))
                })
            }
            What::DirectWrite(off) => {
                let direct = self.direct.clone().expect("a file");
                let write = PageWrite::new(s, kind, (off, unit), 0, holds)?;
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
                    file.change_told(world, "reflink", 0, FILE * unit, |from| {
                        gate.inside(|| sys::clone_range(&other.file, from, 0, FILE * unit, 0))
                    })
                })
            }
        })
    }
}

/// What a change leaves in the file.
fn after(name: &str, off: u64, len: u64, bytes: &mut Vec<u8>) {
    match name {
        "truncate" => bytes.truncate(off as usize),
        "fallocate" => bytes.resize((off + len) as usize, 0),
        _ => bytes[off as usize..(off + len) as usize].fill(0x77),
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
    /// Of the subject's next version; `holds` gets it.
    fn new(
        s: &mut Subject,
        kind: Kind,
        (off, len): (u64, u64),
        flags: u32,
        holds: &mut Holds,
    ) -> Result<PageWrite, Fail> {
        let range = off as usize..(off + len) as usize;
        s.put(off, len);
        let mut pages = Pages::new(len as usize).or_fail(|| "buffer".into())?;
        pages.bytes_mut().copy_from_slice(&s.expect[range.clone()]);
        holds.change(|bytes| bytes[range.clone()].copy_from_slice(pages.bytes()));
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
        let len = self.pages.bytes().len() as u64;
        let write = |f: &File| {
            let bytes = self.pages.bytes();
            gate.inside(|| sys::pwritev2(f, &[bytes], self.off, self.flags))
        };
        let written = match self.kind {
            // The begin mark of a call tells extents, and to ask for these takes the inode lock:
            // it would wait before the write has begun.
            Kind::Sync => file.change(world, "write", self.off, len, write)?,
            Kind::Async => {
                let call = Call {
                    world,
                    test,
                    file,
                    off: self.off,
                    len,
                    flags: self.flags,
                    words: &[],
                    pattern: self.pattern,
                };
                call.marked(|_| write(&file.file))?.result
            }
        };
        Ok(if written == len as i64 { 0 } else { written })
    }
}
