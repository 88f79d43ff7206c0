//! Growing a tree.

use super::{Hash, MerkleError, Nodes, empty_root, leaf_hash, node_hash};

/// The right edge of a tree: the roots of its complete subtrees, one per bit of the size. Enough to
/// append and to know the root, in `32 · log2(size)` bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    /// The largest subtree, which is the first, at the front.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// Takes up a tree where [`Frontier::peaks`] left it. `None` when the number of hashes is not
    /// that of the bits in `size`.
    pub fn resume(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (usize::try_from(size.count_ones()).ok()? == peaks.len()).then_some(Self { size, peaks })
    }

    /// Appends a leaf.
    pub fn push(&mut self, data: &[u8]) {
        self.push_hash(leaf_hash(data));
    }

    /// Appends a leaf, given its hash.
    pub fn push_hash(&mut self, leaf: Hash) {
        self.push_with(leaf, |_, _| {});
    }

    /// Appends a leaf and tells `completed` each subtree that it completes, the leaf first, by level
    /// and hash.
    pub(crate) fn push_with(&mut self, leaf: Hash, mut completed: impl FnMut(u32, &Hash)) {
        let mut hash = leaf;
        completed(0, &hash);
        // Each trailing one of the old size is a subtree that now has its sibling.
        for level in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
                completed(level.saturating_add(1), &hash);
            }
        }
        self.peaks.push(hash);
        self.size = self.size.saturating_add(1);
    }

    /// Leaves so far.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Roots of the complete subtrees, the largest first.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// The complete subtree at `level` that ends exactly where a peak does, if it is a peak.
    pub fn peak(&self, level: u32, index: u64) -> Option<Hash> {
        // A peak at a level is there when the size has that bit, and begins where the higher bits end.
        let shifted = self.size.checked_shr(level)?;
        if shifted & 1 == 0 || shifted.saturating_sub(1) != index {
            return None;
        }
        let before = usize::try_from(shifted.count_ones()).ok()?.checked_sub(1)?;
        self.peaks.get(before).copied()
    }

    /// Root of the whole tree.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else {
            return empty_root();
        };
        peaks.fold(*last, |right, left| node_hash(left, &right))
    }
}

/// A tree with all its nodes in memory, 64 bytes per leaf. For logs that are small or that are
/// answered from often; a ledger on a disk uses a [`Frontier`] and its file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    frontier: Frontier,
    /// Complete subtrees by level, in order.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// Appends a leaf.
    pub fn push(&mut self, data: &[u8]) {
        self.push_hash(leaf_hash(data));
    }

    /// Appends a leaf, given its hash.
    pub fn push_hash(&mut self, leaf: Hash) {
        let levels = &mut self.levels;
        self.frontier.push_with(leaf, |level, hash| {
            let level = usize::try_from(level).unwrap_or(usize::MAX);
            match levels.get_mut(level) {
                Some(nodes) => nodes.push(*hash),
                None => levels.push(vec![*hash]),
            }
        });
    }

    /// Leaves so far.
    pub const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Root of the whole tree.
    pub fn root(&self) -> Hash {
        self.frontier.root()
    }

    /// Root when the tree had `size` leaves.
    ///
    /// # Errors
    /// [`MerkleError::OutOfRange`] when it has not had so many yet.
    pub fn root_at(&self, size: u64) -> Result<Hash, MerkleError> {
        self.within(size)?;
        super::root_at(self, size)
    }

    /// Proves that leaf `index` is in the tree of the first `size` leaves.
    ///
    /// # Errors
    /// [`MerkleError::OutOfRange`].
    pub fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Hash>, MerkleError> {
        self.within(size)?;
        super::inclusion(self, index, size)
    }

    /// Proves that the tree of the first `old` leaves is the beginning of that of the first `new`.
    ///
    /// # Errors
    /// [`MerkleError::OutOfRange`].
    pub fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, MerkleError> {
        self.within(new)?;
        super::consistency(self, old, new)
    }

    /// Hash of leaf `index`.
    pub fn leaf(&self, index: u64) -> Option<Hash> {
        self.node(0, index).ok()
    }

    const fn within(&self, size: u64) -> Result<(), MerkleError> {
        if size <= self.size() {
            return Ok(());
        }
        Err(MerkleError::OutOfRange {
            index: size,
            size: self.size(),
        })
    }
}

impl Nodes for Tree {
    fn node(&self, level: u32, index: u64) -> Result<Hash, MerkleError> {
        let at = |n: u64| usize::try_from(n).ok();
        self.levels
            .get(usize::try_from(level).unwrap_or(usize::MAX))
            .and_then(|nodes| nodes.get(at(index)?))
            .copied()
            .ok_or(MerkleError::OutOfRange {
                index: index.checked_shl(level).unwrap_or(u64::MAX),
                size: self.size(),
            })
    }
}
