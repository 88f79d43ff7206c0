//! The node's own record of what it saw, signed, decided and did.
//!
//! One append-only file. Each entry carries the hash of everything before it and the node's
//! signature over that hash, so that changing, removing or reordering anything but the very end is
//! found by anyone who has the public key ([`verify`]). What a chain alone cannot show is an end
//! that was cut off at an entry's edge, or a whole log written anew by somebody who holds the key;
//! compare [`VerifyReport::entries`] and [`VerifyReport::head`] with what was known before.
//!
//! ```text
//! header  magic "SECMLEDG" | format u16 | node id [16] | public key [32] | signature [64]
//! entry   body length u32 | body | chain hash [32] | signature [64]
//! body    number u64, from 1 | unix time in µs u64 | kind u8 | JSON of a `Record`
//! chain   SHA-256(domain | chain hash before | body); before the first: SHA-256(domain | header)
//! ```
//! All integers are big-endian; signatures are Ed25519 over a domain tag and the hash.
//!
//! A crash while writing leaves a *torn tail*: the beginning of one entry at the physical end. It
//! was never acknowledged, so [`Ledger::open`] cuts it off and records that. Everything else that
//! does not fit is corruption, and a corrupt ledger is not written to.

mod format;
mod handle;
mod reader;
mod record;
mod writer;

pub use format::MAX_PAYLOAD;
pub use handle::{LedgerHandle, LedgerState, LedgerStatus};
pub use reader::{Entries, Entry, Fault, VerifyError, VerifyReport, iter, verify, verify_with_key};
pub use record::{EffectKind, Record};
pub use writer::{Ledger, OpenReport};

use std::path::PathBuf;

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
