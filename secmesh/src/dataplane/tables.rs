//! The block, allow and watch maps: one prefix in, the right map written.

use std::{collections::BTreeSet, net::IpAddr};

use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError, lpm_trie::Key};
use nix::errno::Errno;
use secmesh_common::{
    block::{Addr4, Addr6, AllowEntry, BlockEntry, Net4, Net6},
    hot::{self, HotSource},
    packet::{Family, Words},
};
use tracing::warn;

use super::{DataplaneError, allow_scan::AllowScan, cell::ConfigCell, guard::Guard, is_exact};
use crate::addr::Prefix;

/// An IPv6 address as the packet parser has it.
pub(super) fn words(bytes: [u8; 16]) -> Words {
    let mut words = [0; 4];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(chunk.try_into().unwrap_or_default());
    }
    words
}

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
    /// Not enough room for all of it; nothing was changed.
    #[error(
        "{wanted} entries do not fit the kernel's {map} table of {room}; raise [dataplane] {setting} and restart the agent"
    )]
    NoRoom {
        /// Which table.
        map: &'static str,
        /// Entries.
        wanted: usize,
        /// How many it takes.
        room: usize,
        /// The setting that sizes it.
        setting: &'static str,
    },
    /// A hash table found no place for a host although it is not full: hardly possible below its limit.
    #[error(
        "a list table is too crowded; raise [dataplane] max_list_addresses and restart the agent"
    )]
    Crowded,
    /// Anything else.
    #[error("the kernel refused the write to its {map} map: {reason}")]
    Kernel {
        /// Which map.
        map: &'static str,
        /// The kernel's word.
        reason: String,
    },
}

/// The configuration could not be written.
#[expect(clippy::needless_pass_by_value, reason = "what `map_err` wants")]
pub(super) fn unconfigured(error: DataplaneError) -> TableError {
    TableError::Kernel {
        map: "CONFIG",
        reason: error.to_string(),
    }
}

pub(super) fn net4(addr: [u8; 4], len: u8) -> Key<Net4> {
    Key::new(u32::from(len), Net4 { addr, pad: [0; 4] })
}

pub(super) fn net6(addr: [u8; 16], len: u8) -> Key<Net6> {
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

pub(super) fn written(
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
pub(super) fn removed(result: Result<(), MapError>, map: &'static str) -> Result<bool, TableError> {
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
    pub(super) guard: Guard,
    /// Sources that are being dropped now, with counts that their entries have not got yet.
    pub(super) hot: Array<MapData, HotSource>,
    pub(super) config: ConfigCell,
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
        let singles4 = self.exact4.keys().flatten().map(|k| IpAddr::from(k.addr));
        let singles6 = self.exact6.keys().flatten().map(|k| IpAddr::from(k.addr));
        let singles = singles4.chain(singles6).map(Prefix::host);
        for prefix in self.known.iter().copied().chain(singles) {
            if let Err(error) = self.guard.add(&prefix) {
                warn!(%prefix, %error, "a block of an earlier agent is not guarded; it is written again soon");
            }
        }
        self
    }

    /// Writes a block. Counters of an entry that is already there are carried over; a packet that is
    /// counted between our read and our write is lost to the count, never to the block.
    ///
    /// # Errors
    ///
    /// A full map, or the kernel's refusal. Then nothing changed; but if it is the configuration's entry that is
    /// refused, the block is there, and in force from the next timer tick on.
    pub fn put(
        &mut self,
        prefix: &Prefix,
        expires_ns: u64,
        rule: u32,
        flags: u32,
    ) -> Result<(), TableError> {
        let old = self.get(prefix);
        let is_new = old.is_none();
        let old = old.unwrap_or_default();
        self.guard.add(prefix)?;
        let entry = BlockEntry {
            expires_ns,
            rule,
            flags,
            ..old
        };
        let result = match (prefix.addr(), is_exact(prefix)) {
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
        };
        if let Err(error) = result {
            if is_new {
                self.guard.remove(prefix)?;
            }
            return Err(error);
        }
        self.cool(prefix)?;
        if !is_exact(prefix) {
            self.known.insert(*prefix);
        }
        self.config.renew().map_err(unconfigured)
    }

    /// Removes a block; one that is not there is no error.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn remove(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        self.remove_stray(prefix).map(drop)
    }

    /// Removes an entry, and the guard if this table put it there, and says whether it was there.
    ///
    /// # Errors
    ///
    /// The kernel's refusal.
    pub fn remove_stray(&mut self, prefix: &Prefix) -> Result<bool, TableError> {
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
        self.cool(prefix)?;
        self.guard.remove(prefix)?;
        Ok(was_there)
    }

    /// Empties the hot slot of a single address, so that the kernel asks its map entry again.
    fn cool(&mut self, prefix: &Prefix) -> Result<(), TableError> {
        if let Some((place, _)) = self.hot_source(prefix) {
            self.hot
                .set(place, HotSource::default(), 0)
                .map_err(|e| TableError::Kernel {
                    map: "HOT",
                    reason: e.to_string(),
                })?;
        }
        Ok(())
    }

    /// The hot slot of a single address, if it is there.
    fn hot_source(&self, prefix: &Prefix) -> Option<(u32, HotSource)> {
        if !is_exact(prefix) {
            return None;
        }
        let (addr, family) = match prefix.addr() {
            IpAddr::V4(a) => ([u32::from_ne_bytes(a.octets()), 0, 0, 0], Family::V4),
            IpAddr::V6(a) => (words(a.octets()), Family::V6),
        };
        let place = hot::place(&addr, family, self.config.get().table_seed);
        let hot = self.hot.get(&place, 0).ok()?;
        (hot.addr == addr && hot.family == family as u32).then_some((place, hot))
    }

    /// The entry of exactly this prefix, with the counts that the kernel has not written into it yet.
    pub fn get(&self, prefix: &Prefix) -> Option<BlockEntry> {
        // Read before the entry: counts that move from here to there meanwhile are seen twice rather than
        // never, until the next look.
        let hot = self.hot_source(prefix);
        let mut entry = self.entry(prefix)?;
        if let Some((_, hot)) = hot {
            entry.hits = entry.hits.saturating_add(hot.hits.into());
            entry.bytes = entry.bytes.saturating_add(hot.bytes);
            entry.last_hit_ns = entry.last_hit_ns.max(hot.last_ns);
        }
        Some(entry)
    }

    pub(super) fn entry(&self, prefix: &Prefix) -> Option<BlockEntry> {
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
        let mut all: Vec<_> = v4
            .chain(v6)
            .map(|(prefix, entry)| (prefix, self.get(&prefix).unwrap_or(entry)))
            .collect();
        all.extend(self.known.iter().filter_map(|p| Some((*p, self.get(p)?))));
        all
    }
}

/// The two allow maps.
pub struct AllowTable {
    pub(super) v4: LpmTrie<MapData, Net4, AllowEntry>,
    pub(super) v6: LpmTrie<MapData, Net6, AllowEntry>,
    pub(super) config: ConfigCell,
    pub(super) scan: AllowScan,
}

impl AllowTable {
    /// A number that changes with the allowlist: what lists were compiled against.
    pub fn generation(&self) -> u32 {
        self.config.get().allow_generation
    }

    /// Makes the kernel's allowlist equal to `wanted`: new entries go in before old ones come out.
    ///
    /// # Errors
    ///
    /// A full map, or the kernel's refusal.
    pub fn replace(&mut self, wanted: &[Prefix]) -> Result<(), TableError> {
        self.scan = AllowScan::default();
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
        // Nothing that was known of blocked sources holds any more: the kernel asks the allowlist again.
        if wanted.iter().any(|p| !present.contains(p)) {
            self.config
                .update(|c| {
                    c.allow_generation = c.allow_generation.wrapping_add(1);
                    c.hot_generation = c.hot_generation.wrapping_add(1);
                })
                .map_err(unconfigured)?;
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
