//! Trust in nodes, as `secmesh trust` shows it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::addr::Prefix;
use crate::mesh::evidence::ProofKind;
use crate::mesh::trust::Cause;

/// Where all nodes stand.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrustView {
    /// Number of the open epoch.
    pub epoch: u64,
    /// Whether all evidence is here that the certified epochs rest on.
    #[serde(default)]
    pub complete: bool,
    /// How long an epoch lasts, seconds.
    pub epoch_s: u64,
    /// Signed statements that this node knows.
    pub statements: usize,
    /// Hash of how far all nodes' logs go: nodes that show the same show the same standings.
    pub frontier: String,
    /// The nodes.
    pub nodes: Vec<TrustNode>,
}

/// Where one node stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrustNode {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The weight that follows from the evidence; epochs move towards it.
    pub target: u32,
    /// The weight that the certified epoch gives it.
    pub epoch_weight: u64,
    /// The weight that its votes have here now: the epoch's, or 0 for one that was proved to lie.
    pub votes_with: u64,
    /// Hits, faded by 1/16 per epoch.
    pub alpha: f64,
    /// Misses, faded by 1/16 per epoch.
    pub beta: f64,
    /// (α+1)/(α+β+2) in thousandths; 500 is neutral.
    pub per_mille: u32,
    /// Remediations that failed since the last one that helped.
    pub strikes: u32,
    /// What was proved against it.
    pub proofs: Vec<ProofKind>,
    /// Epochs since evidence last changed it; α and β fade meanwhile.
    pub idle_epochs: u64,
    /// Statements in its own log.
    pub statements: u64,
    /// This node's own opinion of it as a peer, in thousandths: for whom to ask first, never for votes.
    pub local_per_mille: u32,
    /// Whether it is this node.
    pub this_node: bool,
    /// What changed its standing, oldest first.
    pub changes: Vec<TrustChange>,
}

/// What changed a node's standing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustChange {
    /// Number of the epoch.
    pub epoch: u64,
    /// Why.
    #[serde(flatten)]
    pub cause: Cause,
    /// Hits that were added.
    pub hits: u32,
    /// Misses that were added.
    pub misses: u32,
    /// Strikes afterwards.
    pub strikes: u32,
    /// The statements that led to it, at most eight.
    pub because: Vec<TrustReason>,
}

/// A statement that led to a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustReason {
    /// Who stated it.
    pub author: String,
    /// Its name.
    pub author_name: String,
    /// Its place in the author's log.
    pub sequence: u64,
    /// When it was signed by its author's word, unix µs; not before the mesh was made and not after now. Nothing
    /// follows from it.
    pub made_unix_us: u64,
    /// Whom it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Prefix>,
    /// The decision that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision: Option<String>,
}

/// Trust in one line.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustTotals {
    /// Signed statements that this node knows.
    pub statements: usize,
    /// Nodes below a newcomer's weight, with the weight that follows from the evidence, by name.
    pub lowered: BTreeMap<String, u32>,
}

/// What an operator's verdict has to name.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VerdictTerms {
    /// Base64 of the unsigned verdict.
    pub verdict: String,
}
