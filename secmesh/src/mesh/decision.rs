//! Decisions: an action with what warrants it.

use super::cert::{CertVerdict, Certificate};
use super::crypto::{self, CryptoError, SignatureBytes, Signer};
use super::genesis::Genesis;
use super::ids::{DecisionId, Hash, IncidentId, MeshId, NodeId};
use super::subject::Subject;
use super::vote::{Action, ActionError, ActionKind, AttackClass, bucket_of};
use super::wire::{Decoder, Encoder, WireError};

const RELEASE_TAG: &str = "secmesh/operator-release/1";
const WARRANT_TAG: &str = "secmesh/warrant/1";

/// Longest time an operator's release may be used after it was signed, in seconds.
pub const MAX_RELEASE_VALID_S: u32 = 3_600;

/// Why an operator's release does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReleaseError {
    /// It is for another mesh.
    #[error("the release is for mesh {0}")]
    WrongMesh(MeshId),
    /// Subject or duration cannot be.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// The incident does not follow from the rest, or the validity is out of range.
    #[error("the release contradicts itself; sign a new one (secmesh unblock)")]
    Malformed,
    /// Not the operator's signature.
    #[error("the operator's signature on the release: {0}")]
    Signature(#[from] CryptoError),
}

/// Whether this is what an operator's signature alone may bring about: everything but blocks.
fn is_ordered(action: &Action) -> bool {
    let ordered = match (action.kind, action.subject) {
        (ActionKind::Release, Subject::Net(prefix)) => Action::release(prefix),
        (ActionKind::Quarantine, Subject::Node(node)) => OperatorRelease::quarantine(node),
        (ActionKind::Readmit, Subject::Node(node)) => Action::readmit(node),
        _ => return false,
    };
    *action == ordered
}

/// An operator's word that a block shall end, or that a node is cut off or taken back; it takes no votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OperatorRelease {
    /// Mesh.
    pub mesh: MeshId,
    /// Hash of the epoch in which it was signed; part of the incident id.
    pub epoch_hash: Hash,
    /// What is ordered.
    pub action: Action,
    /// The incident id of `action` in the bucket of `issued_at_us`.
    pub incident: IncidentId,
    /// When it was signed, microseconds since 1970.
    pub issued_at_us: u64,
    /// How long it may be used, in seconds: 1 to 3,600.
    pub valid_for_s: u32,
}

impl OperatorRelease {
    /// An order for `action`, ready to be signed. [`SignedRelease::verify`] refuses blocks.
    pub fn new(
        mesh: MeshId,
        epoch_hash: Hash,
        action: Action,
        issued_at_us: u64,
        valid_for_s: u32,
    ) -> Self {
        Self {
            mesh,
            epoch_hash,
            action,
            incident: action.incident(mesh, epoch_hash, bucket_of(issued_at_us)),
            issued_at_us,
            valid_for_s,
        }
    }

    /// The action.
    pub const fn action(&self) -> Action {
        self.action
    }

    /// Whom it concerns.
    pub const fn subject(&self) -> Subject {
        self.action.subject
    }

    /// A quarantine of a node.
    pub const fn quarantine(node: NodeId) -> Action {
        Action::quarantine(node, AttackClass::Manual)
    }

    /// Canonical bytes; what the operator signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(RELEASE_TAG);
        e.fixed(self.mesh.as_bytes())
            .fixed(self.epoch_hash.as_bytes());
        self.action().write(&mut e);
        e.fixed(self.incident.as_bytes())
            .u64(self.issued_at_us)
            .u32(self.valid_for_s);
        e.finish()
    }

    fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(RELEASE_TAG)?;
        let mesh = MeshId(d.fixed("mesh")?);
        let epoch_hash = Hash(d.fixed("epoch_hash")?);
        let action = Action::read(d)?;
        if !is_ordered(&action) {
            return Err(WireError::Invalid {
                field: "action",
                why: "neither a release nor an order about a node",
            });
        }
        Ok(Self {
            mesh,
            epoch_hash,
            action,
            incident: IncidentId(d.fixed("incident")?),
            issued_at_us: d.u64("issued_at_us")?,
            valid_for_s: d.u32("valid_for_s")?,
        })
    }

    /// Reads [`OperatorRelease::to_bytes`].
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let release = Self::read(&mut d)?;
        d.finish()?;
        Ok(release)
    }

    /// Signs with the operator's key.
    pub fn sign(self, operator: &Signer) -> SignedRelease {
        SignedRelease {
            release: self,
            signature: operator.sign(&self.to_bytes()),
        }
    }
}

/// An operator's release with its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedRelease {
    /// The release.
    pub release: OperatorRelease,
    /// By the operator's key over [`OperatorRelease::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedRelease {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        e.fixed(&self.release.to_bytes()).fixed(&self.signature);
        e.finish()
    }

    /// Reads [`SignedRelease::to_bytes`]; [`SignedRelease::verify`] checks it.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let signed = Self {
            release: OperatorRelease::read(&mut d)?,
            signature: d.fixed("signature")?,
        };
        d.finish()?;
        Ok(signed)
    }

    /// Checks everything but the time.
    ///
    /// # Errors
    /// [`ReleaseError`].
    pub fn verify(&self, genesis: &Genesis) -> Result<(), ReleaseError> {
        let release = &self.release;
        if release.mesh != genesis.mesh_id() {
            return Err(ReleaseError::WrongMesh(release.mesh));
        }
        release.action().check(&genesis.params)?;
        let expected = OperatorRelease::new(
            release.mesh,
            release.epoch_hash,
            release.action,
            release.issued_at_us,
            release.valid_for_s,
        );
        if *release != expected
            || !is_ordered(&release.action)
            || !(1..=MAX_RELEASE_VALID_S).contains(&release.valid_for_s)
        {
            return Err(ReleaseError::Malformed);
        }
        Ok(crypto::verify(
            &genesis.operator_key,
            &release.to_bytes(),
            &self.signature,
        )?)
    }
}

/// What allows a decision to take effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warrant {
    /// Enough votes.
    Votes(Certificate),
    /// The operator's signature (not for blocks).
    Operator(SignedRelease),
}

impl Warrant {
    /// What was decided.
    pub const fn action(&self) -> Action {
        match self {
            Self::Votes(certificate) => certificate.action,
            Self::Operator(signed) => signed.release.action(),
        }
    }

    /// The decision's id.
    pub fn decision(&self) -> DecisionId {
        match self {
            Self::Votes(certificate) => certificate.decision(),
            Self::Operator(SignedRelease { release, .. }) => {
                release
                    .action()
                    .decision(release.mesh, release.epoch_hash, release.incident, 0)
            }
        }
    }

    /// The incident.
    pub fn incident(&self) -> IncidentId {
        match self {
            Self::Votes(certificate) => certificate.incident(),
            Self::Operator(signed) => signed.release.incident,
        }
    }

    /// Time bucket of the incident.
    pub const fn bucket(&self) -> u64 {
        match self {
            Self::Votes(certificate) => certificate.bucket,
            Self::Operator(signed) => bucket_of(signed.release.issued_at_us),
        }
    }

    /// Canonical bytes, for the ledger and the disk.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(WARRANT_TAG);
        match self {
            Self::Votes(certificate) => e.u8(1).fixed(&certificate.to_bytes()),
            Self::Operator(signed) => e.u8(2).fixed(&signed.to_bytes()),
        };
        e.finish()
    }

    /// Reads [`Warrant::to_bytes`] without checking what it claims.
    ///
    /// # Errors
    /// [`WireError`] for anything that is not canonical.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::tagged(bytes, WARRANT_TAG)?;
        match d.u8("warrant")? {
            1 => Certificate::from_bytes(d.rest()).map(Self::Votes),
            2 => SignedRelease::from_bytes(d.rest()).map(Self::Operator),
            _ => Err(WireError::Invalid {
                field: "warrant",
                why: "unknown kind",
            }),
        }
    }
}

/// A decision whose warrant this node has checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Its id, the same on every node.
    pub id: DecisionId,
    /// What was decided.
    pub action: Action,
    /// The incident it answers.
    pub incident: IncidentId,
    /// Time bucket of the incident.
    pub bucket: u64,
    /// When a block ends, microseconds since 1970, the same on every node. For a release: when it
    /// need no longer be remembered.
    pub expires_unix_us: u64,
    /// When this node learned of it, microseconds since 1970.
    pub certified_unix_us: u64,
    /// What allows it.
    pub warrant: Warrant,
    /// How the votes were counted; absent for an operator's release.
    pub verdict: Option<CertVerdict>,
    /// Why this node does not take part in it: its own allowlist.
    pub vetoed: Option<String>,
}
