//! The certified records from where this node began to the current one, bounded.

use std::collections::{BTreeMap, BTreeSet};

use super::cert::CertifiedEpoch;
use super::removal::SignedRemoval;
use super::weights::BOOTSTRAP_VOTERS;
use crate::mesh::crypto;
use crate::mesh::ids::Hash;
use crate::mesh::roster::MAX_NODES;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/epochs/1";
const CHECKSUM: usize = 32;

/// Most epochs that are kept.
pub const MAX_CHAIN: usize = 2_048;
/// Most bytes of them.
pub const MAX_CHAIN_BYTES: usize = 16 << 20;

/// Most epochs that a later one is tried to be verified from.
pub const MAX_STONES: usize = 64;
/// Most epochs in a file: where nothing can be bridged, or much is pinned, more than [`MAX_CHAIN`] are kept.
const MAX_STORED: usize = 4 * MAX_CHAIN;

/// Certified epochs in ascending order of their numbers. Those in the middle may be missing. The one after a gap
/// is a *link*: it was not verified itself, but the one that follows it is there, names it by hash, and was
/// signed by enough weight of the link's roster and by enough of the last epoch before the gap. Where a node began
/// with an epoch that it was vouched for, those before that one are there by their hashes alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    epochs: Vec<CertifiedEpoch>,
    /// Their numbers, by hash.
    numbers: BTreeMap<Hash, u64>,
    bytes: usize,
}

impl Chain {
    /// The latest epoch.
    pub fn tip(&self) -> Option<&CertifiedEpoch> {
        self.epochs.last()
    }

    /// All that are kept, first to last.
    pub fn epochs(&self) -> &[CertifiedEpoch] {
        &self.epochs
    }

    /// Those after `number`, first to last.
    pub fn after(&self, number: u64) -> &[CertifiedEpoch] {
        let at = self.epochs.partition_point(|e| e.record.number <= number);
        self.epochs.get(at..).unwrap_or_default()
    }

    /// The kept epoch with this hash.
    pub fn find(&self, hash: &Hash) -> Option<&CertifiedEpoch> {
        let number = self.numbers.get(hash)?;
        let at = self
            .epochs
            .binary_search_by_key(number, |e| e.record.number)
            .ok()?;
        self.epochs.get(at)
    }

    /// Appends an epoch that was verified. False if it is not later than the last.
    pub fn push(&mut self, epoch: CertifiedEpoch) -> bool {
        if self
            .tip()
            .is_some_and(|tip| tip.record.number >= epoch.record.number)
        {
            return false;
        }
        self.bytes = self.bytes.saturating_add(epoch.to_bytes().len());
        self.numbers
            .insert(epoch.record.hash(), epoch.record.number);
        self.epochs.push(epoch);
        true
    }

    /// Puts epochs, each of which follows the one before it, where they were skipped. The last of them is the one
    /// after the gap, which takes its place: its signatures may not have been checked before. False, and nothing is
    /// changed, if it is another, or the first is not after the one before the gap.
    pub fn fill_gap(&mut self, row: &[CertifiedEpoch]) -> bool {
        let (Some(first), Some(last)) = (row.first(), row.last()) else {
            return false;
        };
        let number = last.record.number;
        let at = self.epochs.partition_point(|e| e.record.number < number);
        let before = at.checked_sub(1).and_then(|before| self.epochs.get(before));
        let fits = self.is_link(at)
            && self.epochs.get(at).map(|e| e.record.hash()) == Some(last.record.hash())
            && before.is_some_and(|before| before.record.number < first.record.number);
        if !fits {
            return false;
        }
        let gone: Vec<CertifiedEpoch> = self.epochs.splice(at..=at, row.iter().cloned()).collect();
        for epoch in &gone {
            self.bytes = self.bytes.saturating_sub(epoch.to_bytes().len());
        }
        for epoch in row {
            self.bytes = self.bytes.saturating_add(epoch.to_bytes().len());
            self.numbers
                .insert(epoch.record.hash(), epoch.record.number);
        }
        true
    }

    /// Whether more is kept than should be.
    pub const fn is_long(&self) -> bool {
        self.epochs.len() > MAX_CHAIN || self.bytes > MAX_CHAIN_BYTES
    }

    /// Puts epochs before the first, each of which names the one before it by hash, if the first names the last of
    /// them. False, and nothing is changed, if it does not.
    pub fn put_before(&mut self, earlier: &[CertifiedEpoch]) -> bool {
        let reaches = earlier.last().zip(self.epochs.first());
        if !reaches.is_some_and(|(last, first)| names(first, last)) {
            return false;
        }
        for epoch in earlier {
            self.bytes = self.bytes.saturating_add(epoch.to_bytes().len());
            self.numbers
                .insert(epoch.record.hash(), epoch.record.number);
        }
        self.epochs.splice(0..0, earlier.iter().cloned());
        true
    }

    /// The latest gap: the epoch before it, and the one after it.
    pub fn last_gap(&self) -> Option<(&CertifiedEpoch, &CertifiedEpoch)> {
        let mut pairs = self.epochs.windows(2).rev();
        pairs.find_map(|pair| match pair {
            [before, after] if !follows(before, after) => Some((before, after)),
            _ => None,
        })
    }

    /// Whether so many more may come before those there are.
    pub const fn has_room(&self, more: usize) -> bool {
        self.epochs.len().saturating_add(more) <= MAX_CHAIN && self.bytes <= MAX_CHAIN_BYTES / 4 * 3
    }

    /// Drops the earliest epoch that can be done without; the last two, the last `keep`, those in `pinned`, the
    /// first and that of the number `begins` always stay. Of those before `begins` the first goes, since only
    /// their hashes hold them. `bridged`
    /// (earlier, link, later) says whether the signatures on `later`, which follows `link`, also carry
    /// `earlier`. From an epoch of too few nodes no gap leads to one of more (see [`Chain::stones`]). False if none can.
    pub fn shorten(
        &mut self,
        keep: usize,
        begins: u64,
        pinned: &BTreeSet<u64>,
        bridged: impl Fn(&CertifiedEpoch, &CertifiedEpoch, &CertifiedEpoch) -> bool,
    ) -> bool {
        let droppable = self.epochs.len().saturating_sub(keep);
        let number = |at: usize| self.epochs.get(at).map_or(0, |e| e.record.number);
        if droppable > 0 && number(0) < begins {
            self.drop_at(0);
            return true;
        }
        let at = self.epochs.windows(4).enumerate().position(|(at, w)| {
            let [earlier, _, link, later] = w else {
                return false;
            };
            at + 1 < droppable
                && number(at + 1) > begins
                && !pinned.contains(&number(at + 1))
                && !self.is_link(at)
                && follows(link, later)
                && (!is_weak(earlier) || is_weak(later))
                && bridged(earlier, link, later)
        });
        let Some(at) = at else { return false };
        self.drop_at(at + 1);
        true
    }

    fn drop_at(&mut self, at: usize) {
        let dropped = self.epochs.remove(at);
        self.numbers.remove(&dropped.record.hash());
        self.bytes = self.bytes.saturating_sub(dropped.to_bytes().len());
    }

    /// Whether the epoch at this place comes after a gap.
    fn is_link(&self, at: usize) -> bool {
        let before = at.checked_sub(1).and_then(|before| self.epochs.get(before));
        before
            .zip(self.epochs.get(at))
            .is_some_and(|(before, this)| !follows(before, this))
    }

    /// Verified epochs that a later one may be verified from: the latest, then those before the gaps, latest
    /// first, at most [`MAX_STONES`]. A peer's gap may begin earlier than where this node stands. Epochs of too few
    /// nodes to withstand a liar are among them only as long as the latest is one, too: the first one is often a single
    /// node's, and its key would be worth the whole mesh for ever.
    pub fn stones(&self) -> impl Iterator<Item = &CertifiedEpoch> {
        self.stones_until(u64::MAX)
    }

    /// The same, as they were with the epochs up to `number`.
    pub fn stones_until(&self, number: u64) -> impl Iterator<Item = &CertifiedEpoch> {
        let len = self.epochs.partition_point(|e| e.record.number <= number);
        let epochs = self.epochs.get(..len).unwrap_or_default();
        let tip = epochs.last();
        let weak_too = tip.is_some_and(is_weak);
        let gaps = (0..len)
            .rev()
            .filter(|at| self.is_link(at.saturating_add(1)) && !self.is_link(*at))
            .filter_map(|at| epochs.get(at))
            .filter(move |epoch| weak_too || !is_weak(epoch));
        tip.into_iter().chain(gaps).take(MAX_STONES)
    }
}

/// Whether so few have weight that one liar among them could make up the next epochs.
fn is_weak(epoch: &CertifiedEpoch) -> bool {
    let members = epoch.record.members.iter();
    members.filter(|m| m.weight > 0).count() < BOOTSTRAP_VOTERS
}

/// Whether an epoch comes right after another one and names it by hash.
pub fn names(this: &CertifiedEpoch, before: &CertifiedEpoch) -> bool {
    follows(before, this) && this.record.previous == before.record.hash()
}

fn follows(before: &CertifiedEpoch, this: &CertifiedEpoch) -> bool {
    before.record.number.checked_add(1) == Some(this.record.number)
}

/// What is on the disk of all this: `epochs.bin`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoredEpochs {
    /// The epochs, first to last.
    pub epochs: Vec<CertifiedEpoch>,
    /// When this node learned of the last one, microseconds since 1970.
    pub since_unix_us: u64,
    /// Nodes that the operator removed.
    pub removals: Vec<SignedRemoval>,
}

impl StoredEpochs {
    /// Canonical bytes, with a checksum.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.u64(self.since_unix_us);
        e.u16(u16::try_from(self.epochs.len()).unwrap_or(u16::MAX));
        for epoch in &self.epochs {
            let bytes = epoch.to_bytes();
            e.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                .fixed(&bytes);
        }
        e.u16(u16::try_from(self.removals.len()).unwrap_or(u16::MAX));
        for removal in &self.removals {
            let bytes = removal.to_bytes();
            e.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                .fixed(&bytes);
        }
        let mut bytes = e.finish();
        let sum = crypto::sha256(&bytes);
        bytes.extend_from_slice(&sum);
        bytes
    }

    /// Reads [`StoredEpochs::to_bytes`]; nothing is verified but the checksum.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let changed = || WireError::Invalid {
            field: "checksum",
            why: "the content was changed or cut off",
        };
        let (content, sum) = bytes.split_last_chunk::<CHECKSUM>().ok_or_else(changed)?;
        if crypto::sha256(content) != *sum {
            return Err(changed());
        }
        let mut d = Decoder::tagged(content, TAG)?;
        let mut stored = Self {
            since_unix_us: d.u64("since")?,
            ..Self::default()
        };
        for _ in 0..count(&mut d, "epochs", MAX_STORED)? {
            let part = part(&mut d)?;
            stored.epochs.push(CertifiedEpoch::from_bytes(part)?);
        }
        for _ in 0..count(&mut d, "removals", MAX_NODES)? {
            let part = part(&mut d)?;
            stored.removals.push(SignedRemoval::from_bytes(part)?);
        }
        d.finish()?;
        Ok(stored)
    }
}

fn count(d: &mut Decoder<'_>, field: &'static str, max: usize) -> Result<usize, WireError> {
    let len = usize::from(d.u16(field)?);
    if len > max {
        return Err(WireError::TooLong { field, len, max });
    }
    Ok(len)
}

fn part<'a>(d: &mut Decoder<'a>) -> Result<&'a [u8], WireError> {
    let len = usize::try_from(d.u32("length")?).unwrap_or(usize::MAX);
    d.take_exactly("part", len)
}
