//! The guard bitmaps: which neighbourhoods hold a block, so that packets of all others skip the tables.
//!
//! A bit is set before its entry goes in and cleared after its entry came out, never the other way round.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use aya::maps::{Array, MapData};
use secmesh_common::list::{
    GUARD_DECISION, GUARD_LIST, GUARD_WORDS, GUARD6_LONG, GUARD6_SHORT, GuardPlace, guard4,
    guard6_long, guard6_short,
};

use super::{TableError, cell::ConfigCell};
use crate::addr::Prefix;

/// Bit of [`secmesh_common::config::Config::guard6_off`] that decisions set.
const OFF_DECISIONS: u32 = 1;
/// The bit that lists set.
const OFF_LISTS: u32 = 2;

/// What lists want guarded: the planes of both families, and whether the IPv6 guard must be off.
pub(super) struct ListPlanes {
    v4: Vec<u64>,
    v6: Vec<u64>,
    v6_off: bool,
    seed: u64,
}

impl ListPlanes {
    /// Guards nothing.
    pub fn new(seed: u64) -> Self {
        Self {
            v4: vec![0; GUARD_WORDS],
            v6: vec![0; GUARD_WORDS],
            v6_off: false,
            seed,
        }
    }

    fn set(plane: &mut [u64], place: GuardPlace) {
        if let Some(word) = plane.get_mut(place.word as usize) {
            *word |= GUARD_LIST << place.shift;
        }
    }

    /// Guards an IPv4 range, both ends included.
    pub fn add4(&mut self, start: u32, end: u32) {
        for neighbourhood in (start >> 8)..=(end >> 8) {
            Self::set(&mut self.v4, guard4(neighbourhood << 8));
        }
    }

    /// Guards an IPv6 range, both ends included.
    pub fn add6(&mut self, start: u128, end: u128) {
        let (first, last) = (high(start), high(end));
        if last >> 16 == first >> 16 {
            Self::set(&mut self.v6, guard6_long(first, self.seed));
            return;
        }
        let (first, last) = (first >> 32, last >> 32);
        if last - first >= 1 << (32 - GUARD6_SHORT) {
            self.v6_off = true;
            return;
        }
        for block in first..=last {
            Self::set(&mut self.v6, guard6_short(block << 32, self.seed));
        }
    }
}

/// The upper half of an IPv6 address.
fn high(addr: u128) -> u64 {
    u64::try_from(addr >> 64).unwrap_or(u64::MAX)
}

struct Inner {
    maps: [Array<MapData, u64>; 2],
    words: [Vec<u64>; 2],
    /// Exact decisions in each neighbourhood, by family, word and shift.
    exact: HashMap<(bool, u32, u32), u32>,
    /// Prefix decisions.
    prefixes: BTreeSet<Prefix>,
    config: ConfigCell,
}

/// A handle to both guards.
#[derive(Clone)]
pub(super) struct Guard(Arc<Mutex<Inner>>);

impl Guard {
    /// Takes the maps over. Whatever bits an earlier agent left stay until [`Guard::set_lists`] and the
    /// decisions that it wrote have been learned: a bit too many costs a lookup, one too few a block.
    pub fn open(
        v4: Array<MapData, u64>,
        v6: Array<MapData, u64>,
        config: ConfigCell,
        fresh: bool,
    ) -> Self {
        let mut words = [vec![0; GUARD_WORDS], vec![0; GUARD_WORDS]];
        if !fresh {
            for (map, words) in [&v4, &v6].into_iter().zip(&mut words) {
                for (n, word) in (0u32..).zip(words.iter_mut()) {
                    *word = map.get(&n, 0).unwrap_or(u64::MAX);
                }
            }
        }
        Self(Arc::new(Mutex::new(Inner {
            maps: [v4, v6],
            words,
            exact: HashMap::new(),
            prefixes: BTreeSet::new(),
            config,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Guards a decision's prefix; before its entry is written. Doing so twice is once.
    pub fn add(&self, prefix: &Prefix, is_new: bool) -> Result<(), TableError> {
        let mut inner = self.lock();
        if prefix.is_single() {
            let seed = inner.config.get().table_seed;
            let place = host_place(prefix.addr(), seed);
            inner.set(prefix.is_ipv4(), place, GUARD_DECISION)?;
            if is_new {
                let key = (prefix.is_ipv4(), place.word, place.shift);
                let count = inner.exact.entry(key).or_insert(0);
                *count = count.saturating_add(1);
            }
            return Ok(());
        }
        for place in inner.places(prefix) {
            inner.set(prefix.is_ipv4(), place, GUARD_DECISION)?;
        }
        inner.prefixes.insert(*prefix);
        inner.write_off(None)
    }

    /// Stops guarding a decision's prefix; after its entry was removed.
    pub fn remove(&self, prefix: &Prefix) -> Result<(), TableError> {
        let mut inner = self.lock();
        let v4 = prefix.is_ipv4();
        let places = if prefix.is_single() {
            let seed = inner.config.get().table_seed;
            let place = host_place(prefix.addr(), seed);
            let key = (v4, place.word, place.shift);
            match inner.exact.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    inner.exact.remove(&key);
                }
            }
            vec![place]
        } else {
            inner.prefixes.remove(prefix);
            inner.places(prefix)
        };
        let kept = inner.prefix_places(prefix);
        for place in places {
            let held = inner.exact.contains_key(&(v4, place.word, place.shift))
                || kept.contains(&(place.word, place.shift));
            if !held {
                inner.clear(v4, place, GUARD_DECISION)?;
            }
        }
        inner.write_off(None)
    }

    /// Compares a word with what should be there, and writes it again if it differs: `Some` then, and whether
    /// bits were missing.
    pub fn audit(&self, v4: bool, n: u32) -> Result<Option<bool>, TableError> {
        let mut inner = self.lock();
        let wanted = inner.word(v4, n);
        let Some(map) = inner.maps.get_mut(usize::from(!v4)) else {
            return Ok(None);
        };
        let refused = |e: aya::maps::MapError| TableError::Kernel {
            map: if v4 { "GUARD4" } else { "GUARD6" },
            reason: e.to_string(),
        };
        let there = map.get(&n, 0).map_err(refused)?;
        if there == wanted {
            return Ok(None);
        }
        map.set(n, wanted, 0).map_err(refused)?;
        Ok(Some(wanted & !there != 0))
    }

    /// Sets the bits that `wanted` adds; before the lists' entries are written.
    pub fn add_lists(&self, wanted: &ListPlanes) -> Result<(), TableError> {
        self.write_lists(wanted, false)
    }

    /// Makes the lists' bits equal to `wanted`; after the lists' old entries were removed.
    pub fn set_lists(&self, wanted: &ListPlanes) -> Result<(), TableError> {
        self.write_lists(wanted, true)
    }

    fn write_lists(&self, wanted: &ListPlanes, clear: bool) -> Result<(), TableError> {
        let list_bits = GUARD_LIST * 0x5555_5555_5555_5555;
        let mut inner = self.lock();
        if wanted.v6_off {
            inner.write_off(Some(true))?;
        }
        for (family, plane) in [&wanted.v4, &wanted.v6].into_iter().enumerate() {
            for (n, want) in (0u32..).zip(plane.iter()) {
                let Some(have) = inner.words.get(family).and_then(|w| w.get(n as usize)) else {
                    continue;
                };
                let kept = if clear { have & !list_bits } else { *have };
                inner.write(family == 0, n, kept | want)?;
            }
        }
        if clear && !wanted.v6_off {
            inner.write_off(Some(false))?;
        }
        Ok(())
    }
}

/// Where a single address is guarded.
fn host_place(addr: IpAddr, seed: u64) -> GuardPlace {
    match addr {
        IpAddr::V4(a) => guard4(a.into()),
        IpAddr::V6(a) => guard6_long(high(a.into()), seed),
    }
}

impl Inner {
    /// The places of a prefix that is not a single address; none if it switches the guard off.
    fn places(&self, prefix: &Prefix) -> Vec<GuardPlace> {
        let seed = self.config.get().table_seed;
        match prefix.addr() {
            IpAddr::V4(a) => {
                let first = u32::from(a) >> 8;
                let count = 1u32 << 24u32.saturating_sub(prefix.len().into());
                (first..first.saturating_add(count))
                    .map(|n| guard4(n << 8))
                    .collect()
            }
            IpAddr::V6(a) if prefix.len() >= GUARD6_LONG => {
                vec![guard6_long(high(a.into()), seed)]
            }
            IpAddr::V6(a) if prefix.len() >= GUARD6_SHORT => {
                let first = high(a.into()) >> 32;
                let count = 1u64 << 32u32.saturating_sub(prefix.len().into());
                (first..first.saturating_add(count))
                    .map(|n| guard6_short(n << 32, seed))
                    .collect()
            }
            IpAddr::V6(_) => Vec::new(),
        }
    }

    /// The places of all prefix decisions near `prefix`.
    fn prefix_places(&self, prefix: &Prefix) -> BTreeSet<(u32, u32)> {
        self.prefixes
            .iter()
            .filter(|p| p.is_ipv4() == prefix.is_ipv4())
            // IPv6 places are hashes: any prefix may share one. IPv4 ones are shared by overlap or by the
            // same /24.
            .filter(|p| !p.is_ipv4() || near4(p, prefix))
            .flat_map(|p| self.places(p))
            .map(|place| (place.word, place.shift))
            .collect()
    }

    fn set(&mut self, v4: bool, place: GuardPlace, bit: u64) -> Result<(), TableError> {
        let word = self.word(v4, place.word);
        self.write(v4, place.word, word | (bit << place.shift))
    }

    fn clear(&mut self, v4: bool, place: GuardPlace, bit: u64) -> Result<(), TableError> {
        let word = self.word(v4, place.word);
        self.write(v4, place.word, word & !(bit << place.shift))
    }

    fn word(&self, v4: bool, n: u32) -> u64 {
        self.words
            .get(usize::from(!v4))
            .and_then(|w| w.get(n as usize))
            .copied()
            .unwrap_or(u64::MAX)
    }

    fn write(&mut self, v4: bool, n: u32, value: u64) -> Result<(), TableError> {
        let family = usize::from(!v4);
        let (Some(map), Some(word)) = (
            self.maps.get_mut(family),
            self.words
                .get_mut(family)
                .and_then(|w| w.get_mut(n as usize)),
        ) else {
            return Ok(());
        };
        if *word == value {
            return Ok(());
        }
        map.set(n, value, 0).map_err(|e| TableError::Kernel {
            map: if v4 { "GUARD4" } else { "GUARD6" },
            reason: e.to_string(),
        })?;
        *word = value;
        Ok(())
    }

    /// Switches the IPv6 guard off while a prefix is blocked that it cannot tell.
    fn write_off(&mut self, lists: Option<bool>) -> Result<(), TableError> {
        let decisions = self
            .prefixes
            .iter()
            .any(|p| !p.is_ipv4() && p.len() < GUARD6_SHORT);
        self.config
            .update(|c| {
                let lists = lists.unwrap_or(c.guard6_off & OFF_LISTS != 0);
                c.guard6_off =
                    if decisions { OFF_DECISIONS } else { 0 } | if lists { OFF_LISTS } else { 0 };
            })
            .map_err(|e| TableError::Kernel {
                map: "CONFIG",
                reason: e.to_string(),
            })
    }
}

/// Whether two IPv4 prefixes share a /24.
fn near4(a: &Prefix, b: &Prefix) -> bool {
    let wide = |p: &Prefix| Prefix::truncating(p.addr(), p.len().min(24)).unwrap_or(*p);
    wide(a).overlaps(&wide(b))
}
