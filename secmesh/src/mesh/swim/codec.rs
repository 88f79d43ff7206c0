//! Between foca's own form and ours: foca's bytes never leave the node.

use bytes::{Buf, BufMut};
use foca::{Codec, Header, Identity, Member, Message, State};

use super::message::{Life, MAX_UPDATES, Standing, SwimMessage, Update, What};
use crate::mesh::ids::NodeId;

const LIFE: usize = 16 + 8;
const HEADER: usize = LIFE + 2 + LIFE + 2 + LIFE;
const MEMBER: usize = LIFE + 2 + 1;
/// Most bytes of one of foca's packets: so much that no more than [`MAX_UPDATES`] fit.
pub(super) const MAX_PACKET: usize = HEADER + 2 + MAX_UPDATES * MEMBER;

/// A node is its id; which life of it is meant, the admission says. Nobody makes a new life up: not the
/// node ([`Identity::renew`]), and not a peer, whose word on a life that is not in the roster is refused.
impl Identity for Life {
    type Addr = NodeId;

    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeId {
        self.node
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.incarnation > adversary.incarnation
    }
}

/// Why foca's form cannot be read or written. Never seen: both ends of it are in this process.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct FormError(&'static str);

/// Writes and reads foca's form: every header has one length.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Form;

fn put_life(buf: &mut impl BufMut, life: &Life) {
    buf.put_slice(life.node.as_bytes());
    buf.put_u64(life.incarnation);
}

fn get_life(buf: &mut impl Buf) -> Result<Life, FormError> {
    let mut node = [0; 16];
    let short = |_| FormError("too short");
    buf.try_copy_to_slice(&mut node).map_err(short)?;
    let incarnation = buf.try_get_u64().map_err(short)?;
    Ok(Life {
        node: NodeId(node),
        incarnation,
    })
}

const NOBODY: Life = Life {
    node: NodeId([0; 16]),
    incarnation: 0,
};

impl Codec<Life> for Form {
    type Error = FormError;

    fn encode_header(
        &mut self,
        header: &Header<Life>,
        mut buf: impl BufMut,
    ) -> Result<(), FormError> {
        if buf.remaining_mut() < HEADER {
            return Err(FormError("no room"));
        }
        let (kind, number, life) = match &header.message {
            Message::Ping(number) => (1, *number, NOBODY),
            Message::Ack(number) => (2, *number, NOBODY),
            Message::PingReq {
                target,
                probe_number,
            } => (3, *probe_number, *target),
            Message::IndirectPing {
                origin,
                probe_number,
            } => (4, *probe_number, *origin),
            Message::IndirectAck {
                target,
                probe_number,
            } => (5, *probe_number, *target),
            Message::ForwardedAck {
                origin,
                probe_number,
            } => (6, *probe_number, *origin),
            Message::Announce => (7, 0, NOBODY),
            Message::Feed => (8, 0, NOBODY),
            Message::Gossip => (9, 0, NOBODY),
            Message::Broadcast => (10, 0, NOBODY),
            Message::TurnUndead => (11, 0, NOBODY),
        };
        put_life(&mut buf, &header.src);
        buf.put_u16(header.src_incarnation);
        put_life(&mut buf, &header.dst);
        buf.put_u8(kind);
        buf.put_u8(number);
        put_life(&mut buf, &life);
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<Life>, FormError> {
        if buf.remaining() < HEADER {
            return Err(FormError("too short"));
        }
        let src = get_life(&mut buf)?;
        let src_incarnation = buf.get_u16();
        let dst = get_life(&mut buf)?;
        let kind = buf.get_u8();
        let probe_number = buf.get_u8();
        let life = get_life(&mut buf)?;
        let (target, origin) = (life, life);
        let message = match kind {
            1 => Message::Ping(probe_number),
            2 => Message::Ack(probe_number),
            3 => Message::PingReq {
                target,
                probe_number,
            },
            4 => Message::IndirectPing {
                origin,
                probe_number,
            },
            5 => Message::IndirectAck {
                target,
                probe_number,
            },
            6 => Message::ForwardedAck {
                origin,
                probe_number,
            },
            7 => Message::Announce,
            8 => Message::Feed,
            9 => Message::Gossip,
            10 => Message::Broadcast,
            11 => Message::TurnUndead,
            _ => return Err(FormError("unknown code")),
        };
        Ok(Header {
            src,
            src_incarnation,
            dst,
            message,
        })
    }

    fn encode_member(
        &mut self,
        member: &Member<Life>,
        mut buf: impl BufMut,
    ) -> Result<(), FormError> {
        if buf.remaining_mut() < MEMBER {
            return Err(FormError("no room"));
        }
        put_life(&mut buf, member.id());
        buf.put_u16(member.incarnation());
        buf.put_u8(match member.state() {
            State::Alive => 1,
            State::Suspect => 2,
            State::Down => 3,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<Life>, FormError> {
        if buf.remaining() < MEMBER {
            return Err(FormError("too short"));
        }
        let life = get_life(&mut buf)?;
        let refutations = buf.get_u16();
        let state = match buf.get_u8() {
            1 => State::Alive,
            2 => State::Suspect,
            3 => State::Down,
            _ => return Err(FormError("unknown code")),
        };
        Ok(Member::new(life, refutations, state))
    }
}

/// A message of a peer, in foca's form.
pub(super) fn to_foca(src: Life, dst: Life, message: &SwimMessage) -> Result<Vec<u8>, FormError> {
    let probe = |number: &u8| *number;
    let header = Header {
        src,
        src_incarnation: message.refutations,
        dst,
        message: match &message.what {
            What::Ping { number } => Message::Ping(probe(number)),
            What::Ack { number } => Message::Ack(probe(number)),
            What::Request { target, number } => Message::PingReq {
                target: *target,
                probe_number: probe(number),
            },
            What::Indirect { origin, number } => Message::IndirectPing {
                origin: *origin,
                probe_number: probe(number),
            },
            What::IndirectAck { target, number } => Message::IndirectAck {
                target: *target,
                probe_number: probe(number),
            },
            What::Forwarded { origin, number } => Message::ForwardedAck {
                origin: *origin,
                probe_number: probe(number),
            },
            What::Announce => Message::Announce,
            What::Feed => Message::Feed,
            What::Gossip => Message::Gossip,
        },
    };
    let mut buf = Vec::with_capacity(MAX_PACKET);
    Form.encode_header(&header, &mut buf)?;
    if !message.updates.is_empty() {
        buf.put_u16(u16::try_from(message.updates.len()).unwrap_or(u16::MAX));
        for update in &message.updates {
            Form.encode_member(&to_member(update), &mut buf)?;
        }
    }
    Ok(buf)
}

/// An update, as foca has it.
pub(super) const fn to_member(update: &Update) -> Member<Life> {
    let state = match update.standing {
        Standing::Alive => State::Alive,
        Standing::Suspect => State::Suspect,
        Standing::Down => State::Down,
    };
    Member::new(update.life, update.refutations, state)
}

/// One of foca's packets as a message of ours; none for what is not said on the wire.
pub(super) fn from_foca(mut bytes: &[u8]) -> Result<Option<SwimMessage>, FormError> {
    let header = Form.decode_header(&mut bytes)?;
    let what = match header.message {
        Message::Ping(number) => What::Ping { number },
        Message::Ack(number) => What::Ack { number },
        Message::PingReq {
            target,
            probe_number,
        } => What::Request {
            target,
            number: probe_number,
        },
        Message::IndirectPing {
            origin,
            probe_number,
        } => What::Indirect {
            origin,
            number: probe_number,
        },
        Message::IndirectAck {
            target,
            probe_number,
        } => What::IndirectAck {
            target,
            number: probe_number,
        },
        Message::ForwardedAck {
            origin,
            probe_number,
        } => What::Forwarded {
            origin,
            number: probe_number,
        },
        Message::Announce => What::Announce,
        Message::Feed => What::Feed,
        Message::Gossip => What::Gossip,
        Message::Broadcast | Message::TurnUndead => return Ok(None),
    };
    let mut updates = Vec::new();
    if bytes.remaining() >= 2 {
        let count = usize::from(bytes.get_u16());
        for _ in 0..count.min(MAX_UPDATES) {
            let member = Form.decode_member(&mut bytes)?;
            updates.push(Update {
                life: *member.id(),
                refutations: member.incarnation(),
                standing: match member.state() {
                    State::Alive => Standing::Alive,
                    State::Suspect => Standing::Suspect,
                    State::Down => Standing::Down,
                },
            });
        }
    }
    Ok(Some(SwimMessage {
        incarnation: header.src.incarnation,
        refutations: header.src_incarnation,
        to: header.dst.incarnation,
        what,
        updates,
    }))
}

#[cfg(test)]
mod tests {
    use super::super::message::tests::any_message;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_into_focas_form_comes_out_of_it(mut message in any_message()) {
            let life = |incarnation| Life { node: NodeId([7; 16]), incarnation };
            if message.what == What::Announce {
                message.updates.clear();
            }
            let packet = to_foca(life(message.incarnation), life(message.to), &message).unwrap();
            prop_assert!(packet.len() <= MAX_PACKET);
            prop_assert_eq!(from_foca(&packet).unwrap(), Some(message));
        }
    }
}
