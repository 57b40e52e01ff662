// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A table of what is in flight. A key is a place and how often the place was
//! given out: finding is one look, and a key of something that has gone finds nothing.

/// See the module.
pub(super) struct Slab<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
}

struct Place<T> {
    /// The upper half of the key.
    round: u32,
    value: Option<T>,
}

impl<T> Default for Slab<T> {
    fn default() -> Slab<T> {
        Slab {
            places: Vec::new(),
            free: Vec::new(),
        }
    }
}

fn place(key: u64) -> usize {
    key as u32 as usize
}

impl<T> Slab<T> {
    /// Puts something in; its key.
    pub fn insert(&mut self, value: T) -> u64 {
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.places.push(Place {
                    round: 0,
                    value: None,
                });
                // A ring has at most 32768 entries, a request few operations.
                (self.places.len() - 1) as u32
            }
        };
        let place = &mut self.places[at as usize];
        place.round = place.round.wrapping_add(1);
        place.value = Some(value);
        u64::from(place.round) << 32 | u64::from(at)
    }

    /// Takes something out.
    pub fn remove(&mut self, key: u64) -> Option<T> {
        let at = place(key);
        let found = self.places.get_mut(at)?;
        if found.round != round(key) {
            return None;
        }
        let value = found.value.take()?;
        self.free.push(at as u32);
        Some(value)
    }

    /// Whether something is in under this key.
    pub fn contains(&self, key: u64) -> bool {
        let found = self.places.get(place(key));
        found.is_some_and(|found| found.round == round(key) && found.value.is_some())
    }

    /// All, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.places.iter().filter_map(|place| place.value.as_ref())
    }

    /// Takes out what is not to stay, by key.
    pub fn retain(&mut self, stays: impl Fn(u64) -> bool) {
        for (at, place) in (0..).zip(&mut self.places) {
            let key = u64::from(place.round) << 32 | u64::from(at);
            if place.value.is_some() && !stays(key) {
                place.value = None;
                self.free.push(at);
            }
        }
    }

    /// How many are in.
    pub fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn round(key: u64) -> u32 {
    (key >> 32) as u32
}

/// Values under the keys of a [`Slab`] that somebody else has.
pub(super) struct Keyed<T>(Vec<Option<(u64, T)>>);

impl<T> Default for Keyed<T> {
    fn default() -> Keyed<T> {
        Keyed(Vec::new())
    }
}

impl<T> Keyed<T> {
    /// Puts a value in, in place of what was there under an earlier key of the same place.
    pub fn insert(&mut self, key: u64, value: T) {
        let at = place(key);
        if at >= self.0.len() {
            self.0.resize_with(at + 1, || None);
        }
        self.0[at] = Some((key, value));
    }

    pub fn get(&self, key: u64) -> Option<&T> {
        let found = self.0.get(place(key))?.as_ref();
        found.filter(|f| f.0 == key).map(|f| &f.1)
    }

    pub fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let found = self.0.get_mut(place(key))?.as_mut();
        found.filter(|f| f.0 == key).map(|f| &mut f.1)
    }

    pub fn remove(&mut self, key: u64) -> Option<T> {
        let found = self.0.get_mut(place(key))?;
        found.take_if(|f| f.0 == key).map(|f| f.1)
    }

    /// All, with their keys, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.0.iter().flatten().map(|(key, value)| (*key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::{Keyed, Slab};

    #[test]
    fn a_key_of_something_gone_finds_nothing() {
        let mut slab = Slab::default();
        let (a, b) = (slab.insert('a'), slab.insert('b'));
        assert_eq!(slab.len(), 2);
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!((slab.remove(a), slab.len()), (None, 1));
        let c = slab.insert('c');
        assert_ne!(a, c);
        assert_eq!(slab.remove(a), None);
        assert_eq!(slab.remove(u64::MAX), None);
        let d = slab.insert('d');
        slab.retain(|key| key != d);
        assert_eq!(slab.iter().collect::<String>(), "cb");
        assert!(slab.contains(b) && slab.contains(c));
        assert!(!slab.contains(a) && !slab.contains(d));
        assert_eq!((slab.remove(b), slab.remove(c)), (Some('b'), Some('c')));
        assert!(slab.is_empty() && !slab.contains(b));
    }

    #[test]
    fn values_under_the_keys_of_another() {
        let mut slab = Slab::default();
        let mut keyed = Keyed::default();
        let (a, b) = (slab.insert(()), slab.insert(()));
        keyed.insert(b, 'b');
        keyed.insert(a, 'a');
        slab.remove(a);
        let c = slab.insert(());
        assert_eq!(keyed.get(c), None);
        assert_eq!(keyed.remove(c), None);
        keyed.insert(c, 'c');
        assert_eq!(keyed.get(a), None);
        assert_eq!(keyed.get_mut(c), Some(&mut 'c'));
        assert_eq!(keyed.iter().collect::<Vec<_>>(), [(c, &'c'), (b, &'b')]);
        assert_eq!(keyed.remove(b), Some('b'));
        assert_eq!(keyed.remove(b), None);
    }
}
