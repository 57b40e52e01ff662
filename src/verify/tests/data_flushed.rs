// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `data`: what XFS flushes of a file before a call's own bytes are sent.

use wtblk_shared::mark::CallBegin;

use super::builder::*;
use super::data::{LEN, P, after, write_2};

#[test]
fn what_is_flushed_before_a_call_beyond_the_end_is_not_the_calls() {
    // It begins in the block of the old end of the file: that is zeroed, and flushed.
    let c = CallBegin {
        isize: 3 * B + 100,
        ..write_2(1, 3 * B + 512, 2 * B)
    };
    let good = after(&c);
    let zeroed = vec![0; LEN];
    let stream = |c: &CallBegin, first: &[u8], last: &[u8]| {
        let mut s = Stream::told();
        s.begin(c);
        let flushed = s.sends(1, 3 * B, 4 * B, first);
        s.ok(flushed);
        s.sends(1, 3 * B, 6 * B, last);
        s.all_ok();
        s.end(c, 2 * B as i64);
        s.contents(3 * B, B, &good);
        s.contents(5 * B, B, &good);
        s
    };
    stream(&c, &zeroed, &good).held(P, 1);
    // The last word counts; and behind that block, or inside of the file, every word.
    stream(&c, &good, &zeroed).broken(P, &[]);
    for isize in [3 * B + 512, 9 * B] {
        let c = CallBegin { isize, ..c.clone() };
        stream(&c, &zeroed, &good).broken(P, &["cover"]);
    }
    let beyond = |first: &[u8]| {
        let mut s = Stream::told();
        s.begin(&c);
        let flushed = s.sends(1, 4 * B, 5 * B, first);
        s.ok(flushed);
        s.sends(1, 3 * B, 6 * B, &good);
        s.all_ok();
        s.end(&c, 2 * B as i64);
        s
    };
    beyond(&zeroed).broken(P, &["cover", "order"]);
}
