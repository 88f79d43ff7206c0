//! The Merkle tree of a ledger: little in memory, the rest in the segments.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::files;
use super::segment::{self, Each, EntryRef};
use crate::merkle::{Frontier, Hash, MerkleError, Nodes, node_hash};

/// Subtrees from this level on are kept in memory: one byte per entry. What is below is made from the
/// entries when a proof needs it.
const KEPT_FROM: u32 = 6;
/// Segments whose leaf hashes are kept for the next proof.
const CACHED: usize = 2;

/// Leaf hashes of one segment.
#[derive(Debug, Clone)]
struct Leaves {
    first: u64,
    hashes: Arc<Vec<Hash>>,
}

/// The tree of a log whose oldest segments may be gone.
#[derive(Debug)]
pub(super) struct LogTree {
    dir: PathBuf,
    /// The log before the first segment that is kept.
    base: Frontier,
    frontier: Frontier,
    upper: BTreeMap<(u32, u64), Hash>,
    /// Leaf hashes of the segment that is written to.
    current: Vec<Hash>,
    /// Leaf number from which `current` counts.
    current_first: u64,
    /// First leaf of each older segment.
    closed: Vec<u64>,
    cache: Mutex<VecDeque<Leaves>>,
}

impl LogTree {
    pub(super) fn new(dir: PathBuf, base: Frontier) -> Self {
        Self {
            dir,
            current_first: base.size(),
            frontier: base.clone(),
            base,
            upper: BTreeMap::new(),
            current: Vec::new(),
            closed: Vec::new(),
            cache: Mutex::default(),
        }
    }

    pub(super) fn push(&mut self, leaf: Hash) {
        let (at, upper) = (self.frontier.size(), &mut self.upper);
        self.frontier.push_with(leaf, |level, hash| {
            if level >= KEPT_FROM {
                upper.insert((level, at >> level), *hash);
            }
        });
        self.current.push(leaf);
    }

    pub(super) const fn frontier(&self) -> &Frontier {
        &self.frontier
    }

    pub(super) const fn size(&self) -> u64 {
        self.frontier.size()
    }

    /// Leaves before the first one that is kept.
    pub(super) const fn dropped(&self) -> u64 {
        self.base.size()
    }

    /// The segment written to is closed, the next begins here.
    pub(super) fn next_segment(&mut self) {
        self.closed.push(self.current_first);
        self.current_first = self.frontier.size();
        self.current.clear();
    }

    /// The segments before the one that begins with `base` are gone.
    pub(super) fn drop_before(&mut self, base: Frontier) {
        let first = base.size();
        self.closed.retain(|start| *start >= first);
        self.upper
            .retain(|(level, index), _| index.saturating_add(1) << level > first);
        self.base = base;
        self.cache
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    fn leaf(&self, index: u64) -> Result<Hash, MerkleError> {
        let missing = MerkleError::Missing {
            first: index,
            leaves: 1,
        };
        let at = |first: u64| usize::try_from(index.checked_sub(first)?).ok();
        if let Some(at) = at(self.current_first) {
            return self.current.get(at).copied().ok_or(missing);
        }
        let first = self.closed.iter().rev().find(|first| **first <= index);
        let first = *first.ok_or(missing)?;
        let leaves = self.leaves_of(first).ok_or(missing)?;
        at(first)
            .and_then(|at| leaves.get(at))
            .copied()
            .ok_or(missing)
    }

    /// `None` when the segment cannot be read or is damaged: then there is no proof from it.
    fn leaves_of(&self, first: u64) -> Option<Arc<Vec<Hash>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = cache.iter().find(|leaves| leaves.first == first) {
            return Some(Arc::clone(&found.hashes));
        }
        let bytes = files::read(&files::segment_path(&self.dir, first)).ok()?;
        let mut hashes = Vec::new();
        segment::scan(
            &bytes,
            &mut Each(|entry: &EntryRef<'_>| hashes.push(entry.leaf)),
        )
        .ok()?;
        let hashes = Arc::new(hashes);
        if cache.len() >= CACHED {
            cache.pop_front();
        }
        cache.push_back(Leaves {
            first,
            hashes: Arc::clone(&hashes),
        });
        Some(hashes)
    }
}

impl Nodes for LogTree {
    fn node(&self, level: u32, index: u64) -> Result<Hash, MerkleError> {
        let out = MerkleError::OutOfRange {
            index,
            size: self.size(),
        };
        let end = index
            .checked_add(1)
            .and_then(|next| next.checked_mul(1u64.checked_shl(level)?))
            .filter(|end| *end <= self.size())
            .ok_or(out)?;
        if let Some(hash) = self.upper.get(&(level, index)) {
            return Ok(*hash);
        }
        if end <= self.base.size() {
            // Of what is gone, proofs about what is kept need the peaks only.
            return self.base.peak(level, index).ok_or(MerkleError::Missing {
                first: index << level,
                leaves: 1 << level,
            });
        }
        let Some(below) = level.checked_sub(1) else {
            return self.leaf(index);
        };
        let left = self.node(below, index << 1)?;
        let right = self.node(below, (index << 1) | 1)?;
        Ok(node_hash(&left, &right))
    }
}
