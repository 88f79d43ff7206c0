//! From what a file says to what is kept: ends set and spread, duplicates merged, risks named.

use super::{
    merge::flatten,
    span::{Address, Range, Span, Spans, prefixes},
};
use crate::{
    addr::Prefix,
    respond::{Reason, Risk, risky},
};

/// How long a list is kept, at most, seconds: a year.
pub const MAX_TTL_S: u64 = 366 * 86_400;

/// When imported entries end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ttl {
    /// What "from now" is, unix seconds.
    pub now_unix_s: u64,
    /// Nothing is kept longer than this, seconds; what ends sooner by itself keeps its end.
    pub ttl_s: u64,
    /// Over which last part of its time the ends of entries are spread, percent (0 to 100).
    pub spread_percent: u8,
}

impl Ttl {
    /// When the entry that begins with `address` ends. The same address always gets the same place in the
    /// spread, so that importing a list again moves ends by the time between and nothing else.
    fn end<A: Address>(&self, address: A, expires_unix_s: u64) -> u64 {
        let left = expires_unix_s
            .saturating_sub(self.now_unix_s)
            .min(self.ttl_s);
        // In u128, 100 times a time cannot overflow.
        let window = u128::from(left) * u128::from(self.spread_percent.min(100)) / 100;
        let part = (u128::from(address.mixed()) * window) >> 64;
        let earlier = u64::try_from(part).unwrap_or(0);
        // A second at least: an entry that is over at once would be a surprise.
        self.now_unix_s
            .saturating_add(left.saturating_sub(earlier).max(1))
    }
}

/// What is kept of what was read: each address once, in order, with its end.
pub fn prepare(parsed: Spans, ttl: Ttl) -> Spans {
    Spans {
        v4: flatten(ended(parsed.v4, ttl)),
        v6: flatten(ended(parsed.v6, ttl)),
    }
}

fn ended<A: Address>(mut spans: Vec<Span<A>>, ttl: Ttl) -> Vec<Span<A>> {
    for span in &mut spans {
        span.expires_unix_s = ttl.end(span.start, span.expires_unix_s);
    }
    spans
}

/// Risky prefixes that are named; of others it is only known that there are more.
pub const MAX_RISKS: usize = 20;

/// What should be thought about twice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Risks {
    /// The first of them.
    pub named: Vec<(Prefix, Risk)>,
    /// How many entries are risky.
    pub entries: usize,
}

/// What of `spans`, as they were read and before any merging, is risky. A range is wide if one prefix as
/// large would be, however it is aligned.
pub fn risks(spans: &Spans, protected: &[Prefix]) -> Risks {
    search(spans, protected, true)
}

/// What of `spans` contains something protected. Merged neighbours may be wide without any entry being so.
pub fn contained(spans: &Spans, protected: &[Prefix]) -> Risks {
    search(spans, protected, false)
}

fn search(spans: &Spans, protected: &[Prefix], widths: bool) -> Risks {
    let mut found = Risks::default();
    let (mut p4, mut p6) = (Vec::new(), Vec::new());
    for prefix in protected {
        match Range::from(*prefix) {
            Range::V4(start, end) => p4.push((start, end)),
            Range::V6(start, end) => p6.push((start, end)),
        }
    }
    let (wide4, wide6) = if widths {
        (1 << 24, 1 << 112)
    } else {
        (u32::MAX, u128::MAX)
    };
    let named: Vec<(Prefix, String)> = protected
        .iter()
        .map(|p| (*p, "which this node needs".to_owned()))
        .collect();
    look(&spans.v4, &p4, wide4, &named, &mut found);
    look(&spans.v6, &p6, wide6, &named, &mut found);
    found
}

/// `wide` is from how many addresses on a span is too wide.
fn look<A: Address + std::ops::Sub<Output = A>>(
    spans: &[Span<A>],
    protected: &[(A, A)],
    wide: A,
    prefixes_protected: &[(Prefix, String)],
    found: &mut Risks,
) {
    for span in spans {
        // Both are said with integers first: a million entries times twenty addresses is a lot of
        // prefixes.
        let overlaps = protected
            .iter()
            .any(|(start, end)| span.start <= *end && *start <= span.end);
        let is_wide = span.end - span.start >= wide;
        if !overlaps && !is_wide {
            continue;
        }
        found.entries += 1;
        let room = MAX_RISKS.saturating_sub(found.named.len());
        let before = found.named.len();
        found.named.extend(
            prefixes(span.start, span.end)
                .filter_map(|p| Some((p, risky(&p, prefixes_protected)?)))
                .take(room),
        );
        // A wide range may be made of prefixes that are not.
        if found.named.len() == before && room > 0 {
            let shortest = if A::BITS == 32 { 8 } else { 16 };
            found.named.extend(
                prefixes(span.start, span.end)
                    .min_by_key(Prefix::len)
                    .map(|p| {
                        let reasons = vec![Reason::Wide { shortest }];
                        (p, Risk { reasons })
                    }),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_700_000_000;

    fn hosts(n: u32, expires_unix_s: u64) -> Spans {
        let host = |a: u32| Span {
            start: a,
            end: a,
            expires_unix_s,
            list: 0,
        };
        Spans {
            v4: (0..n).map(|a| host(a * 2)).collect(),
            v6: Vec::new(),
        }
    }

    #[test]
    fn ends_are_spread_evenly_over_the_last_tenth_and_the_same_each_time() {
        let ttl = Ttl {
            now_unix_s: NOW,
            ttl_s: 10_000,
            spread_percent: 10,
        };
        let spans = prepare(hosts(10_000, u64::MAX), ttl);
        assert_eq!(spans, prepare(hosts(10_000, u64::MAX), ttl));
        let mut tenths = [0; 10];
        for span in &spans.v4 {
            let left = span.expires_unix_s - NOW;
            assert!((9_001..=10_000).contains(&left), "{left}");
            tenths[((left - 9_001) / 100) as usize] += 1;
        }
        assert!(
            tenths.iter().all(|n| (800..1200).contains(n)),
            "1000 each were expected: {tenths:?}"
        );
    }

    #[test]
    fn an_own_end_is_kept_if_it_is_sooner() {
        let ttl = Ttl {
            now_unix_s: NOW,
            ttl_s: 100,
            spread_percent: 0,
        };
        assert_eq!(
            prepare(hosts(1, NOW + 30), ttl).v4[0].expires_unix_s,
            NOW + 30
        );
        assert_eq!(
            prepare(hosts(1, NOW + 3000), ttl).v4[0].expires_unix_s,
            NOW + 100
        );
    }

    #[test]
    fn risky_entries_are_named_also_as_ranges() {
        let p = |text: &str| text.parse::<Prefix>().unwrap();
        let spans = |start, end| Spans {
            v4: vec![Span {
                start,
                end,
                expires_unix_s: 1,
                list: 0,
            }],
            v6: Vec::new(),
        };
        let protected = [p("10.0.0.1")];
        assert_eq!(
            risks(&spans(0x0a00_0000, 0x0a00_0001), &protected).named,
            [(
                p("10.0.0.0/31"),
                Risk {
                    reasons: vec![Reason::Contains {
                        protected: p("10.0.0.1"),
                        why: "which this node needs".to_owned(),
                    }],
                }
            )]
        );
        assert_eq!(
            risks(&spans(0x0b00_0001, 0x0c00_0001), &protected).entries,
            1
        );
        assert_eq!(
            risks(&spans(0x0b00_0000, 0x0bff_ffff), &protected),
            Risks::default()
        );
        let wide = Spans {
            v4: Vec::new(),
            v6: vec![Span {
                start: 0,
                end: 1 << 112,
                expires_unix_s: 1,
                list: 0,
            }],
        };
        assert_eq!(
            risks(&wide, &protected).named,
            [(
                p("::/16"),
                Risk {
                    reasons: vec![Reason::Wide { shortest: 16 }],
                }
            )]
        );
    }

    proptest! {
        #[test]
        fn an_entry_lasts_a_second_at_least_and_never_too_long(
            address: u128, expires: u64, ttl_s in 1..MAX_TTL_S, spread_percent: u8,
        ) {
            let ttl = Ttl { now_unix_s: NOW, ttl_s, spread_percent };
            let end = ttl.end(address, expires);
            prop_assert!(end > NOW && end <= NOW + ttl_s);
        }
    }
}
