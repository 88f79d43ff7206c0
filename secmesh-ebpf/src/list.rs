//! Imported lists and the guard in front of all block tables.

use secmesh_common::{
    config::Config,
    counters::{Counter, Counters},
    list::{
        BUCKET4, BUCKET6, EQUAL6, EXPIRY_SHIFT, FLOOD_SAMPLE, GROUP6_SHIFT, GROUPS6, GUARD_ALL,
        GUARD_HOST, GUARD_RANGE, GuardPlace, HIT_SAMPLE, INDEX4, ListRange6, Listed, Listed6,
        SEARCH_STEPS, WIDE4_DECISION, WIDE4_LIST, WIDE6_DECISION, WIDE6_LIST, buckets4, buckets6,
        differs6, equals6, guard4_long, guard4_short, guard6_long, guard6_short, host_order,
        is_equal6, lane4, lane6, native, print6,
    },
    packet::{Family, Packet, Words},
};

use crate::{
    clock::now_ns,
    count::bump,
    maps::{
        CONFIG, GUARD4, GUARD6, INDEX, LIST4, LIST6, LISTED4, LISTED6, RANGE4, RANGE6, SEARCH6,
        SOONEST6,
    },
    nets,
};

/// Searches of one packet in tables that move under it.
const SEARCHES: u32 = 4;

/// A source's address, as the tables of its family want it.
pub trait Source: Copy {
    /// Its family.
    const FAMILY: Family;

    /// It as a packet has it.
    fn words(self) -> Words;

    /// What its neighbourhood holds: `GUARD_*` bits.
    fn guard(self, config: &Config) -> u64;

    /// What its host buckets say by themselves.
    fn glance(self, config: &Config) -> Glance;

    /// What the networks of this half of the range maps say by themselves.
    fn glance_nets(self, config: &Config, half: u32) -> Glance;

    /// Whether a range in this half of the range maps names it.
    fn is_in_range(self, half: u32, now: u64, weight: u32) -> bool;

    /// How often a host of its family was moved. Read anew each time: the controller may be writing it.
    fn moves(config: &Config) -> u32;
}

/// An IPv4 source.
#[derive(Clone, Copy)]
pub struct Source4 {
    /// As it is in the packet.
    pub word: u32,
}

/// An IPv6 source: both halves as [`native`] makes them.
#[derive(Clone, Copy)]
pub struct Source6 {
    /// The first eight bytes.
    pub low: u64,
    /// The last eight bytes.
    pub high: u64,
}

impl Source4 {
    #[inline(always)]
    fn of(packet: &Packet) -> Self {
        Self {
            word: packet.src[0],
        }
    }
}

impl Source6 {
    #[inline(always)]
    fn of(packet: &Packet) -> Self {
        let [low, high] = native(&packet.src);
        Self { low, high }
    }
}

impl Source for Source4 {
    const FAMILY: Family = Family::V4;

    #[inline(always)]
    fn words(self) -> Words {
        [self.word, 0, 0, 0]
    }

    #[inline(always)]
    fn guard(self, config: &Config) -> u64 {
        let (seed, shift) = (config.table_seed, config.guard_shift);
        let addr = u32::from_be(self.word);
        let mut found = read_guard4(guard4_long(addr, seed, shift));
        if config.guard_wide & (WIDE4_DECISION | WIDE4_LIST) != 0 {
            found |= read_guard4(guard4_short(addr, seed, shift));
        }
        found
    }

    #[inline(always)]
    fn glance(self, config: &Config) -> Glance {
        glance4(self.word, config)
    }

    #[inline(always)]
    fn glance_nets(self, config: &Config, half: u32) -> Glance {
        nets::glance4(u32::from_be(self.word), config, half)
    }

    #[inline(always)]
    fn is_in_range(self, half: u32, now: u64, weight: u32) -> bool {
        secmesh_range4(self.word, half & 1, now, weight) != 0
    }

    #[inline(always)]
    fn moves(config: &Config) -> u32 {
        // SAFETY: as in `half_of`.
        unsafe { (&raw const config.list_moves4).read_volatile() }
    }
}

impl Source for Source6 {
    const FAMILY: Family = Family::V6;

    #[inline(always)]
    fn words(self) -> Words {
        let Self { low, high } = self;
        [
            low as u32,
            (low >> 32) as u32,
            high as u32,
            (high >> 32) as u32,
        ]
    }

    #[inline(always)]
    fn guard(self, config: &Config) -> u64 {
        if config.guard6_off != 0 {
            return GUARD_ALL;
        }
        let (seed, shift) = (config.table_seed, config.guard_shift);
        let high = host_order(self.low);
        let mut found = read_guard6(guard6_long(high, seed, shift));
        if config.guard_wide & (WIDE6_DECISION | WIDE6_LIST) != 0 {
            found |= read_guard6(guard6_short(high, seed, shift));
        }
        found
    }

    #[inline(always)]
    fn glance(self, config: &Config) -> Glance {
        glance6(self, config)
    }

    #[inline(always)]
    fn glance_nets(self, config: &Config, half: u32) -> Glance {
        nets::glance6(host_order(self.low), config, half)
    }

    #[inline(always)]
    fn is_in_range(self, half: u32, now: u64, weight: u32) -> bool {
        secmesh_range6(self.low, self.high, half & 1, now, weight) != 0
    }

    #[inline(always)]
    fn moves(config: &Config) -> u32 {
        // SAFETY: as in `half_of`.
        unsafe { (&raw const config.list_moves6).read_volatile() }
    }
}

/// What the neighbourhood of the source holds: `GUARD_*` bits.
#[inline(always)]
pub fn guard(packet: &Packet, config: &Config) -> u64 {
    match packet.family {
        Family::V4 => Source4::of(packet).guard(config),
        Family::V6 => Source6::of(packet).guard(config),
        Family::Other => 0,
    }
}

#[inline(always)]
fn read_guard4(place: GuardPlace) -> u64 {
    GUARD4.get(place.word).map_or(0, |w| *w >> place.shift) & GUARD_ALL
}

#[inline(always)]
fn read_guard6(place: GuardPlace) -> u64 {
    GUARD6.get(place.word).map_or(0, |w| *w >> place.shift) & GUARD_ALL
}

/// As how many packets this one is counted on what it meets: one in [`HIT_SAMPLE`] of those that meet lists, in a flood
/// of listed sources one in [`FLOOD_SAMPLE`]; 0 for the others.
#[inline(always)]
pub fn weight(flood: bool, counters: &Counters) -> u32 {
    let met = counters.get(Counter::DropList) + counters.get(Counter::WouldDropList);
    let every = if flood { FLOOD_SAMPLE } else { HIT_SAMPLE };
    if met & u64::from(every - 1) == 0 {
        every
    } else {
        0
    }
}

/// Whether a list names the source, looked for where its neighbourhood says; counts the hit as [`weight`] says.
#[inline(always)]
pub fn listed(
    packet: &Packet,
    guard: u64,
    flood: bool,
    config: &Config,
    counters: &mut Counters,
) -> bool {
    let now = now_ns(config) >> EXPIRY_SHIFT;
    let weight = weight(flood, counters);
    if guard & GUARD_HOST != 0 {
        let before = moves(packet, config);
        let glance = glance(packet, config);
        if matches!(glance, Glance::Listed) && weight == 0 {
            return true;
        }
        let mut is_listed =
            !matches!(glance, Glance::Nothing) && secmesh_host(packet, config, now, weight) != 0;
        if !is_listed && moves(packet, config) != before {
            is_listed = host_again(packet, config, counters, now, weight);
        }
        if is_listed {
            return true;
        }
    }
    guard & GUARD_RANGE != 0 && range(packet, config, counters, now, weight)
}

/// Looks for a host again that was not found while hosts were being moved. A host that moves is in both its buckets
/// for a while, so only who reads the first one before a move to it and the second one after it misses one.
#[inline(always)]
fn host_again(
    packet: &Packet,
    config: &Config,
    counters: &mut Counters,
    now: u64,
    weight: u32,
) -> bool {
    for _ in 1..SEARCHES {
        bump(counters, Counter::ListAgain);
        let before = moves(packet, config);
        if secmesh_host(packet, config, now, weight) != 0 {
            return true;
        }
        if moves(packet, config) == before {
            return false;
        }
    }
    bump(counters, Counter::ListUnsettled);
    false
}

/// Whether a range of a list names the source.
#[inline(always)]
fn range(packet: &Packet, config: &Config, counters: &mut Counters, now: u64, weight: u32) -> bool {
    let mut half = half_of(config);
    for _ in 0..SEARCHES {
        let found = match packet.family {
            Family::V4 => Source4::of(packet).is_in_range(half, now, weight),
            Family::V6 => Source6::of(packet).is_in_range(half, now, weight),
            Family::Other => false,
        };
        // The half that was in use at the beginning is written again only once the other one is.
        let now_in_use = half_of(config);
        if now_in_use == half {
            return found;
        }
        half = now_in_use;
        bump(counters, Counter::ListAgain);
    }
    bump(counters, Counter::ListUnsettled);
    false
}

/// [`Config::list_half`], read anew each time: the controller may be writing it.
#[inline(always)]
pub fn half_of(config: &Config) -> u32 {
    // SAFETY: a field of the configuration's entry, which is never freed while the program runs; aligned.
    unsafe { (&raw const config.list_half).read_volatile() }
}

#[inline(always)]
fn moves(packet: &Packet, config: &Config) -> u32 {
    match packet.family {
        Family::V4 | Family::Other => Source4::moves(config),
        Family::V6 => Source6::moves(config),
    }
}

/// What the buckets of a source say by themselves.
pub enum Glance {
    /// It is in neither.
    Nothing,
    /// It is in one of them, and nothing in there has ended.
    Listed,
    /// It is in one of them, and something in there has ended: what is beside it says whether that is this one. Of
    /// networks also that it is in none, and that not all ranges are networks.
    Closer,
}

/// What it means to be found in a bucket or network whose first one ends at `soonest`. The clock is read here and not
/// before: that costs a register, or a call, while tables are being asked.
#[inline(always)]
pub fn found_in(soonest: u32, config: &Config) -> Glance {
    if live(soonest, now_ns(config) >> EXPIRY_SHIFT) {
        Glance::Listed
    } else {
        Glance::Closer
    }
}

/// Looks for the source in its buckets without asking for its slot, which is needed for one packet in
/// [`HIT_SAMPLE`] only. A loop that ends at the slot would end differently for each packet of a flood of random
/// sources, and a branch that is predicted wrongly costs as much as all these comparisons.
#[inline(always)]
fn glance(packet: &Packet, config: &Config) -> Glance {
    match packet.family {
        Family::V4 => Source4::of(packet).glance(config),
        Family::V6 => Source6::of(packet).glance(config),
        Family::Other => Glance::Nothing,
    }
}

#[inline(always)]
fn glance4(word: u32, config: &Config) -> Glance {
    if config.list_hosts4 == 0 {
        return Glance::Nothing;
    }
    let lane = u64::from(lane4(word));
    let both = lane | lane << 32;
    let places = buckets4(word, config.table_seed, config.list_buckets4);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST4.get_ptr(places[n]) else {
            return Glance::Nothing;
        };
        let pairs = bucket.cast::<u64>();
        // SAFETY: as in `host4`; the one that is beside no other lane.
        let last = unsafe { (*bucket).lanes[BUCKET4 - 1] };
        let mut found = (u64::from(last) ^ lane).wrapping_sub(1);
        let mut pair = 0;
        while pair < BUCKET4 / 2 {
            // SAFETY: as in `host4`; two lanes, and the bucket is aligned to eight.
            let others = unsafe { pairs.add(pair).read() };
            // Of lanes that are equal the uppermost bit is set, for all have 31 bits. Of one above an equal one it may be.
            found |= (others ^ both).wrapping_sub(1 << 32 | 1);
            pair += 1;
        }
        if found & (1 << 63 | 1 << 31) != 0 {
            // SAFETY: as in `host4`.
            return found_in(unsafe { (*bucket).soonest }, config);
        }
        n += 1;
    }
    Glance::Nothing
}

#[inline(always)]
fn glance6(source: Source6, config: &Config) -> Glance {
    if config.list_hosts6 == 0 {
        return Glance::Nothing;
    }
    let print = print6(source.low, source.high, &config.print_keys);
    let lane = lane6(print);
    let places = buckets6(print, config.list_buckets6);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST6.get_ptr(places[n]) else {
            return Glance::Nothing;
        };
        let words = bucket.cast::<u64>();
        let mut found = 0_u64;
        let mut group = 0;
        while group < GROUPS6 {
            // SAFETY: as in `host6`.
            found |= equals6(unsafe { three6(words, group, lane) });
            group += 1;
        }
        if found & EQUAL6 != 0 {
            let soonest = SOONEST6.get(places[n] >> GROUP6_SHIFT).map_or(0, |s| *s);
            return found_in(soonest, config);
        }
        n += 1;
    }
    Glance::Nothing
}

#[inline(always)]
fn host(packet: &Packet, config: &Config, now: u64, weight: u32) -> bool {
    match packet.family {
        Family::V4 => host4(packet, config, now, weight),
        Family::V6 => host6(packet, config, now, weight),
        Family::Other => false,
    }
}

/// Whether a host of a list is the source, by slot and end; counts the hit as `weight` packets. For those few
/// packets of which [`glance`] does not say it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_host(
    packet: *const Packet,
    config: *const Config,
    now: u64,
    weight: u32,
) -> u32 {
    if packet.is_null() || config.is_null() {
        return 0;
    }
    // SAFETY: the one caller passes a packet on its stack, all of it written, and the configuration's entry; the
    // verifier checks that.
    let (packet, config) = unsafe { (&*packet, &*config) };
    host(packet, config, now, weight).into()
}

/// Whether a range of a list in this half names the IPv4 source: 1 or 0. A function of its own: its search needs
/// the most registers, and most of what lists name are hosts.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_range4(word: u32, half: u32, now: u64, weight: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    range4(word, config, half & 1, now, weight).into()
}

/// The same of IPv6; the address in halves as [`Source6`] has them.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn secmesh_range6(low: u64, high: u64, half: u32, now: u64, weight: u32) -> u32 {
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    let addr = [host_order(low), host_order(high)];
    range6(addr, config, half & 1, now, weight).into()
}

#[inline(always)]
pub fn live(expires: u32, now: u64) -> bool {
    now < u64::from(expires)
}

#[inline(always)]
fn host4(packet: &Packet, config: &Config, now: u64, weight: u32) -> bool {
    if config.list_hosts4 == 0 {
        return false;
    }
    let lane = lane4(packet.src[0]);
    let places = buckets4(packet.src[0], config.table_seed, config.list_buckets4);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST4.get_ptr(places[n]) else {
            return false;
        };
        // The lanes are at its beginning.
        let lanes = bucket.cast::<u32>();
        // SAFETY: array entries are never freed while the program runs; aligned plain integers that the
        // controller may write, each of them read or written whole.
        let soonest = unsafe { (*bucket).soonest };
        let mut slot = 0;
        while slot < BUCKET4 {
            // SAFETY: as above, and below the array's length.
            if unsafe { lanes.add(slot).read() } == lane {
                let beside = places[n] * BUCKET4 as u32 + slot as u32;
                if in_force(soonest, LISTED4.get_ptr_mut(beside), now, weight) {
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
fn in_force(soonest: u32, beside: Option<*mut Listed>, now: u64, weight: u32) -> bool {
    let Some(beside) = beside else {
        return false;
    };
    // SAFETY: as in `host4`.
    if !live(soonest, now) && !live(unsafe { (*beside).expires }, now) {
        return false;
    }
    if weight != 0 {
        // SAFETY: as in `host4`; other CPUs may count too, and then one of the counts may be lost.
        unsafe { (*beside).hits += u64::from(weight) };
    }
    true
}

#[inline(always)]
fn host6(packet: &Packet, config: &Config, now: u64, weight: u32) -> bool {
    if config.list_hosts6 == 0 {
        return false;
    }
    let [low, high] = native(&packet.src);
    let print = print6(low, high, &config.print_keys);
    let lane = lane6(print);
    let places = buckets6(print, config.list_buckets6);
    let mut n = 0;
    while n < 2 {
        let Some(bucket) = LIST6.get_ptr(places[n]) else {
            return false;
        };
        let soonest = SOONEST6.get(places[n] >> GROUP6_SHIFT).map_or(0, |s| *s);
        let words = bucket.cast::<u64>();
        let mut group = 0;
        while group < GROUPS6 {
            // SAFETY: an entry of the array is never freed while the program runs.
            let differs = unsafe { three6(words, group, lane) };
            let mut place = 0;
            while place < 3 {
                if is_equal6(differs, place) {
                    let slot = (group * 3 + place) as u32;
                    let listed = LISTED6.get_ptr_mut(places[n] * BUCKET6 as u32 + slot);
                    // Another host may have the same lane: on.
                    if in_force(soonest, beside6(listed, low, high), now, weight) {
                        return true;
                    }
                }
                place += 1;
            }
            group += 1;
        }
        n += 1;
    }
    false
}

/// Where three lanes of a bucket are not this one; `group` is below [`GROUPS6`].
///
/// # Safety
/// `words` is a bucket of the IPv6 table.
#[inline(always)]
unsafe fn three6(words: *const u64, group: usize, lane: [u64; 2]) -> u64 {
    // SAFETY: the bucket is eight aligned words, first halves first, that the controller may write, each of them read or
    // written whole. A lane whose halves are of two hosts is nobody's but by the chance that any other is.
    let (lows, highs) = unsafe { (words.add(group).read(), words.add(GROUPS6 + group).read()) };
    differs6(lows, highs, lane)
}

/// What is beside a slot, if the address there is this one.
#[inline(always)]
fn beside6(listed: Option<*mut Listed6>, low: u64, high: u64) -> Option<*mut Listed> {
    let listed = listed?;
    // SAFETY: as in `host4`; the address is at the beginning of what is aligned to eight.
    let addr = unsafe { listed.cast::<[u64; 2]>().read() };
    if addr[0] != low || addr[1] != high {
        return None;
    }
    // SAFETY: a field of a live entry.
    Some(unsafe { &raw mut (*listed).beside })
}

#[inline(always)]
fn range4(word: u32, config: &Config, half: u32, now: u64, weight: u32) -> bool {
    if config.list_ranges4[half as usize] == 0 {
        return false;
    }
    let base = half * config.list_room4;
    let addr = u32::from_be(word);
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
    if weight != 0 {
        range.hits += u64::from(weight);
    }
    true
}

#[inline(always)]
fn range6(addr: [u64; 2], config: &Config, half: u32, now: u64, weight: u32) -> bool {
    let count = config.list_ranges6[half as usize];
    if count == 0 {
        return false;
    }
    let base = half * config.list_room6;
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
    if weight != 0 {
        range.hits += u64::from(weight);
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
