//! Networks of lists: what most ranges are, found by one load (see `secmesh_common::nets`).

use secmesh_common::{
    config::Config,
    nets::{NETS4, NETS6, WHOLE4, WHOLE6, differs, key6, net_places4, net_places6},
};

use crate::{
    list::{Glance, found_in},
    maps::{NET4, NET6},
};

/// What the networks of a half say of an IPv4 source (host byte order).
#[inline(always)]
pub fn glance4(addr: u32, config: &Config, half: u32) -> Glance {
    let half = half & 1;
    let buckets = config.list_nets4[half as usize];
    if buckets == 0 {
        return Glance::Closer;
    }
    let places = net_places4(addr, config.table_seed, buckets);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = NET4.get_ptr(places[n] * 2 + half) else {
            return Glance::Closer;
        };
        let nets = bucket.cast::<u32>();
        let mut found = 0_u64;
        let mut slot = 0;
        while slot < NETS4 {
            // SAFETY: a map entry, never freed while the program runs; aligned plain integers, below the array's
            // length. The controller writes only the half that is not in use.
            let net = u64::from(unsafe { nets.add(slot).read() });
            // The uppermost bit is set if nothing differs: what differs has 32 bits.
            found |= differs(net, u64::from(addr)).wrapping_sub(1);
            slot += 1;
        }
        if found.cast_signed() < 0 {
            // SAFETY: as above.
            return found_in(unsafe { (*bucket).soonest }, config);
        }
        n += 1;
    }
    missed(config.list_whole[half as usize] & WHOLE4 != 0)
}

/// The same of an IPv6 source's first half, in host byte order.
#[inline(always)]
pub fn glance6(high: u64, config: &Config, half: u32) -> Glance {
    let half = half & 1;
    let buckets = config.list_nets6[half as usize];
    let Some(key) = key6(high) else {
        return Glance::Closer;
    };
    if buckets == 0 {
        return Glance::Closer;
    }
    let places = net_places6(key, config.table_seed, buckets);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = NET6.get_ptr(places[n] * 2 + half) else {
            return Glance::Closer;
        };
        let nets = bucket.cast::<u64>();
        let mut found = 0_u64;
        let mut slot = 0;
        while slot < NETS6 {
            // SAFETY: as in `glance4`.
            let differs = differs(unsafe { nets.add(slot).read() }, key);
            // The uppermost bit is set if nothing differs.
            found |= !differs & differs.wrapping_sub(1);
            slot += 1;
        }
        if found.cast_signed() < 0 {
            // SAFETY: as in `glance4`.
            return found_in(unsafe { (*bucket).soonest }, config);
        }
        n += 1;
    }
    missed(config.list_whole[half as usize] & WHOLE6 != 0)
}

/// What it means that no network names a source.
#[inline(always)]
fn missed(is_whole: bool) -> Glance {
    if is_whole {
        Glance::Nothing
    } else {
        Glance::Closer
    }
}
