//! What an agent answers about decisions: what was decided and why, what is being voted on, and what the kernel has.

use serde::{Deserialize, Serialize};

use crate::{
    addr::Prefix, api::lists::ListCover, dataplane::Mode, detect::Alert, mesh::vote::AttackClass,
};

/// Whose decision it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The mesh, with a certificate.
    Quorum,
    /// This node on its own right (class 0).
    Unilateral,
    /// An operator on this node.
    Operator,
    /// The mesh or its operator, because it is the address of a node that was cut off.
    Quarantine,
}

/// Whom it binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionScope {
    /// Every node.
    Mesh,
    /// This node.
    Node,
}

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionState {
    /// In force.
    Active,
    /// Its time ran out.
    Ended,
    /// Taken back.
    Released,
    /// This node's allowlist forbids it.
    Vetoed,
    /// This node has no room for it; the reason says which limit.
    Refused,
}

/// A counted vote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VoteView {
    /// Who.
    pub node: String,
    /// Its name.
    pub name: String,
    /// `confirm`, `concur`, `reject` or `abstain`.
    pub verdict: String,
    /// With which weight.
    pub weight: u64,
    /// When it was signed.
    pub issued_unix_us: u64,
}

/// A decision and what this node made of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct DecisionView {
    /// Its id; for mesh decisions the same on every node.
    pub id: String,
    /// Whom it concerns.
    pub subject: Prefix,
    /// Attack class.
    pub class: AttackClass,
    /// Whom it binds.
    pub scope: DecisionScope,
    /// Whose it was.
    pub origin: Origin,
    /// What became of it.
    pub state: DecisionState,
    /// The incident it answers.
    pub incident: Option<String>,
    /// Why, where somebody said.
    pub reason: Option<String>,
    /// When this node first heard of the incident or decided.
    pub created_unix_us: u64,
    /// When this node saw the certificate complete.
    pub certified_unix_us: Option<u64>,
    /// When it was written into the kernel's map here.
    pub enforced_unix_us: Option<u64>,
    /// When it ends.
    pub expires_unix_us: u64,
    /// Whether the entry is in the kernel's map now.
    pub enforced: bool,
    /// Why it is not.
    pub not_enforced_reason: Option<String>,
    /// What made it risky, where an operator insisted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overridden: Vec<String>,
    /// Packets that met the entry.
    pub hits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the first came.
    pub first_hit_unix_us: Option<u64>,
    /// When the last came.
    pub last_hit_unix_us: Option<u64>,
    /// The votes of the certificate.
    pub votes: Vec<VoteView>,
    /// What the certificate's check says; absent without a certificate.
    pub certificate: Option<CertificateView>,
}

/// The check of a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CertificateView {
    /// Whether it holds.
    pub valid: bool,
    /// Why not.
    pub error: Option<String>,
    /// Weight of the votes for it.
    pub weight: u64,
    /// Weight that was needed.
    pub needed: u64,
    /// Weight of all nodes.
    pub total: u64,
    /// Nodes that saw it themselves.
    pub confirms: usize,
    /// How many of them were needed.
    pub confirms_needed: usize,
    /// Zones that the votes came from.
    pub zones: usize,
    /// Epoch of the roster it was counted against.
    pub epoch: u64,
}

/// An open incident.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct IncidentView {
    /// Its id.
    pub id: String,
    /// Whom it concerns.
    pub subject: Prefix,
    /// Attack class.
    pub class: AttackClass,
    /// `block` or `release`.
    pub action: String,
    /// Votes so far.
    pub votes: Vec<VoteView>,
    /// Weight for it so far.
    pub weight: u64,
    /// Weight needed.
    pub needed: u64,
}

/// Everything this node knows of an address.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    /// The address or prefix asked for.
    pub subject: Prefix,
    /// In one word: `blocked`, `not_enforced`, `allowlisted`, `watched`, `clear`.
    pub verdict: String,
    /// In one sentence.
    pub summary: String,
    /// Whether this node drops or only counts.
    pub mode: Mode,
    /// Why it cannot be blocked, if so.
    pub allowlisted: Option<AllowView>,
    /// Until when it is watched, unix µs.
    pub watched_until_unix_us: Option<u64>,
    /// Which node's report made this one watch it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched_by: Option<String>,
    /// Packets of it that came since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watched_packets: Option<u64>,
    /// Alerts on it, newest first.
    pub alerts: Vec<Alert>,
    /// Decisions on it, on a prefix that contains it and on what it contains, newest first.
    pub decisions: Vec<DecisionView>,
    /// Incidents that are being voted on.
    pub incidents: Vec<IncidentView>,
    /// Imported lists that cover it or a part of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lists: Vec<ListCover>,
    /// The kernel's map entry.
    pub kernel: Option<KernelEntry>,
}

/// An entry of the kernel's block maps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KernelEntry {
    /// The map: `BLOCK4`, `BLOCK6`, `PREFIX4` or `PREFIX6`.
    pub map: String,
    /// The key.
    pub prefix: Prefix,
    /// When it ends, unix µs.
    pub expires_unix_us: u64,
    /// The controller's number for it.
    pub rule: u32,
    /// Packets that met it.
    pub hits: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When the first came.
    pub first_hit_unix_us: Option<u64>,
    /// When the last came.
    pub last_hit_unix_us: Option<u64>,
}

/// An entry of the allowlist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowView {
    /// What is allowed.
    pub prefix: Prefix,
    /// Why, in words: what it is on this system, or what the operator said.
    pub reason: String,
    /// `builtin`, `configuration` or `operator`.
    pub source: String,
}
