// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Action and request -> plan: everything that the seed decides is decided here.

use std::collections::BTreeMap;

use wtblk_shared::disk::SECTOR;

use super::action::{Action, DataAction, Misdirect, Order, Permutation, Torn};
use super::dice::Dice;
use super::request::{DataFault, Hold, OrderBy, OrderSlot, Plan, Request};

/// What a plan depends on beside the action and the request.
pub(super) struct Circumstances {
    pub(super) dice: Dice,
    /// How often the rule has fired since it was armed, before this time.
    pub(super) fired: u64,
    /// Groups that it began before it was armed again: no group has the number of another.
    pub(super) groups_before: u64,
    /// The rule was released: it keeps nothing back.
    pub(super) released: bool,
    /// Where in its file the request begins, bytes, where that is known.
    pub(super) file_offset: Option<u64>,
}

/// Purposes of dice.
const DELAY: u64 = 1;
const ORDER: u64 = 2;
const CORRUPT: u64 = 3;

/// The plan for a request that the action suits.
pub(super) fn plan(action: &Action, request: &Request, c: &Circumstances) -> Plan {
    let data = action.data.as_ref().and_then(|d| data(d, request, c));
    let mut plan = Plan {
        delay_ns: action.delay.map(|d| {
            let range = d.max.saturating_sub(d.min).saturating_add(1);
            let kib = u64::from(request.bytes).div_ceil(1024);
            d.min
                .saturating_add(c.dice.of(DELAY).below(c.fired, range))
                .saturating_add(d.per_kib.saturating_mul(kib))
        }),
        hold: None,
        order: None,
        hang: action.hang,
        // The data fault is done even where an error follows it.
        store: action.status.is_some() && (action.store || data.is_some()),
        data,
        status: action.status,
        used_len: action.used_len,
        device: action.device,
    };
    if !c.released {
        plan.hold = action.hold.as_ref().map(|h| Hold { limit_ns: h.limit });
        plan.order = action.order.as_ref().map(|o| slot(o, request, c));
    }
    plan
}

fn slot(order: &Order, request: &Request, c: &Circumstances) -> OrderSlot {
    let size = order.group.max(1);
    let group = c.fired / u64::from(size);
    let arrival = (c.fired % u64::from(size)) as u32;
    let turn = match &order.by {
        Permutation::Turns(turns) => {
            OrderBy::Turn(turns.get(arrival as usize).copied().unwrap_or(arrival))
        }
        Permutation::Reverse => OrderBy::Turn(size - 1 - arrival),
        Permutation::Offset => OrderBy::Offset(
            c.file_offset
                .unwrap_or_else(|| request.sector.saturating_mul(SECTOR)),
        ),
        Permutation::Seeded => OrderBy::Turn(shuffled(size, arrival, c.dice.of(ORDER), group)),
        Permutation::Index(index) => OrderBy::Turn(turn_of(*index, size, arrival)),
        Permutation::All => {
            let all = factorial(size).unwrap_or(u64::MAX);
            OrderBy::Turn(turn_of(group % all, size, arrival))
        }
    };
    OrderSlot {
        group: c.groups_before.saturating_add(group),
        size,
        turn,
        limit_ns: order.limit,
    }
}

/// `n!`, where a u64 holds it (up to 20).
pub(super) fn factorial(n: u32) -> Option<u64> {
    (1..=u64::from(n)).try_fold(1u64, u64::checked_mul)
}

/// The turns, by arrival, of an order that lists arrivals.
pub(super) fn turns_of(order: &[u32]) -> Vec<u32> {
    let mut turns = vec![0; order.len()];
    for (turn, &arrival) in order.iter().enumerate() {
        if let Some(slot) = turns.get_mut(arrival as usize) {
            *slot = turn as u32;
        }
    }
    turns
}

/// The turn of an arrival in the order of this number: its Lehmer code, the
/// orders of 0..size in lexical order.
fn turn_of(index: u64, size: u32, arrival: u32) -> u32 {
    let mut left: Vec<u32> = (0..size).collect();
    let mut rest = index;
    for turn in 0..size {
        let below = factorial(size - 1 - turn).unwrap_or(u64::MAX);
        let digit = (rest / below).min(left.len() as u64 - 1) as usize;
        rest %= below;
        if left.remove(digit) == arrival {
            return turn;
        }
    }
    arrival
}

/// Fisher and Yates, the same for every request of the group.
fn shuffled(size: u32, arrival: u32, dice: Dice, group: u64) -> u32 {
    let mut turns: Vec<u32> = (0..size).collect();
    let dice = dice.of(group);
    for i in (1..turns.len()).rev() {
        let j = dice.below(i as u64, i as u64 + 1) as usize;
        turns.swap(i, j);
    }
    turns.get(arrival as usize).copied().unwrap_or(arrival)
}

fn data(action: &DataAction, request: &Request, c: &Circumstances) -> Option<DataFault> {
    Some(match action {
        DataAction::Torn(torn) => {
            let sectors = u64::from(request.bytes).div_ceil(SECTOR) as u32;
            DataFault::Torn(match torn {
                Torn::First(k) => pieces(&[(0, *k)], sectors),
                Torn::Last(k) => {
                    let first = sectors.saturating_sub(*k);
                    pieces(&[(first, *k)], sectors)
                }
                Torn::Sectors(list) => pieces(list, sectors),
            })
        }
        DataAction::Corrupt { bits, offset } => {
            DataFault::Corrupt(flips(*bits, *offset, request.bytes, c))
        }
        DataAction::Drop | DataAction::DropFlush => DataFault::Dropped,
        DataAction::Misdirect(Misdirect::To(sector)) => DataFault::Misdirected(*sector),
        // Before the first sector there is none: it goes as far as it can.
        DataAction::Misdirect(Misdirect::By(by)) => {
            DataFault::Misdirected(request.sector.saturating_add_signed(*by))
        }
        DataAction::Stale(_) => DataFault::Stale,
        DataAction::LateFlush(writes) => DataFault::LateFlush(*writes),
    })
}

/// Those parts of the pieces that the request has.
fn pieces(list: &[(u32, u32)], sectors: u32) -> Vec<(u32, u32)> {
    list.iter()
        .filter_map(|&(first, count)| {
            let count = count.min(sectors.checked_sub(first)?);
            (count > 0).then_some((first, count))
        })
        .collect()
}

/// Bits to flip: from a byte on, or anywhere. No bit twice, and none that is not there.
fn flips(bits: u32, offset: Option<u32>, bytes: u32, c: &Circumstances) -> Vec<(u32, u8)> {
    let all = u64::from(bytes) * 8;
    let mut masks: BTreeMap<u32, u8> = BTreeMap::new();
    let dice = c.dice.of(CORRUPT).of(c.fired);
    for n in 0..u64::from(bits).min(all) {
        let bit = match offset {
            Some(offset) => u64::from(offset) * 8 + n,
            None => dice.below(n, all),
        };
        if bit >= all {
            break;
        }
        // A taken bit moves on to the next free one.
        for next in 0..all {
            let bit = (bit + next) % all;
            let mask = masks.entry((bit / 8) as u32).or_default();
            let one = 1u8 << (bit % 8);
            if *mask & one == 0 {
                *mask |= one;
                break;
            }
        }
    }
    masks.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_is_another_order() {
        let mut seen = std::collections::BTreeSet::new();
        for index in 0..120 {
            let turns: Vec<u32> = (0..5).map(|a| turn_of(index, 5, a)).collect();
            let mut sorted = turns.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
            seen.insert(turns);
        }
        assert_eq!(seen.len(), 120);
        assert_eq!(
            (0..3).map(|a| turn_of(0, 3, a)).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        // Order 3 of 3 requests is [1, 2, 0]: the one that came first goes last.
        assert_eq!(
            (0..3).map(|a| turn_of(3, 3, a)).collect::<Vec<_>>(),
            [2, 0, 1]
        );
        assert_eq!(turns_of(&[1, 2, 0]), [2, 0, 1]);
        assert!(factorial(20).is_some() && factorial(21).is_none());
    }
}
