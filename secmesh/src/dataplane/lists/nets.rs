//! Ranges as networks in buckets, for sources that are to be found by one load (see [`secmesh_common::nets`]).
//!
//! They are built anew with each replacement of the ranges and written into the half that is not in use.

use std::collections::HashMap;

use aya::{
    Pod,
    maps::{Array, MapData},
};
use secmesh_common::{
    list::MIN_BUCKETS,
    nets::{
        AROUND4, AROUND6, ListNets4, ListNets6, NETS4, NETS6, WHOLE4, WHOLE6, net_places4,
        net_places6, net4, net6,
    },
};

use super::{Compiled, Differences, Span, count, kernel_expiry, ranges::high, refused};
use crate::{
    dataplane::{TableError, batch},
    respond::Now,
};

/// Networks of one neighbourhood: all of them have the same two buckets, and others need room there, too.
const MOST_AROUND: u32 = 6;
/// Networks that one range is split into. A range that would be more is searched for.
const MOST_OF_RANGE: usize = 32;
/// Networks that give way to each other until one of them is left out.
const MAX_MOVES: usize = 200;
/// Networks that are left out for want of room until no more are put in: then it is too crowded for all.
const MAX_HOMELESS: usize = 64;

/// A family's networks.
pub(in crate::dataplane) trait Nets {
    /// An address in host byte order.
    type Addr: Copy;
    /// A network, as it is in a bucket.
    type Net: Copy;
    /// One element of [`Nets::MAP`].
    type Bucket: Pod + PartialEq;
    /// The map of buckets.
    const MAP: &'static str;
    /// Networks in one bucket.
    const SLOTS: usize;

    /// Splits a range, and says whether networks are all of it.
    fn split(span: &Span<Self::Addr>, nets: &mut Vec<Self::Net>) -> bool;
    /// Its neighbourhood.
    fn around(net: Self::Net) -> u64;
    /// The two buckets of its neighbourhood.
    fn places(net: Self::Net, seed: u64, buckets: u32) -> [u32; 2];
    /// A network of the neighbourhood with this number.
    fn somewhere(around: u32) -> Self::Net;
    /// A bucket with these networks, and `free` in the free slots.
    fn bucket(nets: &[Option<(Self::Net, u32)>], free: Self::Net, soonest: u32) -> Self::Bucket;
}

/// Buckets of a half that has room for the networks of so many ranges: half as many again, three quarters full.
pub(in crate::dataplane) fn buckets_of_half<N: Nets>(ranges: u32) -> u32 {
    u32::try_from((u64::from(ranges) * 2).div_ceil(N::SLOTS as u64))
        .unwrap_or(u32::MAX)
        .clamp(MIN_BUCKETS, u32::MAX / 2)
}

/// Cuts what is from `first` to before `end` into pieces of 2^0 to 2^`most`, each at a multiple of its size: where it
/// begins and the exponent. `false` if that took too many pieces.
fn cut(mut first: u128, end: u128, most: u32, mut piece: impl FnMut(u128, u32)) -> bool {
    for _ in 0..MOST_OF_RANGE {
        if first >= end {
            break;
        }
        let bits = first.trailing_zeros().min((end - first).ilog2()).min(most);
        piece(first, bits);
        first += 1 << bits;
    }
    first >= end
}

/// IPv4 networks.
pub(in crate::dataplane) struct Nets4;
/// IPv6 networks.
pub(in crate::dataplane) struct Nets6;

impl Nets for Nets4 {
    type Addr = u32;
    type Net = u32;
    type Bucket = ListNets4;
    const MAP: &'static str = "NET4";
    const SLOTS: usize = NETS4;

    fn split(span: &Span<u32>, nets: &mut Vec<u32>) -> bool {
        let (first, end) = (u128::from(span.start), u128::from(span.end) + 1);
        let mut is_whole = true;
        let is_all = cut(first, end, u32::BITS - u32::from(AROUND4), |first, bits| {
            let len = u8::try_from(u32::BITS - bits).unwrap_or(AROUND4);
            match u32::try_from(first) {
                Ok(first) if bits > 0 => nets.push(net4(first, len)),
                _ => is_whole = false,
            }
        });
        is_all && is_whole
    }

    fn around(net: u32) -> u64 {
        u64::from(net >> (32 - AROUND4))
    }

    fn places(net: u32, seed: u64, buckets: u32) -> [u32; 2] {
        net_places4(net, seed, buckets)
    }

    fn somewhere(around: u32) -> u32 {
        around << (32 - AROUND4)
    }

    fn bucket(nets: &[Option<(u32, u32)>], free: u32, soonest: u32) -> ListNets4 {
        let mut bucket = ListNets4 {
            nets: [free; NETS4],
            soonest,
        };
        for (to, from) in bucket.nets.iter_mut().zip(nets) {
            *to = from.map_or(free, |(net, _)| net);
        }
        bucket
    }
}

impl Nets for Nets6 {
    type Addr = u128;
    type Net = u64;
    type Bucket = ListNets6;
    const MAP: &'static str = "NET6";
    const SLOTS: usize = NETS6;

    fn split(span: &Span<u128>, nets: &mut Vec<u64>) -> bool {
        /// Half an address.
        const HALF: u32 = u64::BITS;
        // In units of a /64; a piece of one at either end is left to the search.
        let low = u128::from(u64::MAX);
        let mut is_whole = span.start & low == 0 && span.end & low == low;
        let first = u128::from(high(span.start)) + u128::from(span.start & low != 0);
        let end = u128::from(high(span.end)) + u128::from(span.end & low == low);
        // Nor has who begins with a one a network.
        let beyond = 1 << (HALF - 1);
        is_whole &= end <= beyond;
        let most = HALF - u32::from(AROUND6);
        let is_all = cut(first, end.min(beyond), most, |first, bits| {
            if let (Ok(first), Ok(len)) = (u64::try_from(first), u8::try_from(HALF - bits)) {
                nets.push(net6(first, len));
            }
        });
        is_all && is_whole
    }

    fn around(net: u64) -> u64 {
        net >> (65 - AROUND6)
    }

    fn places(net: u64, seed: u64, buckets: u32) -> [u32; 2] {
        net_places6(net, seed, buckets)
    }

    fn somewhere(around: u32) -> u64 {
        u64::from(around) << (65 - AROUND6)
    }

    fn bucket(nets: &[Option<(u64, u32)>], free: u64, soonest: u32) -> ListNets6 {
        let mut bucket = ListNets6 {
            nets: [free; NETS6],
            soonest,
            flags: 0,
        };
        for (to, from) in bucket.nets.iter_mut().zip(nets) {
            *to = from.map_or(free, |(net, _)| net);
        }
        bucket
    }
}

/// Networks in their buckets.
struct Built<N: Nets> {
    /// Each with when it ends.
    slots: Vec<Option<(N::Net, u32)>>,
    seed: u64,
    buckets: u32,
    /// State of the walk's choices; any non-zero value does.
    walk: u64,
    is_whole: bool,
}

impl<N: Nets> Built<N> {
    /// Splits ranges into networks of at most `room` buckets.
    fn new(spans: &[Span<N::Addr>], seed: u64, room: u32, now: Now) -> Self {
        let room = room.max(MIN_BUCKETS);
        // Three quarters full: hostile lists cost no more memory than that either.
        let most = room as usize * N::SLOTS * 3 / 4;
        let mut is_whole = true;
        let mut around: HashMap<u64, u32> = HashMap::new();
        let mut wanted: Vec<(N::Net, u32)> = Vec::with_capacity(spans.len().min(most));
        let mut nets = Vec::new();
        for span in spans {
            nets.clear();
            is_whole &= N::split(span, &mut nets);
            if wanted.len() + nets.len() > most {
                is_whole = false;
                tracing::debug!(map = N::MAP, most, "no room for the networks of all ranges");
                break;
            }
            let expires = kernel_expiry(span.expires_unix_s, now);
            for net in &nets {
                let there = around.entry(N::around(*net)).or_default();
                if *there < MOST_AROUND {
                    *there += 1;
                    wanted.push((*net, expires));
                } else {
                    is_whole = false;
                }
            }
        }
        let all = (wanted.len() * 4).div_ceil(N::SLOTS * 3);
        let buckets = count(all).clamp(MIN_BUCKETS, room);
        let mut this = Self {
            slots: vec![None; buckets as usize * N::SLOTS],
            seed,
            buckets,
            walk: seed | 1,
            is_whole,
        };
        let mut homeless = 0;
        for (n, net) in wanted.iter().enumerate() {
            if this.put(*net) {
                continue;
            }
            this.is_whole = false;
            homeless += 1;
            if homeless == MAX_HOMELESS {
                tracing::debug!(map = N::MAP, left_out = wanted.len() - n, "crowded");
                break;
            }
        }
        this
    }

    /// Puts a network into one of its buckets, and others into their other ones where it has to be; `false` if one of
    /// them is left out.
    fn put(&mut self, mut net: (N::Net, u32)) -> bool {
        for _ in 0..MAX_MOVES {
            let places = N::places(net.0, self.seed, self.buckets);
            for bucket in places {
                let first = bucket as usize * N::SLOTS;
                let slots = self.slots.get_mut(first..first + N::SLOTS);
                if let Some(free) = slots.and_then(|s| s.iter_mut().find(|s| s.is_none())) {
                    *free = Some(net);
                    return true;
                }
            }
            // xorshift64 (Marsaglia 2003): which way a walk turns need not be secret.
            self.walk ^= self.walk << 13;
            self.walk ^= self.walk >> 7;
            self.walk ^= self.walk << 17;
            let [first, second] = places;
            let bucket = if self.walk & 1 == 0 { first } else { second };
            let slot = usize::try_from(self.walk >> 33).unwrap_or(0) % N::SLOTS;
            let Some(Some(other)) = self.slots.get_mut(bucket as usize * N::SLOTS + slot) else {
                return false;
            };
            std::mem::swap(other, &mut net);
        }
        false
    }

    fn buckets(&self) -> Vec<N::Bucket> {
        (0..self.buckets)
            .zip(self.slots.chunks(N::SLOTS))
            .map(|(n, slots)| {
                let soonest = slots.iter().flatten().map(|(_, expires)| *expires).min();
                // A network that is looked for in other buckets.
                let free = (0..u32::from(u16::MAX))
                    .map(N::somewhere)
                    .find(|net| !N::places(*net, self.seed, self.buckets).contains(&n));
                let free = free.unwrap_or_else(|| N::somewhere(0));
                N::bucket(slots, free, soonest.unwrap_or(0))
            })
            .collect()
    }
}

/// A family's networks in the kernel, and what the half in use should hold.
struct NetTable<N: Nets> {
    map: Array<MapData, N::Bucket>,
    wanted: Vec<N::Bucket>,
}

impl<N: Nets> NetTable<N> {
    /// Writes ranges into one half; how many buckets they have, and whether they are all in there.
    fn write(
        &mut self,
        half: u32,
        spans: &[Span<N::Addr>],
        seed: u64,
        now: Now,
    ) -> Result<(u32, bool), TableError> {
        self.wanted.clear();
        if spans.is_empty() {
            return Ok((0, true));
        }
        let built = Built::<N>::new(spans, seed, self.map.len() / 2, now);
        self.wanted = built.buckets();
        let places: Vec<u32> = (0..built.buckets).map(|n| n * 2 + half).collect();
        batch::set_each(&self.map, &places, &self.wanted).map_err(refused(N::MAP))?;
        Ok((built.buckets, built.is_whole))
    }

    fn audit(&mut self, half: u32, n: u32, found: &mut Differences) -> Result<(), TableError> {
        let Some(right) = self.wanted.get(n as usize).copied() else {
            return Ok(());
        };
        let at = n * 2 + half;
        if self.map.get(&at, 0).map_err(refused(N::MAP))? != right {
            found.note(true, false);
            self.map.set(at, right, 0).map_err(refused(N::MAP))?;
        }
        Ok(())
    }
}

/// What the kernel has to know of a half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::dataplane) struct NetCounts {
    /// Buckets of the IPv4 networks.
    pub buckets4: u32,
    /// Buckets of the IPv6 networks.
    pub buckets6: u32,
    /// [`WHOLE4`] and [`WHOLE6`].
    pub whole: u32,
}

/// The maps of the networks.
pub(in crate::dataplane) struct NetMaps {
    nets4: NetTable<Nets4>,
    nets6: NetTable<Nets6>,
    /// What places follow from.
    seed: u64,
}

impl NetMaps {
    /// Takes the maps over. What an earlier agent left in the half in use stays until ranges are written.
    pub fn new(
        nets4: Array<MapData, ListNets4>,
        nets6: Array<MapData, ListNets6>,
        seed: u64,
    ) -> Self {
        Self {
            nets4: NetTable {
                map: nets4,
                wanted: Vec::new(),
            },
            nets6: NetTable {
                map: nets6,
                wanted: Vec::new(),
            },
            seed,
        }
    }

    /// Writes the ranges into one half.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn write(
        &mut self,
        half: u32,
        wanted: &Compiled,
        now: Now,
    ) -> Result<NetCounts, TableError> {
        let (buckets4, whole4) = self.nets4.write(half, &wanted.ranges4, self.seed, now)?;
        let (buckets6, whole6) = self.nets6.write(half, &wanted.ranges6, self.seed, now)?;
        let whole = if whole4 { WHOLE4 } else { 0 } | if whole6 { WHOLE6 } else { 0 };
        Ok(NetCounts {
            buckets4,
            buckets6,
            whole,
        })
    }

    /// Buckets of both families that an audit looks at.
    pub(super) fn audited(&self) -> u32 {
        count(self.nets4.wanted.len().max(self.nets6.wanted.len()))
    }

    /// Looks at a bucket of each family, and writes it again if it differs.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub(super) fn audit(
        &mut self,
        half: u32,
        n: u32,
        found: &mut Differences,
    ) -> Result<(), TableError> {
        self.nets4.audit(half, n, found)?;
        self.nets6.audit(half, n, found)
    }
}

#[cfg(test)]
#[path = "nets_tests.rs"]
mod tests;
