//! Proof that a node signed two ledgers.

use super::checkpoint::{AuthorKeys, CheckpointError, SignedCheckpoint};
use super::note::MAX_NOTE;
use crate::mesh::crypto::{PublicKey, sha256};
use crate::mesh::ids::NodeId;
use crate::mesh::pq::{PUBLIC_KEY, PqPublic};
use crate::mesh::roster::Roster;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/ledger-fork/1";
/// Most bytes of a checkpoint with its node's two signatures and no others.
const MAX_BARE: usize = 4 * 1024;

const _: () = assert!(MAX_BARE < MAX_NOTE, "a bare note is a note");

/// Why a proof does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ForkError {
    /// The node is not in the roster.
    #[error("the node is not in the roster")]
    UnknownNode,
    /// One of the two is not a checkpoint of that node.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The two can both be true.
    #[error("the two checkpoints do not contradict each other")]
    NoContradiction,
}

/// Two checkpoints of one node that cannot both be of a log that only grows: of the same size with
/// different roots, or the smaller signed after the larger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerForkProof {
    node: NodeId,
    pq: PqPublic,
    first: Vec<u8>,
    second: Vec<u8>,
}

/// Whether two checkpoints of one log contradict each other.
pub fn contradict(a: &SignedCheckpoint, b: &SignedCheckpoint) -> bool {
    let (small, large) = if a.checkpoint.size <= b.checkpoint.size {
        (a, b)
    } else {
        (b, a)
    };
    if small.checkpoint.size == large.checkpoint.size {
        return small.checkpoint.root != large.checkpoint.root;
    }
    // Seconds are coarse: within one second the smaller may well have come first.
    small.time_s > large.time_s
}

impl LedgerForkProof {
    /// Puts two verified checkpoints together, if they contradict each other.
    pub fn new(author: &AuthorKeys, a: &SignedCheckpoint, b: &SignedCheckpoint) -> Option<Self> {
        if !contradict(a, b) {
            return None;
        }
        let bytes = |c: &SignedCheckpoint| c.bare().to_string().into_bytes();
        let (mut first, mut second) = (bytes(a), bytes(b));
        // One contradiction has one spelling, whoever finds it.
        if first > second {
            std::mem::swap(&mut first, &mut second);
        }
        (first.len() <= MAX_BARE && second.len() <= MAX_BARE).then(|| Self {
            node: NodeId(author.node),
            pq: author.pq.clone(),
            first,
            second,
        })
    }

    /// Who forked its ledger.
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// The two checkpoints, as signed notes.
    pub fn notes(&self) -> (&[u8], &[u8]) {
        (&self.first, &self.second)
    }

    /// When the node signed the earlier one of the two, by what it says in it, seconds since 1970. None if it
    /// says nothing; then the proof does not verify either.
    pub fn since_s(&self) -> Option<u64> {
        let time = |note: &[u8]| SignedCheckpoint::claimed_time_s(note, &self.node.0, &self.pq);
        Some(time(&self.first)?.min(time(&self.second)?))
    }

    /// Names the proof. The hedged signatures make many proofs of one fork; they differ in this.
    pub fn hash(&self) -> [u8; 32] {
        sha256(&self.to_bytes())
    }

    /// Checks both checkpoints against the node's record in `roster`.
    ///
    /// # Errors
    /// [`ForkError`].
    pub fn verify(&self, roster: &Roster) -> Result<(), ForkError> {
        let member = roster.get(&self.node).ok_or(ForkError::UnknownNode)?;
        self.verify_with(&member.record.ledger_key, &member.record.pq_key_hash)
    }

    /// As [`LedgerForkProof::verify`], with the keys of the record.
    ///
    /// # Errors
    /// [`ForkError`].
    pub fn verify_with(
        &self,
        ledger_key: &PublicKey,
        pq_key_hash: &[u8; 32],
    ) -> Result<(), ForkError> {
        if self.pq.hash() != *pq_key_hash {
            return Err(CheckpointError::WrongKey.into());
        }
        let author = AuthorKeys {
            node: self.node.0,
            key: *ledger_key,
            pq: self.pq.clone(),
        };
        let first = SignedCheckpoint::verify(&self.first, &author)?;
        let second = SignedCheckpoint::verify(&self.second, &author)?;
        if contradict(&first, &second) {
            Ok(())
        } else {
            Err(ForkError::NoContradiction)
        }
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(&self.node.0).fixed(self.pq.as_bytes());
        for note in [&self.first, &self.second] {
            // Cannot fail: both are within the limit.
            let _written = e.bytes("checkpoint", note, MAX_BARE).is_ok();
        }
        e.finish()
    }

    /// Reads [`LedgerForkProof::to_bytes`]; [`LedgerForkProof::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, TAG)?;
        let node = NodeId(d.fixed("node")?);
        let pq = PqPublic::from_bytes(&d.fixed::<PUBLIC_KEY>("pq_key")?).map_err(|_| {
            WireError::Invalid {
                field: "pq_key",
                why: "not an ML-DSA-44 key",
            }
        })?;
        let first = d.bytes("checkpoint", MAX_BARE)?.to_vec();
        let second = d.bytes("checkpoint", MAX_BARE)?.to_vec();
        d.finish()?;
        if first >= second {
            return Err(WireError::Invalid {
                field: "checkpoint",
                why: "the two are the same, or in the wrong order",
            });
        }
        Ok(Self {
            node,
            pq,
            first,
            second,
        })
    }
}
