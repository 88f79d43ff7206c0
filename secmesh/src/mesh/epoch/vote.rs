//! What is signed on the way to an epoch.

use crate::mesh::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::roster::{MAX_NODES, Roster};
use crate::mesh::wire::{Decoder, Encoder, WireError};

use super::record::EpochRecord;

const VOTE_TAG: &str = "secmesh/epoch-vote/1";
const PROPOSAL_TAG: &str = "secmesh/epoch-proposal/1";
const PROOF_TAG: &str = "secmesh/epoch-proof/1";

/// What a vote is for, in the order of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The proposer's word: let it be this record.
    Propose,
    /// This record would do.
    Prevote,
    /// `T_hi` prevoted for this record, and this voter is locked on it.
    Precommit,
}

impl Step {
    /// Stable code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Propose => 1,
            Self::Prevote => 2,
            Self::Precommit => 3,
        }
    }

    fn from_code(code: u8) -> Result<Self, WireError> {
        match code {
            1 => Ok(Self::Propose),
            2 => Ok(Self::Prevote),
            3 => Ok(Self::Precommit),
            _ => Err(WireError::Invalid {
                field: "step",
                why: "unknown code",
            }),
        }
    }
}

/// One node's word in one step of one round about the epoch after `previous`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochVote {
    /// Mesh.
    pub mesh: MeshId,
    /// Number of the epoch that is to be.
    pub number: u64,
    /// Hash of the record before it.
    pub previous: Hash,
    /// Round, from 0.
    pub round: u32,
    /// Step.
    pub step: Step,
    /// Hash of the record; none: nothing in this round.
    pub value: Option<Hash>,
    /// Who.
    pub voter: NodeId,
    /// Its incarnation.
    pub incarnation: u64,
}

impl EpochVote {
    /// Canonical bytes; what the voter signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(VOTE_TAG);
        e.fixed(self.mesh.as_bytes())
            .u64(self.number)
            .fixed(self.previous.as_bytes())
            .u32(self.round)
            .u8(self.step.code());
        match self.value {
            Some(value) => e.u8(1).fixed(value.as_bytes()),
            None => e.u8(0),
        };
        e.fixed(self.voter.as_bytes()).u64(self.incarnation);
        e.finish()
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(VOTE_TAG)?;
        let mesh = MeshId(d.fixed("mesh")?);
        let number = d.u64("number")?;
        let previous = Hash(d.fixed("previous")?);
        let round = d.u32("round")?;
        let step = Step::from_code(d.u8("step")?)?;
        let value = match d.u8("has value")? {
            0 => None,
            1 => Some(Hash(d.fixed("value")?)),
            _ => {
                return Err(WireError::Invalid {
                    field: "has value",
                    why: "neither 0 nor 1",
                });
            }
        };
        if step == Step::Propose && value.is_none() {
            return Err(WireError::Invalid {
                field: "value",
                why: "a proposal of nothing",
            });
        }
        Ok(Self {
            mesh,
            number,
            previous,
            round,
            step,
            value,
            voter: NodeId(d.fixed("voter")?),
            incarnation: d.u64("incarnation")?,
        })
    }

    /// Signs with the voter's key.
    pub fn sign(self, voter: &Signer) -> SignedEpochVote {
        SignedEpochVote {
            vote: self,
            signature: voter.sign(&self.to_bytes()),
        }
    }

    /// What a voter says at most one thing about.
    fn slot(&self) -> (MeshId, u64, Hash, u32, Step, NodeId, u64) {
        (
            self.mesh,
            self.number,
            self.previous,
            self.round,
            self.step,
            self.voter,
            self.incarnation,
        )
    }
}

/// A vote with its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedEpochVote {
    /// The vote.
    pub vote: EpochVote,
    /// By the voter's vote key over [`EpochVote::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedEpochVote {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.write(&mut e);
        e.finish()
    }

    fn write(&self, e: &mut Encoder) {
        e.fixed(&self.vote.to_bytes()).fixed(&self.signature);
    }

    /// Reads [`SignedEpochVote::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let signed = Self::read(&mut d)?;
        d.finish()?;
        Ok(signed)
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        Ok(Self {
            vote: EpochVote::read(d)?,
            signature: d.fixed("signature")?,
        })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, key: &PublicKey) -> Result<(), CryptoError> {
        crypto::verify(key, &self.vote.to_bytes(), &self.signature)
    }
}

/// Votes of several nodes for one record in one step of one round; the rest of each vote follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VoteSet {
    /// Round.
    pub round: u32,
    /// Who signed, in ascending order.
    pub signatures: Vec<(NodeId, SignatureBytes)>,
}

impl VoteSet {
    pub(super) fn write(&self, e: &mut Encoder) {
        e.u32(self.round)
            .u16(u16::try_from(self.signatures.len()).unwrap_or(u16::MAX));
        for (voter, signature) in &self.signatures {
            e.fixed(voter.as_bytes()).fixed(signature);
        }
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        let round = d.u32("round")?;
        let len = usize::from(d.u16("signatures")?);
        if len > MAX_NODES {
            return Err(WireError::TooLong {
                field: "signatures",
                len,
                max: MAX_NODES,
            });
        }
        let mut signatures = Vec::new();
        for _ in 0..len {
            signatures.push((NodeId(d.fixed("voter")?), d.fixed("signature")?));
        }
        if !signatures.is_sorted_by(|(a, _), (b, _)| a < b) {
            return Err(WireError::Invalid {
                field: "signatures",
                why: "the voters are not distinct and in ascending order",
            });
        }
        Ok(Self { round, signatures })
    }

    /// Those of the voters that `roster` knows, with their votes in full.
    pub(super) fn votes<'a>(
        &'a self,
        record: &EpochRecord,
        step: Step,
        roster: &'a Roster,
    ) -> impl Iterator<Item = (&'a crate::mesh::roster::Member, SignedEpochVote)> + 'a {
        let (mesh, number, previous) = (record.mesh, record.number, record.previous);
        let value = Some(record.hash());
        self.signatures
            .iter()
            .filter_map(move |(voter, signature)| {
                let member = roster.get(voter)?;
                let vote = EpochVote {
                    mesh,
                    number,
                    previous,
                    round: self.round,
                    step,
                    value,
                    voter: *voter,
                    incarnation: member.record.incarnation,
                };
                Some((
                    member,
                    SignedEpochVote {
                        vote,
                        signature: *signature,
                    },
                ))
            })
    }

    /// Weight in `roster` of those who signed `record` in `step`.
    ///
    /// # Errors
    /// A signature of a member that does not verify; whoever is not in the roster is not looked at.
    pub(super) fn weight(
        &self,
        record: &EpochRecord,
        step: Step,
        roster: &Roster,
    ) -> Result<u64, CryptoError> {
        let mut weight = 0_u64;
        for (member, signed) in self.votes(record, step, roster) {
            signed.verify(&member.record.vote_key)?;
            weight = weight.saturating_add(u64::from(member.weight));
        }
        Ok(weight)
    }
}

/// A record that a proposer puts forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proposal {
    /// The record.
    pub record: EpochRecord,
    /// The proposer's vote of step [`Step::Propose`].
    pub signed: SignedEpochVote,
    /// Prevotes of an earlier round that suffice for it, if it was near to being decided then.
    pub polka: Option<VoteSet>,
}

impl Proposal {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(PROPOSAL_TAG);
        e.fixed(&self.record.to_bytes());
        self.signed.write(&mut e);
        match &self.polka {
            Some(polka) => polka.write(e.u8(1)),
            None => {
                e.u8(0);
            }
        }
        e.finish()
    }

    /// Reads [`Proposal::to_bytes`] and checks that record and vote belong together; the signatures are
    /// checked by [`super::Lock`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, PROPOSAL_TAG)?;
        let record = EpochRecord::read(&mut d)?;
        let signed = SignedEpochVote::read(&mut d)?;
        let polka = match d.u8("has polka")? {
            0 => None,
            1 => Some(VoteSet::read(&mut d)?),
            _ => {
                return Err(WireError::Invalid {
                    field: "has polka",
                    why: "neither 0 nor 1",
                });
            }
        };
        d.finish()?;
        let vote = &signed.vote;
        let fits = (vote.mesh, vote.number, vote.previous, vote.value)
            == (
                record.mesh,
                record.number,
                record.previous,
                Some(record.hash()),
            )
            && vote.step == Step::Propose
            && polka.as_ref().is_none_or(|polka| polka.round < vote.round);
        if fits {
            Ok(Self {
                record,
                signed,
                polka,
            })
        } else {
            Err(WireError::Invalid {
                field: "epoch proposal",
                why: "record, vote and earlier round do not belong together",
            })
        }
    }
}

/// Two different votes of one node in one step of one round: proof of a lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochProof {
    first: SignedEpochVote,
    second: SignedEpochVote,
}

impl EpochProof {
    /// Puts two votes together if they contradict each other; signatures are not looked at.
    pub fn new(a: SignedEpochVote, b: SignedEpochVote) -> Option<Self> {
        if a.vote.slot() != b.vote.slot() {
            return None;
        }
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

    /// Who lied.
    pub const fn voter(&self) -> NodeId {
        self.first.vote.voter
    }

    /// Mesh that the votes are for.
    pub const fn mesh(&self) -> MeshId {
        self.first.vote.mesh
    }

    /// Number of the epoch that the votes are about.
    pub const fn number(&self) -> u64 {
        self.first.vote.number
    }

    /// The liar's incarnation.
    pub const fn incarnation(&self) -> u64 {
        self.first.vote.incarnation
    }

    /// Checks both signatures with the voter's key.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, key: &PublicKey) -> Result<(), CryptoError> {
        self.first.verify(key)?;
        self.second.verify(key)
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(PROOF_TAG);
        self.first.write(&mut e);
        self.second.write(&mut e);
        e.finish()
    }

    /// Reads [`EpochProof::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical, or no contradiction.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let proof = Self::read(&mut d)?;
        d.finish()?;
        Ok(proof)
    }

    /// The same where something may follow.
    pub(in crate::mesh) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(PROOF_TAG)?;
        let (first, second) = (SignedEpochVote::read(d)?, SignedEpochVote::read(d)?);
        match Self::new(first, second) {
            Some(proof) if proof.first == first => Ok(proof),
            _ => Err(WireError::Invalid {
                field: "epoch proof",
                why: "the two votes do not contradict each other, or are in the wrong order",
            }),
        }
    }
}
