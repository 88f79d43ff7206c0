//! The genesis: what a mesh is, signed once by its operator.

use serde::Serialize;

use super::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use super::ids::{MeshId, Name};
use super::wire::{Decoder, Encoder, WireError};

/// A mesh in which everybody decides.
const TAG: &str = "secmesh/genesis/2";
/// A mesh with a committee: one number more. Each genesis has one form only.
const COMMITTEE_TAG: &str = "secmesh/genesis/3";
const SIGNED_TAG: &str = "secmesh/signed-genesis/2";

/// Longest time a mesh-wide block of one address may last (class 1), in seconds.
pub const MAX_BLOCK_TTL_S: u32 = 86_400;
/// Longest time a vote may count after it was signed, in seconds.
pub const MAX_VOTE_VALID_S: u32 = 600;
/// Largest clock difference that can be configured, in seconds.
pub const MAX_SKEW_S: u32 = 300;
/// Longest epoch, in seconds: a week.
pub const MAX_EPOCH_S: u32 = 604_800;
/// Longest probation, in epochs.
pub const MAX_PROBATION_EPOCHS: u32 = 1_000;
/// Fewest seats of a committee: fewer tolerate no liar.
pub const MIN_COMMITTEE: u32 = 4;
/// Most seats of a committee: with equal weights, two thirds of them still fit a certificate.
pub const MAX_COMMITTEE: u32 = 512;

/// Numbers all nodes of a mesh share. They are part of the mesh id, so they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Params {
    /// How long a mesh-wide block lasts, in seconds: 1 to 86,400. Longer means fewer votes for an
    /// attack that goes on; shorter means a wrong block is gone sooner.
    pub block_ttl_s: u32,
    /// How long a vote counts after it was signed, in seconds: 1 to 600.
    pub vote_valid_s: u32,
    /// How far the clocks of two nodes may differ, in seconds: 1 to 300.
    pub max_skew_s: u32,
    /// An epoch lasts this long, in seconds, unless the membership changes before: 1 to 604,800. Trust
    /// decays by a sixteenth per epoch, so longer epochs forget more slowly.
    pub epoch_s: u32,
    /// For how many epochs a node that joins a mesh of four or more has no weight: 0 to 1,000.
    pub probation_epochs: u32,
    /// How many nodes decide on behalf of all, drawn anew for each epoch: 4 to 512, or 0 if everybody decides. Fewer
    /// cost less traffic in a large mesh, and withstand fewer liars (see [`super::committee`]).
    pub committee: u32,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            block_ttl_s: 3_600,
            vote_valid_s: 120,
            max_skew_s: 30,
            epoch_s: 3_600,
            probation_epochs: 3,
            committee: 0,
        }
    }
}

impl Params {
    /// Checks the ranges.
    ///
    /// # Errors
    /// [`WireError::Invalid`] names the number that is out of range.
    pub fn check(&self) -> Result<(), WireError> {
        let ranges = [
            ("block_ttl_s", self.block_ttl_s, MAX_BLOCK_TTL_S),
            ("vote_valid_s", self.vote_valid_s, MAX_VOTE_VALID_S),
            ("max_skew_s", self.max_skew_s, MAX_SKEW_S),
            ("epoch_s", self.epoch_s, MAX_EPOCH_S),
            // From 0: no probation.
            (
                "probation_epochs",
                self.probation_epochs.saturating_add(1),
                MAX_PROBATION_EPOCHS + 1,
            ),
            // Or none.
            (
                "committee",
                match self.committee {
                    0 => 1,
                    1..MIN_COMMITTEE => 0,
                    seats => seats,
                },
                MAX_COMMITTEE,
            ),
        ];
        match ranges
            .iter()
            .find(|(_, value, max)| *value == 0 || value > max)
        {
            Some((field, ..)) => Err(WireError::Invalid {
                field,
                why: "out of range (block_ttl_s 1..86400, vote_valid_s 1..600, max_skew_s 1..300, epoch_s 1..604800, probation_epochs 0..1000, committee 0 or 4..512)",
            }),
            None => Ok(()),
        }
    }
}

/// What a mesh is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Genesis {
    /// Name for people; not unique.
    pub mesh_name: Name,
    /// Key that signs tickets, first node and releases.
    #[serde(skip)]
    pub operator_key: PublicKey,
    /// When it was made, microseconds since 1970.
    pub created_unix_us: u64,
    /// Numbers all nodes share.
    pub params: Params,
}

impl Genesis {
    /// Canonical bytes; what the operator signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let committee = self.params.committee;
        let mut e = Encoder::tagged(if committee == 0 { TAG } else { COMMITTEE_TAG });
        e.text(&self.mesh_name)
            .fixed(&self.operator_key)
            .u64(self.created_unix_us)
            .u32(self.params.block_ttl_s)
            .u32(self.params.vote_valid_s)
            .u32(self.params.max_skew_s)
            .u32(self.params.epoch_s)
            .u32(self.params.probation_epochs);
        if committee != 0 {
            e.u32(committee);
        }
        e.finish()
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        let with_committee = d.next_is_tag(COMMITTEE_TAG);
        d.expect_tag(if with_committee { COMMITTEE_TAG } else { TAG })?;
        let genesis = Self {
            mesh_name: d.text("mesh_name")?,
            operator_key: d.fixed("operator_key")?,
            created_unix_us: d.u64("created_unix_us")?,
            params: Params {
                block_ttl_s: d.u32("block_ttl_s")?,
                vote_valid_s: d.u32("vote_valid_s")?,
                max_skew_s: d.u32("max_skew_s")?,
                epoch_s: d.u32("epoch_s")?,
                probation_epochs: d.u32("probation_epochs")?,
                committee: if with_committee {
                    d.u32("committee")?
                } else {
                    0
                },
            },
        };
        if with_committee && genesis.params.committee == 0 {
            return Err(WireError::Invalid {
                field: "committee",
                why: "zero in the form for meshes with a committee",
            });
        }
        genesis.params.check()?;
        Ok(genesis)
    }

    /// SHA-256 of the canonical bytes.
    pub fn mesh_id(&self) -> MeshId {
        MeshId(crypto::sha256(&self.to_bytes()))
    }

    /// Signs with the operator's key; `operator_key` must be its public half.
    pub fn sign(self, operator: &Signer) -> SignedGenesis {
        let signature = operator.sign(&self.to_bytes());
        SignedGenesis {
            genesis: self,
            signature,
        }
    }
}

/// A genesis with the operator's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedGenesis {
    /// The genesis.
    pub genesis: Genesis,
    /// By `genesis.operator_key` over [`Genesis::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedGenesis {
    /// Canonical bytes, for the disk and for a joiner.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(SIGNED_TAG);
        e.fixed(&self.genesis.to_bytes()).fixed(&self.signature);
        e.finish()
    }

    /// Reads [`SignedGenesis::to_bytes`]. Does not check the signature: see
    /// [`SignedGenesis::verify`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical or out of range.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, SIGNED_TAG)?;
        let signed = Self {
            genesis: Genesis::read(&mut d)?,
            signature: d.fixed("signature")?,
        };
        d.finish()?;
        Ok(signed)
    }

    /// Checks the operator's signature. Whether this is the mesh one means to be in is for the
    /// caller to compare by [`Genesis::mesh_id`].
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self) -> Result<(), CryptoError> {
        crypto::verify(
            &self.genesis.operator_key,
            &self.genesis.to_bytes(),
            &self.signature,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signed() -> SignedGenesis {
        let operator = Signer::from_secret(&[1; 32]);
        Genesis {
            mesh_name: Name::new("lab").unwrap(),
            operator_key: operator.public(),
            created_unix_us: 1_700_000_000_000_000,
            params: Params::default(),
        }
        .sign(&operator)
    }

    #[test]
    fn survives_the_disk_and_verifies() {
        let signed = signed();
        let read = SignedGenesis::from_bytes(&signed.to_bytes()).unwrap();
        assert_eq!(read, signed);
        assert_eq!(read.verify(), Ok(()));
    }

    #[test]
    fn any_changed_byte_is_refused() {
        let bytes = signed().to_bytes();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            if let Ok(read) = SignedGenesis::from_bytes(&changed) {
                assert!(read.verify().is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for params in [
            Params {
                block_ttl_s: 86_401,
                ..Params::default()
            },
            Params {
                vote_valid_s: 0,
                ..Params::default()
            },
            Params {
                max_skew_s: 301,
                ..Params::default()
            },
            Params {
                epoch_s: 0,
                ..Params::default()
            },
            Params {
                probation_epochs: 1_001,
                ..Params::default()
            },
            Params {
                committee: 3,
                ..Params::default()
            },
            Params {
                committee: 513,
                ..Params::default()
            },
        ] {
            let mut changed = signed();
            changed.genesis.params = params;
            assert!(SignedGenesis::from_bytes(&changed.to_bytes()).is_err());
        }
    }

    #[test]
    fn each_mesh_has_one_form() {
        for (committee, with) in [(0, false), (4, true), (512, true)] {
            let mut mesh = signed().genesis;
            mesh.params.committee = committee;
            let bytes = mesh.to_bytes();
            assert_eq!(Decoder::untagged(&bytes).next_is_tag(COMMITTEE_TAG), with);
            assert_eq!(Genesis::read(&mut Decoder::untagged(&bytes)), Ok(mesh));
        }
        // Nobody decides for all, said in the form for those who do.
        let mut mesh = signed().genesis;
        mesh.params.committee = 4;
        let mut bytes = mesh.to_bytes();
        let at = bytes.len() - 1;
        bytes[at] = 0;
        let read = Genesis::read(&mut Decoder::untagged(&bytes));
        assert!(
            matches!(
                read,
                Err(WireError::Invalid {
                    field: "committee",
                    ..
                })
            ),
            "{read:?}"
        );
    }
}
