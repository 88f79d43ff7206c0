//! The shortest way to a drop: what most packets of a flood of blocked sources take.
//!
//! Everything here is said by the stages behind it, too, and in more cases; what is here is that it needs no
//! [`Packet`](secmesh_common::packet::Packet): a few loads from a frame that is as nearly all are, and the source
//! goes from registers into the tables. Taking a whole packet apart first took longer than looking its source up.

use aya_ebpf::programs::XdpContext;
use secmesh_common::{
    config::{Config, features::QUICK_LISTS},
    counters::{Counters, LATELY_HOT},
    list::{EXPIRY_SHIFT, GUARD_DECISION, GUARD_HOST, GUARD_RANGE},
    reason::Reason,
};

use crate::{
    clock::now_ns,
    count::dropped,
    flood,
    frame::{load_long_at, load_word_at},
    hot,
    list::{Glance, Source, Source4, Source6, half_of, weight},
    plain::{ETHERNET, HEADER4, HEADER6, PLAIN, PLAIN4, PLAIN6},
};

/// Instead of guard bits: nobody has looked at the source.
pub const UNSEEN: u64 = 1 << 8;
/// Beside them: the packet came in a flood of listed sources.
pub const FLOOD: u64 = 1 << 11;
/// Instead of guard bits: a list names the source.
const LISTED: u64 = 1 << 10;
/// Instead of guard bits: the source is blocked, and everything is counted.
pub const DROPPED: u64 = 1 << 9;

/// Drops the packet if a decision or a list names the source of a plain frame and nothing else can be said of it:
/// [`DROPPED`].
/// Else what is known of the source's neighbourhood without those tables that do not name it, or [`UNSEEN`].
#[inline(always)]
pub fn look(ctx: &XdpContext, config: &Config, counters: &mut Counters, key: u64) -> u64 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET + HEADER4 > end {
        return UNSEEN;
    }
    let length = end - start;
    let kind = load_word_at::<12, 0>(start);
    if kind & PLAIN == PLAIN4 {
        // Header length in words.
        let [_, _, head, _] = kind.to_ne_bytes();
        let header = usize::from(head & 0x0f) * 4;
        let [total @ .., _, _] = load_word_at::<16, 0>(start).to_ne_bytes();
        let total = usize::from(u16::from_be_bytes(total));
        if header < HEADER4 || total < header || ETHERNET + total > length {
            return UNSEEN;
        }
        let word = load_word_at::<26, 0>(start);
        return find(Source4 { word }, length, config, counters, key);
    }
    if kind & PLAIN == PLAIN6 {
        if start + ETHERNET + HEADER6 > end {
            return UNSEEN;
        }
        let [payload @ .., _, _] = load_word_at::<18, 0>(start).to_ne_bytes();
        if ETHERNET + HEADER6 + usize::from(u16::from_be_bytes(payload)) > length {
            return UNSEEN;
        }
        let source = Source6 {
            low: load_long_at::<22>(start),
            high: load_long_at::<30>(start),
        };
        return find(source, length, config, counters, key);
    }
    UNSEEN
}

#[inline(always)]
fn find<S: Source>(
    source: S,
    length: usize,
    config: &Config,
    counters: &mut Counters,
    key: u64,
) -> u64 {
    let found = seek(source, length, config, counters, key);
    if found == LISTED {
        flood::listed(counters);
        dropped(length, Reason::List, counters);
        return DROPPED;
    }
    if counters.listed_lately != 0 {
        flood::not_listed(counters);
    }
    found
}

/// [`LISTED`], or what [`look`] is to say.
#[inline(always)]
fn seek<S: Source>(
    source: S,
    length: usize,
    config: &Config,
    counters: &mut Counters,
    key: u64,
) -> u64 {
    let mut guard = source.guard(config);
    if guard & GUARD_DECISION != 0 && hot::is_hot(source, length, config, key) {
        counters.lately = LATELY_HOT;
        dropped(length, Reason::Exact, counters);
        return DROPPED;
    }
    // The controller takes allowed addresses out of lists before it writes them.
    let lists = config.features & QUICK_LISTS != 0 && weight(false, counters) == 0;
    if guard == 0 || guard & GUARD_DECISION != 0 || !lists {
        return guard;
    }
    if guard & GUARD_HOST != 0 {
        let before = S::moves(config);
        match source.glance(config) {
            Glance::Listed => return LISTED,
            Glance::Nothing if S::moves(config) == before => guard &= !GUARD_HOST,
            Glance::Nothing | Glance::Closer => return guard,
        }
    }
    if guard & GUARD_RANGE != 0 {
        let half = half_of(config);
        let found = match source.glance_nets(config, half) {
            Glance::Nothing => false,
            Glance::Listed => true,
            Glance::Closer => source.is_in_range(half, now_ns(config) >> EXPIRY_SHIFT, 0),
        };
        // The half that was in use at the beginning is written again only once the other one is.
        if half_of(config) != half {
            return guard;
        }
        if found {
            return LISTED;
        }
        guard &= !GUARD_RANGE;
    }
    guard
}
