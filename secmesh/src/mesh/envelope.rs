//! Envelopes: what makes a message safe in the hands of a carrier that nobody trusts.
//!
//! A direct connection proves who speaks by TLS. Through a broker each message has to prove it by itself: an
//! envelope is signed by the sender's TLS key, names mesh and recipient, and carries two nonces and a number,
//! by which the recipient knows that it was written for this very exchange, and in which place (see
//! `transport::nats::pairing`).

use bytes::Bytes;

use super::crypto::{CryptoError, PublicKey, SignatureBytes, Signer, verify};
use super::ids::{MeshId, NodeId};
use super::wire::{Decoder, Encoder, MAX_MESSAGE, WireError};

/// Domain tag of an envelope.
const TAG: &str = "secmesh/envelope/1";
const SIGNATURE: usize = 64;
/// Bytes of an envelope around its body.
pub const OVERHEAD: usize = 1 + TAG.len() + 32 + 32 + 16 + 16 + 16 + 8 + 1 + SIGNATURE;
/// Largest envelope, in bytes.
pub const MAX_ENVELOPE: usize = OVERHEAD + MAX_MESSAGE;

/// 16 random bytes that stand for one end of one exchange.
pub type Nonce = [u8; 16];
/// In place of the recipient's nonce by who does not know it.
pub const NO_NONCE: Nonce = [0; 16];

/// What an envelope is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvelopeKind {
    /// Asks for an exchange; number 0, no nonce of the recipient, no body.
    Hello = 1,
    /// Answers a Hello, whose nonce it repeats; number 0, no body.
    Answer = 2,
    /// A sign of life; no body.
    Heartbeat = 3,
    /// A message, in the body.
    Message = 4,
    /// The sender stops; no body.
    Farewell = 5,
}

impl EnvelopeKind {
    fn from_byte(byte: u8) -> Option<Self> {
        [
            Self::Hello,
            Self::Answer,
            Self::Heartbeat,
            Self::Message,
            Self::Farewell,
        ]
        .into_iter()
        .find(|kind| *kind as u8 == byte)
    }

    /// Whether it has a place in an exchange, rather than beginning one.
    pub const fn numbered(self) -> bool {
        matches!(self, Self::Heartbeat | Self::Message | Self::Farewell)
    }
}

/// An envelope without its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The mesh.
    pub mesh: MeshId,
    /// The sender's Ed25519 TLS key. Who holds it is for the recipient to know.
    pub sender: PublicKey,
    /// Whom it is for.
    pub recipient: NodeId,
    /// The sender's nonce; not zero.
    pub nonce: Nonce,
    /// The recipient's nonce; [`NO_NONCE`] in a Hello, and only there.
    pub echo: Nonce,
    /// Place in the exchange, from 1; 0 before it has begun.
    pub sequence: u64,
    /// What it is for.
    pub kind: EnvelopeKind,
    /// The message; empty for the other kinds.
    pub body: Bytes,
}

/// An envelope and its signature, not yet verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedEnvelope {
    /// What was signed.
    pub envelope: Envelope,
    /// By the sender's key.
    pub signature: SignatureBytes,
}

impl Envelope {
    /// What is signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(self.mesh.as_bytes());
        e.fixed(&self.sender);
        e.fixed(self.recipient.as_bytes());
        e.fixed(&self.nonce);
        e.fixed(&self.echo);
        e.u64(self.sequence);
        e.u8(self.kind as u8);
        e.fixed(&self.body);
        e.finish()
    }

    /// Signs it; `signer` has the secret to [`Envelope::sender`].
    pub fn sign(self, signer: &Signer) -> SignedEnvelope {
        let signature = signer.sign(&self.to_bytes());
        SignedEnvelope {
            envelope: self,
            signature,
        }
    }

    fn check(&self) -> Result<(), WireError> {
        let invalid = |field, why| Err(WireError::Invalid { field, why });
        if self.nonce == NO_NONCE {
            return invalid("nonce", "it is zero");
        }
        if (self.echo == NO_NONCE) != (self.kind == EnvelopeKind::Hello) {
            return invalid("echo", "it is zero in a hello, and only there");
        }
        if (self.sequence == 0) == self.kind.numbered() {
            return invalid("sequence", "it counts from 1 once the exchange has begun");
        }
        if !self.body.is_empty() && self.kind != EnvelopeKind::Message {
            return invalid("body", "only a message has one");
        }
        Ok(())
    }
}

impl SignedEnvelope {
    /// The envelope, then the signature.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.envelope.to_bytes();
        bytes.extend_from_slice(&self.signature);
        bytes
    }

    /// Reads an envelope, all of `bytes`. Its signature is not looked at: see [`SignedEnvelope::verify`].
    ///
    /// # Errors
    /// [`WireError`] for whatever [`SignedEnvelope::to_bytes`] does not write, and for more than
    /// [`MAX_ENVELOPE`] bytes.
    pub fn from_bytes(bytes: &Bytes) -> Result<Self, WireError> {
        if bytes.len() > MAX_ENVELOPE {
            return Err(WireError::TooLong {
                field: "envelope",
                len: bytes.len(),
                max: MAX_ENVELOPE,
            });
        }
        let mut d = Decoder::tagged(bytes, TAG)?;
        let mesh = MeshId(d.fixed("mesh")?);
        let sender = d.fixed("sender")?;
        let recipient = NodeId(d.fixed("recipient")?);
        let nonce = d.fixed("nonce")?;
        let echo = d.fixed("echo")?;
        let sequence = d.u64("sequence")?;
        let kind = EnvelopeKind::from_byte(d.u8("kind")?).ok_or(WireError::Invalid {
            field: "kind",
            why: "not one that is known",
        })?;
        let body_len = d
            .rest()
            .len()
            .checked_sub(SIGNATURE)
            .ok_or(WireError::Truncated {
                field: "signature",
                wanted: SIGNATURE,
                left: d.rest().len(),
            })?;
        let body = bytes.slice_ref(d.take_exactly("body", body_len)?);
        let signature = d.fixed("signature")?;
        d.finish()?;
        let envelope = Envelope {
            mesh,
            sender,
            recipient,
            nonce,
            echo,
            sequence,
            kind,
            body,
        };
        envelope.check()?;
        Ok(Self {
            envelope,
            signature,
        })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`CryptoError`]: the key is not usable, or the signature is not its.
    pub fn verify(&self) -> Result<(), CryptoError> {
        verify(
            &self.envelope.sender,
            &self.envelope.to_bytes(),
            &self.signature,
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn envelope(kind: EnvelopeKind, body: &[u8]) -> Envelope {
        Envelope {
            mesh: MeshId([1; 32]),
            sender: Signer::from_secret(&[1; 32]).public(),
            recipient: NodeId([2; 16]),
            nonce: [3; 16],
            echo: if kind == EnvelopeKind::Hello {
                NO_NONCE
            } else {
                [4; 16]
            },
            sequence: u64::from(kind.numbered()),
            kind,
            body: Bytes::copy_from_slice(body),
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(kind in 1..=5u8, body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let kind = EnvelopeKind::from_byte(kind).unwrap();
            let body = if kind == EnvelopeKind::Message { body } else { Vec::new() };
            let signed = envelope(kind, &body).sign(&Signer::from_secret(&[1; 32]));
            let bytes = Bytes::from(signed.to_bytes());
            let read = SignedEnvelope::from_bytes(&bytes).unwrap();
            prop_assert_eq!(&read, &signed);
            prop_assert!(read.verify().is_ok());
        }

        #[test]
        fn an_altered_byte_is_refused(at in 0..(OVERHEAD + 5), by in 1..=255u8) {
            let signed = envelope(EnvelopeKind::Message, b"hello").sign(&Signer::from_secret(&[1; 32]));
            let mut bytes = signed.to_bytes();
            bytes[at] ^= by;
            let read = SignedEnvelope::from_bytes(&Bytes::from(bytes));
            prop_assert!(!read.is_ok_and(|read| read.verify().is_ok()));
        }
    }

    #[test]
    fn what_nobody_writes_is_refused() {
        let signer = Signer::from_secret(&[1; 32]);
        let refused = |change: fn(&mut Envelope), kind| {
            let mut envelope = envelope(kind, b"");
            change(&mut envelope);
            let bytes = Bytes::from(envelope.sign(&signer).to_bytes());
            assert!(SignedEnvelope::from_bytes(&bytes).is_err(), "{kind:?}");
        };
        refused(|e| e.nonce = NO_NONCE, EnvelopeKind::Message);
        refused(|e| e.echo = NO_NONCE, EnvelopeKind::Message);
        refused(|e| e.echo = [9; 16], EnvelopeKind::Hello);
        refused(|e| e.sequence = 0, EnvelopeKind::Heartbeat);
        refused(|e| e.sequence = 1, EnvelopeKind::Answer);
        refused(
            |e| e.body = Bytes::from_static(b"x"),
            EnvelopeKind::Farewell,
        );
        let most = vec![7; MAX_MESSAGE];
        let bytes = Bytes::from(
            envelope(EnvelopeKind::Message, &most)
                .sign(&signer)
                .to_bytes(),
        );
        assert_eq!(bytes.len(), MAX_ENVELOPE);
        assert!(SignedEnvelope::from_bytes(&bytes).is_ok());
        let more = Bytes::from([&bytes[..], &[0]].concat());
        assert!(SignedEnvelope::from_bytes(&more).is_err());
    }
}
