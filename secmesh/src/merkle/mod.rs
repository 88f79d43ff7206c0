//! The Merkle tree of RFC 6962, section 2 (RFC 9162, section 2.1), over SHA-256.
//!
//! A leaf is hashed with a zero byte before it, an inner node with a one, so that neither passes for
//! the other. [`Frontier`] appends and knows the root, and holds one hash per bit of its size; that
//! is what a log needs to go on. [`Tree`] keeps every node in memory and answers with proofs.
//! [`inclusion`] and [`consistency`] make proofs from whatever can give the complete subtrees
//! ([`Nodes`]); [`verify_inclusion`] and [`verify_consistency`] check them with nothing but the two
//! roots.

mod frontier;
mod proof;
#[cfg(test)]
mod tests;

pub use frontier::{Frontier, Tree};
pub use proof::{consistency, inclusion, root_at, verify_consistency, verify_inclusion};

use sha2::{Digest as _, Sha256};

/// A SHA-256 hash.
pub type Hash = [u8; 32];

/// Most hashes in a proof of either kind: one per level, and one to begin with.
pub const MAX_PROOF: usize = 65;

/// Why there is no proof, or why one does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MerkleError {
    /// Something beyond the end of the tree was asked for.
    #[error("{index} lies outside a tree of {size} leaves")]
    OutOfRange {
        /// Leaf or older size that was asked for.
        index: u64,
        /// Leaves in the tree.
        size: u64,
    },
    /// A subtree is not kept any more.
    #[error("the subtree of {leaves} leaves from leaf {first} on is not kept any more")]
    Missing {
        /// Its first leaf.
        first: u64,
        /// How many leaves it has.
        leaves: u64,
    },
    /// The proof has too few or too many hashes for these sizes.
    #[error("the proof has the wrong number of hashes")]
    ProofLength,
    /// The hashes do not lead to the root.
    #[error("the proof does not lead to the root")]
    Mismatch,
}

/// Hash of a leaf.
pub fn leaf_hash(data: &[u8]) -> Hash {
    leaf_hash_parts(&[data])
}

/// Hash of a leaf that lies in memory in several parts.
pub fn leaf_hash_parts(parts: &[&[u8]]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update([0]);
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Hash of an inner node.
pub fn node_hash(left: &Hash, right: &Hash) -> Hash {
    let mut bytes = [1; 65];
    let (_, rest) = bytes.split_at_mut(1);
    for (slot, byte) in rest.iter_mut().zip(left.iter().chain(right)) {
        *slot = *byte;
    }
    Sha256::digest(bytes).into()
}

/// Root of the tree without leaves: the hash of nothing.
pub fn empty_root() -> Hash {
    Sha256::digest([]).into()
}

/// Whatever can give the hashes of complete subtrees.
pub trait Nodes {
    /// Hash of the complete subtree of `2^level` leaves that begins at leaf `index << level`.
    ///
    /// # Errors
    /// [`MerkleError::Missing`] when it is not kept, [`MerkleError::OutOfRange`] when it is not
    /// complete yet.
    fn node(&self, level: u32, index: u64) -> Result<Hash, MerkleError>;
}
