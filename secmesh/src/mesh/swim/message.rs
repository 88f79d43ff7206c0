//! What is said about who is still there: message kind 32.
//!
//! The sender and the receiver are not in it: the connection has proved the one and is the other. What is
//! in it of them is their incarnation, so that a message for a machine that was set up anew since counts
//! for nothing.

use crate::mesh::ids::NodeId;
use crate::mesh::wire::{Decoder, Encoder, WireError};

/// Most nodes that one message tells about.
pub const MAX_UPDATES: usize = 32;
/// Most bytes after the kind.
pub const MAX_BODY: usize = HEADER + 1 + MAX_UPDATES * UPDATE;
/// Bytes of the longest header.
const HEADER: usize = 8 + 2 + 8 + 1 + 1 + PEER;
/// Bytes of a node's name.
const PEER: usize = 16 + 8;
/// Bytes of one update.
const UPDATE: usize = PEER + 2 + 1;

/// A node in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// The incarnation in its admission.
    pub incarnation: u64,
}

/// What the sender thinks of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It answers.
    Alive,
    /// It did not answer.
    Suspect,
    /// It did not answer, and nothing was heard of it since.
    Down,
}

/// A node, and what the sender thinks of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    /// The node.
    pub life: Life,
    /// How often the node has refuted a suspicion, as the sender knows it. Only the node itself raises this.
    pub refutations: u16,
    /// What the sender thinks.
    pub standing: Standing,
}

/// What the sender wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// An answer.
    Ping {
        /// Comes back in the answer.
        number: u8,
    },
    /// Answers a ping.
    Ack {
        /// The ping's.
        number: u8,
    },
    /// That the receiver pings somebody for the sender.
    Request {
        /// Whom.
        target: Life,
        /// The sender's.
        number: u8,
    },
    /// An answer, on behalf of somebody.
    Indirect {
        /// On whose behalf.
        origin: Life,
        /// That one's number.
        number: u8,
    },
    /// Answers that.
    IndirectAck {
        /// On whose behalf it was.
        target: Life,
        /// That one's number.
        number: u8,
    },
    /// Hands such an answer on.
    Forwarded {
        /// Who answered.
        origin: Life,
        /// The number.
        number: u8,
    },
    /// To hear who is there.
    Announce,
    /// Says who is there.
    Feed,
    /// Says what is new.
    Gossip,
}

/// A message of failure detection, at most [`MAX_BODY`] bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwimMessage {
    /// The sender's incarnation.
    pub incarnation: u64,
    /// How often the sender has refuted a suspicion.
    pub refutations: u16,
    /// The incarnation that the receiver has for the sender.
    pub to: u64,
    /// What it wants.
    pub what: What,
    /// News of others; at most [`MAX_UPDATES`].
    pub updates: Vec<Update>,
}

fn write_life(e: &mut Encoder, life: &Life) {
    e.fixed(life.node.as_bytes()).u64(life.incarnation);
}

fn read_life(d: &mut Decoder<'_>) -> Result<Life, WireError> {
    Ok(Life {
        node: NodeId(d.fixed("node")?),
        incarnation: d.u64("incarnation")?,
    })
}

impl SwimMessage {
    /// Its kind on the wire.
    pub const KIND: u8 = 32;

    /// Writes what follows the kind.
    pub fn write(&self, e: &mut Encoder) {
        e.u64(self.incarnation).u16(self.refutations).u64(self.to);
        match &self.what {
            What::Ping { number } => e.u8(1).u8(*number),
            What::Ack { number } => e.u8(2).u8(*number),
            What::Request { target, number } => {
                write_life(e.u8(3).u8(*number), target);
                &mut *e
            }
            What::Indirect { origin, number } => {
                write_life(e.u8(4).u8(*number), origin);
                &mut *e
            }
            What::IndirectAck { target, number } => {
                write_life(e.u8(5).u8(*number), target);
                &mut *e
            }
            What::Forwarded { origin, number } => {
                write_life(e.u8(6).u8(*number), origin);
                &mut *e
            }
            What::Announce => e.u8(7),
            What::Feed => e.u8(8),
            What::Gossip => e.u8(9),
        };
        let updates = self.updates.iter().take(MAX_UPDATES);
        e.u8(u8::try_from(updates.len()).unwrap_or(u8::MAX));
        for update in updates {
            write_life(e, &update.life);
            e.u16(update.refutations).u8(match update.standing {
                Standing::Alive => 1,
                Standing::Suspect => 2,
                Standing::Down => 3,
            });
        }
    }

    /// Reads what follows the kind.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical, or longer than [`MAX_BODY`].
    pub fn from_body(body: &[u8]) -> Result<Self, WireError> {
        let too_long = |field, len, max| Err(WireError::TooLong { field, len, max });
        if body.len() > MAX_BODY {
            return too_long("failure detection", body.len(), MAX_BODY);
        }
        let mut d = Decoder::untagged(body);
        let incarnation = d.u64("incarnation")?;
        let refutations = d.u16("refutations")?;
        let to = d.u64("receiver's incarnation")?;
        let what = match d.u8("what")? {
            7 => What::Announce,
            8 => What::Feed,
            9 => What::Gossip,
            kind @ 1..=6 => {
                let number = d.u8("number")?;
                match kind {
                    1 => What::Ping { number },
                    2 => What::Ack { number },
                    3 => What::Request {
                        target: read_life(&mut d)?,
                        number,
                    },
                    4 => What::Indirect {
                        origin: read_life(&mut d)?,
                        number,
                    },
                    5 => What::IndirectAck {
                        target: read_life(&mut d)?,
                        number,
                    },
                    _ => What::Forwarded {
                        origin: read_life(&mut d)?,
                        number,
                    },
                }
            }
            _ => {
                return Err(WireError::Invalid {
                    field: "what",
                    why: "unknown code",
                });
            }
        };
        let count = usize::from(d.u8("number of updates")?);
        if count > MAX_UPDATES {
            return too_long("updates", count, MAX_UPDATES);
        }
        let mut updates = Vec::with_capacity(count);
        for _ in 0..count {
            updates.push(Update {
                life: read_life(&mut d)?,
                refutations: d.u16("refutations")?,
                standing: match d.u8("standing")? {
                    1 => Standing::Alive,
                    2 => Standing::Suspect,
                    3 => Standing::Down,
                    _ => {
                        return Err(WireError::Invalid {
                            field: "standing",
                            why: "unknown code",
                        });
                    }
                },
            });
        }
        d.finish()?;
        Ok(Self {
            incarnation,
            refutations,
            to,
            what,
            updates,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(message: &SwimMessage) -> Vec<u8> {
        let mut e = Encoder::default();
        message.write(&mut e);
        e.finish()
    }

    fn any_life() -> impl Strategy<Value = Life> {
        any::<([u8; 16], u64)>().prop_map(|(node, incarnation)| Life {
            node: NodeId(node),
            incarnation,
        })
    }

    /// Any message.
    pub fn any_message() -> impl Strategy<Value = SwimMessage> {
        let what =
            (1..10_u8, any::<u8>(), any_life()).prop_map(|(kind, number, life)| match kind {
                1 => What::Ping { number },
                2 => What::Ack { number },
                3 => What::Request {
                    target: life,
                    number,
                },
                4 => What::Indirect {
                    origin: life,
                    number,
                },
                5 => What::IndirectAck {
                    target: life,
                    number,
                },
                6 => What::Forwarded {
                    origin: life,
                    number,
                },
                7 => What::Announce,
                8 => What::Feed,
                _ => What::Gossip,
            });
        let standing = prop_oneof![
            Just(Standing::Alive),
            Just(Standing::Suspect),
            Just(Standing::Down)
        ];
        let update =
            (any_life(), any::<u16>(), standing).prop_map(|(life, refutations, standing)| Update {
                life,
                refutations,
                standing,
            });
        let updates = proptest::collection::vec(update, 0..=MAX_UPDATES);
        (any::<u64>(), any::<u16>(), any::<u64>(), what, updates).prop_map(
            |(incarnation, refutations, to, what, updates)| SwimMessage {
                incarnation,
                refutations,
                to,
                what,
                updates,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(message in any_message()) {
            let written = bytes(&message);
            prop_assert!(written.len() <= MAX_BODY);
            prop_assert_eq!(SwimMessage::from_body(&written), Ok(message));
        }

        #[test]
        fn noise_is_read_and_written_the_same_or_refused(
            head in proptest::collection::vec(any::<u8>(), 18), what in 0..12_u8,
            tail in proptest::collection::vec(any::<u8>(), 0..90),
        ) {
            let body = [head, vec![what], tail].concat();
            if let Ok(message) = SwimMessage::from_body(&body) {
                prop_assert_eq!(bytes(&message), body);
            }
        }
    }

    #[test]
    fn one_that_names_too_many_is_refused() {
        let update = Update {
            life: Life {
                node: NodeId([1; 16]),
                incarnation: 1,
            },
            refutations: 0,
            standing: Standing::Alive,
        };
        let mut message = SwimMessage {
            incarnation: 1,
            refutations: 0,
            to: 1,
            what: What::Gossip,
            updates: vec![update; MAX_UPDATES],
        };
        let full = bytes(&message);
        let mut over = full.clone();
        over[19] += 1;
        over.extend_from_slice(&full[20..20 + 27]);
        assert!(matches!(
            SwimMessage::from_body(&over),
            Err(WireError::TooLong { .. })
        ));
        // A sender of ours never writes one.
        message.updates.push(update);
        assert_eq!(bytes(&message), full);
    }
}
