// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `stop-after-error`.

use proptest::prelude::*;
use wtblk_shared::mark::{CallBegin, Mark};

use super::super::contract::Contract;
use super::builder::*;
use super::world::Dice;

/// Eight extents of four blocks that are no neighbours.
fn scattered() -> CallBegin {
    let extents = (0..8).map(|i| ext(i * 4 * B, DISK + (8 - i) * 64 * B, 4 * B));
    CallBegin {
        extents: Some(extents.collect()),
        ..call(1, 0, 32 * B)
    }
}

fn place(block: u64) -> u64 {
    DISK + (8 - block / 4) * 64 * B + block % 4 * B
}

/// The first extent fails and is seen to; then these writes arrive.
fn after(writes: &[(u64, u64)], seen: bool) -> (Stream, CallBegin) {
    let mut s = Stream::booted();
    let c = scattered();
    s.begin(&c);
    let first = s.write(1, place(0), 4 * B);
    s.hold(first);
    s.fail(first);
    if seen {
        s.mark(Mark::ErrorSeen { call: 1 });
    }
    for (block, blocks) in writes {
        s.write(1, place(*block), blocks * B);
    }
    s.all_ok();
    s.end(&c, -5);
    (s, c)
}

#[test]
fn the_collected_vector_may_go_and_no_other() {
    after(&[], true).0.held("stop-after-error", 1).silent();
    after(&[(4, 4)], true)
        .0
        .held("stop-after-error", 1)
        .silent();
    // One bio in three parts, the last one first.
    after(&[(6, 2), (4, 1), (5, 1)], true)
        .0
        .held("stop-after-error", 1);
    let f = after(&[(4, 4), (8, 4)], true)
        .0
        .broken("stop-after-error", &[]);
    assert!(
        f.happened.contains("of 2 bios at least where 1 may be"),
        "{f:?}"
    );
    // Not side by side: two bios of one extent.
    after(&[(4, 1), (6, 1)], true)
        .0
        .broken("stop-after-error", &[]);
    after(&[(4, 4), (8, 4)], false)
        .0
        .not_checked("stop-after-error", "no mark error-seen");
}

#[test]
fn the_contract_says_how_many() {
    let (s, _) = after(&[(4, 4), (8, 4), (12, 4)], true);
    for (n, status) in [(1, 1), (2, 1), (3, 0)] {
        let contract = Contract {
            stop_after_error: n,
            ..Contract::default()
        };
        assert_eq!(s.verdicts_by(contract).status(), status, "{n}");
    }
}

#[test]
fn what_others_send_does_not_count() {
    let mut s = Stream::booted();
    let (c, other) = (
        scattered(),
        CallBegin {
            ino: 2,
            ..call(2, 0, 8 * B)
        },
    );
    s.begin(&c);
    s.begin(&CallBegin {
        extents: Some(vec![ext(0, 900 << 20, 8 * B)]),
        ..other.clone()
    });
    let first = s.write(1, place(0), 4 * B);
    s.fail(first);
    s.mark(Mark::ErrorSeen { call: 1 });
    // Side requests, strangers, another call.
    s.write(1, LOG, 4096);
    s.write(1, LOG + 8192, 4096);
    s.stray(place(8), B);
    s.stray(place(12), B);
    s.write(2, 900 << 20, 8 * B);
    s.all_ok();
    s.end(&c, -5);
    s.held("stop-after-error", 1);
}

#[test]
fn a_lie_or_a_detour_is_no_proof() {
    // error-seen although nothing failed; for another call; unordered.
    for lie in [1, 9] {
        let mut s = Stream::booted();
        let c = scattered();
        s.begin(&c);
        s.mark(Mark::ErrorSeen { call: lie });
        for i in 0..4 {
            s.write(1, place(4 * i), 4 * B);
        }
        s.all_ok();
        s.end(&c, 32 * B as i64);
        assert!(s.verdicts().findings().all(|f| f.promise == "cover"));
        s.not_checked("stop-after-error", "no ");
    }
    // A scheduler keeps requests on their way.
    let (mut s, c) = after(&[], true);
    s.env(&[("scheduler", "mq-deadline")]);
    let again = CallBegin {
        call: 2,
        tag: Some(2),
        ..c
    };
    s.begin(&again);
    let first = s.write(2, place(0), 4 * B);
    s.fail(first);
    s.mark(Mark::ErrorSeen { call: 2 });
    for i in 1..8 {
        s.write(2, place(4 * i), 4 * B);
    }
    s.all_ok();
    s.end(&again, -5);
    s.silent().held("stop-after-error", 1);
    // A request that reaches beyond the call: which bio it was of is not known.
    let (mut s, c) = after(&[], true);
    let short = CallBegin {
        call: 2,
        tag: Some(2),
        len: 30 * B,
        ..c
    };
    s.begin(&short);
    let first = s.write(2, place(0), 4 * B);
    s.fail(first);
    s.mark(Mark::ErrorSeen { call: 2 });
    s.write(2, place(8), 4 * B);
    s.write(2, place(28), 4 * B);
    s.all_ok();
    s.end(&short, -5);
    s.silent().held("stop-after-error", 1);
}

proptest! {
    /// Any set of blocks after the mark: as many bios as there are runs within extents.
    #[test]
    fn as_the_definition_says(seed: u64, count in 0usize..12) {
        let mut dice = Dice(seed);
        let mut blocks: Vec<u64> = (4..32).collect();
        let mut sent = Vec::new();
        for _ in 0..count {
            let n = dice.below(blocks.len() as u64) as usize;
            sent.push(blocks.swap_remove(n));
        }
        let writes: Vec<_> = sent.iter().map(|b| (*b, 1)).collect();
        let (s, _) = after(&writes, true);
        let runs = sent
            .iter()
            .filter(|b| *b % 4 == 0 || !sent.contains(&(*b - 1)))
            .count();
        let found = s.verdicts().findings().any(|f| f.promise == "stop-after-error");
        prop_assert_eq!(found, runs > 1, "{:?}", sent);
    }
}
