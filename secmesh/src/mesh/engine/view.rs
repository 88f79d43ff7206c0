//! What can be read from an engine, and what is put back into it after a restart.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::io::{CommitteeState, QuorumLevel, QuorumState, RefusalReason, VoteSummary};
use super::proofs::Told;
use super::{Engine, MAX_DECISIONS, MAX_OWN_VOTES};
use crate::addr::Prefix;
use crate::mesh::admission::{AdmittedRecord, SignedGrant};
use crate::mesh::cert::{CertError, CertVerdict};
use crate::mesh::crypto::CryptoError;
use crate::mesh::decision::{Decision, OperatorRelease, ReleaseError, Warrant};
use crate::mesh::genesis::Genesis;
use crate::mesh::ids::{DecisionId, IncidentId, NodeId};
use crate::mesh::message::EquivocationProof;
use crate::mesh::roster::{Roster, Tolerance};
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::subject::Subject;
use crate::mesh::swim::Liveness;
use crate::mesh::vote::{Action, ActionKind, Ballot};
use crate::mesh::wire::WireError;

/// Why stored bytes are not taken back.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The bytes are damaged.
    #[error("the stored bytes are damaged: {0}")]
    Wire(#[from] WireError),
    /// A vote is not this node's.
    #[error("the stored vote is not of this node, mesh and incarnation")]
    NotOwn,
    /// A signature does not verify.
    #[error("the stored signature: {0}")]
    Signature(#[from] CryptoError),
    /// A certificate proves nothing.
    #[error("the stored certificate: {0}")]
    Certificate(#[from] CertError),
    /// A release proves nothing.
    #[error("the stored release: {0}")]
    Release(#[from] ReleaseError),
    /// A limit is reached.
    #[error("there are more than {0} of them")]
    Full(usize),
}

/// An incident, for people.
#[derive(Debug, Clone, Serialize)]
pub struct IncidentView {
    /// Its id.
    pub incident: IncidentId,
    /// The round.
    pub round: u32,
    /// What is voted on.
    pub action: Action,
    /// Time bucket (minutes since 1970).
    pub bucket: u64,
    /// Who voted first.
    pub opened_by: NodeId,
    /// Whether it was decided.
    pub decided: bool,
    /// The votes.
    pub votes: Vec<VoteSummary>,
    /// What they add up to.
    pub verdict: CertVerdict,
}

impl Engine {
    /// This node.
    pub const fn node(&self) -> NodeId {
        self.config.node
    }

    /// The mesh.
    pub const fn genesis(&self) -> &Genesis {
        &self.config.genesis
    }

    /// The roster of the current epoch.
    pub const fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The roster a decision was taken under, if its epoch is still kept.
    pub fn roster_for(&self, decision: &Decision) -> Option<Cow<'_, Roster>> {
        match &decision.warrant {
            Warrant::Votes(certificate) => self.roster_of(&certificate.epoch_hash),
            Warrant::Operator(signed) => self.roster_of(&signed.release.epoch_hash),
        }
    }

    /// All admissions, for the disk and for a joiner.
    pub fn admissions(&self) -> impl Iterator<Item = &AdmittedRecord> {
        self.registry.records()
    }

    /// Tickets that are open.
    pub fn open_grants(&self) -> impl Iterator<Item = &SignedGrant> {
        self.grants.values()
    }

    /// Connected peers.
    pub const fn connected(&self) -> &BTreeSet<NodeId> {
        &self.connected
    }

    /// Nodes that were proved to lie.
    pub const fn liars(&self) -> &BTreeSet<NodeId> {
        &self.zeroed
    }

    /// The proofs against them.
    pub fn proofs(&self) -> impl Iterator<Item = &EquivocationProof> {
        self.proofs.values()
    }

    /// How often what was refused since the start; every reason is there.
    pub fn refusals(&self) -> BTreeMap<RefusalReason, u64> {
        RefusalReason::ALL
            .iter()
            .map(|reason| (*reason, self.refusals.get(reason).copied().unwrap_or(0)))
            .collect()
    }

    /// Highest sequence number this node has used.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Undecided incidents.
    pub const fn open_incidents(&self) -> usize {
        self.incidents.open_count()
    }

    /// Incidents with their votes, decided ones too as long as they are remembered; only those
    /// about `subject` if one is given.
    pub fn incidents(&self, subject: Option<&Prefix>) -> Vec<IncidentView> {
        self.incidents
            .iter()
            .filter(|(_, i)| subject.is_none_or(|s| i.action.subject == *s))
            .map(|((incident, round), i)| IncidentView {
                incident: *incident,
                round: *round,
                action: i.action,
                bucket: i.bucket,
                opened_by: i.opened_by,
                decided: i.decided,
                votes: i
                    .votes
                    .values()
                    .map(|signed| self.summary(&i.action, signed))
                    .collect(),
                verdict: self.tally(i),
            })
            .collect()
    }

    /// All decisions that are remembered: blocks until they end, releases for a day.
    pub fn decisions(&self) -> impl Iterator<Item = &Decision> {
        self.decisions.values()
    }

    /// One decision.
    pub fn decision(&self, id: &DecisionId) -> Option<&Decision> {
        self.decisions.get(id)
    }

    /// Decisions on exactly this subject.
    pub fn decisions_about(&self, subject: impl Into<Subject>) -> impl Iterator<Item = &Decision> {
        self.by_subject
            .get(&subject.into())
            .into_iter()
            .flatten()
            .filter_map(|id| self.decisions.get(id))
    }

    /// The block of this subject that lasts longest.
    pub fn active_block(&self, subject: &Prefix) -> Option<&Decision> {
        self.decisions_about(subject)
            .filter(|d| d.action.kind == ActionKind::Block)
            .max_by_key(|d| d.expires_unix_us)
    }

    /// An order (a release, a quarantine, a readmission) for the operator to sign; it may be handed in for
    /// `valid_for_s` seconds (1 to 3,600).
    pub fn draft_order(
        &self,
        action: Action,
        now_unix_us: u64,
        valid_for_s: u32,
    ) -> OperatorRelease {
        OperatorRelease::new(
            self.mesh,
            self.roster.epoch_hash(),
            action,
            now_unix_us,
            valid_for_s,
        )
    }

    /// Takes over what the failure detector says of a node.
    pub(super) fn is_there(&mut self, node: NodeId, now: Liveness) {
        self.liveness
            .retain(|node, _| self.roster.get(node).is_some());
        // Bounded by the roster.
        if self.roster.get(&node).is_some() {
            self.liveness.insert(node, now);
            self.state_basis = None;
        }
    }

    /// Whether a node's word can get here: it is this one, is connected and has not stopped answering, or
    /// answers through others.
    pub fn is_reachable(&self, node: &NodeId) -> bool {
        if *node == self.config.node {
            return true;
        }
        let connected = self.connected.contains(node);
        match self.liveness.get(node) {
            Some(Liveness::Alive) => true,
            Some(Liveness::Suspect) | None => connected,
            Some(Liveness::Down) => false,
        }
    }

    /// The state of the quorum.
    pub fn quorum(&self) -> QuorumState {
        let roster = &self.roster;
        let deciding = roster.deciding();
        let reachable_weight: u64 = roster
            .members()
            .filter(|(node, _)| self.is_reachable(node))
            .filter(|(node, _)| !self.zeroed.contains(node) && !self.is_quarantined(node))
            .map(|(node, _)| roster.vote_weight(node))
            .sum();
        let tolerance = roster.tolerance();
        let state = if reachable_weight < deciding.needed() {
            QuorumLevel::Isolated
        } else {
            match &tolerance {
                Tolerance::Single => QuorumLevel::Single,
                Tolerance::NotByzantineTolerant {
                    needs_all: true, ..
                } => QuorumLevel::NotBft,
                _ if reachable_weight < deciding.t_hi() => QuorumLevel::Degraded,
                Tolerance::NotByzantineTolerant { .. } => QuorumLevel::NotBft,
                Tolerance::Tolerant => QuorumLevel::Full,
            }
        };
        let quarantined = self.quarantined.keys();
        let quarantined_weight = quarantined.map(|node| roster.vote_weight(node)).sum();
        QuorumState {
            state,
            reachable_weight,
            quarantined_weight,
            total_weight: deciding.total(),
            t_lo: deciding.t_lo(),
            t_hi: deciding.t_hi(),
            needed: deciding.needed(),
            committee: roster.seats().map(|_| CommitteeState {
                seats: deciding.total(),
                own_seat: roster.has_seat(&self.config.node),
            }),
            nodes: roster.len(),
            voters: roster.voters(),
            epoch: roster.epoch(),
            epoch_hash: roster.epoch_hash(),
            tolerance,
        }
    }

    /// Takes back a vote of this node that [`super::Output::Persist`] put on the disk. Call it for
    /// all of them before the first input, or this node may contradict itself.
    ///
    /// # Errors
    /// [`RestoreError`]; the engine is unchanged then.
    pub fn restore_vote(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let ballot = Ballot::from_bytes(bytes)?;
        let vote = &ballot.signed.vote;
        if (vote.mesh, vote.voter, vote.incarnation)
            != (self.mesh, self.config.node, self.config.incarnation)
        {
            return Err(RestoreError::NotOwn);
        }
        ballot.signed.verify(&self.config.signer.public())?;
        if !planted(Bug::SequenceRestarts) {
            self.sequence = self.sequence.max(vote.sequence);
        }
        let slot = (vote.epoch_hash, vote.incident, vote.round);
        if self.own_votes.len() >= MAX_OWN_VOTES {
            // The oldest can no longer be contradicted: their buckets are over.
            let oldest = self
                .own_votes
                .iter()
                .min_by_key(|(_, ballot)| ballot.signed.vote.bucket)
                .map(|(slot, _)| *slot);
            if let Some(oldest) = oldest {
                let gone = self.own_votes.remove(&oldest);
                self.forgotten = self.forgotten.max(gone.map(|b| b.signed.vote.bucket));
            }
        }
        let this = (vote.sequence, vote.bucket);
        self.first_restored = Some(self.first_restored.map_or(this, |first| first.min(this)));
        if !planted(Bug::VotesForgotten) {
            self.own_votes.entry(slot).or_insert(ballot);
            self.note_asked(&ballot);
        }
        Ok(())
    }

    /// Takes back a decision (the bytes of its [`Warrant`]), checking it by the rules of the
    /// epoch it was taken in and as if none of the liars were known: it was in force before the restart, and a
    /// liar that is exposed ends nothing that is in force. Without that, a release with its vote would be gone and
    /// the block that it ended back, on this node alone. `vetoed` is what was recorded then. Gives the decision, or `None`
    /// when it is over or was released since.
    ///
    /// # Errors
    /// [`RestoreError`]; the engine is unchanged then.
    pub fn restore_decision(
        &mut self,
        now_unix_us: u64,
        bytes: &[u8],
        certified_unix_us: u64,
        vetoed: Option<String>,
    ) -> Result<Option<&Decision>, RestoreError> {
        let warrant = Warrant::from_bytes(bytes)?;
        let verdict = match &warrant {
            Warrant::Votes(certificate) if planted(Bug::RestoredAnew) => {
                Some(self.check(certificate)?)
            }
            Warrant::Votes(certificate) => Some(self.check_without(certificate, &BTreeSet::new())?),
            Warrant::Operator(signed) => {
                signed.verify(&self.config.genesis)?;
                None
            }
        };
        let expires_unix_us = self.remembered_until(&warrant);
        let action = warrant.action();
        if planted(Bug::QuarantineForgotten) && action.kind == ActionKind::Quarantine {
            return Ok(None);
        }
        if expires_unix_us <= now_unix_us || self.is_undone(&action, warrant.bucket()) {
            return Ok(None);
        }
        if self.is_full_for(action.kind) {
            return Err(RestoreError::Full(MAX_DECISIONS));
        }
        let id = warrant.decision();
        self.remember(Decision {
            id,
            action,
            incident: warrant.incident(),
            bucket: warrant.bucket(),
            expires_unix_us,
            certified_unix_us,
            warrant,
            verdict,
            vetoed,
        });
        Ok(self.decisions.get(&id))
    }

    /// Takes back a proof that a node lied.
    ///
    /// # Errors
    /// [`RestoreError`]; the engine is unchanged then.
    pub fn restore_proof(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        if let Ok(proof) = crate::mesh::epoch::EpochProof::from_bytes(bytes) {
            return self.restore_epoch_proof(proof);
        }
        let proof = EquivocationProof::from_bytes(bytes)?;
        match proof.verify(&self.roster) {
            Ok(()) => {
                self.zeroed.insert(proof.voter());
                let (voter, told) = (proof.voter(), Told::equivocation(&proof));
                if Self::is_later(self.proofs.get(&voter).map(Told::equivocation), told) {
                    self.proofs.insert(voter, proof);
                }
                self.proved(voter, &proof.to_bytes(), told);
                Ok(())
            }
            Err(Some(error)) => Err(RestoreError::Signature(error)),
            Err(None) => Err(RestoreError::Certificate(CertError::UnknownVoter(
                proof.voter(),
            ))),
        }
    }
}
