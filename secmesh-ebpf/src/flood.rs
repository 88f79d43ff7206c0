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
    list::{Glance, Source, half_of, weight},
    plain::{self, Ask},
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
    // The controller takes allowed addresses out of lists before it writes them.
    let may_drop = config.features & QUICK_LISTS != 0 && weight(true, counters) == 0;
    let is_dropped = may_drop && plain::ask(ctx, Listed { config, counters });
    if is_dropped {
        listed(counters);
    } else {
        not_listed(counters);
    }
    is_dropped
}

/// Drops what lists name.
struct Listed<'a> {
    config: &'a Config,
    counters: &'a mut Counters,
}

impl Ask for Listed<'_> {
    #[inline(always)]
    fn ask<S: Source>(self, source: S, length: usize) -> bool {
        let is_listed = match source.glance(self.config) {
            Glance::Listed => true,
            // While hosts are being moved, one of them may not be found; the long way looks again.
            Glance::Nothing => is_in_net(source, self.config),
            Glance::Closer => false,
        };
        if is_listed {
            dropped(length, Reason::List, self.counters);
        }
        is_listed
    }
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
