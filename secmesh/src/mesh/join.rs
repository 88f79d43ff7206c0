//! What somebody says who asks to join, and what a member answers: the members, or why not, or not yet.
//!
//! The request is the bytes of the joiner's [`AdmittedRecord`]; a spare that only wants in where somebody is
//! missing puts a tag before them. The answer is one byte, 0 and a list of admitted records (`u16` count, each with
//! its `u16` length), or 1 (no) or 2 (not now, to a spare) and the reason in UTF-8.

use super::admission::AdmittedRecord;
use super::roster::MAX_NODES;
use super::store::{MAX_RECORD, read_list};
use super::transport::MAX_MESSAGE;
use super::wire::{Decoder, Encoder, WireError};

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;
const WAITING: u8 = 2;
const STANDBY_TAG: &str = "secmesh/join-standby/1";
/// Longest reason for a refusal, in bytes.
pub const MAX_REASON: usize = 1_024;

/// A request to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinRequest {
    /// Who wants in, with what lets it in.
    pub record: AdmittedRecord,
    /// Whether it wants in only if the mesh misses somebody: it asks again until then, with the same record. Members
    /// of versions that do not know that refuse the request.
    pub standby: bool,
}

impl JoinRequest {
    /// The request's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let record = self.record.to_bytes();
        if !self.standby {
            return record;
        }
        let mut e = Encoder::tagged(STANDBY_TAG);
        e.fixed(&record);
        e.finish()
    }

    /// Reads [`JoinRequest::to_bytes`]. The record is not checked: see [`AdmittedRecord::verify`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let standby = Decoder::tagged(bytes, STANDBY_TAG).ok();
        let record = standby.as_ref().map_or(bytes, Decoder::rest);
        Ok(Self {
            record: AdmittedRecord::from_bytes(record)?,
            standby: standby.is_some(),
        })
    }
}

/// The answer to a request to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinReply {
    /// The joiner is in.
    Accepted {
        /// The members, the joiner among them. Put the answering node and the joiner first: what does
        /// not fit into one message is left out, and the joiner hears of it once it is connected.
        members: Vec<AdmittedRecord>,
    },
    /// It is not, for this reason.
    Refused {
        /// For people; at most [`MAX_REASON`] bytes of it are sent.
        reason: String,
    },
    /// It is a spare, and is not wanted now. Its ticket is as good as before.
    Waiting {
        /// As for a refusal.
        reason: String,
    },
}

/// What of a reason is sent.
fn cut(reason: &str) -> &[u8] {
    reason
        .get(..reason.floor_char_boundary(MAX_REASON))
        .unwrap_or_default()
        .as_bytes()
}

/// The reason that a message ends with.
fn read_reason(bytes: &[u8]) -> Result<String, WireError> {
    let (len, max) = (bytes.len(), MAX_REASON);
    let field = "reason";
    if len > max {
        return Err(WireError::TooLong { field, len, max });
    }
    match std::str::from_utf8(bytes) {
        Ok(reason) => Ok(reason.to_owned()),
        Err(_) => Err(WireError::Invalid {
            field,
            why: "not UTF-8",
        }),
    }
}

impl JoinReply {
    /// The answer's bytes, at most [`MAX_MESSAGE`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        match self {
            Self::Refused { reason } => {
                e.u8(REFUSED).fixed(cut(reason));
            }
            Self::Waiting { reason } => {
                e.u8(WAITING).fixed(cut(reason));
            }
            Self::Accepted { members } => {
                let mut count = 0_u16;
                let mut list = Encoder::default();
                for member in members.iter().take(MAX_NODES) {
                    let bytes = member.to_bytes();
                    let fits = 1 + 2 + list.len() + 2 + bytes.len() <= MAX_MESSAGE;
                    if !fits || list.bytes("member", &bytes, MAX_RECORD).is_err() {
                        break;
                    }
                    count = count.saturating_add(1);
                }
                e.u8(ACCEPTED).u16(count).fixed(&list.finish());
            }
        }
        e.finish()
    }

    /// Reads [`JoinReply::to_bytes`]. The records are not checked: see [`AdmittedRecord::verify`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical or too long.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::TooLong {
                field: "answer",
                len: bytes.len(),
                max: MAX_MESSAGE,
            });
        }
        let mut d = Decoder::untagged(bytes);
        match d.u8("answer")? {
            ACCEPTED => {
                let members = read_list(&mut d, "members", MAX_NODES, AdmittedRecord::from_bytes)?;
                d.finish()?;
                Ok(Self::Accepted { members })
            }
            REFUSED => Ok(Self::Refused {
                reason: read_reason(d.rest())?,
            }),
            WAITING => Ok(Self::Waiting {
                reason: read_reason(d.rest())?,
            }),
            _ => Err(WireError::Invalid {
                field: "answer",
                why: "neither accepted nor refused nor waiting",
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::store::tests::{by_operator, by_ticket, genesis};
    use super::*;

    fn accepted() -> JoinReply {
        JoinReply::Accepted {
            members: vec![by_operator(2), by_ticket(3)],
        }
    }

    #[test]
    fn answers_are_read_back() {
        for reply in [
            accepted(),
            JoinReply::Accepted {
                members: Vec::new(),
            },
            JoinReply::Refused {
                reason: "the ticket was used already".to_owned(),
            },
            JoinReply::Waiting {
                reason: "nobody is missing".to_owned(),
            },
        ] {
            assert_eq!(JoinReply::from_bytes(&reply.to_bytes()), Ok(reply));
        }
    }

    #[test]
    fn a_large_mesh_is_cut_to_one_message_from_the_end() {
        let mut members = vec![by_operator(2)];
        members.resize(MAX_NODES, by_ticket(3));
        let bytes = JoinReply::Accepted { members }.to_bytes();
        assert!(bytes.len() <= MAX_MESSAGE, "{}", bytes.len());
        let Ok(JoinReply::Accepted { members }) = JoinReply::from_bytes(&bytes) else {
            panic!("not accepted")
        };
        assert!(members.len() > 60, "{}", members.len());
        assert_eq!(members[0], by_operator(2));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = "ä".repeat(2_000);
        let sent = "ä".repeat(MAX_REASON / 2);
        for (long, sent) in [
            (
                JoinReply::Refused {
                    reason: reason.clone(),
                },
                JoinReply::Refused {
                    reason: sent.clone(),
                },
            ),
            (
                JoinReply::Waiting { reason },
                JoinReply::Waiting { reason: sent },
            ),
        ] {
            assert_eq!(JoinReply::from_bytes(&long.to_bytes()), Ok(sent));
        }
        for kind in [1, 2] {
            let too_long = [[kind].as_slice(), &[b'x'; MAX_REASON + 1]].concat();
            assert!(matches!(
                JoinReply::from_bytes(&too_long),
                Err(WireError::TooLong { .. })
            ));
        }
    }

    #[test]
    fn a_spares_request_is_the_record_behind_a_tag() {
        let record = by_ticket(3);
        for standby in [false, true] {
            let request = JoinRequest {
                record: record.clone(),
                standby,
            };
            let bytes = request.to_bytes();
            assert!(bytes.ends_with(&record.to_bytes()));
            assert_eq!(bytes == record.to_bytes(), !standby, "as it always was");
            assert_eq!(JoinRequest::from_bytes(&bytes), Ok(request));
            // A version that does not know of spares says no, and harms nobody.
            assert_eq!(AdmittedRecord::from_bytes(&bytes).is_err(), standby);
        }
        // Once, and with a record.
        let mut twice = Encoder::tagged(STANDBY_TAG);
        let request = JoinRequest {
            record,
            standby: true,
        };
        twice.fixed(&request.to_bytes());
        assert!(JoinRequest::from_bytes(&twice.finish()).is_err());
        assert!(JoinRequest::from_bytes(&Encoder::tagged(STANDBY_TAG).finish()).is_err());
    }

    #[test]
    fn other_answers_are_refused() {
        for bytes in [
            [].as_slice(),
            &[3],
            &[0],
            &[0, 0, 0, 9],
            &[0, 0xff, 0xff],
            &[1, 0xff],
            &[2, 0xff],
            &vec![0; MAX_MESSAGE + 1],
        ] {
            assert!(JoinReply::from_bytes(bytes).is_err());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_decodes_has_one_encoding_and_no_changed_record_verifies(
            at: prop::sample::Index,
            xor in 1_u8..,
        ) {
            let mut bytes = accepted().to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
            match JoinReply::from_bytes(&bytes) {
                Ok(reply @ JoinReply::Accepted { .. }) => {
                    prop_assert_eq!(&reply.to_bytes(), &bytes);
                    let JoinReply::Accepted { members } = reply else { unreachable!() };
                    let genesis = genesis().genesis;
                    prop_assert!(members.iter().any(|m| m.verify(&genesis).is_err()));
                }
                // The first byte was changed; what follows is no text then.
                Ok(_) => prop_assert!(false, "a refusal"),
                Err(_) => {}
            }
        }

        #[test]
        fn a_changed_request_is_refused_or_does_not_verify(
            standby: bool,
            at: prop::sample::Index,
            xor in 1_u8..,
        ) {
            let record = by_ticket(3);
            let mut bytes = JoinRequest { record, standby }.to_bytes();
            let at = at.index(bytes.len());
            bytes[at] ^= xor;
            if let Ok(request) = JoinRequest::from_bytes(&bytes) {
                prop_assert_eq!(&request.to_bytes(), &bytes);
                prop_assert_eq!(request.standby, standby);
                prop_assert!(request.record.verify(&genesis().genesis).is_err());
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(reply) = JoinReply::from_bytes(&bytes) {
                prop_assert_eq!(reply.to_bytes(), bytes);
            } else {
                prop_assert!(JoinRequest::from_bytes(&bytes).is_err());
            }
        }

        #[test]
        fn any_reason_is_read_back(reason in ".{0,300}", wait: bool) {
            let reply = if wait { JoinReply::Waiting { reason } } else { JoinReply::Refused { reason } };
            prop_assert_eq!(JoinReply::from_bytes(&reply.to_bytes()), Ok(reply));
        }
    }
}
