//! What nodes say to each other about their ledgers: message kinds 8 to 11.

use crate::ledger::fork::LedgerForkProof;
use crate::merkle::{Hash, MAX_PROOF};
use crate::mesh::crypto::SignatureBytes;
use crate::mesh::ids::NodeId;
use crate::mesh::pq::{PUBLIC_KEY, PqPublic};
use crate::mesh::wire::{Decoder, Encoder, WireError};

/// Most bytes of a checkpoint with only its node's signatures.
pub const MAX_BARE_NOTE: usize = 4 * 1024;

/// A node asks a peer to cosign its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Size of the node's ledger that the peer has cosigned last, as far as the node knows.
    pub old_size: u64,
    /// Proof that the ledger of that size is the beginning of the one in the note.
    pub proof: Vec<Hash>,
    /// The checkpoint, as a signed note with the node's two signatures.
    pub note: Vec<u8>,
    /// The node's ML-DSA-44 key, unless the peer has it.
    pub pq: Option<PqPublic>,
}

/// What a witness says to an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It cosigned.
    Cosigned {
        /// When, in seconds since 1970.
        time_s: u64,
        /// Ed25519 signature of `c2sp.org/tlog-cosignature`.
        signature: SignatureBytes,
    },
    /// It has seen another size than the offer begins with: the checkpoint, or nothing.
    Knows(Option<Vec<u8>>),
    /// It does not have the node's ML-DSA-44 key.
    NeedsKey,
    /// The proof of consistency does not hold.
    Inconsistent,
}

/// Answer to an [`Offer`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Size in the offer's checkpoint.
    pub size: u64,
    /// Its root.
    pub root: Hash,
    /// What the witness did.
    pub outcome: Outcome,
}

/// A message about ledgers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerMessage {
    /// Kind 8: the sender's own checkpoint.
    Offer(Box<Offer>),
    /// Kind 9: about the receiver's checkpoint.
    Answer(Box<Answer>),
    /// Kind 10: a node signed two ledgers.
    Fork(Box<LedgerForkProof>),
    /// Kind 11: a checkpoint of a third node that the sender has seen.
    Seen {
        /// Whose.
        node: NodeId,
        /// The note.
        note: Vec<u8>,
    },
}

impl LedgerMessage {
    /// The message kinds in use.
    pub const KINDS: std::ops::RangeInclusive<u8> = 8..=11;

    /// The message kind.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Offer(_) => 8,
            Self::Answer(_) => 9,
            Self::Fork(_) => 10,
            Self::Seen { .. } => 11,
        }
    }

    /// Canonical bytes of the body.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        match self {
            Self::Offer(offer) => {
                e.u64(offer.old_size);
                e.u8(u8::try_from(offer.proof.len()).unwrap_or(u8::MAX));
                for hash in &offer.proof {
                    e.fixed(hash);
                }
                note(&mut e, &offer.note);
                match &offer.pq {
                    None => e.u8(0),
                    Some(key) => e.u8(1).fixed(key.as_bytes()),
                };
            }
            Self::Answer(answer) => {
                e.u64(answer.size).fixed(&answer.root);
                match &answer.outcome {
                    Outcome::Cosigned { time_s, signature } => {
                        e.u8(1).u64(*time_s).fixed(signature);
                    }
                    Outcome::Knows(None) => {
                        e.u8(2);
                    }
                    Outcome::Knows(Some(known)) => note(e.u8(3), known),
                    Outcome::NeedsKey => {
                        e.u8(4);
                    }
                    Outcome::Inconsistent => {
                        e.u8(5);
                    }
                }
            }
            Self::Fork(proof) => {
                e.fixed(&proof.to_bytes());
            }
            Self::Seen { node, note: seen } => {
                e.fixed(node.as_bytes());
                note(&mut e, seen);
            }
        }
        e.finish()
    }

    /// Reads [`LedgerMessage::to_bytes`] of that kind. Whether notes are notes is for who uses them.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(kind: u8, bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let message = match kind {
            8 => Self::Offer(Box::new(Self::read_offer(&mut d)?)),
            9 => Self::Answer(Box::new(Answer {
                size: d.u64("size")?,
                root: d.fixed("root")?,
                outcome: match d.u8("outcome")? {
                    1 => Outcome::Cosigned {
                        time_s: d.u64("time")?,
                        signature: d.fixed("signature")?,
                    },
                    2 => Outcome::Knows(None),
                    3 => Outcome::Knows(Some(d.bytes("note", MAX_BARE_NOTE)?.to_vec())),
                    4 => Outcome::NeedsKey,
                    5 => Outcome::Inconsistent,
                    _ => return Err(invalid("outcome")),
                },
            })),
            10 => return Ok(Self::Fork(Box::new(LedgerForkProof::from_bytes(bytes)?))),
            11 => Self::Seen {
                node: NodeId(d.fixed("node")?),
                note: d.bytes("note", MAX_BARE_NOTE)?.to_vec(),
            },
            _ => return Err(invalid("message kind")),
        };
        d.finish()?;
        Ok(message)
    }

    fn read_offer(d: &mut Decoder<'_>) -> Result<Offer, WireError> {
        let old_size = d.u64("old_size")?;
        let count = usize::from(d.u8("proof")?);
        if count > MAX_PROOF {
            return Err(WireError::TooLong {
                field: "proof",
                len: count,
                max: MAX_PROOF,
            });
        }
        let proof = (0..count)
            .map(|_| d.fixed("proof"))
            .collect::<Result<_, _>>()?;
        let note = d.bytes("note", MAX_BARE_NOTE)?.to_vec();
        let pq = match d.u8("has pq_key")? {
            0 => None,
            1 => Some(
                PqPublic::from_bytes(&d.fixed::<PUBLIC_KEY>("pq_key")?)
                    .map_err(|_| invalid("pq_key"))?,
            ),
            _ => return Err(invalid("has pq_key")),
        };
        Ok(Offer {
            old_size,
            proof,
            note,
            pq,
        })
    }
}

fn note(e: &mut Encoder, bytes: &[u8]) {
    // Longer ones are not made, and an empty one is refused by who reads it.
    if e.bytes("note", bytes, MAX_BARE_NOTE).is_err() {
        e.u16(0);
    }
}

const fn invalid(field: &'static str) -> WireError {
    WireError::Invalid {
        field,
        why: "unknown code",
    }
}
