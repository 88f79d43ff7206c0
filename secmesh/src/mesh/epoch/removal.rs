//! The operator's word that a node is out of the mesh.

use crate::mesh::crypto::{self, CryptoError, SignatureBytes, Signer};
use crate::mesh::genesis::Genesis;
use crate::mesh::ids::{MeshId, NodeId};
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/removal/1";

/// How old a removal may be when it is handed in on a node, in seconds. From peers it may be of any age.
pub const MAX_REMOVAL_AGE_S: u64 = 3_600;

/// A node that is to leave the mesh, for good: its id is never admitted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Removal {
    /// Mesh.
    pub mesh: MeshId,
    /// Who.
    pub node: NodeId,
    /// When the operator signed it, microseconds since 1970.
    pub issued_unix_us: u64,
}

impl Removal {
    /// Canonical bytes; what the operator signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(self.mesh.as_bytes())
            .fixed(self.node.as_bytes())
            .u64(self.issued_unix_us);
        e.finish()
    }

    /// Signs with the operator's key.
    pub fn sign(self, operator: &Signer) -> SignedRemoval {
        SignedRemoval {
            removal: self,
            signature: operator.sign(&self.to_bytes()),
        }
    }
}

/// A removal with the operator's signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedRemoval {
    /// The removal.
    pub removal: Removal,
    /// By the operator's key over [`Removal::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedRemoval {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.fixed(&self.removal.to_bytes()).fixed(&self.signature);
        e.finish()
    }

    /// Reads [`SignedRemoval::to_bytes`]; [`SignedRemoval::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, TAG)?;
        let signed = Self {
            removal: Removal {
                mesh: MeshId(d.fixed("mesh")?),
                node: NodeId(d.fixed("node")?),
                issued_unix_us: d.u64("issued_unix_us")?,
            },
            signature: d.fixed("signature")?,
        };
        d.finish()?;
        Ok(signed)
    }

    /// Checks the operator's signature; the mesh is the caller's to compare.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, genesis: &Genesis) -> Result<(), CryptoError> {
        crypto::verify(
            &genesis.operator_key,
            &self.removal.to_bytes(),
            &self.signature,
        )
    }
}
