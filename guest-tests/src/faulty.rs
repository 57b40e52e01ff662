// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call whose first bio fails while it collects: its writer stops at a missing
//! page of its buffer; a helper lets the device fail the held bio, sees the
//! block leave writeback, says `error-seen`, and only then supplies the page.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use crate::call::{Call, Done, OpenFile};
use crate::flying::ASYNC;
use crate::pages;
use crate::subject::Subject;
use crate::sys::uffd::{FaultingBuffer, PAGE};
use crate::test::{Fail, OrFail, Test};
use crate::world::World;

/// Limit of each wait of the helper.
const LIMIT: Duration = Duration::from_secs(4);

/// What is to be done.
#[derive(Clone, Copy, Debug)]
pub struct FaultyCall {
    /// The rule that holds the first data write and fails it.
    pub rule: &'static str,
    /// Length of the call, from the beginning of the file.
    pub len: u64,
    /// Offset of the missing page.
    pub missing: usize,
    /// Length of the file's first mapping: what the first bio writes.
    pub first: u64,
    /// By AIO: the submission stops, and the error comes with the event.
    pub by_aio: bool,
}

/// Makes the call, with the helper that lets it fail.
pub fn run_faulty(t: &Test, s: &Subject, version: u32, faulty: &FaultyCall) -> Result<Done, Fail> {
    let world = t.world;
    let number = s.number;
    let (len, missing) = (faulty.len, faulty.missing);
    let buffer = FaultingBuffer::new(len as usize, missing, |off, bytes| {
        pattern::fill(number, version, off, bytes);
    })
    .or_fail(|| "a buffer under userfaultfd".into())?;
    let buffer = Arc::new(buffer);
    // A test before this one may have disarmed all rules.
    let arm = Control::Arm(Some(faulty.rule.into()));
    world.post(&Mark::Control(arm))?;
    let over = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::channel();
    let helper = Helper {
        world,
        buffer: Arc::clone(&buffer),
        file: Arc::clone(s.open()),
        over: Arc::clone(&over),
        number,
        version,
        faulty: *faulty,
    };
    let thread = world.spawn("helper", move || helper.run(&told));
    let call = Call {
        world,
        test: t.name,
        file: s.open(),
        off: 0,
        len,
        flags: world.params.flag,
        words: if faulty.by_aio { &[ASYNC] } else { &[] },
        pattern: (number, version),
    };
    let tell = |call| {
        let _ = tell.send(call);
    };
    let done = if faulty.by_aio {
        call.run_faulting_async(&buffer, tell)
    } else {
        call.run_faulting(&buffer, tell)
    };
    over.store(true, Ordering::Release);
    let told = thread
        .join()
        .map_err(|_| Fail::Error("the helper's thread broke".into()))?;
    let done = done?;
    t.note(told?);
    Ok(done)
}

/// The thread beside the call.
struct Helper {
    world: &'static World,
    buffer: Arc<FaultingBuffer>,
    file: Arc<OpenFile>,
    over: Arc<AtomicBool>,
    number: u32,
    version: u32,
    faulty: FaultyCall,
}

impl Helper {
    /// Gives what it saw, in words.
    fn run(&self, told: &mpsc::Receiver<u64>) -> Result<String, Fail> {
        let call = told
            .recv_timeout(LIMIT)
            .map_err(|_| Fail::Error("the call did not begin".into()));
        let stopped = self.writer_stopped();
        let saw = call.and_then(|call| self.fail_the_bio(call));
        // Whatever happened: the writer must not wait for ever.
        let mut page = [0; PAGE];
        pattern::fill(
            self.number,
            self.version,
            self.faulty.missing as u64,
            &mut page,
        );
        let supplied = self.buffer.supply(&page);
        if !stopped? {
            return Err(Fail::Error(
                "the writer never stopped at the missing page: the call ended before it".into(),
            ));
        }
        supplied.or_fail(|| "supplying the page".into())?;
        saw
    }

    fn writer_stopped(&self) -> Result<bool, Fail> {
        let start = Instant::now();
        while start.elapsed() < LIMIT && !self.over.load(Ordering::Acquire) {
            // A short wait each, to notice that the call is over.
            if self
                .buffer
                .wait(Duration::from_millis(20))
                .or_fail(|| "userfaultfd".into())?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn fail_the_bio(&self, call: u64) -> Result<String, Fail> {
        let world = self.world;
        let before = pages::state(&self.file.file, 0, self.faulty.first)?;
        let device = world.marks.state().map_or(String::new(), |s| {
            let get = |key: &str| s.get(key).map_or("?", String::as_str).to_owned();
            format!(
                ", device: held {} in flight {}",
                get("held"),
                get("inflight")
            )
        });
        world.post(&Mark::Control(Control::Release(Some(
            self.faulty.rule.into(),
        ))))?;
        let after = pages::settle(&self.file.file, 0, self.faulty.first, LIMIT)?;
        if after.writeback != 0 {
            return Err(Fail::Error(format!(
                "the first block stays in writeback {} ms after its release{device}",
                LIMIT.as_millis()
            )));
        }
        world.post(&Mark::ErrorSeen { call })?;
        Ok(format!(
            "writer stopped in the middle; first block {} before the release{device}",
            if before.writeback > 0 {
                "in writeback"
            } else {
                "already out of writeback"
            }
        ))
    }
}
