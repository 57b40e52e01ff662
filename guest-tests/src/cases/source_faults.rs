// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A source buffer that cannot be read from a page on: the call writes what is before it, says
//! how much that was, and nothing of the rest; one that cannot be read at all is EFAULT, and
//! nothing has changed.

use crate::call::{Call, Done};
use crate::subject::{Subject, check_after_remount};
use crate::sys::cut::CutBuffer;
use crate::sys::result_text;
use crate::test::{Fail, OrFail, Test};

const PAGE: usize = 4096;
const EFAULT: i64 = -(libc::EFAULT as i64);

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let b = t.world.bsize as usize;
    let block = b.max(PAGE);
    let mut files = Vec::new();
    // Bytes that can be read, and where the source begins in its page.
    for (name, readable, from) in [
        ("none", 0, 0),
        ("pages", 4 * block, 0),
        ("part", 3 * block, 100),
    ] {
        for cached in [true, false] {
            let name = format!("{name}-{}", if cached { "cached" } else { "read" });
            let s = Subject::written(t, &name, 16 * block as u64)?;
            if !cached {
                s.evict(t)?;
            }
            files.push(cut(t, s, &name, readable, from)?);
        }
    }
    check_after_remount(t, &mut files)
}

fn cut(
    t: &Test,
    mut s: Subject,
    name: &str,
    readable: usize,
    from: usize,
) -> Result<Subject, Fail> {
    let (block, off) = (t.world.bsize, t.world.bsize + 60);
    let len = readable + 4 * PAGE - from;
    let whole = readable - from.min(readable);
    let version = s.next_version();
    let mut bytes = vec![0; whole];
    wtblk_shared::pattern::fill(s.number, version, off, &mut bytes);
    let buffer = CutBuffer::new(readable + 4 * PAGE, readable, |all| {
        all[from.min(readable)..].copy_from_slice(&bytes);
    })
    .or_fail(|| "a buffer that ends".into())?;
    let call = Call {
        world: t.world,
        test: t.name,
        file: s.open(),
        off,
        len: len as u64,
        flags: t.world.params.flag,
        words: &["short-copy"],
        pattern: (s.number, version),
    };
    let done = call.marked(|_| buffer.pwritev2(&s.open().file, from, len, off, call.flags))?;
    let what = format!("{name}: call {}", done.call);
    if whole == 0 {
        t.check(done.result == EFAULT, || {
            format!(
                "{what} returned {}, expected -EFAULT",
                result_text(done.result)
            )
        });
    } else if !(1..=whole as i64).contains(&done.result) {
        // What the file holds now is not known: no use to go on.
        return Err(Fail::Error(format!(
            "{what} returned {}, and {whole} bytes could be read",
            result_text(done.result)
        )));
    } else {
        t.note(format!("{what}: {} of {whole} bytes", done.result));
        let written = done.result as u64;
        s.put_version(version, off, written);
        // As if it had been a call of so many bytes.
        let done = Done { ..done };
        s.check_call(t, &done, off, written)?;
    }
    s.check_clean(t, &what, done.call, off / block * block, len as u64)?;
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0, || {
        format!("{what}: fsync returned {}", result_text(synced))
    });
    s.evict(t)?;
    s.check_whole(t, "read from the disk")?;
    Ok(s)
}
