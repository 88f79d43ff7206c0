//! What nodes believe, and whether they agree.

use std::collections::BTreeSet;

use secmesh::mesh::decision::{Decision, Warrant};
use secmesh::mesh::engine::Engine;
use secmesh::mesh::ids::DecisionId;
use secmesh::mesh::roster::Roster;
use secmesh::mesh::subject::Subject;
use secmesh::mesh::vote::ActionKind;

use super::World;
use crate::cast::{self, S};

impl World {
    /// What all honest nodes have to agree on, as bytes: roster, exposed liars, and each of
    /// `decisions` that the node holds.
    pub fn belief(&self, i: usize, decisions: &BTreeSet<DecisionId>) -> Option<Vec<u8>> {
        let engine = self.nodes[i].engine.as_ref()?;
        let mut bytes = engine.roster().epoch_hash().0.to_vec();
        // A liar that forked its log has shown different nodes different ones.
        for (author, head) in engine.evidence().frontier().logs() {
            // Of a node that has left, only what is certified is passed on.
            if !self.oracle.liars.contains(author) && engine.roster().get(author).is_some() {
                bytes.extend(author.0);
                bytes.extend(head.size.to_be_bytes());
                bytes.extend(head.root.0);
            }
        }
        for liar in engine.liars() {
            // A proof against somebody who is no voter any more changes nothing.
            if engine.roster().get(liar).is_some() {
                bytes.extend(liar.0);
            }
        }
        for decision in engine.decisions().filter(|d| decisions.contains(&d.id)) {
            bytes.extend(decision.id.0);
            bytes.extend(decision.action.to_bytes());
            bytes.extend(decision.bucket.to_be_bytes());
            bytes.extend(decision.expires_unix_us.to_be_bytes());
        }
        Some(bytes)
    }

    /// Decisions that somebody can prove to everybody: their votes are enough in today's epoch and without the
    /// exposed liars. Those that somebody holds from before and could not prove to a newcomer are not among them,
    /// nor those that end about now, since clocks differ, nor those of an epoch that a node cannot know any more:
    /// rosters before a ticket was found to be used twice are in memory only.
    pub fn provable(&self) -> BTreeSet<DecisionId> {
        let horizon = cast::START_US + self.now + 30 * S;
        let mut all = BTreeSet::new();
        let members = self.members();
        for engine in members
            .iter()
            .filter_map(|i| self.nodes[*i].engine.as_ref())
        {
            for decision in engine.decisions().filter(|d| d.expires_unix_us > horizon) {
                let counts = match &decision.warrant {
                    // One of the future, by a clock that was ahead, is refused by all others until then.
                    Warrant::Operator(signed) => {
                        signed.release.issued_at_us <= cast::START_US + self.now
                    }
                    // By today's weights and by those of its own epoch.
                    Warrant::Votes(certificate) => {
                        let mut silent = engine.liars().clone();
                        silent.extend(engine.quarantined().filter(|node| {
                            let since = engine.quarantine_of(node).map(|d| d.bucket);
                            since.is_some_and(|since| since < certificate.bucket)
                        }));
                        engine.roster_for(decision).is_some_and(|own| {
                            let enough =
                                |roster: &Roster| certificate.stands_today(roster, &own, &silent);
                            enough(engine.roster()) && enough(&own)
                        })
                    }
                };
                let known = members
                    .iter()
                    .filter_map(|i| self.nodes[*i].engine.as_ref())
                    .all(|engine| engine.roster_for(decision).is_some());
                if counts && known {
                    all.insert(decision.id);
                }
            }
        }
        self.without_released(&members, &mut all);
        all
    }

    /// Takes out blocks that somebody holds a release against that cannot be proved any more: it keeps them out,
    /// and whoever lost its memory before has them.
    fn without_released(&self, members: &[usize], all: &mut BTreeSet<DecisionId>) {
        let engines = || {
            members
                .iter()
                .filter_map(|i| self.nodes[*i].engine.as_ref())
        };
        let lost: BTreeSet<(Subject, u64)> = engines()
            .flat_map(Engine::decisions)
            .filter(|d| d.action.kind.lifts() && !all.contains(&d.id))
            .map(|d| (d.action.subject, d.bucket))
            .collect();
        let covered = |d: &Decision| {
            matches!(d.action.kind, ActionKind::Block | ActionKind::Quarantine)
                && lost
                    .iter()
                    .any(|(subject, bucket)| *subject == d.action.subject && *bucket >= d.bucket)
        };
        for decision in engines().flat_map(Engine::decisions).filter(|d| covered(d)) {
            all.remove(&decision.id);
        }
    }

    /// In what two beliefs differ, for people.
    pub fn difference(&self, a: usize, b: usize, decisions: &BTreeSet<DecisionId>) -> String {
        let mut text = Vec::new();
        if let (Some(one), Some(two)) = (&self.nodes[a].engine, &self.nodes[b].engine) {
            if one.roster().epoch_hash() != two.roster().epoch_hash() {
                text.push(format!(
                    "epochs {} and {}",
                    one.roster().epoch(),
                    two.roster().epoch()
                ));
            }
            let (left, right) = (one.evidence().frontier(), two.evidence().frontier());
            for author in self.oracle.cast.difference(&self.oracle.liars) {
                if left.logs().get(author) != right.logs().get(author) {
                    text.push(format!(
                        "{} and {} statements of {:?}",
                        left.size(author),
                        right.size(author),
                        self.index.get(author)
                    ));
                }
            }
            for (engine, other, who) in [(one, two, a), (two, one, b)] {
                for liar in engine.liars().difference(other.liars()) {
                    text.push(format!(
                        "only {who} knows that {:?} lied",
                        self.index.get(liar)
                    ));
                }
                for decision in engine.decisions().filter(|d| decisions.contains(&d.id)) {
                    if other.decision(&decision.id).is_none() {
                        let votes = decision.verdict.iter().flat_map(|v| &v.votes);
                        let votes: Vec<_> = votes
                            .map(|v| format!("{:?} {}", self.index.get(&v.voter), v.verdict))
                            .collect();
                        text.push(format!(
                            "only {who} has {} {} of bucket {} ({})",
                            decision.action.kind,
                            decision.action.subject,
                            decision.bucket % 1_000,
                            votes.join(", ")
                        ));
                    }
                }
            }
        }
        format!("nodes {a} and {b} differ: {}", text.join("; "))
    }
}
