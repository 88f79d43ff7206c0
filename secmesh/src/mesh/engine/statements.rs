//! What this node states about the others: outcomes, verdicts, proofs; and where everybody stands by what
//! all have stated.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::io::{Output, RefusalReason};
use super::questions::OpenQuestion;
use super::sync::Sync;
use super::view::RestoreError;
use super::{Call, Engine};
use crate::addr::Prefix;
use crate::mesh::cert::{CertVote, Certificate};
use crate::mesh::crypto::sha256;
use crate::mesh::decision::{Decision, Warrant};
use crate::mesh::evidence::{
    Body, Dossier, EvidenceMessage, EvidenceSet, Inserted, MAX_DOSSIER_VOTES, Misconduct,
    OperatorVerdict, Outcome, OutcomeKind, Remediation, Ruling, SignedVerdict, Statement, verdict,
};
use crate::mesh::ids::{DecisionId, Hash, MeshId, NodeId};
use crate::mesh::message::Message;
use crate::mesh::roster::MAX_NODES;
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::trust::LocalTrust;
use crate::mesh::vote::{ActionKind, Verdict};

/// Bytes of all statements together; each node may use its part of it.
pub const MAX_EVIDENCE_BYTES: usize = 256 << 20;
/// Statements that a node may make in its first moment, and one more each [`STATEMENT_US`].
const STATEMENT_BURST: u64 = 256;
/// See [`STATEMENT_BURST`], microseconds.
const STATEMENT_US: u64 = 30 * 1_000_000;
/// Outcomes that this node states per epoch: more would not count.
const OUTCOMES_PER_EPOCH: usize = 4;
/// Decisions whose outcome was stated, so as not to state it twice.
const MAX_REPORTED: usize = 4_096;
/// Own statements that wait until it is sure how long the own log is.
const MAX_PENDING: usize = 64;
/// How much later the next node states a proof that all have, microseconds.
const PROOF_STEP_US: u64 = 250_000;

/// All about signed evidence that one engine keeps.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) set: EvidenceSet,
    /// [`MAX_EVIDENCE_BYTES`].
    pub(super) max_bytes: usize,
    pub(super) local: LocalTrust,
    pub(super) sync: Sync,
    /// Whether this node knows how long its own log is. Else it would state something under a number that
    /// it has used already.
    pub(super) sure: bool,
    /// Peers that know no more of the own log than this node.
    agreed: BTreeSet<NodeId>,
    pending: VecDeque<Body>,
    /// Since when peers are connected.
    pub(super) up_since: BTreeMap<NodeId, u64>,
    reported: BTreeSet<DecisionId>,
    /// Epoch, and outcomes stated in it.
    outcomes: (u64, usize),
    pub(super) questions: BTreeMap<Hash, OpenQuestion>,
    /// When a peer was last answered.
    pub(super) answered: BTreeMap<NodeId, u64>,
    /// Proofs to state, unless somebody else has by then.
    due: BTreeMap<NodeId, (u64, Misconduct)>,
    /// Nodes about whom a proof is in the set, or in the epoch.
    pub(super) stated: BTreeSet<NodeId>,
}

impl Statements {
    pub(super) fn new(mesh: MeshId) -> Self {
        Self {
            set: EvidenceSet::new(mesh),
            max_bytes: MAX_EVIDENCE_BYTES,
            local: LocalTrust::default(),
            sync: Sync::default(),
            sure: false,
            agreed: BTreeSet::new(),
            pending: VecDeque::new(),
            up_since: BTreeMap::new(),
            reported: BTreeSet::new(),
            outcomes: (0, 0),
            questions: BTreeMap::new(),
            answered: BTreeMap::new(),
            due: BTreeMap::new(),
            stated: BTreeSet::new(),
        }
    }

    /// Whether there is a proof against a node, stated or about to be.
    pub(super) fn is_caught(&self, node: &NodeId) -> bool {
        self.stated.contains(node) || self.due.contains_key(node)
    }

    pub(super) fn forget_requests(&mut self, peer: &NodeId) {
        self.sync.forget(peer);
    }

    pub(super) fn peer_down(&mut self, peer: &NodeId, now: u64) {
        self.up_since.remove(peer);
        self.sync.disconnected(peer, now);
    }
}

/// Eight bytes of a seed as a number, from position `at`.
pub(super) fn number(seed: &[u8; 32], at: usize) -> u64 {
    let bytes = seed.get(at..at.saturating_add(8)).unwrap_or_default();
    bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b))
}

/// Sends one peer a message about evidence.
pub(super) fn tell(call: &mut Call<'_>, to: NodeId, message: EvidenceMessage) {
    call.out.push(Output::Send {
        to,
        bytes: Message::Evidence(Box::new(message)).to_bytes(),
    });
}

impl Engine {
    /// The statements of all nodes.
    pub const fn evidence(&self) -> &EvidenceSet {
        &self.statements.set
    }

    /// This node's own opinion of its peers.
    pub const fn local_trust(&self) -> &LocalTrust {
        &self.statements.local
    }

    /// Takes back a statement from the disk, where only what had been checked was put.
    ///
    /// # Errors
    /// [`RestoreError`]; nothing has changed then.
    pub fn restore_statement(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let statement = Statement::from_bytes(bytes)?;
        if statement.head().mesh != self.mesh {
            return Err(RestoreError::NotOwn);
        }
        if planted(Bug::LogForgotten) {
            return Ok(());
        }
        if let Body::Outcome(outcome) = &statement.body
            && statement.head().author == self.config.node
            && self.statements.reported.len() < MAX_REPORTED
        {
            let decision = outcome.dossier.votes().decision();
            self.statements.reported.insert(decision);
        }
        self.noted(&statement);
        self.statements.set.insert(statement, usize::MAX);
        Ok(())
    }

    /// All that was on the disk is back. `whole`: it is certain that this node has stated nothing that is not
    /// in it; otherwise it hears its peers first. A file alone makes nothing certain, it may be an older copy.
    pub fn evidence_restored(&mut self, whole: bool) {
        self.statements.sure |= whole;
        self.let_go();
    }

    /// Most statements that a node may have made by now, and most bytes that they may take. Of one that is
    /// no member any more, as many as the epoch rests on: who joins later needs them too. The bytes are for what
    /// is not certified: see [`Engine::room_for`].
    pub(super) fn allowance(&self, author: &NodeId, now: u64) -> Option<(u64, usize)> {
        let bytes = self.statements.max_bytes / self.roster.len().max(4);
        let Some(member) = self.roster.get(author) else {
            let certified = self.certified_size(author);
            return (certified > 0).then_some((certified, bytes));
        };
        let joined = member.record.joined_unix_us;
        let count = STATEMENT_BURST.saturating_add(now.saturating_sub(joined) / STATEMENT_US);
        // What is certified was within its author's allowance by the clocks of enough others.
        Some((count.max(self.certified_size(author)), bytes))
    }

    /// Bytes that a log may take up with this statement. What is certified has no limit: it was within its
    /// author's share when the mesh was smaller, and who lacks it can say nothing about epochs.
    pub(super) fn room_for(&self, author: &NodeId, sequence: u64, share: usize) -> usize {
        if sequence < self.certified_size(author) {
            usize::MAX
        } else {
            share
        }
    }

    /// Remembers what a statement that is now in the set makes superfluous.
    pub(super) fn noted(&mut self, statement: &Statement) {
        if let Body::Misconduct(misconduct) = &statement.body {
            let culprit = misconduct.culprit();
            // What is called a proof and is none makes nothing superfluous.
            let holds = |keys| misconduct.holds(self.mesh, &keys);
            if !self.author_keys(&culprit).is_some_and(holds) {
                return;
            }
            self.statements.due.remove(&culprit);
            if self.statements.stated.len() < MAX_NODES {
                self.statements.stated.insert(culprit);
            }
        }
    }

    /// A peer knows no more of this node's own log than this node does.
    pub(super) fn agrees(&mut self, peer: NodeId) {
        if self.statements.sure {
            return;
        }
        self.statements.agreed.insert(peer);
        let weight: u64 = self
            .statements
            .agreed
            .iter()
            .filter_map(|peer| self.roster.get(peer))
            .map(|member| u64::from(member.weight))
            .sum();
        // One of them at least is honest.
        self.statements.sure = weight >= self.roster.t_lo();
    }

    /// States something: on the disk first, then to everybody. Gives its number, if it was said.
    pub(super) fn state(&mut self, call: &mut Call<'_>, body: Body) -> Option<u64> {
        let me = self.config.node;
        if !self.is_member() {
            self.refuse(call, me, RefusalReason::NotAMember);
            return None;
        }
        self.statements.sure |= self.roster.len() == 1;
        let (size, root) = {
            let head = self.statements.set.head(&me);
            (head.size, head.root)
        };
        let (count, bytes) = self.allowance(&me, call.now)?;
        if !self.statements.sure || size >= count {
            if self.statements.pending.len() >= MAX_PENDING {
                self.refuse(call, me, RefusalReason::TooMuchEvidence);
            } else {
                self.statements.pending.push_back(body);
            }
            return None;
        }
        let statement = Statement::new(
            self.mesh,
            &self.config.signer,
            me,
            (size, root),
            call.now,
            body,
        );
        if self.statements.set.insert(statement.clone(), bytes) != Inserted::New {
            self.refuse(call, me, RefusalReason::TooMuchEvidence);
            return None;
        }
        self.noted(&statement);
        self.statements.sync.stir(call.now);
        call.out.push(Output::KeepEvidence {
            bytes: statement.to_bytes(),
            own: true,
        });
        let message = EvidenceMessage::Statements(vec![statement]);
        call.out.push(Output::Broadcast(
            Message::Evidence(Box::new(message)).to_bytes(),
        ));
        if planted(Bug::StatementBeforePersist) {
            let last = call.out.len();
            call.out.swap(last - 2, last - 1);
        }
        Some(size)
    }

    /// The confirmations of a decision that are known here, without this node's own.
    fn dossier(&self, decision: &Decision) -> Option<Dossier> {
        let Warrant::Votes(certificate) = &decision.warrant else {
            return None;
        };
        let me = self.config.node;
        let mut votes: BTreeMap<NodeId, CertVote> = certificate
            .votes
            .iter()
            .map(|vote| (vote.voter, *vote))
            .collect();
        if let Some(incident) = self
            .incidents
            .get(&(decision.incident, certificate.round))
            .filter(|incident| incident.epoch_hash == certificate.epoch_hash)
        {
            for (voter, signed) in &incident.votes {
                votes
                    .entry(*voter)
                    .or_insert_with(|| CertVote::from(signed));
            }
        }
        votes.retain(|voter, vote| *voter != me && vote.verdict == Verdict::Confirm);
        let mut chosen: Vec<CertVote> = votes.into_values().collect();
        if chosen.len() > MAX_DOSSIER_VOTES {
            chosen.sort_by_cached_key(|vote| {
                let parts: [&[u8]; 3] = [
                    me.as_bytes(),
                    decision.incident.as_bytes(),
                    vote.voter.as_bytes(),
                ];
                sha256(&parts.concat())
            });
            chosen.truncate(MAX_DOSSIER_VOTES);
            chosen.sort_by_key(|vote| vote.voter);
        }
        Dossier::new(Certificate {
            votes: chosen,
            ..certificate.clone()
        })
        .ok()
    }

    pub(super) fn outcome(
        &mut self,
        call: &mut Call<'_>,
        decision: DecisionId,
        kind: OutcomeKind,
        packets: u64,
    ) {
        let me = self.config.node;
        let epoch = self.roster.epoch();
        let statements = &mut self.statements;
        if statements.outcomes.0 != epoch {
            statements.outcomes = (epoch, 0);
        }
        if statements.reported.contains(&decision)
            || (kind == OutcomeKind::Hit && statements.outcomes.1 >= OUTCOMES_PER_EPOCH)
        {
            return;
        }
        let Some(known) = self.decisions.get(&decision) else {
            return self.refuse(call, me, RefusalReason::NothingToJudge);
        };
        // Nobody but this node has seen it: nothing to say of others.
        let Some(dossier) = self.dossier(known) else {
            return;
        };
        let statements = &mut self.statements;
        while statements.reported.len() >= MAX_REPORTED {
            statements.reported.pop_first();
        }
        statements.reported.insert(decision);
        statements.outcomes.1 += usize::from(kind == OutcomeKind::Hit);
        let outcome = Outcome {
            kind,
            packets,
            dossier,
        };
        self.state(call, Body::Outcome(outcome));
    }

    /// A verdict for the operator to sign, on the blocks of `subject` that are in force; `None` if there
    /// are none.
    pub fn draft_verdict(
        &self,
        subject: Prefix,
        ruling: Ruling,
        now_unix_us: u64,
    ) -> Option<OperatorVerdict> {
        let mut latest: Vec<&Decision> = self
            .decisions_about(&subject)
            .filter(|d| d.action.kind == ActionKind::Block)
            .collect();
        latest.sort_by_key(|d| std::cmp::Reverse(d.bucket));
        let mut incidents: Vec<_> = latest.iter().map(|d| d.incident).collect();
        incidents.truncate(verdict::MAX_INCIDENTS);
        incidents.sort_unstable();
        incidents.dedup();
        (!incidents.is_empty()).then_some(OperatorVerdict {
            mesh: self.mesh,
            subject,
            ruling,
            incidents,
            issued_at_us: now_unix_us,
        })
    }

    pub(super) fn verdict(&mut self, call: &mut Call<'_>, signed: &SignedVerdict) {
        let me = self.config.node;
        if signed.verdict.mesh != self.mesh {
            return self.refuse(call, me, RefusalReason::WrongMesh);
        }
        if signed.verify(&self.config.genesis.operator_key).is_err() {
            return self.refuse(call, me, RefusalReason::BadSignature);
        }
        let dossiers: Vec<Dossier> = self
            .decisions_about(&signed.verdict.subject)
            .filter(|d| signed.verdict.incidents.contains(&d.incident))
            .filter_map(|d| self.dossier_with_own(d))
            .collect();
        if dossiers.is_empty() {
            return self.refuse(call, me, RefusalReason::NothingToJudge);
        }
        for dossier in dossiers {
            self.state(call, Body::Verdict(signed.clone(), dossier));
        }
    }

    /// As [`Engine::dossier`], with this node's own confirmation: the operator's word is also about it.
    fn dossier_with_own(&self, decision: &Decision) -> Option<Dossier> {
        let me = self.config.node;
        let others = self.dossier(decision);
        let Warrant::Votes(certificate) = &decision.warrant else {
            return None;
        };
        let own = certificate
            .votes
            .iter()
            .find(|vote| vote.voter == me && vote.verdict == Verdict::Confirm);
        let Some(own) = own else { return others };
        let mut votes = others.map_or_else(Vec::new, |dossier| dossier.votes().votes.clone());
        votes.truncate(MAX_DOSSIER_VOTES - 1);
        votes.push(*own);
        votes.sort_by_key(|vote| vote.voter);
        Dossier::new(Certificate {
            votes,
            ..certificate.clone()
        })
        .ok()
    }

    pub(super) fn remediated(
        &mut self,
        call: &mut Call<'_>,
        node: NodeId,
        decision: DecisionId,
        succeeded: bool,
    ) {
        let remediation = Remediation {
            node,
            decision,
            succeeded,
        };
        self.state(call, Body::Remediation(remediation));
    }

    /// A node was caught. All who have the proof would state it, so each waits its turn.
    pub(super) fn catch(&mut self, call: &mut Call<'_>, misconduct: Misconduct) {
        let culprit = misconduct.culprit();
        let statements = &mut self.statements;
        if culprit == self.config.node
            || statements.stated.contains(&culprit)
            || statements.due.contains_key(&culprit)
            || statements.due.len() >= MAX_NODES
        {
            return;
        }
        let seed = sha256(&[*self.config.node.as_bytes(), *culprit.as_bytes()].concat());
        let nodes = u64::try_from(self.roster.len()).unwrap_or(1).max(1);
        let turn = number(&seed, 0) % nodes;
        let due = call.now.saturating_add(turn * PROOF_STEP_US);
        call.out.push(Output::Caught {
            node: culprit,
            proof: misconduct.kind(),
        });
        self.statements.due.insert(culprit, (due, misconduct));
    }

    pub(super) fn peer_is_up(&mut self, peer: NodeId, now: u64) {
        if self.connected.contains(&peer) {
            self.statements.up_since.entry(peer).or_insert(now);
        }
    }

    pub(super) fn tick_statements(&mut self, call: &mut Call<'_>) {
        let now = call.now;
        self.end_questions(call);
        self.catch_forkers(call);
        let due: Vec<NodeId> = self
            .statements
            .due
            .iter()
            .filter(|(_, (at, _))| *at <= now)
            .map(|(culprit, _)| *culprit)
            .collect();
        for culprit in due {
            if let Some((_, misconduct)) = self.statements.due.remove(&culprit) {
                self.state(call, Body::Misconduct(misconduct));
            }
        }
        // What waits is stated as soon as that is safe; it goes to the end again if it is not yet.
        for _ in 0..self.statements.pending.len() {
            if let Some(body) = self.statements.pending.pop_front() {
                self.state(call, body);
            }
        }
        self.follow_certified(call);
        self.sync_some(call);
    }
}
