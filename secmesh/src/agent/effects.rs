//! Carrying out what the engine wants: votes on the disk before they leave, blocks into the kernel,
//! everything into the record.

use std::net::IpAddr;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use bytes::Bytes;
use tracing::{debug, error, info, warn};

use super::core::{Agent, View, Watch};
use crate::{
    addr::Prefix,
    api::types::{CertificateView, DecisionScope, DecisionState, Origin, VoteView},
    detect::Alert,
    ledger::{EffectKind, LedgerError, Record, fork::LedgerForkProof},
    mesh::{
        admission::AdmittedRecord,
        cert::CertVerdict,
        crypto::sha256,
        decision::{Decision, Warrant},
        engine::{Input, Output, RefusalReason, VoteSummary},
        ids::{NodeId, to_hex},
        message::EquivocationProof,
        vote::{ActionKind, AttackClass},
    },
    respond::{Claim, ClaimError, Entry},
};

/// Sources watched at once; the kernel's watch maps hold as many per family.
pub(super) const MAX_WATCHED: usize = 1024;

impl Agent {
    /// Gives the engine one input and carries out what comes of it.
    pub(super) async fn drive(&mut self, input: Input<'_>) {
        let mut out = Vec::new();
        let now_ns = self.clock.mono_ns();
        self.engine.handle(
            self.clock.unix_us(),
            input,
            &View {
                allowlist: &self.allowlist,
                protected: &self.protected,
                table: &self.table,
                now_ns,
                chosen: &self.chosen_peers,
                automatic: self.options.config.mesh.quarantine,
            },
            &mut out,
        );
        // Alerts that a report makes of what was seen before are inputs of their own; they wait until
        // this input's outputs are carried out.
        let mut rechecks = Vec::new();
        let mut seals = Vec::new();
        let mut swim = Vec::new();
        for output in out {
            match output {
                Output::Persist(vote) => {
                    let record = Record::VoteSigned {
                        vote: BASE64_STANDARD.encode(&vote),
                    };
                    self.persist(&record).await;
                }
                Output::KeepEvidence { bytes, own } => self.keep_evidence_statement(&bytes, own),
                Output::Caught { node, proof } => {
                    warn!(node = %self.name_of(&node), %proof, "caught: its weight becomes 0");
                }
                Output::PersistEpoch(_)
                | Output::Epoch(_)
                | Output::ForkedEpoch(_)
                | Output::Seal(_)
                | Output::SealSeen { .. }
                | Output::Removal(_)
                | Output::EpochLie(_) => {
                    seals.extend(self.epoch_output(output).await);
                }
                Output::Broadcast(bytes) => self.leave(None, bytes).await,
                Output::Send { to, bytes } => self.leave(Some(to), bytes).await,
                Output::Watch {
                    subject,
                    until_unix_us,
                    reported_by,
                } => {
                    if self.watch(subject, until_unix_us, reported_by) {
                        rechecks.push(subject.addr());
                    }
                }
                Output::Decide(decision) => self.decided(&decision),
                Output::Release(decision) => self.released(&decision),
                Output::Quarantine(decision) => self.quarantined(&decision).await,
                Output::Readmit(decision) => self.readmitted(&decision).await,
                Output::Vetoed {
                    decision,
                    subject,
                    reason,
                } => self.vetoed(&decision.to_string(), &subject, &reason),
                Output::Equivocation(proof) => self.equivocated(&proof).await,
                Output::LedgerFork(proof) => self.forked(&proof).await,
                Output::Ledger { from, message } => {
                    self.notary.message(self.engine.roster(), from, *message);
                }
                Output::Swim { from, message } => swim.push((from, message)),
                Output::Admitted(record) => self.admitted(&record),
                Output::TicketBurned(record) => self.ticket_burned(&record),
                Output::GrantOpened(grant) => {
                    self.record(&Record::Grant {
                        grant: BASE64_STANDARD.encode(grant.to_bytes()),
                        expires_unix_us: grant.grant.expires_unix_us,
                    });
                    self.membership_changed();
                }
                Output::GrantUsed { ticket, node } => {
                    info!(%ticket, node = %self.name_of(&node), "ticket used");
                    self.membership_changed();
                }
                Output::VoteSeen(vote) => self.vote_seen(&vote),
                Output::Refused { from, reason } => self.refused(&from, reason),
                Output::QuorumState(state) => {
                    self.ratification.quorum(state.state);
                    self.quorum_changed(&state);
                }
            }
        }
        for seal in seals {
            Box::pin(self.drive(Input::Sealed(Box::new(seal)))).await;
        }
        for (from, message) in swim {
            Box::pin(self.swim_message(from, *message)).await;
        }
        if !rechecks.is_empty() {
            self.recheck(rechecks).await;
        }
    }

    fn ticket_burned(&mut self, admitted: &AdmittedRecord) {
        let record = &admitted.record;
        warn!(name = %record.name, node = %record.node, "a second node came with a used ticket: neither is a member any more; invite the honest one anew");
        self.record(&Record::Refused {
            source: record.node.to_string(),
            reason: RefusalReason::TicketReused.name().to_owned(),
            count: 1,
        });
        self.membership_changed();
    }

    /// Puts a vote on its way to the disk; what leaves after it waits for that.
    async fn persist(&mut self, record: &Record) {
        let queued = match self.ledger.append_pending(record) {
            Ok(answer) => self.outbox.gate(answer).await,
            // No place in the queue: then the loop waits for one, and for what is ahead of it.
            Err(LedgerError::QueueFull) => match self.outbox.drain().await {
                Ok(()) => self.ledger.append_durable(record).await.map(|_| ()),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = queued {
            self.not_persisted(&error);
        }
    }

    /// Sends to one peer or to all, behind the votes that are on their way to the disk.
    pub(super) async fn leave(&mut self, to: Option<NodeId>, bytes: Vec<u8>) {
        let bytes = Bytes::from(bytes);
        let left = match to {
            Some(to) => self.outbox.send(to, bytes).await,
            None => self.outbox.broadcast(bytes).await,
        };
        if let Err(error) = left {
            self.not_persisted(&error);
        }
    }

    /// A vote is not on the disk. The engine may still hold it, so nothing of this node leaves any more
    /// until it is started again on a disk that works.
    pub(super) fn not_persisted(&mut self, error: &LedgerError) {
        error!(%error, "a vote is not on the disk: this node votes and states nothing more until it is restarted; enforcement and the witnessing of ledgers go on");
        self.tally.votes_not_sent += 1;
        self.outbox.silence();
    }

    /// Judges by the lower threshold what was already seen of sources that are watched from now on.
    async fn recheck(&mut self, sources: Vec<IpAddr>) {
        let (now_ns, base) = (self.clock.mono_ns(), self.time_base());
        let mut alerts = Vec::new();
        for source in sources {
            if !self.blocks.is_desired(&Prefix::host(source)) {
                self.detectors.recheck(source, now_ns, base, &mut alerts);
            }
        }
        for alert in alerts {
            Box::pin(self.raise(alert)).await;
        }
    }

    async fn equivocated(&self, proof: &EquivocationProof) {
        let (first, second) = proof.votes();
        warn!(voter = %self.name_of(&proof.voter()), "proved to have lied; its votes count for nothing");
        self.record_surely(&Record::Equivocation {
            voter: proof.voter().to_string(),
            proof: BASE64_STANDARD.encode(proof.to_bytes()),
            hash: to_hex(&sha256(
                &[first.vote.to_bytes(), second.vote.to_bytes()].concat(),
            )),
        })
        .await;
    }

    async fn forked(&self, proof: &LedgerForkProof) {
        warn!(node = %self.name_of(&proof.node()), "proved to have signed two ledgers: it rewrote its record, was restored from a backup, or shows each peer another one");
        self.record_surely(&Record::LedgerFork {
            node: proof.node().to_string(),
            proof: BASE64_STANDARD.encode(proof.to_bytes()),
            hash: to_hex(&proof.hash()),
        })
        .await;
    }

    fn vote_seen(&self, vote: &VoteSummary) {
        debug!(
            voter = %self.name_of(&vote.voter), subject = %vote.subject, verdict = %vote.verdict,
            own = vote.own, "vote"
        );
        // Our own votes are in the record already, as signed bytes, from before they left.
        if !vote.own
            && let Ok(text) = serde_json::to_string(vote)
        {
            self.record(&Record::VoteSeen {
                voter: vote.voter.to_string(),
                vote: text,
            });
        }
    }

    /// Writes to the record; trouble there is visible in `status` and was logged by the ledger.
    pub(super) fn record(&self, record: &Record) {
        if let Err(error) = self.ledger.append(record) {
            debug!(%error, "not recorded");
        }
    }

    /// As [`Agent::record`], waiting for a place in the queue, though not for the disk: for decisions on nodes and
    /// proofs, which nobody says again, and which a node that starts alone has to know.
    pub(super) async fn record_surely(&self, record: &Record) {
        if let Err(error) = self.ledger.append_waiting(record).await {
            error!(%error, "not recorded: after a restart this node knows it only from its peers");
        }
    }

    fn refused(&mut self, from: &NodeId, reason: RefusalReason) {
        if let Some(held_back) = self.refusal_log.allow((*from, reason.name())) {
            match self.engine.awaited() {
                Some(mark) if reason == RefusalReason::NotOfTicket => {
                    self.other_history(from, mark);
                }
                _ => {
                    warn!(peer = %self.name_of(from), %reason, held_back, "refused a message");
                }
            }
            self.record(&Record::Refused {
                source: from.to_string(),
                reason: reason.name().to_owned(),
                count: held_back + 1,
            });
        }
    }

    /// Class 0: this node blocks for itself, at once.
    pub(super) fn block_unilaterally(&mut self, alert: &Alert) {
        if self.book.active_on(&alert.subject).next().is_none() {
            self.claim_unilaterally(alert.subject, alert.class, format!("alert {}", alert.id));
        }
    }

    /// A new class-0 block, as long as the configuration says and never longer than 15 minutes.
    pub(super) fn claim_unilaterally(
        &mut self,
        subject: Prefix,
        class: AttackClass,
        reason: String,
    ) {
        let ttl = self.options.config.respond.own_block;
        let now_unix_us = self.clock.unix_us();
        let entry = Entry {
            id: local_id(&subject, now_unix_us),
            subject,
            class,
            scope: DecisionScope::Node,
            origin: Origin::Unilateral,
            state: DecisionState::Active,
            incident: None,
            reason: Some(reason),
            created_unix_us: now_unix_us,
            certified_unix_us: None,
            enforced_unix_us: None,
            expires_unix_us: now_unix_us
                .saturating_add(u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX)),
            votes: Vec::new(),
            certificate: None,
            rule: self.book.next_rule(),
            overridden: Vec::new(),
            final_hits: None,
        };
        let id = entry.id.clone();
        // A failure is in the book and in the record.
        if self.enforce(entry, None).is_ok() {
            self.ratification.blocked_alone(subject, &id);
        }
    }

    /// Puts a decision into the kernel first, then into the book and the record.
    pub(super) fn enforce(
        &mut self,
        mut entry: Entry,
        warrant: Option<&Warrant>,
    ) -> Result<(), ClaimError> {
        let now = self.now();
        let (subject, id) = (entry.subject, entry.id.clone());
        if !subject.is_single() {
            // Before the entry goes in, or the program would not look for it.
            self.expect_network(&subject);
        }
        let claim = Claim {
            origin: entry.origin,
            expires_unix_us: entry.expires_unix_us,
            rule: entry.rule,
        };
        let result = self
            .blocks
            .claim(&mut self.table, now, subject, id.clone(), claim);
        let (what, reason) = match &result {
            Ok(()) => {
                entry.enforced_unix_us = Some(self.clock.unix_us());
                self.escalation.blocked(&entry);
                (EffectKind::Enforced, None)
            }
            Err(error) => {
                error!(%subject, %error, "not enforced");
                if matches!(error, ClaimError::Limit(_)) {
                    // Nobody will try it again, so the book must not call it active.
                    entry.state = DecisionState::Refused;
                    entry.reason = Some(error.to_string());
                }
                (EffectKind::NotEnforced, Some(error.to_string()))
            }
        };
        self.record_decision(&entry, warrant);
        self.record(&Record::Effect {
            decision: id,
            subject: subject.to_string(),
            what,
            reason,
        });
        if self.watched.contains_key(&subject.addr()) {
            self.unwatch(subject.addr());
        }
        self.book.put(entry);
        result
    }

    fn record_decision(&self, entry: &Entry, warrant: Option<&Warrant>) {
        if let Ok(action) = serde_json::to_value(entry) {
            self.record(&Record::Decision {
                decision: entry.id.clone(),
                origin: serde_json::to_value(entry.origin)
                    .ok()
                    .and_then(|v| v.as_str().map(str::to_owned))
                    .unwrap_or_default(),
                action,
                certificate: warrant.map(|w| BASE64_STANDARD.encode(w.to_bytes())),
            });
        }
    }

    fn decided(&mut self, decision: &Decision) {
        let Some(subject) = decision.action.subject.prefix() else {
            return;
        };
        let entry = Entry {
            reason: self.network_reason(&subject),
            ..self.entry_about(decision, subject)
        };
        info!(subject = %entry.subject, class = %entry.class, decision = %entry.id, "the mesh has decided: blocked");
        let id = entry.id.clone();
        if self.enforce(entry, Some(&decision.warrant)).is_ok() {
            self.await_outcome(id, subject, self.clock.unix_us());
        }
    }

    /// The book's entry for what a decision means for `subject`.
    pub(super) fn entry_about(&mut self, decision: &Decision, subject: Prefix) -> Entry {
        let votes = decision
            .verdict
            .as_ref()
            .map_or_else(Vec::new, |verdict| self.votes_of(verdict));
        Entry {
            id: decision.id.to_string(),
            subject,
            class: decision.action.class,
            scope: DecisionScope::Mesh,
            origin: Origin::Quorum,
            state: DecisionState::Active,
            incident: Some(decision.incident.to_string()),
            reason: None,
            created_unix_us: votes
                .iter()
                .map(|v| v.issued_unix_us)
                .min()
                .unwrap_or(decision.certified_unix_us),
            certified_unix_us: Some(decision.certified_unix_us),
            enforced_unix_us: None,
            expires_unix_us: decision.expires_unix_us,
            certificate: decision
                .verdict
                .as_ref()
                .map(|verdict| certificate_view(verdict, decision)),
            votes,
            rule: self.book.next_rule(),
            overridden: Vec::new(),
            final_hits: None,
        }
    }

    pub(super) fn votes_of(&self, verdict: &CertVerdict) -> Vec<VoteView> {
        verdict
            .votes
            .iter()
            .map(|vote| VoteView {
                node: vote.voter.to_string(),
                name: self.name_of(&vote.voter),
                verdict: vote.verdict.to_string(),
                weight: vote.weight,
                issued_unix_us: vote.issued_at_us,
            })
            .collect()
    }

    /// A release: every mesh-wide block of the subject ends here, and this node's own ones too, for
    /// they rest on the same sightings.
    fn released(&mut self, decision: &Decision) {
        let Some(subject) = decision.action.subject.prefix() else {
            return;
        };
        info!(%subject, decision = %decision.id, "the mesh has decided: released");
        let entry = Entry {
            state: DecisionState::Released,
            ..self.entry_about(decision, subject)
        };
        self.record_decision(&entry, Some(&decision.warrant));
        // What an operator of this node asked for is not the mesh's to end.
        self.release_here(&subject, &format!("release {}", decision.id), false);
    }

    /// Ends the blocks of exactly `subject` on this node, those that operators asked for only if told
    /// to. Returns how many there were.
    pub(super) fn release_here(
        &mut self,
        subject: &Prefix,
        reason: &str,
        operators_too: bool,
    ) -> usize {
        let now = self.now();
        if !subject.is_single() {
            self.escalation.released(subject, now.unix_us);
        }
        let mut claims = self.blocks.claims(subject);
        claims.retain(|(_, claim)| match claim.origin {
            Origin::Operator => operators_too,
            // Ends with the readmission of the node, and with nothing else.
            Origin::Quarantine => false,
            Origin::Quorum | Origin::Unilateral => true,
        });
        let count = claims.len();
        for (id, _) in claims {
            let hits = self.hits_of(subject);
            if let Err(error) = self.blocks.release(&mut self.table, now, subject, &id) {
                error!(%subject, %error, "the kernel keeps the entry until its time is over");
            }
            self.close(
                subject,
                &id,
                DecisionState::Released,
                hits,
                Some(reason.to_owned()),
            );
        }
        self.evidence.remove(subject);
        self.unwatch(subject.addr());
        self.update_sizes();
        count
    }

    fn hits_of(&self, subject: &Prefix) -> Option<(u64, u64)> {
        self.table.get(subject).map(|e| (e.hits, e.bytes))
    }

    /// A claim is over: book and record.
    pub(super) fn close(
        &mut self,
        subject: &Prefix,
        id: &str,
        state: DecisionState,
        hits: Option<(u64, u64)>,
        reason: Option<String>,
    ) {
        if !self.book.end(id, state, hits) {
            return;
        }
        info!(%subject, decision = id, ?state, "block ended");
        self.record(&Record::Effect {
            decision: id.to_owned(),
            subject: subject.to_string(),
            what: if state == DecisionState::Released {
                EffectKind::Released
            } else {
                EffectKind::Ended
            },
            reason,
        });
    }

    fn vetoed(&mut self, id: &str, subject: &Prefix, reason: &str) {
        warn!(%subject, decision = id, reason, "the mesh has decided on a block; this node takes no part");
        let decision = self
            .engine
            .decisions_about(subject)
            .find(|d| d.id.to_string() == id)
            .cloned();
        if let Some(decision) = decision {
            let entry = Entry {
                state: DecisionState::Vetoed,
                reason: Some(reason.to_owned()),
                ..self.entry_about(&decision, *subject)
            };
            self.record_decision(&entry, Some(&decision.warrant));
            self.book.put(entry);
        }
        self.record(&Record::Effect {
            decision: id.to_owned(),
            subject: subject.to_string(),
            what: EffectKind::Vetoed,
            reason: Some(reason.to_owned()),
        });
    }

    /// A peer saw `subject` attack: from now on the first hostile contact here is enough. Returns
    /// whether it was not watched before.
    fn watch(&mut self, subject: Prefix, until_unix_us: u64, reported_by: NodeId) -> bool {
        let addr = subject.addr();
        if !subject.is_single() || self.allowlist.protects(&subject).is_some() {
            return false;
        }
        let now = self.now();
        let until_ns = now.mono_ns.saturating_add(
            until_unix_us
                .saturating_sub(now.unix_us)
                .saturating_mul(1000),
        );
        if !self.watched.contains_key(&addr) && self.watched.len() >= MAX_WATCHED {
            self.tally.watch_full += 1;
            return false;
        }
        if let Err(error) = self.watches.put(addr, until_ns) {
            self.tally.watch_full += 1;
            debug!(%addr, %error, "not watched in the kernel");
        }
        let entry = self.watched.entry(addr).or_insert(Watch {
            until_unix_us,
            reported_by: None,
            packets: 0,
        });
        // The first word of a peer since the start counts as new: what is known here is judged by it.
        let new = entry.reported_by.is_none();
        entry.reported_by.get_or_insert(reported_by);
        entry.until_unix_us = entry.until_unix_us.max(until_unix_us);
        if new {
            info!(%addr, reported_by = %self.name_of(&reported_by), "watching");
            self.update_sizes();
        }
        new
    }

    pub(super) fn unwatch(&mut self, addr: IpAddr) {
        if self.watched.remove(&addr).is_some() {
            if let Err(error) = self.watches.remove(addr) {
                debug!(%addr, %error, "still watched in the kernel until its time is over");
            }
            self.update_sizes();
        }
    }

    fn expect_network(&mut self, subject: &Prefix) {
        let (v4, v6) = self.blocks.network_counts();
        let (v4, v6) = if subject.is_ipv4() {
            (v4 + 1, v6)
        } else {
            (v4, v6 + 1)
        };
        self.set_sizes(v4, v6);
    }

    pub(super) fn update_sizes(&mut self) {
        let (v4, v6) = self.table.prefix_counts();
        self.set_sizes(v4, v6);
    }

    fn set_sizes(&mut self, v4: u32, v6: u32) {
        let watched = u32::try_from(self.watched.len()).unwrap_or(u32::MAX);
        if let Err(error) = self.dataplane.set_sizes(v4, v6, watched) {
            error!(%error, "the kernel program was not told how many prefixes there are");
        }
    }
}

/// Id of a decision that only this node made.
pub(super) fn local_id(subject: &Prefix, unix_us: u64) -> String {
    let mut id = to_hex(&sha256(format!("local {subject} {unix_us}").as_bytes()));
    id.truncate(32);
    id
}

fn certificate_view(verdict: &CertVerdict, decision: &Decision) -> CertificateView {
    let error = verdict.check().err().map(|e| e.to_string());
    CertificateView {
        valid: error.is_none() || decision.action.kind == ActionKind::Release,
        error,
        weight: verdict.weight,
        needed: verdict.needed,
        total: verdict.total,
        confirms: verdict.confirms,
        confirms_needed: verdict.confirms_needed,
        zones: verdict.zones,
        epoch: match &decision.warrant {
            Warrant::Votes(certificate) => certificate.epoch,
            Warrant::Operator(_) => 0,
        },
    }
}
