//! The node's own record of what it saw, signed, decided and did: a transparency log of one node.
//!
//! The entries are the leaves of a Merkle tree (RFC 6962, [`crate::merkle`]). What is written at once
//! ends in a *seal*, the node's Ed25519 signature over the number of entries and their root; the last
//! one covers everything before it. Now and then the node publishes a *checkpoint* (C2SP), which its
//! ML-DSA-44 key signs too and its peers cosign as witnesses. So changing, removing or reordering
//! entries is found by anyone who has the public key ([`verify`]), cutting the end off by anyone who
//! has a later checkpoint, and a log written anew by the holder of the keys by the witnesses.
//!
//! ```text
//! directory  NNNNNNNNNNNNNNNNNNNN.seg, by the number of the first entry | checkpoint | lock
//! segment    header | frames
//! header     magic "SECMLEDG" | format u16 = 2 | node id [16] | Ed25519 key [32] | ML-DSA-44 key [1312]
//!            | entries before u64 | their complete subtrees' hashes, the largest first [32] each
//!            | Ed25519 signature [64] over a domain tag and all that
//! frame      length of the body u32 | kind u8 | body | check [8]
//! entry (1)  number u64, from 1 | unix time in µs u64 | kind u8 | JSON of a `Record`
//!            check: first bytes of the RFC 6962 leaf hash of the body
//! seal (2)   entries u64 | root [32] | Ed25519 signature [64] over the text of a checkpoint
//!            check: first bytes of SHA-256(domain tag | body)
//! ```
//! All integers are big-endian.
//!
//! A crash while writing leaves a *torn tail*: the beginning of one write at the physical end, without
//! its seal. It was never acknowledged, so [`Ledger::open`] cuts it off and records that. Everything
//! else that does not fit is corruption, and a corrupt ledger is not written to.
//!
//! Segments are closed at a size, and the oldest go when all together are too large
//! ([`Retention`]). What is still needed out of them is recorded again ([`Record::Carried`]). Proofs
//! about what is left need nothing of what is gone but the hashes in the header.

pub mod bundle;
mod carry;
pub mod checkpoint;
mod fault;
mod files;
pub mod fork;
mod format;
mod handle;
pub mod note;
mod open;
mod reader;
mod record;
mod segment;
mod tree;
mod writer;

pub use fault::{Fault, VerifyError};
pub use format::MAX_PAYLOAD;
pub use handle::{LedgerHandle, LedgerState, LedgerStatus};
pub use reader::{Entries, Entry, VerifyReport, iter, verify, verify_with_key};
pub use record::{EffectKind, Record};
pub use writer::{Ledger, LedgerKeys, OpenReport, Retention};

use std::path::PathBuf;

use format::Header;
use reader::published;

use crate::merkle::MerkleError;
use crate::mesh::pq::PqError;
use crate::state::StateError;

/// Why an entry could not be recorded or a ledger not opened.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The file could not be created or read.
    #[error(transparent)]
    State(#[from] StateError),
    /// A system call on the ledger failed.
    #[error("cannot {action} the ledger {}: {source}; check the disk's space and health", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The ledger.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The ledger does not verify.
    #[error("the ledger {} is damaged: {fault}; nothing is appended to it: keep the file as evidence, restore a good copy or move it away to begin a new one", path.display())]
    Corrupt {
        /// The ledger.
        path: PathBuf,
        /// Where and how.
        fault: VerifyError,
    },
    /// The ledger belongs to another node or key.
    #[error("the ledger {} belongs to another node or key; is this the right state directory?", .0.display())]
    NotOurs(PathBuf),
    /// There is a ledger of an earlier version.
    #[error("{} is a ledger of an earlier version, which this one does not continue; keep it as evidence, move it away, and join anew with an empty state directory", .0.display())]
    OldFormat(PathBuf),
    /// The entry cannot be proved.
    #[error("there is no proof of entry {0}: {1}")]
    NotProvable(u64, String),
    /// There is no proof.
    #[error("the ledger has no such proof: {0}")]
    Merkle(#[from] MerkleError),
    /// The checkpoint could not be signed.
    #[error(transparent)]
    Pq(#[from] PqError),
    /// Another process appends to the ledger.
    #[error("another process appends to the ledger {}; only one may", .0.display())]
    InUse(PathBuf),
    /// The record is too large.
    #[error("a record of {bytes} bytes does not go into the ledger, the limit is {MAX_PAYLOAD}")]
    TooLarge {
        /// Size of the record's JSON.
        bytes: usize,
    },
    /// The record has no JSON form.
    #[error("a record cannot be encoded: {0}")]
    Encode(serde_json::Error),
    /// An earlier write failed; what is on the disk is unknown, so nothing is appended any more.
    #[error("the ledger failed earlier and takes nothing until the agent restarts: {0}")]
    Failed(String),
    /// The queue before the writer is full.
    #[error("the queue before the ledger is full; the disk does not keep up")]
    QueueFull,
    /// The writer was stopped.
    #[error("the ledger is closed")]
    Closed,
}

#[cfg(test)]
mod tests;
