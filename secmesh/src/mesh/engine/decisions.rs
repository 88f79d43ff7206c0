//! From votes to decisions: certificates made here or by peers, and releases.

use std::collections::BTreeSet;

use super::io::{Output, RefusalReason};
use super::work::{Job, Worth};
use super::{Call, Engine, IncidentKey, MAX_DECISIONS, RESERVED_DECISIONS};
use crate::mesh::cert::{CertError, CertVerdict, CertVote, Certificate, MAX_CERT_VOTES};
use crate::mesh::decision::{Decision, ReleaseError, SignedRelease, Warrant};
use crate::mesh::genesis::MAX_BLOCK_TTL_S;
use crate::mesh::ids::{DecisionId, NodeId, Zone};
use crate::mesh::message::{EquivocationProof, Message};
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::subject::Subject;
use crate::mesh::vote::{Action, ActionKind, BUCKET_US, MAX_ROUND, SignedVote, Verdict, bucket_of};

fn reason_of(error: &CertError) -> RefusalReason {
    match error {
        CertError::WrongMesh(_) => RefusalReason::WrongMesh,
        CertError::WrongEpoch { .. } => RefusalReason::WrongEpoch,
        CertError::Action(_) => RefusalReason::WrongAction,
        CertError::Malformed(_) | CertError::VoterOrder | CertError::NotConcurrent => {
            RefusalReason::Malformed
        }
        CertError::UnknownVoter(_) => RefusalReason::UnknownVoter,
        CertError::Signature { .. } => RefusalReason::BadSignature,
        CertError::TooLight { .. } => RefusalReason::TooLight,
        CertError::TooFewWitnesses { .. } | CertError::WitnessesTooLight { .. } => {
            RefusalReason::TooFewWitnesses
        }
    }
}

impl Engine {
    /// Makes a certificate as soon as the votes on an incident suffice.
    pub(super) fn try_certify(&mut self, call: &mut Call<'_>, key: &IncidentKey) {
        let Some(incident) = self.incidents.get(key) else {
            return;
        };
        // With a thousand nodes, counting all votes at each vote would be most of the work.
        if incident.decided
            || !CertVerdict::could_suffice(&self.roster, &incident.action, incident.votes.len())
            || self.tally(incident).check().is_err()
        {
            return;
        }
        let params = self.config.genesis.params;
        let now = call.now;
        // The last vote may come when what it is about is over: votes live longer than the shortest blocks.
        if incident.action.kind == ActionKind::Block
            && incident.action.expires_unix_us(incident.bucket) <= now
        {
            return;
        }
        // A vote dated ahead of this node's clock may outlast another one; if that spoils the
        // certificate, it has to do without such votes.
        for latest_issue in [u64::MAX, now] {
            let Some(certificate) = self.assemble(key, now, latest_issue) else {
                continue;
            };
            // Each vote's signature was checked when it came.
            if let Ok(verdict) = certificate.verify_counted(&self.roster, &params, &self.silent()) {
                let me = self.config.node;
                self.decide(call, me, Warrant::Votes(certificate), Some(verdict), true);
                return;
            }
        }
    }

    /// As few votes as suffice: witnesses first, and of those first one per zone.
    fn assemble(&self, key: &IncidentKey, now: u64, latest_issue: u64) -> Option<Certificate> {
        let incident = self.incidents.get(key)?;
        let silent = self.silent();
        let mut zones: BTreeSet<&Zone> = BTreeSet::new();
        let mut ordered: Vec<(u8, &SignedVote)> = Vec::new();
        for (voter, signed) in &incident.votes {
            let vote = &signed.vote;
            let counts = !silent.contains(voter)
                && (!self.roster.is_subject(voter, &incident.action.subject)
                    || planted(Bug::SubjectVotes))
                && vote.valid_until_us() >= now
                && vote.issued_at_us <= latest_issue;
            let Some(member) = self.roster.get(voter).filter(|_| counts) else {
                continue;
            };
            let new_zone = || !zones.contains(&member.record.zone);
            let order = match vote.verdict {
                // Who has no seat is taken only where witnesses are missing, see below.
                Verdict::Confirm if !self.roster.has_seat(voter) => 3,
                Verdict::Confirm if new_zone() => 0,
                Verdict::Confirm => 1,
                Verdict::Concur => 2,
                Verdict::Reject if planted(Bug::RejectAgrees) => 2,
                Verdict::Reject | Verdict::Abstain => continue,
            };
            if order == 0 {
                zones.insert(&member.record.zone);
            }
            ordered.push((order, signed));
        }
        let witnesses = self.missing_witnesses(incident, &ordered);
        ordered.retain(|(order, signed)| *order < 3 || witnesses.contains(&signed.vote.voter));
        ordered.sort_by_key(|(order, _)| (*order + 1) % 4);
        let mut certificate = Certificate {
            action: incident.action,
            mesh: self.mesh,
            epoch: self.roster.epoch(),
            epoch_hash: incident.epoch_hash,
            round: incident.round,
            bucket: incident.bucket,
            votes: Vec::new(),
        };
        for (_, signed) in ordered.into_iter().take(MAX_CERT_VOTES) {
            certificate.votes.push(CertVote::from(signed));
            let votes = certificate.votes.len();
            if !CertVerdict::could_suffice(&self.roster, &certificate.action, votes) {
                continue;
            }
            let so_far = certificate.count(&self.roster, &silent);
            if so_far.check().is_ok() {
                certificate.votes.sort_by_key(|v| v.voter);
                return Some(certificate);
            }
        }
        None
    }

    pub(super) fn peer_certificate(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        certificate: Certificate,
    ) {
        if self.decisions.contains_key(&certificate.decision()) {
            return;
        }
        if certificate.mesh != self.mesh {
            return self.refuse(call, from, RefusalReason::WrongMesh);
        }
        if self.roster_of(&certificate.epoch_hash).is_none() {
            let message = Message::Certificate(Box::new(certificate));
            return self.put_aside(call, from, &message);
        }
        // A release has no effect of its own that could end: it counts as long as blocks that it ended could.
        let warrant = Warrant::Votes(certificate);
        let over = self.remembered_until(&warrant) <= call.now;
        let Warrant::Votes(certificate) = warrant else {
            return;
        };
        if over {
            return self.refuse(call, from, RefusalReason::Expired);
        }
        let earliest = certificate
            .bucket
            .saturating_sub(1)
            .saturating_mul(BUCKET_US);
        if earliest > call.now.saturating_add(self.skew_us()) {
            return self.refuse(call, from, RefusalReason::FromFuture);
        }
        if self.is_undone(&certificate.action, certificate.bucket) {
            return self.refuse(call, from, RefusalReason::Released);
        }
        let bytes = certificate.to_bytes();
        if let Some(job) = self.begin_work(call, from, &bytes, certificate.votes.len()) {
            self.checked_certificate(call, job, from, certificate);
        }
    }

    /// Goes on with a certificate whose sender pays for the check.
    fn checked_certificate(
        &mut self,
        call: &mut Call<'_>,
        job: Job,
        from: NodeId,
        certificate: Certificate,
    ) {
        let verdict = match self.check(&certificate) {
            Ok(verdict) => verdict,
            Err(error) => {
                let forged = matches!(error, CertError::Signature { .. });
                self.end_work(job, if forged { Worth::Forged } else { Worth::Paid });
                return self.refuse(call, from, reason_of(&error));
            }
        };
        // The signatures are good: whoever told this node something else has lied.
        let key = (certificate.incident(), certificate.round);
        let proofs: Vec<EquivocationProof> = certificate
            .signed_votes()
            .filter_map(|signed| {
                let held = self.incidents.get(&key)?.votes.get(&signed.vote.voter)?;
                EquivocationProof::new(*held, signed)
            })
            .collect();
        for proof in proofs {
            self.accuse(call, &proof);
        }
        // By today's rules too.
        let silent = self.silent_at(certificate.bucket);
        let outvoted = self
            .roster_of(&certificate.epoch_hash)
            .is_none_or(|own| !certificate.stands_today(&self.roster, &own, &silent));
        if outvoted {
            self.end_work(job, Worth::Wasted);
            return self.refuse(call, from, RefusalReason::OutvotedEpoch);
        }
        let decision = certificate.decision();
        self.decide(
            call,
            from,
            Warrant::Votes(certificate),
            Some(verdict),
            false,
        );
        let taken = self.decisions.contains_key(&decision);
        self.end_work(job, if taken { Worth::Paid } else { Worth::Wasted });
    }

    /// Checks a certificate by the rules of its own epoch.
    pub(super) fn check(&self, certificate: &Certificate) -> Result<CertVerdict, CertError> {
        self.check_without(certificate, &self.silent_at(certificate.bucket))
    }

    /// The same, without the votes of these liars.
    pub(super) fn check_without(
        &self,
        certificate: &Certificate,
        liars: &BTreeSet<NodeId>,
    ) -> Result<CertVerdict, CertError> {
        match self.roster_of(&certificate.epoch_hash) {
            Some(roster) => certificate.verify(&roster, &self.config.genesis.params, liars),
            None => Err(CertError::WrongEpoch {
                epoch: certificate.epoch,
                hash: certificate.epoch_hash,
            }),
        }
    }

    /// Until when a warrant has to be remembered, microseconds since 1970: a block to its end, a
    /// release until the last block it could have ended would be over.
    pub(super) fn remembered_until(&self, warrant: &Warrant) -> u64 {
        let action = warrant.action();
        let end = action.expires_unix_us(warrant.bucket());
        match action.kind {
            ActionKind::Block | ActionKind::Quarantine | ActionKind::Readmit => end,
            ActionKind::Release => end
                .saturating_add(u64::from(MAX_BLOCK_TTL_S) * 1_000_000)
                .saturating_add(self.skew_us()),
        }
    }

    fn decide(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        warrant: Warrant,
        verdict: Option<CertVerdict>,
        broadcast: bool,
    ) {
        let id = warrant.decision();
        let action = warrant.action();
        let known = self.decisions.contains_key(&id) || self.is_undone(&action, warrant.bucket());
        // Not decided then: when there is room again, the next vote makes the certificate anew.
        if !known && self.is_full_for(action.kind) {
            return self.refuse(call, from, RefusalReason::Full);
        }
        if let Warrant::Votes(certificate) = &warrant {
            self.incidents
                .decide(&(certificate.incident(), certificate.round));
        }
        if known {
            return;
        }
        let vetoed = action
            .subject
            .prefix()
            .filter(|_| action.kind == ActionKind::Block && !planted(Bug::VetoIgnored))
            .and_then(|prefix| call.policy.vetoes(&prefix));
        let message = match &warrant {
            Warrant::Votes(certificate) => Message::Certificate(Box::new(certificate.clone())),
            Warrant::Operator(signed) => Message::Release(Box::new(*signed)),
        };
        let decision = Decision {
            id,
            action,
            incident: warrant.incident(),
            bucket: warrant.bucket(),
            expires_unix_us: self.remembered_until(&warrant),
            certified_unix_us: call.now,
            warrant,
            verdict,
            vetoed,
        };
        self.remember(decision.clone());
        if action.kind == ActionKind::Quarantine
            && let Some(node) = action.subject.node()
        {
            // Before it is cut off: it may know why.
            call.out.push(Output::Send {
                to: node,
                bytes: message.to_bytes(),
            });
        }
        let (told, by_operator) = (
            decision.clone(),
            matches!(decision.warrant, Warrant::Operator(_)),
        );
        call.out
            .push(match (&decision.vetoed, action.kind, action.subject) {
                (Some(reason), _, Subject::Net(subject)) => Output::Vetoed {
                    decision: id,
                    subject,
                    reason: reason.clone(),
                },
                (_, ActionKind::Block, _) => Output::Decide(Box::new(decision)),
                (_, ActionKind::Release, _) => Output::Release(Box::new(decision)),
                (_, ActionKind::Quarantine, _) => Output::Quarantine(Box::new(decision)),
                (_, ActionKind::Readmit, _) => Output::Readmit(Box::new(decision)),
            });
        if !by_operator {
            self.announce(call, &told, broadcast);
        } else if broadcast {
            call.out.push(Output::Broadcast(message.to_bytes()));
        }
    }

    /// Whether there is no room for one more decision of this kind. What undoes blocks, and what is about nodes,
    /// has a reserve of its own: no number of blocks may take the operator's way out.
    pub(super) fn is_full_for(&self, kind: ActionKind) -> bool {
        let most = match kind {
            ActionKind::Block => MAX_DECISIONS,
            ActionKind::Release | ActionKind::Quarantine | ActionKind::Readmit => {
                MAX_DECISIONS + RESERVED_DECISIONS
            }
        };
        self.decisions.len() >= most
    }

    /// Stores a decision; a release ends the blocks of its subject up to its own bucket.
    pub(super) fn remember(&mut self, decision: Decision) {
        let subject = decision.action.subject;
        self.spend(&decision);
        if decision.action.kind == ActionKind::Block && decision.action.is_class_2() {
            self.networks.insert(decision.id);
        }
        if let Subject::Net(prefix) = subject
            && decision.action.kind == ActionKind::Release
        {
            let ended: Vec<DecisionId> = self
                .decisions_about(&subject)
                .filter(|d| d.action.kind == ActionKind::Block && d.bucket <= decision.bucket)
                .map(|d| d.id)
                .collect();
            for id in ended {
                self.forget(&id);
            }
            self.watched.remove(&prefix);
            self.evidence.retain(|(s, _), _| *s != prefix);
        }
        if let Subject::Node(node) = subject {
            self.settle(node, &decision);
        }
        self.by_subject
            .entry(subject)
            .or_default()
            .insert(decision.id);
        self.counted.enough.remove(&decision.id);
        self.decisions.insert(decision.id, decision);
        if let Subject::Node(node) = subject {
            self.know_quarantine(node);
            self.prove_again(node);
        }
    }

    pub(super) fn forget(&mut self, id: &DecisionId) {
        let Some(decision) = self.decisions.remove(id) else {
            return;
        };
        self.networks.remove(id);
        let subject = decision.action.subject;
        if let Some(ids) = self.by_subject.get_mut(&subject) {
            ids.remove(id);
            if ids.is_empty() {
                self.by_subject.remove(&subject);
            }
        }
        if let Subject::Node(node) = subject {
            self.know_quarantine(node);
        }
    }

    /// Whether a release covers blocks of this subject and bucket; for a node, whether it was readmitted.
    pub(super) fn is_released(&self, subject: impl Into<Subject>, bucket: u64) -> bool {
        self.decisions_about(subject)
            .any(|d| d.action.kind.lifts() && d.bucket >= bucket && !planted(Bug::ReleaseForgotten))
    }

    /// Whether a later decision has made this one void. Of readmissions only the latest matters.
    pub(super) fn is_undone(&self, action: &Action, bucket: u64) -> bool {
        match action.kind {
            ActionKind::Block | ActionKind::Quarantine => self.is_released(action.subject, bucket),
            ActionKind::Readmit => self.is_released(action.subject, bucket.saturating_add(1)),
            ActionKind::Release => false,
        }
    }

    /// `action`: a release, or a readmission.
    pub(super) fn propose_release(&mut self, call: &mut Call<'_>, action: Action) {
        let me = self.config.node;
        if action.check(&self.config.genesis.params).is_err() {
            return self.refuse(call, me, RefusalReason::WrongAction);
        }
        if !self.is_member() {
            return self.refuse(call, me, RefusalReason::NotAMember);
        }
        let bucket = bucket_of(call.now);
        let epoch_hash = self.roster.epoch_hash();
        let incident = action.incident(self.mesh, epoch_hash, bucket);
        let round = (0..=MAX_ROUND)
            .find(|round| !self.own_votes.contains_key(&(epoch_hash, incident, *round)));
        let Some(round) = round else {
            return self.refuse(call, me, RefusalReason::TooManyIncidents);
        };
        if let Some(key) = self.open_own(call, action, bucket, round) {
            self.cast(call, &key, Verdict::Confirm, None);
            self.try_certify(call, &key);
        }
    }

    /// `local`: the operator hands it in here, now; from peers it may be as old as the blocks it
    /// ends, because it cannot do anything to later ones.
    pub(super) fn signed_release(
        &mut self,
        call: &mut Call<'_>,
        from: NodeId,
        signed: SignedRelease,
        local: bool,
    ) {
        let warrant = Warrant::Operator(signed);
        if self.decisions.contains_key(&warrant.decision()) {
            if local {
                self.refuse(call, from, RefusalReason::Replayed);
            }
            return;
        }
        let release = &signed.release;
        let valid_us = u64::from(release.valid_for_s) * 1_000_000;
        if release.issued_at_us > call.now.saturating_add(self.skew_us()) {
            return self.refuse(call, from, RefusalReason::FromFuture);
        }
        if (local && release.issued_at_us.saturating_add(valid_us) < call.now)
            || self.remembered_until(&warrant) <= call.now
        {
            return self.refuse(call, from, RefusalReason::Expired);
        }
        let reason = match signed.verify(&self.config.genesis) {
            Ok(()) => return self.decide(call, from, warrant, None, local),
            Err(ReleaseError::WrongMesh(_)) => RefusalReason::WrongMesh,
            Err(ReleaseError::Action(_)) => RefusalReason::WrongAction,
            Err(ReleaseError::Malformed) => RefusalReason::Malformed,
            Err(ReleaseError::Signature(_)) => RefusalReason::BadSignature,
        };
        self.refuse(call, from, reason);
    }
}
