//! Proofs that a node did what no honest node does.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use super::statement::SignedHead;
use crate::ledger::fork::LedgerForkProof;
use crate::mesh::admission::NodeRecord;
use crate::mesh::crypto::PublicKey;
use crate::mesh::epoch::EpochProof;
use crate::mesh::ids::{MeshId, NodeId};
use crate::mesh::message::EquivocationProof;
use crate::mesh::vote::coded;
use crate::mesh::wire::{Decoder, Encoder, UNKNOWN_CODE, WireError};

/// Bytes of an equivocation proof: two votes of 272 bytes and their signatures.
const EQUIVOCATION: usize = 2 * (272 + 64);

/// Most bytes of a ledger fork: two bare checkpoints of 4 KiB and an ML-DSA-44 key.
const MAX_LEDGER_FORK: usize = 10 * 1024;

coded!(
    /// What was proved.
    ProofKind, "proof", {
        /// Two different votes in one slot.
        Equivocation = 1 "equivocation",
        /// Two different statements under one number of its evidence log.
        EvidenceFork = 2 "evidence_fork",
        /// Two histories of its ledger.
        LedgerFork = 3 "ledger_fork",
        /// A statement that contains what others never signed, or contradicts itself. It proves itself.
        ForgedEvidence = 4 "forged_evidence",
        /// Two different votes on one epoch in one step of one round.
        EpochEquivocation = 5 "epoch_equivocation",
    }
);

/// What was proved of one node: any of the [`ProofKind`]s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProofSet(u8);

impl ProofSet {
    /// Kind n is bit n − 1.
    const fn bit(kind: ProofKind) -> u8 {
        1 << (kind.code() - 1)
    }

    /// Whether nothing was proved.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds, in the order of their codes.
    pub fn kinds(self) -> impl Iterator<Item = ProofKind> {
        let all = ProofKind::ALL.iter().copied();
        all.filter(move |kind| self.0 & Self::bit(*kind) != 0)
    }

    /// One byte, in which kind n is bit n − 1.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Reads [`ProofSet::bits`].
    ///
    /// # Errors
    /// [`WireError::Invalid`] for a bit that stands for no kind.
    pub fn from_bits(bits: u8) -> Result<Self, WireError> {
        let known: Self = ProofKind::ALL.iter().copied().collect();
        if bits & !known.0 == 0 {
            Ok(Self(bits))
        } else {
            Err(WireError::Invalid {
                field: "proofs",
                why: UNKNOWN_CODE,
            })
        }
    }
}

impl FromIterator<ProofKind> for ProofSet {
    fn from_iter<T: IntoIterator<Item = ProofKind>>(kinds: T) -> Self {
        Self(
            kinds
                .into_iter()
                .fold(0, |bits, kind| bits | Self::bit(kind)),
        )
    }
}

impl Serialize for ProofSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.kinds())
    }
}

/// Something that proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Misconduct {
    /// [`ProofKind::Equivocation`].
    Equivocation(Box<EquivocationProof>),
    /// [`ProofKind::EvidenceFork`]: the head with the smaller bytes first.
    EvidenceFork(Box<(SignedHead, SignedHead)>),
    /// [`ProofKind::LedgerFork`].
    LedgerFork(Box<LedgerForkProof>),
    /// [`ProofKind::EpochEquivocation`].
    EpochEquivocation(Box<EpochProof>),
}

/// The keys of a node, from its record, that a proof against it is checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CulpritKeys {
    /// Its vote key.
    pub vote: PublicKey,
    /// Its Ed25519 ledger key.
    pub ledger: PublicKey,
    /// SHA-256 of its ML-DSA-44 key.
    pub pq_hash: [u8; 32],
}

impl CulpritKeys {
    /// Those in a node's record.
    pub const fn of(record: &NodeRecord) -> Self {
        Self {
            vote: record.vote_key,
            ledger: record.ledger_key,
            pq_hash: record.pq_key_hash,
        }
    }
}

impl Misconduct {
    /// Puts two heads together if they contradict each other; signatures are not looked at.
    pub fn fork(a: SignedHead, b: SignedHead) -> Option<Self> {
        let slot = |s: &SignedHead| (s.head.mesh, s.head.author, s.head.sequence);
        if slot(&a) != slot(&b) {
            return None;
        }
        match a.head.to_bytes().cmp(&b.head.to_bytes()) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(Self::EvidenceFork(Box::new((a, b)))),
            std::cmp::Ordering::Greater => Some(Self::EvidenceFork(Box::new((b, a)))),
        }
    }

    /// Who did it.
    pub const fn culprit(&self) -> NodeId {
        match self {
            Self::Equivocation(proof) => proof.voter(),
            Self::EvidenceFork(heads) => heads.0.head.author,
            Self::LedgerFork(proof) => proof.node(),
            Self::EpochEquivocation(proof) => proof.voter(),
        }
    }

    /// What it proves.
    pub const fn kind(&self) -> ProofKind {
        match self {
            Self::Equivocation(_) => ProofKind::Equivocation,
            Self::EvidenceFork(_) => ProofKind::EvidenceFork,
            Self::LedgerFork(_) => ProofKind::LedgerFork,
            Self::EpochEquivocation(_) => ProofKind::EpochEquivocation,
        }
    }

    /// Whether it holds, given the culprit's keys.
    pub fn holds(&self, mesh: MeshId, keys: &CulpritKeys) -> bool {
        let key = &keys.vote;
        match self {
            Self::Equivocation(proof) => {
                let (first, second) = proof.votes();
                // A node id names its key and incarnation, so nothing else has to be known.
                first.vote.mesh == mesh
                    && NodeRecord::derive_id(key, first.vote.incarnation) == first.vote.voter
                    && first.verify(key).is_ok()
                    && second.verify(key).is_ok()
            }
            Self::EpochEquivocation(proof) => {
                proof.mesh() == mesh
                    && NodeRecord::derive_id(key, proof.incarnation()) == proof.voter()
                    && proof.verify(key).is_ok()
            }
            Self::EvidenceFork(heads) => {
                heads.0.head.mesh == mesh
                    && heads.0.verify(key).is_ok()
                    && heads.1.verify(key).is_ok()
            }
            // A checkpoint names its node, and a node belongs to one mesh.
            Self::LedgerFork(proof) => proof.verify_with(&keys.ledger, &keys.pq_hash).is_ok(),
        }
    }

    pub(super) fn write(&self, e: &mut Encoder) {
        e.u8(self.kind().code());
        match self {
            Self::Equivocation(proof) => {
                e.fixed(&proof.to_bytes());
            }
            Self::EpochEquivocation(proof) => {
                e.fixed(&proof.to_bytes());
            }
            Self::EvidenceFork(heads) => {
                heads.0.write(e);
                heads.1.write(e);
            }
            Self::LedgerFork(proof) => {
                // Two checkpoints without other signatures and a key: within the limit.
                let _written = e
                    .bytes("ledger fork", &proof.to_bytes(), MAX_LEDGER_FORK)
                    .is_ok();
            }
        }
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        match ProofKind::from_code(d.u8("proof")?)? {
            ProofKind::Equivocation => {
                let bytes: [u8; EQUIVOCATION] = d.fixed("equivocation")?;
                Ok(Self::Equivocation(Box::new(EquivocationProof::from_bytes(
                    &bytes,
                )?)))
            }
            ProofKind::EvidenceFork => {
                let (a, b) = (SignedHead::read(d)?, SignedHead::read(d)?);
                match Self::fork(a, b) {
                    Some(Self::EvidenceFork(heads)) if heads.0 == a => {
                        Ok(Self::EvidenceFork(heads))
                    }
                    _ => Err(WireError::Invalid {
                        field: "evidence fork",
                        why: "the heads do not contradict each other, or are in the wrong order",
                    }),
                }
            }
            ProofKind::LedgerFork => {
                let bytes = d.bytes("ledger fork", MAX_LEDGER_FORK)?;
                let proof = LedgerForkProof::from_bytes(bytes)?;
                Ok(Self::LedgerFork(Box::new(proof)))
            }
            ProofKind::EpochEquivocation => {
                Ok(Self::EpochEquivocation(Box::new(EpochProof::read(d)?)))
            }
            ProofKind::ForgedEvidence => Err(WireError::Invalid {
                field: "proof",
                why: "not a kind that is stated",
            }),
        }
    }
}
