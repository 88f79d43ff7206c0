//! What is shown of all this.

use std::collections::{BTreeMap, VecDeque};

use super::Standing;
use super::history::Change;
use crate::mesh::ids::NodeId;

/// Most changes that are shown of one node.
pub const MAX_CHANGES: usize = 64;

/// One node.
#[derive(Debug, Clone, Default)]
pub struct NodeTrust {
    /// Where it stands.
    pub standing: Standing,
    /// The weight that follows: what the next epochs move its weight towards.
    pub weight: u32,
    /// Statements in its log.
    pub statements: u64,
    /// The last changes, oldest first.
    pub changes: VecDeque<Change>,
}

/// All nodes.
#[derive(Debug, Clone, Default)]
pub struct TrustReport {
    /// Number of the open epoch.
    pub epoch: u64,
    /// Whether it rests on all evidence that the epochs so far rest on; some may still be on its way.
    pub whole: bool,
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeTrust>,
}
