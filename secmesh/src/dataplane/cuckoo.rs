//! Where the hosts of a bucketed cuckoo hash are, and the writes that bring the kernel's copy up to date.
//!
//! The kernel only reads; all moving is done here. A host that must make room is written in its other bucket
//! first and only then overwritten in the first, so a reader finds it at any time. Hosts that come into free slots,
//! that change in their slots or that go are written many at a time; a move is written by itself.

use std::collections::{BTreeSet, HashSet};

use secmesh_common::list::MIN_BUCKETS;

use super::TableError;

/// Longest chain of moves before an insertion gives up.
const MAX_MOVES: usize = 500;
/// Changes that wait to be written together: many, so that those of one bucket become one write.
const MOST_WAITING: usize = 1 << 16;

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

/// Buckets that hold `hosts` hosts of a geometry at its load, an even number.
pub(super) fn buckets_for<G: Geometry>(hosts: u32) -> u32 {
    let slots = u64::from(hosts) * 8;
    let of_one = (G::SLOTS * G::LOAD_EIGHTHS).max(1) as u64;
    u32::try_from(slots.div_ceil(of_one).next_multiple_of(2))
        .unwrap_or(!1)
        .max(MIN_BUCKETS)
}

/// Slots of so many buckets.
pub(super) fn slots_of<G: Geometry>(buckets: u32) -> u32 {
    buckets.saturating_mul(u32::try_from(G::SLOTS).unwrap_or(u32::MAX))
}

/// A host and what it carries; none is a free slot.
pub(super) type Slot<K> = Option<(K, Value)>;

/// How changes have to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Hosts that come into free slots, or that stay and carry something else. Nobody looks for them yet, or whoever
    /// finds them may find either: in any order, what is beside a slot first.
    Come,
    /// Hosts that go: in any order, what is beside a slot last.
    Go,
    /// One slot whose host is in its other bucket, too, and gives way: whoever looks must be told before.
    Move,
}

/// A slot that has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Change<K> {
    pub bucket: u32,
    pub slot: usize,
    /// What was there.
    old: Slot<K>,
}

/// Where the writes go.
pub(super) trait Sink<G: Geometry> {
    /// Writes what `table` has in these slots.
    ///
    /// # Errors
    /// The kernel's refusal; part of it may be written then.
    fn publish(
        &mut self,
        table: &Cuckoo<G>,
        way: Way,
        changes: &[Change<G::Key>],
    ) -> Result<(), TableError>;
}

/// The user-space side of one host table.
pub(super) struct Cuckoo<G: Geometry> {
    seed: u64,
    buckets: u32,
    slots: Vec<Slot<G::Key>>,
    len: usize,
    /// State of the walk's choices; any non-zero value does.
    walk: u64,
    /// Changes that are to be written, all of them one way.
    waiting: Vec<Change<G::Key>>,
    way: Way,
    /// Slots of which a refused write may have changed something.
    unsure: BTreeSet<(u32, usize)>,
}

impl<G: Geometry> Cuckoo<G> {
    /// An empty table of so many buckets.
    pub fn new(seed: u64, buckets: u32) -> Self {
        Self {
            seed,
            buckets,
            slots: vec![None; buckets as usize * G::SLOTS],
            len: 0,
            walk: seed | 1,
            waiting: Vec::new(),
            way: Way::Come,
            unsure: BTreeSet::new(),
        }
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
    pub fn bucket(&self, bucket: u32) -> &[Slot<G::Key>] {
        let start = bucket as usize * G::SLOTS;
        self.slots.get(start..start + G::SLOTS).unwrap_or_default()
    }

    /// What should be in the buckets of its group.
    pub fn group(&self, bucket: u32) -> &[Slot<G::Key>] {
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

    /// Changes a slot, now in the table and with the next [`Cuckoo::flush`] in the kernel.
    fn put(
        &mut self,
        (bucket, slot): (u32, usize),
        host: Slot<G::Key>,
        sink: &mut dyn Sink<G>,
    ) -> Result<(), TableError> {
        let at = bucket as usize * G::SLOTS + slot;
        let Some(old) = self.slots.get(at).copied() else {
            return Ok(());
        };
        let way = match (old, host) {
            (Some((old, _)), Some((new, _))) if old != new => Way::Move,
            (_, Some(_)) => Way::Come,
            // The rest of a move that was not finished.
            (Some((old, _)), None) if self.find(old) != Some((bucket, slot)) => Way::Move,
            (_, None) => Way::Go,
        };
        if way != self.way || way == Way::Move || self.waiting.len() >= MOST_WAITING {
            self.flush(sink)?;
        }
        self.way = way;
        self.set(at, host);
        self.waiting.push(Change { bucket, slot, old });
        Ok(())
    }

    fn set(&mut self, at: usize, host: Slot<G::Key>) {
        if let Some(place) = self.slots.get_mut(at) {
            self.len = self.len + usize::from(host.is_some()) - usize::from(place.is_some());
            *place = host;
        }
    }

    /// Writes what waits.
    fn flush(&mut self, sink: &mut dyn Sink<G>) -> Result<(), TableError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let result = sink.publish(self, self.way, &waiting);
        if result.is_err() {
            // Some may be written and some not. Whatever the kernel may have is kept here, so that what is wanted the
            // next time, too, is not taken out between; it is written once more then.
            for change in waiting.iter().rev() {
                if self.way != Way::Come {
                    let at = change.bucket as usize * G::SLOTS + change.slot;
                    self.set(at, change.old);
                }
                self.unsure.insert((change.bucket, change.slot));
            }
        }
        // Its memory is used again.
        self.waiting = waiting;
        self.waiting.clear();
        result
    }

    /// Writes the slots of which it is not known what the kernel has.
    fn settle(&mut self, sink: &mut dyn Sink<G>) -> Result<(), TableError> {
        if self.unsure.is_empty() {
            return Ok(());
        }
        let changes: Vec<Change<G::Key>> = self
            .unsure
            .iter()
            .map(|(bucket, slot)| Change {
                bucket: *bucket,
                slot: *slot,
                old: self.bucket(*bucket).get(*slot).copied().flatten(),
            })
            .collect();
        sink.publish(self, Way::Come, &changes)?;
        self.unsure.clear();
        Ok(())
    }

    fn random(&mut self) -> u64 {
        // xorshift64 (Marsaglia 2003): which way a walk turns need not be secret.
        self.walk ^= self.walk << 13;
        self.walk ^= self.walk >> 7;
        self.walk ^= self.walk << 17;
        self.walk
    }

    /// The first free slot of a bucket.
    fn free_in(&self, bucket: u32) -> Option<(u32, usize)> {
        let slot = self.bucket(bucket).iter().position(Option::is_none)?;
        Some((bucket, slot))
    }

    /// The other bucket of the host in a slot.
    fn other_of(&self, (bucket, slot): (u32, usize)) -> Option<u32> {
        let (key, _) = (*self.bucket(bucket).get(slot)?)?;
        let [a, b] = G::places(key, self.seed, self.buckets);
        Some(if a == bucket { b } else { a })
    }

    /// Finds the chain of moves that frees a slot for a host with these two places: the slots from the one
    /// that the host takes to the free one.
    fn path(&mut self, places: [u32; 2]) -> Option<Vec<(u32, usize)>> {
        if let Some(free) = places.into_iter().find_map(|bucket| self.free_in(bucket)) {
            return Some(vec![free]);
        }
        // One move, if one is enough: a walk moves a dozen hosts, most of them away from the bucket that is looked at
        // first. With walks alone one host of 13 (15 slots) or of 10 (12 slots) was in its second one, of a table at
        // 7/8; it is one of 16, or of 13.
        for bucket in places {
            for slot in 0..G::SLOTS {
                let other = self.other_of((bucket, slot));
                if let Some(free) = other.and_then(|other| self.free_in(other)) {
                    return Some(vec![(bucket, slot), free]);
                }
            }
        }
        let mut path: Vec<(u32, usize)> = Vec::new();
        let first = usize::from(self.random() & 1 == 1);
        let mut bucket = *places.get(first)?;
        for _ in 0..MAX_MOVES {
            if let Some(free) = self.free_in(bucket) {
                path.push(free);
                return Some(path);
            }
            let turn = self.random();
            let slot = usize::try_from(turn >> 33).unwrap_or(0) % G::SLOTS;
            if path.contains(&(bucket, slot)) {
                continue;
            }
            path.push((bucket, slot));
            bucket = self.other_of((bucket, slot))?;
        }
        None
    }

    fn insert(
        &mut self,
        key: G::Key,
        value: Value,
        sink: &mut dyn Sink<G>,
    ) -> Result<bool, TableError> {
        let host = Some((key, value));
        if let Some((bucket, slot)) = self.find(key) {
            if self.bucket(bucket).get(slot) != Some(&host) {
                self.put((bucket, slot), host, sink)?;
            }
            return Ok(false);
        }
        let places = G::places(key, self.seed, self.buckets);
        let path = (0..8)
            .find_map(|_| self.path(places))
            .ok_or(TableError::Crowded)?;
        // From the free end: each host is in its new slot before its old one is given away.
        for pair in path.windows(2).rev() {
            let [(from, from_slot), to] = pair else {
                continue;
            };
            let host = self.bucket(*from).get(*from_slot).copied().flatten();
            self.put(*to, host, sink)?;
        }
        if let Some(place) = path.first() {
            self.put(*place, host, sink)?;
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
        sink: &mut dyn Sink<G>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(usize, usize), TableError> {
        self.settle(sink)?;
        let result = self.make(wanted, sink, progress);
        // What waits goes the same way if it was too crowded.
        let flushed = self.flush(sink);
        let counts = result?;
        flushed.map(|()| counts)
    }

    fn make(
        &mut self,
        wanted: impl Iterator<Item = (G::Key, Value)> + Clone,
        sink: &mut dyn Sink<G>,
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
                        self.put((bucket, slot), None, sink)?;
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
