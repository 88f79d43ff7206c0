//! Large lists, made by a seeded generator: a tenth of what is promised, or all of it with
//! `SECMESH_SCALE=1` (in a release build; the times are printed).

use std::fmt::Write as _;

use super::{
    Compiled, NEVER, Span, Spans, compile,
    format::{Options, Parsed, parse},
    import::{Ttl, prepare},
};
use crate::clock::{Clock as _, SystemClock};

const NOW: u64 = 1_700_000_000;

/// SplitMix64.
struct Generator(u64);

impl Generator {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn v4(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    /// In `2000::/3`, like real ones.
    fn v6(&mut self) -> u128 {
        (u128::from((self.next() >> 3) | (1 << 61)) << 64) | u128::from(self.next())
    }
}

/// Lines of `addresses` hosts and `networks` networks of each family.
fn text(addresses: usize, networks: usize) -> String {
    let mut generator = Generator(7);
    let mut text = String::with_capacity((addresses + networks) * 64);
    for n in 0..addresses {
        let _ = writeln!(text, "{}", std::net::Ipv4Addr::from_bits(generator.v4()));
        let _ = writeln!(text, "{}", std::net::Ipv6Addr::from_bits(generator.v6()));
        if n % 1000 == 0 {
            text.push_str("# a remark\n\n");
        }
    }
    for _ in 0..networks {
        let length = 16 + generator.next() % 15;
        let net = generator.v4() >> (32 - length) << (32 - length);
        let _ = writeln!(text, "{}/{length}", std::net::Ipv4Addr::from_bits(net));
        let length = 32 + generator.next() % 33;
        let net = generator.v6() >> (128 - length) << (128 - length);
        let _ = writeln!(text, "{}/{length}", std::net::Ipv6Addr::from_bits(net));
    }
    text
}

fn check<A: super::Address>(hosts: &[Span<A>], ranges: &[Span<A>]) {
    let mut all: Vec<&Span<A>> = hosts.iter().chain(ranges).collect();
    all.sort_by_key(|s| s.start);
    for pair in all.windows(2) {
        assert!(pair[0].end < pair[1].start, "{pair:?} overlap");
    }
    assert!(hosts.iter().all(|s| s.start == s.end));
    assert!(ranges.iter().all(|s| s.start < s.end));
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let before = SystemClock.mono_ns();
    let result = work();
    let ms = (SystemClock.mono_ns() - before) / 1_000_000;
    eprintln!("{what}: {ms} ms");
    result
}

#[test]
fn a_million_addresses_and_a_hundred_thousand_networks_of_each_family() {
    let (addresses, networks) = if std::env::var_os("SECMESH_SCALE").is_some() {
        (1_000_000, 100_000)
    } else {
        (100_000, 10_000)
    };
    let text = text(addresses, networks);
    let options = Options {
        name: "big",
        format: None,
        skip_invalid: false,
        now_unix_s: NOW,
    };
    let parsed: Parsed = timed("parse", || {
        parse(text.as_bytes(), &options, &mut |_| {}).unwrap()
    });
    assert_eq!(parsed.spans.v4.len(), addresses + networks);
    assert_eq!(parsed.spans.v6.len(), addresses + networks);
    assert!(parsed.spans.v4.iter().all(|s| s.expires_unix_s == NEVER));
    let ttl = Ttl {
        now_unix_s: NOW,
        ttl_s: 7 * 86_400,
        spread_percent: 10,
    };
    let kept: Spans = timed("spread and merge", || prepare(parsed.spans, ttl));
    let allowed = ["127.0.0.0/8".parse().unwrap(), "fe80::/10".parse().unwrap()];
    let compiled: Compiled = timed("compile", || compile([&kept], &allowed, NOW));
    check(&compiled.hosts4, &compiled.ranges4);
    check(&compiled.hosts6, &compiled.ranges6);
    assert!(!compiled.hosts4.iter().any(|s| s.start >> 24 == 127));
    assert_eq!(compiled.hosts6.len(), addresses, "none lies in a network");
    eprintln!(
        "{} bytes; hosts {} + {}, ranges {} + {}",
        text.len(),
        compiled.hosts4.len(),
        compiled.hosts6.len(),
        compiled.ranges4.len(),
        compiled.ranges6.len()
    );
}
