//! The guard bitmaps: which neighbourhoods hold a block, so that packets of all others skip the tables.
//!
//! A bit is set before its entry goes in and cleared after its entry came out, never the other way round.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::{Arc, MutexGuard},
};

use aya::maps::{Array, MapData};
use secmesh_common::list::{
    GUARD_BITS, GUARD_DECISION, GUARD_HOST, GUARD_MAX_WORDS, GUARD_MIN_WORDS, GUARD_PER_WORD,
    GUARD_RANGE, GUARD4_LONG, GUARD6_LONG, GUARD6_SHORT, GuardPlace, WIDE4_DECISION, WIDE4_LIST,
    WIDE6_DECISION, WIDE6_LIST, guard_shift, guard4_long, guard4_short, guard6_long, guard6_short,
};

use super::{
    DataplaneError, TableError, batch, cell::ConfigCell, tables::unconfigured, turns::Turns,
};
use crate::addr::Prefix;

/// Bit of [`secmesh_common::config::Config::guard6_off`] that decisions set.
const OFF_DECISIONS: u32 = 1;
/// The bit that lists set.
const OFF_LISTS: u32 = 2;

/// Entries of the lists for each word of a guard: one packet in seven of those that nothing blocks is looked up for
/// nothing, or fewer. Larger guards would themselves be the cache miss that they are to save.
const PER_WORD: u64 = 3;

/// The lists' bits of all neighbourhoods of a word.
const LIST_BITS: u64 = {
    let (mut bits, mut n) = (0, 0);
    while n < GUARD_PER_WORD {
        bits |= (GUARD_HOST | GUARD_RANGE) << (n * GUARD_BITS);
        n += 1;
    }
    bits
};

/// Words of a guard for tables of so many entries: a power of two.
pub(super) fn words_for(addresses: u32, prefixes: u32) -> u32 {
    let entries = u64::from(addresses) + u64::from(prefixes);
    let words = entries.div_ceil(PER_WORD).next_power_of_two();
    u32::try_from(words)
        .unwrap_or(GUARD_MAX_WORDS)
        .clamp(GUARD_MIN_WORDS, GUARD_MAX_WORDS)
}

/// What lists want guarded: the planes of both families, and whether the IPv6 guard must be off.
pub(super) struct ListPlanes {
    v4: Vec<u64>,
    v6: Vec<u64>,
    v6_off: bool,
    wide: u32,
    seed: u64,
    shift: u32,
}

impl ListPlanes {
    fn set(plane: &mut [u64], place: GuardPlace, is_host: bool) {
        let bit = if is_host { GUARD_HOST } else { GUARD_RANGE };
        if let Some(word) = plane.get_mut(place.word as usize) {
            *word |= bit << place.shift;
        }
    }

    /// Guards an IPv4 host, or range with both ends included, which are in different tables.
    pub fn add4(&mut self, start: u32, end: u32, is_host: bool) {
        if (end >> 8) - (start >> 8) < 1 << (24 - GUARD4_LONG) {
            for block in (start >> 8)..=(end >> 8) {
                let place = guard4_long(block << 8, self.seed, self.shift);
                Self::set(&mut self.v4, place, is_host);
            }
            return;
        }
        self.wide |= WIDE4_LIST;
        for block in (start >> 16)..=(end >> 16) {
            let place = guard4_short(block << 16, self.seed, self.shift);
            Self::set(&mut self.v4, place, is_host);
        }
    }

    /// Guards an IPv6 host or range.
    pub fn add6(&mut self, start: u128, end: u128, is_host: bool) {
        let (first, last) = (high(start), high(end));
        if last >> 16 == first >> 16 {
            let place = guard6_long(first, self.seed, self.shift);
            Self::set(&mut self.v6, place, is_host);
            return;
        }
        let (first, last) = (first >> 32, last >> 32);
        if last - first >= 1 << (32 - GUARD6_SHORT) {
            self.v6_off = true;
            return;
        }
        self.wide |= WIDE6_LIST;
        for block in first..=last {
            let place = guard6_short(block << 32, self.seed, self.shift);
            Self::set(&mut self.v6, place, is_host);
        }
    }
}

/// The upper half of an IPv6 address.
fn high(addr: u128) -> u64 {
    u64::try_from(addr >> 64).unwrap_or(u64::MAX)
}

fn guard_name(v4: bool) -> &'static str {
    if v4 { "GUARD4" } else { "GUARD6" }
}

struct Inner {
    maps: [Array<MapData, u64>; 2],
    words: [Vec<u64>; 2],
    shift: u32,
    /// Decisions in each neighbourhood, by family, word and shift.
    decisions: HashMap<(bool, u32, u32), u32>,
    /// Prefix decisions.
    prefixes: BTreeSet<Prefix>,
    /// Decisions on one address. What is in here or above is counted in `decisions`, once; an entry that somebody
    /// else wrote is not, and must not take another one's count when it goes.
    singles: HashSet<IpAddr>,
    config: ConfigCell,
}

/// Words that lists compare and write before decisions get a turn.
const PIECE: usize = 1 << 13;

/// A handle to both guards.
#[derive(Clone)]
pub(super) struct Guard(Arc<Turns<Inner>>);

impl Guard {
    /// Takes the maps over, which are of one size. Whatever bits an earlier agent left stay until
    /// [`Guard::set_lists`] and the decisions that it wrote have been learned: a bit too many costs a lookup, one
    /// too few a block.
    ///
    /// # Errors
    ///
    /// The kernel's refusal to be told how large they are.
    pub fn open(
        v4: Array<MapData, u64>,
        v6: Array<MapData, u64>,
        config: ConfigCell,
        fresh: bool,
    ) -> Result<Self, DataplaneError> {
        let size = v4.len();
        let shift = guard_shift(size);
        config.update(|c| c.guard_shift = shift)?;
        let mut words = [vec![0; size as usize], vec![0; size as usize]];
        if !fresh {
            for (map, words) in [&v4, &v6].into_iter().zip(&mut words) {
                for (n, word) in (0u32..).zip(words.iter_mut()) {
                    *word = map.get(&n, 0).unwrap_or(u64::MAX);
                }
            }
        }
        Ok(Self(Arc::new(Turns::new(Inner {
            maps: [v4, v6],
            words,
            shift,
            decisions: HashMap::new(),
            prefixes: BTreeSet::new(),
            singles: HashSet::new(),
            config,
        }))))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }

    /// Planes of this guard's size that guard nothing.
    pub fn planes(&self) -> ListPlanes {
        let inner = self.lock();
        let [v4, v6] = &inner.words;
        ListPlanes {
            v4: vec![0; v4.len()],
            v6: vec![0; v6.len()],
            v6_off: false,
            wide: 0,
            seed: inner.config.get().table_seed,
            shift: inner.shift,
        }
    }

    /// Guards a decision's prefix; before its entry is written. Doing so twice is once.
    pub fn add(&self, prefix: &Prefix) -> Result<(), TableError> {
        let mut inner = self.0.lock_soon();
        let single = prefix.is_single();
        let is_new = if single {
            inner.singles.insert(prefix.addr())
        } else {
            inner.prefixes.insert(*prefix)
        };
        let v4 = prefix.is_ipv4();
        let places = inner.places(prefix);
        // All are counted before the first write, which may fail: a count too many keeps a bit, one too few
        // would take another decision's.
        if is_new {
            for place in &places {
                let key = (v4, place.word, place.shift);
                let count = inner.decisions.entry(key).or_insert(0);
                *count = count.saturating_add(1);
            }
        }
        if !single {
            inner.write_wide(None)?;
        }
        for place in places {
            inner.set(v4, place, GUARD_DECISION)?;
        }
        Ok(())
    }

    /// Stops guarding a decision's prefix; after its entry was removed. One that is not guarded is no error.
    pub fn remove(&self, prefix: &Prefix) -> Result<(), TableError> {
        let mut inner = self.0.lock_soon();
        let v4 = prefix.is_ipv4();
        let single = prefix.is_single();
        let was_guarded = if single {
            inner.singles.remove(&prefix.addr())
        } else {
            inner.prefixes.remove(prefix)
        };
        if !was_guarded {
            return Ok(());
        }
        for place in inner.places(prefix) {
            let key = (v4, place.word, place.shift);
            match inner.decisions.get_mut(&key) {
                Some(count) if *count > 1 => *count -= 1,
                _ => {
                    inner.decisions.remove(&key);
                    inner.clear(v4, place, GUARD_DECISION)?;
                }
            }
        }
        if single {
            return Ok(());
        }
        inner.write_wide(None)
    }

    /// Words of each family's guard.
    pub fn words(&self) -> u32 {
        let inner = self.lock();
        let [v4, _] = &inner.words;
        u32::try_from(v4.len()).unwrap_or(u32::MAX)
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
            map: guard_name(v4),
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

    /// Goes over all words a piece at a time, and decisions get a turn between two of them: what is kept of a word is
    /// what it holds when its piece is written. Nothing is unguarded meanwhile: bits are added before the entries that
    /// need them, and taken when nobody needs them any more, so it does not matter when each piece is written.
    fn write_lists(&self, wanted: &ListPlanes, clear: bool) -> Result<(), TableError> {
        if !clear {
            self.lock().write_wide(Some((wanted, true)))?;
        }
        for (family, plane) in [&wanted.v4, &wanted.v6].into_iter().enumerate() {
            for (first, piece) in (0..).step_by(PIECE).zip(plane.chunks(PIECE)) {
                self.0
                    .lock_after_others()
                    .write_piece(family, first, piece, clear)?;
            }
        }
        if clear {
            self.lock().write_wide(Some((wanted, false)))?;
        }
        Ok(())
    }
}

impl Inner {
    /// The places of a prefix; none if it switches the guard off.
    fn places(&self, prefix: &Prefix) -> Vec<GuardPlace> {
        let (seed, shift) = (self.config.get().table_seed, self.shift);
        match prefix.addr() {
            IpAddr::V4(a) if prefix.len() >= GUARD4_LONG => {
                let first = u32::from(a) >> 8;
                let count = 1u32 << 24u32.saturating_sub(prefix.len().into());
                (first..first.saturating_add(count))
                    .map(|n| guard4_long(n << 8, seed, shift))
                    .collect()
            }
            IpAddr::V4(a) => {
                let first = u32::from(a) >> 16;
                let count = 1u32 << 16u32.saturating_sub(prefix.len().into());
                (first..first.saturating_add(count))
                    .map(|n| guard4_short(n << 16, seed, shift))
                    .collect()
            }
            IpAddr::V6(a) if prefix.len() >= GUARD6_LONG => {
                vec![guard6_long(high(a.into()), seed, shift)]
            }
            IpAddr::V6(a) if prefix.len() >= GUARD6_SHORT => {
                let first = high(a.into()) >> 32;
                let count = 1u64 << 32u32.saturating_sub(prefix.len().into());
                (first..first.saturating_add(count))
                    .map(|n| guard6_short(n << 32, seed, shift))
                    .collect()
            }
            IpAddr::V6(_) => Vec::new(),
        }
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
            map: guard_name(v4),
            reason: e.to_string(),
        })?;
        *word = value;
        Ok(())
    }

    /// Adds the lists' bits of `piece`, which begins at word `first`; with `clear` those go that are not in it.
    fn write_piece(
        &mut self,
        family: usize,
        first: usize,
        piece: &[u64],
        clear: bool,
    ) -> Result<(), TableError> {
        let Some(words) = self.words.get(family).and_then(|words| words.get(first..)) else {
            return Ok(());
        };
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let (places, values): (Vec<u32>, Vec<u64>) = (first..)
            .zip(words.iter().zip(piece))
            .filter_map(|(n, (have, want))| {
                let kept = if clear { have & !LIST_BITS } else { *have };
                (*have != kept | want).then_some((number(n), kept | want))
            })
            .unzip();
        if places.is_empty() {
            return Ok(());
        }
        self.write_many(family == 0, places, values)
    }

    /// As [`Inner::write`], many words by few calls.
    fn write_many(
        &mut self,
        v4: bool,
        places: Vec<u32>,
        values: Vec<u64>,
    ) -> Result<(), TableError> {
        let family = usize::from(!v4);
        let (Some(map), Some(words)) = (self.maps.get(family), self.words.get_mut(family)) else {
            return Ok(());
        };
        let result = batch::set_each(map, &places, &values);
        for (n, value) in places.into_iter().zip(values) {
            if let Some(word) = words.get_mut(n as usize) {
                // Some may have been written, so a failure is followed by a look.
                *word = match result {
                    Ok(()) => value,
                    Err(_) => map.get(&n, 0).unwrap_or(u64::MAX),
                };
            }
        }
        result.map_err(|e| TableError::Kernel {
            map: guard_name(v4),
            reason: e.to_string(),
        })
    }

    /// Says which wide neighbourhoods are to be asked, and switches the IPv6 guard off while a prefix is blocked
    /// that it cannot tell. Decisions are those of now; `lists`, if they change, with whether what other lists
    /// needed so far is still needed.
    fn write_wide(&mut self, lists: Option<(&ListPlanes, bool)>) -> Result<(), TableError> {
        let (mut off, mut wide) = (0, 0);
        for prefix in &self.prefixes {
            match (prefix.is_ipv4(), prefix.len()) {
                (true, length) if length < GUARD4_LONG => wide |= WIDE4_DECISION,
                (false, length) if length < GUARD6_SHORT => off |= OFF_DECISIONS,
                (false, length) if length < GUARD6_LONG => wide |= WIDE6_DECISION,
                _ => {}
            }
        }
        self.config
            .update(|c| {
                let keeps = lists.is_none_or(|(_, keeps)| keeps);
                if keeps {
                    off |= c.guard6_off & OFF_LISTS;
                    wide |= c.guard_wide & (WIDE4_LIST | WIDE6_LIST);
                }
                if let Some((planes, _)) = lists {
                    off |= if planes.v6_off { OFF_LISTS } else { 0 };
                    wide |= planes.wide;
                }
                c.guard6_off = off;
                c.guard_wide = wide;
            })
            .map_err(unconfigured)
    }
}
