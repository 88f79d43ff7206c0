//! Tables of imported lists, and the guard in front of all block tables.
//!
//! Lists have up to millions of entries, so their tables are arrays that the kernel reads inline, with one
//! or two cache lines a lookup: single addresses in a bucketed cuckoo hash (Pagh and Rodler 2004; buckets as
//! in Dietzfelbinger and Weidling 2007), prefixes as sorted ranges that do not overlap. The guard is a
//! bitmap with which a packet of no blocked neighbourhood skips every table for the price of one load.
//!
//! Who writes: the controller only, apart from hit counts. The order of its writes keeps every entry
//! visible to the kernel at all times: a moved host is written in its new place before the old is cleared,
//! and ranges are written into the half that is not in use, which one store then makes the one in use.
#![expect(
    clippy::cast_possible_truncation,
    reason = "hash bits that a mask or a shift has cut to size, and constants"
)]

use crate::packet::{Family, Words};

/// A list entry's time unit is 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`: 32 bits last 146 years, and the
/// kernel gets it from nanoseconds with one shift.
pub const EXPIRY_SHIFT: u32 = 30;

/// Never ends.
pub const EXPIRY_NEVER: u32 = u32::MAX;

/// IPv4 hosts in one bucket: one cache line.
pub const BUCKET4: usize = 4;
/// IPv6 hosts in one bucket: one cache line.
pub const BUCKET6: usize = 2;

/// An address of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListHost4 {
    /// The address, network byte order.
    pub addr: [u8; 4],
    /// When it ends, in units of 2^[`EXPIRY_SHIFT`] ns; 0 is a free slot.
    pub expires: u32,
    /// Packets that met it; a lower bound where several CPUs count, and it wraps.
    pub hits: u32,
    /// The controller's number of the list.
    pub list: u16,
    /// Zero.
    pub flags: u16,
}

/// An address of a list; see [`ListHost4`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListHost6 {
    /// The address, network byte order.
    pub addr: [u8; 16],
    /// When it ends.
    pub expires: u32,
    /// Packets that met it.
    pub hits: u32,
    /// The controller's number of the list.
    pub list: u16,
    /// Zero.
    pub flags: u16,
    /// Zero.
    pub pad: u32,
}

/// One bucket of the IPv4 host table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListBucket4 {
    /// Its slots.
    pub hosts: [ListHost4; BUCKET4],
}

/// One bucket of the IPv6 host table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListBucket6 {
    /// Its slots.
    pub hosts: [ListHost6; BUCKET6],
}

/// A range of addresses of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListRange4 {
    /// Its first address, host byte order.
    pub start: u32,
    /// Its last address.
    pub end: u32,
    /// When it ends, in units of 2^[`EXPIRY_SHIFT`] ns.
    pub expires: u32,
    /// The controller's number of the list.
    pub list: u16,
    /// Zero.
    pub flags: u16,
    /// Packets that met it; a lower bound where several CPUs count.
    pub hits: u64,
}

/// A range of addresses of a list; see [`ListRange4`]. Addresses as two 64-bit halves, high one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListRange6 {
    /// Its first address.
    pub start: [u64; 2],
    /// Its last address.
    pub end: [u64; 2],
    /// When it ends.
    pub expires: u32,
    /// The controller's number of the list.
    pub list: u16,
    /// Zero.
    pub flags: u16,
    /// Packets that met it.
    pub hits: u64,
}

const _: () = {
    assert!(size_of::<ListBucket4>() == 64, "one cache line");
    assert!(size_of::<ListBucket6>() == 64, "one cache line");
    assert!(size_of::<ListRange4>() == 24, "layout");
    assert!(size_of::<ListRange6>() == 48, "layout");
};

/// Entries of one half of the index into the IPv4 ranges: one per /16 and the end.
pub const INDEX4: u32 = (1 << 16) + 1;

/// Steps of a binary search over as many ranges as there can be.
pub const SEARCH_STEPS: u32 = 21;

/// Words of a guard: two bits for each of 2^24 neighbourhoods.
pub const GUARD_WORDS: usize = 1 << 19;
/// A neighbourhood's bit for decisions, exact or prefix.
pub const GUARD_DECISION: u64 = 1;
/// A neighbourhood's bit for lists.
pub const GUARD_LIST: u64 = 2;

/// IPv6 prefixes at least this long set the guard by their /48.
pub const GUARD6_LONG: u8 = 48;
/// IPv6 prefixes at least this long set the guard by the /32s they cover; shorter ones switch the IPv6
/// guard off.
pub const GUARD6_SHORT: u8 = 20;

/// A place in a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardPlace {
    /// The word.
    pub word: u32,
    /// How far its two bits are shifted.
    pub shift: u32,
}

/// Where the /24 around an IPv4 address is guarded; `addr` in host byte order.
#[inline(always)]
pub const fn guard4(addr: u32) -> GuardPlace {
    GuardPlace {
        word: addr >> 13,
        shift: ((addr >> 8) & 31) * 2,
    }
}

/// Where the /48 around an IPv6 address is guarded; `high` is its first half in host byte order.
#[inline(always)]
pub const fn guard6_long(high: u64, seed: u64) -> GuardPlace {
    guard6(high >> 16, seed)
}

/// Where the /32 around an IPv6 address is guarded.
#[inline(always)]
pub const fn guard6_short(high: u64, seed: u64) -> GuardPlace {
    guard6((high >> 32) | (1 << 63), seed)
}

#[inline(always)]
const fn guard6(key: u64, seed: u64) -> GuardPlace {
    // Multiply-shift with a secret odd factor (Dietzfelbinger and others 1997): nobody outside can choose
    // neighbourhoods that meet.
    let hash = (key ^ (key >> 32)).wrapping_mul(seed | 1) >> 40;
    GuardPlace {
        word: (hash >> 5) as u32,
        shift: (hash as u32 & 31) * 2,
    }
}

/// An IPv6 address as two halves in host byte order.
#[inline(always)]
pub const fn halves(words: &Words) -> [u64; 2] {
    [
        ((u32::from_be(words[0]) as u64) << 32) | u32::from_be(words[1]) as u64,
        ((u32::from_be(words[2]) as u64) << 32) | u32::from_be(words[3]) as u64,
    ]
}

/// The two buckets of an IPv4 address (network byte order word); `mask` is the number of buckets less one.
#[inline(always)]
pub const fn buckets4(word: u32, seed: u64, mask: u32) -> [u32; 2] {
    let hash = (word as u64 ^ (seed >> 32)).wrapping_mul(seed | 1);
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    [(hash >> 40) as u32 & mask, (hash >> 16) as u32 & mask]
}

/// The two buckets of an IPv6 address.
#[inline(always)]
pub const fn buckets6(words: &Words, seed: u64, mask: u32) -> [u32; 2] {
    let high = ((words[1] as u64) << 32) | words[0] as u64;
    let low = ((words[3] as u64) << 32) | words[2] as u64;
    let hash = (high ^ (seed >> 32)).wrapping_mul(seed | 1);
    let hash = (hash ^ (hash >> 31) ^ low).wrapping_mul(seed.rotate_left(23) | 1);
    // The last bytes of an address are the upper bits of `low`, and a product spreads upwards only: neighbours
    // would share their second bucket without the fold and the third product.
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb);
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    [(hash >> 40) as u32 & mask, (hash >> 16) as u32 & mask]
}

/// Key of a hot-source slot.
#[inline(always)]
pub const fn hot_place(words: &Words, family: Family, seed: u64) -> u32 {
    match family {
        Family::V4 | Family::Other => buckets4(words[0], seed, HOT_SLOTS as u32 - 1)[0],
        Family::V6 => buckets6(words, seed, HOT_SLOTS as u32 - 1)[0],
    }
}

/// Slots for sources that are being dropped right now; a power of two.
pub const HOT_SLOTS: usize = 1 << 12;

/// How often a hot source's counts are added to its block entry, ns.
pub const HOT_FLUSH_NS: u64 = 100_000_000;

/// A source that a decision blocks and that is sending: what its block entry says, where one load reaches
/// it, and counts that its block entry has not got yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct HotSource {
    /// The address as the packet has it; IPv4 in the first word.
    pub addr: Words,
    /// When the block ends, `CLOCK_MONOTONIC` ns.
    pub expires_ns: u64,
    /// Packets not yet in the entry.
    pub hits: u64,
    /// Bytes not yet in the entry.
    pub bytes: u64,
    /// When the entry was brought up to date, `CLOCK_MONOTONIC` ns.
    pub flushed_ns: u64,
    /// When its last packet came, `CLOCK_MONOTONIC` ns.
    pub last_ns: u64,
    /// [`crate::config::Config::hot_generation`] when the slot was filled; another one empties it.
    pub generation: u32,
    /// 4 or 6; 0 is a free slot.
    pub family: u32,
}

const _: () = assert!(size_of::<HotSource>() == 64, "one cache line");

#[cfg(feature = "user")]
mod pod {
    use super::{HotSource, ListBucket4, ListBucket6, ListRange4, ListRange6};
    // SAFETY: repr(C), only integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for ListBucket4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListBucket6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListRange4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListRange6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for HotSource {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, format, vec::Vec};

    use super::*;

    /// Numbers spread over as many buckets hit some 63 % of them if each one's is as good as random.
    fn ensure_spread(buckets: impl Iterator<Item = [u32; 2]>, of: usize, what: &str) {
        let pairs: Vec<[u32; 2]> = buckets.collect();
        for n in 0..2 {
            let hit: BTreeSet<u32> = pairs.iter().map(|pair| pair[n]).collect();
            assert!(
                hit.len() * 2 > of,
                "{what}, choice {n}: {} of {of}",
                hit.len()
            );
        }
        let alike = pairs.iter().filter(|[a, b]| a == b).count();
        assert!(
            alike < of / 8,
            "{what}: {alike} of {of} have one bucket only"
        );
    }

    #[test]
    fn neighbours_spread_over_both_choices_whatever_bytes_tell_them_apart() {
        // As random as the agent's own.
        for seed in [
            0x2545_f491_4f6c_dd1d,
            0x0f7e_5700_0000_5eed,
            0x9e37_79b9_7f4a_7c15,
        ] {
            for bits in [7, 10, 12] {
                let of = 1_u32 << bits;
                let net = 0xfd00_0001_0002_0003_0000_0000_0000_0000_u128;
                for shift in [0, 4, 8, 16, 24, 32, 40, 48, 56, 64, 72, 80, 96, 112] {
                    let addrs = (0..of).map(|n| (net ^ (u128::from(n) << shift)).to_be_bytes());
                    let words = addrs.map(|bytes| {
                        let (words, _) = bytes.as_chunks::<4>();
                        [words[0], words[1], words[2], words[3]].map(u32::from_ne_bytes)
                    });
                    let buckets = words.map(|words| buckets6(&words, seed, of - 1));
                    ensure_spread(
                        buckets,
                        of as usize,
                        &format!("IPv6 {seed:x} {bits} {shift}"),
                    );
                }
                for shift in (0..=32 - bits).step_by(4) {
                    let buckets = (0..of)
                        .map(|n| buckets4((0x0a00_0000 ^ (n << shift)).to_be(), seed, of - 1));
                    ensure_spread(
                        buckets,
                        of as usize,
                        &format!("IPv4 {seed:x} {bits} {shift}"),
                    );
                }
            }
        }
    }
}
