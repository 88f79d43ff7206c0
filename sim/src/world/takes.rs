//! What an engine takes from others, and what it believes.

use secmesh::mesh::engine::{MAX_OPEN, VoteSummary};
use secmesh::mesh::ids::Hash;
use secmesh::mesh::vote::{Action, ActionKind, bucket_of};

use super::World;
use crate::cast::S;
use crate::oracle::{Violation, broken};

impl World {
    /// A vote that an engine counts from now on.
    pub(super) fn takes(&mut self, i: usize, vote: &VoteSummary) -> Result<(), Violation> {
        self.counts.votes_taken += 1;
        let wall = self.nodes[i].wall(self.now);
        let params = &self.genesis.params;
        let skew = u64::from(params.max_skew_s) * S;
        if vote.issued_at_us > wall + skew {
            return broken("vote-times", format!("node {i} takes a vote of the future"));
        }
        if wall > vote.issued_at_us + u64::from(params.vote_valid_s) * S + skew {
            return broken("vote-times", format!("node {i} takes a vote that is over"));
        }
        let node = &mut self.nodes[i];
        let action = match vote.action {
            ActionKind::Block => vote
                .subject
                .prefix()
                .map(|subject| Action::block(subject, vote.class, params)),
            ActionKind::Release => vote.subject.prefix().map(Action::release),
            ActionKind::Quarantine => vote
                .subject
                .node()
                .map(|node| Action::quarantine(node, vote.class)),
            ActionKind::Readmit => vote.subject.node().map(Action::readmit),
        };
        let Some(action) = action else {
            return broken("warrant", format!("node {i} takes a vote on nothing"));
        };
        let epoch = node.in_force;
        let bucket = bucket_of(vote.issued_at_us);
        let known = (bucket.saturating_sub(1)..=bucket + 1)
            .any(|b| action.incident(self.genesis.mesh_id(), epoch, b) == vote.incident);
        if !known {
            return broken(
                "vote-epoch",
                format!("node {i} takes a vote of another epoch"),
            );
        }
        if !node.taken.insert((vote.voter, vote.sequence)) {
            return broken(
                "vote-numbers",
                format!(
                    "node {i} takes number {} of {} twice",
                    vote.sequence, vote.voter
                ),
            );
        }
        Ok(())
    }

    /// After each call: what the engine believes.
    pub(super) fn after(&mut self, i: usize) -> Result<(), Violation> {
        let node = &mut self.nodes[i];
        let Some(engine) = &node.engine else {
            return Ok(());
        };
        let epoch = engine.roster().epoch_hash();
        node.in_force = epoch;
        if node.epoch != Some(epoch) {
            node.epoch = Some(epoch);
            self.trace.line(self.now, || {
                let roster = engine.roster();
                let weights: Vec<u32> = roster.members().map(|(_, m)| m.weight).collect();
                format!("{i} is in epoch {}, weights {weights:?}", roster.epoch())
            });
            if let Some(first) = engine.epochs().first().filter(|e| e.record.number == 1) {
                let find = |hash: &Hash| {
                    engine
                        .admissions()
                        .find(|a| a.record.hash() == *hash)
                        .cloned()
                };
                self.oracle.first_epoch(&first.record, &find)?;
            }
            self.oracle.in_force(engine.roster())?;
            if !node.silenced {
                node.reached = engine.roster().epoch().max(node.reached);
            }
        }
        if let Some(framed) = engine
            .liars()
            .iter()
            .find(|node| !self.oracle.liars.contains(node))
        {
            return broken("attribution", format!("node {i} takes {framed} for a liar"));
        }
        Ok(())
    }

    pub(super) fn after_tick(&mut self, i: usize) -> Result<(), Violation> {
        let wall = self.nodes[i].wall(self.now);
        let now = self.now;
        let node = &mut self.nodes[i];
        node.kernel.retain(|_, block| block.ends_us > now);
        node.own_blocks.retain(|_, until| *until > now);
        let Some(engine) = &mut node.engine else {
            return Ok(());
        };
        let frontier = engine.evidence().frontier_hash();
        if node.judged != Some(frontier) {
            node.judged = Some(frontier);
            let roster = engine.roster();
            let key = (roster.epoch(), frontier, roster.epoch_hash());
            let report = engine.trust();
            // While something is missing that the epochs rest on, it is a guess.
            if report.whole {
                self.oracle.trust(i, key, &report)?;
            }
        }
        if let Some(decision) = engine.decisions().find(|d| d.expires_unix_us <= wall) {
            return broken(
                "block-ends",
                format!(
                    "node {i} still holds the block of {}",
                    decision.action.subject
                ),
            );
        }
        if engine.open_incidents() > MAX_OPEN {
            return broken("bounded", format!("node {i} has too many open incidents"));
        }
        Ok(())
    }
}
