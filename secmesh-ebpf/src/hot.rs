//! Is the source a hot one: blocked by a decision, and dropped a moment ago?

use secmesh_common::{
    config::Config,
    hot::{FLUSH_NS, HotSource, place},
    packet::{Family, Words},
};

use crate::{
    block::{add_hits, entry_of},
    clock::now_ns,
    maps::HOT,
};

/// The slot of a source among the hot ones, whoever is in it.
#[inline(always)]
pub fn slot(src: &Words, family: Family, config: &Config) -> Option<&'static mut HotSource> {
    let hot = HOT.get_ptr_mut(place(src, family, config.table_seed))?;
    // SAFETY: array entries are never freed while the program runs. Other CPUs may write the slot; then its
    // counts are lower bounds, and an address that is half one source's and half another's is no source's.
    Some(unsafe { &mut *hot })
}

/// Whether a source is in its slot, blocked until later than `now`; then the packet is counted there.
#[inline(always)]
pub fn meets(
    hot: &mut HotSource,
    src: &Words,
    family: Family,
    bytes: u64,
    now: u64,
    config: &Config,
) -> bool {
    // Of IPv4 the other words are zero.
    let same = match family {
        Family::V4 => hot.addr[0] == src[0],
        Family::V6 | Family::Other => hot.addr == *src,
    };
    let is_there = same
        && hot.family == family as u32
        && hot.generation == config.hot_generation
        && hot.expires_ns > now;
    if is_there {
        hot.hits += 1;
        hot.bytes += bytes;
        hot.last_ns = now;
    }
    is_there
}

/// Whether its counts have to go into the entry.
#[inline(always)]
pub fn is_stale(hot: &HotSource, now: u64) -> bool {
    now.wrapping_sub(hot.flushed_ns) >= FLUSH_NS
}

/// Whether a source is a hot one whose entry need not be asked now; counts the packet then. No other table says more of
/// it: see `exact` in `block.rs`.
#[inline(always)]
pub fn is_hot(src: &Words, family: Family, bytes: u64, config: &Config) -> bool {
    let Some(hot) = slot(src, family, config) else {
        return false;
    };
    let now = now_ns(config);
    !is_stale(hot, now) && meets(hot, src, family, bytes, now, config)
}

/// Adds a hot source's counts to its entry and learns its end anew; `false`, and the slot is free, if there
/// is no such entry any more.
#[inline(always)]
pub fn flush(hot: &mut HotSource, now: u64) -> bool {
    let (hits, bytes) = (hot.hits, hot.bytes);
    hot.hits = 0;
    hot.bytes = 0;
    hot.flushed_ns = now;
    let Some(entry) = entry_of(&hot.addr, hot.family) else {
        hot.family = 0;
        return false;
    };
    // SAFETY: as in `crate::block::count_hit`.
    let entry = unsafe { &mut *entry };
    add_hits(entry, hits, bytes, hot.last_ns);
    hot.expires_ns = entry.expires_ns;
    entry.expires_ns > now
}
