//! What this node has against other nodes, and who is cut off.
//!
//! A node confirms a quarantine for what it saw itself or what is proved, and concurs when those who confirm
//! weigh more than all liars may. It says neither while the circuit breaker or the budget is against it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::io::{Automatic, RefusalReason};
use super::limits::Limits;
use super::proofs::Told;
use super::{BUCKET_US, Call, Engine, Evidence, IncidentKey};
use crate::mesh::crypto::sha256;
use crate::mesh::decision::Decision;
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
/// Messages of one peer in one minute that are more than it may send or than there is room for. An honest node
/// votes once on each of 4,096 incidents at most; a late one may refuse all of them, and once more when it connects.
const EXCESS_PER_MINUTE: u32 = 16_384;

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
    excess: u32,
}

/// All that this node has against others.
#[derive(Debug, Default, Clone)]
pub(super) struct Conduct {
    pub(super) evidence: BTreeMap<(NodeId, AttackClass), Evidence>,
    tallies: BTreeMap<NodeId, Tally>,
    pub(super) limits: Limits,
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
        // What was known by now is forgiven; only what comes counts. Lies of later are held against it again
        // once the readmission is stored.
        self.conduct.evidence.retain(|(who, _), _| *who != node);
        self.conduct.tallies.remove(&node);
        self.conduct.limits.forgive(node);
    }

    /// Brings the set of those who are cut off up to date.
    pub(super) fn know_quarantine(&mut self, node: NodeId) {
        self.state_basis = None;
        match self.quarantine_of(&node).map(|d| d.bucket) {
            Some(bucket) => self.quarantined.insert(node, bucket),
            None => self.quarantined.remove(&node),
        };
    }

    /// Whether this node may act on this class without being told.
    fn is_automatic(call: &Call<'_>, class: AttackClass) -> bool {
        match call.policy.quarantines() {
            Automatic::Off => class == AttackClass::Manual,
            Automatic::Proofs => matches!(class, AttackClass::Manual | AttackClass::Misconduct),
            Automatic::Sightings => true,
        }
    }

    /// Nodes that this one has something against, or had until just now.
    pub(super) fn suspects(&self) -> BTreeSet<NodeId> {
        let held = self.conduct.evidence.keys();
        held.map(|(node, _)| *node).collect()
    }

    /// Whether it holds one of these against a node, and acts on that without being told.
    pub(super) fn holds_automatically(
        &self,
        call: &Call<'_>,
        node: &NodeId,
        classes: &[AttackClass],
    ) -> bool {
        let held = &self.conduct.evidence;
        classes.iter().any(|class| {
            let evidence = held.get(&(*node, *class));
            evidence.is_some_and(|e| e.until_us > call.now) && Self::is_automatic(call, *class)
        })
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

    /// A node was proved to have lied; the caller has checked the proof. Nothing if that is forgiven.
    pub(super) fn proved(&mut self, node: NodeId, proof: &[u8], told: Told) {
        if self.is_forgiven(node, told) || planted(Bug::ProofWithoutConsequence) {
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
        let class = AttackClass::Manual;
        if !self.may_say(&self.config.node, ActionKind::Quarantine, Verdict::Confirm) {
            return self.refuse(call, self.config.node, RefusalReason::NoSeat);
        }
        if let Some(reason) = self.hindrance(call, &node, class, &BTreeSet::new()) {
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
        let count: fn(&mut Tally) -> (&mut u32, u32) = match reason {
            RefusalReason::Malformed
            | RefusalReason::Oversized
            | RefusalReason::BadSignature
            | RefusalReason::NotOwnVote
            | RefusalReason::NoSeat => |tally| (&mut tally.garbage, GARBAGE_PER_MINUTE),
            RefusalReason::Replayed => |tally| (&mut tally.replays, REPLAYS_PER_MINUTE),
            RefusalReason::TooManyIncidents
            | RefusalReason::TooOften
            | RefusalReason::WrongEpoch
            | RefusalReason::AsideFull
            | RefusalReason::BadAdmission => |tally| (&mut tally.excess, EXCESS_PER_MINUTE),
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
        let (count, most) = count(tally);
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
        if self.is_quarantined(&node)
            || self.is_released(node, bucket)
            || !self.is_member()
            || !self.may_say(&self.config.node, ActionKind::Quarantine, Verdict::Confirm)
        {
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
        let before = self.preferred_to(call, node);
        if let Some(reason) = self.hindrance(call, &node, class, &before) {
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
            // Once is enough.
            if self.is_quarantined(&node) {
                return;
            }
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
        for node in self.suspects() {
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
        if !witnessed || node == self.config.node || self.is_quarantined(&node) {
            return;
        }
        let verdict = if call.policy.vetoes_node(&node).is_some() {
            Verdict::Reject
        } else if let Some(reason) = self.hindrance(call, &node, class, &BTreeSet::new()) {
            self.refuse(call, ballot.signed.vote.voter, reason);
            Verdict::Abstain
        } else {
            Verdict::Concur
        };
        self.cast(call, key, verdict, None);
        self.try_certify(call, key);
    }

    pub(super) fn tick_quarantine(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        self.conduct.evidence.retain(|_, e| e.until_us > now);
        self.conduct.limits.prune(now);
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
