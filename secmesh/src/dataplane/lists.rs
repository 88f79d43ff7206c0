//! The list tables: whatever lists are compiled to, written so that no listed source gets through meanwhile.

mod audit;
mod hosts;
mod nets;
mod ranges;

use aya::maps::{Array, MapData, MapError};
use secmesh_common::{
    config::Config,
    list::{EXPIRY_NEVER, EXPIRY_SHIFT, ListBucket4, ListBucket6, Listed, Listed6},
};

pub use self::audit::{AuditCursor, Audited, Differences};
use self::hosts::HostTable;
pub(super) use self::{
    hosts::{Four, Six},
    nets::{NetMaps, Nets4, Nets6, buckets_of_half},
    ranges::RangeMaps,
};
use super::{TableError, cell::ConfigCell, cuckoo::Value, guard::Guard, tables::unconfigured};
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
    pub listed6: Array<MapData, Listed6>,
    pub ranges: RangeMaps,
}

/// The list tables.
pub struct ListTables {
    guard: Guard,
    config: ConfigCell,
    hosts4: HostTable<Four>,
    hosts6: HostTable<Six>,
    ranges: RangeMaps,
    current: Compiled,
    /// Unix time less `CLOCK_MONOTONIC` when the ranges of `current` were written, µs; none before that, when there
    /// may be an earlier agent's.
    ranges_origin_us: Option<u64>,
}

/// How far the clocks may have moved apart until ranges are written again for their ends, µs: less than one unit of
/// an end.
const SAME_ORIGIN_US: u64 = 1_000_000;

impl ListTables {
    pub(super) fn new(
        maps: ListMaps,
        guard: Guard,
        config: ConfigCell,
    ) -> Result<Self, TableError> {
        let now = config.get();
        let current = maps.ranges.learn(&now)?;
        Ok(Self {
            hosts4: HostTable::open(
                maps.hosts4,
                maps.listed4,
                None,
                config.clone(),
                now.list_hosts4 > 0,
            )?,
            hosts6: HostTable::open(
                maps.hosts6,
                maps.listed6,
                Some(maps.soonest6),
                config.clone(),
                now.list_hosts6 > 0,
            )?,
            ranges: maps.ranges,
            guard,
            config,
            current,
            ranges_origin_us: None,
        })
    }

    /// Entries that fit: hosts of each family (IPv4, IPv6) and ranges of each family.
    pub fn capacity(&self) -> (usize, usize, usize, usize) {
        let [ranges4, ranges6] = self.ranges.rooms();
        (
            self.hosts4.capacity(),
            self.hosts6.capacity(),
            ranges4 as usize,
            ranges6 as usize,
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
        for (spans, are_hosts) in [(&wanted.hosts4, true), (&wanted.ranges4, false)] {
            for span in spans {
                planes.add4(span.start, span.end, are_hosts);
            }
        }
        for (spans, are_hosts) in [(&wanted.hosts6, true), (&wanted.ranges6, false)] {
            for span in spans {
                planes.add6(span.start, span.end, are_hosts);
            }
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
        for (added, removed) in [
            compared(&self.current.ranges4, &wanted.ranges4),
            compared(&self.current.ranges6, &wanted.ranges6),
        ] {
            replaced.added += added;
            replaced.removed += removed;
        }
        self.replace_ranges(wanted, now)?;
        done += wanted.ranges4.len() + wanted.ranges6.len();
        progress(done);
        self.replace_hosts(wanted, now, &mut replaced, &mut |n| progress(done + n))?;
        self.set_counts(|c| {
            c.list_hosts4 = count(wanted.hosts4.len());
            c.list_hosts6 = count(wanted.hosts6.len());
            c.list_generation = allow_generation;
        })?;
        // Also where none of these became another one: hosts were written.
        self.config.renew().map_err(unconfigured)?;
        self.guard.set_lists(&planes)?;
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

    fn set_counts(&self, change: impl FnOnce(&mut Config)) -> Result<(), TableError> {
        self.config.update(change).map_err(unconfigured)
    }

    fn replace_hosts(
        &mut self,
        wanted: &Compiled,
        now: Now,
        replaced: &mut Replaced,
        progress: &mut dyn FnMut(usize),
    ) -> Result<(), TableError> {
        let base = wanted.hosts4.len();
        for (added, removed) in [
            self.hosts4.replace(hosts(&wanted.hosts4, now), progress)?,
            self.hosts6
                .replace(hosts(&wanted.hosts6, now), &mut |n| progress(base + n))?,
        ] {
            replaced.added += added;
            replaced.removed += removed;
        }
        Ok(())
    }

    /// Writes the ranges, unless they are there: most lists that come and go have hosts only, and what has met a range
    /// is counted in the range.
    fn replace_ranges(&mut self, wanted: &Compiled, now: Now) -> Result<(), TableError> {
        let origin_us = now.unix_us.saturating_sub(now.mono_ns / 1000);
        let in_time = self
            .ranges_origin_us
            .is_some_and(|written| written.abs_diff(origin_us) < SAME_ORIGIN_US);
        let (four, six) = (&self.current.ranges4, &self.current.ranges6);
        if in_time && *four == wanted.ranges4 && *six == wanted.ranges6 {
            return Ok(());
        }
        self.write_ranges(wanted, now)?;
        // From now on an audit looks for these, also if the hosts fail.
        self.current.ranges4.clone_from(&wanted.ranges4);
        self.current.ranges6.clone_from(&wanted.ranges6);
        self.ranges_origin_us = Some(origin_us);
        Ok(())
    }

    /// Writes the ranges into the half that is not in use, then switches to it: one word of the
    /// configuration, so that a packet sees all of the old ranges or all of the new.
    fn write_ranges(&mut self, wanted: &Compiled, now: Now) -> Result<(), TableError> {
        let replacements = self.config.get().list_half.wrapping_add(1);
        let half = replacements & 1;
        let nets = self.ranges.write(half, wanted, now)?;
        let [room4, room6] = self.ranges.rooms();
        let (ranges4, ranges6) = (count(wanted.ranges4.len()), count(wanted.ranges6.len()));
        self.set_counts(|c| {
            (c.list_room4, c.list_room6) = (room4, room6);
            let [lower4, upper4] = &mut c.list_ranges4;
            let [lower6, upper6] = &mut c.list_ranges6;
            if half == 0 {
                (*lower4, *lower6) = (ranges4, ranges6);
            } else {
                (*upper4, *upper6) = (ranges4, ranges6);
            }
            for (all, of_half) in [
                (&mut c.list_nets4, nets.buckets4),
                (&mut c.list_nets6, nets.buckets6),
                (&mut c.list_whole, nets.whole),
            ] {
                if let Some(place) = all.get_mut(half as usize) {
                    *place = of_half;
                }
            }
        })?;
        self.set_counts(|c| c.list_half = replacements)
    }

    /// The number of the list that names `addr`, and the packets that met its entry there: an estimate, because
    /// one packet in [`secmesh_common::list::HIT_SAMPLE`] is counted, as so many; in a flood of listed sources one in
    /// [`secmesh_common::list::FLOOD_SAMPLE`].
    pub fn hits(&self, addr: std::net::IpAddr) -> Option<(u16, u64)> {
        let half = self.config.get().list_half & 1;
        let (maps, spans) = (&self.ranges, &self.current);
        let (host, range) = match addr {
            std::net::IpAddr::V4(a) => {
                let range = ranges::hits(&maps.ranges4, half, &spans.ranges4, a.into());
                (self.hosts4.beside(a.into()), range)
            }
            std::net::IpAddr::V6(a) => {
                let range = ranges::hits(&maps.ranges6, half, &spans.ranges6, a.into());
                (self.hosts6.beside(a.into()), range)
            }
        };
        host.map(|host| (host.list, host.hits)).or(range)
    }
}

/// Hosts as the tables take them.
fn hosts<A: Copy>(spans: &[Span<A>], now: Now) -> impl Iterator<Item = (A, Value)> + Clone {
    spans
        .iter()
        .map(move |s| (s.start, (kernel_expiry(s.expires_unix_s, now), s.list)))
}

/// How many of `wanted` are not among `before`, and the other way round. An entry is the same if its addresses are;
/// both are sorted.
fn compared<A: Ord + Copy>(before: &[Span<A>], wanted: &[Span<A>]) -> (usize, usize) {
    let key = |span: &Span<A>| (span.start, span.end);
    let (mut old, mut new) = (before.iter().peekable(), wanted.iter().peekable());
    let (mut added, mut removed) = (0, 0);
    loop {
        match (old.peek(), new.peek()) {
            (None, None) => return (added, removed),
            (Some(a), Some(b)) if key(a) == key(b) => {
                old.next();
                new.next();
            }
            (Some(a), Some(b)) if key(a) > key(b) => {
                new.next();
                added += 1;
            }
            (None, Some(_)) => {
                new.next();
                added += 1;
            }
            (Some(_), _) => {
                old.next();
                removed += 1;
            }
        }
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(of: &[(u32, u32)]) -> Vec<Span<u32>> {
        of.iter()
            .map(|(start, end)| Span {
                start: *start,
                end: *end,
                expires_unix_s: u64::MAX,
                list: 1,
            })
            .collect()
    }

    #[test]
    fn entries_are_counted_as_new_gone_or_the_same_by_their_addresses() {
        let all = spans(&[(1, 9), (20, 29), (40, 49)]);
        assert_eq!(compared(&[], &all), (3, 0));
        assert_eq!(compared(&all, &[]), (0, 3));
        assert_eq!(compared(&all, &all), (0, 0));
        // One that became longer is another one; the list that names it and its end are not what it is.
        let mut others = spans(&[(0, 0), (1, 9), (20, 30), (50, 59)]);
        others[1].list = 7;
        others[1].expires_unix_s = 5;
        assert_eq!(compared(&all, &others), (3, 2));
    }
}
