//! Addresses and prefixes in the one form the whole program compares, hashes and signs.
//!
//! An IPv4 address that arrives as `::ffff:a.b.c.d` is the same host as `a.b.c.d`; if both forms
//! could exist side by side, a block could be dodged and two nodes could vote on "different"
//! subjects. So there is one canonical form and no way to build another one.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text or a byte string is not a [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// The part before the slash is not an IPv4 or IPv6 address.
    #[error("`{0}` is not an IP address; write one like 192.0.2.7, 192.0.2.0/24 or 2001:db8::/32")]
    Address(String),
    /// The part after the slash is not a number, or is longer than the address.
    #[error("`{text}`: the prefix length must be a number from 0 to {max}")]
    Length {
        /// What was given.
        text: String,
        /// Longest length for this address family.
        max: u8,
    },
    /// Bits beyond the prefix length are set.
    #[error("`{given}` has bits set beyond its length; did you mean {meant}?")]
    HostBits {
        /// What was given.
        given: String,
        /// The same prefix with those bits cleared.
        meant: Prefix,
    },
    /// A byte string that [`Prefix::to_bytes`] never produces.
    #[error("not a canonical prefix encoding (family, length, 16 address bytes)")]
    Encoding,
}

/// An IP network in canonical form: IPv4-mapped IPv6 is IPv4, bits beyond `len` are zero.
///
/// A single host is a prefix of full length. The order is by family, then address, then length, so
/// a network sorts directly before what it contains.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

/// Length of [`Prefix::to_bytes`].
pub const PREFIX_BYTES: usize = 18;

const fn max_len(addr: IpAddr) -> u8 {
    match addr {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32 - u32::from(len.min(32)))
                .unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(len.min(128)))
                .unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
        }
    }
}

impl Prefix {
    /// The prefix that holds exactly this address.
    pub fn host(addr: IpAddr) -> Self {
        let addr = addr.to_canonical();
        Self {
            addr,
            len: max_len(addr),
        }
    }

    /// The network of `len` bits that contains `addr`; bits beyond `len` are cleared.
    ///
    /// `len` counts in the family of `addr` as given: `::ffff:192.0.2.1` with 120 is
    /// `192.0.2.0/24`.
    ///
    /// # Errors
    /// [`PrefixError::Length`] when `len` is longer than the address.
    pub fn truncating(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let max = max_len(addr);
        if len > max {
            return Err(PrefixError::Length {
                text: len.to_string(),
                max,
            });
        }
        let addr = mask(addr, len);
        // A mapped address whose prefix ends inside the mapping (len < 96) has lost its last
        // mapping bit to the mask, so it no longer looks mapped and stays IPv6.
        Ok(match (addr, addr.to_canonical()) {
            (IpAddr::V6(_), v4 @ IpAddr::V4(_)) => Self {
                addr: v4,
                len: len.saturating_sub(96),
            },
            (addr, _) => Self { addr, len },
        })
    }

    /// First address of the network.
    pub const fn addr(&self) -> IpAddr {
        self.addr
    }

    /// Length in bits: 0 to 32 for IPv4, 0 to 128 for IPv6.
    #[expect(
        clippy::len_without_is_empty,
        reason = "a prefix length, not a count of elements"
    )]
    pub const fn len(&self) -> u8 {
        self.len
    }

    /// Whether the prefix is one address.
    pub const fn is_single(&self) -> bool {
        self.len == max_len(self.addr)
    }

    /// Whether this is an IPv4 prefix.
    pub const fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// Whether every address of `other` is in this prefix. Families never contain each other.
    pub fn contains(&self, other: &Self) -> bool {
        self.addr.is_ipv4() == other.addr.is_ipv4()
            && self.len <= other.len
            && mask(other.addr, self.len) == self.addr
    }

    /// Whether `addr` (IPv4-mapped counts as IPv4) is in this prefix.
    pub fn contains_addr(&self, addr: IpAddr) -> bool {
        self.contains(&Self::host(addr))
    }

    /// Whether the two prefixes share an address.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other) || other.contains(self)
    }

    /// Canonical bytes: family (4 or 6), length, 16 address bytes (IPv4 in the first four).
    pub fn to_bytes(&self) -> [u8; PREFIX_BYTES] {
        let mut address = [0_u8; 16];
        let family = match self.addr {
            IpAddr::V4(v4) => {
                for (to, from) in address.iter_mut().zip(v4.octets()) {
                    *to = from;
                }
                4
            }
            IpAddr::V6(v6) => {
                address = v6.octets();
                6
            }
        };
        let mut out = [0_u8; PREFIX_BYTES];
        for (to, from) in out
            .iter_mut()
            .zip([family, self.len].into_iter().chain(address))
        {
            *to = from;
        }
        out
    }

    /// Reads what [`Prefix::to_bytes`] wrote, and nothing else.
    ///
    /// # Errors
    /// [`PrefixError::Encoding`] for an unknown family, a length that is too long, bits set beyond
    /// the length or in IPv4's padding, or an IPv4-mapped IPv6 network.
    pub fn from_bytes(bytes: &[u8; PREFIX_BYTES]) -> Result<Self, PrefixError> {
        let [family, len, address @ ..] = *bytes;
        let [a, b, c, d, ..] = address;
        let addr = match family {
            4 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
            6 => IpAddr::V6(Ipv6Addr::from(address)),
            _ => return Err(PrefixError::Encoding),
        };
        let prefix = Self::truncating(addr, len).map_err(|_| PrefixError::Encoding)?;
        if prefix.to_bytes() == *bytes {
            Ok(prefix)
        } else {
            Err(PrefixError::Encoding)
        }
    }
}

impl From<IpAddr> for Prefix {
    fn from(addr: IpAddr) -> Self {
        Self::host(addr)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_single() {
            write!(f, "{}", self.addr)
        } else {
            write!(f, "{}/{}", self.addr, self.len)
        }
    }
}

impl fmt::Debug for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let addr: IpAddr = address
            .parse()
            .map_err(|_| PrefixError::Address(text.chars().take(64).collect()))?;
        let Some(length) = length else {
            return Ok(Self::host(addr));
        };
        let max = max_len(addr);
        let bad_length = || PrefixError::Length {
            text: text.chars().take(64).collect(),
            max,
        };
        // `u8::from_str` takes "+24" and "024"; a prefix has one spelling.
        if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) || length.len() > 3 {
            return Err(bad_length());
        }
        let len: u8 = length.parse().map_err(|_| bad_length())?;
        let prefix = Self::truncating(addr, len).map_err(|_| bad_length())?;
        if mask(addr, len) == addr {
            Ok(prefix)
        } else {
            Err(PrefixError::HostBits {
                given: text.to_owned(),
                meant: prefix,
            })
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn p(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn reads_and_prints_addresses_and_networks_of_both_families() {
        for text in [
            "1.2.3.4",
            "1.2.3.0/24",
            "0.0.0.0/0",
            "::/0",
            "2001:db8::/32",
            "::1",
        ] {
            assert_eq!(p(text).to_string(), text);
        }
        assert_eq!(p("1.2.3.4/32").to_string(), "1.2.3.4");
    }

    #[test]
    fn a_mapped_address_is_the_ipv4_address() {
        assert_eq!(p("::ffff:1.2.3.4"), p("1.2.3.4"));
        assert_eq!(p("::ffff:1.2.3.0/120"), p("1.2.3.0/24"));
        assert_eq!(p("::ffff:0:0/96"), p("0.0.0.0/0"));
        assert_eq!(p("::fffe:0:0/95").to_string(), "::fffe:0:0/95");
    }

    #[test]
    fn refuses_host_bits_and_says_what_was_meant() {
        let error = "1.2.3.4/24".parse::<Prefix>().unwrap_err();
        assert!(error.to_string().contains("1.2.3.0/24"), "{error}");
        let truncated = Prefix::truncating("1.2.3.4".parse().unwrap(), 24).unwrap();
        assert_eq!(truncated, p("1.2.3.0/24"));
    }

    #[test]
    fn refuses_what_is_not_a_prefix() {
        for text in [
            "",
            "/",
            "1.2.3",
            "1.2.3.4/",
            "1.2.3.4/33",
            "::/129",
            "::/+1",
            "host",
            "1.2.3.4/0x8",
            "1.2.3.4/0032",
            " 1.2.3.4",
        ] {
            assert!(text.parse::<Prefix>().is_err(), "{text}");
        }
    }

    #[test]
    fn containment_stays_inside_a_family() {
        assert!(p("10.0.0.0/8").contains(&p("10.1.0.0/16")));
        assert!(!p("10.1.0.0/16").contains(&p("10.0.0.0/8")));
        assert!(p("10.1.0.0/16").overlaps(&p("10.0.0.0/8")));
        assert!(!p("10.0.0.0/8").overlaps(&p("11.0.0.0/8")));
        assert!(!p("::/0").contains(&p("1.2.3.4")));
        assert!(p("0.0.0.0/0").contains_addr("::ffff:9.9.9.9".parse().unwrap()));
    }

    #[test]
    fn refuses_encodings_that_are_not_canonical() {
        let mut mapped = [0_u8; PREFIX_BYTES];
        mapped[0] = 6;
        mapped[1] = 128;
        mapped[12] = 0xff;
        mapped[13] = 0xff;
        assert!(
            Prefix::from_bytes(&mapped).is_err(),
            "mapped address as IPv6"
        );
        let mut padded = p("1.2.3.4").to_bytes();
        padded[17] = 1;
        assert!(Prefix::from_bytes(&padded).is_err(), "padding used");
        let mut host_bits = p("1.2.3.0/24").to_bytes();
        host_bits[5] = 1;
        assert!(Prefix::from_bytes(&host_bits).is_err(), "host bits");
    }

    proptest! {
        #[test]
        fn text_bytes_and_serde_agree(bits: u128, v4: bool, len: u8) {
            let addr = if v4 {
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits >> 96).unwrap()))
            } else {
                IpAddr::V6(Ipv6Addr::from_bits(bits))
            };
            let len = len % (max_len(addr) + 1);
            let prefix = Prefix::truncating(addr, len).unwrap();
            prop_assert!(prefix.contains_addr(addr));
            prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
            prop_assert_eq!(Prefix::from_bytes(&prefix.to_bytes()).unwrap(), prefix);
            let json = serde_json::to_string(&prefix).unwrap();
            prop_assert_eq!(serde_json::from_str::<Prefix>(&json).unwrap(), prefix);
        }

        #[test]
        fn decoding_any_bytes_gives_the_same_bytes_back_or_fails(bytes: [u8; PREFIX_BYTES]) {
            if let Ok(prefix) = Prefix::from_bytes(&bytes) {
                prop_assert_eq!(prefix.to_bytes(), bytes);
            }
        }
    }
}
