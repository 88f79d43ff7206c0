//! The ranges of lists: two halves of one map for each family, of which one is in use and the other one is written.

use aya::{
    Pod,
    maps::{Array, MapData},
};
use secmesh_common::{
    config::Config,
    list::{INDEX4, ListRange4, ListRange6},
};

use super::{
    Compiled, Differences, Span, count, kernel_expiry,
    nets::{NetCounts, NetMaps},
    refused,
};
use crate::{
    dataplane::{TableError, batch},
    respond::Now,
};

/// Ends of ranges may differ by so many units: they follow from two clocks that drift apart.
const MAX_DRIFT: u32 = 4;

/// Whether an end in the kernel is the one that is wanted. Of what has ended any end before now is right: it stays
/// until the lists are replaced, and is obeyed by nobody.
fn same_end(there: u32, wanted_unix_s: u64, now: Now) -> bool {
    let wanted = kernel_expiry(wanted_unix_s, now);
    let has_ended = wanted_unix_s.saturating_mul(1_000_000) <= now.unix_us;
    there.abs_diff(wanted) <= MAX_DRIFT || (has_ended && there <= wanted)
}

/// A family's range, as the kernel has it.
pub(super) trait Range: Pod + PartialEq {
    /// An address in host byte order.
    type Addr: Copy;
    /// The map of ranges.
    const MAP: &'static str;

    /// What a span is in the kernel.
    fn new(span: &Span<Self::Addr>, now: Now) -> Self;
    /// Its addresses and its list, for good.
    fn span(&self) -> Span<Self::Addr>;
    /// When it ends.
    fn expires(&mut self) -> &mut u32;
    /// What has met it.
    fn hits(&mut self) -> &mut u64;
    /// The number of its list.
    fn list(&self) -> u16;
}

impl Range for ListRange4 {
    type Addr = u32;
    const MAP: &'static str = "RANGE4";

    fn new(span: &Span<u32>, now: Now) -> Self {
        Self {
            start: span.start,
            end: span.end,
            expires: kernel_expiry(span.expires_unix_s, now),
            list: span.list,
            flags: 0,
            hits: 0,
        }
    }

    fn span(&self) -> Span<u32> {
        Span {
            start: self.start,
            end: self.end,
            expires_unix_s: u64::MAX,
            list: self.list,
        }
    }

    fn expires(&mut self) -> &mut u32 {
        &mut self.expires
    }

    fn hits(&mut self) -> &mut u64 {
        &mut self.hits
    }

    fn list(&self) -> u16 {
        self.list
    }
}

impl Range for ListRange6 {
    type Addr = u128;
    const MAP: &'static str = "RANGE6";

    fn new(span: &Span<u128>, now: Now) -> Self {
        Self {
            start: pair(span.start),
            end: pair(span.end),
            expires: kernel_expiry(span.expires_unix_s, now),
            list: span.list,
            flags: 0,
            hits: 0,
        }
    }

    fn span(&self) -> Span<u128> {
        let whole = |[high, low]: [u64; 2]| u128::from(high) << 64 | u128::from(low);
        Span {
            start: whole(self.start),
            end: whole(self.end),
            expires_unix_s: u64::MAX,
            list: self.list,
        }
    }

    fn expires(&mut self) -> &mut u32 {
        &mut self.expires
    }

    fn hits(&mut self) -> &mut u64 {
        &mut self.hits
    }

    fn list(&self) -> u16 {
        self.list
    }
}

/// An address as two halves, high one first.
fn pair(addr: u128) -> [u64; 2] {
    [
        high(addr),
        u64::try_from(addr & u128::from(u64::MAX)).unwrap_or(u64::MAX),
    ]
}

/// The first half of an address.
pub(super) fn high(addr: u128) -> u64 {
    u64::try_from(addr >> 64).unwrap_or(u64::MAX)
}

/// The maps of the ranges.
pub(in crate::dataplane) struct RangeMaps {
    pub ranges4: Array<MapData, ListRange4>,
    pub ranges6: Array<MapData, ListRange6>,
    /// The first halves of where the IPv6 ranges start, in the same places.
    pub search6: Array<MapData, u64>,
    /// Where in the IPv4 ranges each /16 begins.
    pub index: Array<MapData, u32>,
    /// What is in each half of that, as far as it is known: writing takes 0.2 µs an entry, and most stay.
    pub indexed: [Option<Vec<u32>>; 2],
    /// The same ranges as networks.
    pub nets: NetMaps,
}

impl RangeMaps {
    /// Ranges of each family that fit one half.
    pub fn rooms(&self) -> [u32; 2] {
        [self.ranges4.len() / 2, self.ranges6.len() / 2]
    }

    /// The ranges that an earlier agent left in the half in use. When they end is not read: it is written anew.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn learn(&self, config: &Config) -> Result<Compiled, TableError> {
        let half = config.list_half & 1;
        let [room4, room6] = self.rooms();
        let of_half = |[lower, upper]: [u32; 2]| if half == 0 { lower } else { upper };
        let ranges4 = batch::get(&self.ranges4, half * room4, of_half(config.list_ranges4));
        let ranges6 = batch::get(&self.ranges6, half * room6, of_half(config.list_ranges6));
        Ok(Compiled {
            ranges4: ranges4
                .map_err(refused(ListRange4::MAP))?
                .iter()
                .map(Range::span)
                .collect(),
            ranges6: ranges6
                .map_err(refused(ListRange6::MAP))?
                .iter()
                .map(Range::span)
                .collect(),
            ..Compiled::default()
        })
    }

    /// Writes the ranges into one half.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn write(
        &mut self,
        half: u32,
        wanted: &Compiled,
        now: Now,
    ) -> Result<NetCounts, TableError> {
        let [room4, room6] = self.rooms();
        write(&self.ranges4, half * room4, &wanted.ranges4, now)?;
        write(&self.ranges6, half * room6, &wanted.ranges6, now)?;
        let search: Vec<u64> = wanted.ranges6.iter().map(|span| high(span.start)).collect();
        batch::set(&self.search6, half * room6, &search).map_err(refused("SEARCH6"))?;
        self.write_index(half, &wanted.ranges4)?;
        self.nets.write(half, wanted, now)
    }

    /// Writes where each /16 begins in one half. Without ranges nobody asks.
    fn write_index(&mut self, half: u32, spans: &[Span<u32>]) -> Result<(), TableError> {
        let Some(indexed) = self.indexed.get_mut(half as usize) else {
            return Ok(());
        };
        if spans.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        let mut index = Vec::with_capacity(INDEX4 as usize);
        for block in 0..INDEX4 {
            while spans
                .get(at)
                .is_some_and(|s| u64::from(s.start) < u64::from(block) << 16)
            {
                at += 1;
            }
            index.push(count(at));
        }
        let before = indexed.take();
        let before = before.as_deref().unwrap_or_default();
        let (places, values): (Vec<u32>, Vec<u32>) = (half * INDEX4..)
            .zip(&index)
            .zip(before.iter().map(Some).chain(std::iter::repeat(None)))
            .filter(|((_, wanted), there)| *there != Some(*wanted))
            .map(|((place, wanted), _)| (place, *wanted))
            .unzip();
        batch::set_each(&self.index, &places, &values).map_err(refused("INDEX"))?;
        *indexed = Some(index);
        Ok(())
    }

    /// Looks at an IPv4 range of a half, and writes it again if it differs.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn audit4(
        &mut self,
        half: u32,
        n: u32,
        spans: &[Span<u32>],
        now: Now,
        found: &mut Differences,
    ) -> Result<(), TableError> {
        let [room, _] = self.rooms();
        audit(&mut self.ranges4, half * room, n, spans, now, found).map(drop)
    }

    /// The same of IPv6, and of what is searched for it.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn audit6(
        &mut self,
        half: u32,
        n: u32,
        spans: &[Span<u128>],
        now: Now,
        found: &mut Differences,
    ) -> Result<(), TableError> {
        let [_, room] = self.rooms();
        let Some(at) = audit(&mut self.ranges6, half * room, n, spans, now, found)? else {
            return Ok(());
        };
        let right = spans.get(n as usize).map_or(0, |span| high(span.start));
        let map = &mut self.search6;
        if map.get(&at, 0).map_err(refused("SEARCH6"))? != right {
            found.note(true, false);
            map.set(at, right, 0).map_err(refused("SEARCH6"))?;
        }
        Ok(())
    }

    /// Looks at where the ranges of a /16 begin.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn audit_index(
        &mut self,
        half: u32,
        block: u32,
        spans: &[Span<u32>],
        found: &mut Differences,
    ) -> Result<(), TableError> {
        let right = count(spans.partition_point(|s| u64::from(s.start) < u64::from(block) << 16));
        let at = half * INDEX4 + block;
        if self.index.get(&at, 0).map_err(refused("INDEX"))? != right {
            found.note(true, false);
            self.index.set(at, right, 0).map_err(refused("INDEX"))?;
        }
        Ok(())
    }
}

fn write<R: Range>(
    map: &Array<MapData, R>,
    first: u32,
    spans: &[Span<R::Addr>],
    now: Now,
) -> Result<(), TableError> {
    let ranges: Vec<R> = spans.iter().map(|span| R::new(span, now)).collect();
    batch::set(map, first, &ranges).map_err(refused(R::MAP))
}

/// Compares a range with what should be there; its place, if there should be one.
fn audit<R: Range>(
    map: &mut Array<MapData, R>,
    base: u32,
    n: u32,
    spans: &[Span<R::Addr>],
    now: Now,
    found: &mut Differences,
) -> Result<Option<u32>, TableError> {
    let Some(span) = spans.get(n as usize) else {
        return Ok(None);
    };
    let at = base.saturating_add(n);
    let mut there = map.get(&at, 0).map_err(refused(R::MAP))?;
    let mut right = R::new(span, now);
    *right.hits() = *there.hits();
    let in_time = same_end(*there.expires(), span.expires_unix_s, now);
    let mut same = there;
    *same.expires() = *right.expires();
    if same != right || !in_time {
        found.note(true, false);
        map.set(at, right, 0).map_err(refused(R::MAP))?;
    }
    Ok(Some(at))
}

/// The number of the list whose range holds `addr`, and what has met that range, by the half in use.
pub(super) fn hits<R: Range>(
    map: &Array<MapData, R>,
    half: u32,
    spans: &[Span<R::Addr>],
    addr: R::Addr,
) -> Option<(u16, u64)>
where
    R::Addr: Ord,
{
    let n = covering(spans, addr)?;
    let mut range = map.get(&(half * (map.len() / 2) + count(n)), 0).ok()?;
    Some((range.list(), *range.hits()))
}

/// The span that holds `addr`, of sorted ones that do not overlap.
fn covering<A: Ord + Copy>(spans: &[Span<A>], addr: A) -> Option<usize> {
    let n = spans.partition_point(|s| s.start <= addr).checked_sub(1)?;
    (spans.get(n)?.end >= addr).then_some(n)
}
