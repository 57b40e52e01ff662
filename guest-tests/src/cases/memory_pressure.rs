// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Calls while there is hardly any memory left: a hog takes nearly all of it, so that every page
//! that a call needs has to be taken from the page cache first. Each comes to its end, with its data on the disk; also where writes of them fail.

use std::fs;

use crate::pages;
use crate::rules::Rule;
use crate::subject::{Subject, check_after_remount};
use crate::sys::{Pages, result_text};
use crate::test::{Fail, OrFail, Test};

/// The rule of `guest-tests/scenarios/memory-pressure.toml`.
const FAILS: &str = "pressure-fails";
/// Kibibytes that the hog leaves free; beside these there is only the page cache.
const FREE: u64 = 8 << 10;
/// Kibibytes that can be had at least, so that nobody is killed for memory.
const LEAST: u64 = 24 << 10;
/// It takes so many kibibytes at a time.
const BITE: u64 = 2 << 10;
/// Length of each call, and calls on each file.
const LEN: u64 = 1 << 20;
const CALLS: u64 = 12;
/// Plainly written before them, so that there is something to reclaim.
const BESIDE: u64 = 24 << 20;

/// Runs the case.
pub fn run(t: &mut Test) -> Result<(), Fail> {
    let mut s = Subject::written(t, "file", LEN)?;
    let mut failing = Subject::written(t, "failing", 2 * LEN)?;
    let beside = Subject::written(t, "beside", BESIDE)?;
    let before = scanned();
    let hog = Hog::new()?;
    let left = kibibytes("MemAvailable:")?;
    let tried = under_pressure(t, &mut s, &mut failing);
    drop(hog);
    tried?;
    let pages = scanned().saturating_sub(before);
    t.note(format!(
        "{left} KiB could be had; {pages} pages were looked at to be reclaimed"
    ));
    if pages == 0 {
        return Err(Fail::Error(
            "nothing was reclaimed: there was no pressure".into(),
        ));
    }
    s.check_whole(t, "after the pressure")?;
    failing.check_whole(t, "after the pressure")?;
    check_after_remount(t, &mut [s, failing, beside])
}

fn under_pressure(t: &Test, s: &mut Subject, failing: &mut Subject) -> Result<(), Fail> {
    let rule = Rule::named(FAILS);
    for i in 0..CALLS {
        // Appends, and every third one once more over what is there; odd ends in turn.
        let off = if i % 3 == 2 { (i - 1) * LEN } else { i * LEN };
        call(t, s, off, LEN - 100 * (i % 2))?;
        if i % 4 != 3 {
            continue;
        }
        // One of its writes fails.
        rule.switch_on(t)?;
        failing.next_version();
        let done = failing.call(t, 0, 2 * LEN, 0).run(1)?;
        let fired = rule.fired(t)?;
        rule.switch_off(t)?;
        let short = (0..2 * LEN as i64).contains(&done.result);
        t.check(
            fired > 0 && (done.result == -i64::from(libc::EIO) || short),
            || {
                let result = result_text(done.result);
                format!(
                    "call {}, of which {fired} writes failed, returned {result}",
                    done.call
                )
            },
        );
        let synced = failing.open().fsync(t.world)?;
        t.check(synced == 0 || synced == -i64::from(libc::EIO), || {
            format!("fsync after it returned {}", result_text(synced))
        });
        let file = &failing.open().file;
        let state = pages::report_twice(t.world, done.call, "after-call", file, 0, 2 * LEN)?;
        t.check(state.writeback == 0, || {
            format!(
                "call {}: {} pages stay in writeback",
                done.call, state.writeback
            )
        });
        call(t, failing, 0, 2 * LEN)?;
    }
    Ok(())
}

/// A call with all its checks.
fn call(t: &Test, s: &mut Subject, off: u64, len: u64) -> Result<(), Fail> {
    s.writethrough(t, off, len).map(drop)
}

/// Memory that is taken, and touched.
struct Hog(Vec<Pages>);

impl Hog {
    fn new() -> Result<Hog, Fail> {
        let mut hog = Hog(Vec::new());
        while kibibytes("MemFree:")? > FREE && kibibytes("MemAvailable:")? > LEAST + BITE {
            let mut bite =
                Pages::new((BITE as usize) << 10).or_fail(|| "the hog's memory".into())?;
            for page in bite.bytes_mut().chunks_mut(4096) {
                page[0] = 1;
            }
            hog.0.push(bite);
        }
        Ok(hog)
    }
}

/// A number of /proc/meminfo.
fn kibibytes(key: &str) -> Result<u64, Fail> {
    let text = fs::read_to_string("/proc/meminfo").or_fail(|| "/proc/meminfo".into())?;
    number(&text, key).ok_or_else(|| Fail::Error(format!("/proc/meminfo has no {key}")))
}

/// Pages that reclaim has looked at: kswapd's and everybody else's.
fn scanned() -> u64 {
    let text = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = |key| number(&text, key).unwrap_or(0);
    count("pgscan_kswapd") + count("pgscan_direct")
}

/// The first number behind a word at the begin of a line.
fn number(text: &str, key: &str) -> Option<u64> {
    let words = text.lines().map(str::split_whitespace);
    words
        .filter_map(|mut words| (words.next()? == key).then(|| words.next()?.parse().ok())?)
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_found_by_their_whole_name() {
        let text = "MemFree:  7 kB\nMemAvailable:   42 kB\npgscan_direct_x 3\npgscan_direct 9\n";
        assert_eq!(number(text, "MemAvailable:"), Some(42));
        assert_eq!(number(text, "pgscan_direct"), Some(9));
        assert_eq!(number(text, "pgscan"), None);
    }
}
