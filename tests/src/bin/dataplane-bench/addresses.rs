//! Who is blocked: made up, the same in every run.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::Result;
use secmesh::addr::Prefix;

/// A random sequence: xorshift64.
pub struct Random(u64);

impl Random {
    /// Starts one.
    pub fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or_default() % end.max(1)
    }
}

/// A blocklist of one family.
#[derive(Debug, Clone)]
pub struct Blocked {
    /// Single addresses, in no order.
    pub hosts: Vec<IpAddr>,
    /// Prefixes, which overlap with nothing.
    pub prefixes: Vec<Prefix>,
}

impl Blocked {
    /// So many of each.
    pub fn new(ipv6: bool, hosts: u32, prefixes: u32) -> Result<Self> {
        let mut random = Random::new(0x0b10_cced);
        Ok(Self {
            hosts: addresses(ipv6, hosts, &mut random),
            prefixes: nets(ipv6, prefixes, &mut random)?,
        })
    }

    /// `count` sources in random order, nine of ten an address of the list, the others in its prefixes.
    pub fn sources(&self, count: usize) -> Vec<IpAddr> {
        let mut random = Random::new(0x0dd5);
        (0..count)
            .filter_map(|_| {
                if self.prefixes.is_empty() || random.below(10) > 0 {
                    return self.hosts.get(random.below(self.hosts.len())).copied();
                }
                let prefix = self.prefixes.get(random.below(self.prefixes.len()))?;
                Some(within(prefix, random.next()))
            })
            .collect()
    }
}

/// Distinct addresses of 11.0.0.0 to 74.255.255.255, or of `2400::/8`: as wide as lists are, so that who is
/// benign has no neighbour on them but by chance.
pub fn addresses(ipv6: bool, count: u32, random: &mut Random) -> Vec<IpAddr> {
    let count = count as usize;
    let mut seen = BTreeSet::new();
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let address = address(ipv6, random);
        if seen.insert(address) {
            all.push(address);
        }
    }
    all
}

/// One of them.
pub fn address(ipv6: bool, random: &mut Random) -> IpAddr {
    let high = random.next();
    if ipv6 {
        let low = (u128::from(high) << 56) | u128::from(random.next() >> 8);
        Ipv6Addr::from((0x24_u128 << 120) | low).into()
    } else {
        let [first, rest @ ..] = high_word(high).to_be_bytes();
        let [second, third, fourth] = rest;
        Ipv4Addr::new(11 + (first & 0x3f), second, third, fourth).into()
    }
}

/// The high half of a random number, which is the better one.
fn high_word(random: u64) -> u32 {
    u32::try_from(random >> 32).unwrap_or_default()
}

/// Prefixes of several lengths, no two in one /20 of 76.0.0.0 to 107.255.255.255 or one /48 of
/// `2600::/12`.
fn nets(ipv6: bool, count: u32, random: &mut Random) -> Result<Vec<Prefix>> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    while all.len() < count as usize {
        let [first, second, third, _] = high_word(random.next()).to_be_bytes();
        let (address, lengths): (IpAddr, [u8; 3]) = if ipv6 {
            let net = u16::from_be_bytes([first, second]);
            (
                Ipv6Addr::new(0x2600 | u16::from(third & 0xf), net, 0, 0, 0, 0, 0, 0).into(),
                [48, 56, 64],
            )
        } else {
            (
                Ipv4Addr::new(76 + (first & 0x1f), second, third & 0xf0, 0).into(),
                [24, 22, 28],
            )
        };
        let length = lengths.get(all.len() % 3).copied().unwrap_or(64);
        if seen.insert(address) {
            all.push(format!("{address}/{length}").parse()?);
        }
    }
    Ok(all)
}

fn within(prefix: &Prefix, random: u64) -> IpAddr {
    match prefix.addr() {
        IpAddr::V4(first) => {
            let free = u32::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
            let low = u32::try_from(random >> 32).unwrap_or_default() & free;
            Ipv4Addr::from(u32::from(first) | low).into()
        }
        IpAddr::V6(first) => {
            let free = u128::MAX.checked_shr(prefix.len().into()).unwrap_or(0);
            Ipv6Addr::from(u128::from(first) | (u128::from(random) << 32) & free).into()
        }
    }
}
