//! The ML-DSA-44 signature beside the precommits: what an epoch record rests on once Ed25519 does no more.
//!
//! It is too long (2,420 bytes) to travel with every precommit, and it is not needed to decide. So each voter
//! of the epoch before seals the record after it was certified, and nodes keep the seals of the current
//! epoch: since a record names the one before it by hash, `T_hi` of seals on one record seal the whole chain.

use crate::mesh::crypto;
use crate::mesh::ids::{Hash, MeshId, NodeId};
use crate::mesh::pq::{PUBLIC_KEY, PqError, PqPublic, PqSigner, SIGNATURE};
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/epoch-seal/1";

/// What is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sealed {
    /// Mesh.
    pub mesh: MeshId,
    /// Number of the epoch.
    pub number: u64,
    /// Hash of its record.
    pub hash: Hash,
    /// Who seals: a voter of the epoch before.
    pub node: NodeId,
}

impl Sealed {
    /// Canonical bytes; what is signed.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(self.mesh.as_bytes())
            .u64(self.number)
            .fixed(self.hash.as_bytes())
            .fixed(self.node.as_bytes());
        e.finish()
    }

    /// Signs with the node's ML-DSA-44 key. Draws random bytes: two seals of one record differ.
    ///
    /// # Errors
    /// [`PqError::CannotSign`].
    pub fn sign(self, key: &PqSigner) -> Result<EpochSeal, PqError> {
        Ok(EpochSeal {
            signature: key.sign(&self.to_bytes())?,
            key: key.public().clone(),
            sealed: self,
        })
    }
}

/// A seal with its signature and the key that made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochSeal {
    /// What is sealed.
    pub sealed: Sealed,
    /// The key; the node's record holds its hash.
    pub key: PqPublic,
    /// By that key over [`Sealed::to_bytes`].
    pub signature: Box<[u8; SIGNATURE]>,
}

impl EpochSeal {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.fixed(&self.sealed.to_bytes())
            .fixed(self.key.as_bytes())
            .fixed(self.signature.as_slice());
        e.finish()
    }

    /// Reads [`EpochSeal::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, TAG)?;
        let sealed = Sealed {
            mesh: MeshId(d.fixed("mesh")?),
            number: d.u64("number")?,
            hash: Hash(d.fixed("hash")?),
            node: NodeId(d.fixed("node")?),
        };
        let key = d.take_exactly("key", PUBLIC_KEY)?;
        let key = PqPublic::from_bytes(key).map_err(|_| WireError::Invalid {
            field: "key",
            why: "not an ML-DSA-44 key",
        })?;
        let signature = Box::new(d.fixed::<SIGNATURE>("signature")?);
        d.finish()?;
        Ok(Self {
            sealed,
            key,
            signature,
        })
    }

    /// Checks the signature, and that the key is the one whose hash a node's record holds.
    ///
    /// # Errors
    /// [`PqError`].
    pub fn verify(&self, key_hash: &[u8; 32]) -> Result<(), PqError> {
        if crypto::sha256(self.key.as_bytes()) != *key_hash {
            return Err(PqError::MalformedKey);
        }
        self.key
            .verify(&self.sealed.to_bytes(), self.signature.as_slice())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal() -> EpochSeal {
        Sealed {
            mesh: MeshId([1; 32]),
            number: 7,
            hash: Hash([2; 32]),
            node: NodeId([3; 16]),
        }
        .sign(&PqSigner::from_seed(&[9; 32]).unwrap())
        .unwrap()
    }

    #[test]
    fn a_seal_survives_the_wire_and_any_changed_byte_breaks_it() {
        let seal = seal();
        let bytes = seal.to_bytes();
        let hash = seal.key.hash();
        assert_eq!(EpochSeal::from_bytes(&bytes).as_ref(), Ok(&seal));
        assert_eq!(seal.verify(&hash), Ok(()));
        for at in (0..bytes.len()).step_by(37) {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(read) = EpochSeal::from_bytes(&changed) {
                assert!(read.verify(&hash).is_err(), "byte {at}");
            }
        }
        assert!(EpochSeal::from_bytes(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn a_key_that_the_record_does_not_name_seals_nothing() {
        let other = PqSigner::from_seed(&[8; 32]).unwrap().public().hash();
        assert_eq!(seal().verify(&other), Err(PqError::MalformedKey));
    }
}
