//! What this node has, in hashes that are the same on every node that has the same.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Engine;
use crate::mesh::crypto::sha256;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::wire::Encoder;

/// What a node has of what all should have. Two nodes whose digests are equal have the same roster, weights,
/// decisions and evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Number of the epoch in force.
    pub epoch: u64,
    /// Hash of its record: roster, weights, parameters, evidence frontier, and the epochs before.
    pub epoch_hash: String,
    /// Members of it.
    pub members: usize,
    /// Hash over their admissions and weights.
    pub roster: String,
    /// Hash over who was proved to lie.
    pub liars: String,
    /// Decisions that have not ended: blocks, and releases of the last day.
    pub decisions: usize,
    /// Hash over their ids.
    pub decisions_hash: String,
    /// Statements of all nodes.
    pub statements: u64,
    /// Hash over how many of whom, and over their roots.
    pub evidence: String,
    /// Hash over where everybody stands by that evidence.
    pub trust: String,
    /// Hash over all of this.
    pub all: String,
}

fn hashed(encoder: Encoder) -> String {
    Hash(sha256(&encoder.finish())).to_string()
}

fn over_nodes(tag: &'static str, nodes: &BTreeSet<NodeId>) -> String {
    let mut e = Encoder::tagged(tag);
    for node in nodes {
        e.fixed(node.as_bytes());
    }
    hashed(e)
}

impl Engine {
    /// What this node has, at this time. Decisions that end within the time by which clocks may differ are
    /// left out, since they end everywhere without a word.
    pub fn whole_digest(&mut self, now_unix_us: u64) -> Digest {
        let report = self.trust();
        let mut trust = Encoder::tagged("secmesh/digest-trust/1");
        for (node, known) in &report.nodes {
            let standing = &known.standing;
            trust.fixed(node.as_bytes()).u32(known.weight);
            trust.u64(standing.alpha).u64(standing.beta);
            trust.u32(standing.strikes).u64(known.statements);
        }
        let mut roster = Encoder::tagged("secmesh/digest-roster/1");
        for (node, member) in self.roster.members() {
            roster.fixed(node.as_bytes());
            roster.fixed(member.record.hash().as_bytes());
            roster.u32(member.weight);
        }
        let ends_after = now_unix_us.saturating_add(self.skew_us());
        let mut decisions = Encoder::tagged("secmesh/digest-decisions/1");
        let mut count = 0;
        // In the order of their ids.
        for decision in self.decisions.values() {
            if decision.expires_unix_us > ends_after {
                decisions.fixed(decision.id.as_bytes());
                count += 1;
            }
        }
        let set = &self.statements.set;
        let frontier = set.frontier();
        let statements = frontier.logs().values().map(|head| head.size);
        let mut digest = Digest {
            epoch: self.roster.epoch(),
            epoch_hash: self.roster.epoch_hash().to_string(),
            members: self.roster.len(),
            roster: hashed(roster),
            liars: over_nodes("secmesh/digest-liars/1", &self.zeroed),
            decisions: count,
            decisions_hash: hashed(decisions),
            statements: statements.sum(),
            evidence: set.frontier_hash().to_string(),
            trust: hashed(trust),
            all: String::new(),
        };
        let mut all = Encoder::tagged("secmesh/digest/1");
        all.u64(digest.epoch);
        for part in [
            &digest.epoch_hash,
            &digest.roster,
            &digest.liars,
            &digest.decisions_hash,
            &digest.evidence,
            &digest.trust,
        ] {
            all.fixed(part.as_bytes());
        }
        digest.all = hashed(all);
        digest
    }
}
