//! Tables of imported lists, and the guard in front of all block tables.
//!
//! Lists have up to millions of entries, so their tables are arrays that the kernel reads inline, with one
//! or two cache lines a lookup: single addresses in a bucketed cuckoo hash (Pagh and Rodler 2004; buckets as
//! in Dietzfelbinger and Weidling 2007), prefixes as sorted ranges that do not overlap. The guard is a
//! bitmap with which a packet of no blocked neighbourhood skips every table for the price of one load.
//!
//! What a flood of listed sources costs is cache misses, so what every lookup reads is as small as it can be:
//! a bucket has the addresses ([`lane4`]; of IPv6 a part of their prints, [`lane6`]) and what it takes to see
//! that they are in force; the list that names an address and its hits are in a table beside it ([`Listed`]), which one
//! packet in [`HIT_SAMPLE`] touches, or in [`FLOOD_SAMPLE`]. Tables have as many buckets as they need (an even number),
//! not the next power of two.
//!
//! Who writes: the controller only, apart from hit counts. The order of its writes keeps every entry
//! visible to the kernel at all times: a moved host is written in its new place before the old is cleared,
//! and ranges are written into the half that is not in use, which one store then makes the one in use.
#![expect(
    clippy::cast_possible_truncation,
    reason = "hash bits that a mask or a shift has cut to size, and constants"
)]

use crate::packet::Words;

/// A list entry's time unit is 2^30 ns (1.07 s) of `CLOCK_MONOTONIC`: 32 bits last 146 years, and the
/// kernel gets it from nanoseconds with one shift.
pub const EXPIRY_SHIFT: u32 = 30;

/// Never ends.
pub const EXPIRY_NEVER: u32 = u32::MAX;

/// IPv4 hosts in one bucket: one cache line.
pub const BUCKET4: usize = 15;
/// IPv6 hosts in one bucket: one cache line.
pub const BUCKET6: usize = 3 * GROUPS6;
/// Words that a bucket has of each half of its lanes, three lanes in each.
pub const GROUPS6: usize = 4;
/// Buckets of the IPv6 table that share one word about the soonest end, as a power of two: together
/// they stay in the first-level cache.
pub const GROUP6_SHIFT: u32 = 4;

/// Fewest buckets of a host table: with so many, every bucket has addresses that do not belong there, which its
/// free slots hold.
pub const MIN_BUCKETS: u32 = 16;

/// One packet in so many that meet a list is counted, as so many.
pub const HIT_SAMPLE: u32 = 64;
/// The same in a flood of listed sources, where a counted packet costs several times as much as another one.
pub const FLOOD_SAMPLE: u32 = 512;

/// What is beside a slot of the IPv4 host table: at bucket × slots of a bucket + slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Listed {
    /// When the slot's host ends, in units of 2^[`EXPIRY_SHIFT`] ns; 0 is a free slot.
    pub expires: u32,
    /// The controller's number of the list.
    pub list: u16,
    /// Zero.
    pub flags: u16,
    /// Packets that met it, by one sample in [`HIT_SAMPLE`] or [`FLOOD_SAMPLE`].
    pub hits: u64,
}

/// What is beside a slot of the IPv6 host table; see [`Listed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct Listed6 {
    /// The address whose print is in the slot, network byte order.
    pub addr: [u8; 16],
    /// When it ends and what has met it.
    pub beside: Listed,
}

/// One bucket of the IPv4 host table, compared two lanes at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct ListBucket4 {
    /// A [`lane4`] of each address. A free slot has one that belongs into other buckets, so that nobody who looks here
    /// looks for it.
    pub lanes: [u32; BUCKET4],
    /// No host of the bucket ends before this; from then on each one's own [`Listed::expires`] says.
    pub soonest: u32,
}

/// One bucket of the IPv6 host table, compared three lanes at a time; when the soonest host of its group ends is in a
/// table of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C, align(8))]
pub struct ListBucket6 {
    /// The first half of the [`lane6`] of each address, slot 0 in the lowest bits of the first word. Free slots are zeros.
    pub lows: [u64; GROUPS6],
    /// The second halves.
    pub highs: [u64; GROUPS6],
}

impl ListBucket6 {
    /// What is in a slot, as [`lane6`] has it in the lowest bits of each half.
    pub fn lane(&self, slot: usize) -> Option<[u64; 2]> {
        let shift = slot % 3 * LANE6_STEP;
        let of = |words: &[u64]| words.get(slot / 3).map(|word| word >> shift & LANE6_FIELD);
        Some([of(&self.lows)?, of(&self.highs)?])
    }

    /// Whether a slot has this lane, as [`lane6`] makes it; not if there is no such slot.
    pub fn has(&self, slot: usize, lane: [u64; 2]) -> bool {
        let words = self.lows.get(slot / 3).zip(self.highs.get(slot / 3));
        words.is_some_and(|(low, high)| is_equal6(differs6(*low, *high, lane), slot % 3))
    }

    /// Puts a lane, as [`lane6`] makes it, into a slot; nothing if there is no such slot.
    pub fn put(&mut self, slot: usize, lane: [u64; 2]) {
        let field = LANE6_FIELD << (slot % 3 * LANE6_STEP);
        for (words, half) in [&mut self.lows, &mut self.highs].into_iter().zip(lane) {
            if let Some(word) = words.get_mut(slot / 3) {
                *word = *word & !field | half & field;
            }
        }
    }
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
    /// Packets that met it, by one sample in [`HIT_SAMPLE`] or [`FLOOD_SAMPLE`].
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
    assert!(size_of::<Listed>() == 16, "layout");
    assert!(size_of::<Listed6>() == 32, "layout");
    assert!(size_of::<ListBucket4>() == 64, "one cache line");
    assert!(size_of::<ListBucket6>() == 64, "one cache line");
    assert!(size_of::<ListRange4>() == 24, "layout");
    assert!(size_of::<ListRange6>() == 48, "layout");
};

/// Entries of one half of the index into the IPv4 ranges: one per /16 and the end.
pub const INDEX4: u32 = (1 << 16) + 1;

/// Steps of a binary search over as many ranges as there can be.
pub const SEARCH_STEPS: u32 = 21;

/// Neighbourhoods that one word of a guard has bits for.
pub const GUARD_PER_WORD: u32 = 21;
/// Bits of a neighbourhood.
pub const GUARD_BITS: u32 = 3;
/// Fewest words of a guard.
pub const GUARD_MIN_WORDS: u32 = 1 << 11;
/// Most words of a guard: 4 MiB.
pub const GUARD_MAX_WORDS: u32 = 1 << 19;
/// A neighbourhood's bit for decisions, exact or prefix.
pub const GUARD_DECISION: u64 = 1;
/// A neighbourhood's bit for addresses of lists.
pub const GUARD_HOST: u64 = 2;
/// A neighbourhood's bit for ranges of lists.
pub const GUARD_RANGE: u64 = 4;
/// All bits of a neighbourhood.
pub const GUARD_ALL: u64 = GUARD_DECISION | GUARD_HOST | GUARD_RANGE;

/// IPv4 prefixes at least this long set the guard by the /24s they cover, shorter ones by the /16s.
pub const GUARD4_LONG: u8 = 16;
/// IPv6 prefixes at least this long set the guard by their /48.
pub const GUARD6_LONG: u8 = 48;
/// IPv6 prefixes at least this long set the guard by the /32s they cover; shorter ones switch the IPv6
/// guard off.
pub const GUARD6_SHORT: u8 = 20;

/// Bits of [`crate::config::Config::guard_wide`]: some IPv4 /16 is guarded, for a decision.
pub const WIDE4_DECISION: u32 = 1 << 0;
/// The same for a list.
pub const WIDE4_LIST: u32 = 1 << 1;
/// Some IPv6 /32 is guarded, for a decision.
pub const WIDE6_DECISION: u32 = 1 << 2;
/// The same for a list.
pub const WIDE6_LIST: u32 = 1 << 3;

/// A place in a guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuardPlace {
    /// The word.
    pub word: u32,
    /// How far its bits are shifted.
    pub shift: u32,
}

/// Where the /24 around an IPv4 address is guarded; `addr` in host byte order, `shift` is
/// [`crate::config::Config::guard_shift`].
#[inline(always)]
pub const fn guard4_long(addr: u32, seed: u64, shift: u32) -> GuardPlace {
    guard((addr >> 8) as u64, seed, shift)
}

/// Where the /16 around an IPv4 address is guarded.
#[inline(always)]
pub const fn guard4_short(addr: u32, seed: u64, shift: u32) -> GuardPlace {
    guard((addr >> 16) as u64 | (1 << 63), seed, shift)
}

/// Where the /48 around an IPv6 address is guarded; `high` is its first half in host byte order.
#[inline(always)]
pub const fn guard6_long(high: u64, seed: u64, shift: u32) -> GuardPlace {
    guard(high >> 16, seed, shift)
}

/// Where the /32 around an IPv6 address is guarded.
#[inline(always)]
pub const fn guard6_short(high: u64, seed: u64, shift: u32) -> GuardPlace {
    guard((high >> 32) | (1 << 63), seed, shift)
}

/// Bits of a guard's hash that say where in a word a neighbourhood is.
const GUARD_WITHIN: u32 = 10;

/// [`crate::config::Config::guard_shift`] of guards of so many words, a power of two.
pub const fn guard_shift(words: u32) -> u32 {
    u64::BITS - words.trailing_zeros() - GUARD_WITHIN
}

#[inline(always)]
const fn guard(key: u64, seed: u64, shift: u32) -> GuardPlace {
    // Multiply-shift with a secret odd factor (Dietzfelbinger and others 1997): nobody outside can choose
    // neighbourhoods that meet.
    let hash = (key ^ (key >> 32)).wrapping_mul(seed | 1) >> (shift & 63);
    let within = hash as u32 & ((1 << GUARD_WITHIN) - 1);
    GuardPlace {
        word: (hash >> GUARD_WITHIN) as u32,
        shift: ((within * GUARD_PER_WORD) >> GUARD_WITHIN) * GUARD_BITS,
    }
}

/// Eight bytes of an address, as [`native`] makes them, as a number in host byte order.
#[inline(always)]
pub const fn host_order(half: u64) -> u64 {
    ((u32::from_be(half as u32) as u64) << 32) | u32::from_be((half >> 32) as u32) as u64
}

/// What an IPv4 bucket has of an address (network byte order word): all but its uppermost bit, which is the side of the
/// bucket ([`buckets4`]). The difference of two lanes less one has that bit only if they are equal.
#[inline(always)]
pub const fn lane4(word: u32) -> u32 {
    word & (u32::MAX >> 1)
}

/// Hash of a lane. Bit 31 says which side addresses are on whose uppermost bit is zero.
#[inline(always)]
const fn hash4(lane: u32, seed: u64) -> u64 {
    mixed((lane as u64 ^ (seed >> 32)).wrapping_mul(seed | 1))
}

/// The two buckets of an IPv4 address (network byte order word) among so many, an even number. Of two addresses with the
/// same lane one has two buckets with even numbers, the other their odd neighbours.
#[inline(always)]
pub const fn buckets4(word: u32, seed: u64, buckets: u32) -> [u32; 2] {
    let hash = hash4(lane4(word), seed);
    let side = (hash as u32 ^ word) >> 31;
    let [first, second] = scaled(hash, buckets);
    [first & !1 | side, second & !1 | side]
}

/// The address whose lane is in a bucket with this number.
pub const fn word4(lane: u32, bucket: u32, seed: u64) -> u32 {
    lane | (hash4(lane, seed) as u32 ^ bucket << 31) & (1 << 31)
}

/// Secret numbers that [`print6`] is made with.
pub const PRINT_KEYS: usize = 10;

/// The numbers of a seed: successive values of SplitMix64 (Steele, Lea and Flood 2014).
pub fn print_keys(seed: u64) -> [u64; PRINT_KEYS] {
    let mut state = seed;
    [(); PRINT_KEYS].map(|()| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

/// An IPv6 address as 64 bits that nobody can foresee; its halves are as [`native`] makes them.
///
/// Two multilinear hashes of four 32-bit words, each strongly universal (Lemire and Kaser 2014, "Strongly universal
/// string hashing is fast"): whichever two addresses somebody chooses who does not know the keys, any *n* bits of their
/// prints are the same with a probability of 2^-n, as far as [`print_keys`] are as good as random.
#[inline(always)]
pub const fn print6(low: u64, high: u64, keys: &[u64; PRINT_KEYS]) -> u64 {
    let (a, b) = (low & 0xffff_ffff, low >> 32);
    let (c, d) = (high & 0xffff_ffff, high >> 32);
    let first = keys[0]
        .wrapping_add(keys[1].wrapping_mul(a))
        .wrapping_add(keys[2].wrapping_mul(b))
        .wrapping_add(keys[3].wrapping_mul(c))
        .wrapping_add(keys[4].wrapping_mul(d));
    let second = keys[5]
        .wrapping_add(keys[6].wrapping_mul(a))
        .wrapping_add(keys[7].wrapping_mul(b))
        .wrapping_add(keys[8].wrapping_mul(c))
        .wrapping_add(keys[9].wrapping_mul(d));
    (first >> 32) | (second & 0xffff_ffff_0000_0000)
}

/// Bits of each half of an IPv6 lane.
const LANE6_HALF: u32 = 20;
/// Bits from one lane to the next in a word: above each half is a zero, which says in a difference whether it is one.
const LANE6_STEP: usize = 21;
/// A lane's place in a word, the first one's.
const LANE6_FIELD: u64 = (1 << LANE6_STEP) - 1;
/// The lowest bit of each place.
const LANE6_ONES: u64 = 1 | 1 << LANE6_STEP | 1 << (2 * LANE6_STEP);

/// What an IPv6 bucket has of an address, by its [`print6`]: 40 bits, in two halves, each in all three places of a word.
/// A third of the memory of an address, which is what a flood of random sources is slowed down by.
///
/// The print's other 24 bits tell in the buckets only ([`buckets6`]). A stranger looks at the lanes of two buckets, so a
/// list of whatever length names him with a probability of 2^-35 (24 of 2^40), and as long as the table has its keys;
/// packets that are counted (one in [`HIT_SAMPLE`], or in [`FLOOD_SAMPLE`]) are compared whole.
#[inline(always)]
pub const fn lane6(print: u64) -> [u64; 2] {
    let half = (1 << LANE6_HALF) - 1;
    [
        (print & half) * LANE6_ONES,
        (print >> 32 & half) * LANE6_ONES,
    ]
}

/// Where three lanes of a bucket are not the one that is looked for: in each place zeros if they are equal.
#[inline(always)]
pub const fn differs6(lows: u64, highs: u64, lane: [u64; 2]) -> u64 {
    (lows ^ lane[0]) | (highs ^ lane[1])
}

/// Of what [`differs6`] says: a word that has one of the bits of [`EQUAL6`] if one of the three is equal, and only then.
#[inline(always)]
pub const fn equals6(differs: u64) -> u64 {
    // The bit above what is zero is set, because it was zero. One above an equal one may be, too.
    differs.wrapping_sub(LANE6_ONES)
}

/// See [`equals6`].
pub const EQUAL6: u64 = LANE6_ONES << LANE6_HALF;

/// Whether the lane in this place of three is equal, of what [`differs6`] says.
#[inline(always)]
pub const fn is_equal6(differs: u64, place: usize) -> bool {
    differs >> (place * LANE6_STEP) & LANE6_FIELD == 0
}

/// The two buckets of an IPv6 address by its [`print6`]. Mixed once more: prints of neighbours differ by multiples of a
/// key, which under some keys lie close together.
#[inline(always)]
pub const fn buckets6(print: u64, buckets: u32) -> [u32; 2] {
    two(print, buckets)
}

/// Two numbers below `buckets` from a hash.
#[inline(always)]
pub(crate) const fn two(hash: u64, buckets: u32) -> [u32; 2] {
    scaled(mixed(hash), buckets)
}

/// The hash is a product, and neighbours differ in its upper bits only where a product spreads upwards only: folded, and
/// one more product.
#[inline(always)]
const fn mixed(hash: u64) -> u64 {
    (hash ^ (hash >> 32)).wrapping_mul(0x94d0_49bb_1331_11eb)
}

/// Both halves of a hash, scaled by a multiplication (Lemire 2019), so `buckets` need not be a power of two.
#[inline(always)]
const fn scaled(hash: u64, buckets: u32) -> [u32; 2] {
    let (first, second) = (hash >> 32, (hash ^ (hash >> 32)) & 0xffff_ffff);
    [
        ((first * buckets as u64) >> 32) as u32,
        ((second * buckets as u64) >> 32) as u32,
    ]
}

/// An address as two numbers, as a little-endian machine loads them.
#[inline(always)]
pub const fn native(words: &Words) -> [u64; 2] {
    [
        ((words[1] as u64) << 32) | words[0] as u64,
        ((words[3] as u64) << 32) | words[2] as u64,
    ]
}

#[cfg(feature = "user")]
mod pod {
    use super::{ListBucket4, ListBucket6, ListRange4, ListRange6, Listed, Listed6};
    // SAFETY: as below.
    unsafe impl aya::Pod for Listed {}
    // SAFETY: repr(C), only integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for ListBucket4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListBucket6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Listed6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListRange4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListRange6 {}
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeSet, format, vec::Vec};

    use super::*;

    fn buckets6_of(words: &Words, seed: u64, buckets: u32) -> [u32; 2] {
        let [low, high] = native(words);
        buckets6(print6(low, high, &print_keys(seed)), buckets)
    }

    #[test]
    fn every_bit_of_an_address_and_of_the_seed_tells_in_its_print() {
        let keys = print_keys(SEED);
        let mut prints = BTreeSet::new();
        let mut count = 0;
        for (low, high) in numbers().zip(numbers().skip(7)) {
            prints.insert(print6(low, high, &keys));
            count += 1;
        }
        for bit in 0..64 {
            prints.insert(print6(1 << bit, 0, &keys));
            prints.insert(print6(0, 1 << bit, &keys));
            prints.insert(print6(0, 0, &print_keys(SEED ^ (1 << bit))));
            count += 3;
        }
        assert_eq!(prints.len(), count);
        // Both halves by themselves: one alone would be 32 bits.
        for shift in [0, 32] {
            let halves: BTreeSet<u32> = prints.iter().map(|p| (p >> shift) as u32).collect();
            assert!(halves.len() + 3 > count, "{shift}");
        }
    }

    #[test]
    fn a_lane_is_found_in_every_slot_and_nowhere_else() {
        let lanes = |n: u64| lane6(n.wrapping_mul(SEED) ^ (n << 7));
        for n in 1..2_000_u64 {
            let mut bucket = ListBucket6::default();
            // Neighbours that differ least, all ones among them.
            for slot in 0..BUCKET6 {
                let near = lane6((lanes(n)[0] & 0xfffff) ^ (1 << (slot % 20)));
                bucket.put(slot, if n % 3 == 0 { lane6(u64::MAX) } else { near });
            }
            let own = lanes(n);
            let found = |bucket: &ListBucket6| {
                let pairs = bucket.lows.into_iter().zip(bucket.highs);
                let differs: Vec<u64> = pairs.map(|(l, h)| differs6(l, h, own)).collect();
                let any = differs.iter().fold(0, |all, d| all | equals6(*d)) & EQUAL6 != 0;
                let at: Vec<usize> = (0..BUCKET6)
                    .filter(|slot| is_equal6(differs[slot / 3], slot % 3))
                    .collect();
                assert_eq!(any, !at.is_empty());
                assert!((0..=BUCKET6).all(|slot| bucket.has(slot, own) == at.contains(&slot)));
                at
            };
            assert_eq!(found(&bucket), Vec::<usize>::new());
            for slot in 0..BUCKET6 {
                let (before, mut with) = (bucket, bucket);
                with.put(slot, own);
                assert_eq!(found(&with), [slot]);
                assert_eq!(with.lane(slot), Some(own.map(|half| half & 0xfffff)));
                for other in (0..BUCKET6).filter(|other| *other != slot) {
                    assert_eq!(with.lane(other), before.lane(other));
                }
                // Half of a lane is not it.
                for half in 0..2 {
                    let mut torn = own;
                    torn[half] ^= LANE6_ONES << (n % 20);
                    let mut with = bucket;
                    with.put(slot, torn);
                    assert_eq!(found(&with), Vec::<usize>::new());
                }
            }
            bucket.put(BUCKET6, own);
            assert_eq!(found(&bucket), Vec::<usize>::new());
            assert_eq!(bucket.lane(BUCKET6), None);
        }
    }

    #[test]
    fn halves_of_an_address_are_in_host_byte_order() {
        let bytes = 0x2001_0db8_0102_0304_0506_0708_090a_0b0c_u128.to_be_bytes();
        let (words, _) = bytes.as_chunks::<4>();
        let words = [words[0], words[1], words[2], words[3]].map(u32::from_ne_bytes);
        let expected = [0x2001_0db8_0102_0304, 0x0506_0708_090a_0b0c];
        assert_eq!(native(&words).map(host_order), expected);
    }

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
                    let buckets = words.map(|words| buckets6_of(&words, seed, of));
                    ensure_spread(
                        buckets,
                        of as usize,
                        &format!("IPv6 {seed:x} {bits} {shift}"),
                    );
                }
                for shift in (0..=32 - bits).step_by(4) {
                    let buckets =
                        (0..of).map(|n| buckets4((0x0a00_0000 ^ (n << shift)).to_be(), seed, of));
                    ensure_spread(
                        buckets,
                        of as usize,
                        &format!("IPv4 {seed:x} {bits} {shift}"),
                    );
                }
            }
        }
    }

    const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

    /// Numbers that look random.
    fn numbers() -> impl Iterator<Item = u64> {
        (1..20_000_u64).map(|n| n.wrapping_mul(SEED) ^ (n << 7))
    }

    #[test]
    fn a_lane_and_its_bucket_are_one_address_and_its_other_one_is_beside() {
        for n in numbers() {
            let (word, seed) = (n as u32, SEED ^ n);
            let other = word ^ (1 << 31);
            assert_eq!(lane4(word), lane4(other));
            assert_eq!(lane4(word) >> 31, 0);
            let (places, others) = (buckets4(word, seed, 1000), buckets4(other, seed, 1000));
            assert_eq!(places.map(|place| place ^ 1), others);
            assert_eq!(places[0] & 1, places[1] & 1);
            for place in places {
                assert_eq!(word4(lane4(word), place, seed), word);
                assert_eq!(word4(lane4(word), place ^ 1, seed), other);
            }
        }
    }

    #[test]
    fn buckets_are_below_their_number_and_evenly_used() {
        let count = 1000_u32;
        let mut used = [0_u32; 1000];
        for n in numbers() {
            let words = [n as u32, (n >> 32) as u32, 7, (n >> 16) as u32];
            for place in buckets4(n as u32, SEED, count)
                .into_iter()
                .chain(buckets6_of(&words, SEED, count))
            {
                used[place as usize] += 1;
            }
        }
        // 80 on average; the ends are many standard deviations away.
        assert!(used.iter().all(|n| (30..150).contains(n)), "{used:?}");
    }

    #[test]
    fn a_guard_of_any_size_has_every_place() {
        for words in [GUARD_MIN_WORDS, 1 << 15, GUARD_MAX_WORDS] {
            let shift = guard_shift(words);
            for n in numbers() {
                for place in [
                    guard4_long(n as u32, SEED, shift),
                    guard4_short(n as u32, SEED, shift),
                    guard6_long(n, SEED, shift),
                    guard6_short(n, SEED, shift),
                ] {
                    assert!(place.word < words, "{place:?}");
                    assert!(place.shift + GUARD_BITS <= u64::BITS, "{place:?}");
                    assert!(place.shift.is_multiple_of(GUARD_BITS), "{place:?}");
                }
            }
        }
    }

    #[test]
    fn a_neighbourhood_has_one_place() {
        let shift = guard_shift(1 << 15);
        let (a, b) = (0x0a01_0203, 0x0a01_02ff);
        assert_eq!(guard4_long(a, SEED, shift), guard4_long(b, SEED, shift));
        assert_ne!(
            guard4_long(a, SEED, shift),
            guard4_long(a + 256, SEED, shift)
        );
        assert_eq!(
            guard4_short(a, SEED, shift),
            guard4_short(b + 256, SEED, shift)
        );
    }
}
