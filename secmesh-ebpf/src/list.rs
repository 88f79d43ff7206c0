//! Imported lists and the guard in front of all block tables.

use secmesh_common::{
    config::Config,
    counters::{Counter, Counters},
    list::{
        BUCKET4, BUCKET6, EXPIRY_SHIFT, GROUP6_SHIFT, GUARD_DECISION, GUARD_LIST, GuardPlace,
        HIT_SAMPLE, INDEX4, ListRange6, Listed, SEARCH_STEPS, WIDE4_DECISION, WIDE4_LIST,
        WIDE6_DECISION, WIDE6_LIST, buckets4, buckets6, guard4_long, guard4_short, guard6_long,
        guard6_short, halves, native,
    },
    packet::{Family, Packet},
};

use crate::{
    clock::now_ns,
    maps::{
        GUARD4, GUARD6, INDEX, LIST4, LIST6, LISTED4, LISTED6, RANGE4, RANGE6, SEARCH6, SOONEST6,
    },
};

/// What the neighbourhood of the source holds: `GUARD_*` bits.
#[inline(always)]
pub fn guard(packet: &Packet, config: &Config) -> u64 {
    let (seed, shift) = (config.table_seed, config.guard_shift);
    match packet.family {
        Family::V4 => {
            let addr = u32::from_be(packet.src[0]);
            let mut found = read_guard4(guard4_long(addr, seed, shift));
            if config.guard_wide & (WIDE4_DECISION | WIDE4_LIST) != 0 {
                found |= read_guard4(guard4_short(addr, seed, shift));
            }
            found
        }
        Family::V6 => {
            if config.guard6_off != 0 {
                return GUARD_DECISION | GUARD_LIST;
            }
            let [high, _] = halves(&packet.src);
            let mut found = read_guard6(guard6_long(high, seed, shift));
            if config.guard_wide & (WIDE6_DECISION | WIDE6_LIST) != 0 {
                found |= read_guard6(guard6_short(high, seed, shift));
            }
            found
        }
        Family::Other => 0,
    }
}

#[inline(always)]
fn read_guard4(place: GuardPlace) -> u64 {
    GUARD4.get(place.word).map_or(0, |w| *w >> place.shift) & (GUARD_DECISION | GUARD_LIST)
}

#[inline(always)]
fn read_guard6(place: GuardPlace) -> u64 {
    GUARD6.get(place.word).map_or(0, |w| *w >> place.shift) & (GUARD_DECISION | GUARD_LIST)
}

/// Whether a list names the source; counts one hit in [`HIT_SAMPLE`].
#[inline(always)]
pub fn listed(packet: &Packet, config: &Config, counters: &Counters) -> bool {
    let now = now_ns(config) >> EXPIRY_SHIFT;
    let met = counters.get(Counter::DropList) + counters.get(Counter::WouldDropList);
    let sampled = met & (HIT_SAMPLE - 1) == 0;
    let host = match packet.family {
        Family::V4 => host4(packet, config, now, sampled),
        Family::V6 => host6(packet, config, now, sampled),
        Family::Other => return false,
    };
    host || secmesh_range(packet, config, now, sampled.into()) != 0
}

/// Whether a range of a list names the source: 1 or 0. A function of its own: its searches need the most
/// registers, and most of what lists name are hosts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_range(
    packet: *const Packet,
    config: *const Config,
    now: u64,
    sampled: u32,
) -> u32 {
    if packet.is_null() || config.is_null() {
        return 0;
    }
    // SAFETY: the one caller passes a packet on its stack, all of it written, and the configuration's entry; the
    // verifier checks that.
    let (packet, config) = unsafe { (&*packet, &*config) };
    let found = match packet.family {
        Family::V4 => range4(packet, config, now, sampled != 0),
        Family::V6 => range6(packet, config, now, sampled != 0),
        Family::Other => false,
    };
    u32::from(found)
}

#[inline(always)]
fn live(expires: u32, now: u64) -> bool {
    now < u64::from(expires)
}

#[inline(always)]
fn host4(packet: &Packet, config: &Config, now: u64, sampled: bool) -> bool {
    if config.list_hosts4 == 0 {
        return false;
    }
    let addr = packet.src[0];
    let places = buckets4(addr, config.table_seed, config.list_buckets4);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST4.get_ptr(places[n]) else {
            return false;
        };
        // The bucket, and so the addresses at its beginning, is aligned to four.
        let addrs = bucket.cast::<u32>();
        // SAFETY: array entries are never freed while the program runs; aligned plain integers that the
        // controller may write, each of them read or written whole.
        let soonest = unsafe { (*bucket).soonest };
        let mut slot = 0;
        while slot < BUCKET4 {
            // SAFETY: as above, and below the array's length.
            if unsafe { addrs.add(slot).read() } == addr {
                let beside = places[n] * BUCKET4 as u32 + slot as u32;
                if in_force(soonest, LISTED4.get_ptr_mut(beside), now, sampled) {
                    return true;
                }
                break;
            }
            slot += 1;
        }
        n += 1;
    }
    false
}

/// Whether the host in a slot has not ended; counts the hit. What is beside the slot is read only if it has to
/// be.
#[inline(always)]
fn in_force(soonest: u32, beside: Option<*mut Listed>, now: u64, sampled: bool) -> bool {
    let Some(beside) = beside else {
        return false;
    };
    // SAFETY: as in `host4`.
    if !live(soonest, now) && !live(unsafe { (*beside).expires }, now) {
        return false;
    }
    if sampled {
        // SAFETY: as in `host4`; other CPUs may count too, and then one of the counts may be lost.
        unsafe { (*beside).hits += HIT_SAMPLE };
    }
    true
}

#[inline(always)]
fn host6(packet: &Packet, config: &Config, now: u64, sampled: bool) -> bool {
    if config.list_hosts6 == 0 {
        return false;
    }
    let [low, high] = native(&packet.src);
    let places = buckets6(&packet.src, config.table_seed, config.list_buckets6);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST6.get_ptr(places[n]) else {
            return false;
        };
        // The bucket is its addresses, and aligned to eight.
        let addrs = bucket.cast::<[u64; 2]>();
        let mut slot = 0;
        while slot < BUCKET6 {
            // SAFETY: as in `host4`, and below the array's length.
            let other = unsafe { addrs.add(slot).read() };
            if other[0] == low && other[1] == high {
                let soonest = SOONEST6.get(places[n] >> GROUP6_SHIFT).map_or(0, |s| *s);
                let beside = places[n] * BUCKET6 as u32 + slot as u32;
                if in_force(soonest, LISTED6.get_ptr_mut(beside), now, sampled) {
                    return true;
                }
                break;
            }
            slot += 1;
        }
        n += 1;
    }
    false
}

#[inline(always)]
fn range4(packet: &Packet, config: &Config, now: u64, sampled: bool) -> bool {
    let half = config.list_half & 1;
    if config.list_ranges4[half as usize] == 0 {
        return false;
    }
    let base = half * config.list_room4;
    let addr = u32::from_be(packet.src[0]);
    let block = half * INDEX4 + (addr >> 16);
    let (Some(low), Some(high)) = (INDEX.get(block), INDEX.get(block + 1)) else {
        return false;
    };
    // The last range that starts at or below the address; one before the /16's first may reach into it.
    let (mut low, mut high) = (*low, *high);
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + ((high - low) >> 1);
        let Some(range) = RANGE4.get(base + middle) else {
            return false;
        };
        if range.start <= addr {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if low == 0 {
        return false;
    }
    let Some(range) = RANGE4.get_ptr_mut(base + low - 1) else {
        return false;
    };
    // SAFETY: as in `host4`.
    let range = unsafe { &mut *range };
    if addr < range.start || addr > range.end || !live(range.expires, now) {
        return false;
    }
    if sampled {
        range.hits += HIT_SAMPLE;
    }
    true
}

#[inline(always)]
fn range6(packet: &Packet, config: &Config, now: u64, sampled: bool) -> bool {
    let half = config.list_half & 1;
    let count = config.list_ranges6[half as usize];
    if count == 0 {
        return false;
    }
    let base = half * config.list_room6;
    let addr = halves(&packet.src);
    let [high, _] = addr;
    // First among the first halves of the starts, a sixth of the memory.
    let after = search(count, |n| SEARCH6.get(base + n).map(|start| *start <= high));
    let Some(range) = last_range(base, after) else {
        return false;
    };
    // Only where ranges begin in the source's own /64 can it be one before that.
    let range = if at_most(&range.start, &addr) {
        range
    } else {
        let after = search(count, |n| {
            RANGE6
                .get(base + n)
                .map(|range| at_most(&range.start, &addr))
        });
        let Some(range) = last_range(base, after) else {
            return false;
        };
        range
    };
    if !at_most(&range.start, &addr) || !at_most(&addr, &range.end) || !live(range.expires, now) {
        return false;
    }
    if sampled {
        range.hits += HIT_SAMPLE;
    }
    true
}

/// The range before number `after` of those that begin at `base`.
#[inline(always)]
fn last_range(base: u32, after: u32) -> Option<&'static mut ListRange6> {
    if after == 0 {
        return None;
    }
    let range = RANGE6.get_ptr_mut(base + after - 1)?;
    // SAFETY: as in `host4`.
    Some(unsafe { &mut *range })
}

/// How many of `count` are at or before what is looked for, by `is_before`, which is true up to one of them and
/// false from there on.
#[inline(always)]
fn search(count: u32, is_before: impl Fn(u32) -> Option<bool>) -> u32 {
    let (mut low, mut high) = (0, count);
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + ((high - low) >> 1);
        match is_before(middle) {
            Some(true) => low = middle + 1,
            Some(false) => high = middle,
            None => return 0,
        }
    }
    low
}

#[inline(always)]
fn at_most(a: &[u64; 2], b: &[u64; 2]) -> bool {
    a[0] < b[0] || (a[0] == b[0] && a[1] <= b[1])
}
