//! Comparing the kernel's allowlist with what it should be, a slice at a time.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
};

use aya::maps::IterableMap as _;

use super::{AllowTable, Differences, TableError, bpf};
use crate::addr::Prefix;

/// Bytes of a trie's key: prefix length, address, and for IPv4 padding.
const KEY4: usize = 4 + 8;
const KEY6: usize = 4 + 16;
/// Each trie has room for as many entries (`ALLOW4`, `ALLOW6`); where a key goes under the reader's feet the kernel
/// begins anew, so twice that is read at most.
const MOST: usize = 2 * 2 * 4096;

/// How far a comparison is, and what it has seen.
#[derive(Debug, Default)]
pub(super) struct AllowScan {
    in_v6: bool,
    key: Option<Vec<u8>>,
    seen: BTreeSet<Prefix>,
    steps: usize,
}

impl AllowTable {
    /// Looks at the next `slice` entries. After the last one the differences from `wanted` are put right, and
    /// told; before, `None`. [`AllowTable::replace`] begins the comparison anew.
    ///
    /// # Errors
    ///
    /// The kernel's refusal; the comparison begins anew then.
    pub fn audit(
        &mut self,
        wanted: &[Prefix],
        slice: usize,
    ) -> Result<Option<Differences>, TableError> {
        let mut scan = std::mem::take(&mut self.scan);
        for _ in 0..slice {
            if !self.step(&mut scan)? {
                let wanted_set: BTreeSet<Prefix> = wanted.iter().copied().collect();
                let found = Differences {
                    added: wanted_set.difference(&scan.seen).count(),
                    removed: scan.seen.difference(&wanted_set).count(),
                };
                if found.any() {
                    self.replace(wanted)?;
                }
                return Ok(Some(found));
            }
        }
        self.scan = scan;
        Ok(None)
    }

    /// Reads the next key; `false` after the last one.
    fn step(&self, scan: &mut AllowScan) -> Result<bool, TableError> {
        let (map, name, size) = if scan.in_v6 {
            (self.v6.map().fd().as_fd(), "ALLOW6", KEY6)
        } else {
            (self.v4.map().fd().as_fd(), "ALLOW4", KEY4)
        };
        let refused = |e: io::Error| TableError::Kernel {
            map: name,
            reason: e.to_string(),
        };
        let next = bpf::next_key(map, scan.key.as_deref(), size).map_err(refused)?;
        scan.steps += 1;
        if let Some(key) = next.filter(|_| scan.steps < MOST) {
            scan.seen.extend(prefix_of(&key, scan.in_v6));
            scan.key = Some(key);
            return Ok(true);
        }
        scan.key = None;
        Ok(!std::mem::replace(&mut scan.in_v6, true))
    }
}

/// The prefix of a trie's key.
fn prefix_of(key: &[u8], v6: bool) -> Option<Prefix> {
    let (length, rest) = key.split_at_checked(4)?;
    let length = u8::try_from(u32::from_ne_bytes(length.try_into().ok()?)).ok()?;
    let addr = if v6 {
        let bytes: [u8; 16] = rest.get(..16)?.try_into().ok()?;
        IpAddr::V6(Ipv6Addr::from(bytes))
    } else {
        let bytes: [u8; 4] = rest.get(..4)?.try_into().ok()?;
        IpAddr::V4(Ipv4Addr::from(bytes))
    };
    Prefix::truncating(addr, length).ok()
}

#[cfg(test)]
mod tests {
    use super::prefix_of;

    #[test]
    fn keys_of_both_tries_are_read() {
        let mut key = 24u32.to_ne_bytes().to_vec();
        key.extend([198, 51, 100, 0, 0, 0, 0, 0]);
        assert_eq!(
            prefix_of(&key, false),
            Some("198.51.100.0/24".parse().unwrap())
        );
        assert_eq!(prefix_of(&key, true), None, "too short");
        let mut key = 32u32.to_ne_bytes().to_vec();
        key.extend([0x20, 1, 0x0d, 0xb8]);
        key.extend([0; 12]);
        assert_eq!(
            prefix_of(&key, true),
            Some("2001:db8::/32".parse().unwrap())
        );
        assert_eq!(prefix_of(&[1, 2], false), None);
    }
}
