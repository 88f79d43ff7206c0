//! Signed evidence: what nodes say about how well others judge, in a form that anybody can check later.
//!
//! Each node writes one log of [`Statement`]s. A statement has the next number, names the root of the log
//! before it, and is signed; so a log only grows, and whoever writes two histories signs the proof of it.
//! All nodes gather all logs ([`EvidenceSet`]); where two of them stand is compared by a hash, and only
//! what is missing travels ([`EvidenceMessage`]). What the statements add up to is [`crate::mesh::trust`].

pub mod body;
pub mod conduct;
pub mod log;
pub mod message;
pub mod question;
pub mod statement;
pub mod store;
pub mod verdict;

pub use body::{Body, Dossier, MAX_DOSSIER_VOTES, Outcome, OutcomeKind, Remediation};
pub use conduct::{CulpritKeys, Misconduct, ProofKind, ProofSet};
pub use log::{EvidenceSet, Frontier, Inserted, LogHead};
pub use message::EvidenceMessage;
pub use question::{Answer, Question, Reveal, Say, SignedAnswer};
pub use statement::{Head, MAX_STATEMENT, SignedHead, Statement};
pub use store::{EvidenceFile, EvidenceFileError};
pub use verdict::{OperatorVerdict, Ruling, SignedVerdict};

#[cfg(test)]
pub(in crate::mesh) mod testing;
#[cfg(test)]
mod tests;
