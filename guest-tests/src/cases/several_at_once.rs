// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Several asynchronous calls in one `io_submit(2)`: apart, side by side, two of the same block;
//! one of them held while the others come to their end; one of them failing, which is told to it
//! and to none of the others.

use wtblk_shared::pattern;
use wtblk_shared::tag::Tag;

use crate::aftermath::others_told;
use crate::beside::LIMIT;
use crate::call::{Begun, Call, Done, OpenFile};
use crate::flying::ASYNC;
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{Pages, aio, result_text};
use crate::test::{Fail, OrFail, Test};

/// The rules of `guest-tests/scenarios/several-at-once.toml`: of the block at [`SECOND`].
const HOLDS: &str = "several-holds";
const FAILS: &str = "several-fails";
/// Where that is.
const SECOND: u64 = 0;
/// Length of each file, in units: the length of each call, whose folio is of that size, as the file was evicted.
const FILE: u64 = 16;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let len = t.world.unit();
    let apart = [2 * len, SECOND, 4 * len, 6 * len];
    let beside: Vec<u64> = (0..4).map(|i| i * len).collect();
    let mut files = vec![
        clean(t, "apart", &apart)?,
        clean(t, "beside", &beside)?,
        clean(t, "eight", &(0..8).map(|i| 2 * i * len).collect::<Vec<_>>())?,
        held(t, &apart)?,
        fails(t, &apart)?,
    ];
    files.push(same(t)?);
    check_after_remount(t, &mut files)
}

/// Calls on their way.
struct Flight<'a> {
    calls: Vec<(Call<'a>, Begun)>,
    writes: aio::Writes,
    left: usize,
}

impl<'a> Flight<'a> {
    /// Begins them all, each with a tag of its own, and submits them together.
    fn submit(t: &Test, s: &'a Subject, of: &[(u64, u32)]) -> Result<Flight<'a>, Fail> {
        let len = t.world.unit();
        let each = len as usize;
        let mut pages = Pages::new(each * of.len()).or_fail(|| "buffer".into())?;
        let mut calls = Vec::new();
        for (bytes, &(off, version)) in pages.bytes_mut().chunks_mut(each).zip(of) {
            pattern::fill(s.number, version, off, bytes);
            let call = Call {
                world: t.world,
                test: t.name,
                file: s.open(),
                off,
                len,
                flags: t.world.params.flag,
                words: &[ASYNC],
                pattern: (s.number, version),
            };
            let begun = call.begin()?;
            calls.push((call, begun));
        }
        // The thread's own tag would hide that the requests' are lost.
        t.world.untag_thread();
        let ioprios: Vec<_> = calls.iter().map(|(_, b)| b.tag.map(Tag::ioprio)).collect();
        let offsets: Vec<u64> = of.iter().map(|(off, _)| *off).collect();
        let (file, flag) = (&s.open().file, t.world.params.flag);
        let writes = aio::Writes::submit_each(file, pages, each, &offsets, &ioprios, flag)
            .or_fail(|| "io_submit".into())?;
        let left = writes.left();
        if left != of.len() {
            return Err(Fail::Error(format!(
                "io_submit took {left} of {} calls",
                of.len()
            )));
        }
        Ok(Flight {
            calls,
            writes,
            left,
        })
    }

    /// Waits until so many are left; those that came, by their index.
    fn until_left(&mut self, left: usize) -> Result<Vec<(usize, Done)>, Fail> {
        let mut come = Vec::new();
        while self.left > left {
            let events = self.writes.collect(LIMIT).map_err(|e| {
                Fail::Hung(format!(
                    "{} calls have no completion event ({e})",
                    self.left
                ))
            })?;
            self.left -= events.len();
            for (index, result) in events {
                let (call, begun) = &self.calls[index];
                come.push((index, call.over(begun, result)?));
            }
        }
        Ok(come)
    }
}

fn prepared(t: &Test, name: &str) -> Result<Subject, Fail> {
    let s = Subject::written(t, name, FILE * t.world.unit())?;
    s.evict(t)?;
    Ok(s)
}

/// Versions for the calls, which the subject expects from now on.
fn expect(t: &Test, s: &mut Subject, offsets: &[u64]) -> Vec<(u64, u32)> {
    let mut of = Vec::new();
    for &off in offsets {
        let version = s.next_version();
        s.put_version(version, off, t.world.unit());
        of.push((off, version));
    }
    of
}

fn all_of_it(t: &Test, name: &str, done: &Done) {
    t.check(done.result == t.world.unit() as i64, || {
        let result = result_text(done.result);
        format!("{name}: call {} ended with {result}", done.call)
    });
}

fn clean(t: &Test, name: &str, offsets: &[u64]) -> Result<Subject, Fail> {
    let mut s = prepared(t, name)?;
    let of = expect(t, &mut s, offsets);
    let come = Flight::submit(t, &s, &of)?.until_left(0)?;
    for (index, done) in &come {
        s.check_call(t, done, offsets[*index], t.world.unit())?;
    }
    s.check_whole(t, "after all calls")?;
    Ok(s)
}

/// The second is held: the others end, and it does not.
fn held(t: &Test, offsets: &[u64]) -> Result<Subject, Fail> {
    let rule = Rule::named(HOLDS);
    let mut s = prepared(t, "held")?;
    let of = expect(t, &mut s, offsets);
    rule.switch_on(t)?;
    let mut flight = Flight::submit(t, &s, &of)?;
    let come = rule.until_held(t).and_then(|()| flight.until_left(1));
    // Whatever was seen: it must not wait for ever.
    rule.release(t)?;
    let come = come?;
    let last = flight.until_left(0)?;
    rule.switch_off(t)?;
    t.check(come.iter().all(|(index, _)| *index != 1), || {
        "held: the call whose write was held ended before the release".into()
    });
    for (_, done) in come.iter().chain(&last) {
        all_of_it(t, "held", done);
    }
    s.check_whole(t, "after the release")?;
    s.check_on_disk(t, "held", 0, SECOND + t.world.unit())?;
    Ok(s)
}

/// The second fails, and no other.
fn fails(t: &Test, offsets: &[u64]) -> Result<Subject, Fail> {
    let rule = Rule::named(FAILS);
    let mut s = prepared(t, "fails")?;
    let another = OpenFile::open(t.world, s.path(), false)?;
    let of = expect(t, &mut s, offsets);
    rule.switch_on(t)?;
    let come = Flight::submit(t, &s, &of)?.until_left(0);
    let fired = rule.fired(t)?;
    rule.switch_off(t)?;
    t.check(fired == 1, || "fails: no write could fail".into());
    for (index, done) in &come? {
        if *index == 1 {
            let short = (0..t.world.unit() as i64).contains(&done.result);
            t.check(done.result == -i64::from(libc::EIO) || short, || {
                let result = result_text(done.result);
                format!(
                    "fails: call {}, whose write failed, ended with {result}",
                    done.call
                )
            });
        } else {
            all_of_it(t, "fails", done);
            s.check_on_disk(t, "fails", offsets[*index], t.world.unit())?;
        }
    }
    let synced = s.open().fsync(t.world)?;
    t.check(synced == 0 || synced == -i64::from(libc::EIO), || {
        format!("fails: fsync returned {}", result_text(synced))
    });
    others_told(t, "fails", &s, &another, synced)?;
    drop(another);
    // So that it is known what is there.
    s.writethrough(t, SECOND, t.world.unit())?;
    s.check_whole(t, "after the rewrite")?;
    Ok(s)
}

/// Two of the same block: the second one's submission waits for the first one's write.
fn same(t: &Test) -> Result<Subject, Fail> {
    let mut s = prepared(t, "same")?;
    let of = expect(t, &mut s, &[0, 0]);
    let come = Flight::submit(t, &s, &of)?.until_left(0)?;
    for (_, done) in &come {
        all_of_it(t, "same", done);
    }
    s.check_whole(t, "after two calls of one block")?;
    s.check_on_disk(t, "same", 0, t.world.unit())?;
    Ok(s)
}
