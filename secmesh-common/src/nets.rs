//! What most ranges of lists are, where one load finds it: networks in buckets of a cache line.
//!
//! A binary search in ten thousand ranges is a dozen loads that wait for each other and as many branches that
//! nobody can predict. So ranges are also split into networks, as prefixes are, and those go into buckets by their
//! neighbourhood, a /20 or a /48: a source's two buckets hold all networks that can name it. What cannot be said
//! that way (odd ends, networks wider than a neighbourhood or longer than a /64, neighbourhoods with too many of
//! them) is found by the search only, and while there is any, a source that is in no network is searched for.
//!
//! There are two halves, as of ranges: bucket `2 n + half` is bucket `n` of a half.

use crate::list::two;

/// IPv4 networks in one bucket: one cache line.
pub const NETS4: usize = 15;
/// IPv6 networks in one bucket: one cache line.
pub const NETS6: usize = 7;

/// Prefix length of a neighbourhood of IPv4 networks.
pub const AROUND4: u8 = 20;
/// Prefix length of a neighbourhood of IPv6 networks.
pub const AROUND6: u8 = 48;
/// Longest IPv4 network.
pub const LONGEST4: u8 = 31;
/// Longest IPv6 network.
pub const LONGEST6: u8 = 64;

/// Bit of [`crate::config::Config::list_whole`]: every IPv4 range is in the networks.
pub const WHOLE4: u32 = 1 << 0;
/// The same of IPv6.
pub const WHOLE6: u32 = 1 << 1;

/// One bucket of IPv4 networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListNets4 {
    /// Each as [`net4`] makes it. A free slot has one of another neighbourhood, that nobody looks for here.
    pub nets: [u32; NETS4],
    /// None of the bucket ends before this, units of [`crate::list::EXPIRY_SHIFT`]; from then on the search says.
    pub soonest: u32,
}

/// One bucket of IPv6 networks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct ListNets6 {
    /// Each as [`net6`] makes it; free slots as in [`ListNets4`].
    pub nets: [u64; NETS6],
    /// As in [`ListNets4`].
    pub soonest: u32,
    /// Zero.
    pub flags: u32,
}

const _: () = {
    assert!(size_of::<ListNets4>() == 64, "one cache line");
    assert!(size_of::<ListNets6>() == 64, "one cache line");
};

/// An IPv4 network of [`AROUND4`] to [`LONGEST4`] bits as one number: its prefix, a zero, and ones to the end.
pub const fn net4(first: u32, len: u8) -> u32 {
    first | ((1 << ((LONGEST4 - len) & 31)) - 1)
}

/// An IPv6 network of [`AROUND6`] to [`LONGEST6`] bits, from the first half of its addresses: as [`net4`], of the
/// address without its first bit, which must be zero. What begins with a one (local and multicast addresses) is
/// found by the search.
pub const fn net6(first: u64, len: u8) -> u64 {
    (first << 1) | ((1 << ((LONGEST6 - len) & 63)) - 1)
}

/// What an IPv6 source is compared as; `high` is its first half in host byte order. `None` if it begins with a one.
#[inline(always)]
pub const fn key6(high: u64) -> Option<u64> {
    if high >> 63 == 0 {
        Some(high << 1)
    } else {
        None
    }
}

/// In which bits a source is not in a network: 0 if it is. IPv4 addresses (host byte order) and their networks as
/// they are, IPv6 ones as [`key6`].
#[inline(always)]
pub const fn differs(net: u64, key: u64) -> u64 {
    (net ^ key) & !(net ^ net.wrapping_add(1))
}

/// The two buckets of an IPv4 address (host byte order) among so many.
#[inline(always)]
pub const fn net_places4(addr: u32, seed: u64, buckets: u32) -> [u32; 2] {
    places((addr >> (32 - AROUND4 as u32)) as u64, seed, buckets)
}

/// The two buckets of a [`key6`] among so many.
#[inline(always)]
pub const fn net_places6(key: u64, seed: u64, buckets: u32) -> [u32; 2] {
    places(key >> (65 - AROUND6 as u32), seed, buckets)
}

#[inline(always)]
const fn places(around: u64, seed: u64, buckets: u32) -> [u32; 2] {
    let hash = (around ^ (seed >> 32)).wrapping_mul(seed | 1);
    two(hash, buckets)
}

#[cfg(feature = "user")]
mod pod {
    use super::{ListNets4, ListNets6};
    // SAFETY: repr(C), only integers, no padding (sizes asserted above), every bit pattern is valid.
    unsafe impl aya::Pod for ListNets4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for ListNets6 {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_holds_its_addresses_and_no_others() {
        for len in AROUND4..=LONGEST4 {
            let last = u32::MAX >> len;
            for first in [0, 0x0a01_0000, 0xc000_0200 & !last, !last] {
                let net = u64::from(net4(first, len));
                for addr in [first, first | last, first | (last / 2), first | (last / 3)] {
                    assert_eq!(differs(net, addr.into()), 0, "{first:x}/{len} {addr:x}");
                }
                for addr in [
                    first.wrapping_sub(1),
                    (first | last).wrapping_add(1),
                    !first,
                ] {
                    assert_ne!(differs(net, addr.into()), 0, "{first:x}/{len} {addr:x}");
                }
            }
        }
        for len in AROUND6..=LONGEST6 {
            let last = u64::MAX.checked_shr(len.into()).unwrap_or(0);
            for first in [0, 0x2001_0db8_0001_0000, (u64::MAX >> 1) & !last] {
                let net = net6(first, len);
                for high in [first, first | last, first | (last / 2), first | (last / 3)] {
                    assert_eq!(
                        key6(high).map(|key| differs(net, key)),
                        Some(0),
                        "{first:x}/{len}"
                    );
                }
                for high in [
                    first.wrapping_sub(1),
                    (first | last).wrapping_add(1),
                    !first,
                ] {
                    assert_ne!(
                        key6(high).map(|key| differs(net, key)),
                        Some(0),
                        "{first:x}/{len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_network_is_where_each_of_its_addresses_is_looked_for() {
        let seed = 0x9e37_79b9_7f4a_7c15;
        for n in 0..1000_u32 {
            let addr = n.wrapping_mul(0x9e37_79b1);
            let first = addr & !0xfff;
            assert_eq!(
                net_places4(net4(first, AROUND4), seed, 99),
                net_places4(addr, seed, 99)
            );
            let high = u64::from(addr >> 1) << 32 | u64::from(n);
            let first = high & !0xffff;
            let key = key6(high).unwrap_or_default();
            assert_eq!(
                net_places6(net6(first, AROUND6), seed, 99),
                net_places6(key, seed, 99)
            );
        }
    }
}
