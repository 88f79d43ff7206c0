//! What a member answers to somebody who asks to join: the members, or why not.
//!
//! The request is the bytes of the joiner's [`AdmittedRecord`]. The answer is one byte, 0 and a list
//! of admitted records (`u16` count, each with its `u16` length), or 1 and the reason in UTF-8.

use super::admission::AdmittedRecord;
use super::roster::MAX_NODES;
use super::store::{MAX_RECORD, read_list};
use super::transport::MAX_MESSAGE;
use super::wire::{Decoder, Encoder, WireError};

const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;
/// Longest reason for a refusal, in bytes.
pub const MAX_REASON: usize = 1_024;

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
}

impl JoinReply {
    /// The answer's bytes, at most [`MAX_MESSAGE`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        match self {
            Self::Refused { reason } => {
                let cut = reason
                    .get(..reason.floor_char_boundary(MAX_REASON))
                    .unwrap_or_default();
                e.u8(REFUSED).fixed(cut.as_bytes());
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
            REFUSED => {
                let (len, max) = (d.rest().len(), MAX_REASON);
                if len > max {
                    return Err(WireError::TooLong {
                        field: "reason",
                        len,
                        max,
                    });
                }
                let not_text = WireError::Invalid {
                    field: "reason",
                    why: "not UTF-8",
                };
                let reason = std::str::from_utf8(d.rest())
                    .map_err(|_| not_text)?
                    .to_owned();
                Ok(Self::Refused { reason })
            }
            _ => Err(WireError::Invalid {
                field: "answer",
                why: "neither accepted nor refused",
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
        let bytes = JoinReply::Refused {
            reason: "ä".repeat(2_000),
        }
        .to_bytes();
        let reason = "ä".repeat(MAX_REASON / 2);
        assert_eq!(
            JoinReply::from_bytes(&bytes),
            Ok(JoinReply::Refused { reason })
        );
        let too_long = [[1].as_slice(), &[b'x'; MAX_REASON + 1]].concat();
        assert!(matches!(
            JoinReply::from_bytes(&too_long),
            Err(WireError::TooLong { .. })
        ));
    }

    #[test]
    fn other_answers_are_refused() {
        for bytes in [
            [].as_slice(),
            &[2],
            &[0],
            &[0, 0, 0, 9],
            &[0, 0xff, 0xff],
            &[1, 0xff],
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
                Ok(JoinReply::Refused { .. }) => prop_assert!(false, "a refusal"),
                Err(_) => {}
            }
        }

        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(reply) = JoinReply::from_bytes(&bytes) {
                prop_assert_eq!(reply.to_bytes(), bytes);
            }
        }
    }
}
