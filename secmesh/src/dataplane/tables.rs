//! The block, allow and watch maps: one prefix in, the right map written.

use std::{collections::BTreeSet, net::IpAddr};

use aya::maps::{HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};
use nix::errno::Errno;
use secmesh_common::block::{Addr4, Addr6, AllowEntry, BlockEntry, Net4, Net6};

use super::is_exact;
use crate::addr::Prefix;

/// Why a map write did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No room.
    #[error("the kernel's {map} map is full; raise [dataplane] {setting}")]
    Full {
        /// Which map.
        map: &'static str,
        /// The setting that sizes it.
        setting: &'static str,
    },
    /// Anything else.
    #[error("the kernel refused the write to its {map} map: {reason}")]
    Kernel {
        /// Which map.
        map: &'static str,
        /// The kernel's word.
        reason: String,
    },
}

fn net4(addr: [u8; 4], len: u8) -> Key<Net4> {
    Key::new(u32::from(len), Net4 { addr, pad: [0; 4] })
}

fn net6(addr: [u8; 16], len: u8) -> Key<Net6> {
    Key::new(u32::from(len), Net6 { addr })
}

pub(super) fn net4_prefix(key: &Key<Net4>) -> Option<Prefix> {
    let len = u8::try_from(key.prefix_len()).ok()?;
    Prefix::truncating(IpAddr::from(key.data().addr), len).ok()
}

pub(super) fn net6_prefix(key: &Key<Net6>) -> Option<Prefix> {
    let len = u8::try_from(key.prefix_len()).ok()?;
    Prefix::truncating(IpAddr::from(key.data().addr), len).ok()
}

fn errno(error: &MapError) -> Option<Errno> {
    match error {
        MapError::SyscallError(e) => e.io_error.raw_os_error().map(Errno::from_raw),
        _ => None,
    }
}

fn written(
    result: Result<(), MapError>,
    map: &'static str,
    setting: &'static str,
) -> Result<(), TableError> {
    result.map_err(|e| match errno(&e) {
        // A full hash answers E2BIG, a full trie ENOSPC (kernel/bpf/hashtab.c, lpm_trie.c).
        Some(Errno::E2BIG | Errno::ENOSPC) => TableError::Full { map, setting },
        _ => TableError::Kernel {
            map,
            reason: e.to_string(),
        },
    })
}

/// Whether it was there.
fn removed(result: Result<(), MapError>, map: &'static str) -> Result<bool, TableError> {
    match result {
        Err(e) if matches!(e, MapError::KeyNotFound) || errno(&e) == Some(Errno::ENOENT) => {
            Ok(false)
        }
        Err(e) => Err(TableError::Kernel {
            map,
            reason: e.to_string(),
        }),
        Ok(()) => Ok(true),
    }
}

/// The four block maps.
pub struct BlockTable {
    pub(super) exact4: HashMap<MapData, Addr4, BlockEntry>,
    pub(super) exact6: HashMap<MapData, Addr6, BlockEntry>,
    pub(super) prefix4: LpmTrie<MapData, Net4, BlockEntry>,
    pub(super) prefix6: LpmTrie<MapData, Net6, BlockEntry>,
    /// The prefixes that are in the tries. A trie's lookup answers with the longest match, so whether
    /// exactly this prefix is there must be known here.
    pub(super) known: BTreeSet<Prefix>,
}

impl BlockTable {
    /// Takes over what an earlier agent left in the tries.
    pub(super) fn learn(mut self) -> Self {
        let v4 = self
            .prefix4
            .keys()
            .flatten()
            .filter_map(|k| net4_prefix(&k));
        let v6 = self
            .prefix6
            .keys()
            .flatten()
            .filter_map(|k| net6_prefix(&k));
        self.known = v4.chain(v6).collect();
        self
    }

    /// Writes a block. Counters of an entry that is already there are carried over; a packet that is
    /// counted between our read and our write is lost to the count, never to the block.
    ///
    /// # Errors
    ///
    /// A full map, or the kernel's refusal. Then nothing changed.
    pub fn put(
        &mut self,
        prefix: &Prefix,
        expires_ns: u64,
        rule: u32,
        flags: u32,
    ) -> Result<(), TableError> {
        let old = self.get(prefix).unwrap_or_default();
        let entry = BlockEntry {
            expires_ns,
            rule,
            flags,
            ..old
        };
        match (prefix.addr(), is_exact(prefix)) {
            (IpAddr::V4(a), true) => written(
                self.exact4.insert(Addr4 { addr: a.octets() }, entry, 0),
                "BLOCK4",
                "max_blocks",
            ),
            (IpAddr::V6(a), true) => written(
                self.exact6.insert(Addr6 { addr: a.octets() }, entry, 0),
                "BLOCK6",
                "max_blocks",
            ),
            (IpAddr::V4(a), false) => written(
                self.prefix4
                    .insert(&net4(a.octets(), prefix.len()), entry, 0),
                "PREFIX4",
                "max_prefixes",
            ),
            (IpAddr::V6(a), false) => written(
                self.prefix6
                    .insert(&net6(a.octets(), prefix.len()), entry, 0),
                "PREFIX6",
                "max_prefixes",
            ),
        }?;
        if !is_exact(prefix) {
            self.known.insert(*prefix);
        }
        Ok(())
    }

    /// Removes a block, and says whether it was there.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn remove(&mut self, prefix: &Prefix) -> Result<bool, TableError> {
        let was_there = match (prefix.addr(), is_exact(prefix)) {
            (IpAddr::V4(a), true) => {
                removed(self.exact4.remove(&Addr4 { addr: a.octets() }), "BLOCK4")
            }
            (IpAddr::V6(a), true) => {
                removed(self.exact6.remove(&Addr6 { addr: a.octets() }), "BLOCK6")
            }
            (IpAddr::V4(a), false) => removed(
                self.prefix4.remove(&net4(a.octets(), prefix.len())),
                "PREFIX4",
            ),
            (IpAddr::V6(a), false) => removed(
                self.prefix6.remove(&net6(a.octets(), prefix.len())),
                "PREFIX6",
            ),
        }?;
        self.known.remove(prefix);
        Ok(was_there)
    }

    /// The entry of exactly this prefix.
    pub fn get(&self, prefix: &Prefix) -> Option<BlockEntry> {
        match (prefix.addr(), is_exact(prefix)) {
            (IpAddr::V4(a), true) => self.exact4.get(&Addr4 { addr: a.octets() }, 0).ok(),
            (IpAddr::V6(a), true) => self.exact6.get(&Addr6 { addr: a.octets() }, 0).ok(),
            (_, false) if !self.known.contains(prefix) => None,
            (IpAddr::V4(a), false) => self.prefix4.get(&net4(a.octets(), prefix.len()), 0).ok(),
            (IpAddr::V6(a), false) => self.prefix6.get(&net6(a.octets(), prefix.len()), 0).ok(),
        }
    }

    /// Number of IPv4 and IPv6 prefixes in the tries.
    pub fn prefix_counts(&self) -> (u32, u32) {
        let v4 = self.known.iter().filter(|p| p.is_ipv4()).count();
        let count = |n| u32::try_from(n).unwrap_or(u32::MAX);
        (count(v4), count(self.known.len() - v4))
    }

    /// All entries of the kernel, exact ones first.
    pub fn entries(&self) -> Vec<(Prefix, BlockEntry)> {
        let v4 = self
            .exact4
            .iter()
            .flatten()
            .map(|(k, e)| (Prefix::host(IpAddr::from(k.addr)), e));
        let v6 = self
            .exact6
            .iter()
            .flatten()
            .map(|(k, e)| (Prefix::host(IpAddr::from(k.addr)), e));
        let mut all: Vec<_> = v4.chain(v6).collect();
        all.extend(self.known.iter().filter_map(|p| Some((*p, self.get(p)?))));
        all
    }
}

/// The two allow maps.
pub struct AllowTable {
    pub(super) v4: LpmTrie<MapData, Net4, AllowEntry>,
    pub(super) v6: LpmTrie<MapData, Net6, AllowEntry>,
}

impl AllowTable {
    /// Makes the kernel's allowlist equal to `wanted`: new entries go in before old ones come out.
    ///
    /// # Errors
    ///
    /// A full map, or the kernel's refusal.
    pub fn replace(&mut self, wanted: &[Prefix]) -> Result<(), TableError> {
        let present = self.prefixes();
        for prefix in wanted.iter().filter(|p| !present.contains(p)) {
            let entry = AllowEntry::default();
            match prefix.addr() {
                IpAddr::V4(a) => written(
                    self.v4.insert(&net4(a.octets(), prefix.len()), entry, 0),
                    "ALLOW4",
                    "the number of [allow] addresses is limited to 4096",
                )?,
                IpAddr::V6(a) => written(
                    self.v6.insert(&net6(a.octets(), prefix.len()), entry, 0),
                    "ALLOW6",
                    "the number of [allow] addresses is limited to 4096",
                )?,
            }
        }
        for prefix in present.iter().filter(|p| !wanted.contains(p)) {
            match prefix.addr() {
                IpAddr::V4(a) => {
                    removed(self.v4.remove(&net4(a.octets(), prefix.len())), "ALLOW4")?;
                }
                IpAddr::V6(a) => {
                    removed(self.v6.remove(&net6(a.octets(), prefix.len())), "ALLOW6")?;
                }
            }
        }
        Ok(())
    }

    fn prefixes(&self) -> Vec<Prefix> {
        let v4 = self.v4.keys().flatten().filter_map(|k| net4_prefix(&k));
        let v6 = self.v6.keys().flatten().filter_map(|k| net6_prefix(&k));
        v4.chain(v6).collect()
    }
}

/// The two watch maps.
pub struct WatchTable {
    pub(super) v4: HashMap<MapData, Addr4, u64>,
    pub(super) v6: HashMap<MapData, Addr6, u64>,
}

impl WatchTable {
    /// Reports every packet of `addr` until `until_ns` (`CLOCK_MONOTONIC`).
    ///
    /// # Errors
    ///
    /// A full map (1,024 sources are watched at once), or the kernel's refusal.
    pub fn put(&mut self, addr: IpAddr, until_ns: u64) -> Result<(), TableError> {
        match addr {
            IpAddr::V4(a) => written(
                self.v4.insert(Addr4 { addr: a.octets() }, until_ns, 0),
                "WATCH4",
                "nothing: 1024 sources are watched at once",
            ),
            IpAddr::V6(a) => written(
                self.v6.insert(Addr6 { addr: a.octets() }, until_ns, 0),
                "WATCH6",
                "nothing: 1024 sources are watched at once",
            ),
        }
    }

    /// Stops reporting.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn remove(&mut self, addr: IpAddr) -> Result<(), TableError> {
        match addr {
            IpAddr::V4(a) => removed(self.v4.remove(&Addr4 { addr: a.octets() }), "WATCH4"),
            IpAddr::V6(a) => removed(self.v6.remove(&Addr6 { addr: a.octets() }), "WATCH6"),
        }
        .map(drop)
    }
}
