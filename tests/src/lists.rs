//! Lists made up for tests, a plain search in them, and the kernel's word on the same addresses.

use std::{collections::BTreeSet, net::IpAddr};

use anyhow::{Context as _, Result, bail, ensure};
use secmesh::{
    dataplane::{Compiled, ListTables, LoadOptions, Replaced, Span},
    respond::Now,
};
use secmesh_common::{
    counters::Counters,
    list::{FLOOD_SAMPLE, HIT_SAMPLE},
};

use crate::{
    chaos::mono_ns,
    frames::{IPV4, IPV6, ethernet, ipv4_from, ipv6_from, protocol, udp},
    kernel::{Kernel, options, shown},
    random::Random,
};

/// Unix time that the tests take for now, µs.
pub const UNIX_US: u64 = 1_800_000_000_000_000;
/// A day later, s.
const TOMORROW: u64 = UNIX_US / 1_000_000 + 86_400;

/// The clocks: [`UNIX_US`], and the machine's monotonic one.
///
/// # Errors
/// When the kernel does not say.
pub fn now() -> Result<Now> {
    Ok(Now {
        unix_us: UNIX_US,
        mono_ns: mono_ns()?,
    })
}

/// A datagram from `source`.
pub fn frame(source: IpAddr) -> Vec<u8> {
    let datagram = udp(b"x");
    match source {
        IpAddr::V4(a) => {
            let packet = ipv4_from(a.octets(), &[], 0, protocol::UDP, &datagram);
            ethernet(&[], IPV4, &packet)
        }
        IpAddr::V6(a) => ethernet(&[], IPV6, &ipv6_from(a.octets(), protocol::UDP, &datagram)),
    }
}

/// An IPv4 address from its number.
pub fn v4(addr: u32) -> IpAddr {
    IpAddr::V4(addr.into())
}

/// An IPv6 address from its number; one of IPv4's mapped ones stays what it is.
pub fn v6(addr: u128) -> IpAddr {
    IpAddr::V6(addr.into())
}

/// What list number `list` blocks until tomorrow.
pub fn span<A>(start: A, end: A, list: u16) -> Span<A> {
    Span {
        start,
        end,
        expires_unix_s: TOMORROW,
        list,
    }
}

fn named_by<A: Ord + Copy>(hosts: &[Span<A>], ranges: &[Span<A>], addr: A) -> Option<u16> {
    hosts
        .iter()
        .chain(ranges)
        .find(|s| s.start <= addr && addr <= s.end)
        .map(|s| s.list)
}

/// Which list names an address, found by looking at each span.
pub fn oracle(lists: &Compiled, addr: IpAddr) -> Option<u16> {
    match addr {
        IpAddr::V4(a) => named_by(&lists.hosts4, &lists.ranges4, a.into()),
        IpAddr::V6(a) => named_by(&lists.hosts6, &lists.ranges6, a.into()),
    }
}

/// Sorted, and without those that reach into an earlier one.
fn disjoint<A: Ord + Copy>(mut spans: Vec<Span<A>>) -> Vec<Span<A>> {
    spans.sort();
    let mut last = None;
    spans.retain(|s| {
        let free = last.is_none_or(|end| s.start > end);
        if free {
            last = Some(s.end);
        }
        free
    });
    spans
}

/// Hosts that lie in no range and are named once.
fn outside<A: Ord + Copy>(mut hosts: Vec<Span<A>>, ranges: &[Span<A>]) -> Vec<Span<A>> {
    hosts.sort();
    hosts.dedup_by_key(|s| s.start);
    hosts.retain(|s| named_by(&[], ranges, s.start).is_none());
    hosts
}

/// Beginnings, and lengths less one, of IPv4 ranges where searches go wrong: borders of the index's /16s, the
/// two ends of all addresses, and one right after another.
const EDGES4: [(u32, u32); 12] = [
    (0, 0),
    (1, 8),
    (0x000a_ffff, 1),
    (0x000b_fffe, 3),
    (0x0010_0000, 0xffff),
    (0x0011_0000, 0x2_ffff),
    (0x0020_0000, 0),
    (0x0030_fff0, 0x5_0010),
    (0x7fff_ffff, 0),
    (0x8000_0000, 7),
    (0xffff_0000, 0xfffe),
    (0xffff_ffff, 0),
];

/// The same of IPv6: borders of the halves, of the /64s, /48s and /32s, and the ends.
const EDGES6: [(u128, u128); 10] = [
    (0, 0),
    (1, 0xff),
    (0xffff_ffff_ffff_ffff, 1),
    (0x2001_0db8_0000_ffff_ffff_ffff_ffff_fff0, 0x40),
    (0x2001_0db9_0000_0000_0000_0000_0000_0000, (1 << 80) - 1),
    (0x2001_0dba_ffff_ffff_ffff_ffff_ffff_ffff, 1),
    (0x2001_0e00_0000_0000_0000_0000_0000_0000, (3 << 96) - 1),
    (0x7fff_ffff_ffff_ffff_ffff_ffff_ffff_ffff, 0),
    (0x8000_0000_0000_0000_0000_0000_0000_0000, 7),
    (u128::MAX - 9, 9),
];

fn below32(random: &mut Random, bound: u64) -> u32 {
    u32::try_from(random.below(bound)).unwrap_or(0)
}

fn random6(random: &mut Random) -> u128 {
    (u128::from(random.bits()) << 64) | u128::from(random.bits())
}

fn number(random: &mut Random) -> u16 {
    u16::try_from(random.below(60_000)).unwrap_or(0)
}

/// Lists of hosts and ranges of both families. `wide` ones have an IPv6 range that the guard cannot tell.
pub fn made_up(random: &mut Random, wide: bool) -> Compiled {
    let mut lists = Compiled::default();
    for (start, more) in EDGES4 {
        if random.below(4) > 0 {
            let list = number(random);
            lists.ranges4.push(span(start, start + more, list));
        }
    }
    for (start, more) in EDGES6 {
        if random.below(4) > 0 {
            let list = number(random);
            lists.ranges6.push(span(start, start + more, list));
        }
    }
    if wide {
        let start = 0xa << 124;
        lists.ranges6.push(span(start, start + (1 << 120), 7));
    }
    for _ in 0..random.below(600) {
        let list = number(random);
        // Crowded, so that many share a /16; a few are much longer than that.
        let start = 0x0a00_0000 + below32(random, 1 << 20);
        let bits = random.below(11) + 6 * (random.below(16) / 15);
        let more = below32(random, 1 << bits);
        lists.ranges4.push(span(start, start + more, list));
        let start = (0xfd00 << 112) + (u128::from(random.below(1 << 20)) << random.below(70));
        let more = u128::from(random.bits() >> random.below(64));
        lists.ranges6.push(span(start, start + more, list));
    }
    lists.ranges4 = disjoint(lists.ranges4);
    lists.ranges6 = disjoint(lists.ranges6);
    for _ in 0..random.below(1500) {
        let list = number(random);
        let near = below32(random, 1 << 20);
        let far = random.below(2) == 0;
        let addr4 = if far {
            below32(random, 1 << 32)
        } else {
            0x0a00_0000 + near
        };
        let addr6 = if far {
            random6(random)
        } else {
            (0xfd00 << 112) + u128::from(near)
        };
        lists.hosts4.push(span(addr4, addr4, list));
        lists.hosts6.push(span(addr6, addr6, list));
        if random.below(2) == 0 {
            // One beside another.
            let (addr4, addr6) = (addr4.saturating_add(1), addr6.saturating_add(1));
            lists.hosts4.push(span(addr4, addr4, list));
            lists.hosts6.push(span(addr6, addr6, list));
        }
    }
    lists.hosts4 = outside(lists.hosts4, &lists.ranges4);
    lists.hosts6 = outside(lists.hosts6, &lists.ranges6);
    lists
}

/// Addresses that tell right lists from wrong ones: the ends of everything, their neighbours, and some in
/// between and elsewhere.
pub fn probes(random: &mut Random, lists: &Compiled) -> BTreeSet<IpAddr> {
    let mut probes = BTreeSet::new();
    for s in lists.hosts4.iter().chain(&lists.ranges4) {
        let inside = s.start + below32(random, u64::from(s.end - s.start) + 1);
        let around = [s.start.checked_sub(1), s.end.checked_add(1)];
        probes.extend([s.start, inside, s.end].map(v4));
        probes.extend(around.into_iter().flatten().map(v4));
        // In the next /16 and in the one before.
        probes.insert(v4(s.end.saturating_add(0xffff)));
        probes.insert(v4(s.start.saturating_sub(0xffff)));
    }
    for s in lists.hosts6.iter().chain(&lists.ranges6) {
        let inside = s.start + random6(random) % (s.end - s.start).saturating_add(1);
        let around = [s.start.checked_sub(1), s.end.checked_add(1)];
        probes.extend([s.start, inside, s.end].map(v6));
        probes.extend(around.into_iter().flatten().map(v6));
        // One half the same, the other not.
        probes.insert(v6(s.start ^ (1 << 64)));
        probes.insert(v6(s.start ^ 1));
    }
    for _ in 0..200 {
        probes.insert(v4(below32(random, 1 << 32)));
        probes.insert(v6(random6(random)));
    }
    probes
}

/// Hosts of each family that fit the tables of [`crowded`].
const CROWD: u32 = 768;

/// Settings whose tables are full up to their limit with [`Pair`]'s hosts, so that moves are common.
pub fn crowded() -> LoadOptions {
    LoadOptions {
        max_list_addresses: CROWD,
        ..options()
    }
}

/// Two times all lists, most of whose entries are the same.
pub struct Pair {
    /// The lists.
    pub lists: [Compiled; 2],
    /// Addresses that both name.
    pub both: Vec<IpAddr>,
    /// Addresses that neither names, most of them beside one that both do.
    pub neither: Vec<IpAddr>,
}

/// Shares spans out: to the first, to the second, to nobody, to both.
fn share<A: Copy>(random: &mut Random, spans: &[Span<A>]) -> [Vec<Span<A>>; 2] {
    let mut first = Vec::new();
    let mut second = Vec::new();
    for s in spans {
        let turn = random.below(5);
        if turn != 1 && turn != 2 {
            first.push(*s);
        }
        if turn != 0 && turn != 2 {
            second.push(*s);
        }
    }
    [first, second]
}

/// Makes a pair whose hosts all but fill the tables of [`crowded`].
pub fn pair(random: &mut Random) -> Pair {
    let addr4 = |random: &mut Random, base: u32, n: u32| base + n * 0x300 + below32(random, 200);
    let addr6 = |random: &mut Random, base: u128, n: u32| {
        base + (u128::from(n) << 79) + u128::from(random.byte())
    };
    let (mut hosts4, mut hosts6, mut ranges4, mut ranges6) = (vec![], vec![], vec![], vec![]);
    // Three fifths of them and one more are in each. The ranges are where the index is written last.
    for n in 0..CROWD * 5 / 4 {
        let (a, b) = (
            addr4(random, 0x0a00_0000, n),
            addr6(random, 0xfd00 << 112, n),
        );
        hosts4.push(span(a, a, 1));
        hosts6.push(span(b, b, 2));
        let (a, b) = (
            addr4(random, 0xdb00_0000, n),
            addr6(random, 0xfd01 << 112, n),
        );
        ranges4.push(span(a, a + 0x155, 3));
        ranges6.push(span(b, b + (1 << 70), 4));
    }
    let mut ends = BTreeSet::new();
    for s in hosts4.iter().chain(&ranges4) {
        ends.extend([v4(s.start), v4(s.end), v4(s.end + 1), v4(s.start - 1)]);
    }
    for s in hosts6.iter().chain(&ranges6) {
        ends.extend([v6(s.start), v6(s.end), v6(s.end + 1), v6(s.start - 1)]);
    }
    let ([h4, other_h4], [h6, other_h6]) = (share(random, &hosts4), share(random, &hosts6));
    let ([r4, other_r4], [r6, other_r6]) = (share(random, &ranges4), share(random, &ranges6));
    let lists = |mut hosts4: Vec<_>, mut hosts6: Vec<_>, ranges4, ranges6| {
        hosts4.truncate(CROWD as usize);
        hosts6.truncate(CROWD as usize);
        Compiled {
            hosts4,
            hosts6,
            ranges4,
            ranges6,
        }
    };
    let lists = [
        lists(h4, h6, r4, r6),
        lists(other_h4, other_h6, other_r4, other_r6),
    ];
    let named = |addr: &IpAddr| lists.iter().filter(|l| oracle(l, *addr).is_some()).count();
    let both = ends.iter().copied().filter(|a| named(a) == 2).collect();
    let neither = ends.iter().copied().filter(|a| named(a) == 0).collect();
    Pair {
        lists,
        both,
        neither,
    }
}

/// Replaces the lists.
///
/// # Errors
/// The tables' refusal.
pub fn replace(lists: &mut ListTables, wanted: &Compiled) -> Result<Replaced> {
    Ok(lists.replace(wanted, 0, now()?, &mut |_| {})?)
}

/// Whether all of `times` packets met a list, or none did.
///
/// # Errors
/// If it was some of them.
pub fn dropped(moved: &Counters, times: u32) -> Result<bool> {
    let (times, listed, passed) = (u64::from(times), moved.drop_list, moved.pass);
    if listed + passed == times && (listed == 0 || passed == 0) {
        return Ok(listed > 0);
    }
    bail!("of {times} packets: {}", shown(moved))
}

/// Whether a packet from `addr` meets a list.
///
/// # Errors
/// If something else happens to it.
pub fn is_dropped(kernel: &mut Kernel, addr: IpAddr) -> Result<bool> {
    let moved = kernel.run_many(&frame(addr), 1)?;
    dropped(&moved, 1).with_context(|| addr.to_string())
}

/// Asks the kernel about each address and compares with the plain search: the verdict, the list, and that
/// the hit is counted there. Says how many passed and how many were dropped.
///
/// # Errors
/// At the first difference.
pub fn compare(
    kernel: &mut Kernel,
    lists: &Compiled,
    addrs: &BTreeSet<IpAddr>,
) -> Result<(u32, u32)> {
    let mut answers = (0, 0);
    for addr in addrs {
        let list = oracle(lists, *addr);
        let hits = kernel.lists.hits(*addr);
        ensure!(
            hits.map(|(list, _)| list) == list,
            "{addr}: {hits:?} for list {list:?}"
        );
        let is = is_dropped(kernel, *addr)?;
        ensure!(is == list.is_some(), "{addr}: dropped: {is}, list {list:?}");
        let after = kernel.lists.hits(*addr);
        // One packet in so many is counted, as so many, and only for what met it.
        let counted = after.unwrap_or_default().1 - hits.unwrap_or_default().1;
        ensure!(
            after.map(|(list, _)| list) == list
                && (counted == 0
                    || (is && [HIT_SAMPLE, FLOOD_SAMPLE].map(u64::from).contains(&counted))),
            "{addr}: one packet, {hits:?} became {after:?}"
        );
        if is {
            answers.1 += 1;
        } else {
            answers.0 += 1;
        }
    }
    Ok(answers)
}
