//! Networks of ranges name whom the ranges name.

use proptest::prelude::*;
use secmesh_common::nets::{differs, key6};

use super::*;

const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
const NOW: Now = Now {
    unix_us: 0,
    mono_ns: 0,
};

fn span<A>(start: A, end: A) -> Span<A> {
    Span {
        start,
        end,
        expires_unix_s: u64::MAX,
        list: 1,
    }
}

fn spans4(gaps: &[(u32, u32)]) -> Vec<Span<u32>> {
    let mut at = 0_u32;
    let mut spans = Vec::new();
    for (gap, len) in gaps {
        let Some(start) = at.checked_add(*gap) else {
            break;
        };
        let end = start.saturating_add(*len);
        spans.push(span(start, end));
        let Some(next) = end.checked_add(2) else {
            break;
        };
        at = next;
    }
    spans
}

/// What the kernel finds in the buckets of an address.
fn finds4(built: &Built<Nets4>, buckets: &[ListNets4], addr: u32) -> bool {
    let places = net_places4(addr, built.seed, built.buckets);
    places.iter().any(|n| {
        let nets = buckets[*n as usize].nets;
        nets.iter()
            .any(|net| differs((*net).into(), addr.into()) == 0)
    })
}

fn finds6(built: &Built<Nets6>, buckets: &[ListNets6], addr: u128) -> bool {
    let Some(key) = key6(high(addr)) else {
        return false;
    };
    let places = net_places6(key, built.seed, built.buckets);
    places.iter().any(|n| {
        let nets = buckets[*n as usize].nets;
        nets.iter().any(|net| differs(*net, key) == 0)
    })
}

/// Gaps and lengths of all sizes, so that ranges of a network, parts of one and many networks come about.
fn gaps() -> impl Strategy<Value = Vec<(u32, u32)>> {
    let size = |most: u32| (0..=most).prop_flat_map(|bits| 0..=(1_u32 << bits));
    let aligned = (0..=14_u32).prop_map(|bits| (1_u32 << bits) - 1);
    proptest::collection::vec((size(24), prop_oneof![size(16), aligned]), 1..60)
}

proptest! {
    #[test]
    fn networks_name_nobody_else_and_everybody_if_they_are_whole(gaps in gaps(), probes: Vec<u32>) {
        let spans = spans4(&gaps);
        let built = Built::<Nets4>::new(&spans, SEED, 1 << 12, NOW);
        let buckets = built.buckets();
        let edges = spans.iter().flat_map(|s| {
            [s.start, s.end, s.start.wrapping_sub(1), s.end.wrapping_add(1), s.start.midpoint(s.end)]
        });
        for addr in edges.chain(probes).chain([0, u32::MAX]) {
            let is_listed = spans.iter().any(|s| s.start <= addr && addr <= s.end);
            let found = finds4(&built, &buckets, addr);
            prop_assert!(is_listed || !found, "{addr:x} is in no range");
            prop_assert!(found || !is_listed || !built.is_whole, "{addr:x} is not found");
        }
    }

    #[test]
    fn the_same_holds_of_ipv6(gaps in gaps(), shift in prop_oneof![Just(60_u32), Just(64), Just(70), Just(100)], top: bool) {
        let base = if top { (1_u128 << 127) - (1 << 118) } else { 0x2001_0db8 << 96 };
        let spans: Vec<Span<u128>> = spans4(&gaps)
            .iter()
            .map(|s| {
                let start = base.wrapping_add(u128::from(s.start) << shift);
                let end = base.wrapping_add((u128::from(s.end) + 1) << shift).wrapping_sub(1);
                span(start, end)
            })
            .filter(|s| s.start <= s.end)
            .collect();
        let built = Built::<Nets6>::new(&spans, SEED, 1 << 12, NOW);
        let buckets = built.buckets();
        let edges = spans.iter().flat_map(|s| {
            [s.start, s.end, s.start.wrapping_sub(1), s.end.wrapping_add(1), s.start.midpoint(s.end)]
        });
        for addr in edges.chain([0, 1, u128::MAX]) {
            let is_listed = spans.iter().any(|s| s.start <= addr && addr <= s.end);
            let found = finds6(&built, &buckets, addr);
            prop_assert!(is_listed || !found, "{addr:x} is in no range");
            prop_assert!(found || !is_listed || !built.is_whole, "{addr:x} is not found");
        }
    }
}

#[test]
fn networks_as_lists_have_them_are_all_found_by_one_load() {
    let mut spans: Vec<Span<u32>> = (0..10_000_u32)
        .map(|n| {
            let first = (76 << 24) + n * 8192;
            span(first, first | [255, 1023, 15][n as usize % 3])
        })
        .collect();
    let room = buckets_of_half::<Nets4>(10_000);
    let built = Built::<Nets4>::new(&spans, SEED, room, NOW);
    assert!(built.is_whole);
    // Three quarters full, not all the room there is.
    assert!(
        built.buckets < room / 2 + room / 4,
        "{} of {room}",
        built.buckets
    );
    // One that is wider than a neighbourhood by much, odd ends, and a crowd in one neighbourhood are searched for.
    for other in [span(0x0a00_0000, 0x0aff_ffff), span(3, 3)] {
        spans.push(other);
        assert!(!Built::<Nets4>::new(&spans, SEED, room, NOW).is_whole);
        spans.pop();
    }
    spans.extend((0..8).map(|n| span(n * 64, n * 64 + 31)));
    assert!(!Built::<Nets4>::new(&spans, SEED, room, NOW).is_whole);
}

#[test]
fn no_room_leaves_ranges_to_the_search() {
    let spans: Vec<Span<u32>> = (0..4000_u32)
        .map(|n| span(n << 13, (n << 13) | 255))
        .collect();
    let built = Built::<Nets4>::new(&spans, SEED, MIN_BUCKETS, NOW);
    assert!(!built.is_whole);
    let buckets = built.buckets();
    let found = spans
        .iter()
        .filter(|s| finds4(&built, &buckets, s.start))
        .count();
    assert!(
        (100..=MIN_BUCKETS as usize * NETS4).contains(&found),
        "{found}"
    );
    assert!(!spans.iter().any(|s| finds4(&built, &buckets, s.end + 1)));
}

#[test]
fn a_bucket_says_when_its_soonest_network_ends() {
    let mut soon = span(76 << 24, (76 << 24) | 255);
    soon.expires_unix_s = 1 << 20;
    let other = span(77 << 24, (77 << 24) | 255);
    let built = Built::<Nets4>::new(&[soon, other], SEED, 1 << 12, NOW);
    let ends: Vec<u32> = built
        .buckets()
        .iter()
        .map(|b| b.soonest)
        .filter(|e| *e != 0)
        .collect();
    assert!(ends.contains(&kernel_expiry(1 << 20, NOW)), "{ends:?}");
    assert!(ends.iter().all(|e| *e >= kernel_expiry(1 << 20, NOW)));
}
