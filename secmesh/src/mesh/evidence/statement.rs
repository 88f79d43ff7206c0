//! One statement: a signed head and the body that it commits to.

use super::body::Body;
use crate::mesh::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::wire::{Decoder, Encoder, WireError};

const HEAD_TAG: &str = "secmesh/evidence/1";

/// Largest body, in bytes. A dossier of eight votes has some 1,600; the rest is room for proofs.
pub const MAX_BODY: usize = 12_288;
/// Largest statement, in bytes.
pub const MAX_STATEMENT: usize = MAX_BODY + 256;

/// What is signed. It is of one size whatever the body, so that two of them, which prove a lie, fit
/// anywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Mesh.
    pub mesh: MeshId,
    /// Who says it.
    pub author: NodeId,
    /// Its place in the author's log, from 0.
    pub sequence: u64,
    /// Root of the author's log before it: whoever agrees on one head agrees on all before.
    pub before: Hash,
    /// When it was signed, microseconds since 1970 by the author's clock.
    pub made_at_us: u64,
    /// [`Body::hash`].
    pub body: Hash,
}

impl Head {
    /// Canonical bytes; what the author signs, and the leaf of its log.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(HEAD_TAG);
        e.fixed(self.mesh.as_bytes())
            .fixed(self.author.as_bytes())
            .u64(self.sequence)
            .fixed(self.before.as_bytes())
            .u64(self.made_at_us)
            .fixed(self.body.as_bytes());
        e.finish()
    }

    /// Signs with the author's vote key.
    pub fn sign(self, author: &Signer) -> SignedHead {
        SignedHead {
            head: self,
            signature: author.sign(&self.to_bytes()),
        }
    }
}

/// A head with its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedHead {
    /// The head.
    pub head: Head,
    /// By the author's vote key over [`Head::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedHead {
    pub(super) fn write(&self, e: &mut Encoder) {
        e.fixed(&self.head.to_bytes()).fixed(&self.signature);
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(HEAD_TAG)?;
        Ok(Self {
            head: Head {
                mesh: MeshId(d.fixed("mesh")?),
                author: NodeId(d.fixed("author")?),
                sequence: d.u64("sequence")?,
                before: Hash(d.fixed("root before")?),
                made_at_us: d.u64("made_at_us")?,
                body: Hash(d.fixed("body hash")?),
            },
            signature: d.fixed("signature")?,
        })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, key: &PublicKey) -> Result<(), CryptoError> {
        crypto::verify(key, &self.head.to_bytes(), &self.signature)
    }
}

/// A statement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// Who says it, where in its log.
    pub signed: SignedHead,
    /// What is said.
    pub body: Body,
}

impl Statement {
    /// The next statement of a log with this size and root.
    pub fn new(
        mesh: MeshId,
        author: &Signer,
        node: NodeId,
        (sequence, before): (u64, Hash),
        made_at_us: u64,
        body: Body,
    ) -> Self {
        let head = Head {
            mesh,
            author: node,
            sequence,
            before,
            made_at_us,
            body: body.hash(),
        };
        Self {
            signed: head.sign(author),
            body,
        }
    }

    /// The head.
    pub const fn head(&self) -> &Head {
        &self.signed.head
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.signed.write(&mut e);
        e.fixed(&self.body.to_bytes());
        e.finish()
    }

    /// Reads [`Statement::to_bytes`], and checks that the head commits to the body; the signature is
    /// checked by [`SignedHead::verify`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_STATEMENT {
            return Err(WireError::TooLong {
                field: "statement",
                len: bytes.len(),
                max: MAX_STATEMENT,
            });
        }
        let mut d = Decoder::untagged(bytes);
        let signed = SignedHead::read(&mut d)?;
        let body = d.rest();
        if body.len() > MAX_BODY {
            return Err(WireError::TooLong {
                field: "statement body",
                len: body.len(),
                max: MAX_BODY,
            });
        }
        let body = Body::from_bytes(body)?;
        if body.hash() != signed.head.body {
            return Err(WireError::Invalid {
                field: "body hash",
                why: "the head commits to another body",
            });
        }
        Ok(Self { signed, body })
    }
}
