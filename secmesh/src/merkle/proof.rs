//! Proofs: making and checking them.

use super::{Hash, MerkleError, Nodes, empty_root, node_hash};

/// Largest power of two below `n`, for `n` of at least 2: where a tree divides.
const fn split(n: u64) -> u64 {
    1 << n.saturating_sub(1).ilog2()
}

/// Hash over the leaves from `lo` to `hi`, where `lo` is a place at which a tree divides.
fn range<N: Nodes + ?Sized>(nodes: &N, lo: u64, hi: u64) -> Result<Hash, MerkleError> {
    let (mut at, mut peaks) = (lo, Vec::new());
    while let Some(level) = hi.saturating_sub(at).checked_ilog2() {
        peaks.push(nodes.node(level, at >> level)?);
        at = at.saturating_add(1 << level);
    }
    let mut peaks = peaks.into_iter().rev();
    let Some(last) = peaks.next() else {
        return Ok(empty_root());
    };
    Ok(peaks.fold(last, |right, left| node_hash(&left, &right)))
}

/// Root of the first `size` leaves.
///
/// # Errors
/// What [`Nodes::node`] answers.
pub fn root_at<N: Nodes + ?Sized>(nodes: &N, size: u64) -> Result<Hash, MerkleError> {
    range(nodes, 0, size)
}

/// Proves that leaf `index` is among the first `size` (RFC 9162, 2.1.3.1).
///
/// # Errors
/// [`MerkleError::OutOfRange`], and what [`Nodes::node`] answers.
pub fn inclusion<N: Nodes + ?Sized>(
    nodes: &N,
    index: u64,
    size: u64,
) -> Result<Vec<Hash>, MerkleError> {
    if index >= size {
        return Err(MerkleError::OutOfRange { index, size });
    }
    let (mut lo, mut hi, mut path) = (0, size, Vec::new());
    while hi - lo > 1 {
        let middle = lo + split(hi - lo);
        if index < middle {
            path.push(range(nodes, middle, hi)?);
            hi = middle;
        } else {
            path.push(range(nodes, lo, middle)?);
            lo = middle;
        }
    }
    path.reverse();
    Ok(path)
}

/// Proves that the tree of the first `old` leaves is the beginning of that of the first `new`
/// (RFC 9162, 2.1.4.1). Empty for `old == 0`, which every tree begins with, and for `old == new`.
///
/// # Errors
/// [`MerkleError::OutOfRange`], and what [`Nodes::node`] answers.
pub fn consistency<N: Nodes + ?Sized>(
    nodes: &N,
    old: u64,
    new: u64,
) -> Result<Vec<Hash>, MerkleError> {
    if old > new {
        return Err(MerkleError::OutOfRange {
            index: old,
            size: new,
        });
    }
    let (mut lo, mut hi, mut path, mut whole) = (0, new, Vec::new(), true);
    if old == 0 {
        return Ok(path);
    }
    while old != hi {
        let middle = lo + split(hi - lo);
        if old <= middle {
            path.push(range(nodes, middle, hi)?);
            hi = middle;
        } else {
            path.push(range(nodes, lo, middle)?);
            lo = middle;
            whole = false;
        }
    }
    // The old root itself is known to whoever checks; any other beginning is not.
    if !whole {
        path.push(range(nodes, lo, hi)?);
    }
    path.reverse();
    Ok(path)
}

/// Checks that a leaf with the hash `leaf` is number `index` (from 0) of the `size` leaves under
/// `root` (RFC 9162, 2.1.3.2).
///
/// # Errors
/// [`MerkleError::OutOfRange`], [`MerkleError::ProofLength`] or [`MerkleError::Mismatch`].
pub fn verify_inclusion(
    leaf: &Hash,
    index: u64,
    size: u64,
    proof: &[Hash],
    root: &Hash,
) -> Result<(), MerkleError> {
    if index >= size {
        return Err(MerkleError::OutOfRange { index, size });
    }
    let (mut at, mut last, mut hash) = (index, size - 1, *leaf);
    for sibling in proof {
        if last == 0 {
            return Err(MerkleError::ProofLength);
        }
        if at & 1 == 1 || at == last {
            hash = node_hash(sibling, &hash);
            // A node without a sibling rises to where it has one.
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(MerkleError::ProofLength);
    }
    if hash == *root {
        Ok(())
    } else {
        Err(MerkleError::Mismatch)
    }
}

/// Checks that the `old` leaves under `old_root` are the beginning of the `new` leaves under
/// `new_root` (RFC 9162, 2.1.4.2). From nothing (`old == 0`) every tree follows, with no proof.
///
/// # Errors
/// [`MerkleError::OutOfRange`] when the tree shrank, [`MerkleError::ProofLength`] or
/// [`MerkleError::Mismatch`].
pub fn verify_consistency(
    old: u64,
    new: u64,
    proof: &[Hash],
    old_root: &Hash,
    new_root: &Hash,
) -> Result<(), MerkleError> {
    if old > new {
        return Err(MerkleError::OutOfRange {
            index: old,
            size: new,
        });
    }
    if old == 0 || old == new {
        if !proof.is_empty() {
            return Err(MerkleError::ProofLength);
        }
        let same = old == new && old_root == new_root;
        let from_nothing = old == 0 && new != 0 && *old_root == empty_root();
        return if same || from_nothing {
            Ok(())
        } else {
            Err(MerkleError::Mismatch)
        };
    }
    let (mut at, mut last) = (old - 1, new - 1);
    while at & 1 == 1 {
        at >>= 1;
        last >>= 1;
    }
    let mut proof = proof.iter();
    // A complete old tree is where the proof begins, and is left out of it.
    let first = if old.is_power_of_two() {
        old_root
    } else {
        proof.next().ok_or(MerkleError::ProofLength)?
    };
    let (mut before, mut after) = (*first, *first);
    for sibling in proof {
        if last == 0 {
            return Err(MerkleError::ProofLength);
        }
        if at & 1 == 1 || at == last {
            before = node_hash(sibling, &before);
            after = node_hash(sibling, &after);
            while at & 1 == 0 && at != 0 {
                at >>= 1;
                last >>= 1;
            }
        } else {
            after = node_hash(&after, sibling);
        }
        at >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(MerkleError::ProofLength);
    }
    if before == *old_root && after == *new_root {
        Ok(())
    } else {
        Err(MerkleError::Mismatch)
    }
}
