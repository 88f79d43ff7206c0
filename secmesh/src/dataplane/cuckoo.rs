//! Where the hosts of a bucketed cuckoo hash are, and the writes that bring the kernel's copy up to date.
//!
//! The kernel only reads; all moving is done here. A host that must make room is written in its other bucket
//! first and only then overwritten in the first, so a reader finds it at any time.

use std::collections::HashSet;

use secmesh_common::list::{EXPIRY_NEVER, MIN_BUCKETS};

use super::TableError;

/// Longest chain of moves before an insertion gives up.
const MAX_MOVES: usize = 500;

/// A family's keys and hash.
pub(super) trait Geometry {
    /// An address in host byte order.
    type Key: Copy + Ord + std::hash::Hash;
    /// Slots in one bucket.
    const SLOTS: usize;
    /// Of so many slots of 8 at most are used, so that insertions find room and most hosts are in the bucket
    /// that is looked at first.
    const LOAD_EIGHTHS: usize;
    /// Buckets that share what is said of the soonest end.
    const GROUP: usize;
    /// The two buckets of a key among so many.
    fn places(key: Self::Key, seed: u64, buckets: u32) -> [u32; 2];
}

/// What a host carries: its end in kernel units and its list.
pub(super) type Value = (u32, u16);

/// Buckets that hold `hosts` hosts of a geometry at its load.
pub(super) fn buckets_for<G: Geometry>(hosts: u32) -> u32 {
    let slots = u64::from(hosts) * 8;
    let of_one = (G::SLOTS * G::LOAD_EIGHTHS).max(1) as u64;
    u32::try_from(slots.div_ceil(of_one))
        .unwrap_or(u32::MAX)
        .max(MIN_BUCKETS)
}

/// Slots of so many buckets.
pub(super) fn slots_of<G: Geometry>(buckets: u32) -> u32 {
    buckets.saturating_mul(u32::try_from(G::SLOTS).unwrap_or(u32::MAX))
}

/// One bucket that has to be written.
pub(super) struct Write<'a, K: Copy> {
    pub bucket: u32,
    /// The one slot that changes.
    pub slot: usize,
    /// All slots of the bucket as they are to be.
    pub slots: &'a [Option<(K, Value)>],
    /// All slots of the buckets of its group.
    pub group: &'a [Option<(K, Value)>],
}

impl<K: Copy> Write<'_, K> {
    /// What the changed slot is to hold.
    pub fn value(&self) -> Option<Value> {
        let (_, value) = self.slots.get(self.slot).copied().flatten()?;
        Some(value)
    }

    /// When the first host of the group ends.
    pub fn soonest(&self) -> u32 {
        let ends = self
            .group
            .iter()
            .flatten()
            .map(|(_, (expires, _))| *expires);
        ends.min().unwrap_or(EXPIRY_NEVER)
    }
}

/// The user-space side of one host table.
pub(super) struct Cuckoo<G: Geometry> {
    seed: u64,
    buckets: u32,
    slots: Vec<Option<(G::Key, Value)>>,
    len: usize,
    /// State of the walk's choices; any non-zero value does.
    walk: u64,
}

type Sink<'a, K> = &'a mut dyn FnMut(Write<'_, K>) -> Result<(), TableError>;

impl<G: Geometry> Cuckoo<G> {
    /// An empty table of so many buckets.
    pub fn new(seed: u64, buckets: u32) -> Self {
        Self {
            seed,
            buckets,
            slots: vec![None; buckets as usize * G::SLOTS],
            len: 0,
            walk: seed | 1,
        }
    }

    /// Number of buckets.
    pub fn buckets(&self) -> u32 {
        self.buckets
    }

    /// Hosts in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Hosts that it takes.
    pub fn capacity(&self) -> usize {
        self.slots.len() * G::LOAD_EIGHTHS / 8
    }

    /// Notes a host that the kernel's table holds already; nothing if it cannot be found there, as what fills a
    /// free slot cannot.
    pub fn learn(&mut self, key: G::Key, value: Value, bucket: u32, slot: usize) {
        if !G::places(key, self.seed, self.buckets).contains(&bucket) {
            return;
        }
        let at = bucket as usize * G::SLOTS + slot;
        if let Some(place) = self.slots.get_mut(at) {
            if place.is_none() {
                self.len += 1;
            }
            *place = Some((key, value));
        }
    }

    /// What should be in a bucket.
    pub fn bucket(&self, bucket: u32) -> &[Option<(G::Key, Value)>] {
        let start = bucket as usize * G::SLOTS;
        self.slots.get(start..start + G::SLOTS).unwrap_or_default()
    }

    /// What should be in the buckets of its group.
    pub fn group(&self, bucket: u32) -> &[Option<(G::Key, Value)>] {
        let size = G::GROUP * G::SLOTS;
        let start = bucket as usize / G::GROUP.max(1) * size;
        let end = self.slots.len().min(start + size);
        self.slots.get(start..end).unwrap_or_default()
    }

    /// Bucket and slot of a host.
    pub fn find(&self, key: G::Key) -> Option<(u32, usize)> {
        G::places(key, self.seed, self.buckets)
            .into_iter()
            .find_map(|bucket| {
                let slot = self
                    .bucket(bucket)
                    .iter()
                    .position(|s| s.is_some_and(|(k, _)| k == key))?;
                Some((bucket, slot))
            })
    }

    fn put(
        &mut self,
        bucket: u32,
        slot: usize,
        host: Option<(G::Key, Value)>,
        sink: Sink<'_, G::Key>,
    ) -> Result<(), TableError> {
        let at = bucket as usize * G::SLOTS + slot;
        let Some(place) = self.slots.get_mut(at) else {
            return Ok(());
        };
        let old = std::mem::replace(place, host);
        let slots = self.bucket(bucket);
        let group = self.group(bucket);
        if let Err(error) = sink(Write {
            bucket,
            slot,
            slots,
            group,
        }) {
            if let Some(place) = self.slots.get_mut(at) {
                *place = old;
            }
            return Err(error);
        }
        self.len = self.len + usize::from(host.is_some()) - usize::from(old.is_some());
        Ok(())
    }

    fn random(&mut self) -> u64 {
        // xorshift64 (Marsaglia 2003): which way a walk turns need not be secret.
        self.walk ^= self.walk << 13;
        self.walk ^= self.walk >> 7;
        self.walk ^= self.walk << 17;
        self.walk
    }

    /// Finds the chain of moves that frees a slot for a host with these two places: the slots from the one
    /// that the host takes to the free one.
    fn path(&mut self, places: [u32; 2]) -> Option<Vec<(u32, usize)>> {
        for bucket in places {
            if let Some(slot) = self.bucket(bucket).iter().position(Option::is_none) {
                return Some(vec![(bucket, slot)]);
            }
        }
        let mut path: Vec<(u32, usize)> = Vec::new();
        let first = usize::from(self.random() & 1 == 1);
        let mut bucket = *places.get(first)?;
        for _ in 0..MAX_MOVES {
            if let Some(slot) = self.bucket(bucket).iter().position(Option::is_none) {
                path.push((bucket, slot));
                return Some(path);
            }
            let turn = self.random();
            let slot = usize::try_from(turn >> 33).unwrap_or(0) % G::SLOTS;
            if path.contains(&(bucket, slot)) {
                continue;
            }
            path.push((bucket, slot));
            let (key, _) = (*self.bucket(bucket).get(slot)?)?;
            let [a, b] = G::places(key, self.seed, self.buckets);
            bucket = if a == bucket { b } else { a };
        }
        None
    }

    fn insert(
        &mut self,
        key: G::Key,
        value: Value,
        sink: Sink<'_, G::Key>,
    ) -> Result<bool, TableError> {
        if let Some((bucket, slot)) = self.find(key) {
            let same = self.bucket(bucket).get(slot) == Some(&Some((key, value)));
            if !same {
                self.put(bucket, slot, Some((key, value)), sink)?;
            }
            return Ok(false);
        }
        let places = G::places(key, self.seed, self.buckets);
        let path = (0..8)
            .find_map(|_| self.path(places))
            .ok_or(TableError::Crowded)?;
        // From the free end: each host is in its new slot before its old one is given away.
        for pair in path.windows(2).rev() {
            let [(from, from_slot), (to, to_slot)] = pair else {
                continue;
            };
            let host = self.bucket(*from).get(*from_slot).copied().flatten();
            self.put(*to, *to_slot, host, sink)?;
        }
        if let Some((bucket, slot)) = path.first() {
            self.put(*bucket, *slot, Some((key, value)), sink)?;
        }
        Ok(true)
    }

    /// Makes the table hold exactly `wanted`: takes out what is not in it, then puts in what is missing.
    /// Returns how many came and went.
    ///
    /// Whatever happens, a host that is in the table and in `wanted` is found at any time. A failure between
    /// the two writes of a move, or an agent's end there, leaves a host in both its places; then the place
    /// that is not looked at first is cleared here, so that no old copy outlives a change.
    ///
    /// # Errors
    ///
    /// What the sink says, or [`TableError::Crowded`]. Part of the work is done then; calling again goes on.
    pub fn replace(
        &mut self,
        wanted: impl Iterator<Item = (G::Key, Value)> + Clone,
        sink: Sink<'_, G::Key>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(usize, usize), TableError> {
        let mut removed = 0;
        if self.len > 0 {
            let keep: HashSet<G::Key> = wanted.clone().map(|(k, _)| k).collect();
            for bucket in 0..self.buckets {
                for slot in 0..G::SLOTS {
                    let host = self.bucket(bucket).get(slot).copied().flatten();
                    let Some((key, _)) = host else { continue };
                    let stray = self.find(key) != Some((bucket, slot));
                    if stray || !keep.contains(&key) {
                        self.put(bucket, slot, None, sink)?;
                        removed += usize::from(self.find(key).is_none());
                    }
                }
            }
        }
        let mut added = 0;
        for (n, (key, value)) in wanted.enumerate() {
            if self.insert(key, value, sink)? {
                added += 1;
            }
            if n % 4096 == 0 {
                progress(n);
            }
        }
        Ok((added, removed))
    }
}
