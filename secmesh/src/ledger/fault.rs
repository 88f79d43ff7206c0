//! What can be wrong with a ledger, and where.

use std::io;
use std::path::PathBuf;

/// What is wrong with a ledger.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It could not be read.
    #[error("cannot read it: {0}")]
    Io(#[from] io::Error),
    /// It does not begin like a ledger.
    #[error("it is not a secmesh ledger")]
    NotALedger,
    /// Its format is not known here.
    #[error("it has format {0}, and this secmesh knows 2; use the version that wrote it")]
    Version(u16),
    /// The header's key or signature is wrong.
    #[error("the header's signature is wrong")]
    HeaderSignature,
    /// Signed by another key than expected.
    #[error("it was signed with another key than the expected one")]
    WrongKey,
    /// An entry is not what it should be.
    #[error("{0}")]
    Corrupt(&'static str),
    /// A segment is larger than any that is written.
    #[error("the segment has {0} bytes, more than any that is written")]
    TooLarge(u64),
    /// The signature over all entries so far is wrong.
    #[error("the signature is wrong")]
    Signature,
    /// A segment does not continue the one before.
    #[error(
        "the segment begins at entry {found}, not at {expected}, or does not continue what was before it; one is missing or was replaced"
    )]
    Gap {
        /// Entry that should come next.
        expected: u64,
        /// Entry it begins with.
        found: u64,
    },
    /// The checkpoint beside the segments is damaged or not this node's.
    #[error("its checkpoint does not hold: {0}")]
    Checkpoint(String),
    /// The log is shorter than what was signed of it.
    #[error(
        "it was cut back: {entries} entries are there, and a checkpoint with {signed} was signed"
    )]
    CutBack {
        /// How many there are.
        entries: u64,
        /// How many there were.
        signed: u64,
    },
    /// The log is another one than what was signed of it.
    #[error("it was rewritten: its first {0} entries are not those of its checkpoint")]
    Rewritten(u64),
}

/// Where a ledger is wrong and how.
#[derive(Debug, thiserror::Error)]
#[error("entry {entry} at byte {offset} of {}: {what}", file.display())]
pub struct VerifyError {
    /// The file.
    pub file: PathBuf,
    /// Number of the entry, from 1; 0 is a header or the whole.
    pub entry: u64,
    /// Where it begins, in bytes from the start of the file.
    pub offset: u64,
    /// What is wrong.
    pub what: Fault,
}
