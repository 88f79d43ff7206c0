//! Who is cut off and taken back, and what nodes answer to test questions.

use std::collections::BTreeSet;

use secmesh::mesh::decision::{Decision, OperatorRelease};
use secmesh::mesh::engine::{Automatic, Engine, Input, Output};
use secmesh::mesh::evidence::{EvidenceMessage, Say};
use secmesh::mesh::ids::{Hash, NodeId};
use secmesh::mesh::message::Message;
use secmesh::mesh::vote::{
    Action, ActionKind, AttackClass, Ballot, Verdict, bucket_of, network_of,
};

use super::network::KIND_AT;
use super::{Event, World};
use crate::cast::{self, S, START_US};
use crate::node::Entry;
use crate::oracle::{Violation, broken};
use crate::plan::{Answers, Happening};

/// A test question, as a kind of message.
const QUESTION: u8 = 28;
/// Buckets in an hour, over which the budget is counted.
const HOUR: u64 = 60;

/// Nodes that may be cut off by vote within an hour.
pub fn budget(voters: usize) -> usize {
    (voters / 10).max(2)
}

impl World {
    pub(super) fn node_attacks(&mut self, i: usize, node: usize) -> Result<(), Violation> {
        let other = self.nodes[node].id;
        if self.nodes[i].engine.is_none() || !self.nodes[node].joined {
            return Ok(());
        }
        self.nodes[i].attacked_by.insert(other);
        let root = Hash(self.rng.bytes32());
        self.input(
            i,
            Input::NodeAttacks {
                node: other,
                evidence_root: root,
                detector_hash: Hash([0xde; 32]),
            },
        )
    }

    pub(super) fn ask_about(
        &mut self,
        at: usize,
        node: usize,
        readmit: bool,
    ) -> Result<(), Violation> {
        let other = self.nodes[node].id;
        if self.nodes[at].engine.is_none() || !self.nodes[node].joined {
            return Ok(());
        }
        if readmit {
            return self.input(at, Input::OperatorReadmit { node: other });
        }
        self.nodes[at].asked_about.insert(other);
        self.oracle.asked.insert(other);
        self.input(at, Input::OperatorQuarantine { node: other })
    }

    /// The operator's order; where its node does not run it is handed in again later.
    pub(super) fn order(&mut self, at: usize, node: usize, readmit: bool) -> Result<(), Violation> {
        let other = self.nodes[node].id;
        if !self.nodes[node].joined {
            return Ok(());
        }
        let Some(engine) = &self.nodes[at].engine else {
            let again = Event::Happen(Happening::Order { at, node, readmit });
            let later = self.now + 3 * S;
            // Nobody is cut off any more in the second phase.
            if !readmit && later >= self.plan.heal_us {
                return Ok(());
            }
            self.schedule(later, again);
            return Ok(());
        };
        let action = if readmit {
            Action::readmit(other)
        } else {
            OperatorRelease::quarantine(other)
        };
        // Signed elsewhere, where the clock is right.
        let order = engine.draft_order(action, START_US + self.now, 600);
        self.oracle.ordered.insert((other, readmit));
        let signed = Box::new(order.sign(&cast::operator()));
        self.input(at, Input::Order(signed))
    }

    /// What a node does about another one.
    pub(super) fn about_node(&mut self, i: usize, decision: &Decision) -> Result<(), Violation> {
        let action = decision.action;
        let Some(node) = action.subject.node() else {
            return broken("warrant", "an order about a node that names none");
        };
        let back = action.kind == ActionKind::Readmit;
        self.trace.line(self.now, || {
            let what = if back { "takes back" } else { "cuts off" };
            format!("{i} {what} {:?} ({})", self.index.get(&node), action.class)
        });
        if self.plan.quarantine == Automatic::Off {
            return broken("warrant", format!("node {i} takes {}", action.kind));
        }
        let engine = self.nodes[i].engine.as_ref();
        let known = engine.map_or_else(BTreeSet::new, |e| e.liars().clone());
        let own = &self.nodes[i];
        let shut = own.cut_off.iter();
        let shut = shut.filter(|(_, since)| **since < decision.bucket);
        let silent: BTreeSet<NodeId> = known.into_iter().chain(shut.map(|(n, _)| *n)).collect();
        let current = own.in_force;
        self.oracle.about_node(decision, current, &silent)?;
        let by_vote = decision.verdict.is_some();
        let own = &mut self.nodes[i];
        if back {
            self.counts.taken_back += 1;
            own.wants_off.remove(&node);
            let covered = own.taken_back.entry(node).or_default();
            *covered = decision.bucket.max(*covered);
            let still = own.engine.as_ref().is_some_and(|engine| {
                engine
                    .decisions_about(node)
                    .any(|d| d.action.kind == ActionKind::Quarantine && d.bucket <= decision.bucket)
            });
            if still {
                return broken(
                    "readmit",
                    format!("node {i} takes {node} back and has it cut off as before"),
                );
            }
        } else {
            self.counts.cut_off += 1;
            if own
                .taken_back
                .get(&node)
                .is_some_and(|covered| *covered >= decision.bucket)
            {
                return broken(
                    "readmit",
                    format!("node {i} cuts {node} off, which was taken back since"),
                );
            }
            if by_vote {
                let latest = own.spent.entry(node).or_default();
                *latest = decision.bucket.max(*latest);
            }
        }
        own.disk.append(Entry::Decision {
            kind: action.kind,
            warrant: decision.warrant.to_bytes(),
            certified_unix_us: decision.certified_unix_us,
            vetoed: None,
        });
        // Its sessions are closed, if not at once.
        if let (false, Some(other)) = (back, self.index.get(&node).copied())
            && other != i
        {
            let at = self.now + self.rng.below(S);
            let down = Event::Session {
                a: i,
                b: other,
                up: false,
            };
            self.schedule(at, down);
        }
        Ok(())
    }

    /// Nothing that a node sends that is cut off has any effect.
    pub(super) fn hears_cut_off(
        &self,
        i: usize,
        from: Option<NodeId>,
        out: &[Output],
    ) -> Result<(), Violation> {
        let Some(from) = from.filter(|from| self.nodes[i].cut_off.contains_key(from)) else {
            return Ok(());
        };
        let effect = out
            .iter()
            .find(|o| !matches!(o, Output::Refused { .. } | Output::QuorumState(_)));
        match effect {
            Some(effect) => broken(
                "cut-off",
                format!("node {i} has cut {from} off, and does what it says: {effect:?}"),
            ),
            None => Ok(()),
        }
    }

    /// Whether node `i` has a proof against another one.
    pub fn has_proof(&self, i: usize, node: &NodeId) -> bool {
        let own = &self.nodes[i];
        own.caught.contains(node)
            || own.engine.as_ref().is_some_and(|engine| {
                let report = engine.trust();
                let stands = report.nodes.get(node).map(|trust| &trust.standing);
                engine.liars().contains(node) || stands.is_some_and(|s| !s.proofs.is_empty())
            })
    }

    /// An honest node votes on cutting a node off: for a reason, and within the limits.
    pub(super) fn casts_about_node(&mut self, i: usize, ballot: &Ballot) -> Result<(), Violation> {
        let (action, vote) = (&ballot.action, &ballot.signed.vote);
        let agrees = matches!(vote.verdict, Verdict::Confirm | Verdict::Concur);
        let (ActionKind::Quarantine, Some(node), true) =
            (action.kind, action.subject.node(), agrees)
        else {
            return Ok(());
        };
        self.may_want_off(i, ballot, node)?;
        // What the disk refuses does not leave, and is forgotten with the process.
        if self.nodes[i].disk.fails {
            return Ok(());
        }
        let skew = u64::from(self.genesis.params.max_skew_s) * S;
        let until = vote.valid_until_us().saturating_add(skew);
        let (any, automatic) = self.nodes[i].wants_off.entry(node).or_default();
        *any = until.max(*any);
        if action.class != AttackClass::Manual {
            *automatic = until.max(*automatic);
        }
        Ok(())
    }

    fn may_want_off(&self, i: usize, ballot: &Ballot, node: NodeId) -> Result<(), Violation> {
        let (action, vote) = (&ballot.action, &ballot.signed.vote);
        let own = &self.nodes[i];
        let mode = self.plan.quarantine;
        let asked = own.asked_about.contains(&node);
        if vote.verdict == Verdict::Confirm && !asked {
            let seen = own.attacked_by.contains(&node) && mode == Automatic::Sightings;
            let honest = !self.oracle.liars.contains(&node);
            if honest && !seen {
                return broken(
                    "framed-node",
                    format!("node {i} says that honest {node} is hostile, and never saw it"),
                );
            }
            let allowed = match mode {
                Automatic::Off => false,
                Automatic::Proofs => self.has_proof(i, &node),
                Automatic::Sightings => true,
            };
            if !allowed {
                return broken(
                    "conduct",
                    format!("node {i} wants {node} cut off and has no {mode:?} against it"),
                );
            }
        }
        if asked || action.class == AttackClass::Manual {
            return Ok(());
        }
        let Some(epoch) = self.oracle.epochs.get(&vote.epoch_hash) else {
            return Ok(());
        };
        // What it has said yes to counts before it is decided, too.
        let wall = own.wall(self.now);
        let wants_off = |other: &NodeId| own.wants_off.get(other).is_some_and(|(at, _)| *at > wall);
        let weigh = |reach: &BTreeSet<NodeId>| -> u64 {
            let left = reach
                .iter()
                .filter(|peer| **peer != node && !wants_off(peer));
            left.filter_map(|peer| epoch.voters.get(peer))
                .map(|v| v.weight)
                .sum()
        };
        let needed = 2 * epoch.total() / 3 + 1;
        // Before the call or after it: in between, somebody may have come or been exposed.
        let now = own.engine.as_ref().map(reach_of).unwrap_or_default();
        let left = weigh(&own.in_reach).max(weigh(&now));
        if left < needed {
            return broken(
                "breaker",
                format!(
                    "node {i} wants {node} cut off, and {left} of {needed} weight would be left"
                ),
            );
        }
        let from = bucket_of(wall).saturating_sub(HOUR);
        let spent = own.spent.iter().filter(|(_, bucket)| **bucket > from);
        let mut others: BTreeSet<&NodeId> = spent.map(|(other, _)| other).collect();
        let under_way = own.wants_off.iter().filter(|(_, (_, at))| *at > wall);
        others.extend(under_way.map(|(other, _)| other));
        // Cutting the same node off once more costs nothing.
        others.remove(&node);
        if others.len() >= budget(epoch.counting()) {
            return broken(
                "budget",
                format!("node {i} wants {node} cut off beyond what an hour allows"),
            );
        }
        Ok(())
    }

    /// A liar was asked something.
    pub(super) fn answer(&mut self, liar: usize, from: usize, bytes: &[u8]) {
        let Some(answers) = self.plan.answers.get(&liar) else {
            return;
        };
        if bytes.get(KIND_AT) != Some(&QUESTION) {
            return;
        }
        let Ok(Message::Evidence(message)) = Message::from_bytes(bytes) else {
            return;
        };
        let EvidenceMessage::Question {
            commitment,
            subject,
        } = *message
        else {
            return;
        };
        let blocked = |engine: &Engine| {
            let net = network_of(&subject);
            engine.active_block(&subject).is_some()
                || net.is_some_and(|net| engine.active_block(&net).is_some())
        };
        let hostile = self
            .nodes
            .iter()
            .filter_map(|n| n.engine.as_ref())
            .any(blocked);
        let say = match answers {
            Answers::Always(say) => *say,
            Answers::Wrong if hostile => Say::Harmless,
            Answers::Wrong => Say::Hostile,
        };
        let asker = self.nodes[from].id;
        let mesh = self.genesis.mesh_id();
        if let Some(liar_itself) = self.liars.get(&liar) {
            let message = liar_itself.answer((mesh, asker), (commitment, subject), say);
            self.counts.answers += 1;
            self.send(liar, from, &message);
        }
    }
}

/// Whom an engine has in reach: itself and its peers, without liars and those who are cut off.
fn reach_of(engine: &Engine) -> BTreeSet<NodeId> {
    let mut reach = engine.connected().clone();
    reach.insert(engine.node());
    reach.retain(|node| !engine.liars().contains(node) && !engine.is_quarantined(node));
    reach
}
