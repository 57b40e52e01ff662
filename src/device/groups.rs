// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Groups of requests that complete in a planned order, on whatever queues
//! they came. A group waits until it has its size (or its time is over, or it
//! is released); then one goes, and each completion lets the next one go.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::fault::request::{OrderBy, OrderSlot};

/// Most groups that are remembered; of more, the oldest without a request in it is forgotten.
const MAX_GROUPS: usize = 1024;

/// Rule and the group's number within it.
pub(super) type Key = (u16, u64);
/// A request that is to go now: queue and token.
pub(super) type Go = (u16, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Member {
    turn: OrderBy,
    /// Order of arrival, for equal turns.
    arrival: u32,
    place: Go,
}

#[derive(Debug)]
struct Group {
    rule: String,
    size: u32,
    arrived: u32,
    waiting: Vec<Member>,
    running: bool,
    /// Who goes now.
    going: Option<Go>,
    /// When it runs as it is, and whose worker looks at that clock.
    until: Option<(Instant, u16)>,
}

/// What a group that waits looks like from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Waiting {
    pub rule: String,
    pub waiting: usize,
    pub size: u32,
}

/// See the module.
#[derive(Default)]
pub(super) struct Groups {
    groups: Mutex<BTreeMap<Key, Group>>,
    /// Of `groups`: whoever finds none takes no lock.
    count: AtomicUsize,
    /// One was forgotten, and nobody was told.
    forgot: AtomicBool,
    /// It was told once.
    said: AtomicBool,
}

impl Group {
    fn next(&mut self) -> Option<Go> {
        if !self.running || self.going.is_some() {
            return None;
        }
        let (first, _) = self.waiting.iter().enumerate().min_by_key(|(_, m)| **m)?;
        self.going = Some(self.waiting.swap_remove(first).place);
        self.going
    }

    fn run(&mut self) -> Option<Go> {
        self.running = true;
        self.until = None;
        self.next()
    }

    fn is_over(&self) -> bool {
        self.arrived >= self.size && self.waiting.is_empty() && self.going.is_none()
    }
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn settle(&self, groups: &mut BTreeMap<Key, Group>) {
        groups.retain(|_, g| !g.is_over());
        if groups.len() > MAX_GROUPS {
            let idle = |g: &Group| g.waiting.is_empty() && g.going.is_none();
            let oldest = groups.iter().find(|(_, g)| idle(g)).map(|(&key, _)| key);
            if oldest.and_then(|key| groups.remove(&key)).is_some() {
                self.forgot.store(true, Ordering::Relaxed);
            }
        }
        self.count.store(groups.len(), Ordering::Release);
    }

    /// A request takes its place.
    pub fn join(&self, key: Key, rule: &str, slot: &OrderSlot, place: Go) -> Option<Go> {
        self.arrive(key, rule, slot, place.0, Some(place))
    }

    /// A request that was to take a place will not come: it is not waited for.
    pub fn pass(&self, key: Key, rule: &str, slot: &OrderSlot, queue: u16) -> Option<Go> {
        self.arrive(key, rule, slot, queue, None)
    }

    fn arrive(
        &self,
        key: Key,
        rule: &str,
        slot: &OrderSlot,
        queue: u16,
        place: Option<Go>,
    ) -> Option<Go> {
        let mut groups = self.lock();
        let group = groups.entry(key).or_insert_with(|| Group {
            rule: rule.to_owned(),
            size: slot.size,
            arrived: 0,
            waiting: Vec::new(),
            running: false,
            going: None,
            until: None,
        });
        // Time counts from the first that waits.
        if let (Some(limit), Some(_)) = (slot.limit_ns, place)
            && !group.running
            && group.waiting.is_empty()
        {
            let until = Instant::now().checked_add(Duration::from_nanos(limit));
            group.until = until.map(|until| (until, queue));
        }
        group.waiting.extend(place.map(|place| Member {
            turn: slot.turn,
            arrival: group.arrived,
            place,
        }));
        group.arrived += 1;
        let go = if group.arrived >= group.size {
            group.run()
        } else {
            group.next()
        };
        self.settle(&mut groups);
        go
    }

    /// A request of the group was completed, or is lost: the next one's turn.
    pub fn over(&self, key: Key, place: Go) -> Option<Go> {
        let mut groups = self.lock();
        let group = groups.get_mut(&key)?;
        group.waiting.retain(|m| m.place != place);
        if group.going == Some(place) {
            group.going = None;
        }
        let next = group.next();
        self.settle(&mut groups);
        next
    }

    /// A request goes without waiting for its turn: its ring stops.
    pub fn leave(&self, key: Key, place: Go) {
        if let Some(group) = self.lock().get_mut(&key) {
            group.waiting.retain(|m| m.place != place);
        }
    }

    /// Groups of the rule (`None`: of any) run as they are. How many requests that lets go.
    pub fn release(&self, rule: Option<&str>) -> (Vec<Go>, u64) {
        let mut groups = self.lock();
        let mut count = 0;
        let named = |g: &&mut Group| !g.running && rule.is_none_or(|rule| rule == g.rule);
        let go = groups.values_mut().filter(named).filter_map(|group| {
            count += group.waiting.len() as u64;
            group.run()
        });
        (go.collect(), count)
    }

    /// Whether one has been forgotten for want of room, for the first time: what to say.
    pub fn first_forgotten(&self) -> Option<String> {
        let forgot = self.forgot.load(Ordering::Relaxed);
        (forgot && !self.said.swap(true, Ordering::Relaxed)).then(|| {
            format!(
                "more than {MAX_GROUPS} groups of planned orders are not whole: the oldest is \
                 forgotten, and who comes late to it begins it anew"
            )
        })
    }

    /// Whether there are none: a look without a lock.
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Groups whose time is over run as they are.
    pub fn expire(&self, queue: u16, now: Instant) -> Vec<Go> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut groups = self.lock();
        let late = |g: &&mut Group| g.until.is_some_and(|(at, q)| q == queue && at <= now);
        let late = groups.values_mut().filter(late);
        late.filter_map(Group::run).collect()
    }

    /// When [`Groups::expire`] has something to do for the queue.
    pub fn deadline(&self, queue: u16) -> Option<Instant> {
        if self.is_empty() {
            return None;
        }
        let groups = self.lock();
        let mine = groups.values().filter_map(|g| g.until);
        mine.filter(|u| u.1 == queue).map(|u| u.0).min()
    }

    /// Groups that wait for more requests.
    pub fn waiting(&self) -> Vec<Waiting> {
        let groups = self.lock();
        let waiting = groups.values().filter(|g| !g.waiting.is_empty());
        let shown = waiting.map(|g| Waiting {
            rule: g.rule.clone(),
            waiting: g.waiting.len(),
            size: g.size,
        });
        shown.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(turn: u32, size: u32) -> OrderSlot {
        OrderSlot {
            group: 0,
            size,
            turn: OrderBy::Turn(turn),
            limit_ns: None,
        }
    }

    #[test]
    fn one_after_the_other_across_queues() {
        let groups = Groups::default();
        let key = (0, 0);
        assert_eq!(groups.join(key, "r", &slot(2, 3), (0, 10)), None);
        assert_eq!(groups.join(key, "r", &slot(0, 3), (1, 11)), None);
        assert_eq!(groups.waiting()[0].waiting, 2);
        assert_eq!(groups.join(key, "r", &slot(1, 3), (0, 12)), Some((1, 11)));
        assert_eq!(groups.over(key, (1, 11)), Some((0, 12)));
        assert_eq!(groups.over(key, (0, 12)), Some((0, 10)));
        assert_eq!(groups.over(key, (0, 10)), None);
        assert!(groups.lock().is_empty());
    }

    #[test]
    fn a_stop_a_release_and_a_straggler() {
        let groups = Groups::default();
        let key = (0, 0);
        groups.join(key, "r", &slot(0, 4), (0, 1));
        groups.join(key, "r", &slot(1, 4), (1, 2));
        groups.leave(key, (0, 1));
        assert_eq!(groups.over(key, (0, 1)), None);
        assert_eq!(groups.release(Some("other")), (vec![], 0));
        assert_eq!(groups.release(None), (vec![(1, 2)], 1));
        assert_eq!(groups.join(key, "r", &slot(3, 4), (1, 3)), None);
        assert_eq!(groups.over(key, (1, 2)), Some((1, 3)));
        assert_eq!(groups.over(key, (1, 3)), None);
        // It runs already: nobody is waited for.
        assert_eq!(groups.join(key, "r", &slot(2, 4), (0, 4)), Some((0, 4)));
        assert_eq!(groups.over(key, (0, 4)), None);
        assert!(groups.lock().is_empty());
    }

    #[test]
    fn who_will_not_come_is_not_waited_for() {
        let groups = Groups::default();
        let key = (0, 0);
        // The first of all, one in the middle, and the last.
        assert_eq!(groups.pass(key, "r", &slot(0, 4), 0), None);
        assert_eq!(groups.deadline(0), None);
        assert_eq!(groups.join(key, "r", &slot(2, 4), (0, 1)), None);
        assert_eq!(groups.join(key, "r", &slot(1, 4), (1, 2)), None);
        assert_eq!(groups.pass(key, "r", &slot(3, 4), 1), Some((1, 2)));
        assert_eq!(groups.over(key, (1, 2)), Some((0, 1)));
        assert_eq!(groups.over(key, (0, 1)), None);
        assert!(groups.lock().is_empty());
    }

    #[test]
    fn time_runs_out_where_the_first_came() {
        let groups = Groups::default();
        let limited = OrderSlot {
            limit_ns: Some(1),
            ..slot(0, 2)
        };
        assert_eq!(groups.deadline(3), None);
        groups.join((0, 0), "r", &limited, (3, 1));
        let at = groups.deadline(3).unwrap();
        assert_eq!(groups.deadline(0), None);
        assert_eq!(groups.expire(3, at), [(3, 1)]);
        assert_eq!(groups.deadline(3), None);
    }
}
