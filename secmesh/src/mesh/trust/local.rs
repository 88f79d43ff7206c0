//! This node's own opinion of its peers: whom to ask first, what the screen shows.
//!
//! It never leaves the node and never enters a quorum: nodes that judge votes by their own opinions come
//! to different decisions. Weights come from [`super::fold()`] alone.

use std::collections::BTreeMap;

use crate::mesh::ids::NodeId;
use crate::mesh::roster::MAX_NODES;

/// Where a count is halved, with its counterpart, so that the recent past weighs most.
const FADE_AT: u32 = 64;

#[derive(Debug, Clone, Copy, Default)]
struct Opinion {
    good: u32,
    bad: u32,
}

/// How peers have served this node.
#[derive(Debug, Clone, Default)]
pub struct LocalTrust {
    peers: BTreeMap<NodeId, Opinion>,
}

impl LocalTrust {
    fn note(&mut self, peer: NodeId, good: bool) {
        if self.peers.len() >= MAX_NODES && !self.peers.contains_key(&peer) {
            return;
        }
        let opinion = self.peers.entry(peer).or_default();
        if good {
            opinion.good += 1;
        } else {
            opinion.bad += 1;
        }
        if opinion.good.max(opinion.bad) >= FADE_AT {
            opinion.good /= 2;
            opinion.bad /= 2;
        }
    }

    /// It sent what was asked for.
    pub fn served(&mut self, peer: NodeId) {
        self.note(peer, true);
    }

    /// It did not in time, or what it sent was refused.
    pub fn failed(&mut self, peer: NodeId) {
        self.note(peer, false);
    }

    /// From 0 to 1,000; 500 of whom nothing is known.
    pub fn score(&self, peer: &NodeId) -> u32 {
        let Opinion { good, bad } = self.peers.get(peer).copied().unwrap_or_default();
        1_000 * (good + 1) / (good + bad + 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recent_past_weighs_most_and_nothing_grows() {
        let (a, b) = (NodeId([1; 16]), NodeId([2; 16]));
        let mut local = LocalTrust::default();
        assert_eq!(local.score(&a), 500);
        for _ in 0..10_000 {
            local.served(a);
        }
        assert!(local.score(&a) > 950);
        for _ in 0..64 {
            local.failed(a);
        }
        assert!(local.score(&a) < 500, "{}", local.score(&a));
        assert_eq!(local.score(&b), 500);
    }
}
