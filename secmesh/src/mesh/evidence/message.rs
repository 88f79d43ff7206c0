//! What nodes say to each other about evidence: message kinds 24 to 29.

use std::sync::Arc;

use super::log::Frontier;
use super::question::SignedAnswer;
use super::statement::{MAX_STATEMENT, Statement};
use crate::addr::Prefix;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::wire::{Decoder, Encoder, MAX_MESSAGE, WireError};

/// Most ranges of one request.
pub const MAX_RANGES: usize = 1_024;
/// Room for statements in one message.
const ROOM: usize = MAX_MESSAGE - 256;

/// Statements that somebody lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Whose.
    pub author: NodeId,
    /// From this number.
    pub from: u64,
    /// Up to, not including, this one.
    pub until: u64,
}

/// A message about evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EvidenceMessage {
    /// The hash of the sender's frontier. Whoever has another answers with its [`Self::Digest`].
    Summary(Hash),
    /// How far the sender's logs go.
    Digest {
        /// Whether it answers a digest, so that it is not answered by one.
        answer: bool,
        /// The frontier.
        frontier: Frontier,
    },
    /// Asks for statements.
    Request(Vec<Range>),
    /// Statements, each author's in order.
    Statements(Vec<Statement>),
    /// A test question: do you hold this subject for hostile?
    Question {
        /// The commitment that the asker has stated.
        commitment: Hash,
        /// The subject.
        subject: Prefix,
    },
    /// The answer to it.
    Answer {
        /// The commitment that came with the question.
        commitment: Hash,
        /// The answer.
        answer: SignedAnswer,
    },
}

impl EvidenceMessage {
    /// Its kind on the wire.
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Summary(_) => 24,
            Self::Digest { .. } => 25,
            Self::Request(_) => 26,
            Self::Statements(_) => 27,
            Self::Question { .. } => 28,
            Self::Answer { .. } => 29,
        }
    }

    /// Writes what follows the kind. Statements that do not fit a message are left out; see [`pack`].
    pub fn write(&self, e: &mut Encoder) {
        match self {
            Self::Summary(hash) => {
                e.fixed(hash.as_bytes());
            }
            Self::Digest { answer, frontier } => {
                e.u8(u8::from(*answer)).fixed(&frontier.to_bytes());
            }
            Self::Request(ranges) => {
                for range in ranges.iter().take(MAX_RANGES) {
                    e.fixed(range.author.as_bytes())
                        .u64(range.from)
                        .u64(range.until);
                }
            }
            Self::Statements(statements) => {
                for statement in statements {
                    let bytes = statement.to_bytes();
                    if e.len() + 2 + bytes.len() <= MAX_MESSAGE {
                        // Cannot fail: a statement is shorter than its limit.
                        let _written = e.bytes("statement", &bytes, MAX_STATEMENT).is_ok();
                    }
                }
            }
            Self::Question {
                commitment,
                subject,
            } => {
                e.fixed(commitment.as_bytes()).prefix(subject);
            }
            Self::Answer { commitment, answer } => {
                e.fixed(commitment.as_bytes());
                answer.write(e);
            }
        }
    }

    /// Reads what follows the kind.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_body(kind: u8, body: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(body);
        let message = match kind {
            24 => Self::Summary(Hash(d.fixed("frontier hash")?)),
            25 => Self::Digest {
                answer: match d.u8("answer")? {
                    0 => false,
                    1 => true,
                    _ => {
                        return Err(WireError::Invalid {
                            field: "answer",
                            why: "neither 0 nor 1",
                        });
                    }
                },
                frontier: Frontier::read(&mut d)?,
            },
            26 => {
                let mut ranges = Vec::new();
                while !d.rest().is_empty() {
                    if ranges.len() >= MAX_RANGES {
                        return Err(WireError::TooLong {
                            field: "ranges",
                            len: MAX_RANGES + 1,
                            max: MAX_RANGES,
                        });
                    }
                    ranges.push(Range {
                        author: NodeId(d.fixed("author")?),
                        from: d.u64("from")?,
                        until: d.u64("until")?,
                    });
                }
                Self::Request(ranges)
            }
            27 => {
                let mut statements = Vec::new();
                while !d.rest().is_empty() {
                    let bytes = d.bytes("statement", MAX_STATEMENT)?;
                    statements.push(Statement::from_bytes(bytes)?);
                }
                Self::Statements(statements)
            }
            28 => Self::Question {
                commitment: Hash(d.fixed("commitment")?),
                subject: d.prefix("subject")?,
            },
            29 => Self::Answer {
                commitment: Hash(d.fixed("commitment")?),
                answer: SignedAnswer::read(&mut d)?,
            },
            _ => {
                return Err(WireError::Invalid {
                    field: "message kind",
                    why: "unknown code",
                });
            }
        };
        d.finish()?;
        Ok(message)
    }
}

/// Puts statements, in order, into messages of at most [`MAX_MESSAGE`] bytes; at most `messages` of them.
pub fn pack(statements: &[Arc<Statement>], messages: usize) -> Vec<EvidenceMessage> {
    let mut out = Vec::new();
    let mut batch = Vec::new();
    let mut size = 0;
    for statement in statements {
        let len = 2 + statement.to_bytes().len();
        if size + len > ROOM {
            out.push(EvidenceMessage::Statements(std::mem::take(&mut batch)));
            size = 0;
            if out.len() >= messages {
                return out;
            }
        }
        size += len;
        batch.push(Statement::clone(statement));
    }
    if !batch.is_empty() && out.len() < messages {
        out.push(EvidenceMessage::Statements(batch));
    }
    out
}
