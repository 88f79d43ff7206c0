//! From votes to decisions: certificates made here or by peers, and releases.

use super::io::{Output, RefusalReason};
use super::{Call, Engine, IncidentKey, MAX_DECISIONS};
use crate::addr::Prefix;
use crate::mesh::cert::{CertError, CertVerdict, CertVote, Certificate, MAX_CERT_VOTES};
use crate::mesh::decision::{Decision, ReleaseError, SignedRelease, Warrant};
use crate::mesh::genesis::MAX_BLOCK_TTL_S;
use crate::mesh::ids::{DecisionId, NodeId, Zone};
use crate::mesh::message::{EquivocationProof, Message};
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
        CertError::TooFewWitnesses { .. } => RefusalReason::TooFewWitnesses,
    }
}

impl Engine {
    /// Makes a certificate as soon as the votes on an incident suffice.
    pub(super) fn try_certify(&mut self, call: &mut Call<'_>, key: &IncidentKey) {
        let Some(incident) = self.incidents.get(key) else {
            return;
        };
        if incident.decided || self.tally(incident).check().is_err() {
            return;
        }
        let params = self.config.genesis.params;
        let now = call.now;
        // A vote dated ahead of this node's clock may outlast another one; if that spoils the
        // certificate, it has to do without such votes.
        for latest_issue in [u64::MAX, now] {
            let Some(certificate) = self.assemble(key, now, latest_issue) else {
                continue;
            };
            // Each vote's signature was checked when it came.
            if let Ok(verdict) = certificate.verify_counted(&self.roster, &params, &self.zeroed) {
                let me = self.config.node;
                // Everybody holds the votes; the witnesses see to it that it arrives.
                let broadcast = certificate
                    .votes
                    .iter()
                    .any(|v| v.voter == me && v.verdict == Verdict::Confirm);
                self.decide(
                    call,
                    me,
                    Warrant::Votes(certificate),
                    Some(verdict),
                    broadcast,
                );
                return;
            }
        }
    }

    /// As few votes as suffice: witnesses first, and of those first one per zone.
    fn assemble(&self, key: &IncidentKey, now: u64, latest_issue: u64) -> Option<Certificate> {
        let incident = self.incidents.get(key)?;
        let mut zones: std::collections::BTreeSet<&Zone> = std::collections::BTreeSet::new();
        let mut ordered: Vec<(u8, &SignedVote)> = Vec::new();
        for (voter, signed) in &incident.votes {
            let vote = &signed.vote;
            let counts = !self.zeroed.contains(voter)
                && !self.roster.is_subject(voter, &incident.action.subject)
                && vote.valid_until_us() >= now
                && vote.issued_at_us <= latest_issue;
            let Some(member) = self.roster.get(voter).filter(|_| counts) else {
                continue;
            };
            let order = match vote.verdict {
                Verdict::Confirm if zones.insert(&member.record.zone) => 0,
                Verdict::Confirm => 1,
                Verdict::Concur => 2,
                Verdict::Reject | Verdict::Abstain => continue,
            };
            ordered.push((order, signed));
        }
        ordered.sort_by_key(|(order, _)| *order);
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
            let vote = &signed.vote;
            certificate.votes.push(CertVote {
                voter: vote.voter,
                incarnation: vote.incarnation,
                verdict: vote.verdict,
                evidence_root: vote.evidence_root,
                detector_hash: vote.detector_hash,
                sequence: vote.sequence,
                issued_at_us: vote.issued_at_us,
                valid_for_s: vote.valid_for_s,
                signature: signed.signature,
            });
            let so_far = certificate.count(&self.roster, &self.zeroed);
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
        if certificate.expires_unix_us() <= call.now {
            return self.refuse(call, from, RefusalReason::Expired);
        }
        let earliest = certificate
            .bucket
            .saturating_sub(1)
            .saturating_mul(BUCKET_US);
        if earliest > call.now.saturating_add(self.skew_us()) {
            return self.refuse(call, from, RefusalReason::FromFuture);
        }
        if certificate.action.kind == ActionKind::Block
            && self.is_released(&certificate.action.subject, certificate.bucket)
        {
            return self.refuse(call, from, RefusalReason::Released);
        }
        let verdict = match self.check(&certificate) {
            Ok(verdict) => verdict,
            Err(error) => return self.refuse(call, from, reason_of(&error)),
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
        // By today's rules too: see `Certificate::count`.
        if certificate
            .count(&self.roster, &self.zeroed)
            .check()
            .is_err()
        {
            return self.refuse(call, from, RefusalReason::OutvotedEpoch);
        }
        self.decide(
            call,
            from,
            Warrant::Votes(certificate),
            Some(verdict),
            false,
        );
    }

    /// Checks a certificate by the rules of its own epoch.
    pub(super) fn check(&self, certificate: &Certificate) -> Result<CertVerdict, CertError> {
        match self.roster_of(&certificate.epoch_hash) {
            Some(roster) => certificate.verify(&roster, &self.config.genesis.params, &self.zeroed),
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
            ActionKind::Block => end,
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
        if let Warrant::Votes(certificate) = &warrant {
            self.incidents
                .decide(&(certificate.incident(), certificate.round));
        }
        if self.decisions.contains_key(&id)
            || (action.kind == ActionKind::Block
                && self.is_released(&action.subject, warrant.bucket()))
        {
            return;
        }
        if self.decisions.len() >= MAX_DECISIONS {
            return self.refuse(call, from, RefusalReason::Full);
        }
        let vetoed = match action.kind {
            ActionKind::Block => call.policy.vetoes(&action.subject),
            ActionKind::Release => None,
        };
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
        call.out.push(match (&decision.vetoed, action.kind) {
            (Some(reason), _) => Output::Vetoed {
                decision: id,
                subject: action.subject,
                reason: reason.clone(),
            },
            (None, ActionKind::Block) => Output::Decide(Box::new(decision)),
            (None, ActionKind::Release) => Output::Release(Box::new(decision)),
        });
        if broadcast {
            call.out.push(Output::Broadcast(message.to_bytes()));
        }
    }

    /// Stores a decision; a release ends the blocks of its subject up to its own bucket.
    pub(super) fn remember(&mut self, decision: Decision) {
        let subject = decision.action.subject;
        if decision.action.kind == ActionKind::Block && decision.action.is_class_2() {
            self.networks.insert(decision.id);
        }
        if decision.action.kind == ActionKind::Release {
            let ended: Vec<DecisionId> = self
                .decisions_about(&subject)
                .filter(|d| d.action.kind == ActionKind::Block && d.bucket <= decision.bucket)
                .map(|d| d.id)
                .collect();
            for id in ended {
                self.forget(&id);
            }
            self.watched.remove(&subject);
            self.evidence.retain(|(s, _), _| *s != subject);
        }
        self.by_subject
            .entry(subject)
            .or_default()
            .insert(decision.id);
        self.decisions.insert(decision.id, decision);
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
    }

    /// Whether a release covers blocks of this subject and bucket.
    pub(super) fn is_released(&self, subject: &Prefix, bucket: u64) -> bool {
        self.decisions_about(subject)
            .any(|d| d.action.kind == ActionKind::Release && d.bucket >= bucket)
    }

    pub(super) fn propose_release(&mut self, call: &mut Call<'_>, subject: Prefix) {
        let me = self.config.node;
        if Action::release(subject)
            .check(&self.config.genesis.params)
            .is_err()
        {
            return self.refuse(call, me, RefusalReason::WrongAction);
        }
        if !self.is_member() {
            return self.refuse(call, me, RefusalReason::NotAMember);
        }
        let action = Action::release(subject);
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
