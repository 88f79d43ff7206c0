//! A flood of sources that lists name: what most of its packets take.
//!
//! In one, the guard says yes to nearly all of them, and reading it is half of what they cost in cache misses: hosts and
//! networks are asked without it, before all else.

use aya_ebpf::programs::XdpContext;
use secmesh_common::{
    config::{Config, features::QUICK_LISTS},
    counters::{Counters, LISTED_FLOOD, LISTED_LESS, LISTED_MOST},
    list::{EXPIRY_SHIFT, GUARD_RANGE},
    reason::Reason,
};

use crate::{
    clock::now_ns,
    count::dropped,
    frame::{load_long_at, load_word_at},
    list::{Glance, Source, Source4, Source6, half_of, weight},
    quick::{BARE, BARE4, ETHERNET, HEADER4, HEADER6, PLAIN, PLAIN6},
};

/// Whether most of a CPU's latest packets were of listed sources.
#[inline(always)]
pub fn is_on(counters: &Counters) -> bool {
    counters.listed_lately >= LISTED_FLOOD
}

/// Books that a list named a packet's source.
#[inline(always)]
pub fn listed(counters: &mut Counters) {
    if counters.listed_lately < LISTED_MOST {
        counters.listed_lately += 1;
    }
}

/// Books that no list was found to name a packet's source.
#[inline(always)]
pub fn not_listed(counters: &mut Counters) {
    counters.listed_lately = counters.listed_lately.saturating_sub(LISTED_LESS);
}

/// Drops the packet of a plain frame if a list names its source. Of what is not dropped nothing is known: it goes the long
/// way, as does one packet in [`secmesh_common::list::FLOOD_SAMPLE`], which is counted on what names it.
///
/// A source that a decision blocks as well is counted as listed meanwhile, but for that packet. An IPv4 header with
/// options goes the long way.
#[inline(always)]
pub fn look(ctx: &XdpContext, config: &Config, counters: &mut Counters) -> bool {
    let is_dropped = find(ctx, config, counters).is_some();
    if is_dropped {
        listed(counters);
    } else {
        not_listed(counters);
    }
    is_dropped
}

#[inline(always)]
fn find(ctx: &XdpContext, config: &Config, counters: &mut Counters) -> Option<()> {
    // The controller takes allowed addresses out of lists before it writes them.
    if config.features & QUICK_LISTS == 0 || weight(true, counters) != 0 {
        return None;
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET + HEADER4 > end {
        return None;
    }
    let length = end - start;
    let kind = load_word_at::<12, 0>(start);
    if kind & BARE == BARE4 {
        let [total @ .., _, _] = load_word_at::<16, 0>(start).to_ne_bytes();
        // Shorter than its header is longer than any frame.
        let rest = usize::from(u16::from_be_bytes(total)).wrapping_sub(HEADER4);
        if rest > length - (ETHERNET + HEADER4) {
            return None;
        }
        let word = load_word_at::<26, 0>(start);
        return drop_listed(Source4 { word }, length, config, counters);
    }
    if kind & PLAIN != PLAIN6 || start + ETHERNET + HEADER6 > end {
        return None;
    }
    let [payload @ .., _, _] = load_word_at::<18, 0>(start).to_ne_bytes();
    if ETHERNET + HEADER6 + usize::from(u16::from_be_bytes(payload)) > length {
        return None;
    }
    let (low, high) = (load_long_at::<22>(start), load_long_at::<30>(start));
    drop_listed(Source6 { low, high }, length, config, counters)
}

#[inline(always)]
fn drop_listed<S: Source>(
    source: S,
    length: usize,
    config: &Config,
    counters: &mut Counters,
) -> Option<()> {
    let is_listed = match source.glance(config) {
        Glance::Listed => true,
        // While hosts are being moved, one of them may not be found; the long way looks again.
        Glance::Nothing => is_in_net(source, config),
        Glance::Closer => false,
    };
    if !is_listed {
        return None;
    }
    dropped(length, Reason::List, counters);
    Some(())
}

#[inline(always)]
fn is_in_net<S: Source>(source: S, config: &Config) -> bool {
    let half = half_of(config);
    let found = match source.glance_nets(config, half) {
        Glance::Nothing => false,
        Glance::Listed => true,
        Glance::Closer => {
            source.guard(config) & GUARD_RANGE != 0
                && source.is_in_range(half, now_ns(config) >> EXPIRY_SHIFT, 0)
        }
    };
    // The half that was in use at the beginning is written again only once the other one is.
    found && half_of(config) == half
}
