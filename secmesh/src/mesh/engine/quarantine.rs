//! What this node has against other nodes, and who is cut off.
//!
//! A node confirms a quarantine for what it saw itself or what is proved, and concurs when those who confirm
//! weigh more than all liars may. It says neither while the circuit breaker or the budget is against it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::io::{Automatic, RefusalReason};
use super::{BUCKET_US, Call, Engine, Evidence, IncidentKey};
use crate::mesh::crypto::sha256;
use crate::mesh::decision::{Decision, Warrant};
use crate::mesh::evidence::ProofKind;
use crate::mesh::ids::{DecisionId, Hash, NodeId};
use crate::mesh::roster::MAX_NODES;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::subject::Subject;
use crate::mesh::vote::{Action, ActionKind, AttackClass, Ballot, Verdict, bucket_of};
use crate::mesh::wire::Encoder;

/// How long it counts that a node attacked or sent garbage, microseconds.
const CONDUCT_US: u64 = 10 * 60 * 1_000_000;
/// How often what is not decided yet is put to the vote again, microseconds.
const AGAIN_US: u64 = 5 * 1_000_000;
/// How often the proofs among the statements are looked through, microseconds.
const PROOFS_US: u64 = 60 * 1_000_000;
/// Messages of one peer in one minute that no honest node sends: this many are no accident.
const GARBAGE_PER_MINUTE: u32 = 32;
/// Votes of one peer in one minute that were there already; an honest node repeats some when it connects.
const REPLAYS_PER_MINUTE: u32 = 4_096;
/// Buckets that the budget is counted over: an hour.
const BUDGET_BUCKETS: u64 = 60;
/// Networks that the mesh may block within an hour.
pub const MAX_NETWORKS_PER_HOUR: usize = 64;
/// Nodes that may be cut off within an hour in a mesh of less than thirty; else a tenth.
const MIN_NODES_PER_HOUR: usize = 2;
/// Decisions of class 2 that are remembered for the budget.
const MAX_SPENT: usize = 4_096;

const PROOF_TAG: &str = "secmesh/quarantine-proof/1";
const ABUSE_TAG: &str = "secmesh/quarantine-abuse/1";
const OPERATOR_TAG: &str = "secmesh/quarantine-operator/1";

/// Something that this node has against another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspicion {
    /// The node.
    pub node: NodeId,
    /// What it did.
    pub class: AttackClass,
}

/// What one peer did within one minute.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    bucket: u64,
    garbage: u32,
    replays: u32,
}

/// All that this node has against others.
#[derive(Debug, Default, Clone)]
pub(super) struct Conduct {
    evidence: BTreeMap<(NodeId, AttackClass), Evidence>,
    tallies: BTreeMap<NodeId, Tally>,
    /// Proofs against a node that was taken back all the same.
    pardoned: BTreeMap<NodeId, Vec<ProofKind>>,
    /// Decisions of class 2 by certificate, for the budget.
    spent: VecDeque<(u64, ActionKind, DecisionId)>,
    again_us: u64,
    proofs_us: u64,
}

fn tag_hash(tag: &'static str, parts: &[&[u8]]) -> Hash {
    let mut e = Encoder::tagged(tag);
    for part in parts {
        e.fixed(part);
    }
    Hash(sha256(&e.finish()))
}

impl Engine {
    /// Whether a node is cut off.
    pub fn is_quarantined(&self, node: &NodeId) -> bool {
        self.quarantined.contains_key(node)
    }

    /// Who is cut off.
    pub fn quarantined(&self) -> impl Iterator<Item = &NodeId> {
        self.quarantined.keys()
    }

    /// The decision that a node is cut off by, the first of several.
    pub fn quarantine_of(&self, node: &NodeId) -> Option<&Decision> {
        self.decisions_about(node)
            .filter(|d| d.action.kind == ActionKind::Quarantine)
            .min_by_key(|d| (d.bucket, d.id))
    }

    /// What this node has against others at this time.
    pub fn suspicions(&self, now_unix_us: u64) -> Vec<Suspicion> {
        let live = self.conduct.evidence.iter();
        live.filter(|(_, evidence)| evidence.until_us > now_unix_us)
            .map(|((node, class), _)| Suspicion {
                node: *node,
                class: *class,
            })
            .collect()
    }

    #[expect(
        single_use_lifetimes,
        reason = "anonymous lifetimes in `impl Trait` are not stable"
    )]
    pub(super) fn weight_of<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) -> u64 {
        nodes
            .filter_map(|node| self.roster.get(node))
            .map(|member| u64::from(member.weight))
            .sum()
    }

    /// Whose votes count for nothing now: proved liars, and those who are cut off.
    pub(super) fn silent(&self) -> Cow<'_, BTreeSet<NodeId>> {
        self.silent_at(u64::MAX)
    }

    /// Whose votes count for nothing in a certificate of this bucket. Those of a node that was cut off later
    /// go on counting in what was decided before, or each restart would undo some of that.
    pub(super) fn silent_at(&self, bucket: u64) -> Cow<'_, BTreeSet<NodeId>> {
        let mut later = self.quarantined.iter();
        if later.all(|(_, since)| *since >= bucket) {
            return Cow::Borrowed(&self.zeroed);
        }
        let cut_off = self.quarantined.iter();
        let cut_off = cut_off.filter(|(_, since)| **since < bucket);
        let mut silent = self.zeroed.clone();
        silent.extend(cut_off.map(|(node, _)| *node));
        Cow::Owned(silent)
    }

    /// A decision on a node makes earlier ones void: a readmission the quarantines up to its own bucket, and
    /// the readmissions before it.
    pub(super) fn settle(&mut self, node: NodeId, decision: &Decision) {
        if decision.action.kind != ActionKind::Readmit {
            return;
        }
        let void: Vec<DecisionId> = self
            .decisions_about(node)
            .filter(|d| match d.action.kind {
                ActionKind::Quarantine => {
                    d.bucket <= decision.bucket && !planted(Bug::ReadmitIgnored)
                }
                _ => d.bucket < decision.bucket,
            })
            .map(|d| d.id)
            .collect();
        for id in void {
            self.forget(&id);
        }
        // What was known by now is forgiven; only what comes counts.
        self.conduct.evidence.retain(|(who, _), _| *who != node);
        self.conduct.tallies.remove(&node);
        self.conduct.pardoned.remove(&node);
    }

    /// Brings the set of those who are cut off up to date.
    pub(super) fn know_quarantine(&mut self, node: NodeId) {
        self.state_basis = None;
        match self.quarantine_of(&node).map(|d| d.bucket) {
            Some(bucket) => self.quarantined.insert(node, bucket),
            None => self.quarantined.remove(&node),
        };
    }

    /// Counts a decision of class 2 by votes on the budget.
    pub(super) fn spend(&mut self, decision: &Decision) {
        let kind = decision.action.kind;
        let counts = matches!(kind, ActionKind::Block | ActionKind::Quarantine)
            && decision.action.is_class_2()
            && matches!(decision.warrant, Warrant::Votes(_));
        let spent = &mut self.conduct.spent;
        if !counts || spent.iter().any(|(_, _, id)| *id == decision.id) {
            return;
        }
        if spent.len() >= MAX_SPENT {
            spent.pop_front();
        }
        spent.push_back((decision.bucket, kind, decision.id));
    }

    /// Whether as much of class 2 was decided within the last hour as may be.
    pub(super) fn is_budget_spent(&self, now: u64, kind: ActionKind) -> bool {
        let from = bucket_of(now).saturating_sub(BUDGET_BUCKETS);
        let spent = self.conduct.spent.iter();
        let count = spent
            .filter(|(bucket, what, _)| *what == kind && *bucket > from)
            .count();
        let most = match kind {
            ActionKind::Quarantine => (self.roster.voters() / 10).max(MIN_NODES_PER_HOUR),
            _ => MAX_NETWORKS_PER_HOUR,
        };
        count >= most
    }

    /// Why this node does not vote for cutting `node` off, if it does not.
    fn hindrance(
        &self,
        call: &Call<'_>,
        node: &NodeId,
        class: AttackClass,
    ) -> Option<RefusalReason> {
        if *node == self.config.node || self.roster.get(node).is_none() {
            return Some(RefusalReason::WrongAction);
        }
        // What an operator asks for has no limits but the quorum.
        if class == AttackClass::Manual {
            return None;
        }
        if self.is_budget_spent(call.now, ActionKind::Quarantine) && !planted(Bug::BudgetOff) {
            return Some(RefusalReason::OverBudget);
        }
        // Those in reach who would be left: neither liars, nor cut off, nor the one in question.
        let silent = self.silent();
        let left = self.connected.iter().chain([&self.config.node]);
        let left = left.filter(|peer| *peer != node && !silent.contains(*peer));
        if self.weight_of(left) < self.roster.t_hi() && !planted(Bug::BreakerOff) {
            return Some(RefusalReason::CircuitBreaker);
        }
        None
    }

    /// Whether this node may act on this class without being told.
    fn is_automatic(call: &Call<'_>, class: AttackClass) -> bool {
        match call.policy.quarantines() {
            Automatic::Off => class == AttackClass::Manual,
            Automatic::Proofs => matches!(class, AttackClass::Manual | AttackClass::Misconduct),
            Automatic::Sightings => true,
        }
    }

    pub(super) fn has_evidence_on(&self, now: u64, node: NodeId) -> bool {
        self.evidence_on_node(now, node, AttackClass::Manual)
            .is_some()
    }

    /// Live own evidence on a node, of this class if there is some.
    fn evidence_on_node(&self, now: u64, node: NodeId, class: AttackClass) -> Option<Evidence> {
        let evidence = &self.conduct.evidence;
        let of = |class: &AttackClass| {
            let found = evidence.get(&(node, *class));
            found.filter(|e| e.until_us > now).copied()
        };
        of(&class).or_else(|| AttackClass::ALL.iter().find_map(of))
    }

    fn hold_against(&mut self, node: NodeId, class: AttackClass, evidence: Evidence) {
        let held = &mut self.conduct.evidence;
        let known = held.contains_key(&(node, class));
        if node != self.config.node && (known || held.len() < 4 * MAX_NODES) {
            held.insert((node, class), evidence);
        }
    }

    /// A node was proved to have lied; the caller has checked the proof.
    pub(super) fn proved(&mut self, node: NodeId, proof: &[u8]) {
        if planted(Bug::ProofWithoutConsequence) {
            return;
        }
        let evidence = Evidence {
            root: tag_hash(PROOF_TAG, &[&sha256(proof)]),
            detector: tag_hash(PROOF_TAG, &[]),
            until_us: u64::MAX,
        };
        self.hold_against(node, AttackClass::Misconduct, evidence);
    }

    pub(super) fn node_attacks(
        &mut self,
        call: &mut Call<'_>,
        node: NodeId,
        root: Hash,
        detector: Hash,
    ) {
        let evidence = Evidence {
            root,
            detector,
            until_us: call.now.saturating_add(CONDUCT_US),
        };
        self.hold_against(node, AttackClass::HostileNode, evidence);
        self.act_on_node(call, node);
    }

    pub(super) fn operator_quarantine(&mut self, call: &mut Call<'_>, node: NodeId) {
        if let Some(reason) = self.hindrance(call, &node, AttackClass::Manual) {
            return self.refuse(call, self.config.node, reason);
        }
        let now = call.now.to_be_bytes();
        let evidence = Evidence {
            root: tag_hash(OPERATOR_TAG, &[node.as_bytes(), &now]),
            detector: tag_hash(OPERATOR_TAG, &[]),
            until_us: call.now.saturating_add(CONDUCT_US),
        };
        self.hold_against(node, AttackClass::Manual, evidence);
        self.act_on_node(call, node);
    }

    /// Counts what no honest node sends.
    pub(super) fn note_refusal(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        reason: RefusalReason,
    ) {
        let garbage = match reason {
            RefusalReason::Malformed
            | RefusalReason::Oversized
            | RefusalReason::BadSignature
            | RefusalReason::NotOwnVote => true,
            RefusalReason::Replayed => false,
            _ => return,
        };
        let known = self.conduct.tallies.contains_key(&from);
        if from == self.config.node
            || self.roster.get(&from).is_none()
            || (self.conduct.tallies.len() >= MAX_NODES && !known)
        {
            return;
        }
        let bucket = bucket_of(call.now);
        let tally = self.conduct.tallies.entry(from).or_default();
        if tally.bucket != bucket {
            *tally = Tally {
                bucket,
                ..Tally::default()
            };
        }
        let (count, most) = if garbage {
            (&mut tally.garbage, GARBAGE_PER_MINUTE)
        } else {
            (&mut tally.replays, REPLAYS_PER_MINUTE)
        };
        *count = count.saturating_add(1);
        if *count != most {
            return;
        }
        let evidence = Evidence {
            root: tag_hash(ABUSE_TAG, &[from.as_bytes(), &bucket.to_be_bytes()]),
            detector: tag_hash(ABUSE_TAG, &[]),
            until_us: call.now.saturating_add(CONDUCT_US),
        };
        self.hold_against(from, AttackClass::MeshAbuse, evidence);
        self.act_on_node(call, from);
    }

    /// Votes on everything open about `node`, and opens an incident if none is.
    pub(super) fn act_on_node(&mut self, call: &mut Call<'_>, node: NodeId) {
        let bucket = bucket_of(call.now);
        if self.is_quarantined(&node) || self.is_released(node, bucket) || !self.is_member() {
            return;
        }
        let held: Vec<(AttackClass, Evidence)> = AttackClass::ALL
            .iter()
            .filter_map(|class| {
                let evidence = self.conduct.evidence.get(&(node, *class))?;
                let counts = evidence.until_us > call.now && Self::is_automatic(call, *class);
                counts.then_some((*class, *evidence))
            })
            .collect();
        let Some((class, evidence)) = held.first().copied() else {
            return;
        };
        // An operator's word, where there is one, frees of the limits.
        let (class, evidence) = held
            .iter()
            .copied()
            .find(|(class, _)| *class == AttackClass::Manual)
            .unwrap_or((class, evidence));
        if let Some(reason) = self.hindrance(call, &node, class) {
            return self.refuse(call, self.config.node, reason);
        }
        let mut open = false;
        for key in self.incidents.about(&Subject::Node(node)) {
            let Some(incident) = self.incidents.get(&key) else {
                continue;
            };
            if incident.action.kind != ActionKind::Quarantine
                || !incident.is_open(call.now)
                || self.is_released(node, incident.bucket)
            {
                continue;
            }
            open = true;
            self.cast(call, &key, Verdict::Confirm, Some(evidence));
            self.try_certify(call, &key);
        }
        if open || self.is_quarantined(&node) {
            return;
        }
        let action = Action::quarantine(node, class);
        if let Some(key) = self.open_own(call, action, bucket, 0) {
            self.cast(call, &key, Verdict::Confirm, Some(evidence));
            self.try_certify(call, &key);
        }
    }

    /// As [`Engine::act_on_node`], for all.
    pub(super) fn act_on_nodes(&mut self, call: &mut Call<'_>) {
        let nodes: BTreeSet<NodeId> = self
            .conduct
            .evidence
            .keys()
            .map(|(node, _)| *node)
            .collect();
        for node in nodes {
            self.act_on_node(call, node);
        }
    }

    /// A peer has voted on a quarantine.
    pub(super) fn react_to_quarantine(
        &mut self,
        call: &mut Call<'_>,
        key: &IncidentKey,
        ballot: &Ballot,
    ) {
        let Some(node) = ballot.action.subject.node() else {
            return;
        };
        let class = ballot.action.class;
        self.act_on_node(call, node);
        self.try_certify(call, key);
        let witnessed = self
            .incidents
            .get(key)
            .is_some_and(|incident| !incident.decided && self.tally(incident).witnessed());
        if !witnessed || node == self.config.node {
            return;
        }
        let verdict = if call.policy.vetoes_node(&node).is_some() {
            Verdict::Reject
        } else if let Some(reason) = self.hindrance(call, &node, class) {
            self.refuse(call, ballot.signed.vote.voter, reason);
            Verdict::Abstain
        } else {
            Verdict::Concur
        };
        self.cast(call, key, verdict, None);
        self.try_certify(call, key);
    }

    /// Proofs that peers have stated, and forged statements, which prove themselves.
    fn look_at_proofs(&mut self) {
        let report = self.trust();
        for (node, trust) in &report.nodes {
            let proofs = &trust.standing.proofs;
            if proofs.is_empty() || *node == self.config.node {
                continue;
            }
            let taken_back = self.is_released(*node, 0);
            let pardoned = &mut self.conduct.pardoned;
            if taken_back && !pardoned.contains_key(node) {
                pardoned.insert(*node, proofs.clone());
            }
            let forgiven = pardoned.get(node);
            let new = proofs
                .iter()
                .find(|proof| forgiven.is_none_or(|known| !known.contains(proof)));
            let known = self
                .conduct
                .evidence
                .contains_key(&(*node, AttackClass::Misconduct));
            if let Some(proof) = new
                && !known
            {
                self.proved(*node, &[proof.code()]);
            }
        }
    }

    pub(super) fn tick_quarantine(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        self.conduct.evidence.retain(|_, e| e.until_us > now);
        let bucket = bucket_of(now);
        self.conduct.tallies.retain(|_, t| t.bucket == bucket);
        let due = |last: u64, every: u64| now.saturating_sub(last) >= every || last > now;
        if due(self.conduct.proofs_us, PROOFS_US) {
            self.conduct.proofs_us = now;
            self.look_at_proofs();
        }
        if due(self.conduct.again_us, AGAIN_US) {
            self.conduct.again_us = now;
            self.act_on_nodes(call);
        }
    }

    /// When the quarantines of a node that lie behind its readmission count no more: the end of its bucket,
    /// microseconds since 1970. None if it was never readmitted.
    pub fn readmitted_until(&self, node: &NodeId) -> Option<u64> {
        self.decisions_about(node)
            .filter(|d| d.action.kind == ActionKind::Readmit)
            .map(|d| d.bucket.saturating_add(1).saturating_mul(BUCKET_US))
            .max()
    }
}
