//! What is shown of all this.

use std::collections::{BTreeMap, VecDeque};

use super::fold::{Checks, Members, Rules};
use super::history::Change;
use super::{Standing, by_time};
use crate::mesh::evidence::EvidenceSet;
use crate::mesh::ids::NodeId;

/// Most changes that are shown of one node.
pub const MAX_CHANGES: usize = 64;

/// One node.
#[derive(Debug, Clone, Default)]
pub struct NodeTrust {
    /// Where it stands.
    pub standing: Standing,
    /// The weight that follows.
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
    /// The nodes.
    pub nodes: BTreeMap<NodeId, NodeTrust>,
}

impl TrustReport {
    /// Folds what is known now.
    pub fn new(
        set: &EvidenceSet,
        rules: &Rules,
        members: &Members,
        now_unix_us: u64,
        checks: &mut Checks,
    ) -> Self {
        let mut changes: BTreeMap<NodeId, VecDeque<Change>> = BTreeMap::new();
        let (fold, _) = by_time(set, rules, members, now_unix_us, checks, &mut |change| {
            let list = changes.entry(change.node).or_default();
            if list.len() >= MAX_CHANGES {
                list.pop_front();
            }
            list.push_back(change);
        });
        let nodes = members
            .keys()
            .map(|node| {
                let trust = NodeTrust {
                    standing: fold.standings().get(node).cloned().unwrap_or_default(),
                    weight: fold.weight(node),
                    statements: set.head(node).size,
                    changes: changes.remove(node).unwrap_or_default(),
                };
                (*node, trust)
            })
            .collect();
        Self {
            epoch: now_unix_us / super::EPOCH_US,
            nodes,
        }
    }
}
