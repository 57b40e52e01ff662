// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A scene: a file that was prepared, and one call on it. [`Play`] makes the call as it is, then,
//! each time on a fresh file, with requests of it failing ([`crate::aftermath`]).
//!
//! A case gets all of this by one line. The rules are those of
//! `guest-tests/scenarios/error-points.toml`, which a case's scenario is a link to.

use std::any::Any;
use std::sync::Arc;

use wtblk_shared::pattern;

use crate::aftermath::{self, Point};
use crate::beside::Gate;
use crate::call::{Call, Done, OpenFile};
use crate::flying::{ASYNC, Engine};
use crate::pages;
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount, rounded};
use crate::sys::mapping::Mapping;
use crate::sys::{self, Pages, result_text};
use crate::test::{Fail, OrFail, Test};
use crate::world::World;

/// Counts the data writes of a call.
const COUNTER: &str = "points-count";

/// What is there before the call, and what the call is.
pub struct Stage {
    /// The file.
    pub subject: Subject,
    /// Offset of the call.
    pub off: u64,
    /// Length of the call.
    pub len: u64,
    /// Where its bytes come from.
    pub source: Source,
    /// How it is submitted; `None`: by a synchronous system call. An asynchronous call has one buffer.
    pub engine: Option<Engine>,
    /// The version of the pattern that it writes; `None`: the next one.
    pub version: Option<u32>,
    /// What the disk holds (in the place of [`Subject::expect`]), where dirty pages hold more.
    pub older: Option<Vec<u8>>,
    /// Whether pages of the call's folios may stay dirty.
    pub dirty_beside: bool,
    /// Whether some page has to.
    pub stays_dirty: bool,
    /// Files that must stay as they are.
    pub others: Vec<Subject>,
    /// Mappings that are to be there meanwhile.
    pub keep: Vec<Arc<dyn Any + Send + Sync>>,
}

/// Where a call's bytes come from.
#[derive(Clone)]
pub enum Source {
    /// One buffer, cut into parts of these lengths; empty: not cut.
    Parts(Vec<u64>),
    /// A mapping of the file itself, from this byte on.
    Mapped(Arc<Mapping>, u64),
}

impl Stage {
    /// A call from one buffer, with nothing beside.
    pub fn new(subject: Subject, off: u64, len: u64) -> Stage {
        Stage {
            subject,
            off,
            len,
            source: Source::Parts(Vec::new()),
            engine: None,
            version: None,
            older: None,
            dirty_beside: false,
            stays_dirty: false,
            others: Vec::new(),
            keep: Vec::new(),
        }
    }

    /// The same, asynchronous.
    pub fn by(self, engine: Engine) -> Stage {
        Stage {
            engine: Some(engine),
            ..self
        }
    }

    /// Expects what the call writes, and gives what makes it.
    pub fn caller(&mut self, t: &Test) -> Caller {
        let version = match self.version {
            Some(version) => version,
            None => self.subject.next_version(),
        };
        self.subject.put_version(version, self.off, self.len);
        Caller {
            world: t.world,
            test: t.name,
            file: Arc::clone(self.subject.open()),
            off: self.off,
            len: self.len,
            pattern: (self.subject.number, version),
            source: self.source.clone(),
            engine: self.engine,
        }
    }
}

/// Makes the call; may go to another thread.
pub struct Caller {
    world: &'static World,
    test: &'static str,
    file: Arc<OpenFile>,
    off: u64,
    len: u64,
    pattern: (u32, u32),
    source: Source,
    engine: Option<Engine>,
}

impl Caller {
    /// Makes it, to its end; of an asynchronous one only the submission is inside of the gate.
    pub fn make(self, gate: &Gate) -> Result<Done, Fail> {
        let (file, off) = (Arc::clone(&self.file), self.off);
        let call = Call {
            world: self.world,
            test: self.test,
            file: &file,
            off,
            len: self.len,
            flags: self.world.params.flag,
            words: if self.engine.is_some() { &[ASYNC] } else { &[] },
            pattern: self.pattern,
        };
        if let Some(engine) = self.engine {
            return call.submit(engine, gate)?.finish();
        }
        let (file, flags, len) = (&file.file, call.flags, self.len as usize);
        match &self.source {
            Source::Parts(lengths) => {
                let mut pages = Pages::new(len.next_multiple_of(4096).max(4096))
                    .or_fail(|| "buffer of a call".into())?;
                let (number, version) = self.pattern;
                pattern::fill(number, version, off, &mut pages.bytes_mut()[..len]);
                let parts = cut(&pages.bytes()[..len], lengths);
                call.marked(|_| gate.inside(|| sys::pwritev2(file, &parts, off, flags)))
            }
            Source::Mapped(map, from) => {
                let from = *from as usize;
                call.marked(|_| gate.inside(|| map.pwritev2(file, from, len, off, flags)))
            }
        }
    }
}

/// Cuts into parts of these lengths; what is left is the last part.
fn cut<'a>(whole: &'a [u8], lengths: &[u64]) -> Vec<&'a [u8]> {
    let mut parts = Vec::new();
    let mut rest = whole;
    for &length in lengths {
        let (part, behind) = rest.split_at((length as usize).min(rest.len()));
        parts.push(part);
        rest = behind;
    }
    if !rest.is_empty() || parts.is_empty() {
        parts.push(rest);
    }
    parts
}

/// The scenes of a case. One remount at their end is for the files of all.
pub struct Play<'a> {
    t: &'a Test,
    files: Vec<Subject>,
}

impl<'a> Play<'a> {
    /// No scene yet.
    pub fn new(t: &'a Test) -> Play<'a> {
        Play {
            t,
            files: Vec::new(),
        }
    }

    /// Plays a scene: the clean path, then each error point on a fresh file. `make` prepares a file
    /// of the name it is given.
    pub fn scene(
        &mut self,
        name: &str,
        make: impl Fn(&Test, &str) -> Result<Stage, Fail>,
    ) -> Result<(), Fail> {
        let requests = self.clean(name, &make)?;
        if requests == 0 {
            // Without tags nobody knows the requests of a call whose place is not known before.
            self.t.note(format!("{name}: no error points without tags"));
            return Ok(());
        }
        let points = aftermath::points(requests);
        points
            .into_iter()
            .try_for_each(|point| self.point(name, point, &make))
    }

    /// One more error point of a scene.
    pub fn point(
        &mut self,
        name: &str,
        point: Point,
        make: impl FnOnce(&Test, &str) -> Result<Stage, Fail>,
    ) -> Result<(), Fail> {
        let file = format!("{name}-{}", point.rule());
        let stage = make(self.t, &file)?;
        let files = aftermath::error_point(self.t, &file, stage, point)?;
        self.files.extend(files);
        Ok(())
    }

    /// The clean path only; how many data requests the call had.
    pub fn clean(
        &mut self,
        name: &str,
        make: impl FnOnce(&Test, &str) -> Result<Stage, Fail>,
    ) -> Result<u32, Fail> {
        let mut stage = make(self.t, name)?;
        let requests = clean(self.t, name, &mut stage)?;
        self.add(stage);
        Ok(requests)
    }

    /// A file that is over, to be compared after the remount.
    pub fn add(&mut self, stage: Stage) {
        self.files.push(stage.subject);
        self.files.extend(stage.others);
    }

    /// Remounts and compares.
    pub fn end(mut self) -> Result<(), Fail> {
        check_after_remount(self.t, &mut self.files)
    }
}

/// Makes the call, with nothing wrong; how many data requests it had.
fn clean(t: &Test, name: &str, stage: &mut Stage) -> Result<u32, Fail> {
    let counter = Rule::named(COUNTER);
    counter.switch_on(t)?;
    let caller = stage.caller(t);
    let done = caller.make(&Gate::default())?;
    let requests = counter.fired(t)?;
    counter.switch_off(t)?;
    let what = format!("{name}: call {}", done.call);
    if done.result != stage.len as i64 {
        return Err(Fail::Error(format!(
            "{what} returned {}, expected {}",
            result_text(done.result),
            stage.len
        )));
    }
    t.check(requests > 0 || !t.world.tags, || {
        format!("{what} sent nothing to the device")
    });
    check_done(t, stage, &what, &done)?;
    // With its mapping a page cannot leave the page cache.
    stage.keep.clear();
    stage.source = Source::Parts(Vec::new());
    let synced = stage.subject.open().fsync(t.world)?;
    t.check(synced == 0, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    let s = &stage.subject;
    if stage.dirty_beside {
        s.open().tell_pages(t.world, "after-fsync")?;
    }
    s.check_whole(t, "after fsync")?;
    s.evict(t)?;
    s.check_whole(t, "read from the disk")?;
    for other in &stage.others {
        other.check_whole(t, "beside the call")?;
    }
    Ok(requests)
}

/// What must be after a call that succeeded.
pub fn check_done(t: &Test, stage: &Stage, what: &str, done: &Done) -> Result<(), Fail> {
    let s = &stage.subject;
    if !stage.dirty_beside {
        return s.check_call(t, done, stage.off, stage.len);
    }
    if t.world.fact("cachestat") == "yes" {
        let (from, to) = rounded(t.world.unit(), stage.off, stage.len);
        let file = &s.open().file;
        pages::report_twice(t.world, done.call, "after-call", file, from, to - from)?;
        let after = pages::state(file, 0, s.end())?;
        t.check(after.dirty > 0 || !stage.stays_dirty, || {
            format!("{what}: no page is dirty any more, although blocks beside the call's were")
        });
    }
    s.check_on_disk(t, what, stage.off, stage.len)?;
    s.check_whole(t, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_cut_into_parts() {
        let whole = [1, 2, 3, 4, 5];
        assert_eq!(cut(&whole, &[]), [&whole[..]]);
        assert_eq!(cut(&whole, &[2, 0, 1]), [&[1, 2][..], &[], &[3], &[4, 5]]);
        assert_eq!(cut(&whole, &[5, 0]), [&whole[..], &[]]);
        assert_eq!(cut(&[], &[0, 0]), [&[][..], &[]]);
    }
}
