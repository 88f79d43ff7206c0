//! Evidence and epochs: what each node deserves to weigh by the certified epochs and the statements, and what
//! has to be here for that.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::io::RefusalReason;
use super::{Call, Engine};
use crate::mesh::epoch::EpochRecord;
use crate::mesh::evidence::{CulpritKeys, Frontier, ProofSet};
use crate::mesh::ids::NodeId;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::trust::{Known, Member, Members, Params, PastEpoch, Rules, Target, TrustReport};

impl Engine {
    /// What the fold needs to know of an epoch's members; none if the admission of one is not known.
    fn members_by(&self, record: &EpochRecord) -> Option<Members> {
        record
            .members
            .iter()
            .map(|m| {
                let admitted = &self.registry.by_hash(&m.record)?.record;
                let keys = CulpritKeys::of(admitted);
                let weight = m.weight;
                Some((admitted.node, Member { keys, weight }))
            })
            .collect()
    }

    /// What a record says was proved of its members.
    fn proved_by(&self, record: &EpochRecord) -> Option<BTreeMap<NodeId, ProofSet>> {
        let proved = record.members.iter().filter(|m| !m.proved.is_empty());
        proved
            .map(|m| Some((self.registry.by_hash(&m.record)?.record.node, m.proved)))
            .collect()
    }

    /// The epochs to fold; none if there is a gap between them.
    fn past_epochs(&self) -> Option<Vec<PastEpoch>> {
        self.window()?
            .into_iter()
            .map(|epoch| {
                Some(PastEpoch {
                    proved: self.proved_by(&epoch.record)?,
                    number: epoch.record.number,
                    began: epoch.record.frontier.clone(),
                    members: self.members_by(&epoch.record)?,
                })
            })
            .collect()
    }

    fn with_known<T>(&self, work: impl FnOnce(&Known<'_>) -> T) -> T {
        work(&Known {
            set: &self.statements.set,
            rules: &Rules::new(&self.config.genesis, Params::default()),
            tip: self.roster.epoch_hash(),
            past: &|| self.past_epochs(),
        })
    }

    /// What each member deserves if the current epoch ends at `frontier`, if all of that is known here.
    pub(super) fn targets(&self, frontier: &Frontier) -> Option<Arc<BTreeMap<NodeId, Target>>> {
        self.with_known(|known| self.standings.targets(known, frontier))
    }

    /// Where everybody stands by what is known here, the open epoch included.
    pub fn trust(&self) -> Arc<TrustReport> {
        let report = self.with_known(|known| self.standings.report(known));
        if !planted(Bug::OwnOpinion) {
            return report;
        }
        let mut report = TrustReport::clone(&report);
        for (node, trust) in &mut report.nodes {
            let own = u64::from(self.statements.local.score(node));
            trust.standing.alpha = trust.standing.alpha.saturating_add(own);
        }
        Arc::new(report)
    }

    /// Statements of an author that the current epoch rests on.
    pub(super) fn certified_size(&self, author: &NodeId) -> u64 {
        let tip = self.chain.tip();
        tip.map_or(0, |tip| tip.record.frontier.size(author))
    }

    /// How far the mesh's evidence goes as this node would have it certified: all that it has. Of nodes that
    /// are out, or were caught (their words count for nothing, and they may have written two histories),
    /// what is certified already; and nobody's evidence is taken back, not even if this node has lost it. Nodes
    /// that have been out for long enough are not in it any more.
    pub(super) fn proposed_frontier(&self, certified: &Frontier) -> Frontier {
        let mut held = Frontier::default();
        for (author, head) in self.statements.set.frontier().logs() {
            if self.roster.get(author).is_some() && !self.statements.is_caught(author) {
                // A set has no more authors than a frontier has room for.
                drop(held.set(*author, *head));
            }
        }
        self.without_departed(certified).joined(&held)
    }

    /// The keys of a node whose statements are of use: a member, or one whose statements the epoch rests on.
    pub(super) fn author_keys(&self, author: &NodeId) -> Option<CulpritKeys> {
        if let Some(member) = self.roster.get(author) {
            return Some(CulpritKeys::of(&member.record));
        }
        if self.certified_size(author) == 0 {
            return None;
        }
        self.registry
            .records()
            .find(|admitted| admitted.record.node == *author)
            .map(|admitted| CulpritKeys::of(&admitted.record))
    }

    /// How many of an author's first `size` statements are of use here.
    pub(super) fn useful_size(&self, author: &NodeId, size: u64) -> Option<u64> {
        if self.roster.get(author).is_some() {
            return Some(size);
        }
        let certified = self.certified_size(author).min(size);
        (certified > 0).then_some(certified)
    }

    /// Gives up logs of which the mesh has certified another history; the peers have that one.
    pub(super) fn follow_certified(&mut self, call: &mut Call<'_>) {
        let Some(tip) = self.chain.tip() else { return };
        let set = &self.statements.set;
        let other: Vec<NodeId> = tip
            .record
            .frontier
            .logs()
            .iter()
            .filter(|(author, head)| {
                **author != self.config.node
                    && set.head(author).size >= head.size
                    && set.root_at(author, head.size) != Some(head.root)
            })
            .map(|(author, _)| *author)
            .collect();
        for author in other {
            self.refuse(call, author, RefusalReason::ForkedEvidence);
            self.statements.set.drop_log(&author);
        }
    }
}
