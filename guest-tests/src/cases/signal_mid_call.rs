// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A signal for the caller in the middle of its call: one bio is out and held, folios are collected, and the
//! writer stands at a page of its buffer that is missing. The call goes on, or returns what it has written;
//! in both cases not before its write is over, and nothing of it is left in writeback.

use std::sync::Arc;

use wtblk_shared::mark::{Control, Mark};
use wtblk_shared::pattern;

use super::killed::{MIDDLE, MISSING, stands_in_the_middle};
use super::returns_after_io::until_held;
use crate::aftermath::others_told;
use crate::beside::{Beside, LIMIT};
use crate::call::{Call, Done, OpenFile};
use crate::page_flags;
use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::sys::odd;
use crate::sys::result_text;
use crate::sys::uffd::{FaultingBuffer, PAGE};
use crate::task::LOOKS;
use crate::test::{Fail, OrFail, Test};
use crate::versions::Versions;

/// The rule of `guest-tests/scenarios/signal-mid-call.toml`: the first data write of the call.
const RULE: &str = "signal-held";

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut s = stands_in_the_middle(t, "file")?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let version = s.next_version();
    let mut versions = Versions::from(&s);
    versions.add_call(&mut s, version, 0, MIDDLE);
    let done = call(t, &s, version)?;
    let what = format!("call {} with a signal in its middle", done.call);
    t.check((1..=MIDDLE as i64).contains(&done.result), || {
        let result = result_text(done.result);
        format!("{what} returned {result}, expected what it has written, at most {MIDDLE}")
    });
    t.note(format!("{what} returned {}", result_text(done.result)));
    let file = &s.open().file;
    pages::settle(file, 0, MIDDLE, t.world.params.probe / 4)?;
    let state = pages::report_twice(t.world, done.call, "after-call", file, 0, MIDDLE)?;
    t.check(state.writeback == 0, || {
        let pages = state.writeback;
        format!("{what}: after it {pages} pages stay in writeback")
    });
    page_flags::check(t, &what, done.call, s.open(), 0, MIDDLE)?;
    let written = u64::try_from(done.result).unwrap_or(0).min(MIDDLE);
    s.put_version(version, 0, written);
    s.check_range(t, &what, 0, written)?;
    s.synced(t, "after it")?;
    others_told(t, &what, &s, &another, 0)?;
    drop(another);
    s.check_evicts(t, &what);
    s.check_range(t, &format!("{what}, read from the disk"), 0, written)?;
    versions.check(t, &s, &what)?;
    s.writethrough(t, 0, MIDDLE)?;
    s.check_whole(t, "after the rewrite")?;
    check_after_remount(t, &mut [s])
}

/// The call, and the signal.
fn call(t: &Test, s: &Subject, version: u32) -> Result<Done, Fail> {
    let (world, test, number) = (t.world, t.name, s.number);
    let fill = move |off, bytes: &mut [u8]| pattern::fill(number, version, off, bytes);
    let buffer = FaultingBuffer::new(MIDDLE as usize, MISSING, fill);
    let buffer = Arc::new(buffer.or_fail(|| "a buffer under userfaultfd".into())?);
    let rule = |control: fn(Option<String>) -> Control| {
        world.post(&Mark::Control(control(Some(RULE.into()))))
    };
    rule(Control::Arm)?;
    let (file, source) = (Arc::clone(s.open()), Arc::clone(&buffer));
    let thread = Beside::start(world, "the call with a signal", move |gate| {
        let call = Call {
            world,
            test,
            file: &file,
            off: 0,
            len: MIDDLE,
            flags: world.params.flag,
            words: &[],
            pattern: (number, version),
        };
        let (file, flags) = (&file.file, call.flags);
        call.marked(|_| gate.inside(|| source.pwritev2(file, MIDDLE as usize, 0, flags)))
    });
    let stood = until_held(t).and_then(|()| {
        if !buffer.wait(LIMIT).or_fail(|| "userfaultfd".into())? {
            return Err(Fail::Error("the writer does not stop in the middle".into()));
        }
        let tid = thread.gate.tid();
        let tid = tid.ok_or_else(|| Fail::Error("the caller did not begin".into()))?;
        odd::interrupt(tid).or_fail(|| "a signal".into())?;
        // Time for the signal to be seen: so many round trips, and the call may end by it.
        (0..LOOKS).for_each(|_| world.note("looking at the caller"));
        Ok(())
    });
    // Whatever was seen: the writer must not wait for ever.
    let mut page = [0; PAGE];
    pattern::fill(number, version, MISSING as u64, &mut page);
    let supplied = buffer.supply(&page).or_fail(|| "supplying the page".into());
    let waits = stood.and(supplied).and_then(|()| thread.waits(t));
    rule(Control::Release)?;
    match waits? {
        Some(place) => t.note(format!("with the signal the call waited in {place}")),
        None => t.fail("the call returned while its first write was held"),
    }
    thread.finish()
}
