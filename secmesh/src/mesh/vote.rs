//! What nodes vote on, and the votes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::crypto::{self, CryptoError, PublicKey, SignatureBytes, Signer};
use super::genesis::Params;
use super::ids::{DecisionId, Hash, IncidentId, MeshId, NodeId};
use super::subject::Subject;
use super::wire::{Decoder, Encoder, WireError};
use crate::addr::Prefix;

const ACTION_TAG: &str = "secmesh/action/1";
const INCIDENT_TAG: &str = "secmesh/incident/1";
const DECISION_TAG: &str = "secmesh/decision-id/1";
const VOTE_TAG: &str = "secmesh/vote/1";

/// Length of a time bucket: sightings of one minute are one incident.
pub const BUCKET_S: u64 = 60;
/// Microseconds in a bucket.
pub const BUCKET_US: u64 = BUCKET_S * 1_000_000;
/// Highest round: how often a release can be asked for again within one bucket.
pub const MAX_ROUND: u32 = 15;

/// Number of the bucket that a time (microseconds since 1970) falls into.
pub const fn bucket_of(unix_us: u64) -> u64 {
    unix_us / BUCKET_US
}

/// An enum with a stable `u8` code on the wire and a stable name in JSON.
macro_rules! coded {
    ($(#[$doc:meta])* $name:ident, $what:literal, {
        $($(#[$vdoc:meta])* $variant:ident = $code:literal $text:literal,)+
    }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name {
            $($(#[$vdoc])* $variant,)+
        }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Stable code on the wire.
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)+
                }
            }

            /// The value with this code.
            ///
            /// # Errors
            /// [`WireError::Invalid`] for an unknown code.
            pub const fn from_code(code: u8) -> Result<Self, WireError> {
                match code {
                    $($code => Ok(Self::$variant),)+
                    _ => Err(WireError::Invalid { field: $what, why: crate::mesh::wire::UNKNOWN_CODE }),
                }
            }

            /// Stable name, as in JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }

        impl FromStr for $name {
            type Err = WireError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Self::ALL.iter().copied().find(|v| v.name() == text).ok_or(WireError::Invalid {
                    field: $what,
                    why: "unknown name",
                })
            }
        }
    };
}
pub(in crate::mesh) use coded;

coded!(
    /// What kind of attack an incident is about.
    AttackClass, "attack class", {
        /// TCP SYN flood.
        SynFlood = 1 "syn_flood",
        /// UDP flood.
        UdpFlood = 2 "udp_flood",
        /// ICMP flood, of either version.
        IcmpFlood = 3 "icmp_flood",
        /// Port scan, vertical or horizontal.
        PortScan = 4 "port_scan",
        /// Several addresses of one network were blocked (class 2).
        Network = 128 "network",
        /// A node is proved to have lied: it contradicted itself under its own signature.
        Misconduct = 129 "misconduct",
        /// A node attacks others.
        HostileNode = 130 "hostile_node",
        /// A node sends its peers garbage, or floods them.
        MeshAbuse = 131 "mesh_abuse",
        /// An operator says so.
        Manual = 255 "manual",
    }
);

coded!(
    /// What an action does.
    ActionKind, "action kind", {
        /// Drop what comes from the subject.
        Block = 1 "block",
        /// End a block of the subject before its time.
        Release = 2 "release",
        /// Cut a node off: its peers neither talk nor listen to it, and drop what comes from its addresses.
        Quarantine = 3 "quarantine",
        /// End the quarantine of a node.
        Readmit = 4 "readmit",
    }
);

impl ActionKind {
    /// Whether it ends what another kind began.
    pub const fn lifts(self) -> bool {
        matches!(self, Self::Release | Self::Readmit)
    }

    /// Whether it is about a node, and not about addresses.
    pub const fn is_about_node(self) -> bool {
        matches!(self, Self::Quarantine | Self::Readmit)
    }
}

impl AttackClass {
    /// Whether only nodes of the mesh can do this.
    pub const fn is_conduct(self) -> bool {
        matches!(self, Self::Misconduct | Self::HostileNode | Self::MeshAbuse)
    }
}

coded!(
    /// Where an action takes effect.
    Scope, "scope", {
        /// On every node of the mesh.
        Mesh = 1 "mesh",
    }
);

coded!(
    /// What a voter says.
    Verdict, "verdict", {
        /// My own sensors saw it.
        Confirm = 1 "confirm",
        /// I saw nothing myself, but enough others did and my policy allows it.
        Concur = 2 "concur",
        /// I am against it.
        Reject = 3 "reject",
        /// I have heard of it and say neither; not the same as silence.
        Abstain = 4 "abstain",
    }
);

/// Why an action cannot be voted on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ActionError {
    /// A mesh-wide action on something else than an address or the network of one.
    #[error(
        "mesh-wide actions are for single addresses, and as class 2 for a whole /24 (IPv6 /64) under \
         the attack class network"
    )]
    NotSingle,
    /// A node where an address belongs, or the other way round; or a class that does not fit.
    #[error(
        "quarantine and readmission are about nodes, for misconduct, hostile_node, mesh_abuse or manual; \
         blocks and releases are about addresses"
    )]
    WrongSubject,
    /// The duration is not the mesh's.
    #[error("the block's duration is not the one the mesh agreed on in its genesis")]
    WrongTtl,
}

/// Length of an IPv4 network that is blocked for its addresses: the least that is routed by itself.
const NETWORK_V4: u8 = 24;
/// The same for IPv6: one link, where each host picks its own addresses (RFC 4291).
const NETWORK_V6: u8 = 64;

/// Whether this is a network that the mesh decides on.
pub const fn is_network(prefix: &Prefix) -> bool {
    prefix.len()
        == if prefix.is_ipv4() {
            NETWORK_V4
        } else {
            NETWORK_V6
        }
}

/// The network that an address is counted for; `None` for what is no single address.
pub fn network_of(address: &Prefix) -> Option<Prefix> {
    if !address.is_single() {
        return None;
    }
    let len = if address.is_ipv4() {
        NETWORK_V4
    } else {
        NETWORK_V6
    };
    Prefix::truncating(address.addr(), len).ok()
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Action {
    /// What is done.
    pub kind: ActionKind,
    /// Whom it concerns.
    pub subject: Subject,
    /// Where.
    pub scope: Scope,
    /// How long a block lasts after the end of its bucket, in seconds; 0 for all else.
    pub ttl_s: u32,
    /// Why.
    pub class: AttackClass,
}

impl Action {
    /// A mesh-wide block for the mesh's block time.
    pub const fn block(subject: Prefix, class: AttackClass, params: &Params) -> Self {
        Self {
            kind: ActionKind::Block,
            subject: Subject::Net(subject),
            scope: Scope::Mesh,
            ttl_s: params.block_ttl_s,
            class,
        }
    }

    /// A mesh-wide release.
    pub const fn release(subject: Prefix) -> Self {
        Self {
            kind: ActionKind::Release,
            subject: Subject::Net(subject),
            scope: Scope::Mesh,
            ttl_s: 0,
            class: AttackClass::Manual,
        }
    }

    /// Cuts a node off until it is readmitted.
    pub const fn quarantine(node: NodeId, class: AttackClass) -> Self {
        Self {
            kind: ActionKind::Quarantine,
            subject: Subject::Node(node),
            scope: Scope::Mesh,
            ttl_s: 0,
            class,
        }
    }

    /// Takes a node back.
    pub const fn readmit(node: NodeId) -> Self {
        Self {
            kind: ActionKind::Readmit,
            subject: Subject::Node(node),
            scope: Scope::Mesh,
            ttl_s: 0,
            class: AttackClass::Manual,
        }
    }

    /// Whether a node or more than one address is concerned, which takes a larger quorum.
    pub const fn is_class_2(&self) -> bool {
        match &self.subject {
            Subject::Net(prefix) => !prefix.is_single(),
            Subject::Node(_) => true,
        }
    }

    /// Whether the mesh can decide on this. Everything but subject and class follows from the
    /// genesis, so that two nodes that see the same thing vote on the same bytes.
    ///
    /// # Errors
    /// [`ActionError`].
    pub fn check(&self, params: &Params) -> Result<(), ActionError> {
        let expected = match (self.kind, self.subject) {
            (ActionKind::Block | ActionKind::Release, Subject::Net(prefix)) => {
                let as_network = match self.kind {
                    ActionKind::Block => matches!(self.class, AttackClass::Network),
                    _ => self.is_class_2(),
                };
                if as_network != self.is_class_2() || !(prefix.is_single() || is_network(&prefix)) {
                    return Err(ActionError::NotSingle);
                }
                match self.kind {
                    ActionKind::Block if self.class.is_conduct() => {
                        return Err(ActionError::WrongSubject);
                    }
                    ActionKind::Block => Self::block(prefix, self.class, params),
                    _ => Self::release(prefix),
                }
            }
            (ActionKind::Quarantine, Subject::Node(node)) => {
                if !self.class.is_conduct() && self.class != AttackClass::Manual {
                    return Err(ActionError::WrongSubject);
                }
                Self::quarantine(node, self.class)
            }
            (ActionKind::Readmit, Subject::Node(node)) => Self::readmit(node),
            _ => return Err(ActionError::WrongSubject),
        };
        if *self == expected {
            Ok(())
        } else {
            Err(ActionError::WrongTtl)
        }
    }

    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.write(&mut e);
        e.finish()
    }

    pub(super) fn write(&self, e: &mut Encoder) {
        e.fixed(&Encoder::tagged(ACTION_TAG).finish())
            .u8(self.kind.code());
        self.subject.write(e);
        e.u8(self.scope.code())
            .u32(self.ttl_s)
            .u8(self.class.code());
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(ACTION_TAG)?;
        Ok(Self {
            kind: ActionKind::from_code(d.u8("action kind")?)?,
            subject: Subject::read(d)?,
            scope: Scope::from_code(d.u8("scope")?)?,
            ttl_s: d.u32("ttl_s")?,
            class: AttackClass::from_code(d.u8("class")?)?,
        })
    }

    /// SHA-256 of the canonical bytes.
    pub fn hash(&self) -> Hash {
        Hash(crypto::sha256(&self.to_bytes()))
    }

    /// The incident this action answers, in one epoch and bucket.
    pub fn incident(&self, mesh: MeshId, epoch_hash: Hash, bucket: u64) -> IncidentId {
        let mut e = Encoder::tagged(INCIDENT_TAG);
        e.fixed(mesh.as_bytes()).fixed(epoch_hash.as_bytes());
        self.subject.write(&mut e);
        e.u8(self.class.code()).u8(self.kind.code()).u64(bucket);
        IncidentId(crypto::sha256(&e.finish()))
    }

    /// The decision to take this action; the same whichever votes prove it.
    pub fn decision(
        &self,
        mesh: MeshId,
        epoch_hash: Hash,
        incident: IncidentId,
        round: u32,
    ) -> DecisionId {
        let mut e = Encoder::tagged(DECISION_TAG);
        e.fixed(mesh.as_bytes())
            .fixed(epoch_hash.as_bytes())
            .fixed(incident.as_bytes())
            .u32(round)
            .fixed(self.hash().as_bytes());
        DecisionId(crypto::sha256(&e.finish()))
    }

    /// When the effect ends, the same on every node: end of the bucket plus the duration,
    /// in microseconds since 1970. A quarantine lasts until the node is readmitted, and both are remembered.
    pub const fn expires_unix_us(&self, bucket: u64) -> u64 {
        if self.kind.is_about_node() {
            return u64::MAX;
        }
        bucket
            .saturating_add(1)
            .saturating_mul(BUCKET_US)
            .saturating_add((self.ttl_s as u64).saturating_mul(1_000_000))
    }
}

/// What one node says about one action, in the order of its canonical bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vote {
    /// Mesh.
    pub mesh: MeshId,
    /// Number of the epoch.
    pub epoch: u64,
    /// Hash of the epoch's roster.
    pub epoch_hash: Hash,
    /// Incident.
    pub incident: IncidentId,
    /// Round; 0 for blocks.
    pub round: u32,
    /// Time bucket of the incident.
    pub bucket: u64,
    /// [`Action::hash`].
    pub action_hash: Hash,
    /// What is said.
    pub verdict: Verdict,
    /// Commits to the evidence the voter keeps; zero without own evidence.
    pub evidence_root: Hash,
    /// Names the detector and its settings; zero without own evidence.
    pub detector_hash: Hash,
    /// Who says it.
    pub voter: NodeId,
    /// Incarnation of the voter.
    pub incarnation: u64,
    /// Counts the voter's votes, from 1; never reused within an incarnation.
    pub sequence: u64,
    /// When it was signed, microseconds since 1970 by the voter's clock.
    pub issued_at_us: u64,
    /// How long it counts after that, in seconds.
    pub valid_for_s: u32,
}

impl Vote {
    /// Canonical bytes; what the voter signs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::tagged(VOTE_TAG);
        e.fixed(self.mesh.as_bytes())
            .u64(self.epoch)
            .fixed(self.epoch_hash.as_bytes())
            .fixed(self.incident.as_bytes())
            .u32(self.round)
            .u64(self.bucket)
            .fixed(self.action_hash.as_bytes())
            .u8(self.verdict.code())
            .fixed(self.evidence_root.as_bytes())
            .fixed(self.detector_hash.as_bytes())
            .fixed(self.voter.as_bytes())
            .u64(self.incarnation)
            .u64(self.sequence)
            .u64(self.issued_at_us)
            .u32(self.valid_for_s);
        e.finish()
    }

    /// Signs with the voter's key.
    pub fn sign(self, voter: &Signer) -> SignedVote {
        SignedVote {
            vote: self,
            signature: voter.sign(&self.to_bytes()),
        }
    }

    /// Until when it counts, microseconds since 1970.
    pub const fn valid_until_us(&self) -> u64 {
        self.issued_at_us
            .saturating_add((self.valid_for_s as u64).saturating_mul(1_000_000))
    }

    /// Checks what does not depend on who votes: times and round.
    ///
    /// # Errors
    /// [`WireError::Invalid`].
    pub fn check_times(&self, params: &Params) -> Result<(), WireError> {
        let invalid = |field, why| Err(WireError::Invalid { field, why });
        if bucket_of(self.issued_at_us).abs_diff(self.bucket) > 1 {
            return invalid(
                "bucket",
                "more than one bucket away from the time of signing",
            );
        }
        if self.valid_for_s == 0 || self.valid_for_s > params.vote_valid_s {
            return invalid("valid_for_s", "zero or above the mesh's vote_valid_s");
        }
        if self.round > MAX_ROUND {
            return invalid("round", "above 15");
        }
        Ok(())
    }
}

/// A vote with its signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedVote {
    /// The vote.
    pub vote: Vote,
    /// By the voter's vote key over [`Vote::to_bytes`].
    pub signature: SignatureBytes,
}

impl SignedVote {
    pub(super) fn write(&self, e: &mut Encoder) {
        e.fixed(&self.vote.to_bytes()).fixed(&self.signature);
    }

    pub(super) fn read(d: &mut Decoder<'_>) -> Result<Self, WireError> {
        d.expect_tag(VOTE_TAG)?;
        let vote = Vote {
            mesh: MeshId(d.fixed("mesh")?),
            epoch: d.u64("epoch")?,
            epoch_hash: Hash(d.fixed("epoch_hash")?),
            incident: IncidentId(d.fixed("incident")?),
            round: d.u32("round")?,
            bucket: d.u64("bucket")?,
            action_hash: Hash(d.fixed("action_hash")?),
            verdict: Verdict::from_code(d.u8("verdict")?)?,
            evidence_root: Hash(d.fixed("evidence_root")?),
            detector_hash: Hash(d.fixed("detector_hash")?),
            voter: NodeId(d.fixed("voter")?),
            incarnation: d.u64("incarnation")?,
            sequence: d.u64("sequence")?,
            issued_at_us: d.u64("issued_at_us")?,
            valid_for_s: d.u32("valid_for_s")?,
        };
        Ok(Self {
            vote,
            signature: d.fixed("signature")?,
        })
    }

    /// Checks the signature.
    ///
    /// # Errors
    /// [`CryptoError`].
    pub fn verify(&self, key: &PublicKey) -> Result<(), CryptoError> {
        crypto::verify(key, &self.vote.to_bytes(), &self.signature)
    }
}

/// A vote together with the action it is about: what travels, and what is kept on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ballot {
    /// The action whose hash the vote carries.
    pub action: Action,
    /// The vote.
    pub signed: SignedVote,
}

impl Ballot {
    /// Canonical bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut e = Encoder::default();
        self.action.write(&mut e);
        self.signed.write(&mut e);
        e.finish()
    }

    /// Reads [`Ballot::to_bytes`] and checks that action, incident and vote belong together.
    /// The signature is checked by [`SignedVote::verify`].
    ///
    /// # Errors
    /// [`WireError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WireError> {
        let mut d = Decoder::untagged(bytes);
        let ballot = Self {
            action: Action::read(&mut d)?,
            signed: SignedVote::read(&mut d)?,
        };
        d.finish()?;
        let vote = &ballot.signed.vote;
        if ballot.action.hash() != vote.action_hash {
            return Err(WireError::Invalid {
                field: "action_hash",
                why: "the vote is about another action",
            });
        }
        if ballot
            .action
            .incident(vote.mesh, vote.epoch_hash, vote.bucket)
            != vote.incident
        {
            return Err(WireError::Invalid {
                field: "incident",
                why: "does not follow from epoch, action and bucket",
            });
        }
        if bucket_of(vote.issued_at_us).abs_diff(vote.bucket) > 1 {
            return Err(WireError::Invalid {
                field: "bucket",
                why: "more than one bucket away from the time of signing",
            });
        }
        Ok(ballot)
    }
}

#[cfg(test)]
#[path = "vote_tests.rs"]
mod tests;
