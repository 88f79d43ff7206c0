//! Statements of nodes that have left the mesh: how long they are kept, and that all let go of them alike.
//!
//! The fold reads the logs of those who were in one of the last epochs ([`WINDOW`](crate::mesh::trust::WINDOW) and the
//! current one), and nothing of anybody else: what statements of before did to weights has faded, and what they proved
//! is in the records. So an author who is in none of these epochs is in no later record's evidence; that follows from
//! certified records alone, and voters refuse a record that keeps it. A node lets go of the log as soon as the current
//! epoch neither has the author nor rests on what it said. Ids are never used again, so it does not come back.

use std::collections::{BTreeMap, BTreeSet};

use super::Engine;
use crate::mesh::epoch::EpochRecord;
use crate::mesh::evidence::{Body, Frontier};
use crate::mesh::ids::{Hash, NodeId};

impl Engine {
    /// Whether a node was in one of these epochs. By the admissions, so that few have to be looked at.
    fn was_in(&self, window: &[&EpochRecord], author: &NodeId) -> bool {
        let admissions = self.registry.records();
        let own: Vec<Hash> = admissions
            .filter(|admitted| admitted.record.node == *author)
            .map(|admitted| admitted.record.hash())
            .collect();
        let holds = |record: &EpochRecord| own.iter().any(|hash| record.member(hash).is_some());
        window.iter().any(|record| holds(record))
    }

    /// The certified evidence without that of nodes that have been out for long enough. All of it while it is not
    /// known who was in the last epochs: then this node computes no record either.
    pub(super) fn without_departed(&self, certified: &Frontier) -> Frontier {
        let is_out = |author: &NodeId| self.roster.get(author).is_none();
        if !certified.logs().keys().any(is_out) {
            return certified.clone();
        }
        let Some(window) = self.window() else {
            return certified.clone();
        };
        let records: Vec<&EpochRecord> = window.iter().map(|epoch| &epoch.record).collect();
        certified.of(|author| !is_out(author) || self.was_in(&records, author))
    }

    /// Whether the evidence of a record may follow that of the current one: nothing is taken back, nothing is added
    /// for nodes that are out, and those that have been for long enough are not in it.
    pub(super) fn may_rest_on(&self, certified: &Frontier, next: &Frontier) -> bool {
        let kept = self.without_departed(certified);
        let same = |author: &NodeId| next.logs().get(author) == kept.logs().get(author);
        let mut authors = kept.logs().keys().chain(next.logs().keys());
        next.continues(&kept)
            && authors.all(|author| self.roster.get(author).is_some() || same(author))
    }

    /// Lets go of what those who are out have stated and the current epoch does not rest on: at first what was certified
    /// no more, which some nodes have and others do not, and in the end all. Its own a node keeps: under the numbers in it
    /// nothing else may be said.
    pub(super) fn let_go(&mut self) {
        let Some(tip) = self.chain.tip() else { return };
        let proved = tip.record.members.iter().filter(|m| !m.proved.is_empty());
        let proved: BTreeSet<NodeId> = proved
            .filter_map(|m| self.registry.by_hash(&m.record))
            .map(|admitted| admitted.record.node)
            .collect();
        self.statements.stated.extend(&proved);
        let set = &self.statements.set;
        let out: BTreeMap<NodeId, u64> = set
            .authors()
            .filter(|author| **author != self.config.node && self.roster.get(author).is_none())
            .map(|author| (*author, self.certified_size(author)))
            .filter(|(author, certified)| set.head(author).size > *certified)
            .collect();
        if out.is_empty() {
            return;
        }
        for (author, certified) in &out {
            self.statements.set.shorten_log(author, *certified);
        }
        let gone = out.into_keys().collect();
        self.statements.sync.let_go(&gone);
        self.standings.let_go(&gone);
        // A proof that only they had stated may be stated again, unless the epoch has it.
        let mut stated = proved;
        let known = &self.statements.stated;
        stated.extend(
            self.statements
                .set
                .iter()
                .filter_map(|statement| match &statement.body {
                    Body::Misconduct(proof) => Some(proof.culprit()).filter(|c| known.contains(c)),
                    _ => None,
                }),
        );
        self.statements.stated = stated;
    }
}
