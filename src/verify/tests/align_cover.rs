// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `align` and `cover`.

use wtblk_shared::mark::CallBegin;

use super::builder::*;
use crate::trace::event::Op;

#[test]
fn whole_blocks_hold_however_they_are_split_and_merged() {
    for writes in [
        vec![(0, 4 * B)],
        vec![(0, B), (B, B), (2 * B, B), (3 * B, B)],
        // Split at logical blocks, joined in no order.
        vec![(0, 512), (512, B), (B + 512, 3 * B - 512)],
        vec![(2 * B, 2 * B), (0, 2 * B)],
    ] {
        let mut s = Stream::booted();
        let placed: Vec<_> = writes.iter().map(|(o, n)| (DISK + o, *n)).collect();
        s.run(&call(1, 0, 4 * B), &placed);
        s.held("align", 1).held("cover", 1);
    }
}

#[test]
fn a_range_rounded_to_sectors_is_found() {
    // The defect `misaligned`: offset 700 of 5000 bytes, rounded out to 512.
    let mut s = Stream::booted();
    s.run(&call(1, 700, 5000), &[(DISK + 512, 5632 - 512 + 512 * 2)]);
    let f = s.broken("align", &["cover"]);
    assert!(
        f.happened.contains("begins 512 bytes into a block"),
        "{f:?}"
    );
    assert!(f.happened.contains("blocks are 4096 bytes"), "{f:?}");
    assert_eq!(f.call.as_ref().unwrap().off, 700);
    let f = s.broken("cover", &["align"]);
    assert!(f.happened.contains("0 to 512"), "{f:?}");
}

#[test]
fn a_hole_between_runs_of_one_extent_is_judged_run_by_run() {
    let mut s = Stream::booted();
    let c = call(1, 0, 4 * B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.write(1, DISK + 2 * B, B + 512);
    s.all_ok();
    s.end(&c, -14);
    let f = s.broken("align", &[]);
    assert!(f.happened.contains("8192 to 12800"), "{f:?}");
    assert_eq!(f.details["block_size"], 4096);
    s.not_checked("cover", "the call failed");
}

#[test]
fn blocks_count_in_the_file_not_on_the_disk() {
    // A real-time or partitioned disk: extents need not be aligned on the disk.
    let mut c = call(1, 0, 2 * B);
    c.extents = Some(vec![ext(0, DISK + 512, 2 * B)]);
    let mut s = Stream::booted();
    s.run(&c, &[(DISK + 512, 2 * B)]);
    s.held("align", 1).held("cover", 1);
}

#[test]
fn extents_that_touch_on_the_disk_but_not_in_the_file_are_two() {
    // File blocks 0 and 9 are neighbours on the disk.
    let mut c = call(1, 0, 10 * B);
    c.extents = Some(vec![
        ext(0, DISK, B),
        ext(B, DISK + 100 * B, 8 * B),
        ext(9 * B, DISK + B, B),
    ]);
    let mut s = Stream::booted();
    s.run(&c, &[(DISK, 2 * B), (DISK + 100 * B, 8 * B)]);
    s.held("align", 1).held("cover", 1).silent();
    // Half a block less of the second: the first is not to blame.
    let mut s = Stream::booted();
    s.run(&c, &[(DISK, 2 * B - 512), (DISK + 100 * B, 8 * B)]);
    let f = s.broken("align", &["cover"]);
    assert_eq!(
        f.details["runs"],
        serde_json::json!([[9 * B, 10 * B - 512]])
    );
}

#[test]
fn side_requests_are_not_judged() {
    let mut s = Stream::booted();
    let mut c = call(1, 700, 5000);
    c.flags.push("dsync".into());
    s.begin(&c);
    // Head and tail are read, a block before the range is zeroed, then the data,
    // then the log in units of 512 and a flush.
    s.submit(Op::Read, ioprio(1), DISK, B);
    s.submit(Op::Read, ioprio(1), DISK + B, B);
    s.write(1, DISK + 5 * B, B + 512);
    s.all_ok();
    s.write(1, DISK, 2 * B);
    s.all_ok();
    s.write(1, LOG + 512, 1536);
    s.submit(Op::Flush, 0, 0, 0);
    s.all_ok();
    s.end(&c, 5000);
    s.held("align", 1)
        .held("cover", 1)
        .held("order", 1)
        .silent();
}

#[test]
fn an_allocating_call_is_judged_by_the_extents_of_its_end() {
    let c = CallBegin {
        isize: 0,
        extents: Some(vec![]),
        ..call(1, 0, 3 * B)
    };
    let after = || Some(vec![ext(0, DISK + 7 * B, 3 * B)]);
    let mut s = Stream::booted();
    s.begin(&c);
    s.write(1, DISK + 7 * B, 3 * B);
    s.all_ok();
    s.end_with(&c, 3 * B as i64, after());
    s.held("align", 1).held("cover", 1).held("sync-return", 1);

    let mut s = Stream::booted();
    s.begin(&c);
    s.write(1, DISK + 7 * B, 3 * B - 512);
    s.all_ok();
    s.end_with(&c, 3 * B as i64, after());
    s.broken("align", &["cover"]);
}

#[test]
fn copy_on_write_moves_the_blocks() {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    s.write(1, DISK + 1000 * B, 2 * B);
    s.all_ok();
    let after = vec![ext(0, DISK + 1000 * B, 2 * B), ext(2 * B, DISK + 2 * B, B)];
    s.end_with(&c, 2 * B as i64, Some(after));
    s.held("align", 1).held("cover", 1);
}

#[test]
fn a_copy_that_failed_never_shows_where_it_went() {
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    let id = s.write(1, DISK + 1000 * B, 2 * B);
    s.fail(id);
    s.end(&c, -5);
    s.silent();
    s.not_checked("align", "no data request");
    // Its EIO has a cause: a request of the call failed.
    s.held("error-report", 1);
}

#[test]
fn unknown_extents_are_no_evidence() {
    let mut s = Stream::booted();
    let c = CallBegin {
        extents: None,
        ..call(1, 0, 2 * B)
    };
    s.run(&c, &[(DISK, 512)]);
    for promise in ["align", "cover", "order", "sync-return"] {
        s.not_checked(promise, "extents unknown");
    }
    // Begin alone proves no absence: copy-on-write may have moved the blocks.
    let mut s = Stream::booted();
    let c = call(1, 0, 2 * B);
    s.begin(&c);
    s.write(1, DISK, B);
    s.all_ok();
    s.end_with(&c, 2 * B as i64, None);
    s.not_checked("cover", "extents unknown").held("align", 1);
}

#[test]
fn a_request_merged_with_a_neighbour_makes_it_unclear() {
    // Zeroing of the block before the range, merged with half of the first block.
    let mut s = Stream::booted();
    s.run(
        &call(1, 2 * B, 2 * B),
        &[(DISK + B, B + 512), (DISK + 2 * B + 512, 2 * B - 512)],
    );
    s.silent();
    s.not_checked("align", "a request of the call lies only partly");
    s.not_checked("cover", "a request of the call lies only partly");
}

#[test]
fn what_is_missing_and_what_came_twice_is_found() {
    let mut s = Stream::booted();
    s.run(&call(1, 0, 4 * B), &[(DISK, B), (DISK + 2 * B, 2 * B)]);
    let f = s.broken("cover", &[]);
    assert!(f.happened.contains("4096 to 8192 (4096 bytes)"), "{f:?}");

    let mut s = Stream::booted();
    s.run(&call(1, 0, 4 * B), &[(DISK, 4 * B), (DISK + B, B)]);
    let f = s.broken("cover", &["order"]);
    assert!(
        f.happened.contains("4096 to 8192 were sent more than once"),
        "{f:?}"
    );

    // Nothing was sent at all.
    let mut s = Stream::booted();
    s.run(&call(1, 0, 4 * B), &[]);
    s.broken("cover", &[]);
    s.not_checked("align", "no data request");
}

#[test]
fn a_short_count_needs_only_what_it_counts() {
    let mut s = Stream::booted();
    let c = call(1, 0, 4 * B);
    s.begin(&c);
    s.write(1, DISK, 2 * B);
    s.all_ok();
    s.end(&c, 2 * B as i64 - 5);
    s.held("cover", 1).held("error-report", 1);
}

#[test]
fn blocks_sent_twice_for_a_reason() {
    let twice = [(DISK, 2 * B), (DISK + B, 3 * B)];
    let mut short = call(1, 0, 4 * B);
    short.flags.push("short-copy".into());
    let mut s = Stream::booted();
    s.run(&short, &twice);
    s.not_checked("cover", "a block may be sent twice after a short copy");

    // An asynchronous call to the same folios is under way.
    let mut s = Stream::booted();
    let other = call(2, 8 * B, B);
    s.begin(&other);
    s.run(&call(1, 0, 4 * B), &twice);
    s.not_checked("cover", "a block may be sent twice: another");
    // One to another file is no excuse.
    let mut s = Stream::booted();
    s.begin(&CallBegin { ino: 2, ..other });
    s.run(&call(1, 0, 4 * B), &twice);
    s.broken("cover", &[]);

    // The block of the old end of the file is zeroed and flushed before the write.
    let mut s = Stream::booted();
    let beyond = CallBegin {
        isize: 100,
        ..call(1, 2000, 6000)
    };
    s.run(&beyond, &[(DISK, B), (DISK, 2 * B)]);
    s.not_checked("cover", "the block of the old end");
}

#[test]
fn other_calls_are_not_judged() {
    for flags in [
        &["dsync"][..],
        &["writethrough", "direct"],
        &["writethrough", "probe-x"],
    ] {
        let mut s = Stream::booted();
        let mut c = call(1, 0, 4 * B);
        c.flags = flags.iter().map(|f| (*f).to_owned()).collect();
        s.run(&c, &[(DISK + 512, 512)]);
        s.silent();
        s.not_checked("align", "nothing to judge");
    }
}
