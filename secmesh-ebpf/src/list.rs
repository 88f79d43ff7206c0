//! Imported lists and the guard in front of all block tables.

use secmesh_common::{
    config::Config,
    list::{
        BUCKET4, BUCKET6, EXPIRY_SHIFT, GUARD_DECISION, GUARD_LIST, GuardPlace, INDEX4,
        SEARCH_STEPS, buckets4, buckets6, guard4, guard6_long, guard6_short, halves,
    },
    packet::{Family, Packet},
};

use crate::{
    clock::now_ns,
    maps::{GUARD4, GUARD6, INDEX, LIST4, LIST6, RANGE4, RANGE6},
};

/// What the neighbourhood of the source holds: `GUARD_*` bits.
#[inline(always)]
pub fn guard(packet: &Packet, config: &Config) -> u64 {
    match packet.family {
        Family::V4 => read_guard4(guard4(u32::from_be(packet.src[0]))),
        Family::V6 => {
            if config.guard6_off != 0 {
                return GUARD_DECISION | GUARD_LIST;
            }
            let [high, _] = halves(&packet.src);
            read_guard6(guard6_long(high, config.table_seed))
                | read_guard6(guard6_short(high, config.table_seed))
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

/// Whether a list names the source; counts the hit.
#[inline(always)]
pub fn listed(packet: &Packet, config: &Config) -> bool {
    match packet.family {
        Family::V4 => host4(packet, config) || range4(packet, config),
        Family::V6 => host6(packet, config) || range6(packet, config),
        Family::Other => false,
    }
}

#[inline(always)]
fn live(expires: u32, config: &Config) -> bool {
    (now_ns(config) >> EXPIRY_SHIFT) < u64::from(expires)
}

#[inline(always)]
fn host4(packet: &Packet, config: &Config) -> bool {
    if config.list_hosts4 == 0 {
        return false;
    }
    let addr = packet.src[0];
    let places = buckets4(addr, config.table_seed, config.list_mask4);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST4.get_ptr_mut(places[n]) else {
            return false;
        };
        let mut slot = 0;
        while slot < BUCKET4 {
            // SAFETY: array entries are never freed while the program runs; aligned plain integers that
            // the controller and other CPUs may write, each of them read or written whole.
            let host = unsafe { &mut (*bucket).hosts[slot] };
            if u32::from_ne_bytes(host.addr) == addr && live(host.expires, config) {
                host.hits = host.hits.wrapping_add(1);
                return true;
            }
            slot += 1;
        }
        n += 1;
    }
    false
}

#[inline(always)]
fn host6(packet: &Packet, config: &Config) -> bool {
    if config.list_hosts6 == 0 {
        return false;
    }
    let addr = packet.src;
    let places = buckets6(&addr, config.table_seed, config.list_mask6);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST6.get_ptr_mut(places[n]) else {
            return false;
        };
        let mut slot = 0;
        while slot < BUCKET6 {
            // SAFETY: as in `host4`.
            let host = unsafe { &mut (*bucket).hosts[slot] };
            if crate::block::words16(&host.addr) == addr && live(host.expires, config) {
                host.hits = host.hits.wrapping_add(1);
                return true;
            }
            slot += 1;
        }
        n += 1;
    }
    false
}

#[inline(always)]
fn range4(packet: &Packet, config: &Config) -> bool {
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
    if addr < range.start || addr > range.end || !live(range.expires, config) {
        return false;
    }
    range.hits += 1;
    true
}

#[inline(always)]
fn range6(packet: &Packet, config: &Config) -> bool {
    let half = config.list_half & 1;
    let (mut low, mut high) = (0, config.list_ranges6[half as usize]);
    if high == 0 {
        return false;
    }
    let base = half * config.list_room6;
    let addr = halves(&packet.src);
    for _ in 0..SEARCH_STEPS {
        if low >= high {
            break;
        }
        let middle = low + ((high - low) >> 1);
        let Some(range) = RANGE6.get(base + middle) else {
            return false;
        };
        if at_most(&range.start, &addr) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    if low == 0 {
        return false;
    }
    let Some(range) = RANGE6.get_ptr_mut(base + low - 1) else {
        return false;
    };
    // SAFETY: as in `host4`.
    let range = unsafe { &mut *range };
    if !at_most(&range.start, &addr) || !at_most(&addr, &range.end) || !live(range.expires, config)
    {
        return false;
    }
    range.hits += 1;
    true
}

#[inline(always)]
fn at_most(a: &[u64; 2], b: &[u64; 2]) -> bool {
    a[0] < b[0] || (a[0] == b[0] && a[1] <= b[1])
}
