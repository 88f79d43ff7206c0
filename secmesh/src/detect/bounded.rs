//! A map that never grows beyond its capacity.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// A map with a capacity; when it is full, the entry that was inserted first goes.
///
/// Entries are dropped in order of insertion and not of use: keeping the order of use would cost a
/// write per look-up, and what is stored here is worthless soon after it was put in.
#[derive(Debug)]
pub struct BoundedMap<K, V> {
    capacity: usize,
    entries: HashMap<K, (u64, V)>,
    order: VecDeque<(u64, K)>,
    next: u64,
    /// Entries that had to go.
    evicted: u64,
}

impl<K: Eq + Hash + Copy, V> BoundedMap<K, V> {
    /// An empty map for at most `capacity` entries (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            entries: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
            evicted: 0,
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, v)| v)
    }

    /// The value of `key`, to change it.
    pub fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        self.entries.get_mut(key).map(|(_, v)| v)
    }

    /// The value of `key`, made by `make` if it is new.
    pub fn get_or_insert_with(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(&key) {
            self.make_room();
            self.order.push_back((self.next, key));
            self.next += 1;
        }
        let stamp = self.next.saturating_sub(1);
        &mut self.entries.entry(key).or_insert_with(|| (stamp, make())).1
    }

    /// Sets the value of `key`.
    pub fn insert(&mut self, key: K, value: V) {
        if let Some(slot) = self.get_mut(&key) {
            *slot = value;
        } else {
            self.get_or_insert_with(key, || value);
        }
    }

    /// Takes `key` out.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        // Its place in the order stays until it comes to the front, where its stamp no longer matches.
        let removed = self.entries.remove(key).map(|(_, v)| v);
        if self.order.len() > self.capacity.saturating_mul(2) {
            let entries = &self.entries;
            self.order
                .retain(|(stamp, key)| entries.get(key).is_some_and(|(s, _)| s == stamp));
        }
        removed
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many entries had to go so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    fn make_room(&mut self) {
        while self.entries.len() >= self.capacity {
            let Some((stamp, key)) = self.order.pop_front() else {
                return;
            };
            if self.entries.get(&key).is_some_and(|(s, _)| *s == stamp) {
                self.entries.remove(&key);
                self.evicted += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_entry_goes_when_it_is_full() {
        let mut map = BoundedMap::new(2);
        map.insert(1, "a");
        map.insert(2, "b");
        map.insert(1, "c");
        map.insert(3, "d");
        assert_eq!(
            (map.get(&1), map.get(&2), map.get(&3)),
            (None, Some(&"b"), Some(&"d"))
        );
        assert_eq!((map.len(), map.evicted()), (2, 1));
    }

    #[test]
    fn an_entry_that_came_back_keeps_its_new_place() {
        let mut map = BoundedMap::new(2);
        map.insert(1, 1);
        map.insert(2, 2);
        map.remove(&1);
        map.insert(1, 3);
        map.insert(4, 4);
        assert_eq!(
            (map.get(&1), map.get(&2), map.get(&4)),
            (Some(&3), None, Some(&4))
        );
    }

    #[test]
    fn removing_and_inserting_for_ever_does_not_grow() {
        let mut map = BoundedMap::new(4);
        for n in 0..10_000 {
            map.insert(n, n);
            map.remove(&n);
        }
        assert!(map.order.len() <= 9 && map.is_empty());
    }
}
