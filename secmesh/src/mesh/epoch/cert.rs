//! Enough precommits, and what makes a record follow another.

use std::collections::BTreeSet;

use super::record::EpochRecord;
use super::rules;
use super::vote::{Step, VoteSet};
use crate::mesh::crypto::CryptoError;
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::roster::Roster;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/certified-epoch/1";

/// Why a record is not taken for the next epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EpochError {
    /// It is for another mesh.
    #[error("the epoch is of mesh {0}")]
    WrongMesh(MeshId),
    /// It does not come after the epoch it is checked against.
    #[error("epoch {number} does not follow epoch {known}")]
    NotNext {
        /// Its number.
        number: u64,
        /// The one known.
        known: u64,
    },
    /// A member's admission is not known here (yet).
    #[error("epoch {0} has a member whose admission is not known here")]
    UnknownMember(u64),
    /// A change of the roster that no operator has signed.
    #[error("epoch {number} leaves out {node}, which no operator has removed")]
    NotRemoved {
        /// Its number.
        number: u64,
        /// Who is missing.
        node: NodeId,
    },
    /// A member whom an operator has removed.
    #[error(
        "epoch {number} takes in {node}, which an operator has removed or another record replaced"
    )]
    NotAdmissible {
        /// Its number.
        number: u64,
        /// Who.
        node: NodeId,
    },
    /// A signature does not verify.
    #[error("a precommit on epoch {number}: {source}")]
    Signature {
        /// Its number.
        number: u64,
        /// What is wrong.
        source: CryptoError,
    },
    /// A record that no honest node makes.
    #[error("epoch {number} is impossible: {why}")]
    Impossible {
        /// Its number.
        number: u64,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Not enough weight of the epoch before.
    #[error("{weight} weight of epoch {before} signed epoch {number}, {needed} is needed")]
    TooLight {
        /// Its number.
        number: u64,
        /// The epoch whose weight counts.
        before: u64,
        /// Weight that signed.
        weight: u64,
        /// Weight that has to.
        needed: u64,
    },
}

/// Weight of `before` that has to sign a record whose members are `after`: `T_hi`. With fewer than four
/// voters it takes all of them, but for those whom an operator has removed: or a mesh of two that lost
/// one node for good could never go on.
pub fn needed(before: &Roster, after: &BTreeSet<NodeId>) -> u64 {
    if before.voters() < super::BOOTSTRAP_VOTERS {
        before
            .members()
            .filter(|(node, _)| after.contains(*node))
            .map(|(_, member)| u64::from(member.weight))
            .sum()
    } else {
        if planted(Bug::EpochTLo) {
            return before.t_lo();
        }
        before.t_hi()
    }
}

/// Whether nodes whose records `signed` also carry an epoch that is known already: `T_hi` of its weight, or all
/// of it where fewer than four have any. One of them is honest then, and an honest node signs only what
/// follows from the epochs that there are.
pub fn carries(known: &EpochRecord, signed: &BTreeSet<Hash>) -> bool {
    let weights = || known.members.iter().map(|m| u64::from(m.weight));
    let total: u64 = weights().sum();
    let voters = weights().filter(|weight| *weight > 0).count();
    let needed = if voters < super::BOOTSTRAP_VOTERS {
        total
    } else {
        total * 2 / 3 + 1
    };
    let weight = known
        .members
        .iter()
        .filter(|m| signed.contains(&m.record))
        .map(|m| u64::from(m.weight))
        .sum();
    rules::is_quorum(weight, needed)
}

/// A record with the precommits that make it the next epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertifiedEpoch {
    /// The record.
    pub record: EpochRecord,
    /// Precommits of one round by nodes of the epoch before; none on the first epoch.
    pub precommits: VoteSet,
}

impl CertifiedEpoch {
    /// The first epoch, which nobody certifies.
    pub const fn first(record: EpochRecord) -> Self {
        Self {
            record,
            precommits: VoteSet {
                round: 0,
                signatures: Vec::new(),
            },
        }
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(&self.record.to_bytes());
        self.precommits.write(&mut e);
        e.finish()
    }

    /// Reads [`CertifiedEpoch::to_bytes`]; [`CertifiedEpoch::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, TAG)?;
        let certified = Self {
            record: EpochRecord::read(&mut d)?,
            precommits: VoteSet::read(&mut d)?,
        };
        d.finish()?;
        Ok(certified)
    }

    /// Checks the precommits against the epoch `before`, which the record has to name by hash; `after` are
    /// the members of the record. Whether `before` is to be trusted is the caller's to know.
    ///
    /// # Errors
    /// [`EpochError`].
    pub fn verify(&self, before: &Roster, after: &BTreeSet<NodeId>) -> Result<(), EpochError> {
        let number = self.record.number;
        if self.record.mesh != before.mesh() {
            return Err(EpochError::WrongMesh(self.record.mesh));
        }
        let follows = number.checked_sub(before.epoch()) == Some(1)
            && self.record.previous == before.epoch_hash();
        if !follows {
            return Err(EpochError::NotNext {
                number,
                known: before.epoch(),
            });
        }
        let weight = self
            .precommits
            .weight(&self.record, Step::Precommit, before)
            .map_err(|source| EpochError::Signature { number, source })?;
        let needed = needed(before, after);
        if rules::is_quorum(weight, needed) {
            Ok(())
        } else {
            Err(EpochError::TooLight {
                number,
                before: before.epoch(),
                weight,
                needed,
            })
        }
    }
}
