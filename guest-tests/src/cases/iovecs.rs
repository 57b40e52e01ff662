// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls from several buffers, some of them empty; and calls of no bytes at all, which do nothing.

use crate::call::Call;
use crate::rules::Rule;
use crate::scene::{Play, Source, Stage};
use crate::subject::{Subject, check_after_remount};
use crate::sys::{self, result_text};
use crate::test::{Fail, Test};

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut play = Play::new(t);
    let b = t.world.bsize;
    for (name, lengths) in [
        ("odd-parts", vec![1, 511, b, 4097, 3]),
        ("empty-parts", vec![0, b / 2, 0, 0, b, 0]),
    ] {
        play.scene(name, |t, name| {
            let s = Subject::written(t, name, 16 * b)?;
            let mut stage = Stage::new(s, b + 50, 8 * b);
            stage.source = Source::Parts(lengths.clone());
            Ok(stage)
        })?;
    }
    play.end()?;
    nothing(t)
}

/// No buffer, one that is empty, several that are empty.
fn nothing(t: &Test) -> Result<(), Fail> {
    let b = t.world.bsize;
    let s = Subject::written(t, "nothing", 4 * b)?;
    let counter = Rule::named("points-count");
    counter.switch_on(t)?;
    for (what, parts) in [("no", 0), ("one empty", 1), ("three empty", 3)] {
        let parts = vec![&[][..]; parts];
        let call = Call {
            world: t.world,
            test: t.name,
            file: s.open(),
            // Behind the end: not even the size may change.
            off: 8 * b,
            len: 0,
            flags: t.world.params.flag,
            words: &[],
            pattern: (s.number, s.version()),
        };
        let done = call.marked(|_| sys::pwritev2(&s.open().file, &parts, call.off, call.flags))?;
        t.check(done.result == 0, || {
            format!(
                "call {} from {what} buffers returned {}",
                done.call,
                result_text(done.result)
            )
        });
    }
    let sent = counter.fired(t)?;
    counter.switch_off(t)?;
    t.check(sent == 0, || {
        format!("calls of no bytes sent {sent} requests")
    });
    s.check_whole(t, "after calls of no bytes")?;
    check_after_remount(t, &mut [s])
}
