//! Spans of addresses: the form in which lists are merged, kept and handed to the kernel's tables.

use std::{fmt, net::IpAddr};

use crate::addr::Prefix;
pub use crate::dataplane::Span;

/// An end that never comes.
pub const NEVER: u64 = u64::MAX;

/// An address as a host-order integer: `u32` is IPv4, `u128` is IPv6.
pub trait Address: Copy + Ord + fmt::Debug + Send + Sync + 'static {
    /// The first address.
    const FIRST: Self;
    /// The last address.
    const LAST: Self;
    /// Bits of an address.
    const BITS: u8;

    /// The address after this one.
    fn next(self) -> Option<Self>;
    /// The address before this one.
    fn previous(self) -> Option<Self>;
    /// The address as the standard library has it.
    fn ip(self) -> IpAddr;
    /// Zero bits at the low end, [`Address::BITS`] for zero.
    fn trailing_zeros(self) -> u8;
    /// This address with the lowest `bits` bits set.
    #[must_use]
    fn with_low_bits_set(self, bits: u8) -> Self;
    /// Well mixed bits of it, the same in every process.
    fn mixed(self) -> u64;
}

/// The finisher of SplitMix64 (Steele, Lea, Flood 2014).
const fn mix(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Address for u32 {
    const FIRST: Self = 0;
    const LAST: Self = Self::MAX;
    const BITS: u8 = 32;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn ip(self) -> IpAddr {
        IpAddr::V4(self.into())
    }

    fn trailing_zeros(self) -> u8 {
        u8::try_from(Self::trailing_zeros(self)).unwrap_or(32)
    }

    fn with_low_bits_set(self, bits: u8) -> Self {
        self | Self::MAX
            .checked_shr(u32::from(32_u8.saturating_sub(bits)))
            .unwrap_or(0)
    }

    fn mixed(self) -> u64 {
        mix(u64::from(self).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }
}

impl Address for u128 {
    const FIRST: Self = 0;
    const LAST: Self = Self::MAX;
    const BITS: u8 = 128;

    fn next(self) -> Option<Self> {
        self.checked_add(1)
    }

    fn previous(self) -> Option<Self> {
        self.checked_sub(1)
    }

    fn ip(self) -> IpAddr {
        IpAddr::V6(self.into())
    }

    fn trailing_zeros(self) -> u8 {
        u8::try_from(Self::trailing_zeros(self)).unwrap_or(128)
    }

    fn with_low_bits_set(self, bits: u8) -> Self {
        self | Self::MAX
            .checked_shr(u32::from(128_u8.saturating_sub(bits)))
            .unwrap_or(0)
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "both halves are mixed in, one after the other"
    )]
    fn mixed(self) -> u64 {
        mix(mix((self >> 64) as u64).wrapping_add(self as u64))
    }
}

/// Spans of both families.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Spans {
    /// IPv4.
    pub v4: Vec<Span<u32>>,
    /// IPv6.
    pub v6: Vec<Span<u128>>,
}

impl Spans {
    /// How many spans.
    pub fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// First and last address of something, in one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    /// IPv4.
    V4(u32, u32),
    /// IPv6.
    V6(u128, u128),
}

impl From<Prefix> for Range {
    fn from(prefix: Prefix) -> Self {
        match prefix.addr() {
            IpAddr::V4(a) => {
                let start = a.to_bits();
                Self::V4(start, start.with_low_bits_set(32 - prefix.len()))
            }
            IpAddr::V6(a) => {
                let start = a.to_bits();
                Self::V6(start, start.with_low_bits_set(128 - prefix.len()))
            }
        }
    }
}

/// The fewest prefixes that cover exactly `start` to `end`, in order; at most twice the bits of an
/// address.
pub fn prefixes<A: Address>(start: A, end: A) -> impl Iterator<Item = Prefix> {
    let mut at = Some(start);
    std::iter::from_fn(move || {
        let from = at.filter(|from| *from <= end)?;
        let mut bits = from.trailing_zeros().min(A::BITS);
        while from.with_low_bits_set(bits) > end {
            bits = bits.saturating_sub(1);
        }
        at = from.with_low_bits_set(bits).next();
        Some(Prefix::truncating(from.ip(), A::BITS - bits))
    })
    .flatten()
    // IPv4-mapped IPv6 turns into IPv4 here. No IPv6 packet comes from there, and as part of a wider
    // IPv6 range it must not block all of IPv4.
    .filter(|prefix| prefix.is_ipv4() == (A::BITS == 32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn texts<A: Address>(start: A, end: A) -> Vec<String> {
        prefixes(start, end).map(|p| p.to_string()).collect()
    }

    #[test]
    fn a_range_is_the_fewest_prefixes() {
        assert_eq!(texts(0, u32::MAX), ["0.0.0.0/0"]);
        assert_eq!(texts(0, u128::MAX), ["::/0"]);
        assert_eq!(texts(7_u32, 7), ["0.0.0.7"]);
        assert_eq!(
            texts(0x0a00_0001_u32, 0x0a00_0006),
            ["10.0.0.1", "10.0.0.2/31", "10.0.0.4/31", "10.0.0.6"]
        );
        assert_eq!(texts(1_u32, u32::MAX).len(), 32);
        assert_eq!(texts(1_u128 << 64, u128::MAX - 1).len(), 63 + 127);
    }

    #[test]
    fn an_ipv6_range_around_the_mapped_addresses_is_not_all_of_ipv4() {
        let start = (0xfffe_u128 << 32) + 1;
        assert!(texts(start, u128::MAX).iter().all(|p| p.contains("::")));
    }

    proptest! {
        #[test]
        fn prefixes_cover_a_range_and_nothing_else(a: u32, b: u32) {
            let (start, end) = (a.min(b), a.max(b));
            let mut at = Some(start);
            for prefix in prefixes(start, end) {
                let Range::V4(first, last) = Range::from(prefix) else { panic!("{prefix}") };
                prop_assert_eq!(Some(first), at);
                at = last.next();
            }
            prop_assert_eq!(at, end.next());
        }
    }
}
