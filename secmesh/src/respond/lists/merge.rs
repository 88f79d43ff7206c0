//! Many lists and an allowlist become what the kernel shall hold: disjoint spans, each once.
//!
//! A sweep from the first address to the last: of all that covers an address, what ends last speaks
//! for it. A trie answers with its longest match only and a hash with one entry, so nothing that
//! overlaps may reach them. The allowlist is cut out here, so an allowed address inside a listed
//! network is not in the kernel at all and costs it no second lookup.

use std::{cmp::Reverse, collections::BinaryHeap};

use super::span::{Address, NEVER, Range, Span, Spans};
use crate::addr::Prefix;
pub use crate::dataplane::Compiled;

/// The ends of all spans that have one, unix seconds, in no order.
pub fn ends(compiled: &Compiled) -> Vec<u64> {
    let v4 = compiled.hosts4.iter().chain(&compiled.ranges4);
    let v6 = compiled.hosts6.iter().chain(&compiled.ranges6);
    v4.map(|s| s.expires_unix_s)
        .chain(v6.map(|s| s.expires_unix_s))
        .filter(|end| *end != NEVER)
        .collect()
}

#[expect(
    single_use_lifetimes,
    reason = "anonymous lifetimes in impl Trait are unstable"
)]
/// Merges `lists` without what `allowed` covers and what has ended by `now_unix_s`.
pub fn compile<'a>(
    lists: impl IntoIterator<Item = &'a Spans>,
    allowed: &[Prefix],
    now_unix_s: u64,
) -> Compiled {
    let mut all = Spans::default();
    for list in lists {
        let live = |expires: u64| expires > now_unix_s;
        all.v4
            .extend(list.v4.iter().filter(|s| live(s.expires_unix_s)));
        all.v6
            .extend(list.v6.iter().filter(|s| live(s.expires_unix_s)));
    }
    let mut allowed4 = Vec::new();
    let mut allowed6 = Vec::new();
    for prefix in allowed {
        match Range::from(*prefix) {
            Range::V4(start, end) => allowed4.push((start, end)),
            Range::V6(start, end) => allowed6.push((start, end)),
        }
    }
    let (hosts4, ranges4) = split(subtract(flatten(all.v4), allowed4));
    let (hosts6, ranges6) = split(subtract(flatten(all.v6), allowed6));
    Compiled {
        hosts4,
        hosts6,
        ranges4,
        ranges6,
    }
}

/// A span that covers where the sweep is: by what speaks for it, then where it ends.
type Open<A> = (u64, Reverse<u16>, A);

/// Makes spans disjoint and sorted. Of several that cover an address the one that ends last counts, of
/// those the one of the lowest list; neighbours that are alike become one. At most `2n - 1` come out of
/// `n`.
pub fn flatten<A: Address>(mut spans: Vec<Span<A>>) -> Vec<Span<A>> {
    spans.sort_unstable_by_key(|s| (s.start, s.end));
    let mut out = Vec::with_capacity(spans.len());
    let mut open: BinaryHeap<Open<A>> = BinaryHeap::new();
    let mut at = A::FIRST;
    for span in spans {
        sweep(&mut open, &mut at, span.start.previous(), &mut out);
        at = span.start;
        open.push((span.expires_unix_s, Reverse(span.list), span.end));
    }
    sweep(&mut open, &mut at, Some(A::LAST), &mut out);
    out.shrink_to_fit();
    out
}

/// Writes out what covers the addresses from `at` to `to`; `None` is before the first address.
fn sweep<A: Address>(
    open: &mut BinaryHeap<Open<A>>,
    at: &mut A,
    to: Option<A>,
    out: &mut Vec<Span<A>>,
) {
    let Some(to) = to else {
        return;
    };
    while let Some(&(expires_unix_s, Reverse(list), end)) = open.peek() {
        if end < *at {
            open.pop();
            continue;
        }
        if *at > to {
            return;
        }
        let piece = Span {
            start: *at,
            end: end.min(to),
            expires_unix_s,
            list,
        };
        append(out, piece);
        let Some(next) = piece.end.next() else {
            open.clear();
            return;
        };
        *at = next;
    }
}

fn append<A: Address>(out: &mut Vec<Span<A>>, span: Span<A>) {
    if let Some(last) = out.last_mut()
        && last.end.next() == Some(span.start)
        && (last.expires_unix_s, last.list) == (span.expires_unix_s, span.list)
    {
        last.end = span.end;
    } else {
        out.push(span);
    }
}

/// Cuts `holes` (in any order, overlapping as they like) out of disjoint sorted spans.
fn subtract<A: Address>(spans: Vec<Span<A>>, mut holes: Vec<(A, A)>) -> Vec<Span<A>> {
    if holes.is_empty() {
        return spans;
    }
    holes.sort_unstable();
    let mut merged: Vec<(A, A)> = Vec::with_capacity(holes.len());
    for (start, end) in holes {
        match merged.last_mut() {
            Some((_, last)) if start <= *last => *last = end.max(*last),
            _ => merged.push((start, end)),
        }
    }
    let mut out = Vec::with_capacity(spans.len());
    let mut holes = merged.into_iter().peekable();
    for mut span in spans {
        loop {
            // Holes before this span are before all that follow, too.
            while holes.next_if(|(_, end)| *end < span.start).is_some() {}
            let Some(&(start, end)) = holes.peek().filter(|(start, _)| *start <= span.end) else {
                out.push(span);
                break;
            };
            if let Some(before) = start.previous().filter(|before| *before >= span.start) {
                out.push(Span {
                    end: before,
                    ..span
                });
            }
            match end.next().filter(|rest| *rest <= span.end) {
                Some(rest) => span.start = rest,
                None => break,
            }
        }
    }
    out
}

type Halves<A> = (Vec<Span<A>>, Vec<Span<A>>);

fn split<A: Address>(spans: Vec<Span<A>>) -> Halves<A> {
    spans.into_iter().partition(|s| s.start == s.end)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn span(start: u32, end: u32, expires_unix_s: u64, list: u16) -> Span<u32> {
        Span {
            start,
            end,
            expires_unix_s,
            list,
        }
    }

    #[test]
    fn nested_networks_with_other_ends_become_disjoint_spans() {
        let flat = flatten(vec![
            span(0, 99, 50, 1),
            span(10, 19, 40, 1),
            span(20, 29, 60, 2),
        ]);
        assert_eq!(
            flat,
            [span(0, 19, 50, 1), span(20, 29, 60, 2), span(30, 99, 50, 1)]
        );
    }

    #[test]
    fn an_allowed_address_in_a_listed_network_is_cut_out() {
        let list = Spans {
            v4: vec![span(0x0a00_0000, 0x0a00_00ff, NEVER, 1)],
            v6: Vec::new(),
        };
        let allowed = ["10.0.0.0", "10.0.0.7", "10.0.0.6/31", "10.0.0.255"];
        let allowed: Vec<Prefix> = allowed.iter().map(|p| p.parse().unwrap()).collect();
        let compiled = compile([&list], &allowed, 0);
        assert_eq!(
            compiled.ranges4,
            [
                span(0x0a00_0001, 0x0a00_0005, NEVER, 1),
                span(0x0a00_0008, 0x0a00_00fe, NEVER, 1)
            ]
        );
        assert!(compile([&list], &["0.0.0.0/0".parse().unwrap()], 0).is_empty());
    }

    #[test]
    fn the_first_and_the_last_address_are_addresses_like_any() {
        let all = vec![
            span(0, u32::MAX, 5, 1),
            span(u32::MAX, u32::MAX, 9, 1),
            span(0, 0, 9, 1),
        ];
        assert_eq!(
            flatten(all),
            [
                span(0, 0, 9, 1),
                span(1, u32::MAX - 1, 5, 1),
                span(u32::MAX, u32::MAX, 9, 1)
            ]
        );
        assert_eq!(
            subtract(
                vec![span(0, u32::MAX, 5, 1)],
                vec![(0, 0), (u32::MAX, u32::MAX)]
            ),
            [span(1, u32::MAX - 1, 5, 1)]
        );
    }

    /// What covers each of the addresses 0 to 63, address by address.
    fn oracle(spans: &[Span<u32>], holes: &[(u32, u32)]) -> BTreeMap<u32, (u64, u16)> {
        (0..64)
            .filter(|a| !holes.iter().any(|(s, e)| (s..=e).contains(&a)))
            .filter_map(|a| {
                let best = spans
                    .iter()
                    .filter(|s| (s.start..=s.end).contains(&a))
                    .max_by_key(|s| (s.expires_unix_s, Reverse(s.list)))?;
                Some((a, (best.expires_unix_s, best.list)))
            })
            .collect()
    }

    fn any_span() -> impl Strategy<Value = Span<u32>> {
        (0_u32..64, 0_u32..64, 1_u64..5, 1_u16..4)
            .prop_map(|(a, b, expires, list)| span(a.min(b), a.max(b), expires, list))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_address_is_covered_as_the_oracle_says(
            spans in proptest::collection::vec(any_span(), 0..12),
            holes in proptest::collection::vec((0_u32..64, 0_u32..8), 0..5),
        ) {
            let holes: Vec<(u32, u32)> = holes.into_iter().map(|(s, l)| (s, s + l)).collect();
            let flat = subtract(flatten(spans.clone()), holes.clone());
            let mut seen = BTreeMap::new();
            for pair in flat.windows(2) {
                prop_assert!(pair[0].end < pair[1].start, "{:?}", pair);
                // Alike neighbours are one, unless a hole had been between them.
                let alike = (pair[0].expires_unix_s, pair[0].list) == (pair[1].expires_unix_s, pair[1].list);
                prop_assert!(!alike || pair[0].end + 1 < pair[1].start, "{:?}", pair);
            }
            for s in &flat {
                for a in s.start..=s.end {
                    seen.insert(a, (s.expires_unix_s, s.list));
                }
            }
            prop_assert_eq!(seen, oracle(&spans, &holes));
        }

        #[test]
        fn hosts_lie_in_no_range_and_nothing_that_ended_is_in(
            v4 in proptest::collection::vec(any_span(), 0..12), now in 0_u64..5,
        ) {
            let list = Spans { v4: v4.clone(), v6: Vec::new() };
            let compiled = compile([&list, &list], &[], now);
            let live: Vec<_> = v4.into_iter().filter(|s| s.expires_unix_s > now).collect();
            let mut seen = BTreeMap::new();
            for s in &compiled.ranges4 {
                prop_assert!(s.start < s.end);
            }
            for s in compiled.hosts4.iter().chain(&compiled.ranges4) {
                for a in s.start..=s.end {
                    prop_assert!(seen.insert(a, (s.expires_unix_s, s.list)).is_none(), "{a} twice");
                }
            }
            prop_assert_eq!(seen, oracle(&live, &[]));
        }
    }
}
