//! What nodes say to each other. The carrier needs no trust: everything in here proves itself.

use super::admission::{AdmittedRecord, SignedGrant};
use super::cert::Certificate;
use super::crypto::CryptoError;
use super::decision::SignedRelease;
use super::epoch::{
    CertifiedEpoch, EpochProof, EpochSeal, Proposal, SignedEpochVote, SignedRemoval,
};
use super::evidence::EvidenceMessage;
use super::ids::{DecisionId, IncidentId};
use super::inventory::Inventory;
use super::roster::Roster;
use super::swim::SwimMessage;
use super::vote::{Ballot, SignedVote};
use super::wire::{Decoder, Encoder, MAX_MESSAGE, UNKNOWN_CODE, WireError};
use super::witness::LedgerMessage;

const TAG: &str = "secmesh/msg/1";

/// Most bytes of one part of a [`Message::Batch`].
const MAX_PART: usize = MAX_MESSAGE - 64;

/// Two different votes of one voter for the same epoch, incident and round: proof of a lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EquivocationProof {
    first: SignedVote,
    second: SignedVote,
}

impl EquivocationProof {
    /// Puts two votes together if they contradict each other; signatures are not looked at.
    pub fn new(a: SignedVote, b: SignedVote) -> Option<Self> {
        let slot = |s: &SignedVote| {
            let v = s.vote;
            (
                v.mesh,
                v.epoch,
                v.epoch_hash,
                v.incident,
                v.round,
                v.voter,
                v.incarnation,
            )
        };
        if slot(&a) != slot(&b) {
            return None;
        }
        // In the order of their bytes, so that one contradiction has one spelling.
        match a.vote.to_bytes().cmp(&b.vote.to_bytes()) {
            std::cmp::Ordering::Equal => None,
            std::cmp::Ordering::Less => Some(Self {
                first: a,
                second: b,
            }),
            std::cmp::Ordering::Greater => Some(Self {
                first: b,
                second: a,
            }),
        }
    }

    /// The two votes.
    pub const fn votes(&self) -> (&SignedVote, &SignedVote) {
        (&self.first, &self.second)
    }

    /// Who lied.
    pub const fn voter(&self) -> super::ids::NodeId {
        self.first.vote.voter
    }

    /// Checks both signatures with the key `roster` has for the voter.
    ///
    /// # Errors
    /// `None` when the voter is not in the roster under that incarnation; else [`CryptoError`].
    pub fn verify(&self, roster: &Roster) -> Result<(), Option<CryptoError>> {
        let member = roster
            .get(&self.voter())
            .filter(|m| m.record.incarnation == self.first.vote.incarnation)
            .ok_or(None)?;
        let key = &member.record.vote_key;
        self.first.verify(key).map_err(Some)?;
        self.second.verify(key).map_err(Some)
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.first.write(&mut e);
        self.second.write(&mut e);
        e.finish()
    }

    /// Reads [`EquivocationProof::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical, or no contradiction.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let (first, second) = (SignedVote::read(&mut d)?, SignedVote::read(&mut d)?);
        d.finish()?;
        match Self::new(first, second) {
            Some(proof) if proof.first == first => Ok(proof),
            _ => Err(WireError::Invalid {
                field: "equivocation",
                why: "the two votes do not contradict each other, or are in the wrong order",
            }),
        }
    }
}

/// That a node has a certificate; whoever lacks it asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Announcement {
    /// What was decided.
    pub decision: DecisionId,
    /// On which incident.
    pub incident: IncidentId,
    /// In which round.
    pub round: u32,
}

/// A message between two nodes, at most [`MAX_MESSAGE`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// A vote of the sender.
    Vote(Box<Ballot>),
    /// Enough votes.
    Certificate(Box<Certificate>),
    /// A node was admitted.
    Admission(Box<AdmittedRecord>),
    /// A ticket is open.
    Grant(Box<SignedGrant>),
    /// Somebody lied.
    Equivocation(Box<EquivocationProof>),
    /// The operator ends a block.
    Release(Box<SignedRelease>),
    /// About ledgers: kinds 8 to 11.
    Ledger(LedgerMessage),
    /// What the next epoch might be.
    EpochProposal(Box<Proposal>),
    /// A vote on that.
    EpochVote(Box<SignedEpochVote>),
    /// The sender's epoch number: whoever has later ones sends them, whoever has none so late asks.
    EpochWant(u64),
    /// An epoch, certified.
    Epoch(Box<CertifiedEpoch>),
    /// Somebody lied about an epoch.
    EpochLie(Box<EpochProof>),
    /// A node's post-quantum signature on the current epoch.
    EpochSeal(Box<EpochSeal>),
    /// The operator removes a node.
    Removal(Box<SignedRemoval>),
    /// The sender has a certificate.
    Decided(Announcement),
    /// The sender wants the certificate of a decision that was announced.
    WantDecision(DecisionId),
    /// Several of the others (never a batch), each as its own encoding.
    Batch(Vec<Vec<u8>>),
    /// Kinds 24 to 29: statements and what it takes to compare them.
    Evidence(Box<EvidenceMessage>),
    /// Kinds 30 and 31: what the sender has of everything else.
    Inventory(Box<Inventory>),
    /// Kind 32: who is still there.
    Swim(Box<SwimMessage>),
}

impl Message {
    /// Canonical bytes. Parts of a batch that do not fit are left out; see [`pack`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        match self {
            Self::Vote(ballot) => e.u8(1).fixed(&ballot.to_bytes()),
            Self::Certificate(certificate) => e.u8(2).fixed(&certificate.to_bytes()),
            Self::Admission(admitted) => e.u8(3).fixed(&admitted.to_bytes()),
            Self::Grant(grant) => e.u8(4).fixed(&grant.to_bytes()),
            Self::Equivocation(proof) => e.u8(5).fixed(&proof.to_bytes()),
            Self::Release(release) => e.u8(6).fixed(&release.to_bytes()),
            Self::Ledger(message) => e.u8(message.kind()).fixed(&message.to_bytes()),
            Self::EpochProposal(proposal) => e.u8(16).fixed(&proposal.to_bytes()),
            Self::EpochVote(signed) => e.u8(17).fixed(&signed.to_bytes()),
            Self::EpochWant(number) => e.u8(18).u64(*number),
            Self::Epoch(epoch) => e.u8(19).fixed(&epoch.to_bytes()),
            Self::EpochLie(proof) => e.u8(20).fixed(&proof.to_bytes()),
            Self::EpochSeal(seal) => e.u8(22).fixed(&seal.to_bytes()),
            Self::Removal(removal) => e.u8(21).fixed(&removal.to_bytes()),
            Self::Decided(announced) => e
                .u8(40)
                .fixed(announced.decision.as_bytes())
                .fixed(announced.incident.as_bytes())
                .u32(announced.round),
            Self::WantDecision(id) => e.u8(41).fixed(id.as_bytes()),
            Self::Batch(parts) => {
                e.u8(7);
                for part in parts {
                    if e.len() + 2 + part.len() <= MAX_MESSAGE {
                        // Cannot fail: the part is shorter than a message.
                        let _written = e.bytes("part", part, MAX_PART).is_ok();
                    }
                }
                &mut e
            }
            Self::Inventory(message) => {
                e.u8(message.kind());
                message.write(&mut e);
                &mut e
            }
            Self::Evidence(message) => {
                e.u8(message.kind());
                message.write(&mut e);
                &mut e
            }
            Self::Swim(message) => {
                e.u8(SwimMessage::KIND);
                message.write(&mut e);
                &mut e
            }
        };
        e.finish()
    }

    /// Reads [`Message::to_bytes`]. Whether what it says is true is for the engine to check.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical or too long.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLong {
                field: "message",
                len: bytes.len(),
                max: MAX_MESSAGE,
            });
        }
        let mut d = Decoder::tagged(bytes, TAG)?;
        let kind = d.u8("message kind")?;
        let body = d.rest();
        Ok(match kind {
            1 => Self::Vote(Box::new(Ballot::from_bytes(body)?)),
            2 => Self::Certificate(Box::new(Certificate::from_bytes(body)?)),
            3 => Self::Admission(Box::new(AdmittedRecord::from_bytes(body)?)),
            4 => Self::Grant(Box::new(SignedGrant::from_bytes(body)?)),
            5 => Self::Equivocation(Box::new(EquivocationProof::from_bytes(body)?)),
            6 => Self::Release(Box::new(SignedRelease::from_bytes(body)?)),
            kind if LedgerMessage::KINDS.contains(&kind) => {
                Self::Ledger(LedgerMessage::from_bytes(kind, body)?)
            }
            16 => Self::EpochProposal(Box::new(Proposal::from_bytes(body)?)),
            17 => Self::EpochVote(Box::new(SignedEpochVote::from_bytes(body)?)),
            18 => {
                let number = d.u64("epoch number")?;
                d.finish()?;
                Self::EpochWant(number)
            }
            19 => Self::Epoch(Box::new(CertifiedEpoch::from_bytes(body)?)),
            20 => Self::EpochLie(Box::new(EpochProof::from_bytes(body)?)),
            21 => Self::Removal(Box::new(SignedRemoval::from_bytes(body)?)),
            22 => Self::EpochSeal(Box::new(EpochSeal::from_bytes(body)?)),
            40 => {
                let announced = Announcement {
                    decision: DecisionId(d.fixed("decision")?),
                    incident: IncidentId(d.fixed("incident")?),
                    round: d.u32("round")?,
                };
                d.finish()?;
                Self::Decided(announced)
            }
            41 => {
                let id = DecisionId(d.fixed("decision")?);
                d.finish()?;
                Self::WantDecision(id)
            }
            7 => {
                let mut parts = Vec::new();
                while !d.rest().is_empty() {
                    parts.push(d.bytes("part", MAX_PART)?.to_vec());
                }
                Self::Batch(parts)
            }
            30..=31 => Self::Inventory(Box::new(Inventory::from_body(kind, body)?)),
            SwimMessage::KIND => Self::Swim(Box::new(SwimMessage::from_body(body)?)),
            24..=29 => Self::Evidence(Box::new(EvidenceMessage::from_body(kind, body)?)),
            _ => {
                return Err(WireError::Invalid {
                    field: "message kind",
                    why: UNKNOWN_CODE,
                });
            }
        })
    }

    /// Whether this is a batch; a batch inside a batch is refused.
    pub const fn is_batch(&self) -> bool {
        matches!(self, Self::Batch(_))
    }
}

/// Puts encoded messages into as few batches as fit [`MAX_MESSAGE`], in order.
pub fn pack(parts: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
    let mut out = Vec::new();
    let mut batch: Vec<Vec<u8>> = Vec::new();
    let mut size = 32;
    for part in parts {
        if part.len() > MAX_PART {
            continue;
        }
        if size + 2 + part.len() > MAX_MESSAGE {
            out.push(Message::Batch(std::mem::take(&mut batch)).to_bytes());
            size = 32;
        }
        size += 2 + part.len();
        batch.push(part);
    }
    if !batch.is_empty() {
        out.push(Message::Batch(batch).to_bytes());
    }
    out
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
