//! Epochs: who is in the mesh with which weight, agreed on by all, one record after the other.
//!
//! An [`EpochRecord`] is certified by `T_hi` of the weight of the epoch before, in one run of a
//! single-decree agreement ([`Lock`], after "The latest gossip on BFT consensus", arXiv 1807.04938).
//! Nothing in here reads a clock, a file or a random source; the engine around it brings the time and
//! carries out what comes of it.
//!
//! - `record`: the record and its canonical bytes
//! - `weights`: the pure function from the epoch before to the weights of the next
//! - `vote`, `cert`: what is signed, and enough of it
//! - `rules`: the four decisions that safety rests on, as functions; the model checks these
//! - `lock`: the agreement on one record
//! - `state`: what of it is on the disk before anything leaves
//! - `removal`: the operator's word that a node is out
//! - `chain`: the certified records, bounded
//! - `seal`: ML-DSA-44 on a certified record

mod cert;
mod chain;
mod lock;
#[cfg(test)]
mod model;
mod record;
mod removal;
mod rules;
mod seal;
mod state;
mod vote;
mod weights;

pub use self::cert::{CertifiedEpoch, EpochError, carries, needed};
pub use self::chain::{Chain, MAX_CHAIN, MAX_CHAIN_BYTES, StoredEpochs, names};
pub use self::lock::{App, Lock, LockConfig, LockOut, RESEND_US};
pub use self::record::{EpochMember, EpochParams, EpochRecord, MAX_MEMBERS, MAX_RECORD_BYTES};
pub use self::removal::{MAX_REMOVAL_AGE_S, Removal, SignedRemoval};
pub use self::seal::{EpochSeal, Sealed};
pub use self::state::LockState;
pub use self::vote::{EpochProof, EpochVote, Proposal, SignedEpochVote, Step, VoteSet};
pub use self::weights::{BOOTSTRAP_VOTERS, Candidate, MAX_WEIGHT, next_weights};
