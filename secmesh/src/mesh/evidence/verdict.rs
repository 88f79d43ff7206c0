//! An operator's word on whether the mesh was right.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::addr::Prefix;
use crate::mesh::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use crate::mesh::ids::{Hash, IncidentId, MeshId};
use crate::mesh::vote::coded;
use crate::mesh::wire::{Decoder, Encoder, WireError};

const TAG: &str = "secmesh/operator-verdict/1";

/// Most incidents that one verdict is about.
pub const MAX_INCIDENTS: usize = 8;

coded!(
    /// What the operator says of a block.
    Ruling, "ruling", {
        /// The subject was harmless: whoever claimed to have seen it attack was wrong.
        FalsePositive = 1 "false_positive",
        /// The subject did attack.
        TruePositive = 2 "true_positive",
    }
);

/// An operator's verdict on the incidents about one subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorVerdict {
    /// Mesh.
    pub mesh: MeshId,
    /// Whom the incidents are about.
    pub subject: Prefix,
    /// What is said.
    pub ruling: Ruling,
    /// The incidents, in ascending order: 1 to [`MAX_INCIDENTS`]. So a verdict is about the
    /// blocks that were in force when it was drafted, which the operator is shown, and nothing earlier or later
    /// under the same address.
    pub incidents: Vec<IncidentId>,
    /// When it was signed, microseconds since 1970.
    pub issued_at_us: u64,
}

impl OperatorVerdict {
    /// Canonical bytes; what the operator signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(TAG);
        e.fixed(self.mesh.as_bytes())
            .prefix(&self.subject)
            .u8(self.ruling.code())
            .u8(u8::try_from(self.incidents.len()).unwrap_or(u8::MAX));
        for incident in &self.incidents {
            e.fixed(incident.as_bytes());
        }
        e.u64(self.issued_at_us);
        e.finish()
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(TAG)?;
        let mesh = MeshId(d.fixed("mesh")?);
        let subject = d.prefix("subject")?;
        let ruling = Ruling::from_code(d.u8("ruling")?)?;
        let count = usize::from(d.u8("number of incidents")?);
        if !(1..=MAX_INCIDENTS).contains(&count) {
            return Err(WireError::TooLong {
                field: "incidents",
                len: count,
                max: MAX_INCIDENTS,
            });
        }
        let mut incidents = Vec::new();
        for _ in 0..count {
            incidents.push(IncidentId(d.fixed("incident")?));
        }
        if !incidents.is_sorted_by(|a, b| a < b) {
            return Err(WireError::Invalid {
                field: "incidents",
                why: "not distinct and in ascending order",
            });
        }
        Ok(Self {
            mesh,
            subject,
            ruling,
            incidents,
            issued_at_us: d.u64("issued_at_us")?,
        })
    }

    /// Reads [`OperatorVerdict::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let verdict = Self::read(&mut d)?;
        d.finish()?;
        Ok(verdict)
    }

    /// Names it: the same in whosever log it is.
    pub fn id(&self) -> Hash {
        Hash(crypto::sha256(&self.to_bytes()))
    }

    /// Signs with the operator's key.
    pub fn sign(self, operator: &Signer) -> SignedVerdict {
        let signature = operator.sign(&self.to_bytes());
        SignedVerdict {
            verdict: self,
            signature,
        }
    }
}

/// A verdict with the operator's signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedVerdict {
    /// The verdict.
    pub verdict: OperatorVerdict,
    /// By the operator's key over [`OperatorVerdict::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedVerdict {
    pub(super) fn write(&self, e: &mut Encoder) {
        e.fixed(&self.verdict.to_bytes()).fixed(&self.signature);
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        Ok(Self {
            verdict: OperatorVerdict::read(d)?,
            signature: d.fixed("signature")?,
        })
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.write(&mut e);
        e.finish()
    }

    /// Reads [`SignedVerdict::to_bytes`]; [`SignedVerdict::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let signed = Self::read(&mut d)?;
        d.finish()?;
        Ok(signed)
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, operator: &PublicKey) -> Result<(), CryptoError> {
        crypto::verify(operator, &self.verdict.to_bytes(), &self.signature)
    }
}
