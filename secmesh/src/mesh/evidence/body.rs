//! What statements say.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::conduct::Misconduct;
use super::question::{Question, Reveal};
use super::statement::MAX_BODY;
use super::verdict::SignedVerdict;
use crate::mesh::cert::Certificate;
use crate::mesh::crypto;
use crate::mesh::ids::{DecisionId, Hash, NodeId};
use crate::mesh::vote::{ActionKind, Verdict, coded};
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/evidence-body/1";

/// Most votes in a dossier. A reporter that knows of more picks as few by a hash of its own, so that the
/// reporters together name everybody.
pub const MAX_DOSSIER_VOTES: usize = 8;
/// Most bytes of a dossier.
const MAX_DOSSIER: usize = 2_048;

coded!(
    /// What became of a block.
    OutcomeKind, "outcome", {
        /// The source kept coming, and the kernel kept dropping it.
        Hit = 1 "hit",
        /// An operator of this node, without the operator's key, says that it was harmless.
        Miss = 2 "miss",
    }
);

/// Votes on one incident, as their voters signed them. The form is a certificate's; unlike one it need not
/// be enough votes, and it has confirmations only: who agrees without having seen anything claims nothing
/// about the world, and is neither praised nor blamed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dossier(Certificate);

impl Dossier {
    /// A dossier of the confirmations among these votes.
    ///
    /// # Errors
    /// [`WireError::Invalid`] if there are none or more than [`MAX_DOSSIER_VOTES`], if they are not in
    /// ascending order, or if they are not about a block.
    pub fn new(mut votes: Certificate) -> Result<Self, WireError> {
        votes.votes.retain(|v| v.verdict == Verdict::Confirm);
        Self::check(votes)
    }

    fn check(votes: Certificate) -> Result<Self, WireError> {
        let invalid = |why| {
            Err(WireError::Invalid {
                field: "dossier",
                why,
            })
        };
        if votes.votes.is_empty() || votes.votes.len() > MAX_DOSSIER_VOTES {
            return invalid("one to eight votes");
        }
        if votes.action.kind != ActionKind::Block {
            return invalid("not about a block");
        }
        if votes.votes.iter().any(|v| v.verdict != Verdict::Confirm) {
            return invalid("not only confirmations");
        }
        if !votes.votes.is_sorted_by(|a, b| a.voter < b.voter) {
            return invalid("voters are not distinct and in ascending order");
        }
        Ok(Self(votes))
    }

    /// The votes in the form of a certificate.
    pub const fn votes(&self) -> &Certificate {
        &self.0
    }

    fn write(&self, e: &mut Encoder) {
        // At most eight votes of 180 bytes.
        let _written = e.bytes("dossier", &self.0.to_bytes(), MAX_DOSSIER).is_ok();
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        Self::check(Certificate::from_bytes(d.bytes("dossier", MAX_DOSSIER)?)?)
    }
}

/// What became of a block on the author's host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Good or bad.
    pub kind: OutcomeKind,
    /// Packets that the kernel had dropped by then.
    pub packets: u64,
    /// Who said that they saw it.
    pub dossier: Dossier,
}

/// Whether what was done to a node helped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remediation {
    /// The node it was done to.
    pub node: NodeId,
    /// The decision to do it.
    pub decision: DecisionId,
    /// Whether it helped.
    pub succeeded: bool,
}

/// What a statement says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// What became of a block.
    Outcome(Outcome),
    /// An operator's verdict, and votes that it concerns.
    Verdict(SignedVerdict, Dossier),
    /// A test question was asked.
    Question(Question),
    /// How it ended.
    Reveal(Reveal),
    /// A node was caught.
    Misconduct(Misconduct),
    /// What was done to a node helped, or not.
    Remediation(Remediation),
}

impl Body {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        match self {
            Self::Outcome(outcome) => {
                e.u8(1).u8(outcome.kind.code()).u64(outcome.packets);
                outcome.dossier.write(&mut e);
            }
            Self::Verdict(verdict, dossier) => {
                e.u8(2);
                verdict.write(&mut e);
                dossier.write(&mut e);
            }
            Self::Question(question) => {
                e.u8(3)
                    .fixed(question.target.as_bytes())
                    .fixed(question.commitment.as_bytes());
            }
            Self::Reveal(reveal) => {
                e.u8(4);
                reveal.write(&mut e);
            }
            Self::Misconduct(misconduct) => {
                e.u8(5);
                misconduct.write(&mut e);
            }
            Self::Remediation(remediation) => {
                e.u8(6)
                    .fixed(remediation.node.as_bytes())
                    .fixed(remediation.decision.as_bytes())
                    .u8(u8::from(remediation.succeeded));
            }
        }
        e.finish()
    }

    /// Reads [`Body::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_BODY {
            return Err(WireError::TooLong {
                field: "statement body",
                len: bytes.len(),
                max: MAX_BODY,
            });
        }
        let mut d = Decoder::tagged(bytes, TAG)?;
        let body = match d.u8("statement kind")? {
            1 => Self::Outcome(Outcome {
                kind: OutcomeKind::from_code(d.u8("outcome")?)?,
                packets: d.u64("packets")?,
                dossier: Dossier::read(&mut d)?,
            }),
            2 => Self::Verdict(SignedVerdict::read(&mut d)?, Dossier::read(&mut d)?),
            3 => Self::Question(Question {
                target: NodeId(d.fixed("target")?),
                commitment: Hash(d.fixed("commitment")?),
            }),
            4 => Self::Reveal(Reveal::read(&mut d)?),
            5 => Self::Misconduct(Misconduct::read(&mut d)?),
            6 => Self::Remediation(Remediation {
                node: NodeId(d.fixed("node")?),
                decision: DecisionId(d.fixed("decision")?),
                succeeded: match d.u8("succeeded")? {
                    0 => false,
                    1 => true,
                    _ => {
                        return Err(WireError::Invalid {
                            field: "succeeded",
                            why: "neither 0 nor 1",
                        });
                    }
                },
            }),
            _ => {
                return Err(WireError::Invalid {
                    field: "statement kind",
                    why: "unknown code",
                });
            }
        };
        d.finish()?;
        Ok(body)
    }

    /// SHA-256 of the canonical bytes.
    pub fn hash(&self) -> Hash {
        Hash(crypto::sha256(&self.to_bytes()))
    }

    /// The votes that it contains.
    pub const fn dossier(&self) -> Option<&Dossier> {
        match self {
            Self::Outcome(outcome) => Some(&outcome.dossier),
            Self::Verdict(_, dossier) => Some(dossier),
            _ => None,
        }
    }
}
