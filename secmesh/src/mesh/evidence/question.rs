//! Test questions: the asker knows the answer, and has committed to it before it asks.
//!
//! The commitment goes into the asker's log. The asked node signs its answer over the commitment, so the
//! asker cannot choose what would have been right once it has read it. Then the asker reveals both.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::addr::Prefix;
use crate::mesh::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::vote::coded;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const COMMITMENT_TAG: &str = "secmesh/question/1";
const ANSWER_TAG: &str = "secmesh/answer/1";

coded!(
    /// Whether a node holds a subject for hostile: it knows an active decision of the mesh about it, or has
    /// own evidence.
    Say, "answer", {
        /// It does.
        Hostile = 1 "hostile",
        /// It knows nothing against it.
        Harmless = 2 "harmless",
    }
);

/// That a question is asked, and a commitment to its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Who is asked.
    pub target: NodeId,
    /// [`commitment`].
    pub commitment: Hash,
}

/// Commits to a question and its right answer; `nonce` is random and secret until the reveal.
pub fn commitment(
    mesh: MeshId,
    asker: NodeId,
    target: NodeId,
    subject: &Prefix,
    expected: Say,
    nonce: &[u8; 32],
) -> Hash {
    let mut e = Encoder::tagged(COMMITMENT_TAG);
    e.fixed(mesh.as_bytes())
        .fixed(asker.as_bytes())
        .fixed(target.as_bytes())
        .prefix(subject)
        .u8(expected.code())
        .fixed(nonce);
    Hash(crypto::sha256(&e.finish()))
}

/// What a node answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// Mesh.
    pub mesh: MeshId,
    /// Who asked.
    pub asker: NodeId,
    /// Who answers.
    pub target: NodeId,
    /// The commitment that the question came with.
    pub commitment: Hash,
    /// Whom it was about.
    pub subject: Prefix,
    /// The answer.
    pub say: Say,
}

impl Answer {
    /// Canonical bytes; what the answering node signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(ANSWER_TAG);
        e.fixed(self.mesh.as_bytes())
            .fixed(self.asker.as_bytes())
            .fixed(self.target.as_bytes())
            .fixed(self.commitment.as_bytes())
            .prefix(&self.subject)
            .u8(self.say.code());
        e.finish()
    }

    /// Signs with the answering node's vote key.
    pub fn sign(self, target: &Signer) -> SignedAnswer {
        SignedAnswer {
            say: self.say,
            signature: target.sign(&self.to_bytes()),
        }
    }
}

/// An answer as it travels; the rest of [`Answer`] is known to whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedAnswer {
    /// The answer.
    pub say: Say,
    /// By the answering node's vote key over [`Answer::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedAnswer {
    /// Checks the signature; `answer` is what was asked, its `say` is replaced by this one.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, answer: &Answer, key: &PublicKey) -> Result<(), CryptoError> {
        let answer = Answer {
            say: self.say,
            ..*answer
        };
        crypto::verify(key, &answer.to_bytes(), &self.signature)
    }

    pub(super) fn write(&self, e: &mut Encoder) {
        e.u8(self.say.code()).fixed(&self.signature);
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        Ok(Self {
            say: Say::from_code(d.u8("answer")?)?,
            signature: d.fixed("signature")?,
        })
    }
}

/// The end of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reveal {
    /// Place of the [`Question`] in the asker's log.
    pub question: u64,
    /// Who was asked.
    pub target: NodeId,
    /// Whom it was about.
    pub subject: Prefix,
    /// The right answer.
    pub expected: Say,
    /// What the commitment was made with.
    pub nonce: [u8; 32],
    /// The answer; without one the question proves nothing.
    pub answer: Option<SignedAnswer>,
}

impl Reveal {
    /// The commitment that the question of `asker` has to have.
    pub fn commitment(&self, mesh: MeshId, asker: NodeId) -> Hash {
        commitment(
            mesh,
            asker,
            self.target,
            &self.subject,
            self.expected,
            &self.nonce,
        )
    }

    /// What the answer has to be signed over.
    pub fn expected_answer(&self, mesh: MeshId, asker: NodeId) -> Answer {
        Answer {
            mesh,
            asker,
            target: self.target,
            commitment: self.commitment(mesh, asker),
            subject: self.subject,
            say: self.expected,
        }
    }

    pub(super) fn write(&self, e: &mut Encoder) {
        e.u64(self.question)
            .fixed(self.target.as_bytes())
            .prefix(&self.subject)
            .u8(self.expected.code())
            .fixed(&self.nonce);
        match &self.answer {
            None => {
                e.u8(0);
            }
            Some(answer) => {
                e.u8(1);
                answer.write(e);
            }
        }
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        Ok(Self {
            question: d.u64("question")?,
            target: NodeId(d.fixed("target")?),
            subject: d.prefix("subject")?,
            expected: Say::from_code(d.u8("expected answer")?)?,
            nonce: d.fixed("nonce")?,
            answer: match d.u8("whether there is an answer")? {
                0 => None,
                1 => Some(SignedAnswer::read(d)?),
                _ => {
                    return Err(WireError::Invalid {
                        field: "whether there is an answer",
                        why: "neither 0 nor 1",
                    });
                }
            },
        })
    }
}
