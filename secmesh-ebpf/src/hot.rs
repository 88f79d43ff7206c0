//! Is the source a hot one: blocked by a decision, and dropped a moment ago?

use aya_ebpf::programs::XdpContext;
use secmesh_common::{
    config::{Config, features::QUICK_DROPS},
    counters::Counters,
    hot::{HotSource, lease, place},
    list::native,
    packet::{Family, Words},
    reason::Reason,
};

use crate::{
    block::{add_hits, entry_of},
    clock::{lease_key, now_ns},
    count::dropped,
    list::Source,
    maps::HOT,
    plain::{self, Ask},
};

/// Drops the packet of a plain frame if its source is a hot one. Asked before all else while the packet before was one's:
/// who floods does so with many packets, and the guard need not be asked about each.
///
/// An IPv4 header with options goes the next longer way.
#[inline(always)]
pub fn look(ctx: &XdpContext, config: &Config, counters: &mut Counters) -> bool {
    let is_dropped = plain::ask(ctx, Again { config, counters });
    if !is_dropped {
        counters.lately = 0;
    }
    is_dropped
}

/// Drops what is hot.
struct Again<'a> {
    config: &'a Config,
    counters: &'a mut Counters,
}

impl Ask for Again<'_> {
    #[inline(always)]
    fn ask<S: Source>(self, source: S, length: usize) -> bool {
        let key = lease_key(self.config);
        let is_hot = is_hot(source, length, self.config, key);
        if is_hot {
            dropped(length, Reason::Exact, self.counters);
        }
        is_hot
    }
}

/// The slot of a source, whoever is in it.
#[inline(always)]
pub fn slot(src: &Words, family: Family, config: &Config) -> Option<&'static mut HotSource> {
    let hot = HOT.get_ptr_mut(place(src, family, config.table_seed))?;
    // SAFETY: array entries are never freed while the program runs. Other CPUs may write the slot; then its
    // counts are lower bounds, and an address that is half one source's and half another's is no source's.
    Some(unsafe { &mut *hot })
}

#[inline(always)]
fn is_of(hot: &HotSource, src: &Words, family: Family) -> bool {
    match family {
        // The other words are zero.
        Family::V4 => hot.addr[0] == src[0],
        Family::V6 | Family::Other => native(&hot.addr) == native(src),
    }
}

/// Whether a source is in its slot, blocked until later than `now`.
#[inline(always)]
pub fn meets(hot: &HotSource, src: &Words, family: Family, now: u64, config: &Config) -> bool {
    is_of(hot, src, family)
        && hot.family == family as u32
        && hot.generation == config.hot_generation
        && hot.expires_ns > now
}

/// Books a packet.
#[inline(always)]
pub fn count(hot: &mut HotSource, bytes: u64) {
    hot.hits += 1;
    hot.bytes += bytes;
}

/// Whether a source is a hot one whose entry need not be asked now, and what it sends may be dropped unasked; counts the
/// packet then. No other table says more of it: see `exact` in `block.rs`. `key` is from before this is asked.
///
/// Another CPU may put another source into the slot between the comparison and the lease. Should that one not be blocked
/// any more (its block ended while that CPU was looking it up), it is dropped until the tick ends.
#[inline(always)]
pub fn is_hot<S: Source>(source: S, length: usize, config: &Config, key: u64) -> bool {
    let src = source.words();
    let Some(hot) = slot(&src, S::FAMILY, config) else {
        return false;
    };
    let lease = lease(key, S::FAMILY);
    if hot.lease != lease {
        let now = now_ns(config);
        if config.features & QUICK_DROPS == 0
            || hot.is_stale(now)
            || !meets(hot, &src, S::FAMILY, now, config)
        {
            return false;
        }
        hot.last_ns = now;
        hot.lease = lease;
    } else if !is_of(hot, &src, S::FAMILY) {
        return false;
    }
    count(hot, length as u64);
    true
}

/// Adds a hot source's counts to its entry and learns its end anew; `false`, and the slot is free, if there
/// is no such entry any more.
#[inline(always)]
pub fn flush(hot: &mut HotSource, now: u64) -> bool {
    let (hits, bytes) = (u64::from(hot.hits), hot.bytes);
    hot.hits = 0;
    hot.bytes = 0;
    hot.flushed = HotSource::flush_time(now);
    let Some(entry) = entry_of(&hot.addr, hot.family) else {
        hot.family = 0;
        hot.lease = 0;
        return false;
    };
    // SAFETY: as in `crate::block::count_hit`.
    let entry = unsafe { &mut *entry };
    add_hits(entry, hits, bytes, hot.last_ns);
    hot.expires_ns = entry.expires_ns;
    entry.expires_ns > now
}
