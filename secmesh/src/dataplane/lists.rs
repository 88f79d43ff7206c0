//! The list tables: whatever lists are compiled to, written so that no listed source gets through meanwhile.

mod audit;

use aya::maps::{Array, MapData, MapError};
use secmesh_common::list::{
    BUCKET4, BUCKET6, EXPIRY_NEVER, EXPIRY_SHIFT, GROUP6_SHIFT, INDEX4, ListBucket4, ListBucket6,
    ListRange4, ListRange6, Listed, buckets4, buckets6,
};

pub use self::audit::{AuditCursor, Audited, Differences};
use super::{
    TableError, batch,
    cell::ConfigCell,
    cuckoo::{Cuckoo, Geometry, Value, Write},
    guard::Guard,
    tables::words,
};
use crate::respond::Now;

/// A run of addresses that one list names; addresses in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span<A> {
    /// The first address.
    pub start: A,
    /// The last address, included.
    pub end: A,
    /// When it ends, Unix seconds; `u64::MAX` is never.
    pub expires_unix_s: u64,
    /// The controller's number of the list.
    pub list: u16,
}

/// All lists together, as the kernel's tables want them: each part sorted by start, without overlaps, and
/// without the addresses that the allowlist names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Compiled {
    /// Single IPv4 addresses; none lies in a range.
    pub hosts4: Vec<Span<u32>>,
    /// Single IPv6 addresses; none lies in a range.
    pub hosts6: Vec<Span<u128>>,
    /// IPv4 ranges.
    pub ranges4: Vec<Span<u32>>,
    /// IPv6 ranges.
    pub ranges6: Vec<Span<u128>>,
}

impl Compiled {
    /// Entries of all four parts.
    pub fn len(&self) -> usize {
        self.hosts4.len() + self.hosts6.len() + self.ranges4.len() + self.ranges6.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a replacement changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replaced {
    /// Entries that were not there before.
    pub added: usize,
    /// Entries that are not there any more.
    pub removed: usize,
    /// Entries that stayed.
    pub kept: usize,
}

/// The maps of the list tables.
pub(super) struct ListMaps {
    pub hosts4: Array<MapData, ListBucket4>,
    pub hosts6: Array<MapData, ListBucket6>,
    pub soonest6: Array<MapData, u32>,
    pub listed4: Array<MapData, Listed>,
    pub listed6: Array<MapData, Listed>,
    pub search6: Array<MapData, u64>,
    pub ranges4: Array<MapData, ListRange4>,
    pub ranges6: Array<MapData, ListRange6>,
    pub index: Array<MapData, u32>,
}

/// IPv4 hosts.
pub(super) struct Four;
/// IPv6 hosts.
pub(super) struct Six;

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
        buckets6(&words(key.to_be_bytes()), seed, buckets)
    }
}

/// The list tables.
pub struct ListTables {
    maps: ListMaps,
    guard: Guard,
    config: ConfigCell,
    hosts4: Cuckoo<Four>,
    hosts6: Cuckoo<Six>,
    current: Compiled,
}

impl ListTables {
    pub(super) fn new(
        maps: ListMaps,
        guard: Guard,
        config: ConfigCell,
    ) -> Result<Self, TableError> {
        let seed = config.get().table_seed;
        let mut this = Self {
            hosts4: Cuckoo::new(seed, maps.hosts4.len()),
            hosts6: Cuckoo::new(seed, maps.hosts6.len()),
            maps,
            guard,
            config,
            current: Compiled::default(),
        };
        this.learn()?;
        this.fill()?;
        Ok(this)
    }

    /// A new table is all zeros, which is an address too: the buckets where somebody would look for it get others.
    /// (A new IPv4 bucket says by itself that nothing in it is in force.)
    fn fill(&mut self) -> Result<(), TableError> {
        let (seed, buckets) = (self.config.get().table_seed, self.hosts6.buckets());
        for place in Six::places(0, seed, buckets) {
            let bucket = self.maps.hosts6.get(&place, 0).map_err(refused("LIST6"))?;
            if bucket == ListBucket6::default() {
                let addrs = [filler6(place, seed, buckets); BUCKET6];
                self.maps
                    .hosts6
                    .set(place, ListBucket6 { addrs }, 0)
                    .map_err(refused("LIST6"))?;
            }
        }
        Ok(())
    }

    /// Takes over what an earlier agent left in the host tables, so that a replacement writes only what
    /// differs. Ranges are always written whole.
    fn learn(&mut self) -> Result<(), TableError> {
        let config = self.config.get();
        if config.list_hosts4 > 0 {
            for n in 0..self.maps.hosts4.len() {
                let bucket = self.maps.hosts4.get(&n, 0).map_err(refused("LIST4"))?;
                for (slot, addr) in bucket.addrs.iter().enumerate() {
                    let beside = beside::<Four>(n, slot);
                    let listed = self
                        .maps
                        .listed4
                        .get(&beside, 0)
                        .map_err(refused("LISTED4"))?;
                    if listed.expires != 0 {
                        let value = (listed.expires, listed.list);
                        let addr = u32::from_be_bytes(*addr);
                        self.hosts4.learn(addr, value, n, slot);
                    }
                }
            }
        }
        if config.list_hosts6 > 0 {
            for n in 0..self.maps.hosts6.len() {
                let bucket = self.maps.hosts6.get(&n, 0).map_err(refused("LIST6"))?;
                for (slot, addr) in bucket.addrs.iter().enumerate() {
                    let beside = beside::<Six>(n, slot);
                    let listed = self
                        .maps
                        .listed6
                        .get(&beside, 0)
                        .map_err(refused("LISTED6"))?;
                    if listed.expires != 0 {
                        let value = (listed.expires, listed.list);
                        let addr = u128::from_be_bytes(*addr);
                        self.hosts6.learn(addr, value, n, slot);
                    }
                }
            }
        }
        Ok(())
    }

    /// Entries that fit: hosts of each family (IPv4, IPv6) and ranges of each family.
    pub fn capacity(&self) -> (usize, usize, usize, usize) {
        (
            self.hosts4.capacity(),
            self.hosts6.capacity(),
            self.maps.ranges4.len() as usize / 2,
            self.maps.ranges6.len() as usize / 2,
        )
    }

    /// What the tables hold.
    pub fn current(&self) -> &Compiled {
        &self.current
    }

    /// Makes the kernel's tables equal to `wanted`. `progress` is called now and then with the number of
    /// entries done, of `wanted.len()`.
    ///
    /// An entry that is in both stays in force throughout; a new one is in force no later than on return;
    /// one that is no longer wanted ends on the way. `allow_generation` is the allowlist's, that `wanted`
    /// was compiled against (see [`super::AllowTable::generation`]).
    ///
    /// # Errors
    ///
    /// No room, before anything was changed; or the kernel's refusal, after which calling again goes on.
    pub fn replace(
        &mut self,
        wanted: &Compiled,
        allow_generation: u32,
        now: Now,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Replaced, TableError> {
        self.require_room(wanted)?;
        let before = self.hosts4.len()
            + self.hosts6.len()
            + self.current.ranges4.len()
            + self.current.ranges6.len();
        let mut planes = self.guard.planes();
        for span in wanted.hosts4.iter().chain(&wanted.ranges4) {
            planes.add4(span.start, span.end);
        }
        for span in wanted.hosts6.iter().chain(&wanted.ranges6) {
            planes.add6(span.start, span.end);
        }
        self.guard.add_lists(&planes)?;
        // Sizes first: a table that the kernel skips hides what is written into it.
        self.set_counts(|c| {
            c.list_buckets4 = self.hosts4.buckets();
            c.list_buckets6 = self.hosts6.buckets();
            c.list_hosts4 = c.list_hosts4.max(count(wanted.hosts4.len()));
            c.list_hosts6 = c.list_hosts6.max(count(wanted.hosts6.len()));
        })?;
        let mut done = 0;
        let mut replaced = Replaced::default();
        self.write_ranges(wanted, now)?;
        done += wanted.ranges4.len() + wanted.ranges6.len();
        progress(done);
        self.replace_hosts(wanted, now, &mut replaced, &mut |n| progress(done + n))?;
        self.set_counts(|c| {
            c.list_hosts4 = count(wanted.hosts4.len());
            c.list_hosts6 = count(wanted.hosts6.len());
            c.list_generation = allow_generation;
        })?;
        self.guard.set_lists(&planes)?;
        replaced.removed += (self.current.ranges4.len() + self.current.ranges6.len())
            .saturating_sub(wanted.ranges4.len() + wanted.ranges6.len());
        replaced.kept = wanted.len().saturating_sub(replaced.added);
        debug_assert!(replaced.kept <= before.max(wanted.len()));
        self.current = wanted.clone();
        progress(wanted.len());
        Ok(replaced)
    }

    /// Whether `wanted` fits.
    ///
    /// # Errors
    ///
    /// [`TableError::NoRoom`] with the setting that makes room.
    pub fn require_room(&self, wanted: &Compiled) -> Result<(), TableError> {
        let (hosts4, hosts6, ranges4, ranges6) = self.capacity();
        for (map, wanted, room, setting) in [
            ("LIST4", wanted.hosts4.len(), hosts4, "max_list_addresses"),
            ("LIST6", wanted.hosts6.len(), hosts6, "max_list_addresses"),
            ("RANGE4", wanted.ranges4.len(), ranges4, "max_list_prefixes"),
            ("RANGE6", wanted.ranges6.len(), ranges6, "max_list_prefixes"),
        ] {
            if wanted > room {
                return Err(TableError::NoRoom {
                    map,
                    wanted,
                    room,
                    setting,
                });
            }
        }
        Ok(())
    }

    fn set_counts(
        &self,
        change: impl FnOnce(&mut secmesh_common::config::Config),
    ) -> Result<(), TableError> {
        self.config.update(change).map_err(|e| TableError::Kernel {
            map: "CONFIG",
            reason: e.to_string(),
        })
    }

    fn replace_hosts(
        &mut self,
        wanted: &Compiled,
        now: Now,
        replaced: &mut Replaced,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), TableError> {
        let maps = &mut self.maps;
        let seed = self.config.get().table_seed;
        let (buckets4, buckets6) = (self.hosts4.buckets(), self.hosts6.buckets());
        let wanted4 = wanted
            .hosts4
            .iter()
            .map(|s| (s.start, (kernel_expiry(s.expires_unix_s, now), s.list)));
        let (added, removed) = self.hosts4.replace(
            wanted4,
            &mut |write| write4(maps, &write, seed, buckets4),
            progress,
        )?;
        replaced.added += added;
        replaced.removed += removed;
        let base = wanted.hosts4.len();
        let wanted6 = wanted
            .hosts6
            .iter()
            .map(|s| (s.start, (kernel_expiry(s.expires_unix_s, now), s.list)));
        let (added, removed) = self.hosts6.replace(
            wanted6,
            &mut |write| write6(maps, &write, seed, buckets6),
            &mut |n| progress(base + n),
        )?;
        replaced.added += added;
        replaced.removed += removed;
        Ok(())
    }

    /// Writes the ranges into the half that is not in use, then switches to it: one word of the
    /// configuration, so that a packet sees all of the old ranges or all of the new.
    fn write_ranges(&mut self, wanted: &Compiled, now: Now) -> Result<(), TableError> {
        let half = (self.config.get().list_half & 1) ^ 1;
        let room4 = self.maps.ranges4.len() / 2;
        let room6 = self.maps.ranges6.len() / 2;
        let written: Vec<ListRange4> = wanted
            .ranges4
            .iter()
            .map(|span| ListRange4 {
                start: span.start,
                end: span.end,
                expires: kernel_expiry(span.expires_unix_s, now),
                list: span.list,
                flags: 0,
                hits: 0,
            })
            .collect();
        batch::set(&self.maps.ranges4, half * room4, &written).map_err(refused("RANGE4"))?;
        let written: Vec<ListRange6> = wanted
            .ranges6
            .iter()
            .map(|span| ListRange6 {
                start: pair(span.start),
                end: pair(span.end),
                expires: kernel_expiry(span.expires_unix_s, now),
                list: span.list,
                flags: 0,
                hits: 0,
            })
            .collect();
        let search: Vec<u64> = written
            .iter()
            .map(|range: &ListRange6| {
                let [high, _] = range.start;
                high
            })
            .collect();
        batch::set(&self.maps.search6, half * room6, &search).map_err(refused("SEARCH6"))?;
        batch::set(&self.maps.ranges6, half * room6, &written).map_err(refused("RANGE6"))?;
        let mut at = 0;
        let mut index = Vec::with_capacity(INDEX4 as usize);
        for block in 0..INDEX4 {
            while wanted
                .ranges4
                .get(at)
                .is_some_and(|s| u64::from(s.start) < u64::from(block) << 16)
            {
                at += 1;
            }
            index.push(count(at));
        }
        batch::set(&self.maps.index, half * INDEX4, &index).map_err(refused("INDEX"))?;
        let (ranges4, ranges6) = (count(wanted.ranges4.len()), count(wanted.ranges6.len()));
        self.set_counts(|c| {
            c.list_room4 = room4;
            c.list_room6 = room6;
            let [lower4, upper4] = &mut c.list_ranges4;
            let [lower6, upper6] = &mut c.list_ranges6;
            if half == 0 {
                (*lower4, *lower6) = (ranges4, ranges6);
            } else {
                (*upper4, *upper6) = (ranges4, ranges6);
            }
        })?;
        self.set_counts(|c| c.list_half = half)
    }

    /// The number of the list that names `addr`, and the packets that met its entry there: an estimate, because
    /// one packet in [`secmesh_common::list::HIT_SAMPLE`] is counted, as so many.
    pub fn hits(&self, addr: std::net::IpAddr) -> Option<(u16, u64)> {
        match addr {
            std::net::IpAddr::V4(a) => {
                let key = u32::from(a);
                if let Some((bucket, slot)) = self.hosts4.find(key) {
                    let beside = beside::<Four>(bucket, slot);
                    let listed = self.maps.listed4.get(&beside, 0).ok()?;
                    return Some((listed.list, listed.hits));
                }
                let n = covering(&self.current.ranges4, key)?;
                let config = self.config.get();
                let at = (config.list_half & 1) * config.list_room4 + count(n);
                let range = self.maps.ranges4.get(&at, 0).ok()?;
                Some((range.list, range.hits))
            }
            std::net::IpAddr::V6(a) => {
                let key = u128::from(a);
                if let Some((bucket, slot)) = self.hosts6.find(key) {
                    let beside = beside::<Six>(bucket, slot);
                    let listed = self.maps.listed6.get(&beside, 0).ok()?;
                    return Some((listed.list, listed.hits));
                }
                let n = covering(&self.current.ranges6, key)?;
                let config = self.config.get();
                let at = (config.list_half & 1) * config.list_room6 + count(n);
                let range = self.maps.ranges6.get(&at, 0).ok()?;
                Some((range.list, range.hits))
            }
        }
    }
}

/// Where the table beside a host table has what belongs to a slot.
fn beside<G: Geometry>(bucket: u32, slot: usize) -> u32 {
    bucket
        .saturating_mul(count(G::SLOTS))
        .saturating_add(count(slot))
}

/// What goes beside a slot; a free one is all zeros.
fn listed(value: Option<Value>) -> Listed {
    let (expires, list) = value.unwrap_or_default();
    Listed {
        expires,
        list,
        ..Listed::default()
    }
}

/// Writes one slot of the IPv4 host table.
///
/// What is beside a slot is written before its address, and a host that goes is overwritten before what was
/// beside it: whoever finds an address finds its own end, or that of the host which takes its place, which
/// matters for a host that is being taken out only.
fn write4(
    maps: &mut ListMaps,
    write: &Write<'_, u32>,
    seed: u64,
    buckets: u32,
) -> Result<(), TableError> {
    let value = write.value();
    let at = beside::<Four>(write.bucket, write.slot);
    let mut set_beside = |value| {
        maps.listed4
            .set(at, listed(value), 0)
            .map_err(refused("LISTED4"))
    };
    if value.is_some() {
        set_beside(value)?;
    }
    let bucket = bucket4(write.bucket, write.slots, write.soonest(), seed, buckets);
    maps.hosts4
        .set(write.bucket, bucket, 0)
        .map_err(refused("LIST4"))?;
    if value.is_none() {
        set_beside(None)?;
    }
    Ok(())
}

/// Writes one slot of the IPv6 host table; as [`write4`]. The soonest end of the group comes down before a host
/// comes that ends sooner, and goes up after one went.
fn write6(
    maps: &mut ListMaps,
    write: &Write<'_, u128>,
    seed: u64,
    buckets: u32,
) -> Result<(), TableError> {
    let value = write.value();
    let at = beside::<Six>(write.bucket, write.slot);
    let mut set_beside = |value| {
        maps.listed6
            .set(at, listed(value), 0)
            .map_err(refused("LISTED6"))
    };
    let group = write.bucket >> GROUP6_SHIFT;
    let soonest = write.soonest();
    let was = maps.soonest6.get(&group, 0).map_err(refused("SOONEST6"))?;
    let mut set_soonest = || {
        maps.soonest6
            .set(group, soonest, 0)
            .map_err(refused("SOONEST6"))
    };
    if soonest < was {
        set_soonest()?;
    }
    if value.is_some() {
        set_beside(value)?;
    }
    let bucket = bucket6(write.bucket, write.slots, seed, buckets);
    maps.hosts6
        .set(write.bucket, bucket, 0)
        .map_err(refused("LIST6"))?;
    if value.is_none() {
        set_beside(None)?;
    }
    if soonest > was {
        set_soonest()?;
    }
    Ok(())
}

/// An IPv4 bucket with these hosts.
fn bucket4(
    n: u32,
    slots: &[Option<(u32, Value)>],
    soonest: u32,
    seed: u64,
    buckets: u32,
) -> ListBucket4 {
    let filler = stranger(|addr| Four::places(addr, seed, buckets), n);
    let mut bucket = ListBucket4 {
        addrs: [filler.to_be_bytes(); BUCKET4],
        soonest,
    };
    for (to, from) in bucket.addrs.iter_mut().zip(slots) {
        if let Some((addr, _)) = *from {
            *to = addr.to_be_bytes();
        }
    }
    bucket
}

/// An IPv6 bucket with these hosts.
fn bucket6(n: u32, slots: &[Option<(u128, Value)>], seed: u64, buckets: u32) -> ListBucket6 {
    let mut bucket = ListBucket6 {
        addrs: [filler6(n, seed, buckets); BUCKET6],
    };
    for (to, from) in bucket.addrs.iter_mut().zip(slots) {
        if let Some((addr, _)) = *from {
            *to = addr.to_be_bytes();
        }
    }
    bucket
}

/// When the soonest of these hosts ends.
fn soonest<K>(slots: &[Option<(K, Value)>]) -> u32 {
    let ends = slots.iter().flatten().map(|(_, (expires, _))| *expires);
    ends.min().unwrap_or(EXPIRY_NEVER)
}

/// What a free slot of an IPv6 bucket has.
fn filler6(bucket: u32, seed: u64, buckets: u32) -> [u8; 16] {
    let addr = stranger(|addr| Six::places(addr.into(), seed, buckets), bucket);
    u128::from(addr).to_be_bytes()
}

/// An address that belongs into other buckets: nobody who looks into this one looks for it.
fn stranger(places: impl Fn(u32) -> [u32; 2], bucket: u32) -> u32 {
    (0..u32::MAX)
        .find(|addr| !places(*addr).contains(&bucket))
        .unwrap_or(u32::MAX)
}

/// The span that holds `addr`, of sorted ones that do not overlap.
fn covering<A: Ord + Copy>(spans: &[Span<A>], addr: A) -> Option<usize> {
    let n = spans.partition_point(|s| s.start <= addr).checked_sub(1)?;
    (spans.get(n)?.end >= addr).then_some(n)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// An address as two halves, high one first.
fn pair(addr: u128) -> [u64; 2] {
    [
        u64::try_from(addr >> 64).unwrap_or(u64::MAX),
        u64::try_from(addr & u128::from(u64::MAX)).unwrap_or(u64::MAX),
    ]
}

/// A point in Unix time in the kernel's units, rounded up; never 0. What has passed is now.
fn kernel_expiry(unix_s: u64, now: Now) -> u32 {
    if unix_s == u64::MAX {
        return EXPIRY_NEVER;
    }
    let left_ns = unix_s
        .saturating_mul(1_000_000_000)
        .saturating_sub(now.unix_us.saturating_mul(1000));
    let units = now
        .mono_ns
        .saturating_add(left_ns)
        .div_ceil(1 << EXPIRY_SHIFT);
    u32::try_from(units).unwrap_or(EXPIRY_NEVER).max(1)
}

fn refused(map: &'static str) -> impl FnOnce(MapError) -> TableError {
    move |e| TableError::Kernel {
        map,
        reason: e.to_string(),
    }
}
