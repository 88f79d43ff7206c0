//! Own evidence, peers' votes, and when this node votes what.
//!
//! - Own live evidence on a subject: `Confirm`, in every open incident about it, also when the
//!   peer's class differs (whoever scans and floods is hostile either way).
//! - No own evidence: watch the subject. Once two nodes (of two zones, where there are two)
//!   confirm: `Concur` when it is this node's turn, or `Reject` if the own allowlist protects the subject.
//! - A release: `Concur` if the subject is quiet here, else `Reject`.

use super::io::{Output, RefusalReason, VoteSummary};
use super::{
    Call, Engine, Evidence, Incident, IncidentKey, MAX_EVIDENCE, MAX_OPEN, MAX_OWN_VOTES,
    MAX_WATCHED, RELEASE_WAIT_US, WATCH_US,
};
use crate::addr::Prefix;
use crate::mesh::cert::CertVerdict;
use crate::mesh::crypto;
use crate::mesh::ids::{Hash, NodeId};
use crate::mesh::message::{EquivocationProof, Message};
use crate::mesh::simulation::{Bug, planted};
use crate::mesh::subject::Subject;
use crate::mesh::vote::{
    Action, ActionKind, AttackClass, BUCKET_US, Ballot, SignedVote, Verdict, Vote, bucket_of,
};
use crate::mesh::wire::Encoder;

const OPERATOR_EVIDENCE_TAG: &str = "secmesh/operator-evidence/1";
const NO_EVIDENCE: Hash = Hash([0; 32]);

impl Engine {
    pub(super) fn operator_block(&mut self, call: &mut Call<'_>, subject: Prefix) {
        let mut e = Encoder::tagged(OPERATOR_EVIDENCE_TAG);
        e.prefix(&subject).u64(call.now);
        let root = Hash(crypto::sha256(&e.finish()));
        let detector = Hash(crypto::sha256(
            &Encoder::tagged(OPERATOR_EVIDENCE_TAG).finish(),
        ));
        self.own_evidence(call, subject, AttackClass::Manual, root, detector);
    }

    pub(super) fn own_evidence(
        &mut self,
        call: &mut Call<'_>,
        subject: Prefix,
        class: AttackClass,
        root: Hash,
        detector: Hash,
    ) {
        let me = self.config.node;
        let action = Action::block(subject, class, &self.config.genesis.params);
        if action.check(&self.config.genesis.params).is_err() {
            return self.refuse(call, me, RefusalReason::WrongAction);
        }
        if self.is_over_budget(call.now, &action) && self.active_block(&subject).is_none() {
            return self.refuse(call, me, RefusalReason::OverBudget);
        }
        if call.policy.vetoes(&subject).is_some() {
            return self.refuse(call, me, RefusalReason::Allowlisted);
        }
        let key = (subject, class);
        if self.evidence.len() >= MAX_EVIDENCE && !self.evidence.contains_key(&key) {
            return self.refuse(call, me, RefusalReason::Full);
        }
        let ttl_us = u64::from(self.config.evidence_ttl_s) * 1_000_000;
        self.evidence.insert(
            key,
            Evidence {
                root,
                detector,
                until_us: call.now.saturating_add(ttl_us),
            },
        );
        self.act_on(call, subject, Some(class));
    }

    /// Live own evidence on a subject, of this class if there is some.
    fn evidence_on(&self, now: u64, subject: Prefix, class: AttackClass) -> Option<Evidence> {
        let live = |e: &&Evidence| e.until_us > now;
        self.evidence
            .get(&(subject, class))
            .filter(live)
            .or_else(|| {
                AttackClass::ALL
                    .iter()
                    .filter_map(|class| self.evidence.get(&(subject, *class)))
                    .find(live)
            })
            .copied()
    }

    /// Votes on everything open about `subject`; with a class, opens an incident if none is open.
    pub(super) fn act_on(
        &mut self,
        call: &mut Call<'_>,
        subject: Prefix,
        class: Option<AttackClass>,
    ) {
        if !self.is_member() {
            return self.refuse(call, self.config.node, RefusalReason::NotAMember);
        }
        let mut same_class_open = false;
        for key in self.incidents.about(&subject.into()) {
            let Some(incident) = self.incidents.get(&key) else {
                continue;
            };
            // What a release has ended does not stand in the way of a new incident.
            if incident.action.kind != ActionKind::Block
                || !incident.is_open(call.now)
                || self.is_released(subject, incident.bucket)
            {
                continue;
            }
            // One that this node may not vote on any more needs a successor, in the next minute.
            same_class_open |=
                Some(incident.action.class) == class && !self.is_forgotten(incident.bucket);
            if let Some(evidence) = self.evidence_on(call.now, subject, incident.action.class) {
                self.cast(call, &key, Verdict::Confirm, Some(evidence));
                self.try_certify(call, &key);
            }
        }
        let Some(class) = class else { return };
        let Some(evidence) = self.evidence_on(call.now, subject, class) else {
            return;
        };
        let bucket = bucket_of(call.now);
        // A block that still has a while to go needs no successor yet, and one that an operator
        // has just ended gets none in the same minute.
        let blocked = self
            .active_block(&subject)
            .is_some_and(|d| d.expires_unix_us > call.now.saturating_add(BUCKET_US));
        if same_class_open || blocked || self.is_released(subject, bucket) {
            return;
        }
        let action = Action::block(subject, class, &self.config.genesis.params);
        if let Some(key) = self.open_own(call, action, bucket, 0) {
            self.cast(call, &key, Verdict::Confirm, Some(evidence));
            self.try_certify(call, &key);
        }
    }

    pub(super) fn is_member(&self) -> bool {
        self.roster
            .get(&self.config.node)
            .is_some_and(|m| m.record.incarnation == self.config.incarnation)
    }

    /// Opens an incident of this node's own.
    pub(super) fn open_own(
        &mut self,
        call: &mut Call<'_>,
        action: Action,
        bucket: u64,
        round: u32,
    ) -> Option<IncidentKey> {
        let epoch_hash = self.roster.epoch_hash();
        let key = (action.incident(self.mesh, epoch_hash, bucket), round);
        let opened_by = self.config.node;
        if self.open_incident(key, action, bucket, opened_by) {
            Some(key)
        } else {
            self.refuse(call, opened_by, RefusalReason::TooManyIncidents);
            None
        }
    }

    fn open_incident(
        &mut self,
        key: IncidentKey,
        action: Action,
        bucket: u64,
        opened_by: NodeId,
    ) -> bool {
        let incident = Incident {
            action,
            epoch_hash: self.roster.epoch_hash(),
            bucket,
            round: key.1,
            opened_by,
            votes: std::collections::BTreeMap::new(),
            decided: false,
        };
        let opened = self.incidents.open(key, incident, self.roster.len());
        if opened {
            // After a restart: what this node has already said about it.
            let slot = (self.roster.epoch_hash(), key.0, key.1);
            if let Some(ballot) = self.own_votes.get(&slot) {
                self.incidents.add(&key, &ballot.signed);
                if !self.roster.has_seat(&self.config.node) && self.handed.len() < MAX_OPEN {
                    self.handed.insert(key, (0, 0));
                }
            }
        }
        opened
    }

    /// Signs a vote, unless this node has already voted in that slot: it never says two things.
    pub(super) fn cast(
        &mut self,
        call: &mut Call<'_>,
        key: &IncidentKey,
        verdict: Verdict,
        evidence: Option<Evidence>,
    ) {
        let Some(incident) = self.incidents.get(key) else {
            return;
        };
        let slot = (incident.epoch_hash, key.0, key.1);
        if (self.own_votes.contains_key(&slot) && !planted(Bug::VotesTwice))
            || incident.epoch_hash != self.roster.epoch_hash()
            || !incident.is_open(call.now)
            || !self.is_member()
            || !self.may_say(&self.config.node, incident.action.kind, verdict)
        {
            return;
        }
        if self.is_forgotten(incident.bucket) && !planted(Bug::ForgottenSlots) {
            return self.refuse(call, self.config.node, RefusalReason::ClockSetBack);
        }
        if self.own_votes.len() >= MAX_OWN_VOTES {
            return self.refuse(call, self.config.node, RefusalReason::Full);
        }
        let action = incident.action;
        let vote = Vote {
            mesh: self.mesh,
            epoch: self.roster.epoch(),
            epoch_hash: incident.epoch_hash,
            incident: key.0,
            round: key.1,
            bucket: incident.bucket,
            action_hash: action.hash(),
            verdict,
            evidence_root: evidence.map_or(NO_EVIDENCE, |e| e.root),
            detector_hash: evidence.map_or(NO_EVIDENCE, |e| e.detector),
            voter: self.config.node,
            incarnation: self.config.incarnation,
            sequence: self.sequence.saturating_add(1),
            issued_at_us: call.now,
            valid_for_s: self.config.genesis.params.vote_valid_s,
        };
        self.sequence = vote.sequence;
        let ballot = Ballot {
            action,
            signed: vote.sign(&self.config.signer),
        };
        self.own_votes.insert(slot, ballot);
        self.note_asked(&ballot);
        self.incidents.add(key, &ballot.signed);
        call.out.push(Output::Persist(ballot.to_bytes()));
        self.tell_vote(call, key, &ballot);
        let last = call.out.len();
        if planted(Bug::SendBeforePersist) && last >= 2 {
            call.out.swap(last - 2, last - 1);
        }
        call.out
            .push(Output::VoteSeen(self.summary(&action, &ballot.signed)));
    }

    /// Whether this node may have voted in this bucket and not know any more how: the clock was set back
    /// since, or the disk no longer holds all votes from before the start.
    fn is_forgotten(&self, bucket: u64) -> bool {
        // Votes are numbered from 1. What is missing before the first that is there was in its bucket or
        // in one before; and a vote names a bucket at most one beyond the clock's.
        let lost = self
            .first_restored
            .filter(|(sequence, _)| *sequence > 1)
            .map(|(_, bucket)| bucket.saturating_add(1));
        Some(bucket) <= self.forgotten.max(lost)
    }

    pub(super) fn summary(&self, action: &Action, signed: &SignedVote) -> VoteSummary {
        let vote = &signed.vote;
        let counts = !self.zeroed.contains(&vote.voter) && !self.is_quarantined(&vote.voter);
        let weight = if counts {
            self.roster.vote_weight(&vote.voter)
        } else {
            0
        };
        VoteSummary {
            incident: vote.incident,
            subject: action.subject,
            action: action.kind,
            class: action.class,
            voter: vote.voter,
            verdict: vote.verdict,
            weight,
            sequence: vote.sequence,
            issued_at_us: vote.issued_at_us,
            own: vote.voter == self.config.node,
        }
    }

    /// Why a peer's vote is not even looked at closely, in the order of what the checks cost. The signature is not
    /// checked yet: that costs more than all of them.
    fn refusal_of(&self, now: u64, from: NodeId, ballot: &Ballot) -> Option<RefusalReason> {
        let vote = &ballot.signed.vote;
        let params = &self.config.genesis.params;
        let own = vote.voter == from || self.may_pass_on(&from, ballot);
        if !own || [from, vote.voter].contains(&self.config.node) {
            return Some(RefusalReason::NotOwnVote);
        }
        if ballot.action.check(params).is_err() {
            return Some(RefusalReason::WrongAction);
        }
        if !ballot.action.kind.lifts() && vote.round != 0 {
            return Some(RefusalReason::WrongAction);
        }
        if vote.check_times(params).is_err() {
            return Some(RefusalReason::Malformed);
        }
        let member = self.roster.get(&vote.voter);
        if member.is_none_or(|m| m.record.incarnation != vote.incarnation) {
            return Some(RefusalReason::UnknownVoter);
        }
        if self.zeroed.contains(&vote.voter) {
            return Some(RefusalReason::EquivocatingVoter);
        }
        if self.is_quarantined(&vote.voter) {
            return Some(RefusalReason::Quarantined);
        }
        if vote.issued_at_us > now.saturating_add(self.skew_us()) && !planted(Bug::FutureVotes) {
            return Some(RefusalReason::FromFuture);
        }
        if now > vote.valid_until_us().saturating_add(self.skew_us()) && !planted(Bug::ExpiredVotes)
        {
            return Some(RefusalReason::Expired);
        }
        None
    }

    /// Why there is no place for a vote, whoever signed it; only the voter itself brings it, so that nobody else
    /// uses up what is its own. Asked before its signature is checked: a voter may send as many as it likes.
    fn no_place_for(&self, vote: &Vote) -> Option<RefusalReason> {
        let window = self.windows.get(&vote.voter);
        if window.is_none() && self.windows.len() >= crate::mesh::roster::MAX_NODES {
            return Some(RefusalReason::Full);
        }
        if window.is_some_and(|window| window.refuses(vote.sequence))
            && !planted(Bug::ReplayWindowOff)
        {
            return Some(RefusalReason::Replayed);
        }
        let known = self.incidents.get(&(vote.incident, vote.round)).is_some();
        (!known && !self.incidents.has_room(&vote.voter, self.roster.len()))
            .then_some(RefusalReason::TooManyIncidents)
    }

    fn is_signed(&self, signed: &SignedVote) -> bool {
        let member = self.roster.get(&signed.vote.voter);
        member.is_some_and(|member| signed.verify(&member.record.vote_key).is_ok())
    }

    pub(super) fn peer_vote(&mut self, call: &mut Call<'_>, from: NodeId, ballot: &Ballot) {
        let vote = &ballot.signed.vote;
        if vote.mesh != self.mesh {
            return self.refuse(call, from, RefusalReason::WrongMesh);
        }
        if vote.epoch_hash != self.roster.epoch_hash() && !planted(Bug::EpochUnbound) {
            // An epoch that is not here and not later will never be.
            let later = vote.epoch > self.roster.epoch();
            if vote.voter != from && self.config.genesis.params.committee > 0 {
                // It may have a seat in that epoch; the witness itself will turn to more.
                self.refuse_passed_on(call, from, RefusalReason::WrongEpoch);
            } else if vote.voter != from {
                self.refuse(call, from, RefusalReason::NotOwnVote);
            } else if self.knows_epoch(&vote.epoch_hash) || !later {
                self.refuse(call, from, RefusalReason::WrongEpoch);
            } else {
                self.put_aside(call, from, &Message::Vote(Box::new(*ballot)));
            }
            return;
        }
        if vote.epoch != self.roster.epoch() {
            return self.refuse(call, from, RefusalReason::WrongEpoch);
        }
        if let Some(reason) = self.refusal_of(call.now, from, ballot) {
            return if reason == RefusalReason::NotOwnVote
                && self.is_answer_to_a_witness(&from, ballot)
            {
                self.refuse_passed_on(call, from, reason);
            } else {
                self.refuse(call, from, reason);
            };
        }
        let key = (vote.incident, vote.round);
        let held = self
            .incidents
            .get(&key)
            .and_then(|incident| incident.votes.get(&vote.voter))
            .copied();
        let passed_on = vote.voter != from;
        if held.as_ref() == Some(&ballot.signed) {
            // Several desks may pass on the same, and then its voter comes with it.
            return if self.roster.has_seat(&vote.voter) && !passed_on {
                self.refuse(call, from, RefusalReason::Replayed);
            } else {
                self.refuse_passed_on(call, from, RefusalReason::Replayed);
            };
        }
        if held.is_none()
            && let Some(reason) = self.no_place_for(vote)
        {
            return if passed_on {
                self.refuse_passed_on(call, from, reason);
            } else {
                self.refuse(call, from, reason);
            };
        }
        // Before its signature costs anything, but not where it contradicts what is here.
        if held.is_none() && !self.may_say(&vote.voter, ballot.action.kind, vote.verdict) {
            return self.refuse(call, from, RefusalReason::NoSeat);
        }
        if !self.is_signed(&ballot.signed) {
            return self.refuse(call, from, RefusalReason::BadSignature);
        }
        if let Some(held) = held {
            // Before the replay window: a liar may use one sequence number twice.
            return match EquivocationProof::new(held, ballot.signed) {
                Some(proof) => self.accuse(call, &proof),
                None => self.refuse(call, vote.voter, RefusalReason::Replayed),
            };
        }
        if !self
            .windows
            .entry(vote.voter)
            .or_default()
            .accept(vote.sequence)
            && !planted(Bug::ReplayWindowOff)
        {
            return if passed_on {
                self.refuse_passed_on(call, from, RefusalReason::Replayed);
            } else {
                self.refuse(call, from, RefusalReason::Replayed);
            };
        }
        let needed = self.adds_a_witness(&key, &vote.voter);
        if !self.open_incident(key, ballot.action, vote.bucket, vote.voter) {
            return self.refuse(call, vote.voter, RefusalReason::TooManyIncidents);
        }
        self.incidents.add(&key, &ballot.signed);
        if !passed_on {
            if needed {
                self.pass_on(call, &key, ballot);
            }
            self.tell_of_others(call, &key, ballot);
        }
        call.out.push(Output::VoteSeen(
            self.summary(&ballot.action, &ballot.signed),
        ));
        match ballot.action.kind {
            ActionKind::Block => self.react_to_block(call, &key, ballot),
            ActionKind::Quarantine => self.react_to_quarantine(call, &key, ballot),
            ActionKind::Release | ActionKind::Readmit => {
                self.react_to_release(call, &key, &ballot.action);
            }
        }
    }

    /// What the accepted votes on an incident add up to.
    pub(super) fn tally(&self, incident: &Incident) -> CertVerdict {
        CertVerdict::count(
            &self.roster,
            &self.silent(),
            &incident.action,
            incident
                .votes
                .iter()
                .map(|(voter, s)| (*voter, s.vote.verdict, s.vote.issued_at_us)),
        )
    }

    fn react_to_block(&mut self, call: &mut Call<'_>, key: &IncidentKey, ballot: &Ballot) {
        let Some(subject) = ballot.action.subject.prefix() else {
            return;
        };
        if self.is_over_budget(call.now, &ballot.action) && self.active_block(&subject).is_none() {
            self.refuse(call, ballot.signed.vote.voter, RefusalReason::OverBudget);
            return self.try_certify(call, key);
        }
        let veto = call.policy.vetoes(&subject).is_some();
        let evidence = self
            .evidence_on(call.now, subject, ballot.action.class)
            .filter(|_| !veto);
        if evidence.is_some() {
            self.cast(call, key, Verdict::Confirm, evidence);
        }
        // Only who has not voted yet needs to know.
        let slot = (self.roster.epoch_hash(), key.0, key.1);
        let witnessed = !self.own_votes.contains_key(&slot)
            && self
                .incidents
                .get(key)
                .is_some_and(|incident| !incident.decided && self.tally(incident).witnessed());
        if veto && witnessed {
            self.cast(call, key, Verdict::Reject, None);
        }
        self.try_certify(call, key);
        let decided = self.incidents.get(key).is_none_or(|i| i.decided);
        if decided || veto || evidence.is_some() {
            return;
        }
        if witnessed {
            self.concur_in_turn(call, key);
        } else if ballot.signed.vote.verdict == Verdict::Confirm && !ballot.action.is_class_2() {
            self.watch(call, subject, ballot.signed.vote.voter);
        }
    }

    fn react_to_release(&mut self, call: &mut Call<'_>, key: &IncidentKey, action: &Action) {
        match self.quiet_since(call, action) {
            // Who knows of nothing to end has no opinion on it, and says that.
            None => self.cast(call, key, Verdict::Abstain, None),
            Some(false) => self.cast(call, key, Verdict::Reject, None),
            Some(true) if self.considered.len() < MAX_OPEN => {
                self.considered.entry(*key).or_insert(call.now);
            }
            Some(true) => {}
        }
        self.try_certify(call, key);
    }

    /// Whether there is nothing left against the subject of a release, on this node; none if there is nothing
    /// to release.
    fn quiet_since(&self, call: &Call<'_>, action: &Action) -> Option<bool> {
        match action.subject {
            Subject::Net(prefix) => self
                .active_block(&prefix)
                .map(|_| call.policy.is_quiet(&prefix)),
            Subject::Node(node) => self
                .is_quarantined(&node)
                .then(|| !self.has_evidence_on(call.now, node)),
        }
    }

    /// Agrees to releases that were asked for a while ago, if the subject is still quiet here and nobody
    /// who counts has said that it is not elsewhere.
    pub(super) fn agree_to_releases(&mut self, call: &mut Call<'_>) {
        let due: Vec<IncidentKey> = self
            .considered
            .iter()
            .filter(|(_, since)| call.now.saturating_sub(**since) >= RELEASE_WAIT_US)
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            self.considered.remove(&key);
            let Some(incident) = self.incidents.get(&key) else {
                continue;
            };
            let action = incident.action;
            let silent = self.silent();
            let counts = |voter: &NodeId| {
                let member = self.roster.get(voter);
                member.is_some_and(|m| m.weight > 0) && !silent.contains(voter)
            };
            let contradicted = incident
                .votes
                .iter()
                .any(|(voter, signed)| signed.vote.verdict == Verdict::Reject && counts(voter));
            let verdict = match self.quiet_since(call, &action) {
                Some(true) if !contradicted => Verdict::Concur,
                Some(false) if !contradicted => Verdict::Reject,
                _ => continue,
            };
            self.cast(call, &key, verdict, None);
            self.try_certify(call, &key);
        }
    }

    fn watch(&mut self, call: &mut Call<'_>, subject: Prefix, reported_by: NodeId) {
        let until_unix_us = call.now.saturating_add(WATCH_US);
        match self.watched.get(&subject) {
            // Said recently enough.
            Some(until) if *until > call.now.saturating_add(WATCH_US / 2) => return,
            None if self.watched.len() >= MAX_WATCHED => {
                return self.refuse(call, reported_by, RefusalReason::Full);
            }
            _ => {}
        }
        self.watched.insert(subject, until_unix_us);
        call.out.push(Output::Watch {
            subject,
            until_unix_us,
            reported_by,
        });
    }
}
