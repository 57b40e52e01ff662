// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table of what is in flight, by numbers that mostly ascend.
//!
//! The place of a number is its low bits: numbers near each other never share one. Those
//! that do, because something has been in flight for long, lie in a map beside it. As large
//! as what was in flight at one time, whatever the numbers are.

use super::fast_hash::NumberMap;

/// Places at the begin: a power of two.
const FIRST: usize = 64;

/// See the module.
#[derive(Debug)]
pub struct Slots<V> {
    places: Vec<Option<(u64, V)>>,
    beside: NumberMap<V>,
    len: usize,
}

impl<V> Default for Slots<V> {
    fn default() -> Slots<V> {
        Slots {
            places: Vec::new(),
            beside: NumberMap::default(),
            len: 0,
        }
    }
}

impl<V> Slots<V> {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts a value in; one of the same number gives way.
    pub fn insert(&mut self, number: u64, value: V) {
        if self.len * 2 >= self.places.len() {
            self.grow();
        }
        if !self.beside.is_empty() && self.beside.remove(&number).is_some() {
            self.len -= 1;
        }
        let at = self.at(number);
        let Some(place) = self.places.get_mut(at) else {
            return;
        };
        match place {
            None => self.len += 1,
            Some((same, _)) if *same == number => {}
            Some(_) => {
                // The newer one takes the place: it is likely to be asked for sooner.
                self.len += 1;
                if let Some((old, value)) = place.take() {
                    self.beside.insert(old, value);
                }
            }
        }
        *place = Some((number, value));
    }

    /// The value of this number.
    #[inline]
    pub fn get(&self, number: u64) -> Option<&V> {
        match self.places.get(self.at(number)) {
            Some(Some((same, value))) if *same == number => Some(value),
            _ => self.beside.get(&number),
        }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, number: u64) -> Option<&mut V> {
        let at = self.at(number);
        match self.places.get_mut(at) {
            Some(Some((same, value))) if *same == number => Some(value),
            _ => self.beside.get_mut(&number),
        }
    }

    /// Takes the value of this number out.
    #[inline]
    pub fn remove(&mut self, number: u64) -> Option<V> {
        let at = self.at(number);
        let value = match self.places.get_mut(at) {
            Some(place) if place.as_ref().is_some_and(|(same, _)| *same == number) => {
                place.take().map(|(_, value)| value)
            }
            _ if self.beside.is_empty() => None,
            _ => self.beside.remove(&number),
        };
        self.len -= usize::from(value.is_some());
        value
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        let placed = self.places.iter().flatten().map(|(_, value)| value);
        placed.chain(self.beside.values())
    }

    /// Keeps those of which this is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        for place in &mut self.places {
            if place.as_ref().is_some_and(|(_, value)| !keep(value)) {
                *place = None;
                self.len -= 1;
            }
        }
        let before = self.beside.len();
        self.beside.retain(|_, value| keep(value));
        self.len -= before - self.beside.len();
    }

    /// Takes all out.
    pub fn clear(&mut self) {
        self.places.iter_mut().for_each(|place| *place = None);
        self.beside.clear();
        self.len = 0;
    }

    #[inline]
    fn at(&self, number: u64) -> usize {
        // A power of two or none: then there is no place to be found.
        number as usize & self.places.len().wrapping_sub(1)
    }

    fn grow(&mut self) {
        let places = (self.places.len() * 2).max(FIRST);
        let old = std::mem::take(&mut self.places);
        let beside = std::mem::take(&mut self.beside);
        self.places.resize_with(places, || None);
        self.len = 0;
        for (number, value) in beside.into_iter().chain(old.into_iter().flatten()) {
            self.put(number, value);
        }
    }

    /// Like `insert`, of a number that is not there, without growing.
    fn put(&mut self, number: u64, value: V) {
        self.len += 1;
        let at = self.at(number);
        match self.places.get_mut(at) {
            Some(place @ None) => *place = Some((number, value)),
            _ => drop(self.beside.insert(number, value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0u64..600, 0u8..6), 0..600)) {
            let mut slots = Slots::default();
            let mut map = BTreeMap::new();
            for (n, (number, what)) in steps.into_iter().enumerate() {
                // Numbers that share their low bits, too.
                let number = number % 40 + (number / 40) * 64;
                match what {
                    0..=2 => {
                        slots.insert(number, n);
                        map.insert(number, n);
                    }
                    3 | 4 => prop_assert_eq!(slots.remove(number), map.remove(&number)),
                    _ if number % 97 == 0 => {
                        slots.retain(|v| v % 3 == 0);
                        map.retain(|_, v| *v % 3 == 0);
                    }
                    _ if number % 89 == 0 => {
                        slots.clear();
                        map.clear();
                    }
                    _ => {
                        if let Some(v) = slots.get_mut(number) {
                            *v += 1;
                        }
                        map.entry(number).and_modify(|v| *v += 1);
                    }
                }
                prop_assert_eq!(slots.get(number), map.get(&number));
                prop_assert_eq!((slots.len(), slots.is_empty()), (map.len(), map.is_empty()));
                let mut values: Vec<_> = slots.values().copied().collect();
                values.sort_unstable();
                let mut right: Vec<_> = map.values().copied().collect();
                right.sort_unstable();
                prop_assert_eq!(values, right);
            }
        }
    }

    #[test]
    fn it_is_as_large_as_what_was_in_flight() {
        let mut slots = Slots::default();
        slots.insert(0, ());
        for n in 1..100_000u64 {
            slots.insert(n, ());
            if n > 32 {
                slots.remove(n - 32);
            }
        }
        // One in flight all the time, 32 others.
        assert!(slots.get(0).is_some());
        assert_eq!((slots.len(), slots.places.len()), (33, 128));
        // Numbers chosen to share a place.
        for n in 0..1000u64 {
            slots.insert(n << 20, ());
        }
        assert!(slots.places.len() <= 4096);
    }
}
