//! One family's host table: the cuckoo hash that says where each host is, and the kernel's maps of it.
//!
//! What is beside a slot is written before its address comes, and cleared after its address went: whoever finds an
//! address finds its own end, or that of the host which takes its place, which matters for a host that is being
//! taken out only.

use std::collections::BTreeMap;

use aya::{
    Pod,
    maps::{Array, MapData},
};
use secmesh_common::list::{
    BUCKET4, BUCKET6, EXPIRY_NEVER, GROUP6_SHIFT, ListBucket4, ListBucket6, Listed, Listed6,
    buckets4, buckets6, lane4, lane6, native, print_keys, print6, word4,
};

use super::{Differences, count, refused};
use crate::dataplane::{
    TableError, batch,
    cell::ConfigCell,
    cuckoo::{Change, Cuckoo, Geometry, Sink, Slot, Value, Way},
    tables::{unconfigured, words},
};

/// A family's host table in the kernel.
pub(in crate::dataplane) trait Family: Geometry {
    /// One element of [`Family::LIST`].
    type Bucket: Pod + PartialEq + Default;
    /// One element of [`Family::LISTED`].
    type Listed: Pod;
    /// The map of buckets.
    const LIST: &'static str;
    /// The map of what is beside their slots.
    const LISTED: &'static str;

    /// A bucket with these hosts; `soonest` is when the first one of its group ends.
    fn bucket(n: u32, slots: &[Slot<Self::Key>], soonest: u32, hash: Hash) -> Self::Bucket;

    /// What is in a slot, of a host or not.
    fn word(bucket: &Self::Bucket, slot: usize) -> Option<u64>;

    /// The host in a slot of the bucket with this number, by what is there and beside it.
    fn host(
        bucket: (u32, &Self::Bucket),
        slot: usize,
        beside: &Self::Listed,
        hash: Hash,
    ) -> Option<Self::Key>;

    /// What goes beside a slot; a free one is all zeros.
    fn listed(host: Slot<Self::Key>) -> Self::Listed;

    /// What is beside a slot, without the address.
    fn beside(listed: &Self::Listed) -> Listed;

    /// Whether the address that is beside a slot is that of its host.
    fn is_beside(listed: &Self::Listed, host: Slot<Self::Key>) -> bool;

    /// When the first host ends, if buckets themselves say so; else a map of groups does.
    fn soonest(bucket: &Self::Bucket) -> Option<u32>;

    /// Says that a host was moved, for those who read meanwhile.
    fn tell_of_move(config: &ConfigCell) -> Result<(), TableError>;
}

/// What places follow from.
#[derive(Debug, Clone, Copy)]
pub(in crate::dataplane) struct Hash {
    seed: u64,
    buckets: u32,
}

/// IPv4 hosts.
pub(in crate::dataplane) struct Four;
/// IPv6 hosts.
pub(in crate::dataplane) struct Six;

impl Geometry for Four {
    type Key = u32;
    const SLOTS: usize = BUCKET4;
    const LOAD_EIGHTHS: usize = 7;
    const GROUP: usize = 1;

    fn places(key: u32, seed: u64, buckets: u32) -> [u32; 2] {
        buckets4(key.to_be(), seed, buckets)
    }
}

impl Geometry for Six {
    type Key = u128;
    const SLOTS: usize = BUCKET6;
    const LOAD_EIGHTHS: usize = 7;
    const GROUP: usize = 1 << GROUP6_SHIFT;

    fn places(key: u128, seed: u64, buckets: u32) -> [u32; 2] {
        buckets6(print(key, seed), buckets)
    }
}

/// The print of an address under the table's keys.
fn print(addr: u128, seed: u64) -> u64 {
    let [low, high] = native(&words(addr.to_be_bytes()));
    print6(low, high, &print_keys(seed))
}

impl Family for Four {
    type Bucket = ListBucket4;
    type Listed = Listed;
    const LIST: &'static str = "LIST4";
    const LISTED: &'static str = "LISTED4";

    fn bucket(n: u32, slots: &[Slot<u32>], soonest: u32, hash: Hash) -> ListBucket4 {
        let free = stranger(n, hash);
        let mut bucket = ListBucket4 {
            lanes: [free; BUCKET4],
            soonest,
        };
        for (to, from) in bucket.lanes.iter_mut().zip(slots) {
            *to = from.map_or(free, |(addr, _)| lane4(addr.to_be()));
        }
        bucket
    }

    fn word(bucket: &ListBucket4, slot: usize) -> Option<u64> {
        bucket.lanes.get(slot).copied().map(u64::from)
    }

    fn host(
        (n, bucket): (u32, &ListBucket4),
        slot: usize,
        _beside: &Listed,
        hash: Hash,
    ) -> Option<u32> {
        let lane = bucket.lanes.get(slot)?;
        Some(u32::from_be(word4(*lane, n, hash.seed)))
    }

    fn listed(host: Slot<u32>) -> Listed {
        listed(host.map(|(_, value)| value))
    }

    fn beside(listed: &Listed) -> Listed {
        *listed
    }

    fn is_beside(_listed: &Listed, _host: Slot<u32>) -> bool {
        true
    }

    fn soonest(bucket: &ListBucket4) -> Option<u32> {
        Some(bucket.soonest)
    }

    fn tell_of_move(config: &ConfigCell) -> Result<(), TableError> {
        tell(config, |c| &mut c.list_moves4)
    }
}

impl Family for Six {
    type Bucket = ListBucket6;
    type Listed = Listed6;
    const LIST: &'static str = "LIST6";
    const LISTED: &'static str = "LISTED6";

    fn bucket(_n: u32, slots: &[Slot<u128>], _soonest: u32, hash: Hash) -> ListBucket6 {
        let mut bucket = ListBucket6::default();
        for (slot, host) in slots.iter().enumerate() {
            if let Some((addr, _)) = host {
                bucket.put(slot, lane6(print(*addr, hash.seed)));
            }
        }
        bucket
    }

    fn word(bucket: &ListBucket6, slot: usize) -> Option<u64> {
        let [low, high] = bucket.lane(slot)?;
        Some(low | high << 32)
    }

    fn host(
        (_n, bucket): (u32, &ListBucket6),
        slot: usize,
        beside: &Listed6,
        hash: Hash,
    ) -> Option<u128> {
        let addr = u128::from_be_bytes(beside.addr);
        let own = lane6(print(addr, hash.seed));
        bucket.has(slot, own).then_some(addr)
    }

    fn listed(host: Slot<u128>) -> Listed6 {
        Listed6 {
            addr: host.map(|(addr, _)| addr).unwrap_or_default().to_be_bytes(),
            beside: listed(host.map(|(_, value)| value)),
        }
    }

    fn beside(listed: &Listed6) -> Listed {
        listed.beside
    }

    fn is_beside(listed: &Listed6, host: Slot<u128>) -> bool {
        listed.addr == Self::listed(host).addr
    }

    fn soonest(_bucket: &ListBucket6) -> Option<u32> {
        None
    }

    fn tell_of_move(config: &ConfigCell) -> Result<(), TableError> {
        tell(config, |c| &mut c.list_moves6)
    }
}

fn tell(
    config: &ConfigCell,
    moves: impl FnOnce(&mut secmesh_common::config::Config) -> &mut u32,
) -> Result<(), TableError> {
    let told = config.update(|c| {
        let moves = moves(c);
        *moves = moves.wrapping_add(1);
    });
    told.map_err(unconfigured)
}

/// What free slots of an IPv4 bucket have: the first lane that belongs into other buckets, so that nobody who looks into
/// this one looks for it.
fn stranger(n: u32, hash: Hash) -> u32 {
    // Multiples of an odd number, so that lanes follow in no order of the buckets (2³² divided by the golden ratio).
    let mut lanes = (0..=u32::MAX).map(|number| lane4(number.wrapping_mul(0x9e37_79b9)));
    // Both addresses of a lane are in the same pairs of buckets.
    let is_stranger = |lane: &u32| {
        let places = buckets4(*lane, hash.seed, hash.buckets);
        !places.map(|place| place / 2).contains(&(n / 2))
    };
    lanes.find(is_stranger).unwrap_or_default()
}

/// When the soonest of these hosts ends.
fn soonest<K>(slots: &[Slot<K>]) -> u32 {
    let ends = slots.iter().flatten().map(|(_, (expires, _))| *expires);
    ends.min().unwrap_or(EXPIRY_NEVER)
}

/// Where the table beside a host table has what belongs to a slot.
fn beside<G: Geometry>(bucket: u32, slot: usize) -> u32 {
    bucket
        .saturating_mul(count(G::SLOTS))
        .saturating_add(count(slot))
}

/// The end and the list that go beside a slot; zeros beside a free one.
fn listed(value: Option<Value>) -> Listed {
    let (expires, list) = value.unwrap_or_default();
    Listed {
        expires,
        list,
        ..Listed::default()
    }
}

/// When the first host of each group of buckets ends, where that is a map of its own, and what is in that map.
struct Groups {
    map: Array<MapData, u32>,
    known: Vec<u32>,
}

/// The kernel's maps of a host table.
struct HostMaps<F: Family> {
    list: Array<MapData, F::Bucket>,
    listed: Array<MapData, F::Listed>,
    groups: Option<Groups>,
    config: ConfigCell,
    hash: Hash,
}

/// One family's host table.
pub(in crate::dataplane) struct HostTable<F: Family> {
    table: Cuckoo<F>,
    maps: HostMaps<F>,
}

impl<F: Family> HostTable<F> {
    /// Takes the maps over, and what an earlier agent left in them if `has_hosts`, so that a replacement writes only
    /// what differs. `soonest` says when groups end, for a family whose buckets do not say it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn open(
        list: Array<MapData, F::Bucket>,
        listed: Array<MapData, F::Listed>,
        soonest: Option<Array<MapData, u32>>,
        config: ConfigCell,
        has_hosts: bool,
    ) -> Result<Self, TableError> {
        let hash = Hash {
            seed: config.get().table_seed,
            buckets: list.len(),
        };
        let groups = soonest
            .map(|map| {
                let known: Result<Vec<u32>, _> = (0..map.len()).map(|n| map.get(&n, 0)).collect();
                let known = known.map_err(refused("SOONEST6"))?;
                Ok(Groups { map, known })
            })
            .transpose()?;
        let mut this = Self {
            table: Cuckoo::new(hash.seed, hash.buckets),
            maps: HostMaps {
                list,
                listed,
                groups,
                config,
                hash,
            },
        };
        if has_hosts {
            this.learn()?;
        }
        Ok(this)
    }

    fn learn(&mut self) -> Result<(), TableError> {
        for n in 0..self.maps.hash.buckets {
            let bucket = self.maps.list.get(&n, 0).map_err(refused(F::LIST))?;
            for slot in 0..F::SLOTS {
                let at = beside::<F>(n, slot);
                let there = self.maps.listed.get(&at, 0).map_err(refused(F::LISTED))?;
                let beside = F::beside(&there);
                if beside.expires != 0
                    && let Some(key) = F::host((n, &bucket), slot, &there, self.maps.hash)
                {
                    self.table
                        .learn(key, (beside.expires, beside.list), n, slot);
                }
            }
        }
        Ok(())
    }

    /// Buckets.
    pub fn buckets(&self) -> u32 {
        self.maps.hash.buckets
    }

    /// Hosts in it.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Hosts that it takes.
    pub fn capacity(&self) -> usize {
        self.table.capacity()
    }

    /// Makes the table hold these hosts; see [`Cuckoo::replace`].
    ///
    /// # Errors
    /// As there.
    pub fn replace(
        &mut self,
        wanted: impl Iterator<Item = (F::Key, Value)> + Clone,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(usize, usize), TableError> {
        self.table.replace(wanted, &mut self.maps, progress)
    }

    /// What is beside a host; `None` if there is no such host.
    pub fn beside(&self, key: F::Key) -> Option<Listed> {
        let (bucket, slot) = self.table.find(key)?;
        let at = beside::<F>(bucket, slot);
        self.maps.listed.get(&at, 0).ok().as_ref().map(F::beside)
    }

    /// Looks at a bucket, at what is beside it, and at the soonest end, and writes what differs. An end that is too
    /// soon only costs a look beside.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn audit(&mut self, n: u32, found: &mut Differences) -> Result<(), TableError> {
        let maps = &mut self.maps;
        let slots = self.table.bucket(n);
        let group = soonest(self.table.group(n));
        if let Some(groups) = &mut maps.groups
            && (n as usize).is_multiple_of(F::GROUP)
        {
            let at = n / count(F::GROUP);
            if groups.map.get(&at, 0).map_err(refused("SOONEST6"))? > group {
                found.note(true, false);
                groups.set(&[(at, group)])?;
            }
        }
        for (at, wanted) in (beside::<F>(n, 0)..).zip(slots) {
            let there = maps.listed.get(&at, 0).map_err(refused(F::LISTED))?;
            let right = listed(wanted.map(|(_, value)| value));
            let beside = F::beside(&there);
            if (beside.expires, beside.list) != (right.expires, right.list)
                || !F::is_beside(&there, *wanted)
            {
                found.note(wanted.is_some(), true);
                let right = F::listed(*wanted);
                maps.listed.set(at, right, 0).map_err(refused(F::LISTED))?;
            }
        }
        let there = maps.list.get(&n, 0).map_err(refused(F::LIST))?;
        // A bucket that was never written holds nobody: of IPv4 its soonest end has passed, and nothing is beside it; of
        // IPv6 free slots are zeros.
        if there == F::Bucket::default() && slots.iter().all(Option::is_none) {
            return Ok(());
        }
        let right = F::bucket(n, slots, group, maps.hash);
        let mut wrong = false;
        for (slot, wanted) in slots.iter().enumerate() {
            if F::word(&there, slot) != F::word(&right, slot) {
                found.note(wanted.is_some(), true);
                wrong = true;
            }
        }
        let late = F::soonest(&there) > F::soonest(&right);
        if !(wrong || late) {
            return Ok(());
        }
        found.note(late && !wrong, false);
        maps.list.set(n, right, 0).map_err(refused(F::LIST))
    }
}

impl Groups {
    fn set(&mut self, ends: &[(u32, u32)]) -> Result<(), TableError> {
        let (keys, values): (Vec<u32>, Vec<u32>) = ends.iter().copied().unzip();
        batch::set_each(&self.map, &keys, &values).map_err(refused("SOONEST6"))?;
        for (n, end) in ends {
            if let Some(known) = self.known.get_mut(*n as usize) {
                *known = *end;
            }
        }
        Ok(())
    }
}

impl<F: Family> HostMaps<F> {
    fn write_beside(
        &self,
        table: &Cuckoo<F>,
        changes: &[Change<F::Key>],
    ) -> Result<(), TableError> {
        let (keys, values): (Vec<u32>, Vec<F::Listed>) = changes
            .iter()
            .map(|change| {
                let host = table.bucket(change.bucket).get(change.slot);
                let host = host.copied().flatten();
                (beside::<F>(change.bucket, change.slot), F::listed(host))
            })
            .unzip();
        batch::set_each(&self.listed, &keys, &values).map_err(refused(F::LISTED))
    }

    fn write_buckets(&self, table: &Cuckoo<F>, buckets: &[u32]) -> Result<(), TableError> {
        let values: Vec<F::Bucket> = buckets
            .iter()
            .map(|n| {
                let slots = table.bucket(*n);
                F::bucket(*n, slots, soonest(slots), self.hash)
            })
            .collect();
        batch::set_each(&self.list, buckets, &values).map_err(refused(F::LIST))
    }
}

impl<F: Family> Sink<F> for HostMaps<F> {
    fn publish(
        &mut self,
        table: &Cuckoo<F>,
        way: Way,
        changes: &[Change<F::Key>],
    ) -> Result<(), TableError> {
        let mut buckets: Vec<u32> = changes.iter().map(|change| change.bucket).collect();
        buckets.sort_unstable();
        buckets.dedup();
        if way == Way::Move {
            F::tell_of_move(&self.config)?;
        }
        // A group's soonest end comes down before a host comes that ends sooner, and goes up after one went.
        let (mut sooner, mut later) = (BTreeMap::new(), BTreeMap::new());
        if let Some(groups) = &self.groups {
            for n in &buckets {
                let group = *n / count(F::GROUP);
                if sooner.contains_key(&group) || later.contains_key(&group) {
                    continue;
                }
                let end = soonest(table.group(*n));
                match groups.known.get(group as usize) {
                    Some(known) if end < *known => sooner.insert(group, end),
                    Some(known) if end > *known => later.insert(group, end),
                    _ => None,
                };
            }
        }
        let set_ends = |this: &mut Self, ends: BTreeMap<u32, u32>| match &mut this.groups {
            Some(groups) if !ends.is_empty() => groups.set(&ends.into_iter().collect::<Vec<_>>()),
            _ => Ok(()),
        };
        let comes = changes.iter().any(|change| {
            let host = table.bucket(change.bucket).get(change.slot);
            host.is_some_and(Option::is_some)
        });
        set_ends(self, sooner)?;
        if comes {
            self.write_beside(table, changes)?;
        }
        self.write_buckets(table, &buckets)?;
        if !comes {
            self.write_beside(table, changes)?;
        }
        set_ends(self, later)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_looks_where_free_slots_have_what_he_looks_for() {
        for (seed, buckets) in (1..40_u64).zip([16, 18, 240, 7_620].into_iter().cycle()) {
            let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let hash = Hash { seed, buckets };
            for n in 0..buckets {
                let free = Four::bucket(n, &[None; BUCKET4], EXPIRY_NEVER, hash);
                let lane = free.lanes.first().copied().unwrap_or_default();
                assert_eq!(free.lanes, [lane; BUCKET4]);
                for word in [lane, lane | 1 << 31] {
                    let places = buckets4(word, seed, buckets);
                    assert!(!places.contains(&n), "{word:x} in {n} of {buckets}");
                }
            }
        }
    }
}
