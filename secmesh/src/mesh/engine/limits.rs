//! How much of class 2 a node votes for: the budget of an hour, and the circuit breaker.
//!
//! Both count what is decided **and** what this node has said yes to and is not decided yet. What is only under way
//! may be decided any moment; if it counted for nothing, any number of votes given within one round trip would pass.

use std::collections::{BTreeMap, BTreeSet};

use super::io::RefusalReason;
use super::{BUCKET_US, Call, Engine, MAX_NETWORKS};
use crate::mesh::crypto::sha256;
use crate::mesh::decision::{Decision, Warrant};
use crate::mesh::genesis::{MAX_SKEW_S, MAX_VOTE_VALID_S};
use crate::mesh::ids::NodeId;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::subject::Subject;
use crate::mesh::vote::{Action, ActionKind, AttackClass, Ballot, Verdict, bucket_of};

/// Buckets that the budget is counted over: an hour.
const BUDGET_BUCKETS: u64 = 60;
/// Networks that the mesh may block within an hour.
pub const MAX_NETWORKS_PER_HOUR: usize = 64;
/// Nodes that may be cut off within an hour in a mesh of less than thirty; else a tenth.
const MIN_NODES_PER_HOUR: usize = 2;
/// Subjects that are remembered for the budget.
const MAX_SPENT: usize = 4_096;
/// Buckets for which the order holds in which nodes are put to the vote again: as long as a vote of the longest
/// validity counts anywhere, so that what was voted for in another order is over by then.
const TURN_BUCKETS: u64 = 15;

type Matter = (ActionKind, Subject);

/// What was decided of class 2 lately, and what this node has said yes to.
#[derive(Debug, Default, Clone)]
pub(super) struct Limits {
    /// Decided by certificates: the latest bucket.
    spent: BTreeMap<Matter, u64>,
    /// Voted for by this node.
    asked: BTreeMap<Matter, Asked>,
}

/// Until when an own vote may be part of a new certificate, microseconds since 1970.
#[derive(Debug, Default, Clone, Copy)]
struct Asked {
    /// Any vote.
    until: u64,
    /// One that no operator asked for.
    automatic_until: u64,
}

impl Limits {
    /// No vote counts any more that was given by then.
    pub(super) fn prune(&mut self, now: u64) {
        self.asked.retain(|_, asked| asked.until > now);
    }

    /// What was said about a node that is taken back counts no more.
    pub(super) fn forgive(&mut self, node: NodeId) {
        self.asked.remove(&(ActionKind::Quarantine, node.into()));
    }

    /// Subjects of own votes that may lead to a decision.
    fn asked(&self, now: u64, kind: ActionKind) -> impl Iterator<Item = Subject> {
        self.asked_until(now, kind, |asked| asked.until)
    }

    /// The same of those that no operator asked for.
    fn asked_automatically(&self, now: u64, kind: ActionKind) -> impl Iterator<Item = Subject> {
        self.asked_until(now, kind, |asked| asked.automatic_until)
    }

    fn asked_until(
        &self,
        now: u64,
        kind: ActionKind,
        until: fn(&Asked) -> u64,
    ) -> impl Iterator<Item = Subject> {
        let asked = self.asked.iter();
        asked
            .filter(move |((what, _), asked)| *what == kind && until(asked) > now)
            .map(|((_, subject), _)| *subject)
    }
}

impl Engine {
    /// Counts a decision of class 2 by votes on the budget.
    pub(super) fn spend(&mut self, decision: &Decision) {
        let action = &decision.action;
        let counts = matches!(action.kind, ActionKind::Block | ActionKind::Quarantine)
            && action.is_class_2()
            && matches!(decision.warrant, Warrant::Votes(_));
        if !counts {
            return;
        }
        let spent = &mut self.conduct.limits.spent;
        let matter = (action.kind, action.subject);
        if spent.len() >= MAX_SPENT && !spent.contains_key(&matter) {
            let oldest = spent.iter().min_by_key(|(_, bucket)| **bucket);
            if let Some(oldest) = oldest.map(|(matter, _)| *matter) {
                spent.remove(&oldest);
            }
        }
        let bucket = spent.entry(matter).or_default();
        *bucket = decision.bucket.max(*bucket);
    }

    /// Counts an own vote, signed now or read back from the disk, for as long as it may lead to a decision. Bounded
    /// by the limits themselves, but for what an operator asks for, and that is as many as there are nodes.
    pub(super) fn note_asked(&mut self, ballot: &Ballot) {
        let (action, vote) = (&ballot.action, &ballot.signed.vote);
        let asks = matches!(action.kind, ActionKind::Block | ActionKind::Quarantine)
            && action.is_class_2()
            && matches!(vote.verdict, Verdict::Confirm | Verdict::Concur);
        if asks && !planted(Bug::UnderWayFree) {
            let until = vote.valid_until_us().saturating_add(self.skew_us());
            let asked = &mut self.conduct.limits.asked;
            let known = asked.entry((action.kind, action.subject)).or_default();
            known.until = until.max(known.until);
            if action.class != AttackClass::Manual {
                known.automatic_until = until.max(known.automatic_until);
            }
        }
    }

    /// What is spent of an hour's budget, without `subject`: decided, under way with this node's vote, or in `also`.
    /// What an operator wishes is outside of it until it is decided: a wish that too few share is renewed for as long
    /// as it stands, and the mesh has to be able to cut off a proved liar meanwhile.
    fn spent_without(
        &self,
        now: u64,
        kind: ActionKind,
        subject: &Subject,
        also: &BTreeSet<NodeId>,
    ) -> usize {
        let from = bucket_of(now).saturating_sub(BUDGET_BUCKETS);
        let limits = &self.conduct.limits;
        let spent = limits.spent.iter();
        let mut subjects: BTreeSet<Subject> = spent
            .filter(|((what, _), bucket)| *what == kind && **bucket > from)
            .map(|((_, subject), _)| *subject)
            .collect();
        subjects.extend(limits.asked_automatically(now, kind));
        subjects.extend(also.iter().map(|node| Subject::from(*node)));
        subjects.remove(subject);
        subjects.len()
    }

    /// Whether one more network would be too many. A certificate that the others make all the same is
    /// taken: `T_hi` of them had room.
    pub(super) fn is_over_budget(&self, now: u64, action: &Action) -> bool {
        if !action.is_class_2() {
            return false;
        }
        let subject = &action.subject;
        let active = self.networks.iter().filter_map(|id| self.decisions.get(id));
        let mut active: BTreeSet<Subject> = active.map(|d| d.action.subject).collect();
        active.extend(self.conduct.limits.asked(now, action.kind));
        active.remove(subject);
        active.len() >= MAX_NETWORKS
            || self.spent_without(now, action.kind, subject, &BTreeSet::new())
                >= MAX_NETWORKS_PER_HOUR
    }

    /// Why this node does not vote for cutting `node` off, if it does not. `before`: nodes that it would rather
    /// cut off and that count as if they were.
    pub(super) fn hindrance(
        &self,
        call: &Call<'_>,
        node: &NodeId,
        class: AttackClass,
        before: &BTreeSet<NodeId>,
    ) -> Option<RefusalReason> {
        if *node == self.config.node || self.roster.get(node).is_none() {
            return Some(RefusalReason::WrongAction);
        }
        // What an operator asks for has no limits but the quorum.
        if class == AttackClass::Manual {
            return None;
        }
        let kind = ActionKind::Quarantine;
        let most = (self.roster.voters() / 10).max(MIN_NODES_PER_HOUR);
        if self.spent_without(call.now, kind, &Subject::from(*node), before) >= most
            && !planted(Bug::BudgetOff)
        {
            return Some(RefusalReason::OverBudget);
        }
        // Those in reach who would be left: neither liars, nor cut off or about to be, nor the one in question.
        let silent = self.silent();
        let mut leaving = before.clone();
        let asked = self.conduct.limits.asked(call.now, kind);
        leaving.extend(asked.filter_map(|subject| subject.node()));
        leaving.insert(*node);
        // Who only others say they hear may be left to nobody.
        let met = self.connected.iter().chain([&self.config.node]);
        let left = met.filter(|peer| {
            self.is_reachable(peer) && !silent.contains(*peer) && !leaving.contains(*peer)
        });
        let left: Vec<&NodeId> = left.collect();
        // Of all weight, for the next epoch, and of the committee, for the next decision.
        let seated = left
            .iter()
            .map(|node| self.roster.vote_weight(node))
            .sum::<u64>();
        let enough = self.weight_of(left.into_iter()) >= self.roster.t_hi()
            && seated >= self.roster.deciding().t_hi();
        if !enough && !planted(Bug::BreakerOff) {
            return Some(RefusalReason::CircuitBreaker);
        }
        None
    }

    /// The nodes that come before `node` where not all can be cut off at once: those with a proof against them, which
    /// everybody has; then by an order that is the same everywhere and another every quarter of an hour. Without
    /// one, nodes whose limits are used up by different votes would renew those for ever and decide nothing.
    pub(super) fn preferred_to(&self, call: &Call<'_>, node: NodeId) -> BTreeSet<NodeId> {
        let turn = (bucket_of(call.now) / TURN_BUCKETS).to_be_bytes();
        let place = |of: &NodeId| {
            let proved = self.holds_automatically(call, of, &[AttackClass::Misconduct]);
            let order = sha256(&[turn.as_slice(), of.as_bytes()].concat());
            (!proved, order)
        };
        let mine = place(&node);
        let automatic = [
            AttackClass::Misconduct,
            AttackClass::HostileNode,
            AttackClass::MeshAbuse,
        ];
        let suspects = self.suspects().into_iter();
        suspects
            .filter(|other| {
                *other != node
                    && self.roster.get(other).is_some()
                    && !self.is_quarantined(other)
                    && !self.is_released(*other, bucket_of(call.now))
                    && call.policy.vetoes_node(other).is_none()
                    && self.holds_automatically(call, other, &automatic)
                    && place(other) < mine
            })
            .collect()
    }
}

const _: () = {
    let longest_s = MAX_VOTE_VALID_S as u64 + MAX_SKEW_S as u64;
    assert!(TURN_BUCKETS * BUCKET_US >= longest_s * 1_000_000);
};
