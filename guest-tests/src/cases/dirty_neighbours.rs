// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A call over some blocks of a large folio whose other blocks are dirty: these stay dirty, and
//! reach the disk with the next fsync.

use crate::pages;
use crate::subject::{Subject, check_after_remount};
use crate::test::{Fail, Test};

/// Blocks of the file, which is one folio: written at once, at its begin.
pub const BLOCKS: u64 = 16;

/// Plainly written ranges and the call's, in bytes as multiples of `b` and a rest.
struct Layout {
    name: &'static str,
    dirty: &'static [(u64, u64)],
    call: (u64, u64),
    /// Bytes that the call begins and ends inside of a block.
    inside: u64,
}

const LAYOUTS: &[Layout] = &[
    Layout {
        name: "all",
        dirty: &[(0, BLOCKS)],
        call: (5, 1),
        inside: 0,
    },
    Layout {
        name: "before",
        dirty: &[(1, 2)],
        call: (5, 2),
        inside: 0,
    },
    Layout {
        name: "behind",
        dirty: &[(9, 3)],
        call: (2, 3),
        inside: 0,
    },
    Layout {
        name: "both",
        dirty: &[(0, 1), (BLOCKS - 1, 1)],
        call: (4, 4),
        inside: 0,
    },
    // Its first and last block are dirty as well: they go out whole, the others stay.
    Layout {
        name: "across",
        dirty: &[(2, 4), (8, 4)],
        call: (5, 4),
        inside: 100,
    },
];

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut files = Vec::new();
    for layout in LAYOUTS {
        files.push(one(t, layout)?);
    }
    check_after_remount(t, &mut files)
}

fn one(t: &Test, layout: &Layout) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = in_one_folio(t, layout.name)?;
    for (off, len) in layout.dirty {
        s.write_plain(t, off * b, len * b)?;
    }
    let (off, len) = (
        layout.call.0 * b + layout.inside,
        layout.call.1 * b - 2 * layout.inside,
    );
    let done = s.writethrough_among_dirty(t, off, len)?;
    let what = format!("{}: call {}", layout.name, done.call);
    let after = pages::state(&s.open().file, 0, BLOCKS * b)?;
    t.check(after.dirty > 0, || {
        format!("{what}: no page is dirty any more, although blocks beside the call's were")
    });
    to_the_disk(t, &s, &what)?;
    Ok(s)
}

/// A file that is one folio, clean.
pub fn in_one_folio(t: &Test, name: &str) -> Result<Subject, Fail> {
    let b = t.world.bsize;
    let mut s = Subject::written(t, name, BLOCKS * b)?;
    // A byte at its begin makes the page at its end dirty: they are one folio.
    s.write_plain(t, 0, 1)?;
    let last = pages::state(&s.open().file, (BLOCKS - 1) * b, b)?;
    s.synced(t, "before the call")?;
    s.open().tell_pages(t.world, "prepared")?;
    if last.dirty == 0 {
        return Err(Fail::Skip(format!(
            "no folio of {BLOCKS} blocks here: the file is several folios"
        )));
    }
    Ok(s)
}

/// After an fsync all is on the disk: what is read when the pages are gone comes from there.
pub fn to_the_disk(t: &Test, s: &Subject, what: &str) -> Result<(), Fail> {
    s.synced(t, &format!("after {what}"))?;
    s.open().tell_pages(t.world, "after-fsync")?;
    s.check_evicts(t, &format!("after {what}"));
    s.check_whole(t, &format!("read from the disk after {what} and fsync"))
}
