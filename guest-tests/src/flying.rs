// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Asynchronous calls: submitted by AIO or io_uring, over when the completion event is there.

use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};

use wtblk_shared::pattern;
use wtblk_shared::tag::Tag;

use crate::beside::{Beside, Gate, LIMIT};
use crate::call::{Begun, Call, Done};
use crate::subject::Subject;
use crate::sys::{Pages, aio, uring};
use crate::test::{Fail, OrFail, Test};

/// The word of the begin mark.
pub const ASYNC: &str = "async";

/// How calls are submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `io_submit(2)`.
    Aio,
    /// `io_uring_enter(2)`: the kernel's worker makes the call.
    Uring,
}

/// io_uring where the kernel has it; else AIO, with a note.
pub fn uring_or_aio(t: &Test) -> Engine {
    match t.world.fact("io_uring") {
        "yes" => Engine::Uring,
        is => {
            t.note_once(format!("by AIO alone: io_uring is {is}"));
            Engine::Aio
        }
    }
}

/// A call on its way; over when it was waited for.
pub struct Flying<'a> {
    call: Call<'a>,
    begun: Begun,
    way: Way,
}

enum Way {
    Aio(aio::Writes),
    Uring(Box<uring::Write>),
    /// The submission said so.
    Refused(i64),
}

impl<'a> Call<'a> {
    /// Begins the call and submits it. Its priority goes with the request, so that the tag is right
    /// whoever sends its bios.
    pub fn submit(self, engine: Engine, gate: &Gate) -> Result<Flying<'a>, Fail> {
        let len = self.len as usize;
        let mut pages = Pages::new(len.next_multiple_of(4096).max(4096))
            .or_fail(|| "buffer of a call".into())?;
        let (number, version) = self.pattern;
        pattern::fill(number, version, self.off, &mut pages.bytes_mut()[..len]);
        let begun = self.begin()?;
        // The thread's own tag would hide that the request's is lost.
        self.world.untag_thread();
        let ioprio = begun.tag.map(Tag::ioprio);
        let (file, off, flags) = (&self.file.file, self.off, self.flags);
        let submitted = gate.inside(|| match engine {
            Engine::Aio => {
                aio::Writes::submit(file, pages, len, &[off], ioprio, flags).map(Way::Aio)
            }
            Engine::Uring => uring::Write::submit(file, pages, len, off, ioprio, flags)
                .map(|write| Way::Uring(Box::new(write))),
        });
        let way = submitted
            .unwrap_or_else(|e| Way::Refused(-i64::from(e.raw_os_error().unwrap_or(libc::EIO))));
        Ok(Flying {
            call: self,
            begun,
            way,
        })
    }
}

impl Flying<'_> {
    /// Waits for the completion event and ends the call.
    pub fn finish(mut self) -> Result<Done, Fail> {
        let result = match &mut self.way {
            // One was submitted, so there is one event.
            Way::Aio(writes) => writes.collect(LIMIT).map(|events| events[0].1),
            Way::Uring(write) => write.collect(LIMIT),
            Way::Refused(result) => Ok(*result),
        };
        match result {
            Ok(result) => self.call.over(&self.begun, result),
            Err(e) => Err(Fail::Hung(format!(
                "call {}: no completion event in {} s ({e})",
                self.begun.call,
                LIMIT.as_secs()
            ))),
        }
    }
}

/// An asynchronous call in a thread of its own, since a submission may wait although it should not.
pub struct Caller {
    /// The thread; its gate is about the submission.
    pub thread: Beside<Done>,
    number: Receiver<u64>,
}

impl Caller {
    /// Starts it, with what the subject expects there now.
    pub fn start(t: &Test, s: &Subject, engine: Engine, off: u64, len: u64, more: u32) -> Caller {
        let (world, test, file) = (t.world, t.name, Arc::clone(s.open()));
        let pattern = (s.number, s.version());
        let (tell, number) = mpsc::channel();
        let what = format!("the {engine:?} call at {off}");
        let thread = Beside::start(world, what, move |gate| {
            let call = Call {
                world,
                test,
                file: &file,
                off,
                len,
                flags: world.params.flag | more,
                words: &[ASYNC],
                pattern,
            };
            let flying = call.submit(engine, gate)?;
            let _ = tell.send(flying.begun.call);
            let done = flying.finish();
            // Closed before the result is known: what follows may be an umount.
            drop(file);
            done
        });
        Caller { thread, number }
    }

    /// Its number, once it is submitted; or where the submission waits.
    pub fn submitted(&self, t: &Test) -> Result<Result<u64, String>, Fail> {
        if let Some(place) = self.thread.waits(t)? {
            return Ok(Err(place));
        }
        match self.number.recv_timeout(LIMIT) {
            Ok(number) => Ok(Ok(number)),
            // It has failed: that says why.
            Err(_) => Err(self
                .thread
                .finish()
                .err()
                .unwrap_or_else(|| Fail::Error("a call without a number".into()))),
        }
    }
}
